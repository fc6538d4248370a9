"""The paper's model of a schedule: whole tasks, one at a time on every port, in order; and the paper's orders.

A task occupies the sending port of one host and the receiving ports of all hosts that need it, for bytes / rate; it
starts as soon as all of them have ended their earlier tasks (Sec. 3.2).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np


@final
@dataclass(frozen=True)
class Task:
    """A unit task between hosts.

    Attributes:
        holders: Hosts that may send it, ascending.
        receivers: Hosts that need it; none where it stays in its host.
        seconds: How long it takes.
    """

    holders: tuple[int, ...]
    receivers: tuple[int, ...]
    seconds: float


Choice = tuple[int, int]  # number of the task, host that sends it


def blocking_makespan(tasks: Sequence[Task], order: Sequence[Choice]) -> float:
    """When the last task ends if every port works off its tasks in the order given.

        start(u) = max over the ports of u of the end of the port's task before u

    Args:
        tasks: The tasks.
        order: Which task comes next and who sends it; every task once.

    Returns:
        Seconds.

    Raises:
        ValueError: A task is missing or comes twice, or its sender does not hold it.

    Reference:
        Sec. 3.2, Eq. (1)-(3).

    Example:
        >>> grid = [Task((s,), (r,), 0.25) for r in (2, 3) for s in (0, 1)]
        >>> blocking_makespan(grid, [(0, 0), (1, 1), (2, 0), (3, 1)])  # the receivers wait for each other
        0.75
        >>> blocking_makespan(grid, [(0, 0), (3, 1), (1, 1), (2, 0)])
        0.5
    """
    if sorted(k for k, _ in order) != list(range(len(tasks))):
        raise ValueError(f"an order has each of the {len(tasks)} tasks once; got {len(order)} entries")
    out: dict[int, float] = {}
    into: dict[int, float] = {}
    for k, sender in order:
        task = tasks[k]
        if sender not in task.holders:
            raise ValueError(f"host {sender} cannot send task {k}, which is held by {task.holders}")
        start = max([out.get(sender, 0.0), *(into.get(r, 0.0) for r in task.receivers)])
        out[sender] = start + task.seconds
        for r in task.receivers:
            into[r] = start + task.seconds
    return max(out.values(), default=0.0)


def port_bound(tasks: Sequence[Task], order: Sequence[Choice]) -> float:
    """The busiest port's load with the senders of an order: no order of these tasks ends earlier, seconds."""
    out: dict[int, float] = {}
    into: dict[int, float] = {}
    for k, sender in order:
        out[sender] = out.get(sender, 0.0) + tasks[k].seconds
        for r in tasks[k].receivers:
            into[r] = into.get(r, 0.0) + tasks[k].seconds
    return max([*out.values(), *into.values()], default=0.0)


def naive_order(tasks: Sequence[Task]) -> list[Choice]:
    """As the tasks come, each from its first holder."""
    return [(k, task.holders[0]) for k, task in enumerate(tasks)]


def size_only_order(tasks: Sequence[Task]) -> list[Choice]:
    """As the tasks come, each from the holder that has least to send so far."""
    load: dict[int, float] = {}
    order = []
    for k, task in enumerate(tasks):
        sender = min(task.holders, key=lambda h: (load.get(h, 0.0), h))
        load[sender] = load.get(sender, 0.0) + task.seconds
        order.append((k, sender))
    return order


def greedy_order(tasks: Sequence[Task], rng: np.random.Generator, rounds: int = 100) -> list[Choice]:
    """The paper's randomised greedy: again and again the fullest set of tasks that can go on together.

    In each of ``rounds`` tries the open tasks come in random order, each with a sender drawn among its holders with
    weight (largest load - load + task), and join the set unless a port is taken. The try with the most tasks is kept,
    of these the one with the most even load of the senders.

    Args:
        tasks: The tasks.
        rng: Source of the random orders.
        rounds: Tries for each set.

    Reference:
        Sec. 3.2, the randomised greedy algorithm.
    """
    load = dict.fromkeys(sorted({h for task in tasks for h in task.holders}), 0.0)
    left = list(range(len(tasks)))
    order: list[Choice] = []
    while left:
        found = max((_conflict_free(tasks, left, load, rng) for _ in range(rounds)), key=lambda one: one[0])[1]
        for k, sender in found:
            load[sender] += tasks[k].seconds
        order += found
        gone = {k for k, _ in found}
        left = [k for k in left if k not in gone]
    return order


def _conflict_free(
    tasks: Sequence[Task], left: Sequence[int], load: dict[int, float], rng: np.random.Generator
) -> tuple[tuple[int, float], list[Choice]]:
    """A maximal set of tasks that share no port, and how good it is."""
    senders: set[int] = set()
    receivers: set[int] = set()
    chosen: list[Choice] = []
    top = max(load.values())
    after = dict(load)
    for k in rng.permutation(np.array(left)).tolist():
        task = tasks[k]
        free = [h for h in task.holders if h not in senders]
        if not free or not receivers.isdisjoint(task.receivers):
            continue
        weight = np.array([top - load[h] + task.seconds for h in free])
        chances = weight / weight.sum() if weight.sum() > 0 else None  # all alike where nothing takes time
        sender = free[int(rng.choice(len(free), p=chances))]
        senders.add(sender)
        receivers.update(task.receivers)
        after[sender] += task.seconds
        chosen.append((k, sender))
    return (len(chosen), -float(np.std(list(after.values())))), chosen


def search_order(tasks: Sequence[Task], nodes: int = 20_000) -> list[Choice]:
    """The paper's depth-first search over orders and senders, with a bound that is valid.

    A branch is left when its busiest port, with all that must still enter it, would end no earlier than the best order
    so far. The search ends after a number of nodes, not of seconds, so that it is the same everywhere.

    Args:
        tasks: The tasks.
        nodes: Most nodes to look at.

    Returns:
        The best order found; optimal if the nodes sufficed.

    Reference:
        Sec. 3.2, the depth-first search algorithm.
    """
    return _Search(tasks, nodes).run()


def paper_order(tasks: Sequence[Task], rng: np.random.Generator) -> list[Choice]:
    """The better of the search and the randomised greedy: what the paper calls ours."""
    return min((search_order(tasks), greedy_order(tasks, rng)), key=lambda order: blocking_makespan(tasks, order))


class _Search:
    def __init__(self, tasks: Sequence[Task], nodes: int) -> None:
        self.tasks, self.nodes = tasks, nodes
        self.best = size_only_order(tasks)
        self.makespan = blocking_makespan(tasks, self.best)
        self.out: dict[int, float] = {}
        self.into: dict[int, float] = {}
        self.rest: dict[int, float] = {}
        for task in tasks:
            for r in task.receivers:
                self.rest[r] = self.rest.get(r, 0.0) + task.seconds
        self.order: list[Choice] = []

    def run(self) -> list[Choice]:
        self._branch(frozenset(range(len(self.tasks))), 0.0)
        return self.best

    def _branch(self, left: frozenset[int], end: float) -> None:
        if not left and end < self.makespan:
            self.best, self.makespan = list(self.order), end
        bound = max((self.into.get(r, 0.0) + rest for r, rest in self.rest.items()), default=0.0)
        self.nodes -= 1
        if not left or self.nodes < 0 or max(bound, end) >= self.makespan * (1 - 1e-12):
            return
        starts = []
        for k in sorted(left):
            task = self.tasks[k]
            ready = max((self.into.get(r, 0.0) for r in task.receivers), default=0.0)
            starts += [(max(ready, self.out.get(h, 0.0)), -task.seconds, k, h) for h in task.holders]
        for start, _, k, sender in sorted(starts):
            self._take(left, end, k, sender, start)

    def _take(self, left: frozenset[int], end: float, k: int, sender: int, start: float) -> None:
        task = self.tasks[k]
        before = self.out.get(sender, 0.0), {r: self.into.get(r, 0.0) for r in task.receivers}
        self.out[sender] = start + task.seconds
        for r in task.receivers:
            self.into[r] = start + task.seconds
            self.rest[r] -= task.seconds
        self.order.append((k, sender))
        self._branch(left - {k}, max(end, start + task.seconds))
        self.order.pop()
        self.out[sender] = before[0]
        self.into.update(before[1])
        for r in task.receivers:
            self.rest[r] += task.seconds

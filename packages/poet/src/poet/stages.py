"""From what a program or a heuristic decides (what runs, what is transferred, in which order) to a schedule.

The decisions are *steps*: `compute`, `page_out` and `page_in` events. `settle` adds the frees and drops at the earliest
moment and leaves out what nobody reads.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from time import perf_counter
from typing import final

import numpy as np
from jaxtyping import Bool

from poet.events import Event, Kind, compute, drop, free, page_in, page_out
from poet.problem import Problem
from poet.replay import replay
from poet.schedule import Found, Limits, Status


class StepError(ValueError):
    """Steps that read what is nowhere."""


@final
@dataclass(frozen=True)
class Plan:
    """Decisions for each stage, T operations, K tiers, V values.

    Attributes:
        run: Whether operation i is executed in stage t.
        ram: Whether value v is in RAM at the start of stage t; row T is the end of the step.
        read: Whether v is paged in from tier k at the end of stage t.
        written: Whether v is copied to tier k at the start of stage t.
    """

    run: Bool[np.ndarray, "T T"]
    ram: Bool[np.ndarray, "T+1 V"]
    read: Bool[np.ndarray, "T K V"]
    written: Bool[np.ndarray, "T K V"]

    def steps(self, problem: Problem) -> list[Event]:
        """The steps, transfers from tiers outside RAM delayed until the value is read."""
        steps: list[Event] = []
        pending: dict[int, int] = {}
        for t in range(len(self.run)):
            for k, v in np.argwhere(self.written[t]).tolist():
                _bring([v], pending, steps)
                steps.append(page_out(v, k))
            for i in np.flatnonzero(self.run[t]).tolist():
                _bring(problem.graph.ops[i].inputs, pending, steps)
                for v in problem.graph.ops[i].outputs:
                    pending.pop(v, None)
                steps.append(compute(i))
            for k, v in np.argwhere(self.read[t]).tolist():
                if problem.tiers[k].in_ram or not problem.tiers[k].exact:
                    steps.append(page_in(v, k))
                else:
                    pending[v] = k
        _bring([v for v, value in enumerate(problem.graph.values) if value.keep], pending, steps)
        return steps


def _bring(values: Iterable[int], pending: dict[int, int], steps: list[Event]) -> None:
    steps += [page_in(v, pending.pop(v)) for v in dict.fromkeys(values) if v in pending]


def settle(problem: Problem, steps: Sequence[Event]) -> tuple[Event, ...]:
    """Add frees and drops as early as they can be; leave out transfers and recomputations that nobody reads.

    A value is free between its last reader and the next step that brings it back.

    Args:
        problem: What the steps are for.
        steps: `compute`, `page_out`, `page_in`, in order; every operation at least once.

    Returns:
        A complete schedule; never dearer than the steps.

    Raises:
        StepError: If a step reads a value that no step before it brings.

    Example:
        >>> from poet.graph import chain
        >>> from poet.problem import formulate
        >>> from poet.device import Device
        >>> device = Device("toy", flops_per_second=1.0, compute_power=1.0)
        >>> events = settle(formulate(chain("c", [1, 1]), device, 2), [compute(0), compute(1)])
        >>> [(event.kind.value, event.target) for event in events]
        [('compute', 0), ('compute', 1), ('free', 0), ('free', 1)]
    """
    graph = problem.graph
    ops, values = graph.ops, graph.values
    first: dict[int, int] = {}
    for at, step in enumerate(steps):
        if step.kind is Kind.COMPUTE:
            first.setdefault(step.target, at)
    live = {v for v, value in enumerate(values) if value.keep}
    copies: set[tuple[int, int]] = set()
    events: list[Event] = []  # from the last to the first

    def read(sources: Iterable[int]) -> None:
        for v in dict.fromkeys(sources):
            if v not in live:
                events.append(free(v))
                live.add(v)

    for at in range(len(steps) - 1, -1, -1):
        step = steps[at]
        v, copy = step.target, (step.target, step.tier)
        if step.kind is Kind.COMPUTE:
            op = ops[step.target]
            if first[step.target] == at or not live.isdisjoint(op.outputs):
                events += [free(u) for u in op.outputs if u not in live]
                live.difference_update(op.outputs)
                read(op.inputs)
                events.append(step)
        elif step.kind is Kind.PAGE_IN and v in live:
            live.remove(v)
            if copy not in copies:
                events.append(drop(*copy))
                copies.add(copy)
            events.append(step)
        elif step.kind is Kind.PAGE_OUT and copy in copies:
            copies.remove(copy)
            read([v])
            events.append(step)
    if live or copies or len(first) < len(ops):
        lost = live or {v for v, _ in copies}
        raise StepError(f"the steps read values {sorted(lost)} before they bring them, or miss an operation")
    events.reverse()
    return tuple(events)


def add_copies(problem: Problem, steps: Sequence[Event]) -> list[Event]:
    """Add the `page_out` that each `page_in` needs, once per value and tier.

    Outside RAM a copy is made as soon as the value exists, which changes no peak; copies that lie in RAM, or in a tier
    of limited size, after the last reader before the first transfer back.

    Args:
        problem: What the steps are for.
        steps: `compute` and `page_in`.
    """
    wanted: dict[int, dict[int, int]] = {}  # value -> tier -> first transfer back
    for at, step in enumerate(steps):
        if step.kind is Kind.PAGE_IN:
            wanted.setdefault(step.target, {}).setdefault(step.tier, at)
    after: dict[int, list[Event]] = {}
    born: dict[int, int] = {}
    used: dict[int, int] = {}
    for at, step in enumerate(steps):
        if step.kind is Kind.COMPUTE:
            op = problem.graph.ops[step.target]
            used.update(dict.fromkeys((*op.inputs, *op.outputs), at))
            for v in op.outputs:
                born.setdefault(v, at)
        elif step.kind is Kind.PAGE_IN:
            v, tier = step.target, problem.tiers[step.tier]
            if wanted[v][step.tier] == at:
                late = tier.in_ram or tier.capacity is not None
                after.setdefault(used[v] if late else born[v], []).append(page_out(v, step.tier))
    return [event for at, step in enumerate(steps) for event in (step, *after.get(at, ()))]


def readable(problem: Problem) -> Bool[np.ndarray, "stages K V"]:
    """Whether value v may be paged in from tier k in stage t, row T being the end of the step.

    An inexact copy may be read by the backward pass alone, and be made of compressible values alone.
    """
    backward = np.array([op.phase == "backward" for op in problem.graph.ops] + [False])
    exact = np.array([tier.exact for tier in problem.tiers], dtype=bool)
    takes = [[problem.takes(k, v) for v in range(len(problem.graph.values))] for k in range(len(problem.tiers))]
    takes_all = np.array(takes, dtype=bool).reshape(len(exact), len(problem.graph.values))
    return takes_all[None] & (exact[None, :] | backward[:, None])[:, :, None]


def fits(problem: Problem, events: Sequence[Event]) -> bool:
    """Whether a schedule keeps the RAM limit, the room of tiers, and the deadline as the linear engines see it.

    Also whether it reads inexact copies only where that is allowed.
    """
    return (
        replay(problem, events).peak <= problem.ram
        and _rooms(problem, events)
        and _in_time(problem, events)
        and _exact(problem, events)
    )


def _exact(problem: Problem, events: Sequence[Event]) -> bool:
    if all(tier.exact for tier in problem.tiers):
        return True
    allowed, done = readable(problem), set()
    stage = 0  # the first operation that has not run
    for event in events:
        if event.kind is Kind.COMPUTE:
            done.add(event.target)
            while stage in done:
                stage += 1
        elif event.kind is Kind.PAGE_IN and not allowed[stage, event.tier, event.target]:
            return False
    return True


def _rooms(problem: Problem, events: Sequence[Event]) -> bool:
    if all(tier.capacity is None for tier in problem.tiers):
        return True
    copies: list[set[int]] = [set() for _ in problem.tiers]
    for event in events:
        if event.kind is Kind.PAGE_OUT:
            copies[event.tier].add(event.target)
            capacity = problem.tiers[event.tier].capacity
            if capacity is not None and problem.stored[event.tier][sorted(copies[event.tier])].sum() > capacity:
                return False
        elif event.kind is Kind.DROP:
            copies[event.tier].discard(event.target)
    return True


def _in_time(problem: Problem, events: Sequence[Event]) -> bool:
    if not isfinite(problem.deadline):
        return True
    clock = 0.0
    channels: dict[tuple[int, bool], float] = {}
    for event in events:
        if event.kind is Kind.COMPUTE:
            clock += float(problem.op_seconds[event.target])
        elif event.kind in (Kind.PAGE_IN, Kind.PAGE_OUT):
            write, k = event.kind is Kind.PAGE_OUT, event.tier
            seconds = float((problem.write_seconds if write else problem.read_seconds)[k, event.target])
            clock += float(problem.shown[k]) * seconds
            if problem.paging == "overlap" and not problem.tiers[k].in_ram:
                channel = (k, write and problem.tiers[k].duplex)
                channels[channel] = channels.get(channel, 0.0) + seconds
    return max(clock, *channels.values(), 0.0) <= problem.deadline * (1 + 1e-9)


@final
@dataclass
class Best:
    """The cheapest schedule that fits, of those tried.

    Attributes:
        problem: What they are for.
        events: The schedule.
        cost: Its cost.
    """

    problem: Problem
    events: tuple[Event, ...] | None = None
    cost: float = inf
    started: float = field(default_factory=perf_counter)

    def offer(self, steps: Sequence[Event] | None) -> bool:
        """Try steps (`page_out` included); return whether they fit and are the cheapest so far."""
        if steps is None:
            return False
        events = settle(self.problem, steps)
        cost = replay(self.problem, events).cost
        if cost >= self.cost or not fits(self.problem, events):
            return False
        self.events, self.cost = events, cost
        return True

    def spent(self, limits: Limits) -> bool:
        """Whether the time is over."""
        return perf_counter() - self.started > limits.seconds

    def found(self, engine: str, limits: Limits, bound: float | None = None, *, complete: bool = False) -> Found:
        """The result of the search.

        Args:
            engine: Its name.
            limits: How long it might search, and the gap that counts as closed.
            bound: Proved lower bound; the plain step's cost unless given.
            complete: Whether the engine has only this to offer, so that nothing found means that nothing fits.
        """
        base = self.problem.baseline_cost
        seconds = perf_counter() - self.started
        bound = base if bound is None else max(bound, base)
        if self.events is None:
            infeasible = complete or bound == inf
            return Found(Status.INFEASIBLE if infeasible else Status.UNKNOWN, None, bound, engine, seconds)
        bound = min(bound, self.cost)
        closed = self.cost - bound <= max(limits.gap, 1e-9) * base
        return Found(Status.OPTIMAL if closed else Status.FEASIBLE, self.events, bound, engine, seconds)

"""Exhaustive search: the optimum itself, on graphs of a handful of operations, in each class of schedules.

Four classes, each inside the next, so their optima only fall:

- `stage_optimum`: the paper's program. In stage t operation t is executed for the first time; recomputations within a
  stage come before it in the graph's order; transfers happen at the borders of stages.
- `optimum(order="indexed")`: the same order of execution, transfers and frees at any event.
- `optimum(order="graph")`: first executions in the graph's order, everything else free (recomputations in any order).
- `optimum(order="any")`: every sequence of events.

Everything here is slow and obvious, and shares no arithmetic with the solvers.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from math import inf
from typing import final

from poet.events import Event, compute, drop, free, page_in, page_out
from poet.problem import Problem

ORDERS = ("any", "graph", "indexed")

_State = tuple[int, int, int, int]  # executed operations, last recomputation of the stage, values in RAM, copies
_Step = tuple[Event, _State, tuple[float, ...]]  # event, state after it, what it adds to cost, time and channels


@final
@dataclass(frozen=True)
class Optimum:
    """The cheapest schedule.

    Attributes:
        cost: Its cost, in the objective's units.
        events: The schedule.
    """

    cost: float
    events: tuple[Event, ...]


def optimum(problem: Problem, order: str = "graph") -> Optimum | None:
    """The cheapest schedule of a class by Dijkstra's algorithm over what is in RAM, where copies are, what has run.

    With a deadline a state keeps every combination of cost, time and channel loads that none other beats.

    Args:
        problem: At most about 8 operations and values; the work grows as 2^(operations + values · (1 + tiers)).
        order: `"any"`, `"graph"` or `"indexed"`, see the module.

    Returns:
        The optimum, or None if no schedule of the class fits.

    Raises:
        ValueError: If the order is none of the three, or the graph is too large.

    Example:
        >>> from poet.graph import chain
        >>> from poet.problem import formulate
        >>> from poet.device import Device
        >>> device = Device("toy", flops_per_second=1.0, compute_power=1.0)
        >>> optimum(formulate(chain("c", [1, 1, 1]), device, 2), "any").cost
        3.0
    """
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {order!r}")
    if not all(tier.exact for tier in problem.tiers):
        raise ValueError("exhaustive search knows tiers that give exact copies back alone")
    if len(problem.graph.ops) > 12 or len(problem.graph.values) * (1 + len(problem.tiers)) > 24:
        raise ValueError("exhaustive search is for at most 12 operations and 24 places of values")
    return _Search(problem, order).run()


class _Search:
    """States, moves and labels."""

    def __init__(self, problem: Problem, order: str) -> None:
        graph = problem.graph
        self.problem, self.order = problem, order
        self.all_ops = (1 << len(graph.ops)) - 1
        self.reads = [_mask(op.inputs) for op in graph.ops]
        self.makes = [_mask(op.outputs) for op in graph.ops]
        backward = [op.phase == "backward" for op in graph.ops]
        self.lossy = [not tier.exact for tier in problem.tiers]
        self.may_lose = [*backward, False]  # by the first operation that has not run
        self.kept = _mask(v for v, value in enumerate(graph.values) if value.keep)
        self.sizes = [value.size for value in graph.values]
        self.channels = _channels(problem)
        self.limits = (problem.deadline, *(problem.deadline for _ in self.channels))
        self.bytes: dict[tuple[int, int], int] = {}

    def run(self) -> Optimum | None:
        # First executions cost nothing here, as every schedule pays them: what is left is the overhead.
        start = (0.0, self.problem.baseline_seconds, *(0.0 for _ in self.channels))
        if not self.within(start):
            return None
        ticket = count()
        queue: list[tuple[tuple[float, ...], int, _State, tuple | None]] = [(start, next(ticket), (0, -1, 0, 0), None)]
        settled: dict[_State, list[tuple[float, ...]]] = {}
        while queue:
            label, _, state, path = heappop(queue)
            labels = settled.setdefault(state, [])
            if any(all(a <= b for a, b in zip(other, label, strict=True)) for other in labels):
                continue
            labels.append(label)
            if state[0] == self.all_ops and not self.kept & ~state[2]:
                return Optimum(label[0] + self.problem.baseline_cost, _events(path))
            for event, after, adds in self.moves(state):
                new = tuple(a + b for a, b in zip(label, adds, strict=True)) if adds else label
                if self.within(new):
                    heappush(queue, (new, next(ticket), after, (event, path)))
        return None

    def within(self, label: tuple[float, ...]) -> bool:
        return all(used <= limit * (1 + 1e-12) for used, limit in zip(label[1:], self.limits, strict=True))

    def used(self, resident: int, copies: int) -> int:
        key = (resident, copies)
        if key not in self.bytes:
            total = sum(size for v, size in enumerate(self.sizes) if resident >> v & 1)
            for k, tier in enumerate(self.problem.tiers):
                if tier.in_ram:
                    total += sum(int(s) for v, s in enumerate(self.problem.stored[k]) if copies >> self.place(k, v) & 1)
            self.bytes[key] = total
        return self.bytes[key]

    def place(self, tier: int, value: int) -> int:
        return tier * len(self.sizes) + value

    def moves(self, state: _State) -> Iterator[_Step]:
        yield from self.computations(state)
        yield from self.transfers(state)
        done, last, resident, copies = state
        for v in range(len(self.sizes)):
            if resident >> v & 1:
                yield free(v), (done, last, resident & ~(1 << v), copies), ()
            for k, tier in enumerate(self.problem.tiers):
                bit = 1 << self.place(k, v)
                if copies & bit and (tier.in_ram or tier.capacity is not None):
                    yield drop(v, k), (done, last, resident, copies & ~bit), ()

    def computations(self, state: _State) -> Iterator[_Step]:
        problem, (done, last, resident, copies) = self.problem, state
        for i, op in enumerate(problem.graph.ops):
            again = done >> i & 1
            if self.reads[i] & ~resident or (again and not self.makes[i] & ~resident):
                continue
            if again and (not problem.recomputable[i] or (self.order == "indexed" and i <= last)):
                continue
            if not again and self.order != "any" and done != (1 << i) - 1:
                continue
            made = sum(self.sizes[v] for v in op.outputs)
            if self.used(resident, copies) + made + op.workspace > problem.ram:
                continue
            mark = i if again and self.order == "indexed" else -1
            after = (done | 1 << i, mark, resident | self.makes[i], copies)
            adds = (float(problem.op_cost[i]), float(problem.op_seconds[i]), *(0.0 for _ in self.channels))
            yield compute(i), after, adds if again else ()

    def transfers(self, state: _State) -> Iterator[_Step]:
        problem, (done, last, resident, copies) = self.problem, state
        for k in range(len(problem.tiers)):
            for v in range(len(self.sizes)):
                here, copied, bit = resident >> v & 1, copies >> self.place(k, v) & 1, 1 << self.place(k, v)
                if self.lossy[k] and not self.may_read(done, v, back=bool(copied and not here)):
                    continue
                if here and not copied and self.room(k, copies | bit):
                    if self.used(resident, copies | bit) <= problem.ram:
                        yield page_out(v, k), (done, last, resident, copies | bit), self.adds(k, v, write=True)
                elif copied and not here and self.used(resident | 1 << v, copies) <= problem.ram:
                    yield page_in(v, k), (done, last, resident | 1 << v, copies), self.adds(k, v, write=False)

    def may_read(self, done: int, v: int, back: bool) -> bool:
        """Whether an inexact copy may be made (of compressible values), or be read (by the backward pass) now."""
        stage = next(i for i in range(len(self.may_lose)) if not done >> i & 1)
        return self.problem.graph.values[v].compressible and (self.may_lose[stage] or not back)

    def room(self, tier: int, copies: int) -> bool:
        capacity = self.problem.tiers[tier].capacity
        stored = self.problem.stored[tier]
        return capacity is None or capacity >= sum(
            int(stored[v]) for v in range(len(self.sizes)) if copies >> self.place(tier, v) & 1
        )

    def adds(self, tier: int, value: int, write: bool) -> tuple[float, ...]:
        problem = self.problem
        seconds = float((problem.write_seconds if write else problem.read_seconds)[tier, value])
        cost = float((problem.out_cost if write else problem.in_cost)[tier, value])
        load = [seconds if channel in ((tier, write), (tier, None)) else 0.0 for channel in self.channels]
        return (cost, float(problem.shown[tier]) * seconds, *load)


def _mask(indices: Iterable[int]) -> int:
    mask = 0
    for i in indices:
        mask |= 1 << i
    return mask


def _channels(problem: Problem) -> list[tuple[int, bool | None]]:
    """What transfers of a tier queue for: one channel, or (duplex) one for each direction."""
    channels: list[tuple[int, bool | None]] = []
    if problem.paging == "overlap" and problem.deadline < inf:
        for k, tier in enumerate(problem.tiers):
            if not tier.in_ram:
                channels += [(k, False), (k, True)] if tier.duplex else [(k, None)]
    return channels


def _events(path: tuple | None) -> tuple[Event, ...]:
    events = []
    while path is not None:
        event, path = path
        events.append(event)
    return tuple(reversed(events))

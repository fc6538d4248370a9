"""Exact liveness: a schedule without the events that nothing needs, and with every free as early as it can be.

Only removes and moves up, so neither cost nor memory grow; a step of the search can be careless and trim afterwards.
Freeing at once what is being paged out stops the processor until the transfer ends: the makespan may grow, and
`poet.transfers.overlap`, which moves such frees back as far as memory allows, comes after.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import final

from poet.events import Event, Kind, drop, free
from poet.graph import Graph
from poet.problem import Problem


def trim(problem: Problem, events: Sequence[Event]) -> tuple[Event, ...]:
    """The schedule without waste.

    Gone are recomputations, page-ins and page-outs of what nobody reads before it is replaced or freed,
    recomputations of what is still in RAM, and page-outs of what the tier already holds. Every value is freed right
    after its last use before it is replaced or never used again, every copy dropped right after it is read last.

    Args:
        problem: The problem.
        events: A schedule that breaks no rule.

    Returns:
        A schedule that costs no more and at each of its remaining events takes no more memory.

    Example:
        >>> from poet import device, graph, problem
        >>> from poet.events import compute, computed
        >>> machine = device.Device("toy", flops_per_second=1.0, flops_per_joule=1.0)
        >>> case = problem.formulate(graph.chain("c", [4, 4, 4]), machine, 99)
        >>> wasteful = [compute(0), compute(0), compute(1), compute(0), compute(2)]
        >>> computed(trim(case, wasteful))
        [0, 1, 2]
    """
    kept = tuple(events)
    while True:
        fewer = _without_waste(problem.graph, kept)
        if len(fewer) == len(kept):
            return _freed_early(problem.graph, kept)
        kept = fewer


@final
@dataclass
class _Live:
    """What is needed after a point, found from the end backwards."""

    values: set[int]
    copies: set[tuple[int, int]] = field(default_factory=set)

    def before(self, graph: Graph, event: Event) -> tuple[list[int], list[tuple[int, int]]]:
        """Step over an event that happens; what it uses for the last time: values, copies."""
        v, copy = event.target, (event.target, event.tier)
        if event.kind is Kind.COMPUTE:
            op = graph.ops[v]
            dead = [w for w in dict.fromkeys((*op.inputs, *op.outputs)) if w not in self.values]
            self.values.difference_update(op.outputs)
            self.values.update(op.inputs)
            return dead, []
        dead, last = [v] * (v not in self.values), [copy] * (copy not in self.copies)
        if event.kind is Kind.PAGE_IN:
            self.values.discard(v)
            self.copies.add(copy)
        else:
            self.copies.discard(copy)
            self.values.add(v)
        return dead, last


def _at_the_end(graph: Graph) -> _Live:
    return _Live({v for v, value in enumerate(graph.values) if value.keep})


def _first_executions(events: Iterable[Event]) -> set[int]:
    """Indices of the events that execute an operation for the first time."""
    first: dict[int, int] = {}
    for e, event in enumerate(events):
        if event.kind is Kind.COMPUTE:
            first.setdefault(event.target, e)
    return set(first.values())


def _without_waste(graph: Graph, events: Sequence[Event]) -> tuple[Event, ...]:
    """Drop what nobody needs; one round, since what is dropped here may have been the only reader of something."""
    needed = _needed(graph, events)
    first = _first_executions(events)
    resident: set[int] = set()
    copies: set[tuple[int, int]] = set()
    kept: list[Event] = []
    for e, event in enumerate(events):
        v, copy = event.target, (event.target, event.tier)
        match event.kind:
            case Kind.COMPUTE:
                wanted = e in first or not needed[e] <= resident
                resident.update(graph.ops[v].outputs if wanted else ())
            case Kind.PAGE_IN:
                wanted = bool(needed[e])
                resident.update(needed[e])
            case Kind.PAGE_OUT:
                wanted = bool(needed[e]) and copy not in copies
                copies.update([copy] if wanted else ())
            case Kind.FREE:
                wanted = v in resident
                resident.discard(v)
            case _:
                wanted = copy in copies
                copies.discard(copy)
        if wanted:
            kept.append(event)
    return tuple(kept)


def _needed(graph: Graph, events: Sequence[Event]) -> list[set[int]]:
    """The values whose new residence each event makes for a later reader; for a page-out, the value if it is read."""
    first = _first_executions(events)
    live = _at_the_end(graph)
    needed: list[set[int]] = [set() for _ in events]
    for e in reversed(range(len(events))):
        event = events[e]
        if event.kind is Kind.COMPUTE:
            needed[e] = live.values.intersection(graph.ops[event.target].outputs)
        elif event.kind is Kind.PAGE_IN:
            needed[e] = live.values & {event.target}
        elif event.kind is Kind.PAGE_OUT:
            needed[e] = {event.target} if (event.target, event.tier) in live.copies else set()
        if needed[e] or e in first:
            live.before(graph, event)
    return needed


def _freed_early(graph: Graph, events: Sequence[Event]) -> tuple[Event, ...]:
    """Put every free and drop right after the last use."""
    live = _at_the_end(graph)
    backwards: list[Event] = []
    for event in reversed(events):
        if event.kind in (Kind.FREE, Kind.DROP):
            continue
        dead, last = live.before(graph, event)
        backwards += [drop(v, tier) for v, tier in sorted(last, reverse=True)]
        backwards += [free(v) for v in sorted(dead, reverse=True)]
        backwards.append(event)
    return tuple(reversed(backwards))

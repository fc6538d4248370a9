"""Transfers beside the computation: the same events in an order that hides more of the paging.

A page-in that is issued early runs while the processor works, and a free that comes late need not wait for the page-out
that still reads the value. Both keep RAM for longer, so both are bounded by the room that the memory curve leaves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import inf
from typing import final

import numpy as np
from jaxtyping import Float, Int

from poet.events import Event, Kind
from poet.problem import Problem
from poet.replay import replay
from poet.stays import Stay, ram_stays, tier_copies
from poet.timeline import channel

PASSES = 3
"""Times that the waits of a candidate are fed back into the next."""


def overlap(problem: Problem, events: Sequence[Event]) -> tuple[Event, ...]:
    """The same events, reordered so that transfers run beside the computation.

    Page-outs are issued as soon as their value exists, page-ins as late as still hides them given all that their
    channel has to carry, frees of values on their way out once they have left; each as far as memory has room. A few
    variants are replayed and the fastest is kept: a heuristic, but never a loss.

    Args:
        problem: The problem; under `"serial"` and `"free"` paging there is nothing to hide.
        events: A schedule that breaks no rule.

    Returns:
        A schedule of the same events, operations in the same order, that takes no longer; its peak is within the RAM
        of the problem, or no higher than it was.

    Example:
        >>> from poet import device, graph, problem
        >>> from poet.events import compute, free, page_in, page_out
        >>> flash = device.Tier("flash", 0.0, 1.0, 0.0, 1.0)
        >>> machine = device.Device("toy", flops_per_second=1.0, flops_per_joule=1.0, tiers=(flash,))
        >>> case = problem.formulate(graph.chain("c", [2, 2, 2], [1.0, 4.0, 4.0]), machine, 6)
        >>> events = [compute(0), compute(1), page_out(0), free(0), compute(2), page_in(0)]
        >>> replay(case, events).makespan, replay(case, overlap(case, events)).makespan
        (13.0, 9.0)
    """
    best = tuple(events)
    if problem.paging != "overlap" or not any(e.tier >= 0 and not problem.tiers[e.tier].in_ram for e in events):
        return best
    makespan = replay(problem, best).makespan
    for eager in (True, False):
        line = _Line(problem, _at_home(problem, events, eager))
        for frees_first, early in product((True, False), repeat=2):
            starts, before = line.busy, inf
            for _ in range(PASSES):
                if makespan <= line.shortest:
                    return best
                order = line.arranged(starts, frees_first, early)
                candidate = tuple(line.events[e] for e in order)
                taken = replay(problem, candidate).makespan
                if taken < makespan:
                    best, makespan = candidate, taken
                if taken >= before:
                    break
                before = taken
                starts = line.starts(order)
    return best


def _at_home(problem: Problem, events: Sequence[Event], eager: bool) -> tuple[Event, ...]:
    """Page-ins right before their first use, frees right after the last, page-outs (`eager`) right after the value.

    Memory is nowhere higher than it was. Transfers of a tier of limited capacity, or of a copy that is made more than
    once, keep their place among the operations.
    """
    everything = range(len(events))
    stays, copies = ram_stays(problem.graph, events, everything)[0], tier_copies(events, everything)[0]
    place = {e: (e, 3) for e in everything}  # event -> (the event that it goes with, rank there)
    moves = _movable(problem, copies)
    drops = {e: copy.end for copy in copies if copy.closed == "free" for e in copy.reads}
    for stay in stays:
        born = stay.writes[0]
        if eager and events[born].kind is Kind.COMPUTE:
            place.update((e, (born, 4)) for e in stay.reads if e in moves)
        if stay.reads and born in moves:
            use = min(stay.reads)
            place[born] = (use, 1)
            if born in drops:
                place[drops[born]] = max(place[drops[born]], (use, 2))
        if stay.closed == "free" and (stay.reads or events[born].kind is Kind.COMPUTE):
            place[stay.end] = (max(place[e] for e in (born, *stay.reads))[0], 5)
    return tuple(events[e] for e in sorted(everything, key=lambda e: (*place[e], e)))


def _movable(problem: Problem, copies: Sequence[Stay]) -> set[int]:
    """The transfers that are not bound to their place among the operations."""
    writes: dict[tuple[int, int], int] = {}
    for copy in copies:
        writes[copy.value, copy.tier] = writes.get((copy.value, copy.tier), 0) + len(copy.writes)
    moves: set[int] = set()
    for copy in copies:
        tier = problem.tiers[copy.tier]
        if not tier.in_ram and tier.capacity is None and writes[copy.value, copy.tier] == 1:
            moves.update((*copy.writes, *copy.reads))
    return moves


@final
@dataclass(eq=False)
class _Move:
    """An event that moves among the fixed ones; its gap is the fixed event that it comes right before.

    Attributes:
        event: Index in the line's events.
        value: Its value.
        size: Bytes of the value.
        home: The gap where memory is lowest.
        bound: How far it may go: back to this gap for a page-in, on to this one for a free.
        partner: For a page-in, the free of the value's stay before; for a free, the page-in of the stay after.
        outs: For a free, the page-outs that read the value.
        gap: Where it is.
    """

    event: int
    value: int
    size: int
    home: int
    bound: int
    partner: "_Move | None" = None
    outs: tuple[int, ...] = ()
    gap: int = 0


@final
class _Line:
    """A schedule as fixed events with gaps between them, and page-ins and frees that move from gap to gap."""

    def __init__(self, problem: Problem, events: tuple[Event, ...]) -> None:
        self.problem, self.events = problem, events
        everything = range(len(events))
        stays, copies = ram_stays(problem.graph, events, everything)[0], tier_copies(events, everything)[0]
        self.lane = {e: _lane(problem, events[e]) for e in everything if _leaves(problem, events[e])}
        outs = {stay.end: tuple(e for e in stay.reads if e in self.lane) for stay in stays if stay.closed == "free"}
        moving = {e for e, out in outs.items() if out} | {e for e in self.lane if events[e].kind is Kind.PAGE_IN}
        self.fixed = [e for e in everything if e not in moving]
        self.gap: list[int] = np.searchsorted(self.fixed, np.arange(len(events) + 1)).tolist()
        seconds = [0.0 if e in self.lane else _seconds(problem, events[e]) for e in self.fixed]
        self.busy: Float[np.ndarray, " gaps"] = np.concatenate([[0.0], np.cumsum(seconds)])
        self.memory: Int[np.ndarray, " fixed"] = replay(problem, events).memory[self.fixed]
        self.change = _changes(problem, len(events), stays, copies)
        self.reads, self.frees = self._moves(stays, copies, outs)

    @property
    def shortest(self) -> float:
        """No order of these events takes less than the processor's time, and each channel's."""
        load = dict.fromkeys(self.lane.values(), 0.0)
        for e, lane in self.lane.items():
            load[lane] += _seconds(self.problem, self.events[e])
        return max(float(self.busy[-1]), *load.values())

    def arranged(self, starts: Float[np.ndarray, " gaps"], frees_first: bool, early: bool) -> list[int]:
        """The events with page-ins and frees moved, given when each fixed event starts.

        Args:
            starts: Seconds; the last entry is the end.
            frees_first: Whether frees get the room in memory before page-ins.
            early: Whether page-ins go as early as they can, not only as early as they must.
        """
        memory = self.memory.copy()
        for move in (*self.reads, *self.frees):
            move.gap = move.home
        if frees_first:
            self._delay(memory, starts)
        self._prefetch(memory, starts, early)
        if not frees_first:
            self._delay(memory, starts)
        return self._merged()

    def starts(self, order: Sequence[int]) -> Float[np.ndarray, " gaps"]:
        """When each fixed event starts in an arrangement, if frees waited for nothing."""
        now = 0.0
        free_from = dict.fromkeys(self.lane.values(), 0.0)
        ready: dict[int, float] = {}  # value -> end of the last transfer that fills it
        left: dict[int, float] = {}  # value -> end of the last transfer that copies it out
        began: dict[int, float] = {}
        for e in order:
            event, seconds = self.events[e], _seconds(self.problem, self.events[e])
            began[e] = now
            if e in self.lane:
                read = event.kind is Kind.PAGE_IN
                source = (left if read else ready).get(event.target, 0.0)
                end = max(now, source, free_from[self.lane[e]]) + seconds
                free_from[self.lane[e]] = (ready if read else left)[event.target] = end
            elif event.kind is Kind.COMPUTE:
                op = self.problem.graph.ops[event.target]
                now = began[e] = max([now, *(ready.get(v, 0.0) for v in op.inputs)])
                now += seconds
                ready.update(dict.fromkeys(op.outputs, now))
            else:
                now += seconds
        return np.array([*(began[e] for e in self.fixed), now])

    def _moves(
        self, stays: Sequence[Stay], copies: Sequence[Stay], outs: dict[int, tuple[int, ...]]
    ) -> tuple[list[_Move], list[_Move]]:
        written = {e: copy.writes[0] for copy in copies for e in copy.reads}
        reads: list[_Move] = []
        frees: list[_Move] = []
        last: _Move | int = 0  # where the value's stay before ends: a free that moves, or a gap
        for i, stay in enumerate(stays):
            born, v = stay.writes[0], stay.value
            size = int(self.problem.sizes[v])
            again = i > 0 and stays[i - 1].value == v
            before = last if again and isinstance(last, _Move) else None
            if self.events[born].kind is Kind.PAGE_IN and born in self.lane:
                bound = self.gap[written[born]] + 1
                if again and before is None:
                    bound = max(bound, self.gap[stays[i - 1].end] + 1)
                reads.append(_Move(born, v, size, self.gap[born], bound, before))
                if before is not None:
                    before.partner = reads[-1]
            elif before is not None:
                before.bound = self.gap[born]
            last = 0
            if stay.closed == "free" and outs[stay.end]:
                last = _Move(stay.end, v, size, self.gap[stay.end], len(self.fixed), None, outs[stay.end])
                frees.append(last)
        return sorted(reads, key=lambda move: move.event), sorted(frees, key=lambda move: move.event)

    def _prefetch(self, memory: Int[np.ndarray, " fixed"], starts: Float[np.ndarray, " gaps"], early: bool) -> None:
        """Move page-ins back, in the order of need, until they are hidden or memory has no room."""
        latest = self._latest_starts(starts)
        issued: dict[str, int] = {}  # a channel works in the order of issue: nothing overtakes what is needed sooner
        for move in self.reads:
            lane = self.lane[move.event]
            due = 0 if early else int(np.searchsorted(starts, latest[move.event], side="right")) - 1
            after = move.partner.gap if move.partner else 0
            low = min(max(due, move.bound, after, issued.get(lane, 0)), move.home)
            full = np.flatnonzero(memory[low : move.home] > self.problem.ram - move.size)
            move.gap = low + int(full[-1]) + 1 if full.size else low
            memory[move.gap : move.home] += move.size
            issued[lane] = move.gap

    def _delay(self, memory: Int[np.ndarray, " fixed"], starts: Float[np.ndarray, " gaps"]) -> None:
        """Move frees on until what is paged out has left or memory has no room."""
        ends = self._ends(starts)
        for move in self.frees:
            gone = int(np.searchsorted(starts, max(ends[e] for e in move.outs)))
            before = move.partner.gap if move.partner else len(self.fixed)
            high = max(min(gone, move.bound, before), move.home)
            full = np.flatnonzero(memory[move.home : high] > self.problem.ram - move.size)
            move.gap = move.home + int(full[0]) if full.size else high
            memory[move.home : move.gap] += move.size

    def _latest_starts(self, starts: Float[np.ndarray, " gaps"]) -> dict[int, float]:
        """When each transfer must start at the latest to delay nothing, if the others of its channel are as late."""
        due = {move.event: float(starts[move.home]) for move in self.reads}
        for move in self.frees:
            due.update((e, min(due.get(e, np.inf), float(starts[move.gap]))) for e in move.outs)
        latest: dict[int, float] = {}
        free_until: dict[str, float] = {}
        for e in sorted(due, key=lambda e: (due[e], e), reverse=True):
            end = min(due[e], free_until.get(self.lane[e], np.inf))
            latest[e] = free_until[self.lane[e]] = end - _seconds(self.problem, self.events[e])
        return latest

    def _ends(self, starts: Float[np.ndarray, " gaps"]) -> dict[int, float]:
        """When each transfer ends, if channels take them in the order of issue."""
        gaps = {e: self.gap[e] for e in self.lane} | {move.event: move.gap for move in self.reads}
        ends: dict[int, float] = {}
        free_from: dict[str, float] = {}
        for e in sorted(self.lane, key=lambda e: (gaps[e], e)):
            start = max(float(starts[gaps[e]]), free_from.get(self.lane[e], 0.0))
            ends[e] = free_from[self.lane[e]] = start + _seconds(self.problem, self.events[e])
        return ends

    def _merged(self) -> list[int]:
        """All events in order; in a gap, page-ins come before frees, which may wait, as long as there is room."""
        reads: list[list[_Move]] = [[] for _ in range(len(self.fixed) + 1)]
        frees: list[list[_Move]] = [[] for _ in range(len(self.fixed) + 1)]
        for move in self.reads:
            reads[move.gap].append(move)
        for move in self.frees:
            frees[move.gap].append(move)
        order: list[int] = []
        used = 0
        for gap, e in enumerate((*self.fixed, -1)):
            for move in reads[gap]:
                waiting = frees[gap]
                mine = [other for other in waiting if other is move.partner]
                while waiting and (mine or used + move.size > self.problem.ram):
                    first = mine.pop() if mine else waiting[0]
                    waiting.remove(first)
                    order.append(first.event)
                    used -= first.size
                order.append(move.event)
                used += move.size
            order += [move.event for move in frees[gap]]
            used -= sum(move.size for move in frees[gap])
            if e >= 0:
                order.append(e)
                used += self.change[e]
        return order


def _leaves(problem: Problem, event: Event) -> bool:
    """Whether the event is a transfer between RAM and a tier outside it."""
    return event.kind in (Kind.PAGE_IN, Kind.PAGE_OUT) and not problem.tiers[event.tier].in_ram


def _lane(problem: Problem, event: Event) -> str:
    return channel(problem.tiers[event.tier], event.kind is Kind.PAGE_OUT)


def _seconds(problem: Problem, event: Event) -> float:
    """How long the processor or the channel is busy with an event."""
    if event.kind is Kind.COMPUTE:
        return float(problem.op_seconds[event.target])
    if event.kind in (Kind.PAGE_OUT, Kind.PAGE_IN):
        table = problem.write_seconds if event.kind is Kind.PAGE_OUT else problem.read_seconds
        return float(table[event.tier, event.target])
    return 0.0


def _changes(problem: Problem, count: int, stays: Sequence[Stay], copies: Sequence[Stay]) -> list[int]:
    """By how much each event changes the bytes in RAM; no move among the operations changes that."""
    change = [0] * count
    blocks = [(stay, int(problem.sizes[stay.value])) for stay in stays]
    blocks += [(c, int(problem.stored[c.tier, c.value])) for c in copies if problem.tiers[c.tier].in_ram]
    for block, size in blocks:
        change[block.start] += size
        if block.closed != "end":
            change[block.end] -= size
    return change

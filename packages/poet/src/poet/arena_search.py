"""The lowest arena: an exact search, bottom up, for the static addresses of `poet.arena`.

Every packing can be pushed down until each block lies on the ground or on a block that lives with it. Building such a
packing in the order of its offsets means: at the lowest level of the skyline, either put a block there or leave the
level for good. A level may be left only while all that still has to come fits under the height aimed at, at every
point in time; states that were seen to fail are not entered again.
"""

import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import gcd
from typing import final

from poet.arena import Arena, Block, arena, best_fit, first_fit, live_peak, lowest, padded, placed

REMEMBERED = 10_000_000
"""Numbers in all failed states that are remembered."""


def optimal(blocks: Sequence[Block], time_limit: float = 10.0, alignment: int = 16) -> Arena:
    """The lowest arena that the search finds; `proved` says whether it is the lowest there is.

    Args:
        blocks: What to place.
        time_limit: Seconds; when they are over, the best so far is returned.
        alignment: Offsets are multiples of it.

    Raises:
        ValueError: If the alignment is not positive, or a block has no bytes or ends before it starts.

    Example:
        >>> from poet.arena import Block
        >>> found = optimal([Block(0, 0, 1, 16), Block(1, 1, 2, 32), Block(2, 2, 3, 16), Block(3, 3, 4, 32)])
        >>> found.height, found.proved
        (48, True)
    """
    until = time.monotonic() + time_limit
    best = min(first_fit(blocks, alignment), best_fit(blocks, alignment), key=lambda found: found.height)
    if best.proved:
        return best
    offsets, bound = list(best.offsets), best.lower_bound
    for part in _apart(blocks):
        mine = [blocks[b] for b in part]
        start = arena(mine, [offsets[b] for b in part], alignment)
        if start.height > bound:
            start = _pushed(start, time.monotonic() + (until - time.monotonic()) / 5)
            found, proved = _exact(start, bound, until)
            bound = max(bound, proved)
            for b, offset in zip(part, found, strict=True):
                offsets[b] = offset
    return arena(blocks, offsets, alignment, bound)


def _apart(blocks: Sequence[Block]) -> list[list[int]]:
    """Groups of blocks of which none lives with one of another group."""
    groups: list[list[int]] = []
    end = -1
    for b in sorted(range(len(blocks)), key=lambda b: blocks[b].start):
        if blocks[b].start > end:
            groups.append([])
        groups[-1].append(b)
        end = max(end, blocks[b].end)
    return groups


def _pushed(start: Arena, until: float) -> Arena:
    """Place again and again, those first that stuck out: a quick search that needs no proof."""
    sizes = padded(start.blocks, start.alignment)
    best, offsets = start, list(start.offsets)
    order = sorted(range(len(sizes)), key=lambda b: offsets[b])
    seen: set[tuple[int, ...]] = set()
    while not best.proved and tuple(order) not in seen and time.monotonic() < until:
        seen.add(tuple(order))
        offsets = placed(start.blocks, sizes, order, lowest)
        found = arena(start.blocks, offsets, start.alignment)
        best = min(best, found, key=lambda found: found.height)
        out = {b for b in order if offsets[b] + sizes[b] >= best.height}
        order = [b for b in order if b in out] + [b for b in order if b not in out]
    return best


def _exact(start: Arena, bound: int, until: float) -> tuple[tuple[int, ...], int]:
    """The lowest offsets found for blocks that hang together, and what is proved of their height.

    Args:
        start: A packing to beat.
        bound: A height that need not be beaten.
        until: When to stop.
    """
    sizes = padded(start.blocks, start.alignment)
    unit = gcd(*sizes)
    offsets, height = start.offsets, start.height
    proved = max(live_peak(start.blocks, sizes), bound)
    search = _Search(start.blocks, [size // unit for size in sizes], until)
    goal = proved
    while height > proved:
        found = search.within(goal // unit)
        if found is not None:
            offsets = tuple(offset * unit for offset in found)
            height = max(offset + size for offset, size in zip(offsets, sizes, strict=True))
        elif search.stopped:
            break
        else:
            proved = goal + unit
        goal = max(proved, height - unit)
    return offsets, min(proved, height)


@final
@dataclass
class _State:
    """A packing under construction, and what is still to try from here.

    Attributes:
        left: The blocks to place, as bits.
        level: Below which nothing more can be placed at each point.
        top: Where the highest block placed at each point ends.
        low: The lowest level of points to which something has still to come.
        block: The block that was placed last; -1 if a level was left instead.
        moves: What to try: a block, or -1 to leave the lowest level.
    """

    left: int
    level: list[int]
    top: list[int]
    low: int = 0
    block: int = -1
    moves: Iterator[int] = field(default_factory=lambda: iter(()))


@final
class _Search:
    """Depth-first search for a packing under a height."""

    def __init__(self, blocks: Sequence[Block], sizes: Sequence[int], until: float) -> None:
        self.sizes, self.until, self.nodes = sizes, until, 0
        self.stopped = time.monotonic() > until
        starts = sorted({block.start for block in blocks})
        ends = sorted(block.end for block in blocks)
        # Where the set of live blocks is largest: a start that an end follows before the next start.
        last = [ends[bisect_left(ends, t)] for t in starts]
        points = [t for t, end, u in zip(starts, last, [*starts[1:], ends[-1] + 1], strict=True) if end < u]
        self.cover = [range(bisect_left(points, b.start), bisect_right(points, b.end)) for b in blocks]
        self.load = [0] * len(points)
        for size, cover in zip(sizes, self.cover, strict=True):
            for p in cover:
                self.load[p] += size
        crowd = [
            (max(self.load[p] for p in cover), size * len(cover)) for size, cover in zip(sizes, self.cover, strict=True)
        ]
        self.order = sorted(range(len(sizes)), key=lambda b: crowd[b], reverse=True)

    def within(self, height: int) -> list[int] | None:
        """Offsets of a packing of at most this height; None if there is none, or time ran out."""
        points = len(self.load)
        failed: set[tuple[int, ...]] = set()
        offsets = [-1] * len(self.sizes)
        self.rest = list(self.load)  # what has still to come at each point
        stack = [self._entered(_State((1 << len(self.sizes)) - 1, [0] * points, [0] * points), failed, height)]
        while stack and not self.stopped:
            state = stack[-1]
            move = next(state.moves, None)
            if move is None:
                if len(failed) * points < REMEMBERED:
                    failed.add(self._key(state))
                stack.pop()
                self._count(state.block, 1)
                continue
            self._count(move, -1)
            after = _State(state.left & ~(1 << move) if move >= 0 else state.left, list(state.level), list(state.top))
            after.block = move
            if move >= 0:
                offsets[move] = state.low
                for p in self.cover[move]:
                    after.level[p] = after.top[p] = state.low + self.sizes[move]
            else:
                above = self._above(state)
                for p, rest in enumerate(self.rest):
                    if rest and after.level[p] == state.low:
                        after.level[p] = above
            if not after.left:
                return offsets
            stack.append(self._entered(after, failed, height))
        return None

    def _entered(self, state: _State, failed: set[tuple[int, ...]], height: int) -> _State:
        """The state with its moves; none if it was seen to fail."""
        self.nodes += 1
        if self.nodes % 64 == 0:
            self.stopped = time.monotonic() > self.until
        if self._key(state) not in failed:
            state.low = min(level for level, rest in zip(state.level, self.rest, strict=True) if rest)
            state.moves = iter(self._moves(state, height))
        return state

    def _moves(self, state: _State, height: int) -> list[int]:
        """Blocks that can lie at the lowest level, and whether it can be left."""
        moves: list[int] = []
        alike: set[tuple[int, int, int]] = set()
        for b in self.order:
            cover = self.cover[b]
            shape = (cover[0], cover[-1], self.sizes[b])
            if not state.left >> b & 1 or shape in alike or max(state.level[cover[0] : cover[-1] + 1]) > state.low:
                continue
            if max(state.top[cover[0] : cover[-1] + 1]) == state.low:  # else it could lie lower
                alike.add(shape)
                moves.append(b)
        above = self._above(state)
        lows = [rest for level, rest in zip(state.level, self.rest, strict=True) if rest and level == state.low]
        if above >= 0 and above + max(lows) <= height:
            moves.append(-1)
        return moves

    def _above(self, state: _State) -> int:
        """The lowest level above the lowest; -1 if there is none."""
        levels = (level for level, rest in zip(state.level, self.rest, strict=True) if rest and level > state.low)
        return min(levels, default=-1)

    def _count(self, block: int, sign: int) -> None:
        """A block is placed (-1) or taken away again (1)."""
        if block >= 0:
            for p in self.cover[block]:
                self.rest[p] += sign * self.sizes[block]

    def _key(self, state: _State) -> tuple[int, ...]:
        levels = (level if rest else -1 for level, rest in zip(state.level, self.rest, strict=True))
        return (state.left, *levels)

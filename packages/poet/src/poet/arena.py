"""Static addresses: where in one arena every value, workspace and copy in RAM lies while it is there.

A memory peak within the limit does not yet give addresses: blocks that come and go leave holes ("dynamic storage
allocation", NP-hard). The height of a packing is at least the most bytes that live at once; how much more it is, is its
fragmentation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, final

import numpy as np

from poet.device import Tier
from poet.events import Event, Kind
from poet.graph import Graph
from poet.stays import ram_stays, tier_copies
from poet.timeline import stored_bytes

Content = Literal["value", "workspace", "copy"]
ENDLESS = 2**62


@final
@dataclass(frozen=True)
class Block:
    """Bytes that stay at one address from one event to another.

    Attributes:
        value: The value; for a workspace, the operation.
        start: The first event at which it takes space.
        end: The last.
        size: Bytes.
        content: What lies there: a value, an operation's workspace, or the copy of a value in a tier within RAM.
        tier: The tier of a copy; -1 for all others.
    """

    value: int
    start: int
    end: int
    size: int
    content: Content = "value"
    tier: int = -1


@final
@dataclass(frozen=True)
class Arena:
    """A static assignment of addresses.

    Attributes:
        blocks: What is placed.
        offsets: First byte of each block.
        height: Bytes of the arena.
        live_peak: Most bytes of blocks that live at once.
        lower_bound: Proved: no assignment needs fewer bytes.
        alignment: Offsets are multiples of it.
    """

    blocks: tuple[Block, ...]
    offsets: tuple[int, ...]
    height: int
    live_peak: int
    lower_bound: int
    alignment: int

    @property
    def proved(self) -> bool:
        """Whether no assignment has a lower height."""
        return self.height == self.lower_bound

    @property
    def fragmentation(self) -> float:
        """Height over live peak, less 1; what alignment takes is part of it."""
        return self.height / self.live_peak - 1 if self.live_peak else 0.0


def lifetimes(graph: Graph, events: Sequence[Event], tiers: Sequence[Tier] = ()) -> list[Block]:
    """The blocks of a schedule: each stay of a value, each workspace, each copy in a tier within RAM.

    Blocks without bytes are left out. At every event the sizes of the live blocks add up to its memory.

    Args:
        graph: The training step.
        events: A schedule that breaks no rule.
        tiers: The tiers of its device.

    Example:
        >>> from poet import graph
        >>> from poet.events import compute, free
        >>> lifetimes(graph.chain("c", [4, 6]), [compute(0), compute(1), free(0)])[0]
        Block(value=0, start=0, end=2, size=4, content='value', tier=-1)
    """
    everything = range(len(events))
    sizes = [value.size for value in graph.values]
    blocks = [Block(s.value, s.start, s.end, sizes[s.value]) for s in ram_stays(graph, events, everything)[0]]
    for e, event in enumerate(events):
        if event.kind is Kind.COMPUTE:
            blocks.append(Block(event.target, e, e, graph.ops[event.target].workspace, "workspace"))
    for copy in tier_copies(events, everything)[0]:
        if tiers[copy.tier].in_ram:
            size = stored_bytes(tiers[copy.tier], sizes[copy.value])
            blocks.append(Block(copy.value, copy.start, copy.end, size, "copy", copy.tier))
    return sorted((b for b in blocks if b.size), key=lambda b: (b.start, b.content, b.tier, b.value))


def memory_layers(graph: Graph, events: Sequence[Event], tiers: Sequence[Tier] = ()) -> dict[str, list[int]]:
    """Bytes at each event by what they are: static, values by the phase that makes them, copies, workspace.

    Args:
        graph: The training step.
        events: A schedule that breaks no rule.
        tiers: The tiers of its device.
    """
    names = ("forward", "loss", "backward", "copies", "workspace")
    steps = {name: [0] * (len(events) + 1) for name in names}
    for block in lifetimes(graph, events, tiers):
        name = {"workspace": "workspace", "copy": "copies", "value": ""}[block.content]
        step = steps[name or graph.ops[graph.producer[block.value]].phase]
        step[block.start] += block.size
        step[block.end + 1] -= block.size
    layers = {"static": [graph.static.total] * len(events)}
    layers |= {name: list(accumulate(step))[:-1] for name, step in steps.items()}
    return {name: layer for name, layer in layers.items() if any(layer)}


def first_fit(blocks: Sequence[Block], alignment: int = 16) -> Arena:
    """Put every block at the lowest free address; the best of several orders, largest or longest first among them.

    Args:
        blocks: What to place.
        alignment: Offsets are multiples of it.

    Raises:
        ValueError: If the alignment is not positive, or a block has no bytes or ends before it starts.

    Example:
        >>> first_fit([Block(0, 0, 1, 16), Block(1, 1, 2, 32), Block(2, 2, 3, 16)]).offsets
        (0, 16, 0)
    """
    return _best(blocks, alignment, lowest)


def best_fit(blocks: Sequence[Block], alignment: int = 16) -> Arena:
    """Put every block into the smallest hole that takes it; the best of the orders of `first_fit`.

    Args:
        blocks: What to place.
        alignment: Offsets are multiples of it.

    Raises:
        ValueError: As `first_fit` does.
    """
    return _best(blocks, alignment, tightest)


def arena(blocks: Sequence[Block], offsets: Sequence[int], alignment: int, lower_bound: int = 0) -> Arena:
    """The assignment with these offsets.

    Args:
        blocks: What is placed.
        offsets: First byte of each block.
        alignment: Offsets are multiples of it.
        lower_bound: What is proved beyond the bound by live bytes.
    """
    height = max((offset + size for offset, size in zip(offsets, padded(blocks, alignment), strict=True)), default=0)
    bound = max(live_peak(blocks, padded(blocks, alignment)), lower_bound)
    peak = live_peak(blocks, [block.size for block in blocks])
    return Arena(tuple(blocks), tuple(offsets), height, peak, min(bound, height), alignment)


def padded(blocks: Sequence[Block], alignment: int) -> list[int]:
    """Sizes rounded up to the alignment.

    Raises:
        ValueError: If the alignment is not positive, or a block has no bytes or ends before it starts.
    """
    if alignment < 1:
        raise ValueError(f"alignment must be at least 1 byte, got {alignment}")
    for block in blocks:
        if block.size < 1 or not 0 <= block.start <= block.end:
            raise ValueError(f"a block needs bytes, and an end that is not before its start; got {block}")
    return [-(-block.size // alignment) * alignment for block in blocks]


def live_peak(blocks: Sequence[Block], sizes: Sequence[int]) -> int:
    """Most bytes that live at once.

    Args:
        blocks: What lives when.
        sizes: Bytes of each.
    """
    steps: dict[int, int] = {}
    for block, size in zip(blocks, sizes, strict=True):
        steps[block.start] = steps.get(block.start, 0) + size
        steps[block.end + 1] = steps.get(block.end + 1, 0) - size
    return max(accumulate(step for _, step in sorted(steps.items())), default=0)


def placed(
    blocks: Sequence[Block],
    sizes: Sequence[int],
    order: Sequence[int],
    choose: Callable[[np.ndarray, np.ndarray], int],
) -> list[int]:
    """Offsets if blocks are placed one by one, each into a hole that those that live with it leave.

    Args:
        blocks: What to place.
        sizes: Bytes of each, padded.
        order: Which block comes when.
        choose: Given where the holes that are wide enough begin, and their widths (the last is endless), which to take.
    """
    starts, ends = (np.array([getattr(b, name) for b in blocks], dtype=np.int64)[order] for name in ("start", "end"))
    tops, bottoms = np.zeros(len(blocks), dtype=np.int64), np.zeros(len(blocks), dtype=np.int64)
    for i, b in enumerate(order):
        beside = np.flatnonzero((starts[:i] <= ends[i]) & (ends[:i] >= starts[i]))
        beside = beside[np.argsort(bottoms[beside], kind="stable")]
        floors = np.concatenate([[0], np.maximum.accumulate(tops[beside])])
        widths = np.concatenate([bottoms[beside], [ENDLESS]]) - floors
        fits = np.flatnonzero(widths >= sizes[b])
        bottoms[i] = floors[fits][choose(floors[fits], widths[fits])]
        tops[i] = bottoms[i] + sizes[b]
    offsets = [0] * len(blocks)
    for b, bottom in zip(order, bottoms.tolist(), strict=True):
        offsets[b] = bottom
    return offsets


def lowest(floors: np.ndarray, widths: np.ndarray) -> int:
    """The lowest hole."""
    return 0


def tightest(floors: np.ndarray, widths: np.ndarray) -> int:
    """The narrowest hole; the lowest of those."""
    return int(np.argmin(widths))


def orders(blocks: Sequence[Block], sizes: Sequence[int]) -> list[list[int]]:
    """Orders in which to place blocks: by time, size, duration, area, and the crowding where they live."""
    last = max((block.end for block in blocks), default=-1)
    steps = np.zeros(last + 2, dtype=np.int64)
    for block, size in zip(blocks, sizes, strict=True):
        steps[block.start] += size
        steps[block.end + 1] -= size
    load = np.cumsum(steps)
    spans = [block.end - block.start + 1 for block in blocks]
    crowd = [int(load[block.start : block.end + 1].max()) for block in blocks]
    keys = (
        [(block.start, -size) for block, size in zip(blocks, sizes, strict=True)],
        [(-size, -span) for size, span in zip(sizes, spans, strict=True)],
        [(-span, -size) for size, span in zip(sizes, spans, strict=True)],
        [(-size * span, 0) for size, span in zip(sizes, spans, strict=True)],
        [(-c, -size) for c, size in zip(crowd, sizes, strict=True)],
    )
    return [sorted(range(len(blocks)), key=lambda b, key=key: (key[b], b)) for key in keys]


def _best(blocks: Sequence[Block], alignment: int, choose: Callable[[np.ndarray, np.ndarray], int]) -> Arena:
    sizes = padded(blocks, alignment)
    best: Arena | None = None
    for order in orders(blocks, sizes):
        candidate = arena(blocks, placed(blocks, sizes, order, choose), alignment)
        if best is None or candidate.height < best.height:
            best = candidate
        if best.proved:
            break
    return best or arena((), (), alignment)

"""Structure reuse: what is found out about one block of a network is repeated in the blocks that are like it.

Blocks are found as the longest periodic runs in the sequences of forward and of backward operations. Variables that
stand at the same place of their blocks are counterparts; when the search improves one block, the others take over its
decisions wherever they fit and save.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Bool, Int

from poet.graph import Graph
from poet.grid import END, Grid


@final
@dataclass(frozen=True)
class Blocks:
    """Repeated blocks of a graph.

    Attributes:
        count: How many there are.
        block: The block of each operation, -1 outside; a backward operation is in the block of its forward ones.
        place: What each operation is within its block, equal in all blocks; -1 outside.
    """

    count: int
    block: Int[np.ndarray, " n"]
    place: Int[np.ndarray, " n"]


def repeated_blocks(graph: Graph) -> Blocks | None:
    """The repeated blocks of a graph, if its forward and its backward operations both repeat.

    Example:
        >>> from poet import zoo
        >>> repeated_blocks(zoo.load("bert")).count
        12
    """
    n = len(graph.ops)
    labels = _labels(graph)
    first = next((i for i, op in enumerate(graph.ops) if op.phase == "backward"), n)
    forward, backward = periodic_run(labels[:first]), periodic_run(labels[first:])
    if forward is None or backward is None:
        return None
    (start, period, repeats), (back, back_period, back_repeats) = forward, backward
    count = min(repeats, back_repeats)
    block, place = np.full(n, -1), np.full(n, -1)
    for k in range(count * period):
        block[start + k], place[start + k] = k // period, k % period
    for k in range(count * back_period):
        at = first + back + k
        block[at], place[at] = count - 1 - k // back_period, period + k % back_period
    return Blocks(count, block, place)


def periodic_run(labels: Int[np.ndarray, " m"]) -> tuple[int, int, int] | None:
    """The longest run of a repeated pattern: where it starts, its period, and how often it is repeated.

    Example:
        >>> periodic_run(np.array([9, 1, 2, 3, 1, 2, 3, 1, 2, 3, 8]))
        (1, 3, 3)
    """
    best: tuple[int, int, int] | None = None
    covered = 0
    for period in range(2, len(labels) // 2 + 1):
        equal = np.concatenate(([False], labels[:-period] == labels[period:], [False]))
        edges = np.flatnonzero(equal[1:] != equal[:-1])
        starts, lengths = edges[::2], edges[1::2] - edges[::2]
        if not len(lengths):
            continue
        longest = int(lengths.argmax())
        repeats = int(lengths[longest]) // period + 1
        if repeats >= 2 and repeats * period > covered:
            best, covered = (int(starts[longest]), period, repeats), repeats * period
    return best


@final
class Counterparts:
    """Which variables mean the same in different blocks.

    Args:
        grid: The program.
        blocks: The repeated blocks of its graph.
    """

    def __init__(self, grid: Grid, blocks: Blocks) -> None:
        rows: dict[Hashable, list[int]] = {}
        for name, c, i, others in _decisions(grid):
            at = int(blocks.block[i])
            if at >= 0:
                key = (name, int(blocks.place[i]), tuple(_relative(blocks, q, at) for q in others))
                rows.setdefault(key, [-1] * blocks.count)[at] = c
        self.table = np.array(list(rows.values()), dtype=np.int64).reshape(len(rows), blocks.count)

    def transplanted(self, x: Bool[np.ndarray, " x"], source: int, target: int) -> Bool[np.ndarray, " x"]:
        """A solution in which one block does what another does; whether it is feasible is to be seen."""
        both = (self.table[:, source] >= 0) & (self.table[:, target] >= 0)
        made = x.copy()
        made[self.table[both, target]] = x[self.table[both, source]]
        return made

    def spread(self, grid: Grid, x: Bool[np.ndarray, " x"], before: Bool[np.ndarray, " x"]) -> Bool[np.ndarray, " x"]:
        """Repeat in other blocks what a step of the search changed in some, wherever it fits and saves."""
        count = self.table.shape[1]
        known = self.table >= 0
        changed = known & (x[self.table] != before[self.table])
        for source in np.flatnonzero(changed.any(axis=0)):
            for target in range(count):
                if target == source:
                    continue
                made = self.transplanted(x, int(source), target)
                if grid.cost @ made < grid.cost @ x and (grid.matrix @ made <= grid.upper + 1e-9).all():
                    x = made
        return x


def _labels(graph: Graph) -> Int[np.ndarray, " n"]:
    """Equal numbers for operations that look alike; durations are measured and do not count."""
    numbers: dict[Hashable, int] = {}
    labels = []
    for op in graph.ops:
        sizes = [graph.values[v].size for v in op.inputs], [graph.values[v].size for v in op.outputs]
        key = (op.kind, op.phase, tuple(sizes[0]), tuple(sizes[1]))
        labels.append(numbers.setdefault(key, len(numbers)))
    return np.array(labels)


def _decisions(grid: Grid) -> list[tuple[tuple[str, int], int, int, Sequence[int]]]:
    """For each variable: its kind, itself, its operation, and the operations and stages that it is about."""
    found: list[tuple[tuple[str, int], int, int, Sequence[int]]] = []
    for c, i, t in zip(grid.run, grid.op, grid.stage, strict=True):
        if c >= 0:
            found.append((("run", 0), c, i, (t,)))
    graph = grid.problem.graph
    for v, life in enumerate(grid.lives):
        i = graph.producer[v]
        which = graph.ops[i].outputs.index(v)
        about = [(grid.op[e], grid.stage[e]) for e in life.places]
        for j, c in enumerate(life.hold):
            found.append((("hold", which), c, i, (*about[j], *about[j + 1])))
        for k, squeezes in enumerate(life.squeeze):
            found += [((f"squeeze{k}", which), c, i, about[j]) for j, c in enumerate(squeezes)]
            found += [((f"codes{k}", which), c, i, (*about[j], *about[j + 1])) for j, c in enumerate(life.codes[k])]
        for j, into in enumerate(life.into):
            found += [((f"in{k}", which), c, i, about[j]) for k, c in enumerate(into) if c >= 0]
        found += [((f"out{k}", which), c, i, ()) for k, c in enumerate(life.out) if c >= 0]
    return found


def _relative(blocks: Blocks, q: int, at: int) -> tuple[int, int]:
    """An operation or stage as seen from a block."""
    if q == END or q >= len(blocks.block) or blocks.block[q] < 0:
        return q, -(10**6)
    return int(blocks.place[q]), int(blocks.block[q]) - at

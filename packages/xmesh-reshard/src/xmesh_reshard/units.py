"""Unit tasks: boxes with one set of holders and one set of receivers, by arithmetic on boxes."""

import math
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Bool, Int

from xmesh_reshard.layout import Layout, LayoutError

_BLOCK = 1 << 22  # pairs of boxes compared at a time


@final
@dataclass(frozen=True, eq=False)
class Units:
    """The unit communication tasks of one tensor (Sec. 2.2), in columns.

    Attributes:
        lower: First index of each unit's box, (u, d).
        upper: One past the last, (u, d).
        holders: Number of each unit's set of holders in ``sets``, (u,).
        needers: Number of the set of devices that need it, holders among them included, (u,).
        sets: Sets of devices, each ascending.
    """

    lower: Int[np.ndarray, "u d"]
    upper: Int[np.ndarray, "u d"]
    holders: Int[np.ndarray, "u"]
    needers: Int[np.ndarray, "u"]
    sets: tuple[tuple[int, ...], ...]

    @property
    def elements(self) -> Int[np.ndarray, "u"]:
        """Elements of each box."""
        return np.prod(self.upper - self.lower, axis=1, dtype=np.int64)


def units_of(source: Layout, target: Layout) -> Units:
    """Cut a tensor into boxes that have one set of holders and one set of devices that need them.

    Where the parts of a layout are disjoint or equal, these are the intersections of source and target parts; parts
    that overlap otherwise are cut further, along the grid of all their edges.

    Args:
        source: Where the tensor is.
        target: Where it shall be.

    Raises:
        LayoutError: The shapes differ, or the target needs elements that no source device holds.
    """
    if source.shape != target.shape:
        raise LayoutError(f"source and target have different shapes: {source.shape} and {target.shape}")
    old, new = _tiles(source), _tiles(target)
    number: dict[tuple[int, ...], int] = {}
    if _disjoint(old) and _disjoint(new):
        a, b = _meeting(old, new)
        lower = np.maximum(old.lower[a], new.lower[b])
        upper = np.minimum(old.upper[a], new.upper[b])
        from_set, to_set = (
            np.array([number.setdefault(owners, len(number)) for owners in tiles.owners], np.int64)
            for tiles in (old, new)
        )
        units = Units(lower, upper, from_set[a], to_set[b], tuple(number))
        covered = np.bincount(b, units.elements, len(new.owners)) if len(b) else np.zeros(len(new.owners))
        _covered(covered == new.volume, new, source)
        return units
    return _atoms(old, new, source)


@final
@dataclass(frozen=True, eq=False)
class _Tiles:
    lower: np.ndarray
    upper: np.ndarray
    owners: tuple[tuple[int, ...], ...]

    @property
    def volume(self) -> np.ndarray:
        return np.prod(self.upper - self.lower, axis=1, dtype=np.int64)


def _tiles(layout: Layout) -> _Tiles:
    """The different boxes that are not empty, and who holds each."""
    d = len(layout.shape)
    full = (layout.upper > layout.lower).all(axis=1)
    table = np.hstack([layout.lower[full], layout.upper[full]])
    if d == 0:
        return _Tiles(table[:1], table[:1], (tuple(layout.devices.tolist()),))
    boxes, inverse = np.unique(table, axis=0, return_inverse=True)
    devices, inverse = layout.devices[full], inverse.reshape(-1)
    order = np.argsort(inverse, kind="stable")
    cuts = np.cumsum(np.bincount(inverse, minlength=len(boxes)))[:-1]
    owners = tuple(tuple(part.tolist()) for part in np.split(devices[order], cuts)) if len(boxes) else ()
    return _Tiles(boxes[:, :d], boxes[:, d:], owners)


def _meeting(old: _Tiles, new: _Tiles) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of tiles that intersect."""
    found_old, found_new = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    step = max(1, _BLOCK // max(1, len(new.owners)))
    for first in range(0, len(old.owners), step):
        rows = slice(first, first + step)
        meets = np.ones((len(old.lower[rows]), len(new.owners)), bool)
        for k in range(old.lower.shape[1]):
            meets &= old.lower[rows, None, k] < new.upper[None, :, k]
            meets &= new.lower[None, :, k] < old.upper[rows, None, k]
        a, b = np.nonzero(meets)
        found_old.append(a + first)
        found_new.append(b)
    return np.concatenate(found_old), np.concatenate(found_new)


def _disjoint(tiles: _Tiles) -> bool:
    a, b = _meeting(tiles, tiles)
    return bool((a == b).all())


def _covered(good: Bool[np.ndarray, "n"], new: _Tiles, source: Layout) -> None:
    if not good.all():
        k = int(np.flatnonzero(~good)[0])
        box = list(zip(new.lower[k].tolist(), new.upper[k].tolist(), strict=True))
        raise LayoutError(
            f"devices {list(new.owners[k][:8])} need the box {box}, of which the source layout {source!r} lacks a part:"
            " every element needs a holder"
        )


def _atoms(old: _Tiles, new: _Tiles, source: Layout) -> Units:
    """Cells of the grid of all edges, with the sets of tiles that contain them."""
    dims = old.lower.shape[1]
    edges = [
        np.unique(np.concatenate([t[:, k] for t in (old.lower, old.upper, new.lower, new.upper)])) for k in range(dims)
    ]
    shape = tuple(len(edge) - 1 for edge in edges)
    if math.prod(shape) > 1 << 24:
        raise LayoutError(
            f"overlapping parts cut the tensor into {math.prod(shape)} cells; more than {1 << 24} are not planned:"
            " give parts that are equal or disjoint"
        )
    held, needed = _signatures(old, edges, shape), _signatures(new, edges, shape)
    places = np.flatnonzero(needed >= 0)
    missing = np.zeros(len(new.owners), bool)
    for cell in places[held[places] < 0][:1]:
        corner = np.array([edges[k][i] for k, i in enumerate(np.unravel_index(cell, shape))])
        missing |= ((new.lower <= corner) & (corner < new.upper)).all(axis=1)
    _covered(~missing, new, source)
    where = np.stack(np.unravel_index(places, shape), axis=1).astype(np.int64)
    lower = np.stack([edges[k][where[:, k]] for k in range(dims)], axis=1)
    upper = np.stack([edges[k][where[:, k] + 1] for k in range(dims)], axis=1)
    number: dict[tuple[int, ...], int] = {}
    columns = []
    for tiles, signature in ((old, held[places]), (new, needed[places])):
        translate = {s: number.setdefault(_union(tiles, lower[i]), len(number)) for s, i in _firsts(signature)}
        columns.append(np.array([translate[s] for s in signature.tolist()], np.int64))
    return Units(lower, upper, columns[0], columns[1], tuple(number))


def _signatures(tiles: _Tiles, edges: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """A number for each cell, equal where the same tiles contain it; -1 where none does."""
    grid = np.full(shape, -1, np.int64)
    fresh: dict[tuple[int, int], int] = {}
    for t in range(len(tiles.owners)):
        box = tuple(
            slice(int(np.searchsorted(edge, tiles.lower[t, k])), int(np.searchsorted(edge, tiles.upper[t, k])))
            for k, edge in enumerate(edges)
        )
        before, inverse = np.unique(grid[box], return_inverse=True)
        after = np.array([fresh.setdefault((int(s), t), len(fresh)) for s in before], np.int64)
        grid[box] = after[inverse].reshape(grid[box].shape)
    return grid.reshape(-1)


def _firsts(signature: np.ndarray) -> list[tuple[int, int]]:
    values, index = np.unique(signature, return_index=True)
    return list(zip(values.tolist(), index.tolist(), strict=True))


def _union(tiles: _Tiles, corner: np.ndarray) -> tuple[int, ...]:
    inside = ((tiles.lower <= corner) & (corner < tiles.upper)).all(axis=1)
    return tuple(sorted({d for t in np.flatnonzero(inside).tolist() for d in tiles.owners[t]}))

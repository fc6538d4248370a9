"""All pieces of a plan in one table, taken in bulk and cut where a quantity ends."""

import math
from collections.abc import Sequence
from typing import final

import numpy as np
from jaxtyping import Int

from xmesh_reshard.portions import Portion, cut

HEAD = 4  # columns before the corners: group, first tensor, last tensor, bytes


@final
class Stock:
    """Pieces as rows of a table: :class:`~xmesh_reshard.portions.Portion` in columns, corners padded with 0 and 1.

    Args:
        rows: Group, first, last, bytes, lower corner, upper corner of each piece, (n, 4 + 2 dims).
        dims: Dimensions of each group's tensors.
    """

    def __init__(self, rows: Int[np.ndarray, "n c"], dims: Sequence[int]) -> None:
        self._rows, self._count, self._dims = rows, len(rows), tuple(dims)
        self._width = (rows.shape[1] - HEAD) // 2

    @property
    def rows(self) -> Int[np.ndarray, "n c"]:
        """All rows so far."""
        return self._rows[: self._count]

    def nbytes(self, pieces: Int[np.ndarray, "k"]) -> Int[np.ndarray, "k"]:
        """Bytes of each of some pieces."""
        return self._rows[pieces, 3]

    def total(self, pieces: Int[np.ndarray, "k"]) -> int:
        """Bytes of some pieces together."""
        return int(self._rows[pieces, 3].sum())

    def cut(self, piece: int, amount: float, slack: float) -> tuple[list[int], list[int]]:
        """Split off about ``amount`` bytes of a piece: the new pieces taken, and those left."""
        group, first, last, nbytes, *corners = self._rows[piece].tolist()
        d, w = self._dims[group], self._width
        whole = Portion(group, first, last, tuple(corners[:d]), tuple(corners[w : w + d]), nbytes)
        taken, rest = cut(whole, amount, slack)
        return [self._append(part) for part in taken], [self._append(part) for part in rest]

    def element(self, piece: int) -> int:
        """Bytes of one element of a piece."""
        group, first, last, nbytes, *corners = self._rows[piece].tolist()
        d, w = self._dims[group], self._width
        lengths = [b - a for a, b in zip(corners[:d], corners[w : w + d], strict=True)]
        return nbytes // ((last - first) * math.prod(lengths))

    def _append(self, part: Portion) -> int:
        if self._count == len(self._rows):
            room = np.zeros((self._count // 4 + 64, self._rows.shape[1]), np.int64)
            self._rows = np.concatenate([self._rows, room])
        fill = self._width - len(part.lower)
        self._rows[self._count] = (*part[:3], part.nbytes, *part.lower, *(0,) * fill, *part.upper, *(1,) * fill)
        self._count += 1
        return self._count - 1


@final
class Queue:
    """Pieces in order, taken from the front by quantity.

    Args:
        stock: The table.
        pieces: Numbers of the pieces.
    """

    def __init__(self, stock: Stock, pieces: Int[np.ndarray, "k"]) -> None:
        self._stock, self._pieces = stock, pieces
        self._ends = np.cumsum(stock.nbytes(pieces))
        self._next = 0
        self._cut: list[int] = []  # what is left of a piece that was cut comes first

    def __bool__(self) -> bool:
        return bool(self._cut) or self._next < len(self._pieces)

    def take(self, amount: float, slack: float = 0.0) -> Int[np.ndarray, "t"]:
        """Pieces of about ``amount`` bytes: never more, and short by less than an element or ``slack``."""
        taken: list[np.ndarray] = []
        while self and amount > slack:
            if not self._cut:
                before = int(self._ends[self._next - 1]) if self._next else 0
                end = int(np.searchsorted(self._ends, before + amount, side="right"))
                if end > self._next:
                    taken.append(self._pieces[self._next : end])
                    amount -= int(self._ends[end - 1]) - before
                    self._next = end
                    continue
                self._cut.append(int(self._pieces[self._next]))
                self._next += 1
            head = self._cut.pop(0)
            size = int(self._stock.nbytes(np.array([head]))[0])
            part, rest = ([head], []) if size <= amount else self._stock.cut(head, amount, slack)
            self._cut[:0] = rest
            taken.append(np.array(part, np.int64))
            amount -= sum(self._stock.nbytes(taken[-1]).tolist())
            if rest:
                break
        return np.concatenate(taken) if taken else np.zeros(0, np.int64)

    def single(self) -> Int[np.ndarray, "t"]:
        """One element."""
        head = self._cut[0] if self._cut else int(self._pieces[self._next])
        return self.take(float(self._stock.element(head)))

    def everything(self) -> Int[np.ndarray, "t"]:
        """All that is left."""
        rest = np.concatenate([np.array(self._cut, np.int64), self._pieces[self._next :]])
        self._cut, self._next = [], len(self._pieces)
        return rest

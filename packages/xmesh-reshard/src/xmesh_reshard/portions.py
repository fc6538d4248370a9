"""Boxes of many equal tensors as one quantity of bytes that can be cut anywhere."""

import math
from typing import NamedTuple


class Portion(NamedTuple):
    """A box of several equal tensors.

    Attributes:
        group: Number of the group of tensors.
        first: First tensor of the group.
        last: One past the last.
        lower: First index of the box in each dimension.
        upper: One past the last.
        nbytes: Bytes over all the tensors.
    """

    group: int
    first: int
    last: int
    lower: tuple[int, ...]
    upper: tuple[int, ...]
    nbytes: int


def cut(portion: Portion, amount: float, slack: float = 0.0) -> tuple[list[Portion], list[Portion]]:
    """Split off about ``amount`` bytes: whole tensors first, then along the first dimension, the second, ….

    Args:
        portion: What to split.
        amount: Bytes wanted.
        slack: Stop when what is missing is at most this many bytes.

    Returns:
        Portions of at most ``amount`` bytes together, short of it by less than an element or ``slack``, and the rest.
    """
    if amount >= portion.nbytes:
        return [portion], []
    taken: list[Portion] = []
    rest: list[Portion] = []
    group, first, last, lower, upper, nbytes = portion
    for axis in range(-1, len(lower)):
        a, b = (first, last) if axis < 0 else (lower[axis], upper[axis])
        if amount <= slack:
            break
        each = nbytes // (b - a)
        middle = a + min(b - a, math.floor(amount / each))
        if middle > a:
            part = _box(group, first, last, lower, upper, axis, a, middle, each)
            taken.append(part)
            amount -= part.nbytes
        if middle == b:
            return taken, rest
        if middle + 1 < b:
            rest.append(_box(group, first, last, lower, upper, axis, middle + 1, b, each))
        if axis < 0:
            first, last = middle, middle + 1
        else:
            lower = (*lower[:axis], middle, *lower[axis + 1 :])
            upper = (*upper[:axis], middle + 1, *upper[axis + 1 :])
        nbytes = each
    return taken, [Portion(group, first, last, lower, upper, nbytes), *reversed(rest)]


def _box(
    group: int,
    first: int,
    last: int,
    lower: tuple[int, ...],
    upper: tuple[int, ...],
    axis: int,
    a: int,
    b: int,
    each: int,
) -> Portion:
    if axis < 0:
        return Portion(group, a, b, lower, upper, each * (b - a))
    low, high = (*lower[:axis], a, *lower[axis + 1 :]), (*upper[:axis], b, *upper[axis + 1 :])
    return Portion(group, first, last, low, high, each * (b - a))

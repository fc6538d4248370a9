"""The inner maximum of the confidence-conditioned backup: how a confidence is split between now and later.

A budget says which pairs of a first confidence (spent on the sampling error of this step) and a second one (the
confidence of what follows) a confidence allows:

- ``"box"``: each of the two is at most delta, as the paper prints it;
- ``"sum"``: their sum is at most delta, a union bound;
- ``"product"``: both hold together with probability at least 1 - delta if they are independent.

Second confidences lie on the grid of the solver, where the value of what follows is known, or are 0: nothing is risked
on what follows, and it is worth its trivial bound. The first is what the budget leaves. Every such split is admissible
whatever the grid, and a larger confidence has all splits of a smaller one with a larger first confidence: the maximum
is nondecreasing in delta whatever the values are.
"""

from typing import Literal, NamedTuple, SupportsFloat

import numpy as np
from jaxtyping import Float, Int

__all__ = ["Budget", "Lines", "best_splits", "between", "envelope", "first_confidences", "left_over", "split_costs"]

Budget = Literal["box", "sum", "product"]
_ROWS, _COLUMNS = 24, 1024  # a block of gains that stays in a processor's second cache


def left_over(
    delta: SupportsFloat | Float[np.ndarray, "..."], spent: SupportsFloat | Float[np.ndarray, "..."], budget: Budget
) -> Float[np.ndarray, "..."]:
    r"""The confidence that a budget leaves beside another: $\delta$, $\delta - x$ or $(\delta - x) / (1 - x)$.

    Args:
        delta: The whole confidence.
        spent: The other confidence x, below delta, or equal to it where the budget is the box.
        budget: Which.

    Returns:
        The largest admissible confidence.
    """
    whole, other = np.broadcast_arrays(np.asarray(delta, np.float64), np.asarray(spent, np.float64))
    if budget == "box":
        return whole.copy()
    if budget == "sum":
        return np.asarray(whole - other)
    with np.errstate(divide="ignore", invalid="ignore"):  # of 1 nothing needs to be kept: 1 beside 1 is admissible
        return np.where((whole == 1) & (other <= 1), 1.0, (whole - other) / (1 - other))


def first_confidences(
    deltas: Float[np.ndarray, " confidences"], budget: Budget
) -> Float[np.ndarray, "confidences seconds"]:
    """First confidences beside each second one, which is 0 in column 0 and grid point j in column j + 1.

    Args:
        deltas: The grid, ascending.
        budget: Which.

    Returns:
        One row a confidence; NaN where a split is not admissible or leaves nothing.

    Example:
        >>> import numpy as np
        >>> first_confidences(np.array([0.1, 0.3]), "sum").round(3).tolist()
        [[0.1, nan, nan], [0.3, 0.2, nan]]
    """
    second = np.concatenate([[0.0], deltas])
    size = len(deltas)
    below = np.tril(np.ones((size, size + 1), dtype=bool))
    itself = np.eye(size, size + 1, k=1, dtype=bool)
    if budget == "box":
        below |= itself
    elif budget == "product":
        below |= itself & (deltas == 1)[:, None]
    return np.where(below, left_over(deltas[:, None], second, budget), np.nan)


def split_costs(
    deltas: Float[np.ndarray, " confidences"], budget: Budget, union: SupportsFloat = 1.0
) -> Float[np.ndarray, "confidences seconds"]:
    r"""What each split costs: $\sqrt{\log(m/\delta_1)}$, infinite where it is not admissible.

    Args:
        deltas: The grid, ascending.
        budget: Which.
        union: Number m of events that hold together.

    Returns:
        One row a confidence, columns as in `first_confidences`; no column rises with the confidence.
    """
    first = first_confidences(deltas, budget)
    costs = np.sqrt(np.log(float(union)) - np.log(first))
    # Rounding of the logarithms must not break the order of neighbours.
    return np.minimum.accumulate(np.where(np.isnan(costs), np.inf, costs), axis=0)


def best_splits(
    gains: Float[np.ndarray, "seconds pairs"],
    costs: Float[np.ndarray, " seconds"],
    start: Float[np.ndarray, " pairs"],
    least: SupportsFloat,
) -> Float[np.ndarray, " pairs"]:
    r"""The best split of each pair: $\max(start, \max_j gains_j - costs_j)$, without looking at all of them.

    Gains that do not fall with j are looked at from the top. As no cost is below `least`, no split further down can be
    better once the gain there, less `least`, is not: the search stops where this is so for every pair of a block.

    Args:
        gains: What follows is worth at each second confidence, in units of the penalty; no column falls.
        costs: Cost of each.
        start: Value of a split that is known already.
        least: A lower bound of all costs: that of spending everything on the first.

    Returns:
        The maxima; the same as those of a full search, bit for bit.
    """
    best, floor = start.copy(), gains.dtype.type(float(least))
    column = costs.astype(gains.dtype)[:, None]
    scratch = np.empty((min(_ROWS, len(costs)), _COLUMNS), gains.dtype)
    for left in range(0, gains.shape[1], _COLUMNS):
        part, mine = gains[:, left : left + _COLUMNS], best[left : left + _COLUMNS]
        for stop in range(len(costs), 0, -_ROWS):
            if (part[stop - 1] - floor <= mine).all():
                break
            first = max(stop - _ROWS, 0)
            net = scratch[: stop - first, : len(mine)]
            np.subtract(part[first:stop], column[first:stop], out=net)
            np.maximum(mine, net.max(axis=0), out=mine)
    return best


class Lines(NamedTuple):
    """Splits whose second confidence is that of the value being solved for, wholly or in part.

    Such a split is worth ``base + weight (gain - base) - cost``, where `gain` belongs to the confidence itself and
    `base` to the grid point below. The best of several is a maximum of lines; kept are those that are best somewhere.

    Args:
        weights: Slopes, ascending.
        costs: Costs.
        breaks: Where each line gives way to the next.
    """

    weights: Float[np.ndarray, " lines"]
    costs: Float[np.ndarray, " lines"]
    breaks: Float[np.ndarray, " breaks"]

    def best(self, rise: Float[np.ndarray, " pairs"]) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
        """The best line of each pair.

        Args:
            rise: gain - base.

        Returns:
            Its slope and its cost, one of each where there is but one line.
        """
        if len(self.weights) == 1:
            return self.weights, self.costs
        which = np.searchsorted(self.breaks, rise)
        return self.weights[which], self.costs[which]


def envelope(weights: Float[np.ndarray, " lines"], costs: Float[np.ndarray, " lines"]) -> Lines:
    """The upper envelope of the lines ``weight x - cost``.

    Args:
        weights: Slopes.
        costs: Costs.

    Returns:
        The lines that are the highest somewhere.

    Example:
        >>> import numpy as np
        >>> envelope(np.array([0.0, 0.5, 1.0]), np.array([0.0, 2.0, 2.0])).breaks.tolist()
        [2.0]
    """
    order = np.lexsort((costs, weights))
    kept: list[int] = []
    breaks: list[float] = []
    for line in order:
        if kept and weights[kept[-1]] == weights[line]:
            continue  # of equal slopes the cheapest came first
        while kept:
            crossing = (costs[line] - costs[kept[-1]]) / (weights[line] - weights[kept[-1]])
            if not breaks or crossing > breaks[-1]:
                break
            kept.pop()
            breaks.pop()
        if kept:
            breaks.append(float(crossing))
        kept.append(int(line))
    return Lines(weights[kept], costs[kept], np.array(breaks))


def between(
    deltas: Float[np.ndarray, " confidences"], k: int, budget: Budget
) -> tuple[Int[np.ndarray, " splits"], Int[np.ndarray, " splits"], Float[np.ndarray, " splits"]]:
    r"""Splits of grid point k whose first confidence is on the grid and whose second lies between two of its points.

    Values there are interpolated linearly in log(delta): $(1 - w) V_m + w V_{m + 1}$. They are closer to the optimum
    over all splits than those of `first_confidences` on a coarse grid, but interpolation can exceed the true value, so
    no certificate covers them.

    Args:
        deltas: The grid, ascending.
        k: Which confidence is split.
        budget: Which; not the box, whose best split is on the grid.

    Returns:
        Grid point of the first confidence, m and w for each split.
    """
    first = np.arange(k)
    second = left_over(deltas[k], deltas[:k], budget)
    at = np.searchsorted(deltas[: k + 1], second, side="right") - 1
    inside = (at >= 0) & (at < k)
    first, second, at = first[inside], second[inside], at[inside]
    return first, at, np.log(second / deltas[at]) / np.log(deltas[at + 1] / deltas[at])

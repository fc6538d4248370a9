"""Sparse linear programs from arrays of indices, and a lower bound that holds whatever the solver's tolerances are."""

from dataclasses import dataclass, field
from math import inf
from typing import Any, final

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import optimize, sparse

NONE = -1
"""The index of a variable that does not exist, and is 0 wherever it appears."""


@final
@dataclass
class Builder:
    """Variables with bounds, and rows `lower <= a x <= upper`, added block by block.

    Example:
        >>> lp = Builder()
        >>> x = lp.variables(np.ones(2, dtype=bool), cost=np.array([2.0, 1.0]))
        >>> lp.rows([(1.0, x[:1]), (1.0, x[1:])], lower=1.0)
        >>> round(minimise(lp.build()).bound, 9)
        1.0
    """

    columns: int = 0
    count: int = 0
    _costs: list[np.ndarray] = field(default_factory=list)
    _bounds: list[np.ndarray] = field(default_factory=list)
    _integral: list[np.ndarray] = field(default_factory=list)
    _triplets: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list)
    _sides: list[np.ndarray] = field(default_factory=list)

    def variables(
        self,
        where: Bool[np.ndarray, "..."],
        cost: float | Float[np.ndarray, "..."] = 0.0,
        lower: float | Float[np.ndarray, "..."] = 0.0,
        upper: float = 1.0,
        *,
        integral: bool = True,
    ) -> Int[np.ndarray, "..."]:
        """One variable for each true entry.

        Args:
            where: Which exist.
            cost: Cost of each, broadcast against `where`.
            lower: Lower bounds, broadcast.
            upper: Upper bound; finite, so that `minimise` can always prove something.
            integral: Whether they are integers in the integer program.

        Returns:
            Their indices in the shape of `where`, `NONE` elsewhere.
        """
        index = np.full(where.shape, NONE, dtype=np.int64)
        amount = int(where.sum())
        index[where] = np.arange(self.columns, self.columns + amount)
        self.columns += amount
        self._costs.append(np.broadcast_to(cost, where.shape)[where].astype(float))
        low = np.broadcast_to(lower, where.shape)[where].astype(float)
        self._bounds.append(np.stack([low, np.full(amount, upper)], axis=1))
        self._integral.append(np.full(amount, integral))
        return index

    def rows(
        self,
        terms: list[tuple[Any, Int[np.ndarray, "..."]]],
        lower: float = -inf,
        upper: float = inf,
    ) -> None:
        """One row for each entry of the index arrays: the sum of coefficient times variable lies within the sides.

        Args:
            terms: (coefficients, indices); indices of one dimension or, where a row has several variables of a term,
                of two. Coefficients are broadcast against them.
            lower: Left-hand side.
            upper: Right-hand side.
        """
        amount = len(terms[0][1])
        for coefficient, index in terms:
            row = np.arange(self.count, self.count + amount)
            row = np.broadcast_to(row[:, None] if index.ndim == 2 else row, index.shape)
            value = np.broadcast_to(coefficient, index.shape)
            there = (index != NONE) & (value != 0)
            self._triplets.append((row[there], index[there], value[there].astype(float)))
        self._sides.append(np.tile([lower, upper], (amount, 1)))
        self.count += amount

    def scatter(
        self,
        row: Int[np.ndarray, " n"],
        coefficient: Float[np.ndarray, " n"],
        index: Int[np.ndarray, " n"],
        lower: Float[np.ndarray, " rows"],
    ) -> None:
        """Rows with any number of variables each, bounded below.

        Args:
            row: Row of each term, counted from the first of these.
            coefficient: Its coefficient.
            index: Its variable.
            lower: Left-hand sides.
        """
        there = (index != NONE) & (coefficient != 0)
        self._triplets.append((row[there] + self.count, index[there], coefficient[there]))
        self._sides.append(np.stack([lower, np.full(len(lower), inf)], axis=1))
        self.count += len(lower)

    def build(self) -> "Linear":
        """The program."""
        row, column, value = (np.concatenate(parts) for parts in zip(*self._triplets, strict=True))
        matrix = sparse.csr_array((value, (row, column)), shape=(self.count, self.columns))
        sides, bounds = np.concatenate(self._sides), np.concatenate(self._bounds)
        return Linear(
            np.concatenate(self._costs), matrix, sides[:, 0], sides[:, 1], bounds[:, 0], bounds[:, 1],
            np.concatenate(self._integral),
        )  # fmt: skip


@final
@dataclass(frozen=True)
class Linear:
    """Minimise `cost @ x` subject to `row_lower <= matrix @ x <= row_upper`, `lower <= x <= upper`.

    Attributes:
        cost: Cost of each variable.
        matrix: The rows.
        row_lower: Left-hand sides.
        row_upper: Right-hand sides.
        lower: Lower bounds, finite.
        upper: Upper bounds, finite.
        integral: Which variables are integers in the integer program.
    """

    cost: Float[np.ndarray, " x"]
    matrix: sparse.csr_array
    row_lower: Float[np.ndarray, " rows"]
    row_upper: Float[np.ndarray, " rows"]
    lower: Float[np.ndarray, " x"]
    upper: Float[np.ndarray, " x"]
    integral: Bool[np.ndarray, " x"]


@final
@dataclass(frozen=True)
class Relaxed:
    """What the relaxation gave.

    Attributes:
        x: A solution, or None if there is none or the time was over.
        bound: Proved: no point of the program costs less; infinite if it has none.
        finished: Whether the solver came to an end.
    """

    x: Float[np.ndarray, " x"] | None
    bound: float
    finished: bool


def minimise(program: Linear, seconds: float = 60.0, method: str = "highs") -> Relaxed:
    """Solve the linear relaxation.

    Args:
        program: The program.
        seconds: Time limit.
        method: `"highs"`, `"highs-ds"` or `"highs-ipm"`, as scipy calls them.

    Returns:
        The solution and a bound that is safe, see `safe_bound`.
    """
    if not len(program.cost):  # scipy refuses this
        fits = bool((program.row_lower <= 0).all() and (program.row_upper >= 0).all())
        return Relaxed(np.empty(0) if fits else None, 0.0 if fits else inf, True)
    equal = program.row_lower == program.row_upper
    below, above = ~equal & np.isfinite(program.row_upper), ~equal & np.isfinite(program.row_lower)
    result = optimize.linprog(
        program.cost,
        A_ub=sparse.vstack([program.matrix[below], sparse.csr_array(program.matrix[above]) * -1.0], format="csr"),
        b_ub=np.concatenate([program.row_upper[below], -program.row_lower[above]]),
        A_eq=program.matrix[equal],
        b_eq=program.row_lower[equal],
        bounds=np.stack([program.lower, program.upper], axis=1),
        method=method,
        options={"time_limit": float(seconds)},
    )
    if result.status == 2:
        return Relaxed(None, inf, True)
    dual = np.zeros(len(program.row_lower))
    if result.status == 0:
        marginals = np.asarray(result.ineqlin.marginals)
        split = int(below.sum())
        dual[below] += marginals[:split]
        dual[above] -= marginals[split:]
        dual[equal] = np.asarray(result.eqlin.marginals)
    bound = safe_bound(program, dual)
    return Relaxed(None if result.x is None else np.asarray(result.x), bound, result.status == 0)


def safe_bound(program: Linear, dual: Float[np.ndarray, " rows"]) -> float:
    r"""A valid lower bound from any multipliers, by weak duality over the bounds of the variables.

    $$\min_x c^T x \ge \sum_i \min(y_i l_i, y_i u_i) + \sum_j \min_{x_j \in [l_j, u_j]} (c - A^T y)_j x_j$$

    Infeasible or rough multipliers make it weaker, never wrong. It is rounded down by the sum's floating-point error.

    Args:
        program: The program.
        dual: y; positive where the left-hand side of a row binds, negative where the right-hand side does.

    Returns:
        The bound.
    """
    y = np.where((dual > 0) & ~np.isfinite(program.row_lower), 0.0, dual)
    y = np.where((y < 0) & ~np.isfinite(program.row_upper), 0.0, y)
    side = np.where(y > 0, program.row_lower, np.where(y < 0, program.row_upper, 0.0))
    reduced = program.cost - program.matrix.T @ y
    corner = np.where(reduced > 0, program.lower, program.upper)
    total = float((y * side).sum() + (reduced * corner).sum())
    size = np.abs(program.cost) + abs(program.matrix).T @ np.abs(y)
    return total - 2.0**-46 * float(np.abs(y * side).sum() + (size * np.abs(corner)).sum())

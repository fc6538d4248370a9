"""The tabular solver: one stage a confidence, from the most conservative up.

A split leaves a smaller confidence for what follows, so the values at a confidence need only those below it, which are
known. What remains is to solve for the values at the confidence itself where it may be kept: always in the box, at
delta = 1 in the product, never in the sum, whose stages are plain assignments. Work is done in units of the penalty:
``gain = gamma E[V(s', delta)] / c`` with ``c = alpha b``, so that every pair has the same costs of splits.

Upper bounds are lower bounds of the negated problem in which the agent minimises; that is the only difference.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import sparse
from scipy.sparse.linalg import bicgstab

from ccvf.splits import Budget, Lines, best_splits, between, envelope, split_costs

__all__ = ["Problem", "Solved", "solve"]

_EASY = 20  # plain sweeps before a linear solver is asked
_KRYLOV = 300  # its steps: where it stalls, sweeps go on


@dataclass(frozen=True)
class Problem:
    """What the solver is given: a lower bound is wanted of what an agent gets that maximises or, negated, minimises.

    Args:
        reward: Mean rewards, in the precision of the work.
        penalty: alpha b of each pair, above 0.
        transition: gamma times the shares of next states, (S A, S).
        trivial: gamma times what follows is worth at least, for each pair; -inf where that may not be used.
        seen: Which pairs were visited.
        unknown: Values of unseen pairs at each confidence, not above any seen pair's.
        minimises: Whether the agent minimises.
        deltas: The grid, ascending.
        budget: Which splits are admissible.
        interpolated: Whether splits between grid points are looked at too.
        union: Number of events that hold together.
    """

    reward: Float[np.ndarray, " pairs"]
    penalty: Float[np.ndarray, " pairs"]
    transition: sparse.csr_array
    trivial: Float[np.ndarray, " pairs"]
    seen: Bool[np.ndarray, "states actions"]
    unknown: Float[np.ndarray, " confidences"]
    minimises: bool
    deltas: Float[np.ndarray, " confidences"]
    budget: Budget
    interpolated: bool
    union: float


class Solved(NamedTuple):
    """What the solver found.

    Args:
        q: Values of the pairs, one row a confidence; those of unseen pairs are as in the problem.
        sweeps: Sweeps over the pairs or over the states of a policy, all confidences together.
        residual: Largest change that one more sweep makes.
    """

    q: Float[np.ndarray, "confidences pairs"]
    sweeps: int
    residual: float


class _Stage(NamedTuple):
    v: Float[np.ndarray, " states"]
    q: Float[np.ndarray, " pairs"]
    sweeps: int
    residual: float


class _Kept(NamedTuple):
    """A stage's equation: the better of what is known and of lines in the gain that is solved for."""

    known: Float[np.ndarray, " pairs"]
    base: Float[np.ndarray, " pairs"]
    lines: Lines


def solve(
    problem: Problem,
    tol: float,
    max_sweeps: int,
    quantum: float = 0.0,
    start: Float[np.ndarray, "confidences states"] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Solved:
    """Values at every confidence.

    Args:
        problem: The problem.
        tol: Largest change by a further sweep at which a stage ends.
        max_sweeps: Most sweeps of one stage.
        quantum: Where stages are solved by sweeps, round values to multiples of this, a power of two, so that actions
            of equal value do not differ by what the sweeps left; 0: do not.
        start: Values of the states to begin with, where stages are solved by sweeps.
        progress: Called with the number of stages done and their total.

    Returns:
        The values. Without enough sweeps they are the last ones, and the residual says so.
    """
    size, dtype = len(problem.deltas), problem.reward.dtype
    costs = split_costs(problem.deltas, problem.budget, problem.union)
    q = np.empty((size, len(problem.reward)), dtype)
    gains = np.empty((0 if problem.budget == "box" else size, len(problem.reward)), dtype)
    states, sweeps, residual = [], 0, 0.0
    for k in range(size):
        kept = _equation(problem, costs, gains, k)
        if kept.lines.weights.size:
            first = _guess(states, costs[: k + 1, 0]) if start is None else start[k].astype(dtype)
            stage = _sweep_until(problem, kept, k, first, tol, max_sweeps)
            if quantum:
                np.multiply(np.rint(stage.q / quantum), quantum, out=stage.q)
        else:
            values = problem.reward + problem.penalty * kept.known
            stage = _Stage(_over_actions(problem, values, k), values, 1, 0.0)
        q[k] = stage.q
        states = [*states[-1:], stage.v]
        sweeps, residual = sweeps + stage.sweeps, max(residual, stage.residual)
        if len(gains):
            gains[k] = problem.transition @ stage.v / problem.penalty
        if progress is not None:
            progress(k + 1, size)
    # Stages solved up to a tolerance can stand in the wrong order by as much; what was reached lower down still holds.
    np.maximum.accumulate(q, axis=0, out=q)
    unseen = ~problem.seen.ravel()
    if unseen.any():
        q[:, unseen] = problem.unknown[:, None]
    return Solved(q, sweeps, residual)


def _equation(problem: Problem, costs: np.ndarray, gains: np.ndarray, k: int) -> _Kept:
    dtype = problem.reward.dtype
    least = costs[k, 0]
    known = (problem.trivial / problem.penalty - least).astype(dtype)
    none, base = Lines(*(np.empty(0, dtype),) * 3), np.zeros(1, dtype)
    if problem.budget == "box":
        return _Kept(known, base, Lines(np.ones(1, dtype), costs[k, k + 1 : k + 2].astype(dtype), none.breaks))
    known = best_splits(gains[:k], costs[k, 1 : k + 1], known, least)
    weights, prices = [], []
    if np.isfinite(costs[k, k + 1]):
        weights, prices = [1.0], [costs[k, k + 1]]
    if problem.interpolated and k:
        first, at, share = between(problem.deltas, k, problem.budget)
        inner = at < k - 1
        price = costs[first, 0]  # spending a grid point wholly on the first
        for i, m, w in zip(first[inner], at[inner], share[inner], strict=True):
            np.maximum(known, (1 - w) * gains[m] + w * gains[m + 1] - costs[i, 0], out=known)
        weights, prices = [*weights, *share[~inner]], [*prices, *price[~inner]]
    if not weights:
        return _Kept(known, base, none)
    lines = envelope(np.array(weights, dtype), np.array(prices, dtype))
    return _Kept(known, gains[k - 1] if k else base, lines)


def _guess(states: list[np.ndarray], costs: np.ndarray) -> np.ndarray | None:
    """Values of the last stages prolonged: with a fixed policy, values in the box are linear in the cost."""
    if len(states) < 2 or costs[-3] == costs[-2]:
        return states[-1] if states else None
    step = (costs[-2] - costs[-1]) / (costs[-3] - costs[-2])
    return states[1] + (states[1] - states[0]) * states[1].dtype.type(step)


def _over_actions(problem: Problem, q: np.ndarray, k: int) -> np.ndarray:
    table = q.reshape(problem.seen.shape)
    unknown = table.dtype.type(problem.unknown[k])
    if problem.minimises:
        return np.where(problem.seen, table, unknown).min(axis=1)
    best = np.where(problem.seen, table, -np.inf).max(axis=1)
    return np.where(np.isneginf(best), unknown, best)


def _sweep_until(
    problem: Problem, kept: _Kept, k: int, first: np.ndarray | None, tol: float, max_sweeps: int
) -> _Stage:
    """Modified policy iteration: a split is part of an action; few sweeps over pairs, many over a policy's states."""
    shape = problem.seen.shape
    rows = np.arange(shape[0]) * shape[1]
    v = np.full(shape[0], problem.unknown[k], problem.reward.dtype) if first is None else first
    # In units of return, not of the penalty: where nothing is to be paid, equal values must come out equal.
    known, base = problem.penalty * kept.known, problem.penalty * kept.base
    spent = 0
    while True:
        ahead = problem.transition @ v
        weight, price = kept.lines.best((ahead - base) / problem.penalty)
        carried = base + weight * (ahead - base) - problem.penalty * price
        q = problem.reward + np.maximum(known, carried)
        updated = _over_actions(problem, q, k)
        residual, spent = float(np.abs(updated - v).max()), spent + 1
        if residual <= tol or spent >= max_sweeps:
            return _Stage(updated, q, spent, residual)
        pair = rows + _actions(problem, q)
        lone = updated == updated.dtype.type(problem.unknown[k])
        weight = np.broadcast_to(weight, q.shape)
        slope = np.where((carried > known)[pair] & ~lone, weight[pair], 0)
        matrix = _scaled(problem.transition, pair, slope)
        v, more = _evaluate(matrix, updated - matrix @ v, updated, tol, max_sweeps - spent)
        spent += more


def _actions(problem: Problem, q: np.ndarray) -> Int[np.ndarray, " states"]:
    table = q.reshape(problem.seen.shape)
    worst = np.inf if problem.minimises else -np.inf
    masked = np.where(problem.seen, table, worst)
    return masked.argmin(axis=1) if problem.minimises else masked.argmax(axis=1)


def _scaled(matrix: sparse.csr_array, rows: np.ndarray, factors: np.ndarray) -> sparse.csr_array:
    chosen = sparse.csr_array(matrix[rows])
    chosen.data *= np.repeat(factors, np.diff(chosen.indptr))
    return chosen


def _evaluate(
    matrix: sparse.csr_array, constant: np.ndarray, v: np.ndarray, tol: float, max_sweeps: int
) -> tuple[np.ndarray, int]:
    """Solve v = constant + matrix v: plain sweeps first, then a Krylov solver if that is going to be slow."""
    spent, change = 0, np.inf
    while spent < min(_EASY, max_sweeps):
        following = constant + matrix @ v
        change, v, spent = float(np.abs(following - v).max()), following, spent + 1
        if change <= tol / 10:
            return v, spent
    if spent >= max_sweeps:
        return v, spent
    counted = [spent]
    system = sparse.csr_array(sparse.eye_array(len(v), dtype=v.dtype) - matrix)
    steps = max(1, min(_KRYLOV, (max_sweeps - spent) // 2))
    with np.errstate(all="ignore"):  # a breakdown shows in the residual; sweeps over all pairs go on from v then
        found, _ = bicgstab(
            system, constant, x0=v, rtol=0.0, atol=tol / 10, maxiter=steps, callback=lambda _: counted.append(2)
        )
        better = np.abs(constant + matrix @ found - found).max() < change
    return (found if better else v), sum(counted)

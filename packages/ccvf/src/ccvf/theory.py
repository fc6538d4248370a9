r"""The same mathematics the slow way: closed forms of chains, and solvers that loop over everything.

Nothing here is used by the rest of the package; it is what the rest is checked against. Problems are plain arrays:
visits n(s, a), mean rewards, and shares of next states in which terminated visits are missing.

On a chain of T steps with one action, visits n_t and mean rewards r_t, a bound at delta is

$$\sum_t \gamma^t \bigl(r_t - \alpha \sqrt{\log(1/\delta_t) / n_t}\bigr)$$

with $\delta_t = \delta$ in the box, the best $\sum_t \delta_t = \delta$ in the sum, and the best
$\prod_t (1 - \delta_t) = 1 - \delta$ in the product. Both searches are convex, the first for
$\delta \le e^{-1/2}$, the second in $y_t = -\log(1 - \delta_t)$, so that a Lagrange multiplier finds the optimum.
"""

import math
from collections.abc import Callable, Sequence
from typing import SupportsFloat, cast

import numpy as np
from jaxtyping import Bool, Float, Num
from scipy.optimize import brentq

__all__ = [
    "chain_bound",
    "chain_split",
    "hoeffding_alpha",
    "naive_backup",
    "naive_values",
    "optimal_values",
    "penalised_values",
    "unbounded_horizon_cost",
]

_CONVEX = math.exp(-0.5)


def hoeffding_alpha(low: SupportsFloat, high: SupportsFloat) -> float:
    r"""The penalty that Hoeffding's inequality asks for: $\alpha = (high - low) / \sqrt{2}$.

    A mean of n draws from [low, high] exceeds its expectation by $(high - low)\sqrt{\log(1/\delta) / (2 n)}$ with
    probability at most delta.

    Args:
        low: Smallest draw.
        high: Largest draw.

    Returns:
        alpha, to be multiplied by sqrt(log(1 / delta) / n).
    """
    return (float(high) - float(low)) / math.sqrt(2)


def chain_split(weights: Float[np.ndarray, " steps"], delta: SupportsFloat, budget: str) -> Float[np.ndarray, " steps"]:
    r"""Confidences of the steps that minimise $\sum_t w_t \sqrt{\log(1/\delta_t)}$ within a budget.

    In the sum the derivatives $w_t / (2 \delta_t \sqrt{\log(1/\delta_t)})$ are equal, in the product
    $w_t (1 - \delta_t) / (2 \delta_t \sqrt{\log(1/\delta_t)})$.

    Args:
        weights: What a unit of penalty costs at each step, above 0.
        delta: The whole confidence, below 1; in the sum at most exp(-1/2), above which the search is not convex.
        budget: "box", "sum" or "product".

    Returns:
        Confidences of the steps.

    Raises:
        ValueError: If delta is out of range or the budget is not known.

    Example:
        >>> import numpy as np
        >>> chain_split(np.ones(2), 0.1, "sum").round(6).tolist()
        [0.05, 0.05]
    """
    whole = float(delta)
    if budget == "box" or len(weights) == 1:
        return np.full(len(weights), whole)
    if budget not in ("sum", "product"):
        raise ValueError(f"a budget is box, sum or product, not {budget!r}")
    top = _CONVEX if budget == "sum" else 1.0
    if not 0 < whole <= top or whole == 1:
        raise ValueError(f"delta {whole:g} is outside (0, {top:.4g}]")

    def slope(x: float) -> float:
        scale = 1 - x if budget == "product" else 1.0
        return scale / (2 * x * math.sqrt(-math.log(x)))

    def confidences(log_price: float) -> np.ndarray:
        return np.array([_inverse(slope, math.exp(log_price) / w, whole) for w in weights])

    def used(log_price: float) -> float:
        found = confidences(log_price)
        return float(found.sum() - whole if budget == "sum" else np.log1p(-whole) - np.log1p(-found).sum())

    cheap, dear = math.log(slope(whole) * weights.min()), math.log(slope(whole * 1e-9) * weights.max())
    return confidences(float(cast("float", brentq(used, cheap, dear, xtol=1e-14))))


def _inverse(falling: Callable[[float], float], target: float, largest: float) -> float:
    """The x up to `largest` at which a falling function has a value, or `largest` where it is higher throughout."""
    if falling(largest) >= target:
        return largest
    low = math.log(largest) - 60
    return math.exp(
        cast("float", brentq(lambda z: math.log(falling(math.exp(z)) / target), low, math.log(largest), xtol=1e-14))
    )


def chain_bound(
    rewards: Sequence[SupportsFloat],
    visits: Sequence[SupportsFloat],
    delta: SupportsFloat,
    gamma: SupportsFloat,
    alpha: SupportsFloat,
    budget: str,
    upper: bool = False,
) -> float:
    """The best bound of the first value of a chain that ends after its last step.

    Args:
        rewards: Mean reward of each step.
        visits: Visits of each step, at least 1.
        delta: Confidence (see `chain_split`).
        gamma: Discount of one step, above 0; may be 1.
        alpha: Size of the penalty.
        budget: "box", "sum" or "product".
        upper: Whether it bounds from above.

    Returns:
        The bound.

    Example:
        >>> [round(chain_bound([0] * 6, [20] * 6, 0.05, 0.95, 1.0, b), 4) for b in ("sum", "product", "box")]
        [-2.591, -2.5853, -2.0505]
    """
    discounts = float(gamma) ** np.arange(len(rewards))
    weights = float(alpha) * discounts / np.sqrt(np.asarray(visits, dtype=float))
    penalty = weights @ np.sqrt(-np.log(chain_split(weights, delta, budget)))
    return float(discounts @ np.asarray(rewards, dtype=float) + (penalty if upper else -penalty))


def unbounded_horizon_cost(
    delta: SupportsFloat, visits: SupportsFloat, gamma: SupportsFloat, alpha: SupportsFloat
) -> float:
    r"""What a union bound over all steps to come costs at most, every pair seen equally often.

    With $\delta_t = 6 \delta / (\pi^2 (t + 1)^2)$, which add up to delta,
    $\alpha \sum_t \gamma^t \sqrt{\log(\pi^2 (t + 1)^2 / (6 \delta)) / n}$: finite, as each term grows like sqrt(log t).

    Args:
        delta: Confidence.
        visits: Visits n of every pair.
        gamma: Discount of one step, below 1.
        alpha: Size of the penalty.

    Returns:
        The cost in units of return.

    Example:
        >>> round(unbounded_horizon_cost(0.05, 20, 0.95, 1.0) / (20 * (math.log(20) / 20) ** 0.5), 3)  # against the box
        1.669
    """
    steps = np.arange(1, 2 + math.ceil(40 / (1 - float(gamma))))  # what is left out is below e^-40 of the whole
    shares = np.log(math.pi**2 * steps**2 / (6 * float(delta))) / float(visits)
    return float(alpha) * float(np.sum(float(gamma) ** (steps - 1.0) * np.sqrt(shares)))


def optimal_values(
    probabilities: Float[np.ndarray, "states actions states"],
    reward: Float[np.ndarray, "states actions"],
    gamma: SupportsFloat,
    tol: SupportsFloat = 1e-12,
) -> Float[np.ndarray, "states actions"]:
    """Optimal values by value iteration.

    Args:
        probabilities: Probabilities of next states; rows may add up to less than 1, the rest ends the episode.
        reward: Expected rewards.
        gamma: Discount of one step, below 1.
        tol: Distance to the solution.

    Returns:
        Q*.
    """
    q = np.zeros_like(reward, dtype=float)
    while True:
        following = reward + float(gamma) * probabilities @ q.max(axis=1)
        if np.abs(following - q).max() <= float(tol) * (1 - float(gamma)):
            return following
        q = following


def penalised_values(
    probabilities: Float[np.ndarray, "states actions states"],
    reward: Float[np.ndarray, "states actions"],
    visits: Num[np.ndarray, "states actions"],
    gamma: SupportsFloat,
    alpha: SupportsFloat,
    delta: SupportsFloat,
    tol: SupportsFloat = 1e-12,
) -> Float[np.ndarray, "states actions"]:
    r"""Penalised value iteration at one confidence, every pair visited: rewards less $\alpha\sqrt{\log(1/\delta)/n}$.

    Args:
        probabilities: Shares of next states.
        reward: Mean rewards.
        visits: Visits, at least 1.
        gamma: Discount of one step, below 1.
        alpha: Size of the penalty.
        delta: Confidence.
        tol: Distance to the solution.

    Returns:
        The lower bounds.
    """
    return optimal_values(probabilities, reward - float(alpha) * np.sqrt(-math.log(float(delta)) / visits), gamma, tol)


def _left(delta: float, second: float, budget: str) -> float | None:
    """The first confidence beside a second one, or None where there is none."""
    if budget == "box":
        return delta if second <= delta else None
    if budget == "sum":
        return delta - second if second < delta else None
    if delta == 1:
        return 1.0
    return (delta - second) / (1 - second) if second < delta else None  # no cancellation at small confidences


def naive_backup(
    v: Float[np.ndarray, "states confidences"],
    probabilities: Float[np.ndarray, "states actions states"],
    reward: Float[np.ndarray, "states actions"],
    visits: Num[np.ndarray, "states actions"],
    deltas: Float[np.ndarray, " confidences"],
    gamma: SupportsFloat,
    alpha: SupportsFloat,
    budget: str,
    trivial: SupportsFloat | None = None,
    union: SupportsFloat = 1.0,
    upper: bool = False,
) -> Float[np.ndarray, "states actions confidences"]:
    """One backup of every pair at every confidence, by trying every split.

    Args:
        v: Values of the states.
        probabilities: Shares of next states.
        reward: Mean rewards.
        visits: Visits.
        deltas: The grid.
        gamma: Discount of one step.
        alpha: Size of the penalty.
        budget: "box", "sum" or "product".
        trivial: What a state is worth at least (at most, of upper bounds) for certain; None: such splits are not used.
        union: Number of events that hold together.
        upper: Whether it bounds from above.

    Returns:
        Values of the actions; NaN where a pair was not seen.
    """
    S, A = reward.shape
    q = np.full((S, A, len(deltas)), np.nan)
    side, better = (1, min) if upper else (-1, max)
    for s in range(S):
        for a in range(A):
            if visits[s, a] == 0:
                continue
            error = float(alpha) / math.sqrt(max(visits[s, a], 1))
            later = [float(gamma) * float(probabilities[s, a] @ v[:, j]) for j in range(len(deltas))]
            known = None if trivial is None else float(gamma) * float(probabilities[s, a].sum()) * float(trivial)
            for k, delta in enumerate(deltas):
                found = [] if known is None else [known + side * error * math.sqrt(math.log(float(union) / delta))]
                for j, second in enumerate(deltas):
                    first = _left(float(delta), float(second), budget)
                    if first is not None:
                        found.append(later[j] + side * error * math.sqrt(math.log(float(union) / first)))
                q[s, a, k] = reward[s, a] + better(found)
    return q


def naive_values(
    probabilities: Float[np.ndarray, "states actions states"],
    reward: Float[np.ndarray, "states actions"],
    visits: Num[np.ndarray, "states actions"],
    deltas: Float[np.ndarray, " confidences"],
    gamma: SupportsFloat,
    alpha: SupportsFloat,
    budget: str,
    extreme: SupportsFloat,
    trivial: bool,
    union: SupportsFloat = 1.0,
    upper: bool = False,
    tol: SupportsFloat = 1e-11,
    start: Float[np.ndarray, "states confidences"] | None = None,
) -> Float[np.ndarray, "states actions confidences"]:
    """Backups until nothing changes; states count the actions that were seen, or what is assumed of unseen ones.

    Args:
        probabilities: Shares of next states.
        reward: Mean rewards.
        visits: Visits.
        deltas: The grid.
        gamma: Discount of one step, below 1.
        alpha: Size of the penalty.
        budget: "box", "sum" or "product".
        extreme: The worst return that there can be (the best, of upper bounds).
        trivial: Whether what follows may be left at that for certain.
        union: Number of events that hold together.
        upper: Whether it bounds from above.
        tol: Distance to the solution.
        start: Values of the states to begin with.

    Returns:
        Values of the actions; NaN where a pair was not seen.
    """
    seen = visits > 0
    v = np.zeros((len(reward), len(deltas))) if start is None else start
    while True:
        q = naive_backup(
            v, probabilities, reward, visits, deltas, gamma, alpha, budget, extreme if trivial else None, union, upper
        )
        following = _states(q, seen, _unknown(deltas, gamma, alpha, extreme, trivial, union, upper), upper)
        if np.abs(following - v).max() <= float(tol) * (1 - float(gamma)):
            return q
        v = following


def _unknown(
    deltas: np.ndarray,
    gamma: SupportsFloat,
    alpha: SupportsFloat,
    extreme: SupportsFloat,
    trivial: bool,
    union: SupportsFloat,
    upper: bool,
) -> Float[np.ndarray, " confidences"]:
    """The value of a pair seen once with the extreme outcome, which leads back to itself or to the trivial bound."""
    penalty = float(alpha) * np.sqrt(np.log(float(union) / deltas)) / (1 if trivial else 1 - float(gamma))
    return float(extreme) + (penalty if upper else -penalty)


def _states(
    q: np.ndarray, seen: Bool[np.ndarray, "states actions"], unknown: np.ndarray, upper: bool
) -> Float[np.ndarray, "states confidences"]:
    v = np.empty((len(q), q.shape[2]))
    for s in range(len(q)):
        options = [q[s, a] for a in range(q.shape[1]) if seen[s, a]]
        if not options or (upper and len(options) < q.shape[1]):
            options.append(unknown)
        v[s] = np.max(options, axis=0)
    return v

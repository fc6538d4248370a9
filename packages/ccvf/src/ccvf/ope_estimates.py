"""Estimated returns of the policy of every confidence, and a choice among them before anything is deployed."""

from dataclasses import dataclass
from typing import Any, Literal, SupportsFloat, SupportsInt, final

import numpy as np
from jaxtyping import Bool, Float

from ccvf.transitions import Transitions
from common_core.stats import bootstrap_mean

__all__ = ["ReturnEstimates", "Rule", "choose_delta", "episode_starts", "mean_over_starts"]

Rule = Literal["best", "lower"]


@final
@dataclass(frozen=True, eq=False)
class ReturnEstimates:
    """Estimated returns of greedy policies.

    Args:
        deltas: Their confidences.
        value: Estimated discounted return from the first observations of episodes, in units of return.
        low: Lower end of the interval over first observations; NaN where there is none. Errors of the evaluation
            itself are not in it.
        high: Upper end.
        starts: First observations used; 0 where their distribution was given.
        method: How they were found.
    """

    deltas: Float[np.ndarray, " confidences"]
    value: Float[np.ndarray, " confidences"]
    low: Float[np.ndarray, " confidences"]
    high: Float[np.ndarray, " confidences"]
    starts: int
    method: str

    def table(self) -> list[dict[str, float]]:
        """One row for each confidence."""
        rows = zip(self.deltas, self.value, self.low, self.high, strict=True)
        return [dict(zip(("delta", "value", "low", "high"), map(float, row), strict=True)) for row in rows]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"method": self.method, "starts": self.starts, "rows": self.table()}


def choose_delta(estimates: ReturnEstimates, rule: Rule | str = "best") -> float:
    """The confidence to deploy.

    Args:
        estimates: Estimated returns.
        rule: "best" takes the highest estimate, "lower" the highest lower end of the interval; of equals the most
            conservative.

    Returns:
        The confidence.

    Raises:
        ValueError: If the rule is unknown, or "lower" is asked of estimates without intervals.

    Example:
        >>> deltas, value, nothing = np.array([0.01, 0.1, 1.0]), np.array([1.0, 2.0, 2.0]), np.full(3, np.nan)
        >>> choose_delta(ReturnEstimates(deltas, value, nothing, nothing, 0, ""))
        0.1
    """
    if rule not in ("best", "lower"):
        raise ValueError(f"rule={rule!r} is unknown: give 'best' or 'lower'")
    scores = estimates.value if rule == "best" else estimates.low
    if not np.isfinite(scores).all():
        raise ValueError("the estimates have no lower ends, or are not finite: choose by rule='best', and check them")
    return float(estimates.deltas[scores == scores.max()].min())


def episode_starts(data: Transitions) -> Bool[np.ndarray, " transitions"]:
    """Which transitions are the first of an episode in a log.

    In a log from which single transitions were drawn these are no starts: draw whole episodes then.

    Args:
        data: The log.
    """
    starts = np.ones(len(data), dtype=bool)
    starts[1:] = data.last[:-1]
    return starts


def mean_over_starts(
    deltas: Float[np.ndarray, " confidences"],
    values: Float[np.ndarray, "starts confidences"],
    *,
    method: str,
    seed: SupportsInt = 0,
    confidence: SupportsFloat = 0.95,
) -> ReturnEstimates:
    """Means over first observations with bootstrap intervals; every confidence is resampled alike.

    Args:
        deltas: Confidences.
        values: Value of each first observation at each.
        method: How they were found.
        seed: Seed of the resamples.
        confidence: Nominal coverage.

    Returns:
        The estimates.
    """
    found = [
        bootstrap_mean(column, rng=np.random.default_rng(int(seed)), confidence=float(confidence))
        for column in values.T
    ]
    ends = np.array([[np.nan if e.low is None else e.low, np.nan if e.high is None else e.high] for e in found])
    value = np.array([e.value for e in found])
    return ReturnEstimates(deltas, value, ends[:, 0], ends[:, 1], len(values), method)

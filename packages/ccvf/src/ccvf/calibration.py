"""Are learnt values the lower bounds they say they are? Checked against returns that the environment gave.

For each confidence its greedy policy is played, and the values of what it did are compared with the returns that
followed. The share of returns that reach the value is set against 1 - delta. That is a check from outside, in two ways
milder and harsher than the statement itself: the statement is about logs drawn anew, here one log made the values, and
its errors are shared by all states; and single returns scatter, so that even exact values of a noisy environment are
reached half of the time only. Read the curve as a whole: values that promise too much fall below the diagonal at small
delta, where the bound should hold nearly always.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, SupportsFloat, SupportsInt, final

import numpy as np
from jaxtyping import Float, Int

from ccvf.confidence import check_deltas
from ccvf.environments import Stepper
from ccvf.evaluating import play
from ccvf.policies import Policy
from ccvf.progress import bar
from ccvf.values import ConfidenceValues
from common_core.stats import bootstrap

__all__ = ["Calibration", "calibrate", "returns_to_go"]


@final
@dataclass(frozen=True, eq=False)
class Calibration:
    """How often returns reached the values, at each confidence.

    Args:
        deltas: The confidences.
        share: Share of visited pairs whose return was at least the value.
        low: Lower end of its interval; episodes are resampled, for the pairs of one are not independent.
        high: Upper end.
        gap: Mean of return minus value, in units of return: what the bound gives away, below 0 what it overstates.
        pairs: Visited pairs compared.
        dropped: Visited pairs left out, because a time limit cut too much of their return.
        episodes: Episodes played at each confidence.
    """

    deltas: Float[np.ndarray, " confidences"]
    share: Float[np.ndarray, " confidences"]
    low: Float[np.ndarray, " confidences"]
    high: Float[np.ndarray, " confidences"]
    gap: Float[np.ndarray, " confidences"]
    pairs: Int[np.ndarray, " confidences"]
    dropped: Int[np.ndarray, " confidences"]
    episodes: int

    @property
    def nominal(self) -> Float[np.ndarray, " confidences"]:
        """What the share should at least be, 1 - delta."""
        return 1 - self.deltas

    def table(self) -> list[dict[str, float]]:
        """One row for each confidence."""
        names = ("deltas", "nominal", "share", "low", "high", "gap", "pairs", "dropped")
        columns = [getattr(self, name) for name in names]
        keys = ("delta", *names[1:])
        return [dict(zip(keys, map(float, row), strict=True)) for row in zip(*columns, strict=True)]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"episodes": self.episodes, "rows": self.table()}


def returns_to_go(rewards: Float[np.ndarray, " steps"], gamma: SupportsFloat) -> Float[np.ndarray, " steps"]:
    r"""Discounted return from each step on: $G_t = r_t + \gamma G_{t+1}$.

    Args:
        rewards: Rewards of an episode, in order.
        gamma: Discount of a step.

    Example:
        >>> returns_to_go(np.array([0.0, 0.0, 1.0]), 0.5).tolist()
        [0.25, 0.5, 1.0]
    """
    found, ahead = np.empty(len(rewards)), 0.0
    for t in range(len(rewards) - 1, -1, -1):
        ahead = float(rewards[t]) + float(gamma) * ahead
        found[t] = ahead
    return found


def calibrate(
    values: ConfidenceValues,
    stepper: Stepper,
    deltas: Iterable[SupportsFloat],
    episodes: SupportsInt,
    *,
    gamma: SupportsFloat,
    seed: SupportsInt,
    unseen_share: SupportsFloat = 0.05,
    confidence: SupportsFloat = 0.95,
    max_steps: SupportsInt | None = None,
    progress: bool = False,
) -> Calibration:
    """Play the greedy policy of each confidence and compare its values with the returns.

    Args:
        values: The learnt values.
        stepper: The environments.
        deltas: Confidences.
        episodes: Episodes at each.
        gamma: Discount of the values.
        seed: Seed of the environments, the same at each confidence, and of the intervals.
        unseen_share: Pairs of a cut episode count only where the discount at the cut is at most this.
        confidence: Nominal coverage of the intervals.
        max_steps: Steps after which an episode is cut.
        progress: Show a bar on standard error.

    Returns:
        Shares with intervals.

    Raises:
        ValueError: If a number is out of range, or no pair is left to compare.
    """
    grid, count = check_deltas(deltas), int(episodes)
    if not (0 <= float(gamma) <= 1 and 0 <= float(unseen_share) <= 1):
        raise ValueError(f"gamma={gamma} and unseen_share={unseen_share}: both are numbers in [0, 1]")
    rng, rows = np.random.default_rng(int(seed)), []
    with bar(progress, "calibrating", len(grid)) as show:
        for k, delta in enumerate(grid):
            found = _play_one(values, float(delta), stepper, count, float(gamma), int(seed), max_steps)
            rows.append(_compare(found, float(gamma), float(unseen_share), float(confidence), rng))
            show(k + 1, "")
    columns = np.array(rows).T
    if not columns[4].all():
        bare = grid[columns[4] == 0][0]
        raise ValueError(f"at delta={bare:g} time limits cut every return: give environments with longer episodes, a "
                         "smaller gamma or a larger unseen_share")  # fmt: skip
    share, low, high, gap = columns[:4]
    return Calibration(grid, share, low, high, gap, columns[4].astype(int), columns[5].astype(int), count)


@final
class _Greedy(Policy):
    """Greedy at one confidence; keeps the values of what it did."""

    def __init__(self, values: ConfidenceValues, delta: float) -> None:
        self.values, self.deltas = values, np.array([delta])
        self.said = np.zeros(0)

    def act(self, observations: np.ndarray) -> Int[np.ndarray, " envs"]:
        q = self.values.q_values(observations, self.deltas)[:, 0]
        self.said = q.max(-1).astype(np.float64)
        return q.argmax(-1)


def _play_one(
    values: ConfidenceValues, delta: float, stepper: Stepper, episodes: int, gamma: float, seed: int, max_steps: Any
) -> list[tuple[np.ndarray, np.ndarray, bool]]:
    """Of each episode what was said, what was received, and whether a time limit cut it."""
    policy = _Greedy(values, delta)
    said: list[list[float]] = [[] for _ in range(episodes)]
    got: list[list[float]] = [[] for _ in range(episodes)]
    cut = np.zeros(episodes, dtype=bool)
    for played in play(policy, stepper, episodes, seed=seed, max_steps=max_steps):
        for env in np.flatnonzero(played.episode >= 0).tolist():
            said[played.episode[env]].append(float(policy.said[env]))
            got[played.episode[env]].append(float(played.step.rewards[env]))
        cut[played.episode[played.cut]] = True
    return [(np.array(said[k]), np.array(got[k]), bool(cut[k])) for k in range(episodes)]


def _compare(
    found: list[tuple[np.ndarray, np.ndarray, bool]],
    gamma: float,
    unseen_share: float,
    confidence: float,
    rng: np.random.Generator,
) -> tuple[float, float, float, float, int, int]:
    """Share, interval, mean gap, pairs compared, pairs dropped."""
    tallies, dropped, gaps = [], 0, 0.0
    for said, got, cut in found:
        gap = returns_to_go(got, gamma) - said
        if cut:
            whole = gamma ** np.arange(len(got), 0, -1) <= unseen_share
            dropped += int((~whole).sum())
            gap = gap[whole]
        tallies.append((float((gap >= 0).sum()), float(len(gap))))
        gaps += float(gap.sum())
    table = np.array([row for row in tallies if row[1]]).reshape(-1, 2)
    pairs = int(table[:, 1].sum())
    if not pairs:
        return np.nan, np.nan, np.nan, np.nan, 0, dropped
    estimate = bootstrap(table, _ratio, rng=rng, confidence=confidence)
    low, high = (estimate.value if end is None else end for end in (estimate.low, estimate.high))
    if len(table) == 1:  # one episode says nothing of how episodes differ
        low, high = 0.0, 1.0
    return estimate.value, low, high, gaps / pairs, pairs, dropped


def _ratio(rows: np.ndarray) -> float:
    return float(rows[:, 0].sum() / rows[:, 1].sum())

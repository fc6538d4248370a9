"""Aggregate scores over runs and tasks with stratified bootstrap intervals, from few runs.

Point estimates are those of rliable (Agarwal et al., 2021). Runs are resampled within each task. Intervals are
percentiles widened for few runs (Hesterberg, 2015): with three runs a task plain percentiles cover far less than they
say. Everything is drawn from one generator, so equal scores give equal intervals.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, SupportsFloat, SupportsInt, final

import numpy as np
from jaxtyping import Float

from common_core.stats import Estimate, student_t_quantile

__all__ = [
    "AggregateScores",
    "aggregate",
    "interquartile_mean",
    "median_of_tasks",
    "normalise",
    "optimality_gap",
    "probability_of_improvement",
]

Statistic = Callable[[np.ndarray], np.ndarray]


@final
@dataclass(frozen=True)
class AggregateScores:
    """One method's scores over runs and tasks.

    Args:
        iqm: Mean of the middle half of all scores.
        median: Median over tasks of the mean over runs.
        mean: Mean of all scores.
        optimality_gap: Mean of what is missing to 1; below is better.
        runs: Runs of each task.
        tasks: Tasks.
    """

    iqm: Estimate
    median: Estimate
    mean: Estimate
    optimality_gap: Estimate
    runs: int
    tasks: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        names = ("iqm", "median", "mean", "optimality_gap")
        return {name: getattr(self, name).to_json() for name in names} | {"runs": self.runs, "tasks": self.tasks}


def normalise(
    returns: Float[np.ndarray, "runs tasks"],
    random: Float[np.ndarray, " tasks"],
    reference: Float[np.ndarray, " tasks"],
) -> Float[np.ndarray, "runs tasks"]:
    """Scores in which a random policy has 0 and a reference has 1.

    Args:
        returns: Mean returns of each run on each task.
        random: Return of a random policy on each task.
        reference: Return of the reference on each task.

    Returns:
        (returns - random) / (reference - random).

    Raises:
        ValueError: If a number is not finite, or random and reference are equal on a task.

    Example:
        >>> normalise(np.array([[5.0, 30.0]]), np.array([0.0, 10.0]), np.array([10.0, 20.0])).tolist()
        [[0.5, 2.0]]
    """
    span = reference - random
    if not np.isfinite(span).all() or (span == 0).any():
        raise ValueError(
            f"random and reference returns {random} and {reference} must be finite and differ on every task"
        )
    return (_checked(returns, "returns") - random) / span


def interquartile_mean(scores: Float[np.ndarray, "*batch runs tasks"]) -> Float[np.ndarray, "*batch"]:
    """Mean of the middle half of all scores: a quarter of their number, rounded down, is left out at either end.

    Args:
        scores: Scores; leading axes are kept.

    Example:
        >>> float(interquartile_mean(np.array([[0.0], [1.0], [2.0], [30.0]])))
        1.5
    """
    flat = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)
    cut = flat.shape[-1] // 4
    return np.asarray(flat[..., cut : flat.shape[-1] - cut].mean(-1))


def median_of_tasks(scores: Float[np.ndarray, "*batch runs tasks"]) -> Float[np.ndarray, "*batch"]:
    """Median over tasks of the mean over runs.

    Args:
        scores: Scores; leading axes are kept.
    """
    return np.asarray(np.median(scores.mean(-2), axis=-1))


def optimality_gap(scores: Float[np.ndarray, "*batch runs tasks"]) -> Float[np.ndarray, "*batch"]:
    """Mean of what is missing to a score of 1; scores above 1 do not make up for others.

    Args:
        scores: Scores; leading axes are kept.
    """
    return np.asarray(1 - np.minimum(scores, 1.0).mean((-2, -1)))


def aggregate(
    methods: Mapping[str, Float[np.ndarray, "runs tasks"]],
    rng: np.random.Generator,
    *,
    confidence: SupportsFloat = 0.95,
    resamples: SupportsInt = 2000,
) -> dict[str, AggregateScores]:
    """Aggregate scores of several methods.

    Args:
        methods: Normalised scores by method: one row a run, one column a task.
        rng: Source of the resamples.
        confidence: Nominal coverage of the intervals.
        resamples: Bootstrap resamples.

    Returns:
        Scores by method; a single run has no intervals.

    Raises:
        ValueError: If a matrix is empty or not finite, or methods differ in their tasks.

    Reference:
        Agarwal et al. (2021), Deep Reinforcement Learning at the Edge of the Statistical Precipice, section 4.
    """
    checked = {name: _checked(scores, name) for name, scores in methods.items()}
    if len({scores.shape[1] for scores in checked.values()}) > 1:
        raise ValueError(f"methods have {[s.shape[1] for s in checked.values()]} tasks; compare them on the same ones")
    found = {}
    for name, scores in checked.items():
        draws = _resampled(scores, int(resamples), rng)
        four = [
            _estimate(statistic, scores, draws, float(confidence))
            for statistic in (interquartile_mean, median_of_tasks, _mean, optimality_gap)
        ]
        found[name] = AggregateScores(*four, runs=scores.shape[0], tasks=scores.shape[1])
    return found


def probability_of_improvement(
    x: Float[np.ndarray, "runs_x tasks_x"],
    y: Float[np.ndarray, "runs_y tasks_y"],
    rng: np.random.Generator,
    *,
    confidence: SupportsFloat = 0.95,
    resamples: SupportsInt = 2000,
) -> Estimate:
    """How likely a run of x beats a run of y on a task drawn at random; equal scores count half.

    Args:
        x: Scores of the one.
        y: Scores of the other, on the same tasks.
        rng: Source of the resamples; both are resampled independently.
        confidence: Nominal coverage of the interval.
        resamples: Bootstrap resamples.

    Returns:
        The probability; no interval where one side has a single run.

    Raises:
        ValueError: If a matrix is empty or not finite, or tasks differ.

    Example:
        >>> x, y = np.array([[2.0], [3.0]]), np.array([[1.0], [2.0]])
        >>> probability_of_improvement(x, y, np.random.default_rng(0)).value
        0.875
    """
    x, y = _checked(x, "x"), _checked(y, "y")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"x has {x.shape[1]} tasks and y has {y.shape[1]}; compare them on the same ones")
    value = float(_wins(x, y))
    if min(len(x), len(y)) < 2:
        return Estimate(value, n=x.size + y.size)
    draws = _wins(_resampled(x, int(resamples), rng), _resampled(y, int(resamples), rng))
    runs = min(len(x), len(y))
    low, high = _ends(draws, runs, x.shape[1] * (runs - 1), float(confidence))
    return Estimate(value, low, high, n=x.size + y.size)


def _mean(scores: np.ndarray) -> np.ndarray:
    return np.asarray(scores.mean((-2, -1)))


def _wins(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    left, right = x[..., :, None, :], y[..., None, :, :]
    return np.asarray(((left > right) + 0.5 * (left == right)).mean((-3, -2, -1)))


def _resampled(scores: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    runs, tasks = scores.shape
    return scores[rng.integers(runs, size=(resamples, runs, tasks)), np.arange(tasks)]


def _estimate(statistic: Statistic, scores: np.ndarray, draws: np.ndarray, confidence: float) -> Estimate:
    value, (runs, tasks) = float(statistic(scores)), scores.shape
    if runs == 1:
        return Estimate(value, n=scores.size)
    return Estimate(value, *_ends(statistic(draws), runs, tasks * (runs - 1), confidence), n=scores.size)


def _ends(draws: np.ndarray, runs: int, freedom: int, confidence: float) -> tuple[float, float]:
    """Percentiles, moved outwards as Student's quantile and the bias of the bootstrap's variance ask for."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}; it lies between 0 and 1, such as 0.95")
    reach = np.sqrt(runs / (runs - 1)) * student_t_quantile((1 + confidence) / 2, freedom)
    low, high = np.quantile(draws, [NormalDist().cdf(-reach), NormalDist().cdf(reach)])
    return float(low), float(high)


def _checked(scores: np.ndarray, name: str) -> np.ndarray:
    found = np.asarray(scores, dtype=np.float64)
    if found.ndim != 2 or not found.size:
        raise ValueError(f"{name} has shape {found.shape}; give one row for each run and one column for each task")
    if not np.isfinite(found).all():
        raise ValueError(
            f"{name} holds {int((~np.isfinite(found)).sum())} scores that are NaN or infinite; drop those runs"
        )
    return found

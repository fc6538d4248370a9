"""How often bounds hold: lower bounds at confidence delta are meant to fail with probability at most delta."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, SupportsFloat, SupportsInt, final, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import beta

from ccvf.counts import Counts
from ccvf.mdp import TabularMDP
from ccvf.transitions import Transitions

__all__ = ["Coverage", "CoverageReport", "clopper_pearson", "coverage_of", "coverage_report"]

_ROUNDING = 1e-9  # relative to the values: what a solver may be off without having failed


@runtime_checkable
class _Values(Protocol):
    @property
    def q(self) -> Float[np.ndarray, "states actions confidences"]: ...
    @property
    def deltas(self) -> Float[np.ndarray, " confidences"]: ...
    @property
    def seen(self) -> Bool[np.ndarray, "states actions"]: ...
    @property
    def bound(self) -> Literal["lower", "upper"]: ...


@runtime_checkable
class _Solver(Protocol):
    @property
    def gamma(self) -> SupportsFloat: ...
    def fit(self, data: Any) -> Any: ...


@final
@dataclass(frozen=True, eq=False)
class Coverage:
    """Where the bounds from one data set hold.

    Args:
        deltas: Confidences.
        holds: Whether the bound of a pair holds; True for pairs that were not seen.
        seen: Which pairs were seen.
    """

    deltas: Float[np.ndarray, " confidences"]
    holds: Bool[np.ndarray, "states actions confidences"]
    seen: Bool[np.ndarray, "states actions"]

    @property
    def share(self) -> Float[np.ndarray, " confidences"]:
        """Share of the seen pairs whose bound holds."""
        return self.holds[self.seen].mean(axis=0)

    @property
    def everywhere(self) -> Bool[np.ndarray, " confidences"]:
        """Whether the bounds of all seen pairs hold at once."""
        return np.asarray(self.holds[self.seen].all(axis=0))


def coverage_of(values: _Values, q_star: Float[np.ndarray, "states actions"]) -> Coverage:
    """Compare the bounds from one data set with the truth.

    Args:
        values: Bounds, as `TabularCCVL.fit` returns them.
        q_star: Optimal values of the actions.

    Returns:
        Which bounds hold.

    Raises:
        ValueError: If the numbers of states or actions differ.
    """
    if values.q.shape[:2] != q_star.shape:
        raise ValueError(f"bounds are of (states, actions) = {values.q.shape[:2]}, true values of {q_star.shape}")
    slack = _ROUNDING * (1 + np.abs(q_star))[..., None]
    excess = values.q - q_star[..., None]
    holds = (excess <= slack) if values.bound == "lower" else (excess >= -slack)
    return Coverage(values.deltas, holds | ~values.seen[..., None], values.seen)


@final
@dataclass(frozen=True, eq=False)
class CoverageReport:
    """How often the bounds of many data sets hold, against what their confidences promise.

    Args:
        deltas: Confidences.
        sets: Number of data sets.
        mean: Share of the seen pairs whose bound held, over all sets.
        worst: The smallest share of any one pair, over the sets in which it was seen.
        worst_interval: Clopper-Pearson interval of that share, low and high.
        everywhere: Share of the sets in which the bounds of all seen pairs held at once.
        everywhere_interval: Clopper-Pearson interval of that share.
        level: Confidence level of the intervals.
    """

    deltas: Float[np.ndarray, " confidences"]
    sets: int
    mean: Float[np.ndarray, " confidences"]
    worst: Float[np.ndarray, " confidences"]
    worst_interval: Float[np.ndarray, "confidences 2"]
    everywhere: Float[np.ndarray, " confidences"]
    everywhere_interval: Float[np.ndarray, "confidences 2"]
    level: float

    def __repr__(self) -> str:
        return f"CoverageReport(sets={self.sets}, confidences={len(self.deltas)}, worst={self.worst.min():.3g})"

    @property
    def nominal(self) -> Float[np.ndarray, " confidences"]:
        """What is promised: 1 - delta."""
        return 1 - self.deltas

    def table(self) -> list[dict[str, float]]:
        """One row a confidence.

        Returns:
            Figures by name.
        """
        columns = {
            "delta": self.deltas,
            "nominal": self.nominal,
            "mean": self.mean,
            "worst": self.worst,
            "worst_low": self.worst_interval[:, 0],
            "worst_high": self.worst_interval[:, 1],
            "everywhere": self.everywhere,
            "everywhere_low": self.everywhere_interval[:, 0],
            "everywhere_high": self.everywhere_interval[:, 1],
        }
        return [{name: float(column[k]) for name, column in columns.items()} for k in range(len(self.deltas))]

    def to_json(self) -> str:
        """The report as JSON text.

        Returns:
            An object with the number of sets, the level and the rows.
        """
        return json.dumps({"sets": self.sets, "level": self.level, "rows": self.table()}, indent=2)


def coverage_report(
    mdp: TabularMDP,
    solver: _Solver,
    data: Iterable[Counts | Transitions] | Callable[[np.random.Generator], Counts | Transitions],
    n_sets: SupportsInt = 60,
    rng: np.random.Generator | None = None,
    *,
    level: SupportsFloat = 0.95,
) -> CoverageReport:
    """Fit a solver to many data sets from a known process and count how often its bounds hold.

    Args:
        mdp: The process that the data come from.
        solver: A `TabularCCVL`.
        data: The data sets, or a function that draws one.
        n_sets: How many are drawn; data sets that are given are all used.
        rng: Source of randomness of the function.
        level: Confidence level of the intervals.

    Returns:
        The report.

    Raises:
        ValueError: If there is no data set, a function comes without a generator, or a fit did not converge.

    Example:
        >>> import numpy as np
        >>> from ccvf.tabular import TabularCCVL
        >>> mdp = TabularMDP.from_arrays(np.ones((1, 1, 1)), np.array([[0.5]]), noise=0.5)
        >>> solver = TabularCCVL(0.5, alpha="hoeffding", union="pairs", reward_range=(0, 1), deltas=[0.1])
        >>> draw = lambda rng: mdp.draw_counts(np.array([[10]]), rng)
        >>> coverage_report(mdp, solver, draw, 20, np.random.default_rng(0)).worst.tolist()
        [1.0]
    """
    if callable(data):
        if rng is None:
            raise ValueError("data sets are drawn at random: give rng=numpy.random.default_rng(seed)")
        sampler, source = data, rng
        data = (sampler(source) for _ in range(int(n_sets)))
    truth = mdp.optimal(solver.gamma).q
    found = [coverage_of(solver.fit(one).unwrap(), truth) for one in data]
    if not found:
        raise ValueError("there is no data set: give at least one")
    seen = np.stack([one.seen for one in found])
    holds = np.stack([one.holds for one in found])
    visits = seen.sum(axis=0)
    held = (holds & seen[..., None]).sum(axis=0)
    occurring = visits > 0
    shares = held[occurring] / visits[occurring][:, None]
    pair = shares.argmin(axis=0)
    together = np.stack([one.everywhere for one in found])
    columns = np.arange(len(pair))
    worst = clopper_pearson(held[occurring][pair, columns], visits[occurring][pair], level)
    return CoverageReport(
        deltas=found[0].deltas,
        sets=len(found),
        mean=held.sum(axis=(0, 1)) / visits.sum(),
        worst=shares.min(axis=0),
        worst_interval=worst,
        everywhere=together.mean(axis=0),
        everywhere_interval=clopper_pearson(together.sum(axis=0), np.full(len(pair), len(found)), level),
        level=float(level),
    )


def clopper_pearson(
    successes: np.ndarray, trials: np.ndarray, level: SupportsFloat = 0.95
) -> Float[np.ndarray, "figures 2"]:
    """Exact intervals of probabilities, by Clopper and Pearson (1934).

    Args:
        successes: Successes of each.
        trials: Trials of each, at least 1.
        level: Confidence level.

    Returns:
        Low and high.

    Example:
        >>> import numpy as np
        >>> clopper_pearson(np.array([10]), np.array([10])).round(3).tolist()
        [[0.692, 1.0]]
    """
    tail = (1 - float(level)) / 2
    with np.errstate(invalid="ignore"):
        low = np.where(successes == 0, 0.0, beta.ppf(tail, successes, trials - successes + 1))
        high = np.where(successes == trials, 1.0, beta.ppf(1 - tail, successes + 1, trials - successes))
    return np.stack([low, high], axis=-1)

"""Hyper-parameters from data: maximum marginal likelihood by EM or by its exact gradient."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import numpy as np
import numpy.typing as npt
from jaxtyping import Float

from hieropo.ascent import HyperparameterFit, Status, accelerated, climb
from hieropo.checks import as_instance, as_spread
from hieropo.evidence import ExpectedMoments, evidence_gradient, evidence_of, expected_moments
from hieropo.linalg import as_covariance
from hieropo.posterior import infer
from hieropo.prior import GaussianHierarchy
from hieropo.statistics import TaskStatistics
from hieropo.structure import STRUCTURES, Structure, log_scales, pack, project, pull_back, size, unpack

_VAGUE = 1e6  # variance of the vague hyper-prior in units of what the data say about the scale of μ and θ
_SIGMA_FLOOR = 1e-6  # of the root mean square reward: without noise the likelihood has no maximum
_FLOORED = (
    f"the noise reached its floor, {_SIGMA_FLOOR:g} of the rewards' size: the rewards are fitted exactly, or lie far "
    "from zero (then subtract a common value)"
)
_GRADIENTS = ("mu_q", "Sigma_q", "Sigma_0", "log_sigma")
_HOW = "build it by TaskStatistics.from_rows(features, rewards, task_ids)"
_ONE_TASK = "one task does not tell Sigma_0 from a flat μ; give at least two tasks with rows, or fix sigma_q"
_LOG_RANGE = 18.0  # how far below its start the quasi-Newton search may take a log standard deviation


@final
@dataclass(frozen=True)
class _Problem:
    """What is fitted and what is held fixed."""

    logs: tuple[TaskStatistics, ...]
    structure: Structure
    flat: bool
    learn_hyper: bool
    learn_sigma: bool
    sigma_floor: float


def fit_hyperparameters(
    stats: TaskStatistics | Sequence[TaskStatistics],
    method: str = "em",
    *,
    sigma_q: Literal["flat", "learn"] | float | npt.ArrayLike | None = None,
    mu_q: npt.ArrayLike | float = 0.0,
    structure: Structure | str = "full",
    sigma: float | None = None,
    start: GaussianHierarchy | None = None,
    max_iter: int = 500,
    tolerance: float = 1e-7,
) -> HyperparameterFit[GaussianHierarchy]:
    """Fit Σ_0 and σ, and with several hierarchies μ_q and Σ_q, by maximum marginal likelihood.

    One hierarchy holds a single draw of μ, so (μ_q, Σ_q) cannot be learned from it: the likelihood is largest at
    μ_q = μ̄ and Σ_q = 0, which claims to know the mean. With one hierarchy Σ_q is therefore fixed: to a covariance you
    believe in, or to `"flat"` (default), the limit of an infinitely vague one. Then the rewards are judged by the
    restricted (REML) likelihood log ∫ p(Y | μ) dμ, in which log|I + Σ_q W| and (I + Σ_q W)⁻¹Σ_q take their limits
    log|W| − d log 2π and W⁻¹, and the fitted prior gets a finite but vague Σ_q (10⁶ times the scale of μ and θ), too
    wide to be felt. From several independent hierarchies with common hyper-parameters, `"learn"` (their default) fits
    (μ_q, Σ_q) as well.

    EM sets Σ_0 to the posterior mean of (θ_s − μ)(θ_s − μ)ᵀ and σ² to that of the squared residual; pairs of steps are
    extrapolated (SQUAREM) and the extrapolation is kept only if the evidence did not fall. "ml2" is L-BFGS on the
    Cholesky factor and log σ, with the exact gradient.

    Args:
        stats: Statistics of one hierarchy, or of several.
        method: "em" or "ml2".
        sigma_q: "flat", "learn", a standard deviation, or a covariance [d, d].
        mu_q: Fixed mean of μ: a number or shape [d]. Ignored when learned; only an origin when flat.
        structure: Structure of Σ_0 (and of a learned Σ_q): "full", "diagonal" or "isotropic".
        sigma: Fixed standard deviation of the noise; learned if not given.
        start: Where to begin; guessed from the data if not given.
        max_iter: Largest number of steps.
        tolerance: The search ends when a step gains less than tolerance · (1 + |log evidence|) nats; "ml2" measures
            log evidence and gain by the row.

    Returns:
        The fit, with its status.

    Raises:
        ValueError: If there is no data, an option is unknown, or sizes disagree.

    Reference:
        Not in the paper, which assumes known hyper-parameters. Acceleration: Varadhan and Roland, Scand. J. Stat. 2008.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> truth = GaussianHierarchy.isotropic(2, sigma_q=1.0, sigma_0=0.5, sigma=0.3)
        >>> theta = truth.sample(300, rng)[1]
        >>> tasks = np.repeat(np.arange(300), 20)
        >>> features = rng.uniform(-1, 1, (6000, 2))
        >>> rewards = (features * theta[tasks]).sum(1) + 0.3 * rng.standard_normal(6000)
        >>> fit = fit_hyperparameters(TaskStatistics.from_rows(features, rewards, tasks), structure="isotropic")
        >>> fit.status, round(fit.prior.sigma, 2), round(float(fit.prior.Sigma_0[0, 0]) ** 0.5, 1)
        ('converged', 0.3, 0.5)
    """
    logs = _with_data(stats)
    if method not in ("em", "ml2"):
        raise ValueError(f"method is {method!r}; give 'em' or 'ml2'")
    if structure not in STRUCTURES:
        raise ValueError(f"structure is {structure!r}; give one of {', '.join(STRUCTURES)}")
    if max_iter < 1 or not tolerance >= 0:
        raise ValueError(f"max_iter is {max_iter} and tolerance {tolerance}; give max_iter >= 1 and tolerance >= 0")
    sigma_q = ("flat" if len(logs) == 1 else "learn") if sigma_q is None else sigma_q
    learn_hyper = isinstance(sigma_q, str) and sigma_q == "learn"
    if learn_hyper and len(logs) == 1:
        raise ValueError(
            "sigma_q='learn' needs several hierarchies: one hierarchy has one draw of μ; use 'flat' or fix it"
        )
    units = _units(logs, structure)
    prior = units.scaled(_start(logs, units, sigma_q, mu_q, structure, sigma, start))
    flat = isinstance(sigma_q, str) and sigma_q == "flat"
    logs = tuple(units.statistics(log) for log in logs)
    rms = math.sqrt(sum(float(log.square.sum()) for log in logs) / sum(log.n for log in logs))
    problem = _Problem(logs, structure, flat, learn_hyper, sigma is None, _SIGMA_FLOOR * (rms or 1.0))
    search = _by_em if method == "em" else _by_gradient
    try:
        if flat and all(log.m == 1 for log in logs):
            raise np.linalg.LinAlgError(
                "one task does not tell Sigma_0 from a flat μ; give two tasks with rows or more, or fix sigma_q"
            )
        if problem.learn_sigma and _drowned(logs):
            raise np.linalg.LinAlgError(_FLOORED)
        end = _finish(problem, *search(problem, prior, max_iter, tolerance))
    except np.linalg.LinAlgError as error:
        end = HyperparameterFit(_vague(problem, prior, prior.mu_q), -math.inf, (), "not_identified", str(error))
    return units.original(end, problem)


@final
@dataclass(frozen=True)
class _Units:
    """Features in units f, rewards in units r (powers of two, so that nothing is rounded): θ' = θ f / r.

    A search in these units ends at the same prior whatever the units of the log.
    """

    features: Float[np.ndarray, " d"]
    rewards: float

    def statistics(self, stats: TaskStatistics) -> TaskStatistics:
        f, r = self.features, self.rewards
        gram = stats.gram / f / f[:, None]
        return TaskStatistics(stats.tasks, stats.count, gram, stats.moment / f / r, stats.square / r / r)

    def scaled(self, prior: GaussianHierarchy, power: int = 1) -> GaussianHierarchy:
        """The prior in these units; power −1 leads back."""
        a = (self.features / self.rewards) ** power
        Sigma_q, Sigma_0 = (cov * a * a[:, None] for cov in (prior.Sigma_q, prior.Sigma_0))
        return GaussianHierarchy(prior.mu_q * a, Sigma_q, Sigma_0, prior.sigma / self.rewards**power)

    def original(
        self, fit: HyperparameterFit[GaussianHierarchy], problem: _Problem
    ) -> HyperparameterFit[GaussianHierarchy]:
        """The fit in the units of the log; densities of rewards, and of a flat μ, change by their Jacobians."""
        offset = -sum(log.n for log in problem.logs) * math.log(self.rewards)
        if problem.flat:
            offset -= len(problem.logs) * float(np.log(self.features / self.rewards).sum())
        trace = tuple(value + offset for value in fit.trace)
        return replace(fit, prior=self.scaled(fit.prior, -1), log_evidence=fit.log_evidence + offset, trace=trace)


def _units(logs: tuple[TaskStatistics, ...], structure: Structure) -> _Units:
    """Powers of two near the root mean squares; one for all features if Sigma_0 is to be isotropic."""
    n = sum(log.n for log in logs)
    squares = np.sum([np.einsum("mii->i", log.gram) for log in logs], axis=0) / n
    if structure == "isotropic":
        squares = np.full_like(squares, squares.mean())
    square = sum(float(log.square.sum()) for log in logs) / n
    sizes = np.sqrt(np.append(squares, square))
    units = np.exp2(np.round(np.log2(np.where(sizes > 0, sizes, 1.0))))
    return _Units(units[:-1], float(units[-1]))


def _with_data(stats: TaskStatistics | Sequence[TaskStatistics]) -> tuple[TaskStatistics, ...]:
    """The hierarchies without tasks that hold no row: they say nothing and slow EM down."""
    logs = (stats,) if isinstance(stats, TaskStatistics) else tuple(stats)
    for log in logs:
        as_instance(log, TaskStatistics, "stats", _HOW)
    if not logs:
        raise ValueError("no statistics given; pass TaskStatistics or a sequence of them")
    if len({log.d for log in logs}) != 1:
        raise ValueError(f"the hierarchies have {sorted({log.d for log in logs})} features; they must agree")
    logs = tuple(log.select(log.tasks[log.count > 0]) for log in logs)
    logs = tuple(log for log in logs if log.m > 0)
    if not logs:
        raise ValueError("no task has a row; there is nothing to fit")
    return logs


def _start(
    logs: tuple[TaskStatistics, ...],
    units: _Units,
    sigma_q: str | float | npt.ArrayLike,
    mu_q: npt.ArrayLike | float,
    structure: Structure,
    sigma: float | None,
    start: GaussianHierarchy | None,
) -> GaussianHierarchy:
    """A prior to begin with, with what is fixed put in."""
    d = logs[0].d
    if isinstance(sigma_q, str) and sigma_q not in ("flat", "learn"):
        raise ValueError(f"sigma_q is {sigma_q!r}; give 'flat', 'learn', a standard deviation or a covariance")
    mean = np.broadcast_to(np.asarray(mu_q, dtype=np.float64), (d,))
    if start is None:
        start = units.scaled(_guess(tuple(units.statistics(log) for log in logs), structure), -1)
    if start.d != d:
        raise ValueError(f"start has {start.d} features, the statistics {d}")
    if sigma is not None:
        start = replace(start, sigma=sigma)
    if isinstance(sigma_q, str):
        return start if sigma_q == "learn" else replace(start, mu_q=mean, Sigma_q=np.zeros((d, d)))
    return replace(start, mu_q=mean, Sigma_q=covariance_of(sigma_q, d))


def covariance_of(sigma_q: float | npt.ArrayLike, d: int) -> Float[np.ndarray, "{d} {d}"]:
    """Σ_q from a standard deviation or a covariance.

    Args:
        sigma_q: A standard deviation, or shape [d, d].
        d: Number of features.

    Returns:
        The covariance [d, d].

    Raises:
        ValueError: If the standard deviation is negative or not finite, or the matrix not a covariance.
    """
    if np.ndim(sigma_q) == 0:
        return as_spread(sigma_q, "sigma_q") ** 2 * np.eye(d)
    return as_covariance(sigma_q, d, "sigma_q")


def _guess(logs: tuple[TaskStatistics, ...], structure: Structure) -> GaussianHierarchy:
    """Half of the rewards' variance around a pooled fit is noise, half comes from the tasks."""
    d, n = logs[0].d, sum(log.n for log in logs)
    gram, moment = (sum(getattr(log, name).sum(axis=0) for log in logs) for name in ("gram", "moment"))
    pooled = np.linalg.lstsq(gram, moment, rcond=1e-10)[0]
    square = sum(float(log.square.sum()) for log in logs)
    variance = max(square - float(pooled @ moment), 1e-6 * square) / n or 1.0
    scale = np.maximum(np.diagonal(gram) / n, 1e-12)
    within = project(np.diag(variance / (2 * d * scale)), structure)
    return GaussianHierarchy(pooled, within, within, math.sqrt(variance / 2))


def _drowned(logs: tuple[TaskStatistics, ...]) -> bool:
    """Whether one parameter for all fits the rewards down to the floor of the noise: their sums then hold no noise."""
    if sum(log.n for log in logs) <= logs[0].d:  # a few rows are always fitted
        return False
    square = sum(float(log.square.sum()) for log in logs)
    gram, moment = (sum(getattr(log, name).sum(axis=0) for log in logs) for name in ("gram", "moment"))
    residual = square - float(np.linalg.lstsq(gram, moment, rcond=1e-10)[0] @ moment)
    return square > 0 and residual < _SIGMA_FLOOR**2 * square


def _expect(problem: _Problem, prior: GaussianHierarchy) -> tuple[float, list[ExpectedMoments], np.ndarray]:
    """The E-step: log p(Y), the moments of each hierarchy, and the posterior means of its μ."""
    posteriors = [infer(log, prior, problem.flat) for log in problem.logs]
    value = sum(evidence_of(log, posterior) for log, posterior in zip(problem.logs, posteriors, strict=True))
    moments = [expected_moments(log, posterior) for log, posterior in zip(problem.logs, posteriors, strict=True)]
    return value, moments, np.array([posterior.hyper.mean for posterior in posteriors])


def _em_step(problem: _Problem, prior: GaussianHierarchy) -> tuple[GaussianHierarchy, float]:
    """One EM step, and log p(Y) of where it started."""
    value, moments, means = _expect(problem, prior)
    tasks, n = sum(log.m for log in problem.logs), sum(log.n for log in problem.logs)
    changes: dict[str, Any] = {
        "Sigma_0": project(np.sum([part.tasks for part in moments], axis=0) / tasks, problem.structure)
    }
    if problem.learn_sigma:
        changes["sigma"] = max(math.sqrt(sum(part.residual for part in moments) / n), problem.sigma_floor)
    if problem.learn_hyper:
        centre = means.mean(axis=0)
        shift = centre - prior.mu_q  # the moments are around the old μ_q
        around = np.mean([part.hyper for part in moments], axis=0) - np.outer(shift, shift)
        changes |= {"mu_q": centre, "Sigma_q": project(around, problem.structure)}
    return replace(prior, **changes), value


def _by_em(
    problem: _Problem, prior: GaussianHierarchy, max_iter: int, tolerance: float
) -> tuple[GaussianHierarchy, tuple[float, ...], bool, str]:
    step = accelerated(
        lambda state: _em_step(problem, state),
        lambda state: _pack(problem, state),
        lambda state, x: _unpack(problem, state, x),
    )
    end = climb(step, prior, tolerance=tolerance, max_iter=max(1, max_iter // 3))
    return end.state, end.trace, end.converged, end.message


def _by_gradient(
    problem: _Problem, prior: GaussianHierarchy, max_iter: int, tolerance: float
) -> tuple[GaussianHierarchy, tuple[float, ...], bool, str]:
    from scipy.optimize import minimize  # slow to import, and only needed here

    scale = float(sum(log.n for log in problem.logs))
    structure, k = problem.structure, size(prior.d, problem.structure)

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        here = _unpack(problem, prior, x)
        parts = [evidence_gradient(log, here, problem.flat) for log in problem.logs]
        total = {name: np.sum([getattr(g, name) for _, g in parts], axis=0) for name in _GRADIENTS}
        gradient = [pull_back(total["Sigma_0"], x[:k], structure)]
        if problem.learn_sigma:
            gradient.append(np.atleast_1d(total["log_sigma"]))
        if problem.learn_hyper:
            gradient += [total["mu_q"], pull_back(total["Sigma_q"], x[-k:], structure)]
        return -sum(value for value, _ in parts) / scale, -np.concatenate(gradient) / scale

    try:
        x0 = _pack(problem, prior)
    except np.linalg.LinAlgError:
        raise ValueError("method 'ml2' needs positive definite covariances to start from; use 'em'") from None
    trace: list[float] = [-scale * objective(x0)[0]]

    def record(intermediate_result: Any) -> None:
        trace.append(-scale * float(intermediate_result.fun))

    options = {"maxiter": max_iter, "ftol": tolerance, "gtol": 1e-7}
    end = minimize(
        objective, x0, jac=True, method="L-BFGS-B", bounds=_bounds(problem, x0), callback=record, options=options
    )
    return _unpack(problem, prior, end.x), tuple(trace), bool(end.success), str(end.message)


def _pack(problem: _Problem, prior: GaussianHierarchy) -> Float[np.ndarray, " p"]:
    """The learned hyper-parameters as one vector: Σ_0, log σ, μ_q, Σ_q."""
    parts = [pack(prior.Sigma_0, problem.structure)]
    if problem.learn_sigma:
        parts.append(np.array([math.log(prior.sigma)]))
    if problem.learn_hyper:
        parts += [prior.mu_q, pack(prior.Sigma_q, problem.structure)]
    return np.concatenate(parts)


def _unpack(problem: _Problem, prior: GaussianHierarchy, x: Float[np.ndarray, " p"]) -> GaussianHierarchy:
    d, k = prior.d, size(prior.d, problem.structure)
    changes: dict[str, Any] = {"Sigma_0": unpack(x[:k], d, problem.structure)}
    if problem.learn_sigma:
        changes["sigma"] = max(math.exp(x[k]), problem.sigma_floor)
    if problem.learn_hyper:
        changes |= {"mu_q": x[-k - d : -k], "Sigma_q": unpack(x[-k:], d, problem.structure)}
    return replace(prior, **changes)


def _bounds(problem: _Problem, x0: np.ndarray) -> list[tuple[float | None, float | None]]:
    """Keep log scales from running to −∞ where the likelihood is largest at a singular covariance."""
    d = problem.logs[0].d
    flags = log_scales(d, problem.structure)
    if problem.learn_sigma:
        flags = [*flags, False]
    if problem.learn_hyper:
        flags = [*flags, *([False] * d), *log_scales(d, problem.structure)]
    bounds: list[tuple[float | None, float | None]] = [
        (float(x) - _LOG_RANGE, float(x) + _LOG_RANGE) if flag else (None, None)
        for x, flag in zip(x0, flags, strict=True)
    ]
    if problem.learn_sigma:
        position = size(d, problem.structure)
        bounds[position] = (math.log(problem.sigma_floor), float(x0[position]) + _LOG_RANGE)
    return bounds


def _finish(
    problem: _Problem, prior: GaussianHierarchy, trace: tuple[float, ...], converged: bool, message: str
) -> HyperparameterFit[GaussianHierarchy]:
    value, _, means = _expect(problem, prior)
    status: Status = "converged" if converged else "max_iter"
    if problem.learn_sigma and prior.sigma <= problem.sigma_floor * (1 + 1e-9):
        status = "not_identified"
        message = f"{_FLOORED}; {message}"
    return HyperparameterFit(_vague(problem, prior, means), value, trace, status, message)


def _vague(problem: _Problem, prior: GaussianHierarchy, means: np.ndarray) -> GaussianHierarchy:
    """The prior with a finite Sigma_q in place of the flat limit."""
    if not problem.flat:
        return prior
    size_of_mean = float(np.mean((means - prior.mu_q) ** 2))
    vague = _VAGUE * max(size_of_mean + float(np.trace(prior.Sigma_0)) / prior.d, 1e-12)
    return replace(prior, Sigma_q=vague * np.eye(prior.d))

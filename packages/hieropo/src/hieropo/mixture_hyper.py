"""Empirical Bayes for mixtures of hierarchies: weights, centres, spreads and noise by EM, from several starts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, final

import numpy as np
import numpy.typing as npt
from jaxtyping import Float

from hieropo.ascent import Ascent, climb
from hieropo.briefly import briefly
from hieropo.checks import as_generator, as_instance, as_size
from hieropo.hyper import covariance_of, fit_hyperparameters
from hieropo.linalg import symmetric
from hieropo.messages import Message, transposed
from hieropo.mixture import (
    Centres,
    MixtureHierarchy,
    messages,
    responsibilities,
    task_means,
    update_centres,
)
from hieropo.posterior import infer
from hieropo.statistics import TaskStatistics
from hieropo.structure import STRUCTURES, Structure, project

__all__ = ["MixtureFit", "fit_mixture"]

_SIGMA_FLOOR = 1e-6  # of the root mean square reward: without noise the likelihood has no maximum
_EMPTY = 1e-8  # tasks; a cluster with less keeps its parameters


@final
@dataclass(frozen=True, eq=False)
class MixtureFit:
    """A fitted mixture. Clusters are ordered by falling weight, ties by their centres.

    Args:
        prior: The prior with fitted weights, spreads and noise; with point-estimated centres also those.
        centres: Posterior means of the centres, the place to start `infer_mixture` from, shape `[k, d]`.
        log_evidence: log p(rewards), or its lower bound when the centres have a prior.
        trace: The objective at the start and after every step of the best run; never decreasing.
        status: "converged", "max_iter", or "degenerate": a cluster holds less than one task, or its spread is at the
            floor in every direction.
        message: One sentence for the user.
        restarts: The objective each start ended at, best first.
    """

    prior: MixtureHierarchy
    centres: Float[np.ndarray, "k d"]
    log_evidence: float
    trace: tuple[float, ...]
    status: Literal["converged", "max_iter", "degenerate"]
    message: str
    restarts: tuple[float, ...]

    __repr__ = briefly("status", "log_evidence", "prior")

    def unwrap(self) -> MixtureHierarchy:
        """The fitted prior, or an error.

        Returns:
            The prior.

        Raises:
            RuntimeError: If the search did not converge or a cluster degenerated.
        """
        if self.status != "converged":
            raise RuntimeError(self.message)
        return self.prior


class _State(NamedTuple):
    prior: MixtureHierarchy
    centres: Centres


@final
@dataclass(frozen=True, eq=False)
class _Problem:
    """The data and what is held fixed."""

    stats: TaskStatistics
    known_prior: bool  # the centres have a given prior; otherwise they are parameters
    structure: Structure
    learn_sigma: bool
    floor: float

    def step(self, state: _State) -> tuple[_State, float]:
        """One EM step, and the objective of where it started."""
        clusters = messages(self.stats, state.prior)
        shares, value = responsibilities(self.stats, state.prior, clusters, state.centres)
        return self.maximise(state, clusters, shares), value

    def maximise(self, state: _State, clusters: list[Message], shares: Float[np.ndarray, "m k"]) -> _State:
        """The best weights, then centres, then spreads and noise, given the shares of the tasks."""
        prior = state.prior
        if self.known_prior:
            centres = update_centres(clusters, shares, prior)
        else:
            mean = _point_centres(clusters, shares, state.centres.mean)
            centres = Centres(mean, np.zeros_like(prior.Sigma_q), 0.0)
        sizes = shares.sum(axis=0)
        spreads, squares = prior.Sigma_0.copy(), float(self.stats.square.sum())
        for j, message in enumerate(clusters):
            means, S = task_means(message, centres.mean[j]), centres.cov[j]
            apart, pull = means - centres.mean[j], message.gain - np.eye(prior.d)
            second = message.own_cov + pull @ S @ transposed(pull) + apart[:, :, None] * apart[:, None, :]
            if sizes[j] > _EMPTY:
                scatter = symmetric(np.einsum("s,sab->ab", shares[:, j], second) / sizes[j])
                spreads[j] = _at_least(project(scatter, self.structure), self.floor)
            cov = message.own_cov + message.gain @ S @ transposed(message.gain)
            about = cov + means[:, :, None] * means[:, None, :]
            explained = 2.0 * np.sum(means * self.stats.moment, axis=1) - np.sum(self.stats.gram * about, axis=(1, 2))
            squares -= float(shares[:, j] @ explained)
        sigma = prior.sigma
        if self.learn_sigma:
            least = max(_SIGMA_FLOOR**2 * float(self.stats.square.sum()), 1e-300)
            sigma = math.sqrt(max(squares, least) / self.stats.n)
        mu_q = prior.mu_q if self.known_prior else centres.mean
        fitted = replace(prior, weights=sizes / sizes.sum(), mu_q=mu_q, Sigma_0=spreads, sigma=sigma)
        return _State(fitted, centres)


def fit_mixture(
    stats: TaskStatistics,
    k: int,
    *,
    rng: np.random.Generator,
    sigma_q: float | npt.ArrayLike | None = None,
    mu_q: float | npt.ArrayLike = 0.0,
    structure: Structure = "full",
    sigma: float | None = None,
    restarts: int = 10,
    floor: float = 1e-4,
    tolerance: float = 1e-8,
    max_iter: int = 500,
) -> MixtureFit:
    """Fit a mixture of k hierarchies by EM, the tasks' parameters integrated out in closed form.

    Without `sigma_q` the centres are parameters and the objective is the exact evidence; the fitted prior takes them as
    known, which is too sure of itself when a cluster holds few tasks. With `sigma_q` every centre has the prior
    N(μ_q, Σ_q), and the objective is the lower bound of `infer_mixture`. Neither ever decreases. Starts are drawn among
    the tasks as in k-means++; the best end is kept.

    Args:
        stats: Statistics of the tasks.
        k: Number of clusters.
        rng: Source of the starts.
        sigma_q: None, or a standard deviation or covariance `[d, d]` of the centres.
        mu_q: Mean of the centres if `sigma_q` is given, a number or shape `[d]`.
        structure: "full", "diagonal" or "isotropic" spreads.
        sigma: Fixed standard deviation of the noise; learned if not given.
        restarts: Number of starts.
        floor: Smallest variance of a spread in units of the spread of a single hierarchy.
        tolerance: Relative gain of the objective below which a run ends.
        max_iter: Largest number of EM steps of a run.

    Returns:
        The best fit, with its status.

    Raises:
        ValueError: No rows, k < 1, more clusters than tasks with rows, or an unknown structure.

    Reference:
        Dempster, Laird and Rubin (1977); starts: Arthur and Vassilvitskii (2007).

    Example:
        >>> rng = np.random.default_rng(0)
        >>> truth = MixtureHierarchy.known_centres([0.6, 0.4], [[-2.0], [2.0]], [[[0.1]], [[0.1]]], sigma=0.5)
        >>> z, _, theta = truth.sample(60, rng)
        >>> tasks = np.repeat(np.arange(60), 10)
        >>> rewards = theta[tasks, 0] + 0.5 * rng.standard_normal(600)
        >>> fit = fit_mixture(TaskStatistics.from_rows(np.ones((600, 1)), rewards, tasks), 2, rng=rng)
        >>> fit.status, fit.centres.round(1).ravel().tolist()
        ('converged', [-2.0, 2.1])
    """
    as_instance(stats, TaskStatistics, "stats", "build it by TaskStatistics.from_rows(features, rewards, task_ids)")
    rng, k = as_generator(rng), as_size(k, "k")
    if stats.n == 0:
        raise ValueError("no task has a row; there is nothing to fit")
    stats = stats.select(stats.tasks[stats.count > 0])  # the others say nothing
    if not 1 <= k <= stats.m:
        raise ValueError(f"k is {k}; give at least 1 and at most {stats.m} clusters, one a task with rows")
    if structure not in STRUCTURES:
        raise ValueError(f"structure is {structure!r}; give one of {', '.join(STRUCTURES)}")
    if restarts < 1:
        raise ValueError(f"restarts is {restarts}; give at least 1")
    if not (math.isfinite(floor) and floor > 0):
        raise ValueError(f"floor is {floor}; it must be positive")
    single = fit_hyperparameters(
        stats, mu_q=np.zeros(stats.d), structure=structure, sigma=sigma, tolerance=1e-5, max_iter=60
    ).prior  # a start need not be exact
    least = floor * max(float(np.trace(single.Sigma_0)) / stats.d, 1e-12)
    problem = _Problem(stats, sigma_q is not None, structure, sigma is None, least)
    hyper = np.zeros((stats.d, stats.d))
    if sigma_q is not None:
        hyper = covariance_of(sigma_q, stats.d)
    mean = np.broadcast_to(np.asarray(mu_q, dtype=float), (stats.d,))
    spread = _at_least(single.Sigma_0, least)
    means, hypers, spreads = (np.array([a] * k) for a in (mean, hyper, spread))
    base = MixtureHierarchy(np.full(k, 1.0 / k), means, hypers, spreads, single.sigma)
    points = infer(stats, single).means
    runs = []
    for _ in range(restarts if k > 1 else 1):
        start = _first_state(problem, base, _spread_out(points, k, rng))
        runs.append(climb(problem.step, start, tolerance=tolerance, max_iter=max_iter))
    runs.sort(key=lambda run: -run.trace[-1])
    return _finish(problem, runs[0], tuple(run.trace[-1] for run in runs))


def _first_state(problem: _Problem, base: MixtureHierarchy, seeds: Float[np.ndarray, "k d"]) -> _State:
    """One maximisation from the shares that the seeds get under a quarter of the common spread."""
    narrow = replace(base, Sigma_0=_floored(0.25 * base.Sigma_0, problem.floor))
    clusters = messages(problem.stats, narrow)
    guess = Centres(seeds, np.zeros_like(base.Sigma_q), 0.0)
    shares, _ = responsibilities(problem.stats, narrow, clusters, guess)
    return problem.maximise(_State(narrow, guess), clusters, shares)


def _spread_out(points: Float[np.ndarray, "m d"], k: int, rng: np.random.Generator) -> Float[np.ndarray, "k d"]:
    """Draw k points, each with probability proportional to its squared distance from those already drawn."""
    chosen = [points[rng.integers(len(points))]]
    distance = np.full(len(points), np.inf)
    for _ in range(k - 1):
        distance = np.minimum(distance, np.sum((points - chosen[-1]) ** 2, axis=1))
        total = float(distance.sum())
        chosen.append(points[rng.choice(len(points), p=distance / total if total > 0 else None)])
    return np.array(chosen)


def _point_centres(
    clusters: list[Message], shares: Float[np.ndarray, "m k"], before: Float[np.ndarray, "k d"]
) -> Float[np.ndarray, "k d"]:
    """The centres of largest evidence given the shares; directions that no row informs stay where they were."""
    centres = before.copy()
    for j, message in enumerate(clusters):
        A = np.einsum("s,sij->ij", shares[:, j], message.W)
        c = shares[:, j] @ message.b
        centres[j] += np.linalg.lstsq(A, c - A @ before[j], rcond=1e-12)[0]
    return centres


def _at_least(cov: Float[np.ndarray, "d d"], floor: float) -> Float[np.ndarray, "d d"]:
    """The maximiser of −log|Σ| − tr(Σ⁻¹ cov) among Σ ⪰ floor·I: the eigenvalues, raised where they are below."""
    values, vectors = np.linalg.eigh(cov)
    return symmetric((vectors * np.maximum(values, floor)) @ vectors.T)


def _floored(covs: Float[np.ndarray, "k d d"], floor: float) -> Float[np.ndarray, "k d d"]:
    return np.array([_at_least(cov, floor) for cov in covs])


def _finish(problem: _Problem, best: Ascent[_State], ends: tuple[float, ...]) -> MixtureFit:
    prior, centres = best.state
    order = sorted(range(prior.k), key=lambda j: (-prior.weights[j], *centres.mean[j]))
    arrays = {name: getattr(prior, name)[order] for name in ("weights", "mu_q", "Sigma_q", "Sigma_0")}
    ordered = replace(prior, **arrays)
    status, message = ("converged" if best.converged else "max_iter"), best.message
    small = ordered.weights * problem.stats.m < 1.0
    flat = np.array([np.trace(cov) <= problem.floor * prior.d * (1.0 + 1e-6) for cov in ordered.Sigma_0])
    if prior.k > 1 and np.any(small | flat):
        j = int(np.flatnonzero(small | flat)[0])
        why = "holds less than one task" if small[j] else "has shrunk to a point"
        status, message = "degenerate", f"cluster {j} {why}; use fewer clusters than {prior.k} or a larger floor"
    return MixtureFit(ordered, centres.mean[order], best.trace[-1], best.trace, status, message, ends)

"""Mixtures of hierarchies: every task belongs to one of k clusters, each with its own centre and spread.

P(z_s = j) = π_j, μ_j ~ N(μ_q,j, Σ_q,j), θ_s | z_s = j, μ_j ~ N(μ_j, Σ_0,j), rewards with noise σ. Given the centres the
posterior of a task is an exact mixture of k Gaussians. Unknown centres (Σ_q ≠ 0) tie all assignments together; then
assignments and centres are taken as independent a posteriori, the best such approximation in Kullback–Leibler distance.
It is exact for known centres and for one cluster, where it is HierOPO.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Int
from scipy.special import logsumexp

from hieropo.ascent import climb
from hieropo.briefly import briefly
from hieropo.checks import as_generator
from hieropo.linalg import as_covariance, as_noise, psd_factor, symmetric
from hieropo.messages import Message, absorb, transposed
from hieropo.posterior import GaussianPosterior
from hieropo.prior import GaussianHierarchy
from hieropo.statistics import TaskStatistics

__all__ = ["MixtureHierarchy", "MixturePosterior", "infer_mixture"]


@final
@dataclass(frozen=True, eq=False)
class MixtureHierarchy:
    """Prior of tasks in k clusters; covariances may be singular, and Σ_q = 0 says that the centres are known.

    Args:
        weights: π, positive, summing to one, shape `[k]`.
        mu_q: Means of the centres, shape `[k, d]`.
        Sigma_q: Covariances of the centres, shape `[k, d, d]`.
        Sigma_0: Covariances of the tasks around their centre, shape `[k, d, d]`.
        sigma: Standard deviation of the reward noise.

    Raises:
        ValueError: A shape that does not fit, weights that are no probabilities, a matrix that is not positive
            semi-definite, or sigma <= 0.

    Example:
        >>> prior = MixtureHierarchy.known_centres([0.7, 0.3], [[0.0], [4.0]], [[[1.0]], [[1.0]]], sigma=0.5)
        >>> prior.k, prior.d
        (2, 1)
    """

    weights: Float[np.ndarray, " k"]
    mu_q: Float[np.ndarray, "k d"]
    Sigma_q: Float[np.ndarray, "k d d"]
    Sigma_0: Float[np.ndarray, "k d d"]
    sigma: float

    __repr__ = briefly("k", "d", "sigma")

    def __post_init__(self) -> None:
        weights, mu_q = np.array(self.weights, dtype=float), np.array(self.mu_q, dtype=float)
        if weights.ndim != 1 or not (weights >= 0).all() or abs(weights.sum() - 1.0) > 1e-9:
            raise ValueError(f"weights must be probabilities that sum to one, got {weights}")
        k = weights.size
        if mu_q.ndim != 2 or len(mu_q) != k or mu_q.shape[1] == 0 or not np.isfinite(mu_q).all():
            raise ValueError(f"mu_q must be finite with shape [{k}, d], got shape {mu_q.shape}")
        total = weights.sum()
        exact = abs(total - 1.0) <= k * np.finfo(float).eps  # dividing again would only move the last digits
        fields = {"weights": weights if exact else weights / total, "mu_q": mu_q}
        d = mu_q.shape[1]
        for name in ("Sigma_q", "Sigma_0"):
            covs = np.asarray(getattr(self, name), dtype=float)
            if covs.shape != (k, d, d):
                raise ValueError(f"{name} has shape {covs.shape}; with {k} clusters it must be {(k, d, d)}")
            fields[name] = np.array([as_covariance(cov, d, f"{name}[{j}]") for j, cov in enumerate(covs)])
        for name, array in fields.items():
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        object.__setattr__(self, "sigma", as_noise(self.sigma))

    @classmethod
    def known_centres(
        cls,
        weights: npt.ArrayLike,
        centres: npt.ArrayLike,
        Sigma_0: npt.ArrayLike,
        sigma: float,
    ) -> MixtureHierarchy:
        """A mixture whose centres are known, Σ_q = 0: its posterior is exact.

        Args:
            weights: π, shape `[k]`.
            centres: Shape `[k, d]`.
            Sigma_0: Shape `[k, d, d]`.
            sigma: Standard deviation of the reward noise.

        Returns:
            The prior.
        """
        covs = np.asarray(Sigma_0, dtype=float)
        return cls(np.asarray(weights, float), np.asarray(centres, float), np.zeros_like(covs), covs, sigma)

    @classmethod
    def of(cls, weights: npt.ArrayLike, hierarchies: Sequence[GaussianHierarchy]) -> MixtureHierarchy:
        """A mixture of two-level priors with one common noise.

        Args:
            weights: π, one a hierarchy.
            hierarchies: The clusters.

        Returns:
            The prior.

        Raises:
            ValueError: No hierarchy, or different noise.
        """
        sigmas = {h.sigma for h in hierarchies}
        if len(sigmas) != 1:
            raise ValueError(f"the hierarchies have noise {sorted(sigmas)}; give at least one, and one common sigma")
        mu_q, Sigma_q, Sigma_0 = (
            np.array([getattr(h, name) for h in hierarchies]) for name in ("mu_q", "Sigma_q", "Sigma_0")
        )
        return cls(np.asarray(weights, float), mu_q, Sigma_q, Sigma_0, sigmas.pop())

    @property
    def k(self) -> int:
        """Number of clusters."""
        return self.weights.size

    @property
    def d(self) -> int:
        """Number of features."""
        return self.mu_q.shape[1]

    def sample(
        self, tasks: int, rng: np.random.Generator
    ) -> tuple[Int[np.ndarray, " tasks"], Float[np.ndarray, "k d"], Float[np.ndarray, "tasks d"]]:
        """Draw assignments, centres and task parameters.

        Args:
            tasks: Number of tasks.
            rng: Source of randomness.

        Returns:
            z `[tasks]`, μ `[k, d]` and θ `[tasks, d]`.
        """
        rng = as_generator(rng)
        z = rng.choice(self.k, size=tasks, p=self.weights)
        roots_q, roots_0 = (np.array([psd_factor(cov) for cov in covs]) for covs in (self.Sigma_q, self.Sigma_0))
        centres = self.mu_q + (roots_q @ rng.standard_normal((self.k, self.d, 1)))[..., 0]
        return z, centres, centres[z] + (roots_0[z] @ rng.standard_normal((tasks, self.d, 1)))[..., 0]


class Centres(NamedTuple):
    """The posterior N(mean_j, cov_j) of every centre.

    Args:
        mean: Shape `[k, d]`.
        cov: Shape `[k, d, d]`.
        divergence: Σ_j KL from the prior of the centres, in nats.
    """

    mean: Float[np.ndarray, "k d"]
    cov: Float[np.ndarray, "k d d"]
    divergence: float


@final
@dataclass(frozen=True, eq=False)
class MixturePosterior:
    """Posterior of assignments, centres and tasks.

    Args:
        prior: The prior.
        responsibilities: P(z_s = j | D), shape `[m, k]`.
        centres: Posterior of the centres.
        means: E[θ_s | z_s = j, D], shape `[m, k, d]`.
        task_covs: Σ̃ of θ_s given z_s = j and the centre, shape `[m, k, d, d]`.
        gains: C of θ_s = C μ_j + ..., shape `[m, k, d, d]`.
        log_evidence: log p(rewards) if `exact`, otherwise a lower bound of it.
        exact: Whether the posterior is exact: known centres or one cluster.
        converged: Whether assignments and centres have settled.
    """

    prior: MixtureHierarchy
    responsibilities: Float[np.ndarray, "m k"]
    centres: Centres
    means: Float[np.ndarray, "m k d"]
    task_covs: Float[np.ndarray, "m k d d"]
    gains: Float[np.ndarray, "m k d d"]
    log_evidence: float
    exact: bool
    converged: bool

    __repr__ = briefly("log_evidence")

    def marginal(self, index: int) -> GaussianPosterior:
        """Mean and covariance of θ_s, those of the mixture of k Gaussians it is.

        The spread between the components counts as the task's own uncertainty; hyper_cov is that of the centres.

        Args:
            index: Position of the task.

        Returns:
            The moments.
        """
        gains = self.gains[index]
        hyper = gains @ self.centres.cov @ transposed(gains)
        return _match(self.responsibilities[index], self.means[index], self.task_covs[index], hyper)

    def new_task(self) -> GaussianPosterior:
        """Mean and covariance of a task without data: a mixture of N(m_j, Σ_0,j + S_j) with weights π.

        Returns:
            The moments.
        """
        return _match(self.prior.weights, self.centres.mean, self.prior.Sigma_0, self.centres.cov)


def infer_mixture(
    stats: TaskStatistics,
    prior: MixtureHierarchy,
    *,
    start: Float[np.ndarray, "k d"] | None = None,
    tolerance: float = 1e-10,
    max_iter: int = 1000,
) -> MixturePosterior:
    """Posterior of a mixture of hierarchies, O(k m d³) and then O(k m d²) a round.

    Rounds alternate r_sj ∝ π_j exp(E[log p(Y_s | μ_j)]) and q(μ_j) = N(m_j, S_j), S_j = (I + Σ_q A)⁻¹Σ_q,
    m_j = μ_q + S_j(c − A μ_q), A = Σ_s r_sj W_sj, c = Σ_s r_sj b_sj. They end at a local optimum, which depends on
    `start` when the clusters' priors are alike.

    Args:
        stats: Statistics of m tasks with d features.
        prior: A prior with d features.
        start: Centres to begin with; `prior.mu_q` by default.
        tolerance: Relative gain of the bound below which the rounds end.
        max_iter: Largest number of rounds.

    Returns:
        The posterior.

    Raises:
        ValueError: Another number of features, or a start of another shape.

    Reference:
        The two-level model of Hong et al. (ICML 2023), one a cluster.

    Example:
        >>> prior = MixtureHierarchy.known_centres([0.5, 0.5], [[0.0], [4.0]], [[[1.0]], [[1.0]]], sigma=1.0)
        >>> stats = TaskStatistics.from_rows([[1.0], [1.0]], [0.0, 2.0], ["ann", "bob"])
        >>> infer_mixture(stats, prior).responsibilities.round(3).tolist()
        [[0.982, 0.018], [0.5, 0.5]]
    """
    if stats.d != prior.d:
        raise ValueError(f"the statistics hold {stats.d} features, the prior {prior.d}")
    first = prior.mu_q if start is None else np.asarray(start, dtype=float)
    if first.shape != prior.mu_q.shape or not np.isfinite(first).all():
        raise ValueError(f"start has shape {first.shape}; give finite centres of shape {prior.mu_q.shape}")
    clusters = messages(stats, prior)

    def step(centres: Centres) -> tuple[Centres, float]:
        shares, value = responsibilities(stats, prior, clusters, centres)
        return update_centres(clusters, shares, prior), value

    guess = Centres(first, np.zeros_like(prior.Sigma_q), 0.0)
    begin = update_centres(clusters, responsibilities(stats, prior, clusters, guess)[0], prior)
    end = climb(step, begin, tolerance=tolerance, max_iter=max_iter)
    shares, _ = responsibilities(stats, prior, clusters, end.state)
    means = np.stack([task_means(c, mean) for c, mean in zip(clusters, end.state.mean, strict=True)], axis=1)
    covs, gains = (np.stack([getattr(c, name) for c in clusters], axis=1) for name in ("own_cov", "gain"))
    exact = prior.k == 1 or not prior.Sigma_q.any()
    return MixturePosterior(prior, shares, end.state, means, covs, gains, end.trace[-1], exact, end.converged)


def messages(stats: TaskStatistics, prior: MixtureHierarchy) -> list[Message]:
    """What every task says about its centre, cluster by cluster."""
    G, B = stats.gram / prior.sigma**2, stats.moment / prior.sigma**2
    return [absorb(cov[None], G, B) for cov in prior.Sigma_0]


def task_means(message: Message, centre: Float[np.ndarray, " d"]) -> Float[np.ndarray, "m d"]:
    """E[θ_s | μ = centre, D] = Cμ + Σ̃B."""
    return message.gain @ centre + message.pull


def responsibilities(
    stats: TaskStatistics, prior: MixtureHierarchy, clusters: list[Message], centres: Centres
) -> tuple[Float[np.ndarray, "m k"], float]:
    """Shares r_sj ∝ π_j exp(E[log p(Y_s | μ_j)]), and the bound on the evidence that they give.

    −2 E[log p(Y_s | μ_j)] = n_s log 2πσ² + log|I + Σ_0G_s| + Σ(y − φᵀθ̂)²/σ² + (θ̂ − m_j)ᵀ(b_s − W_sm_j) + tr(W_sS_j).
    """
    scores = np.empty((stats.m, prior.k))
    for j, (message, mean, cov) in enumerate(zip(clusters, centres.mean, centres.cov, strict=True)):
        theta = task_means(message, mean)
        fitted = (stats.gram @ theta[..., None])[..., 0]
        residual = np.maximum(stats.square + np.sum(theta * (fitted - 2.0 * stats.moment), axis=1), 0.0)
        deviation = np.sum((theta - mean) * (message.b - message.W @ mean), axis=1)
        scores[:, j] = message.log_det + residual / prior.sigma**2 + deviation + np.einsum("sij,ij->s", message.W, cov)
    with np.errstate(divide="ignore"):
        scores = np.log(prior.weights) - 0.5 * (scores + stats.count[:, None] * math.log(2 * math.pi * prior.sigma**2))
    total = logsumexp(scores, axis=1)
    return np.exp(scores - total[:, None]), float(total.sum()) - centres.divergence


def update_centres(clusters: list[Message], shares: Float[np.ndarray, "m k"], prior: MixtureHierarchy) -> Centres:
    """The best q(μ_j) given the shares, with its divergence from the prior."""
    A = np.stack([np.einsum("s,sij->ij", r, c.W) for r, c in zip(shares.T, clusters, strict=True)])
    c = np.stack([r @ message.b for r, message in zip(shares.T, clusters, strict=True)])
    vector = c - (A @ prior.mu_q[..., None])[..., 0]
    root = absorb(prior.Sigma_q, A, vector)
    traces = np.trace(root.gain, axis1=1, axis2=2) - prior.d
    divergence = 0.5 * float(np.sum(traces + root.log_det + np.sum(root.b * root.pull, axis=1)))
    return Centres(prior.mu_q + root.pull, root.own_cov, divergence)


def _match(
    weights: Float[np.ndarray, " k"],
    means: Float[np.ndarray, "k d"],
    task_covs: Float[np.ndarray, "k d d"],
    hyper_covs: Float[np.ndarray, "k d d"],
) -> GaussianPosterior:
    """The Gaussian with the mean and covariance of a mixture."""
    mean = weights @ means
    apart = means - mean
    task = symmetric(np.einsum("j,jab->ab", weights, task_covs) + (weights[:, None] * apart).T @ apart)
    hyper = symmetric(np.einsum("j,jab->ab", weights, hyper_covs))
    return GaussianPosterior(mean, task + hyper, task, hyper)

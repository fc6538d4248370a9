"""Unknown noise: the normal-inverse-gamma hierarchy, exact posterior, Student-t bounds and exact evidence.

σ² ~ IG(shape, scale), μ | σ² ~ N(μ_q, σ²Σ_q), θ_s | μ, σ² ~ N(μ, σ²Σ_0), rewards with noise σ. The covariances are
in units of the noise variance, so given σ² the posterior is that of noise one, scaled; σ² is updated by one number Q.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float
from scipy.special import betainccinv, betaincinv, gammaln, stdtrit

from hieropo.briefly import briefly
from hieropo.evidence import evidence_of, refuse_lost_residual
from hieropo.posterior import GaussianPosterior, HierarchicalPosterior, infer
from hieropo.prior import GaussianHierarchy
from hieropo.statistics import TaskStatistics

__all__ = ["NoisePosterior", "NoisePrior", "infer_with_noise", "student_alpha"]


@final
@dataclass(frozen=True, eq=False)
class NoisePrior:
    """Normal-inverse-gamma hierarchy.

    Args:
        hierarchy: μ_q and the covariances in units of σ²; its `sigma` must be 1.
        shape: a of σ² ~ IG(a, b), positive; the weight of 2a earlier rewards.
        scale: b, positive, in squared units of the reward; the prior guess of σ² is b/a.

    Raises:
        ValueError: shape or scale not positive and finite, or a hierarchy with another sigma than 1.

    Example:
        >>> prior = NoisePrior.isotropic(2, sigma_q=1.0, sigma_0=0.5, shape=2.0, scale=0.5)
        >>> prior.scale / prior.shape
        0.25
    """

    hierarchy: GaussianHierarchy
    shape: float
    scale: float

    __repr__ = briefly("d", "shape", "scale")

    def __post_init__(self) -> None:
        for name, value in (("shape", self.shape), ("scale", self.scale)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be positive and finite, got {value}")
        if self.hierarchy.sigma != 1.0:
            raise ValueError(
                f"the hierarchy has sigma={self.hierarchy.sigma}; give covariances in units of the noise variance "
                "and sigma=1"
            )

    @classmethod
    def isotropic(
        cls, d: int, *, sigma_q: float, sigma_0: float, shape: float, scale: float, mu_q: float = 0.0
    ) -> NoisePrior:
        """A prior with covariances `σ² sigma_q² I` and `σ² sigma_0² I`.

        Args:
            d: Number of features.
            sigma_q: Standard deviation of the task mean, in units of the noise.
            sigma_0: Standard deviation of a task around it, in units of the noise.
            shape: a of σ² ~ IG(a, b).
            scale: b.
            mu_q: Mean of the task mean.

        Returns:
            The prior.
        """
        return cls(GaussianHierarchy.isotropic(d, sigma_q, sigma_0, 1.0, np.full(d, float(mu_q))), shape, scale)

    @property
    def d(self) -> int:
        """Number of features."""
        return self.hierarchy.d


@final
@dataclass(frozen=True, eq=False)
class NoisePosterior:
    """σ² | D ~ IG(shape, scale) and, given σ², the posterior `unit` with its covariances times σ².

    Args:
        unit: The joint posterior of μ and all tasks at noise one.
        shape: a + n/2.
        scale: b + Q/2.
        log_evidence: Exact log p(rewards).
    """

    unit: HierarchicalPosterior
    shape: float
    scale: float
    log_evidence: float

    __repr__ = briefly("noise_scale", "log_evidence")

    @property
    def degrees_of_freedom(self) -> float:
        """ν = 2 shape: every linear function of μ and the tasks is Student-t with ν degrees of freedom."""
        return 2.0 * self.shape

    @property
    def noise_scale(self) -> float:
        """√(scale/shape), the noise level in the Student-t scales: scale matrix of θ_s = noise_scale² Σ̂_s."""
        return math.sqrt(self.scale / self.shape)

    @property
    def noise_variance(self) -> float:
        """E[σ² | D] = scale/(shape − 1); infinite when shape <= 1."""
        return self.scale / (self.shape - 1.0) if self.shape > 1.0 else math.inf

    def marginal(self, index: int) -> GaussianPosterior:
        """Centre and scale matrices of the Student-t of a task.

        Args:
            index: Position of the task.

        Returns:
            θ̂_s, and noise_scale² times the covariances at noise one.
        """
        return self._scaled(self.unit.marginal(index))

    def new_task(self) -> GaussianPosterior:
        """Centre and scale matrices of the Student-t of a task without data."""
        return self._scaled(self.unit.new_task())

    def _scaled(self, unit: GaussianPosterior) -> GaussianPosterior:
        factor = self.scale / self.shape
        return GaussianPosterior(unit.mean, factor * unit.cov, factor * unit.task_cov, factor * unit.hyper_cov)

    def sample(
        self, rng: np.random.Generator, size: int
    ) -> tuple[Float[np.ndarray, " size"], Float[np.ndarray, "size d"], Float[np.ndarray, "size m d"]]:
        """Joint draws of σ, μ and all θ_s.

        Args:
            rng: Source of randomness.
            size: Number of draws.

        Returns:
            σ `[size]`, μ `[size, d]` and θ `[size, m, d]`.
        """
        sigma = np.sqrt(self.scale / rng.gamma(self.shape, size=size))
        mu, theta = self.unit.sample(rng, size)
        mean = self.unit.hyper.mean
        return (
            sigma,
            mean + sigma[:, None] * (mu - mean),
            self.unit.means + sigma[:, None, None] * (theta - self.unit.means),
        )


def infer_with_noise(stats: TaskStatistics, prior: NoisePrior) -> NoisePosterior:
    """Exact posterior of σ², μ and every task.

    Q = min over (μ, θ) of Σ(y − φᵀθ_s)² + Σ(θ_s − μ)ᵀΣ_0⁻¹(θ_s − μ) + (μ − μ_q)ᵀΣ_q⁻¹(μ − μ_q), and
    log p(Y) = −½[n log 2π + Σ log|I + Σ_0G_s| + log|I + Σ_qW|] + a log b − a' log b' + log Γ(a') − log Γ(a)
    with a' = a + n/2 and b' = b + Q/2. Sums of rows enter only, so streams, merges and forgetting stay exact.

    Args:
        stats: Statistics of m tasks with d features.
        prior: A prior with d features.

    Returns:
        The posterior.

    Raises:
        ValueError: Another number of features.
        numpy.linalg.LinAlgError: If rounding of the rewards' squares hides their noise.

    Reference:
        The linear-Gaussian model of Hong et al. (ICML 2023) with the conjugate prior of its noise variance added.

    Example:
        >>> stats = TaskStatistics.from_rows([[1.0], [1.0]], [2.0, 4.0], [0, 1])
        >>> prior = NoisePrior.isotropic(1, sigma_q=1.0, sigma_0=1.0, shape=1.0, scale=1.0)
        >>> post = infer_with_noise(stats, prior)
        >>> post.shape, round(post.scale, 6), post.unit.means.ravel().round(6).tolist()
        (2.0, 3.75, [1.75, 2.75])
    """
    unit = infer(stats, prior.hierarchy)
    shape, scale = prior.shape + 0.5 * stats.n, prior.scale + 0.5 * _energy(stats, unit)
    if stats.n:
        refuse_lost_residual(stats, scale / shape, 2.0 * shape)
    # With no rewards to explain, −2 log p at noise one is the constant and the determinants alone.
    nothing = TaskStatistics(stats.tasks, stats.count, stats.gram, 0.0 * stats.moment, 0.0 * stats.square)
    h = prior.hierarchy
    centred = GaussianHierarchy(np.zeros(h.d), h.Sigma_q, h.Sigma_0, 1.0)
    log_evidence = evidence_of(nothing, infer(nothing, centred))
    log_evidence += prior.shape * math.log(prior.scale) - shape * math.log(scale)
    log_evidence += float(gammaln(shape) - gammaln(prior.shape))
    return NoisePosterior(unit, shape, scale, log_evidence)


def student_alpha(delta: float, *, kind: str, d: int, degrees_of_freedom: float) -> float:
    """Width of a bound in units of noise_scale · √(φᵀΣ̂φ).

    Args:
        delta: Probability of a violation, in (0, 1).
        kind: "pointwise", t_{ν, 1−δ}, for one action chosen beforehand; "simultaneous", √(d F_{d, ν; 1−δ}), for all.
        d: Number of features.
        degrees_of_freedom: ν.

    Returns:
        The width; for ν → ∞ the Gaussian one.

    Raises:
        ValueError: delta outside (0, 1), or an unknown kind.

    Example:
        >>> round(student_alpha(0.05, kind="pointwise", d=3, degrees_of_freedom=5.0), 3)
        2.015
    """
    if not 0.0 < delta < 1.0:
        raise ValueError(f"delta is {delta}; it must be a probability between 0 and 1")
    if kind == "pointwise" and delta > 0.5:
        raise ValueError(
            f"delta is {delta}; a pointwise lower bound needs delta <= 0.5, otherwise it is no lower bound"
        )
    match kind:
        case "pointwise":
            return max(0.0, -float(stdtrit(degrees_of_freedom, delta)))
        case "simultaneous":
            # d·F_{d,ν} = ν (1 − B) / B, B ~ Beta(ν/2, d/2); B and 1 − B apart keep their digits for tiny δ and
            # for large ν (fdtri loses them before SciPy 1.17)
            share = float(betaincinv(degrees_of_freedom / 2, d / 2, delta))
            rest = float(betainccinv(d / 2, degrees_of_freedom / 2, delta))
            return math.sqrt(degrees_of_freedom * rest / share)
        case _:
            raise ValueError(f"kind is {kind!r}; with unknown noise give 'pointwise' or 'simultaneous'")


def _energy(stats: TaskStatistics, unit: HierarchicalPosterior) -> float:
    """Q, as a sum of non-negative parts, which keeps its digits when the data are many."""
    means, tasks = unit.means, unit.tasks
    fitted = (stats.gram @ means[:, :, None])[:, :, 0]
    residual = float(stats.square.sum() + np.sum(means * (fitted - 2.0 * stats.moment)))
    scores = tasks.weigh(tasks.moment - (tasks.gram @ unit.hyper.mean[:, None])[:, :, 0])  # Σ_0⁻¹(θ̂_s − μ̄)
    deviation = float(np.sum((means - unit.hyper.mean) * scores))
    return max(0.0, residual) + deviation + float((unit.hyper.mean - unit.prior.mu_q) @ scores.sum(axis=0))

"""The exact posterior of the two-level Gaussian model, from sufficient statistics, without inverting any of them.

With G_s = Σφφᵀ/σ² and B_s = Σφy/σ² of task s:

    Σ̃_s = (I + Σ_0 G_s)⁻¹ Σ_0,   C_s = (I + Σ_0 G_s)⁻¹           the task given μ: N(C_s μ + Σ̃_s B_s, Σ̃_s)
    W_s = C_sᵀ G_s,  b_s = C_sᵀ B_s,  W = Σ W_s,  b = Σ b_s         what task s says about μ
    Σ̄ = (I + Σ_q W)⁻¹ Σ_q,  μ̄ = μ_q + Σ̄ (b − W μ_q)              the hyper-posterior of μ
    θ̂_s = μ̄ + Σ̃_s (B_s − G_s μ̄),  Σ̂_s = Σ̃_s + C_s Σ̄ C_sᵀ         the task

G_s is singular whenever a task has fewer rows than features, and Σ_0, Σ_q may be; nothing above needs their inverses.
Cost: O(m d³) time and O(m d²) memory, whatever the number of rows.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
from jaxtyping import Float, Int

from hieropo.linalg import inverse_if_regular, psd_factor, symmetric
from hieropo.prior import GaussianHierarchy
from hieropo.statistics import TaskStatistics

_SINGULAR = 1e-12  # smallest eigenvalue of W, scaled to a unit diagonal, that is told from rounding
_BLOCK_ENTRIES = 1 << 18  # entries of a block of task matrices (2 MiB): temporaries stay in cache


@final
@dataclass(frozen=True, eq=False)
class GaussianPosterior:
    """A Gaussian with its covariance split in two parts.

    Args:
        mean: Shape [d].
        cov: task_cov + hyper_cov, shape [d, d].
        task_cov: What would remain if μ were known, shape [d, d].
        hyper_cov: What comes from not knowing μ, shape [d, d].
    """

    mean: Float[np.ndarray, " d"]
    cov: Float[np.ndarray, "d d"]
    task_cov: Float[np.ndarray, "d d"]
    hyper_cov: Float[np.ndarray, "d d"]


@final
@dataclass(frozen=True, eq=False)
class TaskConditionals:
    """All tasks given μ: θ_s | μ, D ~ N(C_s μ + Σ̃_s B_s, Σ̃_s).

    Args:
        sums: Σφφᵀ, as in the statistics, shape [m, d, d].
        scale: 1/σ².
        moment: B_s = Σφy/σ², shape [m, d].
        cov: Σ̃_s, shape [m, d, d].
        precision: Σ_0⁻¹ where it exists and is well conditioned, otherwise None.
    """

    sums: Float[np.ndarray, "m d d"]
    scale: float
    moment: Float[np.ndarray, "m d"]
    cov: Float[np.ndarray, "m d d"]
    precision: Float[np.ndarray, "d d"] | None

    @cached_property
    def gram(self) -> Float[np.ndarray, "m d d"]:
        """G_s = Σφφᵀ/σ², shape [m, d, d], made when first asked for."""
        return self.sums if self.scale == 1.0 else self.sums * self.scale

    def residual(self, mu: Float[np.ndarray, " d"]) -> Float[np.ndarray, "m d"]:
        """B_s − G_s μ, the rewards that one shared μ leaves unexplained.

        Args:
            mu: Shape [d].

        Returns:
            Shape [m, d].
        """
        return self.moment - self.sums @ (self.scale * mu)

    def shrink(self, columns: Float[np.ndarray, "d k"]) -> Float[np.ndarray, "m d k"]:
        """C_s X for every task and one shared X.

        Args:
            columns: X, shape [d, k].

        Returns:
            C_s X, shape [m, d, k].
        """
        if self.precision is not None:  # C = Σ̃ Σ_0⁻¹
            return self.cov @ (self.precision @ columns)
        return columns - self.cov @ (self.gram @ columns)  # C = I − Σ̃ G

    def weigh(self, vectors: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m d"]:
        """C_sᵀ v_s, the part of v_s (in units of B_s) that speaks about μ.

        Args:
            vectors: v_s, shape [m, d].

        Returns:
            C_sᵀ v_s, shape [m, d].
        """
        inner = _matvec(self.cov, vectors)
        return inner @ self.precision if self.precision is not None else vectors - _matvec(self.gram, inner)

    def information(self) -> Float[np.ndarray, "d d"]:
        """W = Σ_s C_sᵀ G_s, the precision with which the data determine μ.

        Returns:
            W, symmetric, shape [d, d].
        """
        d = self.cov.shape[1]
        if self.precision is None:  # Σ (G − G Σ̃ G), the sum over tasks inside one product as G is symmetric
            total = self.gram.sum(axis=0)
            for block in blocks(len(self.gram), d):
                gram = self.gram[block]
                total -= gram.reshape(-1, d).T @ (self.cov[block] @ gram).reshape(-1, d)
            return symmetric(total)
        m, largest = len(self.cov), self.scale * np.trace(self.sums, axis1=1, axis2=2).max(initial=0.0)
        if np.trace(self.precision) < largest:  # Σ (Σ_0⁻¹ − Σ_0⁻¹ Σ̃ Σ_0⁻¹): rounding is relative to Σ_0⁻¹
            return symmetric(m * self.precision - self.precision @ self.cov.sum(axis=0) @ self.precision)
        # Σ_0⁻¹ Σ Σ̃ G as one product: rounding is relative to G
        return symmetric(self.scale * self.precision @ (self.cov.reshape(-1, d).T @ self.sums.reshape(-1, d)))


@final
@dataclass(frozen=True, eq=False)
class HyperPosterior:
    """The posterior of the task mean μ.

    Args:
        mean: μ̄, shape [d].
        cov: Σ̄, shape [d, d].
        factor: F with F Fᵀ = Σ̄, shape [d, d].
        log_det: log|I + Σ_q W|, or log|W| − d log 2π under a flat prior: its share of the evidence, times −2.
    """

    mean: Float[np.ndarray, " d"]
    cov: Float[np.ndarray, "d d"]
    factor: Float[np.ndarray, "d d"]
    log_det: float


def condition(stats: TaskStatistics, prior: GaussianHierarchy) -> TaskConditionals:
    """Every task given μ.

    A well-conditioned Σ_0 gives Σ̃ = (Σ_0⁻¹ + G)⁻¹; otherwise, with Σ_0 = LLᵀ, Σ̃ = L (I + LᵀGL)⁻¹ Lᵀ.

    Args:
        stats: Statistics of m tasks with d features.
        prior: A prior with d features.

    Returns:
        The conditionals.
    """
    scale = 1.0 / prior.sigma**2
    cov = np.empty_like(stats.gram)
    precision, factor = inverse_if_regular(prior.Sigma_0), psd_factor(prior.Sigma_0)
    eye = np.eye(prior.d)
    for block in blocks(stats.m, prior.d):
        gram = stats.gram[block] * scale
        if precision is not None:
            gram += precision
            cov[block] = np.linalg.inv(gram)
        else:
            cov[block] = factor @ np.linalg.inv(eye + factor.T @ gram @ factor) @ factor.T
    return TaskConditionals(stats.gram, scale, stats.moment * scale, cov, precision)


def hyper_posterior(
    information: Float[np.ndarray, "d d"],
    vector: Float[np.ndarray, " d"],
    prior: GaussianHierarchy,
    flat: bool = False,
) -> HyperPosterior:
    """The posterior of μ: Σ̄ = F Fᵀ with F = K chol(I + KᵀWK)⁻ᵀ, KKᵀ = Σ_q, and μ̄ = μ_q + Σ̄ (b − W μ_q).

    Args:
        information: W, shape [d, d].
        vector: b − W μ_q, shape [d].
        prior: The prior.
        flat: Take the limit of a flat prior of μ, Σ̄ = W⁻¹; μ_q then is only an origin.

    Returns:
        The posterior.

    Raises:
        numpy.linalg.LinAlgError: If `flat` and the data do not determine μ (W is singular).
    """
    d = prior.d
    if flat:
        _refuse_singular(information)
        root, inner, constant = np.eye(d), information, -d * math.log(2 * math.pi)
    else:
        root, constant = psd_factor(prior.Sigma_q), 0.0
        inner = np.eye(d) + root.T @ information @ root
    chol = np.linalg.cholesky(inner)
    factor = np.linalg.solve(chol, root.T).T
    cov = factor @ factor.T
    log_det = 2.0 * float(np.log(np.diagonal(chol)).sum()) + constant
    return HyperPosterior(prior.mu_q + cov @ vector, cov, factor, log_det)


@final
@dataclass(frozen=True, eq=False)
class HierarchicalPosterior:
    """The joint posterior of μ and all θ_s in O(m d²) memory; what is d x d per task beyond Σ̃_s is made when asked.

    Args:
        prior: The prior.
        tasks: The tasks given μ.
        hyper: The posterior of μ.
        means: θ̂_s, shape [m, d].
        flat: Whether μ had a flat prior instead of N(μ_q, Σ_q).
    """

    prior: GaussianHierarchy
    tasks: TaskConditionals
    hyper: HyperPosterior
    means: Float[np.ndarray, "m d"]
    flat: bool = False

    def marginal(self, index: int) -> GaussianPosterior:
        """θ_s | D ~ N(θ̂_s, Σ̃_s + C_s Σ̄ C_sᵀ).

        Args:
            index: Position of the task.

        Returns:
            The posterior of the task.
        """
        spread = self.spread(slice(index, index + 1))[0]
        task_cov, hyper_cov = symmetric(self.tasks.cov[index]), spread @ spread.T
        return GaussianPosterior(self.means[index].copy(), task_cov + hyper_cov, task_cov, hyper_cov)

    def new_task(self) -> GaussianPosterior:
        """θ_new | D ~ N(μ̄, Σ_0 + Σ̄), a task without data.

        Returns:
            The posterior of a task that has not been seen.
        """
        cov = self.hyper.cov
        return GaussianPosterior(
            self.hyper.mean.copy(), self.prior.Sigma_0 + cov, self.prior.Sigma_0.copy(), cov.copy()
        )

    def spread(self, which: slice | Int[np.ndarray, " k"]) -> Float[np.ndarray, "k d d"]:
        """R_s = C_s F with F Fᵀ = Σ̄, so that R_s R_zᵀ is the covariance of θ_s and θ_z through μ.

        Args:
            which: Positions of tasks.

        Returns:
            R_s, shape [k, d, d].
        """
        tasks = self.tasks
        part = TaskConditionals(tasks.sums[which], tasks.scale, tasks.moment[which], tasks.cov[which], tasks.precision)
        return part.shrink(self.hyper.factor)

    def cross_cov(self, first: int, second: int) -> Float[np.ndarray, "d d"]:
        """cov(θ_s, θ_z | D) = C_s Σ̄ C_zᵀ, plus Σ̃_s when s = z.

        Args:
            first: Position of s.
            second: Position of z.

        Returns:
            The covariance, shape [d, d].
        """
        a, b = self.spread(np.array([first, second]))
        return a @ b.T + (symmetric(self.tasks.cov[first]) if first == second else 0.0)

    def covariances(self) -> Float[np.ndarray, "m d d"]:
        """Σ̂_s of all tasks.

        Returns:
            Symmetric matrices, shape [m, d, d].
        """
        out = np.empty_like(self.tasks.cov)
        for block in blocks(*out.shape[:2]):
            spread = self.spread(block)
            np.matmul(spread, np.swapaxes(spread, 1, 2), out=out[block])
            out[block] += symmetric(self.tasks.cov[block])
        return out

    def sample(
        self, rng: np.random.Generator, size: int, which: Int[np.ndarray, " k"] | None = None
    ) -> tuple[Float[np.ndarray, "{size} d"], Float[np.ndarray, "{size} k d"]]:
        """Joint draws: μ ~ N(μ̄, Σ̄), then θ_s | μ ~ N(C_s μ + Σ̃_s B_s, Σ̃_s).

        Args:
            rng: Source of randomness.
            size: Number of draws.
            which: Positions of tasks; -1 stands for a task without data. All tasks if not given.

        Returns:
            μ [size, d] and θ [size, k, d].
        """
        m, d = self.means.shape
        which = np.arange(m) if which is None else which
        noise = rng.standard_normal((size, d))
        theta = np.empty((size, len(which), d))
        factor_0 = psd_factor(self.prior.Sigma_0)
        for k, index in enumerate(which):
            spread = self.hyper.factor if index < 0 else self.spread(slice(index, index + 1))[0]
            mean = self.hyper.mean if index < 0 else self.means[index]
            root = factor_0 if index < 0 else psd_factor(symmetric(self.tasks.cov[index]))
            theta[:, k] = mean + noise @ spread.T + rng.standard_normal((size, d)) @ root.T
        return self.hyper.mean + noise @ self.hyper.factor.T, theta


def infer(stats: TaskStatistics, prior: GaussianHierarchy, flat: bool = False) -> HierarchicalPosterior:
    """The exact posterior of μ and of every task.

    Args:
        stats: Statistics of m tasks with d features.
        prior: A prior with d features.
        flat: Take the limit of a flat prior of μ (restricted likelihood); `prior.Sigma_q` is then ignored.

    Returns:
        The posterior.

    Raises:
        numpy.linalg.LinAlgError: If `flat` and the data do not determine μ.

    Reference:
        Hong et al., ICML 2023, Section 4, in the inverse-free form of the module's docstring.

    Example:
        >>> stats = TaskStatistics.from_rows([[1.0], [1.0]], [2.0, 4.0], [0, 1])
        >>> post = infer(stats, GaussianHierarchy.isotropic(1, sigma_q=1.0, sigma_0=1.0, sigma=1.0))
        >>> post.hyper.mean.round(6).tolist(), post.means.ravel().round(6).tolist()
        ([1.5], [1.75, 2.75])
    """
    if stats.d != prior.d:
        raise ValueError(f"the statistics hold {stats.d} features, the prior {prior.d}")
    tasks = condition(stats, prior)
    residual = tasks.weigh(tasks.residual(prior.mu_q)).sum(axis=0)
    hyper = hyper_posterior(tasks.information(), residual, prior, flat)
    means = hyper.mean + _matvec(tasks.cov, tasks.residual(hyper.mean))
    return HierarchicalPosterior(prior, tasks, hyper, means, flat)


def blocks(m: int, d: int) -> list[slice]:
    """Slices of the tasks whose d x d matrices fit in cache together.

    Args:
        m: Number of tasks.
        d: Number of features.

    Returns:
        Slices covering 0..m-1 in order.
    """
    step = max(1, _BLOCK_ENTRIES // (d * d))
    return [slice(lo, min(lo + step, m)) for lo in range(0, m, step)]


def _refuse_singular(information: np.ndarray) -> None:
    """A flat prior needs data in every direction; rounding alone would let a singular W pass the factorisation."""
    scale = np.sqrt(np.maximum(np.diagonal(information), 0.0))
    if not scale.all() or np.linalg.eigvalsh(information / np.outer(scale, scale))[0] < _SINGULAR:
        raise np.linalg.LinAlgError("the data do not determine μ under a flat prior")


def _matvec(matrices: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    return (matrices @ vectors[..., None])[..., 0]

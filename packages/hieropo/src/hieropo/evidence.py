"""The exact log marginal likelihood of the two-level model and its gradient, inverse-free.

With u_s = C_sᵀ(B_s − G_s μ̄) = B_s − G_s θ̂_s, the normal equations turn the quadratic form of the rewards into
residuals, which keeps the digits that differences of large sums of squares would lose:

    −2 log p(Y) = n log 2πσ² + Σ log|I + Σ_0 G_s| + log|I + Σ_q W|
                  + Σ (y − φᵀθ̂_s)²/σ² + Σ (θ̂_s − μ̄)ᵀu_s + (μ̄ − μ_q)ᵀ Σ u_s
"""

import math
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float

from hieropo.linalg import blocks, psd_factor, sum_products, symmetric
from hieropo.posterior import HierarchicalPosterior, infer
from hieropo.prior import GaussianHierarchy
from hieropo.statistics import TaskStatistics

_LOST = 1e-3  # share of a quadratic form that rounding may decide


@final
@dataclass(frozen=True, eq=False)
class EvidenceGradient:
    """Derivatives of log p(Y): d log p = ⟨mu_q, dμ_q⟩ + ⟨Sigma_q, dΣ_q⟩ + ⟨Sigma_0, dΣ_0⟩ + log_sigma · d log σ.

    Args:
        mu_q: Shape [d].
        Sigma_q: Symmetric, shape [d, d].
        Sigma_0: Symmetric, shape [d, d].
        log_sigma: With respect to log σ.
    """

    mu_q: Float[np.ndarray, " d"]
    Sigma_q: Float[np.ndarray, "d d"]
    Sigma_0: Float[np.ndarray, "d d"]
    log_sigma: float


@final
@dataclass(frozen=True, eq=False)
class ExpectedMoments:
    """What an EM step needs of the posterior.

    Args:
        tasks: Σ_s E[(θ_s − μ)(θ_s − μ)ᵀ | D], shape [d, d].
        hyper: E[(μ − μ_q)(μ − μ_q)ᵀ | D], shape [d, d].
        residual: E[Σ_t (y_t − φ_tᵀθ_{s(t)})² | D], in squared units of the reward.
    """

    tasks: Float[np.ndarray, "d d"]
    hyper: Float[np.ndarray, "d d"]
    residual: float


def log_marginal_likelihood(stats: TaskStatistics, prior: GaussianHierarchy, flat: bool = False) -> float:
    """Log p(Y) of all rewards, with μ and all θ_s integrated out.

    Args:
        stats: Statistics of m tasks with d features.
        prior: A prior with d features.
        flat: Integrate μ against Lebesgue measure instead of its prior: the restricted (REML) likelihood.

    Returns:
        The log density of the rewards, natural logarithm.

    Raises:
        numpy.linalg.LinAlgError: If `flat` and the data do not determine μ, or rounding hides the value.

    Example:
        >>> stats = TaskStatistics.from_rows([[1.0]], [1.0], [0])
        >>> prior = GaussianHierarchy.isotropic(1, sigma_q=1.0, sigma_0=1.0, sigma=1.0)
        >>> f"{log_marginal_likelihood(stats, prior):.6f}"  # the density of N(0, 3) at 1
        '-1.634911'
    """
    return evidence_of(stats, infer(stats, prior, flat))


def evidence_of(stats: TaskStatistics, posterior: HierarchicalPosterior) -> float:
    """Log p(Y), given the posterior that these statistics led to.

    Args:
        stats: The statistics.
        posterior: From `infer`; whether it was flat is remembered there.

    Returns:
        The log density of the rewards.

    Raises:
        numpy.linalg.LinAlgError: If rounding of Σy²/σ² hides the density (see `refuse_lost_residual`).
    """
    prior, hyper = posterior.prior, posterior.hyper
    scores = _task_scores(posterior)
    quadratic = _residual(stats, posterior.means) / prior.sigma**2
    quadratic += float(np.sum((posterior.means - hyper.mean) * scores))
    quadratic += float((hyper.mean - prior.mu_q) @ scores.sum(axis=0)) if not posterior.flat else 0.0
    refuse_lost_residual(stats, prior.sigma**2, quadratic)
    log_det = _log_det_tasks(posterior) + hyper.log_det
    return -0.5 * (stats.n * math.log(2 * math.pi * prior.sigma**2) + log_det + quadratic)


def evidence_gradient(
    stats: TaskStatistics, prior: GaussianHierarchy, flat: bool = False
) -> tuple[float, EvidenceGradient]:
    """Log p(Y) and its exact gradient, by Fisher's identity, for singular covariances too.

    ∂/∂Σ_0 = ½ Σ_s (u_s u_sᵀ − W_s + W_s Σ̄ W_s),  ∂/∂Σ_q = ½ (u uᵀ − W + W Σ̄ W),  ∂/∂μ_q = u = Σ u_s,
    ∂/∂log σ = −n + E[Σ (y − φᵀθ)² | D] / σ².

    Args:
        stats: Statistics of m tasks with d features.
        prior: A prior with d features.
        flat: Differentiate the restricted likelihood; the gradients of μ_q and Σ_q are then zero.

    Returns:
        log p(Y) and the gradient.

    Raises:
        numpy.linalg.LinAlgError: If `flat` and the data do not determine μ, or rounding hides the value.
    """
    posterior = infer(stats, prior, flat)
    d, hyper, tasks = prior.d, posterior.hyper, posterior.tasks
    scores = _task_scores(posterior)
    grad_0 = scores.T @ scores - tasks.information()
    for block in blocks(stats.m, d):
        weighted = tasks.sums[block] @ (tasks.scale * posterior.spread(block))  # W_s F = G_s C_s F
        grad_0 += sum_products(weighted, weighted)
    score, grad_q = np.zeros(d), np.zeros((d, d))
    if not flat:
        information = tasks.information()
        score = scores.sum(axis=0)
        weighted = information @ hyper.factor
        grad_q = 0.5 * (np.outer(score, score) - information + weighted @ weighted.T)
    log_sigma = -stats.n + expected_moments(stats, posterior).residual / prior.sigma**2
    return evidence_of(stats, posterior), EvidenceGradient(score, grad_q, 0.5 * symmetric(grad_0), log_sigma)


def expected_moments(stats: TaskStatistics, posterior: HierarchicalPosterior) -> ExpectedMoments:
    """Second moments of θ_s − μ, μ − μ_q and the noise under the posterior.

    Args:
        stats: The statistics.
        posterior: From `infer` with the same statistics.

    Returns:
        The moments.
    """
    hyper, tasks = posterior.hyper, posterior.tasks
    shift = posterior.means - hyper.mean
    outer = shift.T @ shift + tasks.cov.sum(axis=0)
    residual = _residual(stats, posterior.means) + float(np.vdot(stats.gram, tasks.cov))
    for block in blocks(*stats.gram.shape[:2]):
        spread = posterior.spread(block)
        apart = spread - hyper.factor
        outer += sum_products(apart, apart)
        residual += float(np.vdot(stats.gram[block] @ spread, spread))
    delta = hyper.mean - posterior.prior.mu_q
    return ExpectedMoments(symmetric(outer), np.outer(delta, delta) + hyper.cov, residual)


def refuse_lost_residual(stats: TaskStatistics, variance: float, quadratic: float) -> None:
    """Raise if Σ(y − φᵀθ̂)²/σ², a difference of sums of the size of Σy²/σ², is lost in their rounding.

    Args:
        stats: The statistics.
        variance: σ², in squared units of the reward.
        quadratic: What −2 log p(Y) holds of the rewards, in units of σ².

    Raises:
        numpy.linalg.LinAlgError: If rounding exceeds a thousandth of both the number of rows and `quadratic`.
    """
    size = float(stats.square.sum())
    if np.finfo(float).eps * size / variance > _LOST * max(stats.n, abs(quadratic)):
        raise np.linalg.LinAlgError(
            f"rewards of size {math.sqrt(size / stats.n):.3g} hide noise of size {math.sqrt(variance):.3g} in the "
            "rounding of their squares; subtract a common value from the rewards, or raise sigma"
        )


def _task_scores(posterior: HierarchicalPosterior) -> Float[np.ndarray, "m d"]:
    """u_s = Σ_0⁻¹(θ̂_s − μ̄) in the form C_sᵀ(B_s − G_s μ̄), which needs no inverse."""
    tasks = posterior.tasks
    return tasks.weigh(tasks.residual(posterior.hyper.mean))


def _residual(stats: TaskStatistics, means: Float[np.ndarray, "m d"]) -> float:
    """Σ (y − φᵀθ̂)² from the sums; rounding may leave a tiny negative number where the fit is exact."""
    fitted = (stats.gram @ means[:, :, None])[:, :, 0]
    return max(0.0, float(stats.square.sum() + np.sum(means * (fitted - 2.0 * stats.moment))))


def _log_det_tasks(posterior: HierarchicalPosterior) -> float:
    """Σ_s log|I + Σ_0 G_s| = Σ_s log|I + LᵀG_sL| with Σ_0 = LLᵀ."""
    tasks, factor, total = posterior.tasks, psd_factor(posterior.prior.Sigma_0), 0.0
    eye = np.eye(posterior.prior.d)
    for block in blocks(*tasks.cov.shape[:2]):
        chol = np.linalg.cholesky(eye + (tasks.scale * factor).T @ tasks.sums[block] @ factor)
        total += 2.0 * float(np.log(np.diagonal(chol, axis1=1, axis2=2)).sum())
    return total

"""Laplace's approximation of the logistic hierarchy: joint mode, covariances and evidence in O(m d³) a step.

The mode is sought in dual variables u_s with θ_s = μ + Σ_0u_s and μ = μ_q + Σ_qΣ_su_s, in which singular covariances
are harmless and the mode is where u_s equals the score Σφ(y − p) of task s. A Newton step is one solve with the
arrow-shaped precision: the posterior of the Gaussian model with G_s = Σ p(1 − p)φφᵀ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float
from scipy.special import expit

from hieropo.briefly import briefly
from hieropo.logistic import LogisticHierarchy, LogisticRows
from hieropo.posterior import HierarchicalPosterior, infer
from hieropo.prior import GaussianHierarchy
from hieropo.statistics import TaskStatistics

__all__ = ["LaplacePosterior", "laplace_posterior", "mean_probability"]

_ARMIJO = 1e-4
_HALVINGS = 60


@final
@dataclass(frozen=True, eq=False)
class LaplacePosterior:
    """Gaussian approximation at the joint mode.

    Args:
        tasks: Labels, shape `[m]`.
        gaussian: The approximation: the joint posterior of the Gaussian model whose G_s = Σ p(1 − p)φφᵀ and
            B_s = G_sθ̂_s + Σφ(y − p), taken at the mode. Its means are the mode.
        dual: u_s, at the mode the score Σφ(y − p) of task s, shape `[m, d]`.
        log_evidence: Laplace's approximation of log p(rewards).
        converged: Whether the Newton decrement fell below the tolerance.
        message: One sentence for the user.
    """

    tasks: np.ndarray
    gaussian: HierarchicalPosterior
    dual: Float[np.ndarray, "m d"]
    log_evidence: float
    converged: bool
    message: str

    __repr__ = briefly("log_evidence", "converged")


def laplace_posterior(
    rows: LogisticRows,
    prior: LogisticHierarchy,
    *,
    start: Float[np.ndarray, "m d"] | None = None,
    tolerance: float = 1e-12,
    max_iter: int = 100,
) -> LaplacePosterior:
    """Joint mode of (μ, θ_1, ..., θ_m) by Newton's method with step control, and the Gaussian around it.

    log p(Y) ≈ ℓ(θ̂) − ½Σ u_sᵀΣ_0u_s − ½ vᵀΣ_qv − ½ log|I + KG|, v = Σu_s, with K the joint prior covariance of the
    tasks. The log posterior is strictly concave along the prior's support, so the mode is unique and exists for
    separable data too. The error of the approximation is O(1/n_s) in the posterior mean and in each task's part of
    the log evidence.

    Args:
        rows: The log.
        prior: The hierarchy.
        start: Dual variables to start from where they are better than zero, the prior mean.
        tolerance: Half the squared Newton decrement, in nats, at which the search ends.
        max_iter: Largest number of Newton steps.

    Returns:
        The approximation; `converged` says whether the search ended in time.

    Raises:
        ValueError: Features of another dimension than the prior, or max_iter < 1.

    Reference:
        The two-level model of Hong et al. (ICML 2023) with the Gaussian likelihood replaced.

    Example:
        >>> rows = LogisticRows.from_rows([[1.0]] * 4, [1, 1, 1, 1], ["ann"] * 4)
        >>> fitted = laplace_posterior(rows, LogisticHierarchy.isotropic(1, sigma_q=1.0, sigma_0=1.0))
        >>> fitted.converged, bool(0.0 < fitted.gaussian.hyper.mean[0] < fitted.gaussian.means[0, 0])
        (True, True)
    """
    if rows.d != prior.d:
        raise ValueError(f"the features have dimension {rows.d}, the prior has dimension {prior.d}")
    if max_iter < 1:
        raise ValueError(f"max_iter must be at least 1, got {max_iter}")
    u = np.zeros((rows.m, rows.d))
    theta, value = _primal(u, prior), _objective(rows, prior, u)
    if start is not None and _objective(rows, prior, start) > value:
        u = np.array(start, dtype=float)
        theta, value = _primal(u, prior), _objective(rows, prior, u)
    decrement, advice = np.inf, "raise max_iter"
    for _ in range(max_iter):
        G, score = _expand(rows, theta)
        d_theta = arrow_solve(rows.tasks, G, score - u, prior)
        d_u = score - u - (G @ d_theta[..., None])[..., 0]
        decrement = 0.5 * float(np.sum((score - u) * d_theta))
        if decrement <= tolerance:
            u = u + d_u  # one more full step costs nothing and squares the error
            break
        step = _step_length(rows, prior, u, d_u, value, 2.0 * decrement)
        if step == 0.0:
            advice = "rounding hides the way up: scale the features to order one"
            break
        u = u + step * d_u
        theta, value = _primal(u, prior), _objective(rows, prior, u)
    if decrement <= tolerance:
        return _at_mode(rows, prior, u, True, "converged")
    return _at_mode(rows, prior, u, False, f"Newton's method ended {decrement:.2g} nats from the mode; {advice}")


def arrow_solve(
    tasks: np.ndarray, G: Float[np.ndarray, "m d d"], B: Float[np.ndarray, "m d"], prior: LogisticHierarchy
) -> Float[np.ndarray, "m d"]:
    """The solution θ of (K⁻¹ + G) θ = B with K the joint prior covariance of the tasks, in O(m d³).

    It is the posterior mean of a Gaussian model with statistics (G, B) and prior mean zero.
    """
    centred = GaussianHierarchy(np.zeros(prior.d), prior.Sigma_q, prior.Sigma_0, 1.0)
    return infer(_gaussian_statistics(tasks, G, B), centred).means


def _gaussian_statistics(tasks: np.ndarray, G: np.ndarray, B: np.ndarray) -> TaskStatistics:
    # Neither the counts nor the squares enter a posterior with known noise.
    return TaskStatistics(tasks, np.ones(len(tasks), np.int64), G, B, np.zeros(len(tasks)))


def _at_mode(
    rows: LogisticRows, prior: LogisticHierarchy, u: np.ndarray, converged: bool, message: str
) -> LaplacePosterior:
    theta = _primal(u, prior)
    G, score = _expand(rows, theta)
    gaussian = infer(_gaussian_statistics(rows.tasks, G, (G @ theta[..., None])[..., 0] + score), prior.gaussian)
    task_log_det = np.linalg.slogdet(np.eye(prior.d) + G @ prior.Sigma_0)[1].sum()
    log_evidence = _objective(rows, prior, u) - 0.5 * (float(task_log_det) + gaussian.hyper.log_det)
    return LaplacePosterior(rows.tasks, gaussian, u, log_evidence, converged, message)


def _primal(u: np.ndarray, prior: LogisticHierarchy) -> np.ndarray:
    """θ_s = μ_q + Σ_qΣu + Σ_0u_s."""
    return prior.mu_q + prior.Sigma_q @ u.sum(axis=0) + u @ prior.Sigma_0


def _objective(rows: LogisticRows, prior: LogisticHierarchy, u: np.ndarray) -> float:
    """Log likelihood minus the prior's quadratic terms: the log posterior up to a constant."""
    theta = _primal(u, prior)
    eta = np.einsum("nd,nd->n", rows.features, theta[rows.codes])
    likelihood = np.sum(rows.rewards * eta - np.logaddexp(0.0, eta))
    v = u.sum(axis=0)
    return float(likelihood - 0.5 * np.sum((u @ prior.Sigma_0) * u) - 0.5 * v @ prior.Sigma_q @ v)


def _expand(rows: LogisticRows, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Second and first derivatives of each task's log likelihood: Σ p(1 − p)φφᵀ and Σ φ(y − p)."""
    eta = np.einsum("nd,nd->n", rows.features, theta[rows.codes])
    p = expit(eta)
    weighted = np.sqrt(p * expit(-eta))[:, None] * rows.features
    return per_task(rows, weighted).gram, per_task(rows, rows.features, rows.rewards - p).moment


def per_task(rows: LogisticRows, features: np.ndarray, values: np.ndarray | None = None) -> TaskStatistics:
    """Sums of outer products and of value-weighted features over the rows of each task."""
    values = np.zeros(rows.n) if values is None else values
    return TaskStatistics.from_rows(features, values, rows.codes, np.arange(rows.m))


def _step_length(
    rows: LogisticRows, prior: LogisticHierarchy, u: np.ndarray, d_u: np.ndarray, value: float, slope: float
) -> float:
    """The longest of 1, ½, ¼, ... that gains enough; 0 where rounding leaves nothing to gain."""
    rounding = 1e-14 * (1.0 + abs(value))
    step = 1.0
    for _ in range(_HALVINGS):
        if _objective(rows, prior, u + step * d_u) >= value + _ARMIJO * step * slope - rounding:
            return step
        step *= 0.5
    return 0.0


def mean_probability(
    mean: Float[np.ndarray, "*shape"],
    variance: Float[np.ndarray, "*shape"],
    *,
    method: str = "quadrature",
    nodes: int = 64,
) -> Float[np.ndarray, "*shape"]:
    """E[1 / (1 + exp(−η))] for η ~ N(mean, variance).

    Args:
        mean: Means of the linear predictor, any shape.
        variance: Its variances, the same shape.
        method: "quadrature" (Gauss–Hermite), or "probit" for 1/(1 + exp(−mean/√(1 + π variance/8))).
        nodes: Number of quadrature nodes.

    Returns:
        Expected probabilities, the same shape.

    Raises:
        ValueError: An unknown method.

    Reference:
        MacKay (1992), "The evidence framework applied to classification networks", for the probit form.

    Example:
        >>> one = np.array(1.0)
        >>> round(float(mean_probability(one, one)), 3), round(float(mean_probability(one, one, method="probit")), 3)
        (0.697, 0.7)
    """
    match method:
        case "quadrature":
            points, weights = np.polynomial.hermite_e.hermegauss(nodes)
            eta = np.asarray(mean)[..., None] + np.sqrt(variance)[..., None] * points
            return np.asarray(expit(eta) @ (weights / weights.sum()))
        case "probit":
            return np.asarray(expit(mean / np.sqrt(1.0 + np.pi * np.asarray(variance) / 8.0)))
        case _:
            raise ValueError(f"method is 'quadrature' or 'probit', got {method!r}")

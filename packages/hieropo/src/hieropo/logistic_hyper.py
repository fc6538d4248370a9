"""Empirical Bayes for the logistic hierarchy: Σ_0 by gradient ascent on Laplace's evidence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Float
from scipy.special import expit

from hieropo.ascent import HyperparameterFit
from hieropo.checks import as_instance
from hieropo.linalg import symmetric
from hieropo.logistic import LogisticHierarchy, LogisticRows
from hieropo.logistic_laplace import LaplacePosterior, arrow_solve, laplace_posterior, per_task
from hieropo.structure import STRUCTURES, Structure, log_scales, pack, project, pull_back, unpack

__all__ = ["fit_logistic_hyperparameters", "laplace_evidence_gradient"]

_LOG_SCALE = (float(np.log(1e-4)), float(np.log(1e3)))  # standard deviations beyond which the evidence is flat


def laplace_evidence_gradient(
    rows: LogisticRows, prior: LogisticHierarchy, posterior: LaplacePosterior
) -> Float[np.ndarray, "d d"]:
    """Gradient E of Laplace's log evidence with respect to Σ_0, the movement of the mode included.

    d log p = tr(E dΣ_0) with E = ½Σ_s [u_su_sᵀ − (G_s − G_sΣ̂_sG_s) − ½(z_su_sᵀ + u_sz_sᵀ)], where z = (I + GK)⁻¹a adds
    how the curvature changes as the mode moves, a_s = Σ p(1 − p)(1 − 2p)(φᵀΣ̂_sφ)φ. One more solve of O(m d³).

    Args:
        rows: The log.
        prior: The prior of the posterior.
        posterior: The converged posterior.

    Returns:
        A symmetric matrix, shape `[d, d]`.
    """
    gaussian, u, G = posterior.gaussian, posterior.dual, posterior.gaussian.tasks.gram
    covs = gaussian.covariances()
    phi = rows.features
    p = expit(np.einsum("nd,nd->n", phi, gaussian.means[rows.codes]))
    variance = np.einsum("nd,nde,ne->n", phi, covs[rows.codes], phi)
    a = per_task(rows, phi, p * (1.0 - p) * (1.0 - 2.0 * p) * variance).moment
    z = a - (G @ arrow_solve(rows.tasks, G, a, prior)[..., None])[..., 0]
    return symmetric(0.5 * (u.T @ u - (G - G @ covs @ G).sum(axis=0) - z.T @ u))


def fit_logistic_hyperparameters(
    rows: LogisticRows,
    prior: LogisticHierarchy,
    *,
    structure: Structure = "full",
    tolerance: float = 1e-9,
    max_iter: int = 200,
) -> HyperparameterFit[LogisticHierarchy]:
    """Fit Σ_0 by maximising Laplace's approximation of the evidence, with its exact gradient.

    Σ_0 = LLᵀ with the logarithms of L's diagonal and the entries below it as coordinates, climbed by L-BFGS. μ_q and
    Σ_q stay as given: one log holds one draw of μ. Σ_0 is confined to standard deviations between 1e-4 and 1e3. With
    few rows a task Laplace's evidence favours a Σ_0 that is somewhat too small; the bias falls with the rows a task.

    Args:
        rows: The log.
        prior: Where to start; its Σ_0 must not be singular.
        structure: "full", "diagonal" or "isotropic" Σ_0.
        tolerance: Relative gain of the evidence below which the search ends.
        max_iter: Largest number of accepted steps.

    Returns:
        The fitted prior with the trace of the evidence.

    Raises:
        ValueError: No rows, an unknown structure, a singular Σ_0, or features of another dimension.
    """
    as_instance(rows, LogisticRows, "rows", "build it by LogisticRows.from_rows(features, rewards, task_ids)")
    as_instance(prior, LogisticHierarchy, "prior", "give first the rows, then the prior to start from")
    if rows.n == 0:
        raise ValueError("the log holds no rows; there is nothing to fit Sigma_0 to")
    if structure not in STRUCTURES:
        raise ValueError(f"structure is {structure!r}; give one of {', '.join(STRUCTURES)}")
    from scipy.optimize import minimize  # slow to import, and only needed here

    try:
        start = pack(project(prior.Sigma_0, structure), structure)
    except np.linalg.LinAlgError:
        raise ValueError("Sigma_0 is singular; start the fit from a covariance with positive eigenvalues") from None
    first = laplace_posterior(rows, replace(prior, Sigma_0=unpack(start, prior.d, structure)))
    dual, trace, modes_found = first.dual, [first.log_evidence], [first.converged]

    def negative(x: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal dual
        current = replace(prior, Sigma_0=unpack(x, prior.d, structure))
        posterior = laplace_posterior(rows, current, start=dual)
        dual = posterior.dual
        modes_found.append(posterior.converged)
        gradient = laplace_evidence_gradient(rows, current, posterior)
        return -posterior.log_evidence / rows.n, -pull_back(gradient, x, structure) / rows.n

    def record(intermediate_result: object) -> None:
        trace.append(-rows.n * float(intermediate_result.fun))  # pyrefly: ignore[missing-attribute]

    bounds = [_LOG_SCALE if flag else (None, None) for flag in log_scales(prior.d, structure)]
    options = {"maxiter": max_iter, "ftol": tolerance, "gtol": 1e-7}
    end = minimize(negative, start, jac=True, method="L-BFGS-B", bounds=bounds, callback=record, options=options)
    converged = bool(end.success) and all(modes_found)
    message = (
        str(end.message) if all(modes_found) else "a search for the mode inside did not converge; scale the features"
    )
    fitted = replace(prior, Sigma_0=unpack(end.x, prior.d, structure))
    return HyperparameterFit(
        fitted, -rows.n * float(end.fun), tuple(trace), "converged" if converged else "max_iter", message
    )

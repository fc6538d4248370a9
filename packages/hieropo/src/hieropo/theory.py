"""The same mathematics the slow way: one big Gaussian over all rewards and parameters, and the paper's bounds.

Nothing here is used by the rest of the package; it is what the rest is checked against. The posterior is found in the
space of the rewards (an n x n covariance), not by adding precisions, so it shares no formula with `posterior`.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class JointPosterior(NamedTuple):
    """The posterior of (μ, θ_1, ..., θ_m).

    Args:
        mean: Shape [m + 1, d]; row 0 is μ.
        cov: Shape [m + 1, d, m + 1, d].
    """

    mean: Float[np.ndarray, "m1 d"]
    cov: Float[np.ndarray, "m1 d m1 d"]


def joint_posterior(
    mu_q: Float[np.ndarray, " d"],
    Sigma_q: Float[np.ndarray, "d d"],
    Sigma_0: Float[np.ndarray, "d d"],
    sigma: float,
    features: Float[np.ndarray, "n d"],
    rewards: Float[np.ndarray, " n"],
    codes: Int[np.ndarray, " n"],
    m: int,
) -> JointPosterior:
    """Condition the joint Gaussian of (μ, θ_1..θ_m, Y) on Y: mean + K(Y − EY), K = cov(·, Y) cov(Y)⁻¹.

    Args:
        mu_q: Prior mean of μ.
        Sigma_q: Prior covariance of μ.
        Sigma_0: Covariance of θ_s given μ.
        sigma: Standard deviation of the noise.
        features: One row a reward.
        rewards: The rewards.
        codes: Task of each row, in 0..m-1.
        m: Number of tasks.

    Returns:
        The posterior of all parameters.
    """
    d, prior = len(mu_q), _prior_cov(Sigma_q, Sigma_0, m)
    design = _design(features, codes, m)
    of_rewards = design @ prior @ design.T + sigma**2 * np.eye(len(rewards))
    gain = np.linalg.solve(of_rewards, design @ prior).T
    mean = np.tile(mu_q, m + 1) + gain @ (rewards - features @ mu_q)
    cov = prior - gain @ design @ prior
    return JointPosterior(mean.reshape(m + 1, d), cov.reshape(m + 1, d, m + 1, d))


def log_evidence(
    mu_q: Float[np.ndarray, " d"],
    Sigma_q: Float[np.ndarray, "d d"],
    Sigma_0: Float[np.ndarray, "d d"],
    sigma: float,
    features: Float[np.ndarray, "n d"],
    rewards: Float[np.ndarray, " n"],
    codes: Int[np.ndarray, " n"],
) -> float:
    """Log N(Y; Φμ_q, V), V_tu = φ_tᵀ(Σ_q + 1[s(t) = s(u)] Σ_0)φ_u + σ² 1[t = u].

    Args:
        mu_q: Prior mean of μ.
        Sigma_q: Prior covariance of μ.
        Sigma_0: Covariance of θ_s given μ.
        sigma: Standard deviation of the noise.
        features: One row a reward.
        rewards: The rewards.
        codes: Task of each row.

    Returns:
        The log density.
    """
    cov = _reward_cov(Sigma_0, sigma, features, codes) + features @ Sigma_q @ features.T
    residual = rewards - features @ mu_q
    quadratic = residual @ np.linalg.solve(cov, residual)
    return -0.5 * float(len(rewards) * math.log(2 * math.pi) + np.linalg.slogdet(cov)[1] + quadratic)


def restricted_log_evidence(
    Sigma_0: Float[np.ndarray, "d d"],
    sigma: float,
    features: Float[np.ndarray, "n d"],
    rewards: Float[np.ndarray, " n"],
    codes: Int[np.ndarray, " n"],
) -> float:
    """Log ∫ N(Y; Φμ, V) dμ by generalised least squares, V without Σ_q.

    Args:
        Sigma_0: Covariance of θ_s given μ.
        sigma: Standard deviation of the noise.
        features: One row a reward.
        rewards: The rewards.
        codes: Task of each row.

    Returns:
        The restricted log likelihood.
    """
    cov = _reward_cov(Sigma_0, sigma, features, codes)
    n, d = features.shape
    precision = features.T @ np.linalg.solve(cov, features)
    residual = rewards - features @ np.linalg.solve(precision, features.T @ np.linalg.solve(cov, rewards))
    log_dets = np.linalg.slogdet(cov)[1] + np.linalg.slogdet(precision)[1]
    return -0.5 * float((n - d) * math.log(2 * math.pi) + log_dets + residual @ np.linalg.solve(cov, residual))


def single_task_bound(cov: Float[np.ndarray, "d d"], sigma: float, n: float, delta: float, gamma: float = 1.0) -> float:
    """Theorem 1: ε = d √(20 log(1/δ) / (λ_d(Σ⁻¹) + γ n/σ²)), for features of length at most one.

    With probability at least 1 − δ the policy loses at most ε against the best one. γ in (0, 1] says how well the
    logged actions cover the optimal ones: G_s ⪰ γ n σ⁻² E[φ(X, π*(X)) φ(X, π*(X))ᵀ].

    Args:
        cov: Prior covariance of the task: Σ_0 with a known mean, Σ_q + Σ_0 for tasks learned independently.
        sigma: Standard deviation of the noise.
        n: Rows of the task.
        delta: Failure probability, at most 1/e.
        gamma: Coverage of the logging policy.

    Returns:
        ε, in units of the reward.

    Raises:
        ValueError: If δ, γ, σ or n is outside its range.

    Reference:
        Hong et al., ICML 2023, Theorem 1.
    """
    _check(delta, gamma, sigma, n)
    return len(cov) * math.sqrt(20 * math.log(1 / delta) / (_smallest_precision(cov) + gamma * n / sigma**2))


def flat_bound(
    Sigma_q: Float[np.ndarray, "d d"],
    Sigma_0: Float[np.ndarray, "d d"],
    sigma: float,
    n: float,
    delta: float,
    gamma: float = 1.0,
) -> float:
    """Theorem 1 for a task learned independently of the others: its prior covariance is Σ_q + Σ_0.

    Args:
        Sigma_q: Prior covariance of μ.
        Sigma_0: Covariance of θ_s given μ.
        sigma: Standard deviation of the noise.
        n: Rows of the task.
        delta: Failure probability, at most 1/e.
        gamma: Coverage of the logging policy.

    Returns:
        ε, in units of the reward.
    """
    return single_task_bound(Sigma_q + Sigma_0, sigma, n, delta, gamma)


def hyper_term(
    Sigma_q: Float[np.ndarray, "d d"],
    Sigma_0: Float[np.ndarray, "d d"],
    sigma: float,
    counts: Float[np.ndarray, " m"] | Int[np.ndarray, " m"],
    delta: float,
    gamma: float = 1.0,
    kappa: float | Float[np.ndarray, " m"] = 1.0,
) -> float:
    """Theorem 2, what not knowing μ costs: d √(20 log(1/δ) / (λ_d(Σ_q⁻¹) + Σ_z 1/(λ_1(Σ_0) + κ_z σ²/(γ n_z)))).

    Args:
        Sigma_q: Prior covariance of μ.
        Sigma_0: Covariance of θ_s given μ.
        sigma: Standard deviation of the noise.
        counts: Rows n_z of every task; a task without rows adds nothing.
        delta: Failure probability, at most 1/e.
        gamma: Coverage of the logging policy.
        kappa: κ_z = λ_1(G_{z,*}⁻¹) in general; 1 for one-hot features and diagonal covariances (Assumption 4).

    Returns:
        The term, in units of the reward.

    Raises:
        ValueError: If a parameter is outside its range.

    Reference:
        Hong et al., ICML 2023, Theorem 2.
    """
    counts = np.asarray(counts, dtype=np.float64)
    _check(delta, gamma, sigma, float(counts.min(initial=0.0)))
    kappa = np.broadcast_to(np.asarray(kappa, dtype=np.float64), counts.shape)
    if np.any(kappa < 0):
        raise ValueError("kappa must not be negative")
    seen = counts > 0
    widest = float(np.linalg.eigvalsh(Sigma_0)[-1])
    from_tasks = float(np.sum(1.0 / (widest + kappa[seen] * sigma**2 / (gamma * counts[seen]))))
    return len(Sigma_q) * math.sqrt(20 * math.log(1 / delta) / (_smallest_precision(Sigma_q) + from_tasks))


def multi_task_bound(
    Sigma_q: Float[np.ndarray, "d d"],
    Sigma_0: Float[np.ndarray, "d d"],
    sigma: float,
    counts: Float[np.ndarray, " m"] | Int[np.ndarray, " m"],
    task: int,
    delta: float,
    gamma: float = 1.0,
    kappa: float | Float[np.ndarray, " m"] = 1.0,
) -> float:
    """Theorem 2: the task term (Theorem 1 with Σ_0 and n_s) plus the hyper term, for one task.

    For all m tasks at once call it with `union_delta(delta, m)`.

    Args:
        Sigma_q: Prior covariance of μ.
        Sigma_0: Covariance of θ_s given μ.
        sigma: Standard deviation of the noise.
        counts: Rows of every task, shape [m].
        task: Position of the task in question.
        delta: Failure probability, at most 1/e.
        gamma: Coverage of the logging policy.
        kappa: See `hyper_term`.

    Returns:
        ε, in units of the reward.

    Reference:
        Hong et al., ICML 2023, Theorem 2.
    """
    within = single_task_bound(Sigma_0, sigma, float(counts[task]), delta, gamma)
    return within + hyper_term(Sigma_q, Sigma_0, sigma, counts, delta, gamma, kappa)


def union_delta(delta: float, m: int) -> float:
    """δ to use for each task so that all m bounds hold together with probability at least 1 − δ.

    Args:
        delta: Failure probability of all together.
        m: Number of tasks.

    Returns:
        δ / m.
    """
    return delta / m


def _check(delta: float, gamma: float, sigma: float, n: float) -> None:
    if not 0 < delta <= math.exp(-1):
        raise ValueError(f"delta is {delta}; the bounds hold for delta in (0, 1/e]")
    if not 0 < gamma <= 1 or not sigma > 0 or n < 0:
        raise ValueError(f"gamma is {gamma}, sigma {sigma}, n {n}; they must be in (0, 1], positive, and not negative")


def _smallest_precision(cov: np.ndarray) -> float:
    """λ_d(Σ⁻¹) = 1 / λ_1(Σ), infinite for Σ = 0."""
    widest = float(np.linalg.eigvalsh(cov)[-1])
    return 1.0 / widest if widest > 0 else math.inf


def _prior_cov(Sigma_q: np.ndarray, Sigma_0: np.ndarray, m: int) -> np.ndarray:
    """Covariance of (μ, θ_1..θ_m): Σ_q everywhere, and Σ_0 more on the blocks of each task with itself."""
    own = np.eye(m + 1)
    own[0, 0] = 0.0
    return np.kron(np.ones((m + 1, m + 1)), Sigma_q) + np.kron(own, Sigma_0)


def _design(features: np.ndarray, codes: np.ndarray, m: int) -> np.ndarray:
    """Rows of (0, .., φ at the row's task, .., 0), the first block being μ's."""
    n, d = features.shape
    design = np.zeros((n, m + 1, d))
    design[np.arange(n), codes + 1] = features
    return design.reshape(n, (m + 1) * d)


def _reward_cov(Sigma_0: np.ndarray, sigma: float, features: np.ndarray, codes: np.ndarray) -> np.ndarray:
    same = codes[:, None] == codes[None, :]
    return same * (features @ Sigma_0 @ features.T) + sigma**2 * np.eye(len(codes))

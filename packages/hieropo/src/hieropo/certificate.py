"""How much a learned policy can lose, from the data: bounds and the exact posterior expectation by Monte Carlo."""

import math
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Bool, Float

from hieropo.confidence import alpha_from_delta
from hieropo.policy import ActionScores, ranked

_CHUNK = 1 << 21  # sampled rewards held at a time


@final
@dataclass(frozen=True)
class Certificate:
    """What the posterior says about V(π*) − V(π̂) of one task, in units of the reward.

    With s = √(φᵀΣ̂φ), β = √χ²_{d,1−δ} and θ in the ellipsoid of width β, which has posterior probability 1 − δ, every
    φᵀθ lies within βs of φᵀθ̂; and π̂ maximises φᵀθ̂ − αs. Together, with a* = π_θ(x) and â = π̂(x),

        V(π_θ) − V(π̂) <= E_x[(β + α) s(x, a*) + (β − α) s(x, â)],

    which is the paper's 2 E_x[c(x, a*)], c = αs, for a policy of width α = β, and holds for any α.

    Args:
        worst_case: E_x[max_a (φᵀθ̂ + βs) − (φᵀθ̂ − βs)(x, â)], free of sampling: exceeded with posterior probability at
            most δ, whatever the policy.
        bound: The bound above, its unknown θ averaged over the posterior.
        bound_stderr: Monte-Carlo standard error of `bound`.
        expected_suboptimality: E over θ ~ posterior of V(π_θ) − V(π̂).
        expected_suboptimality_stderr: Its Monte-Carlo standard error.
        quantile: The 1 − δ quantile over θ ~ posterior of V(π_θ) − V(π̂), taken as the draw that one more draw exceeds
            with probability at most δ: what is lost at most, with confidence 1 − δ.
        delta: δ.
        width: β.
        draws: Number of draws of θ.
    """

    worst_case: float
    bound: float
    bound_stderr: float
    expected_suboptimality: float
    expected_suboptimality_stderr: float
    quantile: float
    delta: float
    width: float
    draws: int


def certify(
    features: Float[np.ndarray, "B K d"],
    available: Bool[np.ndarray, "B K"],
    scores: ActionScores,
    theta: Float[np.ndarray, "draws d"],
    alpha: float,
    delta: float,
) -> Certificate:
    """The certificate of the pessimistic policy on given contexts, which stand for the distribution of contexts.

    Args:
        features: φ(x, a), shape [B, K, d].
        available: Which actions exist, shape [B, K]; at least one a row.
        scores: Posterior means and variances of the actions.
        theta: Draws from the task's posterior, shape [draws, d], at least two.
        alpha: Width of the policy's lower bound.
        delta: Failure probability.

    Returns:
        The certificate.

    Raises:
        ValueError: If δ is outside (0, 1), or too small for so few draws.

    Reference:
        Hong et al., ICML 2023, Theorem 1 and its proof, before the worst case over data is taken.
    """
    rows, draws, std = np.arange(len(features)), len(theta), scores.std
    width = alpha_from_delta(delta, features.shape[2], "simultaneous")
    rank = _quantile_rank(delta, draws)
    actions = ranked(scores.mean, alpha * std, 1, available)[:, 0]
    losses, widths = np.empty(draws), np.empty(draws)
    per_chunk = max(1, _CHUNK // max(1, available.size))
    for lo in range(0, draws, per_chunk):
        part = slice(lo, lo + per_chunk)
        values = np.where(available, np.einsum("bkd,sd->sbk", features, theta[part]), -np.inf)
        best = values.argmax(axis=2)
        top = np.take_along_axis(values, best[:, :, None], axis=2)[:, :, 0]
        losses[part] = (top - values[:, rows, actions]).mean(axis=1)
        widths[part] = ((width + alpha) * std[rows, best] + (width - alpha) * std[rows, actions]).mean(axis=1)
    optimistic = np.where(available, scores.mean + width * std, -np.inf).max(axis=1)
    root = math.sqrt(draws)
    return Certificate(
        worst_case=float(np.mean(optimistic - (scores.mean - width * std)[rows, actions])),
        bound=float(widths.mean()),
        bound_stderr=float(widths.std(ddof=1)) / root,
        expected_suboptimality=float(losses.mean()),
        expected_suboptimality_stderr=float(losses.std(ddof=1)) / root,
        quantile=float(np.sort(losses)[rank - 1]),
        delta=delta,
        width=width,
        draws=draws,
    )


def _quantile_rank(delta: float, draws: int) -> int:
    """The least k with k / (draws + 1) >= 1 − δ: a further draw exceeds the k-th smallest with probability <= δ."""
    rank = math.ceil((1.0 - delta) * (draws + 1) * (1.0 - 1e-12))  # a whole number stays one after rounding
    if rank > draws:
        needed = math.ceil(1.0 / delta * (1.0 - 1e-12)) - 1
        raise ValueError(f"delta is {delta} and draws {draws}; such a quantile needs at least {needed} draws")
    return rank

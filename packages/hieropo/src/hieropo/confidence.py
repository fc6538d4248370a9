"""Widths of confidence sets: α from δ."""

import math
from typing import Literal

from scipy.special import chdtri, ndtri

Kind = Literal["simultaneous", "pointwise", "paper"]
KINDS: tuple[Kind, ...] = ("simultaneous", "pointwise", "paper")


def alpha_from_delta(delta: float, d: int, kind: Kind | str = "simultaneous") -> float:
    """α such that φᵀθ >= φᵀθ̂ − α √(φᵀΣ̂φ) with posterior probability at least 1 − δ.

    - "simultaneous": √χ²_{d,1−δ}, for all φ of one task at once, from both sides: exact for the ellipsoid
      (θ − θ̂)ᵀ Σ̂⁻¹ (θ − θ̂) <= α².
    - "pointwise": z_{1−δ}, for one fixed φ and from below only; exact, and much smaller.
    - "paper": √(5 d log(1/δ)), an upper bound of the first by the Laurent-Massart tail of χ²; it needs δ <= 1/e.

    All are per task; for m tasks at once use δ / m.

    Args:
        delta: Failure probability.
        d: Number of features.
        kind: Which width.

    Returns:
        α, dimensionless.

    Raises:
        ValueError: If δ is outside (0, 1), or outside what the kind allows.

    Reference:
        Hong et al., ICML 2023, Theorem 1; Laurent and Massart, Ann. Statist. 2000, Lemma 1.

    Example:
        >>> [round(alpha_from_delta(0.05, 4, kind), 2) for kind in ("pointwise", "simultaneous", "paper")]
        [1.64, 3.08, 7.74]
    """
    if d < 1:
        raise ValueError(f"d is {d}; at least one feature is needed")
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; give one of {', '.join(KINDS)}")
    if not 0 < delta < 1:
        raise ValueError(f"delta is {delta}; give a probability in (0, 1)")
    if kind == "pointwise":
        if delta > 0.5:
            raise ValueError(f"delta is {delta}; a pointwise lower bound needs delta <= 0.5, otherwise α is negative")
        return max(0.0, -float(ndtri(delta)))
    if kind == "simultaneous":
        return math.sqrt(float(chdtri(d, delta)))
    if delta > math.exp(-1):
        raise ValueError(f"delta is {delta}; the paper's width holds for delta <= 1/e = {math.exp(-1):.4f} only")
    return math.sqrt(5 * d * math.log(1 / delta))


def check_alpha(alpha: float) -> float:
    """A width given by hand.

    Args:
        alpha: α >= 0; 0 is the greedy policy.

    Returns:
        α as a float.

    Raises:
        ValueError: If α is negative or not finite.
    """
    alpha = float(alpha)
    if not (math.isfinite(alpha) and alpha >= 0):
        raise ValueError(f"alpha is {alpha}; give alpha >= 0 (0 is the greedy policy)")
    return alpha

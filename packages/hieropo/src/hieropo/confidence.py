"""Widths of confidence sets: α from δ."""

import math
from typing import Literal

from scipy.special import chdtri, ndtri

from hieropo.checks import as_number

Kind = Literal["simultaneous", "pointwise", "paper"]
KINDS: tuple[Kind, ...] = ("simultaneous", "pointwise", "paper")
PAPER_ALPHA = 0.1  # in all of the paper's experiments


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
        TypeError: If it is not a number.

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
    delta = as_number(delta, "delta")
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


def chosen_width(alpha: float | None, delta: float | None, kind: Kind | str, d: int) -> float:
    """The width an estimator was asked for.

    Args:
        alpha: The width itself.
        delta: Or the failure probability it follows from.
        kind: What delta means.
        d: Number of features.

    Returns:
        α; the paper's 0.1 if neither is given.

    Raises:
        ValueError: If both are given, one is out of range, or a kind is given without the delta it speaks of.
        TypeError: If one is not a number.
    """
    if alpha is not None and delta is not None:
        raise ValueError(f"alpha={alpha} and delta={delta} are both given; give one of them")
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; give one of {', '.join(KINDS)}")
    if delta is not None:
        return check_alpha(alpha_from_delta(delta, d, kind))
    if kind != "simultaneous":
        raise ValueError(f"kind is {kind!r}, which says what a delta means; give delta too, e.g. delta=0.05")
    return check_alpha(PAPER_ALPHA if alpha is None else alpha)


def check_alpha(alpha: float) -> float:
    """A width given by hand.

    Args:
        alpha: α >= 0; 0 is the greedy policy.

    Returns:
        α as a float.

    Raises:
        ValueError: If α is negative or not finite.
        TypeError: If it is not a number.
    """
    alpha = as_number(alpha, "alpha")
    if not (math.isfinite(alpha) and alpha >= 0):
        raise ValueError(f"alpha is {alpha}; give alpha >= 0 (0 is the greedy policy)")
    return alpha

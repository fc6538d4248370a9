"""Quantiles of Student's t distribution, so that intervals need no SciPy."""

import math
from statistics import NormalDist

import numpy as np

_NORMAL = NormalDist()


def student_t_quantile(p: float, df: int) -> float:
    """Quantile of Student's t distribution with an integer number of degrees of freedom.

    Args:
        p: Probability in (0, 1).
        df: Degrees of freedom, at least 1.

    Returns:
        The value `t` with ``P(T <= t) = p``.

    Raises:
        ValueError: If `p` or `df` is out of range.

    Reference:
        Abramowitz and Stegun, 26.7.3-26.7.4 (finite sums for the distribution), 26.7.5 (expansion, for df > 2000).

    Example:
        >>> round(student_t_quantile(0.975, 4), 4)
        2.7764
    """
    if not 0 < p < 1 or df < 1:
        raise ValueError(f"p={p}, df={df}: need 0 < p < 1 and df >= 1")
    if p < 0.5:  # the lower tail is represented more finely than 1 - p
        return -_upper_t(p, df)
    return _upper_t(1 - p, df) if p > 0.5 else 0.0


def _upper_t(tail: float, df: int) -> float:
    """The t > 0 with P(T > t) = tail, by bisection on theta = atan(t / sqrt(df))."""
    z = -_NORMAL.inv_cdf(tail)
    if df > 2000:
        return z + (z**3 + z) / (4 * df) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df**2)
    odd = df % 2
    k = np.arange(1 + odd, df - 1, 2)  # cos^2 sums: coefficients are running products of k / (k + 1)
    coefficients = np.concatenate([[1.0], np.cumprod(k / (k + 1))])[: df // 2]
    low, high = 0.0, math.pi / 2
    for _ in range(80):
        theta = (low + high) / 2
        series = math.sin(theta) * float(coefficients @ math.cos(theta) ** (2.0 * np.arange(len(coefficients)) + odd))
        both_sides = 2 / math.pi * (theta + series) if odd else series
        low, high = (theta, high) if (1 - both_sides) / 2 > tail else (low, theta)
    return math.tan((low + high) / 2) * math.sqrt(df)

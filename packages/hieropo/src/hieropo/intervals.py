"""Confidence intervals of a mean and of a ratio of means of independent terms."""

import math
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy.special import ndtri

from common_core.stats import Estimate, bootstrap, bootstrap_mean

Interval = Literal["normal", "bernstein", "bootstrap"]


def standard_error(terms: Float[np.ndarray, " n"]) -> float:
    """Standard error of the mean; unknown, thus infinite, for a single term.

    Args:
        terms: Independent terms, shape [n].

    Returns:
        s / √n.
    """
    return float(terms.std(ddof=1)) / math.sqrt(len(terms)) if len(terms) > 1 else math.inf


def mean_interval(
    terms: Float[np.ndarray, " n"],
    confidence: float,
    kind: Interval | str,
    bounds: tuple[float, float] | None,
    rng: np.random.Generator | None,
) -> tuple[float, float]:
    """A two-sided interval for the mean.

    - "normal": mean ± z s/√n.
    - "bernstein": mean ± √(2 s² log(2/δ)/n) + 7 R log(2/δ) / (3(n − 1)) with δ half of what may fail and R the range of
      the terms; holds for every n.
    - "bootstrap": bias-corrected and accelerated.

    Args:
        terms: Independent terms, shape [n].
        confidence: Coverage in (0, 1).
        kind: Which interval.
        bounds: Least and largest possible term, known beforehand, for "bernstein".
        rng: Source of randomness, for "bootstrap".

    Returns:
        Lower and upper end; infinite where the terms say nothing.

    Raises:
        ValueError: If an option is unknown, out of range or missing.

    Reference:
        Maurer and Pontil, "Empirical Bernstein Bounds and Sample Variance Penalization", COLT 2009, Theorem 4.
    """
    _check_confidence(confidence)
    mean, n = float(terms.mean()), len(terms)
    if kind == "bootstrap":
        return _ends(bootstrap_mean(terms, rng=_needed(rng), confidence=confidence))
    if kind == "normal":
        half = -float(ndtri((1 - confidence) / 2)) * standard_error(terms)
    elif kind == "bernstein":
        if bounds is None or n < 2:
            raise ValueError("interval 'bernstein' needs the range of possible values, and at least two rows")
        log = math.log(4 / (1 - confidence))
        half = math.sqrt(2 * float(terms.var(ddof=1)) * log / n) + 7 * (bounds[1] - bounds[0]) * log / (3 * (n - 1))
    else:
        raise ValueError(f"interval is {kind!r}; give 'normal', 'bernstein' or 'bootstrap'")
    return mean - half, mean + half


def ratio_interval(
    numerator: Float[np.ndarray, " n"],
    denominator: Float[np.ndarray, " n"],
    confidence: float,
    rng: np.random.Generator | None,
) -> tuple[float, float]:
    """A two-sided bootstrap interval for Σ numerator / Σ denominator.

    Args:
        numerator: Terms, shape [n].
        denominator: Terms, shape [n], not negative.
        confidence: Coverage in (0, 1).
        rng: Source of randomness.

    Returns:
        Lower and upper end; infinite if a resample can have a zero denominator and did.

    Raises:
        ValueError: If an option is out of range or missing.
    """
    _check_confidence(confidence)
    rows = np.stack([numerator, denominator], axis=1)
    return _ends(bootstrap(rows, _ratio, rng=_needed(rng), confidence=confidence))


def _ratio(rows: np.ndarray) -> float:
    return float(rows[:, 0].sum() / rows[:, 1].sum()) if rows[:, 1].any() else math.nan


def _ends(estimate: Estimate) -> tuple[float, float]:
    """The ends of a bootstrap interval; one that could not be found says nothing."""
    if estimate.low is None or estimate.high is None:
        return -math.inf, math.inf
    return estimate.low, estimate.high


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; give a probability in (0, 1)")


def _needed(rng: np.random.Generator | None) -> np.random.Generator:
    if rng is None:
        raise ValueError("interval 'bootstrap' needs rng, e.g. numpy.random.default_rng(0)")
    return rng

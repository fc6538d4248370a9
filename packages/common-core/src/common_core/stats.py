"""Estimates with intervals: bootstrap, interquartile mean, paired permutation test and rate fits, in plain NumPy.

Bootstrap intervals are BCa (bias-corrected and accelerated; Efron, JASA 82, 1987), widened for small samples as
Hesterberg proposes (The American Statistician 69, 2015): the normal quantile behind the percentile levels is multiplied
by ``sqrt(n / (n - 1)) * t_{n-1} / z``. No bootstrap interval of a mean can leave the range of the data, so with five
normal observations at most 93.75 % of the intervals can cover.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common_core._student import student_t_quantile as student_t_quantile

Array = NDArray[np.float64]
Alternative = Literal["greater", "less", "two-sided"]

_NORMAL = NormalDist()
_BLOCK = 1 << 21  # numbers drawn at a time: bounds the memory of every resampling loop
_JACKKNIFE_GROUPS = 256


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with, where known, an interval and the number of observations behind it.

    Args:
        value: The point estimate; NaN is allowed and means "no result".
        low: Lower end of the interval, or None.
        high: Upper end of the interval, or None.
        n: Observations behind the estimate, or None.

    Raises:
        ValueError: If only one end of the interval is given, or the ends are in the wrong order.

    Example:
        >>> f"{Estimate(0.045, 0.04, 0.05):.3f}"
        '0.045 [0.040, 0.050]'
    """

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", float(self.value))
        object.__setattr__(self, "n", None if self.n is None else int(self.n))
        if (self.low is None) != (self.high is None):
            raise ValueError(f"low={self.low} and high={self.high}: give both ends of the interval or neither")
        if self.low is not None and self.high is not None:
            object.__setattr__(self, "low", float(self.low))
            object.__setattr__(self, "high", float(self.high))
            if self.low > self.high:
                raise ValueError(f"low={self.low} lies above high={self.high}; swap them")

    def __float__(self) -> float:
        return self.value

    def __format__(self, spec: str) -> str:
        spec = spec or ".4g"
        if self.low is None:
            return format(self.value, spec)
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"

    def __str__(self) -> str:
        return format(self, "")

    @property
    def lower(self) -> float:
        """Lower end of the interval; -inf where there is none, so that nothing can be shown by it."""
        return -math.inf if self.low is None else self.low

    @property
    def upper(self) -> float:
        """Upper end of the interval; inf where there is none."""
        return math.inf if self.high is None else self.high

    @classmethod
    def from_any(cls, value: "Estimate | float") -> "Estimate":
        """Return `value` as an `Estimate`; a plain number gets no interval."""
        return value if isinstance(value, Estimate) else cls(float(value))

    def overlaps(self, other: "Estimate | float") -> bool:
        """Whether the closed intervals meet; an estimate without interval counts as a point, NaN meets nothing."""
        (a, b), (c, d) = self._ends(), Estimate.from_any(other)._ends()
        return a <= d and c <= b

    def _ends(self) -> tuple[float, float]:
        return (self.value, self.value) if self.low is None or self.high is None else (self.low, self.high)

    def to_json(self) -> dict[str, float | int | str]:
        """Return a dictionary of the known fields; NaN and infinities become strings, which JSON can hold."""
        fields = {"value": self.value, "low": self.low, "high": self.high, "n": self.n}
        return {k: v if math.isfinite(v) else str(v) for k, v in fields.items() if v is not None}

    @classmethod
    def from_json(cls, data: "Mapping[str, Any] | float | str") -> "Estimate":
        """Inverse of `to_json`; also takes a bare number.

        Raises:
            ValueError: If `data` has no ``value`` or a field that this version does not know.
        """
        if not isinstance(data, Mapping):
            return cls(float(data))
        if "value" not in data or set(data) - {"value", "low", "high", "n"}:
            raise ValueError(f"an estimate has the fields value, low, high, n; got {sorted(data)}")
        n = data.get("n")
        numbers = {name: float(data[name]) for name in ("value", "low", "high") if data.get(name) is not None}
        return cls(**numbers, n=None if n is None else int(n))


def bootstrap_mean(
    samples: ArrayLike, *, rng: np.random.Generator, confidence: float = 0.95, resamples: int = 2000
) -> Estimate:
    """Mean of independent samples with a bootstrap interval; see `bootstrap`.

    Args:
        samples: Independent observations, shape ``[n]``; with ``n = 1`` there is no interval.
        rng: Source of the resamples.
        confidence: Nominal coverage in (0, 1).
        resamples: Bootstrap resamples.

    Returns:
        Mean, interval and n.

    Raises:
        ValueError: As `bootstrap`.

    Example:
        >>> bootstrap_mean([1.0, 2.0, 3.0, 4.0], rng=np.random.default_rng(0)).value
        2.5
    """
    return bootstrap(_vector(samples, "samples"), np.mean, rng=rng, confidence=confidence, resamples=resamples)


def bootstrap(
    samples: ArrayLike,
    statistic: Callable[..., Any],
    *,
    rng: np.random.Generator,
    confidence: float = 0.95,
    resamples: int = 2000,
) -> Estimate:
    """Statistic of independent rows with a widened BCa bootstrap interval.

    The interval's ends are the replicates' quantiles at ``Phi(z0 + (z0 + z) / (1 - a (z0 + z)))``, with the bias ``z0``
    from the replicates below the estimate, the acceleration ``a`` from a jackknife (of at most 256 groups), and ``z``
    the small-sample quantile of the module's docstring.

    Args:
        samples: Independent observations along the first axis, shape ``[n]`` or ``[n, ...]``.
        statistic: Maps such an array to a number. If `samples` is a vector and the statistic has an argument ``axis``,
            all resamples of a block are passed in one call; otherwise there is one call a resample.
        rng: Source of the resamples.
        confidence: Nominal coverage in (0, 1).
        resamples: Bootstrap resamples.

    Returns:
        Estimate, interval and n; no interval for ``n = 1`` or where the statistic is not finite on some resample.

    Raises:
        ValueError: If the samples are empty or not finite, or a setting is out of range.

    Reference:
        Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 14.3.

    Example:
        >>> estimate = bootstrap([1.0, 2.0, 3.0, 9.0], np.median, rng=np.random.default_rng(0))
        >>> estimate.value
        2.5
    """
    x = _finite(samples, "samples")
    _check_settings(confidence, resamples)
    n = len(x)
    value = float(statistic(x))
    if n == 1:
        return Estimate(value, n=n)
    at_once = x.ndim == 1 and _takes_axis(statistic)
    replicates = np.empty(resamples)
    step = max(1, _BLOCK // n)
    for start in range(0, resamples, step):
        rows = x[rng.integers(n, size=(min(step, resamples - start), n))]
        replicates[start : start + step] = statistic(rows, axis=1) if at_once else [statistic(row) for row in rows]
    # Random groups of one size: sorted samples in groups as they come would look skew.
    count = min(n, _JACKKNIFE_GROUPS)
    groups = rng.permutation(n)[: n // count * count].reshape(count, -1)
    left_out = np.array([float(statistic(np.delete(x, group, axis=0))) for group in groups])
    if not (np.isfinite(replicates).all() and np.isfinite(left_out).all()):
        return Estimate(value, n=n)
    spread = left_out.mean() - left_out
    scale = float(np.sum(spread**2)) ** 1.5
    acceleration = float(np.sum(spread**3)) / (6 * scale) if scale > 0 else 0.0
    below = float(np.mean(replicates < value) + np.mean(replicates == value) / 2)
    bias = _NORMAL.inv_cdf(min(max(below, 1 / (resamples + 1)), resamples / (resamples + 1)))
    return Estimate(value, *_ends(replicates, n, n - 1, confidence, bias, acceleration), n=n)


def iqm(samples: ArrayLike, *, rng: np.random.Generator, confidence: float = 0.95, resamples: int = 2000) -> Estimate:
    """Interquartile mean over runs and tasks, with a bootstrap interval stratified by task.

    The mean of the middle half of all scores: a quarter of them, rounded down, is dropped at either end. Runs are
    resampled within each task; the percentile interval is widened as `bootstrap`'s.

    Args:
        samples: Scores, shape ``[runs, tasks]``, or ``[runs]`` for one task.
        rng: Source of the resamples.
        confidence: Nominal coverage in (0, 1).
        resamples: Bootstrap resamples.

    Returns:
        Interquartile mean, interval (none for one run) and the number of scores.

    Raises:
        ValueError: If the scores are empty, not finite or not of these shapes, or a setting is out of range.

    Reference:
        Agarwal et al., Deep Reinforcement Learning at the Edge of the Statistical Precipice (2021), section 4.

    Example:
        >>> iqm([[0.0], [1.0], [2.0], [30.0]], rng=np.random.default_rng(0)).value
        1.5
    """
    x = _finite(samples, "samples")
    if x.ndim not in (1, 2):
        raise ValueError(f"samples has shape {x.shape}; give [runs, tasks] or [runs]")
    _check_settings(confidence, resamples)
    x = x.reshape(len(x), -1)
    runs, tasks = x.shape
    value = float(_middle_mean(x.reshape(1, -1))[0])
    if runs == 1:
        return Estimate(value, n=x.size)
    replicates = np.empty(resamples)
    step = max(1, _BLOCK // x.size)
    for start in range(0, resamples, step):
        pick = rng.integers(runs, size=(min(step, resamples - start), runs, tasks))
        replicates[start : start + step] = _middle_mean(x[pick, np.arange(tasks)].reshape(len(pick), -1))
    return Estimate(value, *_ends(replicates, runs, tasks * (runs - 1), confidence), n=x.size)


def permutation_test(
    a: ArrayLike,
    b: ArrayLike,
    *,
    rng: np.random.Generator,
    alternative: Alternative = "greater",
    resamples: int = 10_000,
) -> float:
    """P-value of a paired sign-flip test that `a` and `b` differ in mean.

    Under the null hypothesis each difference ``a_i - b_i`` is symmetric around zero. All ``2**n`` sign patterns are
    enumerated where they are at most `resamples`; otherwise random ones give ``(1 + hits) / (1 + resamples)``.

    Args:
        a: Scores, shape ``[n]``.
        b: Scores of the same units, shape ``[n]``.
        rng: Source of the random sign patterns; not used by the exact test.
        alternative: ``"greater"`` asks whether `a` is greater than `b`.
        resamples: Random patterns, and the limit of the enumeration.

    Returns:
        The p-value, in (0, 1].

    Raises:
        ValueError: If the shapes differ, values are missing or not finite, or an option is unknown.

    Example:
        >>> permutation_test([2.0, 3.0, 4.0], [1.0, 1.0, 1.0], rng=np.random.default_rng(0))
        0.125
    """
    x, y = _vector(a, "a"), _vector(b, "b")
    if x.shape != y.shape:
        raise ValueError(f"a has {len(x)} scores and b has {len(y)}; the test is paired and needs one of each a unit")
    if alternative not in ("greater", "less", "two-sided"):
        raise ValueError(f"alternative={alternative!r}; choose 'greater', 'less' or 'two-sided'")
    _check_settings(0.5, resamples)
    difference = y - x if alternative == "less" else x - y
    n = len(difference)
    fold = np.abs if alternative == "two-sided" else np.positive
    observed = float(fold(difference.sum()))
    threshold = observed - 1e-12 * float(np.abs(difference).sum())  # equal sums must count as equal after rounding
    exact = n < 60 and 2**n <= resamples
    total, hits = (2**n if exact else resamples), 0
    step = max(1, _BLOCK // n)
    for start in range(0, total, step):
        size = min(step, total - start)
        if exact:
            bits = (np.arange(start, start + size)[:, None] >> np.arange(n)) & 1
        else:
            bits = rng.integers(2, size=(size, n), dtype=np.int8)
        hits += int(np.sum(fold((1.0 - 2.0 * bits) @ difference) >= threshold))
    return hits / total if exact else (1 + hits) / (1 + total)


def fit_rate(sizes: ArrayLike, errors: ArrayLike, *, confidence: float = 0.95) -> Estimate:
    """Slope of log(error) against log(size) by least squares: ``error ~ size ** slope``.

    Args:
        sizes: Problem sizes, shape ``[n]``, positive, at least two of them different; repeats are allowed.
        errors: Error at each size, shape ``[n]``, positive.
        confidence: Nominal coverage of the interval in (0, 1).

    Returns:
        The slope; its interval is Student's, for independent log errors of one variance, and missing for ``n = 2``.

    Raises:
        ValueError: If the shapes differ, a value is not positive and finite, or all sizes are equal.

    Example:
        >>> round(fit_rate([10, 100, 1000], [1.0, 0.1, 0.01]).value, 6)
        -1.0
    """
    size, error = _vector(sizes, "sizes"), _vector(errors, "errors")
    if size.shape != error.shape or np.any(size <= 0) or np.any(error <= 0) or np.all(size == size[0]):
        raise ValueError(
            f"sizes={size} and errors={error}: a rate needs as many positive errors as positive sizes, "
            "and two different sizes; drop errors that are exactly zero"
        )
    _check_settings(confidence, 1)
    n = len(size)
    x, y = np.log(size), np.log(error)
    x, y = x - x.mean(), y - y.mean()
    slope = float(x @ y / (x @ x))
    if n == 2:
        return Estimate(slope, n=n)
    half = student_t_quantile((1 + confidence) / 2, n - 2) * math.sqrt(float(np.sum((y - slope * x) ** 2) / (n - 2)))
    half /= math.sqrt(float(x @ x))
    return Estimate(slope, slope - half, slope + half, n)


def _ends(
    replicates: Array, n: int, df: int, confidence: float, bias: float = 0.0, acceleration: float = 0.0
) -> tuple[float, float]:
    """Ends of the interval of the replicates, widened for n observations with df degrees of freedom."""
    reach = math.sqrt(n / (n - 1)) * student_t_quantile((1 + confidence) / 2, df)
    levels = []
    for z in (-reach, reach):
        shifted = bias + z
        levels.append(_NORMAL.cdf(bias + shifted / max(1 - acceleration * shifted, 1e-3)))
    low, high = np.quantile(replicates, levels)
    return float(low), float(high)


def _middle_mean(rows: Array) -> Array:
    """Mean of the middle half of each row."""
    cut = rows.shape[1] // 4
    return np.sort(rows, axis=1)[:, cut : rows.shape[1] - cut].mean(axis=1)


def _takes_axis(statistic: Callable[..., Any]) -> bool:
    try:
        return "axis" in inspect.signature(statistic).parameters
    except (TypeError, ValueError):  # some compiled functions have no signature
        return False


def _finite(values: ArrayLike, name: str) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 0 or array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}; give at least one observation along the first axis")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds {np.sum(~np.isfinite(array))} values that are NaN or infinite; remove them")
    return array


def _vector(values: ArrayLike, name: str) -> Array:
    array = _finite(values, name)
    if array.ndim != 1:
        raise ValueError(f"{name} has shape {array.shape}; give a vector [n]")
    return array


def _check_settings(confidence: float, resamples: int) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}; it lies between 0 and 1, such as 0.95")
    if resamples < 1:
        raise ValueError(f"resamples={resamples}; give at least 1")

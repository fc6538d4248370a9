"""What the quantiser must do, in plain numpy and Python integers, derived without looking at how it is done."""

from fractions import Fraction

import numpy as np
from jaxtyping import Float


def step(low: float, high: float, bits: int) -> float:
    """Distance of neighbouring codes, Δ = (high − low) / (2^b − 1).

    Args:
        low: Smallest number of the group.
        high: Largest number of the group.
        bits: b.

    Returns:
        Δ, in the unit of the numbers.
    """
    return (high - low) / (2**bits - 1)


def variance_law(span: float, bits: int) -> float:
    """Variance of stochastic rounding where the fraction of a code is uniform: R² / (6 B²), B = 2^b − 1.

    It is Δ² ∫₀¹ f(1 − f) df. It does not hold at 1 bit for bell-shaped numbers: their fractions are not uniform.

    Args:
        span: R, range of the group.
        bits: b.

    Returns:
        Variance a number.

    Example:
        >>> variance_law(6.0, 2)
        0.6666666666666666
    """
    return span**2 / (6 * (2**bits - 1) ** 2)


def rounding_variance(x: Float[np.ndarray, " n"], low: float, high: float, bits: int) -> Float[np.ndarray, " n"]:
    """Variance of each number of a group: Δ² f (1 − f), f the fraction of (x − low)/Δ; at 1 bit (x − low)(high − x).

    Args:
        x: Numbers in [low, high], shape [n].
        low: Smallest number of the group.
        high: Largest number of the group.
        bits: b.

    Returns:
        Variances, shape [n].

    Example:
        >>> rounding_variance(np.array([0.0, 0.25, 1.0]), 0.0, 1.0, 1).tolist()
        [0.0, 0.1875, 0.0]
    """
    if high == low:
        return np.zeros_like(x)
    delta = step(low, high, bits)
    position = (x - low) / delta
    fraction = position - np.floor(position)
    return delta**2 * fraction * (1 - fraction)


def group_ranges(x: Float[np.ndarray, " n"], group_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest number of the group of each number.

    Args:
        x: Numbers, shape [n], n > 0.
        group_size: G.

    Returns:
        Lows and highs, shape [n] each.
    """
    starts = np.arange(0, len(x), group_size)
    sizes = np.diff(np.append(starts, len(x)))
    return np.repeat(np.minimum.reduceat(x, starts), sizes), np.repeat(np.maximum.reduceat(x, starts), sizes)


def bias_bound(low: float, high: float, bits: int, epsilon: float = 2.0**-24) -> float:
    """Largest |E x̂ − x|: what 16-bit randomness cuts off, 2⁻¹⁶Δ, and what floating point rounds.

    Position t = (x − low)·B/(high − low) takes three roundings and a raise by an ulp, at most 6ε·t; x̂ takes
    six roundings of numbers up to R + max(|low|, |high|), and a step raised by 4ε.

    Args:
        low: Smallest number of the group.
        high: Largest number of the group.
        bits: b.
        epsilon: ε, half an ulp of 1 in the arithmetic (2⁻²⁴ in fp32).

    Returns:
        The bound, in the unit of the numbers.
    """
    span = high - low
    return step(low, high, bits) * 2.0**-16 + 16 * epsilon * (span + max(abs(low), abs(high)))


def expected_code(x: Fraction, low: Fraction, high: Fraction, bits: int) -> Fraction:
    """Mean code over all 2¹⁶ random integers, in exact arithmetic: Σ_r min(B, ⌊(⌊2¹⁶t⌋ + r)/2¹⁶⌋) / 2¹⁶.

    Args:
        x: The number.
        low: Smallest number of its group.
        high: Largest number of its group.
        bits: b.

    Returns:
        The mean, at most t and above t − 2⁻¹⁶.

    Example:
        >>> expected_code(Fraction(1, 4), Fraction(0), Fraction(1), 1)
        Fraction(1, 4)
    """
    top = 2**bits - 1
    fixed = int((x - low) * top / (high - low) * 2**16)
    return Fraction(sum(min(top, (fixed + r) >> 16) for r in range(2**16)), 2**16)


def stored_bits(numel: int, bits: int, group_size: int, number_bits: int) -> int:
    """Bits of all codes and of two numbers a group, whole groups only.

    Args:
        numel: n.
        bits: b.
        group_size: G.
        number_bits: Bits of a number before.

    Returns:
        Bits.

    Example:
        >>> stored_bits(1 << 20, 4, 256, 16) // 8
        540672
    """
    groups = (numel + group_size - 1) // group_size
    return groups * group_size * bits + 2 * groups * number_bits


def random16(index: int, key: int) -> int:
    """The random integer of one element, one step after the other in Python's own integers.

    Args:
        index: i.
        key: 64 bits.

    Returns:
        An integer in [0, 65535].
    """
    word, half = divmod(index, 2)
    block, place = divmod(word, 2**15)
    low, high = key % 2**32, key // 2**32
    value = (_mix(place ^ low) + _mix((_mix(block ^ high) + low) % 2**32)) % 2**32
    value ^= value // 2**15
    value = value * 2221713035 % 2**32
    value ^= value // 2**16
    return value // 2**16 if half else value % 2**16


def _mix(value: int) -> int:
    """A bijection of 32 bits: two multiplications by odd numbers between three xor-shifts."""
    value ^= value // 2**16
    value = value * 2146121005 % 2**32
    value ^= value // 2**15
    value = value * 2221713035 % 2**32
    return value ^ value // 2**16

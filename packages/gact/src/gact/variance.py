"""The variance that stochastic rounding to few bits puts into a stored tensor."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["BITS", "law", "law_variance", "profile", "range_energy"]

BITS = (1, 2, 4, 8)
_CHUNK = 1 << 16  # elements: the temporaries of a chunk stay in cache
_LEAST = 1e-35  # ranges whose scale could overflow
_FRACTIONS = 1 << 16  # the quantiser rounds by random 16-bit integers, so probabilities are multiples of 2⁻¹⁶


def law(bits: int) -> float:
    """The law of the noise in the number of bits, S(b) = 1 / (2ᵇ − 1)².

    It holds where the fractional part of (x − low) · B / R is about uniform: well at 4 and 8 bits, roughly at 2, not at
    1, where the exact variance is (x − low)(high − x); `profile` is exact at all of them.

    Args:
        bits: Bits of a code; positive.

    Returns:
        S(b), which multiplies R²/6.

    Raises:
        ValueError: If `bits` is not positive.

    Example:
        >>> [round(1 / law(b)) for b in BITS]
        [1, 9, 225, 65025]
    """
    if not bits > 0:
        raise ValueError(f"bits is {bits}; give a positive number of bits, one of {BITS} for the quantiser")
    return (2.0**bits - 1.0) ** -2


def range_energy(low: Float[Tensor, "groups"], high: Float[Tensor, "groups"]) -> Float[Tensor, "groups"]:
    """The squared range of each group, R² = (high − low)².

    Args:
        low: Smallest value of each group, in any floating dtype.
        high: Largest value; where the two are swapped (a group with −∞ in it) the square does not mind.

    Returns:
        R² in double precision (single on devices without it): the square of a large range overflows less.
    """
    wide = _wide(low)
    return (high.to(wide) - low.to(wide)).square_()


def law_variance(
    low: Float[Tensor, "groups"], high: Float[Tensor, "groups"], numel: int, group_size: int, bits: int
) -> Float[Tensor, ""]:
    """Total variance of a stored tensor by the law, Σ_i Var[x̂_i] ≈ Σ_g n_g R_g² / (6 B²).

    Args:
        low: Smallest value of each group of `group_size` consecutive elements.
        high: Largest value of each group.
        numel: Number of elements; the last group may hold fewer than the others.
        group_size: Elements of a group.
        bits: Bits of a code.

    Returns:
        The variance, on the device of `low`, without waiting for it.

    Example:
        >>> low, high = torch.zeros(2), torch.ones(2)
        >>> round(float(law_variance(low, high, 3, 2, 1)), 6)  # three elements of variance 1/6
        0.5
    """
    squares = range_energy(low, high)
    groups = squares.numel()
    if groups == 0:
        return squares.sum()
    last = numel - (groups - 1) * group_size
    if not 0 < last <= group_size:
        raise ValueError(f"{groups} groups of {group_size} cannot hold {numel} elements; give ceil(numel / group_size)")
    total = squares.sum() * group_size + squares[-1] * (last - group_size)
    return total * (law(bits) / 6.0)


@torch.no_grad()
def profile(
    x: Float[Tensor, "numel"],
    group_size: int,
    low: Float[Tensor, "groups"] | None = None,
    high: Float[Tensor, "groups"] | None = None,
) -> tuple[float, float, float, float]:
    """Expected total variance at 1, 2, 4 and 8 bits, exactly.

    Σ_i Var[x̂_i] = Σ_i Δ² f_i (1 − f_i), with Δ = R/B and f_i the fractional part of (x_i − low)/Δ.

    Args:
        x: The tensor to be stored, flattened in the order of its memory.
        group_size: Elements of a group; the last one may be shorter.
        low: Smallest value of each group, if known already.
        high: Largest value of each group, if known already.

    Returns:
        Four variances, for `BITS` in order. Groups that are not finite make all of them infinite. Waits for the device
        once.

    Raises:
        ValueError: If `group_size` is not positive, or only one of `low` and `high` is given.

    Example:
        >>> profile(torch.tensor([0.0, 0.5, 1.0]), 256)[0]  # at one bit 0.5 becomes 0 or 1: variance 1/4
        0.25
    """
    if group_size < 1:
        raise ValueError(f"group_size is {group_size}; give a positive number of elements")
    if (low is None) != (high is None):
        raise ValueError("one of low and high is missing; give both, or none to have them computed")
    work = torch.float64 if x.dtype == torch.float64 else torch.float32
    total = torch.zeros(len(BITS), dtype=_wide(x), device=x.device)
    for start, rows in _chunks(x, group_size):
        values = rows.to(work)
        end = start + rows.shape[0]
        floor = values.amin(1) if low is None else low[start:end].to(work)
        top = values.amax(1) if high is None else high[start:end].to(work)
        total += _chunk_variance(values, floor, top - floor)
    first, second, third, fourth = total.tolist()
    return first, second, third, fourth


def _chunks(x: Tensor, group_size: int) -> Iterator[tuple[int, Tensor]]:
    """Whole groups as rows, some at a time, then the shorter last one; with the index of the first group of each."""
    groups = x.numel() // group_size
    whole = x[: groups * group_size].view(groups, group_size)
    step = max(1, _CHUNK // group_size) if x.device.type == "cpu" else max(1, (_CHUNK << 8) // group_size)
    for start in range(0, groups, step):
        yield start, whole[start : start + step]
    if groups * group_size < x.numel():
        yield groups, x[groups * group_size :].view(1, -1)


def _chunk_variance(values: Tensor, low: Tensor, spread: Tensor) -> Tensor:
    """Σ Δ² f(1 − f) over the rows of a chunk, at each number of bits."""
    offset = values - low[:, None]
    wide = _wide(values)
    square = spread.to(wide).square()
    sums = []
    for bits in BITS:
        levels = 2**bits - 1
        # Constant groups are stored exactly; next to the smallest normal number the variance is zero all the same.
        scale = torch.where(spread.abs() < _LEAST, 0, levels * _FRACTIONS / spread)
        short = spread * scale < levels * _FRACTIONS  # by rounding: the quantiser gives the largest value the last code
        scale = torch.where(short & (scale > 0), torch.nextafter(scale, torch.full_like(scale, torch.inf)), scale)
        chance = (offset * scale[:, None]).floor_().remainder_(_FRACTIONS).div_(_FRACTIONS)
        share = (chance - chance.square()).sum(1, dtype=wide)
        sums.append((share * square).sum() / levels**2)
    variances = torch.stack(sums)
    return torch.where(variances.isfinite(), variances, torch.inf)


def _wide(x: Tensor) -> torch.dtype:
    """Double precision where the device has it."""
    return torch.float32 if x.device.type == "mps" else torch.float64

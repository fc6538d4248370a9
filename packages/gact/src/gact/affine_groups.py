"""What a group's smallest and largest value say about its codes: the arithmetic once a group, in fp32 or fp64.

Two ways lead to the same bits. The plain one serves groups of ordinary numbers and tells, by None, that there are
others; the careful one serves all: groups with NaN, infinities, overflow, or a range so small that B/(high − low)
overflows, for which a power of two is taken out first.
"""

import math
from dataclasses import dataclass
from typing import final

import torch

FIXED = 1 << 16  # one code in the fixed-point numbers that are rounded
# type of the numbers: integers of their size, and the bits of the one NaN that is stored (conversions make several)
NAN_BITS = {
    torch.float16: (torch.int16, 0x7E00),
    torch.bfloat16: (torch.int16, 0x7FC0),
    torch.float32: (torch.int32, 0x7FC00000),
    torch.float64: (torch.int64, 0x7FF8000000000000),
}


@final
@dataclass(frozen=True)
class Encoder:
    """How the numbers of each group become codes: min(cap, ⌊(⌊(x − base)·lift·scale⌋ + r) / 2¹⁶⌋).

    Args:
        low: What is stored as the group's `low`, shape [groups, 1].
        high: What is stored as its `high`.
        base: Subtracted, shape [groups, 1].
        scale: 2¹⁶ codes a unit, shape [groups, 1].
        lift: A power of two that keeps the scale in range, or None where it is 1.
        cap: Largest code of a finite number, shape [groups, 1], or None where it is B.
        gone: Which numbers are -inf and get the code B, shape [groups, G], or None where none is.
    """

    low: torch.Tensor
    high: torch.Tensor
    base: torch.Tensor
    scale: torch.Tensor
    lift: torch.Tensor | None = None
    cap: torch.Tensor | None = None
    gone: torch.Tensor | None = None


@final
@dataclass(frozen=True)
class Decoder:
    """How codes become numbers again: min(top, base + (q·step)·drop), top for q = cap, and -inf for q = B if `masked`.

    A step is raised a little where the largest code would fall short of the top: min(…) then makes it exact. Only where
    it cannot be raised, its range being nearly the largest number there is, must q = cap be looked at.

    Args:
        base: Number of the code 0, shape [groups, 1].
        step: Between neighbouring codes, times the group's lift.
        top: Largest finite number of the group.
        drop: One over the group's lift, or None where it is 1.
        masked: Which groups have -inf as their code B, or None where none has.
        cap: Code of the top, or None where the step is raised as it should.
    """

    base: torch.Tensor
    step: torch.Tensor
    top: torch.Tensor
    drop: torch.Tensor | None = None
    masked: torch.Tensor | None = None
    cap: torch.Tensor | None = None


def limits(dtype: torch.dtype) -> tuple[float, float, float]:
    """Constants of the arithmetic in fp32 or fp64.

    Args:
        dtype: torch.float32 or torch.float64.

    Returns:
        The range below which a group is lifted, the lift, and the factor that raises a step by a few ulps.
    """
    if dtype == torch.float64:
        return 2.0**-960, 2.0**900, 1 + 2.0**-51
    return 2.0**-96, 2.0**90, 1 + 2.0**-22


def plain_encoder(smallest: torch.Tensor, largest: torch.Tensor, bits: int) -> Encoder | None:
    """The encoder of groups of ordinary numbers.

    Args:
        smallest: Smallest value of each group, fp32 or fp64, shape [groups, 1]; NaN where the group has one.
        largest: Largest value, likewise.
        bits: Bits a code.

    Returns:
        The encoder, or None if some group needs `careful_encoder`.
    """
    tiny = limits(smallest.dtype)[0]
    span = largest - smallest
    flat = span == 0
    proper = span.masked_fill(flat, 1.0)
    least, most = torch.aminmax(proper)
    if not (least.item() >= tiny and most.item() < math.inf):
        return None
    scale = _scale(proper, torch.full_like(span, ((1 << bits) - 1) * FIXED)).masked_fill_(flat, 0.0)
    low = smallest + 0.0  # -0.0 becomes 0.0: which of the two a minimum returns is nobody's promise
    return Encoder(low, largest + 0.0, low, scale)


def careful_encoder(
    groups: torch.Tensor, smallest: torch.Tensor, largest: torch.Tensor, bits: int
) -> tuple[torch.Tensor, Encoder]:
    """The encoder of any groups.

    Args:
        groups: Numbers, fp32 or fp64, shape [groups, G].
        smallest: As for `plain_encoder`.
        largest: Likewise.
        bits: Bits a code.

    Returns:
        The numbers with every NaN and infinity replaced by its group's base, and the encoder.
    """
    tiny, lift, _ = limits(groups.dtype)
    top_code = (1 << bits) - 1
    gone = groups == -math.inf
    masked = gone.any(1, keepdim=True)
    nothing = largest == -math.inf
    base = torch.where(gone, math.inf, groups).amin(1, keepdim=True).masked_fill(nothing, 0.0) + 0.0
    top = largest.masked_fill(nothing, 0.0) + 0.0
    span = top - base
    broken = ~torch.isfinite(span)
    if bits == 1:
        broken = broken | (masked & (span > 0))
    usable = ~broken & (span > 0)
    lifts = torch.where(span < tiny, lift, torch.ones_like(span))
    cap = top_code - masked.to(span.dtype)
    scale = _scale(torch.where(usable, span * lifts, 1.0), cap * FIXED).masked_fill(~usable, 0.0)
    low, high = torch.where(masked, top, base), torch.where(masked, base, top)
    high = high.masked_fill(masked & (span == 0), -math.inf)
    low, high = low.masked_fill(broken, math.nan), high.masked_fill(broken, math.nan)
    base = base.masked_fill(broken, 0.0)
    finite = torch.where(torch.isfinite(groups), groups, base)
    return finite, Encoder(low, high, base, scale, lifts, cap.to(torch.int32), gone & ~broken)


def plain_decoder(low: torch.Tensor, high: torch.Tensor, bits: int) -> Decoder | None:
    """The decoder of groups of ordinary numbers.

    Args:
        low: As stored, but in fp32 or fp64, shape [groups, 1].
        high: Likewise.
        bits: Bits a code.

    Returns:
        The decoder, or None if some group needs `careful_decoder`.
    """
    tiny, _, raised = limits(low.dtype)
    span = high - low
    least, most = torch.aminmax(span.masked_fill(span == 0, 1.0))
    if not (least.item() >= tiny and most.item() < torch.finfo(span.dtype).max / 2):  # also with NaN, or low > high
        return None
    codes = torch.full_like(span, (1 << bits) - 1)
    step = span / codes
    short = low + codes * step < high
    return Decoder(low, torch.where(short, step * raised, step), high)


def careful_decoder(low: torch.Tensor, high: torch.Tensor, bits: int) -> Decoder:
    """The decoder of any groups.

    Args:
        low: As for `plain_decoder`.
        high: Likewise.
        bits: Bits a code.

    Returns:
        The decoder.
    """
    tiny, lift, raised = limits(low.dtype)
    masked = low > high
    single = masked & (high == -math.inf)
    base = torch.where(masked, torch.where(single, low, high), low)
    top = torch.where(masked, low, high)
    span = top - base
    lifts = torch.where(span < tiny, lift, torch.ones_like(span))
    cap = (1 << bits) - 1 - masked.to(span.dtype)
    codes = cap.clamp(min=1.0)
    step = (span * lifts) / codes
    drop = 1.0 / lifts
    short = base + (codes * step) * drop < top
    step = torch.where(short, (step * raised).clamp_(max=torch.finfo(step.dtype).max), step)
    return Decoder(base, step, top, drop, masked, cap.to(torch.uint8))


def _scale(span: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Codes / span, raised by one ulp where span·scale would fall short of codes: the largest value gets code B."""
    scale = codes / span
    return torch.where(span * scale < codes, torch.nextafter(scale, torch.full_like(scale, math.inf)), scale)

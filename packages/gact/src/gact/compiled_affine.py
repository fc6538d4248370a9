"""The affine format written in operators that torch.compile can trace and fuse.

Codes, `low` and `high` mean what they mean in the eager quantiser, so the bytes are the same. Two things differ because
a compiled graph has no Python between two steps: the key of the rounding is a tensor, and the bits of the number itself
enter the hash. A graph that is replayed with a stale key (a captured CUDA graph) then still rounds differently from
step to step, as the numbers do.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["dequantise_traced", "pack_bits_traced", "quantise_traced", "unpack_bits_traced"]

# Shapes are not annotated for the run-time checker here: under torch.compile they are symbols, and asking them for
# their value would specialise the graph.


def quantise_traced(x: Tensor, bits: int, group_size: int, key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Stochastically rounded codes q = min(B, ⌊(x − low)·B/(high − low) + u⌋), B = 2^bits − 1, group by group.

    u is uniform on the multiples of 2⁻¹⁶ in [0, 1), a hash of `key`, the element's index and its own bits. The last
    group is padded with the last element. NaN and infinities are treated as the eager quantiser does: it can read these
    codes. Only a range below 2⁻¹¹⁸, for which it takes out a power of two, counts as constant here.

    Args:
        x: Numbers in the order of their memory, floating, shape `[n]`, n > 0.
        bits: 1, 2, 4 or 8.
        group_size: G, elements that share `low` and `high`.
        key: Key of the rounding, 0-dimensional, int32, on the device of `x`.

    Returns:
        Codes of ⌈n/G⌉ whole groups, uint8, lowest bits first; low and high, shape `[⌈n/G⌉]`, dtype of `x`.
    """
    top, work = 2**bits - 1, torch.float64 if x.dtype == torch.float64 else torch.float32
    random = _random16(x, key)
    groups = (x.shape[0] + group_size - 1) // group_size
    padding = groups * group_size - x.shape[0]
    values = _padded(x, padding).reshape(groups, group_size).to(work)
    gone = values == -math.inf
    marked = gone.any(dim=1, keepdim=True)
    low = torch.where(gone, math.inf, values).amin(dim=1, keepdim=True)
    high = values.amax(dim=1, keepdim=True)
    nothing = gone.all(dim=1, keepdim=True)
    low, high = torch.where(nothing, 0.0, low) + 0.0, torch.where(nothing, 0.0, high) + 0.0  # -0.0 becomes 0.0
    span = high - low
    broken = ~torch.isfinite(span)
    if bits == 1:
        broken = broken | (marked & (span > 0))
    levels = top - marked.to(work)
    scale = levels / span
    scale = torch.where(torch.isfinite(scale), scale, 0.0)  # a constant group, or one narrower than 1 / the largest
    position = torch.where(gone | broken, 0.0, (values - low) * scale)
    fixed = (position.clamp(min=0.0, max=float(top)) * 65536).to(torch.int32)
    codes = (fixed + _padded(random, padding).reshape(groups, group_size)) >> 16
    codes = torch.where(gone, top, torch.minimum(codes, levels.to(torch.int32)))
    flat = marked & (span == 0)  # nothing to swap: high = -inf shows the mark
    first = torch.where(broken, math.nan, torch.where(marked & ~flat, high, low))
    second = torch.where(broken, math.nan, torch.where(flat, -math.inf, torch.where(marked, low, high)))
    return _pack_fields(codes.reshape(-1), bits), first.reshape(-1).to(x.dtype), second.reshape(-1).to(x.dtype)


def dequantise_traced(payload: Tensor, first: Tensor, second: Tensor, bits: int, group_size: int, numel: Any) -> Tensor:
    """x̂ = low + q·(high − low)/B, and -inf where the top code of a marked group says so.

    Args:
        payload: Codes of `quantise_traced`.
        first: Its first row of metadata: low, or high in a marked group.
        second: Its second row.
        bits: As there.
        group_size: As there.
        numel: n.

    Returns:
        Numbers, shape `[n]`, dtype of `first`.
    """
    top, work = 2**bits - 1, torch.float64 if first.dtype == torch.float64 else torch.float32
    codes = _unpack_fields(payload, bits).reshape(-1, group_size)
    first_, second_ = first.to(work)[:, None], second.to(work)[:, None]
    marked = first_ > second_
    flat = marked & (second_ == -math.inf)
    low = torch.where(marked & ~flat, second_, first_)
    high = torch.where(marked, first_, second_)
    values = low + codes.to(work) * (high - low) / (top - marked.to(work)).clamp(min=1)
    values = torch.where(marked & (codes == top), -math.inf, values)
    return values.reshape(-1)[:numel].to(first.dtype)


def pack_bits_traced(mask: Tensor) -> Tensor:
    """Eight booleans a byte, first one lowest.

    Args:
        mask: Booleans, shape `[n]`.

    Returns:
        Bytes, uint8, shape `[⌈n/8⌉]`.
    """
    padding = (mask.shape[0] + 7) // 8 * 8 - mask.shape[0]
    return _pack_fields(_padded(mask.to(torch.int32), padding), 1)


def unpack_bits_traced(packed: Tensor, numel: Any) -> Tensor:
    """The booleans of `pack_bits_traced`.

    Args:
        packed: Bytes, shape `[⌈n/8⌉]`.
        numel: n.

    Returns:
        Booleans, shape `[n]`.
    """
    return _unpack_fields(packed, 1)[:numel] != 0


def _padded(x: Tensor, padding: Any) -> Tensor:
    if isinstance(padding, int) and padding == 0:
        return x
    return torch.cat([x, x[-1:].expand(padding)])


def _pack_fields(codes: Tensor, bits: int) -> Tensor:
    if bits == 8:
        return codes.to(torch.uint8)
    shifts = torch.arange(0, 8, bits, dtype=torch.int32, device=codes.device)
    return (codes.reshape(-1, 8 // bits) << shifts).sum(dim=1, dtype=torch.int32).to(torch.uint8)


def _unpack_fields(packed: Tensor, bits: int) -> Tensor:
    wide = packed.to(torch.int32)
    if bits == 8:
        return wide
    shifts = torch.arange(0, 8, bits, dtype=torch.int32, device=packed.device)
    return ((wide[:, None] >> shifts) & (2**bits - 1)).reshape(-1)


def _random16(x: Tensor, key: Tensor) -> Tensor:
    """Integers in [0, 65535]: one avalanche of key ^ index ^ bits, a bijection of the key for every element."""
    index = torch.arange(x.shape[0], dtype=torch.int32, device=x.device)
    own = x.to(torch.float32).contiguous().view(torch.int32)
    h = (index * _signed(0x9E3779B1)) ^ (own * _signed(0x85EBCA6B)) ^ key
    h = (h ^ _shifted(h, 16)) * _signed(0x21F0AAAD)
    h = (h ^ _shifted(h, 15)) * _signed(0x735A2D97)
    return _shifted(h ^ _shifted(h, 15), 16)


def _shifted(h: Tensor, by: int) -> Tensor:
    """Logical shift right: torch's shift of an int32 is arithmetic."""
    return (h >> by) & ((1 << (32 - by)) - 1)


def _signed(word: int) -> int:
    return word - (1 << 32) if word >= 1 << 31 else word

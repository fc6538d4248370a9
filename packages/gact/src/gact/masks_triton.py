# pyrefly: ignore-errors
# (a kernel is not Python to a type checker)
"""Packed booleans and small integers in Triton: the signatures of `gact.masks`, and its bytes."""

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, UInt8

from gact import masks

_TILE = 1024  # packed bytes a program makes


def pack_bits(mask: Bool[torch.Tensor, " n"]) -> UInt8[torch.Tensor, " m"]:
    """A mask at one bit an element.

    Args:
        mask: As for `masks.pack_bits`.

    Returns:
        Bytes, shape [⌈n/8⌉].

    Raises:
        TypeError: If `mask` is not boolean.
    """
    if mask.dtype != torch.bool:
        raise TypeError(f"a mask of dtype {mask.dtype}: pack_bits takes torch.bool; for small integers pack_fields")
    return pack_fields(mask.detach().view(torch.uint8), 1)


def unpack_bits(packed: UInt8[torch.Tensor, " m"], numel: int) -> Bool[torch.Tensor, " {numel}"]:
    """The mask that `pack_bits` packed.

    Args:
        packed: As for `masks.unpack_bits`.
        numel: n.

    Returns:
        Booleans, shape [n].

    Raises:
        ValueError: If `packed` has another length than ⌈n/8⌉.
    """
    return unpack_fields(packed, 1, numel).view(torch.bool)


def pack_fields(values: UInt8[torch.Tensor, " n"], width: int) -> UInt8[torch.Tensor, " m"]:
    """Integers below 2^width at `width` bits each.

    Args:
        values: As for `masks.pack_fields`.
        width: Likewise.

    Returns:
        Bytes, shape [⌈n·width/8⌉].

    Raises:
        TypeError: As there.
        ValueError: As there.
    """
    masks.check_fields(values, width)
    values, lanes = values.detach(), 8 // width
    whole, rest = divmod(values.numel(), lanes)
    packed = torch.empty(whole + (rest > 0), dtype=torch.uint8, device=values.device)
    if whole:
        _pack[(triton.cdiv(whole, _TILE),)](values, packed, whole, width, _TILE)
    if rest:
        packed[whole:] = masks.pack_fields(values[whole * lanes :], width)
    return packed


def unpack_fields(packed: UInt8[torch.Tensor, " m"], width: int, numel: int) -> UInt8[torch.Tensor, " {numel}"]:
    """The integers that `pack_fields` packed.

    Args:
        packed: As for `masks.unpack_fields`.
        width: Likewise.
        numel: n.

    Returns:
        Bytes, shape [n].

    Raises:
        TypeError: As there.
        ValueError: As there.
    """
    masks.check_length(packed, width, numel)
    values = torch.empty(packed.numel() * (8 // width), dtype=torch.uint8, device=packed.device)
    if numel:
        _unpack[(triton.cdiv(packed.numel(), _TILE),)](packed, values, packed.numel(), width, _TILE)
    return values[:numel]


# No mask changes within a byte's values: loads and stores are as wide as they are.
@triton.jit(do_not_specialize=["count"])
def _pack(values_ptr, packed_ptr, count, WIDTH: tl.constexpr, TILE: tl.constexpr):
    LANES: tl.constexpr = 8 // WIDTH
    byte = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    lane = tl.arange(0, LANES)[None, :]
    element = byte[:, None] * LANES + lane
    values = tl.load(values_ptr + element, mask=(byte < count)[:, None], other=0).to(tl.int32)
    tl.store(packed_ptr + byte, tl.sum(values << (WIDTH * lane), 1).to(tl.uint8), mask=byte < count)


@triton.jit(do_not_specialize=["count"])
def _unpack(packed_ptr, values_ptr, count, WIDTH: tl.constexpr, TILE: tl.constexpr):
    LANES: tl.constexpr = 8 // WIDTH
    byte = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    lane = tl.arange(0, LANES)[None, :]
    packed = tl.load(packed_ptr + byte, mask=byte < count, other=0).to(tl.int32)
    values = (packed[:, None] >> (WIDTH * lane)) & ((1 << WIDTH) - 1)
    element = byte[:, None] * LANES + lane
    tl.store(values_ptr + element, values.to(tl.uint8), mask=(byte < count)[:, None])

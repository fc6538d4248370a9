"""Booleans, small integers and max-pool indices in as few bits as they need.

Fields of w bits, w ∈ {1, 2, 4}, lie next to one another, the first in the least significant bits of a byte:

    byte[i] = Σ_k value[i·(8/w) + k] · 2^{wk},      k = 0, …, 8/w − 1.

The sum is a multiplication: 8/w neighbouring bytes, read as one integer, times Σ_k 2^{8(L−1) − (8−w)k} have the
packed byte on top, and no two of the other products meet (L = 8/w).
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Int64, UInt8

WIDTHS = (1, 2, 4)
# width: (integer of 8/width bytes, multiplier, shift that brings the packed byte down)
_LANES = {
    1: (torch.int64, sum(1 << (56 - 7 * k) for k in range(8)), 56),
    2: (torch.int32, sum(1 << (24 - 6 * k) for k in range(4)), 24),
    4: (torch.int16, sum(1 << (8 - 4 * k) for k in range(2)), 8),
}
_UNSIGNED = {1: np.uint64, 2: np.uint32, 4: np.uint16}
# width: (shift, mask) that halve, step by step, how many fields share an integer of 8/width bytes
_SPREAD = {
    1: ((28, 0x0000000F0000000F), (14, 0x0003000300030003), (7, 0x0101010101010101)),
    2: ((12, 0x000F000F), (6, 0x03030303)),
    4: ((4, 0x0F0F),),
}
_CHUNK = 1 << 20  # values at a time: temporaries stay small beside the tensor


def pack_bits(mask: Bool[torch.Tensor, " n"]) -> UInt8[torch.Tensor, " m"]:
    """A mask at one bit an element.

    Args:
        mask: Booleans, shape [n], contiguous.

    Returns:
        Bytes, shape [⌈n/8⌉], the first element in the least significant bit; bits beyond n are 0.

    Raises:
        TypeError: If `mask` is not boolean.

    Example:
        >>> pack_bits(torch.tensor([True, False, True])).tolist()
        [5]
    """
    if mask.dtype != torch.bool:
        raise TypeError(f"a mask of dtype {mask.dtype}: pack_bits takes torch.bool; for small integers pack_fields")
    return pack_fields(mask.detach().view(torch.uint8), 1)


def unpack_bits(packed: UInt8[torch.Tensor, " m"], numel: int) -> Bool[torch.Tensor, " {numel}"]:
    """The mask that `pack_bits` packed.

    Args:
        packed: Bytes, shape [⌈n/8⌉].
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
        values: Bytes, shape [n], contiguous, each below 2^width (not checked: larger ones spill over neighbours).
        width: 1, 2 or 4 bits.

    Returns:
        Bytes, shape [⌈n·width/8⌉]; fields beyond n are 0.

    Raises:
        TypeError: If `values` is not uint8.
        ValueError: If the width is another one.

    Example:
        >>> pack_fields(torch.tensor([1, 2, 3], dtype=torch.uint8), 4).tolist()
        [33, 3]
    """
    check_fields(values, width)
    values, numel, lanes = values.detach(), values.numel(), 8 // width
    packed = torch.empty(-(-numel // lanes), dtype=torch.uint8, device=values.device)
    whole = numel - numel % lanes
    for start in range(0, whole, _CHUNK):
        stop = min(start + _CHUNK, whole)
        part = values[start:stop]
        # a view of wider integers wants an aligned address
        part = part if part.storage_offset() % lanes == 0 else part.clone()
        pack_into(part, width, packed[start // lanes : stop // lanes])
    if whole < numel:
        last = torch.zeros(lanes, dtype=torch.uint8, device=values.device)
        last[: numel - whole] = values[whole:]
        pack_into(last, width, packed[-1:])
    return packed


def unpack_fields(packed: UInt8[torch.Tensor, " m"], width: int, numel: int) -> UInt8[torch.Tensor, " {numel}"]:
    """The integers that `pack_fields` packed.

    Args:
        packed: Bytes, shape [⌈n·width/8⌉].
        width: 1, 2 or 4 bits.
        numel: n.

    Returns:
        Bytes, shape [n].

    Raises:
        TypeError: If `packed` is not uint8.
        ValueError: If the width is another one, or `packed` has another length.
    """
    check_length(packed, width, numel)
    lanes = 8 // width
    values = torch.empty(packed.numel() * lanes, dtype=torch.uint8, device=packed.device)
    for start in range(0, packed.numel(), _CHUNK // lanes):
        part = packed[start : start + _CHUNK // lanes]
        unpack_into(part, width, values[start * lanes : (start + part.numel()) * lanes])
    return values[:numel]


def check_fields(values: torch.Tensor, width: int) -> None:
    """Refuse what `pack_fields` and `unpack_fields` cannot take.

    Args:
        values: Values or packed bytes.
        width: Bits a field.

    Raises:
        TypeError: If `values` is not uint8.
        ValueError: If the width is none of `WIDTHS`, or `values` is not one contiguous dimension.
    """
    if width not in WIDTHS:
        raise ValueError(f"fields of {width} bits: the widths are {WIDTHS}; bytes need no packing")
    if values.dtype != torch.uint8:
        raise TypeError(f"values of dtype {values.dtype}: fields are uint8; convert them first")
    if values.ndim != 1 or not values.is_contiguous():
        raise ValueError(f"values of shape {tuple(values.shape)}: give one contiguous dimension, x.reshape(-1)")


def check_length(packed: torch.Tensor, width: int, numel: int) -> None:
    """Refuse what `unpack_fields` cannot take.

    Args:
        packed: Packed bytes.
        width: Bits a field.
        numel: Number of fields.

    Raises:
        TypeError: If `packed` is not uint8.
        ValueError: If the width is none of `WIDTHS`, or `packed` has another length than ⌈numel·width/8⌉.
    """
    check_fields(packed, width)
    need = -(-numel * width // 8)
    if packed.numel() != need:
        raise ValueError(f"{packed.numel()} bytes for {numel} fields of {width} bits: need {need}")


def pack_into(
    values: UInt8[torch.Tensor, " n"],
    width: int,
    out: UInt8[torch.Tensor, " m"],
    scratch: UInt8[torch.Tensor, " n"] | None = None,
) -> None:
    """Pack whole bytes into a buffer.

    Args:
        values: Bytes below 2^width, shape [n], n a multiple of 8/width, at an aligned address.
        width: 1, 2 or 4 bits.
        out: Receives n·width/8 bytes.
        scratch: Overwritten; allocated if None.
    """
    dtype, multiplier, shift = _LANES[width]
    if values.device.type == "cpu":  # numpy's integer loops are faster, and multiply without sign
        unsigned = _UNSIGNED[width]
        wide = None if scratch is None else scratch.numpy().view(unsigned)
        wide = np.multiply(values.numpy().view(unsigned), unsigned(multiplier), out=wide)
        np.right_shift(wide, unsigned(shift), out=wide)
        np.copyto(out.numpy(), wide, casting="unsafe")
        return
    lanes = torch.mul(values.view(dtype), multiplier, out=None if scratch is None else scratch.view(dtype))
    out.copy_(lanes.bitwise_right_shift_(shift))


def unpack_into(
    packed: UInt8[torch.Tensor, " m"],
    width: int,
    out: UInt8[torch.Tensor, " n"],
    scratch: UInt8[torch.Tensor, " n"] | None = None,
) -> None:
    """Unpack whole bytes into a buffer.

    Args:
        packed: Bytes, shape [m].
        width: 1, 2 or 4 bits.
        out: Receives 8m/width values, at an aligned address.
        scratch: Overwritten; allocated if None.
    """
    if packed.device.type == "cpu":
        unsigned = _UNSIGNED[width]
        wide = out.numpy().view(unsigned)
        np.copyto(wide, packed.numpy())
        spare = np.empty_like(wide) if scratch is None else scratch.numpy().view(unsigned)
        for shift, mask in _SPREAD[width]:
            np.left_shift(wide, unsigned(shift), out=spare)
            np.bitwise_or(wide, spare, out=wide)
            np.bitwise_and(wide, unsigned(mask), out=wide)
        return
    dtype = _LANES[width][0]
    lanes = out.view(dtype)
    lanes.copy_(packed)
    for shift, mask in _SPREAD[width]:
        moved = torch.bitwise_left_shift(lanes, shift, out=None if scratch is None else scratch.view(dtype))
        lanes.bitwise_or_(moved).bitwise_and_(mask)


def field_width(count: int) -> int:
    """Bits of the narrowest field that tells `count` values apart.

    Args:
        count: From 1 to 256.

    Returns:
        1, 2, 4 or 8.

    Raises:
        ValueError: If no field of up to 8 bits does.
    """
    if not 1 <= count <= 256:
        raise ValueError(f"{count} values: a field of at most 8 bits tells 1 to 256 apart")
    return next(width for width in (1, 2, 4, 8) if count <= 1 << width)


def pool_offsets(
    indices: Int64[torch.Tensor, "..."],
    input_size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> UInt8[torch.Tensor, " n"]:
    """Where in its window each maximum lies, from the flat indices that max-pooling saves.

    With o the output position and s, p, d, k stride, padding, dilation and the place in the window, an index is
    Σ_a (o_a s_a − p_a + k_a d_a) · weight_a: a part of the position and a part of the place.

    Args:
        indices: Flat indices into the input's last dimensions, shape [N, C, *output_size] or without N.
        input_size: Sizes of the pooled dimensions of the input, two or three of them (or one).
        kernel: Of the window, one a pooled dimension; at most 256 places.
        stride: Likewise.
        padding: Likewise.
        dilation: Likewise.

    Returns:
        Places in the window, row-major, below Π kernel, shape [indices.numel()].

    Raises:
        ValueError: If the numbers of dimensions disagree, or the window has more than 256 places.
    """
    origins, deltas = _window(indices.shape, input_size, kernel, stride, padding, dilation, indices.device)
    place = torch.zeros(int(deltas.max()) + 1, dtype=torch.uint8, device=indices.device)
    place[deltas] = torch.arange(deltas.numel(), device=indices.device).to(torch.uint8)
    planes = indices.reshape(-1, origins.numel())
    offsets = torch.empty(planes.shape, dtype=torch.uint8, device=indices.device)
    rows = max(1, _CHUNK // max(1, origins.numel()))
    for start in range(0, len(planes), rows):
        offsets[start : start + rows] = place[planes[start : start + rows] - origins]
    return offsets.reshape(-1)


def pool_indices(
    offsets: UInt8[torch.Tensor, " n"],
    shape: Sequence[int],
    input_size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Int64[torch.Tensor, "..."]:
    """The flat indices whose places in the window are given: the inverse of `pool_offsets`.

    Args:
        offsets: From `pool_offsets`.
        shape: Of the indices, [N, C, *output_size] or without N.
        input_size: As for `pool_offsets`.
        kernel: Likewise.
        stride: Likewise.
        padding: Likewise.
        dilation: Likewise.

    Returns:
        Flat indices of the given shape.

    Raises:
        ValueError: As `pool_offsets`.
    """
    origins, deltas = _window(shape, input_size, kernel, stride, padding, dilation, offsets.device)
    indices = torch.empty(
        (offsets.numel() // max(1, origins.numel()), origins.numel()), dtype=torch.int64, device=offsets.device
    )
    planes = offsets.view(indices.shape)
    rows = max(1, _CHUNK // max(1, origins.numel()))
    for start in range(0, len(planes), rows):
        torch.add(deltas[planes[start : start + rows].int()], origins, out=indices[start : start + rows])
    return indices.view(tuple(shape))


def _window(
    shape: Sequence[int],
    input_size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    device: torch.device,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Flat index of each window's origin (which may lie in the padding), and what each place of a window adds."""
    axes = len(input_size)
    if not len(kernel) == len(stride) == len(padding) == len(dilation) == axes or not 1 <= axes <= len(shape):
        raise ValueError(
            f"input_size={tuple(input_size)}, kernel={tuple(kernel)}, stride={tuple(stride)}, "
            f"padding={tuple(padding)}, dilation={tuple(dilation)} for indices of shape {tuple(shape)}: "
            "give one number a pooled dimension to each"
        )
    if math.prod(kernel) > 256:
        raise ValueError(f"a window of {tuple(kernel)} has more than 256 places: keep its indices as they are")
    origins = deltas = torch.zeros((), dtype=torch.int64, device=device)
    for axis, size in enumerate(shape[len(shape) - axes :]):
        weight = math.prod(input_size[axis + 1 :])
        origin = (torch.arange(size, device=device) * stride[axis] - padding[axis]) * weight
        delta = torch.arange(kernel[axis], device=device) * (dilation[axis] * weight)
        origins, deltas = origins[..., None] + origin, deltas[..., None] + delta
    return origins.reshape(-1), deltas.reshape(-1)

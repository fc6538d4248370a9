"""The affine quantiser: groups of numbers as codes of 1, 2, 4 or 8 bits, rounded stochastically, without bias.

A group of G numbers keeps its smallest and its largest value, low and high, in the tensor's own type, and for each
number a code q ∈ {0, …, B}, B = 2^b − 1:

    t = (x − low)·B / (high − low),     q = min(B, ⌊(⌊2¹⁶t⌋ + r) / 2¹⁶⌋),     x̂ = low + q·(high − low)/B,

r a uniform 16-bit integer. Then E q = ⌊2¹⁶t⌋/2¹⁶, which is t to within 2⁻¹⁶. Everything up to the integers is computed
in fp32 (fp64 for fp64) with IEEE rounding and no fused multiply-add, so that every backend makes the same codes and
the same numbers, to the bit. Constant groups and both ends of a group are exact, and x̂ stays within [low, high].

What is not a number does not spread beyond its group. A group with a NaN, a +inf, or a range that overflows comes back
as NaN, so that a gradient scaler sees it. A group with -inf, as in masked logits, gives the code B to -inf and the
others to its finite numbers, which shows in its `low` being larger than its `high`; at 1 bit the finite numbers must
all be equal for that, or the group comes back as NaN.

Reference:
    Chen et al. (2021). ActNN: Reducing training memory footprint via 2-bit activation compressed training. ICML.
    Liu et al. (2022). GACT: Activation compressed training for generic network architectures. ICML.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Float, UInt8

from gact import affine_groups as groups_of
from gact import counter_rng, ledger, masks, scratch

BITS = (1, 2, 4, 8)
GROUP_SIZES = (64, 128, 256, 512, 1024, 2048)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
STRIDE = (
    8 * counter_rng.BLOCK
)  # elements whose groups are measured at once; they are coded a block of the RNG at a time
CHUNK = counter_rng.BLOCK  # elements coded at once on a processor: they fit its cache
_DEVICE_STRIDE = 1 << 24  # on devices, where a launch costs more than memory


@final
@dataclass(frozen=True)
class AffineCodes:
    """Codes of a tensor: one buffer, and what is needed to read it.

    The buffer holds the packed codes of all ⌈n/G⌉ whole groups (the last one padded with the tensor's last number),
    then `low` and then `high` of all groups, without gaps.

    Args:
        buffer: Bytes, shape [ledger.affine_bytes(...)].
        numel: n, how many numbers there are.
        bits: b, bits a code.
        group_size: G, numbers that share low and high.
        dtype: Of the numbers, and of low and high.
    """

    buffer: torch.Tensor
    numel: int
    bits: int
    group_size: int
    dtype: torch.dtype

    @property
    def groups(self) -> int:
        """Number of groups, ⌈n/G⌉."""
        return -(-self.numel // self.group_size)

    @property
    def nbytes(self) -> int:
        """Bytes of the buffer."""
        return self.buffer.numel()

    @property
    def payload(self) -> torch.Tensor:
        """Packed codes, uint8, shape [groups·G·b/8]; a view."""
        return self.buffer[: self._payload_bytes]

    @property
    def low(self) -> torch.Tensor:
        """Smallest value of each group, shape [groups]; a view."""
        start = self._payload_bytes
        return self.buffer[start : start + self.groups * self.dtype.itemsize].view(self.dtype)

    @property
    def high(self) -> torch.Tensor:
        """Largest value of each group, shape [groups]; a view."""
        return self.buffer[self._payload_bytes + self.groups * self.dtype.itemsize :].view(self.dtype)

    @property
    def _payload_bytes(self) -> int:
        return self.groups * (self.group_size * self.bits // 8)


def quantise(
    x: Float[torch.Tensor, " n"],
    bits: int,
    *,
    key: int,
    group_size: int = 256,
    out: UInt8[torch.Tensor, " m"] | None = None,
    of: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> AffineCodes:
    """Store a tensor at `bits` bits a number.

    Temporaries are of fixed size on a processor, and at most a few times 2²⁴ numbers on a device.

    Args:
        x: Numbers, fp16, bf16, fp32 or fp64, shape [n], contiguous; n may be 0.
        bits: 1, 2, 4 or 8.
        key: From `counter_rng.stream_key`: the same key makes the same codes.
        group_size: G, one of `GROUP_SIZES`.
        out: Receives the buffer: uint8, of `ledger.affine_bytes` bytes, aligned to 16; allocated if None.
        of: An element-wise function of the numbers to store in their place, applied piece by piece.

    Returns:
        The codes.

    Raises:
        TypeError: If `x` is of another type.
        ValueError: If `x` is not one contiguous dimension, bits or group size is another one, or `out` does not fit.

    Example:
        >>> x = torch.linspace(-1, 1, 1000)
        >>> codes = quantise(x, 4, key=counter_rng.stream_key(0, 0, 0))
        >>> codes.nbytes, bool((dequantise(codes) - x).abs().max() < 0.5 / 15)
        (544, True)
    """
    codes = prepare(x, bits, key, group_size, out)
    if codes.groups == 0:
        return codes
    with torch.no_grad():
        x, low, high = x.detach(), codes.low, codes.high
        rounding = Rounding(key, codes.groups * group_size, x.device)
        per_group, stride = group_size * bits // 8, _stride(x.device)
        whole = codes.numel - codes.numel % group_size
        for start in range(0, whole, stride):
            stop = min(start + stride, whole)
            groups = slice(start // group_size, stop // group_size)
            payload = codes.payload[groups.start * per_group : groups.stop * per_group]
            piece = x[start:stop] if of is None else of(x[start:stop])
            _encode(piece.view(-1, group_size), bits, rounding, start, payload, low[groups], high[groups])
        if whole < codes.numel:
            rest = x[whole:] if of is None else of(x[whole:])
            last = rest[-1:].expand(group_size).clone()
            last[: codes.numel - whole] = rest
            _encode(last[None], bits, rounding, whole, codes.payload[-per_group:], low[-1:], high[-1:])
    return codes


def dequantise(
    codes: AffineCodes, *, dtype: torch.dtype | None = None, out: Float[torch.Tensor, " n"] | None = None
) -> Float[torch.Tensor, " n"]:
    """The numbers x̂ = low + q·(high − low)/B that the codes stand for.

    Args:
        codes: From `quantise`.
        dtype: Of the result, a floating type; that of the tensor if None.
        out: Receives the result, contiguous; allocated if None.

    Returns:
        Numbers, shape [n].

    Raises:
        TypeError: If `dtype` is not one of `DTYPES`.
        ValueError: If `out` has another size, type or device.
    """
    out = prepare_result(codes, dtype, out)
    with torch.no_grad():
        group, low, high = codes.group_size, codes.low, codes.high
        per_group, stride = group * codes.bits // 8, _stride(out.device)
        whole = codes.numel - codes.numel % group
        for start in range(0, whole, stride):
            stop = min(start + stride, whole)
            groups = slice(start // group, stop // group)
            payload = codes.payload[groups.start * per_group : groups.stop * per_group]
            _decode(payload, codes.bits, low[groups], high[groups], out[start:stop].view(-1, group))
        if whole < codes.numel:
            last = torch.empty((1, group), dtype=out.dtype, device=out.device)
            _decode(codes.payload[-per_group:], codes.bits, low[-1:], high[-1:], last)
            out[whole:] = last[0, : codes.numel - whole]
    return out


def prepare(x: torch.Tensor, bits: int, key: int, group_size: int, out: torch.Tensor | None) -> AffineCodes:
    """Check what `quantise` is given, and wrap the buffer that it fills.

    Args:
        x: Numbers.
        bits: Bits a number.
        key: Of the rounding.
        group_size: Numbers a group.
        out: The buffer, or None.

    Returns:
        Codes whose buffer is still to be filled.

    Raises:
        TypeError: See `quantise`.
        ValueError: See `quantise`.
    """
    if x.dtype not in DTYPES:
        raise TypeError(f"a tensor of dtype {x.dtype}: quantise takes fp16, bf16, fp32 and fp64")
    if x.ndim != 1 or not x.is_contiguous():
        raise ValueError(f"a tensor of shape {tuple(x.shape)}: give one contiguous dimension, x.contiguous().view(-1)")
    if bits not in BITS:
        raise ValueError(f"bits={bits}: the choices are {BITS}")
    if group_size not in GROUP_SIZES:
        raise ValueError(f"group_size={group_size}: the choices are {GROUP_SIZES}")
    if not 0 <= key < 1 << 64:
        raise ValueError(f"key={key} is outside [0, 2**64): take it from counter_rng.stream_key")
    need = ledger.affine_bytes(x.numel(), bits, group_size, x.dtype)
    if out is None:
        out = torch.empty(need, dtype=torch.uint8, device=x.device)
    elif out.dtype != torch.uint8 or out.shape != (need,) or out.device != x.device or not out.is_contiguous():
        raise ValueError(
            f"out is {out.dtype}, shape {tuple(out.shape)}, on {out.device}: need {need} contiguous bytes (uint8) on "
            f"{x.device}; ledger.affine_bytes says how many"
        )
    elif out.storage_offset() % 16:
        raise ValueError(f"out starts {out.storage_offset()} bytes into its storage: need a multiple of 16")
    return AffineCodes(out, x.numel(), bits, group_size, x.dtype)


def prepare_result(codes: AffineCodes, dtype: torch.dtype | None, out: torch.Tensor | None) -> torch.Tensor:
    """Check what `dequantise` is given, and return the tensor that it fills.

    Args:
        codes: The codes.
        dtype: Of the result, or None.
        out: The result, or None.

    Returns:
        A tensor of n numbers, still to be filled.

    Raises:
        TypeError: See `dequantise`.
        ValueError: See `dequantise`.
    """
    dtype = dtype or (codes.dtype if out is None else out.dtype)
    if dtype not in DTYPES:
        raise TypeError(f"dtype={dtype}: dequantise makes fp16, bf16, fp32 and fp64")
    if out is None:
        return torch.empty(codes.numel, dtype=dtype, device=codes.buffer.device)
    if out.dtype != dtype or out.shape != (codes.numel,) or out.device != codes.buffer.device:
        raise ValueError(
            f"out is {out.dtype}, shape {tuple(out.shape)}, on {out.device}: need {dtype}, shape ({codes.numel},), on "
            f"{codes.buffer.device}"
        )
    if not out.is_contiguous():
        raise ValueError("out is not contiguous")
    return out


@final
class Rounding:
    """Rounds fixed-point numbers to integers by the random integers of one tensor's stream.

    Args:
        key: From `counter_rng.stream_key`.
        numel: How many numbers the tensor has, padding included.
        device: Where they are.
    """

    def __init__(self, key: int, numel: int, device: torch.device) -> None:
        self._key = key
        self._host = device.type == "cpu"
        if self._host:
            words = min(counter_rng.BLOCK_WORDS, numel // 2)
            self._places = counter_rng.place_terms(key, words)

    def round_off(self, fixed: torch.Tensor, start: int, spare: torch.Tensor) -> None:
        """⌊(fixed + r) / 2¹⁶⌋ for elements from `start` on, which on a processor lie in one block of the stream.

        Args:
            fixed: Changed in place, int32, shape [groups, G].
            start: Index of the first element, even.
            spare: Overwritten on a processor, int32, shape [groups·G].
        """
        if not self._host:
            fixed.add_(counter_rng.random16(start, fixed.numel(), self._key, fixed.device).view_as(fixed))
            fixed.bitwise_right_shift_(16)
            return
        block, place = divmod(start, counter_rng.BLOCK)
        count = fixed.numel() // 2
        places = self._places[place // 2 : place // 2 + count]
        words = scratch.take("words", count, torch.int32, fixed.device)
        counter_rng.fill_words(
            places, self._key, block, words.numpy().view(np.uint32), spare[:count].numpy().view(np.uint32)
        )
        fixed.add_(spare.copy_(words.view(torch.uint16)).view_as(fixed))
        array = fixed.numpy()
        np.right_shift(array, 16, out=array)


def _stride(device: torch.device) -> int:
    return STRIDE if device.type == "cpu" else _DEVICE_STRIDE


def _rows(groups: torch.Tensor) -> int:
    """How many groups are coded at once: on a processor as many as fit the cache and one block of random numbers."""
    return CHUNK // groups.shape[1] if groups.device.type == "cpu" else max(1, len(groups))


def _encode(
    groups: torch.Tensor,
    bits: int,
    rounding: Rounding,
    start: int,
    payload: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
) -> None:
    """Measure whole groups, shape [groups, G], and code them."""
    wide = _wide(groups.dtype)
    if groups.dtype != wide:
        groups = scratch.take("numbers", groups.numel(), wide, groups.device).view_as(groups).copy_(groups)
    smallest, largest = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    # to ask a device whether all is ordinary would make the host wait for it
    encoder = groups_of.plain_encoder(smallest, largest, bits) if groups.device.type == "cpu" else None
    if encoder is None:
        groups, encoder = groups_of.careful_encoder(groups, smallest, largest, bits)
    for stored, end in ((low, encoder.low.view(-1)), (high, encoder.high.view(-1))):
        stored.copy_(end)
        if encoder.cap is not None:  # the careful way: there may be NaN
            integer, pattern = groups_of.NAN_BITS[stored.dtype]
            stored.view(integer).masked_fill_(end.isnan(), pattern)
    rows, size = _rows(groups), groups.shape[1]
    most = min(rows, len(groups)) * size
    real = scratch.take("real", most, wide, groups.device).view(-1, size)
    fixed = scratch.take("fixed", most, torch.int32, groups.device).view(-1, size)
    ends, per_part = (encoder.base.split(rows), encoder.scale.split(rows)), rows * size * bits // 8
    for number, (part, base, scale, packed) in enumerate(
        zip(groups.split(rows), *ends, payload.split(per_part), strict=True)
    ):
        count = len(part)
        t, q = (real, fixed) if count == len(real) else (real[:count], fixed[:count])
        torch.sub(part, base, out=t)
        where = slice(number * rows, number * rows + count)
        if encoder.lift is not None:
            t.mul_(encoder.lift[where])
        q.copy_(t.mul_(scale))
        spare = t.view(-1).view(torch.int32)[: q.numel()]
        rounding.round_off(q, start + number * rows * size, spare)
        if encoder.cap is not None and encoder.gone is not None:
            torch.minimum(q, encoder.cap[where], out=q)
            q.masked_fill_(encoder.gone[where], (1 << bits) - 1)
        _store(q.view(-1), bits, packed, spare)


def _store(codes: torch.Tensor, bits: int, payload: torch.Tensor, spare: torch.Tensor) -> None:
    """Clamp codes to B and pack them."""
    top = (1 << bits) - 1
    if bits == 8:
        payload.copy_(codes.clamp_(max=top))
        return
    narrow, lanes = spare.view(torch.uint8)[: 2 * len(codes)].split(len(codes))
    masks.pack_into(narrow.copy_(codes).clamp_(max=top), bits, payload, lanes)


def _decode(payload: torch.Tensor, bits: int, low: torch.Tensor, high: torch.Tensor, out: torch.Tensor) -> None:
    """Numbers of whole groups into `out`, shape [groups, G]."""
    low, high = (end.to(_wide(end.dtype))[:, None] for end in (low, high))
    decoder = groups_of.plain_decoder(low, high, bits) if out.device.type == "cpu" else None
    if decoder is None:
        decoder = groups_of.careful_decoder(low, high, bits)
    rows, size = _rows(out), out.shape[1]
    direct = out.dtype == low.dtype
    real = out if direct else scratch.take("real", min(rows, len(out)) * size, low.dtype, out.device).view(-1, size)
    ends, per_part = (decoder.base, decoder.step, decoder.top), rows * size * bits // 8
    for number, (result, packed, base, step, top) in enumerate(
        zip(out.split(rows), payload.split(per_part), *(end.split(rows) for end in ends), strict=True)
    ):
        count = len(result)
        t = result if direct else real[:count]
        q = _load(packed, bits).view_as(t)
        t.copy_(q).mul_(step)
        where = slice(number * rows, number * rows + count)
        if decoder.drop is not None:
            t.mul_(decoder.drop[where])
        torch.minimum(t.add_(base), top, out=t)
        if decoder.masked is not None and decoder.cap is not None:
            torch.where(q == decoder.cap[where], top, t, out=t)
            t.masked_fill_(decoder.masked[where] & (q == (1 << bits) - 1), -math.inf)
        if not direct:
            result.copy_(t)


def _load(payload: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes as bytes."""
    if bits == 8:
        return payload
    codes = scratch.take("narrow", payload.numel() * 8 // bits, torch.uint8, payload.device)
    masks.unpack_into(payload, bits, codes, scratch.take("lanes", codes.numel(), torch.uint8, codes.device))
    return codes


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32

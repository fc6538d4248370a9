# pyrefly: ignore-errors
# ruff: noqa: SIM108, SIM300
# (a kernel is not Python to a type checker, and its branches on constants are Triton's)
"""The affine quantiser in Triton: the signatures of `gact.affine`, and its bytes and numbers to the bit.

A program codes the groups at one place of several consecutive blocks of the random stream: they share the first term
of their random words (see `gact.counter_rng`), so that it is computed once for all of them. Numbers are read once;
minimum, maximum, scale and codes stay in registers. Fused multiply-add is off and division is IEEE's.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, UInt8

from gact import affine, affine_groups, counter_rng

_TL = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32, torch.float64: tl.float64}
_TILE = 2048  # numbers a program holds in registers
_BLOCK = tl.constexpr(counter_rng.BLOCK)
_A = tl.constexpr(counter_rng.MULTIPLIER_A)
_B = tl.constexpr(counter_rng.MULTIPLIER_B)
_FIXED = tl.constexpr(affine_groups.FIXED)


def quantise(
    x: Float[torch.Tensor, " n"],
    bits: int,
    *,
    key: int,
    group_size: int = 256,
    out: UInt8[torch.Tensor, " m"] | None = None,
) -> affine.AffineCodes:
    """Store a tensor at `bits` bits a number, in one pass and one launch.

    Args:
        x: As for `affine.quantise`.
        bits: Likewise.
        key: Likewise.
        group_size: Likewise.
        out: Likewise.

    Returns:
        The codes, the same as from `affine.quantise`.

    Raises:
        TypeError: As there.
        ValueError: As there.
    """
    codes = affine.prepare(x, bits, key, group_size, out)
    if codes.groups == 0:
        return codes
    x, whole = x.detach(), codes.numel // group_size
    if whole:
        _launch_encode(x, codes, key, 0, whole)
    if whole < codes.groups:  # the last group is padded with the last number
        last = x[-1:].expand(group_size).clone()
        last[: codes.numel - whole * group_size] = x[whole * group_size :]
        _launch_encode(last, codes, key, whole, codes.groups)
    return codes


def dequantise(
    codes: affine.AffineCodes,
    *,
    dtype: torch.dtype | None = None,
    out: Float[torch.Tensor, " n"] | None = None,
) -> Float[torch.Tensor, " n"]:
    """The numbers that the codes stand for, written in the type asked for.

    Args:
        codes: As for `affine.dequantise`.
        dtype: Likewise.
        out: Likewise.

    Returns:
        Numbers, shape [n], the same as from `affine.dequantise`.

    Raises:
        TypeError: As there.
        ValueError: As there.
    """
    out = affine.prepare_result(codes, dtype, out)
    if codes.groups == 0:
        return out
    whole, start = codes.numel // codes.group_size, codes.numel - codes.numel % codes.group_size
    if whole:
        _launch_decode(codes, out, 0, whole)
    if whole < codes.groups:
        last = torch.empty(codes.group_size, dtype=out.dtype, device=out.device)
        _launch_decode(codes, last, whole, codes.groups)
        out[start:] = last[: codes.numel - start]
    return out


def _launch_encode(x: torch.Tensor, codes: affine.AffineCodes, key: int, first: int, stop: int) -> None:
    """Code the whole groups first, …, stop − 1, whose numbers `x` holds; no load is masked within a group."""
    integer, nan = affine_groups.NAN_BITS[codes.dtype]
    wide = _wide(codes.dtype)
    in_block = counter_rng.BLOCK // codes.group_size
    places = min(in_block, stop - first)
    blocks = -(-stop // in_block) - first // in_block
    rows = min(max(1, _TILE // codes.group_size), 1 << (blocks - 1).bit_length())
    tiny, lift, _ = affine_groups.limits(wide)
    _encode[(places, -(-blocks // rows))](
        _bits_of_bf16(x),
        codes.payload,
        codes.low.view(integer),
        codes.high.view(integer),
        first,
        stop,
        _signed(key & 0xFFFFFFFF),
        _signed(key >> 32),
        BITS=codes.bits,
        G=codes.group_size,
        ROWS=rows,
        DTYPE=_TL[codes.dtype],
        WIDE=_TL[wide],
        NAN=nan,
        TINY=tiny,
        LIFT=lift,
        num_warps=4,
        enable_fp_fusion=False,
    )


def _launch_decode(codes: affine.AffineCodes, out: torch.Tensor, first: int, stop: int) -> None:
    """Write the numbers of the whole groups first, …, stop − 1 into `out`."""
    wide = _wide(codes.dtype)
    rows = max(1, _TILE // codes.group_size)
    tiny, lift, raised = affine_groups.limits(wide)
    _decode[(-(-(stop - first) // rows),)](
        codes.payload,
        _bits_of_bf16(codes.low),
        _bits_of_bf16(codes.high),
        out,
        first,
        stop,
        BITS=codes.bits,
        G=codes.group_size,
        ROWS=rows,
        WIDE=_TL[wide],
        OUT=_TL[out.dtype],
        TINY=tiny,
        LIFT=lift,
        RAISED=raised,
        LARGEST=torch.finfo(wide).max,
        INTERPRETED=not isinstance(_decode, triton.JITFunction),
        num_warps=4,
        enable_fp_fusion=False,
    )


@triton.jit
def _mix32(value):
    value = value ^ (value >> 16)
    value = value * tl.full((), _A, tl.uint32)
    value = value ^ (value >> 15)
    value = value * tl.full((), _B, tl.uint32)
    return value ^ (value >> 16)


@triton.jit
def _widened(value, WIDE: tl.constexpr):
    """A number of 16 bits as fp32; bf16 comes as the upper half of its bits."""
    if value.dtype == tl.int16:
        wide = (value.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        wide = value.to(WIDE)
    return wide


@triton.jit
def _bits(value, DTYPE: tl.constexpr, INTEGER: tl.constexpr):
    """The bits of a number that is representable in DTYPE."""
    if DTYPE == tl.bfloat16:
        bits = (value.to(tl.int32, bitcast=True) >> 16).to(tl.int16)
    else:
        bits = value.to(DTYPE).to(INTEGER, bitcast=True)
    return bits


@triton.jit
def _bf16(value):
    """Rounds fp32 to the nearest bf16, ties to even, in integers: the interpreter's own conversion truncates."""
    bits = value.to(tl.int32, bitcast=True)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    rounded = tl.where(value != value, 0x7FC0, rounded)
    return rounded.to(tl.int16).to(tl.bfloat16, bitcast=True)


@triton.jit
def _divide(numerator, denominator, WIDE: tl.constexpr):
    if WIDE == tl.float32:
        quotient = tl.div_rn(numerator, denominator)  # a plain division is not IEEE's in fp32
    else:
        quotient = numerator / denominator
    return quotient


@triton.jit
def _next_up(value, WIDE: tl.constexpr):
    """The next larger number of a positive one."""
    if WIDE == tl.float32:
        raised = (value.to(tl.int32, bitcast=True) + 1).to(tl.float32, bitcast=True)
    else:
        raised = (value.to(tl.int64, bitcast=True) + 1).to(tl.float64, bitcast=True)
    return raised


@triton.jit
def _random16(place, blocks, key_low, key_high, G: tl.constexpr, ROWS: tl.constexpr):
    """Random integers of the groups at one place of each block, shape [ROWS, G]; place counts groups in a block."""
    low, high = key_low.to(tl.uint32), key_high.to(tl.uint32)
    words = (place * (G // 2) + tl.arange(0, G // 2)).to(tl.uint32)
    first = _mix32(words ^ low)
    second = _mix32(_mix32(blocks.to(tl.uint32) ^ high) + low)
    value = first[None, :] + second[:, None]
    value = value ^ (value >> 15)
    value = value * tl.full((), _B, tl.uint32)
    value = value ^ (value >> 16)
    return tl.interleave((value & 0xFFFF).to(tl.int32), (value >> 16).to(tl.int32))


@triton.jit(do_not_specialize=["first", "stop", "key_low", "key_high"])
def _encode(
    x_ptr,
    payload_ptr,
    low_ptr,
    high_ptr,
    first,
    stop,
    key_low,
    key_high,
    BITS: tl.constexpr,
    G: tl.constexpr,
    ROWS: tl.constexpr,
    DTYPE: tl.constexpr,
    WIDE: tl.constexpr,
    NAN: tl.constexpr,
    TINY: tl.constexpr,
    LIFT: tl.constexpr,
):
    TOP: tl.constexpr = (1 << BITS) - 1
    LANES: tl.constexpr = 8 // BITS
    infinity = float("inf")
    IN_BLOCK: tl.constexpr = _BLOCK // G
    place = first % IN_BLOCK + tl.program_id(0)
    blocks = first // IN_BLOCK + tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    group = blocks.to(tl.int64) * IN_BLOCK + place
    valid = group < stop
    element = (group - first)[:, None] * G + tl.arange(0, G)[None, :]
    x = _widened(tl.load(x_ptr + element, mask=valid[:, None], other=0), WIDE)

    gone = x == -infinity
    nan = x != x
    masked = tl.max(gone.to(tl.int32), 1) > 0
    smallest = tl.min(tl.where(gone | nan, infinity, x), 1)
    largest = tl.max(tl.where(nan, -infinity, x), 1)
    nothing = largest == -infinity
    base = tl.where(nothing | (smallest == 0.0), 0.0, smallest)  # also -0.0 becomes 0.0
    top = tl.where(nothing | (largest == 0.0), 0.0, largest)
    span = top - base
    broken = (tl.max(nan.to(tl.int32), 1) > 0) | (span != span) | (span == infinity)
    if BITS == 1:
        broken = broken | (masked & (span > 0))
    usable = (span > 0) & (broken == 0)
    lift = tl.where(span < TINY, LIFT, 1.0).to(WIDE)
    cap = TOP - masked.to(tl.int32)
    units = (cap * _FIXED).to(WIDE)
    lifted = tl.where(usable, span * lift, 1.0).to(WIDE)
    scale = _divide(units, lifted, WIDE)
    scale = tl.where(lifted * scale < units, _next_up(scale, WIDE), scale)
    scale = tl.where(usable, scale, 0.0)
    low = tl.where(masked, top, base)
    high = tl.where(masked, tl.where(span == 0, -infinity, base), top)
    base = tl.where(broken, 0.0, base)

    finite = (x == x) & (x < infinity) & (x > -infinity)
    position = ((tl.where(finite, x, base[:, None]) - base[:, None]) * lift[:, None]) * scale[:, None]
    code = (position.to(tl.int32) + _random16(place, blocks, key_low, key_high, G, ROWS)) >> 16
    code = tl.minimum(code, cap[:, None])
    code = tl.where(gone & (broken[:, None] == 0), TOP, code)
    if LANES > 1:
        lanes = tl.reshape(code, (ROWS, G // LANES, LANES))
        code = tl.sum(lanes << (BITS * tl.arange(0, LANES))[None, None, :], 2)
    byte = group[:, None] * (G // LANES) + tl.arange(0, G // LANES)[None, :]
    tl.store(payload_ptr + byte, code.to(tl.uint8), mask=valid[:, None])

    INTEGER: tl.constexpr = low_ptr.dtype.element_ty
    pattern = tl.full((ROWS,), NAN, INTEGER)  # one NaN on every machine
    tl.store(low_ptr + group, tl.where(broken, pattern, _bits(low, DTYPE, INTEGER)), mask=valid)
    tl.store(high_ptr + group, tl.where(broken, pattern, _bits(high, DTYPE, INTEGER)), mask=valid)


@triton.jit(do_not_specialize=["first", "stop"])
def _decode(
    payload_ptr,
    low_ptr,
    high_ptr,
    out_ptr,
    first,
    stop,
    BITS: tl.constexpr,
    G: tl.constexpr,
    ROWS: tl.constexpr,
    WIDE: tl.constexpr,
    OUT: tl.constexpr,
    TINY: tl.constexpr,
    LIFT: tl.constexpr,
    RAISED: tl.constexpr,
    LARGEST: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    TOP: tl.constexpr = (1 << BITS) - 1
    LANES: tl.constexpr = 8 // BITS
    infinity = float("inf")
    group = first + tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    valid = group < stop
    low = _widened(tl.load(low_ptr + group, mask=valid, other=0), WIDE)
    high = _widened(tl.load(high_ptr + group, mask=valid, other=0), WIDE)
    byte = group[:, None] * (G // LANES) + tl.arange(0, G // LANES)[None, :]
    code = tl.load(payload_ptr + byte, mask=valid[:, None], other=0).to(tl.int32)
    if LANES > 1:
        code = (code[:, :, None] >> (BITS * tl.arange(0, LANES))[None, None, :]) & TOP
        code = tl.reshape(code, (ROWS, G))

    masked = low > high
    single = masked & (high == -infinity)
    base = tl.where(masked & (single == 0), high, low)
    top = tl.where(masked, low, high)
    span = top - base
    tiny = span < TINY
    lift = tl.where(tiny, LIFT, 1.0).to(WIDE)
    drop = tl.where(tiny, 1.0 / LIFT, 1.0).to(WIDE)
    cap = TOP - masked.to(tl.int32)
    steps = tl.maximum(cap, 1).to(WIDE)
    step = _divide(span * lift, steps, WIDE)
    raised = tl.minimum(step * tl.full((), RAISED, WIDE), tl.full((), LARGEST, WIDE))
    step = tl.where(base + (steps * step) * drop < top, raised, step)

    value = base[:, None] + (code.to(WIDE) * step[:, None]) * drop[:, None]
    value = tl.where((value > top[:, None]) | (code == cap[:, None]), top[:, None], value)
    value = tl.where(masked[:, None] & (code == TOP), -infinity, value)
    if OUT != WIDE:
        value = value.to(tl.float32)  # as PyTorch does, from fp64 to 16 bits by way of fp32
    element = (group - first)[:, None] * G + tl.arange(0, G)[None, :]
    if OUT == tl.bfloat16 and INTERPRETED:
        value = _bf16(value)
    tl.store(out_ptr + element, value.to(OUT), mask=valid[:, None])


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _bits_of_bf16(x: torch.Tensor) -> torch.Tensor:
    return x.view(torch.int16) if x.dtype == torch.bfloat16 else x


def _signed(value: int) -> int:
    return value - (1 << 32) if value >= 1 << 31 else value

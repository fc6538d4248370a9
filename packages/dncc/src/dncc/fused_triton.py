# pyrefly: ignore-errors
# ruff: noqa: SIM108
# (a kernel is not Python to a type checker, and its branches on constants are Triton's)
"""The fused loss in Triton: the signatures of `dncc.fused_torch`.

A program takes a few samples with all their members, so that everything that couples members stays in registers. Where
the classes of a sample fit one tile (`plan`), logits are read once and the gradient comes from the same registers.
Otherwise two loops over the classes follow each other, the second from the end, where the cache still holds them.
Every sample's term is written by one program and added up by `torch.sum`: the same bits at every run.
"""

import contextlib
import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dncc.aggregation import Aggregate

__all__ = ["INTERPRETED", "Plan", "gradient", "kernel_arguments", "plan", "rescale", "terms", "terms_kernel"]

_TL = {torch.float32: tl.float32, torch.float64: tl.float64}
_TILE = 4096  # logits that a program should hold
_LARGEST = 16384  # logits that it can hold: 32 registers a thread of the largest block
_SCALE_BLOCK = 4096
_SCALE_PROGRAMS = 1024  # a few for every processor of a large GPU: when there is nothing to do, hardly any work


class Plan(NamedTuple):
    """The tile of a program.

    Attributes:
        members: Rows for members: M, rounded up to a power of two.
        samples: Samples of a program, a power of two.
        classes: Classes at a time, a power of two; at least C if the program does not loop.
        warps: Warps of a program.
    """

    members: int
    samples: int
    classes: int
    warps: int


def plan(members: int, batch: int, classes: int, itemsize: int = 4) -> Plan:
    """How the work is cut: small problems by samples, large ones by classes.

    Args:
        members: M.
        batch: Samples.
        classes: C.
        itemsize: Bytes of a number in registers.

    Returns:
        The tile.

    Example:
        >>> plan(8, 4096, 100)
        Plan(members=8, samples=4, classes=128, warps=4)
        >>> plan(5, 4096, 1000)  # 5 of 8 rows are used
        Plan(members=8, samples=1, classes=1024, warps=8)
        >>> plan(8, 4096, 128_000)
        Plan(members=8, samples=1, classes=512, warps=4)
    """
    rows, width = _power(members), _power(classes)
    tile, largest = _TILE * 4 // itemsize, _LARGEST * 4 // itemsize
    if rows * width > largest:
        width = min(width, max(tile // rows, 32))
    samples = max(1, min(_power(batch), tile // (rows * width)))
    warps = min(16, max(1, rows * samples * width * itemsize // 4096))
    return Plan(rows, samples, width, warps)


def terms(
    logits: Tensor,
    target: Tensor,
    lam: Tensor,
    weight: Tensor | None,
    aggregate: Aggregate,
    summed: bool,
    with_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """As `fused_torch.terms`, in one launch and a sum."""
    if torch.compiler.is_compiling():
        return (*_terms_op(logits, target, lam, weight, aggregate == "geometric", summed), None)
    return _launch_terms(logits, target, lam, weight, aggregate == "geometric", summed, with_gradient)


def gradient(
    logits: Tensor,
    target: Tensor,
    lam: Tensor,
    weight: Tensor | None,
    factor: Tensor,
    aggregate: Aggregate,
    summed: bool,
) -> Tensor:
    """As `fused_torch.gradient`, in one launch."""
    call = _gradient_op if torch.compiler.is_compiling() else _launch_gradient
    return call(logits, target, lam, weight, factor, aggregate == "geometric", summed)


def rescale(grad: Tensor, factor: Tensor) -> Tensor:
    """As `fused_torch.rescale`: reads the factor on the device, and nothing else if it is 1.

    Args:
        grad: Dense, without overlap; overwritten.
        factor: One number on the same device.

    Returns:
        `grad`.
    """
    numel = grad.numel()
    if numel:
        programs = min(_SCALE_PROGRAMS, triton.cdiv(numel, _SCALE_BLOCK))
        with _on(grad):
            _scale_kernel[(programs,)](grad, factor, numel, BLOCK=_SCALE_BLOCK, num_warps=4)
    return grad


def kernel_arguments(
    logits: Tensor,
    grad: Tensor | None,
    aggregate_is_geometric: bool,
    summed: bool,
    weighted: bool,
    scaled: bool,
) -> tuple[list[int], dict[str, object]]:
    """Strides and constants of `terms_kernel` for a problem.

    Strides are given in units of their greatest common divisor with 16, the constant UNIT: so the compiler knows what
    they are multiples of, and joins loads and stores, for 1000 classes too.

    Args:
        logits: (members, batch, classes).
        grad: Where the gradient goes; None without one.
        aggregate_is_geometric: Likewise.
        summed: Whether the loss is the sum over members.
        weighted: Whether samples have weights.
        scaled: Whether the gradient is multiplied by a factor, and only it is wanted.

    Returns:
        Six strides, and the constants.
    """
    members, batch, classes = logits.shape
    wide = torch.promote_types(logits.dtype, torch.float32)
    tile = plan(members, batch, classes, wide.itemsize)
    strides = [*_strides(logits), *_strides(logits if grad is None else grad)]
    unit = math.gcd(*strides[:2], *strides[3:5], 16)
    for i in (0, 1, 3, 4):
        strides[i] //= unit
    constants = {
        "M": members,
        "C": classes,
        "ROWS": tile.members,
        "SAMPLES": tile.samples,
        "WIDTH": tile.classes,
        "UNIT": unit,
        "WIDE": _TL[wide],
        "GEOMETRIC": aggregate_is_geometric,
        "SUMMED": summed,
        "WEIGHTED": weighted,
        "GRADIENT": grad is not None,
        "SCALED": scaled,
    }
    return strides, constants | {"num_warps": tile.warps}


def _launch_terms(
    logits: Tensor,
    target: Tensor,
    lam: Tensor,
    weight: Tensor | None,
    geometric: bool,
    summed: bool,
    with_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    (members, batch, _), wide = logits.shape, torch.promote_types(logits.dtype, torch.float32)
    grad = torch.empty_like(logits) if with_gradient else None
    member_ce = torch.empty((members, batch), dtype=wide, device=logits.device)
    ensemble_ce, ambiguity, row = torch.empty((3, batch), dtype=wide, device=logits.device).unbind()
    total = None if weight is None else weight.sum(dtype=wide)
    outputs = (member_ce, ensemble_ce, ambiguity, row)
    _launch(logits, target, lam, weight, total, None, outputs, grad, geometric, summed)
    loss = row.mean() if total is None else row.sum() / total
    return loss, member_ce, ensemble_ce, ambiguity, grad


def _launch_gradient(
    logits: Tensor,
    target: Tensor,
    lam: Tensor,
    weight: Tensor | None,
    factor: Tensor,
    geometric: bool,
    summed: bool,
) -> Tensor:
    grad = torch.empty_like(logits)
    total = None if weight is None else weight.sum(dtype=torch.promote_types(logits.dtype, torch.float32))
    _launch(logits, target, lam, weight, total, factor, None, grad, geometric, summed)
    return grad


def _launch(
    logits: Tensor,
    target: Tensor,
    lam: Tensor,
    weight: Tensor | None,
    total: Tensor | None,
    factor: Tensor | None,
    outputs: tuple[Tensor, Tensor, Tensor, Tensor] | None,
    grad: Tensor | None,
    geometric: bool,
    summed: bool,
) -> None:
    if logits.numel() == 0:
        return
    strides, constants = kernel_arguments(logits, grad, geometric, summed, weight is not None, factor is not None)
    places = (None,) * 4 if outputs is None else outputs
    lent = (target.contiguous(), lam, None if weight is None else weight.contiguous(), total, factor)
    batch = logits.shape[1]
    with _on(logits):
        terms_kernel[(triton.cdiv(batch, constants["SAMPLES"]),)](
            logits, *lent, *places, grad, batch, *strides, **constants
        )


# For the compiler the launches are two operators without inside. Between forward and backward pass it keeps the logits,
# and the second operator reads them again: no saved tensor is written to in place, and the factor is folded in.


@torch.library.custom_op("dncc::fused_terms", mutates_args=())
def _terms_op(
    logits: Tensor, target: Tensor, lam: Tensor, weight: Tensor | None, geometric: bool, summed: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _launch_terms(logits, target, lam, weight, geometric, summed, False)[:4]


@_terms_op.register_fake
def _(
    logits: Tensor, target: Tensor, lam: Tensor, weight: Tensor | None, geometric: bool, summed: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    members, batch, _ = logits.shape
    wide = torch.promote_types(logits.dtype, torch.float32)
    loss, ensemble_ce, ambiguity = (logits.new_empty(shape, dtype=wide) for shape in ((), (batch,), (batch,)))
    return loss, logits.new_empty((members, batch), dtype=wide), ensemble_ce, ambiguity


@torch.library.custom_op("dncc::fused_gradient", mutates_args=())
def _gradient_op(
    logits: Tensor,
    target: Tensor,
    lam: Tensor,
    weight: Tensor | None,
    factor: Tensor,
    geometric: bool,
    summed: bool,
) -> Tensor:
    return _launch_gradient(logits, target, lam, weight, factor, geometric, summed)


@_gradient_op.register_fake
def _(
    logits: Tensor,
    target: Tensor,
    lam: Tensor,
    weight: Tensor | None,
    factor: Tensor,
    geometric: bool,
    summed: bool,
) -> Tensor:
    return torch.empty_like(logits)


@triton.jit
def _excess(u, WIDE: tl.constexpr):
    """exp(u) - 1 - u; by its series where the difference would cancel, so never negative."""
    near = tl.abs(u) < 0.5
    small = tl.where(near, u, 0.0)
    series = tl.full(u.shape, 1.0, WIDE)
    for k in tl.static_range(14):  # u^2/2 (1 + u/3 (1 + u/4 (... (1 + u/16))))
        series = 1.0 + small * series / (16.0 - k)
    return tl.where(near, small * small * 0.5 * series, tl.exp(u) - 1.0 - u)


@triton.jit
def _finite(x):
    """-inf, the maximum of nothing, as 0: it is subtracted from -inf."""
    return tl.where(x == -float("inf"), 0.0, x)


@triton.jit
def _label_relative_mean(z, reference, real, M: tl.constexpr):
    """mean_m (z_mc - z_m,label), shape [SAMPLES, WIDTH]: logits of the geometric ensemble."""
    return tl.sum(tl.where(real[:, None, None], z - reference[:, :, None], 0.0), 0) / M


@triton.jit
def _load(z_ptr, start, c, zc, inside, C: tl.constexpr, WIDE: tl.constexpr):
    """Logits of all members, shape [ROWS, SAMPLES, WIDTH]; what is outside is -inf."""
    places = start[:, :, None] + (c.to(tl.int64) * zc)[None, None, :]
    mask = inside[:, :, None] & (c < C)[None, None, :]
    return tl.load(z_ptr + places, mask=mask, other=-float("inf")).to(WIDE)


@triton.jit
def _statistics(
    z_ptr, start, zc, inside, real, reference,
    M: tl.constexpr, C: tl.constexpr, WIDTH: tl.constexpr, WIDE: tl.constexpr, GEOMETRIC: tl.constexpr,
):  # fmt: skip
    """Largest logit and sum of exp(z - largest) over the classes in a loop, of members and geometric ensemble."""
    c = tl.arange(0, WIDTH)
    top = tl.full(inside.shape, -float("inf"), WIDE)
    total = tl.zeros(inside.shape, WIDE)
    top_g = tl.max(top, 0)
    total_g = tl.zeros(top_g.shape, WIDE)
    for first in range(0, C, WIDTH):
        z = _load(z_ptr, start, first + c, zc, inside, C, WIDE)
        new = tl.maximum(top, tl.max(z, 2))
        base = _finite(new)
        total = total * tl.exp(top - base) + tl.sum(tl.exp(z - base[:, :, None]), 2)
        top = new
        if GEOMETRIC:
            a = _label_relative_mean(z, reference, real, M)
            new_g = tl.maximum(top_g, tl.max(a, 1))
            base_g = _finite(new_g)
            total_g = total_g * tl.exp(top_g - base_g) + tl.sum(tl.exp(a - base_g[:, None]), 1)
            top_g = new_g
    return _finite(top), total, _finite(top_g), total_g


@triton.jit
def _store_gradient(
    grad_ptr, goes, c, gc, inside, y, share, own, p, common, g, C: tl.constexpr, GEOMETRIC: tl.constexpr
):  # fmt: skip
    """own (p - 1[c = y]), and common (g - 1[c = y]) of the geometric ensemble's g; 0 where a sample counts nothing."""
    hot = (c[None, :] == y[:, None]).to(p.dtype)
    value = own[:, :, None] * (p - hot[None, :, :])
    if GEOMETRIC:
        value += (common[:, None] * (g - hot))[None, :, :]
    value = tl.where((share == 0.0)[None, :, None], 0.0, value)
    places = goes[:, :, None] + (c.to(tl.int64) * gc)[None, None, :]
    mask = inside[:, :, None] & (c < C)[None, None, :]
    tl.store(grad_ptr + places, value.to(grad_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["batch"])
def terms_kernel(
    z_ptr, target_ptr, lam_ptr, weight_ptr, total_ptr, factor_ptr,
    member_ptr, ensemble_ptr, ambiguity_ptr, row_ptr, grad_ptr,
    batch, zm, zb, zc, gm, gb, gc,
    M: tl.constexpr, C: tl.constexpr,
    ROWS: tl.constexpr, SAMPLES: tl.constexpr, WIDTH: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr,
    GEOMETRIC: tl.constexpr, SUMMED: tl.constexpr, WEIGHTED: tl.constexpr,
    GRADIENT: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """Terms of the loss and its gradient for SAMPLES samples; see `kernel_arguments`."""
    WHOLE: tl.constexpr = WIDTH >= C
    m = tl.arange(0, ROWS)
    b = tl.program_id(0).to(tl.int64) * SAMPLES + tl.arange(0, SAMPLES)
    c = tl.arange(0, WIDTH)
    real, sample = m < M, b < batch
    inside = real[:, None] & sample[None, :]
    m64 = m.to(tl.int64)
    start = (m64[:, None] * zm + b[None, :] * zb) * UNIT
    y = tl.load(target_ptr + b, mask=sample, other=0).to(tl.int64)
    # a label out of range makes the loss NaN: there is nobody to raise to
    known = inside & ((y >= 0) & (y < C))[None, :]
    label = tl.load(z_ptr + start + y[None, :] * zc, mask=known, other=float("nan")).to(WIDE)
    reference = tl.where(label > -float("inf"), label, 0.0)  # NaN and -inf: 0
    lam = tl.load(lam_ptr).to(WIDE)

    if WHOLE:
        z = _load(z_ptr, start, c, zc, inside, C, WIDE)
        top = _finite(tl.max(z, 2))
        p = tl.exp(z - top[:, :, None])
        total = tl.sum(p, 2)
        if GEOMETRIC:
            g = _label_relative_mean(z, reference, real, M)
            top_g = _finite(tl.max(g, 1))
            g = tl.exp(g - top_g[:, None])
            total_g = tl.sum(g, 1)
    else:
        top, total, top_g, total_g = _statistics(
            z_ptr, start, zc, inside, real, reference, M, C, WIDTH, WIDE, GEOMETRIC
        )
    total = tl.where(inside, total, 1.0)
    log_total = tl.log(total)
    likelihood = tl.where(real[:, None], (label - top) - log_total, -float("inf"))
    ce = -tl.sum(tl.where(real[:, None], likelihood, 0.0), 0) / M
    if GEOMETRIC:
        total_g = tl.where(sample, total_g, 1.0)
        partition = top_g + tl.log(total_g)
        over = tl.sum(tl.where(real[:, None], (top - reference) + log_total, 0.0), 0) / M
        ambiguity = tl.maximum(over - partition, 0.0)
        ensemble = partition - tl.sum(tl.where(real[:, None], label - reference, 0.0), 0) / M
    else:
        best = _finite(tl.max(likelihood, 0))
        mean = tl.sum(tl.exp(likelihood - best[None, :]), 0) / M
        log_mean = tl.log(tl.where(sample, mean, 1.0))
        u = tl.where(real[:, None], (likelihood - best[None, :]) - log_mean[None, :], 0.0)
        ambiguity = tl.sum(_excess(u, WIDE), 0) / M
        ensemble = -(best + log_mean)

    if WEIGHTED:
        counted = tl.load(weight_ptr + b, mask=sample, other=0.0).to(WIDE)
        share = tl.where(counted == 0.0, 0.0, counted / tl.load(total_ptr))
    else:
        counted = tl.full((SAMPLES,), 1.0, WIDE)
        share = counted / (tl.zeros((SAMPLES,), WIDE) + batch)
    if SUMMED:
        counted = counted * M
    else:
        share = share / M
    if not SCALED:
        value = (1.0 - lam) * ce + lam * ensemble
        tl.store(row_ptr + b, tl.where(counted == 0.0, 0.0, counted * value), mask=sample)
        tl.store(ensemble_ptr + b, ensemble, mask=sample)
        tl.store(ambiguity_ptr + b, ambiguity, mask=sample)
        tl.store(member_ptr + m64[:, None] * batch + b[None, :], -likelihood, mask=inside)
    if GRADIENT:
        if SCALED:
            share = share * tl.load(factor_ptr).to(WIDE)
        goes = (m64[:, None] * gm + b[None, :] * gb) * UNIT
        common = lam * share
        if GEOMETRIC:
            own = tl.zeros((ROWS, SAMPLES), WIDE) + ((1.0 - lam) * share)[None, :]
        else:
            own = share[None, :] * ((1.0 - lam) + lam * tl.exp(u))
        if WHOLE:
            p = p / total[:, :, None]
            if GEOMETRIC:
                g = g / total_g[:, None]
            else:
                g = p
            _store_gradient(grad_ptr, goes, c, gc, inside, y, share, own, p, common, g, C, GEOMETRIC)
        else:
            BLOCKS: tl.constexpr = (C + WIDTH - 1) // WIDTH
            for i in range(BLOCKS):
                places = (BLOCKS - 1 - i) * WIDTH + c
                z = _load(z_ptr, start, places, zc, inside, C, WIDE)
                p = tl.exp(z - top[:, :, None]) / total[:, :, None]
                if GEOMETRIC:
                    g = _label_relative_mean(z, reference, real, M)
                    g = tl.exp(g - top_g[:, None]) / total_g[:, None]
                else:
                    g = p
                _store_gradient(
                    grad_ptr, goes, places, gc, inside, y, share, own, p, common, g, C, GEOMETRIC
                )  # fmt: skip


@triton.jit
def _scale_kernel(x_ptr, factor_ptr, numel, BLOCK: tl.constexpr):
    factor = tl.load(factor_ptr)
    if factor != 1.0:
        first = tl.program_id(0).to(tl.int64) * BLOCK
        for start in range(first, numel, tl.num_programs(0) * BLOCK):
            places = start + tl.arange(0, BLOCK)
            x = tl.load(x_ptr + places, mask=places < numel)
            tl.store(x_ptr + places, (x.to(factor.dtype) * factor).to(x.dtype), mask=places < numel)


# Triton's interpreter (TRITON_INTERPRET=1) takes tensors of the CPU.
INTERPRETED = not isinstance(terms_kernel, triton.JITFunction)


def _strides(x: Tensor) -> list[int]:
    """Strides; 0 along an axis of length 1, where they are arbitrary."""
    return [0 if size == 1 else stride for size, stride in zip(x.shape, x.stride(), strict=True)]


def _power(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()


def _on(x: Tensor) -> contextlib.AbstractContextManager:
    """Triton launches on the current device."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()

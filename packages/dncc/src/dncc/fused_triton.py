"""The fused loss in Triton: the signatures of `dncc.fused_torch`.

Every sample's term is written by one program and added up by `torch.sum`: the same bits at every run.
"""

import contextlib
import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dncc.aggregation import Aggregate
from dncc.fused_kernels import scale_kernel, terms_kernel

__all__ = ["INTERPRETED", "Plan", "gradient", "kernel_arguments", "plan", "rescale", "terms"]

_TL = {torch.float32: tl.float32, torch.float64: tl.float64}
_TERMS_KERNEL: Any = terms_kernel
_SCALE_KERNEL: Any = scale_kernel
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
            _SCALE_KERNEL[(programs,)](grad, factor, numel, BLOCK=_SCALE_BLOCK, num_warps=4, enable_fp_fusion=False)
    return grad


def kernel_arguments(
    logits: Tensor,
    grad: Tensor | None,
    geometric: bool,
    summed: bool,
    weighted: bool,
    scaled: bool,
) -> tuple[list[int], dict[str, Any]]:
    """Strides and constants of `terms_kernel` for a problem.

    Strides are given in units of their greatest common divisor with 16, the constant UNIT: so the compiler knows what
    they are multiples of, and joins loads and stores, for 1000 classes too.

    Args:
        logits: (members, batch, classes).
        grad: Where the gradient goes; None without one.
        geometric: Whether the aggregate is the geometric mean.
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
    constants: dict[str, Any] = {
        "M": members,
        "C": classes,
        "ROWS": tile.members,
        "SAMPLES": tile.samples,
        "WIDTH": tile.classes,
        "UNIT": unit,
        "WIDE": _TL[wide],
        "GEOMETRIC": geometric,
        "SUMMED": summed,
        "WEIGHTED": weighted,
        "GRADIENT": grad is not None,
        "SCALED": scaled,
    }
    return strides, constants | {"num_warps": tile.warps, "enable_fp_fusion": False}


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
    ensemble_ce, ambiguity, row = (torch.empty(batch, dtype=wide, device=logits.device) for _ in range(3))
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
        _TERMS_KERNEL[(triton.cdiv(batch, constants["SAMPLES"]),)](
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

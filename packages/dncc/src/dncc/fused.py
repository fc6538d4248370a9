"""All terms of the DNCC loss in one pass over the logits: chooses the Triton kernel on a GPU, plain torch elsewhere."""

import math
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Literal, SupportsFloat, final, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dncc import fused_torch
from dncc.aggregation import Aggregate, checked_aggregate

__all__ = ["Backend", "FusedTerms", "fused_backend", "fused_dncc"]

Backend = Literal["auto", "torch", "triton"]
_HAS_TRITON = find_spec("triton") is not None
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@final
@dataclass(frozen=True, eq=False)
class FusedTerms:
    """The loss, and the terms that the same pass found.

    Attributes:
        loss: What to call `backward` on, in nats.
        member_ce: Cross-entropy of every member and sample, in nats; without a gradient, as the following.
        ensemble_ce: Cross-entropy of the aggregated prediction of every sample, in nats.
        ambiguity: Mean divergence of the members from their aggregate, in nats; never negative.
    """

    loss: Float[Tensor, ""]
    member_ce: Float[Tensor, "members batch"]
    ensemble_ce: Float[Tensor, " batch"]
    ambiguity: Float[Tensor, " batch"]


def fused_dncc(
    logits: Float[Tensor, "members batch classes"],
    target: Int[Tensor, " batch"],
    lam: SupportsFloat,
    *,
    weight: Float[Tensor, " batch"] | None = None,
    aggregate: Aggregate = "arithmetic",
    reduction: Literal["mean", "sum"] = "mean",
    backend: Backend = "auto",
) -> FusedTerms:
    """L = sum_n w_n [(1 - lambda) mean_m CE_mn + lambda CE_n] / sum_n w_n, with its gradient from the same pass.

    The gradient is written while the logits are at hand, dL/dz_mc = w_n / (M sum w) a_m (p_mc - 1[c = y]) with
    a_m = 1 - lambda + lambda p_m,y / q_y for the arithmetic mean (the geometric one: (1 - lambda)(p_mc - 1[c = y]) +
    lambda (g_c - 1[c = y])). So a GPU reads the logits once and writes the gradient once, and nothing else of that size
    exists. `backward` multiplies it by the gradient of the loss where that is not 1. For float16, whose range needs the
    gradient scaler's factor before rounding, and inside `torch.compile`, the backward pass reads the logits again
    instead. Computed in float32, or float64 for float64 logits, under autocast too.

    Args:
        logits: Scores of all members, of any floating type and strides.
        target: Class indices, int32 or int64. Those of samples with weight 0 may be any valid class.
        lam: lambda; a number, or a tensor without axes, which gets a gradient if it requires one.
        weight: What each sample counts, not negative; None: 1. Gets no gradient. Samples of weight 0 add nothing,
            whatever their logits are; if none counts the loss is NaN, as in torch, and the gradient 0.
        aggregate: How members are averaged.
        reduction: Over members: the mean, or the sum (M times it, in `loss` only), which costs no further pass.
        backend: "auto" takes Triton for CUDA tensors where it is installed.

    Returns:
        Loss and terms; the same bits at every run with the same input.

    Raises:
        ValueError: If shapes do not match, an option is unknown, or lambda is not finite.
        TypeError: If types are not those above.
        ImportError: If backend is "triton" and it is not installed.

    Reference:
        Zhang et al. (2022), arXiv:2212.07070, in closed form (docs/theory.md).

    Example:
        >>> logits = torch.tensor([[[2.0, 0.0]], [[0.0, 1.0]]], requires_grad=True)  # 2 members, 1 sample, 2 classes
        >>> terms = fused_dncc(logits, torch.tensor([0]), 0.5)
        >>> [round(v.item(), 4) for v in (terms.loss, terms.member_ce.mean(), terms.ensemble_ce, terms.ambiguity)]
        [0.6369, 0.7201, 0.5536, 0.1665]
        >>> terms.loss.backward()
        >>> [round(v, 4) for v in logits.grad[:, 0, 0].tolist()]  # the member that errs gets more
        [-0.0755, -0.2683]
    """
    _check(logits, target, weight, reduction)
    checked_aggregate(aggregate)
    chosen = fused_backend(logits, backend)
    wide = torch.promote_types(logits.dtype, torch.float32)
    learns = torch.is_grad_enabled() and logits.requires_grad
    # float16 has too little range for a gradient without the scaler's factor; a compiler must see no writing in place
    at_once = learns and logits.dtype != torch.float16 and not torch.compiler.is_compiling()
    result = _Fused.apply(
        logits, target, _on_device(lam, logits.device, wide), weight, chosen, aggregate, reduction == "sum", at_once
    )
    return FusedTerms(*result)


def fused_backend(logits: Tensor, backend: Backend = "auto") -> Literal["torch", "triton"]:
    """Which kernels logits get.

    Args:
        logits: Where they are decides.
        backend: As for `fused_dncc`.

    Returns:
        "torch" or "triton".

    Raises:
        ValueError: If the backend is unknown, or Triton was asked for and the logits are where it cannot run.
        ImportError: If Triton was asked for and is not installed.

    Example:
        >>> fused_backend(torch.zeros(2, 1, 3))
        'torch'
    """
    if backend not in get_args(Backend):
        raise ValueError(f"backend is {backend!r}; it must be one of {', '.join(get_args(Backend))}")
    if backend == "torch" or (backend == "auto" and not (logits.is_cuda and _HAS_TRITON)):
        return "torch"
    if not _HAS_TRITON:
        raise ImportError('backend="triton" needs Triton: pip install "dncc[triton]", or take backend="torch"')
    if not logits.is_cuda and not _kernels("triton").INTERPRETED:
        raise ValueError(f'backend="triton" needs logits on a GPU and these are on {logits.device}: move them, or take '
                         'backend="auto"')  # fmt: skip
    return "triton"


class _Fused(torch.autograd.Function):
    """Loss, member_ce, ensemble_ce and ambiguity; the gradient by the logits is kept, or found in the backward pass.

    `forward` has the context at hand: a separate `setup_context` costs 80 microseconds a call.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        lam: Tensor,
        weight: Tensor | None,
        backend: str,
        aggregate: Aggregate,
        summed: bool,
        at_once: bool,
    ) -> tuple[Tensor, ...]:
        *terms, grad = _kernels(backend).terms(logits, target, lam, weight, aggregate, summed, at_once)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*terms[1:])
        ctx.backend, ctx.aggregate, ctx.summed, ctx.at_once = backend, aggregate, summed, at_once
        ctx.scale = logits.shape[0] if summed else 1
        ambiguity = terms[3] if ctx.needs_input_grad[2] else None
        if at_once:
            ctx.save_for_backward(grad, weight, ambiguity)
        else:
            ctx.save_for_backward(logits if ctx.needs_input_grad[0] else None, weight, ambiguity, target, lam)
        return tuple(terms)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Any, ...]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError("the fused loss has no second derivative, and create_graph=True asks for one; take the "
                               "plain one, dncc.DNCCLoss(..., fused=False)")  # fmt: skip
        by_logits, by_lam = _backward(ctx, grad_outputs[0])
        return by_logits, None, by_lam, *(None,) * 5


def _backward(ctx: Any, factor: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """The gradients by logits and lambda, those that are needed."""
    by_logits = by_lam = None
    if factor is None:
        return None, None
    kept, weight, ambiguity, *rest = ctx.saved_tensors
    if ctx.needs_input_grad[2]:
        by_lam = -factor * ctx.scale * _mean(ambiguity, weight)
    if ctx.needs_input_grad[0]:
        kernels = _kernels(ctx.backend)
        if ctx.at_once:
            by_logits = kernels.rescale(kept.clone() if _graph_is_kept() else kept, factor)
        else:
            target, lam = rest
            by_logits = kernels.gradient(kept, target, lam, weight, factor, ctx.aggregate, ctx.summed)
    return by_logits, by_lam


def _mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Weighted mean of what counts."""
    if weight is None:
        return values.mean()
    wide = weight.to(values.dtype)
    return torch.where(wide == 0, 0.0, wide * values).sum() / wide.sum()


def _graph_is_kept() -> bool:
    """Whether another backward pass may follow, which must find the saved gradient as it was."""
    asked = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return asked is None or torch.compiler.is_compiling() or asked()


def _kernels(backend: str) -> ModuleType:
    if backend == "torch":
        return fused_torch
    from dncc import fused_triton

    return fused_triton


def _on_device(lam: SupportsFloat, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Lambda as a tensor without axes; nothing waits for a device."""
    if isinstance(lam, Tensor):
        if lam.ndim or not lam.is_floating_point():
            raise ValueError(f"lam is a tensor of shape {tuple(lam.shape)} and dtype {lam.dtype}; it must be one real "
                             "number without axes")  # fmt: skip
        if lam.requires_grad or lam.device == device or torch.compiler.is_compiling():
            return lam.to(device=device, dtype=dtype)
        if lam.device.type != "cpu":
            raise ValueError(f"lam is on {lam.device} and logits on {device}; move it to the logits or to the CPU")
    number = float(lam)
    if not torch.compiler.is_compiling() and not math.isfinite(number):
        raise ValueError(f"lam is {number}; it must be finite, and within [0, 1] to train with")
    return torch.full((), number, dtype=dtype, device=device)


def _check(logits: Tensor, target: Tensor, weight: Tensor | None, reduction: str) -> None:
    """Types and shapes; the labels' range on the CPU, where looking is cheap."""
    if logits.dtype not in _DTYPES:
        raise TypeError(f"logits has dtype {logits.dtype}; it must be float16, bfloat16, float32 or float64")
    if target.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"target has dtype {target.dtype}; class indices are int32 or int64 (soft labels: "
                        "dncc.DNCCLoss)")  # fmt: skip
    shape = tuple(logits.shape)
    if len(shape) != 3 or not shape[0] or not shape[2]:
        raise ValueError(f"logits has shape {shape}; it must be (members, batch, classes) with at least one member and "
                         "one class")  # fmt: skip
    for name, value in (("target", target), ("weight", weight)):
        if value is None:
            continue
        if tuple(value.shape) != shape[1:2]:
            raise ValueError(f"{name} has shape {tuple(value.shape)}; for logits of shape {shape} it must be "
                             f"{shape[1:2]}")  # fmt: skip
        if value.device != logits.device:
            raise ValueError(f"{name} is on {value.device} and logits on {logits.device}; move one of them")
    if weight is not None and (not weight.is_floating_point() or weight.requires_grad):
        raise ValueError(f"weight has dtype {weight.dtype} and requires_grad={weight.requires_grad}; it must be "
                         "floating point and gets no gradient: weight.detach()")  # fmt: skip
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction is {reduction!r}; it must be 'mean' or 'sum', over members")
    if target.device.type == "cpu" and not torch.compiler.is_compiling() and shape[1]:
        low, high = (int(value) for value in target.aminmax())
        if low < 0 or high >= shape[2]:
            raise ValueError(f"target goes from {low} to {high}; class indices go from 0 to {shape[2] - 1} (a sample "
                             "to leave out has weight 0 and any of them)")  # fmt: skip

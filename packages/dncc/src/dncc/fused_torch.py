"""The fused loss in plain torch: the reference of the kernel, and what runs where there is no GPU.

Terms and gradient by their closed forms. A working copy of the logits becomes the gradient; where types differ or no
gradient is wanted, it is made a slice of the batch at a time. Nothing else of the logits' size is allocated.
"""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dncc.aggregation import Aggregate

__all__ = ["excess", "gradient", "rescale", "terms"]

_SLICE = {"cpu": 1 << 20}  # logits at a time: 4 MiB in float32, about a processor's cache
_SLICE_ELSEWHERE = 1 << 24  # a GPU wants few and large launches

_FEW = 64  # classes below which maxima cost more than exponentials

_Slice = tuple[Tensor, Tensor, Tensor, Tensor | None]


def terms(
    logits: Float[Tensor, "members batch classes"],
    target: Int[Tensor, " batch"],
    lam: Float[Tensor, ""],
    weight: Float[Tensor, " batch"] | None,
    aggregate: Aggregate,
    summed: bool,
    with_gradient: bool,
) -> tuple[
    Float[Tensor, ""],
    Float[Tensor, "members batch"],
    Float[Tensor, " batch"],
    Float[Tensor, " batch"],
    Float[Tensor, "members batch classes"] | None,
]:
    """Loss sum_n w_n [(1 - lam) mean_m CE_mn + lam CE_n] / sum_n w_n, its terms and its gradient by the logits.

    Args:
        logits: Of any floating type and any strides.
        target: Class indices.
        lam: lambda, in the type of the computation: at least float32.
        weight: What a sample counts; None: each counts 1.
        aggregate: How members are averaged.
        summed: Whether the loss is the sum over members instead of their mean.
        with_gradient: Whether the gradient is wanted.

    Returns:
        Loss, cross-entropy of the members, cross-entropy of the ensemble, ambiguity (nats, in the type of the
        computation) and the gradient in the logits' type, or None.
    """
    share = _shares(logits, weight, lam, summed)
    member_ce, ensemble_ce, ambiguity, grad = _in_slices(
        logits, target, lam, share, weight is not None, aggregate, with_gradient
    )
    ce = member_ce.mean(0)
    value = (1 - lam) * ce + lam * ensemble_ce
    # the ends leave out a term that may be infinite: a member that excludes the label
    value = torch.where(lam == 1, ensemble_ce, torch.where(lam == 0, ce, value))
    if summed:
        value = value * logits.shape[0]
    if weight is None:
        return value.mean(), member_ce, ensemble_ce, ambiguity, grad
    wide = weight.to(lam.dtype)
    loss = torch.where(wide == 0, 0.0, wide * value).sum() / wide.sum()
    return loss, member_ce, ensemble_ce, ambiguity, grad


def gradient(
    logits: Float[Tensor, "members batch classes"],
    target: Int[Tensor, " batch"],
    lam: Float[Tensor, ""],
    weight: Float[Tensor, " batch"] | None,
    factor: Float[Tensor, ""],
    aggregate: Aggregate,
    summed: bool,
) -> Float[Tensor, "members batch classes"]:
    """The gradient by the logits alone, times a factor that is applied before rounding to the logits' type.

    Args:
        logits: As for `terms`.
        target: Likewise.
        lam: Likewise.
        weight: Likewise.
        factor: The loss's own gradient.
        aggregate: As for `terms`.
        summed: Likewise.

    Returns:
        The gradient in the logits' type.
    """
    share = _shares(logits, weight, lam, summed) * factor
    grad = _in_slices(logits, target, lam, share, weight is not None, aggregate, True)[3]
    assert grad is not None
    return grad


def rescale(grad: Float[Tensor, "*shape"], factor: Float[Tensor, ""]) -> Float[Tensor, "*shape"]:
    """Multiplies a gradient in place.

    Args:
        grad: Dense, without overlap; overwritten.
        factor: One number.

    Returns:
        `grad`.
    """
    if factor.device.type == "cpu":
        number = factor.item()  # as a number it is not rounded to the gradient's type
        return grad if number == 1 else grad.mul_(number)
    if grad.dtype == factor.dtype:
        return grad.mul_(factor)
    for part in grad.as_strided((grad.numel(),), (1,)).split(_SLICE_ELSEWHERE):
        part.copy_(part.to(factor.dtype) * factor)
    return grad


def excess(u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """exp(u) - 1 - u, never negative: the Itakura-Saito divergence of p and q for u = log p - log q.

    By its series u^2/2 (1 + u/3 (1 + u/4 (...))) where the difference would cancel.

    Args:
        u: Of any sign.

    Returns:
        The divergence, in nats.

    Example:
        >>> [f"{d:.4g}" for d in excess(torch.tensor([-1e-5, 0.0, 1.0])).tolist()]
        ['5e-11', '0', '0.7183']
    """
    near = u.abs() < 0.5
    small = torch.where(near, u, 0.0)
    one = u.new_ones(())
    series = one
    for k in range(16 if u.dtype == torch.float64 else 10, 2, -1):  # the rest is below half a unit in the last place
        series = torch.addcmul(one, small, series, value=1 / k)
    return torch.where(near, small * small * 0.5 * series, torch.expm1(u) - u)


def _shares(logits: Tensor, weight: Tensor | None, lam: Tensor, summed: bool) -> Tensor:
    """What one member's sample counts in the loss, shape (batch,): w_n / sum w, by the number of members."""
    members, batch, _ = logits.shape
    each = 1 if summed else members
    if weight is None:
        return lam.new_full((batch,), 1 / (each * max(1, batch)))
    wide = weight.to(lam.dtype)
    return torch.where(wide == 0, 0.0, wide / (wide.sum() * each))


def _in_slices(
    logits: Tensor,
    target: Tensor,
    lam: Tensor,
    share: Tensor,
    weighted: bool,
    aggregate: Aggregate,
    with_gradient: bool,
) -> _Slice:
    """Terms and gradient, put together from slices of the batch."""
    of = _geometric if aggregate == "geometric" else _arithmetic
    # in the type of the computation the working copy becomes the gradient: then nothing is gained by slices
    becomes = with_gradient and logits.dtype == lam.dtype and logits.is_contiguous()
    slices = [slice(0, logits.shape[1])] if becomes else list(_slices(logits))
    if len(slices) == 1:
        member_ce, ensemble_ce, ambiguity, grad = of(logits, target, lam, share, with_gradient)
        if grad is not None:
            grad = (_cleared(grad, share) if weighted else grad).to(logits.dtype)
        return member_ce, ensemble_ce, ambiguity, grad
    members, batch, _ = logits.shape
    member_ce, ensemble_ce, ambiguity = (lam.new_empty(shape) for shape in ((members, batch), (batch,), (batch,)))
    grad = torch.empty_like(logits) if with_gradient else None
    for rows in slices:
        *found, part = of(logits[:, rows], target[rows], lam, share[rows], with_gradient)
        member_ce[:, rows], ensemble_ce[rows], ambiguity[rows] = found
        if grad is not None and part is not None:
            grad[:, rows] = _cleared(part, share[rows]) if weighted else part
    return member_ce, ensemble_ce, ambiguity, grad


def _slices(logits: Tensor) -> Iterator[slice]:
    """Slices of the batch; one slice for a compiler, which fuses by itself."""
    members, batch, classes = logits.shape
    if torch.compiler.is_compiling() or batch == 0:
        yield slice(0, batch)
        return
    size = max(1, _SLICE.get(logits.device.type, _SLICE_ELSEWHERE) // (members * classes))
    for start in range(0, batch, size):
        yield slice(start, min(batch, start + size))


def _places(logits: Tensor, target: Tensor) -> Tensor:
    """Where the labels are, for `gather` and `scatter_`."""
    return target.long().expand(logits.shape[:2]).unsqueeze(-1)


def _probabilities(logits: Tensor, places: Tensor, wide: torch.dtype) -> tuple[Tensor, Tensor]:
    """A working copy of p, and log p of the labels."""
    if logits.shape[-1] < _FEW:
        log_p = torch.log_softmax(logits, -1, dtype=wide)
        likelihood = log_p.gather(-1, places).squeeze(-1)
        return log_p.exp_(), likelihood
    # by way of the largest logit, whose p cannot underflow: one exponential a logit instead of two
    z = logits.to(wide)
    p = torch.softmax(z, -1)
    return p, (z.gather(-1, places).squeeze(-1) - z.amax(-1)) + p.amax(-1).log()


def _arithmetic(logits: Tensor, target: Tensor, lam: Tensor, share: Tensor, with_gradient: bool) -> _Slice:
    places = _places(logits, target)
    p, likelihood = _probabilities(logits, places, lam.dtype)
    best = likelihood.amax(0) if logits.shape[1] else likelihood[0]
    best = torch.where(best == -math.inf, 0.0, best)  # it is subtracted from -inf where all exclude the label
    apart = likelihood - best  # differences of near values are exact: a small ambiguity keeps its digits
    log_mean = torch.logsumexp(apart, 0) - math.log(logits.shape[0])
    u = apart - log_mean
    results = -likelihood, -(best + log_mean), excess(u).mean(0)
    if not with_gradient:
        return *results, None
    own = share * ((1 - lam) + lam * u.exp())
    grad = p.mul_(own.unsqueeze(-1))
    grad.scatter_(-1, places, (own * likelihood.expm1()).unsqueeze(-1))  # p - 1 without cancellation
    return *results, grad


def _geometric(logits: Tensor, target: Tensor, lam: Tensor, share: Tensor, with_gradient: bool) -> _Slice:
    places = _places(logits, target)
    log_p = torch.log_softmax(logits, -1, dtype=lam.dtype)
    likelihood = log_p.gather(-1, places).squeeze(-1)
    mean = log_p.mean(0)
    partition = torch.logsumexp(mean, -1)
    ensemble = likelihood.mean(0) - partition
    results = -likelihood, -ensemble, (-partition).clamp_min(0)
    if not with_gradient:
        return *results, None
    common = mean.sub_(partition.unsqueeze(-1)).exp_().mul_((lam * share).unsqueeze(-1))
    grad = log_p.exp_().mul_(((1 - lam) * share).unsqueeze(-1)).add_(common)
    at_label = share * ((1 - lam) * likelihood.expm1() + lam * ensemble.expm1())
    grad.scatter_(-1, places, at_label.unsqueeze(-1))
    return *results, grad


def _cleared(grad: Tensor, share: Tensor) -> Tensor:
    """0 for samples that count nothing, whatever their logits are."""
    return grad.masked_fill_((share == 0).unsqueeze(-1), 0.0)

"""Exact small forms of what piecewise operations save: the class of each number, as the backward formula sees it.

Each function looks at the saved numbers once and keeps, for each, which branch of the derivative it takes. A
representative of each branch stands in for the numbers in the backward pass, which then computes the same bits.
Classes follow the comparisons of torch's own formulas, also for NaN; those of hardtanh, hardshrink and softshrink take
it differently from place to place in memory, and here as their scalar code does. Where a bound is no number of the
tensor's dtype, or a representative would not lie where it must, nothing is returned and the tensor is kept exact.
"""

from collections.abc import Callable, Sequence
from math import inf, isfinite, nan, prod
from typing import Any

import torch
from torch import Tensor

from gact.forms import Branch, Coded, Form, Levels, Offsets, View
from gact.geometry import flatten
from gact.rules import operation


def encode_step(node: Any, tensor: Tensor) -> Form | None:
    """Return the exact form of a tensor saved by a piecewise operation, or None if there is no small one.

    Args:
        node: The autograd node, for its bounds.
        tensor: The saved tensor.
    """
    build = _BUILDERS.get(operation(node.name()))
    if build is None or not tensor.is_floating_point():
        return None
    flat, geometry = flatten(tensor)
    form = build(node, flat)
    return None if form is None else View(form, geometry)


def encode_indices(node: Any, tensor: Tensor, input_shape: Sequence[int] | None) -> Form | None:
    """Return the window offsets of a max-pooling's indices, or None if its windows are not known or too large.

    Args:
        node: The autograd node, for kernel, stride, padding and dilation.
        tensor: Indices of the maxima in the flattened planes.
        input_shape: Shape of the pooled tensor.
    """
    rank = {"MaxPool2DWithIndices": 2, "MaxPool3DWithIndices": 3}.get(operation(node.name()))
    if rank is None or input_shape is None or tensor.dtype != torch.int64:
        return None
    window = {name: _each(getattr(node, f"_saved_{name}"), rank) for name in ("padding", "dilation")}
    window["kernel"] = _each(node._saved_kernel_size, rank)
    window["stride"] = _each(node._saved_stride, rank) or window["kernel"]
    cells = prod(window["kernel"])
    if cells > 256:
        return None
    return Offsets(tensor, {"input_size": tuple(input_shape[-rank:]), **window}, cells)


def _each(value: Any, rank: int) -> tuple[int, ...]:
    values = tuple(int(v) for v in value)
    return values * rank if len(values) == 1 else values


def _positive(node: Any, x: Tensor) -> Form:
    return Levels("sign", ~(x <= 0), (0.0, 1.0), x.dtype)  # a NaN lets the gradient pass


def _leaky(node: Any, x: Tensor) -> Form:
    return Levels("sign", x > 0, (-1.0, 1.0), x.dtype)


def _threshold(node: Any, x: Tensor) -> Form | None:
    bound = float(node._saved_threshold)
    return Levels("sign", ~(x <= bound), (-inf, inf), x.dtype) if _exact(x, bound) else None


def _hardtanh(node: Any, x: Tensor) -> Form | None:
    low, high = float(node._saved_min_val), float(node._saved_max_val)
    middle = low / 2 + high / 2
    if not (_exact(x, low, high, middle) and low < middle < high):
        return None
    return Levels("inside", ~((x <= low) | (x >= high)), (high, middle), x.dtype)


def _hardsigmoid(node: Any, x: Tensor) -> Form:
    return Levels("inside", (x > -3) & (x < 3), (3.0, 0.0), x.dtype)


def _shrink(node: Any, x: Tensor) -> Form | None:
    bound = float(node._saved_lambd)
    return Levels("outside", ~((x >= -bound) & (x <= bound)), (0.0, inf), x.dtype) if _exact(x, bound) else None


def _negative(node: Any, x: Tensor) -> Form:
    return Levels("sign", x < 0, (1.0, -1.0), x.dtype)


def _abs(node: Any, x: Tensor) -> Form:
    classes = torch.where(x > 0, 2, torch.where(x < 0, 0, torch.where(x == 0, 1, 3))).to(torch.uint8)
    return Levels("sign", classes, (-1.0, 0.0, 1.0, nan), x.dtype)


def _clamp(node: Any, x: Tensor) -> Form | None:
    low, high = (_scalar(node, name) for name in ("_saved_min", "_saved_max"))
    if low is None and high is None:  # tensors
        return None
    within = torch.ones_like(x, dtype=torch.bool)
    if low is not None:
        within &= x >= low if _CLOSED else x > low
    if high is not None:
        within &= x <= high if _CLOSED else x < high
    if low is None or high is None:
        inside, outside = (inf, -inf) if high is None else (-inf, inf)
    else:
        inside, outside = torch.tensor(low / 2 + high / 2, dtype=x.dtype).item(), inf
        if not low < inside < high or not isfinite(high):
            return None
    return Levels("inside", within, (outside, inside), x.dtype)


def _number(node: Any, x: Tensor) -> Form:
    return Levels("not NaN", ~torch.isnan(x), (nan, 0.0), x.dtype)


def _finite(node: Any, x: Tensor) -> Form:
    return Levels("finite", torch.isfinite(x), (inf, 0.0), x.dtype)


def encode_branch(node: Any, tensor: Tensor, quantise: Callable[[Tensor], Coded], key: str) -> Form | None:
    """Return the form of an operation that jumps, and takes values on one side of the jump.

    Args:
        node: The autograd node.
        tensor: The saved tensor.
        quantise: Makes codes of a line of numbers.
        key: The tensor's name.
    """
    x, geometry = flatten(tensor)
    name = operation(node.name())
    if name == "Elu":
        classes, values = ~(x <= 0), (None, 1.0)
        counts = ~classes
    elif name == "PreluKernel":
        classes, values = x > 0, (None, 1.0)
        counts = ~classes
    elif name == "Hardswish":
        classes, values = torch.where(x <= -3, 0, torch.where(x >= 3, 2, 1)).to(torch.uint8), (-4.0, None, 4.0)
        counts = classes == 1
    else:
        return None
    inner = quantise(torch.where(counts, x, torch.zeros_like(x)))
    return View(Branch(inner, classes, values), geometry, key)


def _scalar(node: Any, name: str) -> float | None:
    value = getattr(node, name, None)
    return float(value) if isinstance(value, int | float) else None


def _exact(x: Tensor, *numbers: float) -> bool:
    """Whether all numbers are finite numbers of x's dtype."""
    return all(isfinite(v) and torch.tensor(v, dtype=x.dtype).item() == v for v in numbers)


_BUILDERS: dict[str, Callable[[Any, Tensor], Form | None]] = {
    "Relu": _positive,
    "LeakyRelu": _leaky,
    "Threshold": _threshold,
    "Hardtanh": _hardtanh,
    "Hardsigmoid": _hardsigmoid,
    "Hardshrink": _shrink,
    "Softshrink": _shrink,
    "LogSigmoid": _negative,
    "Abs": _abs,
    "Clamp": _clamp,
    "ClampMin": _clamp,
    "ClampMax": _clamp,
    "Nansum": _number,
    "NanToNum": _finite,
    "LinalgVectorNorm": _abs,
    "Norm": _abs,
}


def _bound_passes() -> bool:
    """Whether torch's clamp hands the gradient on at the bound itself, as it did up to 2.13."""
    with torch.inference_mode(False), torch.enable_grad():
        x = torch.zeros((), requires_grad=True, device="cpu")
        return bool(torch.autograd.grad(x.clamp(min=0.0), x)[0])


_CLOSED = _bound_passes()

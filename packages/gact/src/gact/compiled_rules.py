"""Which form a tensor that a compiled graph saves may take: read off the forward and the backward graph."""

from __future__ import annotations

import enum
import operator
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

__all__ = ["Form", "TracedTensor", "form_of", "hint", "memory_order"]

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

_COPIES = frozenset(
    (
        "alias", "clone", "contiguous", "convert_element_type", "detach", "expand", "permute", "reshape", "select",
        "slice", "squeeze", "t", "_to_copy", "transpose", "unsqueeze", "_unsafe_view", "view",
    )
)  # fmt: skip
_SAME_VALUES = frozenset(
    (
        "alias", "clone", "contiguous", "detach", "permute", "reshape", "t", "transpose", "_unsafe_view", "view",
    )
)  # fmt: skip
# Statistics: few numbers, each of which scales many gradients.
_STATISTICS = frozenset(
    (
        "amax", "amin", "log", "logsumexp", "mean", "reciprocal", "rsqrt", "sqrt", "std", "var", "var_mean",
    )
)  # fmt: skip
_STATISTICS_FROM_1 = ("norm", "attention", "var_mean", "std_mean")
# Backward is a step, or has a pole: noise there is a bias, or an infinity.
_STEPS = frozenset(
    (
        "abs", "acos", "acosh", "argmax", "argmin", "asin", "atanh", "bitwise_and", "bitwise_or", "bitwise_xor", "ceil",
        "clamp", "clamp_max", "clamp_min", "eq", "erfinv", "floor", "floor_divide", "fmod", "ge", "gt",
        "hardsigmoid_backward", "hardswish_backward", "hardtanh_backward", "le",
        "leaky_relu_backward", "log", "log10", "log1p", "log2", "logit", "lt", "maximum", "minimum", "mod", "ne",
        "nonzero", "reciprocal", "relu", "remainder", "round", "rsqrt", "rrelu_with_noise_backward", "sgn", "sign",
        "sort", "sqrt", "threshold_backward", "topk", "trunc", "prelu", "_prelu_kernel",
        "_prelu_kernel_backward",
    )
)  # fmt: skip
_POLES_AT_1 = frozenset(["div", "true_divide"])


@final
class Form(enum.IntEnum):
    """How a compiled graph stores one saved tensor."""

    RAW = 0
    """As it is."""
    AFFINE = 1
    """Rounded codes with low and high of each group."""
    RECTIFIED = 2
    """max(x, 0) as rounded codes, and x > 0 exactly: for a rectifier whose result is used as well."""
    SIGN = 3
    """x > 0 only."""
    BITS = 4
    """A boolean mask, eight a byte."""
    WIDE = 5
    """Rounded codes of a greater width: the backward graph recomputes a step from it, whose side noise may change."""


@final
@dataclass(frozen=True, slots=True)
class TracedTensor:
    """What a compilation decided for one saved tensor.

    Args:
        name: Name of its node in the graph, or "" outside of one.
        operation: What computed it.
        shape: Its shape; sizes that are not fixed stand as text.
        dtype: Its type.
        form: How it is stored.
        bits: Bits a number; the tensor's own width if it is stored raw.
    """

    name: str
    operation: str
    shape: tuple[int | str, ...]
    dtype: torch.dtype
    form: Form
    bits: int


def form_of(x: Tensor, node: Any, backward: Any, *, min_bytes: int) -> Form:
    """Decide the form of a saved tensor from what computed it and what the backward graph does with it.

    Exact stay: integers, small tensors, repetitions in memory (``expand``), parameters and their casts, statistics of
    norms, softmax and attention, and what enters a division, a logarithm, a root or a comparison in the backward
    graph, except rectifiers, whose sign is kept exactly. Booleans become bits.

    Args:
        x: The saved tensor, or the stand-in that tracing shows for it.
        node: Its node in the forward graph; None if there is none, then only type, size and memory decide.
        backward: The backward graph, or None.
        min_bytes: Smaller tensors stay as they are.

    Returns:
        The form.
    """
    if x.layout != torch.strided or x.is_complex() or not _large(x, min_bytes) or not _is_spread(x):
        return Form.RAW
    if node is not None and _is_parameter(node):
        return Form.RAW
    if x.dtype == torch.bool:
        return Form.BITS
    if x.dtype not in FLOATS:
        return Form.RAW
    if x.shape[-1] == 1 or (node is not None and _is_statistic(node)):
        return Form.RAW
    if node is None or backward is None:
        return Form.AFFINE
    return _by_use(node, backward)


def _by_use(node: Any, backward: Any) -> Form:
    uses = _uses(node.name, backward)
    used = [_use(user, source) for user, source in uses]
    if "exact" in used:
        return Form.RAW
    if "positive" not in used and "rectified" not in used:
        return Form.WIDE if _recomputes_step([user for user, _ in uses], backward) else Form.AFFINE
    if all(use == "positive" for use in used):
        return Form.SIGN
    rectifier = _name(node.target) == "relu"
    return Form.RECTIFIED if rectifier or "value" not in used else Form.RAW


def _recomputes_step(users: list[Any], backward: Any) -> bool:
    """Whether a step or a pole is recomputed from these nodes, before the incoming gradient comes in."""
    gradients = set()
    for node in backward.nodes:
        incoming = node.op == "placeholder" and node.name.startswith("tangents")
        if incoming or any(source in gradients for source in node.all_input_nodes):
            gradients.add(node)
    seen, ahead = set(), list(users)
    while ahead:
        node = ahead.pop()
        if node in seen or node in gradients or node.op != "call_function":
            continue
        if _name(node.target) in _STEPS:
            return True
        seen.add(node)
        ahead.extend(node.users)
    return False


def _uses(name: str, backward: Any) -> list[tuple[Any, Any]]:
    """Users of a saved tensor in the backward graph, seen through views; each with the node it reads."""
    sources = [p for p in backward.find_nodes(op="placeholder") if p.name == name]
    found = []
    while sources:
        source = sources.pop()
        for user in source.users:
            if user.op == "call_function" and _name(user.target) in _SAME_VALUES:
                sources.append(user)
            else:
                found.append((user, source))
    return found


def _use(user: Any, source: Any) -> str:
    """What matters to a user: "value", "positive" (only x > 0), "rectified" (only max(x, 0)) or "exact"."""
    if user.op != "call_function":
        return "value"
    name, args = _name(user.target), user.args
    if name in ("gt", "le") and args[0] is source and args[1] == 0:
        return "positive"
    if name in ("threshold_backward", "leaky_relu_backward"):
        if args[1] is not source or args[0] is source:
            return "value"
        return "positive" if name == "leaky_relu_backward" or args[2] == 0 else "exact"
    if name == "relu":
        return "rectified"
    if name in _POLES_AT_1 and args[1] is source:
        return "exact"
    if name == "pow" and not (isinstance(args[1], int | float) and args[1] in (2, 3, 4)):
        return "exact"
    return "exact" if name in _STEPS else "value"


def _is_parameter(node: Any) -> bool:
    """Whether a node is a static input of the graph (parameters, buffers), or a view or a cast of one."""
    copied = False
    while node.op == "call_function" and _name(node.target) in _COPIES:
        node, copied = node.args[0], True
    if node.op != "placeholder":
        return node.op == "get_attr"
    # Older torch does not mark static inputs. It hands over none itself, but a copy of an input may be of a parameter.
    return bool(node.meta.get("is_static_input", copied))


def _is_statistic(node: Any) -> bool:
    while node.op == "call_function" and _name(node.target) in _COPIES:
        node = node.args[0]
    if node.op != "call_function":
        return False
    if node.target is operator.getitem:
        name = _name(node.args[0].target)
        return node.args[1] >= 1 and any(part in name for part in _STATISTICS_FROM_1)
    return _name(node.target) in _STATISTICS


def _name(target: Any) -> str:
    """Name of an operator without namespace and overload: ``aten.add.Tensor`` is ``add``."""
    packet = getattr(target, "_overloadpacket", None)
    return packet.__name__ if packet is not None else getattr(target, "__name__", str(target))


def hint(size: Any) -> int:
    """The value of a size, or the one it is traced with if it is a symbol; asking a symbol itself would fix it."""
    node = getattr(size, "node", None)
    return int(size) if node is None else int(node.hint or 0)


def memory_order(x: Tensor) -> list[int]:
    """The dimensions from the slowest to the fastest in memory."""
    return sorted(range(x.dim()), key=lambda d: (-hint(x.stride(d)), -hint(x.size(d))))


def _large(x: Tensor, min_bytes: int) -> bool:
    numel = hint(x.numel())
    return numel > 0 and numel * x.itemsize >= min_bytes


def _is_spread(x: Tensor) -> bool:
    """Whether every element has a place of its own in memory; gaps between them are closed by packing."""
    extent = 1
    for d in range(x.dim()):
        extent += (hint(x.size(d)) - 1) * hint(x.stride(d))
    return hint(x.numel()) <= extent

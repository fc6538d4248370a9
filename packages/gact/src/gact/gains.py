"""How much of the noise in an activation's gradient arrives in the gradients of the parameters, without a pass.

Noise that is independent from element to element passes backwards through a node with an average gain in energy:
through y = x Wᵀ into ∇x with ‖W‖²_F / m (m outputs), into ∇W with the mean of ‖x_n‖²; through an element-wise function
with the mean of φ'(x)²; through sums and views with 1. The gain to all parameters together follows by recursion,

    κ(node) = Σ_edges gain(node → edge) · κ(edge),     κ(parameter) = 1.

This is a mean-field estimate: it takes noise as unrelated to the weights and to itself along other paths. It is for
ranking tensors, and does not replace probing.
"""

from collections.abc import Callable, Iterable
from typing import Any, final

import torch
from torch import Tensor

from gact.nodes import FOREIGN
from gact.rules import operation

__all__ = ["ParameterGains"]

_SLOPES = {  # mean of φ'(x)² for standard normal x
    "Gelu": 0.456, "Silu": 0.379, "Mish": 0.455, "Relu": 0.5, "Threshold": 0.5, "LeakyRelu": 0.5, "Elu": 0.568,
    "Hardswish": 0.383, "Hardtanh": 0.68, "Softplus": 0.293, "LogSigmoid": 0.293, "Tanh": 0.464, "Sigmoid": 0.045,
}  # fmt: skip


@final
class ParameterGains:
    """κ of the nodes of a graph, each computed once.

    The object keeps the nodes it has seen, and with them their graph: drop it when the backward pass is over. It reads
    saved tensors, so it has to be asked before the backward pass frees them; tensors that are stored compressed are
    decoded for that.

    Args:
        parameters: Leaves whose gradients count; all leaves if None.
    """

    def __init__(self, parameters: Iterable[Tensor] | None = None) -> None:
        self._leaves = None if parameters is None else {id(p) for p in parameters}
        self._known: dict[Any, float] = {}

    @torch.no_grad()
    def __call__(self, node: Any) -> float:
        """κ of a node: energy in the parameters' gradients for each unit of noise energy in the gradient it receives.

        Args:
            node: A node of the graph, such as ``tensor.grad_fn``; None, the end of a path without gradient, has gain 0.

        Returns:
            The gain.
        """
        if node is None:
            return 0.0
        stack = [node]
        while stack:  # depth first and without recursion: graphs are deeper than Python's stack
            current = stack[-1]
            if current in self._known:
                stack.pop()
                continue
            parents = [parent for parent, _ in current.next_functions if parent is not None]
            missing = [parent for parent in parents if parent not in self._known]
            if missing:
                stack += missing
                continue
            self._known[current] = self._combine(current)
            stack.pop()
        return self._known[node]

    def along(self, node: Any, edge: int) -> float:
        """κ of what one input of a node receives.

        Args:
            node: A node of the graph.
            edge: Place of the input among ``node.next_functions``.

        Returns:
            The gain from noise in the gradient that this node sends along this edge.
        """
        return self(node.next_functions[edge][0])

    def _combine(self, node: Any) -> float:
        if hasattr(node, "variable"):
            return float(self._leaves is None or id(node.variable) in self._leaves)
        edges = [0.0 if parent is None else self._known[parent] for parent, _ in node.next_functions]
        if not any(edges):
            return 0.0
        name = operation(node.name())
        rule = None if FOREIGN in node.metadata else _RULES.get(name)
        gains = [_SLOPES.get(name, 1.0)] * len(edges) if rule is None else rule(node)
        return sum(gain * kappa for gain, kappa in zip(gains, edges, strict=True) if kappa)


def _mean_square(tensor: Tensor | None) -> float:
    """Mean of the squares; 0 of a tensor that was not saved, since then nobody needs it."""
    if tensor is None or tensor.numel() == 0:
        return 0.0
    work = torch.promote_types(tensor.dtype, torch.float32)
    return float(torch.linalg.vector_norm(tensor, dtype=work).square() / tensor.numel())


def _product(left: str, right: str, extra: int) -> Callable[[Any], list[float]]:
    """Y = A B, after `extra` summands: the mean squared column of B into ∇A, the mean squared row of A into ∇B."""

    def rule(node: Any) -> list[float]:
        a, b = getattr(node, f"_saved_{left}"), getattr(node, f"_saved_{right}")
        inner = a.shape[-1] if a is not None else b.shape[-2] if b is not None else 0
        return [1.0] * extra + [_mean_square(b) * inner, _mean_square(a) * inner]

    return rule


def _convolution(node: Any) -> list[float]:
    weight, x = node._saved_weight, node._saved_input
    taps = weight[0, 0].numel()
    stride = 1
    for step in node._saved_stride if node._saved_transposed else ():
        stride *= step
    ins = weight.shape[0] // node._saved_groups if node._saved_transposed else weight.shape[1]
    reached = ins * taps / stride  # input elements behind an output element
    return [_mean_square(weight) * reached, _mean_square(x) * reached, 1.0]


def _norm(node: Any) -> list[float]:
    """Layer, batch and group norm: x̂ w + b; x̂ has mean square 1, and the two directions it removes are few."""
    scales = _mean_square(node._saved_result2)
    return [scales * (_mean_square(node._saved_weight) if node._saved_weight is not None else 1.0), 1.0, 1.0]


def _times(node: Any) -> list[float]:
    gains = [_mean_square(_as_tensor(getattr(node, f"_saved_{name}", None))) for name in ("other", "self")]
    return gains[: len(node.next_functions)]  # a number has no edge


def _divided(node: Any) -> list[float]:
    other = _as_tensor(node._saved_other)
    square = _mean_square(other)
    ratio = _mean_square(_as_tensor(getattr(node, "_saved_self", None))) / square**2 if square else 0.0
    return [1.0 / square if square else 0.0, ratio][: len(node.next_functions)]


def _as_tensor(value: Any) -> Tensor | None:
    return value if value is None or isinstance(value, Tensor) else torch.as_tensor(float(value))


def _softmax(node: Any) -> list[float]:
    """∇x = p (g − ⟨g, p⟩): the mean of p²."""
    return [_mean_square(node._saved_result)]


def _attention(node: Any) -> list[float]:
    """∇v = Pᵀ ∇o with P between uniform and one-hot, taken halfway; ∇q and ∇k through the slope of the softmax."""
    keys, width = node._saved_key.shape[-2:]
    spread = keys**-0.5  # mean of Σ_m P_nm²: 1/keys if uniform, 1 if one-hot
    scale = 1.0 / width  # of q kᵀ, squared
    slope = spread / keys * _mean_square(node._saved_value) * width * scale * width
    gains = [slope * _mean_square(node._saved_key), slope * _mean_square(node._saved_query), spread]
    return gains + [0.0] * (len(node.next_functions) - 3)


_RULES: dict[str, Callable[[Any], list[float]]] = {
    "Addmm": _product("mat1", "mat2", 1),
    "Mm": _product("self", "mat2", 0),
    "Bmm": _product("self", "mat2", 0),
    "Baddbmm": _product("batch1", "batch2", 1),
    "Convolution": _convolution,
    "NativeLayerNorm": _norm,
    "NativeBatchNorm": _norm,
    "CudnnBatchNorm": _norm,
    "NativeGroupNorm": _norm,
    "Mul": _times,
    "Div": _divided,
    "Softmax": _softmax,
    "SafeSoftmax": _softmax,
    "ScaledDotProductFlashAttentionForCpu": _attention,
    "ScaledDotProductFlashAttention": _attention,
    "ScaledDotProductEfficientAttention": _attention,
    "ScaledDotProductCudnnAttention": _attention,
}

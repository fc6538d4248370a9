"""Where the noise of one saved tensor goes: for each input of its node, c of the gradient that the node sends there.

`contributions` answers for one node after it has run backwards, from its gradients and the ranges of the quantiser's
groups; with the gains of `gact.gains` the parameters' total variance follows as Σ_edges c · κ(edge) · S(b). For matrix
products and convolutions c is the closed form, and exact where the edge leads to a parameter (κ = 1). For the other
nodes it is a mean-field estimate, meant for choosing bits where nobody has probed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from gact import sensitivity
from gact.elementwise import SLOPES, elementwise, energy_of_groups, relative
from gact.rules import operation
from gact.variance import range_energy

__all__ = ["Contribution", "Saved", "contributions"]

Gradients = Sequence[Tensor | None]


@dataclass(frozen=True)
class Saved:
    """A saved tensor as the quantiser sees it.

    Args:
        name: The node's name for it, such as ``"mat1"`` of ``_saved_mat1``.
        size: Its shape.
        order: Its dimensions from the slowest to the fastest in memory.
        low: Smallest value of each group.
        high: Largest value of each group.
        group_size: Elements of a group.
        exponentials: Whether logarithms were saved and their exponentials quantised.
    """

    name: str
    size: tuple[int, ...]
    order: tuple[int, ...]
    low: Tensor
    high: Tensor
    group_size: int
    exponentials: bool = False

    def flat(self, grad: Tensor) -> Tensor:
        """Squares or gradients of this shape, flattened in the order of memory."""
        return grad.permute(self.order).reshape(-1)

    def pooled(self, energy: Tensor) -> Tensor:
        """Return c of energies that broadcast to the shape."""
        return sensitivity.pooled(
            energy.permute(self.order), [self.size[d] for d in self.order], self.low, self.high, self.group_size
        )


@dataclass(frozen=True)
class Contribution:
    """Noise that a node sends along one of its edges.

    Args:
        edge: Place among ``node.next_functions``.
        c: Its variance is c · S(b), summed over that gradient; of no dimension, on the device.
        exact: Whether c is a closed form, not an estimate.
    """

    edge: int
    c: Tensor
    exact: bool = False


@torch.no_grad()
def contributions(node: Any, saved: Saved, grad_inputs: Gradients, grad_outputs: Gradients) -> list[Contribution]:
    """The noise of one saved tensor in the gradients that its node sends on.

    Call it from a hook of the node (``node.register_hook``), which gets both kinds of gradients before the saved
    tensors are freed. Norms read their saved input, so one that is stored compressed is decoded once more.

    Args:
        node: The node.
        saved: The tensor.
        grad_inputs: Gradients that the node sends on, one for each edge; None where nobody asks for it.
        grad_outputs: Gradients that it has received.

    Returns:
        One entry for each edge that the noise reaches. Operations without a rule of their own get, on every edge, the
        gradient's energy times the relative noise of the tensor.
    """
    grad = grad_outputs[0] if grad_outputs else None
    name = operation(node.name())
    rule = _elementwise if name in SLOPES else _RULES.get(name)
    asked = [edge for edge, (parent, _) in enumerate(node.next_functions) if parent is not None]
    if prod(saved.size) == 0:
        return []
    found = None if rule is None or grad is None else rule(node, saved, grad)
    if found is None:
        shares = _attention(node, saved.name) if name.startswith("ScaledDot") else dict.fromkeys(asked, 1.0)
        found = [
            Contribution(edge, relative(_energy(grad_inputs[edge]) * share, saved.low, saved.high))
            for edge, share in shares.items()
            if edge < len(grad_inputs) and grad_inputs[edge] is not None
        ]
    return [entry for entry in found if entry.edge in asked]


def _energy(grad: Tensor | None) -> Tensor:
    """‖∇‖², 0 of nothing."""
    if grad is None:
        return torch.zeros(())
    return torch.linalg.vector_norm(grad, dtype=torch.promote_types(grad.dtype, torch.float32)).square()


def _matmul(node: Any, saved: Saved, grad: Tensor) -> list[Contribution] | None:
    last = len(node.next_functions) - 1
    left = saved.name in ("self", "mat1", "batch1")
    if grad.dim() != len(saved.size):
        return None
    c = sensitivity.matmul(
        grad, saved.size, saved.low, saved.high, saved.group_size,
        operand="left" if left else "right", order=saved.order,
    )  # fmt: skip
    return [Contribution(last if left else last - 1, c, exact=True)]


def _convolution(node: Any, saved: Saved, grad: Tensor) -> list[Contribution] | None:
    rank = len(saved.size) - 2
    plain, last = tuple(range(rank + 2)), (0, *range(2, rank + 2), 1)
    if saved.name != "input" or saved.order not in (plain, last):
        return None
    weight = node._saved_weight.shape
    layer = (node._saved_stride, node._saved_padding, node._saved_dilation, node._saved_groups, node._saved_transposed)
    c = sensitivity.convolution(
        grad, saved.size, weight, *layer, saved.low, saved.high, saved.group_size, channels_last=saved.order != plain
    )
    return [Contribution(1, c, exact=True)]


def _elementwise(node: Any, saved: Saved, grad: Tensor) -> list[Contribution]:
    name = operation(node.name())
    edge = 1 if name == "Mul" and saved.name == "self" else 0  # noise in one factor goes to the other's gradient
    if tuple(grad.shape) == saved.size:
        energy = energy_of_groups(saved.flat(grad), saved.group_size)
    else:  # a factor that was broadcast
        squares = grad.to(torch.promote_types(grad.dtype, torch.float32)).square().sum_to_size(saved.size)
        energy = sensitivity.energy_by_group(
            squares.permute(saved.order), [saved.size[d] for d in saved.order], saved.group_size
        )
    return [Contribution(edge, elementwise(name, energy, saved.low, saved.high))]


def _log_softmax(node: Any, saved: Saved, grad: Tensor) -> list[Contribution]:
    """∇x = g − e^r Σ g with r saved: noise e^r Σ g · δr; e^{2r} as if r were uniform in its group's range.

    With e^r quantised in place of r, the noise is Σ g · δ(e^r).
    """
    if saved.name != "result":
        return []
    dim = node._saved_dim - (1 << 64 if node._saved_dim >= 1 << 63 else 0)  # torch shows -1 as an unsigned number
    rows = grad.to(torch.promote_types(grad.dtype, torch.float32)).sum(dim, keepdim=True).square()
    if saved.exponentials:
        return [Contribution(0, saved.pooled(rows))]
    dims = [saved.size[d] for d in saved.order]
    energy = sensitivity.energy_by_group(rows.permute(saved.order), dims, saved.group_size)
    squares = range_energy(saved.low, saved.high)
    low, high = saved.low.to(squares.dtype), saved.high.to(squares.dtype)
    spread = squares.sqrt()
    mean = torch.where(spread > 0, ((2 * high).exp() - (2 * low).exp()) / (2 * spread), (2 * high).exp())
    return [Contribution(0, torch.dot(energy.to(squares.dtype), squares * mean) / 6)]


def _layer_norm(node: Any, saved: Saved, grad: Tensor) -> list[Contribution] | None:
    """Rows x̂ = (x − μ) / σ: ∇w feels x̂ directly; ∇x feels it through its projections, and through σ itself."""
    if saved.name != "input":
        return None
    dims = list(range(grad.dim() - len(node._saved_normalized_shape), grad.dim()))
    x, mean, inverse = node._saved_input, node._saved_result1, node._saved_result2
    return _normalised(saved, grad, ((x - mean) * inverse, inverse, dims), node._saved_weight)


def _batch_norm(node: Any, saved: Saved, grad: Tensor) -> list[Contribution] | None:
    """As layer norm, with channels for rows; with running statistics ∇x does not depend on x."""
    if saved.name != "input":
        return None
    shape = (1, -1, *(1,) * (grad.dim() - 2))
    dims = [0, *range(2, grad.dim())]
    if not getattr(node, "_saved_training", True):
        inverse = (node._saved_running_var + node._saved_eps).rsqrt().view(shape)
        return [Contribution(1, saved.pooled(sensitivity.row_energy(grad, dims).view(shape) * inverse.square()
                                             / prod(grad.shape[d] for d in dims)))]  # fmt: skip
    x = node._saved_input
    mean, inverse = node._saved_result1.view(shape), node._saved_result2.view(shape)
    weight = None if node._saved_weight is None else node._saved_weight.view(shape)
    return _normalised(saved, grad, ((x - mean) * inverse, inverse, dims), weight)


def _normalised(
    saved: Saved, grad: Tensor, normal: tuple[Tensor, Tensor, list[int]], weight: Tensor | None
) -> list[Contribution]:
    """∇w = Σ g x̂, and ∇x = (g′ − ⟨g′⟩ − x̂ ⟨g′ x̂⟩) / σ with g′ = g w and means ⟨·⟩ over the n elements of a row.

    Noise u = v/σ² in x̂ makes Σ g² u in ∇w and, in ∇x, ⟨g′ x̂⟩² Σ u / σ² by the second x̂, ‖g′‖² ⟨u⟩ / (n σ²) by the
    mean, and about as much by 1/σ.
    """
    scaled, inverse, dims = normal
    count = prod(grad.shape[d] for d in dims)
    direct = sensitivity.row_energy(grad, dims).view_as(inverse) * inverse.square() / count
    if weight is not None:
        grad = grad * weight
    slope = (grad * scaled).mean(dims, keepdim=True).square()
    through = inverse.pow(4) * (slope + 2 * sensitivity.row_energy(grad, dims).view_as(inverse) / count**2)
    return [Contribution(0, saved.pooled(through)), Contribution(1, saved.pooled(direct))]


def _attention(node: Any, name: str) -> dict[int, float]:
    """Which of ∇q, ∇k, ∇v feel a saved tensor, and how much of its relative noise.

    ∇k is linear in q, and ∇q in k. All three feel them through P = softmax(S) as well, where noise counts relative to 1
    and not to S: times the variance of S, about ⟨q²⟩⟨k²⟩. Values and outputs enter the gradient of S.
    """
    if name in ("query", "key"):
        query, key = node._saved_query, node._saved_key
        spread = float(_energy(query) / query.numel() * (_energy(key) / key.numel()))
        shares = dict.fromkeys((0, 1, 2), min(1.0, spread))
        shares[1 if name == "query" else 0] = 1.0
        return shares
    return dict.fromkeys((0, 1), 1.0) if name in ("value", "output", "out") else {}


_SHAPE_ONLY = ("NllLoss", "NllLoss2D", "MaxPool2DWithIndices", "MaxPool3DWithIndices")
_RULES: dict[str, Callable[[Any, Saved, Tensor], list[Contribution] | None]] = {
    **dict.fromkeys(_SHAPE_ONLY, lambda node, saved, grad: []),  # read their input's shape alone
    "Addmm": _matmul,
    "Mm": _matmul,
    "Bmm": _matmul,
    "Baddbmm": _matmul,
    "Convolution": _convolution,
    "LogSoftmax": _log_softmax,
    "NativeLayerNorm": _layer_norm,
    "NativeBatchNorm": _batch_norm,
    "CudnnBatchNorm": _batch_norm,
}

"""Noise of a saved tensor that goes into an activation's gradient: its energy there, estimated without a pass.

Where ∇x = ∇y · s(u) with u saved, independent noise of variance v in u makes ∇y² s'(u)² v in each element of ∇x. With
the energy of ∇y summed over each group of the quantiser, and s'² averaged over the group's range,

    c = Σ_g R_g² / 6 · ⟨s'²⟩_g · Σ_{i in g} ∇y_i².

How much of it arrives in the gradients of the parameters is the business of `gact.gains`.
"""

from collections.abc import Callable
from math import pi, sqrt

import torch
from jaxtyping import Float
from torch import Tensor

from gact.variance import range_energy

__all__ = ["SLOPES", "elementwise", "energy_of_groups", "relative"]

_NODES = (-1.593, -0.967, -0.589, -0.282, 0.0, 0.282, 0.589, 0.967, 1.593)  # ninths of a standard normal variable
_EVEN = (-2.49, -1.87, -1.24, -0.62, 0.0, 0.62, 1.24, 1.87, 2.49)  # ninths of the whole range
_BOUNDED = ("Tanh", "Sigmoid")  # what they save fills its range evenly
_SPREADS = 5.6  # expected range of 256 normal numbers, in standard deviations


def _gelu(x: Tensor) -> Tensor:
    return (2 - x.square()) * torch.exp(-0.5 * x.square()) / sqrt(2 * pi)


def _silu(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 - s) * (2 + x * (1 - 2 * s))


def _softplus(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 - s)


SLOPES: dict[str, Callable[[Tensor], Tensor]] = {
    "Gelu": _gelu,
    "Silu": _silu,
    "Softplus": _softplus,
    "LogSigmoid": _softplus,
    "Tanh": lambda y: -2 * y,
    "Sigmoid": lambda y: 1 - 2 * y,
    "Exp": torch.ones_like,
    "Mul": torch.ones_like,
    "Softmax": torch.ones_like,
    "SafeSoftmax": torch.ones_like,
}
"""s'(u), the derivative of the slope in what is saved, by the node's operation: the input, or the result where that is
what autograd saves (tanh, sigmoid, exp, softmax)."""


@torch.no_grad()
def energy_of_groups(grad: Float[Tensor, "numel"], group_size: int) -> Float[Tensor, "groups"]:
    """Σ_{i in g} ∇y_i² for each group, in one read and without a temporary of the gradient's size.

    Args:
        grad: The incoming gradient, flattened in the order in which the saved tensor lies in memory.
        group_size: Elements of a group; the last one may be shorter.

    Returns:
        One energy a group, in single precision at least.
    """
    work = torch.promote_types(grad.dtype, torch.float32)
    whole = grad.numel() // group_size * group_size
    sums = torch.linalg.vector_norm(grad[:whole].view(-1, group_size), dim=1, dtype=work)
    if whole < grad.numel():
        sums = torch.cat([sums, torch.linalg.vector_norm(grad[whole:], dtype=work)[None]])
    return sums.square()


@torch.no_grad()
def elementwise(
    operation: str,
    energy: Float[Tensor, "groups"],
    low: Float[Tensor, "groups"],
    high: Float[Tensor, "groups"],
) -> Float[Tensor, ""]:
    """Noise that an element-wise operation sends on: c of ∇x, so that its variance is c · S(b).

    Args:
        operation: A key of `SLOPES`, such as ``"Gelu"``; the node's name without ``Backward0``.
        energy: Σ ∇y² of each group (`energy_of_groups`).
        low: Smallest value of each group of the saved tensor.
        high: Largest value of each group.

    Returns:
        c, on the device, without waiting for it.

    Raises:
        ValueError: If the operation is not known.

    Example:
        >>> one = torch.ones(1)
        >>> round(float(elementwise("Mul", 3 * one, 0 * one, 2 * one)), 6)  # 3 · 2² / 6
        2.0
    """
    if operation not in SLOPES:
        raise ValueError(f"operation is {operation!r}; give one of {', '.join(SLOPES)}")
    squares = range_energy(low, high)
    middle, deviation = (low.to(squares.dtype) + high) / 2, squares.sqrt() / _SPREADS
    slope = torch.zeros_like(squares)
    for node in _EVEN if operation in _BOUNDED else _NODES:
        slope += SLOPES[operation](middle + node * deviation).square() / len(_NODES)
    return torch.dot(energy.to(squares.dtype), squares * slope) / 6.0


def relative(
    energy: Float[Tensor, ""], low: Float[Tensor, "groups"], high: Float[Tensor, "groups"]
) -> Float[Tensor, ""]:
    """Noise of a gradient by the signal-to-noise ratio of what was saved, where nothing better is known.

    c = ‖∇‖² · Σ_g R_g² / (6 Σ_g m_g): a gradient that is proportional to the saved tensor gets its relative noise. The
    mean square m_g of a group is taken from its range, as if the group were normal.

    Args:
        energy: ‖∇‖² of the gradient in question.
        low: Smallest value of each group.
        high: Largest value of each group.

    Returns:
        c, on the device.
    """
    squares = range_energy(low, high)
    means = ((low.to(squares.dtype) + high) / 2).square() + squares / _SPREADS**2
    return energy * squares.sum() / (6 * means.sum()).clamp(min=torch.finfo(squares.dtype).tiny)

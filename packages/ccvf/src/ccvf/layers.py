"""Dense layers and convolutions whose weights are drawn from a generator that is handed in, never a global one."""

import math
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

__all__ = ["convolution", "fill_uniform", "linear"]

_L = TypeVar("_L", nn.Linear, nn.Conv2d)


def fill_uniform(tensor: Tensor, bound: float, generator: torch.Generator) -> None:
    """Draw a tensor's values uniformly from [-bound, bound].

    Args:
        tensor: Filled in place.
        bound: Half the width.
        generator: Source of randomness; on whatever device, the values are then copied.
    """
    with torch.no_grad():
        drawn = torch.rand(tensor.shape, generator=generator, device=generator.device, dtype=torch.float32)
        tensor.copy_((2 * drawn - 1) * bound)


def _filled(layer: _L, fan_in: int, generator: torch.Generator) -> _L:
    bound = 1 / math.sqrt(fan_in)  # torch's own law for dense layers and convolutions
    fill_uniform(layer.weight, bound, generator)
    if layer.bias is not None:
        fill_uniform(layer.bias, bound, generator)
    return layer


def linear(inputs: int, outputs: int, generator: torch.Generator, *, bias: bool = True) -> nn.Linear:
    r"""A dense layer, its weights uniform in $\pm 1/\sqrt{inputs}$.

    Args:
        inputs: Width of what comes in.
        outputs: Width of what comes out.
        generator: Source of the weights.
        bias: Whether it has one.

    Returns:
        The layer.
    """
    layer = cast("nn.Linear", nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias))
    return _filled(layer, inputs, generator)


def convolution(inputs: int, outputs: int, size: int, stride: int, generator: torch.Generator) -> nn.Conv2d:
    r"""A convolution without padding, its weights uniform in $\pm 1/\sqrt{inputs \cdot size^2}$.

    Args:
        inputs: Channels that come in.
        outputs: Channels that come out.
        size: Side of the square kernel.
        stride: Step of the kernel.
        generator: Source of the weights.

    Returns:
        The layer.
    """
    layer = cast("nn.Conv2d", nn.utils.skip_init(nn.Conv2d, inputs, outputs, size, stride=stride))
    return _filled(layer, inputs * size * size, generator)

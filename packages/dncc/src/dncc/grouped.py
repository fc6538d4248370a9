"""One layer for M members at once: y_m = W_m x_m + b_m as a single batched product or grouped convolution."""

import math
from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["GroupedLayer"]


@final
class GroupedLayer(nn.Module):
    """M linear layers (or k x k convolutions on maps), with inputs of their own or one that all share.

    Attributes:
        weight: Shape (members, out, in), and (members, out, in, k, k) for k > 1.
        bias: Shape (members, out).

    Args:
        members: M.
        in_features: Width of one member's input.
        out_features: Width of one member's output.
        shared_input: Whether all members read the same input.
        kernel_size: k, odd; above 1 the layer is for maps only, which keep their size.
        scale: Multiplies the initial weights of each member; ones if None.
        generator: Source of the initial weights; torch's default generator if None.
    """

    def __init__(
        self,
        members: int,
        in_features: int,
        out_features: int,
        *,
        shared_input: bool = False,
        kernel_size: int = 1,
        scale: Sequence[float] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.members, self.in_features, self.out_features = members, in_features, out_features
        self.shared_input, self.kernel_size = shared_input, kernel_size
        self.scale = None if scale is None else tuple(scale)
        window = () if kernel_size == 1 else (kernel_size, kernel_size)
        self.weight = nn.Parameter(torch.empty(members, out_features, in_features, *window))
        self.bias = nn.Parameter(torch.empty(members, out_features))
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw weights and biases uniformly from ±1/sqrt(inputs), as `nn.Linear` does, each member's own.

        Args:
            generator: Source; torch's default generator if None.
        """
        bound = 1 / math.sqrt(self.weight[0, 0].numel())
        for tensor in (self.weight, self.bias):
            device = tensor.device if generator is None else generator.device
            drawn = torch.empty(tensor.shape, device=device).uniform_(-bound, bound, generator=generator)
            if self.scale is not None:
                drawn *= torch.tensor(self.scale, device=device).reshape(-1, *[1] * (tensor.ndim - 1))
            tensor.copy_(drawn)

    def vectors(self, x: Tensor) -> Float[Tensor, "members batch out"]:
        """The layer on vectors.

        Args:
            x: Shape (batch, in) if all members share it, else (members, batch, in).

        Returns:
            Outputs, member by member.
        """
        if x.ndim == 2:
            flat = functional.linear(x, self.weight.flatten(0, 1), self.bias.flatten())
            return flat.unflatten(1, (self.members, self.out_features)).transpose(0, 1)
        return torch.baddbmm(self.bias.unsqueeze(1), x, self.weight.transpose(1, 2))

    def maps(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch outs height width"]:
        """The layer on maps, as one (grouped) convolution.

        Args:
            x: Channels of all members side by side, or of the shared input.

        Returns:
            Channels of all members side by side.
        """
        size = self.kernel_size
        weight = self.weight.reshape(-1, self.in_features, size, size)
        groups = 1 if self.shared_input else self.members
        return functional.conv2d(x, weight, self.bias.flatten(), padding=size // 2, groups=groups)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return (f"members={self.members}, in_features={self.in_features}, out_features={self.out_features}, "
                f"shared_input={self.shared_input}, kernel_size={self.kernel_size}")  # fmt: skip

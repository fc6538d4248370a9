"""Classifier heads of M members as one module: grouped products, no copies of the features.

Two ways to feed M heads from F features: "partition" gives head m the m-th slice of F/M features, so that all heads
together have about the weights of one; "full" gives every head all features, as one dense layer and then grouped ones.

Reference:
    Zhang et al. (2022), arXiv:2212.07070, for heads on a shared trunk; Shi et al. (2018), "Crowd Counting with Deep
    Negative Correlation Learning", CVPR, for heads by group convolution.
"""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Literal, SupportsFloat, final, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from dncc.grouped import GroupedLayer

__all__ = ["Activation", "HeadMode", "HeadNorm", "HeadSymmetryWarning", "Heads", "identical_heads"]

HeadMode = Literal["partition", "full"]
HeadNorm = Literal["batch", "layer"]
Activation = Literal["relu", "gelu", "silu", "tanh"]

_ACTIVATIONS = {"relu": functional.relu, "gelu": functional.gelu, "silu": functional.silu, "tanh": torch.tanh}


class HeadSymmetryWarning(UserWarning):
    """Heads that read the same features have the same weights: equal gradients keep them equal for ever."""


@final
class Heads(nn.Module):
    """M small classifiers on shared features: (batch, F) or (batch, F, height, width) to (members, batch, classes).

    Weights and biases, h the hidden width of one head, C classes (kernel size 1, no norm):

    - partition: F C + M C; with one hidden layer F h + M h + M h C + M C;
    - full: M F C + M C; with one hidden layer M F h + M h + M h C + M C.

    On maps the hidden layers are (grouped) convolutions, followed by the mean over the map and the last layer; without
    hidden layers the features are averaged first. Initial weights differ between heads. That matters: heads with equal
    weights and equal input ("full") get equal gradients for ever, whatever lambda is; loading such weights warns.

    Args:
        in_features: F.
        num_classes: C.
        members: M.
        mode: "partition" (needs F divisible by M) or "full".
        hidden: Widths of one head's hidden layers.
        activation: After each hidden layer: "relu", "gelu", "silu" or "tanh".
        norm: After each hidden layer, before the activation, each head's own: None, "batch" or "layer" (on maps the
            latter normalises over a head's channels and the whole map, as `nn.GroupNorm` does).
        dropout: Probability with which each entry of a head's last input and of its hidden layers' outputs is zeroed,
            drawn for each head on its own. In "full" mode without hidden layers this costs M copies of the features.
        init_scale: Multiplies the last layer's initial weights and biases; one number, or one a head.
        kernel_size: Of the hidden layers on maps; odd. Above 1, vectors are refused.
        generator: Source of the initial weights; torch's default generator if None.

    Raises:
        ValueError: If a number is out of range, or F cannot be split among the members.

    Example:
        >>> heads = Heads(512, num_classes=10, members=8)
        >>> heads(torch.randn(4, 512)).shape, sum(p.numel() for p in heads.parameters()) == 512 * 10 + 8 * 10
        (torch.Size([8, 4, 10]), True)
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        members: int = 8,
        mode: HeadMode = "partition",
        *,
        hidden: Sequence[int] = (),
        activation: Activation = "relu",
        norm: HeadNorm | None = None,
        dropout: SupportsFloat = 0.0,
        init_scale: SupportsFloat | Sequence[SupportsFloat] = 1.0,
        kernel_size: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        _check_sizes(in_features, num_classes, members, hidden, kernel_size)
        _check_choices(mode, activation, norm)
        if mode == "partition" and in_features % members:
            raise ValueError(_no_partition(in_features, members))
        self.in_features, self.num_classes, self.members = in_features, num_classes, members
        self.mode, self.activation, self.dropout = mode, activation, float(dropout)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be at least 0 and below 1")
        scales = _scales(init_scale, members)
        width = in_features if mode == "full" else in_features // members
        shared = mode == "full"
        self.hidden, self.norms = nn.ModuleList(), nn.ModuleList()
        for size in hidden:
            options: dict[str, Any] = {"shared_input": shared, "kernel_size": kernel_size, "generator": generator}
            self.hidden.append(GroupedLayer(members, width, size, **options))
            self.norms.append(_norm(norm, members, size))
            width, shared = size, False
        self.last = GroupedLayer(members, width, num_classes, shared_input=shared, scale=scales, generator=generator)
        self.register_load_state_dict_post_hook(_warn_if_equal)

    def forward(self, features: Float[Tensor, "batch features *space"]) -> Float[Tensor, "members batch classes"]:
        """Logits of every head.

        Args:
            features: Vectors, or maps of shape (batch, F, height, width).

        Returns:
            Member-first logits.

        Raises:
            ValueError: If the shape does not fit.
        """
        if features.ndim not in (2, 4) or features.shape[1] != self.in_features:
            raise ValueError(f"features have shape {tuple(features.shape)}; the heads take (batch, {self.in_features}) "
                             f"or (batch, {self.in_features}, height, width)")  # fmt: skip
        x = self._after_maps(features) if features.ndim == 4 else self._after_vectors(features)
        if not self.hidden:
            x = self._dropped(x)
        return self.last.vectors(x)

    def _after_maps(self, x: Tensor) -> Tensor:
        for layer, norm in self._hidden_layers():
            x = self._dropped(_ACTIVATIONS[self.activation](norm(layer.maps(x))))
        x = x.mean((2, 3))
        return self._split(x) if self.hidden or self.mode == "partition" else x

    def _after_vectors(self, x: Tensor) -> Tensor:
        if self.mode == "partition":
            x = self._split(x)
        for layer, norm in self._hidden_layers():
            if layer.kernel_size > 1:
                raise ValueError(f"kernel_size is {layer.kernel_size} and the features are vectors, not maps: take "
                                 "kernel_size=1, or a backbone with pool='none'")  # fmt: skip
            x = layer.vectors(x)
            if not isinstance(norm, nn.Identity):  # norms take the members side by side as channels
                x = self._split(norm(x.transpose(0, 1).flatten(1)[..., None, None])[..., 0, 0])
            x = self._dropped(_ACTIVATIONS[self.activation](x))
        return x

    def _hidden_layers(self) -> Iterator[tuple[GroupedLayer, nn.Module]]:
        for layer, norm in zip(self.hidden, self.norms, strict=True):
            if isinstance(layer, GroupedLayer):  # always; says so to type checkers
                yield layer, norm

    def _split(self, x: Tensor) -> Tensor:
        """(batch, members * width) to (members, batch, width), a view."""
        return x.unflatten(1, (self.members, -1)).transpose(0, 1)

    def _dropped(self, x: Tensor) -> Tensor:
        if not (self.training and self.dropout):
            return x
        if x.ndim == 2:  # shared features: every head needs a mask of its own, and with it its own copy
            x = x.expand(self.members, -1, -1)
        return functional.dropout(x, self.dropout)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return (f"in_features={self.in_features}, num_classes={self.num_classes}, members={self.members}, "
                f"mode={self.mode!r}, activation={self.activation!r}, dropout={self.dropout}")  # fmt: skip


def identical_heads(heads: Heads) -> list[tuple[int, int]]:
    """Pairs of heads that have the same weights.

    Args:
        heads: Any heads.

    Returns:
        Index pairs (a, b), a < b; empty if all heads differ.

    Example:
        >>> identical_heads(Heads(6, 2, members=3, mode="full"))
        []
    """
    flat = torch.cat([tensor.detach().reshape(heads.members, -1) for tensor in heads.parameters()], 1)
    pairs = [(a, b) for a in range(heads.members) for b in range(a + 1, heads.members)]
    return [(a, b) for a, b in pairs if torch.equal(flat[a], flat[b])]


def _warn_if_equal(heads: nn.Module, _incompatible: object) -> None:
    if not isinstance(heads, Heads) or heads.mode == "partition" or heads.dropout:
        return  # slices and masks make equal heads differ
    if pairs := identical_heads(heads):
        warnings.warn(f"heads {pairs[0][0]} and {pairs[0][1]} were loaded with the same weights and read the same "
                      "features: they get equal gradients and stay equal; give them different weights",
                      HeadSymmetryWarning, stacklevel=3)  # fmt: skip


def _check_sizes(in_features: int, num_classes: int, members: int, hidden: Sequence[int], kernel_size: int) -> None:
    for name, value in (("in_features", in_features), ("num_classes", num_classes), ("members", members)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    if any(size < 1 for size in hidden):
        raise ValueError(f"hidden is {tuple(hidden)}; every width of a head must be at least 1")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size is {kernel_size}; it must be odd and at least 1")
    if kernel_size > 1 and not hidden:
        raise ValueError(f"kernel_size is {kernel_size} and there are no hidden layers that would use it: give hidden=")


def _check_choices(mode: str, activation: str, norm: str | None) -> None:
    for name, value, allowed in (("mode", mode, get_args(HeadMode)), ("activation", activation, get_args(Activation)),
                                 ("norm", norm, (None, *get_args(HeadNorm)))):  # fmt: skip
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, allowed))}")


def _no_partition(features: int, members: int) -> str:
    divisors = [m for m in range(1, features + 1) if features % m == 0]
    near = [m for m in divisors if m < members][-1:] + [m for m in divisors if m > members][:1]
    numbers = " or ".join(map(str, near))
    return (f"{features} features cannot be split evenly among {members} members: take members={numbers}, "
            "or mode='full'")  # fmt: skip


def _scales(init_scale: SupportsFloat | Sequence[SupportsFloat], members: int) -> list[float]:
    values = [*init_scale] if isinstance(init_scale, Sequence) else [init_scale] * members
    scales = [float(value) for value in values]
    if len(scales) != members or not all(0 < scale < float("inf") for scale in scales):
        raise ValueError(f"init_scale is {init_scale!r}; it must be one positive number, or {members} of them "
                         "(0 would make heads start equal)")  # fmt: skip
    return scales


def _norm(norm: HeadNorm | None, members: int, width: int) -> nn.Module:
    channels = members * width
    if norm is None:
        return nn.Identity()
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.GroupNorm(members, channels)

"""Trunks of value networks: from observations as they lie in the log to features."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, final, get_args

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own name for it)

from ccvf.layers import convolution, fill_uniform, linear

__all__ = ["Body", "BodyKind", "MinAtarBody", "MlpBody", "NatureBody", "TabularBody", "body_kind", "make_body"]

BodyKind = Literal["auto", "mlp", "minatar", "nature", "tabular"]

_SMALLEST_NATURE = 36  # pixels a side that the three convolutions need


class Body(nn.Module, ABC):
    """From a batch of observations, in the dtype of the log, to features.

    Attributes:
        features: Width F of the features.
    """

    features: int

    @abstractmethod
    def forward(self, observations: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch features"]:
        """Features of a batch.

        Args:
            observations: As in the log: bool, uint8, integer or floating point.

        Returns:
            Features; of the lower precision under autocast.
        """


def _pixels(observations: Tensor) -> Tensor:
    """Channels of float32 in [0, 1] from bytes; other dtypes keep their values."""
    if observations.dtype == torch.uint8:
        return observations.float() * (1 / 255)
    return observations.float()


@final
class MlpBody(Body):
    """Dense layers with ReLU on the flattened observation, whose values are taken as they are.

    Args:
        inputs: Numbers in one observation.
        hidden: Widths of the layers; the last is the width of the features.
        generator: Source of the weights.
    """

    def __init__(self, inputs: int, hidden: Sequence[int], generator: torch.Generator) -> None:
        super().__init__()
        widths = [inputs, *hidden]
        self.layers = nn.ModuleList(linear(a, b, generator) for a, b in pairwise(widths))
        self.features = widths[-1]

    def forward(self, observations: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch features"]:
        """Features of a batch (see `Body.forward`)."""
        x = observations.flatten(1).float()
        for layer in self.layers:
            x = F.relu(layer(x))
        return x


@final
class MinAtarBody(Body):
    """One convolution of 16 filters 3 x 3 and one dense layer, on small pictures whose channels come last.

    Args:
        shape: (height, width, channels).
        width: Width of the features.
        generator: Source of the weights.

    Reference:
        Young and Tian (2019). MinAtar (arXiv:1903.03176), the network of its experiments.
    """

    def __init__(self, shape: tuple[int, int, int], width: int, generator: torch.Generator) -> None:
        super().__init__()
        height, breadth, channels = shape
        self.conv = convolution(channels, 16, 3, 1, generator)
        self.dense = linear(16 * (height - 2) * (breadth - 2), width, generator)
        self.features = width

    def forward(self, observations: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch features"]:
        """Features of a batch (see `Body.forward`)."""
        x = _pixels(observations).permute(0, 3, 1, 2)  # already channels_last in memory
        x = F.relu(self.conv(x)).permute(0, 2, 3, 1).flatten(1)
        return F.relu(self.dense(x))


@final
class NatureBody(Body):
    """The three convolutions and one dense layer of DQN, on pictures whose channels or stacked frames come first.

    Args:
        shape: (channels, height, width); 84 pixels a side for Atari, at least 36.
        width: Width of the features.
        generator: Source of the weights.

    Reference:
        Mnih et al. (2015). Human-level control through deep reinforcement learning. Nature 518.
    """

    def __init__(self, shape: tuple[int, int, int], width: int, generator: torch.Generator) -> None:
        super().__init__()
        channels, *sides = shape
        kernels = ((32, 8, 4), (64, 4, 2), (64, 3, 1))
        convolutions = []
        for outputs, size, stride in kernels:
            convolutions.append(convolution(channels, outputs, size, stride, generator))
            channels, sides = outputs, [(side - size) // stride + 1 for side in sides]
        self.convolutions = nn.ModuleList(convolutions)
        self.dense = linear(channels * math.prod(sides), width, generator)
        self.features = width

    def forward(self, observations: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch features"]:
        """Features of a batch (see `Body.forward`)."""
        x = _pixels(observations)
        x = x.unsqueeze(1) if x.ndim == 3 else x  # one frame alone has no axis of channels
        for layer in self.convolutions:
            x = F.relu(layer(x))
        return F.relu(self.dense(x.flatten(1)))


@final
class TabularBody(Body):
    """A feature of its own for each state, or a learnt row of the given width.

    With features of its own a linear head on top is a table: every state is learnt apart.

    Args:
        n_states: Number of states.
        width: None: one-hot, F = n_states; else the width of a learnt row.
        generator: Source of the rows.
    """

    def __init__(self, n_states: int, width: int | None, generator: torch.Generator) -> None:
        super().__init__()
        self.n_states = n_states
        self.features = n_states if width is None else width
        self.rows = None
        if width is not None:
            self.rows = nn.Parameter(torch.empty(n_states, width))
            fill_uniform(self.rows, 1.0, generator)

    def forward(self, observations: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch features"]:
        """Features of a batch (see `Body.forward`)."""
        states = observations.flatten().long()
        if self.rows is None:
            return F.one_hot(states, self.n_states).float()
        return F.embedding(states, self.rows)


def body_kind(observation_shape: Sequence[int], n_states: int | None = None) -> BodyKind:
    """The body that suits observations of a shape.

    Args:
        observation_shape: Shape of one observation.
        n_states: Number of states where observations are state numbers.

    Returns:
        "tabular" for state numbers, "mlp" for vectors, "nature" for pictures of at least 36 pixels a side (channels
        first, or none), "minatar" for smaller ones (channels last).

    Raises:
        ValueError: If none suits.

    Example:
        >>> body_kind((10, 10, 4)), body_kind((4, 84, 84)), body_kind((8,)), body_kind((), n_states=49)
        ('minatar', 'nature', 'mlp', 'tabular')
    """
    shape = tuple(observation_shape)
    if n_states is not None and math.prod(shape) == 1:
        return "tabular"
    if len(shape) == 1:
        return "mlp"
    if len(shape) in (2, 3) and min(shape[-2:]) >= _SMALLEST_NATURE:
        return "nature"
    if len(shape) == 3 and min(shape[:2]) >= 3:
        return "minatar"
    hint = "give n_states=" if not shape else "give kind='mlp' to flatten them"
    raise ValueError(f"no body is known for observations of shape {shape}: {hint}")


def make_body(
    kind: BodyKind | str,
    observation_shape: Sequence[int],
    *,
    generator: torch.Generator,
    n_states: int | None = None,
    hidden: Sequence[int] = (256, 256),
    width: int | None = None,
) -> Body:
    """A body with fresh weights.

    Args:
        kind: "mlp", "minatar", "nature" or "tabular"; "auto" chooses by the shape (`body_kind`).
        observation_shape: Shape of one observation.
        generator: Source of the weights.
        n_states: Number of states, for "tabular".
        hidden: Widths of the layers, for "mlp".
        width: Width of the features; None: 128 for "minatar", 512 for "nature", one a state for "tabular". Of "mlp"
            the last hidden layer says it.

    Returns:
        The body.

    Raises:
        ValueError: If the kind is unknown or does not suit the shape, or a width is below 1.

    Example:
        >>> body = make_body("auto", (10, 10, 4), generator=torch.Generator().manual_seed(0))
        >>> body(torch.zeros(3, 10, 10, 4, dtype=torch.bool)).shape
        torch.Size([3, 128])
    """
    shape = tuple(observation_shape)
    if kind not in get_args(BodyKind):
        raise ValueError(f"body {kind!r} is unknown: give one of {', '.join(map(repr, get_args(BodyKind)))}")
    if min([*hidden, 1 if width is None else width]) < 1 or not hidden:
        raise ValueError(f"widths are at least 1 and hidden has a layer; hidden={tuple(hidden)}, width={width} given")
    chosen = body_kind(shape, n_states) if kind == "auto" else kind
    if chosen == "mlp":
        if width is not None:
            raise ValueError(f"width={width} given for the body 'mlp': its last hidden layer is the width, {hidden=}")
        return MlpBody(math.prod(shape), hidden, generator)
    if chosen == "tabular":
        if n_states is None or n_states < 1 or math.prod(shape) != 1:
            raise ValueError(f"the body 'tabular' takes one state number an observation and n_states >= 1; {shape} and "
                             f"{n_states=} given")  # fmt: skip
        return TabularBody(n_states, width, generator)
    if chosen == "minatar":
        if len(shape) != 3 or min(shape[:2]) < 3:
            raise ValueError(f"the body 'minatar' takes (height, width, channels) of at least 3 x 3; {shape} given")
        return MinAtarBody(shape, width or 128, generator)
    pictures = (1, *shape) if len(shape) == 2 else shape
    if len(pictures) != 3 or min(pictures[1:]) < _SMALLEST_NATURE:
        raise ValueError(f"the body 'nature' takes (channels, height, width) of at least 36 pixels a side; {shape} "
                         "given")  # fmt: skip
    return NatureBody(pictures, width or 512, generator)

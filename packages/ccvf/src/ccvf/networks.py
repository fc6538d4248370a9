"""Value networks: a body and a head, made from plain options, copied as targets that follow."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, SupportsFloat, TypeVar, final

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from ccvf.bodies import Body, BodyKind, make_body
from ccvf.heads import CosineHead, EnsembleHead, Head, MonotoneHead, PlainHead

__all__ = [
    "ConfidenceNetwork",
    "EnsembleNetwork",
    "HeadKind",
    "NetworkOptions",
    "make_ensemble_network",
    "make_network",
    "n_parameters",
    "soft_update",
    "target_copy",
]

HeadKind = Literal["monotone", "cosine", "plain"]

_M = TypeVar("_M", bound=nn.Module)


@final
@dataclass(frozen=True)
class NetworkOptions:
    """A network's architecture in plain values, as a checkpoint keeps it.

    Args:
        body: "auto", "mlp", "minatar", "nature" or "tabular" (see `ccvf.bodies.make_body`).
        hidden: Widths of the layers, for "mlp".
        width: Width of the features; None: the body's own.
        n_states: Number of states, for "tabular".
        head: "monotone", "cosine" or "plain" (see `ccvf.heads`).
        smallest: Confidence of the last knot.
        knots: Number of ramps of "monotone".
        embedding: "ramps" or "learned", of "monotone".
        beyond: "linear" or "constant" below `smallest`, of "monotone".
        initial_slope: Cost of a unit of u at the start, of "monotone".
        variable: "delta" or "u", of "cosine".
        dueling: Whether a state value and advantages make the values.
    """

    body: BodyKind | str = "auto"
    hidden: Sequence[int] = (256, 256)
    width: int | None = None
    n_states: int | None = None
    head: HeadKind | str = "monotone"
    smallest: SupportsFloat = 1e-4
    knots: int = 16
    embedding: Literal["ramps", "learned"] = "ramps"
    beyond: Literal["linear", "constant"] = "linear"
    initial_slope: SupportsFloat = 0.05
    variable: Literal["delta", "u"] = "delta"
    dueling: bool = False


@final
class ConfidenceNetwork(nn.Module):
    """Values of every action at confidences; the body is evaluated once for all of them.

    Args:
        body: From observations to features.
        head: From features and confidences to values.

    Raises:
        ValueError: If the widths differ.
    """

    def __init__(self, body: Body, head: Head) -> None:
        super().__init__()
        if body.features != head.features:
            raise ValueError(f"the body gives {body.features} features and the head takes {head.features}")
        self.body, self.head = body, head

    def encode(self, observations: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch features"]:
        """Features of a batch.

        Args:
            observations: As in the log.

        Returns:
            Features.
        """
        return self.body(observations)

    def decode(
        self, features: Float[Tensor, "batch features"], deltas: Float[Tensor, "*rows confidences"]
    ) -> Float[Tensor, "batch confidences actions"]:
        """Values from features.

        Args:
            features: From `encode`.
            deltas: Confidences in (0, 1], (D,) or (batch, D).

        Returns:
            Values, float32.
        """
        return self.head(features, deltas)

    def decode_with_free(
        self, features: Float[Tensor, "batch features"], deltas: Float[Tensor, "*rows confidences"]
    ) -> tuple[Float[Tensor, "batch confidences actions"], Float[Tensor, "batch 1 actions"]]:
        """Values from features at each confidence, and at delta = 1 (see `ccvf.heads.Head.with_free`).

        Args:
            features: From `encode`.
            deltas: Confidences in (0, 1], (D,) or (batch, D).

        Returns:
            Values at the confidences, and without conservatism.
        """
        return self.head.with_free(features, deltas)

    def forward(
        self, observations: Shaped[Tensor, "batch ..."], deltas: Float[Tensor, "*rows confidences"]
    ) -> Float[Tensor, "batch confidences actions"]:
        """Values of a batch at each confidence.

        Args:
            observations: As in the log.
            deltas: Confidences in (0, 1], (D,) or (batch, D).

        Returns:
            Values, float32.
        """
        return self.head(self.body(observations), deltas)


@final
class EnsembleNetwork(nn.Module):
    """Values of every action from K heads on one body.

    Args:
        body: From observations to features.
        head: From features to the values of each head.
    """

    def __init__(self, body: Body, head: EnsembleHead) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, observations: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch heads actions"]:
        """Values of each head.

        Args:
            observations: As in the log.

        Returns:
            Values, float32.
        """
        return self.head(self.body(observations))


def _body(options: NetworkOptions, observation_shape: Sequence[int], generator: torch.Generator) -> Body:
    return make_body(
        options.body,
        observation_shape,
        generator=generator,
        n_states=options.n_states,
        hidden=options.hidden,
        width=options.width,
    )


def make_network(
    observation_shape: Sequence[int],
    n_actions: int,
    options: NetworkOptions | None = None,
    *,
    generator: torch.Generator,
) -> ConfidenceNetwork:
    """A network with fresh weights on the CPU.

    Args:
        observation_shape: Shape of one observation.
        n_actions: Number of actions.
        options: The architecture; None: `NetworkOptions()`.
        generator: Source of the weights.

    Returns:
        The network.

    Raises:
        ValueError: If there is no action, or an option is unknown, out of range or does not suit the shape.

    Example:
        >>> network = make_network((10, 10, 4), 6, generator=torch.Generator().manual_seed(0))
        >>> network(torch.zeros(2, 10, 10, 4), torch.tensor([0.01, 0.1, 1.0])).shape
        torch.Size([2, 3, 6])
    """
    o = options or NetworkOptions()
    _check_actions(n_actions)
    body = _body(o, observation_shape, generator)
    sizes = (body.features, n_actions)
    if o.head == "monotone":
        head = MonotoneHead(
            *sizes,
            generator=generator,
            smallest=o.smallest,
            knots=o.knots,
            embedding=o.embedding,
            beyond=o.beyond,
            initial_slope=o.initial_slope,
            dueling=o.dueling,
        )
    elif o.head == "cosine":
        head = CosineHead(*sizes, generator=generator, variable=o.variable, smallest=o.smallest, dueling=o.dueling)
    elif o.head == "plain":
        head = PlainHead(*sizes, generator=generator, dueling=o.dueling)
    else:
        raise ValueError(f"head {o.head!r} is unknown: give 'monotone', 'cosine' or 'plain'")
    return ConfidenceNetwork(body, head)


def make_ensemble_network(
    observation_shape: Sequence[int],
    n_actions: int,
    heads: int,
    options: NetworkOptions | None = None,
    *,
    generator: torch.Generator,
) -> EnsembleNetwork:
    """An ensemble of heads on one body, with fresh weights on the CPU.

    Args:
        observation_shape: Shape of one observation.
        n_actions: Number of actions.
        heads: Number of heads.
        options: The architecture, of which the body is used; None: `NetworkOptions()`.
        generator: Source of the weights.

    Returns:
        The network.

    Raises:
        ValueError: As `make_network`, or if there is no head.
    """
    _check_actions(n_actions)
    body = _body(options or NetworkOptions(), observation_shape, generator)
    return EnsembleNetwork(body, EnsembleHead(body.features, n_actions, heads, generator=generator))


def _check_actions(n_actions: int) -> None:
    if n_actions < 1:
        raise ValueError(f"there is at least 1 action, {n_actions} given")


def n_parameters(module: nn.Module) -> int:
    """Number of trained parameters.

    Args:
        module: Any.

    Returns:
        Their number.
    """
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def target_copy(module: _M) -> _M:
    """A copy that takes no gradients: what `soft_update` moves.

    Args:
        module: The network to follow.

    Returns:
        The copy, on the same device.
    """
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def soft_update(target: nn.Module, online: nn.Module, tau: SupportsFloat = 1.0) -> None:
    r"""Move the target towards the online network: $\theta' \leftarrow (1 - \tau)\,\theta' + \tau\,\theta$.

    Args:
        target: Moved in place.
        online: Of the same architecture.
        tau: How far, in (0, 1]; 1 copies exactly.

    Raises:
        ValueError: If tau is out of range.
    """
    weight = float(tau)
    if not 0 < weight <= 1:
        raise ValueError(f"tau is in (0, 1], {weight:g} given: 1 copies, 0.005 follows slowly")
    ours, theirs = ([p.data for p in module.parameters()] for module in (target, online))
    if weight == 1:
        torch._foreach_copy_(ours, theirs)
    else:
        torch._foreach_lerp_(ours, theirs, weight)

"""Bodies for estimates of sampling error: fresh ones, fed with numbers of a log's own scale."""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from ccvf.bodies import Body, body_kind, make_body
from ccvf.heads import EnsembleHead
from ccvf.logged_pairs import moments
from ccvf.transitions import Transitions

__all__ = ["StandardBody", "make_pair_network", "make_standard_body", "standardise"]


@final
class StandardBody(Body):
    """A body whose inputs of floating point are centred and scaled; others go in as they are.

    Args:
        body: From observations to features.
        size: Numbers in one observation.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, body: Body, size: int) -> None:
        super().__init__()
        self.body, self.features = body, body.features
        self.register_buffer("shift", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))

    def forward(self, observations: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch features"]:
        """Features of a batch (see `ccvf.bodies.Body.forward`)."""
        if observations.is_floating_point():
            flat = observations.reshape(len(observations), -1).float()
            observations = ((flat - self.shift) / self.scale).view(observations.shape)
        return self.body(observations)


def make_standard_body(
    observation_shape: Sequence[int], *, body: str, width: int, n_states: int | None, generator: torch.Generator
) -> StandardBody:
    """A body with random weights.

    Args:
        observation_shape: Shape of one observation.
        body: Kind (see `ccvf.bodies.make_body`).
        width: Width of the features; of state numbers it is their number.
        n_states: Number of states, where observations are their numbers.
        generator: Source of the weights.

    Returns:
        The body, on the CPU, without standardisation yet.

    Raises:
        ValueError: If the body does not suit the shape.
    """
    chosen = body_kind(observation_shape, n_states) if body == "auto" else body
    found = make_body(
        chosen,
        observation_shape,
        generator=generator,
        n_states=n_states,
        hidden=(width, width),
        width=None if chosen in ("mlp", "tabular") else width,
    )
    return StandardBody(found, torch.Size(observation_shape).numel())


def make_pair_network(body: StandardBody, n_actions: int, outputs: int, generator: torch.Generator) -> nn.Sequential:
    """A network with several outputs for each pair of observation and action.

    Args:
        body: Its body.
        n_actions: Number of actions.
        outputs: Number K of outputs.
        generator: Source of the weights.

    Returns:
        From observations to (batch, K, actions).
    """
    return nn.Sequential(body, EnsembleHead(body.features, n_actions, outputs, generator=generator))


def standardise(network: nn.Module, data: Transitions) -> None:
    """Give every `StandardBody` of a network the mean and standard deviation of a log of floating point.

    Args:
        network: Changed in place.
        data: The log.
    """
    if data.frames.dtype.kind != "f":
        return
    bodies = [module for module in network.modules() if isinstance(module, StandardBody)]
    mean, deviation = moments(data, bodies[0].shift.device)
    for body in bodies:
        body.shift.copy_(mean)
        body.scale.copy_(deviation)

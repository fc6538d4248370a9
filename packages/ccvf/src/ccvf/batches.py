"""Batches of transitions on a device, and a seeded sampler that can be stopped and gone on with."""

from dataclasses import dataclass
from typing import SupportsFloat, final

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

__all__ = ["Batch"]


@final
@dataclass(frozen=True, eq=False)
class Batch:
    """A batch of transitions as tensors on one device; observations keep the dtype of the log (bool, uint8, ...).

    Args:
        observations: (batch, *observation shape).
        actions: (batch,), int64.
        rewards: (batch,), float32.
        next_observations: (batch, *observation shape).
        terminated: (batch,): no future follows.
        steps: (batch,): environment steps until the next observation.
    """

    observations: Shaped[Tensor, "batch ..."]
    actions: Int[Tensor, " batch"]
    rewards: Float[Tensor, " batch"]
    next_observations: Shaped[Tensor, "batch ..."]
    terminated: Bool[Tensor, " batch"]
    steps: Int[Tensor, " batch"]

    def discounts(self, gamma: SupportsFloat) -> Float[Tensor, " batch"]:
        r"""What the value of the next observation counts: $\gamma^{steps}$, 0 after a terminated transition.

        A truncated transition is bootstrapped: it keeps its discount.

        Args:
            gamma: Discount of one environment step.

        Returns:
            Discounts, float32.
        """
        return torch.pow(float(gamma), self.steps.float()) * ~self.terminated

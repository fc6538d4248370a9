"""What every learner of values is: updated batch by batch, asked for values at any confidence, saved and restored."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from ccvf.batches import Batch

__all__ = ["Learner", "under"]


class Learner(ABC):
    """A value function learnt from batches of transitions; a `ConfidenceValues` for whoever uses it.

    Attributes:
        observation_shape: Shape of one observation.
        n_actions: Number of actions.
        gamma: Discount of one environment step.
        updates: Gradient steps so far.
    """

    observation_shape: tuple[int, ...]
    n_actions: int
    gamma: float
    updates: int

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where it computes."""

    @abstractmethod
    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Take one gradient step.

        Args:
            batch: Transitions on this learner's device.

        Returns:
            Figures of the step by name, 0-d tensors on the device (reading them waits for it).
        """

    @abstractmethod
    def values(
        self, observations: Shaped[Tensor, "batch ..."], deltas: Float[Tensor, " confidences"]
    ) -> Float[Tensor, "batch confidences actions"]:
        """Values of a batch on the device, without gradient.

        Args:
            observations: As in the log.
            deltas: Confidences in (0, 1].

        Returns:
            Values, float32.
        """

    def q_values(
        self, observations: np.ndarray, deltas: Float[np.ndarray, " confidences"]
    ) -> Float[np.ndarray, "batch confidences actions"]:
        """Values of a batch of observations as arrays (see `ccvf.values.ConfidenceValues`).

        Raises:
            ValueError: If the observations have another shape than the learner's.
        """
        if np.shape(observations)[1:] != tuple(self.observation_shape) or np.ndim(observations) == 0:
            wanted = ("batch", *self.observation_shape)
            raise ValueError(f"observations have shape {np.shape(observations)}; this learner takes {wanted}, a batch "
                             "first")  # fmt: skip
        return self.values(
            torch.as_tensor(np.ascontiguousarray(observations), device=self.device),
            torch.as_tensor(np.asarray(deltas, dtype=np.float32), device=self.device),
        ).cpu().numpy()  # fmt: skip

    @abstractmethod
    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that exact resumption needs.

        Returns:
            Tensors by name, and JSON values (configuration, counters).
        """

    @abstractmethod
    def restore(self, tensors: Mapping[str, Tensor], extra: Mapping[str, Any]) -> None:
        """Take over a `state`.

        Args:
            tensors: Tensors by name.
            extra: JSON values.

        Raises:
            ValueError: If the state is of another kind of learner or of another configuration; it says which.
        """


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The part of a state whose names start alike.

    Args:
        tensors: Tensors by name.
        prefix: How the names start.

    Returns:
        Those tensors, by the rest of their names.
    """
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

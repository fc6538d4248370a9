"""What a belief, a policy or an evaluation needs to know of a learnt value function: its values at any confidence."""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

__all__ = ["ConfidenceValues"]


@runtime_checkable
class ConfidenceValues(Protocol):
    """Values of every action at every asked confidence; tabular solutions, deep learners and baselines are such.

    Baselines without a confidence give the same values at every one.
    """

    @property
    def n_actions(self) -> int:
        """Number of actions A; actions are 0 to A - 1."""
        ...

    def q_values(
        self, observations: np.ndarray, deltas: Float[np.ndarray, " confidences"]
    ) -> Float[np.ndarray, "batch confidences actions"]:
        """Values of a batch of observations.

        Args:
            observations: Observations, (batch, *observation shape); for tabular values state numbers, (batch,).
            deltas: Confidences in (0, 1], not necessarily those of the training.

        Returns:
            Values in units of discounted return, float32 or float64. Never clipped from below.
        """
        ...

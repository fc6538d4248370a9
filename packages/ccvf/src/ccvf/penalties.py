"""What stands for sampling error where states cannot be counted: one interface, several ways to estimate it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from ccvf.transitions import Transitions

__all__ = ["Bonus"]


class Bonus(ABC):
    r"""An estimate of $b(s, a) \approx 1/\sqrt{n(s, a) \vee 1}$ for every action, learnt from the log before training.

    Values lie in (0, 1] for logged pairs where the estimate is a count. One without a count of its own is scaled so
    that its median over the logged pairs is that of counts by hashing. The lower bound takes
    $\alpha \sqrt{\log(1/\delta)}\, b(s, a)$ off.
    """

    @abstractmethod
    def fit(self, data: Transitions, generator: torch.Generator) -> "Bonus":
        """Learn from the whole log.

        Args:
            data: The log.
            generator: Source of randomness.

        Returns:
            Itself.
        """

    @abstractmethod
    def __call__(self, observations: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch actions"]:
        """The estimate for every action of a batch, without gradient.

        Args:
            observations: As in the log.

        Returns:
            b(s, a), float32, at least 0, on the device of the estimate.
        """

    @abstractmethod
    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors by name and JSON values from which `restore` makes the same estimate."""

    @abstractmethod
    def restore(self, tensors: Mapping[str, Tensor], extra: Mapping[str, Any]) -> None:
        """Take over a `state`."""

"""Lambda while training: what sets it, step by step or epoch by epoch."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, SupportsFloat, final

import torch
from torch import Tensor

from dncc.checks import checked_lambda
from dncc.outputs import Measured

__all__ = ["LambdaController", "LinearLambda"]


class LambdaController(ABC):
    """Abstract source of lambda; give it to a loss as `lam`.

    Attributes:
        tensor: lambda as a tensor without axes, changed in place: a compiled loss does not compile anew when it moves.
        watches: Whether `observe` looks at what it is given; if not, nothing need be measured for it.
    """

    watches: bool = False

    def __init__(self, value: SupportsFloat) -> None:
        self.tensor: Tensor = torch.tensor(checked_lambda(value, "the initial lambda"), dtype=torch.float64)

    @property
    def value(self) -> float:
        """Lambda now."""
        return float(self.tensor)

    def set(self, value: SupportsFloat) -> None:
        """Puts lambda where a user wants it.

        Args:
            value: lambda in [0, 1].

        Raises:
            ValueError: If it is outside.
        """
        self.tensor.fill_(checked_lambda(value))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(lambda now {self.value:.4g})"

    @abstractmethod
    def step(self) -> float:
        """To be called after every optimiser step.

        Returns:
            lambda for the next step.
        """

    @abstractmethod
    def observe(self, train: Measured, validation: Measured) -> float:
        """To be called after every epoch with what was measured; controllers that only count steps ignore it.

        Args:
            train: The decomposition on training data.
            validation: The same on data that is not trained on.

        Returns:
            lambda for the next epoch.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What resuming needs, in JSON's types.

        Returns:
            A dictionary.
        """

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts back what `state_dict` gave.

        Args:
            state: From `state_dict`.
        """


@final
class LinearLambda(LambdaController):
    """lambda goes from `start` to `end` in a straight line over `steps` optimiser steps, after `wait` steps at `start`.

    Members first become competent on their own, then divide the work.

    Args:
        start: First lambda, in [0, 1].
        end: Last lambda, in [0, 1].
        steps: Optimiser steps from the one to the other; at least 1.
        wait: Optimiser steps before.

    Raises:
        ValueError: If a lambda is outside [0, 1] or a count is negative.

    Example:
        >>> controller = LinearLambda(0.0, 0.8, steps=4)
        >>> [round(controller.step(), 2) for _ in range(5)]
        [0.2, 0.4, 0.6, 0.8, 0.8]
    """

    def __init__(self, start: SupportsFloat, end: SupportsFloat, steps: int, wait: int = 0) -> None:
        super().__init__(start)
        self.start, self.end = checked_lambda(start, "start"), checked_lambda(end, "end")
        if steps < 1 or wait < 0:
            raise ValueError(f"steps is {steps} and wait {wait}; give at least one step and no negative wait")
        self.steps, self.wait, self.taken = steps, wait, 0

    def step(self) -> float:
        """Counts an optimiser step.

        Returns:
            lambda for the next step.
        """
        self.taken += 1
        share = min(1.0, max(0.0, (self.taken - self.wait) / self.steps))
        self.set(self.start + share * (self.end - self.start))
        return self.value

    def observe(self, train: Measured, validation: Measured) -> float:
        """Changes nothing.

        Args:
            train: Not used.
            validation: Not used.

        Returns:
            lambda.
        """
        return self.value

    def state_dict(self) -> dict[str, Any]:
        """Steps taken, and lambda.

        Returns:
            A dictionary.
        """
        return {"taken": self.taken, "lam": self.value}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there.

        Args:
            state: From `state_dict`.
        """
        self.taken = int(state["taken"])
        self.set(state["lam"])

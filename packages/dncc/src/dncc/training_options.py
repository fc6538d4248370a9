"""Settings of the training loop, checked: what `fit` refuses, it refuses here."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from dncc.controllers import LambdaController
from dncc.hypergradient import HyperGradientLambda

__all__ = ["Options", "checked_controller", "checked_weight", "optimiser_of"]


@final
@dataclass(frozen=True)
class Options:
    """Settings that a resumed run must share with the first one, checked."""

    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    schedule: str
    patience: int | None
    amp: bool

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("patience", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; give {least} or more")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"lr is {self.lr}; give a positive learning rate such as 1e-3")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay is {self.weight_decay}; give 0 or more")
        if self.schedule not in ("cosine", "constant"):
            raise ValueError(f"schedule is {self.schedule!r}; give 'cosine' or 'constant'")

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of a step (from 0) of all steps: constant, or half a cosine down to 0."""
        return self.lr if self.schedule == "constant" else self.lr * 0.5 * (1 + math.cos(math.pi * step / steps))


def checked_controller(given: Any, validated: bool) -> LambdaController | None:
    """What moves lambda in `fit`.

    Args:
        given: The controller given, or the loss's lambda.
        validated: Whether there are validation data.

    Returns:
        It if it is a controller.

    Raises:
        ValueError: If it would silently stand still: it needs what `fit` does not do, or data that are not there.
    """
    if not isinstance(given, LambdaController):
        return None
    if isinstance(given, HyperGradientLambda):
        raise ValueError("HyperGradientLambda needs before() and after() around every optimiser step, which fit does "
                         "not call: write the loop yourself, as its documentation shows")  # fmt: skip
    if given.watches and not validated:
        raise ValueError(f"{type(given).__name__} watches validation data and there are none: give val")
    return given


def checked_weight(weight: Any, samples: int) -> Tensor | None:
    """What each training sample counts.

    Args:
        weight: Numbers, or None.
        samples: How many there must be.

    Returns:
        Float32 on the CPU, or None.

    Raises:
        ValueError: If there are too few or many, one is negative or not finite, or all are 0.
    """
    if weight is None:
        return None
    values = torch.as_tensor(weight).float()
    if values.shape != (samples,) or not bool(torch.isfinite(values).all()) or bool((values < 0).any()):
        raise ValueError(f"sample_weight has shape {tuple(values.shape)}; {samples} numbers of at least 0 are wanted")
    if not values.sum() > 0:
        raise ValueError("sample_weight is 0 everywhere; at least one sample must count")
    return values


def optimiser_of(
    optimiser: str | Callable[..., torch.optim.Optimizer], model: nn.Module, options: Options
) -> torch.optim.Optimizer:
    """The optimiser by its name or class.

    Args:
        optimiser: "adam", "sgd", or a class.
        model: What it moves.
        options: Learning rate and weight decay.

    Returns:
        It.

    Raises:
        ValueError: If the name is unknown.
    """
    rest: dict[str, Any] = {"lr": options.lr, "weight_decay": options.weight_decay}
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    match optimiser:
        case "adam":
            return torch.optim.AdamW(parameters, **rest)
        case "sgd":
            return torch.optim.SGD(parameters, momentum=0.9, nesterov=True, **rest)
        case str():
            raise ValueError(f"optimiser is {optimiser!r}; give 'adam', 'sgd' or a class such as torch.optim.RMSprop")
    return optimiser(parameters, **rest)

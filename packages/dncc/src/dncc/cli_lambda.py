"""Lambda as the command line names it, and a hyper-gradient that takes its validation batches by itself."""

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from dncc.checks import checked_lambda
from dncc.controllers import LambdaController, LinearLambda
from dncc.evaluating import device_of
from dncc.guarding import GuardedLambda
from dncc.hypergradient import HyperGradientLambda
from dncc.outputs import EnsembleOutput, Measured

__all__ = ["Stepping", "find_lambda", "hyper_start", "wants_validation"]

HYPER = "hyper"
_FORMS = "a number in [0, 1], linear:START:END, guarded, guarded:START, hyper or hyper:START"


def find_lambda(text: str, steps: int) -> float | LambdaController | None:
    """Lambda from `0.5`, `linear:0:0.8`, `guarded`, `guarded:0.9`, `hyper` or `hyper:0.2`.

    Args:
        text: What was asked for.
        steps: Optimiser steps of the whole training, over which a line goes.

    Returns:
        A number or a controller; None for the hyper-gradient, which needs the parameters: `Stepping`.

    Raises:
        ValueError: If it is none of these.

    Example:
        >>> find_lambda("0.5", 10), find_lambda("linear:0:0.8", 10).end
        (0.5, 0.8)
    """
    kind, *numbers = text.split(":")
    try:
        values = [float(number) for number in numbers]
        if not numbers and kind not in ("linear", "guarded", HYPER):
            return checked_lambda(float(kind))
    except ValueError as error:
        if "lam" in str(error):
            raise
        raise ValueError(f"lambda is {text!r}; give {_FORMS}") from None
    match kind, values:
        case "linear", [start, end]:
            return LinearLambda(start, end, max(steps, 1))
        case "guarded", []:
            return GuardedLambda()
        case "guarded", [start]:
            return GuardedLambda(start)
        case "hyper", [] | [_]:
            checked_lambda(hyper_start(text))
            return None
    raise ValueError(f"lambda is {text!r}; give {_FORMS}")


def wants_validation(text: str) -> bool:
    """Whether a lambda learns from validation data.

    Args:
        text: As for `find_lambda`.

    Returns:
        True for guarded and hyper.
    """
    return text.partition(":")[0] in ("guarded", HYPER)


def hyper_start(text: str) -> float:
    """Where the hyper-gradient begins: `hyper` at 0.5, `hyper:0.2` at 0.2.

    Args:
        text: As for `find_lambda`.

    Returns:
        The first lambda.
    """
    return float(text.partition(":")[2] or 0.5)


@final
class Stepping(LambdaController):
    """A `HyperGradientLambda` for a loop that calls nothing but `step`: it draws the validation batches itself.

    Give it to `fit` as the loss, and its `optimiser` as the optimiser's class. Validation batches are seen in
    evaluation mode: running statistics stay as they are.

    Args:
        model: The ensemble that is trained.
        loss: Its loss; lambda becomes this one.
        data: Validation inputs and labels.
        start: First lambda.
        batch_size: Samples of a validation batch.
        seed: Of their order.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Any,
        data: tuple[Tensor, Tensor],
        start: float,
        batch_size: int,
        seed: int,
    ) -> None:
        super().__init__(start)
        self.model, self.loss, self.device = model, loss, device_of(model)
        self.x, self.y, self.size = *data, min(batch_size, len(data[0]))
        self.inner = HyperGradientLambda([p for p in model.parameters() if p.requires_grad], start)
        self.tensor = self.inner.tensor  # moves with it
        self.generator = torch.Generator().manual_seed(seed)
        loss.fused, loss.lam = False, self.inner  # the kernel has no gradient of the ambiguity
        self.lam, self.aggregate, self.ignore_index = self, loss.aggregate, loss.ignore_index

    def __call__(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> EnsembleOutput:
        """The loss of a training batch; the gradient of its ambiguity is noted where there are gradients.

        Args:
            logits: Member-first logits.
            target: Labels.
            weight: What a sample counts.

        Returns:
            What the loss gives.
        """
        out = self.loss(logits, target, weight)
        if torch.is_grad_enabled():
            self.inner.before(out)
        return out

    def optimiser(self, parameters: Any, lr: float, weight_decay: float) -> torch.optim.Optimizer:
        """AdamW, whose step sizes scale the hyper-gradient.

        Args:
            parameters: Of the model.
            lr: Learning rate.
            weight_decay: Decoupled.

        Returns:
            The optimiser.
        """
        self.inner.optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
        return self.inner.optimiser

    def step(self) -> float:
        """Moves lambda after an optimiser step, by a fresh validation batch.

        Returns:
            lambda.
        """
        rows = torch.randint(len(self.x), (self.size,), generator=self.generator)
        self.model.eval()
        x, y = self.x[rows].to(self.device), self.y[rows].to(self.device)
        value = self.inner.after(self.loss(self.model(x), y).ensemble_ce)
        self.model.train()
        return value

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
        """Of the hyper-gradient, and of the stream of validation batches.

        Returns:
            A dictionary.
        """
        return {"inner": self.inner.state_dict(), "generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there.

        Args:
            state: From `state_dict`.
        """
        self.inner.load_state_dict(state["inner"])
        self.generator.set_state(state["generator"])

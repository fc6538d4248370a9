"""A lambda that descends the validation loss: the derivative of the loss after a step by the lambda of that step."""

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any, SupportsFloat, final

import torch
from torch import Tensor
from torch.optim import Optimizer

from dncc.checks import checked_fraction, checked_lambda
from dncc.controllers import LambdaController
from dncc.outputs import EnsembleOutput, Measured

__all__ = ["HyperGradientLambda", "hypergradient"]

_SECOND_MOMENTS = ("exp_avg_sq", "square_avg", "sum")  # as Adam, RMSprop and Adagrad name them


def hypergradient(
    ambiguity_gradients: Sequence[Tensor | None],
    validation_gradients: Sequence[Tensor | None],
    step_sizes: Sequence[SupportsFloat | Tensor] | None = None,
) -> Tensor:
    """Derivative of the validation loss by lambda through one optimiser step.

    The step is theta' = theta - eta [(1 - lambda) grad CE + lambda grad CE(q)], so d theta' / d lambda =
    eta grad(ambiguity), and dL_val / d lambda = sum eta <grad L_val(theta'), grad ambiguity(theta)>.

    Args:
        ambiguity_gradients: Of the training batch's ambiguity, before the step; None where a parameter has no part.
        validation_gradients: Of the validation loss, after the step.
        step_sizes: eta of every parameter, a number or a tensor of its shape; None: 1.

    Returns:
        The derivative, a tensor without axes.

    Raises:
        ValueError: If the lists differ in length, or no parameter has both gradients.

    Reference:
        Baydin et al. (2018), Online Learning Rate Adaptation with Hypergradient Descent, ICLR, for the idea.
    """
    sizes = [1.0] * len(ambiguity_gradients) if step_sizes is None else list(step_sizes)
    if not len(ambiguity_gradients) == len(validation_gradients) == len(sizes):
        raise ValueError(f"{len(ambiguity_gradients)} gradients of the ambiguity, {len(validation_gradients)} of the "
                         f"validation loss and {len(sizes)} step sizes; give one of each a parameter")  # fmt: skip
    total = None
    for a, v, eta in zip(ambiguity_gradients, validation_gradients, sizes, strict=True):
        if a is None or v is None:
            continue
        step = eta if isinstance(eta, Tensor) else float(eta)
        part = (a * v * step).sum(dtype=torch.float64)
        total = part if total is None else total + part
    if total is None:
        raise ValueError("no parameter takes part in both the ambiguity and the validation loss; give the parameters "
                         "of the members")  # fmt: skip
    return total


@final
class HyperGradientLambda(LambdaController):
    """Moves lambda against the derivative of the validation loss by it, step by step.

    Around every optimiser step:

        out = loss(model(x), y);  lam.before(out);  out.loss.backward();  optimiser.step()
        lam.after(loss(model(x_val), y_val).ensemble_ce)

    The derivative is exact for SGD, with momentum and weight decay too (Nesterov's momentum and dampening multiply it
    by a number, which does not count). For Adam, RMSprop and Adagrad the optimiser's second moments scale it, but how
    they move with lambda is left out: of use as a direction, after the first steps. It sees one step ahead only: fresh
    validation batches are a must, as on the training batch itself more joint training always looks better. Costs one
    more backward pass through the given parameters before the step and one on validation data after it; give the heads'
    parameters alone to make both cheap.

    Args:
        parameters: The parameters through which lambda acts; those of the heads, or all.
        start: First lambda, in [0, 1].
        optimiser: The optimiser that moves them: gives step sizes. None: all steps alike.
        rate: How far lambda moves when both gradients point the same way, in (0, 1]. The derivative is divided by the
            lengths of the two gradients, so that neither the scale of the loss nor the learning rate counts.
        smoothing: Weight of the past in the moving average of the direction, in [0, 1).
        minimum: Least lambda.
        maximum: Greatest lambda.

    Raises:
        ValueError: If there are no parameters or a number is outside its range.

    Reference:
        Baydin et al. (2018), ICLR, for hypergradient descent.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        start: SupportsFloat = 0.5,
        *,
        optimiser: Optimizer | None = None,
        rate: SupportsFloat = 0.02,
        smoothing: SupportsFloat = 0.9,
        minimum: SupportsFloat = 0.0,
        maximum: SupportsFloat = 1.0,
    ) -> None:
        super().__init__(start)
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        if not self.parameters:
            raise ValueError("parameters is empty: give the parameters through which lambda acts, such as the heads'")
        self.optimiser = optimiser
        self.rate, self.smoothing = checked_fraction(rate, "rate"), checked_fraction(smoothing, "smoothing")
        self.minimum, self.maximum = checked_lambda(minimum, "minimum"), checked_lambda(maximum, "maximum")
        if self.rate == 0 or self.smoothing == 1 or not self.minimum <= self.value <= self.maximum:
            raise ValueError(f"start is {self.value}, rate {self.rate}, smoothing {self.smoothing}; rate must be "
                             f"positive, smoothing below 1, start in [{self.minimum}, {self.maximum}]")  # fmt: skip
        self.direction, self.updates = 0.0, 0
        self._ambiguity_gradients: list[Tensor | None] | None = None

    def before(self, output: EnsembleOutput) -> None:
        """Takes the gradient of a training batch's ambiguity. Call it before `output.loss.backward()`.

        Args:
            output: The loss's result for the batch.

        Raises:
            ValueError: If the result carries no gradient but in its loss (the fused kernel's).
        """
        if not output.ambiguity.requires_grad:
            raise ValueError("the ambiguity carries no gradient: build the loss with fused=False (the kernel gives "
                             "a gradient to the loss only), and call it with gradients on")  # fmt: skip
        found = torch.autograd.grad(output.ambiguity, self.parameters, retain_graph=True, allow_unused=True)
        self._ambiguity_gradients = list(found)

    def after(self, validation_loss: Tensor) -> float:
        """Moves lambda. Call it after the optimiser's step, with a validation batch's loss at the new parameters.

        Args:
            validation_loss: What shall become small, such as the ensemble's cross-entropy; one number with its graph.

        Returns:
            lambda for the next step.

        Raises:
            RuntimeError: If `before` was not called for this step.
            ValueError: If a gradient is not finite.
        """
        if self._ambiguity_gradients is None:
            raise RuntimeError("call before(output) ahead of the optimiser's step, then after(validation_loss)")
        mine, self._ambiguity_gradients = self._ambiguity_gradients, None
        theirs = list(torch.autograd.grad(validation_loss, self.parameters, allow_unused=True))
        sizes = self._step_sizes()
        roots = [size.sqrt() if isinstance(size, Tensor) else size**0.5 for size in sizes]
        length = _length(mine, roots) * _length(theirs, roots)
        slope = float(hypergradient(mine, theirs, sizes) / length.clamp_min(1e-30))
        if not isfinite(slope):
            raise ValueError("the gradient of the ambiguity or of the validation loss is not finite: training has "
                             "diverged, or half precision overflowed (leave such a step out)")  # fmt: skip
        self.updates += 1
        self.direction = self.smoothing * self.direction + (1 - self.smoothing) * slope
        unbiased = self.direction / (1 - self.smoothing**self.updates)
        self.set(min(self.maximum, max(self.minimum, self.value - self.rate * unbiased)))
        return self.value

    def step(self) -> float:
        """Changes nothing: `before` and `after` do.

        Returns:
            lambda.
        """
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
        """Lambda and the averaged direction.

        Returns:
            A dictionary.
        """
        return {"lam": self.value, "direction": self.direction, "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there.

        Args:
            state: From `state_dict`.
        """
        self.set(state["lam"])
        self.direction, self.updates = float(state["direction"]), int(state["updates"])

    def _step_sizes(self) -> list[float | Tensor]:
        if self.optimiser is None:
            return [1.0] * len(self.parameters)
        group_of = {id(p): group for group in self.optimiser.param_groups for p in group["params"]}
        sizes: list[float | Tensor] = []
        for parameter in self.parameters:
            group = group_of.get(id(parameter))
            if group is None:
                raise ValueError("the optimiser does not move one of the parameters; leave that parameter out")
            size = float(group["lr"])
            state = self.optimiser.state.get(parameter, {})
            second = next((state[name] for name in _SECOND_MOMENTS if name in state), None)
            sizes.append(size if second is None else size / (second.sqrt() + group.get("eps", 1e-8)))
        return sizes


def _length(gradients: Sequence[Tensor | None], roots: Sequence[float | Tensor]) -> Tensor:
    squares = [
        (g * r).square().sum(dtype=torch.float64) for g, r in zip(gradients, roots, strict=True) if g is not None
    ]
    return torch.stack(squares).sum().sqrt() if squares else torch.zeros((), dtype=torch.float64)

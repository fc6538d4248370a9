"""The same step without a schedule: what a compiled step falls back to."""

from typing import Any

import torch
from torch import Tensor

from poet.compiling_plan import Order


def eager_step(order: Order, args: tuple[Any, ...]) -> Tensor:
    """Run a training step eagerly.

    Args:
        order: The model, the loss, and what happens to gradients.
        args: Inputs and targets, or inputs alone if the model returns the loss.

    Returns:
        The loss, detached.
    """
    inputs = args[0]
    output = order.model(**inputs) if isinstance(inputs, dict) else order.model(*_tuple(inputs))
    if order.loss_fn is not None:
        output = order.loss_fn(output, *(() if args[1] is None else _tuple(args[1])))
    loss = output if isinstance(output, Tensor) else getattr(output, "loss", None)
    if not isinstance(loss, Tensor):
        loss = output["loss"]
    loss.backward()
    if order.update is not None:
        with torch.no_grad():
            for name, parameter in order.model.named_parameters():
                gradient, parameter.grad = parameter.grad, None
                if gradient is not None:
                    order.update(name, parameter, gradient)
    return loss.detach()


def _tuple(part: Any) -> tuple[Any, ...]:
    return tuple(part) if isinstance(part, tuple | list) else (part,)

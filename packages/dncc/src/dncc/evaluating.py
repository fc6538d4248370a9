"""Logits of many samples, and the decomposition on them: batch by batch, in evaluation mode."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import SupportsIndex

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from dncc.aggregation import Aggregate, log_softmax
from dncc.labels import prepared
from dncc.objectives import decompose
from dncc.outputs import Measured

__all__ = ["Arrays", "decomposed", "device_of", "evaluate", "member_first", "paired", "predict_logits"]

Arrays = Shaped[Tensor, "..."] | Shaped[np.ndarray, "..."]


@torch.no_grad()
def predict_logits(
    model: nn.Module, x: Arrays, *, batch_size: SupportsIndex = 256, device: str | torch.device | None = None
) -> Float[Tensor, "members samples classes"]:
    """Member-first logits of many samples, in evaluation mode, batch by batch.

    Args:
        model: Gives logits (members, batch, classes), or (batch, classes), which count as one member; its training mode
            is restored.
        x: Inputs, one sample a row.
        batch_size: Samples at a time.
        device: Where the model is; found out if None.

    Returns:
        Logits on the model's device.
    """
    where = torch.device(device) if device is not None else device_of(model)
    with _evaluating(model):
        parts = [member_first(model(part.to(where))) for part in torch.as_tensor(x).split(int(batch_size))]
    return torch.cat(parts, 1)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:  # a frozen part may have been in evaluation mode within a model that trains
            module.training = training


@torch.no_grad()
def evaluate(
    model: nn.Module,
    data: tuple[Arrays, Arrays],
    aggregate: Aggregate = "arithmetic",
    *,
    batch_size: SupportsIndex = 256,
    ignore_index: int = -100,
) -> Measured:
    """The terms of the decomposition on data, in evaluation mode.

    Args:
        model: As for `predict_logits`.
        data: Inputs, and class numbers or soft labels.
        aggregate: How members are averaged; take what the loss was trained with.
        batch_size: Samples at a time; logits are never kept longer.
        ignore_index: Samples with this label are left out.

    Returns:
        Averages over the samples, in nats.

    Raises:
        ValueError: If inputs and labels differ in number.

    Example:
        >>> model = nn.Linear(2, 3)
        >>> _ = nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
        >>> measured = evaluate(model, (torch.ones(4, 2), torch.tensor([0, 1, 2, 0])))
        >>> round(measured.ce, 4), measured.ambiguity
        (1.0986, 0.0)
    """
    x, y = paired("data", data)
    where, size = device_of(model), int(batch_size)
    terms, kept = [], []
    with _evaluating(model):
        for part, label in zip(x.split(size), y.to(where).split(size), strict=True):
            terms.append(decomposed(member_first(model(part.to(where))), label, aggregate, ignore_index))
            counts = torch.ones(len(label)) if label.is_floating_point() else label != ignore_index
            kept.append(counts.sum())
    found, count = torch.stack(terms).cpu().double(), torch.stack(kept).cpu().double()
    found = torch.where(count[:, None] > 0, found, 0.0)  # a batch without labels has no mean
    return Measured(*((count @ found) / count.sum()).tolist())


@torch.no_grad()
def decomposed(
    logits: Float[Tensor, "members batch classes"],
    y: Shaped[Tensor, "batch *classes"],
    aggregate: Aggregate = "arithmetic",
    ignore_index: int = -100,
) -> Float[Tensor, "3"]:
    """ce, ensemble_ce and ambiguity: plain averages over samples, whatever weights and smoothing the objective has.

    Args:
        logits: Member-first logits.
        y: Class numbers or soft labels.
        aggregate: How members are averaged.
        ignore_index: Samples with this label are left out.

    Returns:
        Three numbers, in nats.
    """
    log_p = log_softmax(logits)
    labels = prepared(y, log_p.shape[-1], log_p.dtype, ignore_index=ignore_index)
    terms = decompose(log_p, labels, aggregate)
    return torch.stack([labels.mean(term) for term in (terms.ce, terms.ensemble_ce, terms.ambiguity)])


def member_first(logits: Shaped[Tensor, "..."]) -> Float[Tensor, "members batch classes"]:
    """Logits with a member axis: one member if there was none.

    Args:
        logits: What a model gave.

    Returns:
        Member-first logits.

    Raises:
        ValueError: If they are of another shape.
    """
    if logits.ndim not in (2, 3):
        raise ValueError(
            f"the model gave logits of shape {tuple(logits.shape)}; (members, batch, classes) is wanted, or "
            "(batch, classes) of one network"
        )
    return logits if logits.ndim == 3 else logits.unsqueeze(0)


def paired(name: str, data: tuple[Arrays, Arrays]) -> tuple[Shaped[Tensor, "..."], Shaped[Tensor, "..."]]:
    """Inputs and labels as tensors of the same number of rows.

    Args:
        name: How the user calls them.
        data: Inputs and labels.

    Returns:
        The two as tensors.

    Raises:
        ValueError: If there is none, or numbers differ.
    """
    x, y = (torch.as_tensor(part) for part in data)
    if len(x) != len(y):
        raise ValueError(f"{name} has {len(x)} inputs and {len(y)} labels; give one label an input")
    if not len(x):
        raise ValueError(f"{name} is empty; give at least one sample")
    return x, y


def device_of(model: nn.Module) -> torch.device:
    """Where a model's parameters are; the CPU if it has none.

    Args:
        model: Any module.

    Returns:
        The device of the first parameter.
    """
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))

"""Logits and labels of all samples of a data set or loader, from a model in evaluation mode."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from dncc.evaluating import device_of, predict_logits

__all__ = ["collect_logits"]


def collect_logits(
    model: nn.Module,
    data: Any,
    *,
    batch_size: int = 256,
    device: str | torch.device | None = None,
    progress: bool = False,
    labelled: bool = True,
) -> tuple[Float[Tensor, "members samples classes"], Integer[Tensor, " samples"] | None]:
    """Logits of every sample, on the CPU, and the labels.

    Args:
        model: Gives logits (members, batch, classes), or (batch, classes), which count as one member; it is judged in
            evaluation mode, and every part's mode is restored.
        data: A tuple of two arrays (inputs, labels), a `Dataset`, or an iterable of batches (inputs, labels) such as a
            `DataLoader`; without labels also one array, or batches of inputs.
        batch_size: Samples at a time, where batches are not given.
        device: Where the model is; found out if None. The model itself is not moved.
        progress: Show a bar on standard error.
        labelled: Whether labels are wanted; if not, those that are there are dropped.

    Returns:
        Logits, and class indices or None.

    Raises:
        TypeError: If the data are of none of these kinds.
        ValueError: If there is no sample, labels are missing, or inputs and labels differ in number.
    """
    where = torch.device(device) if device is not None else device_of(model)
    logits, labels = [], []
    batches, total = _batches(data, batch_size)
    for x, y in _shown(batches, total, progress):
        if labelled and y is None:
            raise ValueError("the data have no labels; give pairs of inputs and labels")
        if y is not None and len(y) != len(x):
            raise ValueError(f"a batch has {len(x)} inputs and {len(y)} labels; give one label an input")
        logits.append(predict_logits(model, x, batch_size=max(len(x), 1), device=where).to("cpu"))
        labels.append(y)
    if not logits or not sum(part.shape[1] for part in logits):
        raise ValueError("the data are empty; give at least one sample. A loader that was iterated over once may be "
                         "used up: give one that starts anew")  # fmt: skip
    return torch.cat(logits, 1), torch.cat([y.to("cpu") for y in labels]) if labelled else None


def _batches(data: Any, batch_size: int) -> tuple[Iterable[tuple[Any, Any]], int | None]:
    """Pairs of inputs and labels (or None), and how many there are where that is known."""
    if isinstance(data, Tensor | np.ndarray):
        parts = torch.as_tensor(data).split(batch_size)
        return ((x, None) for x in parts), len(parts)
    if (
        isinstance(data, tuple | list)
        and len(data) == 2
        and all(isinstance(part, Tensor | np.ndarray) for part in data)
    ):
        x, y = (torch.as_tensor(part) for part in data)
        if len(x) != len(y):
            raise ValueError(f"the data have {len(x)} inputs and {len(y)} labels; give one label an input")
        return zip(x.split(batch_size), y.split(batch_size), strict=True), -(-len(x) // batch_size)
    if isinstance(data, Dataset):
        data = DataLoader(data, batch_size=batch_size)
    if not isinstance(data, Iterable):
        raise TypeError(f"the data are a {type(data).__name__}; give a tuple (inputs, labels), a Dataset, or batches")
    total = len(data) if hasattr(data, "__len__") else None  # type: ignore[arg-type]
    return (_pair(batch) for batch in data), total


def _pair(batch: Any) -> tuple[Any, Any]:
    if isinstance(batch, tuple | list):
        if len(batch) not in (1, 2):
            raise TypeError(f"a batch has {len(batch)} parts; give (inputs, labels)")
        batch = [torch.as_tensor(part) for part in batch]
        return batch[0], batch[1] if len(batch) == 2 else None
    return torch.as_tensor(batch), None


def _shown(batches: Iterable[tuple[Any, Any]], total: int | None, shown: bool) -> Iterable[tuple[Any, Any]]:
    if not shown:
        return batches
    from rich.progress import track

    from common_core.console import progress as standard_error

    return track(batches, "predicting", total=total, console=standard_error(), transient=True)

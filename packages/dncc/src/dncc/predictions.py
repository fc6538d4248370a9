"""Predictions that are to be judged: checked once, on the CPU, in float64."""

from typing import Any

import torch
from jaxtyping import Float, Integer
from torch import Tensor

__all__ = ["averaged_over_ties", "checked_predictions", "checked_votes"]

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def checked_predictions(log_p: Any, target: Any) -> tuple[Float[Tensor, "batch classes"], Integer[Tensor, " batch"]]:
    """Log-probabilities and labels on the CPU, in float64 and int64.

    Args:
        log_p: Normalised log-probabilities of one predictor, (batch, classes).
        target: Class indices, (batch,).

    Returns:
        The same values; what rounding put above 0 is 0.

    Raises:
        TypeError: If an argument is no tensor of its kind.
        ValueError: If shapes or labels do not fit, or the rows are no log-probabilities.
    """
    if not isinstance(log_p, Tensor) or not log_p.is_floating_point():
        kind = log_p.dtype if isinstance(log_p, Tensor) else type(log_p).__name__
        raise TypeError(f"log_p is {kind}; give a floating-point tensor of log-probabilities (batch, classes)")
    if log_p.ndim != 2 or log_p.shape[0] == 0 or log_p.shape[1] < 2:
        raise ValueError(f"log_p has shape {tuple(log_p.shape)}; it must be (batch, classes) with at least one sample "
                         "and two classes. Aggregate members first: dncc.aggregation.aggregate_log_proba")  # fmt: skip
    if not isinstance(target, Tensor) or target.dtype not in _INTEGERS:
        kind = target.dtype if isinstance(target, Tensor) else type(target).__name__
        raise TypeError(f"target is {kind}; give a tensor of class indices (soft labels: target.argmax(-1))")
    if target.shape != log_p.shape[:1]:
        raise ValueError(f"target has shape {tuple(target.shape)}; log_p of shape {tuple(log_p.shape)} needs "
                         f"({log_p.shape[0]},)")  # fmt: skip
    wide, label = log_p.detach().to("cpu", torch.float64), target.to("cpu", torch.int64)
    if bool(((label < 0) | (label >= log_p.shape[1])).any()):
        raise ValueError(f"target holds labels from {int(label.min())} to {int(label.max())}; class indices go from 0 "
                         f"to {log_p.shape[1] - 1}")  # fmt: skip
    off = wide.logsumexp(-1).abs().max()
    if not float(off) <= max(1e-3, 8 * torch.finfo(log_p.dtype).eps):  # NaN too
        raise ValueError(f"a row of log_p sums to exp({float(off):.3g}) or its inverse and not to 1: give normalised "
                         "log-probabilities, dncc.aggregation.log_softmax(logits)")  # fmt: skip
    return wide.clamp(max=0.0), label


def averaged_over_ties(
    key: Float[Tensor, " batch"], values: Float[Tensor, " batch"]
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Both in increasing order of the key, values replaced by their mean over samples of equal key.

    What is linear in the values is then its own mean over all orders of tied samples.

    Args:
        key: What to sort by.
        values: What goes with it, float64.

    Returns:
        The sorted keys, and the averaged values in that order.
    """
    ordered, order = key.sort()
    _, group, count = ordered.unique_consecutive(return_inverse=True, return_counts=True)
    means = torch.zeros(len(count), dtype=values.dtype).index_add(0, group, values[order]) / count
    return ordered, means[group]


def checked_votes(predictions: Any) -> Integer[Tensor, "members batch"]:
    """Predicted classes of all members on the CPU.

    Args:
        predictions: Class indices, (members, batch).

    Returns:
        The same values, int64.

    Raises:
        TypeError: If it is no tensor of integers.
        ValueError: If it has another shape than (members, batch), no member or sample, or negative entries.
    """
    if not isinstance(predictions, Tensor) or predictions.dtype not in _INTEGERS:
        kind = predictions.dtype if isinstance(predictions, Tensor) else type(predictions).__name__
        raise TypeError(f"predictions is {kind}; give predicted classes (members, batch), such as logits.argmax(-1)")
    if predictions.ndim != 2 or not predictions.numel() or bool((predictions < 0).any()):
        raise ValueError(f"predictions has shape {tuple(predictions.shape)}; it must be (members, batch) with at least "
                         "one of each, holding class indices from 0")  # fmt: skip
    return predictions.to("cpu", torch.int64)

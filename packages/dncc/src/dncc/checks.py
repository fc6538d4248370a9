"""Bad logits and bad labels are refused here, with a sentence that says what to do."""

from numbers import Real
from typing import Any

import torch
from torch import Tensor

__all__ = ["check_logits", "check_target", "checked_fraction", "checked_lambda", "values_are_checked"]

_MEMBER_FIRST = "(members, batch, ..., classes)"


def values_are_checked(logits: Tensor, validate: bool | None) -> bool:
    """Whether the values themselves are looked at: it costs a pass, and on a GPU it waits for the device.

    Args:
        logits: Where the values are.
        validate: The user's word; None: on the CPU only, and never while compiling or exporting.

    Returns:
        The decision.
    """
    if torch.compiler.is_compiling():
        return False
    return logits.device.type == "cpu" if validate is None else validate


def check_logits(logits: Any, values: bool) -> None:
    """Member-first floating-point scores without NaN.

    Args:
        logits: What was given for logits.
        values: Whether to look for NaN.

    Raises:
        TypeError: If it is not a floating-point tensor.
        ValueError: If it has no member, batch and class axes, no member, fewer than two classes, or NaN.
    """
    if not isinstance(logits, Tensor):
        raise TypeError(f"logits is a {type(logits).__name__}; give a tensor of shape {_MEMBER_FIRST}")
    if not logits.is_floating_point():
        raise TypeError(f"logits has dtype {logits.dtype}; scores before the softmax are floating point")
    shape = tuple(logits.shape)
    if logits.ndim < 3:
        raise ValueError(f"logits has shape {shape}; it must be {_MEMBER_FIRST}. For one network use logits[None]; "
                         "rows packed member by member are unpacked by dncc.unpack_members")  # fmt: skip
    if shape[0] == 0:
        raise ValueError(f"logits has shape {shape}: no member. An ensemble has at least one")
    if shape[-1] < 2:
        raise ValueError(f"logits has shape {shape}: {shape[-1]} classes. The last axis holds the classes, at least "
                         "two; for a binary problem with one score z give (0, z)")  # fmt: skip
    if values and bool(torch.isnan(logits.detach()).any()):
        bad = torch.isnan(logits.detach()).flatten(1).any(1).nonzero().flatten().tolist()
        raise ValueError(f"logits has NaN in members {bad}: training has diverged or the input was not finite; lower "
                         "the learning rate, clip gradients or look at the data")  # fmt: skip


def check_target(target: Any, logits: Tensor, ignore_index: int, values: bool) -> None:
    """Class indices of shape (batch, ...) or soft labels of shape (batch, ..., classes).

    Args:
        target: What was given for labels.
        logits: Checked logits.
        ignore_index: The index that means "no label".
        values: Whether to look at ranges.

    Raises:
        TypeError: If it is not a tensor of integers or floats, or a mask.
        ValueError: If shapes do not match, an index is out of range, or soft labels are not distributions.
    """
    if not isinstance(target, Tensor):
        raise TypeError(f"target is a {type(target).__name__}; give a tensor of class indices or of soft labels")
    if target.is_complex() or target.dtype == torch.bool:
        raise TypeError(f"target has dtype {target.dtype}; class indices are int64, soft labels floating point")
    if target.device != logits.device:
        raise ValueError(f"target is on {target.device} and logits on {logits.device}; move one of them")
    batch, classes = tuple(logits.shape[1:-1]), logits.shape[-1]
    shape = tuple(target.shape)
    if target.is_floating_point():
        _check_soft(target, shape, batch, classes, values)
        return
    if shape == (*batch, classes) and shape != batch:
        raise ValueError(f"target has shape {shape} and dtype {target.dtype}: one-hot labels must be floating point "
                         "(target.float()), or give class indices (target.argmax(-1))")  # fmt: skip
    if shape != batch:
        raise ValueError(f"target has shape {shape}; class indices for logits of shape {tuple(logits.shape)} have "
                         f"shape {batch}")  # fmt: skip
    if values:
        wrong = target[((target < 0) | (target >= classes)) & (target != ignore_index)]
        if wrong.numel():
            raise ValueError(f"target holds {int(wrong[0])}; class indices go from 0 to {classes - 1}, and "
                             f"{ignore_index} means to leave a sample out")  # fmt: skip


def _check_soft(target: Tensor, shape: tuple[int, ...], batch: tuple[int, ...], classes: int, values: bool) -> None:
    if shape == batch:
        raise ValueError(f"target has shape {shape} and dtype {target.dtype}; class indices are integers: "
                         "target.long()")  # fmt: skip
    if shape != (*batch, classes):
        raise ValueError(f"target has shape {shape}; soft labels for these logits have shape {(*batch, classes)}")
    if not values or not target.numel():
        return
    if not bool((target >= 0).all()):  # NaN too
        raise ValueError("target has negative or NaN soft labels; every row is a distribution over the classes")
    sums = target.sum(-1, dtype=torch.promote_types(target.dtype, torch.float32))
    off = (sums - 1).abs().max()
    allowed = 4 * classes * torch.finfo(target.dtype).eps
    if bool(off > max(allowed, 1e-4)):
        raise ValueError(f"soft labels must sum to 1 over the classes; a row is off by {float(off):.3g}: divide by "
                         "target.sum(-1, keepdim=True)")  # fmt: skip


def checked_lambda(value: Any, name: str = "lam") -> float:
    """A number in [0, 1].

    Args:
        value: What was given.
        name: How the user calls it.

    Returns:
        It as a float.

    Raises:
        TypeError: If it is no real number.
        ValueError: If it is outside [0, 1], with the reason.
    """
    number = _real(value, name)
    if number > 1:
        raise ValueError(
            f"{name} is {number}; it must be at most 1. Above 1 the weight 1 - lambda + lambda p_m / q of a member "
            "that gives the label p_m < q (lambda - 1) / lambda turns negative: it is trained away from the label, and "
            "the loss has no lower bound"
        )
    if not number >= 0:
        raise ValueError(
            f"{name} is {number}; it must be in [0, 1]. Below 0 agreement is rewarded and members become one"
        )
    return number


def checked_fraction(value: Any, name: str) -> float:
    """A number in [0, 1] of another meaning than lambda.

    Args:
        value: What was given.
        name: How the user calls it.

    Returns:
        It as a float.

    Raises:
        TypeError: If it is no real number.
        ValueError: If it is outside [0, 1].
    """
    number = _real(value, name)
    if not 0 <= number <= 1:
        raise ValueError(f"{name} is {number}; it must be in [0, 1]")
    return number


def _real(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        other = ", a tensor without axes or a LambdaController" if name == "lam" else ""
        raise TypeError(f"{name} is a {type(value).__name__}; give a number{other}")
    return float(value)

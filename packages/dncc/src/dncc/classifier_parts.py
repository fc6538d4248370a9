"""What the scikit-learn classifier is put together from: network, objective, lambda and validation split."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from dncc.backbones import as_backbone
from dncc.base_loss import EnsembleLoss
from dncc.controllers import LambdaController, LinearLambda
from dncc.ensembles import EnsembleModule
from dncc.guarding import GuardedLambda
from dncc.initialising import checked_members
from dncc.losses import ADPLoss, DNCCLoss, EndToEndLoss, IndependentLoss, KLToMeanLoss, MSENCLLoss
from dncc.multihead import MultiHead
from dncc.separate import separate_networks

__all__ = [
    "MODES",
    "OBJECTIVES",
    "SCHEDULE_END",
    "build_lambda",
    "build_model",
    "build_objective",
    "fits_or_stays",
    "seeded",
    "split",
]

MODES = ("full", "partition", "separate")
OBJECTIVES: dict[str, Callable[..., EnsembleLoss]] = {
    "dncc": DNCCLoss,
    "independent": IndependentLoss,
    "end_to_end": EndToEndLoss,
    "mse_ncl": MSENCLLoss,
    "kl_to_mean": KLToMeanLoss,
    "adp": ADPLoss,
}
SCHEDULE_END = 0.9
"""Where lambda ends with `lam="schedule"`; it begins at 0."""

_WITH_AGGREGATE, _WITH_LAMBDA = ("dncc", "independent", "end_to_end"), ("dncc", "mse_ncl", "kl_to_mean")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's global stream on the CPU starts from a seed inside, and is as it was afterwards.

    Args:
        seed: The seed.

    Yields:
        Nothing.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would touch the streams of GPUs too
        yield


def fits_or_stays(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of which an error leaves the attributes as they were: no untrained network stays to predict.

    Args:
        method: `fit` and the like.

    Returns:
        The method.
    """

    @wraps(method)
    def whole(self: Any, *arguments: Any, **options: Any) -> Any:
        before = dict(vars(self))
        try:
            return method(self, *arguments, **options)
        except Exception:
            vars(self).clear()
            vars(self).update(before)
            raise

    return whole


def build_lambda(lam: Any, steps: int, validated: bool) -> Any:
    """A number or a controller of its own for this training.

    Args:
        lam: A number, "guarded", "schedule", or a controller, which is copied.
        steps: Optimiser steps of the whole training; 0 if not known.
        validated: Whether there are validation data after every epoch.

    Returns:
        What a loss takes as lambda.

    Raises:
        ValueError: If the word is unknown, or what it needs is missing.
    """
    if not validated and (lam == "guarded" or (isinstance(lam, LambdaController) and lam.watches)):
        raise ValueError(f"lam={lam!r} watches validation data, which partial_fit does not have: call fit, or give a "
                         "number or another controller")  # fmt: skip
    if lam == "guarded":
        return GuardedLambda()
    if lam == "schedule":
        if not steps:
            raise ValueError("lam='schedule' needs the number of steps, which partial_fit does not know: call fit, or "
                             "give a number or LinearLambda(...)")  # fmt: skip
        return LinearLambda(0.0, SCHEDULE_END, steps)
    if isinstance(lam, str):
        raise ValueError(f"lam is {lam!r}; give a number in [0, 1], 'guarded', 'schedule' or a controller")
    return copy.deepcopy(lam) if isinstance(lam, LambdaController) else lam


def build_objective(objective: Any, lam: Any, aggregate: str, mode: str, label_smoothing: float) -> Any:
    """The loss.

    Args:
        objective: A key of `OBJECTIVES`, or a loss of one's own, which is copied.
        lam: A number or a controller.
        aggregate: How members are averaged.
        mode: Separate networks are trained with the sum over members, others with the mean.
        label_smoothing: s in [0, 1].

    Returns:
        A callable (logits, target, sample_weight) to the terms.

    Raises:
        ValueError: If the word is unknown, or the objective has another aggregate.
    """
    if not isinstance(objective, str):
        if not callable(objective):
            raise ValueError(f"objective is {objective!r}; give one of {', '.join(OBJECTIVES)}, or a loss")
        return copy.deepcopy(objective)
    if objective not in OBJECTIVES:
        raise ValueError(f"objective is {objective!r}; give one of {', '.join(OBJECTIVES)}, or a loss")
    options: dict[str, Any] = {"reduction": "sum" if mode == "separate" else "mean", "label_smoothing": label_smoothing}
    if objective in _WITH_AGGREGATE:
        options["aggregate"] = aggregate
    elif aggregate != "arithmetic":
        raise ValueError(f"aggregate is {aggregate!r}; objective {objective!r} averages probabilities: 'arithmetic'")
    return OBJECTIVES[objective](lam, **options) if objective in _WITH_LAMBDA else OBJECTIVES[objective](**options)


def build_model(
    module: Any,
    example: Float[Tensor, "rows *shape"],
    classes: int,
    members: int,
    mode: str,
    hidden_sizes: Sequence[int],
    head_hidden: Sequence[int],
    generator: torch.Generator,
) -> EnsembleModule:
    """The network; call within `seeded`.

    Args:
        module: None for dense layers on rows of numbers; a backbone, which is copied; a function that makes a
            backbone; or a function that makes a whole ensemble.
        example: Two rows of input, which tell widths.
        classes: Number of classes.
        members: M.
        mode: "full", "partition" or "separate".
        hidden_sizes: Widths of the trunk's dense layers.
        head_hidden: Widths of each head's hidden layers.
        generator: Source of the heads' weights, or of separate networks'.

    Returns:
        An ensemble.

    Raises:
        ValueError: If the mode is unknown, or what is given does not fit it.
        TypeError: If `module` is no module and no function.
    """
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; give one of {', '.join(MODES)}")
    if module is not None and not callable(module):
        raise TypeError(f"module is a {type(module).__name__}; give a backbone, or a function that makes one")
    checked_members(members)
    if mode == "separate" and isinstance(module, nn.Module):
        raise ValueError("mode='separate' needs a network a member: give a function that makes a backbone, not one "
                         "backbone")  # fmt: skip
    width = None if module is not None else [example.shape[1], *hidden_sizes][-1]
    if mode == "separate":
        return separate_networks(
            lambda: _network(_trunk(module, hidden_sizes, example), width, classes, head_hidden, example),
            members,
            num_classes=classes,
            generator=generator,
        )
    trunk = _trunk(module, hidden_sizes, example)
    if isinstance(trunk, EnsembleModule):
        if trunk.num_classes != classes:
            raise ValueError(f"module makes an ensemble for {trunk.num_classes} classes; y has {classes}")
        return trunk
    hidden = tuple(int(size) for size in head_hidden)
    return MultiHead(
        trunk, classes, members, mode, in_features=width, hidden=hidden, example=example, generator=generator
    )


def split(target: Integer[np.ndarray, " n"], fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows to validate on, with every class in both where that is possible.

    A class of one sample is trained on.

    Args:
        target: Class indices.
        fraction: Share of rows to validate on.
        seed: Of the choice.

    Returns:
        Two sets of row numbers.

    Raises:
        ValueError: If the fraction is not inside (0, 1), or leaves one side empty.
    """
    from sklearn.model_selection import train_test_split

    if not 0 < fraction < 1:
        raise ValueError(f"validation_fraction is {fraction}; it must be inside (0, 1)")
    held = round(fraction * len(target))
    if not 0 < held < len(target):
        raise ValueError(f"validation_fraction={fraction} of {len(target)} samples leaves nothing to train or to "
                         "validate on; give more data, or a number as lam and early_stopping=False")  # fmt: skip
    single = np.flatnonzero(np.bincount(target)[target] == 1)
    if held >= len(target) - len(single):  # so many that they cannot all be kept
        single = single[:0]
    rows = np.setdiff1d(np.arange(len(target)), single)
    counts = np.bincount(target[rows])
    counts = counts[counts > 0]
    possible = counts.min() > 1 and len(counts) <= min(held, len(rows) - held)
    kept, rest = train_test_split(rows, test_size=held, random_state=seed, stratify=target[rows] if possible else None)
    return np.concatenate([kept, single]), rest


def _trunk(module: Any, hidden_sizes: Sequence[int], example: Tensor) -> nn.Module:
    if isinstance(module, nn.Module):
        return copy.deepcopy(module)
    if module is not None:
        return module()
    layers = _dense(example.shape[1], hidden_sizes)
    return nn.Sequential(*layers) if layers else nn.Identity()


def _network(
    trunk: nn.Module, width: int | None, classes: int, head_hidden: Sequence[int], example: Tensor
) -> nn.Module:
    """One whole network: a trunk and a head of its own."""
    backbone = as_backbone(trunk, width, example=example)
    hidden = _dense(backbone.out_features, head_hidden)
    last = int(head_hidden[-1]) if len(head_hidden) else backbone.out_features
    return nn.Sequential(backbone, *hidden, nn.Linear(last, classes))


def _dense(width: int, sizes: Sequence[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for size in sizes:
        layers += [nn.Linear(width, int(size)), nn.ReLU()]
        width = int(size)
    return layers

"""Small trainings that several claims share: handwritten digits, few pictures, some wrong labels, small networks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, final

import numpy as np
import torch
from torch import nn

from common_core.seeding import numpy_rng
from dncc.controllers import LambdaController
from dncc.datasets import digits
from dncc.datasets_split import DataSet, noisy_labels
from dncc.diversity import disagreement, mean_over_pairs
from dncc.ensembles import EnsembleModule
from dncc.evaluating import decomposed, predict_logits
from dncc.frontier import member_groups
from dncc.losses import DNCCLoss
from dncc.multihead import MultiHead
from dncc.outputs import Measured
from dncc.separate import separate_networks
from dncc.training import fit

__all__ = ["EPOCHS", "MEMBERS", "Kind", "Trained", "few_noisy_digits", "grouped", "measured_on", "network", "trained"]

Kind = Literal["single", "shared", "separate"]
MEMBERS = 8
WIDTH, HIDDEN = 64, 32
SHOTS, NOISE, EPOCHS = 30, 0.1, 60


@final
@dataclass(frozen=True, eq=False)
class Trained:
    """What came out of a training.

    Attributes:
        train: The decomposition on the training pictures, in evaluation mode.
        validation: The same on validation pictures, with as many wrong labels as the training pictures.
        fresh: The same on test pictures, with as many wrong labels: the distribution that is trained on.
        clean: The same on test pictures with their right labels.
        disagreement: Share of test pictures on which two members differ, mean over pairs.
        correct: Accuracy of the ensemble on the test pictures.
        parameters: Numbers that were trained.
        path: Lambda at the end of every epoch.
    """

    train: Measured
    validation: Measured
    fresh: Measured
    clean: Measured
    disagreement: float
    correct: float
    parameters: int
    path: tuple[float, ...]


def few_noisy_digits(seed: int) -> DataSet:
    """Few digits with some wrong labels, in training and validation alike; test labels are right.

    Args:
        seed: Which pictures and which labels.

    Returns:
        The data set.
    """
    data = digits(seed, shots=SHOTS, label_noise=NOISE, val_share=0.25)
    assert data.y_val is not None
    return replace(data, y_val=_noisy(data.y_val, seed, "validation"))


def network(kind: Kind, seed: int, members: int = MEMBERS) -> EnsembleModule:
    """A single network, heads on a shared trunk, or separate networks, of the same layers.

    Args:
        kind: Which.
        seed: Of the initial weights.
        members: How many members.

    Returns:
        The ensemble; of one member for "single".
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        if kind == "separate":
            return separate_networks([nn.Sequential(_trunk(), *_head()) for _ in range(members)])
        heads = 1 if kind == "single" else members
        return MultiHead(_trunk(), 10, heads, "full", in_features=WIDTH, hidden=(HIDDEN,))


def trained(kind: Kind, lam: float | LambdaController, seed: int, *, members: int = MEMBERS) -> Trained:
    """Train on few noisy digits.

    Args:
        kind: "single", "shared" (heads on one trunk) or "separate" (networks of their own).
        lam: lambda, or what controls it.
        seed: Of the data, the initial weights and the order.
        members: How many members.

    Returns:
        What came out.
    """
    data, model = few_noisy_digits(seed), network(kind, seed, members)
    assert data.x_val is not None
    assert data.y_val is not None
    loss = DNCCLoss(lam, reduction="sum" if kind == "separate" else "mean")
    history = fit(
        model, loss, (data.x_train, data.y_train), val=(data.x_val, data.y_val), epochs=EPOCHS, batch_size=50, lr=3e-3,
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    path = tuple(record.lam for record in history.epochs)
    return measured_on(model, data, seed, path)


def measured_on(model: EnsembleModule, data: DataSet, seed: int, path: Sequence[float] = ()) -> Trained:
    """Look at a trained model.

    Args:
        model: The ensemble.
        data: The data it was trained on.
        seed: Of the wrong test labels.
        path: Lambda at the end of every epoch.

    Returns:
        What came out.
    """
    return grouped(model, data, seed, 1, path)[0]


def grouped(
    model: EnsembleModule, data: DataSet, seed: int, groups: int, path: Sequence[float] = ()
) -> tuple[Trained, ...]:
    """Look at every group of a model's members as an ensemble of its own.

    Args:
        model: The ensemble.
        data: The data it was trained on.
        seed: Of the wrong test labels.
        groups: How many groups.
        path: Lambda at the end of every epoch.

    Returns:
        What came out, group by group.
    """
    assert data.x_val is not None
    assert data.y_val is not None
    parts = {
        "train": (data.x_train, data.y_train),
        "validation": (data.x_val, data.y_val),
        "fresh": (data.x_test, _noisy(data.y_test, seed, "test")),
        "clean": (data.x_test, data.y_test),
    }
    logits = {name: member_groups(predict_logits(model, x), groups) for name, (x, _) in parts.items()}
    numbers = sum(parameter.numel() for parameter in model.parameters())
    found = []
    for group in range(groups):
        measured = {name: _measured(logits[name][group], y) for name, (_, y) in parts.items()}
        test = logits["clean"][group]
        right = test.softmax(-1).mean(0).argmax(-1) == torch.as_tensor(data.y_test)
        found.append(
            Trained(**measured, disagreement=_disagreement(test), correct=float(right.float().mean()),
                    parameters=numbers, path=tuple(path))
        )  # fmt: skip
    return tuple(found)


def _measured(logits: torch.Tensor, labels: np.ndarray) -> Measured:
    return Measured(*decomposed(logits, torch.as_tensor(labels), "arithmetic").tolist())


def _disagreement(logits: torch.Tensor) -> float:
    """Share of samples on which two members differ, mean over pairs."""
    if len(logits) == 1:
        return 0.0
    return mean_over_pairs(disagreement(logits.argmax(-1)))


def _noisy(labels: np.ndarray, seed: int, part: str) -> np.ndarray:
    return noisy_labels(labels, NOISE, 10, numpy_rng(seed, "dncc", part))


def _trunk() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, WIDTH), nn.ReLU())


def _head() -> list[nn.Module]:
    return [nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10)]

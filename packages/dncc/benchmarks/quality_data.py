"""The tasks of the quality benchmark: three real data sets, with right and with partly wrong training labels."""

from dataclasses import dataclass
from functools import lru_cache

from torch import nn

from dncc.datasets import digits, mnist5k
from dncc.datasets_emoji import emoji
from dncc.datasets_split import DataSet

NOISE = 0.2  # share of wrong training labels in the noisy tasks; validation and test labels are right


@dataclass(frozen=True)
class Task:
    """A data set, and the network and budget that every method gets."""

    name: str
    data: str
    width: int
    averaged_width: int  # of the trunk whose maps are averaged, which then has about as many weights in all
    epochs: int
    noise: float = 0.0
    dropout: float = 0.0
    weight_decay: float = 1e-2
    batch_size: int = 64
    rates: tuple[float, ...] = (5e-3, 2e-2, 8e-2)
    test_share: float = 0.5

    @property
    def images(self) -> bool:
        """Whether the trunk is convolutional."""
        return self.data != "emoji"

    @property
    def classes(self) -> int:
        return 9 if self.data == "emoji" else 10


def _tasks() -> list[Task]:
    found = []
    for noise, suffix in ((0.0, ""), (NOISE, ", noisy")):
        found += [
            Task("mnist5k" + suffix, "mnist5k", width=8, averaged_width=10, epochs=10, noise=noise, batch_size=128),
            Task("digits" + suffix, "digits", width=8, averaged_width=8, epochs=20, noise=noise),
            Task(
                "emoji" + suffix, "emoji", width=128, averaged_width=128, epochs=12, noise=noise, test_share=0.3,
                dropout=0.3, rates=(5e-4, 1.5e-3, 5e-3),
            ),
        ]  # fmt: skip
    return found


TASKS = {task.name: task for task in _tasks()}


@lru_cache(maxsize=4)
def data_of(name: str, seed: int) -> DataSet:
    """A task's data for a seed: a fifth of what is not for testing is for validation."""
    task = TASKS[name]
    options = {"test_share": task.test_share, "val_share": 0.2, "label_noise": task.noise}
    if task.data == "emoji":
        return emoji(seed, tones=False, **options)
    return (mnist5k if task.data == "mnist5k" else digits)(seed, **options)


def trunk_layers(task: Task, averaged: bool = False) -> tuple[list[nn.Module], int]:
    """The layers below the classifier in one flat list, and the number of features: dense, or three convolutions.

    Args:
        task: Says which.
        averaged: Average the last maps, of a trunk as wide as then fits; else they are features as they are.
    """
    if not task.images:
        return [nn.Dropout(task.dropout), nn.Linear(1280, task.width), nn.ReLU()], task.width
    w = task.averaged_width if averaged else task.width
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((1, w, 2 if task.data == "mnist5k" else 1), (w, 2 * w, 2), (2 * w, 4 * w, 2)):
        convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
    if averaged:
        return [*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()], 4 * w
    return [*layers, nn.Flatten()], 4 * w * (16 if task.data == "mnist5k" else 4)


def single_layers(task: Task, averaged: bool = False) -> list[nn.Module]:
    """One network: trunk, dropout, classifier."""
    trunk, features = trunk_layers(task, averaged)
    return [*trunk, nn.Dropout(task.dropout), nn.Linear(features, task.classes)]

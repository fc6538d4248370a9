"""The folder of a training: what it was, its checkpoint, its history, its model and its predictions.

`config.json` is written first and says how to build the model; `checkpoint.safetensors` after every epoch;
`model.safetensors` and `predictions.npz` at the end, and `history.json` last: where it is, the training is complete.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from common_core.records import RecordError, read_json, write_json_atomic
from dncc.cli_data import Reading
from dncc.cli_models import Architecture, Standardised, build
from dncc.io import PREDICTIONS, FormatError, load_arrays, load_predictions, load_state, save_arrays

__all__ = ["CHECKPOINT", "CONFIG", "HISTORY", "MODEL", "PREDICTED", "Run", "Settings", "load_logits", "save_logits"]

CONFIG, CHECKPOINT, HISTORY = "config.json", "checkpoint.safetensors", "history.json"
MODEL, PREDICTED = "model.safetensors", "predictions.npz"
SCHEMA = "repertory.dncc.run/1"
_OTHERS = ("val", "train", "ood")


@final
@dataclass(frozen=True)
class Settings:
    """What a training is, beyond data and architecture; a resumed one must share all of it.

    Attributes:
        lam: Lambda, as `find_lambda` reads it.
        objective: Which loss.
        aggregate: How members are averaged.
        label_smoothing: s.
        epochs: Passes over the training data.
        batch_size: Samples a step.
        lr: First learning rate.
        weight_decay: Decoupled.
        augment: Augmentation of pictures.
        patience: Epochs without improvement before stopping; 0 for none.
        amp: Autocast.
        seed: Of cuts, weights and order.
        weights: File with a backbone's weights, as it was given; "" for none.
    """

    lam: str
    objective: str
    aggregate: str
    label_smoothing: float
    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    augment: str
    patience: int
    amp: bool
    seed: int
    weights: str


@final
@dataclass(frozen=True)
class Run:
    """A training as `config.json` says it.

    Attributes:
        folder: Where its files are.
        architecture: Of the ensemble.
        settings: Of the training.
        reading: How pictures are read.
        classes: Names of the classes.
        data: Hash of the data.
    """

    folder: Path
    architecture: Architecture
    settings: Settings
    reading: Reading
    classes: tuple[str, ...]
    data: str

    def plain(self) -> dict[str, Any]:
        """What is compared when a run is resumed, as JSON holds it."""
        parts = {name: asdict(getattr(self, name)) for name in ("architecture", "settings", "reading")}
        return json.loads(json.dumps({**parts, "classes": self.classes, "data": self.data}))

    def begin(self, facts: dict[str, Any]) -> None:
        """Write `config.json`.

        Args:
            facts: What is told beside: sizes, origin, environment.
        """
        write_json_atomic(self.folder / CONFIG, {"schema": SCHEMA, **self.plain(), **facts})

    @staticmethod
    def load(folder: Path) -> "Run":
        """The run of a folder.

        Args:
            folder: Where `dncc train` wrote.

        Returns:
            The run.

        Raises:
            FormatError: If there is none.
        """
        try:
            found = read_json(folder / CONFIG, SCHEMA)
            how = found["architecture"]
            architecture = Architecture(**how | {key: tuple(how[key]) for key in ("head_hidden", "shape")})
            return Run(
                folder, architecture, Settings(**found["settings"]), Reading(**found["reading"]),
                tuple(found["classes"]), found["data"],
            )  # fmt: skip
        except (RecordError, KeyError, TypeError) as error:
            raise FormatError(f"{folder} is no folder that dncc train wrote ({error})") from None

    def difference(self, other: "Run") -> str:
        """Where two runs differ, in words; empty where they do not.

        Args:
            other: The other.

        Returns:
            Names and values.
        """
        mine, theirs = self.plain(), other.plain()
        if mine["data"] != theirs["data"] or mine["classes"] != theirs["classes"]:
            return "the data are others, or are cut otherwise"
        found = []
        for part in ("architecture", "settings", "reading"):
            for key, value in mine[part].items():
                if value != theirs[part][key]:
                    found.append(f"{key.replace('_', '-')} was {value} and is now {theirs[part][key]}")
        return ", ".join(found)

    @property
    def complete(self) -> bool:
        """Whether the training has ended and everything is written."""
        return (self.folder / HISTORY).is_file()

    def model(self) -> Standardised:
        """The trained ensemble, in evaluation mode, on the CPU.

        Returns:
            The ensemble.

        Raises:
            FormatError: If the training is not complete.
        """
        if not self.complete:
            raise FormatError(f"{self.folder} holds a training that was interrupted; go on with dncc train --resume")
        ensemble = build(self.architecture, 0)
        load_state(self.folder / MODEL, ensemble)
        ensemble.eval()
        return ensemble


def save_logits(path: Path, logits: dict[str, Tensor | None], labels: dict[str, Any], part: str) -> None:
    """Write predictions that `dncc.io.load_predictions` reads, with those of other parts beside.

    Args:
        path: The npz file.
        logits: Member-first logits by part; "main" is what is judged, others are val, train and ood.
        labels: Labels by part.
        part: What the main part is, in words.
    """
    names = {"main": ("logits", "y")} | {name: (f"{name}_logits", f"{name}_y") for name in _OTHERS}
    arrays: dict[str, Any] = {"schema": np.array(PREDICTIONS), "part": np.array(part)}
    for name, values in logits.items():
        if values is not None:
            arrays[names[name][0]] = values.detach().float().cpu().numpy()
            if labels.get(name) is not None:
                arrays[names[name][1]] = np.asarray(labels[name])
    save_arrays(path, arrays)


def load_logits(path: Path) -> tuple[dict[str, Tensor], str]:
    """What `save_logits` or `dncc.io.save_predictions` wrote, as arguments of `EnsembleReport.from_logits`.

    Args:
        path: The npz file.

    Returns:
        Arguments by name, and what is judged, in words.

    Raises:
        FormatError: If the file is another one, or has no labels.
    """
    logits, target = load_predictions(path)
    if target is None:
        raise FormatError(f"{path} has no labels y; predictions without labels cannot be judged")
    arguments = {"logits": logits, "target": target}
    arrays = load_arrays(path)
    for name in _OTHERS:
        given = {key: arrays.get(f"{name}_{old}") for key, old in (("logits", "logits"), ("target", "y"))}
        arguments |= {f"{name}_{key}": torch.from_numpy(value) for key, value in given.items() if value is not None}
    return arguments, str(arrays.get("part", "test data"))

"""The folder of a training: what it was, its checkpoint, its values, its history.

`config.json` is written first; `checkpoint.safetensors` now and then; `learner.safetensors`, or `values.npz` of the
tabular solver, at the end, and `history.json` last: where it says as many updates as `config.json`, all is done.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from ccvf.cli_logs import n_states_there
from ccvf.cli_settings import Settings
from ccvf.environments import Stepper, check_match
from ccvf.io import FormatError
from ccvf.transitions import Transitions
from ccvf.values import ConfidenceValues
from common_core.records import RecordError, read_json, write_json_atomic

__all__ = ["CHECKPOINT", "CONFIG", "HISTORY", "LEARNER", "VALUES", "Run"]

CONFIG, CHECKPOINT, HISTORY = "config.json", "checkpoint.safetensors", "history.json"
LEARNER, VALUES = "learner.safetensors", "values.npz"
SCHEMA = "repertory.ccvf.run/1"
HISTORY_SCHEMA = "repertory.ccvf.history/1"


@final
@dataclass(frozen=True)
class Run:
    """A training as `config.json` says it.

    Attributes:
        folder: Where its files are.
        settings: Of the method.
        log: What it was trained on (see `cli_logs.about_log`).
    """

    folder: Path
    settings: Settings
    log: dict[str, Any]

    def begin(self, facts: dict[str, Any]) -> None:
        """Write `config.json`.

        Args:
            facts: What is told beside.
        """
        content = {"schema": SCHEMA, "settings": self.settings.plain(), "log": self.log}
        write_json_atomic(self.folder / CONFIG, {**content, **facts})

    @staticmethod
    def load(folder: Path) -> "Run":
        """The run of a folder.

        Args:
            folder: Where `ccvf train` wrote.

        Returns:
            The run.

        Raises:
            FormatError: If there is none.
        """
        try:
            found = read_json(folder / CONFIG, SCHEMA)
            return Run(folder, Settings(**found["settings"]), dict(found["log"]))
        except (RecordError, KeyError, TypeError) as error:
            raise FormatError(f"{folder} is no folder that ccvf train wrote ({error})") from None

    def difference(self, other: "Run") -> str:
        """Where another training differs, in words; empty where it does not.

        Args:
            other: The other.
        """
        if self.log["fingerprint"] != other.log["fingerprint"]:
            return "the log is another"
        return ", ".join(self.settings.difference(other.settings))

    def history(self) -> dict[str, Any] | None:
        """What `history.json` says; None where it is not there."""
        if not (self.folder / HISTORY).is_file():
            return None
        return read_json(self.folder / HISTORY, HISTORY_SCHEMA)

    def end(self, history: dict[str, Any]) -> None:
        """Write `history.json`, which says that all is done.

        Args:
            history: Figures, JSON values.
        """
        write_json_atomic(self.folder / HISTORY, {"schema": HISTORY_SCHEMA, "done": self.settings.updates, **history})

    @property
    def complete(self) -> bool:
        """Whether the training has ended and everything is written."""
        found = self.history()
        return found is not None and found.get("done") == self.settings.updates

    def values(self, device: str = "cpu") -> ConfidenceValues:
        """The learnt values.

        Args:
            device: Where they are computed.

        Returns:
            The values.

        Raises:
            FormatError: If the training is not complete, or a file is damaged.
        """
        if not self.complete:
            raise FormatError(f"{self.folder} holds a training that was interrupted; go on with ccvf train --resume")
        if self.settings.method == "tabular":
            from ccvf.cli_tabular import load_values

            return load_values(self.folder / VALUES)
        from ccvf.saving import load_learner

        return load_learner(self.folder / LEARNER, device=device)[0]

    def check_environment(self, stepper: Stepper) -> None:
        """Make sure that environments are of the kind that the log is of.

        Args:
            stepper: The environments.

        Raises:
            ValueError: If they are not; the differences are named.
        """
        shape, dtype = (1, *self.log["observation_shape"]), np.dtype(self.log["dtype"])
        frame = np.zeros(shape, dtype=dtype)
        like = Transitions.from_arrays(frame, [0], [0.0], frame, [True], n_actions=self.log["n_actions"])
        try:
            check_match(like, stepper)
        except ValueError as error:
            raise ValueError(f"{self.folder}: {error}") from None
        there, mine = n_states_there(stepper), self.log["n_states"]
        if there is not None and mine is not None and there > mine:
            raise ValueError(f"{self.folder} knows {mine} states and {stepper.name} has {there}; train with "
                             f"--states {there}, or give the environment that the log is of")  # fmt: skip

    def check_log(self, data: Transitions) -> None:
        """Make sure that another log is of the kind that the training's is of.

        Args:
            data: The log.

        Raises:
            ValueError: If it is not.
        """
        mine = tuple(self.log["observation_shape"]), self.log["n_actions"]
        if mine != (data.observation_shape, data.n_actions):
            raise ValueError(f"{self.folder} was trained on observations {mine[0]} and {mine[1]} actions; the log has "
                             f"{data.observation_shape} and {data.n_actions}: give a log of the same kind")  # fmt: skip

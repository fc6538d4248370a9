"""Batches of a log that still grows."""

from typing import final

import numpy as np
import torch
from torch import Tensor

from ccvf.batches import Batch
from ccvf.collecting_log import GrowingLog

__all__ = ["Replay"]

_COLUMNS = ("index", "next_index", "actions", "rewards", "terminated")


@final
class Replay:
    """Uniform draws of everything logged so far, without forgetting.

    On another device than the CPU, frames are kept there too and only new ones are copied, unless told not to.

    Args:
        log: The growing log.
        device: Where batches are wanted.
        resident: Whether frames are kept on the device.
    """

    def __init__(self, log: GrowingLog, device: torch.device, resident: bool = True) -> None:
        self.log, self.device = log, device
        self.resident = resident and device.type != "cpu"
        self._there: dict[str, Tensor] = {}
        self._rows = self._frames = 0  # how much of the log the device holds

    def draw(self, batch_size: int, rng: np.random.Generator) -> Batch:
        """Draw transitions uniformly, with replacement.

        Args:
            batch_size: How many.
            rng: Source of the draw.

        Returns:
            Transitions on the device.
        """
        rows = torch.from_numpy(rng.integers(self.log.size, size=batch_size))
        arrays = self._mirrored() if self.resident else self._shared()
        rows = rows.to(self.device) if self.resident else rows
        found = {name: arrays[name][rows] for name in _COLUMNS}
        frames = arrays["frames"]
        for name in ("index", "next_index"):
            index = found[name]
            found[name] = frames[index[:, 0]] if index.shape[1] == 1 else frames[index]
        found = {name: value.to(self.device, non_blocking=True) for name, value in found.items()}
        return Batch(
            observations=found["index"],
            actions=found["actions"],
            rewards=found["rewards"].float(),
            next_observations=found["next_index"],
            terminated=found["terminated"],
            steps=torch.ones_like(found["actions"]),
        )

    def forget(self, rows: int, frames: int) -> None:
        """Read again what was put in another order, at the end of a part.

        Args:
            rows: First transition that moved.
            frames: First frame that moved.
        """
        self._rows, self._frames = min(self._rows, rows), min(self._frames, frames)

    def _shared(self) -> dict[str, Tensor]:
        """The log's own memory as tensors."""
        arrays = {name: self.log.columns[name] for name in _COLUMNS} | {"frames": self.log.frames}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _mirrored(self) -> dict[str, Tensor]:
        """The log on the device, brought up to date."""
        shared, log = self._shared(), self.log
        for name, column in shared.items():
            begin, end = (self._frames, log.n_frames) if name == "frames" else (self._rows, log.size)
            if name not in self._there or len(self._there[name]) < len(column):
                self._there[name], begin = torch.empty(column.shape, dtype=column.dtype, device=self.device), 0
            if begin < end:
                self._there[name][begin:end] = column[begin:end].to(self.device)
        self._rows, self._frames = log.size, log.n_frames
        return self._there

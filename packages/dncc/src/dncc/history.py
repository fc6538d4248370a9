"""What a training gave, epoch by epoch."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, final

from dncc.outputs import Measured

__all__ = ["EpochRecord", "History"]


@final
@dataclass(frozen=True)
class EpochRecord:
    """What one epoch gave.

    Attributes:
        epoch: Number, from 1.
        loss: Mean of the objective over the epoch's batches.
        train: The decomposition over the epoch's batches as they were trained on (training mode, weights moving), nats.
        validation: The decomposition on the validation part after the epoch (evaluation mode), or None.
        lam: Lambda at the end of the epoch; NaN for an objective without one.
        lr: Learning rate of the last step.
        seconds: Wall time, with validation.
    """

    epoch: int
    loss: float
    train: Measured
    validation: Measured | None
    lam: float
    lr: float
    seconds: float


@final
@dataclass(frozen=True)
class History:
    """All epochs of a training.

    Attributes:
        epochs: One record an epoch.
        best_epoch: The epoch with the smallest validation ensemble cross-entropy; None without validation.
        stopped_early: Whether patience ran out or `on_epoch` asked to stop.
    """

    epochs: tuple[EpochRecord, ...] = ()
    best_epoch: int | None = None
    stopped_early: bool = False

    def column(self, name: str, part: Literal["train", "validation"] | None = None) -> list[float]:
        """One figure over the epochs.

        Args:
            name: A field of `Measured` with `part`, or of `EpochRecord` without.
            part: Which part's terms.

        Returns:
            A number an epoch; NaN where there was no validation.
        """
        sources = self.epochs if part is None else [getattr(record, part) for record in self.epochs]
        return [math.nan if source is None else float(getattr(source, name)) for source in sources]

    def to_json(self) -> dict[str, Any]:
        """The history as JSON holds it."""
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> "History":
        """The history that `to_json` gave.

        Args:
            data: A JSON object.

        Returns:
            The history.
        """
        records = []
        for entry in data["epochs"]:
            terms = {part: None if entry[part] is None else Measured(**entry[part]) for part in ("train", "validation")}
            records.append(EpochRecord(**entry | terms))
        return History(tuple(records), data["best_epoch"], data["stopped_early"])

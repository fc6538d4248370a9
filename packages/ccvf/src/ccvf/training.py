"""Offline training: batches from a log into a learner, with checkpoints from which it goes on exactly."""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsIndex, final

import torch

from ccvf.interrupts import held_interrupt
from ccvf.io import load_checkpoint, save_checkpoint
from ccvf.learners import Learner, under
from ccvf.progress import bar
from ccvf.sampling import Sampler
from ccvf.transitions import Transitions
from ccvf.value_learner import ValueLearner

__all__ = ["DivergenceError", "History", "check_fit", "train"]

CHECKPOINT = "training"


class DivergenceError(ValueError):
    """The loss is no longer a finite number; the message says when, and what to try."""


@final
@dataclass(frozen=True)
class History:
    """Figures of a training, means over the updates between two records.

    Attributes:
        updates: Number of updates at each record.
        metrics: Figures by name, one at each record.
        seconds: Wall time of all updates so far.
    """

    updates: tuple[int, ...] = ()
    metrics: tuple[dict[str, float], ...] = ()
    seconds: float = 0.0

    def then(self, updates: int, metrics: dict[str, float], seconds: float) -> "History":
        """With one more record.

        Args:
            updates: Number of updates.
            metrics: Figures.
            seconds: Wall time since the record before.

        Returns:
            The longer history.
        """
        return History((*self.updates, updates), (*self.metrics, metrics), self.seconds + seconds)


def check_fit(learner: Learner, data: Transitions) -> None:
    """Whether a learner can learn from a log.

    Args:
        learner: It.
        data: The log.

    Raises:
        ValueError: If the log is empty, or its observations or actions are not the learner's, or it takes signs of
            rewards that are sums already.
    """
    if len(data) == 0:
        raise ValueError("the log has no transition: there is nothing to learn from")
    if data.observation_shape != learner.observation_shape:
        raise ValueError(f"the log has observations of shape {data.observation_shape} and the learner was made for "
                         f"{learner.observation_shape}")  # fmt: skip
    if data.n_actions != learner.n_actions:
        raise ValueError(f"the log has {data.n_actions} actions and the learner was made for {learner.n_actions}")
    if isinstance(learner, ValueLearner) and learner.config.clip_rewards and (data.steps != 1).any():
        raise ValueError("clip_rewards takes signs, and the log's rewards are sums over several steps: take the signs "
                         "before n_step, dataclasses.replace(log, rewards=numpy.sign(log.rewards)), and leave "
                         "clip_rewards out")  # fmt: skip


def train(
    learner: Learner,
    data: Transitions,
    *,
    updates: SupportsIndex,
    batch_size: SupportsIndex = 32,
    generator: torch.Generator | None = None,
    record_every: SupportsIndex = 1000,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: SupportsIndex = 10_000,
    resume: bool = False,
    on_record: Callable[[int, dict[str, float]], Any] | None = None,
    progress: bool = False,
) -> History:
    """Train a learner on a log until it has made `updates` updates in all.

    Given the generator, the result is the same on every run on a CPU. An interrupted run, resumed from its checkpoint,
    ends with the same weights to the last bit.

    Args:
        learner: Any learner; trained in place.
        data: The log. For n-step returns give it `n_step(data, n, gamma)`.
        updates: Updates in all, those before a resumption counted.
        batch_size: Transitions an update.
        generator: Source of the batches, on the CPU; seeded by 0 if None.
        record_every: Updates between two records of the figures.
        checkpoint: Where to write a checkpoint, whole or not at all.
        checkpoint_every: Updates between two checkpoints; one more is written at the end and on Ctrl-C.
        resume: Go on from `checkpoint` if it exists.
        on_record: Called with the number of updates and the figures; training stops if it returns True.
        progress: Show a bar on standard error.

    Returns:
        The figures.

    Raises:
        ValueError: If the log does not fit the learner, or the checkpoint is of another log or other settings.
        DivergenceError: If the loss becomes NaN or infinite.
    """
    total, record, save = int(updates), int(record_every), int(checkpoint_every)
    for name, value in (("updates", total), ("record_every", record), ("checkpoint_every", save)):
        if value < 1:
            raise ValueError(f"{name} is {value}; give 1 or more")
    if resume and checkpoint is None:
        raise ValueError("resume=True needs checkpoint=, the file to go on from")
    check_fit(learner, data)
    draws = generator if generator is not None else torch.Generator().manual_seed(0)
    sampler = Sampler(data, int(batch_size), draws, device=learner.device)
    # The fingerprint reads the whole log, which is some seconds for one of Atari.
    log = None if checkpoint is None else data.fingerprint()
    run = _Run(learner, sampler, {"batch_size": int(batch_size), "log": log})
    if resume and checkpoint is not None and Path(checkpoint).exists():
        run.restore(checkpoint)
    try:
        with held_interrupt() as interrupted, bar(progress, "training", total, learner.updates) as show:
            while learner.updates < total:
                metrics = run.span(min(record - learner.updates % record, total - learner.updates), interrupted)
                if metrics is None:
                    break
                show(learner.updates, f"loss {metrics['loss']:.4g}")
                if on_record is not None and on_record(learner.updates, metrics) is True:
                    break
                if checkpoint is not None and learner.updates // save > run.saved // save:
                    run.save(checkpoint)
    finally:
        # a learner that diverged or was stopped within an update does not replace the checkpoint before
        if checkpoint is not None and run.sound and run.saved != learner.updates:
            run.save(checkpoint)
    return run.history


class _Run:
    """A training under way."""

    def __init__(self, learner: Learner, sampler: Sampler, settings: dict[str, Any]) -> None:
        self.learner, self.sampler, self.settings = learner, sampler, settings
        self.history, self.saved, self.sound = History(), learner.updates, True

    def span(self, count: int, interrupted: Callable[[], bool]) -> dict[str, float] | None:
        """`count` updates, and the means of their figures; None if interrupted before."""
        start, sums, names = time.perf_counter(), None, []
        for _ in range(count):
            if interrupted():
                return None
            self.sound = False
            metrics = self.learner.update(self.sampler.next())
            self.sound = True
            values = torch.stack([value.float() for value in metrics.values()])
            sums, names = values if sums is None else sums + values, list(metrics)
        assert sums is not None
        means = dict(zip(names, (sums / count).tolist(), strict=True))
        if not math.isfinite(means["loss"]):
            self.sound = False
            raise DivergenceError(
                f"the loss is {means['loss']} between updates {self.learner.updates - count} and "
                f"{self.learner.updates}: try a learning rate 3 to 10 times smaller, clip_rewards=True, a smaller "
                "alpha, and look at the scale of the rewards"
            )
        self.history = self.history.then(self.learner.updates, means, time.perf_counter() - start)
        return means

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write learner, sampler and history."""
        tensors, extra = self.learner.state()
        drawn, where = self.sampler.state()
        everything = {f"learner.{name}": value for name, value in tensors.items()}
        everything |= {f"sampler.{name}": value for name, value in drawn.items()}
        history = {"updates": self.history.updates, "metrics": self.history.metrics, "seconds": self.history.seconds}
        about = {"what": CHECKPOINT, "learner": extra, "sampler": where, "history": history, **self.settings}
        save_checkpoint(path, everything, about)
        self.saved = self.learner.updates

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Go on from what `save` wrote."""
        tensors, about = load_checkpoint(path)
        if about.get("what") != CHECKPOINT:
            raise ValueError(f"{path} is no checkpoint of a training; give another path, or resume=False")
        for name, value in self.settings.items():
            if about.get(name) != value:
                raise ValueError(f"{path} was made with {name} {about.get(name)!r}, now it is {value!r}: go on with "
                                 "the same, or start afresh with resume=False")  # fmt: skip
        self.learner.restore(under(tensors, "learner."), about["learner"])
        self.sampler.restore(under(tensors, "sampler."), about["sampler"])
        past = about["history"]
        self.history = History(tuple(past["updates"]), tuple(past["metrics"]), float(past["seconds"]))
        self.saved = self.learner.updates

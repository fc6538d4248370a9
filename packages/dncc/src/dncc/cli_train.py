"""What `dncc train` does: from data and settings to a folder with a trained ensemble, resumable at every epoch."""

import errno
import math
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common_core.console import progress
from common_core.records import environment, write_json_atomic
from common_core.seeding import numpy_rng
from dncc.classifier_parts import build_objective
from dncc.cli_data import augmentation
from dncc.cli_lambda import Stepping, find_lambda, hyper_start, wants_validation
from dncc.cli_models import Standardised, build, statistics
from dncc.cli_runs import CHECKPOINT, CONFIG, HISTORY, MODEL, PREDICTED, Run, save_logits
from dncc.datasets_split import DataSet
from dncc.evaluating import device_of, predict_logits
from dncc.history import EpochRecord, History
from dncc.io import save_state
from dncc.training import fit

__all__ = ["terms_table", "train_run"]

_KEPT = 10_000  # training samples whose logits are kept, for the gap between training and test data
_WITH_LAMBDA, _MOVED = ("dncc", "mse-ncl", "kl-to-mean"), ("dncc",)
_EVERY = 5.0  # seconds between lines where there is no terminal


def train_run(run: Run, data: DataSet, device: str, resume: bool, weights: Path | None) -> tuple[History, Standardised]:
    """Train, and write everything.

    Args:
        run: What is to be trained, and where it goes.
        data: The data, cut.
        device: Where to train.
        resume: Whether to go on from a checkpoint.
        weights: A backbone's weights.

    Returns:
        The history and the trained ensemble.

    Raises:
        ValueError: If settings do not fit, or the folder holds another run.
        KeyboardInterrupt: As it came, after a word on how to go on.
    """
    settings = run.settings
    if wants_validation(settings.lam) and data.x_val is None:
        raise ValueError(f"lambda {settings.lam} learns from validation data: give a validation share above 0")
    _check_folder(run, resume)
    moments = statistics(data.x_train, weights is not None)
    model = build(run.architecture, settings.seed, moments, weights).to(device)
    options, loss = _options(run, model, data)
    _try_out(model, loss, data)
    tell = _lines(settings.epochs)

    def on_epoch(record: EpochRecord) -> None:
        if not (run.folder / CONFIG).is_file():  # not before: what fit refuses leaves nothing behind
            run.begin(_facts(data, device))
        tell(record)

    checkpoint = run.folder / CHECKPOINT
    val = None if data.x_val is None or data.y_val is None else (data.x_val, data.y_val)
    try:
        history = fit(
            model, loss, (data.x_train, data.y_train), val=val, epochs=settings.epochs, device=device,
            batch_size=settings.batch_size, lr=settings.lr, weight_decay=settings.weight_decay,
            generator=torch.Generator().manual_seed(settings.seed), patience=settings.patience or None,
            augment=augmentation(settings.augment, run.architecture.shape), amp=settings.amp, checkpoint=checkpoint,
            resume=checkpoint if resume and checkpoint.is_file() else None, progress=progress().is_terminal,
            on_epoch=on_epoch, **options,
        )  # fmt: skip
    except KeyboardInterrupt:
        left = "the last whole epoch is kept" if checkpoint.is_file() else "no epoch was complete"
        progress().print(f"{left}; the same command with --resume goes on from there", soft_wrap=True)
        raise
    _finish(run, model, data, history)
    return history, model


def _check_folder(run: Run, resume: bool) -> None:
    if run.folder.exists() and not run.folder.is_dir():
        raise ValueError(f"{run.folder} is a file; give a folder to write to")
    there = next(folder for folder in (run.folder, *run.folder.absolute().parents) if folder.exists())
    if not os.access(there, os.W_OK):
        raise PermissionError(errno.EACCES, "No permission to write", str(there))
    if not (run.folder / CONFIG).is_file():
        return
    if not resume:
        raise ValueError(f"{run.folder} holds a training already; go on with --resume, or give another folder")
    if differs := Run.load(run.folder).difference(run):
        raise ValueError(f"{run.folder} cannot be resumed: {differs}. Resume with the same, or give another folder")


def _options(run: Run, model: Standardised, data: DataSet) -> tuple[dict[str, Any], Any]:
    """Arguments of `fit` that depend on lambda, and the loss."""
    settings = run.settings
    lam = find_lambda(settings.lam, settings.epochs * math.ceil(len(data.y_train) / settings.batch_size))
    if not isinstance(lam, float) and settings.objective not in (_MOVED if lam is None else _WITH_LAMBDA):
        allowed = " or ".join(_MOVED if lam is None else _WITH_LAMBDA)
        raise ValueError(f"lambda {settings.lam} moves the lambda of {allowed}, not of {settings.objective}")
    start = hyper_start(settings.lam) if lam is None else lam
    objective = build_objective(
        settings.objective.replace("-", "_"), start, settings.aggregate, run.architecture.mode, settings.label_smoothing
    ).to(device_of(model))
    if lam is not None:
        return {}, objective
    assert data.x_val is not None
    val = torch.as_tensor(data.x_val), torch.as_tensor(data.y_val)
    stepping = Stepping(
        model, objective, val, start=hyper_start(settings.lam), batch_size=settings.batch_size, seed=settings.seed
    )
    return {"optimiser": stepping.optimiser}, stepping


@torch.no_grad()
def _try_out(model: Standardised, loss: Any, data: DataSet) -> None:
    """One small batch: what does not fit is said before anything is written."""
    logits = predict_logits(model, data.x_train[:2])
    loss(logits, torch.as_tensor(data.y_train[:2]).to(logits.device))


def _facts(data: DataSet, device: str) -> dict[str, Any]:
    """What `config.json` tells beside what is compared."""
    sizes = {"train": len(data.y_train), "test": len(data.y_test)}
    sizes["validation"] = 0 if data.y_val is None else len(data.y_val)
    return {"samples": sizes, "source": data.source, "licence": data.licence, "environment": environment(device)}


def _lines(epochs: int) -> Any:
    """Where there is no terminal: a line now and then, and at the end."""
    console, last = progress(), [-math.inf]

    def tell(record: EpochRecord) -> None:
        now = time.monotonic()
        if console.is_terminal or (now - last[0] < _EVERY and record.epoch < epochs):
            return
        last[0] = now
        shown, part = (record.validation, "validation") if record.validation else (record.train, "training")
        console.print(
            f"epoch {record.epoch} of {epochs}: {part} ensemble {shown.ensemble_ce:.3f} nats, ambiguity "
            f"{shown.ambiguity:.3f}, lambda {record.lam:.3g}"
        )

    return tell


def _finish(run: Run, model: Standardised, data: DataSet, history: History) -> None:
    """Model, predictions and, last, the history."""
    info = {"architecture": asdict(run.architecture), "aggregate": run.settings.aggregate}
    save_state(run.folder / MODEL, model, info)
    kept = np.arange(len(data.y_train))
    if len(kept) > _KEPT:
        kept = np.sort(numpy_rng(run.settings.seed, "kept").permutation(kept)[:_KEPT])
    test = len(data.y_test) > 0
    part = "test data" if test else "validation data" if data.y_val is not None else "training data"
    labels: dict[str, Any] = {"val": data.y_val, "train": data.y_train[kept]}
    logits = {"val": _predicted(model, data.x_val), "train": _predicted(model, data.x_train[kept])}
    if test:
        logits["main"], labels["main"] = _predicted(model, data.x_test), data.y_test
    else:  # what is judged is then not test data; a temperature fitted on the very same would flatter
        name = "val" if data.y_val is not None else "train"
        logits["main"], labels["main"] = logits.pop(name), labels[name]
    logits["ood"] = _predicted(model, data.x_ood)
    save_logits(run.folder / PREDICTED, logits, labels, part)
    write_json_atomic(run.folder / HISTORY, history.to_json())


def _predicted(model: Standardised, x: Any) -> Tensor | None:
    return None if x is None or not len(x) else predict_logits(model, x)


def terms_table(last: EpochRecord) -> tuple[list[str], list[list[str]]]:
    """The decomposition after the last epoch, as a table.

    Args:
        last: The epoch.

    Returns:
        Headings and rows, in nats.
    """
    rows = []
    for name, part in (("training", last.train), ("validation", last.validation)):
        if part is not None:
            rows.append([name, f"{part.ce:.4f}", f"{part.ensemble_ce:.4f}", f"{part.ambiguity:.4f}"])
    return ["nats", "members", "ensemble", "ambiguity"], rows

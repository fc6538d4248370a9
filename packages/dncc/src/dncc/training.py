"""A small training loop for examples, claims and the command line; training proper is the user's.

What it adds to a loop of ten lines: the terms of the decomposition on training and validation data each epoch, lambda
controllers, early stopping, exact resumption from atomic checkpoints, and an error that helps where training diverges.
"""

import copy
import math
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any, SupportsFloat, SupportsIndex

import torch
from torch import Tensor, nn

from dncc.aggregation import Aggregate
from dncc.controllers import LambdaController
from dncc.evaluating import Arrays, decomposed, device_of, evaluate, member_first, paired
from dncc.history import EpochRecord, History
from dncc.io import FormatError, load_tree, save_tree
from dncc.outputs import EnsembleOutput, Measured
from dncc.training_options import Options, checked_controller, checked_weight, optimiser_of

__all__ = ["CHECKPOINT", "DivergenceError", "Loss", "fit"]

CHECKPOINT = "repertory.dncc.checkpoint/1"


# What `fit` needs of an objective: (logits, target, sample_weight) to its terms; `lam`, `aggregate` and `ignore_index`
# are used where it has them.
Loss = Callable[..., EnsembleOutput]


class DivergenceError(ValueError):
    """The loss is no longer a finite number; the message says when, and what to try."""


def fit(
    model: nn.Module,
    loss: Loss,
    train: tuple[Arrays, Arrays],
    *,
    val: tuple[Arrays, Arrays] | None = None,
    epochs: SupportsIndex = 20,
    batch_size: SupportsIndex = 64,
    lr: SupportsFloat = 1e-3,
    optimiser: str | Callable[..., torch.optim.Optimizer] = "adam",
    weight_decay: SupportsFloat = 0.0,
    schedule: str = "cosine",
    generator: torch.Generator | None = None,
    device: str | torch.device | None = None,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    controller: LambdaController | None = None,
    on_epoch: Callable[[EpochRecord], Any] | None = None,
    patience: SupportsIndex | None = None,
    resume: str | os.PathLike[str] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
    sample_weight: Arrays | None = None,
    amp: bool = False,
) -> History:
    """Train an ensemble by mini-batches.

    Given the generator, the result is the same on every run on a CPU: the order of samples, augmentation and dropout
    all draw from it. A checkpoint is written after every epoch, whole or not at all, so that an interrupted run loses
    one epoch at most; resumed, it ends with the same weights to the last bit. A last batch of one sample is dropped.

    Args:
        model: Gives member-first logits (members, batch, classes); logits (batch, classes) count as one member. It is
            moved to `device`, trained in place, and left in evaluation mode.
        loss: The objective, for example `DNCCLoss(0.5)`.
        train: Inputs and class numbers (or soft labels).
        val: The same for validation.
        epochs: How many passes over the training data.
        batch_size: Samples a step.
        lr: Learning rate at the start.
        optimiser: "adam" (decoupled weight decay, as AdamW), "sgd" (Nesterov momentum 0.9), or a class called with
            parameters, `lr` and `weight_decay`.
        weight_decay: For the optimiser.
        schedule: "cosine" goes down to 0 over all steps.
        generator: Source of all randomness, on the CPU; seeded by 0 if None.
        device: Where to train; where the model is if None.
        augment: From a batch of inputs and a generator to inputs, in training only.
        controller: Moves lambda: its `step` is called after every optimiser step, and, if it watches the data, its
            `observe` after every epoch with the terms on training and validation data, both in evaluation mode; the
            loss's own (`loss.lam`) if None.
        on_epoch: Called with every epoch's record; training stops if it returns True.
        patience: Stop after so many epochs without a smaller validation ensemble cross-entropy, and restore the best
            weights; needs `val`.
        resume: A checkpoint to go on from, of the same model and settings.
        checkpoint: Where to write one.
        progress: Show a bar on standard error.
        sample_weight: What each training sample counts in the mean over its batch.
        amp: Autocast: bfloat16, or float16 with loss scaling on GPUs that lack it.

    Returns:
        The terms of every epoch.

    Raises:
        ValueError: If settings or shapes are wrong.
        DivergenceError: If the loss becomes NaN or infinite.
        FormatError: If `resume` is not a checkpoint of this model and these settings.

    Example:
        >>> from dncc.losses import DNCCLoss
        >>> x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
        >>> model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> history = fit(model, DNCCLoss(0.5), (x, (x[:, 0] > 0).long()), epochs=20, lr=0.03)
        >>> history.epochs[-1].train.ce < history.epochs[0].train.ce
        True
    """
    options = Options(
        epochs=int(epochs), batch_size=int(batch_size), lr=float(lr), weight_decay=float(weight_decay),
        schedule=schedule, patience=None if patience is None else int(patience), amp=amp,
    )  # fmt: skip
    if patience is not None and val is None:
        raise ValueError("patience needs val: without validation data nothing says when to stop")
    where = torch.device(device) if device is not None else device_of(model)
    model.to(where)
    if isinstance(loss, nn.Module):
        loss.to(where)
    run = _Run(model, loss, paired("train", train), None if val is None else paired("val", val), options, where)
    run.generator = generator if generator is not None else torch.Generator().manual_seed(0)
    run.weight = checked_weight(sample_weight, len(run.x))
    own = getattr(loss, "lam", None)
    run.controller = checked_controller(controller or own, val is not None)
    run.augment, run.optimiser = augment, optimiser_of(optimiser, model, options)
    if resume is not None:
        run.restore(load_tree(resume, CHECKPOINT), resume)
    with _bar(progress, options.epochs, run.history) as show:
        while not run.finished:
            record = run.epoch()
            stop = on_epoch is not None and on_epoch(record) is True
            run.note(record, stop)
            if checkpoint is not None:
                save_tree(checkpoint, run.state(), CHECKPOINT)
            show(record)
    if patience is not None and run.best is not None:
        model.load_state_dict(run.best)
    model.eval()
    return run.history


class _Run:
    """Everything that moves while training."""

    generator: torch.Generator
    weight: Tensor | None
    controller: LambdaController | None
    augment: Callable[[Tensor, torch.Generator], Tensor] | None
    optimiser: torch.optim.Optimizer

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        train: tuple[Tensor, Tensor],
        val: tuple[Tensor, Tensor] | None,
        options: Options,
        device: torch.device,
    ) -> None:
        self.model, self.loss, self.val, self.options, self.device = model, loss, val, options, device
        self.x, self.y = train
        self.aggregate: Aggregate = getattr(loss, "aggregate", "arithmetic")
        self.ignored: int = getattr(loss, "ignore_index", -100)
        self.history = History()
        self.best: dict[str, Any] | None = None
        self.best_ce = math.inf
        half = options.amp and device.type == "cuda" and not torch.cuda.is_bf16_supported()
        self.dtype = torch.float16 if half else torch.bfloat16
        self.scaler = torch.amp.GradScaler(device.type, enabled=half)

    @property
    def finished(self) -> bool:
        return self.history.stopped_early or len(self.history.epochs) >= self.options.epochs

    def epoch(self) -> EpochRecord:
        """One pass over the training data, and the validation after it."""
        start, number = time.perf_counter(), len(self.history.epochs) + 1
        order = torch.randperm(len(self.x), generator=self.generator)
        batches = list(order.split(self.options.batch_size))
        if len(batches) > 1 and len(batches[-1]) == 1:  # batch normalisation cannot take one sample
            batches.pop()
        numbered = [(k, rows) for k, rows in enumerate(batches) if self.counts(rows)]
        if not numbered:
            raise ValueError("no training sample counts: all have weight 0 or the label that means to leave it out")
        found, rate = [], self.options.lr
        self.model.train()
        seed = int(torch.randint(2**62, (), generator=self.generator))
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.default_generator.manual_seed(seed)  # dropout draws from the global stream: within the fork only
            if self.device.type == "cuda":
                torch.cuda.manual_seed(seed)
            for k, rows in numbered:
                rate = self.options.rate((number - 1) * len(batches) + k, self.options.epochs * len(batches))
                terms = self.step(rows, rate)
                if self.device.type == "cpu" or k == numbered[-1][0]:  # elsewhere, looking means waiting
                    self.check(terms[0], number, k + 1, len(batches), rate)
                found.append(terms * len(rows))  # stays on the device until the epoch's end
                if self.controller is not None:
                    self.controller.step()
        mean, *means = (torch.stack(found).cpu().double().sum(0) / sum(len(rows) for _, rows in numbered)).tolist()
        train, validation = Measured(*means), self.validate()
        if self.controller is not None and self.controller.watches and validation is not None:
            self.controller.observe(self.settled(), validation)
        return EpochRecord(number, mean, train, validation, _lambda(self.loss), rate, time.perf_counter() - start)

    def counts(self, rows: Tensor) -> bool:
        """Whether a batch has a sample that counts: the mean over none is NaN."""
        weighed = self.weight is None or bool((self.weight[rows] > 0).any())
        return weighed and (self.y.is_floating_point() or bool((self.y[rows] != self.ignored).any()))

    def step(self, rows: Tensor, rate: float) -> Tensor:
        """One optimiser step; loss, ce, ensemble_ce, ambiguity of the batch, detached."""
        x, y = self.x[rows].to(self.device), self.y[rows].to(self.device)
        if self.augment is not None:
            x = self.augment(x, self.generator)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        with self.autocast():
            logits = member_first(self.model(x))
        weight = None if self.weight is None else self.weight[rows].to(self.device)
        value = self.loss(logits, y, weight).loss.mean()  # the mean changes nothing unless reduction is "none"
        self.optimiser.zero_grad(set_to_none=True)
        self.scaler.scale(value).backward()
        self.scaler.step(self.optimiser)
        self.scaler.update()
        terms = decomposed(logits.detach(), y, self.aggregate, self.ignored)
        return torch.cat([value.detach().to(terms.dtype).reshape(1), terms])

    def validate(self) -> Measured | None:
        """The decomposition on the validation data, in evaluation mode."""
        if self.val is None:
            return None
        with self.autocast():
            size = max(256, self.options.batch_size)
            return evaluate(self.model, self.val, self.aggregate, batch_size=size, ignore_index=self.ignored)

    def settled(self) -> Measured:
        """The decomposition on training data as on validation data: in evaluation mode, after the epoch.

        Dropout and weights that still moved would show as ambiguity. As many samples as validation has will do.
        """
        assert self.val is not None
        count = min(len(self.x), len(self.val[1]))
        rows = torch.linspace(0, len(self.x) - 1, count).long()
        with self.autocast():
            part = (self.x[rows], self.y[rows])
            size = max(256, self.options.batch_size)
            return evaluate(self.model, part, self.aggregate, batch_size=size, ignore_index=self.ignored)

    def autocast(self) -> Any:
        return torch.autocast(self.device.type, self.dtype) if self.options.amp else nullcontext()

    def check(self, loss: Tensor, epoch: int, step: int, steps: int, rate: float) -> None:
        if not math.isfinite(float(loss)):
            raise DivergenceError(
                f"the loss is {float(loss)} in epoch {epoch}, step {step} of {steps}, at learning rate {rate:.3g} and "
                f"lambda {_lambda(self.loss):.3g}: try a learning rate 3 to 10 times smaller, a smaller lambda, "
                "amp=False, inputs scaled to about unit variance, and look for NaN in the inputs"
            )

    def note(self, record: EpochRecord, stop: bool) -> None:
        """Add an epoch, keep the best weights, and see whether patience has run out."""
        epochs, best = (*self.history.epochs, record), self.history.best_epoch
        if record.validation is not None and (best is None or record.validation.ensemble_ce < self.best_ce):
            best, self.best_ce = record.epoch, record.validation.ensemble_ce
            self.best = copy.deepcopy(self.model.state_dict()) if self.options.patience is not None else None
        late = self.options.patience is not None and best is not None and record.epoch - best >= self.options.patience
        self.history = History(epochs, best, bool(stop or late))

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs."""
        return {
            "options": asdict(self.options),
            "samples": len(self.x),
            "model": dict(self.model.state_dict()),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "generator": self.generator.get_state(),
            "controller": None if self.controller is None else self.controller.state_dict(),
            "history": self.history.to_json(),
            "best": self.best,
            "best_ce": self.best_ce,
        }

    def restore(self, state: dict[str, Any], path: object) -> None:
        """Go back to what `state` gave."""
        own = asdict(self.options) | {"samples": len(self.x)}
        saved = state["options"] | {"samples": state["samples"]}
        differ = [f"{name}={saved.get(name)} (now {own[name]})" for name in own if saved.get(name) != own[name]]
        if differ:
            raise FormatError(f"{path} was made with {', '.join(differ)}; resume with the same, or start afresh")
        try:
            self.model.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
            if (state["controller"] is None) != (self.controller is None):
                raise ValueError("lambda had a controller in one of the two runs only")
            if self.controller is not None:
                self.controller.load_state_dict(state["controller"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise FormatError(f"{path} belongs to another model, optimiser or controller: {error}") from None
        self.scaler.load_state_dict(state["scaler"])
        self.generator.set_state(state["generator"])
        self.history, self.best_ce = History.from_json(state["history"]), state["best_ce"]
        self.best = state["best"]


def _lambda(loss: Loss) -> float:
    lam = getattr(loss, "lam", math.nan)
    value = getattr(lam, "value", lam)
    return float(value.detach() if isinstance(value, Tensor) else value)


class _bar:  # noqa: N801 (used as a function)
    """A progress bar on standard error, or nothing."""

    def __init__(self, shown: bool, epochs: int, history: History) -> None:
        self._bar: Any = None
        self._done = len(history.epochs)
        if shown:
            from rich.progress import Progress

            from common_core.console import progress as standard_error

            self._bar = Progress(console=standard_error(), transient=True)
            self._task = self._bar.add_task("training", total=epochs, completed=self._done)

    def __enter__(self) -> Callable[[EpochRecord], None]:
        if self._bar is not None:
            self._bar.start()
        return self._show

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _show(self, record: EpochRecord) -> None:
        if self._bar is not None:
            shown = record.validation or record.train
            note = f"epoch {record.epoch}: ensemble {shown.ensemble_ce:.3f} nats, ambiguity {shown.ambiguity:.3f}"
            self._bar.update(self._task, completed=record.epoch, description=note)

"""What a compressor knows from step to step: sensitivities, the bits that follow from them, and when to look again."""

import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import nan, prod
from typing import Any, final

import torch

from gact import distributed
from gact.affine import BITS
from gact.allocation import Allocation
from gact.budget import Size, choose_bits, other_bytes
from gact.capture import Settled
from gact.collector import Collector, Sensitivity
from gact.guard import CoordinateSample, Drift, decide
from gact.report import build_report
from gact.target import Target

DRIFT = 1.25  # a move of the loss or of the gradient's norm by this factor calls for another look
GUARD_STEP = 0.5  # bits on average, at a time


class GuardWarning(UserWarning):
    """Compression's share of the gradient's variance is larger than wanted, and no bits can be added."""


@final
class Learner:
    """Bits of every stored tensor, and where they come from.

    One collector at a time is lent to one forward pass; it is complete when the backward pass has been through.

    Args:
        target: What is asked for.
        model: Whose gradients the guard and the drift are about; not kept.
        group_size: Numbers a group of the quantiser.
        guard: Largest share of the gradient's own variance, or None.
        seed: Of the sample of coordinates.
        group: Ranks that agree.
    """

    def __init__(
        self, target: Target, model: torch.nn.Module, group_size: int, guard: float | None, seed: int, group: Any
    ) -> None:
        self.target, self.guard = target, guard
        self.bits: dict[str, int] = {}
        self.sensitivities: dict[str, Sensitivity] = {}
        self.allocation: Allocation | None = None
        self._group_size, self._seed, self._group = group_size, seed, group
        self._lock = threading.Lock()
        self._device = next((p.device for p in model.parameters()), torch.device("cpu"))
        wanted = target.adaptive or guard is not None
        self._waiting: Collector | None = Collector(group_size) if wanted else None  # for a forward pass
        self._learning: Collector | None = None  # in a forward pass, or waiting for its backward pass
        self._returned = False
        self._settled: tuple[Settled, ...] = ()
        self._sizes: dict[str, Size] = {}
        self._shapes: dict[str, int] = {}
        self._grown = False
        self._estimates: dict[str, float] = {}
        self._average = target.value if target.kind == "average" else None
        self.overhead: int | None = None
        self._sample: CoordinateSample | None = None
        self._drift = Drift(factor=DRIFT, decay=0.7, warmup=2)
        self._note = ""

    def width(self, key: str, least: int) -> int:
        """Bits of a saved tensor.

        Args:
            key: Its name.
            least: Fewest bits that its operation allows while nothing is known of it.
        """
        chosen = self.bits.get(key)
        if chosen is not None:
            return chosen
        first = self.target.first_bits
        return max(first, least) if self.target.adaptive or least > 2 else first

    def lend(self) -> Collector | None:
        """Return a collector for a forward pass if one is wanted."""
        with self._lock:
            collector, self._waiting = self._waiting, None
            if collector is not None:
                self._learning, self._returned = collector, False
            return collector

    def returned(self, collector: Collector | None, settled: tuple[Settled, ...] | None) -> None:
        """Take note that the forward pass of a collector is over.

        Args:
            collector: The one lent to it, if any.
            settled: What was saved; None if the pass failed.
        """
        with self._lock:
            if collector is None or collector is not self._learning:
                return
            if settled is None or not collector.stored:  # nothing was learnt: the next pass tries again
                collector.release()
                self._learning, self._waiting = None, Collector(self._group_size)
            else:
                self._returned, self._settled = True, settled

    def passed(self, settled: tuple[Settled, ...]) -> None:
        """Take note of a pass that stored more numbers than the bits were chosen for: a larger batch.

        Args:
            settled: What it saved.
        """
        if self.target.kind not in ("bytes", "fit") or not self._shapes:
            return
        larger = {}
        for s in settled:
            before = self._shapes.get(s.key)
            if s.key == s.item and before and prod(s.shape) > before:
                size, times = self._sizes[s.key], prod(s.shape) / before
                larger[s.key] = replace(size, numel=round(size.numel * times), storage=s.storage_bytes)
                self._shapes[s.key] = prod(s.shape)
        if larger:
            with self._lock:
                self._sizes, self._settled, self._grown = {**self._sizes, **larger}, settled, True

    def refresh(self) -> None:
        """Choose the bits if a backward pass has told something new, or the tensors have grown.

        Raises:
            AllocationError: If the budget cannot be met.
        """
        with self._lock:
            grown = self._grown
        if grown:
            self._allocate()  # if this fails, so it does at the next pass
            self._grown = False
        with self._lock:
            collector = self._learning
            if collector is None or not self._returned or not collector.seen:
                return
            self._learning = None
            found = collector.sensitivities()
            if not found:  # no finite gradient: the next pass tries again
                collector.release()
                self._waiting = Collector(self._group_size)
                return
        self.adopt(found, collector, self._settled)

    def adopt(self, found: Mapping[str, Sensitivity], collector: Collector, settled: tuple[Settled, ...]) -> None:
        """Take new sensitivities and choose the bits.

        Args:
            found: By item.
            collector: That they come from.
            settled: What the pass saved.

        Raises:
            AllocationError: If the budget cannot be met.
        """
        with self._lock:
            self._waiting = None
            self._settled = settled
        self.sensitivities = {**self.sensitivities, **{k: self._updated(k, new) for k, new in found.items()}}
        self._sizes = {
            item: Size(
                stored.numel,
                stored.first.dtype,
                stored.least_bits,
                stored.extra(self._group_size),
                stored.first.storage_bytes,
            )
            for item, stored in collector.stored.items()
        }
        self._shapes = {item: prod(stored.first.shape) for item, stored in collector.stored.items()}
        self._estimates = {**self._estimates, **collector.estimates()}
        collector.release()
        self._allocate()

    def step(
        self, model: torch.nn.Module, loss: float | None, scale: float, predicted: Callable[[], float | None]
    ) -> None:
        """Watch the loss and the gradients: learn again after a drift, raise bits for the guard.

        Args:
            model: With its gradients.
            loss: Of this step, if known.
            scale: That the gradients carry.
            predicted: Returns the variance of compression, if known.
        """
        if not self.target.adaptive and self.guard is None:
            return
        if self._sample is None:
            self._sample = CoordinateSample(model.named_parameters(), seed=self._seed)
        if self.guard is not None and all(p.grad is None for p in model.parameters()):
            warnings.warn(
                "step() found no gradients for the guard to read: call it before zero_grad()",
                GuardWarning,
                stacklevel=3,
            )
        self._sample.observe(scale)
        due = self._drift.update(nan if loss is None else loss, self._sample.norm_square**0.5)
        if self._anywhere(due):
            self._drift.refreshed()
            with self._lock:
                if self._learning is None:
                    self._waiting = Collector(self._group_size)
        if self.guard is not None and (variance := predicted()) is not None:
            self._heed_guard(self.guard, variance, self._sample)

    def notes(self) -> list[str]:
        """Sentences for a report."""
        said = self.allocation.message if self.allocation is not None else ""
        return [note for note in (said, self._note) if note]

    def state_dict(self) -> dict[str, Any]:
        """Return all that is known as plain data."""
        return {
            "bits": dict(self.bits),
            "average": self._average,
            "overhead": self.overhead,
            "sensitivities": {k: (s.c, s.shape, s.source) for k, s in self.sensitivities.items()},
            "estimates": dict(self._estimates),
            "drift": self._drift.state_dict(),
            "sample": None if self._sample is None else self._sample.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any], model: torch.nn.Module) -> None:
        """Take up where `state_dict` was called.

        Args:
            state: From `state_dict`.
            model: Whose gradients are sampled.
        """
        sensitivities = {
            k: Sensitivity(c, tuple(shape), source) for k, (c, shape, source) in state["sensitivities"].items()
        }
        with self._lock:
            self._average, self.overhead = state["average"], state["overhead"]
            self.bits = {k: int(b) for k, b in state["bits"].items()}
            self.sensitivities, self._estimates = sensitivities, dict(state["estimates"])
            self._drift.load_state_dict(state["drift"])
            if state["sample"] is not None:
                self._sample = CoordinateSample(model.named_parameters(), seed=self._seed)
                self._sample.load_state_dict(state["sample"])
            if sensitivities:
                self._waiting = None

    def _updated(self, item: str, new: Sensitivity) -> Sensitivity:
        """A probed sensitivity moves with its estimate until it is probed again."""
        old, before = self.sensitivities.get(item), self._estimates.get(item, 0.0)
        if old is None or old.source != "probed" or new.source != "estimated" or not (before > 0 and new.c > 0):
            return new
        return replace(old, c=old.c * new.c / before, shape=new.shape)

    def _allocate(self) -> None:
        if not self.target.adaptive or not self._sizes:
            return
        overhead = self._measured_overhead() if self.target.kind == "fit" else None
        self.allocation = choose_bits(
            self.target, self._sizes, self.sensitivities, others=other_bytes(self._settled), overhead=overhead,
            group_size=self._group_size, average=self._average,
        )  # fmt: skip
        chosen = distributed.agree(self.allocation.bits, self._group) if distributed.ready() else self.allocation.bits
        self.bits = {**self.bits, **chosen}

    def _measured_overhead(self) -> int | None:
        """Bytes at the peak so far that were no saved activations; measured on CUDA, else as it was given."""
        if self._device.type != "cuda":
            return self.overhead
        peak = torch.cuda.max_memory_allocated(self._device)
        self.overhead = max(0, peak - build_report(self._settled, {}).saved_bytes)
        return self.overhead

    def _heed_guard(self, share: float, predicted: float, sample: CoordinateSample) -> None:
        """Raise the average bits where compression's predicted variance is too large a share of the gradient's own."""
        decision = decide(predicted, sample.own(predicted), share)
        if not self._anywhere(decision.raise_bits):
            return
        said, self._note = self._note, decision.message
        if self._average is None or self._average >= max(BITS):
            if not said:
                warnings.warn(decision.message, GuardWarning, stacklevel=4)
            return
        self._average = min(float(max(BITS)), self._average + GUARD_STEP)
        self._allocate()

    def _anywhere(self, here: bool) -> bool:
        return distributed.any_rank(here, self._group) if distributed.ready() else here

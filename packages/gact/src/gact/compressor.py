"""The public context manager: compresses what autograd saves inside it, and learns where bits matter."""

import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import wraps
from math import nan
from typing import Any, Self, final

import torch
from torch import Tensor


from gact import distributed
from gact.affine import BITS, GROUP_SIZES
from gact.allocation import RAW, Allocation
from gact.budget import Size, choose_bits, other_bytes
from gact.calibration import BASE_BITS, Probe, probe_sensitivities, undisturbed
from gact.capture import Frame, Plan, Settled
from gact.collector import Collector, Sensitivity
from gact.guard import CoordinateSample, Drift, decide
from gact.names import ModuleNames
from gact.nodes import HAS_CREATION_HOOK, watch
from gact.report import Report, build_report
from gact.rules import Rule, Rules
from gact.target import Target, parse_target

_FORMAT = 1
GUARD_STEP = 0.5  # bits on average, at a time


class GuardWarning(UserWarning):
    """Compression's share of the gradient's variance is larger than wanted, and no bits can be added."""


@final
class ActivationCompressor:
    """Stores what autograd saves for the backward pass at few bits; the forward pass stays exact.

    Use it as a context around the forward pass. Gradients are unbiased where the backward formulas are linear in what
    is stored, and exact forms (sign masks, window offsets, shapes) take the place of numbers where they have jumps.
    One compressor may be used by several threads, nested, and for several passes before a backward pass; it holds the
    model weakly and changes nothing of it outside of the context.

    Args:
        model: The model whose parameters and buffers are never touched, and whose modules name what is stored.
        bits: ``8``, ``4``, ``2`` or ``1`` everywhere; ``"auto:4"``: the bytes of 4 bits, spread so that the gradient
            suffers least; ``"bytes:500MiB"``: at most that for all saved activations; ``"fit:6GiB"``: at most that at
            the device's peak.
        group_size: Numbers that share one range, a power of two from 64 to 2048.
        rules: Exceptions, such as ``Rule("exact", module="head*")``.
        min_bytes: Tensors of fewer bytes are kept as they are.
        offload: A `gact.HostStore` to which the codes go until they are needed.
        seed: Of the rounding.
        guard: Largest share that the predicted variance of quantisation may have of the gradient's own; when it is
            exceeded, `step` raises the average bits. None switches the guard off. Not for ``"bytes"`` and ``"fit"``,
            where it only warns.
        nonfinite: ``"propagate"``: NaN and +inf make their group NaN; ``"raise"`` and ``"exact"`` look at every
            tensor first, which waits for the device.
        process_group: Ranks that shall agree on the bits; the default group if torch.distributed is initialised.

    Raises:
        TypeError: If `model` is no module, or a rule is no `Rule`.
        ValueError: If another argument is not one of the above.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 1))
        >>> comp = ActivationCompressor(model, bits=4)
        >>> with comp:
        ...     loss = model(torch.randn(512, 64)).square().mean()
        >>> loss.backward()
        >>> comp.report().ratio > 5
        True

    Reference:
        Liu et al. (2022), GACT, Algorithm 1; the closed-form sensitivities, the byte-exact allocation and the exact
        forms are this package's.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        bits: int | str | Target = "auto:4",
        *,
        group_size: int = 256,
        rules: Iterable[Rule] = (),
        min_bytes: int = 16384,
        offload: Any = None,
        seed: int = 0,
        guard: float | None = None,
        nonfinite: str = "propagate",
        process_group: Any = None,
    ) -> None:
        if not isinstance(model, torch.nn.Module):
            raise TypeError(f"model is a {type(model).__name__}; give the torch.nn.Module that is trained")
        if group_size not in GROUP_SIZES:
            raise ValueError(f"group_size={group_size}; allowed are {', '.join(map(str, GROUP_SIZES))}")
        if min_bytes < 0:
            raise ValueError(f"min_bytes={min_bytes}; give 0 or more")
        if nonfinite not in ("propagate", "raise", "exact"):
            raise ValueError(f"nonfinite={nonfinite!r}; allowed are 'propagate', 'raise' and 'exact'")
        if guard is not None and not guard > 0:
            raise ValueError(f"guard={guard}; give the largest share of the gradient's variance, such as 0.1, or None")
        self.target = parse_target(bits)
        self.rules = rules if isinstance(rules, Rules) else Rules(rules)
        self.group_size, self.min_bytes, self.seed, self.guard = group_size, min_bytes, seed, guard
        self._nonfinite, self._offload, self._group = nonfinite, offload, process_group
        self._own_seed = distributed.rank_seed(seed, process_group) if distributed.ready() else seed
        self._model = weakref.ref(model)
        self._names = ModuleNames(model, self._current_modules)
        self._local = threading.local()
        self._lock = threading.Lock()
        self._invocation = 0
        self._average = self.target.value if self.target.kind == "average" else None
        self.bits: dict[str, int] = {}
        self.sensitivities: dict[str, Sensitivity] = {}
        self.allocation: Allocation | None = None
        self._last: tuple[Settled, ...] = ()
        self._collector: Collector | None = Collector(group_size) if self.target.adaptive else None
        self._collecting = False
        self._overhead: int | None = None
        self._sizes: dict[str, Size] = {}
        self._estimates: dict[str, float] = {}
        self._sample: CoordinateSample | None = None
        self._drift = Drift()
        self._guard_note = ""

    # -- the context ------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        if getattr(self._local, "depth", 0):
            self._local.depth += 1
            return self
        self._refresh_if_complete()
        frame, collector = self._frame()
        stack = ExitStack()
        stack.enter_context(self._names.following())
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(frame.pack, frame.unpack))
        stack.enter_context(watch(frame.observe))
        self._local.depth, self._local.frame, self._local.stack = 1, frame, stack
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._local.depth -= 1
        if self._local.depth:
            return
        frame, stack = self._local.frame, self._local.stack
        self._local.frame = self._local.stack = None
        stack.close()
        frame.close()
        with self._lock:
            if kind is None:
                self._last = tuple(frame.settled)
            elif self._collecting:  # nothing was learnt
                self._collector = Collector(self.group_size)
            self._collecting = False

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function (or module) as one that runs inside this context."""

        @wraps(function)
        def inside(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return inside

    # -- learning ---------------------------------------------------------------------------------------------------

    def step(self, loss: Tensor | float | None = None, *, scale: float = 1.0) -> None:
        """Take note that an optimiser step is over: choose bits anew where something new is known.

        Optional. Without it, sensitivities are learnt once, from the first pass. With it, they are learnt again when
        the loss or the gradient's norm has moved by more than a factor of two, and the guard can raise bits. Call it
        while the gradients are still there, before ``zero_grad``.

        Args:
            loss: Of this step.
            scale: What the loss was multiplied by (``GradScaler.get_scale()``) if the gradients still carry it.

        Raises:
            AllocationError: If the budget cannot be met.
        """
        self._refresh_if_complete()
        model = self._alive()
        if not self.target.adaptive and self.guard is None:
            return
        if self._sample is None:
            self._sample = CoordinateSample(model.named_parameters(), seed=self.seed)
        self._sample.observe(scale)
        norm = self._sample.norm_square**0.5
        value = float(loss) if loss is not None else nan
        due = self.target.adaptive and self._drift.update(value, norm)
        if self._anywhere(due) and self._collector is None:
            self._drift.refreshed()
            self._collector = Collector(self.group_size)
        if self.guard is not None:
            self._heed_guard()

    def _heed_guard(self) -> None:
        """Raise the average bits where compression's predicted variance is too large a share of the gradient's own."""
        predicted = self.predicted_variance
        if predicted is None or self._sample is None or self.guard is None:
            return
        decision = decide(predicted, self._sample.own(predicted), self.guard)
        if not self._anywhere(decision.raise_bits):
            return
        if self.target.kind != "average" or (self._average or 0) >= max(BITS):
            if decision.message != self._guard_note:
                warnings.warn(decision.message, GuardWarning, stacklevel=3)
            self._guard_note = decision.message
            return
        self._guard_note = decision.message
        self._average = min(float(max(BITS)), (self._average or self.target.value) + GUARD_STEP)
        self._allocate(self._sizes, self._last)

    def calibrate(self, closure: Callable[[], Tensor], *, width: int = 2, draws: int = 2) -> Allocation | None:
        """Measure on one batch how much each kind of stored tensor moves the gradient, and choose the bits.

        One forward pass with everything at 8 bits, then a backward pass for each cluster of structurally identical
        tensors without a closed form and each draw. Parameters' ``.grad``, buffers and random states are as before
        afterwards.

        Args:
            closure: Runs the forward pass and returns the loss; must not call ``backward``.
            width: Bits at which the clusters are probed.
            draws: Noise draws a cluster.

        Returns:
            The allocation; None if the target is a fixed width.

        Raises:
            RuntimeError: Inside of this compressor's own context, or if the model is gone.
            ValueError: If `width` or `draws` is not possible, or the loss has no graph.
            AllocationError: If the budget cannot be met.
        """
        model = self._alive()
        if getattr(self._local, "depth", 0):
            raise RuntimeError("calibrate runs a pass of its own: call it outside of `with compressor:`")
        if width not in BITS or draws < 1:
            raise ValueError(f"width={width}, draws={draws}: give a width of 1, 2, 4 or 8 and at least one draw")
        probe = Probe(width, self.group_size, self.seed)
        collector = Collector(self.group_size)
        frame = Frame(self._plan(collector, probe), 0, HAS_CREATION_HOOK)
        with undisturbed(model):
            self._local.frame = frame
            try:
                with (
                    self._names.following(),
                    torch.autograd.graph.saved_tensors_hooks(frame.pack, frame.unpack),
                    watch(frame.observe),
                ):
                    loss = closure()
            finally:
                self._local.frame = None
                frame.close()
            if not isinstance(loss, Tensor) or loss.grad_fn is None or loss.numel() != 1:
                raise ValueError("the closure must return a loss with a graph: one number that requires a gradient")
            parameters = [p for p in model.parameters() if p.requires_grad]
            found = probe_sensitivities(loss, parameters, probe, collector, draws)
        with self._lock:
            self._collector = None
        self._adopt(found, collector, tuple(frame.settled))
        return self.allocation

    def report(self, *, notes: Iterable[str] = ()) -> Report:
        """Return what the last forward pass saved, tensor by tensor.

        Raises:
            RuntimeError: If there was none yet.
        """
        with self._lock:
            last = self._last
        if not last:
            raise RuntimeError("nothing saved yet: run a forward pass inside `with compressor:` first")
        return build_report(last, self.sensitivities, (*self._notes(), *notes))

    def state_dict(self) -> dict[str, Any]:
        """Return bits, sensitivities and the counter of the rounding noise as plain data."""
        return {
            "format": _FORMAT,
            "invocation": self._invocation,
            "bits": dict(self.bits),
            "average": self._average,
            "overhead": self._overhead,
            "sensitivities": {k: (s.c, s.shape, s.source, s.trusted_bits) for k, s in self.sensitivities.items()},
            "estimates": dict(self._estimates),
            "drift": self._drift.state_dict(),
            "sample": None if self._sample is None else self._sample.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where `state_dict` was called: the same bits, and no noise used twice.

        Raises:
            ValueError: If the state is of another format.
        """
        if state.get("format") != _FORMAT:
            raise ValueError(f"a state of format {state.get('format')!r}; this version reads format {_FORMAT}")
        sensitivities = {
            k: Sensitivity(c, tuple(shape), source, trusted)
            for k, (c, shape, source, trusted) in state["sensitivities"].items()
        }
        with self._lock:
            self._invocation, self._average = int(state["invocation"]), state["average"]
            self._overhead, self.bits = state["overhead"], {k: int(b) for k, b in state["bits"].items()}
            self.sensitivities, self._estimates = sensitivities, dict(state["estimates"])
            self._drift.load_state_dict(state["drift"])
            if state["sample"] is not None:
                self._sample = CoordinateSample(self._alive().named_parameters(), seed=self.seed)
                self._sample.load_state_dict(state["sample"])
            if sensitivities:
                self._collector = None

    # -- inside -----------------------------------------------------------------------------------------------------

    def _alive(self) -> torch.nn.Module:
        model = self._model()
        if model is None:
            raise RuntimeError("the model is gone; a compressor does not keep it alive")
        return model

    def _current_modules(self) -> list[str] | None:
        frame = getattr(self._local, "frame", None)
        return None if frame is None else frame.modules

    def _frame(self) -> tuple[Frame, Collector | None]:
        with self._lock:
            self._invocation += 1
            invocation = self._invocation
            collector = self._collector if not self._collecting else None
            if collector is not None and collector.stored:  # its backward pass has not come yet
                collector = None
            self._collecting = self._collecting or collector is not None
        return Frame(self._plan(collector, None), invocation, HAS_CREATION_HOOK), collector

    def _plan(self, collector: Collector | None, probe: Probe | None) -> Plan:
        model = self._alive()
        tensors = [*model.parameters(), *model.buffers()]
        exempt = frozenset(t.untyped_storage()._cdata for t in tensors if type(t.data) is Tensor and not t.is_meta)
        default = self.target.first_bits
        chosen = self.bits

        def bits(key: str, least: int) -> int:
            if probe is not None:
                return BASE_BITS
            width = chosen.get(key, default)
            if key not in chosen and self.target.kind != "fixed" or least > 2:
                width = max(width, least)
            return 8 if width == RAW and collector is not None else width

        return Plan(
            rules=self.rules, bits=bits, min_bytes=self.min_bytes, group_size=self.group_size, seed=self._own_seed,
            exempt=exempt, keep=self._offload.put if self._offload is not None else None, nonfinite=self._nonfinite,
            observe=collector.observe if collector is not None else None,
            inspect=collector.inspect if collector is not None else None,
            probe=probe.form if probe is not None else None,
        )  # fmt: skip

    def _refresh_if_complete(self) -> None:
        with self._lock:
            collector = self._collector
            if collector is None or self._collecting or not collector.seen:
                return
            self._collector = None
            last = self._last
        self._adopt(collector.sensitivities(), collector, last)

    def _adopt(self, found: Mapping[str, Sensitivity], collector: Collector, settled: tuple[Settled, ...]) -> None:
        """Take new sensitivities and choose the bits."""
        self.sensitivities = {**self.sensitivities, **{k: self._updated(k, new) for k, new in found.items()}}
        self._sizes = {
            item: Size(stored.numel, stored.first.dtype, stored.least_bits) for item, stored in collector.stored.items()
        }
        self._estimates = {**self._estimates, **collector.estimates()}
        self._allocate(self._sizes, settled)

    def _updated(self, item: str, new: Sensitivity) -> Sensitivity:
        """A probed sensitivity moves with its estimate until it is probed again."""
        old, before = self.sensitivities.get(item), self._estimates.get(item, 0.0)
        if old is None or old.source != "probed" or new.source != "estimated" or not (before > 0 and new.c > 0):
            return new
        return replace(old, c=old.c * new.c / before, shape=new.shape)

    def _allocate(self, sizes: Mapping[str, Size], settled: tuple[Settled, ...]) -> None:
        """Choose the bits; all ranks the same."""
        if not self.target.adaptive or not sizes:
            return
        overhead = self._measured_overhead(settled) if self.target.kind == "fit" else None
        self.allocation = choose_bits(
            self.target, sizes, self.sensitivities, others=other_bytes(settled), overhead=overhead,
            group_size=self.group_size, average=self._average,
        )  # fmt: skip
        chosen = distributed.agree(self.allocation.bits, self._group) if distributed.ready() else self.allocation.bits
        self.bits = {**self.bits, **chosen}

    def _measured_overhead(self, settled: tuple[Settled, ...]) -> int | None:
        """Bytes at the peak so far that were no saved activations; measured on CUDA, else as calibration found it."""
        parameter = next(self._alive().parameters(), None)
        if parameter is None or parameter.device.type != "cuda":
            return self._overhead
        peak = torch.cuda.max_memory_allocated(parameter.device)
        self._overhead = max(0, peak - build_report(settled, {}).saved_bytes)
        return self._overhead

    @property
    def predicted_variance(self) -> float | None:
        """Predicted variance of the gradient due to what the last pass stored; None while it is not known."""
        with self._lock:
            last = self._last
        return build_report(last, self.sensitivities).predicted_variance if last else None

    def _anywhere(self, here: bool) -> bool:
        return distributed.any_rank(here, self._group) if distributed.ready() else here

    def _notes(self) -> list[str]:
        notes = [self._guard_note] if self._guard_note else []
        if self.allocation is not None and self.allocation.message:
            notes.append(self.allocation.message)
        return notes

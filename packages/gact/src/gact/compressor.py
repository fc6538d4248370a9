"""The public context manager: compresses what autograd saves inside it, and learns where bits matter."""

import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import wraps
from types import TracebackType
from typing import Any, final

import torch
from torch import Tensor

from common_core.memory import PeakMeter
from gact import distributed
from gact.affine import BITS, GROUP_SIZES
from gact.allocation import RAW, Allocation, AllocationError
from gact.arena import Arenas
from gact.calibration import BASE_BITS, Probe, probe_sensitivities, undisturbed
from gact.capture import Frame, Plan, Settled
from gact.checkpointing import Compress, FixedBits, Holder, compressing
from gact.collector import Collector, Sensitivity
from gact.compiled import CompiledHooks, CompileWarning
from gact.learner import Learner
from gact.names import ModuleNames
from gact.nodes import HAS_CREATION_HOOK, watch
from gact.report import Report, build_report
from gact.rules import Rule, Rules
from gact.saved import Saved
from gact.target import Target, parse_target

_FORMAT = 1
INPUT_BITS = 8  # of a checkpointed block's inputs
ARENA_BLOCK = 1 << 24  # bytes; codes of a pass lie in blocks of this size on a GPU


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

        compiled: Whether torch.compile'd code runs inside; None looks for compiled modules in `model`. Graphs that
            torch compiles take the quantiser in at one fixed width, and a `CompileWarning` says what they lack.

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
        rules: Iterable[Rule] | Rules = (),
        min_bytes: int = 16384,
        offload: Any = None,
        seed: int = 0,
        guard: float | None = None,
        nonfinite: str = "propagate",
        process_group: Any = None,
        compiled: bool | None = None,
    ) -> None:
        _check(model, group_size, min_bytes, guard, nonfinite, offload, seed)
        self.target = parse_target(bits)
        self.rules = rules if isinstance(rules, Rules) else Rules(rules)
        self.group_size, self.min_bytes, self.seed = group_size, min_bytes, seed
        self._nonfinite, self._offload = nonfinite, offload
        self._noise = distributed.rank_seed(seed, process_group) if distributed.ready() else seed
        self._model = weakref.ref(model)
        self._names = ModuleNames(model, self._current_modules)
        self._learner = Learner(self.target, model, group_size, guard, seed, process_group)
        self._local = threading.local()
        self._lock = threading.Lock()
        self._compile, self._warned = compiled, False
        self._compiled: CompiledHooks | None = None
        self._invocation = 0
        self._last: tuple[Settled, ...] = ()

    # -- the context ------------------------------------------------------------------------------------------------

    def __enter__(self) -> "ActivationCompressor":
        if getattr(self._local, "depth", 0):
            self._local.depth += 1
            return self
        self._learner.refresh()
        collector = self._learner.lend()
        with self._lock:
            self._invocation += 1
            frame = Frame(self._plan(collector, None), self._invocation, HAS_CREATION_HOOK)
        stack = ExitStack()
        stack.enter_context(self._following(frame))
        self._local.stack, self._local.depth = stack, 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._local.depth -= 1
        if self._local.depth:
            return
        frame, stack = self._local.frame, self._local.stack
        self._local.stack = None
        settled: tuple[Settled, ...] | None = None
        try:
            stack.close()
            settled = tuple(frame.settled) if kind is None else None
        finally:
            self._learner.returned(frame.plan.collector, settled)
        with self._lock:
            if settled:
                self._last = settled
        if settled:
            self._learner.passed(settled)
        if not self._warned and any(s.operation == "CompiledFunction" for s in settled or ()):
            self._warned = True
            warnings.warn(
                "a graph that torch.compile made ran inside of a compressor that does not know of it; what it saves "
                "stays exact: give ActivationCompressor compiled=True",
                CompileWarning,
                stacklevel=2,
            )

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function (or module) as one that runs inside this context."""

        @wraps(function)
        def inside(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return inside

    # -- learning ---------------------------------------------------------------------------------------------------

    @property
    def bits(self) -> dict[str, int]:
        """Bits of each stored tensor, by name; those not in it get `target.first_bits`."""
        return dict(self._learner.bits)

    @property
    def sensitivities(self) -> dict[str, Sensitivity]:
        """What is known of each stored tensor's noise, by name."""
        return dict(self._learner.sensitivities)

    @property
    def allocation(self) -> Allocation | None:
        """The last choice of bits, with its bound; None before one was made."""
        return self._learner.allocation

    @property
    def predicted_variance(self) -> float | None:
        """Predicted variance of the gradient due to what the last pass stored; None while it is not known."""
        return self.report().predicted_variance if self._last else None

    def step(self, loss: Tensor | float | None = None, *, scale: float = 1.0) -> None:
        """Take note that an optimiser step is over: choose bits anew where something new is known.

        Optional. Without it, sensitivities are learnt once, from the first pass. With it, they are learnt again when
        the loss or the gradient's norm has moved by a quarter, and the guard can raise bits. Call it
        while the gradients are still there, before ``zero_grad``; it waits for the device once.

        Args:
            loss: Of this step.
            scale: What the loss was multiplied by (``GradScaler.get_scale()``) if the gradients still carry it.

        Raises:
            AllocationError: If the budget cannot be met.
        """
        self._learner.refresh()
        self._learner.step(
            self._alive(), None if loss is None else _number(loss), scale, lambda: self.predicted_variance
        )

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
        if width not in BITS[:-1] or draws < 1:
            raise ValueError(f"width={width}, draws={draws}: give a width of 1, 2 or 4 and at least one draw")
        if not callable(closure):
            raise TypeError(
                f"closure is a {type(closure).__name__}; give a function that runs the model and returns the loss"
            )
        probe = Probe(width, self.group_size, self._noise)
        collector = Collector(self.group_size)
        frame = Frame(self._plan(collector, probe), 0, HAS_CREATION_HOOK)
        with undisturbed(model):
            with self._following(frame):
                loss = closure()
            if not isinstance(loss, Tensor) or loss.grad_fn is None or loss.numel() != 1:
                raise ValueError("the closure must return a loss with a graph: one number that requires a gradient")
            parameters = [p for p in model.parameters() if p.requires_grad]
            found = probe_sensitivities(loss, parameters, probe, collector, draws)
        if self.target.kind == "fit":
            self._learner.overhead = self._measured_overhead(model, closure)
        self._learner.adopt(found, collector, tuple(frame.settled))
        return self.allocation

    def _measured_overhead(self, model: torch.nn.Module, closure: Callable[[], Tensor]) -> int:
        """Bytes at the peak of a pass that are no saved activations: parameters, gradients and temporaries.

        On CUDA the allocator's own peak is read later, which has the optimiser's state in it.
        """
        parameters = [p for p in model.parameters() if p.requires_grad]
        collector = Collector(self.group_size, exact_shape=False)
        frame = Frame(self._plan(collector, Probe(max(BITS), self.group_size, self._noise)), 0, HAS_CREATION_HOOK)
        with undisturbed(model), PeakMeter(parameters[0].device.type, alive=model) as meter:
            with self._following(frame):
                loss = closure()
            torch.autograd.grad(loss, parameters, allow_unused=True)
        collector.release()
        return max(0, meter.reading().peak - build_report(frame.settled, {}).saved_bytes)

    def report(self, *, notes: Iterable[str] = ()) -> Report:
        """Return what the last forward pass saved, tensor by tensor.

        Args:
            notes: Sentences to add.

        Raises:
            RuntimeError: If there was none yet.
        """
        with self._lock:
            last = self._last
        if not last:
            raise RuntimeError("nothing saved yet: run a forward pass inside `with compressor:` first")
        said = []
        try:
            self._learner.refresh()
        except AllocationError as error:  # the next pass raises it
            said.append(str(error))
        said += self._learner.notes()
        if self._compiled is not None and self._compiled.traced:
            said.append(f"{len(self._compiled.traced)} tensors that compiled graphs save are not in this table")
        return build_report(last, self._learner.sensitivities, (*said, *notes))

    def state_dict(self) -> dict[str, Any]:
        """Return bits, sensitivities and the counter of the rounding noise as plain data."""
        return {"format": _FORMAT, "invocation": self._invocation, **self._learner.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where `state_dict` was called: the same bits, and no noise used twice.

        Args:
            state: From `state_dict`.

        Raises:
            ValueError: If the state is of another format.
        """
        if state.get("format") != _FORMAT:
            raise ValueError(f"a state of format {state.get('format')!r}; this version reads format {_FORMAT}")
        self._learner.load_state_dict(state, self._alive())
        with self._lock:
            self._invocation = int(state["invocation"])

    # -- inside -----------------------------------------------------------------------------------------------------

    def __reduce__(self) -> Any:
        raise TypeError(
            "a compressor belongs to one model in one process: keep it out of what is copied or pickled, and use "
            "state_dict() and load_state_dict() to go on elsewhere"
        )

    def _alive(self) -> torch.nn.Module:
        model = self._model()
        if model is None:
            raise RuntimeError("the model is gone; a compressor does not keep it alive")
        return model

    def _current_modules(self) -> list[str] | None:
        frame = getattr(self._local, "frame", None)
        return None if frame is None else frame.modules

    @contextmanager
    def _following(self, frame: Frame) -> Iterator[None]:
        """Let a frame see what this thread saves."""
        self._local.frame = frame
        try:
            with (
                self._names.following(),
                compressing(self._block_inputs(frame)),
                self._hooks(frame),
                watch(frame.observe),
            ):
                yield
        finally:
            self._local.frame = None
            frame.close()

    def _block_inputs(self, frame: Frame) -> Compress:
        """What `gact.checkpoint` keeps inside: 8 bits, since recomputation carries noise through a whole block."""
        keep = FixedBits(
            INPUT_BITS, group_size=self.group_size, min_bytes=self.min_bytes, seed=self._noise + frame.invocation
        )

        def compress(tensor: Tensor) -> Holder | None:
            holder = keep(tensor)
            if holder is not None:
                frame.record_input(tensor, INPUT_BITS, holder.nbytes)
            return holder

        return compress

    def _hooks(self, frame: Frame) -> AbstractContextManager[Any]:
        """The frame's own hooks on saved tensors, or ones that compiled graphs take in and eager code passes on."""
        if not self._has_compiled_parts():
            return torch.autograd.graph.saved_tensors_hooks(frame.pack, frame.unpack)
        with self._lock:
            if self._compiled is None:
                self._compiled = CompiledHooks(
                    self._learner.target.first_bits, group_size=self.group_size, min_bytes=self.min_bytes,
                    seed=self._noise, eager=(self._pack, self._unpack),
                )  # fmt: skip
        frame.hook = self._compiled.pack
        return self._compiled.active()

    def _has_compiled_parts(self) -> bool:
        if self._compile is None:
            model = self._model()
            return model is not None and any(map(_is_compiled, model.modules()))
        return self._compile

    def _pack(self, tensor: Tensor) -> Saved:
        return self._local.frame.pack(tensor)

    def _unpack(self, saved: Saved) -> Tensor:
        frame = getattr(self._local, "frame", None)
        return saved.decode() if frame is None else frame.unpack(saved)

    def _plan(self, collector: Collector | None, probe: Probe | None) -> Plan:
        model = self._alive()
        tensors = [*model.parameters(), *model.buffers()]
        exempt = frozenset(t.untyped_storage()._cdata for t in tensors if type(t.data) is Tensor and not t.is_meta)
        width = self._learner.width

        def bits(key: str, least: int) -> int:
            if probe is not None:
                return BASE_BITS
            chosen = width(key, least)
            return max(BITS) if chosen == RAW and collector is not None else chosen

        store, device = self._offload, next((t.device for t in tensors), torch.device("cpu"))
        return Plan(
            rules=self.rules, bits=bits, min_bytes=self.min_bytes, group_size=self.group_size, seed=self._noise,
            exempt=exempt, is_exempt=distributed.is_parameter_storage, keep=store.put if store is not None else None,
            take=Arenas(ARENA_BLOCK).take if device.type == "cuda" and store is None else None,
            nonfinite=self._nonfinite, collector=collector, probe=probe.form if probe is not None else None,
        )  # fmt: skip


def _check(
    model: Any, group_size: int, min_bytes: int, guard: float | None, nonfinite: str, offload: Any, seed: Any
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
    if offload is not None and not callable(getattr(offload, "put", None)):
        raise TypeError(f"offload={offload!r}: give a gact.HostStore of the model's device, or None")
    if not isinstance(seed, int):
        raise TypeError(f"seed={seed!r}: give an integer")


def _number(loss: Tensor | float) -> float:
    return float(loss.detach() if isinstance(loss, Tensor) else loss)


def _is_compiled(module: torch.nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None

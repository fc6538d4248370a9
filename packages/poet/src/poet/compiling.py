"""`poet.compile`: a training step that keeps to a limit of memory, with eager execution's results to the bit."""

import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from poet.codecs import Codec, CodecError, find_codec
from poet.compiling_eager import eager_step
from poet.compiling_guards import plain, refuse, signature
from poet.compiling_plan import MemoryLimitError, Order, Plan, make_stores, prepare
from poet.compiling_report import StepReport, report_of
from poet.compiling_updates import ByOptimizer, Function, by_function
from poet.device import Device
from poet.executor import Executor, Update
from poet.plan import Schedule
from poet.problem import Objective
from poet.program import Gradients
from poet.search import OnProgress
from poet.stores import PageError
from poet.trace_call import TraceError
from poet.tracing import GRADIENTS
from poet.units import parse_bytes

_KEPT = 16  # schedules kept for different inputs


class FallbackWarning(UserWarning):
    """A step runs eagerly, and keeps no limit."""


def compile(  # noqa: A001 - as torch.compile
    model: nn.Module,
    loss_fn: Callable[..., Tensor] | None,
    sample: Any = None,
    *,
    ram: int | str,
    deadline: float | str | None = None,
    objective: str | Objective = "time",
    tiers: tuple[str, ...] | None = None,
    recompute: bool = True,
    page_dir: str | os.PathLike[str] | None = None,
    gradients: Gradients = "keep",
    optimizer: Optimizer | Function | None = None,
    device: Device | None = None,
    time_limit: float = 30.0,
    gap: float = 1e-3,
    margin: int | str = 0,
    codec: str | Codec | None = None,
    bits: int = 4,
    seed: int = 0,
    fallback: bool = False,
    on_progress: OnProgress | None = None,
) -> "CompiledStep":
    """Compile a training step for a limit of memory: forward pass, loss, backward pass.

    The first call with inputs of a new kind traces and measures the step, searches a schedule, and tries it out; what
    follows only runs it. Measuring and trying take memory and time of their own: measuring runs the plain step once,
    without the limit (where that fails on CUDA, estimates are used).

    Args:
        model: Any module that `trace` takes.
        loss_fn: Takes the model's output and the targets; None if the model returns the loss.
        sample: As for `trace`; prepares the step for such inputs at once.
        ram: Bytes of all that torch holds for the step, parameters included: `536870912`, `"512MiB"`. Or `"40%"`:
            what is always there or left at the end (parameters, buffers, inputs, gradients, optimizer state), and 40 %
            of what the plain step needs beyond that.
        deadline: A factor of the plain step's duration, seconds as `"90s"`, or None.
        objective: `"time"`, `"energy"` (modelled; `device` must have energies), or weights.
        tiers: Names of the tiers that may be used, of the device's and the codec's; None: all, `()`: recomputation
            alone.
        recompute: Whether operations may be executed again; False leaves the tiers alone.
        page_dir: Folder for pages on disk. Put it on a disk: pages in a folder that lies in memory relieve nothing.
        gradients: `"keep"`: they are all there at the end, in `.grad`. `"static"`: they are counted as always there,
            and added to `.grad` as they are produced. `"apply"`: `optimizer` updates each parameter as soon as its
            gradient is there and nothing needs the parameter any more; then the gradient is freed.
        optimizer: Under `"apply"`: an optimizer whose update of a parameter depends on that parameter alone (it keeps
            state and groups, so schedulers and `state_dict` work), or a function of a parameter and its gradient. An
            optimizer's state and temporaries are in the budget, a function's are not: leave a `margin`.
        device: Profile of the machine; None: it is measured, once in a process.
        time_limit: Seconds for each search.
        gap: The search ends when the schedule is within this share of the plain step's cost of the least possible.
        margin: Bytes, or a percentage of `ram`, to leave free.
        codec: Name of a codec, or a codec: values may then also be kept compressed. Loss and buffers stay exact,
            gradients become estimates.
        bits: Bits a number, for the codec.
        seed: Of the search, and of the codec's rounding.
        fallback: Whether to run eagerly, with a warning and no limit, what cannot be traced.
        on_progress: Called with a `Progress` whenever the search improves.

    Returns:
        The step; call it as `step(inputs, targets)`, or `step(inputs)` if the model returns the loss.

    Raises:
        ValueError: If an argument is out of range.
        TraceError: With a sample: if the model cannot be traced, and `fallback` is False.
        MemoryLimitError: With a sample: if no schedule keeps the limit.

    Example:
        >>> from poet.device import Tier
        >>> model = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
        >>> machine = Device("toy", tiers=(Tier("disk", 1e-5, 1e9, 1e-5, 1e9),))
        >>> sample = torch.ones(32, 8), torch.zeros(32, 1)
        >>> with compile(model, nn.functional.mse_loss, sample, ram="80%", device=machine, time_limit=2.0) as step:
        ...     loss = step(*sample)
        ...     report = step.report()
        >>> bool(loss == nn.functional.mse_loss(model(sample[0]), sample[1])), report.measured <= report.limit
        (True, True)
    """
    update = _update(gradients, optimizer)
    if not (isinstance(ram, str) and ram.strip().endswith("%")):
        parse_bytes(ram)
    parse_bytes(margin, whole=100)
    folder = Path(page_dir) if page_dir is not None else None
    if folder is not None and not folder.is_dir():
        raise ValueError(f"page_dir must be an existing folder, got {str(folder)!r}: make it first")
    found = find_codec(codec) if isinstance(codec, str) else codec
    if found is not None and bits not in found.bits:
        raise CodecError(f"bits={bits}: the codec offers {', '.join(map(str, found.bits))}")
    order = Order(
        model=model,
        loss_fn=loss_fn,
        ram=ram,
        deadline=deadline,
        objective=objective,
        tiers=tiers,
        recompute=recompute,
        page_dir=folder,
        gradients=gradients,
        update=update,
        device=device,
        time_limit=time_limit,
        gap=gap,
        margin=margin,
        codec=found,
        bits=bits,
        seed=seed,
        on_progress=on_progress,
    )
    step = CompiledStep(order, fallback)
    if sample is not None:
        step.prepare(*(sample if loss_fn is not None else (sample,)))
    return step


def _update(gradients: str, optimizer: Any) -> Update | None:
    if gradients not in GRADIENTS:
        raise ValueError(f"gradients must be one of {', '.join(GRADIENTS)}, got {gradients!r}")
    if (optimizer is None) == (gradients == "apply"):
        raise ValueError(f"optimizer must be given for gradients='apply' and only then; got gradients={gradients!r}")
    if optimizer is None:
        return None
    if isinstance(optimizer, Optimizer):
        return ByOptimizer(optimizer)
    if not callable(optimizer) or isinstance(optimizer, type):
        raise TypeError(
            "optimizer must be a torch.optim.Optimizer of the model's parameters, or a function of a parameter and its "
            f"gradient; got {optimizer!r}"
        )
    return by_function(optimizer)


@final
class CompiledStep:
    """A training step that keeps to a limit of memory; made by `compile`.

    Loss, gradients, buffers and random generators are eager execution's, to the bit, unless a codec was given. The
    limit holds for what torch holds for the step: `.grad` should be None at its start under `"keep"` (gradients that
    are there are counted, and leave less for the step).

    If a step fails or is interrupted, the executor's promise holds: parameters, buffers and random generators are as
    before, and so is `.grad` under `"keep"`; under `"static"` and `"apply"` what was added or applied before stays, and
    `consumed` names the parameters. The next call starts afresh.
    """

    def __init__(self, order: Order, fallback: bool) -> None:
        self._order, self._fallback = order, fallback
        self._plans: OrderedDict[Hashable, Plan | None] = OrderedDict()  # None: runs eagerly
        self._latest: Plan | None = None
        self._running = threading.Lock()
        self._closed = False

    def __enter__(self) -> "CompiledStep":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __call__(self, *batch: Any) -> Tensor:
        """Run a training step.

        Args:
            batch: Inputs and targets, or inputs alone if the model returns the loss.

        Returns:
            The loss, detached.

        Raises:
            TraceError: If the model cannot be traced for such inputs, and falling back was not asked for.
            MemoryLimitError: If no schedule keeps the limit for them.
            PageError: If a page could not be written or read.
            RuntimeError: If the step is running already, is closed, or gradients are disabled.
        """
        with self._exclusive():
            args = self._args(batch)
            key, plan = self._plan(args)
            if plan is None:
                return eager_step(self._order, args)
            try:
                return plan.executor.step(*args)
            except BaseException as error:
                self._plans[key] = self._latest = self._afresh(plan)
                if isinstance(error, PageError):
                    raise PageError(error.errno, f"{error.strerror or error}. {self._state(plan)}") from error
                raise

    def prepare(self, *batch: Any) -> None:
        """Trace, search and try out a schedule for such inputs, without a step."""
        with self._exclusive():
            self._plan(self._args(batch))

    @property
    def schedule(self) -> Schedule:
        """The schedule of the latest inputs.

        Raises:
            RuntimeError: If there is none yet.
        """
        return self._last().schedule

    @property
    def consumed(self) -> tuple[str, ...]:
        """Under `"static"` and `"apply"`: parameters whose gradient the latest step has used up."""
        return tuple(self._last().executor.consumed)

    def report(self) -> StepReport:
        """What the step takes for the latest inputs.

        Raises:
            RuntimeError: If there is no schedule yet.
        """
        return report_of(self._last())

    def close(self) -> None:
        """Give pages and schedules back; the step cannot be called any more."""
        self._closed = True
        for plan in self._plans.values():
            if plan is not None:
                plan.close()
        self._plans.clear()
        self._latest = None

    def _last(self) -> Plan:
        if self._latest is None:
            raise RuntimeError("there is no schedule yet: call the step, or give compile a sample")
        return self._latest

    def _exclusive(self) -> "_Exclusive":
        if self._closed:
            raise RuntimeError("this step is closed: compile another one")
        return _Exclusive(self._running)

    def _args(self, batch: tuple[Any, ...]) -> tuple[Any, ...]:
        wanted = 1 if self._order.loss_fn is None else 2
        if len(batch) != wanted:
            call = "step(inputs)" if wanted == 1 else "step(inputs, targets)"
            raise ValueError(f"call it as {call}, each a tensor, a tuple or a dict; got {len(batch)} arguments")
        if not torch.is_grad_enabled():
            raise RuntimeError("gradients are disabled here (no_grad, inference_mode): a training step needs them")
        return tuple(plain(part) for part in batch)

    def _plan(self, args: tuple[Any, ...]) -> tuple[Hashable, Plan | None]:
        parameters = list(self._order.model.parameters())
        there = any(p.grad is not None for p in parameters)
        if there and self._order.gradients == "apply":
            raise RuntimeError("gradients='apply' needs .grad to be None: set it so, as optimizer.zero_grad() does")
        key = signature(self._order.model, args), there and self._order.gradients == "keep"
        if key not in self._plans:
            self._plans[key] = self._prepared(args)
            if len(self._plans) > _KEPT:
                _, old = self._plans.popitem(last=False)
                if old is not None:
                    old.close()
        self._plans.move_to_end(key)
        plan = self._plans[key]
        self._latest = plan or self._latest
        return key, plan

    def _prepared(self, args: tuple[Any, ...]) -> Plan | None:
        try:
            refuse(self._order.model)
            return prepare(self._order, args)
        except TraceError as error:
            if not self._fallback:
                raise
            warnings.warn(f"the step runs eagerly, without a limit of memory: {error}", FallbackWarning, stacklevel=5)
            return None

    def _afresh(self, plan: Plan) -> Plan:
        """The plan with new stores: what the old ones still hold is nobody's."""
        plan.close()
        stores = make_stores(self._order, plan.schedule.problem.tiers, plan.executor.program)
        executor = Executor(plan.executor.program, plan.executor.events, stores=stores, apply=self._order.update)
        executor.consumed = plan.executor.consumed
        return replace(plan, stores=stores, executor=executor)

    def _state(self, plan: Plan) -> str:
        used = len(plan.executor.consumed)
        if not used:
            return "Parameters, buffers, gradients and random generators are as before the step"
        done = "updated" if self._order.gradients == "apply" else "had their gradients added"
        return f"Buffers and random generators are as before the step; {used} parameters were {done}, see `consumed`"


class _Exclusive:
    """One step at a time, and none within another."""

    def __init__(self, lock: threading.Lock) -> None:
        self.lock = lock

    def __enter__(self) -> None:
        if not self.lock.acquire(blocking=False):
            raise RuntimeError("the step is running already: call it from one place at a time")

    def __exit__(self, *error: object) -> None:
        self.lock.release()


__all__ = ["CompiledStep", "FallbackWarning", "MemoryLimitError", "StepReport", "compile"]

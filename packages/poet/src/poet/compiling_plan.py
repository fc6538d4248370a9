"""From a model and a batch to a schedule that keeps its limit: trace, solve, try it, and solve again if need be."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from common_core.memory import storage_bytes
from poet.codecs import Codec, CodecStore, approximated, codec_tier, compressible
from poet.compiling_memory import allocated_peak
from poet.compiling_updates import ByOptimizer, charged, stale
from poet.device import Device, Tier
from poet.events import Event, Kind, drop
from poet.executor import Executor, Update
from poet.graph import Graph
from poet.plan import Schedule
from poet.problem import Objective
from poet.profiling import profile_device
from poet.program import Gradients, Program
from poet.schedule import ScheduleError
from poet.search import OnProgress
from poet.solving import solve
from poet.stores import default_page_dir
from poet.stores_disk import DiskStore
from poet.stores_host import HostStore
from poet.trace_layout import flat
from poet.tracing import trace
from poet.units import parse_bytes, show_bytes

_TRIES = 4  # schedules that are tried before a limit is given up
Store = DiskStore | HostStore | CodecStore


class MemoryLimitError(ScheduleError):
    """A limit that no schedule keeps."""


@final
@dataclass(frozen=True)
class Order:
    """What the user wants: the arguments of `compile`, checked.

    Attributes:
        model: The model.
        loss_fn: The loss; None if the model returns it.
        ram: Bytes in all, or a percentage.
        deadline: As for `solve`.
        objective: As for `solve`.
        tiers: Names of the tiers that may be used; None: all.
        recompute: Whether operations may be executed again.
        page_dir: Folder of the pages on disk.
        gradients: As for `trace`.
        update: What applies gradients, under `"apply"`.
        device: Profile of the machine; None: it is measured.
        time_limit: Seconds for each search.
        gap: As for `solve`.
        margin: Bytes, or a percentage of `ram`, that are left free.
        codec: What keeps values compressed; None: nothing does.
        bits: Bits a number, for the codec.
        seed: Of the search, and of the codec's rounding.
        on_progress: As for `solve`.
    """

    model: nn.Module
    loss_fn: Callable[..., Tensor] | None
    ram: int | str
    deadline: float | str | None = None
    objective: str | Objective = "time"
    tiers: tuple[str, ...] | None = None
    recompute: bool = True
    page_dir: Path | None = None
    gradients: Gradients = "keep"
    update: Update | None = None
    device: Device | None = None
    time_limit: float = 30.0
    gap: float = 1e-3
    margin: int | str = 0
    codec: Codec | None = None
    bits: int = 4
    seed: int = 0
    on_progress: OnProgress | None = None


@final
@dataclass(frozen=True)
class Plan:
    """A schedule that was tried.

    Attributes:
        schedule: The schedule.
        executor: What runs it.
        stores: One for each tier.
        limit: Bytes that must not be exceeded, static bytes included.
        measured: Bytes that the trial took at most, static bytes included.
        plain: Bytes of the plain step, as planned: everything resident until its last use.
        tries: Schedules that were tried.
    """

    schedule: Schedule
    executor: Executor
    stores: tuple[Store, ...]
    limit: int
    measured: int
    plain: int
    tries: int

    def close(self) -> None:
        """Give the pages back."""
        for store in self.stores:
            store.close()


def prepare(order: Order, args: tuple[Any, ...]) -> Plan:
    """Trace a step for a batch, and find a schedule that keeps the limit when it is run.

    Parameters, buffers, gradients and random generators are as before afterwards.

    Raises:
        TraceError: If the model cannot be traced.
        MemoryLimitError: If no schedule keeps the limit.
    """
    with _generators(order.model):
        program = _traced(order, args)
        if order.gradients == "keep":
            program = _with_old_gradients(program)
        if isinstance(order.update, ByOptimizer):
            program = charged(program, order.update.appetite(order.model))
        machine = _machine(order, program)
        limit = limit_of(order.ram, program.graph)
        target = limit - parse_bytes(order.margin, whole=limit)
        return _tried(order, program, machine, limit, target, args)


def limit_of(ram: int | str, graph: Graph) -> int:
    """Bytes of a limit, static bytes included.

    Args:
        ram: Bytes in all, `"512MiB"`; or `"40%"`: everything that is always there or must be left at the end
            (parameters, buffers, inputs, gradients, optimizer state), and 40 % of what the plain step needs beyond it.
        graph: The training step.
    """
    if isinstance(ram, str) and ram.strip().endswith("%"):
        fixed = graph.static.total + sum(value.size for value in graph.values if value.keep)
        return fixed + parse_bytes(ram, whole=max(graph.static.total + graph.resident_peak - fixed, 0))
    return parse_bytes(ram)


def _tried(order: Order, program: Program, machine: Device, limit: int, target: int, args: tuple[Any, ...]) -> Plan:
    """Solve, run, and solve again for less while the run takes more than the limit."""
    plain = program.graph.static.total + program.graph.resident_peak
    allowed = compressible(program, order.codec) if order.codec is not None else frozenset()
    excess = measured = peak = 0
    for tries in range(1, _TRIES + 1):
        program, schedule = _valid(order, program, machine, target - excess, allowed)
        if schedule.events is None:
            raise _refusal(schedule, limit, excess + limit - target)
        peak = schedule.peak
        stores = make_stores(order, schedule.problem.tiers, program)
        try:
            events = ended(schedule.events)
            measured = _trial(program, events, stores, args)
        except BaseException:
            _closed(stores)
            raise
        if measured <= limit:
            executor = Executor(program, events, stores=stores, apply=order.update)
            return Plan(schedule, executor, stores, limit, measured, plain, tries)
        _closed(stores)
        excess = max(excess + 1, measured - peak)
    enough = limit + measured - peak
    raise MemoryLimitError(
        f"a step took {show_bytes(measured)} where {show_bytes(peak)} were planned, with a limit of "
        f"{show_bytes(limit)}, and {_TRIES} schedules made for less did not help: give about {show_bytes(enough)} "
        f"({enough} bytes)"
    )


def _valid(
    order: Order, program: Program, machine: Device, target: int, allowed: frozenset[int]
) -> tuple[Program, Schedule]:
    """A schedule for a limit that spoils neither the loss nor an update; found by taking away what did."""
    while True:
        graph = _marked(program.graph, allowed)
        schedule = solve(
            graph, machine, max(target, 0), order.deadline, objective=order.objective, recompute=order.recompute,
            time_limit=order.time_limit, gap=order.gap, seed=order.seed, on_progress=order.on_progress,
            keep_interrupted=False,
        )  # fmt: skip
        if schedule.events is None:
            return program, schedule
        inexact = frozenset(k for k, tier in enumerate(machine.tiers) if not tier.exact)
        spoilt = approximated(program, schedule.events, inexact)
        twice = stale(program, schedule.events) if program.mode == "apply" else frozenset()
        if not spoilt and not twice:
            return program, schedule
        allowed -= spoilt
        ops = (replace(op, recomputable=op.recomputable and i not in twice) for i, op in enumerate(graph.ops))
        program = program.with_graph(replace(program.graph, ops=tuple(ops)))


def ended(events: Sequence[Event]) -> tuple[Event, ...]:
    """The events, with copies that are left at the end dropped: that waits for a value still on its way into RAM.

    Example:
        >>> from poet.events import compute, free, page_in, page_out
        >>> events = [compute(0), page_out(0), free(0), page_in(0)]
        >>> [str(event.kind) for event in ended(events)][4:]
        ['drop']
    """
    left: dict[tuple[int, int], None] = {}
    for event in events:
        if event.kind is Kind.PAGE_OUT:
            left[event.target, event.tier] = None
        elif event.kind is Kind.DROP:
            del left[event.target, event.tier]
    return (*events, *(drop(v, tier) for v, tier in left))


def _marked(graph: Graph, allowed: frozenset[int]) -> Graph:
    """The graph, with the values marked that may be kept compressed."""
    values = tuple(replace(value, compressible=v in allowed) for v, value in enumerate(graph.values))
    return replace(graph, values=values)


def _refusal(schedule: Schedule, limit: int, spare: int) -> MemoryLimitError:
    why = schedule.explanation.sentence if schedule.explanation else schedule.status.value
    enough = schedule.explanation.smallest_ram if schedule.explanation else None
    text = f"a step cannot keep to {show_bytes(limit)}: {why}"
    if spare:
        text += f" ({show_bytes(spare)} are left free, for the margin and for what measuring showed)"
    if enough is not None:
        text += f"; ram={enough + spare} is known to be enough"
    return MemoryLimitError(text)


def _trial(program: Program, events: Sequence[Event], stores: Sequence[Store], args: tuple[Any, ...]) -> int:
    """Run a schedule without consequences: the bytes that it takes at most, static bytes included."""
    idle: Update | None = (lambda _name, _parameter, _gradient: None) if program.mode == "apply" else None
    executor = Executor(program, events, stores=stores, apply=idle)
    kinds = [layout.device for layout in program.bases]
    device = next((d for d in kinds if d.type == "cuda"), torch.device("cpu"))
    static = program.graph.static
    constants = [external.tensor for external in program.externals if external.tensor is not None]
    there = storage_bytes((program.model, args, constants)) + static.optimizer + static.gradients
    with _untouched(program, args):
        return there + allocated_peak(partial(executor.step, *args), device)


@contextmanager
def _untouched(program: Program, args: tuple[Any, ...]) -> Iterator[None]:
    """Gradients and what the step writes are as before afterwards; inside, gradients are there if they always are."""
    externals = program.bind(*args)
    written = [flat(externals[m.external]) for m in program.mutations]
    before = [tensor.clone() for tensor in written]
    gradients = [(p, p.grad) for p in program.model.parameters()]
    for parameter, _ in gradients:
        always = program.mode == "static" and parameter.requires_grad
        parameter.grad = torch.zeros_like(parameter) if always else None
    try:
        yield
    finally:
        for tensor, content in zip(written, before, strict=True):
            tensor.copy_(content)
        for parameter, gradient in gradients:
            parameter.grad = gradient


@contextmanager
def _generators(model: nn.Module) -> Iterator[None]:
    """The default random generators are as before afterwards."""
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        yield


def _traced(order: Order, args: tuple[Any, ...]) -> Program:
    sample = args if order.loss_fn is not None else args[0]
    made = partial(trace, order.model, order.loss_fn, sample, gradients=order.gradients)
    with suppress(torch.OutOfMemoryError):
        return made()
    torch.cuda.empty_cache()
    return made(measure=False)  # measuring runs the plain step: where it does not fit, estimates must do


def _with_old_gradients(program: Program) -> Program:
    """The program, with gradients from before the step counted as always there."""
    gradients = [p.grad for p in program.model.parameters() if p.grad is not None]
    static = replace(program.graph.static, gradients=sum(g.untyped_storage().nbytes() for g in gradients))
    return program.with_graph(program.graph.with_static(static))


def _machine(order: Order, program: Program) -> Device:
    """The profile, with the tiers that may be used."""
    cuda = any(layout.device.type == "cuda" for layout in program.bases)
    machine = order.device
    if machine is None:
        machine = _profile(str(order.page_dir or default_page_dir()), "cuda" if cuda else "cpu")
    tiers = list(machine.tiers)
    if order.codec is not None:
        tiers.append(_codec_tier(order, program, order.codec))
    machine = machine.with_tiers(*tiers)
    if order.tiers is None:
        return machine
    return machine.with_tiers(*(machine.tier(name) for name in dict.fromkeys(order.tiers) if name != "ram"))


def _codec_tier(order: Order, program: Program, codec: Codec) -> Tier:
    bases = [program.bases[v] for v in compressible(program, codec)]
    device = bases[0].device if bases else "cpu"
    return codec_tier(codec, order.bits, {(base.numel, base.dtype) for base in bases}, device=device)


@lru_cache(maxsize=8)
def _profile(page_dir: str, kind: Literal["cpu", "cuda"]) -> Device:
    return profile_device(page_dir, 1.0, device=kind)


def make_stores(order: Order, tiers: Sequence[Tier], program: Program) -> tuple[Store, ...]:
    """A store for each tier: compressed copies, the host's memory for "host", files for all others."""
    made: list[Store] = []
    for tier in tiers:
        if tier.in_ram:
            if order.codec is None:
                raise ValueError(f"tier {tier.name!r} lies in RAM: give codec= to compress into it")
            made.append(CodecStore(order.codec, order.bits, order.seed))
        elif tier.name == "host":
            made.append(HostStore(next((b.device for b in program.bases if b.device.type == "cuda"), "cpu")))
        else:
            made.append(DiskStore(order.page_dir))
    return tuple(made)


def _closed(stores: Sequence[Store]) -> None:
    for store in stores:
        store.close()


__all__ = ["MemoryLimitError", "Order", "Plan", "ended", "limit_of", "make_stores", "prepare"]

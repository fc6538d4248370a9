"""Executing a schedule: the events, one by one, on the operators of a traced step.

Only what the events leave in RAM is referenced, so the peak is the one that the schedule plans. Every operation is a
pure function of the values it reads: parameters' gradients, buffers and changed constants are written when the step has
ended, and random numbers drawn again are those of the first time. Loss, gradients, buffers and the random generators
are therefore equal to eager execution's, to the bit.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, final

import torch
from torch import Tensor, nn

from poet.events import Event, Kind
from poet.graph import Graph
from poet.program import Memory, Program
from poet.schedule import ScheduleError
from poet.trace_layout import flat
from poet.trace_store import Handle, PageStore

Update = Callable[[str, nn.Parameter, Tensor], None]


@final
class Executor:
    """Runs a schedule of a program, step after step.

    If a step fails, parameters, buffers and random generators are as before it, and so is `.grad` under
    `gradients="keep"`. Under `"static"` and `"apply"` gradients are used up as they are produced: what was added or
    applied before the failure stays, and `consumed` names the parameters.

    Attributes:
        program: The traced step.
        events: The schedule.
        consumed: Under `"static"` and `"apply"`: names of the parameters whose gradient the present or last step has
            used up.

    Example:
        >>> import torch
        >>> from poet.events import compute
        >>> from poet.tracing import trace
        >>> model = torch.nn.Linear(3, 1)
        >>> sample = torch.ones(2, 3), torch.zeros(2, 1)
        >>> program = trace(model, torch.nn.functional.mse_loss, sample, measure=False)
        >>> step = Executor(program, [compute(i) for i in range(len(program.graph.ops))])
        >>> loss = step.step(*sample)
        >>> bool(loss == torch.nn.functional.mse_loss(model(sample[0]), sample[1])), model.weight.grad.shape
        (True, torch.Size([1, 3]))
    """

    def __init__(
        self,
        program: Program,
        events: Sequence[Event],
        *,
        stores: Sequence[PageStore] = (),
        apply: Update | None = None,
    ) -> None:
        """Prepare a schedule.

        Args:
            program: The traced step.
            events: The schedule.
            stores: One for each tier.
            apply: Under `gradients="apply"`: takes the name, the parameter and its gradient, and updates the
                parameter.

        Raises:
            ScheduleError: If an event cannot happen, or a parameter would be read after its update.
            ValueError: If a store or the update is missing.
        """
        if (apply is None) == (program.mode == "apply"):
            raise ValueError(
                f"apply must be given for gradients='apply' and only then; the program's: {program.mode!r}"
            )
        self.program = program
        self.events = tuple(events)
        self.consumed: list[str] = []
        self._stores = tuple(stores)
        self._apply = apply
        repeated = _check(program.graph, self.events, len(self._stores))
        _check_updates(program, self.events)
        self._redrawn = frozenset(i for i in repeated if program.codes[i].random)
        self._consumers = _consumers(program)
        self._devices = tuple(dict.fromkeys(device for code in program.codes for device in code.random))

    def step(self, *sample: Any) -> Tensor:
        """Run a training step: gradients are added to `.grad` as `loss.backward()` does.

        Args:
            sample: Inputs and targets, as they were given to `trace`; inputs alone if the model returns the loss.

        Returns:
            The loss, detached.

        Raises:
            SignatureError: If the inputs differ from those traced.
        """
        program = self.program
        self.consumed = []
        externals = program.bind(*sample)
        before = [(device, _generator(device).get_state()) for device in self._devices]
        run = _Step(self, externals)
        try:
            with torch.no_grad(), _without_autocast(program):
                run.events()
                loss = _detached(program.loss.read(run.memory, externals))
                self._commit(run.memory, externals)
        except BaseException:
            for device, state in before:
                _generator(device).set_state(state)
            raise
        finally:
            run.close()
        return loss

    def _commit(self, memory: Memory, externals: Sequence[Tensor]) -> None:
        """Write buffers, and hand over the gradients that were kept."""
        program = self.program
        for mutation in program.mutations:
            old, new = externals[mutation.external], mutation.output.read(memory, externals)
            alike = not mutation.whole or program.externals[mutation.external].layout == mutation.output.layout
            (old if alike else flat(old)).copy_(new)
        if program.mode != "keep":
            return
        for gradient in program.gradients:
            if gradient.output is not None:
                accumulate(program.parameter(gradient.name), gradient.output.read(memory, externals))


class _Step:
    """One run of the events."""

    def __init__(self, executor: Executor, externals: list[Tensor]) -> None:
        self.executor, self.externals = executor, externals
        self.program = executor.program
        self.memory: Memory = {}
        self.copies: dict[tuple[int, int], Handle] = {}
        self.moving: dict[int, list[tuple[PageStore, Handle]]] = {}  # value -> transfers that touch its RAM copy
        self.arriving: set[int] = set()
        self.done: set[int] = set()
        self.states: dict[int, list[tuple[torch.device, Tensor]]] = {}

    def events(self) -> None:
        """Execute the schedule."""
        for event in self.executor.events:
            kind = event.kind
            if kind is Kind.COMPUTE:
                self._compute(event.target)
            elif kind is Kind.FREE:
                self._settle(event.target)
                del self.memory[event.target]
            elif kind is Kind.PAGE_OUT:
                self._page_out(event.target, event.tier)
            elif kind is Kind.PAGE_IN:
                self._page_in(event.target, event.tier)
            else:
                self._drop(event.target, event.tier)
        for v in list(self.moving):  # kept values may still be on their way
            self._settle(v)

    def close(self) -> None:
        """Give everything back that is still held, whatever goes wrong with a part of it."""
        with ExitStack() as stack:
            stack.callback(self.memory.clear)
            for v, tier in list(self.copies):
                stack.callback(self._drop, v, tier)
            for v in list(self.moving):
                stack.callback(self._settle, v)

    def _compute(self, i: int) -> None:
        if self.arriving:
            for v in self.program.graph.ops[i].inputs:
                if v in self.arriving:
                    self._settle(v)
        if self.moving:
            for v in self.program.graph.ops[i].outputs:
                self._settle(v)
        if i in self.done:
            self._again(i)
            return
        self.done.add(i)
        if i in self.executor._redrawn:
            self.states[i] = [(d, _generator(d).get_state()) for d in self.program.codes[i].random]
        self.program.run_op(i, self.memory, self.externals)
        for name in self.executor._consumers.get(i, ()):
            self._consume(name)

    def _again(self, i: int) -> None:
        """Execute an operation again: random numbers are those of the first time, and the generators do not move."""
        states = self.states.get(i, ())
        now = [(device, _generator(device).get_state()) for device, _ in states]
        try:
            for device, state in states:
                _generator(device).set_state(state)
            self.program.run_op(i, self.memory, self.externals)
        finally:
            for device, state in now:
                _generator(device).set_state(state)

    def _consume(self, index: int) -> None:
        gradient = self.program.gradients[index]
        parameter = self.program.parameter(gradient.name)
        if gradient.output is None:
            return
        value = gradient.output.read(self.memory, self.externals)
        self.executor.consumed.append(gradient.name)
        if self.executor._apply is not None:
            self.executor._apply(gradient.name, parameter, value)
        elif parameter.grad is None:  # the graph counts it as always there
            parameter.grad = torch.empty_like(value).copy_(value)
        else:
            accumulate(parameter, value)

    def _page_out(self, v: int, tier: int) -> None:
        if v in self.arriving:
            self._settle(v)
        if (v, tier) in self.copies:
            self._drop(v, tier)
        store = self.executor._stores[tier]
        handle = self.copies[v, tier] = store.write(v, self.memory[v])
        self.moving.setdefault(v, []).append((store, handle))

    def _page_in(self, v: int, tier: int) -> None:
        store, handle = self.executor._stores[tier], self.copies[v, tier]
        self.memory[v] = store.read(handle)
        self.moving.setdefault(v, []).append((store, handle))
        self.arriving.add(v)

    def _drop(self, v: int, tier: int) -> None:
        self._settle(v)
        self.executor._stores[tier].drop(self.copies.pop((v, tier)))

    def _settle(self, v: int) -> None:
        """Wait for the transfers that touch a value's RAM copy."""
        self.arriving.discard(v)
        with ExitStack() as stack:
            for store, handle in reversed(self.moving.pop(v, [])):
                stack.callback(store.wait, handle)


def accumulate(parameter: nn.Parameter, gradient: Tensor) -> None:
    """Leave a gradient in `.grad` as autograd does: set it if there is none, else add to it."""
    if parameter.grad is None:
        parameter.grad = _detached(gradient)
    else:
        parameter.grad.add_(gradient)


def _detached(tensor: Tensor) -> Tensor:
    return tensor.detach()


def _consumers(program: Program) -> dict[int, list[int]]:
    """The gradients that are used up after the first execution of each operation."""
    consumers: dict[int, list[int]] = {}
    for index, gradient in enumerate(program.gradients):
        if gradient.consumer is not None:
            consumers.setdefault(gradient.consumer, []).append(index)
    return consumers


def _check(graph: Graph, events: Sequence[Event], tiers: int) -> set[int]:
    """Whether the events can happen; returns the operations that are executed more than once."""
    resident: set[int] = set()
    copies: set[tuple[int, int]] = set()
    done: set[int] = set()
    again: set[int] = set()
    for k, event in enumerate(events):
        v, tier = event.target, event.tier
        needs: Sequence[int] = ()
        if event.kind is Kind.COMPUTE:
            needs = graph.ops[v].inputs
        elif event.kind in (Kind.PAGE_OUT, Kind.FREE):
            needs = (v,)
        elif (v, tier) not in copies or (event.kind is Kind.PAGE_IN and v in resident):
            raise ScheduleError(f"event {k} ({event.kind} of {graph.values[v].name!r}) cannot happen")
        if not resident.issuperset(needs):
            missing = next(n for n in needs if n not in resident)
            raise ScheduleError(f"event {k} ({event.kind}) needs {graph.values[missing].name!r}, which is not in RAM")
        if event.kind not in (Kind.COMPUTE, Kind.FREE) and not 0 <= tier < tiers:
            raise ValueError(f"the schedule uses tier {tier}, and {tiers} stores are given: give one for each tier")
        if event.kind is Kind.COMPUTE:
            (again if v in done else done).add(v)
            resident.update(graph.ops[v].outputs)
        elif event.kind is Kind.PAGE_IN:
            resident.add(v)
        elif event.kind is Kind.FREE:
            resident.remove(v)
        else:
            (copies.add if event.kind is Kind.PAGE_OUT else copies.discard)((v, tier))
    _check_end(graph, done, again, resident)
    return again


def _check_end(graph: Graph, done: set[int], again: set[int], resident: set[int]) -> None:
    for i, op in enumerate(graph.ops):
        if i not in done:
            raise ScheduleError(f"operation {op.name!r} is never executed")
        if i in again and not op.recomputable:
            raise ScheduleError(f"operation {op.name!r} is executed again and must not be")
    for v, value in enumerate(graph.values):
        if value.keep and v not in resident:
            raise ScheduleError(f"value {value.name!r} must be in RAM at the end and is not")


def _check_updates(program: Program, events: Sequence[Event]) -> None:
    """Under `"apply"`: no operation may read a parameter that has been updated."""
    if program.mode != "apply":
        return
    place = {external.name: e for e, external in enumerate(program.externals) if external.kind == "parameter"}
    updates = {i: [place[program.gradients[g].name] for g in gs] for i, gs in _consumers(program).items()}
    updated: set[int] = set()
    seen: set[int] = set()
    for event in events:
        if event.kind is not Kind.COMPUTE:
            continue
        stale = [e for _, e in program.codes[event.target].externals if e in updated]
        if stale:
            raise ScheduleError(
                f"operation {program.graph.ops[event.target].name!r} is executed again after the update of "
                f"{program.externals[stale[0]].name!r}, which it reads: use gradients='static' or 'keep'"
            )
        if event.target not in seen:
            updated.update(updates.get(event.target, ()))
            seen.add(event.target)


def _generator(device: torch.device) -> torch.Generator:
    if device.type == "cpu":
        return torch.default_generator
    index = device.index if device.index is not None else torch.cuda.current_device()
    return torch.cuda.default_generators[index]


def _without_autocast(program: Program) -> ExitStack:
    """Casts were recorded; a context around the step must not add any."""
    stack = ExitStack()
    for kind in filter(torch.is_autocast_enabled, {layout.device.type for layout in program.bases}):
        stack.enter_context(torch.autocast(kind, enabled=False))
    return stack

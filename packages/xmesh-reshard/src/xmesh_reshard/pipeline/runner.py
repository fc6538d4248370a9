"""Run a schedule of plain callables: the loop of one device, and all devices of a pipeline as threads of a process."""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, TypeAlias, final

from xmesh_reshard.pipeline.channels import Channel, LocalChannel, StoppedError
from xmesh_reshard.pipeline.costs import Transfers, costs
from xmesh_reshard.pipeline.instructions import Instruction, Message, Op, Wiring, wiring
from xmesh_reshard.pipeline.schedules import Schedule
from xmesh_reshard.pipeline.timeline import Span, Timeline, Transfer, shifted

Forward: TypeAlias = Callable[[int, int, Any], Any]
"""(stage, microbatch, input) -> (output, what the backward pass needs)"""
Backward: TypeAlias = Callable[[int, int, Any, Any], Any]
"""(stage, microbatch, what was kept, gradient of the output) -> gradient of the input; with what W needs if split"""
Weight: TypeAlias = Callable[[int, int, Any], Any]
"""(stage, microbatch, what B kept for it) -> ignored"""


@final
@dataclass
class DeviceRun:
    """What one device did; filled while it runs.

    Attributes:
        spans: When it ran each instruction, by the clock.
        outputs: Outputs of the last stage by microbatch, where this device holds it.
        input_gradients: Gradients of the first stage's inputs by microbatch, where this device holds it.
        sent: When it handed over each message.
        received: When it had each message.
    """

    spans: list[Span] = field(default_factory=list)
    outputs: dict[int, Any] = field(default_factory=dict)
    input_gradients: dict[int, Any] = field(default_factory=dict)
    sent: dict[Message, float] = field(default_factory=dict)
    received: dict[Message, float] = field(default_factory=dict)


@final
@dataclass(frozen=True)
class Run:
    """What a pipeline computed and when.

    Attributes:
        outputs: Of the last stage, by microbatch.
        input_gradients: Of the first stage, by microbatch.
        timeline: Measured; it begins with the first instruction.
    """

    outputs: tuple[Any, ...]
    input_gradients: tuple[Any, ...]
    timeline: Timeline


def run_device(
    schedule: Schedule,
    device: int,
    channel: Channel,
    forward: Forward,
    backward: Backward,
    weight: Weight | None = None,
    *,
    inputs: Sequence[Any] | None = None,
    output_gradient: Callable[[int, Any], Any] | None = None,
    skips: Iterable[tuple[int, int]] = (),
    clock: Callable[[], float] = perf_counter,
) -> DeviceRun:
    """Run one device's instructions in order; the loop that every transport shares.

    What a forward pass keeps is released when B has ended (what B keeps for W, when W has): references are dropped as
    `Schedule.peak_inflight` counts them.

    Args:
        schedule: The schedule.
        device: Which device this is.
        channel: Carries the messages.
        forward: As `run_schedule` takes it.
        backward: The same.
        weight: The same.
        inputs: The same; only the device of the first stage needs them.
        output_gradient: The same; only the device of the last stage needs it.
        skips: The same.
        clock: Seconds of a clock that only goes forward.

    Returns:
        What the device computed and when. Where callables only start work on an accelerator, the times are those of
        starting it, unless they wait for it themselves.

    Raises:
        ValueError: If the schedule has W and `weight` is missing, or the number of inputs is not that of microbatches.
    """
    _check(schedule, weight, inputs)
    loop = _Loop(schedule, channel, forward, backward, weight, inputs, output_gradient, skips, clock)
    for step in schedule.devices[device]:
        try:
            loop.run(step)
        except StoppedError:
            raise
        except BaseException as error:
            error.add_note(f"in {step} on device {device}")
            raise
    return loop.done


def run_schedule(
    schedule: Schedule,
    forward: Forward,
    backward: Backward,
    weight: Weight | None = None,
    *,
    inputs: Sequence[Any] | None = None,
    output_gradient: Callable[[int, Any], Any] | None = None,
    skips: Iterable[tuple[int, int]] = (),
    delay: Transfers = 0.0,
    overlap: bool = True,
) -> Run:
    """Run a schedule of plain callables, one thread a device, with asynchronous sends.

    Every stage runs its passes in the order of the schedule, in one thread, so sums over microbatches that the
    callables make (gradients of weights) are made in the same order in every run.

    A stage with skip connections gets mappings from stage to payload where it has several inputs (or gradients), and
    gives mappings where it has several outputs (or gradients of inputs).

    Args:
        schedule: The schedule.
        forward: (stage, microbatch, x) -> (y, saved). y goes to the next stage; `saved` is kept for the backward pass.
            Outputs of the last stage are kept to the end: they should not hold on to what `saved` holds.
        backward: (stage, microbatch, saved, dy) -> dx; where the schedule splits backward passes, -> (dx, pending).
        weight: (stage, microbatch, pending), where the schedule splits: the gradients of the stage's weights.
        inputs: x of the first stage for each microbatch; None for each if not given.
        output_gradient: (microbatch, y of the last stage) -> dy of the last stage; None if not given: then the last
            stage's callables know the loss.
        skips: Pairs (i, j) of stages, i < j: y of stage i also goes to stage j, and a gradient back.
        delay: Seconds added to each transfer between devices, as `Schedule.simulate` takes `comm`: links can be made
            slow for experiments.
        overlap: Whether those run beside the computation; else the sender stands still for them.

    Returns:
        Outputs, gradients of inputs and the measured timeline.

    Raises:
        ValueError: If arguments do not fit the schedule.
        BaseException: The first exception of a callable, after every other device has stopped; so does Ctrl-C. A
            callable that is running is waited for.

    Example:
        >>> from xmesh_reshard.pipeline.schedules import schedule
        >>> scales = [2.0, 3.0]
        >>> result = run_schedule(
        ...     schedule("eager-1f1b", 2, 3),
        ...     forward=lambda stage, k, x: (scales[stage] * x, None),
        ...     backward=lambda stage, k, saved, dy: scales[stage] * dy,
        ...     inputs=[1.0, 10.0, 100.0],
        ...     output_gradient=lambda k, y: 1.0,
        ... )
        >>> result.outputs, result.input_gradients
        ((6.0, 60.0, 600.0), (6.0, 6.0, 6.0))
    """
    _check(schedule, weight, inputs)
    pairs = tuple(skips)
    wiring(schedule.stages, pairs)
    table = costs(schedule.stages, 0.0, 0.0, delay)
    if not set(table.skips) <= set(pairs):
        raise ValueError(f"delay names the pairs {sorted(set(table.skips) - set(pairs))}, which are not in skips")
    channel = LocalChannel(schedule.placement, table, overlap=overlap)

    def work(device: int) -> DeviceRun:
        return run_device(
            schedule,
            device,
            channel,
            forward,
            backward,
            weight,
            inputs=inputs,
            output_gradient=output_gradient,
            skips=pairs,
        )

    runs = _threads(work, len(schedule.devices), channel.stop)
    return assemble(schedule, runs, channel.transfers)


def assemble(schedule: Schedule, runs: Sequence[DeviceRun], transfers: Sequence[Transfer] | None = None) -> Run:
    """One result from those of all devices, wherever they ran.

    Args:
        schedule: The schedule.
        runs: Of each device, in order; their clocks must agree.
        transfers: When each message was under way, if the channel knows; else from when it was handed over to when its
            receiver had it.
    """
    if transfers is None:
        received = {message: time for run in runs for message, time in run.received.items()}
        place = schedule.placement
        transfers = [
            Transfer(message, place[message.source], place[message.target], time, time, received[message])
            for run in runs
            for message, time in run.sent.items()
            if place[message.source] != place[message.target]
        ]
    ordered = tuple(sorted(transfers, key=lambda t: (t.issued, t.start, t.message)))
    timeline = shifted(Timeline(tuple(tuple(run.spans) for run in runs), ordered))
    outputs = {k: y for run in runs for k, y in run.outputs.items()}
    gradients = {k: dx for run in runs for k, dx in run.input_gradients.items()}
    order = range(schedule.microbatches)
    return Run(tuple(outputs[k] for k in order), tuple(gradients[k] for k in order), timeline)


def _check(schedule: Schedule, weight: Weight | None, inputs: Sequence[Any] | None) -> None:
    if schedule.split_backward and weight is None:
        raise ValueError("the schedule splits backward passes: give the callable weight as well")
    if inputs is not None and len(inputs) != schedule.microbatches:
        raise ValueError(f"inputs must be one for each of {schedule.microbatches} microbatches, got {len(inputs)}")


@final
class _Loop:
    def __init__(
        self,
        schedule: Schedule,
        channel: Channel,
        forward: Forward,
        backward: Backward,
        weight: Weight | None,
        inputs: Sequence[Any] | None,
        output_gradient: Callable[[int, Any], Any] | None,
        skips: Iterable[tuple[int, int]],
        clock: Callable[[], float],
    ) -> None:
        self.channel, self.forward, self.backward, self.weight = channel, forward, backward, weight
        self.inputs, self.output_gradient, self.clock = inputs, output_gradient, clock
        self.split, self.last = schedule.split_backward, schedule.stages - 1
        self.wires: Wiring = wiring(schedule.stages, skips)
        self.saved: dict[tuple[int, int], Any] = {}
        self.pending: dict[tuple[int, int], Any] = {}
        self.done = DeviceRun()

    def run(self, step: Instruction) -> None:
        received = {message.source: self._receive(message) for message in self.wires.receives(step)}
        given = received if len(received) > 1 else next(iter(received.values()), None)
        start = self.clock()
        result = {Op.F: self._forward, Op.B: self._backward, Op.W: self._weight}[step.op](step, given)
        self.done.spans.append(Span(step, start, self.clock()))
        self._send(step, result)

    def _forward(self, step: Instruction, x: Any) -> Any:
        if step.stage == 0 and self.inputs is not None:
            x = self.inputs[step.microbatch]
        y, self.saved[step.stage, step.microbatch] = self.forward(step.stage, step.microbatch, x)
        if step.stage == self.last:
            self.done.outputs[step.microbatch] = y
        return y

    def _backward(self, step: Instruction, dy: Any) -> Any:
        stage, k = step.stage, step.microbatch
        if stage == self.last and self.output_gradient is not None:
            dy = self.output_gradient(k, self.done.outputs[k])
        dx = self.backward(stage, k, self.saved.pop((stage, k)), dy)
        if self.split:
            dx, self.pending[stage, k] = dx
        if stage == 0:
            self.done.input_gradients[k] = dx
        return dx

    def _weight(self, step: Instruction, _: Any) -> None:
        if self.weight is not None:
            self.weight(step.stage, step.microbatch, self.pending.pop((step.stage, step.microbatch)))

    def _receive(self, message: Message) -> Any:
        payload = self.channel.receive(message)
        self.done.received[message] = self.clock()
        return payload

    def _send(self, step: Instruction, result: Any) -> None:
        messages = self.wires.sends(step)
        targets = sorted(message.target for message in messages)
        if len(messages) > 1 and not (isinstance(result, Mapping) and sorted(result) == targets):
            given = f"keys {sorted(result)}" if isinstance(result, Mapping) else type(result).__name__
            raise TypeError(f"{step} sends to stages {targets}: give a mapping with these keys, got {given}")
        for message in messages:
            self.done.sent[message] = self.clock()
            self.channel.send(message, result[message.target] if len(messages) > 1 else result)


def _threads(work: Callable[[int], DeviceRun], count: int, stop: Callable[[], None]) -> list[DeviceRun]:
    """Run `work` for every device in a thread; stop all at the first failure, and leave none behind."""
    runs: list[DeviceRun | None] = [None] * count
    errors: list[BaseException] = []
    left, over, lock = [count], threading.Event(), threading.Lock()

    def target(device: int) -> None:
        try:
            runs[device] = work(device)
        except StoppedError:
            pass  # the reason is the other device's
        except BaseException as error:
            with lock:
                errors.append(error)
            stop()
        with lock:
            left[0] -= 1
            if not left[0]:
                over.set()

    threads = [threading.Thread(target=target, args=(d,), name=f"device {d}", daemon=True) for d in range(count)]
    try:
        for thread in threads:
            thread.start()
        while not over.wait(0.1):  # with a limit, so that Ctrl-C is seen whichever thread the signal reaches
            pass
    finally:
        stop()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
    if errors:
        raise errors[0]
    return [run for run in runs if run is not None]

"""What a schedule takes: an event model of devices that run lists in order and of links between them.

A device runs its list in order; an instruction starts when the device is free and every message that it needs has
arrived. Messages between stages on one device take no time. Between devices there are three ways:

- overlapped: a message is issued at the end of its instruction and travels beside the computation, over the link from
  its device to the other one (each direction is a link of its own; or one port a device, for all that it sends), one
  message at a time, in the order of issue;
- blocking: the device sends its messages one after the other and stands still; the receiver need not be ready;
- rendezvous: as blocking, and a transfer starts only when the receiver, which receives right before the instruction
  that needs the message, is ready too. Orders that the others run can deadlock here.

Every start is the latest of some ends, so the result does not depend on how simultaneous events are ordered.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import inf
from typing import final

from xmesh_reshard.pipeline.costs import Costs
from xmesh_reshard.pipeline.instructions import Instruction, Message, wiring
from xmesh_reshard.pipeline.timeline import Span, Status, Timeline, Transfer

_FINISH, _ARRIVE = 0, 1


def simulate(
    orders: Sequence[Sequence[Instruction]],
    placement: Sequence[int],
    costs: Costs,
    *,
    overlap: bool = True,
    rendezvous: bool = False,
    shared_port: bool = False,
) -> Timeline:
    """Run the lists.

    Args:
        orders: The instructions of each device, in order.
        placement: The device of each stage.
        costs: Seconds of passes and transfers.
        overlap: Whether messages travel beside the computation.
        rendezvous: Without overlap: whether a transfer also waits for its receiver.
        shared_port: With overlap: whether everything that a device sends shares one outgoing port.

    Returns:
        The timeline, without a lower bound.
    """
    program = _compile(orders, placement, costs)
    engine = _Engine(program, overlap, rendezvous, shared_port)
    engine.run()
    spans = tuple(
        tuple(Span(program.steps[i], engine.start[i], engine.end[i]) for i in order[: engine.at[d]])
        for d, order in enumerate(program.orders)
    )
    transfers = [
        Transfer(message, program.source[j], program.target[j], engine.end[program.sender[j]], *when, not overlap)
        for j, (message, when) in enumerate(zip(program.messages, engine.carried, strict=True))
        if when is not None
    ]
    transfers.sort(key=lambda t: (t.issued, t.start, t.message))
    status = Status.COMPLETE if engine.done() else Status.DEADLOCK
    return Timeline(spans, tuple(transfers), status, engine.reason())


def makespan(
    orders: Sequence[Sequence[Instruction]],
    placement: Sequence[int],
    costs: Costs,
    *,
    overlap: bool = True,
    rendezvous: bool = False,
    shared_port: bool = False,
) -> float:
    """The makespan that `simulate` finds, without the rest; infinite after a deadlock."""
    engine = _Engine(_compile(orders, placement, costs), overlap, rendezvous, shared_port)
    engine.run()
    return max(engine.end, default=0.0) if engine.done() else inf


@final
@dataclass
class _Program:
    """Orders and costs by number: instructions i and messages j between devices."""

    orders: list[list[int]] = field(default_factory=list)
    steps: list[Instruction] = field(default_factory=list)
    device: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    needs: list[list[int]] = field(default_factory=list)  # messages; those within a device take care of themselves
    gives: list[list[int]] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    sender: list[int] = field(default_factory=list)
    source: list[int] = field(default_factory=list)
    target: list[int] = field(default_factory=list)
    transfer: list[float] = field(default_factory=list)


def _compile(orders: Sequence[Sequence[Instruction]], placement: Sequence[int], costs: Costs) -> _Program:
    wires, program, number = wiring(len(placement), costs.skips), _Program(), dict[Message, int]()
    for d, order in enumerate(orders):
        first = len(program.steps)
        program.orders.append(list(range(first, first + len(order))))
        for i, step in enumerate(order, first):
            program.steps.append(step)
            program.device.append(d)
            program.seconds.append(costs.compute(step))
            away = [m for m in wires.sends(step) if placement[m.target] != d]
            program.gives.append(list(range(len(program.messages), len(program.messages) + len(away))))
            for message in away:
                number[message] = len(program.messages)
                program.messages.append(message)
                program.sender.append(i)
                program.source.append(d)
                program.target.append(placement[message.target])
                program.transfer.append(costs.transfer(message))
    for step, d in zip(program.steps, program.device, strict=True):
        program.needs.append([number[m] for m in wires.receives(step) if placement[m.source] != d])
    return program


@final
class _Engine:
    def __init__(self, program: _Program, overlap: bool, rendezvous: bool, shared_port: bool) -> None:
        self.program, self.overlap, self.rendezvous, self.shared_port = program, overlap, rendezvous, shared_port
        devices = len(program.orders)
        self.events: list[tuple[float, int, int]] = []  # time, kind, instruction or message
        self.at = [0] * devices
        self.busy = [False] * devices
        self.start = [0.0] * len(program.steps)
        self.end = [0.0] * len(program.steps)
        self.arrived = [False] * len(program.messages)
        self.carried: list[tuple[float, float] | None] = [None] * len(program.messages)
        self.began = [0.0] * len(program.messages)
        self.queues: dict[tuple[int, int], deque[int]] = {}
        self.sending: list[deque[int]] = [deque() for _ in range(devices)]
        self.expected: list[int] = [-1] * devices

    def run(self) -> None:
        for d in range(len(self.at)):
            self._advance(d, 0.0)
        while self.events:
            now, kind, number = heappop(self.events)
            if kind == _FINISH:
                self._finish(number, now)
            else:
                self._arrive(number, now)

    def done(self) -> bool:
        return all(at == len(order) for at, order in zip(self.at, self.program.orders, strict=True))

    def _advance(self, d: int, now: float) -> None:
        """Start the next instruction of a device if it can."""
        order = self.program.orders[d]
        if self.busy[d] or self.at[d] == len(order):
            return
        i = order[self.at[d]]
        for j in self.program.needs[i]:
            if not self.arrived[j]:
                if self.rendezvous and self.expected[d] < 0:
                    self.expected[d] = j
                    if self.sending[self.program.source[j]] and self.sending[self.program.source[j]][0] == j:
                        self._carry(j, now)
                return
        self.busy[d] = True
        self.start[i] = now
        heappush(self.events, (now + self.program.seconds[i], _FINISH, i))

    def _finish(self, i: int, now: float) -> None:
        """An instruction has ended: hand on what it gives."""
        d = self.program.device[i]
        self.at[d] += 1
        self.end[i] = now
        if not self.overlap:
            self.sending[d].extend(self.program.gives[i])
            self._send(d, now)
            return
        for j in self.program.gives[i]:
            queue = self.queues.setdefault(self._link(j), deque())
            queue.append(j)
            if len(queue) == 1:
                self._carry(j, now)
        self.busy[d] = False
        self._advance(d, now)

    def _link(self, j: int) -> tuple[int, int]:
        return self.program.source[j], -1 if self.shared_port else self.program.target[j]

    def _carry(self, j: int, now: float) -> None:
        """A message starts; it stays the first of its queue until it has arrived."""
        self.began[j] = now
        heappush(self.events, (now + self.program.transfer[j], _ARRIVE, j))

    def _arrive(self, j: int, now: float) -> None:
        self.arrived[j] = True
        self.carried[j] = (self.began[j], now)
        source, target = self.program.source[j], self.program.target[j]
        if self.overlap:
            queue = self.queues[self._link(j)]
            queue.popleft()
            if queue:
                self._carry(queue[0], now)
        else:
            self.sending[source].popleft()
            self.expected[target] = -1 if self.expected[target] == j else self.expected[target]
            self._send(source, now)
        self._advance(target, now)

    def _send(self, d: int, now: float) -> None:
        """A device that stands still sends its next message; after the last it goes on."""
        if not self.sending[d]:
            self.busy[d] = False
            self._advance(d, now)
            return
        j = self.sending[d][0]
        if not self.rendezvous or self.expected[self.program.target[j]] == j:
            self._carry(j, now)

    def reason(self) -> str:
        """Who waits for what; empty if all is done."""
        waits: list[str] = []
        for d, order in enumerate(self.program.orders):
            if self.sending[d]:
                waits.append(f"device {d} waits to send {self.program.messages[self.sending[d][0]]}")
            elif self.at[d] < len(order):
                missing = next(j for j in self.program.needs[order[self.at[d]]] if not self.arrived[j])
                waits.append(f"device {d} waits to receive {self.program.messages[missing]}")
        return "; ".join(waits)

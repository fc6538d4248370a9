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
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import final

from xmesh_reshard.pipeline.costs import Costs
from xmesh_reshard.pipeline.instructions import Instruction, Message, wiring
from xmesh_reshard.pipeline.timeline import Span, Status, Timeline, Transfer


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
    engine = _Engine(orders, placement, costs, overlap=overlap, rendezvous=rendezvous, shared_port=shared_port)
    return engine.run()


@final
class _Engine:
    def __init__(
        self,
        orders: Sequence[Sequence[Instruction]],
        placement: Sequence[int],
        costs: Costs,
        *,
        overlap: bool,
        rendezvous: bool,
        shared_port: bool,
    ) -> None:
        self.orders, self.placement, self.costs = orders, placement, costs
        self.overlap, self.rendezvous, self.shared_port = overlap, rendezvous, shared_port
        self.wires = wiring(len(placement), costs.skips)
        self.events: list[tuple[float, int, Callable[[float], None]]] = []
        self.serial = 0
        self.at = [0] * len(orders)
        self.busy = [False] * len(orders)
        self.arrived: set[Message] = set()
        self.spans: list[list[Span]] = [[] for _ in orders]
        self.transfers: list[Transfer] = []
        self.queues: dict[tuple[int, int], deque[tuple[Message, float]]] = {}
        self.sending: list[deque[tuple[Message, float]]] = [deque() for _ in orders]
        self.expected: list[Message | None] = [None] * len(orders)

    def run(self) -> Timeline:
        for d in range(len(self.orders)):
            self._advance(d, 0.0)
        while self.events:
            now, _, happens = heappop(self.events)
            happens(now)
        done = all(at == len(order) for at, order in zip(self.at, self.orders, strict=True))
        status = Status.COMPLETE if done else Status.DEADLOCK
        transfers = tuple(sorted(self.transfers, key=lambda t: (t.issued, t.start, t.message)))
        return Timeline(tuple(map(tuple, self.spans)), transfers, status, "" if done else self._reason())

    def _at(self, time: float, happens: Callable[[float], None]) -> None:
        self.serial += 1
        heappush(self.events, (time, self.serial, happens))

    def _advance(self, d: int, now: float) -> None:
        """Start the next instruction of a device if it can."""
        if self.busy[d] or self.at[d] == len(self.orders[d]):
            return
        step = self.orders[d][self.at[d]]
        missing = next((m for m in self.wires.receives(step) if m not in self.arrived), None)
        if missing is not None:
            if self.rendezvous and self.expected[d] is None:
                self.expected[d] = missing
                self._meet(missing, now)
            return
        self.busy[d] = True
        self._at(now + self.costs.compute(step), lambda end: self._finish(d, step, now, end))

    def _finish(self, d: int, step: Instruction, start: float, now: float) -> None:
        """An instruction has ended: hand on what it gives."""
        self.at[d] += 1
        self.spans[d].append(Span(step, start, now))
        away = [m for m in self.wires.sends(step) if self.placement[m.target] != d]
        self.arrived.update(m for m in self.wires.sends(step) if self.placement[m.target] == d)
        if not self.overlap:
            self.sending[d].extend((message, now) for message in away)
            self._send(d, now)
            return
        for message in away:
            link = (d, -1 if self.shared_port else self.placement[message.target])
            queue = self.queues.setdefault(link, deque())
            queue.append((message, now))
            if len(queue) == 1:
                self._carry(link, now)
        self.busy[d] = False
        self._advance(d, now)

    def _carry(self, link: tuple[int, int], now: float) -> None:
        """A link takes the first message of its queue, which stays in it until it has arrived."""
        message, issued = self.queues[link][0]

        def arrive(end: float) -> None:
            self._record(message, issued, now, end)
            self.queues[link].popleft()
            if self.queues[link]:
                self._carry(link, end)
            self._advance(self.placement[message.target], end)

        self._at(now + self.costs.transfer(message), arrive)

    def _send(self, d: int, now: float) -> None:
        """A device that stands still sends the next message; after the last it goes on."""
        if not self.sending[d]:
            self.busy[d] = False
            self._advance(d, now)
        elif self.rendezvous:
            self._meet(self.sending[d][0][0], now)
        else:
            self._transfer(d, now)

    def _meet(self, message: Message, now: float) -> None:
        """Start a transfer if both sides are ready for it."""
        source, target = self.placement[message.source], self.placement[message.target]
        offered = self.sending[source][0][0] if self.sending[source] else None
        if offered == message == self.expected[target]:
            self._transfer(source, now)

    def _transfer(self, d: int, now: float) -> None:
        message, issued = self.sending[d][0]
        target = self.placement[message.target]

        def arrive(end: float) -> None:
            self._record(message, issued, now, end)
            self.sending[d].popleft()
            if self.expected[target] == message:
                self.expected[target] = None
            self._send(d, end)
            self._advance(target, end)

        self._at(now + self.costs.transfer(message), arrive)

    def _record(self, message: Message, issued: float, start: float, end: float) -> None:
        source, target = self.placement[message.source], self.placement[message.target]
        self.arrived.add(message)
        self.transfers.append(Transfer(message, source, target, issued, start, end, not self.overlap))

    def _reason(self) -> str:
        waits: list[str] = []
        for d, order in enumerate(self.orders):
            if self.sending[d]:
                waits.append(f"device {d} waits to send {self.sending[d][0][0]}")
            elif self.at[d] < len(order):
                step = order[self.at[d]]
                missing = next(m for m in self.wires.receives(step) if m not in self.arrived)
                waits.append(f"device {d} waits to receive {missing}")
        return "; ".join(waits)

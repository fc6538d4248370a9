"""When everything happened: what the simulator computes and the runner measures."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from math import inf
from typing import final

from xmesh_reshard.pipeline.instructions import Instruction, Message, Op


class Status(StrEnum):
    """How a simulation ended; the value is the sentence shown to the user."""

    COMPLETE = "every instruction ran"
    DEADLOCK = "the schedule deadlocks: every device that is not done waits for another"


class DeadlockError(RuntimeError):
    """A timeline was asked for what a deadlocked schedule does not have."""


@final
@dataclass(frozen=True, slots=True)
class Span:
    """When an instruction ran.

    Attributes:
        instruction: Which.
        start: Seconds since the beginning.
        end: The same.
    """

    instruction: Instruction
    start: float
    end: float


@final
@dataclass(frozen=True, slots=True)
class Transfer:
    """When a message was under way.

    Attributes:
        message: Which.
        source: Device that sent it.
        target: Device that received it.
        issued: When it was ready to go, in seconds since the beginning.
        start: When its link was free for it.
        end: When it had arrived.
        blocking: Whether the sender stood still meanwhile.
    """

    message: Message
    source: int
    target: int
    issued: float
    start: float
    end: float
    blocking: bool = False


@final
@dataclass(frozen=True)
class Timeline:
    """When every instruction ran and every message was under way, in seconds.

    Attributes:
        devices: The instructions that each device ran, in order.
        transfers: The messages between devices, by the time at which they were issued.
        status: Whether every instruction ran.
        reason: Who waits for what if not, else empty.
        lower_bound: Proved: no schedule of the same passes and transfers is shorter; None where nothing is known
            beforehand, as in a measured timeline.
    """

    devices: tuple[tuple[Span, ...], ...]
    transfers: tuple[Transfer, ...]
    status: Status = Status.COMPLETE
    reason: str = ""
    lower_bound: float | None = None

    @property
    def makespan(self) -> float:
        """Seconds from the beginning to the end of the last instruction; infinite after a deadlock."""
        if self.status is Status.DEADLOCK:
            return inf
        return max((spans[-1].end for spans in self.devices if spans), default=0.0)

    @property
    def period(self) -> float:
        """Seconds from one step to the next where no device waits for all others in between: the longest span of one.

        It is the makespan less what a device may stand idle before its first and after its last instruction, as the
        zero-bubble schedules count.
        """
        if self.status is Status.DEADLOCK:
            return inf
        return max((spans[-1].end - spans[0].start for spans in self.devices if spans), default=0.0)

    @property
    def gap(self) -> float | None:
        """Makespan / lower bound - 1; zero proves that no schedule is shorter. None without a bound."""
        if self.lower_bound is None:
            return None
        if self.lower_bound == 0:
            return 0.0 if self.makespan == 0 else inf
        return self.makespan / self.lower_bound - 1

    @property
    def busy(self) -> tuple[float, ...]:
        """Seconds that each device computes."""
        return tuple(sum((span.end - span.start for span in spans), 0.0) for spans in self.devices)

    @property
    def bubble_fraction(self) -> float:
        """Share of all devices' time until the end in which they do not compute."""
        if self.status is Status.DEADLOCK:
            return 1.0
        whole = self.makespan * len(self.devices)
        return 1 - sum(self.busy) / whole if whole else 0.0

    @cached_property
    def exposed_communication(self) -> tuple[float, ...]:
        """Seconds that each device stands still for communication that nothing hides.

        It stands still, between two instructions or before the first, while a message that the next one needs is under
        way (from when it is issued to when it has arrived), or while it sends a message itself and sending blocks.
        """
        sent: list[list[Transfer]] = [[] for _ in self.devices]
        needed: dict[Instruction, list[Transfer]] = {}
        for transfer in self.transfers:
            needed.setdefault(transfer.message.consumer, []).append(transfer)
            if transfer.blocking:
                sent[transfer.source].append(transfer)
        return tuple(_exposed(spans, sent[d], needed) for d, spans in enumerate(self.devices))

    def inflight(self, device: int) -> tuple[tuple[float, int], ...]:
        """Activations that a device holds: (seconds, how many from then on), over time.

        One is held from the start of its F to the end of its B, or of its W where the schedule has it.
        """
        spans = self.devices[device]
        last = Op.W if any(span.instruction.op is Op.W for span in spans) else Op.B
        held, steps = 0, [(0.0, 0)]
        for span in spans:
            if span.instruction.op is Op.F:
                held += 1
                steps.append((span.start, held))
            elif span.instruction.op is last:
                held -= 1
                steps.append((span.end, held))
        return tuple(steps)

    def peak_inflight(self) -> tuple[int, ...]:
        """The most activations that each device holds at a time."""
        return tuple(max(held for _, held in self.inflight(d)) for d in range(len(self.devices)))

    def peak_buffers(self) -> tuple[int, ...]:
        """The most receive buffers that each device needs at a time.

        A message occupies one from the start of its transfer to the start of the instruction that needs it.
        """
        starts = {span.instruction: span.start for spans in self.devices for span in spans}
        changes: list[list[tuple[float, int]]] = [[] for _ in self.devices]
        for transfer in self.transfers:
            changes[transfer.target].append((transfer.start, 1))
            changes[transfer.target].append((starts.get(transfer.message.consumer, inf), -1))
        return tuple(_peak(steps) for steps in changes)

    def unwrap(self) -> "Timeline":
        """This timeline, if every instruction ran.

        Raises:
            DeadlockError: If the schedule deadlocked.
        """
        if self.status is Status.DEADLOCK:
            raise DeadlockError(f"{self.status.value}. {self.reason}")
        return self


def _exposed(spans: Iterable[Span], sent: Iterable[Transfer], needed: dict[Instruction, list[Transfer]]) -> float:
    """Length of a device's idle time that is covered by what it waits for or sends."""
    ordered = list(spans)
    stalls = sorted(((transfer.start, transfer.end) for transfer in sent), reverse=True)
    total, free = 0.0, 0.0
    for span in ordered:
        under_way = [(t.issued, t.end) for t in needed.get(span.instruction, ())]
        while stalls and stalls[-1][0] < span.start:  # stalls lie between instructions: each belongs to one gap
            under_way.append(stalls.pop())
        total += _covered(free, span.start, under_way)
        free = span.end
    return total + sum(end - start for start, end in stalls)


def _covered(start: float, end: float, intervals: Iterable[tuple[float, float]]) -> float:
    """Length of [start, end] that a union of intervals covers.

    Example:
        >>> _covered(0.0, 10.0, [(-1.0, 2.0), (1.0, 3.0), (9.0, 12.0)])
        4.0
    """
    covered = 0.0
    for low, high in sorted(intervals):
        low, high = max(low, start), min(high, end)
        if high > low:
            covered += high - low
            start = high
    return covered


def _peak(changes: Iterable[tuple[float, int]]) -> int:
    """The highest sum of changes over time; at one time, what goes goes before what comes."""
    level = peak = 0
    for _, change in sorted(changes):
        level += change
        peak = max(peak, level)
    return peak


def shifted(timeline: Timeline) -> Timeline:
    """The same timeline with the start of its first instruction at zero."""
    zero = min((spans[0].start for spans in timeline.devices if spans), default=0.0)
    devices = tuple(
        tuple(Span(span.instruction, span.start - zero, span.end - zero) for span in spans)
        for spans in timeline.devices
    )
    transfers = tuple(
        Transfer(t.message, t.source, t.target, t.issued - zero, t.start - zero, t.end - zero, t.blocking)
        for t in timeline.transfers
    )
    return Timeline(devices, transfers, timeline.status, timeline.reason, timeline.lower_bound)

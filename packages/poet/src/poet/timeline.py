"""When everything happens: a discrete-event simulation of the processor and the channels.

Every event gives one or two jobs. A job waits for those that it needs and for its turn on its lane (the processor, or
one direction of a tier), in the order of the events; then it runs. The simulation knows no clock but the queue of
finishing jobs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from math import ceil
from typing import Literal, final

from poet.device import Device, DeviceError, Tier
from poet.events import Event, Kind
from poet.graph import Graph, Op
from poet.stays import Stay, ram_stays, tier_copies, valid_targets

PROCESSOR = "processor"


@final
@dataclass(frozen=True)
class Job:
    """Work on a lane.

    Attributes:
        lane: Where it runs; jobs of a lane run one at a time, in the order given.
        seconds: How long it runs.
        needs: Earlier jobs that must end before it starts.
        event: The event that it belongs to.
    """

    lane: str
    seconds: float
    needs: tuple[int, ...]
    event: int


@final
@dataclass(frozen=True)
class Span:
    """When a job ran.

    Attributes:
        lane: `"processor"`, or the tier with the direction.
        start: Seconds since the beginning of the step.
        end: The same.
        event: Index of the event.
    """

    lane: str
    start: float
    end: float
    event: int


def simulate(jobs: Sequence[Job]) -> list[Span]:
    """Run the jobs: each as soon as what it needs has ended and its lane is free.

    Example:
        >>> simulate([Job("a", 2.0, (), 0), Job("b", 1.0, (0,), 1), Job("a", 3.0, (), 2)])[1:]
        [Span(lane='b', start=2.0, end=3.0, event=1), Span(lane='a', start=2.0, end=5.0, event=2)]
    """
    followers: list[list[int]] = [[] for _ in jobs]
    waiting = [0] * len(jobs)
    last: dict[str, int] = {}
    for j, job in enumerate(jobs):
        before = {*job.needs, last[job.lane]} if job.lane in last else set(job.needs)
        waiting[j] = len(before)
        for i in before:
            followers[i].append(j)
        last[job.lane] = j
    starts = [0.0] * len(jobs)
    running = [(job.seconds, j) for j, job in enumerate(jobs) if not waiting[j]]
    running.sort()
    ends = [0.0] * len(jobs)
    while running:
        now, j = heappop(running)
        ends[j] = now
        for k in followers[j]:
            waiting[k] -= 1
            if not waiting[k]:
                starts[k] = now
                heappush(running, (now + jobs[k].seconds, k))
    return [Span(job.lane, starts[j], ends[j], job.event) for j, job in enumerate(jobs)]


def timeline(
    graph: Graph,
    device: Device,
    events: Sequence[Event],
    *,
    paging: Literal["overlap", "serial", "free"] = "overlap",
) -> list[Span]:
    """When each event of a schedule runs: operations and transfers, in the order of the events.

    Frees, drops and the issue of a transfer take no time; only what has a duration is returned, or is an operation.

    Args:
        graph: The training step.
        device: The machine.
        events: The schedule.
        paging: Whether transfers run beside the computation, stop it, or take no time.

    Raises:
        DeviceError: If operations have no measured duration and the profile has no speed.
    """
    good, _ = valid_targets(graph, len(device.tiers), events)
    stays, copies = ram_stays(graph, events, good)[0], tier_copies(events, good)[0]
    longest: dict[int, Span] = {}
    for span in simulate(jobs(graph, device, events, good, stays, copies, paging)):
        rival = longest.get(span.event)
        if rival is None or span.end - span.start > rival.end - rival.start:
            longest[span.event] = span
    return [span for e, span in longest.items() if span.end > span.start or events[e].kind is Kind.COMPUTE]


def jobs(
    graph: Graph,
    device: Device,
    events: Sequence[Event],
    indices: Iterable[int],
    stays: Sequence[Stay],
    copies: Sequence[Stay],
    paging: Literal["overlap", "serial", "free"],
) -> list[Job]:
    """The jobs of a schedule.

    A transfer is issued by the processor and runs on its lane. A free, and an operation that replaces a value, wait for
    the transfers of the copy that goes away.

    Args:
        graph: The training step.
        device: The machine.
        events: The schedule.
        indices: The events that count, in order.
        stays: The stays in RAM.
        copies: The stays in tiers.
        paging: As `timeline` takes it.
    """
    waits = _waits(len(events), stays, copies)
    made: list[Job] = []
    ends: dict[int, int] = {}  # event -> the job that ends it
    for e in indices:
        event = events[e]
        if event.kind is Kind.DROP:
            continue
        needs = tuple(sorted({ends[i] for i in waits[e]}))
        lane, seconds = PROCESSOR, 0.0
        if event.kind is Kind.COMPUTE:
            seconds = op_seconds(device, graph.ops[event.target])
        elif event.kind is not Kind.FREE:
            tier, write = device.tiers[event.tier], event.kind is Kind.PAGE_OUT
            if paging != "free":
                seconds = transfer_seconds(tier, graph.values[event.target].size, write)
            if paging != "serial" and not tier.in_ram:
                made.append(Job(PROCESSOR, 0.0, (), e))
                needs, lane = (*needs, len(made) - 1), channel(tier, write)
        made.append(Job(lane, seconds, needs, e))
        ends[e] = len(made) - 1
    return made


def channel(tier: Tier, write: bool) -> str:
    """The lane of a transfer: one for each direction of a duplex tier, else one for both."""
    if not tier.duplex:
        return f"{tier.name} channel"
    return f"{tier.name} writes" if write else f"{tier.name} reads"


def _waits(count: int, stays: Sequence[Stay], copies: Sequence[Stay]) -> list[list[int]]:
    """For each event, the events that must have ended before it starts."""
    waits: list[list[int]] = [[] for _ in range(count)]
    for stay in stays:
        for e in stay.reads:
            waits[e] += stay.writes
        if stay.closed != "end":
            waits[stay.end] += [*stay.writes, *stay.reads]
    for copy in copies:
        for e in copy.reads:
            waits[e] += [w for w in copy.writes if w < e][-1:]
    return waits


def op_seconds(device: Device, op: Op) -> float:
    """Duration of an operation: measured, or FLOPs over FLOPs per second.

    Raises:
        DeviceError: If neither is known.
    """
    if op.seconds is not None:
        return op.seconds
    if device.flops_per_second is None:
        raise DeviceError(f"operation {op.name!r} has no measured duration and device {device.name!r} no speed")
    return op.flops / device.flops_per_second


def transfer_seconds(tier: Tier, size: int, write: bool) -> float:
    """Duration of a transfer: latency, then the bytes of whole blocks."""
    stored = stored_bytes(tier, size)
    if write:
        return tier.write_latency + stored / tier.write_throughput
    return tier.read_latency + stored / tier.read_throughput


def stored_bytes(tier: Tier, size: int) -> int:
    """Bytes of a copy in a tier: compressed, then rounded up to whole blocks."""
    return -(-ceil(size * tier.ratio) // tier.block) * tier.block

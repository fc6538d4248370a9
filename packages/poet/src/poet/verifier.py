"""An independent judge of schedules.

Shares no code with the replay that the engines use: memory comes from the stays of each value, taken one value at a
time and then swept over the events; time from a discrete-event simulation; sizes, durations and energies straight from
the entries of the graph and the device.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from math import fsum, inf, nan
from typing import Literal, final

from poet.device import Device, Tier
from poet.events import Event, Kind
from poet.graph import Graph, Op
from poet.stays import Breach, Rule, Stay, ram_stays, tier_copies, valid_targets
from poet.timeline import jobs, op_seconds, simulate, stored_bytes, transfer_seconds

SLACK = 1e-9
"""A deadline counts as met up to this share of it: two orders of summation differ by rounding."""


@final
@dataclass(frozen=True)
class Violation:
    """One broken rule.

    Attributes:
        event: Index of the event; -1 where the schedule as a whole breaks it.
        kind: The rule.
        sentence: What happened.
    """

    event: int
    kind: Rule
    sentence: str


class VerificationError(ValueError):
    """A schedule that breaks a rule."""


@final
@dataclass(frozen=True)
class Verdict:
    """What the verifier found.

    Attributes:
        violations: Every broken rule, by event; those of the schedule as a whole come first.
        memory: Bytes while each event happens, static bytes included.
        peak: Most bytes at any event, static bytes included: what the limit is held against.
        peak_event: The first event at the peak; -1 if there are no events.
        makespan: Duration of the step in seconds, waits for transfers included.
        compute_joules: Modelled energy of all computation; NaN where the profile lacks it.
        paging_joules: Modelled energy of all transfers.
        compute_seconds: Time spent computing.
        recomputed: Executions of operations beyond their first.
        paged_out: Transfers to tiers.
        paged_in: Transfers from tiers.
    """

    violations: tuple[Violation, ...]
    memory: tuple[int, ...]
    peak: int
    peak_event: int
    makespan: float
    compute_joules: float
    paging_joules: float
    compute_seconds: float
    recomputed: int
    paged_out: int
    paged_in: int

    @property
    def ok(self) -> bool:
        """Whether no rule is broken."""
        return not self.violations

    @property
    def joules(self) -> float:
        """Modelled energy."""
        return self.compute_joules + self.paging_joules

    def unwrap(self) -> "Verdict":
        """This verdict, if no rule is broken.

        Raises:
            VerificationError: Otherwise, with every sentence.
        """
        if self.violations:
            raise VerificationError("; ".join(violation.sentence for violation in self.violations))
        return self


def verify(
    graph: Graph,
    device: Device,
    events: Sequence[Event],
    *,
    limit: int,
    deadline: float = inf,
    paging: Literal["overlap", "serial", "free"] = "overlap",
    order: bool = True,
    recompute: bool = True,
) -> Verdict:
    """Judge a schedule by the rules of `poet.events`.

    A broken rule does not end the search for others: an operation whose input is absent counts as executed, and a copy
    that was never made as read, so that a mistake is named where it acts and not in all that follows.

    Args:
        graph: The training step.
        device: The machine; `tier` of an event counts its tiers.
        events: The schedule.
        limit: Bytes of RAM, static bytes included.
        deadline: Seconds.
        paging: Whether transfers run beside the computation, stop it, or take no time.
        order: Whether first executions must come in the graph's order.
        recompute: Whether any operation may be executed again.

    Returns:
        Every broken rule, and what the schedule needs.

    Raises:
        ValueError: If the limit is negative, the deadline not positive or `paging` unknown.
        DeviceError: If operations have no measured duration and the profile has no speed.

    Example:
        >>> from poet import graph, device, events
        >>> step = graph.chain("two", sizes=[4, 4])
        >>> machine = device.Device("toy", flops_per_second=1.0)
        >>> verdict = verify(step, machine, [events.compute(0), events.compute(1)], limit=7)
        >>> verdict.peak, verdict.makespan, [violation.sentence for violation in verdict.violations]
        (8, 2.0, ["event 1 (compute 'op1'): 8 bytes are in RAM, over the limit of 7"])
    """
    if limit < 0 or not deadline > 0 or paging not in ("overlap", "serial", "free"):
        raise ValueError(
            "limit must not be negative, deadline must be positive and paging 'overlap', 'serial' or 'free'; "
            f"got {limit}, {deadline} and {paging!r}"
        )
    events = tuple(events)
    good, breaches = valid_targets(graph, len(device.tiers), events)
    stays, more = ram_stays(graph, events, good)
    copies, still_more = tier_copies(events, good)
    runs = [(e, events[e].target) for e in good if events[e].kind is Kind.COMPUTE]
    breaches = [*breaches, *more, *still_more, *_runs(graph, runs, order, recompute)]
    found = [_explain(graph, device, events, breach) for breach in breaches]
    memory = _memory(graph, device, events, stays, copies, runs)
    found += _over(graph, device, events, memory, limit)
    found += _over_capacity(graph, device, events, copies)
    spans = simulate(jobs(graph, device, events, good, stays, copies, paging))
    makespan = max((span.end for span in spans), default=0.0)
    if makespan > deadline * (1 + SLACK):
        sentence = f"the step takes {makespan:.6g} s, more than the deadline of {deadline:.6g} s"
        found.append(Violation(-1, Rule.DEADLINE, sentence))
    peak = max(memory, default=graph.static.total)
    transfers = [events[e] for e in good if events[e].tier >= 0 and events[e].kind is not Kind.DROP]
    return Verdict(
        tuple(sorted(found, key=lambda violation: violation.event)),
        tuple(memory),
        peak,
        memory.index(peak) if memory else -1,
        makespan,
        fsum(_op_joules(device, graph.ops[i]) for _, i in runs),
        fsum(_transfer_joules(graph, device, event) for event in transfers),
        fsum(op_seconds(device, graph.ops[i]) for _, i in runs),
        len(runs) - len({i for _, i in runs}),
        sum(event.kind is Kind.PAGE_OUT for event in transfers),
        sum(event.kind is Kind.PAGE_IN for event in transfers),
    )


def _runs(graph: Graph, runs: Sequence[tuple[int, int]], order: bool, recompute: bool) -> list[Breach]:
    """Rules about which operations are executed when."""
    breaches: list[Breach] = []
    done: set[int] = set()
    latest = -1
    for e, i in runs:
        if i in done:
            if not (recompute and graph.ops[i].recomputable):
                breaches.append(Breach(e, Rule.REPEATED, -1))
        elif order and i < latest:
            breaches.append(Breach(e, Rule.ORDER, -1))
        done.add(i)
        latest = max(latest, i)
    missing = (i for i in range(len(graph.ops)) if i not in done)
    return breaches + [Breach(-1, Rule.MISSING, i) for i in missing]


def _sweep(count: int, blocks: Iterable[tuple[int, int, int]]) -> list[int]:
    """Bytes at each event of blocks (first event, last event, bytes)."""
    steps = [0] * (count + 1)
    for start, end, size in blocks:
        steps[start] += size
        steps[end + 1] -= size
    return list(accumulate(steps))[:count]


def _memory(
    graph: Graph,
    device: Device,
    events: Sequence[Event],
    stays: Sequence[Stay],
    copies: Sequence[Stay],
    runs: Sequence[tuple[int, int]],
) -> list[int]:
    blocks = [(stay.start, stay.end, graph.values[stay.value].size) for stay in stays]
    blocks += [(e, e, graph.ops[i].workspace) for e, i in runs]
    for copy in copies:
        if device.tiers[copy.tier].in_ram:
            blocks.append((copy.start, copy.end, stored_bytes(device.tiers[copy.tier], graph.values[copy.value].size)))
    if events:
        blocks.append((0, len(events) - 1, graph.static.total))
    return _sweep(len(events), blocks)


def _over(graph: Graph, device: Device, events: Sequence[Event], memory: Sequence[int], limit: int) -> list[Violation]:
    """One violation for each stretch of events over the limit, at its highest event."""
    if graph.static.total > limit and not events:
        sentence = f"{graph.static.total} static bytes alone are over the limit of {limit}"
        return [Violation(-1, Rule.LIMIT, sentence)]
    return [
        Violation(
            e,
            Rule.LIMIT,
            f"{_about(graph, device, events, e)}: {memory[e]} bytes are in RAM, over the limit of {limit}",
        )
        for e in _highest(memory, limit)
    ]


def _over_capacity(graph: Graph, device: Device, events: Sequence[Event], copies: Sequence[Stay]) -> list[Violation]:
    violations: list[Violation] = []
    for k, tier in enumerate(device.tiers):
        if tier.capacity is None:
            continue
        mine = [copy for copy in copies if copy.tier == k]
        taken = ((copy.start, copy.end, stored_bytes(tier, graph.values[copy.value].size)) for copy in mine)
        stored = _sweep(len(events), taken)
        for e in _highest(stored, tier.capacity):
            sentence = f"{stored[e]} bytes are in {tier.name}, over its capacity of {tier.capacity}"
            about = _about(graph, device, events, e)
            violations.append(Violation(e, Rule.CAPACITY, f"{about}: {sentence}"))
    return violations


def _highest(levels: Sequence[int], limit: int) -> list[int]:
    """The highest event of each stretch above the limit."""
    stretches = groupby(range(len(levels)), key=lambda e: levels[e] > limit)
    return [max(stretch, key=lambda e: levels[e]) for over, stretch in stretches if over]


def _op_joules(device: Device, op: Op) -> float:
    if device.compute_power is not None and (op.seconds is not None or device.flops_per_joule is None):
        return op_seconds(device, op) * device.compute_power
    return nan if device.flops_per_joule is None else op.flops / device.flops_per_joule


def _transfer_joules(graph: Graph, device: Device, event: Event) -> float:
    tier: Tier = device.tiers[event.tier]
    return tier.power * transfer_seconds(tier, graph.values[event.target].size, event.kind is Kind.PAGE_OUT)


def _about(graph: Graph, device: Device, events: Sequence[Event], e: int) -> str:
    """The event, named; numbers stand for what does not exist."""
    event = events[e]
    things = graph.ops if event.kind is Kind.COMPUTE else graph.values
    name = repr(things[event.target].name) if 0 <= event.target < len(things) else str(event.target)
    if event.tier == -1:
        return f"event {e} ({event.kind.value} {name})"
    tier = repr(device.tiers[event.tier].name) if 0 <= event.tier < len(device.tiers) else str(event.tier)
    return f"event {e} ({event.kind.value} {name}, tier {tier})"


def _explain(graph: Graph, device: Device, events: Sequence[Event], breach: Breach) -> Violation:
    e, rule = breach.event, breach.rule
    if rule is Rule.MISSING:
        return Violation(e, rule, f"operation {graph.ops[breach.subject].name!r} is never executed")
    if rule is Rule.KEPT:
        return Violation(e, rule, f"value {graph.values[breach.subject].name!r} must be in RAM at the end and is not")
    about = _about(graph, device, events, e)
    if rule is Rule.INPUT:
        return Violation(e, rule, f"{about}: input {graph.values[breach.subject].name!r} is not in RAM")
    return Violation(e, rule, f"{about}: {rule.value}")

"""Where every value is and when, read off the events one value at a time.

A *stay* is one residence of a value in RAM, a *copy* one residence in a tier. The events that begin and end them are
the rules of `poet.events`; whatever breaks a rule is listed, not raised.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import final

from poet.events import Event, Kind
from poet.graph import Graph


class Rule(StrEnum):
    """What a schedule can break; the value says it in words."""

    TARGET = "an event names an operation, value or tier that does not exist"
    INPUT = "an operation reads a value that is not in RAM"
    PAGE_OUT = "a value is paged out that is not in RAM"
    PAGE_IN_COPY = "a value is paged in from a tier that holds no copy of it"
    PAGE_IN_TWICE = "a value is paged in that is in RAM already"
    FREE = "a value is freed that is not in RAM"
    DROP = "a copy is dropped that is not there"
    KEPT = "a value that must be kept is not in RAM at the end"
    MISSING = "an operation is never executed"
    REPEATED = "an operation is executed again that must not be"
    ORDER = "an operation is executed for the first time after a later one"
    LIMIT = "memory is over the limit"
    CAPACITY = "the copies in a tier are over its capacity"
    DEADLINE = "the step takes longer than its deadline"


@final
@dataclass(frozen=True)
class Breach:
    """A rule broken by an event.

    Attributes:
        event: Index of the event; -1 where the schedule as a whole breaks it.
        rule: The rule.
        subject: The value concerned, or the operation that is missing; -1 if there is none.
    """

    event: int
    rule: Rule
    subject: int


@final
@dataclass
class Stay:
    """One residence of a value in RAM, or of its copy in a tier.

    Attributes:
        value: The value.
        start: The event that allocates it.
        end: The last event at which it takes space; the last of all if nothing ends it.
        tier: The tier of a copy; -1 in RAM.
        closed: How it ends: `"free"` (or drop), `"replaced"` by an equal copy that an operation makes, or `"end"`.
        writes: Events that fill it: one in RAM, one or more page-outs for a copy.
        reads: Events that read it: operations and page-outs in RAM, page-ins for a copy.
    """

    value: int
    start: int
    end: int
    tier: int = -1
    closed: str = "end"
    writes: list[int] = field(default_factory=list)
    reads: list[int] = field(default_factory=list)


def valid_targets(graph: Graph, tiers: int, events: Sequence[Event]) -> tuple[list[int], list[Breach]]:
    """Indices of the events whose targets exist, and the breaches of the others.

    Args:
        graph: The training step.
        tiers: Number of tiers.
        events: The schedule.
    """
    good: list[int] = []
    for e, event in enumerate(events):
        targets = len(graph.ops) if event.kind is Kind.COMPUTE else len(graph.values)
        tiered = event.kind not in (Kind.COMPUTE, Kind.FREE)
        if 0 <= event.target < targets and (0 <= event.tier < tiers if tiered else event.tier == -1):
            good.append(e)
    bad = sorted(set(range(len(events))) - set(good))
    return good, [Breach(e, Rule.TARGET, -1) for e in bad]


def ram_stays(graph: Graph, events: Sequence[Event], indices: Iterable[int]) -> tuple[list[Stay], list[Breach]]:
    """The stays of all values in RAM, by value and time, and the breaches found on the way.

    Args:
        graph: The training step.
        events: The schedule.
        indices: The events that count, in order.
    """
    history: list[list[tuple[int, str]]] = [[] for _ in graph.values]
    for e in indices:
        event = events[e]
        if event.kind is Kind.COMPUTE:
            for v in dict.fromkeys(graph.ops[event.target].inputs):
                history[v].append((e, "read"))
            for v in graph.ops[event.target].outputs:
                history[v].append((e, "made"))
        elif event.kind is not Kind.DROP:
            history[event.target].append((e, event.kind.value))
    stays: list[Stay] = []
    breaches: list[Breach] = []
    for v, value in enumerate(graph.values):
        mine = _stays_of(v, history[v], len(events) - 1, breaches)
        if value.keep and not (mine and mine[-1].closed == "end"):
            breaches.append(Breach(-1, Rule.KEPT, v))
        stays += mine
    return stays, breaches


def _stays_of(v: int, history: list[tuple[int, str]], last: int, breaches: list[Breach]) -> list[Stay]:
    absent = {"read": Rule.INPUT, "page_out": Rule.PAGE_OUT, "free": Rule.FREE}
    stays: list[Stay] = []
    now: Stay | None = None
    for e, role in history:
        if role in absent and now is None:
            breaches.append(Breach(e, absent[role], v))
        elif role in ("made", "page_in"):
            if now is not None:
                now.end, now.closed = e, "replaced"
                if role == "page_in":
                    breaches.append(Breach(e, Rule.PAGE_IN_TWICE, v))
            now = Stay(v, e, last, writes=[e])
            stays.append(now)
        elif now is not None and role == "free":
            now.end, now.closed, now = e, "free", None
        elif now is not None:
            now.reads.append(e)
    return stays


def tier_copies(events: Sequence[Event], indices: Iterable[int]) -> tuple[list[Stay], list[Breach]]:
    """The stays of all copies in tiers, by value, tier and time, and the breaches found on the way.

    Args:
        events: The schedule.
        indices: The events that count, in order.
    """
    history: dict[tuple[int, int], list[int]] = {}
    for e in indices:
        if events[e].kind in (Kind.PAGE_OUT, Kind.PAGE_IN, Kind.DROP):
            history.setdefault((events[e].target, events[e].tier), []).append(e)
    stays: list[Stay] = []
    breaches: list[Breach] = []
    for (v, tier), mine in sorted(history.items()):
        now: Stay | None = None
        for e in mine:
            kind = events[e].kind
            if kind is Kind.PAGE_OUT:
                if now is None:
                    now = Stay(v, e, len(events) - 1, tier)
                    stays.append(now)
                now.writes.append(e)
            elif now is None:
                breaches.append(Breach(e, Rule.DROP if kind is Kind.DROP else Rule.PAGE_IN_COPY, v))
            elif kind is Kind.DROP:
                now.end, now.closed, now = e, "free", None
            else:
                now.reads.append(e)
    return stays, breaches

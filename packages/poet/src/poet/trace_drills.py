"""Schedules made by simple rules, without a solver: to run a program at once, and to try an executor."""

from collections.abc import Sequence
from math import isqrt

import numpy as np

from poet.events import Event, compute, drop, free, page_in, page_out
from poet.graph import Graph


def resident(graph: Graph) -> list[Event]:
    """Execute everything once, and free every value after its last use.

    Example:
        >>> from poet.graph import chain
        >>> [str(event.kind) for event in resident(chain("two", [4, 4]))]
        ['compute', 'compute', 'free', 'free']
    """
    last = last_uses(graph)
    events: list[Event] = []
    for i, op in enumerate(graph.ops):
        events.append(compute(i))
        gone = (v for v in dict.fromkeys((*op.inputs, *op.outputs)) if last[v] == i and not graph.values[v].keep)
        events.extend(free(v) for v in gone)
    return events


def last_uses(graph: Graph) -> list[int]:
    """The last operation that reads each value, or makes it."""
    return [max((*uses, made)) for uses, made in zip(graph.users, graph.producer, strict=True)]


def paged(graph: Graph, tier: int = 0) -> list[Event]:
    """Execute everything once; what the backward pass needs waits in a tier from its last use before it."""
    drill = _Drill(graph)
    for i, op in enumerate(graph.ops):
        drill.run(i)
        for v in dict.fromkeys((*op.inputs, *op.outputs)):
            later = [u for u in graph.users[v] if u > i]
            idle = later and graph.ops[later[0]].phase == "backward" and op.phase != "backward"
            if idle:
                drill.evict(v, tier)
        drill.sweep(i)
    return drill.end()


def recomputed(graph: Graph, every: int | None = None) -> list[Event]:
    """Of the forward pass only the values after each `every`-th operation are kept; the rest is computed again.

    Args:
        graph: The training step.
        every: Length of a segment; by default the root of the number of operations before the backward pass.
    """
    drill = _Drill(graph)
    forward = sum(op.phase != "backward" for op in graph.ops)
    length = every or max(1, isqrt(forward))
    for i, op in enumerate(graph.ops):
        drill.run(i)
        if op.phase != "backward" and (i + 1) % length == 0:
            for v in sorted(drill.resident):
                later = [u for u in graph.users[v] if u > i]
                crosses = later and graph.ops[later[0]].phase != "backward"
                if later and not crosses and not graph.values[v].keep and graph.ops[graph.producer[v]].recomputable:
                    drill.evict(v, None)
        drill.sweep(i)
    return drill.end()


def shuffled(graph: Graph, rng: np.random.Generator, tiers: int = 1, rate: float = 0.3) -> list[Event]:
    """A valid schedule at random: values are freed or paged out, and come back by recomputation or paging.

    Args:
        graph: The training step.
        rng: Decides.
        tiers: Number of tiers; 0 for recomputation alone.
        rate: Probability that a value in RAM is evicted after an operation.
    """
    drill = _Drill(graph, rng)
    for i in range(len(graph.ops)):
        drill.run(i)
        for v in sorted(drill.resident):
            if rng.random() < rate:
                drill.evict(v, int(rng.integers(tiers)) if tiers and rng.random() < 0.5 else None)
        drill.sweep(i)
    return drill.end()


class _Drill:
    """A schedule in the making."""

    def __init__(self, graph: Graph, rng: np.random.Generator | None = None) -> None:
        self.graph, self.rng = graph, rng
        self.events: list[Event] = []
        self.resident: set[int] = set()
        self.copies: dict[int, list[int]] = {}
        self.last = last_uses(graph)

    def run(self, i: int) -> None:
        """Execute an operation, after bringing back what it reads."""
        for v in self.graph.ops[i].inputs:
            self.bring(v)
        self.events.append(compute(i))
        self.resident.update(self.graph.ops[i].outputs)

    def bring(self, v: int) -> None:
        """Bring a value back: from a tier, or by executing what makes it."""
        if v in self.resident:
            return
        tiers: Sequence[int] = self.copies.get(v, ())
        producer = self.graph.producer[v]
        again = self.graph.ops[producer].recomputable
        if tiers and not (again and self.rng is not None and self.rng.random() < 0.5):
            self.events.append(page_in(v, tiers[-1]))
            self.resident.add(v)
        else:
            self.run(producer)

    def evict(self, v: int, tier: int | None) -> None:
        """Free a value; first copy it if a tier is given, or if it could not come back otherwise."""
        held = self.copies.setdefault(v, [])
        if tier is None and not held and not self.graph.ops[self.graph.producer[v]].recomputable:
            return
        if tier is not None and tier not in held:
            self.events.append(page_out(v, tier))
            held.append(tier)
        self.events.append(free(v))
        self.resident.remove(v)

    def sweep(self, i: int) -> None:
        """Free what no operation after `i` needs."""
        for v in sorted(self.resident):
            if self.last[v] <= i and not self.graph.values[v].keep:
                self.events.append(free(v))
                self.resident.remove(v)

    def end(self) -> list[Event]:
        """Bring back what must be there at the end, and drop all copies."""
        for v, value in enumerate(self.graph.values):
            if value.keep:
                self.bring(v)
        self.sweep(len(self.graph.ops))
        self.events.extend(drop(v, tier) for v, tiers in self.copies.items() for tier in tiers)
        return self.events

"""Random training steps with random schedules that break no rule, for the tests of what reads schedules."""

from collections.abc import Callable

import numpy as np
import pytest

from poet.device import Device, Tier
from poet.events import Event, compute, drop, free, page_in, page_out
from poet.graph import Graph, Op, Static, Value
from poet.problem import Objective, Problem

PHASES = ("forward", "loss", "backward")


@pytest.fixture(scope="session")
def random_case() -> Callable[..., tuple[Problem, tuple[Event, ...]]]:
    """A function of a seed: a problem without a tight limit, and a valid schedule full of detours."""
    return _case


def _case(seed: int, *, paging: str = "overlap", ops: int = 9, moves: int = 5) -> tuple[Problem, tuple[Event, ...]]:
    rng = np.random.default_rng(seed)
    graph = _graph(rng, int(rng.integers(1, ops + 1)))
    tiers = tuple(_tier(rng, k) for k in range(int(rng.integers(0, 4))))
    device = Device("toy", flops_per_second=2.0, flops_per_joule=4.0, tiers=tiers)
    walk = _Walk(rng, graph, len(tiers))
    for i in range(len(graph.ops)):
        for _ in range(int(rng.integers(0, moves + 1))):
            walk.detour()
        walk.execute(i)
    for _ in range(int(rng.integers(0, moves + 1))):
        walk.detour()
    for v, value in enumerate(graph.values):
        if value.keep:
            walk.fetch(v)
    return Problem(graph, device, 10**6, objective=Objective(1.0, 0.5), paging=paging), tuple(walk.events)


def _graph(rng: np.random.Generator, n: int) -> Graph:
    ops: list[Op] = []
    values: list[Value] = []
    for i in range(n):
        inputs = rng.choice(len(values), size=min(len(values), int(rng.integers(0, 4))), replace=False)
        outputs = tuple(range(len(values), len(values) + int(rng.integers(1, 3))))
        values += [Value(f"v{v}", int(rng.integers(0, 20)), bool(rng.random() < 0.15)) for v in outputs]
        ops.append(
            Op(
                f"op{i}",
                tuple(int(v) for v in inputs) + tuple(int(v) for v in inputs[:1]),  # an operation may read twice
                outputs,
                flops=float(rng.integers(0, 9)),
                seconds=None if rng.random() < 0.5 else float(rng.integers(0, 5)),
                workspace=int(rng.integers(0, 6)),
                phase=PHASES[min(2, 3 * i // n)],
                recomputable=bool(rng.random() < 0.8),
            )
        )
    return Graph("random", tuple(ops), tuple(values), Static(parameters=int(rng.integers(0, 9))))


def _tier(rng: np.random.Generator, k: int) -> Tier:
    in_ram = bool(rng.random() < 0.25)
    return Tier(
        f"tier{k}",
        *(float(rng.choice([0.0, 0.5, 1.0])), float(rng.choice([1.0, 4.0, 16.0]))) * 2,
        power=float(rng.choice([0.0, 0.25])),
        block=int(rng.choice([1, 8])),
        duplex=bool(rng.random() < 0.5),
        ratio=0.25 if in_ram else 1.0,
        in_ram=in_ram,
    )


class _Walk:
    """Takes any step that breaks no rule and leaves every value within reach."""

    def __init__(self, rng: np.random.Generator, graph: Graph, tiers: int) -> None:
        self.rng, self.graph, self.tiers = rng, graph, tiers
        self.events: list[Event] = []
        self.done: set[int] = set()
        self.resident: set[int] = set()
        self.copies: set[tuple[int, int]] = set()

    def execute(self, i: int) -> None:
        for v in self.graph.ops[i].inputs:
            self.fetch(v)
        self.events.append(compute(i))
        self.done.add(i)
        self.resident.update(self.graph.ops[i].outputs)

    def fetch(self, v: int) -> None:
        if v in self.resident:
            return
        where = [k for w, k in sorted(self.copies) if w == v]
        if where and (not self.repeatable(v) or self.rng.random() < 0.7):
            self.events.append(page_in(v, int(self.rng.choice(where))))
            self.resident.add(v)
        else:
            self.execute(self.graph.producer[v])

    def repeatable(self, v: int) -> bool:
        return self.graph.ops[self.graph.producer[v]].recomputable

    def detour(self) -> None:
        move = self.rng.integers(0, 7)
        resident, copies = sorted(self.resident), sorted(self.copies)
        if move < 2 and resident and self.tiers:
            v, k = int(self.rng.choice(resident)), int(self.rng.integers(self.tiers))
            self.events.append(page_out(v, k))
            self.copies.add((v, k))
        elif move in (2, 3, 4) and resident:
            v = int(self.rng.choice(resident))
            if self.repeatable(v) or any(w == v for w, _ in copies):
                self.events.append(free(v))
                self.resident.remove(v)
        elif move == 5 and copies:
            v, k = copies[int(self.rng.integers(len(copies)))]
            if v in self.resident or self.repeatable(v) or sum(w == v for w, _ in copies) > 1:
                self.events.append(drop(v, k))
                self.copies.remove((v, k))
            else:
                self.fetch(v)
        elif move == 6 and self.done:
            i = int(self.rng.choice(sorted(self.done)))
            if self.graph.ops[i].recomputable:
                self.execute(i)

"""Schedules made on the way, as runtimes make them: when memory is full, something goes; when it is missed, it returns.

- `page_only`: Belady's rule, the value read furthest in the future goes to a tier.
- `capuchin`: as Capuchin; a value whose transfers fit into the time until its next reader is paged, and where there is
  none, the one that frees most bytes for a second of recomputation is recomputed.
- `dtr`: dynamic tensor rematerialisation; recomputation alone, of the value of least cost / (bytes · staleness).

Reference:
    Peng et al. (2020). Capuchin: tensor-based GPU memory management for deep learning. ASPLOS.
    Kirisame et al. (2021). Dynamic tensor rematerialization. ICLR. arXiv:2006.09616.
"""

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from math import inf
from typing import final

import numpy as np

from poet.events import Event, compute, page_in
from poet.problem import Problem
from poet.schedule import Found, Limits
from poet.stages import Best, add_copies

RECOMPUTE = -1
_PATIENCE = 50  # executions of each operation on average, beyond which a policy is taken to thrash


def page_only(problem: Problem, limits: Limits | None = None) -> Found:
    """Paging alone, by Belady's rule."""
    return _run(problem, _Belady(problem), "page-only", limits)


def capuchin(problem: Problem, limits: Limits | None = None) -> Found:
    """Paging while it is hidden, then recomputation by bytes a second."""
    return _run(problem, _Capuchin(problem), "capuchin", limits)


def dtr(problem: Problem, limits: Limits | None = None) -> Found:
    """Recomputation alone, by cost / (bytes · staleness)."""
    return _run(problem, _Dtr(problem), "dtr", limits)


class _Policy(ABC):
    """What goes, and how it comes back."""

    @abstractmethod
    def choose(self, cache: "_Cache", candidates: list[int]) -> tuple[int, int] | None:
        """The value that goes, and the tier from which it will return (or `RECOMPUTE`); None if none may."""

    @abstractmethod
    def returned(self, value: int) -> None:
        """Take note that an evicted value is back."""


class _StuckError(Exception):
    """Memory is full and nothing may go."""


@final
class _Cache:
    """RAM under a policy."""

    def __init__(self, problem: Problem, policy: _Policy, limits: Limits) -> None:
        self.problem, self.policy, self.graph = problem, policy, problem.graph
        self.sizes = problem.sizes.tolist()
        self.best = Best(problem)
        self.limits = limits
        self.resident: dict[int, float] = {}  # value -> clock of its last access
        self.locked: Counter[int] = Counter()
        self.way: dict[int, int] = {}
        self.used, self.now, self.clock = 0, 0, 0.0
        self.steps: list[Event] = []

    def run(self) -> list[Event]:
        for t, op in enumerate(self.graph.ops):
            self.now = t
            inputs = [*dict.fromkeys(op.inputs)]
            self.fetch(inputs)
            self.execute(t)
            self.locked.subtract(inputs)
            for v in {*op.inputs, *op.outputs}:
                if self.next_use(v) == inf:
                    self.forget(v)
        self.now = len(self.graph.ops)
        self.fetch([v for v, value in enumerate(self.graph.values) if value.keep])
        return self.steps

    def next_use(self, v: int) -> float:
        """The next operation that reads a value for the first time; the end for kept values."""
        uses = self.graph.users[v]
        at = bisect_left(uses, self.now + 1)
        if at < len(uses):
            return float(uses[at])
        return float(len(self.graph.ops)) if self.graph.values[v].keep else inf

    def fetch(self, values: list[int]) -> None:
        """Bring values in and lock them."""
        self.locked.update(values)
        stack = [(v, False) for v in reversed(values)]
        while stack:
            v, ready = stack.pop()
            i = self.graph.producer[v]
            if ready:
                self.execute(i)
                self.locked.subtract(self.graph.ops[i].inputs)
                self.drop_dead(self.graph.ops[i].inputs)
            elif v not in self.resident:
                way = self.way.get(v, RECOMPUTE)
                if way != RECOMPUTE:
                    self.make_room(self.sizes[v])
                    self.enter(v)
                    self.steps.append(page_in(v, way))
                elif not self.problem.recomputable[i]:
                    raise _StuckError
                else:
                    self.locked.update(self.graph.ops[i].inputs)
                    stack.append((v, True))
                    stack += [(u, False) for u in self.graph.ops[i].inputs if u not in self.resident]
            if len(self.steps) > _PATIENCE * len(self.graph.ops) or self.best.spent(self.limits):
                raise _StuckError

    def execute(self, i: int) -> None:
        op = self.graph.ops[i]
        outputs = [v for v in op.outputs if v not in self.resident]
        self.make_room(sum(self.sizes[v] for v in op.outputs) + op.workspace)
        self.clock += float(self.problem.op_seconds[i])
        self.steps.append(compute(i))
        for v in outputs:
            self.enter(v)
        for v in op.inputs:
            self.resident[v] = self.clock

    def enter(self, v: int) -> None:
        self.resident[v] = self.clock
        self.used += self.sizes[v]
        self.policy.returned(v)

    def forget(self, v: int) -> None:
        if v in self.resident:
            del self.resident[v]
            self.used -= self.sizes[v]

    def drop_dead(self, values: Iterable[int]) -> None:
        reads = self.graph.ops[self.now].inputs if self.now < len(self.graph.ops) else ()
        for v in values:
            if self.locked[v] <= 0 and self.next_use(v) == inf and v not in reads:
                self.forget(v)

    def make_room(self, size: int) -> None:
        while self.used + size > self.problem.ram:
            candidates = [v for v in self.resident if self.locked[v] <= 0 and self.sizes[v]]
            gone = self.policy.choose(self, candidates) if candidates else None
            if gone is None:
                raise _StuckError
            self.way[gone[0]] = gone[1]
            self.forget(gone[0])


class _Tiers:
    """The cheapest tier outside RAM that has room for a value's copy."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.room = [
            -1.0 if tier.in_ram else inf if tier.capacity is None else float(tier.capacity) for tier in problem.tiers
        ]
        self.taken: dict[int, int] = {}

    def find(self, v: int) -> int | None:
        if v in self.taken:
            return self.taken[v]
        problem = self.problem
        there = [k for k in range(len(self.room)) if problem.stored[k, v] <= self.room[k] and problem.tiers[k].exact]
        return min(there, key=lambda k: problem.in_cost[k, v] + problem.out_cost[k, v], default=None)

    def take(self, v: int, tier: int) -> None:
        if v not in self.taken:
            self.taken[v] = tier
            self.room[tier] -= float(self.problem.stored[tier, v])

    def seconds(self, v: int, tier: int) -> float:
        out = 0.0 if v in self.taken else float(self.problem.write_seconds[tier, v])
        return out + float(self.problem.read_seconds[tier, v])


@final
class _Belady(_Policy):
    def __init__(self, problem: Problem) -> None:
        self.tiers = _Tiers(problem)

    def choose(self, cache: _Cache, candidates: list[int]) -> tuple[int, int] | None:
        for v in sorted(candidates, key=lambda u: (cache.next_use(u), cache.sizes[u]), reverse=True):
            tier = self.tiers.find(v)
            if tier is not None:
                self.tiers.take(v, tier)
                return v, tier
        return None

    def returned(self, value: int) -> None:
        pass


@final
class _Capuchin(_Policy):
    def __init__(self, problem: Problem) -> None:
        self.problem, self.tiers = problem, _Tiers(problem)
        self.starts = np.concatenate([[0.0], np.cumsum(problem.op_seconds)]).tolist()

    def choose(self, cache: _Cache, candidates: list[int]) -> tuple[int, int] | None:
        free: list[tuple[float, int, int]] = []
        for v in candidates:
            tier = self.tiers.find(v)
            if tier is not None:
                until = self.starts[int(min(cache.next_use(v), len(self.starts) - 1))] - self.starts[cache.now]
                free.append((until - self.tiers.seconds(v, tier), v, tier))
        hidden = max(free, default=(-inf, -1, -1))
        again = [v for v in candidates if self.problem.recomputable[cache.graph.producer[v]]]
        if hidden[0] < 0 and again:
            return max(again, key=lambda v: cache.sizes[v] / max(self._seconds(cache, v), 1e-300)), RECOMPUTE
        if not free:
            return None
        self.tiers.take(hidden[1], hidden[2])
        return hidden[1], hidden[2]

    def returned(self, value: int) -> None:
        pass

    def _seconds(self, cache: _Cache, v: int) -> float:
        return float(self.problem.op_seconds[cache.graph.producer[v]])


@final
class _Dtr(_Policy):
    """Evicted neighbours are kept as connected components with the sum of their costs."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.graph = problem, problem.graph
        self.parent = list(range(len(self.graph.values)))
        self.total = [0.0] * len(self.parent)
        self.evicted: set[int] = set()
        self.near = [
            [
                *self.graph.ops[self.graph.producer[v]].inputs,
                *(u for i in self.graph.users[v] for u in self.graph.ops[i].outputs),
            ]
            for v in range(len(self.parent))
        ]

    def choose(self, cache: _Cache, candidates: list[int]) -> tuple[int, int] | None:
        again = [v for v in candidates if self.problem.recomputable[self.graph.producer[v]]]
        if not again:
            return None
        v = min(again, key=lambda u: self._score(cache, u))
        self.evicted.add(v)
        self.parent[v], self.total[v] = v, self._cost(v)
        for u in self.near[v]:
            if u in self.evicted and self._root(u) != self._root(v):
                a, b = self._root(u), self._root(v)
                self.parent[a] = b
                self.total[b] += self.total[a]
        return v, RECOMPUTE

    def returned(self, value: int) -> None:
        if value in self.evicted:
            self.evicted.remove(value)
            self.total[self._root(value)] -= self._cost(value)  # the component is not split, as in the paper

    def _score(self, cache: _Cache, v: int) -> float:
        roots = {self._root(u) for u in self.near[v] if u in self.evicted}
        cost = self._cost(v) + sum(self.total[r] for r in roots)
        stale = cache.clock - cache.resident[v]
        return cost / (cache.sizes[v] * stale) if stale > 0 else inf

    def _cost(self, v: int) -> float:
        return float(self.problem.op_seconds[self.graph.producer[v]])

    def _root(self, v: int) -> int:
        while self.parent[v] != v:
            self.parent[v] = self.parent[self.parent[v]]
            v = self.parent[v]
        return v


def _run(problem: Problem, policy: _Policy, engine: str, limits: Limits | None) -> Found:
    limits = limits or Limits()
    cache = _Cache(problem, policy, limits)
    try:
        steps = cache.run()
    except _StuckError:
        return cache.best.found(engine, limits, complete=not cache.best.spent(limits))
    cache.best.offer(add_copies(problem, steps))
    return cache.best.found(engine, limits, complete=True)

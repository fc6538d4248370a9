"""Checkpointing of chains by the binomial rule: in RAM alone, and with a tier behind it.

For chains whose forward operations read only what the one before them made. Where forward values have one size and the
backward pass reads each once, `revolve` executes as few operations as any schedule that does not page
(`poet.theory_chains.chain_executions`); elsewhere it is a heuristic. `hrevolve` also writes every k-th state to a tier,
for the best k: HRevolve's idea, not its table of optimal costs.

Reference:
    Griewank and Walther (2000). Algorithm 799: Revolve. ACM TOMS 26(1).
    Herrmann and Pallez (2020). H-Revolve. ACM TOMS 46(2).
"""

from itertools import product

import numpy as np
from jaxtyping import Int

from poet.events import Event, compute, page_in
from poet.problem import Problem
from poet.schedule import Found, Limits
from poet.stages import Best, add_copies

_MOST = 64  # places in RAM beyond which no more are tried
_SOME = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


class ChainError(ValueError):
    """A graph whose forward operations are no chain."""


def revolve(problem: Problem, limits: Limits | None = None) -> Found:
    """The binomial schedule for the number of places in RAM that fits and costs least.

    Args:
        problem: A chain; tiers are not used.
        limits: Time.

    Raises:
        ChainError: If the forward operations are no chain.
    """
    limits = limits or Limits()
    chain, best = _Chain(problem), Best(problem)
    for places in range(min(len(chain.forward), _MOST), 0, -1):
        best.offer(chain.steps(places, 0, 0))
        if best.spent(limits):
            break
    return best.found("revolve", limits, complete=not best.spent(limits))


def hrevolve(problem: Problem, limits: Limits | None = None) -> Found:
    """The binomial schedule between states written to a tier, for the best period and number of places in RAM.

    Args:
        problem: A chain.
        limits: Time.

    Raises:
        ChainError: If the forward operations are no chain.
    """
    limits = limits or Limits()
    chain, best = _Chain(problem), Best(problem)
    outside = [k for k, tier in enumerate(problem.tiers) if tier.exact and not tier.in_ram]
    count = len(chain.forward)
    periods = [0, *(period for period in _SOME if period < count)]
    for tier, period, places in product(outside or [0], periods if outside else [0], _SOME):
        if places <= max(count, 1):
            steps = chain.steps(places, period, tier)
            best.offer(None if steps is None else add_copies(problem, steps))
        if best.spent(limits):
            break
    return best.found("hrevolve", limits, complete=not best.spent(limits))


class _Chain:
    """Positions 0, 1, ... of the forward operations; the state at a position is all that its operation makes."""

    def __init__(self, problem: Problem) -> None:
        graph = problem.graph
        self.problem, self.graph = problem, graph
        self.forward = [i for i, op in enumerate(graph.ops) if op.phase == "forward"]
        self.position = {i: at for at, i in enumerate(self.forward)}
        self.table = _first_stored(len(self.forward), min(len(self.forward), _MOST))
        for at, i in enumerate(self.forward):
            for v in graph.ops[i].inputs:
                if at == 0 or graph.producer[v] != self.forward[at - 1]:
                    raise ChainError(
                        f"operation {graph.ops[i].name!r} reads {graph.values[v].name!r}, which the operation before "
                        "it does not make: binomial checkpointing is for chains"
                    )
        # The other operations, the positions that each reads, and those that are read after it.
        self.rest = [i for i in range(len(graph.ops)) if i not in self.position]
        self.reads = [sorted(self._positions(i)) for i in self.rest]
        self.needed: list[set[int]] = [set() for _ in self.rest]
        for number in range(len(self.rest) - 1, 0, -1):
            self.needed[number - 1] = self.needed[number] | set(self.reads[number])

    def _positions(self, i: int) -> set[int]:
        producers = (self.graph.producer[v] for v in self.graph.ops[i].inputs)
        return {self.position[p] for p in producers if p in self.position}

    def steps(self, places: int, period: int, tier: int) -> list[Event] | None:
        """Steps with some places in RAM and every `period`-th state (none if 0) written to a tier."""
        run = _Sweeps(self, places, period, tier)
        if self.forward and not run.sweep(len(self.forward) - 1):
            return None
        if period:
            run.stored -= {at for at in run.written if run.again[at] and at < len(self.forward) - 1}
        for number, i in enumerate(self.rest):
            for at in self.reads[number]:
                if at not in run.stored and not run.sweep(at):
                    return None
            run.steps.append(compute(i))
            needed = self.needed[number]
            run.stored = {
                at for at in run.stored if at in needed or (not run.again[at] and at < max(needed, default=-1))
            }
        return run.steps


class _Sweeps:
    """Forward sweeps of one schedule: what is stored in RAM, what is written to the tier."""

    def __init__(self, chain: _Chain, places: int, period: int, tier: int) -> None:
        self.chain, self.places, self.period, self.tier = chain, places, period, tier
        self.again = [bool(chain.problem.recomputable[i]) for i in chain.forward]
        self.stored: set[int] = set()
        self.written: set[int] = set()
        self.seen: set[int] = set()
        self.steps: list[Event] = []

    def sweep(self, to: int) -> bool:
        """Execute from the nearest state before a position up to it, storing states on the way."""
        base = self._base(to)
        stays = self._stays(base, to)
        for at in range(base + 1, to + 1):
            if at in self.seen and not self.again[at]:
                return False
            self.seen.add(at)
            self.steps.append(compute(self.chain.forward[at]))
            if self.period and at % self.period == self.period - 1:
                self.written.add(at)
            if at in stays or not self.again[at]:
                self.stored.add(at)
        return True

    def _base(self, to: int) -> int:
        base = max((at for at in self.stored if at < to), default=-1)
        page = max((at for at in self.written if at <= to), default=-1)
        if page > base:
            outputs = self.chain.graph.ops[self.chain.forward[page]].outputs
            self.steps.extend(page_in(v, self.tier) for v in outputs)
            self.stored.add(page)
            return page
        return base

    def _stays(self, base: int, to: int) -> set[int]:
        free, stays, at = self.places - len(self.stored), {to}, base
        while at < to:
            left = to - at
            at += int(self.chain.table[max(free, 1), left]) if free < left else 1
            free -= 1
            stays.add(at)
        return stays


def _first_stored(most: int, places: int) -> Int[np.ndarray, "p l"]:
    r"""The first state to store of l states to be reversed with p free places, for l up to `most`.

    $F(l, p) = \min_m \{ m + F(l - m, p - 1) + F(m - 1, p) \}$ executions, where $m = 1$ unless $p \ge 2$.
    """
    table = np.zeros((places + 1, most + 1), dtype=np.int64)
    fewer = np.full(most + 1, np.inf)
    fewer[0] = 0.0
    for p in range(1, places + 1):
        executions = np.zeros(most + 1)
        for beyond in range(1, most + 1):
            m = np.arange(1, (beyond if p >= 2 else 1) + 1)
            total = m + fewer[beyond - m] + executions[m - 1]
            table[p, beyond] = m[total.argmin()]
            executions[beyond] = total.min()
        fewer = executions
    return table

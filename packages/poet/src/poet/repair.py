"""From "what should be in RAM when" to a schedule: what an operation misses is brought back in the cheapest way."""

from collections.abc import Iterable
from math import inf

import numpy as np
from jaxtyping import Bool, Float

from poet.events import Event, Kind, compute, page_in
from poet.problem import Problem
from poet.stages import readable


class Prices:
    """What bringing values back costs.

    Args:
        problem: The problem.
        op: Price of executing each operation; infinite where it may not run again.
        back: Price of bringing each value back from each tier; inexact tiers count in the backward pass alone.
    """

    def __init__(self, problem: Problem, op: Float[np.ndarray, " n"], back: Float[np.ndarray, "K V"]) -> None:
        self.problem = problem
        self.op = np.where(problem.recomputable, op, inf).tolist()
        self._tables: dict[bytes, tuple[list[int], list[float]]] = {}
        self._table, self._allowed = back, readable(problem)
        self.tier: list[int] = []
        self.back: list[float] = []
        self.at(0)

    def at(self, stage: int) -> None:
        """Turn to a stage: what may come back from which tier differs."""
        allowed = self._allowed[stage]
        key = allowed.tobytes()
        if key not in self._tables:
            table = np.where(allowed, self._table, inf)
            nowhere = np.full((1, len(self.problem.graph.values)), inf)
            least: list[float] = np.concatenate([table, nowhere]).min(axis=0).tolist()
            tier: list[int] = np.concatenate([table, nowhere]).argmin(axis=0).tolist()
            self._tables[key] = (tier, least)
        self.tier, self.back = self._tables[key]

    def cheapest(self, targets: Iterable[int], present: set[int]) -> list[Event] | None:
        """The steps that bring values back: recomputations in the graph's order, page-ins right before their reader.

        The price of recomputing is that of the operation and of all it misses, as if nothing were shared.

        Args:
            targets: Values.
            present: What is in RAM.

        Returns:
            `compute` and `page_in` steps, or None if there is no way.
        """
        ops = self.problem.graph.ops
        producer = self.problem.graph.producer
        price: dict[int, float] = {}
        for v in self._closure(targets, present):
            redo = self.op[producer[v]] + sum(price.get(u, 0.0) for u in dict.fromkeys(ops[producer[v]].inputs))
            price[v] = min(redo, self.back[v])
        paged: set[int] = set()
        again: set[int] = set()
        stack = [v for v in targets if v in price]
        while stack:
            v = stack.pop()
            if price[v] == inf:
                return None
            if v in paged or producer[v] in again:
                continue
            if self.back[v] <= price[v]:
                paged.add(v)
            else:
                again.add(producer[v])
                stack += [u for u in ops[producer[v]].inputs if u in price]
        return self._ordered(targets, paged, again, present)

    def _closure(self, targets: Iterable[int], present: set[int]) -> list[int]:
        """Missing values that may have to come back, producers before readers."""
        graph = self.problem.graph
        missing: set[int] = set()
        stack = list(targets)
        while stack:
            v = stack.pop()
            if v in present or v in missing:
                continue
            missing.add(v)
            i = graph.producer[v]
            if self.op[i] < self.back[v]:  # else paging is the cheapest whatever it misses
                stack += graph.ops[i].inputs
        return sorted(missing, key=graph.producer.__getitem__)

    def _ordered(self, targets: Iterable[int], paged: set[int], again: set[int], present: set[int]) -> list[Event]:
        ops = self.problem.graph.ops
        made = {v for i in again for v in ops[i].outputs}
        steps: list[Event] = []
        waiting = paged - made - present
        for i in sorted(again):
            for u in ops[i].inputs:
                if u in waiting:
                    waiting.discard(u)
                    steps.append(page_in(u, self.tier[u]))
            steps.append(compute(i))
        for v in targets:
            if v in waiting:
                waiting.discard(v)
                steps.append(page_in(v, self.tier[v]))
        return steps


def follow(
    problem: Problem,
    wanted: Bool[np.ndarray, "stages V"],
    prices: Prices,
    value: Float[np.ndarray, "stages V"] | None = None,
) -> list[Event] | None:
    """Steps of a schedule that has a value in RAM at the start of a stage only if it is wanted there, and fits.

    Args:
        problem: What to schedule.
        wanted: Whether value v may stay in RAM into stage t.
        prices: How what is missing comes back.
        value: Where not all that is wanted fits beside the stage's operation, the least of these goes first; the
            smallest price of coming back a byte unless given.

    Returns:
        `compute` and `page_in` steps, without the copies that the page-ins need; None if something cannot come back.
    """
    graph = problem.graph
    steps: list[Event] = []
    present: set[int] = set()
    for t, op in enumerate(graph.ops):
        prices.at(t)
        brought = prices.cheapest(op.inputs, present)
        if brought is None:
            return None
        steps += [*brought, compute(t)]
        for step in brought:
            present.update(graph.ops[step.target].outputs if step.kind is Kind.COMPUTE else (step.target,))
        present.update(op.outputs)
        present = {v for v in present if wanted[t + 1, v]}
        if t + 1 < len(graph.ops):
            present = _squeeze(problem, t + 1, present, None if value is None else value[t + 1], prices)
    prices.at(len(graph.ops))
    brought = prices.cheapest([v for v, value in enumerate(graph.values) if value.keep], present)
    return None if brought is None else steps + brought


def _squeeze(
    problem: Problem, t: int, present: set[int], value: Float[np.ndarray, " V"] | None, prices: Prices
) -> set[int]:
    """What stays beside operation t."""
    op, sizes = problem.graph.ops[t], problem.sizes
    around = {*op.inputs, *op.outputs}
    room = problem.ram - problem.graph.working_set(t)
    rest = sorted(
        present - around, key=lambda v: prices.back[v] / max(sizes[v], 1) if value is None else float(value[v])
    )
    excess = sum(int(sizes[v]) for v in rest) - room
    gone = set()
    for v in rest:
        if excess <= 0:
            break
        gone.add(v)
        excess -= int(sizes[v])
    return present - gone

"""Schedules from the linear relaxation: round what stays in RAM, then bring back what is missed as cheaply as can be.

Checkmate's two-phase rounding, extended to paging: phase one rounds residency in RAM and on the tiers with one
threshold; phase two derives recomputations and page-ins (what has a copy anyway costs only its way back), simulates the
schedule, and keeps the cheapest that fits. Relaxations are solved at several shares of the RAM, as repairs need room.

Reference:
    Jain et al. (2020), Checkmate, section 5.
"""

from collections.abc import Iterator, Sequence
from math import inf, isfinite
from time import perf_counter

import numpy as np
from jaxtyping import Bool, Float

from poet.problem import Problem
from poet.repair import Prices, follow
from poet.schedule import Found, Limits
from poet.stages import Best, add_copies
from poet.tight import LinearBound, relaxation

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def solve_rounding(
    problem: Problem,
    limits: Limits | None = None,
    *,
    rng: np.random.Generator | None = None,
    reserves: Sequence[float] = (0.0, 0.1, 0.25),
    thresholds: Sequence[float] = THRESHOLDS,
    draws: int = 20,
) -> Found:
    """Round the relaxation of the tightened program.

    Args:
        problem: Of up to some hundred operations.
        limits: Time; half of it at most for each relaxation.
        rng: Where given, `draws` roundings with random thresholds, one for each value, are tried too.
        reserves: Shares of the RAM that the relaxations leave free.
        thresholds: What counts as resident.
        draws: Random roundings of each relaxation.

    Returns:
        The best schedule that fits; the bound is the plain step's cost, as the relaxation's holds in a smaller class
        than the schedules found here.
    """
    limits = limits or Limits()
    best = Best(problem)
    if problem.ram < problem.graph.largest_working_set:
        return best.found("rounding", limits, inf)
    for reserve in reserves:
        left = limits.seconds - (perf_counter() - best.started)
        if left <= 0:
            break
        ram = max(int(problem.ram * (1 - reserve)), problem.graph.largest_working_set)
        part = Limits(seconds=min(left, limits.seconds / 2))
        relaxed = relaxation(problem.with_ram(ram + problem.graph.static.total), part, quick=True)
        for wanted, prices in _roundings(problem, relaxed, thresholds, rng, draws):
            steps = follow(problem, wanted, prices, relaxed.S)
            best.offer(None if steps is None else add_copies(problem, steps))
            if best.spent(limits):
                break
    return best.found("rounding", limits)


def _roundings(
    problem: Problem,
    relaxed: LinearBound,
    thresholds: Sequence[float],
    rng: np.random.Generator | None,
    draws: int,
) -> Iterator[tuple[Bool[np.ndarray, "stages V"], Prices]]:
    graph = problem.graph
    count = len(graph.values)
    if relaxed.S is None or relaxed.D is None:  # no solution in the paper's class, or no time: all or nothing
        for wanted in (
            np.ones((len(graph.ops) + 1, count), dtype=bool),
            np.zeros((len(graph.ops) + 1, count), dtype=bool),
        ):
            yield wanted, prices_of(problem, np.zeros((len(problem.tiers), count), dtype=bool))
        return
    cuts = [np.full(count, threshold) for threshold in thresholds]
    cuts += [rng.uniform(size=count) for _ in range(draws)] if rng is not None else []
    for cut in cuts:
        wanted = cut < relaxed.S
        copied = relaxed.D.max(axis=0, initial=0.0) > cut
        for weight in (0.0, 1.0) if isfinite(problem.deadline) else (0.0,):
            yield wanted, prices_of(problem, copied, weight)


def prices_of(problem: Problem, copied: Bool[np.ndarray, "K V"], weight: float = 0.0) -> Prices:
    """Prices of bringing values back: the way out counts only for what would have no copy otherwise.

    Args:
        problem: The problem.
        copied: What has a copy anyway.
        weight: What the time of the plain step costs, in units of its cost: above 0 where the deadline presses.
    """
    base = problem.baseline_cost / problem.baseline_seconds if problem.baseline_seconds else 0.0
    second = weight * (base or 1.0)
    shown = problem.shown[:, None]
    out = problem.out_cost + second * shown * problem.write_seconds
    back = problem.in_cost + second * shown * problem.read_seconds
    op: Float[np.ndarray, " n"] = problem.op_cost + second * problem.op_seconds
    return Prices(problem, op, back + np.where(copied, 0.0, out))

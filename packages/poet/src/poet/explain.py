"""Why nothing fits, and what would."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf, isfinite
from typing import Literal, final

from poet.problem import Problem
from poet.units import show_bytes

Binding = Literal["static", "working set", "end of the step", "deadline", "recomputation alone", "tiers' room"]


@final
@dataclass(frozen=True)
class Explanation:
    """What binds.

    Attributes:
        sentence: For people: what does not fit and what to do.
        binding: Which constraint.
        operation: The operation that cannot fit, if it is one.
        smallest_ram: Bytes, static bytes included, under which a schedule exists; None if unknown.
        impossible_ram: Bytes under which it is proved that none exists; None if nothing is proved.
        smallest_seconds: Deadline under which a schedule exists; None if the deadline is not what binds.
    """

    sentence: str
    binding: Binding
    operation: str | None = None
    smallest_ram: int | None = None
    impossible_ram: int | None = None
    smallest_seconds: float | None = None


def pages_freely(problem: Problem) -> bool:
    """Whether every value can wait outside RAM for as long as it likes."""
    return any(tier.exact and not tier.in_ram and tier.capacity is None for tier in problem.tiers)


def floor_ram(problem: Problem) -> int:
    """Bytes, static bytes included, that no schedule without tiling can do without.

    The largest of the operations' working sets and of what must be in memory at the end. With a tier of unlimited room
    and no deadline it is also enough: page everything out after every operation.
    """
    graph = problem.graph
    end = sum(value.size for value in graph.values if value.keep)
    return graph.static.total + max(graph.largest_working_set, end)


def obstacle(problem: Problem) -> Explanation | None:
    """What rules every schedule out at once, if anything does."""
    graph, limit = problem.graph, problem.limit
    floor = floor_ram(problem)
    known = floor if pages_freely(problem) and not isfinite(problem.deadline) else None
    ways = f"give at least {floor} bytes ({show_bytes(floor)})"
    if problem.baseline_seconds > problem.deadline * (1 + 1e-9):
        return Explanation(
            f"the deadline of {problem.deadline:.4g} s is below the {problem.baseline_seconds:.4g} s that the plain "
            "step takes: give a longer deadline",
            "deadline", smallest_seconds=problem.baseline_seconds,
        )  # fmt: skip
    if limit >= floor:
        return None
    common = {"smallest_ram": known, "impossible_ram": floor - 1}
    if limit < graph.static.total:
        return Explanation(
            f"parameters, gradients, optimizer state, buffers and inputs alone take {show_bytes(graph.static.total)}, "
            f"more than the {show_bytes(limit)} of RAM; {ways}",
            "static", **common,
        )  # fmt: skip
    sets = [graph.working_set(i) for i in range(len(graph.ops))]
    if max(sets) > problem.ram:
        i = sets.index(max(sets))
        return Explanation(
            f"operation {graph.ops[i].name!r} needs {show_bytes(sets[i])} for its inputs, outputs and workspace, and "
            f"{show_bytes(problem.ram)} are left beside static bytes; {ways}, or make it smaller (batch, tiles)",
            "working set", operation=graph.ops[i].name, **common,
        )  # fmt: skip
    return Explanation(
        f"what must be in memory at the end of the step takes {show_bytes(floor - graph.static.total)}, and "
        f"{show_bytes(problem.ram)} are left beside static bytes; {ways}, or apply gradients as they are produced",
        "end of the step", **common,
    )  # fmt: skip


def diagnose(problem: Problem, feasible: Callable[[Problem], float | None], proved: bool) -> Explanation:
    """Which constraint binds when a search found nothing.

    Args:
        problem: What was searched.
        feasible: Seconds of some schedule of a problem, or None if none is found; a short search.
        proved: Whether it is proved that nothing fits.
    """
    if isfinite(problem.deadline):
        free_time = replace(problem, deadline=inf, objective=replace(problem.objective, energy=0.0, time=1.0))
        seconds = feasible(free_time)
        if seconds is not None:
            return Explanation(
                f"in {show_bytes(problem.limit)} of RAM no schedule {'keeps' if proved else 'was found that keeps'} "
                f"the deadline of {problem.deadline:.4g} s; one of {seconds:.4g} s is known: give a longer deadline "
                "or more RAM",
                "deadline", smallest_seconds=seconds,
            )  # fmt: skip
    smallest = _smallest(problem, feasible)
    ways = f"{show_bytes(smallest)} ({smallest} bytes) are enough" if smallest else "give more RAM"
    if not any(not tier.in_ram for tier in problem.tiers):
        sentence = f"recomputation alone cannot do with {show_bytes(problem.limit)}: {ways}; or allow a tier to page to"
        binding: Binding = "recomputation alone"
    else:
        sentence = f"the tiers have no room for what {show_bytes(problem.limit)} of RAM cannot hold: {ways}"
        binding = "tiers' room"
    if not proved:
        sentence += " (not proved: the time ran out)"
    return Explanation(sentence, binding, smallest_ram=smallest, impossible_ram=problem.limit if proved else None)


def _smallest(problem: Problem, feasible: Callable[[Problem], float | None], rounds: int = 8) -> int | None:
    """A small limit under which a schedule is known, by bisection; the plain step's peak is always one."""
    low, high = problem.limit, problem.graph.static.total + problem.graph.resident_peak
    if high <= low:
        return None
    for _ in range(rounds):
        middle = (low + high) // 2
        if middle <= low:
            break
        if feasible(problem.with_ram(middle)) is not None:
            high = middle
        else:
            low = middle
    return high

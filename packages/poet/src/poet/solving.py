"""Solve: from a graph, a device and limits to a schedule with its certificate."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf, isfinite

from poet.baselines import best_segments
from poet.baselines_chain import hrevolve, revolve
from poet.baselines_online import capuchin, dtr, page_only
from poet.bound import Bound
from poet.device import Device
from poet.events import Event
from poet.explain import diagnose, obstacle
from poet.graph import Graph
from poet.optimiser import Engine
from poet.plan import Schedule
from poet.problem import Objective, Paging, Problem, formulate
from poet.replay import ReplayError, replay
from poet.rounding import solve_rounding
from poet.schedule import FRONTIER, Certificate, Found, Limits, Status
from poet.search import EXACT, OnProgress, search
from poet.tight import solve_tight
from poet.transfers import overlap
from poet.trim import trim

SOLVERS = ("auto", "cpsat", "tight", "rounding", "reference", "reference:SCIP", "reference:GUROBI")
"""Names of the engines; `"auto"` is the search over grids with HiGHS, whatever the size."""

_HIDDEN = (1.0, 0.5, 0.0)  # shares of the transfers' time that are tried as hidden


def solve(
    graph: Graph,
    device: Device,
    ram: int | str | None = None,
    deadline: float | str | None = None,
    *,
    objective: str | Objective = "energy",
    tiers: Sequence[str] | None = None,
    paging: Paging = "overlap",
    recompute: bool = True,
    solver: str = "auto",
    time_limit: float = 60.0,
    gap: float = 1e-4,
    workers: int = 1,
    seed: int = 0,
    starts: Sequence[Sequence[Event]] = (),
    on_progress: OnProgress | None = None,
    keep_interrupted: bool = True,
) -> Schedule:
    """Schedule a training step in limited memory.

    Args:
        graph: The training step.
        device: The machine.
        ram: Bytes in all, static bytes included: `262144`, `"256KiB"`, `"40%"` of what the plain step needs. None: the
            device's RAM.
        deadline: A factor of the plain step's duration, seconds as `"90s"`, or None.
        objective: `"energy"` (modelled), `"time"`, or `poet.Objective(energy=, time=)`.
        tiers: Names of the device's tiers that may be used; None: all. `()` forbids paging.
        paging: `"overlap"`: transfers run beside the computation; `"serial"`: they stop it; `"free"`: they take no
            time, as the paper assumes.
        recompute: Whether operations may be executed again; False leaves paging alone.
        solver: Which engine; see `SOLVERS`.
        time_limit: Seconds for the search.
        gap: The search ends when objective and bound are within this share of the plain step's cost.
        workers: Threads of the optimiser; the bound is proved on one more.
        seed: Seed of the search.
        starts: Schedules to start from, of the same graph.
        on_progress: Called with a `Progress` whenever the schedule or the bound improves.
        keep_interrupted: Whether Ctrl-C ends the search and returns the best so far, instead of passing on.

    Returns:
        The schedule, or the reason why there is none in `explanation`; `.unwrap()` raises it.

    Raises:
        ValueError: If an argument is out of range, or the profile lacks what the problem needs.

    Example:
        >>> from poet import Device, legacy
        >>> graph = legacy.graph("linear")
        >>> schedule = solve(graph, Device.load("nrf52840"), ram="60%")
        >>> schedule.verify(graph).ok
        True
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, got {solver!r}")
    if not (time_limit > 0 and isfinite(time_limit)):
        raise ValueError(f"time_limit must be positive and finite seconds, got {time_limit}")
    if not (gap >= 0 and workers >= 1):
        raise ValueError(f"gap must be at least 0 and workers at least 1, got {gap} and {workers}")
    if isinstance(tiers, str):
        raise ValueError(f"tiers must be a sequence of names such as ({tiers!r},), got the string {tiers!r}")
    problem = formulate(
        graph, device, ram, deadline, objective=objective, tiers=None if tiers is None else tuple(tiers), paging=paging,
        recompute=recompute,
    )  # fmt: skip
    limits = Limits(time_limit, gap, workers, seed)
    return solve_problem(
        problem, limits, solver=solver, starts=starts, on_progress=on_progress,
        keep_interrupted=keep_interrupted,
    )  # fmt: skip


def solve_problem(
    problem: Problem,
    limits: Limits,
    *,
    solver: str = "auto",
    starts: Sequence[Sequence[Event]] = (),
    on_progress: OnProgress | None = None,
    keep_interrupted: bool = True,
) -> Schedule:
    """`solve` for a problem that is already stated."""
    began = time.monotonic()
    reason = obstacle(problem)
    if reason is not None:
        return Schedule(problem, Status.INFEASIBLE, None, None, reason)
    best: Schedule | None = None
    bound = Bound(problem.baseline_cost, "every operation is executed once")
    found: Found | None = None
    for hidden in _HIDDEN:
        left = limits.seconds - (time.monotonic() - began)
        if best is not None and (left < 0.05 * limits.seconds or not _worth(problem, best)):
            break
        stated = replace(problem, hidden=hidden)
        more = (*starts, *((best.events,) if best is not None and best.events else ()))
        again = problem.paging == "overlap" and problem.tiers and (problem.objective.time or isfinite(problem.deadline))
        share = 0.6 * left if again and hidden else left
        tell = on_progress if hidden == 1.0 else _telling(on_progress, bound.value)
        allowed = replace(limits, seconds=max(share, 0.5))
        found, proved = _engine(stated, allowed, solver, more, tell, keep_interrupted)
        if hidden == 1.0 and proved.value > bound.value:
            bound = proved
        if found.events is None:
            if hidden == 1.0:
                break
            continue
        candidate = _finish(problem, found, bound, time.monotonic() - began, limits)
        if candidate is not None and (best is None or _objective(candidate) < _objective(best)):
            best = candidate
    if best is not None:
        return best
    return _nothing(problem, found, bound, limits)


def _telling(on_progress: OnProgress | None, bound: float) -> OnProgress | None:
    """Progress of a search in which less is hidden: its own bound holds for that alone."""
    if on_progress is None:
        return None
    return lambda progress: on_progress(replace(progress, lower_bound=min(bound, progress.objective)))


def _engine(
    problem: Problem,
    limits: Limits,
    solver: str,
    starts: Sequence[Sequence[Event]],
    on_progress: OnProgress | None,
    keep_interrupted: bool,
) -> tuple[Found, Bound]:
    if solver == "tight":
        return _alone(problem, solve_tight(problem, limits))
    if solver == "rounding":
        return _alone(problem, solve_rounding(problem, limits))
    if solver.startswith("reference"):
        from poet.reference import solve_reference  # cvxpy: an extra

        name = solver.partition(":")[2] or "HIGHS"
        return _alone(problem, solve_reference(problem, limits, name))  # type: ignore[arg-type]
    began = time.monotonic()
    first = [tuple(events) for events in starts] + first_schedules(problem, 0.3 * limits.seconds)
    left = replace(limits, seconds=max(limits.seconds - (time.monotonic() - began), 0.5))
    engine: Engine = "cpsat" if solver == "cpsat" else "highs"
    return search(
        problem, left, starts=first, engine=engine, on_progress=on_progress, keep_interrupted=keep_interrupted
    )


def _alone(problem: Problem, found: Found) -> tuple[Found, Bound]:
    value = max(found.lower_bound, problem.baseline_cost)
    return found, Bound(value, f"{found.engine}, in its class")


def first_schedules(problem: Problem, seconds: float = 10.0) -> list[tuple[Event, ...]]:
    """What the classical methods make of a problem in so much time: the search starts from the best of them."""
    until = time.monotonic() + seconds
    exact = [k for k, tier in enumerate(problem.tiers) if tier.exact and not tier.in_ram]
    problem = replace(problem, device=problem.device.with_tiers(*(problem.tiers[k] for k in exact)))
    makers: list[Callable[[Problem, Limits], Found]] = []
    if problem.tiers:
        makers.append(page_only)
    if problem.recompute:
        makers += [best_segments, dtr, revolve]
        if problem.tiers:
            makers += [capuchin, hrevolve]
    made = []
    for maker in makers:
        try:
            found = maker(problem, Limits(max(until - time.monotonic(), 0.01)))
        except ValueError:  # not a graph of its kind (not a chain, say)
            continue
        if found.events is not None:
            made.append(tuple(replace(e, tier=exact[e.tier]) if e.tier >= 0 else e for e in found.events))
    return made


def _finish(problem: Problem, found: Found, bound: Bound, seconds: float, limits: Limits) -> Schedule | None:
    """Overlap transfers, replay, certify; None if the deadline is missed in the replay."""
    assert found.events is not None
    try:
        events = overlap(problem, trim(problem, found.events))
        seen = replay(problem, events)
    except ReplayError:
        return None
    if seen.peak > problem.ram or seen.makespan > problem.deadline * (1 + 1e-9):
        return None
    weights = problem.objective
    value = (weights.energy * seen.joules if weights.energy else 0.0) + weights.time * seen.makespan
    base = problem.baseline_cost
    certificate = Certificate(
        value, min(bound.value, value), base, found.engine, bound.by, f"among {FRONTIER}", seconds
    )
    close = certificate.gap <= max(limits.gap, EXACT)
    return Schedule(problem, Status.OPTIMAL if close else Status.FEASIBLE, events, certificate)


def _objective(schedule: Schedule) -> float:
    return schedule.certificate.objective if schedule.certificate else inf


def _worth(problem: Problem, best: Schedule) -> bool:
    """Whether seeing less of the transfers as hidden can help: only waits make a difference."""
    return (
        problem.paging == "overlap"
        and problem.objective.time > 0
        and bool(problem.tiers)
        and best.status is not Status.OPTIMAL
        and best.seconds > best.replay.compute_seconds * (1 + 1e-6)
    )


def _nothing(problem: Problem, found: Found | None, bound: Bound, limits: Limits) -> Schedule:
    """No schedule: say why."""
    proved = bound.value == inf or (found is not None and found.status is Status.INFEASIBLE)

    def feasible(other: Problem) -> float | None:
        if obstacle(other) is not None:
            return None
        short = replace(limits, seconds=min(limits.seconds, 5.0), gap=inf)
        made, _ = search(other, short, starts=first_schedules(other, 2.0), keep_interrupted=False)
        return None if made.events is None else replay(other, overlap(other, made.events)).makespan

    status = Status.INFEASIBLE if proved else Status.UNKNOWN
    return Schedule(problem, status, None, None, diagnose(problem, feasible, proved))

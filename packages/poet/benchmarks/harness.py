"""What the benchmarks share: one thread, the command line, searches that remember their course, the form of results."""

# ruff: noqa: E402 (the variables below must be set before numpy and torch load)
import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # one thread against one thread
os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the meter of allocations reads the profiler, which talks

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from pathlib import Path
from typing import Any, final

from common_core import benchmarks
from common_core.benchmarks import Row as Row
from common_core.benchmarks import line as line
from common_core.benchmarks import row as row
from poet.problem import Problem
from poet.schedule import Found, Limits
from poet.search import Progress
from poet.solving import solve_problem
from poet.stages import Best
from poet.verifier import verify

RESULTS = Path(__file__).parent / "results"
_OURS = ("cvxpy", "highspy", "numpy", "ortools", "repertory-common-core", "repertory-poet", "scipy", "torch")


def options(name: str, argv: Sequence[str] | None, devices: Sequence[str] = ("cpu",)) -> argparse.Namespace:
    """Read ``--device``, ``--limit``, ``--out`` and ``--quick``.

    Args:
        name: The benchmark's name, from which the default of ``--out`` is made.
        argv: Arguments; those of the process if None.
        devices: Where it can run; the first by default.

    Returns:
        Fields device, limit, out, quick, and the load of the machine at the start.
    """
    parser = argparse.ArgumentParser(prog=f"{name}.py")
    parser.add_argument("--device", choices=list(devices), default=devices[0], help="where to run")
    parser.add_argument("--limit", type=float, help="seconds for each search; by default the benchmark's own")
    parser.add_argument("--out", type=Path, help="file to write")
    parser.add_argument("--quick", action="store_true", help="toy sizes: shows that it runs, measures nothing")
    args = parser.parse_args(argv)
    if args.limit is not None and not (args.limit > 0 and isfinite(args.limit)):
        parser.error(f"--limit must be positive and finite seconds, got {args.limit}")
    if args.out is None:  # toy figures overwrite none
        args.out = RESULTS / f"{name}{'-quick' if args.quick else ''}.json"
    args.load = load()
    return args


def load() -> float:
    """The machine's load in the last minute: 1 for each busy processor."""
    return os.getloadavg()[0]


@final
@dataclass
class Course:
    """How a search went: seconds, cost and bound as shares of the plain step's, at every improvement.

    Attributes:
        began: When the clock was started: before the first schedules are made, which the search's own does not count.
        points: (seconds, overhead, proved overhead).
    """

    began: float = field(default_factory=time.perf_counter)
    points: list[tuple[float, float, float]] = field(default_factory=list)

    def __call__(self, progress: Progress) -> None:
        base = progress.baseline
        self.points.append(
            (time.perf_counter() - self.began, progress.objective / base - 1, progress.lower_bound / base - 1)
        )

    def seconds_to(self, gap: float) -> float | None:
        """When cost and bound were first that near, or None."""
        return next((seconds for seconds, above, below in self.points if above - below <= gap), None)

    def first(self) -> float | None:
        """When there was a schedule, or None."""
        return next((seconds for seconds, above, _ in self.points if isfinite(above)), None)


@final
@dataclass(frozen=True)
class Outcome:
    """What an engine made of a problem; costs in percent of the plain step's.

    Attributes:
        overhead: Cost beyond the plain step's; infinite without a schedule.
        bound: What is proved to be needed beyond the plain step's.
        seconds: By the clock.
        status: How the search ended.
        by: Engine, and what proved the bound.
        valid: Whether the independent verifier finds no fault; True without a schedule.
        course: How the search went, where it says so.
        events: The schedule.
    """

    overhead: float
    bound: float
    seconds: float
    status: str
    by: str
    valid: bool
    course: Course
    events: tuple[Any, ...] | None = None

    @property
    def gap(self) -> float:
        """Percentage points between overhead and bound."""
        return max(self.overhead - self.bound, 0.0)

    def columns(self, prefix: str = "") -> dict[str, Any]:
        """The figures as columns of a row."""
        return {
            f"{prefix}overhead": number(self.overhead), f"{prefix}bound": number(self.bound),
            f"{prefix}gap": number(self.gap), f"{prefix}seconds": self.seconds, f"{prefix}status": self.status,
            f"{prefix}by": self.by, f"{prefix}valid": self.valid,
        }  # fmt: skip


def ours(problem: Problem, seconds: float, *, gap: float = 1e-4, solver: Any = "auto", starts: Any = ()) -> Outcome:
    """`poet.solve` on a problem.

    Args:
        problem: The problem.
        seconds: Its time limit.
        gap: The search ends when it is that close, as a share of the plain step's cost.
        solver: Name of the engine.
        starts: Schedules to start from.
    """
    course = Course()
    schedule = solve_problem(problem, Limits(seconds, gap), solver=solver, starts=starts, on_progress=course)
    spent = time.perf_counter() - course.began
    proof = schedule.certificate
    if proof is None:
        return Outcome(inf, 0.0, spent, schedule.status.name, solver, True, course)
    return Outcome(
        100 * proof.overhead, 100 * (proof.lower_bound / proof.baseline - 1), spent, schedule.status.name,
        f"{proof.solver}; {proof.bound_by}", valid(problem, schedule.events), course, schedule.events,
    )  # fmt: skip


def engine(problem: Problem, seconds: float, solve: Callable[[Problem, Limits], Found], gap: float = 1e-4) -> Outcome:
    """One of the other engines on a problem; its schedule is made free of what nobody reads, as ours is."""
    began = time.perf_counter()
    found = solve(problem, Limits(seconds, gap))
    spent = time.perf_counter() - began
    base = problem.baseline_cost
    overhead = 100 * (cost(problem, found.events) / base - 1)
    bound = 100 * (found.lower_bound / base - 1)
    passed = valid(problem, found.events)
    return Outcome(overhead, bound, spent, found.status.name, found.engine, passed, Course(), found.events)


def cost(problem: Problem, events: Sequence[Any] | None) -> float:
    """Cost of a schedule; infinite if there is none or it does not fit."""
    best = Best(problem)
    if events is not None:
        best.offer(events)
    return best.cost


def valid(problem: Problem, events: Sequence[Any] | None) -> bool:
    """Whether the independent verifier finds no fault with a schedule; True if there is none."""
    if events is None:
        return True
    return verify(
        problem.graph, problem.device, events, limit=problem.limit, deadline=problem.deadline, paging=problem.paging,
        recompute=problem.recompute,
    ).ok  # fmt: skip


def number(value: float | None) -> float | None:
    """A number as JSON can hold it: None for what is not finite."""
    return float(value) if value is not None and isfinite(value) else None


def ratio(a: float, b: float) -> float | None:
    """a / b where that means something."""
    return a / b if isfinite(a) and isfinite(b) and b > 0 else None


def save(name: str, args: argparse.Namespace, rows: Sequence[Row], notes: str, peers: Sequence[str] = ()) -> None:
    """Write the results and print one line a row.

    Args:
        name: The benchmark's name.
        args: From `options`.
        rows: From `row`.
        notes: What a reader must know to judge the figures; the load of the machine is added.
        peers: Distributions whose versions are recorded beside our own, where installed.
    """
    notes += f" Load average of the machine: {args.load:.1f} at the start, {load():.1f} at the end"
    notes += f", of {os.cpu_count()} processors."
    if args.limit is not None:
        notes += f" Every search had {args.limit:g} s, by --limit."
    benchmarks.save(name, args, rows, notes, package="poet", versions=(*_OURS, *peers))

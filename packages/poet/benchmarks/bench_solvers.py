"""How long stating, relaxing and first solving take as graphs grow: ours against the tightened program; runs on cpu."""

import harness  # isort: skip  (one thread: before numpy)

import time
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

from harness import Row

from poet import Device, Tier
from poet.bound import critical_stages, windows_program
from poet.grid import all_places, build, near_places
from poet.optimiser import Optimiser, Program
from poet.problem import Problem
from poet.schedule import Limits
from poet.solving import first_schedules
from poet.theory_chains import joint_chain
from poet.tight import formulate_tight, relaxation

NAME = "bench_solvers"
SIZES = (50, 100, 200, 400, 700, 1000)
MOST = 200  # operations up to which the tightened program is stated
WINDOWS = 40
NOTES = (
    "Chains with their backward pass, T operations, forward values of one unit with room for a quarter of them, "
    "gradients of none, a tier whose transfers cost 1.5 operations. 'Stating' is making the arrays of the search's "
    "grid (all places up to 200 operations, near ones beyond) and of the bound's program; memory is what Python and "
    "numpy allocate for it at most, measured in a run of its own. The bound's program is the relaxation over some 40 "
    "windows, solved by HiGHS in a process of its own, whose start is counted. The first schedule is the best of the "
    "classical methods from which the search starts. The tightened program has the paper's variables, O(T²), and is "
    "relaxed by scipy's HiGHS with a limit of 60 s; beyond 200 operations it is not stated here. A relaxation that did "
    "not end in time has no figure."
)


def problem_of(operations: int) -> Problem:
    """A chain of that many operations."""
    graph = joint_chain(operations // 2)
    tier = Tier("disk", 0.0, 1 / 1.5, 0.0, 1 / 1.5, power=1.0)
    device = Device("toy", flops_per_second=1.0, compute_power=1.0, tiers=(tier,))
    return Problem(graph, device, max(operations // 8, 3))


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call gives, and its seconds."""
    began = time.perf_counter()
    made = call()
    return made, time.perf_counter() - began


def most(call: Callable[[], Any]) -> int:
    """Most bytes that Python and numpy hold for a call."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def rows_of(operations: int, limit: float) -> list[Row]:
    """Rows of one size."""
    problem, label = problem_of(operations), f"T = {operations}"
    cuts = critical_stages(problem, min(WINDOWS, operations // 2))

    def state() -> tuple[Any, Any]:
        places = all_places(problem.graph) if operations <= MOST else near_places(problem.graph, 3)
        return windows_program(problem, cuts)[0], build(problem, places)

    (program, grid), stating = timed(state)
    relaxed, solving = timed(lambda: relax(program, limit))
    starts, first = timed(lambda: first_schedules(problem))
    overhead = min((harness.cost(problem, events) for events in starts), default=float("inf"))
    ours = {"variables": len(grid.cost), "bound_variables": len(program.cost)}
    tight: dict[str, Any] = {}
    stated = bound = room = None
    if operations <= MOST:
        made, stated = timed(lambda: formulate_tight(problem))
        peer, seconds = timed(lambda: relaxation(problem, Limits(limit)))
        bound = max(seconds - stated, 0.0) if peer.finished else None
        room = most(lambda: formulate_tight(problem))
        base = problem.baseline_cost
        tight = {"peer_variables": len(made.program.cost), "peer_bound": 100 * (peer.value / base - 1)}
    name = "tightened program"
    proved = None if relaxed is None else 100 * relaxed / problem.baseline_cost
    extra = harness.number(100 * (overhead / problem.baseline_cost - 1))
    return [
        harness.row(f"{label}: stating", stating, stated, name, stated and stating / stated, **ours, **tight),
        harness.row(f"{label}: stating, memory", most(state), room, name, unit="B"),
        harness.row(f"{label}: relaxation", solving if relaxed is not None else None, bound, name,
                    solving / bound if bound and relaxed is not None else None, bound=proved),
        harness.row(f"{label}: first schedule", first, None, "-", overhead=extra),
    ]  # fmt: skip


def relax(program: Program, seconds: float) -> float | None:
    """The relaxation's bound beyond the plain step's cost; None if it did not end in time."""
    with Optimiser("highs") as solver:
        answer = solver.relax(program, seconds=seconds)
    return answer.bound if answer.status == "OPTIMAL" else None


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    args = harness.options(NAME, argv)
    rows = []
    for size in (20,) if args.quick else SIZES:
        some = rows_of(size, args.limit or (5.0 if args.quick else 60.0))
        print(*map(harness.line, some), sep="\n", flush=True)
        rows += some
    harness.save(NAME, args, rows, NOTES)


if __name__ == "__main__":
    main()

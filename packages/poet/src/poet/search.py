"""The search: grids of growing depth, each solved from the best schedule so far, beside an ever better bound."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np
from jaxtyping import Bool

from poet.bound import Bound, critical_stages, windows, windows_program
from poet.events import Event, Kind
from poet.gaps import gap_bound
from poet.grid import Grid, all_places, build, encode, near_places
from poet.lns import Chooser
from poet.optimiser import Engine, Optimiser, Program
from poet.problem import Problem
from poet.replay import ReplayError, replay
from poet.schedule import Found, Limits, Status
from poet.structure import Counterparts, repeated_blocks
from poet.trace_drills import resident
from poet.trim import trim

EXACT = 1e-6
"""Gap at which a schedule counts as optimal: what the optimisers' tolerances leave."""

_DEPTHS = (1, 2, 3, 5, 8, 12, 18, 27, 40, 60, 90, 135, 200)
_VARIABLES = 60_000  # beyond that, a grid is searched by neighbourhoods alone
_WHOLE = 220  # operations up to which the whole grid is used
_PATIENCE = 10  # neighbourhoods without a better schedule after which a deeper grid is taken


@final
@dataclass(frozen=True)
class Progress:
    """Where a search stands.

    Attributes:
        seconds: Since its start.
        objective: Cost of the best schedule; infinite before the first.
        lower_bound: Proved so far.
        baseline: Cost of the plain step.
        doing: What is being tried.
    """

    seconds: float
    objective: float
    lower_bound: float
    baseline: float
    doing: str


OnProgress = Callable[[Progress], None]


def everything_resident(problem: Problem) -> tuple[Event, ...]:
    """The plain step: every operation once, every value freed after its last use."""
    return tuple(resident(problem.graph))


def places_of(problem: Problem, events: Sequence[Event]) -> list[list[int]]:
    """The recomputations of a schedule, by stage."""
    places: list[list[int]] = [[] for _ in problem.graph.ops]
    stage = 0
    done: set[int] = set()
    for event in events:
        if event.kind is Kind.COMPUTE:
            if event.target not in done:
                done.add(event.target)
                stage += 1
            elif stage < len(places):
                places[stage].append(event.target)
    return places


def search(
    problem: Problem,
    limits: Limits,
    *,
    starts: Sequence[tuple[Event, ...]] = (),
    engine: Engine = "highs",
    on_progress: OnProgress | None = None,
    keep_interrupted: bool = True,
) -> tuple[Found, Bound]:
    """Find a schedule and prove how good it is.

    Args:
        problem: What to schedule; its linear costs are minimised.
        limits: Time, gap, threads, seed.
        starts: Schedules to start from; those that do not fit are passed over.
        engine: Which optimiser solves the programs.
        on_progress: Called whenever the schedule or the bound improves.
        keep_interrupted: Whether Ctrl-C ends the search and returns the best so far, instead of passing on.

    Returns:
        The schedule found (or none) and the best bound proved.
    """
    state = _Search(problem, limits, engine, on_progress)
    for events in starts:
        state.offer(events, "start")
    try:
        state.run()
    except KeyboardInterrupt:
        if not keep_interrupted:
            raise
    finally:
        state.stop()
    return state.found(), state.bound


@final
class _Search:
    def __init__(self, problem: Problem, limits: Limits, engine: Engine, on_progress: OnProgress | None) -> None:
        self.problem, self.limits, self.engine, self.on_progress = problem, limits, engine, on_progress
        self.began = time.monotonic()
        self.events: tuple[Event, ...] | None = None
        self.cost = np.inf
        self.by: str = engine
        self.bound = Bound(problem.baseline_cost, "every operation is executed once")
        self.lock = threading.Lock()
        self.solver = Optimiser(engine)
        self.prover = Optimiser("highs")
        self.thread: threading.Thread | None = None
        self.ended = threading.Event()
        self.rng = np.random.default_rng(limits.seed)
        self.hurried = False

    # What is known

    def offer(self, events: tuple[Event, ...], doing: str) -> None:
        """Take a schedule if it is valid and better."""
        try:
            events = trim(self.problem, events)
            seen = replay(self.problem, events)
        except ReplayError:
            return
        late = seen.linear_seconds > self.problem.deadline * (1 + 1e-9)
        if seen.peak <= self.problem.ram and not late and seen.cost < self.cost:
            self.events, self.cost, self.by = events, seen.cost, doing
            self.tell(doing)

    def prove(self, bound: Bound) -> None:
        """Take a bound if it is better."""
        with self.lock:
            if bound.value > self.bound.value:
                self.bound = bound
        if not self.ended.is_set():
            self.tell(bound.by)

    def tell(self, doing: str) -> None:
        if self.on_progress is not None:
            now = time.monotonic() - self.began
            self.on_progress(Progress(now, self.cost, self.bound.value, self.problem.baseline_cost, doing))

    def left(self) -> float:
        return self.limits.seconds - (time.monotonic() - self.began)

    def done(self) -> bool:
        """Whether the gap is small enough, or the time is over."""
        return self.left() <= 0 or self.close_enough()

    def close_enough(self) -> bool:
        slack = max(self.limits.gap, EXACT) * self.problem.baseline_cost
        return self.cost - self.bound.value <= slack or self.bound.value == np.inf

    # The search

    def run(self) -> None:
        problem = self.problem
        if problem.graph.resident_peak <= problem.ram:
            self.offer(everything_resident(problem), "everything stays resident")
        if self.done():
            return
        self.thread = threading.Thread(target=self._prove, daemon=True)
        self.thread.start()
        self._climb()
        while not self.done() and self.thread.is_alive():
            self.thread.join(0.05)

    def _climb(self) -> None:
        """Solve grids of growing depth; where one is not solved in time, go on by neighbourhoods."""
        for rung in self._rungs():
            depth, places, last = rung
            grid = self._grid(places)
            if self.events is not None and (self.hurried or len(grid.cost) > _VARIABLES):
                self._neighbourhoods(grid, last=last or len(grid.cost) > _VARIABLES)
            else:
                self.hurried = not self._solve(grid, f"grid of depth {depth}", last)
            if self.done():
                return

    def _rungs(self) -> Iterator[tuple[str, list[list[int]], bool]]:
        """Depth, places, and whether it is the last."""
        graph, n = self.problem.graph, len(self.problem.graph.ops)
        before: list[list[int]] = []
        for depth in _DEPTHS:
            places = near_places(graph, depth, self.problem.recomputable) if depth < n else before
            if places != before:
                yield str(depth), places, False
            before = places
        yield "all", all_places(graph) if n <= _WHOLE else before, True

    def _grid(self, places: list[list[int]]) -> Grid:
        """The grid of some places and those of the best schedule."""
        if self.events is not None:
            used = places_of(self.problem, self.events)
            places = [sorted({*a, *b}) for a, b in zip(places, used, strict=True)]
        return build(self.problem, places)

    def _solve(self, grid: Grid, doing: str, last: bool) -> bool:
        """Solve one grid; whether it was solved to the end."""
        hint = self._hint(grid)
        program = Program(grid.cost, grid.matrix, grid.upper, grid.base)
        slack = self.limits.gap * 0.5 * self.problem.baseline_cost

        def better(x: Bool[np.ndarray, " x"], _bound: float) -> bool:
            self.offer(grid.decode(x), doing)
            return self.done()

        seconds = self.left() if last else max(min(self.left(), 4.0), 0.4 * self.left())
        answer = self.solver.minimise(
            program, seconds=seconds, hint=hint, workers=self.limits.workers, seed=self.limits.seed, gap=slack,
            on_better=better,
        )  # fmt: skip
        if answer.x is not None:
            self.offer(grid.decode(answer.x), doing)
        if last and self.engine == "highs" and len(self.problem.graph.ops) <= _WHOLE and not self.problem.capped:
            if answer.status == "INFEASIBLE":
                self.prove(Bound(np.inf, "the whole grid is infeasible"))
            elif np.isfinite(answer.bound):
                self.prove(Bound(grid.base + answer.bound - 1e-7 * grid.base, "branch and bound on the whole grid"))
        return answer.status in ("OPTIMAL", "INFEASIBLE")

    def _neighbourhoods(self, grid: Grid, last: bool) -> None:
        """Improve the best schedule part by part, until nothing comes of it any more or the time is over."""
        rng = self.rng
        program = Program(grid.cost, grid.matrix, grid.upper, grid.base)
        x = self._hint(grid)
        if x is None:
            return
        relaxation = None
        if self.engine == "highs":
            relaxation = self.solver.relax(program, seconds=0.2 * self.left()).relaxed
        chooser = Chooser(grid, relaxation, rng)
        blocks = repeated_blocks(self.problem.graph)
        alike = None if blocks is None else Counterparts(grid, blocks)
        fruitless = 0
        while not self.done() and (last or fruitless < _PATIENCE):
            kind, free_variables = chooser.draw(x)
            before = self.cost
            began, allowed = time.monotonic(), min(max(self.left(), 0.1), 8.0)
            answer = self.solver.minimise(
                program, seconds=allowed, hint=x, free=free_variables, workers=self.limits.workers,
                seed=int(rng.integers(2**31)),
            )  # fmt: skip
            if answer.x is not None and grid.cost @ answer.x < grid.cost @ x - 1e-12 * abs(grid.base):
                x = answer.x if alike is None else alike.spread(grid, answer.x, x)
                self.offer(grid.decode(x), f"neighbourhoods ({kind})")
            fruitless = 0 if self.cost < before else fruitless + 1
            easy = answer.status == "OPTIMAL" and time.monotonic() - began < 0.5 * allowed
            chooser.learn(kind, better=self.cost < before, solved=easy)

    def _hint(self, grid: Grid) -> Bool[np.ndarray, " x"] | None:
        if self.events is None:
            return None
        x = encode(grid, self.events)
        if x is None or (grid.matrix @ x > grid.upper + 1e-6 * (1 + np.abs(grid.upper))).any():
            return None
        return x > 0.5

    # The bound, on another core

    def _prove(self) -> None:
        problem, n = self.problem, len(self.problem.graph.ops)
        try:
            self._prove_by(lambda: Bound(gap_bound(problem), "linear relaxation over the gaps between readers"))
            counts = [count for count in (4, 10, 20, 40, 80) if count < n and count * n < 40_000]
            cuts = [critical_stages(problem, count) for count in counts]
            if n <= 300:
                cuts.append(list(range(1, n)))
            for chosen in cuts:
                self._prove_by(lambda chosen=chosen: windows(problem, self.prover, chosen, seconds=self.left()))
            for chosen in cuts[1:2] + cuts[-1:]:
                self._branch(chosen)
        except Exception:
            if not self.ended.is_set():
                raise

    def _prove_by(self, relaxation: Callable[[], Bound]) -> None:
        if not self.ended.is_set() and not self.done():
            bound = relaxation()
            self.prove(replace(bound, value=bound.value - 1e-9 * self.problem.baseline_cost))

    def _branch(self, cuts: list[int]) -> None:
        """Branch and bound on a relaxation: its bound holds too."""
        if self.ended.is_set() or self.done():
            return
        program, base = windows_program(self.problem, cuts)
        answer = self.prover.minimise(program, seconds=max(self.left() - 0.5, 0.1), seed=self.limits.seed)
        value = base + answer.bound - 1e-7 * base
        self.prove(Bound(value, f"branch and bound over {len(cuts) + 1} windows"))

    # The end

    def stop(self) -> None:
        self.ended.set()
        self.prover.retire()
        self.solver.retire()
        if self.thread is not None:
            self.thread.join()

    def found(self) -> Found:
        seconds = time.monotonic() - self.began
        if self.events is not None:
            best = Status.OPTIMAL if self.close_enough() else Status.FEASIBLE
            return Found(best, self.events, self.bound.value, self.by, seconds)
        status = Status.INFEASIBLE if self.bound.value == np.inf else Status.UNKNOWN
        return Found(status, None, self.bound.value, self.engine, seconds)

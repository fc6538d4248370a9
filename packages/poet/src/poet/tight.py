r"""The paper's program, tightened: the same schedules and the same optimum, with a far better linear relaxation.

Against `poet.reference`: only pairs i ≤ t exist; the memory of a stage is a running sum over those; and the big-M rows
that say when a value may be freed become

$$F_{tvk} \le R_{tk}, \qquad F_{tvk} + S_{t+1,v} \le 1, \qquad F_{tvk} + R_{tj} \le 1 \text{ for later readers } j$$

F is then integral by itself, and continuous. Further rows change no integral point: of all frees of a value in a stage
and its staying in RAM, at most one happens, and only to what is there,

$$\sum_k F_{tvk} + S_{t+1,v} \le 1, \qquad \sum_k F_{tvk} + S_{t+1,v} \le S_{tv} + R_{tv} + I_{tv}$$

without which fractional points free a value more often than they hold it; and what is not there comes back by its next
reader u, recomputed or from a copy, $S_{tv} + \sum_{t \le s \le u} R_{sp(v)} + D_{u-1,v} \ge 1$.

Several tiers, copies in RAM and tiers of limited size are covered: copies take their room from the stage in which they
are made to the one in which they are last read.

The relaxation bounds the paper's class (`STAGES`), which is smaller than `poet.schedule.FRONTIER`: there a transfer may
happen within a stage. Where RAM is tight the optimum of the larger class can be below this bound; see `poet.bound`
and `poet.gaps` for bounds that hold there.

Reference:
    Patil et al. (2022), section 4; Jain et al. (2020), Checkmate, section 4.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import final

import numpy as np
from jaxtyping import Float, Int
from scipy import optimize

from poet.linear import NONE, Builder, Linear, minimise
from poet.problem import Problem
from poet.schedule import Found, Limits
from poet.stages import Best, Plan, readable

STAGES = "schedules in stages: recomputations within a stage in the graph's order, transfers between stages"
"""The class of the paper's program."""

_UNITS = 1e4  # the plain step costs this much: solvers' absolute tolerances are then nothing


@final
@dataclass(frozen=True)
class Places:
    """Where the variables are: indices into x, `poet.linear.NONE` where there is none.

    Attributes:
        run: R, operation i runs in stage t.
        ram: S, value v is in RAM when stage t starts; row T is the end of the step.
        copy: D, tier k holds a copy of it by then.
        read: I, paged in at the end of stage t.
        written: O, paged out at the start of stage t.
    """

    run: Int[np.ndarray, "T T"]
    ram: Int[np.ndarray, "T+1 V"]
    copy: Int[np.ndarray, "T K V"]
    read: Int[np.ndarray, "T K V"]
    written: Int[np.ndarray, "T K V"]


@final
@dataclass(frozen=True)
class Tight:
    """The tightened program.

    Attributes:
        problem: What it schedules.
        program: The program; costs are in multiples of `scale`.
        scale: One unit of its costs.
        places: Where its variables are.
    """

    problem: Problem
    program: Linear
    scale: float
    places: Places

    def plan(self, x: Float[np.ndarray, " x"]) -> Plan:
        """The decisions of an integral solution."""
        at = self.places
        run, ram, read, written = (take(x, index) > 0.5 for index in (at.run, at.ram, at.read, at.written))
        return Plan(run, ram, read, written)


@final
@dataclass(frozen=True)
class LinearBound:
    """The linear relaxation.

    Attributes:
        value: Proved: no schedule of the class `STAGES` costs less. Infinite if there is none.
        finished: Whether the solver came to an end; else the value is the plain step's cost.
        R: How far operation i runs in stage t; None without a solution, as all that follow.
        S: How far value v is in RAM at the start of stage t.
        D: How far tier k holds a copy of it by then.
        I: How far it is paged in at the end of stage t.
        O: How far it is paged out.
    """

    value: float
    finished: bool
    R: Float[np.ndarray, "T T"] | None = None
    S: Float[np.ndarray, "T+1 V"] | None = None
    D: Float[np.ndarray, "T K V"] | None = None
    I: Float[np.ndarray, "T K V"] | None = None  # noqa: E741
    O: Float[np.ndarray, "T K V"] | None = None  # noqa: E741


def solve_tight(problem: Problem, limits: Limits | None = None) -> Found:
    """Solve the tightened program by scipy's HiGHS.

    Args:
        problem: Of up to some 30 operations in reasonable time.
        limits: Time and gap; threads and seed are HiGHS's own.

    Returns:
        The schedule and the bound that HiGHS proved, both for the class `STAGES`.
    """
    limits = limits or Limits()
    best = Best(problem)
    if problem.ram < problem.graph.largest_working_set:
        return best.found("tight", limits, inf)
    tight = formulate_tight(problem)
    program = tight.program
    result = optimize.milp(
        program.cost,
        integrality=program.integral.astype(int),
        bounds=optimize.Bounds(program.lower, program.upper),
        constraints=optimize.LinearConstraint(program.matrix, program.row_lower, program.row_upper),
        options={"time_limit": float(limits.seconds), "mip_rel_gap": limits.gap},
    )
    if result.status == 2:
        return best.found("tight", limits, inf)
    if result.x is not None:
        best.offer(tight.plan(np.asarray(result.x)).steps(problem))
    bound = result.mip_dual_bound
    proved = None if bound is None or not isfinite(bound) else float(bound) * tight.scale
    return best.found("tight", limits, proved)


def relaxation(problem: Problem, limits: Limits | None = None, *, quick: bool = False) -> LinearBound:
    """The linear relaxation of the tightened program, by scipy's HiGHS.

    The value is computed from the multipliers by weak duality, so the solver's tolerances cannot make it too high.

    Args:
        problem: Of up to some hundred operations in a minute.
        limits: Time.
        quick: Whether to leave the rows about coming back out: a lower value, in a third of the time.
    """
    limits = limits or Limits()
    base = problem.baseline_cost
    if problem.ram < problem.graph.largest_working_set:
        return LinearBound(inf, True)
    tight = formulate_tight(problem, quick=quick)
    relaxed = minimise(tight.program, limits.seconds)
    value = max(relaxed.bound * tight.scale, base)
    if relaxed.x is None:
        return LinearBound(value, relaxed.finished)
    x = relaxed.x
    at = tight.places
    R, S, D, I, O = (take(x, index) for index in (at.run, at.ram, at.copy, at.read, at.written))  # noqa: E741
    return LinearBound(value, relaxed.finished, R, S, D, I, O)


def take(x: Float[np.ndarray, " x"], index: Int[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Values of the variables at `index`, 0 where there is none."""
    return np.where(index == NONE, 0.0, x[index])


def formulate_tight(problem: Problem, *, quick: bool = False) -> Tight:
    """State the tightened program.

    Args:
        problem: What to schedule.
        quick: See `relaxation`.

    Returns:
        The program: T²/2 variables for each of R, S, U, as many for each tier and D, I, O, and T |E| / 2 for F.
    """
    lp = Builder()
    scale = (problem.baseline_cost or 1.0) / _UNITS
    places = _variables(lp, problem, scale)
    _residency(lp, problem, places)
    if not quick:
        _comeback(lp, problem, places)
    _memory(lp, problem, places)
    _tiers(lp, problem, places)
    _deadline(lp, problem, places)
    return Tight(problem, lp.build(), scale, places)


def _variables(lp: Builder, problem: Problem, scale: float) -> Places:
    """Only pairs of a stage and what can already exist in it."""
    graph = problem.graph
    T, K = len(graph.ops), len(problem.tiers)
    stage = np.arange(T)
    kept = np.array([value.keep for value in graph.values])
    first = np.eye(T, dtype=bool)
    again = (stage[None, :] < stage[:, None]) & problem.recomputable[None, :]
    exists = np.array(graph.producer)[None, :] < np.arange(T + 1)[:, None]  # when stage t starts
    exists[T] = kept
    at_end = exists & (np.arange(T + 1) == T)[:, None]
    allowed = readable(problem)
    in_tier = np.repeat(exists[:T, None, :], K, axis=1) & np.any(allowed, axis=0, keepdims=True)
    back = in_tier & ((stage < T - 1)[:, None] | kept[None, :])[:, None, :] & allowed[1:]
    return Places(
        run=lp.variables(first | again, problem.op_cost / scale, lower=first.astype(float)),
        ram=lp.variables(exists, lower=at_end.astype(float)),
        copy=lp.variables(in_tier),
        read=lp.variables(back, problem.in_cost / scale),
        written=lp.variables(in_tier, problem.out_cost / scale),
    )


def _residency(lp: Builder, problem: Problem, at: Places) -> None:
    """An operation finds its inputs; a value is in RAM, or copied, if it was or is brought there."""
    graph = problem.graph
    producer = np.array(graph.producer)
    value, reader = _pairs(graph.users)
    there = at.run[:, reader] != NONE
    rows = [at.run[:, reader], at.run[:, producer[value]], at.ram[:-1, value]]
    lp.rows([(sign, index[there]) for sign, index in zip((1, -1, -1), rows, strict=True)], upper=0.0)
    there = at.ram[1:] != NONE
    reads = np.moveaxis(at.read, 1, 2)[there]  # one column for each tier
    made = at.run[:, producer][there]
    lp.rows([(1, at.ram[1:][there]), (-1, at.ram[:-1][there]), (-1, made), (-1, reads)], upper=0.0)
    lp.rows([(1, at.copy[1:].ravel()), (-1, at.copy[:-1].ravel()), (-1, at.written[:-1].ravel())], upper=0.0)
    lp.rows([(1, at.copy[0].ravel())], upper=0.0)
    lp.rows([(1, at.read.ravel()), (-1, at.copy.ravel())], upper=0.0)
    ram = np.repeat(at.ram[:-1, None, :], len(problem.tiers), axis=1)
    lp.rows([(1, at.written.ravel()), (-1, ram.ravel())], upper=0.0)


def _comeback(lp: Builder, problem: Problem, at: Places) -> None:
    """What is not there at the start of a stage comes back before its next reader: recomputed, or from a copy."""
    graph = problem.graph
    T, V = len(graph.ops), len(graph.values)
    if any(tier.in_ram or tier.capacity is not None for tier in problem.tiers):
        return  # there a copy may be gone again by then
    producer = np.array(graph.producer)
    Q = lp.variables(np.tri(T + 1, T, -1, dtype=bool), upper=float(T), integral=False)  # runs from stage t on
    there = Q[:-1] != NONE
    lp.rows([(1, Q[:-1][there]), (-1, Q[1:][there]), (-1, at.run[there])], lower=0.0, upper=0.0)
    lp.rows([(1, Q[-1])], upper=0.0)
    reads = np.zeros((T + 1, V), dtype=bool)
    for t, op in enumerate(graph.ops):
        reads[t, list(op.inputs)] = True
    reads[T] = [value.keep for value in graph.values]
    following = np.full((T + 2, V), T + 1)
    for t in range(T, -1, -1):
        following[t] = np.where(reads[t], t, following[t + 1])
    stage, value = np.nonzero((at.ram[:-1] != NONE) & (following[:T] <= T))
    until = following[stage, value]
    made = producer[value]
    end = Q[np.minimum(until + 1, T), made]
    copied = at.copy[until - 1, :, value]
    lp.rows([(1, at.ram[stage, value]), (1, Q[stage, made]), (-1, end), (1, copied)], lower=1.0)


def _memory(lp: Builder, problem: Problem, at: Places) -> None:
    """U_tk, the memory while operation k runs in stage t, in units of the RAM, and the frees in between."""
    graph = problem.graph
    T = len(graph.ops)
    unit = max(problem.ram, 1)
    m = problem.sizes / unit
    outputs = np.array([m[list(op.outputs)].sum() for op in graph.ops])
    U = lp.variables(np.tri(T, dtype=bool), integral=False)
    F, pair, padded = _frees(lp, problem, at)
    copies, stored = _copies_in_ram(problem, at)
    start = [(-m, at.ram[:-1]), (-stored, copies[0]), (-stored, copies[1])]
    lp.rows([(1, U[:, 0]), (-outputs[0], at.run[:, 0]), *start], lower=0.0, upper=0.0)
    t, k = np.nonzero(np.tri(T, T - 1, -1, dtype=bool))
    freed = np.where(padded[k] == NONE, NONE, F[t[:, None], padded[k]])
    frees = np.append(m[pair[:, 0]], 0.0)[padded[k]]
    lp.rows(
        [(1, U[t, k + 1]), (-1, U[t, k]), (-outputs[k + 1], at.run[t, k + 1]), (frees, freed)], lower=0.0, upper=0.0
    )
    t, k = np.nonzero((problem.workspace > 0)[None, :] & np.tri(T, dtype=bool))
    lp.rows([(1, U[t, k]), (problem.workspace[k] / unit, at.run[t, k])], upper=1.0)
    lp.rows([(m, at.ram[1:]), (stored, copies[0]), (stored, copies[1])], upper=1.0)  # when the pages have come in


def _frees(
    lp: Builder, problem: Problem, at: Places
) -> tuple[Int[np.ndarray, "T P"], Int[np.ndarray, "P 2"], Int[np.ndarray, "T J"]]:
    """F, by stage and pair (value, operation after which it may be freed); the pairs; those of each operation."""
    graph = problem.graph
    T = len(graph.ops)
    after = [[*dict.fromkeys(op.inputs), *(op.outputs if len(op.outputs) > 1 else ())] for op in graph.ops]
    pair = np.array([(v, k) for k, values in enumerate(after) for v in values], dtype=np.int64).reshape(-1, 2)
    padded = np.full((T, max(map(len, after), default=0)), NONE)
    numbers = iter(range(len(pair)))
    for k, values in enumerate(after):
        padded[k, : len(values)] = [next(numbers) for _ in values]
    value, op = pair[:, 0], pair[:, 1]
    there = (np.arange(T)[:, None] > op[None, :]) & (at.run[:, op] != NONE) & (problem.sizes[value] > 0)[None, :]
    F = lp.variables(there, integral=False)
    lp.rows([(1, F[there]), (-1, at.run[:, op][there])], upper=0.0)
    _once(lp, problem, at, F, pair)
    return F, pair, padded


def _once(lp: Builder, problem: Problem, at: Places, F: Int[np.ndarray, "T P"], pair: Int[np.ndarray, "P 2"]) -> None:
    """Of the frees of a value in a stage, and its staying, at most one happens; none before a later reader."""
    graph = problem.graph
    producer = np.array(graph.producer)
    of: list[list[int]] = [[] for _ in graph.values]
    for p, v in enumerate(pair[:, 0].tolist()):
        of[v].append(p)
    width = max(map(len, of))
    padded = np.array([[*numbers, *[len(pair)] * (width - len(numbers))] for numbers in of])
    frees = np.append(F, np.full((len(F), 1), NONE), axis=1)[:, padded]  # stage, value, one column a pair
    some = (frees != NONE).any(axis=2)
    made, ram, stays = at.run[:, producer][some], at.ram[:-1][some], at.ram[1:][some]
    reads = np.moveaxis(at.read, 1, 2)[some]
    lp.rows([(1, frees[some]), (1, stays)], upper=1.0)
    lp.rows([(1, frees[some]), (-1, ram), (-1, made)], upper=0.0)
    lp.rows([(1, frees[some]), (1, stays), (-1, ram), (-1, made), (-1, reads)], upper=0.0)
    value, reader = _pairs(graph.users)
    earlier = np.append(pair[:, 1], len(graph.ops))[padded[value]] < reader[:, None]
    before = np.where(earlier[None], frees[:, value], NONE)
    both = (before != NONE).any(axis=2) & (at.run[:, reader] != NONE)
    lp.rows([(1, before[both]), (1, at.run[:, reader][both])], upper=1.0)


def _copies_in_ram(
    problem: Problem, at: Places
) -> tuple[tuple[Int[np.ndarray, "T n"], Int[np.ndarray, "T n"]], Float[np.ndarray, " n"]]:
    """Copies that take RAM in a stage (there before, or made in it), and what each takes, in units of the RAM."""
    inside = [k for k, tier in enumerate(problem.tiers) if tier.in_ram]
    T = len(problem.graph.ops)
    stored = problem.stored[inside].ravel() / max(problem.ram, 1)
    return (at.copy[:, inside].reshape(T, -1), at.written[:, inside].reshape(T, -1)), stored


def _tiers(lp: Builder, problem: Problem, at: Places) -> None:
    """Copies fit in tiers of limited size."""
    for k, tier in enumerate(problem.tiers):
        if tier.capacity is not None:
            share = problem.stored[k] / max(tier.capacity, 1)
            lp.rows([(share, at.copy[:, k]), (share, at.written[:, k])], upper=1.0 if tier.capacity else 0.0)


def _deadline(lp: Builder, problem: Problem, at: Places) -> None:
    """Computation, and transfers as far as they are not hidden, within the deadline; so is each channel's load."""
    if not isfinite(problem.deadline):
        return
    T, limit = len(problem.graph.ops), problem.deadline
    reads = np.tile((problem.read_seconds / limit).ravel(), T)[None]
    writes = np.tile((problem.write_seconds / limit).ravel(), T)[None]
    shown = np.tile(np.repeat(problem.shown, len(problem.graph.values)), T)[None]
    busy = np.tile(problem.op_seconds / limit, T)[None]
    run, read, written = (index.reshape(1, -1) for index in (at.run, at.read, at.written))
    lp.rows([(busy, run), (shown * reads, read), (shown * writes, written)], upper=1.0)
    for k, tier in enumerate(problem.tiers):
        if problem.paging == "overlap" and not tier.in_ram:
            ins = (np.tile(problem.read_seconds[k] / limit, T)[None], at.read[:, k].reshape(1, -1))
            outs = (np.tile(problem.write_seconds[k] / limit, T)[None], at.written[:, k].reshape(1, -1))
            for load in ([ins], [outs]) if tier.duplex else ([ins, outs],):
                lp.rows(load, upper=1.0)


def _pairs(lists: Sequence[Sequence[int]]) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """(position, entry) of every entry of every list."""
    position = np.repeat(np.arange(len(lists)), [len(entries) for entries in lists])
    return position, np.array([entry for entries in lists for entry in entries], dtype=np.int64)

r"""The paper's program, equation by equation, in cvxpy: to be read, and to be compared with.

Stage t ends with the first execution of operation t. Binary: $R_{ti}$ (operation i runs in stage t), $S_{tv}$ (value v
is in RAM when stage t starts), $D_{tv}$ (a copy is on the tier by then), $I_{tv}$, $O_{tv}$ (paged in, out, in it),
$F_{tvk}$ (v is freed after operation k in stage t). It has $6T^2 + T|E|$ variables: for graphs of some ten operations.
`poet.tight` solves the same program much faster.

Covered: workspace, operations with several outputs, values kept to the end, operations that must not run again, the
time of transfers in the deadline. Not covered: more than one tier, copies in RAM, tiers of limited size.

Reference:
    Patil et al. (2022), section 4; Jain et al. (2020), Checkmate, MLSys, section 4.
"""

import contextlib
import warnings
from dataclasses import dataclass
from importlib import import_module
from math import inf, isfinite
from typing import Any, final

import numpy as np

from poet.problem import Problem
from poet.schedule import Found, Limits
from poet.stages import Best, Plan, StepError

SOLVERS = ("HIGHS", "SCIP", "SCIPY", "GUROBI", "CBC", "GLPK_MI")


_UNITS = 1e4  # the plain step costs this much: solvers' absolute tolerances (1e-6) are then nothing


class ReferenceUnavailableError(ValueError):
    """cvxpy, or the solver asked for, is not installed."""


def solve_reference(problem: Problem, limits: Limits | None = None, solver: str = "HIGHS") -> Found:
    """Solve the paper's program.

    Args:
        problem: At most one tier; a graph of some ten operations.
        limits: Time and gap.
        solver: One of `SOLVERS` that this environment has.

    Returns:
        The schedule, and the solver's bound where cvxpy passes one on (else the plain step's cost).

    Raises:
        ReferenceUnavailableError: If cvxpy or the solver is missing.
        ValueError: If the problem has what the paper's program does not know.
    """
    cp = _cvxpy(solver)
    limits = limits or Limits()
    _check(problem)
    best = Best(problem)
    if problem.ram < problem.graph.largest_working_set:
        return best.found(f"reference-{solver}", limits, inf)
    program = formulate_reference(problem)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Solution may be inaccurate")  # the replay judges it
            program.program.solve(solver=solver, **_options(solver, limits))
    except cp.error.SolverError:  # "no solution found in the time given" reaches us as this, too
        return best.found(f"reference-{solver}", limits)
    status = program.program.status
    if status in (cp.INFEASIBLE, cp.INFEASIBLE_INACCURATE, cp.settings.INFEASIBLE_OR_UNBOUNDED):
        return best.found(f"reference-{solver}", limits, inf)
    if program.R.value is not None:
        with contextlib.suppress(StepError):  # at a time limit, values that are no solution are handed back too
            best.offer(program.plan().steps(problem))
    return best.found(f"reference-{solver}", limits, _bound(program, solver, limits, status == cp.OPTIMAL))


@final
@dataclass(frozen=True)
class Reference:
    """The program and its variables (cvxpy objects).

    Attributes:
        program: The cvxpy problem; it minimises the cost as a multiple of `scale`.
        R: T × T, executed.
        S: (T + 1) × V, in RAM at the start of a stage; the last row is the end.
        I: T × V, paged in.
        O: T × V, paged out.
        paging: Whether there is a tier.
        scale: One unit of its objective.
    """

    program: Any
    R: Any
    S: Any
    I: Any  # noqa: E741
    O: Any  # noqa: E741
    paging: bool
    scale: float

    def plan(self) -> Plan:
        """The decisions of the solution found."""
        run, ram, read, written = (np.asarray(x.value) > 0.5 for x in (self.R, self.S, self.I, self.O))
        tiers = 1 if self.paging else 0
        return Plan(run, ram, read[:, None][:, :tiers], written[:, None][:, :tiers])


def formulate_reference(problem: Problem) -> Reference:
    """State the paper's program.

    Args:
        problem: At most one tier.

    Raises:
        ReferenceUnavailableError: If cvxpy is missing.
        ValueError: If the problem has what the paper's program does not know.
    """
    cp = _cvxpy(None)
    _check(problem)
    graph = problem.graph
    T, V = len(graph.ops), len(graph.values)
    R = cp.Variable((T, T), boolean=True, name="R")
    S = cp.Variable((T + 1, V), boolean=True, name="S")
    D = cp.Variable((T + 1, V), boolean=True, name="D")
    I, O = (cp.Variable((T, V), boolean=True, name=name) for name in "IO")  # noqa: E741
    made = np.zeros((T, V))  # made[i, v]: operation i produces value v
    for v, i in enumerate(graph.producer):
        made[i, v] = 1.0
    later = np.arange(T)[:, None] <= np.array(graph.producer)[None, :]  # value v does not exist when stage t starts
    rules = [
        cp.diag(R) == 1,  # stage t executes operation t ...
        cp.multiply(R, np.triu(np.ones((T, T)), 1)) == 0,  # ... and none after it
        cp.multiply(S[:T] + D[:T] + I + O, later) == 0,
        S[1:] <= S[:-1] + R @ made + I,  # in RAM: as before, computed or paged in
        D[1:] <= D[:-1] + O,  # on the tier: as before, or paged out
        D[0] == 0,
        D[:-1] >= I,
        S[:-1] >= O,
    ]
    for v, i in enumerate(graph.producer):
        rules += [R[:, k] <= R[:, i] + S[:-1, v] for k in graph.users[v]]  # an operation finds its inputs
    rules += [S[T, v] == 1 for v, value in enumerate(graph.values) if value.keep]
    rules += [cp.sum(R[:, i]) == 1 for i in range(T) if not problem.recomputable[i]]
    if not problem.tiers:
        rules += [I == 0, O == 0]
    rules += _memory(cp, problem, R, S)
    rules += _deadline(cp, problem, R, I, O)
    scale = (problem.baseline_cost or 1.0) / _UNITS
    cost = cp.sum(R @ (problem.op_cost / scale))
    if problem.tiers:
        cost += cp.sum(I @ (problem.in_cost[0] / scale)) + cp.sum(O @ (problem.out_cost[0] / scale))
    return Reference(cp.Problem(cp.Minimize(cost), rules), R, S, I, O, bool(problem.tiers), scale)


def _memory(cp: Any, problem: Problem, R: Any, S: Any) -> list[Any]:
    """U_tk, the memory while operation k runs in stage t, and the frees that lower it, in units of the RAM."""
    graph = problem.graph
    T = len(graph.ops)
    m = problem.sizes / max(problem.ram, 1)
    outputs = np.array([sum(m[v] for v in op.outputs) for op in graph.ops])
    U = cp.Variable((T, T), nonneg=True, name="U")
    rules = [S @ m <= 1, U[:, 0] == outputs[0] * R[:, 0] + S[:-1] @ m]
    for k, op in enumerate(graph.ops):
        rules.append(U[:, k] + R[:, k] * (op.workspace / max(problem.ram, 1)) <= 1)
        # An operation with several outputs may free one of them at once: nobody else in the stage may read it.
        pairs = [*dict.fromkeys(op.inputs), *(op.outputs if len(op.outputs) > 1 else ())]
        freed = 0
        for v in pairs:
            users = [j for j in graph.users[v] if j > k]
            hazards = (1 - R[:, k]) + S[1:, v] + sum(R[:, j] for j in users)
            F = cp.Variable(T, boolean=True, name=f"F[{v},{k}]")
            rules += [hazards >= 1 - F, hazards <= (2 + len(users)) * (1 - F)]  # freed if and only if no hazard
            freed += m[v] * F
        if k + 1 < T:
            rules.append(U[:, k + 1] == U[:, k] + outputs[k + 1] * R[:, k + 1] - freed)
    return rules


def _deadline(cp: Any, problem: Problem, R: Any, I: Any, O: Any) -> list[Any]:  # noqa: E741
    """Computation, and transfers as far as they are not hidden, within the deadline; so is each channel's load."""
    if not isfinite(problem.deadline):
        return []
    busy = cp.sum(R @ (problem.op_seconds / problem.deadline))
    if not problem.tiers:
        return [busy <= 1]
    reads = cp.sum(I @ (problem.read_seconds[0] / problem.deadline))
    writes = cp.sum(O @ (problem.write_seconds[0] / problem.deadline))
    rules = [busy + float(problem.shown[0]) * (reads + writes) <= 1]
    if problem.paging == "overlap":
        rules += [reads <= 1, writes <= 1] if problem.tiers[0].duplex else [reads + writes <= 1]
    return rules


def _check(problem: Problem) -> None:
    given = None
    if len(problem.tiers) > 1:
        given = f"{len(problem.tiers)} tiers"
    elif any(tier.in_ram for tier in problem.tiers):
        given = "a tier whose copies lie in RAM"
    elif any(tier.capacity is not None for tier in problem.tiers):
        given = "a tier of limited size"
    elif any(not tier.exact for tier in problem.tiers):
        given = "a tier whose copies are inexact"
    if given:
        raise ValueError(
            f"the paper's program knows one tier, exact, outside RAM and without limit, got {given}; "
            "use the tightened program or the default engine"
        )


def _cvxpy(solver: str | None) -> Any:
    try:
        cp = import_module("cvxpy")
    except ImportError:
        raise ReferenceUnavailableError(
            "the reference program needs cvxpy: install the extra, repertory-poet[cvxpy]"
        ) from None
    if solver is not None and solver not in SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, got {solver!r}")
    if solver is not None and solver not in cp.installed_solvers():
        has = ", ".join(name for name in SOLVERS if name in cp.installed_solvers()) or "none"
        raise ReferenceUnavailableError(f"cvxpy has no solver {solver!r} here; of those that would do it has {has}")
    return cp


def _options(solver: str, limits: Limits) -> dict[str, Any]:
    seconds, gap = limits.seconds, limits.gap
    return {
        "HIGHS": {"time_limit": seconds, "mip_rel_gap": gap, "threads": limits.workers, "random_seed": limits.seed},
        "SCIP": {
            "scip_params": {"limits/time": seconds, "limits/gap": gap, "randomization/randomseedshift": limits.seed}
        },
        "SCIPY": {"scipy_options": {"time_limit": seconds, "mip_rel_gap": gap}},
        "GUROBI": {"TimeLimit": seconds, "MIPGap": gap, "Threads": limits.workers, "Seed": limits.seed},
        "CBC": {"maximumSeconds": seconds, "allowableFractionGap": gap},
        "GLPK_MI": {},
    }[solver]


def _bound(program: Reference, solver: str, limits: Limits, optimal: bool) -> float | None:
    """What the solver proved, in the units of the cost; None where cvxpy does not pass it on."""
    value = program.program.value
    extra = program.program.solver_stats.extra_stats
    if optimal:
        return float(value) * program.scale * (1 - limits.gap)
    bound = getattr(extra, {"HIGHS": "mip_dual_bound", "GUROBI": "ObjBound"}.get(solver, ""), None)
    return None if bound is None or not isfinite(bound) else float(bound) * program.scale

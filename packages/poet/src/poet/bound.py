r"""Lower bounds on the cost of every schedule of the class, by linear relaxation.

`whole` relaxes the program on the grid of all places. `windows` cuts the stages into windows at chosen operations
$t_1 < t_2 < \dots$ and limits memory only while those operations are executed for the first time: far smaller, and
often no weaker. With $B_{v,w}$ (v is in RAM at the beginning of window w), $A_{v,w}$ (at some moment of it), $R_{i,w}$
and $I_{v,w,k}$ (recomputed, paged in at least once within it), every schedule satisfies

$$B_{v,w+1} \le A_{v,w} \le B_{v,w} + R_{p(v),w} + \sum_k I_{v,w,k}, \quad R_{i,w} \le A_{u,w} \ (u \to i), \quad
\sum_v m_v B_{v,w} + \text{outputs and workspace of } t_w \le M,$$

and $B_{v,w} + \sum_{w \le s \le w'} R_{p(v),s} + \sum_k O_{v,k} \ge 1$ for the window w' of the next reader of v,
with $A = 1$ where v is produced for the first time or read by a first execution within w, and $B = 1$ for the inputs of
$t_w$. So the least cost of this program is a lower bound.
"""

from dataclasses import dataclass
from typing import final

import numpy as np
from scipy import sparse

from poet.grid import all_places, build
from poet.optimiser import Optimiser, Program
from poet.problem import Problem


@final
@dataclass(frozen=True)
class Bound:
    """A proved lower bound.

    Attributes:
        value: No schedule of the class costs less; infinite if the relaxation is infeasible.
        by: Which relaxation proved it.
    """

    value: float
    by: str


def whole(problem: Problem, solver: Optimiser, *, seconds: float = 60.0) -> Bound:
    """The linear relaxation on the grid of all places."""
    grid = build(problem, all_places(problem.graph))
    answer = solver.relax(Program(grid.cost, grid.matrix, grid.upper, grid.base), seconds=seconds)
    return Bound(grid.base + answer.bound, "linear relaxation of the whole grid")


def critical_stages(problem: Problem, count: int) -> list[int]:
    """Operations at which the windows are cut: spread over the step by the bytes that are alive."""
    graph, n = problem.graph, len(problem.graph.ops)
    alive = np.zeros(n + 1)
    for v, value in enumerate(graph.values):
        last = max((*graph.users[v], graph.producer[v]))
        alive[graph.producer[v] : (n if value.keep else last + 1)] += value.size
    over = np.maximum(alive[:n] - problem.ram, 0.0) + 1e-3 * alive[:n] + 1e-9
    share = np.cumsum(over) / over.sum()
    cuts = np.searchsorted(share, (np.arange(count) + 0.5) / count)
    chosen = {int(min(c, n - 1)) for c in cuts} | {int(np.argmax(alive[:n]))}
    return sorted(chosen - {0})


def windows(problem: Problem, solver: Optimiser, cuts: list[int], *, seconds: float = 60.0) -> Bound:
    """The relaxation that limits memory only at the first executions of `cuts`."""
    program, base = windows_program(problem, cuts)
    answer = solver.relax(program, seconds=seconds)
    return Bound(base + answer.bound, f"linear relaxation over {len(cuts) + 1} windows")


def windows_program(problem: Problem, cuts: list[int]) -> tuple[Program, float]:
    """The program of `windows`, and the cost of the first executions.

    Args:
        problem: What is scheduled.
        cuts: Operations, increasing, at whose first execution memory is limited and a window begins.

    Returns:
        Variables come in blocks over values or operations within each window; only those that can matter exist.
    """
    assembly = _Windows(problem, [0, *cuts])
    for w in range(len(cuts) + 1):
        assembly.window(w)
    assembly.comebacks()
    assembly.resources()
    shape = (len(assembly.upper), len(assembly.cost))
    matrix = sparse.csr_array((assembly.val, (assembly.row, assembly.col)), shape=shape, dtype=float)
    base = problem.baseline_cost
    return Program(np.array(assembly.cost), matrix, np.array(assembly.upper, dtype=float), base), base


@final
class _Windows:
    """The program under construction, window by window."""

    def __init__(self, problem: Problem, starts: list[int]) -> None:
        self.problem, self.graph = problem, problem.graph
        self.starts = starts
        self.ends = [*starts[1:], len(problem.graph.ops)]
        self.cost: list[float] = []
        self.row: list[int] = []
        self.col: list[int] = []
        self.val: list[float] = []
        self.upper: list[float] = []
        self.start: dict[int, int] = {}  # value -> variable "in RAM at the beginning of the window", -1 if surely
        self.code: dict[tuple[int, int], int] = {}
        self.out: dict[tuple[int, int], int] = {}
        self.ins: list[tuple[int, int, int]] = []  # (variable, tier, value)
        self.outs: list[tuple[int, int, int]] = []
        self.runs: list[tuple[int, int]] = []  # (variable, operation)
        self.wanted = self._wanted()
        self.starting: list[dict[int, int]] = []  # by window: `start`
        self.run_in: list[dict[int, int]] = []  # by window: operation -> variable

    def window(self, w: int) -> None:
        """Variables and rows of one window."""
        graph, first, last = self.graph, self.starts[w], self.ends[w]
        self._limit(first)
        self.starting.append(self.start)
        sure = {v for i in range(first, last) for v in (*graph.ops[i].inputs, *graph.ops[i].outputs)}
        sure |= {v for v in self.start if self.start[v] < 0}
        known = [v for v, made in enumerate(graph.producer) if made < last and self.wanted[v] >= first]
        somewhere: dict[int, int] = {v: -1 if v in sure else self._new(0.0) for v in known}
        run: dict[int, int] = {}
        for i in sorted({graph.producer[v] for v in known}):
            if self.problem.recomputable[i]:
                run[i] = self._new(float(self.problem.op_cost[i]))
                self.runs.append((run[i], i))
        into = {v: [self._page_in(v, k) for k in range(len(self.problem.tiers))] for v in known}
        self.run_in.append(run)
        for i, variable in run.items():
            for u in dict.fromkeys(graph.ops[i].inputs):
                if somewhere.get(u, -1) >= 0:
                    self._row([(variable, 1.0), (somewhere[u], -1.0)], 0.0)
        following: dict[int, int] = {}
        read_next = set(graph.ops[last].inputs) if last < len(graph.ops) else {v for v in known if graph.values[v].keep}
        for v in known:
            arrivals = [(c, -1.0) for c in into[v] if c >= 0]
            if graph.producer[v] in run:
                arrivals.append((run[graph.producer[v]], -1.0))
            if v in read_next or self.wanted[v] >= last:
                following[v] = -1 if v in read_next else self._new(0.0)
            self._flow(v, first, somewhere[v], arrivals, following.get(v))
        self.start = following

    def comebacks(self) -> None:
        """What is not in RAM when a window begins comes back by its next reader, or has a copy."""
        graph, n = self.graph, len(self.graph.ops)
        of = np.searchsorted(self.starts, np.arange(n), side="right") - 1
        for w, start in enumerate(self.starting):
            for v, variable in start.items():
                later = [u for u in graph.users[v] if u >= self.starts[w]]
                if variable < 0 or not (later or graph.values[v].keep):
                    continue
                until = int(of[later[0]]) if later else len(self.starts) - 1
                made = [self.run_in[s].get(graph.producer[v], -1) for s in range(w, until + 1)]
                ways = [variable, *made, *(self.out.get((v, k), -1) for k in range(len(self.problem.tiers)))]
                self._row([(c, -1.0) for c in ways if c >= 0], -1.0)

    def resources(self) -> None:
        """The deadline."""
        problem = self.problem
        if np.isfinite(problem.deadline):
            terms = [(c, float(problem.op_seconds[i])) for c, i in self.runs]
            terms += [(c, problem.shown[k] * float(problem.read_seconds[k, v])) for c, k, v in self.ins]
            terms += [(c, problem.shown[k] * float(problem.write_seconds[k, v])) for c, k, v in self.outs]
            self._row([(c, float(a)) for c, a in terms if a], problem.deadline - problem.baseline_seconds)
        # A tier's room limits nothing here: copies can be dropped and made again.

    def _flow(
        self, v: int, first: int, somewhere: int, arrivals: list[tuple[int, float]], following: int | None
    ) -> None:
        """B <= A <= B + arrivals for one value in one window; the end of the window is the beginning of the next."""
        graph = self.graph
        born = first <= graph.producer[v]
        before = self.start.get(v)
        held = [] if before is None or before < 0 else [(before, -1.0)]
        if not (born or (before is not None and before < 0)):
            if somewhere < 0:
                self._row([*held, *arrivals], -1.0)
            else:
                self._row([(somewhere, 1.0), *held, *arrivals], 0.0)
        if following is not None and somewhere >= 0:
            if following >= 0:
                self._row([(following, 1.0), (somewhere, -1.0)], 0.0)
            else:
                self._row([(somewhere, -1.0)], -1.0)

    def _limit(self, i: int) -> None:
        """Memory while operation `i` is executed for the first time."""
        problem, op = self.problem, self.graph.ops[i]
        made = {*op.outputs}
        used = sum(int(problem.sizes[v]) for v in made) + op.workspace
        terms = []
        for v, variable in self.start.items():
            if v in made:
                continue
            if variable < 0:
                used += int(problem.sizes[v])
            elif problem.sizes[v]:
                terms.append((variable, float(problem.sizes[v])))
        self._row(terms, float(problem.ram - used))

    def _page_in(self, v: int, k: int) -> int:
        problem, tier = self.problem, self.problem.tiers[k]
        if not problem.takes(k, v) or not (problem.graph.users[v] or problem.graph.values[v].keep):
            return -1
        variable = self._new(float(problem.in_cost[k, v]))
        self.ins.append((variable, k, v))
        if (v, k) not in self.out:
            self.out[v, k] = self._new(float(problem.out_cost[k, v]))
            if not tier.in_ram:
                self.outs.append((self.out[v, k], k, v))
        self._row([(variable, 1.0), (self.out[v, k], -1.0)], 0.0)
        return variable

    def _wanted(self) -> list[int]:
        """The last operation that may want each value: a first execution, or a recomputation for one."""
        graph = self.graph
        n = len(graph.ops)
        wanted = [max((*graph.users[v], n if value.keep else -1, -1)) for v, value in enumerate(graph.values)]
        for i in reversed(range(n)):
            if self.problem.recomputable[i]:
                latest = max((wanted[v] for v in graph.ops[i].outputs), default=-1)
                for u in graph.ops[i].inputs:
                    wanted[u] = max(wanted[u], latest)
        return wanted

    def _new(self, cost: float) -> int:
        self.cost.append(cost)
        return len(self.cost) - 1

    def _row(self, terms: list[tuple[int, float]], upper: float) -> None:
        r = len(self.upper)
        for c, a in terms:
            self.row.append(r)
            self.col.append(c)
            self.val.append(a)
        self.upper.append(upper)

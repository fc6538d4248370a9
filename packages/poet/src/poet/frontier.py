r"""A lower bound on every schedule that executes operations for the first time in the graph's order.

The programs of the engines fix more than that: recomputations of a stage in the graph's order, each at most once,
transfers at chosen places. Their relaxations bound their own classes. This one assumes nothing within a stage.

Stage t reaches from the first execution of operation t − 1 to that of t. Variables, all in [0, 1]: $X_{tv}$ (value v is
in RAM when t runs), $P_{tv}$ (it is so all through stage t), $R_{ti}$ and $I_{tkv}$ (i runs again, v comes back from
tier k, at least once in stage t), $O_{kv}$ (v is ever copied to tier k). Every schedule of the class satisfies

- what is there when t runs was there all along or has come: $X_{tv} \le P_{tv} + R_{tp(v)} + \sum_k I_{tkv}$, with
  $P_{tv} \le X_{t-1,v}$, $P_{tv} \le X_{tv}$, and $X_{tu} = 1$ for the inputs of t;
- what i reads was there at the start or has come: $R_{ti} \le X_{t-1,u} + R_{tp(u)} + \sum_k I_{tku}$;
- nothing comes that is there all along: $P_{tv} + I_{tkv} \le 1$; only copies come: $I_{tkv} \le O_{kv}$; and what
  comes is read, by t or by what runs again, as a page-in can always wait: $I_{tkv} \le \sum_i R_{ti}$ over the readers
  i of v unless t is one;
- what is not there when t runs comes back by its next reader u: $X_{tv} + \sum_{t < s \le u} R_{sp(v)} + \sum_k O_{kv}
  \ge 1$, without which a copy that is read little by little costs next to nothing;
- memory when t runs: $\sum_v m_v X_{tv}$, its outputs and workspace at most M;
- memory when i runs again: $\sum_v m_v \max(P_{tv}, [v \text{ is read or made by } i] R_{ti})$ and workspace at most M;
- the deadline, and the load of each channel.

Copies in RAM (`in_ram` tiers) are tracked over the stages and take their room; limits of other tiers are left out,
which keeps the bound valid.
"""

from math import inf, isfinite

import numpy as np
from jaxtyping import Bool, Int

from poet.gaps import gap_bound
from poet.linear import NONE, Builder, minimise
from poet.problem import Problem
from poet.schedule import Limits
from poet.stages import readable

_WHOLE = 300  # operations beyond which this program is too large
_UNITS = 1e4  # the plain step costs this much: solvers' absolute tolerances are then nothing


def frontier_bound(problem: Problem, limits: Limits | None = None) -> float:
    """The bound, safe against the solver's tolerances.

    Args:
        problem: Of up to some hundred operations in a minute.
        limits: Time.

    Returns:
        No schedule with first executions in the graph's order (`poet.schedule.FRONTIER` is among them) costs less;
        infinite if there is none. When time is over, or the graph has more than 300 operations, that of `poet.gaps`.

    Example:
        >>> from poet.graph import chain
        >>> from poet.problem import formulate
        >>> from poet.device import Device
        >>> device = Device("toy", flops_per_second=1.0, compute_power=1.0)
        >>> frontier_bound(formulate(chain("c", [1, 1, 1]), device, 1))
        inf
    """
    limits = limits or Limits()
    floor = gap_bound(problem, limits)
    if floor == inf or len(problem.graph.ops) > _WHOLE:
        return floor
    scale = (problem.baseline_cost or 1.0) / _UNITS
    program = _Stages(problem, scale).builder.build()
    overhead = minimise(program, limits.seconds).bound * scale  # first executions are not in the program
    return max(floor, problem.baseline_cost + overhead)


class _Stages:
    """Variables and rows."""

    def __init__(self, problem: Problem, scale: float) -> None:
        graph = problem.graph
        self.problem, self.builder = problem, Builder()
        self.T, self.K, self.V = len(graph.ops), len(problem.tiers), len(graph.values)
        self.producer = np.array(graph.producer)
        self._variables(scale)
        self._residency()
        self._transfers(scale)
        self._comeback()
        self._memory()
        self._time()

    def _variables(self, scale: float) -> None:
        """Row T is the end of the step: its "operation" reads the kept values."""
        problem, T = self.problem, self.T
        stage = np.arange(T + 1)[:, None]
        exists = self.producer[None, :] < stage
        read = np.zeros((T + 1, self.V), dtype=bool)
        for t, op in enumerate(problem.graph.ops):
            read[t, list(op.inputs)] = True
        read[T] = [value.keep for value in problem.graph.values]
        again = (np.arange(T)[None, :] < stage) & problem.recomputable[None, :]
        self.X = self.builder.variables(exists, lower=read.astype(float))
        self.P = self.builder.variables(exists)
        self.R = self.builder.variables(again, problem.op_cost / scale)
        self.read = read
        inside = np.array([tier.in_ram for tier in problem.tiers], dtype=bool)
        useful = exists & (read | self._readers_before())
        back = np.where(inside[None, :, None], exists[:, None, :], useful[:, None, :]) & readable(problem)
        self.I = self.builder.variables(back, problem.in_cost / scale)
        # In RAM when a stage starts: as at its last operation; what that produced surely was (-> no row).
        self.before = np.full_like(self.X, NONE)
        self.before[1:] = self.X[:-1]
        self.fresh = self.producer[None, :] == stage - 1

    def _readers_before(self) -> Bool[np.ndarray, "stages V"]:
        """Whether some operation that reads the value can run again in the stage."""
        first = np.full(self.V, self.T + 1)
        for v, users in enumerate(self.problem.graph.users):
            first[v] = min((i for i in users if self.problem.recomputable[i]), default=self.T + 1)
        return first[None, :] < np.arange(self.T + 1)[:, None]

    def _residency(self) -> None:
        rows, X, P = self.builder.rows, self.X, self.P
        there = X != NONE
        made = self.R[:, self.producer]
        reads = np.moveaxis(self.I, 1, 2)
        rows([(1, X[there]), (-1, P[there]), (-1, made[there]), (-1, reads[there])], upper=0.0)
        rows([(1, P[there]), (-1, X[there])], upper=0.0)
        old = there & ~self.fresh
        rows([(1, P[old]), (-1, self.before[old])], upper=0.0)
        users = self.problem.graph.users
        value = np.repeat(np.arange(self.V), [len(uses) for uses in users])
        reader = np.array([i for uses in users for i in uses], dtype=np.int64)
        some = (self.R[:, reader] != NONE) & ~self.fresh[:, value]
        terms = [self.R[:, reader], self.before[:, value], made[:, value]]
        reads = reads[:, value][some]
        rows([*((sign, index[some]) for sign, index in zip((1, -1, -1), terms, strict=True)), (-1, reads)], upper=0.0)

    def _transfers(self, scale: float) -> None:
        problem, rows = self.problem, self.builder.rows
        inside = np.array([tier.in_ram for tier in problem.tiers], dtype=bool)
        paid = np.where(inside[:, None], 0.0, problem.out_cost / scale)  # copies in RAM are paid where they are made
        self.O = self.builder.variables(np.ones((self.K, self.V), dtype=bool), paid)
        held = self.I != NONE
        codes = (self.X != NONE)[:, None, :] & (inside[:, None] & held.any(axis=0))[None]
        self.Z = self.builder.variables(codes)  # a copy lies in RAM when t runs
        self.W = self.builder.variables(codes, problem.out_cost / scale)  # made in stage t
        P = np.repeat(self.P[:, None], self.K, axis=1)
        rows([(1, P[held]), (1, self.I[held])], upper=1.0)
        copies = np.broadcast_to(self.O[None], self.I.shape)
        some = held & ~inside[None, :, None]
        rows([(1, self.I[some]), (-1, copies[some])], upper=0.0)
        earlier = np.full_like(self.Z, NONE)
        earlier[1:] = self.Z[:-1]
        some = self.Z != NONE
        rows([(1, self.Z[some]), (-1, earlier[some]), (-1, self.W[some])], upper=0.0)
        rows([(1, self.I[some]), (-1, earlier[some]), (-1, self.W[some])], upper=0.0)
        made = np.moveaxis(self.W, 0, 2)[inside].reshape(-1, self.T + 1)
        rows([(1, self.O[inside].ravel()), (-1, made)], upper=0.0)

    def _comeback(self) -> None:
        """What is not there when t runs has to come back before its next reader: recomputed, or from a copy."""
        rows, T = self.builder.rows, self.T
        # Q: how often an operation runs again after stage t, and up to which stage.
        Q = self.builder.variables(np.tri(T + 1, T, -1, dtype=bool), upper=float(T), integral=False)
        later = np.full_like(Q, NONE)
        later[:-1] = Q[1:]
        again = np.full_like(self.R, NONE)
        again[:-1] = self.R[1:]
        there = Q != NONE
        rows([(1, Q[there]), (-1, later[there]), (-1, again[there])], lower=0.0, upper=0.0)
        following = np.full((T + 2, self.V), T + 1)
        for t in range(T, -1, -1):
            following[t] = np.where(self.read[t], t, following[t + 1])
        waits = (self.X != NONE) & ~self.read & (following[:-1] <= T)
        stage, value = np.nonzero(waits)
        until = following[stage, value]
        made = self.producer[value]
        terms = [(1, self.X[stage, value]), (1, Q[stage, made]), (-1, Q[until, made]), (1, self.O[:, value].T)]
        rows(terms, lower=1.0)

    def _memory(self) -> None:
        problem, rows, T = self.problem, self.builder.rows, self.T
        unit = max(problem.ram, 1)
        m = problem.sizes / unit
        work = problem.workspace / unit
        copies, stored = self.Z.reshape(T + 1, -1), problem.stored.ravel() / unit
        for t, op in enumerate(problem.graph.ops):
            room = 1.0 - m[list(op.outputs)].sum() - work[t]
            rows([(m[None], self.X[t : t + 1]), (stored[None], copies[t : t + 1])], upper=room)
        rows([(m[None], self.X[T:]), (stored[None], copies[T:])], upper=1.0)
        for i, op in enumerate(problem.graph.ops):
            if problem.recomputable[i]:
                self._again(i, list(dict.fromkeys((*op.inputs, *op.outputs))), m, float(work[i]))

    def _again(self, i: int, around: list[int], m: np.ndarray, work: float) -> None:
        """Memory when operation i runs again, in every stage after it."""
        R = self.R[i + 1 :, i]
        E = self.builder.variables(np.ones((len(R), len(around)), dtype=bool))  # max of P and R
        P = self.P[i + 1 :]
        for j, v in enumerate(around):
            there = P[:, v] != NONE
            self.builder.rows([(1, P[there, v]), (-1, E[there, j])], upper=0.0)
            self.builder.rows([(1, R), (-1, E[:, j])], upper=0.0)
        others = m.copy()
        others[around] = 0.0
        self.builder.rows([(others, P), (m[around], E), (work, R)], upper=1.0)

    def _time(self) -> None:
        """First executions take what they take; the rest of the deadline is for the others."""
        problem, rows, limit = self.problem, self.builder.rows, self.problem.deadline
        if not isfinite(limit):
            return
        ins = (problem.read_seconds / limit)[None]
        outs = problem.write_seconds / limit
        shown = problem.shown[:, None]
        terms = [
            _row(problem.op_seconds / limit, self.R),
            _row(shown[None] * ins, self.I),
            _row(shown * outs, self.O),
            _row((shown * outs)[None], self.W),
        ]
        rows(terms, upper=1.0 - problem.baseline_seconds / limit)
        for k, tier in enumerate(problem.tiers):
            if problem.paging == "overlap" and not tier.in_ram:
                read, write = _row(ins[:, k], self.I[:, k]), _row(outs[k], self.O[k])
                for load in ([read], [write]) if tier.duplex else ([read, write],):
                    rows(load, upper=1.0)


def _row(weights: np.ndarray, index: Int[np.ndarray, "..."]) -> tuple[np.ndarray, Int[np.ndarray, "1 n"]]:
    return np.broadcast_to(weights, index.shape).reshape(1, -1), index.reshape(1, -1)

r"""A lower bound for graphs of any size: between two readers a value waits in RAM, or goes and has to come back.

A *gap* of value v is the span between two successive operations that produce or read it, in the graph's order (for
kept values, also that between the last of them and the end). Variables in [0, 1], a few for each edge of the graph:
$Z_g$ (v goes in gap g and is recomputed), $I_{gk}$ (it goes and is paged in from tier k), $O_{vk}$ (v is ever copied).
Every schedule that executes operations for the first time in the graph's order satisfies

$$\sum_{g \ni t} m_{v(g)} \Big( 1 - Z_g - \sum_k I_{gk} \Big) + W_t \le M \ \text{ for every operation } t, \qquad
I_{gk} \le O_{v(g)k}, \qquad Z_g + \sum_k I_{gk} \le 1$$

and the deadline, W_t the working set of t. An operation that runs again brings all its outputs back: each bears a share
of its cost by bytes. What a recomputation itself needs is left out, so the bound is best where values come back by
paging or by cheap operations; so is the room that copies in RAM take.
"""

from dataclasses import dataclass
from itertools import pairwise
from math import inf, isfinite
from typing import final

import numpy as np
from jaxtyping import Bool, Float, Int

from poet.linear import NONE, Builder, Linear, minimise
from poet.problem import Problem
from poet.schedule import Limits
from poet.stages import readable

_UNITS = 1e4  # the plain step costs this much: solvers' absolute tolerances are then nothing


@final
@dataclass(frozen=True)
class Gaps:
    """The gaps of all values in which something else runs.

    Attributes:
        value: The value.
        begin: The operation before the gap.
        end: The operation after it; the number of operations for the end of the step.
    """

    value: Int[np.ndarray, " g"]
    begin: Int[np.ndarray, " g"]
    end: Int[np.ndarray, " g"]

    def over(self) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """(operation, gap) for every operation within every gap."""
        width = self.end - self.begin - 1
        gap = np.repeat(np.arange(len(width)), width)
        first = np.repeat(np.cumsum(width) - width, width)
        return self.begin[gap] + 1 + np.arange(len(gap)) - first, gap


def gaps_of(problem: Problem) -> Gaps:
    """All gaps of values with bytes."""
    graph = problem.graph
    found = []
    for v, value in enumerate(graph.values):
        touched = [graph.producer[v], *graph.users[v], *([len(graph.ops)] if value.keep else [])]
        if value.size:
            found += [(v, a, b) for a, b in pairwise(touched) if b > a + 1]
    table = np.array(found, dtype=np.int64).reshape(-1, 3)
    return Gaps(table[:, 0], table[:, 1], table[:, 2])


def gap_bound(problem: Problem, limits: Limits | None = None) -> float:
    """The bound, safe against the solver's tolerances.

    Args:
        problem: Of any size that fits in memory: some thousand operations take seconds.
        limits: Time.

    Returns:
        No schedule with first executions in the graph's order (`poet.schedule.FRONTIER` is among them) costs less;
        infinite if there is none. When the time is over, the plain step's cost.

    Example:
        >>> from poet.graph import chain
        >>> from poet.problem import formulate
        >>> from poet.device import Device
        >>> device = Device("toy", flops_per_second=1.0, compute_power=1.0)
        >>> gap_bound(formulate(chain("c", [1, 1, 1]), device, 2))
        3.0
    """
    base = problem.baseline_cost
    if problem.ram < problem.graph.largest_working_set:
        return inf
    gaps = gaps_of(problem)
    stage, gap = gaps.over()
    working = np.array([problem.graph.working_set(t) for t in range(len(problem.graph.ops))])
    waiting = np.bincount(stage, weights=problem.sizes[gaps.value[gap]], minlength=len(working))
    excess = waiting + working - problem.ram
    if (excess <= 0).all() and problem.baseline_seconds <= problem.deadline:
        return base
    scale = (base or 1.0) / _UNITS
    overhead = minimise(_program(problem, gaps, excess, scale), (limits or Limits()).seconds).bound * scale
    return base + max(overhead, 0.0)


def _program(problem: Problem, gaps: Gaps, excess: Float[np.ndarray, " T"], scale: float) -> Linear:
    """The program; costs in multiples of `scale`, bytes of the RAM."""
    lp = Builder()
    producer = np.array(problem.graph.producer)
    sizes = problem.sizes[gaps.value]
    made = np.bincount(producer, weights=problem.sizes, minlength=len(problem.graph.ops))
    origin = producer[gaps.value]
    share = sizes / made[origin]
    Z = lp.variables(problem.recomputable[origin], share * problem.op_cost[origin] / scale)
    I = lp.variables(  # noqa: E741
        _offered(problem, gaps), problem.in_cost[:, gaps.value].T / scale
    )
    O = lp.variables(np.ones(problem.out_cost.shape, dtype=bool), problem.out_cost / scale)  # noqa: E741
    lp.rows([(1, I.ravel()), (-1, O[:, gaps.value].T.ravel())], upper=0.0)
    lp.rows([(1, Z), (1, I)], upper=1.0)
    _memory(lp, problem, gaps, excess, np.concatenate([Z[:, None], I], axis=1))
    _time(lp, problem, gaps, (Z, share * problem.op_seconds[origin]), I, O)
    return lp.build()


def _offered(problem: Problem, gaps: Gaps) -> Bool[np.ndarray, "g K"]:
    """Whether a value may come back from a tier in some stage of the gap."""
    allowed = readable(problem)
    until = np.cumsum(allowed, axis=0)  # stages so far in which it may
    return until[gaps.end, :, gaps.value] > until[gaps.begin, :, gaps.value]


def _memory(
    lp: Builder, problem: Problem, gaps: Gaps, excess: Float[np.ndarray, " T"], goes: Int[np.ndarray, "g ways"]
) -> None:
    """While an operation runs, what goes makes room for the bytes that are too many."""
    over = np.flatnonzero(excess > 0)
    row = np.full(len(excess), NONE)
    row[over] = np.arange(len(over))
    stage, gap = gaps.over()
    stage, gap = stage[excess[stage] > 0], gap[excess[stage] > 0]
    ways = goes.shape[1]
    unit = max(problem.ram, 1)
    size = np.repeat(problem.sizes[gaps.value[gap]] / unit, ways)
    lp.scatter(np.repeat(row[stage], ways), size, goes[gap].ravel(), lower=excess[over] / unit)


def _time(
    lp: Builder,
    problem: Problem,
    gaps: Gaps,
    again: tuple[Int[np.ndarray, " g"], Float[np.ndarray, " g"]],
    I: Int[np.ndarray, "g K"],  # noqa: E741
    O: Int[np.ndarray, "K V"],  # noqa: E741
) -> None:
    """Recomputation, and transfers as far as they are not hidden, within the deadline; so is each channel's load."""
    limit = problem.deadline
    if not isfinite(limit):
        return
    ins = problem.read_seconds[:, gaps.value].T / limit
    outs = problem.write_seconds / limit
    terms = [(again[1] / limit, again[0]), (ins * problem.shown, I), (outs * problem.shown[:, None], O)]
    flat = [(weight.reshape(1, -1), index.reshape(1, -1)) for weight, index in terms]
    lp.rows(flat, upper=1.0 - problem.baseline_seconds / limit)
    for k, tier in enumerate(problem.tiers):
        if problem.paging == "overlap" and not tier.in_ram:
            read, write = (ins[None, :, k], I[None, :, k]), (outs[k][None], O[k][None])
            for load in ([read], [write]) if tier.duplex else ([read, write],):
                lp.rows(load, upper=1.0)

"""Exhaustive search in the paper's own class, and a lower bound in closed form.

The class: stage t ends with the first execution of operation t. A value is in RAM during a whole stage or appears in it
by recomputation; recomputations of a stage run in the graph's order; a value can be copied out only in a stage at whose
start it is in RAM, and one that is paged in during a stage (its copy made in an earlier one) is in RAM from the next.
"""

from collections.abc import Iterator
from itertools import combinations
from math import inf

from poet.problem import Problem

_Start = tuple[frozenset[int], frozenset[int]]  # in RAM at the start of a stage, copied by then
_Label = tuple[float, float]  # cost, seconds


def stage_optimum(problem: Problem) -> float:
    """Cost of the cheapest schedule of the paper's class, by enumerating every stage from every start.

    Args:
        problem: At most about 6 operations with one output each, at most one tier, outside RAM and unlimited.

    Returns:
        The optimum; infinite if no schedule of the class fits.

    Raises:
        ValueError: If the problem has what the paper's program does not know.
    """
    if len(problem.tiers) > 1 or any(
        tier.in_ram or tier.capacity is not None or not tier.exact for tier in problem.tiers
    ):
        raise ValueError("the paper's class has one tier, outside RAM and unlimited")
    if any(len(op.outputs) != 1 for op in problem.graph.ops) or (
        problem.paging == "overlap" and problem.deadline < inf
    ):
        raise ValueError("the paper's class has one output an operation, and no channels in its deadline")
    n = len(problem.graph.ops)
    first: _Label = (problem.baseline_cost, problem.baseline_seconds)
    starts: dict[_Start, list[_Label]] = {(frozenset(), frozenset()): [first]} if first[1] <= problem.deadline else {}
    for t in range(n):
        following: dict[_Start, list[_Label]] = {}
        for (ram, copies), labels in starts.items():
            for redone, kept, written in _stages(problem, t, ram, copies):
                adds = _price(problem, redone, kept - ram - redone - {_value(problem, t)}, written)
                after = following.setdefault((kept, copies | written), [])
                for cost, seconds in labels:
                    _insert(after, (cost + adds[0], seconds + adds[1]), problem.deadline)
        starts = following
    return min((label[0] for labels in starts.values() for label in labels), default=inf)


def knapsack_bound(problem: Problem) -> float:
    r"""A lower bound that needs no search: what cannot be in RAM beside operation t has to come back later.

    $$\text{baseline} + \max_t \min_x \Big\{ \sum_v c_v x_v : \sum_v m_v x_v \ge \sum_v m_v - (M - W_t) \Big\}$$

    over the values v that exist and are still to be read when t runs, are no part of its working set W_t, and come back
    for at least c_v: one transfer out and one in, or their share (by bytes) of one recomputation. Holds for first
    executions in the graph's order; the inner minimum is that of the fractional knapsack.

    Args:
        problem: Of any size.

    Returns:
        The bound, in the objective's units; infinite where a working set does not fit.
    """
    graph = problem.graph
    last = [max((*uses, graph.producer[v])) for v, uses in enumerate(graph.users)]
    worst = 0.0
    for t, op in enumerate(graph.ops):
        room = problem.ram - graph.working_set(t)
        if room < 0:
            return inf
        around = {*op.inputs, *op.outputs}
        waiting = [
            (_comeback(problem, v), value.size)
            for v, value in enumerate(graph.values)
            if graph.producer[v] < t and (last[v] > t or value.keep) and v not in around and value.size
        ]
        excess = sum(size for _, size in waiting) - room
        price = 0.0
        for cost, size in sorted(waiting, key=lambda item: item[0] / item[1]):
            if excess <= 0:
                break
            if cost == inf:
                return inf
            price += cost * min(1.0, excess / size)
            excess -= size
        worst = max(worst, price)
    return problem.baseline_cost + worst


def _comeback(problem: Problem, v: int) -> float:
    """Least that bringing a value back costs."""
    i = problem.graph.producer[v]
    tiers = [k for k in range(len(problem.tiers)) if problem.takes(k, v)]
    ways = [float(problem.in_cost[k, v] + problem.out_cost[k, v]) for k in tiers]
    if problem.recomputable[i]:
        made = sum(problem.graph.values[u].size for u in problem.graph.ops[i].outputs)
        ways.append(float(problem.op_cost[i]) * problem.graph.values[v].size / made)
    return min(ways, default=inf)


def _value(problem: Problem, op: int) -> int:
    return problem.graph.ops[op].outputs[0]


def _stages(
    problem: Problem, t: int, ram: frozenset[int], copies: frozenset[int]
) -> Iterator[tuple[frozenset[int], frozenset[int], frozenset[int]]]:
    """Every way through stage t: values recomputed, values in RAM at the end, values copied out."""
    graph = problem.graph
    again = [i for i in range(t) if problem.recomputable[i]]
    wanted = {v for v, value in enumerate(graph.values) if value.keep} if t == len(graph.ops) - 1 else None
    for ops in _subsets(again):
        run = [*sorted(ops), t]
        made = {_value(problem, i) for i in run}
        if any(not set(graph.ops[i].inputs) <= ram | made for i in run):
            continue
        for kept in [frozenset(wanted)] if wanted is not None else _subsets(ram | made | copies):
            if kept <= ram | made | copies and _fits(problem, ram, run, kept):
                redone = frozenset(made - {_value(problem, t)})
                for written in _subsets(ram - copies if problem.tiers else frozenset()):
                    yield redone, kept, written


def _fits(problem: Problem, ram: frozenset[int], run: list[int], kept: frozenset[int]) -> bool:
    """Whether the memory of a stage stays within the limit: a value goes after its last reader unless it is kept."""
    graph = problem.graph
    if sum(graph.values[v].size for v in kept) > problem.ram:
        return False
    used = sum(graph.values[v].size for v in ram)
    for at, i in enumerate(run):
        used += graph.values[_value(problem, i)].size
        if used + graph.ops[i].workspace > problem.ram:
            return False
        for v in set(graph.ops[i].inputs) - kept:
            if not any(v in graph.ops[later].inputs for later in run[at + 1 :]):
                used -= graph.values[v].size
    return True


def _price(problem: Problem, redone: frozenset[int], read: frozenset[int], written: frozenset[int]) -> _Label:
    ops = [problem.graph.producer[v] for v in redone]
    cost = float(sum(problem.op_cost[i] for i in ops))
    seconds = float(sum(problem.op_seconds[i] for i in ops))
    for values, price, time in (
        (read, problem.in_cost, problem.read_seconds),
        (written, problem.out_cost, problem.write_seconds),
    ):
        cost += sum(float(price[0, v]) for v in values)
        seconds += sum(float(problem.shown[0] * time[0, v]) for v in values)
    return cost, seconds


def _insert(labels: list[_Label], new: _Label, deadline: float) -> None:
    """Add a label unless it is late or another is at least as good in both."""
    seconds = new[1] if deadline < inf else 0.0
    if seconds > deadline * (1 + 1e-12) or any(cost <= new[0] and other <= seconds for cost, other in labels):
        return
    labels[:] = [label for label in labels if not (new[0] <= label[0] and seconds <= label[1])]
    labels.append((new[0], seconds))


def _subsets(items: "list[int] | frozenset[int] | set[int]") -> Iterator[frozenset[int]]:
    ordered = sorted(items)
    for size in range(len(ordered) + 1):
        for chosen in combinations(ordered, size):
            yield frozenset(chosen)

"""Schedules to compare with: everything resident, checkpoints at segments; and a problem without one of its means.

Each gives status INFEASIBLE where its own schedule does not fit, whatever others could do.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import isqrt

from poet.events import Event, compute
from poet.problem import Problem
from poet.schedule import Found, Limits
from poet.stages import Best


def restrict(problem: Problem, *, recompute: bool | None = None, tiers: tuple[str, ...] | None = None) -> Problem:
    """The same problem with fewer means: `tiers=()` is Checkmate's, `recompute=False` paging alone.

    Args:
        problem: The problem.
        recompute: Whether operations may run again; unchanged unless given.
        tiers: Names of the tiers that stay; unchanged unless given.

    Raises:
        DeviceError: If the device has no such tier.
    """
    device = problem.device
    if tiers is not None:
        device = device.with_tiers(*(device.tier(name) for name in tiers))
    return replace(problem, device=device, recompute=problem.recompute if recompute is None else recompute)


def all_resident(problem: Problem, limits: Limits | None = None) -> Found:
    """Nothing recomputed, nothing paged, everything freed after its last reader.

    Example:
        >>> from poet.graph import chain
        >>> from poet.problem import formulate
        >>> from poet.device import Device
        >>> device = Device("toy", flops_per_second=1.0, compute_power=1.0)
        >>> [all_resident(formulate(chain("c", [1, 1]), device, ram)).status.name for ram in (2, 1)]
        ['OPTIMAL', 'INFEASIBLE']
    """
    return _only(problem, "all-resident", limits, [compute(i) for i in range(len(problem.graph.ops))])


def square_root(problem: Problem, limits: Limits | None = None, *, segments: int | None = None) -> Found:
    """Chen's checkpoints: the forward pass in about sqrt(n) segments of equally many operations.

    What crosses a border stays; the rest of a segment is recomputed, whole, when the backward pass first needs it.

    Args:
        problem: The problem.
        limits: The gap that counts as closed.
        segments: Number of segments; round(sqrt(n)) unless given.

    Raises:
        ValueError: If the number of segments is not between 1 and that of forward operations.

    Reference:
        Chen, Xu, Zhang, Guestrin (2016). Training deep nets with sublinear memory cost. arXiv:1604.06174.
    """
    count = len(_forward(problem))
    amount = max(1, isqrt(count)) if segments is None else segments
    if not 1 <= amount <= max(count, 1):
        raise ValueError(f"segments must be between 1 and {count}, the number of forward operations, got {amount}")
    return _only(problem, "sqrt-n", limits, checkpointed(problem, _even(problem, amount)))


def best_segments(problem: Problem, limits: Limits | None = None) -> Found:
    """Chen's checkpoints with the number of segments that fits and costs least, of all up to 16 and some beyond."""
    limits = limits or Limits()
    best = Best(problem)
    count = len(_forward(problem))
    amount = 1
    while amount <= count:
        best.offer(checkpointed(problem, _even(problem, amount)))
        amount += max(1, amount // 16)
        if best.spent(limits):
            break
    return best.found("best-segments", limits, complete=not best.spent(limits))


def per_block(problem: Problem, limits: Limits | None = None, *, blocks: Sequence[int] | None = None) -> Found:
    """A checkpoint at each block, as frameworks' checkpointing of modules gives it.

    Args:
        problem: The problem.
        limits: The gap that counts as closed.
        blocks: Forward operations with which blocks begin; after each that joins two branches (a residual sum) unless
            given, and as `square_root` where nothing is joined.
    """
    if blocks is None:
        graph = problem.graph
        forward = _forward(problem)
        joins = [i for i in forward if len({graph.producer[v] for v in graph.ops[i].inputs}) > 1]
        blocks = [i + 1 for i in joins if i + 1 in set(forward)]
        if not blocks:
            return square_root(problem, limits)
    return _only(problem, "per-block", limits, checkpointed(problem, blocks))


def checkpointed(problem: Problem, blocks: Sequence[int]) -> list[Event]:
    """Steps of a step with checkpoints.

    Args:
        problem: The problem.
        blocks: Forward operations with which segments begin; the first need not be named.
    """
    graph = problem.graph
    forward = _forward(problem)
    begins = set(blocks)
    segment: dict[int, int] = {}
    for i in forward:
        segment[i] = max(segment.values(), default=0) + (i in begins and bool(segment))
    last = max(segment.values(), default=0)
    present: set[int] = set()
    steps: list[Event] = []
    for t, op in enumerate(graph.ops):
        for v in op.inputs:
            home = segment.get(graph.producer[v])
            if v in present or home is None:
                continue
            for i in (j for j in forward if segment[j] == home and problem.recomputable[j]):
                steps.append(compute(i))
                present.update(graph.ops[i].outputs)
        steps.append(compute(t))
        here = segment.get(t, last)
        present |= {v for v in op.outputs if here == last or _stays(problem, v, segment)}
        if t in segment and here < last:
            present |= set(op.outputs)  # within its own segment everything is there
            if segment.get(t + 1, last) != here:
                inside = {v for i in forward if segment[i] == here for v in graph.ops[i].outputs}
                present -= {v for v in inside if not _stays(problem, v, segment)}
    return steps


def _stays(problem: Problem, v: int, segment: dict[int, int]) -> bool:
    """Whether a value crosses a border of the forward pass, or cannot be made again."""
    home = problem.graph.producer[v]
    crosses = (
        any(segment[i] != segment[home] for i in problem.graph.users[v] if i in segment) if home in segment else True
    )
    return crosses or not problem.recomputable[home] or problem.graph.values[v].keep


def _forward(problem: Problem) -> list[int]:
    return [i for i, op in enumerate(problem.graph.ops) if op.phase == "forward"]


def _even(problem: Problem, amount: int) -> list[int]:
    """First operations of segments of equally many forward operations."""
    forward = _forward(problem)
    return [forward[len(forward) * s // amount] for s in range(1, amount)] if forward else []


def _only(problem: Problem, engine: str, limits: Limits | None, steps: list[Event]) -> Found:
    best = Best(problem)
    best.offer(steps)
    return best.found(engine, limits or Limits(), complete=True)

"""Small random problems for comparing solvers with the exhaustive search."""

from dataclasses import replace

import numpy as np

from poet.device import Device, Tier
from poet.graph import Graph, Op, Value
from poet.problem import Paging, Problem


def small_problem(
    rng: np.random.Generator,
    ops: int = 5,
    *,
    tiers: int = 1,
    several_outputs: bool = False,
    workspace: bool = False,
    fixed: bool = False,
    in_ram: bool = False,
    paging: Paging = "free",
    deadline: float | None = None,
) -> Problem:
    """A graph of a few operations under a RAM limit between its largest working set and its plain peak.

    All sizes and costs are small integers or their quotients; joules and seconds of computation are the same number.

    Args:
        rng: Source of everything random.
        ops: Operations; each reads one or two earlier values, the one just before more often than not.
        tiers: Tiers outside RAM.
        several_outputs: Whether some operations make two values.
        workspace: Whether operations need some.
        fixed: Whether some operations must not run again.
        in_ram: Whether the last tier's copies lie in RAM, at half the size, and are inexact.
        paging: See `Problem`.
        deadline: A factor of the plain duration.

    Example:
        >>> problem = small_problem(np.random.default_rng(0), 4)
        >>> len(problem.graph.ops), problem.graph.largest_working_set <= problem.ram <= problem.graph.resident_peak
        (4, True)
    """
    made: list[Op] = []
    values: list[Value] = []
    for i in range(ops):
        inputs: set[int] = set()
        if values:
            near = len(values) - 1 if rng.random() < 0.7 else int(rng.integers(len(values)))
            inputs = {near, int(rng.integers(len(values)))}
        outputs = range(len(values), len(values) + (2 if several_outputs and rng.random() < 0.4 else 1))
        values += [Value(f"v{v}", int(rng.integers(1, 6)), compressible=v % 3 > 0) for v in outputs]
        extra = int(rng.integers(0, 3)) if workspace else 0
        again = not fixed or bool(rng.random() < 0.7)
        flops = float(rng.integers(1, 9))
        phase = "backward" if 2 * i >= ops else "forward"
        made.append(Op(f"op{i}", tuple(sorted(inputs)), tuple(outputs), flops, None, extra, phase, again))
    values[-1] = replace(values[-1], keep=bool(rng.random() < 0.5))
    graph = Graph("small", tuple(made), tuple(values))
    speeds = rng.integers(0, 3, size=(tiers, 2)).tolist(), rng.integers(1, 4, size=(tiers, 2)).tolist()
    behind = tuple(
        Tier(f"tier{k}", float(late[0]), float(fast[0]), float(late[1]), float(fast[1]), power=1.0)
        for k, (late, fast) in enumerate(zip(*speeds, strict=True))
    )
    if in_ram and behind:
        last = behind[-1]
        inside = Tier(last.name, 0.0, 2.0, 0.0, 2.0, power=1.0, ratio=0.5, in_ram=True)
        behind = (*behind[:-1], inside)
    device = Device("toy", flops_per_second=1.0, compute_power=1.0, tiers=behind)
    low, high = graph.largest_working_set, graph.resident_peak
    problem = Problem(graph, device, int(rng.integers(low, max(high, low + 1))), paging=paging)
    if deadline is None:
        return problem
    return Problem(graph, device, problem.limit, deadline * problem.baseline_seconds, paging=paging)

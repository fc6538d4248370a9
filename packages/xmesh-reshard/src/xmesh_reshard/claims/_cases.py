"""Settings and measurements that the claims share."""

from collections.abc import Mapping

import numpy as np

from xmesh_reshard.baselines import PLANS
from xmesh_reshard.cases import Case
from xmesh_reshard.collectives import COLLECTIVES
from xmesh_reshard.moves import Collective
from xmesh_reshard.network import simulate
from xmesh_reshard.planning import plan
from xmesh_reshard.plans import Plan

DRAWS = {"matplotlib": "xmesh-reshard[claims]"}
RUNS = {**DRAWS, "torch": "xmesh-reshard[claims]"}
WORDS = {
    "plan": "planned",
    "send_recv": "send/recv",
    "send_recv_balanced": "send/recv, balanced",
    "naive_broadcast": "broadcast, naive order",
    "size_only": "broadcast, balanced by size",
    "local_allgather": "local all-gather",
    "global_allgather": "global all-gather",
}
ALPHA = "1ms"  # what a message costs between local processes beside its bytes, all waits of the token bucket included


def made(name: str, case: Case) -> Plan | Collective:
    """Ours (``plan``) or a baseline for a case."""
    if name == "plan":
        return plan(case.transfers, case.topology)
    return {**PLANS, **COLLECTIVES}[name](case.transfers, case.topology)


def executable(name: str, case: Case) -> Plan:
    """As `made`, for methods that are plans."""
    return plan(case.transfers, case.topology) if name == "plan" else PLANS[name](case.transfers, case.topology)


def at_best(found: Plan | Collective) -> float:
    """Simulated seconds with one or two messages under way at a device, or everything sent off at once: the best."""
    if isinstance(found, Collective):
        return simulate(found).makespan
    return min(simulate(found, in_flight=number).makespan for number in (1, 2, None))


def spread(values: Mapping[str, float]) -> tuple[float, float, float]:
    """Median, ninetieth percentile and largest of values."""
    found = np.array(list(values.values()))
    return float(np.median(found)), float(np.quantile(found, 0.9)), float(found.max())

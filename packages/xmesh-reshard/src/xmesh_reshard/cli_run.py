"""What `xmesh-reshard run` does: a plan on real processes of this machine, its results compared bit by bit."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from xmesh_reshard.claims.trials import count_wrong, parts_of
from xmesh_reshard.network import simulate
from xmesh_reshard.plans import Plan

_MOST_DEVICES = 64


def measure(
    plan: Plan, whole: Mapping[str, np.ndarray], *, links: str | None, repeats: int, checksum: bool, timeout: float
) -> dict[str, Any]:
    """Execute a plan on gloo processes, and compare result, time and bytes with what was expected.

    Args:
        plan: The plan.
        whole: The whole tensors.
        links: How links are slowed: netns, bucket, or None for not at all.
        repeats: How often.
        checksum: Whether every chunk is followed by its checksum.
        timeout: Seconds until all is ended.

    Raises:
        ValueError: There are too many devices for one machine.
        TransportError: A process failed.
    """
    from xmesh_reshard.transports.launcher import run_local

    if len(plan.devices) > _MOST_DEVICES:
        raise ValueError(
            f"the plan has {len(plan.devices)} devices, each a process; one machine takes {_MOST_DEVICES}: use simulate"
        )
    run = run_local(
        plan, parts_of(plan.tensors, whole), links="netns" if links == "netns" else "bucket" if links else None,
        repeats=repeats, timeout=timeout, checksum=checksum,
    )  # fmt: skip
    return {
        "wrong": count_wrong(plan.tensors, whole, run.parts),
        "seconds": list(run.seconds),
        "median": run.median,
        "planned": plan.makespan,
        "simulated": simulate(plan).makespan,
        "lower_bound": plan.lower_bound,
        "bytes_sent": sum(report.bytes_sent for report in run.reports),
        "buffer_peak": max((report.buffer_peak for report in run.reports), default=0),
        "checked": sum(report.checked for report in run.reports),
    }

"""What `xmesh-reshard run` does: a plan on real processes of this machine, its results compared bit by bit."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from xmesh_reshard.layout import dtype_of
from xmesh_reshard.network import simulate
from xmesh_reshard.plans import Plan, Transfer

_MOST_BYTES, _MOST_DEVICES = 2**29, 64


def contents(transfers: Mapping[str, Transfer], seed: int) -> dict[str, np.ndarray]:
    """Random whole tensors; the numbers are such that every type holds them.

    Args:
        transfers: Layouts by name.
        seed: Of the numbers.

    Raises:
        ValueError: They are too large to be made in one process.
    """
    total = sum(pair.source.nbytes for pair in transfers.values())
    if total > _MOST_BYTES:
        raise ValueError(
            f"the tensors have {total} bytes; to try a plan on one machine they may have {_MOST_BYTES}:"
            " give smaller shapes, or --shrink with a built-in case"
        )
    rng = np.random.default_rng(seed)
    return {
        name: rng.integers(0, 100, pair.source.shape).astype(dtype_of(pair.source.dtype))
        for name, pair in transfers.items()
    }


def parts_of(transfers: Mapping[str, Transfer], whole: Mapping[str, np.ndarray]) -> dict[int, dict[str, np.ndarray]]:
    """Each device's old parts."""
    parts: dict[int, dict[str, np.ndarray]] = {}
    for name, pair in transfers.items():
        for device, part in pair.source.split(whole[name]).items():
            parts.setdefault(device, {})[name] = part
    return parts


def count_wrong(
    transfers: Mapping[str, Transfer],
    whole: Mapping[str, np.ndarray],
    new: Mapping[int, Mapping[str, np.ndarray]],
) -> int:
    """New parts that are missing or are not, to the bit, what slicing the whole tensors gives."""
    wrong = 0
    for name, pair in transfers.items():
        want = whole[name].astype(dtype_of(pair.target.dtype))
        for device in pair.target.devices.tolist():
            part = new.get(device, {}).get(name)
            expected = want[(*pair.target.slices(device), ...)]
            wrong += part is None or part.shape != expected.shape or part.tobytes() != expected.tobytes()
    return wrong


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

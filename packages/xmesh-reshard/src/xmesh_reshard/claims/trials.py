"""Plans on real processes of this machine, with random contents, their results compared bit by bit."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from xmesh_reshard.layout import dtype_of
from xmesh_reshard.plans import Plan, Transfer

_MOST_BYTES = 2**29


@final
@dataclass(frozen=True)
class Measured:
    """A plan on real processes.

    Attributes:
        seconds: Median over the repetitions.
        wrong: New parts that differ from slicing the whole tensor.
    """

    seconds: float
    wrong: int


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


def links() -> str:
    """How real links are slowed here: by the kernel where that is allowed, else by token buckets."""
    from xmesh_reshard.transports.shaping import why_no_namespaces

    return "bucket" if why_no_namespaces() else "netns"


def measured(found: Plan, seed: int, how: str, repeats: int, window: int | None = None) -> Measured:
    """Execute a plan on gloo processes over slowed links, and compare the results bit by bit.

    Args:
        found: The plan.
        seed: Of the tensors' contents.
        how: How links are slowed: bucket or netns.
        repeats: Executions; the median counts.
        window: Messages under way at a device at a time; the plan's own number if None.
    """
    from xmesh_reshard.transports.launcher import run_local

    whole = contents(found.tensors, seed)
    way: Any = how
    run = run_local(found, parts_of(found.tensors, whole), links=way, repeats=repeats, timeout=110.0, window=window)
    return Measured(run.median, count_wrong(found.tensors, whole, run.parts))

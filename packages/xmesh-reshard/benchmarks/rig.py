"""Ways to move tensors on real processes (gloo), timed in turns in one launch over links of a given rate."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np

from xmesh_reshard.layout import dtype_of
from xmesh_reshard.plans import Plan, Transfer
from xmesh_reshard.topology import Topology

Ready = tuple[Callable[[], Any], Callable[[], bool]]  # one turn; whether what it left is right


@final
@dataclass(frozen=True)
class Turns:
    """Times of a way.

    Attributes:
        seconds: Of each turn, from the barrier before it until the slowest rank was done.
        moving: For plans, from the first byte to the last at the slowest rank: without agreeing on the plan.
        wrong: Ranks with a wrong result.
    """

    seconds: tuple[float, ...]
    moving: tuple[float, ...]
    wrong: int


@final
@dataclass(frozen=True)
class Job:
    """What the ranks are told: the ways by name.

    Attributes:
        plans: Plans, by name, all of the same tensors.
        others: Functions ``make(rank, job) -> Ready`` of modules, by name; a module and its function joined by a colon.
        facts: What those functions need.
        repeats: Turns that count; one more comes before.
        seed: Of the contents.
    """

    plans: Mapping[str, Plan]
    others: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    repeats: int = 3
    seed: int = 0


def whole(transfers: Mapping[str, Transfer], seed: int) -> dict[str, np.ndarray]:
    """The tensors' contents, equal on all ranks; small whole numbers, which every type holds."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.integers(0, 100, pair.source.shape).astype(dtype_of(pair.source.dtype))
        for name, pair in transfers.items()
    }


def run(job: Job, topology: Topology, devices: Sequence[int], links: str, timeout: float = 110.0) -> dict[str, Turns]:
    """Time all ways in turns.

    Args:
        job: The ways.
        topology: Hosts and rates.
        devices: The device of each rank.
        links: ``netns`` or ``bucket``; with ``bucket`` only plans are slowed, so nothing else may be timed.
        timeout: Seconds.

    Raises:
        ValueError: Other ways than plans over token buckets.
    """
    from xmesh_reshard.transports.launcher import run_ranks

    if links != "netns" and job.others:
        raise ValueError("token buckets slow plans only: other ways need network namespaces")
    found = run_ranks(_on_rank, topology, job, tuple(devices), devices=tuple(devices), links=links, timeout=timeout)
    return {
        name: Turns(
            tuple(max(rank[name][0][k] for rank in found) for k in range(job.repeats)),
            tuple(max(rank[name][1][k] for rank in found) for k in range(job.repeats)),
            sum(not rank[name][2] for rank in found),
        )
        for name in found[0]
    }


def _on_rank(rank: Any, job: Job, devices: tuple[int, ...]) -> dict[str, tuple[list[float], list[float], bool]]:
    """All ways in turns, in another order every time."""
    import torch.distributed as dist

    from xmesh_reshard.transports.torch_transport import TorchTransport

    with TorchTransport(devices=devices, wrap=rank.wrap, timeout=100.0) as transport:
        ways = {name: _planned(rank, plan, transport, job.seed) for name, plan in job.plans.items()}
        ways |= {name: _find(where)(rank, job) for name, where in job.others.items()}
        times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in ways}
        right = dict.fromkeys(ways, True)
        names = list(ways)
        for turn in range(job.repeats + 1):  # the first makes the connections
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                work, check = ways[name]
                dist.barrier()
                began = time.perf_counter()
                moving = work()
                times[name][0].append(time.perf_counter() - began)
                times[name][1].append(float(moving) if isinstance(moving, float) else times[name][0][-1])
                right[name] = right[name] and check()
        dist.barrier()
    return {name: (both[0][1:], both[1][1:], right[name]) for name, both in times.items()}


def _find(where: str) -> Callable[[Any, Job], Ready]:
    from importlib import import_module

    module, name = where.split(":")
    return getattr(import_module(module), name)


def _planned(rank: Any, plan: Plan, transport: Any, seed: int) -> Ready:
    from xmesh_reshard.transports.torch_packing import to_numpy, to_torch

    full, tensors, device = whole(plan.tensors, seed), plan.tensors, rank.device
    old = {
        n: to_torch(full[n][(*t.source.slices(device), ...)]) for n, t in tensors.items() if device in t.source.position
    }
    want = {n: full[n][(*t.target.slices(device), ...)] for n, t in tensors.items() if device in t.target.position}
    new: dict[str, Any] = {}

    def work() -> float:
        new.clear()
        new.update(transport.execute(plan, old))
        return transport.report.seconds

    def check() -> bool:
        return new.keys() == want.keys() and all(to_numpy(new[n]).tobytes() == want[n].tobytes() for n in want)

    return work, check

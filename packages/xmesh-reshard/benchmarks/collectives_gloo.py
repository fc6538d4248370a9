"""One whole tensor from rank 0 to all other ranks, by gloo's own means; facts: ``nbytes``, ``hosts``, ``devices``.

Ranks 1, 2, … are the receivers, host by host.
"""

from typing import Any

from rig import Job, Ready


def _whole(job: Job) -> Any:
    import torch

    return (torch.arange(job.facts["nbytes"]) % 251).to(torch.uint8)


def broadcast(rank: Any, job: Job) -> Ready:
    """``dist.broadcast``."""
    import torch
    import torch.distributed as dist

    full = _whole(job)
    buffer = full.clone() if rank.rank == 0 else torch.zeros_like(full)

    def work() -> None:
        if rank.rank:
            buffer.zero_()
        dist.broadcast(buffer, 0)

    return work, lambda: torch.equal(buffer, full)


def send_recv(rank: Any, job: Job) -> Ready:
    """All of it to each receiver, all at once."""
    import torch
    import torch.distributed as dist

    full = _whole(job)
    buffer = full.clone() if rank.rank == 0 else torch.zeros_like(full)

    def work() -> None:
        if rank.rank:
            buffer.zero_()
            dist.recv(buffer, 0)
            return
        for pending in [dist.isend(full, receiver) for receiver in range(1, rank.world)]:
            if pending is not None:
                pending.wait()

    return work, lambda: torch.equal(buffer, full)


def local_allgather(rank: Any, job: Job) -> Ready:
    """A part to each device of a host, then an all-gather inside each host."""
    return _gathered(rank, job, job.facts["devices"])


def global_allgather(rank: Any, job: Job) -> Ready:
    """A part to each receiver, then an all-gather over all of them."""
    return _gathered(rank, job, job.facts["hosts"] * job.facts["devices"])


def _gathered(rank: Any, job: Job, width: int) -> Ready:
    import torch
    import torch.distributed as dist

    full, receivers = _whole(job), list(range(1, rank.world))
    groups = [receivers[k : k + width] for k in range(0, len(receivers), width)]
    handles: list[Any] = [dist.new_group(members) for members in groups]
    size = -(-len(full) // width)
    parts = list(full.split(size))
    parts[-1] = torch.cat([parts[-1], torch.zeros(size - len(parts[-1]), dtype=torch.uint8)])
    mine = (rank.rank - 1) // width
    part, found = torch.empty(size, dtype=torch.uint8), [torch.empty(size, dtype=torch.uint8) for _ in range(width)]

    def work() -> None:
        if rank.rank == 0:
            for pending in [dist.isend(parts[k], r) for members in groups for k, r in enumerate(members)]:
                if pending is not None:
                    pending.wait()
            return
        for one in found:
            one.zero_()
        dist.recv(part, 0)
        dist.all_gather(found, part, group=handles[mine])

    return work, lambda: rank.rank == 0 or torch.equal(torch.cat(found)[: len(full)], full)

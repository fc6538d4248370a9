"""All-gathers as people run them: send/recv of parts and gloo's own all-gather, on real processes."""

import time
from typing import Any

from xmesh_reshard.cases import one_to_many_case


def gathered(rank: Any, nbytes: int, hosts: int, devices: int, local: bool, repeats: int) -> tuple[list[float], bool]:
    """What each rank does: rank 0 sends every receiver its part, then the receivers of a group complete each other.

    Args:
        rank: The rank; torch.distributed is ready.
        nbytes: Size of the whole.
        hosts: Receiving hosts.
        devices: Receivers on each.
        local: Whether a group is the receivers of one host, else all.
        repeats: How often.

    Returns:
        Seconds of each repetition on this rank, and whether what it got is right.
    """
    import torch
    import torch.distributed as dist

    receivers = list(range(1, hosts * devices + 1))
    width = devices if local else len(receivers)
    groups = [receivers[k : k + width] for k in range(0, len(receivers), width)]
    handles: dict[tuple[int, ...], Any] = {tuple(members): dist.new_group(members) for members in groups}
    size = -(-nbytes // width)
    whole = (torch.arange(size * width) % 251).to(torch.uint8)
    parts = [whole[k * size : (k + 1) * size] for k in range(width)]
    seconds, right = [], True
    for _ in range(repeats + 1):  # the first makes the connections
        dist.barrier()
        began = time.perf_counter()
        if rank.rank == 0:
            works = [dist.isend(parts[k], member) for members in groups for k, member in enumerate(members)]
            for work in works:
                if work is not None:
                    work.wait()
        else:
            members = next(members for members in groups if rank.rank in members)
            part = torch.empty(size, dtype=torch.uint8)
            dist.recv(part, 0)
            found = [torch.empty(size, dtype=torch.uint8) for _ in members]
            dist.all_gather(found, part, group=handles[tuple(members)])
            right = right and torch.equal(torch.cat(found), whole)
        seconds.append(time.perf_counter() - began)
    return seconds[1:], right


def allgather_seconds(
    nbytes: int, hosts: int, devices: int, *, nic: str, local: bool, repeats: int
) -> tuple[float, bool]:
    """Median seconds of the slowest rank in namespaces with links of a given rate, and whether all got it right."""
    import statistics

    from xmesh_reshard.transports.launcher import run_ranks

    case = one_to_many_case(hosts, devices, nbytes, nic=nic)
    used = [0, *case.transfers["x"].target.devices.tolist()]
    found = run_ranks(
        gathered, case.topology, nbytes, hosts, devices, local, repeats, devices=used, links="netns", timeout=110.0
    )
    return (
        statistics.median(max(rank[k] for rank, _ in found) for k in range(repeats)),
        all(right for _, right in found),
    )

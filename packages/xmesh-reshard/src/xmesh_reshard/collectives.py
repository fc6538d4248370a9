"""What people do today with collectives, for the simulator: all-gather after scattering, and gather then broadcast."""

import itertools
import math
from collections.abc import Callable, Sequence

from xmesh_reshard.baseline_tasks import Leg, Pairs, SenderChoice, Work, chunk_of, legs_of, work_of
from xmesh_reshard.layout import dtype_of
from xmesh_reshard.moves import Collective, Script
from xmesh_reshard.plans import Hop
from xmesh_reshard.topology import Topology

_RING = 32  # devices in a ring from which its parts travel in chunks, to keep the number of flows small


def local_allgather(transfers: Pairs, topology: Topology, *, senders: str = "first") -> Collective:
    """One B-th of a part to each of the B receivers on a host, which then complete it among themselves: A t.

    Args:
        transfers: For each tensor its source and target layout.
        topology: The network.
        senders: Who sends: the ``first`` device that holds the part, or ``balanced`` over hosts.

    Reference:
        Sec. 3.1, "send/recv with local all-gather", as Alpa does.

    Example:
        >>> from xmesh_reshard.cases import one_to_many_case
        >>> from xmesh_reshard.network import simulate
        >>> case = one_to_many_case(2, 4, local="inf")
        >>> simulate(local_allgather(case.transfers, case.topology)).makespan / case.seconds
        2.0
    """

    def groups(receivers: Sequence[int]) -> list[list[int]]:
        key = topology.host_of.__getitem__
        return [list(rest) for _, rest in itertools.groupby(sorted(receivers, key=lambda d: (key(d), d)), key=key)]

    return _allgather(transfers, topology, senders, groups, "send/recv of parts and all-gather inside hosts")


def global_allgather(transfers: Pairs, topology: Topology, *, senders: str = "first") -> Collective:
    """One R-th of a part to each of its R receivers, then a ring all-gather over all of them: t + t (R - 1) / R.

    Args:
        transfers: For each tensor its source and target layout.
        topology: The network.
        senders: Who sends: the ``first`` device that holds the part, or ``balanced`` over hosts.

    Reference:
        Sec. 3.1, "send/recv with global all-gather".
    """

    def groups(receivers: Sequence[int]) -> list[list[int]]:
        return [sorted(receivers, key=lambda d: (topology.host_of[d], d))]

    return _allgather(transfers, topology, senders, groups, "send/recv of parts and all-gather over all receivers")


def gather_broadcast(transfers: Pairs, topology: Topology, *, overlap: bool = True) -> Collective:
    """Gather each tensor on one device and broadcast all of it to every receiver, which cuts its part out.

    This is what weight refreshes of inference fleets do: every receiver gets every byte, needed or not. The broadcast
    is a chunked chain over the receivers, host by host.

    Args:
        transfers: For each tensor its source and target layout; the first source device of each gathers it.
        topology: The network.
        overlap: Whether one tensor is gathered while the one before is broadcast (two buffers on the first device);
            otherwise every tensor waits for the one before.
    """
    work, script = work_of(transfers, topology), Script(topology)
    gathered, sent = [-1, -1], [-1, -1]  # ends of the last two tensors
    for number, group in enumerate(work.groups):
        pulls, legs = _pulls_and_legs(work, number)
        n = len(group.names)
        nbytes = math.prod(group.transfer.source.shape) * dtype_of(group.transfer.wire).itemsize
        if not legs or not nbytes:
            continue
        hops, chunk = [Hop(*leg) for leg in legs], chunk_of(nbytes, legs, topology)
        for _ in range(n):
            ready = [k for k in ((gathered[-1], sent[-2]) if overlap else (sent[-1],)) if k >= 0]
            here = [script.add([hop], size, ready) for hop, size in pulls]
            gathered.append(script.add((), 0, [*here, *ready]))
            sent.append(script.add(hops, nbytes, [gathered[-1], *(k for k in sent[-1:] if k >= 0)], chunk))
    return script.finish("gather on one device, broadcast to all")


def _pulls_and_legs(work: Work, number: int) -> tuple[list[tuple[Hop, int]], list[Leg]]:
    """What one tensor of a group needs to come to its first source device, by card, and the chain from there."""
    group, host_of = work.groups[number], work.topology.host_of
    root = int(group.transfer.source.devices[0])
    pulls: dict[tuple[int, int], tuple[Hop, int]] = {}
    tasks = [task for task in work.tasks if task.box.group == number]
    for task in tasks:
        if root not in task.holders:
            (hop,) = _hops([(task.holders[0], root)], work.topology)
            key = host_of[hop.source], hop.out if hop.out >= 0 else hop.source  # equal routes are one transfer
            before = pulls[key][1] if key in pulls else 0
            pulls[key] = hop, before + task.box.nbytes // len(group.names)
    receivers = [d for d in group.transfer.target.devices.tolist() if d != root] if tasks else []
    receivers.sort(key=lambda d: (host_of[d] != host_of[root], host_of[d], d))
    return list(pulls.values()), legs_of(list(itertools.pairwise([root, *receivers])), work.topology)


COLLECTIVES: dict[str, Callable[[Pairs, Topology], Collective]] = {
    "local_allgather": local_allgather,
    "global_allgather": global_allgather,
    "gather_broadcast": gather_broadcast,
}


def _allgather(
    transfers: Pairs,
    topology: Topology,
    senders: str,
    groups: Callable[[Sequence[int]], list[list[int]]],
    note: str,
) -> Collective:
    work, script, choice = work_of(transfers, topology), Script(topology), SenderChoice(topology, senders)
    for task in work.tasks:
        sender, nbytes = choice.choose(task.holders, task.box.nbytes), task.box.nbytes
        devices = [sender, *task.receivers]
        ready = script.begin(devices)
        ends = [move for ring in groups(task.receivers) for move in _scatter(script, sender, ring, nbytes, ready)]
        script.end(devices, ends)
    return script.finish(note)


def _scatter(script: Script, sender: int, ring: list[int], nbytes: int, ready: list[int]) -> list[int]:
    """An equal part to each device of a ring; when all have theirs, every part goes around."""
    n = len(ring)
    cuts = [nbytes * k // n for k in range(n + 1)]
    sizes = [b - a for a, b in itertools.pairwise(cuts)]
    sent = [
        script.add(_hops([(sender, device)], script.topology), size, ready)
        for device, size in zip(ring, sizes, strict=True)
    ]
    if n == 1:
        return sent
    together = [script.add((), 0, sent)]
    around = []
    for k, size in enumerate(sizes):
        path = ring[k:] + ring[:k]
        chunk = size if n <= _RING else -(-size // 8)
        around.append(script.add(_hops(list(itertools.pairwise(path)), script.topology), size, together, chunk))
    return around


def _hops(pairs: list[tuple[int, int]], topology: Topology) -> list[Hop]:
    return [Hop(*leg) for leg in legs_of(pairs, topology)]

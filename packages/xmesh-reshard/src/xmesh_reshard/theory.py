"""What must hold, by enumeration and closed forms: unit tasks element by element, and what each method costs.

Slow and plain on purpose, and independent of the planner: nothing here is used by it.
"""

import math
from collections.abc import Mapping
from typing import SupportsFloat

import numpy as np

from xmesh_reshard.layout import Layout

Devices = frozenset[int]


def owners_by_element(layout: Layout) -> dict[tuple[int, ...], Devices]:
    """For every element the devices that hold it, one element after the other."""
    boxes = {int(d): layout.slices(int(d)) for d in layout.devices}
    return {
        index: frozenset(
            d for d, box in boxes.items() if all(s.start <= i < s.stop for s, i in zip(box, index, strict=True))
        )
        for index in np.ndindex(layout.shape)
    }


def unit_tasks(source: Layout, target: Layout) -> dict[tuple[Devices, Devices], set[tuple[int, ...]]]:
    """Elements by who holds them and who needs them: the unit communication tasks, boxes of equal sets together.

    Args:
        source: Where the tensor is.
        target: Where it shall be.

    Returns:
        For each pair (holders, devices that need it) with somebody in need: the elements.

    Reference:
        Sec. 2.2.

    Example:
        >>> from xmesh_reshard.layout import Mesh
        >>> old = Layout.sharded((2,), "int8", Mesh.grid((2,)), "S0")
        >>> new = Layout.sharded((2,), "int8", Mesh.grid((1,), first=2), "R")
        >>> sorted((sorted(a), sorted(b), len(n)) for (a, b), n in unit_tasks(old, new).items())
        [([0], [2], 1), ([1], [2], 1)]
    """
    held, needed = owners_by_element(source), owners_by_element(target)
    found: dict[tuple[Devices, Devices], set[tuple[int, ...]]] = {}
    for index, needers in needed.items():
        if needers:
            found.setdefault((held[index], needers), set()).add(index)
    return found


def entering_elements(source: Layout, target: Layout, host_of: Mapping[int, int]) -> dict[int, int]:
    """How many elements each host must receive: those a device of it needs and none of its devices holds."""
    held, needed = owners_by_element(source), owners_by_element(target)
    hosts = {host_of[int(d)] for d in target.devices}
    return {
        host: sum(
            any(host_of[d] == host for d in needers) and all(host_of[d] != host for d in held[index])
            for index, needers in needed.items()
        )
        for host in hosts
    }


def send_recv_seconds(hosts: int, devices: int, t: SupportsFloat) -> float:
    """A B t: each of B devices on A hosts gets the whole part from one card.

    Args:
        hosts: Receiving hosts A.
        devices: Receiving devices B on each.
        t: Seconds that the part needs over a card.

    Reference:
        Sec. 3.1.
    """
    return hosts * devices * float(t)


def local_allgather_seconds(hosts: int, t: SupportsFloat) -> float:
    """A t: each host gets the part once, a B-th on each device; what happens inside the host is free.

    Args:
        hosts: Receiving hosts A.
        t: Seconds that the part needs over a card.

    Reference:
        Sec. 3.1.
    """
    return hosts * float(t)


def global_allgather_seconds(hosts: int, devices: int, t: SupportsFloat) -> float:
    """Scatter and ring: t + t (R - 1) / R for R = A B receivers on A > 1 hosts, t on one.

    The sender's card scatters R parts in t. In each of the R - 1 steps of the ring, every host sends a part t / R to
    the next.

    Args:
        hosts: Receiving hosts A.
        devices: Receiving devices B on each.
        t: Seconds that the part needs over a card.

    Reference:
        Sec. 3.1.
    """
    receivers = hosts * devices
    return float(t) if hosts == 1 else float(t) * (1 + (receivers - 1) / receivers)


def tree_seconds(receivers: int, t: SupportsFloat) -> float:
    """⌈log2(R + 1)⌉ t: whole messages down a binomial tree, every device with a card of its own.

    Args:
        receivers: Receivers R.
        t: Seconds that the part needs over a card.
    """
    return math.ceil(math.log2(receivers + 1)) * float(t)


def chain_seconds_by_steps(
    hops: int, chunks: int, nbytes: SupportsFloat, alpha: SupportsFloat, rate: SupportsFloat
) -> float:
    """A chunked chain step by step: a hop sends chunk k once it has it and has sent chunk k - 1.

        arrival(j, k) = max(arrival(j - 1, k), arrival(j, k - 1)) + α + S / (K β)

    which is (K + A - 1)(α + S / (K β)) for A hops; with α = 0, t (1 + (A - 1) / K).

    Args:
        hops: Hops A.
        chunks: Chunks K, of equal size.
        nbytes: Bytes S of the message.
        alpha: Seconds that a chunk costs besides its bytes.
        rate: Bytes/s of each hop.

    Reference:
        Sec. 3.1, which writes t + A t / K.
    """
    tau = float(alpha) + float(nbytes) / chunks / float(rate)
    arrival = [0.0] * chunks  # at the sender
    for _ in range(hops):
        done = 0.0
        for k in range(chunks):
            done = max(arrival[k], done) + tau
            arrival[k] = done
    return arrival[-1]


def chain_seconds(hops: int, chunks: int, nbytes: SupportsFloat, alpha: SupportsFloat, rate: SupportsFloat) -> float:
    """(K + A - 1)(α + S / (K β)): the closed form of :func:`chain_seconds_by_steps`.

    Args:
        hops: Hops A.
        chunks: Chunks K.
        nbytes: Bytes S of the message.
        alpha: Seconds that a chunk costs besides its bytes.
        rate: Bytes/s of each hop.

    Example:
        >>> chain_seconds(4, 16, 1.0, 0.0, 1.0)
        1.1875
    """
    return (chunks + hops - 1) * (float(alpha) + float(nbytes) / chunks / float(rate))


def best_chunk_count(hops: int, nbytes: SupportsFloat, alpha: SupportsFloat, rate: SupportsFloat, most: int) -> int:
    """The best number of chunks by trying all up to ``most``.

    The derivative of (K + A - 1)(α + S / (K β)) is zero at K* = √((A - 1) S / (α β)); see :func:`chunk_optimum`.

    Args:
        hops: Hops A.
        nbytes: Bytes S of the message.
        alpha: Seconds that a chunk costs besides its bytes.
        rate: Bytes/s of each hop.
        most: Largest number of chunks.
    """
    return min(range(1, most + 1), key=lambda k: chain_seconds(hops, k, nbytes, alpha, rate))


def chunk_optimum(hops: int, nbytes: SupportsFloat, alpha: SupportsFloat, rate: SupportsFloat) -> float:
    """K* = √((A - 1) S / (α β)), where the time of a chain is least: (√(A - 1) √α + √(S / β))².

    Args:
        hops: Hops A.
        nbytes: Bytes S of the message.
        alpha: Seconds that a chunk costs besides its bytes; above zero.
        rate: Bytes/s of each hop.
    """
    return math.sqrt((hops - 1) * float(nbytes) / (float(alpha) * float(rate)))

"""What messages cost on the links at hand: α and β fitted to timed messages."""

import itertools
import math
import socket
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, SupportsFloat, final

import numpy as np

from xmesh_reshard.topology import Host, Nic, Topology

SIZES = (0, 2**10, 2**13, 2**16, 2**18, 2**20, 2**22)


@final
@dataclass(frozen=True)
class Fit:
    """A line through times of messages: t = α + n / β.

    Attributes:
        alpha: Seconds of a message without bytes.
        rate: β, bytes/s.
        error: Median relative deviation of the times from the line.
        sizes: Bytes of the messages.
        seconds: Their times.
    """

    alpha: float
    rate: float
    error: float
    sizes: tuple[int, ...]
    seconds: tuple[float, ...]


@final
@dataclass(frozen=True)
class Measurement:
    """A measured network.

    Attributes:
        topology: Hosts with the fitted rates, α between hosts and within them.
        fits: For each pair of devices that was measured, the fit.
    """

    topology: Topology
    fits: dict[tuple[int, int], Fit]

    @property
    def error(self) -> float:
        """The largest median relative deviation of any pair."""
        return max((fit.error for fit in self.fits.values()), default=0.0)


def fit_line(sizes: Sequence[int], seconds: Sequence[float]) -> Fit:
    """A line through times that span magnitudes and some of which are disturbed.

    1 / β is the median slope of pairs (Theil and Sen) among the three largest sizes, α the median of t - n / β over the
    smaller half, at least 0. Links that let some bytes through at once, as token buckets do, thus show their lasting
    rate.

    Args:
        sizes: Bytes.
        seconds: Times, above zero.

    Raises:
        ValueError: Fewer than two different sizes, a size given twice, or a time that is not above zero.

    Example:
        >>> line = fit_line([0, 1000, 2000, 3000], [1.0, 2.0, 9.0, 4.0])
        >>> round(line.alpha, 9), round(line.rate, 6)
        (1.0, 1000.0)
    """
    n, t = np.asarray(sizes, float), np.asarray(seconds, float)
    if n.shape != t.shape or n.size < 2 or np.unique(n).size < n.size or not (t > 0).all():
        raise ValueError(f"give times above zero for at least two different sizes; got {sizes!r} and {seconds!r}")
    order = np.argsort(n)
    n, t = n[order], t[order]
    slopes = [(t[b] - t[a]) / (n[b] - n[a]) for a, b in itertools.combinations(range(max(len(n) - 3, 0), len(n)), 2)]
    slope = max(float(statistics.median(slopes)), 0.0)
    half = slice(0, max(len(n) // 2, 1))
    alpha = max(float(np.median(t[half] - slope * n[half])), 0.0)
    error = float(np.median(np.abs(t - alpha - slope * n) / t))
    return Fit(alpha, 1 / slope if slope else math.inf, error, tuple(int(k) for k in n), tuple(t.tolist()))


def measure_topology(
    processes: int = 2, *, sizes: Sequence[int] = SIZES, repeats: int = 9, timeout: SupportsFloat = 120.0
) -> Topology:
    """Measure this machine: one host, messages between local processes over torch.distributed (gloo).

    For machines of a cluster, start a process on each (``torchrun``) and call :func:`measure_group` in all.

    Args:
        processes: Number of processes, at least 2; each is a device.
        sizes: Bytes of the messages.
        repeats: Messages of each size; the median counts.
        timeout: Seconds until everything is ended.

    Returns:
        A topology of one host. Nothing crosses its network card, which gets the same rate.
    """
    return measure_local(processes, sizes=sizes, repeats=repeats, timeout=timeout).topology


def measure_local(
    processes: int = 2, *, sizes: Sequence[int] = SIZES, repeats: int = 9, timeout: SupportsFloat = 120.0
) -> Measurement:
    """As :func:`measure_topology`, with the fits and their quality."""
    from xmesh_reshard.transports.launcher import run_ranks

    _check(processes, sizes, repeats)
    return run_ranks(measure_rank, Topology.uniform(1, processes), tuple(sizes), repeats, timeout=timeout)[0]


def measure_rank(rank: Any, sizes: tuple[int, ...], repeats: int) -> Measurement:
    """What each rank does for :func:`measure_local`; hosts are those of the rank's topology."""
    return measure_group(host=rank.topology.hosts[rank.host].name, sizes=sizes, repeats=repeats)


def measure_group(
    group: Any = None, *, host: str | None = None, sizes: Sequence[int] = SIZES, repeats: int = 9
) -> Measurement:
    """Measure the links between the processes of a process group; collective.

    Pairs that have no host in common are timed at the same time, in the rounds of a tournament: between hosts the first
    process of each, within a host each of its processes with the next. A message's time is half of a round trip.

    Args:
        group: The group; the default group if None. Messages are tensors in the host's memory (gloo).
        host: What tells this process's host from others; the host's own name if None.
        sizes: Bytes of the messages.
        repeats: Messages of each size; the median counts.

    Returns:
        The same in all processes. Hosts are called ``host0``, ``host1``, … in the order of their first ranks.
    """
    import torch.distributed as dist

    world, rank = dist.get_world_size(group), dist.get_rank(group)
    _check(world, sizes, repeats)
    names: list[Any] = [None] * world
    dist.all_gather_object(names, socket.gethostname() if host is None else host, group=group)
    members = [[r for r in range(world) if names[r] == name] for name in dict.fromkeys(names)]
    fits: dict[tuple[int, int], Fit] = {}
    for pairs in [*_tournament([m[0] for m in members]), *_neighbours(members)]:
        mine = next((pair for pair in pairs if rank in pair), None)
        found = None if mine is None else _time_pair(group, mine, rank, sizes, repeats)
        everyone: list[Any] = [None] * world
        dist.all_gather_object(everyone, found, group=group)
        for pair in pairs:
            fits[pair] = fit_line(tuple(sizes), everyone[pair[0]])
    return Measurement(_topology(members, fits), fits)


def _check(processes: int, sizes: Sequence[int], repeats: int) -> None:
    if processes < 2 or len({*sizes}) < 2 or min(sizes) < 0 or repeats < 1:
        raise ValueError(
            f"measuring takes at least 2 processes, 2 sizes from 0 up and 1 message of each; got {processes}"
            f" processes, sizes {tuple(sizes)}, {repeats} messages"
        )


def _tournament(players: Sequence[int]) -> list[list[tuple[int, int]]]:
    """Rounds of disjoint pairs, in which each meets each other once (the circle method)."""
    ring: list[int | None] = [*players, *([None] if len(players) % 2 else [])]
    rounds = []
    for _ in range(len(ring) - 1):
        pairs = [(ring[k], ring[-1 - k]) for k in range(len(ring) // 2)]
        rounds.append([(min(a, b), max(a, b)) for a, b in pairs if a is not None and b is not None])
        ring = [ring[0], ring[-1], *ring[1:-1]]
    return [pairs for pairs in rounds if pairs]


def _neighbours(members: Sequence[Sequence[int]]) -> list[list[tuple[int, int]]]:
    """In round k, the k-th and the next process of each host."""
    longest = max(len(m) for m in members)
    return [[(m[k], m[k + 1]) for m in members if k + 1 < len(m)] for k in range(longest - 1)]


def _time_pair(group: Any, pair: tuple[int, int], rank: int, sizes: Sequence[int], repeats: int) -> tuple[float, ...]:
    """Median one-way times of messages between two ranks."""
    import torch
    import torch.distributed as dist

    peer = pair[1] if rank == pair[0] else pair[0]
    medians = []
    for size in sizes:
        buffer, times = torch.zeros(max(size, 1), dtype=torch.uint8)[:size], []
        for _ in range(repeats + 1):  # the first warms the connection up
            began = time.perf_counter()
            for sends in (rank == pair[0], rank != pair[0]):
                work = (
                    dist.isend(buffer, group=group, group_dst=peer)
                    if sends
                    else dist.irecv(buffer, group=group, group_src=peer)
                )
                if work is not None:  # None only for processes outside the group
                    work.wait()
            times.append((time.perf_counter() - began) / 2)
        medians.append(statistics.median(times[1:]))
    return tuple(medians)


def _topology(members: Sequence[Sequence[int]], fits: dict[tuple[int, int], Fit]) -> Topology:
    host_of = {r: h for h, ranks in enumerate(members) for r in ranks}
    across = {pair: fit for pair, fit in fits.items() if host_of[pair[0]] != host_of[pair[1]]}
    within = {pair: fit for pair, fit in fits.items() if pair not in across}

    def rate(found: dict[tuple[int, int], Fit], h: int) -> float | None:
        rates = [fit.rate for pair, fit in found.items() if h in (host_of[pair[0]], host_of[pair[1]])]
        return statistics.median(rates) if rates else None

    hosts = []
    for h, ranks in enumerate(members):
        local = rate(within, h)
        card = rate(across, h) or local or 1.0
        card = card if math.isfinite(card) else 1e12  # too fast for the sizes to tell
        hosts.append(Host(f"host{h}", tuple(ranks), (Nic(card, card),), local or math.inf))
    alphas = [[fit.alpha for fit in found.values()] for found in (across, within)]
    alpha, local_alpha = (statistics.median(values) if values else 0.0 for values in alphas)
    return Topology(tuple(hosts), alpha, local_alpha)

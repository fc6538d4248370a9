"""From a schedule of hosts to messages of devices."""

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from xmesh_reshard.assembling import pointers
from xmesh_reshard.demands import Route
from xmesh_reshard.ordering import Job, Ports, Slot
from xmesh_reshard.plans import Tables
from xmesh_reshard.stock import HEAD, Queue, Stock
from xmesh_reshard.topology import Topology

Crossing = tuple[tuple[int, ...], tuple[int, ...]]  # ports of a leg between hosts, and the lane of each


@final
@dataclass
class Draft:
    """A message on its way into the tables.

    Attributes:
        hops: (sender, receiver, card out, card in) of each leg; cards are -1 inside a host.
        pieces: Numbers of the pieces that are sent.
        nbytes: Bytes of the pieces.
        route: Ports and lanes of each leg between hosts.
        chunk: Bytes of a chunk.
        star: Whether the sender sends to each receiver itself.
        start: Seconds.
        end: Seconds.
    """

    hops: list[tuple[int, int, int, int]]
    pieces: np.ndarray
    nbytes: int
    route: list[Crossing]
    chunk: int = 1
    star: bool = False
    start: float = 0.0
    end: float = 0.0


@final
class Supply:
    """The pieces of one job, by routes of devices, taken from the front.

    Args:
        stock: The table of pieces.
        routes: Devices that hold, devices that need, and the pieces of each route.
    """

    def __init__(self, stock: Stock, routes: Sequence[tuple[Route, np.ndarray]]) -> None:
        self._stock = stock
        self._routes = deque(routes)
        self._open: Queue | None = None  # the first route's pieces, once some are taken

    def take(self, amount: float, slack: float = 0.0) -> list[tuple[Route, np.ndarray]]:
        """About ``amount`` bytes, short by less than an element or ``slack``."""
        found = []
        while self._routes and amount > slack:
            route, pieces = self._routes[0]
            queue = self._open = self._open or Queue(self._stock, pieces)
            taken = queue.take(amount, slack)
            amount -= self._stock.total(taken)
            if len(taken):
                found.append((route, taken))
            if queue:
                break
            self._routes.popleft()
            self._open = None
        return found

    def everything(self) -> list[tuple[Route, np.ndarray]]:
        """All that is left."""
        found = list(self._routes)
        if self._open is not None:
            found[0] = (found[0][0], self._open.everything())
        self._routes.clear()
        self._open = None
        return found


@final
class Senders:
    """Chooses, on a host, the holder that has sent least so far."""

    def __init__(self, topology: Topology) -> None:
        self._host_of = topology.host_of
        self._sent: dict[int, int] = {}

    def choose(self, holders: Sequence[int], host: int, nbytes: int) -> int:
        """The device of a host to send from."""
        mine = [device for device in holders if self._host_of[device] == host]
        device = min(mine, key=lambda d: (self._sent.get(d, 0), d))
        self._sent[device] = self._sent.get(device, 0) + nbytes
        return device


def chain_devices(sender: int, receivers: Sequence[int], hosts: Sequence[int], topology: Topology) -> list[int]:
    """The sender, then the receivers host by host in the order given."""
    host_of = topology.host_of
    by_host: dict[int, list[int]] = {}
    for device in receivers:
        by_host.setdefault(host_of[device], []).append(device)
    return [sender, *(device for host in hosts for device in by_host.get(host, ()))]


def draft(
    jobs: Sequence[Job],
    slots: Sequence[Slot],
    supplies: Sequence[Supply],
    stock: Stock,
    chunks: Sequence[int],
    ports: Ports,
    topology: Topology,
    largest: int,
    slack: int,
) -> list[Draft]:
    """Fill the slots of a schedule with portions.

    Args:
        jobs: The jobs.
        slots: The schedule, by start time.
        supplies: What each job sends.
        stock: The table of pieces.
        chunks: Bytes of a chunk of each job.
        ports: The ports, to name the cards.
        topology: The network.
        largest: Most bytes of a message.
        slack: Bytes by which a slot may fall short.
    """
    senders = Senders(topology)
    final_slot = {slot.job: k for k, slot in enumerate(slots)}
    drafts: list[Draft] = []
    owed = [0.0] * len(jobs)
    for k, slot in enumerate(slots):
        job, supply = jobs[slot.job], supplies[slot.job]
        if final_slot[slot.job] == k:
            content = supply.everything()
        else:
            wanted = slot.nbytes + owed[slot.job]
            content = supply.take(wanted, float(slack))
            owed[slot.job] = wanted - sum(stock.total(pieces) for _, pieces in content)
        route = _route(ports, job, slot)
        cards = [(ports.card[p[0]][lane[0]], ports.card[p[1]][lane[1]]) for p, lane in route]
        start = slot.start
        for (holders, needers), pieces in content:
            for bundle in bundles(stock, pieces, largest):
                nbytes = stock.total(bundle)
                sender = senders.choose(holders, job.hosts[0], nbytes)
                devices = chain_devices(sender, needers, job.hosts[1:], topology)
                chunk = min(nbytes, chunks[slot.job])
                drafts.append(Draft(_legs(devices, cards, topology), bundle, nbytes, route, chunk, start=start))
                start += slot.busy * nbytes / slot.nbytes
    return drafts


def bundles(stock: Stock, pieces: np.ndarray, largest: int) -> list[np.ndarray]:
    """Pieces together up to a size; larger ones are cut, down to single elements."""
    if len(pieces) == 0 or stock.total(pieces) <= largest:
        return [pieces] if len(pieces) else []
    queue, found = Queue(stock, pieces), []
    while queue:
        taken = queue.take(float(largest))
        found.append(taken if len(taken) else queue.single())
    return found


def _route(ports: Ports, job: Job, slot: Slot) -> list[Crossing]:
    """Ports and lanes of each hop."""
    found, hops = ports.of(job.hosts)
    return [
        (
            tuple(port for port, at in zip(found, hops, strict=True) if at == hop),
            tuple(lane for lane, at in zip(slot.lanes, hops, strict=True) if at == hop),
        )
        for hop in range(len(job.hosts) - 1)
    ]


def _legs(
    devices: Sequence[int], cards: Sequence[tuple[int, int]], topology: Topology
) -> list[tuple[int, int, int, int]]:
    host_of, crossing, legs = topology.host_of, iter(cards), []
    for a, b in itertools.pairwise(devices):
        out, into = next(crossing) if host_of[a] != host_of[b] else (-1, -1)
        legs.append((a, b, out, into))
    return legs


def tabulate(drafts: Sequence[Draft], copies: np.ndarray, stock: Stock) -> Tables:
    """The columns of a plan."""
    hops = np.array([leg for d in drafts for leg in d.hops], np.int64).reshape(-1, 4)
    empty = np.zeros(0, np.int64)
    rows = stock.rows[np.concatenate([empty, *(d.pieces for d in drafts)])]
    copied = stock.rows[copies[:, 1]]
    width = (rows.shape[1] - HEAD) // 2
    return Tables(
        hop_ptr=pointers([len(d.hops) for d in drafts]),
        hop_source=hops[:, 0].copy(),
        hop_target=hops[:, 1].copy(),
        hop_out=hops[:, 2].copy(),
        hop_into=hops[:, 3].copy(),
        piece_ptr=pointers([len(d.pieces) for d in drafts]),
        piece_group=rows[:, 0].copy(),
        piece_first=rows[:, 1].copy(),
        piece_last=rows[:, 2].copy(),
        piece_lower=rows[:, HEAD : HEAD + width].copy(),
        piece_upper=rows[:, HEAD + width :].copy(),
        nbytes=np.array([d.nbytes for d in drafts], np.int64),
        chunk=np.array([d.chunk for d in drafts], np.int64),
        star=np.array([d.star for d in drafts], np.int64),
        start=np.array([d.start for d in drafts], float),
        end=np.array([d.end for d in drafts], float),
        copy_device=copies[:, 0].copy(),
        copy_group=copied[:, 0].copy(),
        copy_lower=copied[:, HEAD : HEAD + width].copy(),
        copy_upper=copied[:, HEAD + width :].copy(),
    )

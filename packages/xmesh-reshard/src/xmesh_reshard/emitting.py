"""From a schedule of hosts to messages of devices."""

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from xmesh_reshard.chains import best_chunks, chain_seconds, star_seconds
from xmesh_reshard.demands import Route
from xmesh_reshard.ordering import Job, Ports, Slot
from xmesh_reshard.plans import Tables
from xmesh_reshard.stock import HEAD, Queue, Stock
from xmesh_reshard.topology import Topology

Crossing = tuple[tuple[int, ...], tuple[int, ...]]  # ports of a leg between hosts, and the lane of each

_WIDEST = 16  # bytes of the widest element


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
        found.append(taken if len(taken) else queue.take(float(_WIDEST)))
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


def arrange(drafts: Sequence[Draft], ports: Ports, topology: Topology, small: int) -> tuple[list[Draft], float]:
    """Put the messages into their final order: the best of a few, by the blocking model.

    Small messages come first, for among large ones each would make all the devices that it passes wait for one another.
    The rest follow the schedule, or are mixed so that all devices of a host progress evenly.

    Args:
        drafts: The messages by start time.
        ports: The ports between hosts.
        topology: The network.
        small: Bytes below which a message is small.

    Returns:
        The messages in order, with their start and end, and the seconds until the last has arrived.
    """
    first = sorted(drafts, key=lambda message: message.nbytes >= small)
    orders: dict[tuple[int, ...], list[Draft]] = {}
    for order in (list(drafts), first, interleave(first, topology)):
        orders[tuple(map(id, order))] = order
    seconds = {key: timed(order, ports, topology) for key, order in orders.items()}
    last = next(reversed(orders))  # mixed orders are preferred where they cost nothing
    best = last if seconds[last] <= min(seconds.values()) * 1.002 else min(orders, key=lambda key: seconds[key])
    return orders[best], seconds[best] if best == last else timed(orders[best], ports, topology)


def interleave(drafts: Sequence[Draft], topology: Topology) -> list[Draft]:
    """Mix messages that follow one another along the same hosts, so that all devices of a host progress evenly.

    Chains through different devices of a host share its card; one after the other, each would wait for its own α.
    """
    host_of = topology.host_of

    def along(message: Draft) -> tuple[int, ...]:
        return tuple(host_of[b] for _, b, out, _ in message.hops if out >= 0)

    mixed: list[Draft] = []
    for _, run in itertools.groupby(drafts, key=along):
        messages = list(run)
        whole: dict[int, int] = {}
        middles = []
        for message in messages:
            door = message.hops[0][1]
            before = whole.get(door, 0)
            whole[door] = before + message.nbytes
            middles.append((door, before + message.nbytes / 2))
        progress = [middle / whole[door] for door, middle in middles]
        mixed += [messages[k] for k in sorted(range(len(messages)), key=progress.__getitem__)]
    return mixed


def settle(drafts: Sequence[Draft], ports: Ports, topology: Topology, smallest: int) -> None:
    """Smaller chunks where links inside hosts take part, and the method of each message, from the cost model.

    Args:
        drafts: The messages; changed in place.
        ports: The ports between hosts.
        topology: The network.
        smallest: Fewest bytes of a chunk.
    """
    host_of, hosts = topology.host_of, topology.hosts
    for message in drafts:
        crossing = sum(out >= 0 for _, _, out, _ in message.hops)
        if not crossing or len(message.hops) == 1:
            continue
        alphas = [topology.local_alpha if out < 0 else topology.alpha for _, _, out, _ in message.hops]
        rates = [hosts[host_of[a]].local if out < 0 else ports.base for a, _, out, _ in message.hops]
        if crossing < len(message.hops):
            count = best_chunks(message.nbytes, alphas, rates, smallest)
            message.chunk = max(1, min(message.chunk, -(-message.nbytes // count)))
        elif message.chunk >= message.nbytes:
            sender, lanes = message.hops[0][0], ports.lanes[host_of[message.hops[0][0]]]
            star = star_seconds(message.nbytes, len(message.hops), topology.alpha, ports.base, lanes)
            if star < 0.99 * chain_seconds(message.nbytes, 1, alphas, rates):
                message.star = True
                found = [ports.of((host_of[sender], host_of[b]))[0] for _, b, _, _ in message.hops]
                message.route = [(mine, (k % lanes, *(0 for _ in mine[1:]))) for k, mine in enumerate(found)]
                message.hops = [
                    (sender, b, ports.card[mine[0]][k % lanes], ports.card[mine[1]][0])
                    for k, ((_, b, _, _), mine) in enumerate(zip(message.hops, found, strict=True))
                ]


def tabulate(drafts: Sequence[Draft], copies: np.ndarray, stock: Stock) -> Tables:
    """The columns of a plan."""
    hops = np.array([leg for d in drafts for leg in d.hops], np.int64).reshape(-1, 4)
    empty = np.zeros(0, np.int64)
    rows = stock.rows[np.concatenate([empty, *(d.pieces for d in drafts)])]
    copied = stock.rows[copies[:, 1]]
    width = (rows.shape[1] - HEAD) // 2
    return Tables(
        hop_ptr=_pointers([len(d.hops) for d in drafts]),
        hop_source=hops[:, 0].copy(),
        hop_target=hops[:, 1].copy(),
        hop_out=hops[:, 2].copy(),
        hop_into=hops[:, 3].copy(),
        piece_ptr=_pointers([len(d.pieces) for d in drafts]),
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


def timed(drafts: Sequence[Draft], ports: Ports, topology: Topology) -> float:
    """Work the messages off in order, blocking on their ports, and write down when each starts and ends.

    A lane of a card carries the bytes of one message at a time; α occupies the two devices, while the card may serve
    others. A hop starts when its ports are free and the first chunk has arrived, and ends no earlier than one chunk
    after the hop before it. Local links are ports of their device.

    Returns:
        Seconds until the last message has arrived.
    """
    free: dict[tuple[int, ...], float] = {}
    host_of, hosts = topology.host_of, topology.hosts
    for message in drafts:
        chunks = -(-message.nbytes // message.chunk)
        each = message.nbytes / chunks
        first = last = 0.0  # when the first and the last chunk have arrived where the next hop starts
        message.start, message.end = float("inf"), 0.0
        crossings = iter(message.route)
        for a, b, out, _ in message.hops:
            if message.star:
                first = last = 0.0
            cards: list[tuple[int, ...]] = []
            if out < 0:
                rate, alpha = hosts[host_of[a]].local, topology.local_alpha
                ends: list[tuple[int, ...]] = [(a, -1), (b, -2)]
            else:
                mine, lanes = next(crossings)
                rate, alpha = min(ports.rate[p] for p in mine), topology.alpha
                cards = list(zip(mine, lanes, strict=True))
                ends = [(a, *cards[0], 0), (b, *cards[1], 1)]
            tau = alpha + each / rate
            begin = max([first, *(free.get(key, 0.0) for key in (*cards, *ends))])
            last = max(begin + chunks * tau, last + tau)
            free.update(dict.fromkeys(ends, last))
            free.update(dict.fromkeys(cards, begin + message.nbytes / rate))
            first = begin + tau
            message.start, message.end = min(message.start, begin), max(message.end, last)
    return max((message.end for message in drafts), default=0.0)


def _pointers(lengths: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.array(lengths, np.int64))]).astype(np.int64)

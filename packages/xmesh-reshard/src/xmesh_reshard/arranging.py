"""The final order of messages, and their times by a model of blocking ports."""

import heapq
import itertools
from collections.abc import Sequence

from xmesh_reshard.chains import best_chunks, chain_seconds, star_seconds
from xmesh_reshard.emitting import Draft
from xmesh_reshard.ordering import Ports
from xmesh_reshard.topology import Topology


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


def arrange(
    drafts: Sequence[Draft], ports: Ports, topology: Topology, small: int, window: int
) -> tuple[list[Draft], float]:
    """Put the messages into their final order: the best of a few, by the blocking model.

    Small messages come first, for among large ones each would make all the devices that it passes wait for one another.
    The rest follow the schedule, or are mixed so that all devices of a host progress evenly.

    Args:
        drafts: The messages by start time.
        ports: The ports between hosts.
        topology: The network.
        small: Bytes below which a message is small.
        window: Messages that a device has under way.

    Returns:
        The messages in order, with their start and end, and the seconds until the last has arrived.
    """
    first = sorted(drafts, key=lambda message: message.nbytes >= small)
    orders: dict[tuple[int, ...], list[Draft]] = {}
    for order in (list(drafts), first, interleave(first, topology)):
        orders[tuple(map(id, order))] = order
    seconds = {key: timed(order, ports, topology, window) for key, order in orders.items()}
    last = next(reversed(orders))  # mixed orders are preferred where they cost nothing
    best = last if seconds[last] <= min(seconds.values()) * 1.002 else min(orders, key=lambda key: seconds[key])
    return orders[best], seconds[best] if best == last else timed(orders[best], ports, topology, window)


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


def timed(drafts: Sequence[Draft], ports: Ports, topology: Topology, window: int) -> float:
    """Work the messages off in order, blocking on their ports, and write down when each starts and ends.

    A lane of a card carries the bytes of one message at a time; α occupies the two devices, while the card may serve
    others. Two devices exchange one message at a time, and a device has ``window`` under way. A hop starts when its
    ports are free and the first chunk has arrived, and ends no earlier than one chunk after the hop before it.

    Returns:
        Seconds until the last message has arrived.
    """
    free: dict[tuple[int, ...], float] = {}
    under_way: dict[tuple[int, int], list[float]] = {}  # when each of a device's places is free, a heap
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
            keys: list[tuple[int, ...]] = [(a, b, 0)]
            cards: list[tuple[int, ...]] = []
            places: list[list[float]] = []
            if out < 0:
                rate, alpha = hosts[host_of[a]].local, topology.local_alpha
                keys = [(a, -1), (b, -2)]
            else:
                mine, lanes = next(crossings)
                rate, alpha = min(ports.rate[p] for p in mine), topology.alpha
                cards.extend(zip(mine, lanes, strict=True))
                places = [under_way.setdefault(key, [0.0] * window) for key in ((a, 0), (b, 1))]
            tau = alpha + each / rate
            ready = (*(free.get(k, 0.0) for k in (*cards, *keys)), *(place[0] for place in places))
            begin = max(first, *ready)
            last = max(begin + chunks * tau, last + tau)
            for place in places:
                heapq.heapreplace(place, last)
            free.update(dict.fromkeys(keys, last))
            free.update(dict.fromkeys(cards, begin + message.nbytes / rate))
            first = begin + tau
            message.start, message.end = min(message.start, begin), max(message.end, last)
    return max((message.end for message in drafts), default=0.0)

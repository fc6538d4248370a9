"""One level of the network: from what hosts need of one another to messages in an order."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from xmesh_reshard.assigning import Assignment, Demand, assign
from xmesh_reshard.chains import best_chunks
from xmesh_reshard.demands import Route, Table
from xmesh_reshard.emitting import Draft, Supply, draft
from xmesh_reshard.ordering import Job, Ports, Slot, order
from xmesh_reshard.stock import Stock
from xmesh_reshard.topology import Topology

_MOST_APART = 10_000  # routes times hosts


@final
@dataclass(frozen=True)
class Options:
    """What the planner may do.

    Attributes:
        largest: Most bytes of a message.
        smallest: Fewest bytes of a chunk.
        split: Whether a demand may be split over several senders.
        target: Relative gap at which the search for an order stops.
    """

    largest: int
    smallest: int
    split: bool = True
    target: float = 0.005


@final
@dataclass(frozen=True)
class Level:
    """Messages in an order.

    Attributes:
        drafts: The messages, by start time.
        bound: Seconds that no order beats, and the port that gives it.
        ports: The ports.
        notes: What was chosen.
    """

    drafts: list[Draft]
    bound: tuple[float, str]
    ports: Ports
    notes: tuple[str, ...]


def schedule(tables: Table, stock: Stock, topology: Topology, options: Options) -> Level:
    """Choose senders, order and chunks for what moves between hosts.

    Args:
        tables: For each pair of hosts that hold and hosts that need, the pieces by devices.
        stock: The table of pieces.
        topology: The network.
        options: What is allowed.
    """
    host_of = topology.host_of
    wanted = [_demand(routes, stock, host_of) for routes in tables.values()]
    found = assign(wanted, topology)
    shares = found.shares if options.split else _whole(wanted, found)
    ports = Ports(topology, sorted({h for d in wanted for h in (*d.holders, *d.receivers)}))
    jobs, supplies = _jobs(wanted, shares, list(tables.values()), stock, found, topology)
    chunks = _chunk_sizes(jobs, _doors(tables, host_of), ports, topology, options)
    jobs = [
        Job(job.hosts, job.nbytes, topology.alpha + min(chunk, job.nbytes) / ports.base)
        for job, chunk in zip(jobs, chunks, strict=True)
    ]
    slots = _merged(order(jobs, ports, found.seconds, target=options.target))
    slack = min(64 * 1024, min((job.nbytes for job in jobs), default=0) // 1000)
    drafts = draft(jobs, slots, supplies, stock, chunks, ports, topology, options.largest, slack)
    split = sum(1 for row in shares if sum(share > 0 for share in row) > 1)
    notes = (
        f"{split} of {len(wanted)} demands between hosts are split over several senders",
        f"{len(jobs)} streams between hosts in {len(slots)} slices",
    )
    return Level(drafts, (found.seconds, found.cause), ports, notes)


def each_host(tables: Table, topology: Topology) -> Table:
    """The same demands with every receiving host on its own; nothing where there are no others, or too many.

    Args:
        tables: For each pair of hosts that hold and hosts that need, the pieces by devices.
        topology: The network.
    """
    host_of = topology.host_of
    apart: Table = {}
    if sum(len(hosts[1]) * len(routes) for hosts, routes in tables.items()) > _MOST_APART:
        return apart
    for (holders, receivers), routes in tables.items():
        for host in receivers:
            for (have, need), pieces in routes.items():
                mine = have, tuple(d for d in need if host_of[d] == host)
                into = apart.setdefault((holders, (host,)), {})
                into[mine] = np.concatenate([into[mine], pieces]) if mine in into else pieces
    return apart if any(len(receivers) > 1 for _, receivers in tables) else {}


def _demand(routes: Mapping[Route, np.ndarray], stock: Stock, host_of: Mapping[int, int]) -> Demand:
    holders, needers = next(iter(routes))
    nbytes = sum(stock.total(pieces) for pieces in routes.values())
    senders, receivers = (tuple(sorted({host_of[d] for d in side})) for side in (holders, needers))
    return Demand(senders, receivers, nbytes)


def _whole(wanted: Sequence[Demand], found: Assignment) -> list[tuple[float, ...]]:
    """Give every demand to one holder: largest first, to the one that stays least loaded."""
    load: dict[int, float] = {}
    shares: list[tuple[float, ...]] = [()] * len(wanted)
    for k in sorted(range(len(wanted)), key=lambda k: (-wanted[k].nbytes, k)):
        holders = wanted[k].holders
        best = min(range(len(holders)), key=lambda i: (load.get(holders[i], 0.0), -found.shares[k][i], i))
        load[holders[best]] = load.get(holders[best], 0.0) + wanted[k].nbytes
        shares[k] = tuple(float(i == best) for i in range(len(holders)))
    return shares


def _jobs(
    wanted: Sequence[Demand],
    shares: Sequence[Sequence[float]],
    tables: Sequence[dict[Route, np.ndarray]],
    stock: Stock,
    found: Assignment,
    topology: Topology,
) -> tuple[list[Job], list[Supply]]:
    """Deal the demands out to their senders, and put together what goes from one host to the same others."""
    into: dict[int, int] = {}
    for demand in wanted:
        for h in demand.receivers:
            into[h] = into.get(h, 0) + demand.nbytes
    pools: dict[tuple[int, ...], dict[Route, list[np.ndarray]]] = {}
    for k, (demand, row, routes) in enumerate(zip(wanted, shares, tables, strict=True)):
        supply = Supply(stock, list(routes.items()))
        owners = [(h, share) for h, share in zip(demand.holders, row, strict=True) if share > 0]
        for place, (host, share) in enumerate(owners):
            hosts = (host, *_chain(host, demand.receivers, found.relays[k], into, topology))
            last = place == len(owners) - 1
            for route, pieces in supply.everything() if last else supply.take(share * demand.nbytes):
                pools.setdefault(hosts, {}).setdefault(route, []).append(pieces)
    jobs, supplies = [], []
    for hosts, pool in pools.items():
        joined = [(route, parts[0] if len(parts) == 1 else np.concatenate(parts)) for route, parts in pool.items()]
        jobs.append(Job(hosts, sum(stock.total(pieces) for _, pieces in joined)))
        supplies.append(Supply(stock, joined))
    return jobs, supplies


def _chain(
    host: int, receivers: Sequence[int], relays: Sequence[float], into: Mapping[int, int], topology: Topology
) -> list[int]:
    """The order of a chain: rack by rack, the sender's first; fast hosts before slow; those first that shall pass on.

    Among equals the host comes first that receives most, for it must not wait for the pipeline to fill.
    """
    racks, hosts = topology.rack_of, topology.hosts
    rank = {
        h: (-hosts[h].down, share < 0.5, -into[h] / hosts[h].down, -share, h)
        for h, share in zip(receivers, relays, strict=True)
    }
    first = {racks[h]: min(rank[g] for g in receivers if racks[g] == racks[h]) for h in receivers}
    return sorted(receivers, key=lambda h: (racks[h] != racks[host], first[racks[h]], rank[h]))


def _chunk_sizes(
    jobs: Sequence[Job], doors: Mapping[int, int], ports: Ports, topology: Topology, options: Options
) -> list[int]:
    """Chunk of each job: the closed form for all that its busiest receiver gets, as chains in a row fill once.

    Chains through several devices of a host run side by side: each has its part of the bytes and of the rate.
    """
    into: dict[int, int] = {}
    for job in jobs:
        for h in job.hosts[1:]:
            into[h] = into.get(h, 0) + job.nbytes
    sizes = []
    for job in jobs:
        hops = len(job.hosts) - 1
        if hops == 1:  # nobody passes it on: every chunk more would only cost α
            sizes.append(options.largest)
            continue
        stream, busiest = max((into[h], h) for h in job.hosts[1:])
        chains = doors[busiest]
        rates = [ports.base * ports.lanes[job.hosts[0]] / max(chains, ports.lanes[job.hosts[0]])] * hops
        count = best_chunks(stream / chains, [topology.alpha] * hops, rates, options.smallest)
        sizes.append(max(1, min(options.largest, math.ceil(stream / chains / count))))
    return sizes


def _doors(tables: Table, host_of: Mapping[int, int]) -> dict[int, int]:
    """Number of devices of each host through which data enter it."""
    found: dict[int, set[int]] = {}
    for routes in tables.values():
        for _, needers in routes:
            entered: set[int] = set()
            for device in needers:
                if (host := host_of[device]) not in entered:
                    entered.add(host)
                    found.setdefault(host, set()).add(device)
    return {host: len(devices) for host, devices in found.items()}


def _merged(slots: Sequence[Slot]) -> list[Slot]:
    """Join slices of a job that follow one another on the same lanes."""
    merged: list[Slot] = []
    last: dict[int, int] = {}
    for slot in slots:
        k = last.get(slot.job)
        if k is not None and _follows(merged[k], slot):
            before = merged[k]
            nbytes, busy = before.nbytes + slot.nbytes, before.busy + slot.busy
            merged[k] = Slot(slot.job, nbytes, before.start, slot.end, busy, slot.lanes)
        else:
            last[slot.job] = len(merged)
            merged.append(slot)
    return merged


def _follows(before: Slot, after: Slot) -> bool:
    """Whether the ports are not idle in between."""
    return before.lanes == after.lanes and abs(after.start - before.start - before.busy) <= 1e-9 * after.end

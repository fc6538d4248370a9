"""The planner: unit tasks, balanced senders, an order, messages and their chunks."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from xmesh_reshard import quantities
from xmesh_reshard.assigning import Assignment, Demand, assign
from xmesh_reshard.chains import MIN_CHUNK, best_chunks, chain_seconds, star_seconds
from xmesh_reshard.demands import Demands, Route, demands_of, group_transfers
from xmesh_reshard.emitting import Draft, Supply, bundles, chain_devices, draft, tabulate, timed
from xmesh_reshard.layout import Layout, LayoutError
from xmesh_reshard.ordering import Job, Ports, Slot, order
from xmesh_reshard.plans import Plan, Transfer
from xmesh_reshard.portions import Portion, cut
from xmesh_reshard.topology import Topology

Pairs = Mapping[str, "tuple[Layout, Layout] | Transfer"]


def plan(
    transfers: Pairs,
    topology: Topology,
    *,
    cast: bool = False,
    split_senders: bool = True,
    max_message: str | int = "256MiB",
    min_chunk: str | int = MIN_CHUNK,
    target_gap: float = 0.005,
) -> Plan:
    """Plan how to move many tensors together.

    Every part crosses to a host once, and inside a host from device to device. Senders are balanced by a linear program
    over all tensors (:mod:`~xmesh_reshard.assigning`), the order comes from edge colouring and list scheduling
    (:mod:`~xmesh_reshard.ordering`), chunks from a closed form (:mod:`~xmesh_reshard.chains`). The same input gives the
    same plan in every process.

    Args:
        transfers: For each tensor its source and target layout.
        topology: The network; it must hold all devices.
        cast: Whether a tensor may change its type on the way.
        split_senders: Whether a part may be split over the hosts that hold it.
        max_message: Largest message, bytes: bounds the receive buffers.
        min_chunk: Smallest chunk, bytes.
        target_gap: Relative distance from the bound at which the search stops.

    Returns:
        The plan, with its makespan, lower bound and gap.

    Raises:
        LayoutError: Layouts of different shape, of different dtype without ``cast``, or parts that nobody holds.
        TopologyError: The topology lacks a device.

    Example:
        >>> from xmesh_reshard import Layout, Mesh, Topology
        >>> source = Layout.sharded((8, 8), "float32", Mesh.grid((2, 2)), "S0R")
        >>> target = Layout.sharded((8, 8), "float32", Mesh.grid((2, 2), first=4), "RS0")
        >>> made = plan({"w": (source, target)}, Topology.uniform(4, 2))
        >>> made.network_bytes, made.gap
        (256, 0.0)
    """
    pairs = {str(name): _transfer(str(name), pair, cast) for name, pair in transfers.items()}
    topology.require([layout for pair in pairs.values() for layout in (pair.source, pair.target)])
    largest, smallest = quantities.size(max_message), max(1, quantities.size(min_chunk))
    if largest < 1:
        raise ValueError(f"max_message is at least one byte; got {max_message!r}")
    groups = group_transfers(pairs)
    demands = demands_of(groups, topology)
    wanted = [
        Demand(*hosts, sum(p.nbytes for ps in routes.values() for p in ps)) for hosts, routes in demands.remote.items()
    ]
    found = assign(wanted, topology)
    shares = found.shares if split_senders else _whole(wanted, found)
    used = sorted({h for d in wanted for h in (*d.holders, *d.receivers)})
    ports = Ports(topology, used)
    jobs, supplies = _jobs(wanted, shares, demands, found, ports, topology)
    chunks = _chunk_sizes(jobs, ports, topology, smallest, largest)
    jobs = [
        Job(job.hosts, job.nbytes, topology.alpha + min(chunk, job.nbytes) / ports.base)
        for job, chunk in zip(jobs, chunks, strict=True)
    ]
    slots = _merged(order(jobs, ports, found.seconds, target=target_gap))
    slack = max(64, min((job.nbytes for job in jobs), default=0) // 1000)
    drafts = _local(demands, topology, largest) + draft(jobs, slots, supplies, ports, topology, largest, slack)
    _choose(drafts, ports, topology, smallest, dict(zip((job.hosts for job in jobs), chunks, strict=True)))
    makespan = timed(drafts, ports, topology)
    bound, cause = _inside(demands, topology, found)
    dims = max((len(group.transfer.source.shape) for group in groups), default=0)
    tables = tabulate(drafts, demands.copies, dims)
    notes = _notes(found, jobs, slots, drafts, cause)
    return Plan(groups, topology, tables, makespan, min(bound, makespan), notes)


def _transfer(name: str, pair: Any, cast: bool) -> Transfer:
    try:
        source, target = (pair.source, pair.target) if isinstance(pair, Transfer) else pair
    except (TypeError, ValueError):
        raise TypeError(
            f"tensor {name!r} needs a pair (source layout, target layout); got {type(pair).__name__}"
        ) from None
    for layout in (source, target):
        if not isinstance(layout, Layout):
            raise TypeError(f"tensor {name!r} needs two layouts; got {type(layout).__name__}: see Layout.sharded")
    if source.shape != target.shape:
        raise LayoutError(
            f"tensor {name!r} has the shape {source.shape} in the source and {target.shape} in the target"
        )
    if source.dtype != target.dtype and not cast:
        raise LayoutError(
            f"tensor {name!r} is {source.dtype} in the source and {target.dtype} in the target;"
            " pass cast=True to convert it on the way"
        )
    return Transfer(source, target)


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
    demands: Demands,
    found: Assignment,
    ports: Ports,
    topology: Topology,
) -> tuple[list[Job], list[Supply]]:
    """Deal the demands out to their senders, and put together what goes from one host to the same others."""
    pools: dict[tuple[int, tuple[int, ...]], dict[Route, list[Portion]]] = {}
    for demand, row, routes in zip(wanted, shares, demands.remote.values(), strict=True):
        queue = [(route, portion) for route, portions in routes.items() for portion in portions]
        owners = [(h, share) for h, share in zip(demand.holders, row, strict=True) if share > 0]
        for k, (host, share) in enumerate(owners):
            pool = pools.setdefault((host, demand.receivers), {})
            amount = math.inf if k == len(owners) - 1 else share * demand.nbytes
            queue = _deal(queue, amount, pool)
    jobs, supplies = [], []
    for (host, receivers), pool in pools.items():
        if nbytes := sum(p.nbytes for portions in pool.values() for p in portions):
            jobs.append(Job((host, *_chain(host, receivers, found, topology)), nbytes))
            supplies.append(Supply(list(pool.items())))
    return jobs, supplies


def _deal(
    queue: list[tuple[Route, Portion]], amount: float, pool: dict[Route, list[Portion]]
) -> list[tuple[Route, Portion]]:
    """Move ``amount`` bytes from the head of the queue to the pool; returns the rest."""
    for k, (route, portion) in enumerate(queue):
        if amount <= 0:
            return queue[k:]
        taken, rest = cut(portion, amount)
        if taken:
            pool.setdefault(route, []).extend(taken)
        amount -= sum(p.nbytes for p in taken)
        if rest:
            return [*((route, part) for part in rest), *queue[k + 1 :]]
    return []


def _chain(host: int, receivers: Sequence[int], found: Assignment, topology: Topology) -> list[int]:
    """The order of a chain: rack by rack, the sender's first, faster hosts before slower, the busiest sender last."""
    racks, hosts = topology.rack_of, topology.hosts
    return sorted(
        receivers,
        key=lambda h: (racks[h] != racks[host], racks[h], -hosts[h].down, found.load[h] / hosts[h].up, h),
    )


def _chunk_sizes(jobs: Sequence[Job], ports: Ports, topology: Topology, smallest: int, largest: int) -> list[int]:
    """Chunk of each job: the closed form for all that its busiest receiver gets, as chains in a row fill once."""
    into: dict[int, int] = {}
    for job in jobs:
        for h in job.hosts[1:]:
            into[h] = into.get(h, 0) + job.nbytes
    sizes = []
    for job in jobs:
        hops = len(job.hosts) - 1
        stream = max(into[h] for h in job.hosts[1:])
        count = best_chunks(stream, [topology.alpha] * hops, [ports.base] * hops, smallest)
        sizes.append(max(1, min(largest, -(-stream // count))))
    return sizes


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


def _local(demands: Demands, topology: Topology, largest: int) -> list[Draft]:
    """Messages inside hosts: from the holders in turn, along a chain of the devices that need it."""
    drafts = []
    for host, routes in sorted(demands.local.items()):
        for (holders, needers), portions in routes.items():
            for k, bundle in enumerate(bundles(portions, largest)):
                devices = chain_devices(holders[k % len(holders)], needers, (host,), topology)
                legs = [(a, b, -1, -1) for a, b in itertools.pairwise(devices)]
                drafts.append(Draft(legs, bundle, sum(p.nbytes for p in bundle)))
    return drafts


def _choose(
    drafts: Sequence[Draft], ports: Ports, topology: Topology, smallest: int, chunks: Mapping[tuple[int, ...], int]
) -> None:
    """Chunks and method of each message from the cost model."""
    host_of, hosts = topology.host_of, topology.hosts
    for message in drafts:
        route = [host_of[message.hops[0][0]]]
        alphas, rates = [], []
        for a, b, out, _ in message.hops:
            if out < 0:
                alphas.append(topology.local_alpha)
                rates.append(hosts[host_of[a]].local)
            else:
                alphas.append(topology.alpha)
                rates.append(ports.base)
                route.append(host_of[b])
        if len(route) == 1 or len(message.hops) > len(route) - 1:  # links inside hosts take part
            count = best_chunks(message.nbytes, alphas, rates, smallest)
            chunk = -(-message.nbytes // count)
            message.chunk = min(chunk, chunks.get(tuple(route), chunk))
        else:
            message.chunk = min(message.nbytes, chunks[tuple(route)])
        message.chunk = max(1, message.chunk)
        distinct = len({host_of[b] for _, b, _, _ in message.hops}) == len(message.hops)
        if len(message.hops) > 1 and len(route) > 1 and distinct and message.chunk >= message.nbytes:
            lanes = ports.lanes[route[0]]
            star = star_seconds(message.nbytes, len(message.hops), topology.alpha, ports.base, lanes)
            if star < 0.99 * chain_seconds(message.nbytes, 1, alphas, rates):
                sender, cards = message.hops[0][0], len(hosts[route[0]].nics)
                message.star = True
                message.hops = [(sender, b, k % cards, into) for k, (_, b, _, into) in enumerate(message.hops)]


def _inside(demands: Demands, topology: Topology, found: Assignment) -> tuple[float, str]:
    """The bound with what every device must receive over its card and its local link together."""
    need: dict[int, int] = {}
    for table in (demands.remote, demands.local):
        for routes in table.values():
            for (_, needers), portions in routes.items():
                nbytes = sum(p.nbytes for p in portions)
                for device in needers:
                    need[device] = need.get(device, 0) + nbytes
    bound, cause = found.seconds, found.cause
    for device, nbytes in sorted(need.items()):
        host = topology.hosts[topology.host_of[device]]
        if nbytes / (host.local + host.down) > bound:
            bound, cause = nbytes / (host.local + host.down), f"bytes that device {device} must receive"
    return bound, cause


def _notes(
    found: Assignment, jobs: Sequence[Job], slots: Sequence[Slot], drafts: Sequence[Draft], cause: str
) -> tuple[str, ...]:
    split = sum(1 for row in found.shares if sum(share > 0 for share in row) > 1)
    stars = sum(message.star for message in drafts)
    several = sum(len(message.hops) > 1 for message in drafts) - stars
    return (
        f"bound by {cause}" if jobs or drafts else "nothing has to move",
        f"{split} of {len(found.shares)} demands between hosts are split over several senders",
        f"{len(jobs)} streams between hosts in {len(slots)} slices",
        f"{several} messages along chains, {stars} to each receiver separately,"
        f" {len(drafts) - several - stars} to one receiver",
    )

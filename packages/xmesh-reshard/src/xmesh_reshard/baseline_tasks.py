"""What the baselines have in common: unit tasks one by one, the choice of a sender, cards and chunks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np

from xmesh_reshard.assigning import Demand, assign
from xmesh_reshard.chains import best_chunks
from xmesh_reshard.demands import demands_of, group_transfers
from xmesh_reshard.emitting import Draft, tabulate
from xmesh_reshard.layout import Layout, LayoutError, dtype_of
from xmesh_reshard.links import Hops
from xmesh_reshard.lowering import nodes_of
from xmesh_reshard.plans import Group, Plan, Transfer
from xmesh_reshard.portions import Portion
from xmesh_reshard.topology import Topology
from xmesh_reshard.units import units_of

Pairs = Mapping[str, Transfer | tuple[Layout, Layout]]
Choice = Literal["first", "balanced"]


@final
@dataclass(frozen=True)
class UnitTask:
    """A box that one set of devices holds and others need (Sec. 2.2).

    Attributes:
        portion: The box, of all tensors of its group.
        holders: Devices that hold it, ascending.
        receivers: Devices that need it and do not hold it, ascending.
    """

    portion: Portion
    holders: tuple[int, ...]
    receivers: tuple[int, ...]


@final
@dataclass(frozen=True)
class Work:
    """All that has to be done.

    Attributes:
        groups: The tensors by equal layouts.
        topology: The network.
        tasks: Tensor by tensor, boxes in lexicographic order.
        copies: Device and box of what is there already.
    """

    groups: tuple[Group, ...]
    topology: Topology
    tasks: tuple[UnitTask, ...]
    copies: tuple[tuple[int, Portion], ...]


def work_of(transfers: Pairs, topology: Topology) -> Work:
    """Cut tensors into unit tasks.

    Args:
        transfers: For each tensor its source and target layout.
        topology: The network; it must hold all devices.

    Raises:
        LayoutError: Layouts of different shape, or parts that nobody holds.
        TopologyError: The topology lacks a device.
    """
    made = {name: pair if isinstance(pair, Transfer) else Transfer(*pair) for name, pair in transfers.items()}
    topology.require([layout for transfer in made.values() for layout in (transfer.source, transfer.target)])
    groups = group_transfers(made)
    tasks: list[UnitTask] = []
    copies: list[tuple[int, Portion]] = []
    for number, group in enumerate(groups):
        if group.transfer.source.shape != group.transfer.target.shape:
            raise LayoutError(f"tensor {group.names[0]!r} has different shapes in its source and target layouts")
        units, n = units_of(group.transfer.source, group.transfer.target), len(group.names)
        sizes = units.elements * dtype_of(group.transfer.wire).itemsize * n
        columns = (units.lower.tolist(), units.upper.tolist(), units.holders.tolist(), units.needers.tolist())
        for low, high, old, new, nbytes in sorted(zip(*columns, sizes.tolist(), strict=True)):
            portion = Portion(number, 0, n, tuple(low), tuple(high), nbytes)
            holders, needers = units.sets[old], units.sets[new]
            copies += [(device, portion) for device in needers if device in holders]
            if receivers := tuple(device for device in needers if device not in holders):
                tasks.append(UnitTask(portion, holders, receivers))
    return Work(groups, topology, tuple(tasks), tuple(copies))


@final
class SenderChoice:
    """Chooses who sends a part.

    Args:
        topology: The network.
        how: ``first``: the holder of the lowest number; ``balanced``: a holder on the host that has sent least so far,
            there the device that has.
    """

    def __init__(self, topology: Topology, how: Choice) -> None:
        self._host_of, self._how = topology.host_of, how
        self._hosts: dict[int, int] = {}
        self._devices: dict[int, int] = {}

    def choose(self, holders: Sequence[int], nbytes: int) -> int:
        """The device to send ``nbytes`` from."""
        if self._how == "first":
            return holders[0]
        sent = {d: (self._hosts.get(self._host_of[d], 0), self._devices.get(d, 0), d) for d in holders}
        device = min(holders, key=lambda d: sent[d])
        host = self._host_of[device]
        self._hosts[host] = self._hosts.get(host, 0) + nbytes
        self._devices[device] = self._devices.get(device, 0) + nbytes
        return device


def legs_of(pairs: Sequence[tuple[int, int]], topology: Topology) -> list[tuple[int, int, int, int]]:
    """Hops with their cards: the devices of a host take turns over its cards."""
    host_of, hosts = topology.host_of, topology.hosts

    def card(device: int) -> int:
        host = hosts[host_of[device]]
        return host.devices.index(device) % len(host.nics)

    return [(a, b, card(a), card(b)) if host_of[a] != host_of[b] else (a, b, -1, -1) for a, b in pairs]


def chunk_of(nbytes: int, legs: Sequence[tuple[int, int, int, int]], topology: Topology) -> int:
    """The best chunk of a chain along these hops, bytes."""
    host_of, hosts = topology.host_of, topology.hosts
    alphas, rates = [], []
    for a, b, out, into in legs:
        old, new = hosts[host_of[a]], hosts[host_of[b]]
        alphas.append(topology.local_alpha if out < 0 else topology.alpha)
        rates.append(min(old.local, new.local) if out < 0 else min(old.nics[out].up, new.nics[into].down))
    return max(1, -(-nbytes // best_chunks(float(nbytes), alphas, rates)))


def finished(work: Work, drafts: list[Draft], note: str) -> Plan:
    """A plan of messages in the order given, with the time they take if every port works in this order."""
    remote = demands_of(work.groups, work.topology).remote
    wanted = [Demand(*hosts, sum(p.nbytes for ps in rest.values() for p in ps)) for hosts, rest in remote.items()]
    bound = assign(wanted, work.topology).seconds if wanted else 0.0
    drafts = [draft for draft in drafts if draft.nbytes]
    makespan = _clocked(drafts, work.topology)
    dims = max((len(group.transfer.source.shape) for group in work.groups), default=0)
    tables = tabulate(drafts, work.copies, dims)
    return Plan(work.groups, work.topology, tables, makespan, min(bound, makespan), (note,))


def _clocked(drafts: list[Draft], topology: Topology) -> float:
    """Write down when each message starts and ends if ports block: a message waits until all its ports are free.

    Hop j begins one chunk's time after the hop before it, and the slowest hop sets the pace; what uses a port twice in
    one message does so one after the other.
    """
    if not drafts:
        return 0.0
    legs = np.array([leg for draft in drafts for leg in draft.hops], np.int64).reshape(-1, 4).T
    hops = Hops(np.cumsum([0, *(len(draft.hops) for draft in drafts)]), *legs)
    nbytes, chunk = (np.array([getattr(draft, name) for draft in drafts], np.int64) for name in ("nbytes", "chunk"))
    nodes = nodes_of(hops, nbytes, chunk, topology, np.ones(len(drafts), bool))
    finite = np.isfinite(nodes.links.rates)
    free = np.zeros(len(finite))
    for k, draft in enumerate(drafts):
        mine = range(int(hops.ptr[k]), int(hops.ptr[k + 1]))
        ports = [[p for p in nodes.ports[h].tolist() if p >= 0 and finite[p]] for h in mine]
        head, tau = nodes.head[mine.start : mine.stop].tolist(), nodes.tau[mine.start : mine.stop].tolist()
        start = max([0.0, *(float(free[p]) - a for a, row in zip(head, ports, strict=True) for p in row)])
        rest = (-(-draft.nbytes // draft.chunk) - 1) * max(tau)
        draft.start = draft.end = start
        for a, b, row in zip(head, tau, ports, strict=True):
            begin = max([start + a, *(float(free[p]) for p in row)])
            free[row] = begin + b + rest
            draft.end = max(draft.end, begin + b + rest)
    return max(draft.end for draft in drafts)

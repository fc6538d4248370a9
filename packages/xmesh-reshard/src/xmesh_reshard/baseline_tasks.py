"""What the baselines have in common: unit tasks one by one, the choice of a sender, cards and chunks."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import numpy as np

from xmesh_reshard.assigning import Demand, assign
from xmesh_reshard.chains import best_chunks
from xmesh_reshard.demands import group_transfers
from xmesh_reshard.layout import Layout, LayoutError, dtype_of
from xmesh_reshard.links import Hops
from xmesh_reshard.lowering import nodes_of
from xmesh_reshard.plans import Group, Plan, Tables, Transfer
from xmesh_reshard.topology import Topology
from xmesh_reshard.units import units_of

Leg = tuple[int, int, int, int]  # sender, receiver, card out, card in
Pairs = Mapping[str, Transfer | tuple[Layout, Layout]]


class Box(NamedTuple):
    """A box of all tensors of a group.

    Attributes:
        group: Number of the group of tensors.
        lower: First index in each dimension.
        upper: One past the last.
        nbytes: Bytes on the wire over all tensors.
    """

    group: int
    lower: tuple[int, ...]
    upper: tuple[int, ...]
    nbytes: int


@final
@dataclass(frozen=True)
class UnitTask:
    """A box that one set of devices holds and others need (Sec. 2.2).

    Attributes:
        box: The box.
        holders: Devices that hold it, ascending.
        receivers: Devices that need it and do not hold it, ascending.
    """

    box: Box
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
    copies: tuple[tuple[int, Box], ...]


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
    copies: list[tuple[int, Box]] = []
    for number, group in enumerate(groups):
        if group.transfer.source.shape != group.transfer.target.shape:
            raise LayoutError(f"tensor {group.names[0]!r} has different shapes in its source and target layouts")
        units, n = units_of(group.transfer.source, group.transfer.target), len(group.names)
        sizes = units.elements * dtype_of(group.transfer.wire).itemsize * n
        columns = (units.lower.tolist(), units.upper.tolist(), units.holders.tolist(), units.needers.tolist())
        for low, high, old, new, nbytes in sorted(zip(*columns, sizes.tolist(), strict=True)):
            box = Box(number, tuple(low), tuple(high), nbytes)
            holders, needers = units.sets[old], units.sets[new]
            copies += [(device, box) for device in needers if device in holders]
            if receivers := tuple(device for device in needers if device not in holders):
                tasks.append(UnitTask(box, holders, receivers))
    return Work(groups, topology, tuple(tasks), tuple(copies))


@final
class SenderChoice:
    """Chooses who sends a part.

    Args:
        topology: The network.
        how: ``first``: the holder of the lowest number; ``balanced``: a holder on the host that has sent least so far,
            there the device that has.

    Raises:
        ValueError: Another word.
    """

    def __init__(self, topology: Topology, how: str) -> None:
        if how not in ("first", "balanced"):
            raise ValueError(f"senders are 'first' or 'balanced'; got {how!r}")
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


def legs_of(pairs: Sequence[tuple[int, int]], topology: Topology) -> list[Leg]:
    """Hops with their cards: the devices of a host take turns over its cards."""
    host_of, hosts = topology.host_of, topology.hosts

    def card(device: int) -> int:
        host = hosts[host_of[device]]
        return host.devices.index(device) % len(host.nics)

    return [(a, b, card(a), card(b)) if host_of[a] != host_of[b] else (a, b, -1, -1) for a, b in pairs]


def chunk_of(nbytes: int, legs: Sequence[Leg], topology: Topology) -> int:
    """The best chunk of a chain along these hops, bytes."""
    host_of, hosts = topology.host_of, topology.hosts
    alphas, rates = [], []
    for a, b, out, into in legs:
        old, new = hosts[host_of[a]], hosts[host_of[b]]
        alphas.append(topology.local_alpha if out < 0 else topology.alpha)
        rates.append(min(old.local, new.local) if out < 0 else min(old.nics[out].up, new.nics[into].down))
    return max(1, -(-nbytes // best_chunks(float(nbytes), alphas, rates)))


@final
@dataclass
class Draft:
    """A message before it is put into a plan.

    Attributes:
        hops: (sender, receiver, card out, card in) of each leg; cards are -1 inside a host.
        boxes: What is sent.
        chunk: Bytes of a chunk.
        start: Seconds.
        end: Seconds.
    """

    hops: list[Leg]
    boxes: list[Box]
    chunk: int
    start: float = 0.0
    end: float = 0.0

    @property
    def nbytes(self) -> int:
        """Bytes of the message."""
        return sum(box.nbytes for box in self.boxes)


def needs_between_hosts(work: Work) -> list[Demand]:
    """Bytes by the hosts that hold them and the hosts that need them and hold none."""
    host_of = work.topology.host_of
    found: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
    for task in work.tasks:
        holders = tuple(sorted({host_of[d] for d in task.holders}))
        if receivers := tuple(sorted({host_of[d] for d in task.receivers} - {*holders})):
            found[holders, receivers] = found.get((holders, receivers), 0) + task.box.nbytes
    return [Demand(*hosts, nbytes) for hosts, nbytes in found.items() if nbytes]


def finished(work: Work, drafts: list[Draft], note: str) -> Plan:
    """A plan of messages in the order given, with the time they take if every port works in this order.

    Args:
        work: What has to be done.
        drafts: The messages; those without bytes are left out.
        note: What the baseline is.
    """
    needs = needs_between_hosts(work)
    bound = assign(needs, work.topology).seconds if needs else 0.0
    drafts = [draft for draft in drafts if draft.nbytes]
    makespan = _clocked(drafts, work.topology)
    return Plan(work.groups, work.topology, _tables(work, drafts), makespan, min(bound, makespan), (note,))


def _tables(work: Work, drafts: list[Draft]) -> Tables:
    dims = max((len(group.transfer.source.shape) for group in work.groups), default=0)
    hops = np.array([leg for draft in drafts for leg in draft.hops], np.int64).reshape(-1, 4)
    boxes, copied = [box for draft in drafts for box in draft.boxes], [box for _, box in work.copies]

    def column(values: Iterable[int]) -> np.ndarray:
        return np.fromiter(values, np.int64)

    def corners(rows: Iterable[tuple[int, ...]], fill: int) -> np.ndarray:
        padded = [row + (fill,) * (dims - len(row)) for row in rows]
        return np.array(padded, np.int64).reshape(len(padded), dims)

    return Tables(
        hop_ptr=column(itertools.accumulate((len(draft.hops) for draft in drafts), initial=0)),
        hop_source=hops[:, 0].copy(),
        hop_target=hops[:, 1].copy(),
        hop_out=hops[:, 2].copy(),
        hop_into=hops[:, 3].copy(),
        piece_ptr=column(itertools.accumulate((len(draft.boxes) for draft in drafts), initial=0)),
        piece_group=column(box.group for box in boxes),
        piece_first=np.zeros(len(boxes), np.int64),
        piece_last=column(len(work.groups[box.group].names) for box in boxes),
        piece_lower=corners((box.lower for box in boxes), 0),
        piece_upper=corners((box.upper for box in boxes), 1),
        nbytes=column(draft.nbytes for draft in drafts),
        chunk=column(draft.chunk for draft in drafts),
        star=np.zeros(len(drafts), np.int64),
        start=np.array([draft.start for draft in drafts], float),
        end=np.array([draft.end for draft in drafts], float),
        copy_device=column(device for device, _ in work.copies),
        copy_group=column(box.group for box in copied),
        copy_lower=corners((box.lower for box in copied), 0),
        copy_upper=corners((box.upper for box in copied), 1),
    )


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

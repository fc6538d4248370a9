"""What must move between and inside hosts, over all tensors together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

from xmesh_reshard.layout import LayoutError, dtype_of
from xmesh_reshard.plans import Group, Transfer
from xmesh_reshard.portions import Portion
from xmesh_reshard.topology import Topology
from xmesh_reshard.units import units_of

Route = tuple[tuple[int, ...], tuple[int, ...]]  # devices that hold it, devices that need it


@final
@dataclass(frozen=True)
class Demands:
    """Portions by where they are and where they must go.

    Attributes:
        remote: For each pair of hosts that hold and hosts that need: portions by the devices on both sides.
        local: The same for each host and what moves inside it, where devices stand for hosts.
        copies: Device and portion of what a device holds already.
    """

    remote: dict[Route, dict[Route, list[Portion]]] = field(default_factory=dict)
    local: dict[int, dict[Route, dict[Route, list[Portion]]]] = field(default_factory=dict)
    copies: list[tuple[int, Portion]] = field(default_factory=list)


def group_transfers(transfers: Mapping[str, Transfer]) -> tuple[Group, ...]:
    """Put tensors of equal layouts together, in the order of their first."""
    found: dict[tuple[bytes, bytes], list[str]] = {}
    keys: dict[int, bytes] = {}
    for name, transfer in transfers.items():
        pair = tuple(keys.setdefault(id(side), side.key()) for side in (transfer.source, transfer.target))
        found.setdefault((pair[0], pair[1]), []).append(name)
    return tuple(Group(tuple(names), transfers[names[0]]) for names in found.values())


def demands_of(groups: Sequence[Group], topology: Topology) -> Demands:
    """Cut all tensors into unit tasks and sort them by hosts and devices.

    Raises:
        LayoutError: A target needs elements that no source device holds.
    """
    demands = Demands()
    splits: dict[Route, _Split] = {}
    for number, group in enumerate(groups):
        try:
            units = units_of(group.transfer.source, group.transfer.target)
        except LayoutError as error:
            raise LayoutError(f"tensor {group.names[0]!r}: {error}") from None
        n = len(group.names)
        sizes = (units.elements * (dtype_of(group.transfer.wire).itemsize * n)).tolist()
        rows = zip(
            units.lower.tolist(), units.upper.tolist(), units.holders.tolist(), units.needers.tolist(), strict=True
        )
        for nbytes, (low, high, holders, needers) in zip(sizes, rows, strict=True):
            route = units.sets[holders], units.sets[needers]
            split = splits.get(route)
            if split is None:
                split = splits[route] = _split(*route, topology)
            portion = Portion(number, 0, n, tuple(low), tuple(high), nbytes)
            demands.copies.extend((device, portion) for device in split.copies)
            for host, inside in split.local:
                demands.local.setdefault(host, {}).setdefault(inside, {}).setdefault(inside, []).append(portion)
            if split.remote is not None:
                hosts, devices = split.remote
                demands.remote.setdefault(hosts, {}).setdefault(devices, []).append(portion)
    return demands


@final
@dataclass(frozen=True)
class _Split:
    copies: tuple[int, ...]
    local: tuple[tuple[int, Route], ...]
    remote: tuple[Route, Route] | None


def _split(holders: tuple[int, ...], needers: tuple[int, ...], topology: Topology) -> _Split:
    """Who has it already, who gets it from its own host, and who over the network."""
    host_of = topology.host_of
    have = {*holders}
    sources: dict[int, list[int]] = {}
    for device in holders:
        sources.setdefault(host_of[device], []).append(device)
    near: dict[int, list[int]] = {}
    far: list[int] = []
    for device in needers:
        if device in have:
            continue
        if (host := host_of[device]) in sources:
            near.setdefault(host, []).append(device)
        else:
            far.append(device)
    local = tuple((host, (tuple(sources[host]), tuple(devices))) for host, devices in sorted(near.items()))
    remote = None
    if far:
        hosts = tuple(sorted(sources)), tuple(sorted({host_of[d] for d in far}))
        remote = hosts, (holders, tuple(far))
    return _Split(tuple(d for d in needers if d in have), local, remote)

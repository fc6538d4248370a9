"""What must move between and inside hosts, over all tensors together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from xmesh_reshard.layout import LayoutError, dtype_of
from xmesh_reshard.plans import Group, Transfer
from xmesh_reshard.stock import HEAD, Stock
from xmesh_reshard.topology import Topology
from xmesh_reshard.units import Units, units_of

Route = tuple[tuple[int, ...], tuple[int, ...]]  # devices that hold it, devices that need it


Table = dict[Route, dict[Route, np.ndarray]]  # by hosts, then by devices: numbers of the pieces


@final
@dataclass(frozen=True)
class Demands:
    """Pieces by where they are and where they must go.

    Attributes:
        stock: All pieces.
        remote: For each pair of hosts that hold and hosts that need: pieces by the devices on both sides.
        local: The same for each host and what moves inside it, where devices stand for hosts.
        copies: Device and number of each piece that a device holds already, (c, 2).
    """

    stock: Stock
    remote: Table
    local: dict[int, Table]
    copies: np.ndarray


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
    dims = [len(group.transfer.source.shape) for group in groups]
    number: dict[tuple[int, ...], int] = {}
    rows, holders, needers = [np.zeros((0, HEAD + 2 * max(dims, default=0)), np.int64)], [], []
    for k, group in enumerate(groups):
        try:
            units = units_of(group.transfer.source, group.transfer.target)
        except LayoutError as error:
            raise LayoutError(f"tensor {group.names[0]!r}: {error}") from None
        sets = np.array([number.setdefault(devices, len(number)) for devices in units.sets], np.int64)
        holders.append(sets[units.holders])
        needers.append(sets[units.needers])
        rows.append(_rows(k, group, units, max(dims)))
    stock = Stock(np.concatenate(rows), dims)
    demands = Demands(stock, {}, {}, np.zeros((0, 2), np.int64))
    if not len(stock.rows):
        return demands
    keys = np.concatenate(holders) * len(number) + np.concatenate(needers)
    order = np.argsort(keys, kind="stable")
    values, starts = np.unique(keys[order], return_index=True)
    every = list(number)
    copies: list[np.ndarray] = []
    for value, pieces in zip(values.tolist(), np.split(order, starts[1:]), strict=True):
        have, need = divmod(value, len(number))
        split = _split(every[have], every[need], topology)
        copies += [np.column_stack([np.full(len(pieces), device), pieces]) for device in split.copies]
        for host, inside in split.local:
            _add(demands.local.setdefault(host, {}), inside, inside, pieces)
        if split.remote is not None:
            _add(demands.remote, *split.remote, pieces)
    return replace(demands, copies=np.concatenate(copies)) if copies else demands


def _add(table: Table, hosts: Route, devices: Route, pieces: np.ndarray) -> None:
    routes = table.setdefault(hosts, {})
    routes[devices] = np.concatenate([routes[devices], pieces]) if devices in routes else pieces


def _rows(number: int, group: Group, units: Units, width: int) -> np.ndarray:
    """The units of a group as rows of a stock."""
    n, (count, d) = len(group.names), units.lower.shape
    rows = np.zeros((count, HEAD + 2 * width), np.int64)
    rows[:, 0], rows[:, 2] = number, n
    rows[:, 3] = units.elements * (dtype_of(group.transfer.wire).itemsize * n)
    rows[:, HEAD : HEAD + d] = units.lower
    rows[:, HEAD + width :] = 1
    rows[:, HEAD + width : HEAD + width + d] = units.upper
    return rows


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

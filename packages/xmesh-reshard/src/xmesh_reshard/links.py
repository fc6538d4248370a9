"""The ports of a network as numbered resources, and those that each hop of a message uses."""

from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float, Int

from xmesh_reshard.topology import Topology

COLUMNS = 5  # ports of a hop at most: out, in, rack up, rack down, core


@final
@dataclass(frozen=True, eq=False)
class Links:
    """All ports of a topology.

    Attributes:
        names: What each port is called, such as ``host0 nic0 out`` or ``device 3 in``.
        rates: Bytes/s of each; infinite where it has no limit.
    """

    names: tuple[str, ...]
    rates: Float[np.ndarray, "r"]


@final
@dataclass(frozen=True, eq=False)
class Hops:
    """Hops of messages in columns; message m has the hops ``ptr[m]:ptr[m + 1]``, parents before children.

    Attributes:
        ptr: First hop of each message.
        source: Sending device.
        target: Receiving device.
        out: Card of the sender's host; -1 inside a host.
        into: Card of the receiver's host; -1 inside a host.
    """

    ptr: Int[np.ndarray, "m1"]
    source: Int[np.ndarray, "h"]
    target: Int[np.ndarray, "h"]
    out: Int[np.ndarray, "h"]
    into: Int[np.ndarray, "h"]

    @property
    def message(self) -> Int[np.ndarray, "h"]:
        """Message of each hop."""
        return np.repeat(np.arange(len(self.ptr) - 1), np.diff(self.ptr))


def links_of(topology: Topology) -> Links:
    """Number the ports: cards out, cards in, local links out, local links in, racks up, racks down, the core."""
    cards = [(f"{host.name} nic{k}", nic) for host in topology.hosts for k, nic in enumerate(host.nics)]
    local = [(f"device {d}", host.local) for host in topology.hosts for d in host.devices]
    racks = [(rack, topology.uplink(rack)) for rack in sorted({*topology.rack_of})]
    named = [(f"{name} out", nic.up) for name, nic in cards] + [(f"{name} in", nic.down) for name, nic in cards]
    for kind, table in ((("out", "in"), local), (("up", "down"), racks)):
        for side in kind:
            named += [(f"{name} {side}", rate) for name, rate in table]
    named.append(("core", topology.core))
    return Links(tuple(name for name, _ in named), np.array([rate for _, rate in named], float))


def ports_of(hops: Hops, topology: Topology) -> Int[np.ndarray, "h p"]:
    """The ports of each hop, -1 where there are fewer.

    Raises:
        ValueError: A hop between hosts names no card, or one that the host does not have.
    """
    first_card = np.cumsum([0, *(len(host.nics) for host in topology.hosts)])
    cards, devices = int(first_card[-1]), np.array([d for host in topology.hosts for d in host.devices], np.int64)
    place = {int(d): k for k, d in enumerate(devices)}
    host_of = topology.host_of
    a, b = (np.array([host_of[d] for d in side.tolist()], np.int64) for side in (hops.source, hops.target))
    between = a != b
    _check(hops, topology, a, b, between)
    found = np.full((len(a), COLUMNS), -1, np.int64)
    inside = 2 * cards
    here, there = (np.array([place[d] for d in side.tolist()], np.int64) for side in (hops.source, hops.target))
    found[:, 0] = np.where(between, first_card[a] + hops.out, inside + here)
    found[:, 1] = np.where(between, cards + first_card[b] + hops.into, inside + len(devices) + there)
    racks = sorted({*topology.rack_of})
    rack = np.array([racks.index(name) for name in topology.rack_of], np.int64)
    across = rack[a] != rack[b]
    base = inside + 2 * len(devices)
    found[across, 2] = base + rack[a[across]]
    found[across, 3] = base + len(racks) + rack[b[across]]
    found[across, 4] = base + 2 * len(racks)
    return found


def _check(hops: Hops, topology: Topology, a: np.ndarray, b: np.ndarray, between: np.ndarray) -> None:
    count = np.array([len(host.nics) for host in topology.hosts])
    for card, host in ((hops.out, a), (hops.into, b)):
        bad = between & ((card < 0) | (card >= count[host]))
        if bad.any():
            k = int(np.flatnonzero(bad)[0])
            raise ValueError(
                f"the hop from device {hops.source[k]} to {hops.target[k]} lies between hosts and uses card {card[k]};"
                f" host {topology.hosts[int(host[k])].name} has the cards 0 to {count[host[k]] - 1}"
            )

"""The network: hosts with devices and network cards, racks, a core, and what a message costs."""

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, SupportsFloat, final

import yaml

from xmesh_reshard import quantities
from xmesh_reshard.layout import Layout


class TopologyError(ValueError):
    """A network that cannot be: a device on two hosts, a rate of zero, a device that no host has."""


@final
@dataclass(frozen=True)
class Nic:
    """A network card, full duplex: rates out of and into the host, bytes/s."""

    up: float
    down: float

    def __post_init__(self) -> None:
        for name in ("up", "down"):
            value = quantities.rate(getattr(self, name))
            if math.isinf(value):
                raise TopologyError(f"a network card has a finite rate; got {name} = {getattr(self, name)!r}")
            object.__setattr__(self, name, value)


@final
@dataclass(frozen=True)
class Host:
    """A machine.

    Attributes:
        name: Its name; different for each host.
        devices: The devices it holds. Any device may use any of the cards.
        nics: Its network cards.
        local: Rate of each device's link to the other devices of the host, bytes/s each way (NVLink, PCIe, memory).
        rack: The rack it stands in; a host without one is a rack of its own.
    """

    name: str
    devices: tuple[int, ...]
    nics: tuple[Nic, ...]
    local: float = math.inf
    rack: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "devices", tuple(operator.index(d) for d in self.devices))
        object.__setattr__(self, "nics", tuple(self.nics))
        object.__setattr__(self, "local", quantities.rate(self.local))
        if not self.nics:
            raise TopologyError(f"host {self.name!r} has no network card; give it at least one")

    @property
    def up(self) -> float:
        """Rate out of the host over all cards, bytes/s."""
        return math.fsum(nic.up for nic in self.nics)

    @property
    def down(self) -> float:
        """Rate into the host over all cards, bytes/s."""
        return math.fsum(nic.down for nic in self.nics)


@final
@dataclass(frozen=True)
class Topology:
    """Hosts and what lies between them.

    A transfer between hosts uses one card of either host, and the uplinks of the racks if it leaves one rack for
    another. A message of S bytes over a free path of rate β takes α + S/β.

    Attributes:
        hosts: The machines.
        alpha: Seconds a message between hosts costs besides its bytes.
        local_alpha: The same within a host.
        racks: Uplink of each named rack, bytes/s each way; a rack left out has no limit.
        core: Rate of all traffic between racks together, bytes/s: the oversubscribed core.
    """

    hosts: tuple[Host, ...]
    alpha: float = 0.0
    local_alpha: float = 0.0
    racks: Mapping[str, float] = field(default_factory=dict)
    core: float = math.inf

    def __post_init__(self) -> None:
        object.__setattr__(self, "hosts", tuple(self.hosts))
        object.__setattr__(self, "alpha", quantities.seconds(self.alpha))
        object.__setattr__(self, "local_alpha", quantities.seconds(self.local_alpha))
        object.__setattr__(self, "racks", {str(k): quantities.rate(v) for k, v in sorted(self.racks.items())})
        object.__setattr__(self, "core", quantities.rate(self.core))
        names = [host.name for host in self.hosts]
        devices = [d for host in self.hosts for d in host.devices]
        if not names or len({*names}) != len(names):
            raise TopologyError(f"a topology has at least one host, each of a different name; got {names}")
        if len({*devices}) != len(devices) or any(d < 0 for d in devices):
            twice = sorted({d for d in devices if devices.count(d) > 1 or d < 0})
            raise TopologyError(f"each device is on one host and numbered from 0 up; not so: {twice}")
        if unknown := {*self.racks} - {host.rack for host in self.hosts}:
            raise TopologyError(
                f"no host stands in the rack {sorted(unknown)[0]!r};"
                f" racks of hosts: {sorted({str(host.rack) for host in self.hosts})}"
            )

    @classmethod
    def uniform(
        cls,
        hosts: int,
        devices: int,
        *,
        nic: str | SupportsFloat = "10Gbit",
        nics: int = 1,
        local: str | SupportsFloat = "100GB/s",
        alpha: str | SupportsFloat = 0.0,
        local_alpha: str | SupportsFloat = 0.0,
        core: str | SupportsFloat = math.inf,
    ) -> "Topology":
        """Equal hosts; the devices 0, 1, … fill one host after the other.

        Args:
            hosts: Number of hosts.
            devices: Devices on each.
            nic: Rate of a network card each way: bytes/s or a text such as ``10Gbit``.
            nics: Cards on each host.
            local: Rate of a device's link inside its host.
            alpha: Seconds per message between hosts.
            local_alpha: Seconds per message inside a host.
            core: Rate of all traffic between hosts together.

        Example:
            >>> Topology.uniform(2, 4, nic="10Gbit").host_of[5]
            1
        """
        if hosts < 1 or devices < 1 or nics < 1:
            raise TopologyError(f"give at least one host, device and card; got {hosts}, {devices}, {nics}")
        card = Nic(quantities.rate(nic), quantities.rate(nic))
        made = tuple(
            Host(f"host{h}", tuple(range(h * devices, (h + 1) * devices)), (card,) * nics, quantities.rate(local))
            for h in range(hosts)
        )
        return cls(made, quantities.seconds(alpha), quantities.seconds(local_alpha), {}, quantities.rate(core))

    @classmethod
    def measure(cls, processes: int = 2, **options: Any) -> "Topology":
        """Fit α and β on the machine at hand by timing messages between processes; needs the extra ``[torch]``.

        See :func:`xmesh_reshard.transports.measuring.measure_topology` for the options.
        """
        from xmesh_reshard.transports.measuring import measure_topology

        return measure_topology(processes, **options)

    @cached_property
    def host_of(self) -> dict[int, int]:
        """Number of the host that holds each device."""
        return {device: h for h, host in enumerate(self.hosts) for device in host.devices}

    @cached_property
    def rack_of(self) -> tuple[str, ...]:
        """Rack of each host; a host without a rack is one of its own."""
        return tuple(f"rack {host.rack}" if host.rack is not None else f"host {host.name}" for host in self.hosts)

    def uplink(self, rack: str) -> float:
        """Rate of a rack's uplink each way, for a name of :attr:`rack_of`; infinite where none is given."""
        return self.racks.get(rack.removeprefix("rack "), math.inf) if rack.startswith("rack ") else math.inf

    def window(self, devices: Iterable[int]) -> int:
        """Messages that each of some devices should have under way, from 2 to 16.

        One for each card of the slowest kind that a host's cards amount to, and one more.
        """
        hosts = [self.hosts[h] for h in sorted({self.host_of[d] for d in devices})]
        slowest = min((min(nic.up, nic.down) for host in hosts for nic in host.nics), default=1.0)
        widest = max((max(host.up, host.down) for host in hosts), default=1.0)
        return max(2, min(16, int(widest / slowest) + 1))

    def require(self, layouts: Sequence[Layout]) -> None:
        """Refuse layouts with devices that no host has.

        Raises:
            TopologyError: Names the devices.
        """
        for layout in layouts:
            if missing := [d for d in layout.devices.tolist() if d not in self.host_of]:
                raise TopologyError(
                    f"no host of the topology holds the devices {missing[:8]}; it has {len(self.host_of)} devices"
                )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a file: rates in bytes/s, times in seconds."""
        hosts = [
            {
                "name": host.name,
                "devices": list(host.devices),
                "nics": [{"up": nic.up, "down": nic.down} for nic in host.nics],
                "local": "inf" if math.isinf(host.local) else host.local,
                **({} if host.rack is None else {"rack": host.rack}),
            }
            for host in self.hosts
        ]
        core = "inf" if math.isinf(self.core) else self.core
        return {
            "hosts": hosts,
            "alpha": self.alpha,
            "local_alpha": self.local_alpha,
            "racks": dict(self.racks),
            "core": core,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Topology":
        """A topology from plain values, as in a YAML file.

        ``hosts`` is either a list of hosts (``name``, ``devices``, ``nics`` or ``nic``, ``local``, ``rack``) or a
        number, with ``devices``, ``nic``, ``nics`` and ``local`` for all of them.

        Raises:
            TopologyError: A key is missing or unknown, or a value makes no sense.
        """
        known = {"hosts", "alpha", "local_alpha", "racks", "core", "devices", "nic", "nics", "local"}
        _only(data, known, "topology")
        try:
            if isinstance(data.get("hosts"), int):
                given = {k: v for k, v in data.items() if k not in ("hosts", "devices", "racks")}
                return cls.uniform(data["hosts"], data["devices"], **given)
            hosts = tuple(_host(entry, k) for k, entry in enumerate(data["hosts"]))
            return cls(
                hosts,
                quantities.seconds(data.get("alpha", 0.0)),
                quantities.seconds(data.get("local_alpha", 0.0)),
                {str(k): quantities.rate(v) for k, v in data.get("racks", {}).items()},
                quantities.rate(data.get("core", math.inf)),
            )
        except KeyError as error:
            raise TopologyError(f"a topology file needs the key {error}") from None
        except (TypeError, AttributeError) as error:
            raise TopologyError(f"cannot read the topology: {error}") from None

    @classmethod
    def load(cls, path: str | Path) -> "Topology":
        """Read a topology from a YAML (or JSON) file.

        Raises:
            TopologyError: The file does not hold a topology.
            OSError: It cannot be read.
        """
        try:
            data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise TopologyError(f"{path} is not YAML: {error}") from None
        if not isinstance(data, Mapping):
            raise TopologyError(f"{path} does not hold a topology: expected a mapping with 'hosts'")
        try:
            return cls.from_dict(data)
        except ValueError as error:
            raise TopologyError(f"{path}: {error}") from None


def _only(data: Mapping[str, Any], known: set[str], what: str) -> None:
    if unknown := sorted({*map(str, data)} - known):
        raise TopologyError(f"unknown key {unknown[0]!r} in a {what}; known: {sorted(known)}")


def _host(entry: Mapping[str, Any], k: int) -> Host:
    _only(entry, {"name", "devices", "nic", "nics", "local", "rack"}, "host")
    if isinstance(entry.get("nics"), list):
        cards = [
            Nic(quantities.rate(n["up"]), quantities.rate(n["down"]))
            if isinstance(n, Mapping)
            else Nic(quantities.rate(n), quantities.rate(n))
            for n in entry["nics"]
        ]
    else:
        cards = [Nic(quantities.rate(entry["nic"]), quantities.rate(entry["nic"]))] * int(entry.get("nics", 1))
    return Host(
        str(entry.get("name", f"host{k}")),
        tuple(entry["devices"]),
        tuple(cards),
        quantities.rate(entry.get("local", math.inf)),
        None if entry.get("rack") is None else str(entry["rack"]),
    )

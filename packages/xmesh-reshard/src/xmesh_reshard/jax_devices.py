"""The network as far as JAX knows it: which devices share a process or a slice."""

import math
from collections.abc import Iterable
from typing import Any, Literal, SupportsFloat

from xmesh_reshard import quantities
from xmesh_reshard.topology import Host, Nic, Topology


def topology_of_devices(
    devices: Iterable[Any],
    *,
    hosts: Literal["process", "slice"] = "process",
    processes_per_host: int = 1,
    nic: str | SupportsFloat = "25Gbit",
    nics: int = 1,
    local: str | SupportsFloat = "100GB/s",
    alpha: str | SupportsFloat = 0.0,
    local_alpha: str | SupportsFloat = 0.0,
    core: str | SupportsFloat = math.inf,
) -> Topology:
    """A topology of JAX devices: equal hosts, in racks where there are several slices.

    JAX knows which process and which slice a device belongs to, and no rates. Only their ratios matter for the order of
    messages; the rates matter for planned times and for the size of chunks (together with ``alpha``).

    Args:
        devices: JAX devices, for example ``jax.devices()``; numbered by their ``id``.
        hosts: What a host is: the devices of a process, or (TPU) of a slice, within which links are fast.
        processes_per_host: How many processes, by their index, share a host and its network cards.
        nic: Rate of a network card each way.
        nics: Cards on each host.
        local: Rate of a device's link within its host.
        alpha: Seconds per message between hosts.
        local_alpha: Seconds per message within a host.
        core: Rate of all traffic between racks together.

    Raises:
        ValueError: No devices, another kind of hosts, or less than one process a host or one card.

    Example:
        >>> import jax
        >>> topology_of_devices(jax.devices()[:1], nic="100Gbit").hosts[0].up
        12500000000.0
    """
    found = {int(device.id): device for device in devices}
    if not found or processes_per_host < 1 or nics < 1:
        raise ValueError(
            "give at least one device, process per host and card;"
            f" got {len(found)} devices, {processes_per_host} and {nics}"
        )
    if hosts not in ("process", "slice"):
        raise ValueError(f"a host is a 'process' or a 'slice'; got {hosts!r}")
    slices = {d: int(getattr(device, "slice_index", None) or 0) for d, device in found.items()}
    number = (
        slices if hosts == "slice" else {d: device.process_index // processes_per_host for d, device in found.items()}
    )
    several = hosts == "process" and len({*slices.values()}) > 1
    card = Nic(quantities.rate(nic), quantities.rate(nic))
    made = []
    for h in sorted({*number.values()}):
        mine = tuple(sorted(d for d in found if number[d] == h))
        rack = f"slice{slices[mine[0]]}" if several else None
        made.append(Host(f"{hosts}{h}", mine, (card,) * nics, quantities.rate(local), rack))
    times = quantities.seconds(alpha), quantities.seconds(local_alpha)
    return Topology(tuple(made), *times, {}, quantities.rate(core))

"""The paper's settings: nine transfers between meshes of several hosts, and one source to many receivers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import SupportsFloat, final

from xmesh_reshard.layout import Layout, Mesh
from xmesh_reshard.plans import Transfer
from xmesh_reshard.topology import Topology

_CUBE = (1024, 1024, 512)
_TABLE = {
    1: ((2, 4), "S0RR", (2, 4), "S0RR", _CUBE),
    2: ((2, 4), "RRR", (2, 4), "S0RR", _CUBE),
    3: ((2, 4), "RS0R", (2, 4), "S0RR", _CUBE),
    4: ((2, 4), "RS01R", (2, 4), "S01RR", _CUBE),
    5: ((2, 4), "S1RR", (2, 4), "S0RR", _CUBE),
    6: ((2, 4), "S0RR", (3, 4), "S0RR", (3072, 1024, 170)),
    7: ((1, 4), "S1RR", (2, 4), "RRR", _CUBE),
    8: ((1, 4), "S1RR", (2, 4), "RRR", _CUBE),
    9: ((2, 4), "RS0R", (2, 4), "RRS0", _CUBE),
}


@final
@dataclass(frozen=True, eq=False)
class Case:
    """Tensors to move and the network between them.

    Attributes:
        name: A short name.
        transfers: Source and target layout of each tensor.
        topology: The network.
    """

    name: str
    transfers: Mapping[str, Transfer]
    topology: Topology

    @property
    def seconds(self) -> float:
        """T: how long the tensors take over the first host's network cards, the unit of the paper's figures."""
        return math.fsum(t.source.nbytes for t in self.transfers.values()) / self.topology.hosts[0].up


def case_numbers() -> tuple[int, ...]:
    """The numbers of the paper's cases; 7 and 8 are the same transfer."""
    return tuple(_TABLE)


def multi_host_case(
    number: int,
    scale: int = 1,
    *,
    nic: str | SupportsFloat = "10Gbit",
    local: str | SupportsFloat = "100GB/s",
    alpha: str | SupportsFloat = 0.0,
) -> Case:
    """One of the paper's transfers between meshes of several hosts: a host for each row of a mesh.

    Args:
        number: 1 to 9.
        scale: Divides every length of the tensor, to make it small.
        nic: Rate of a host's network card.
        local: Rate of a device's link inside its host.
        alpha: Seconds that a message between hosts costs.

    Returns:
        One float32 tensor from the first hosts to the others.

    Raises:
        ValueError: There is no such case, or the scale is not above zero.

    Reference:
        Table 2 (cases) and Sec. 5.1.2; the tensor has 2 GiB at scale 1.

    Example:
        >>> case = multi_host_case(2, scale=8)
        >>> case.transfers["x"].target, len(case.topology.hosts)
        (Layout(float32[128, 128, 64] on 8 devices in 2 different parts), 4)
    """
    if number not in _TABLE:
        raise ValueError(f"the paper's cases have the numbers 1 to 9; got {number}")
    if scale < 1:
        raise ValueError(f"scale divides the lengths of the tensor and is at least 1; got {scale}")
    old, old_spec, new, new_spec, full = _TABLE[number]
    shape = tuple(max(1, n // scale) for n in full)
    topology = Topology.uniform(old[0] + new[0], old[1], nic=nic, local=local, alpha=alpha)
    source = Layout.sharded(shape, "float32", Mesh.grid(old), old_spec)
    target = Layout.sharded(shape, "float32", Mesh.grid(new, first=math.prod(old)), new_spec)
    return Case(f"case {number}", {"x": Transfer(source, target)}, topology)


def one_to_many_case(
    hosts: int,
    devices: int,
    nbytes: int = 1 << 30,
    *,
    nic: str | SupportsFloat = "10Gbit",
    local: str | SupportsFloat = "100GB/s",
    alpha: str | SupportsFloat = 0.0,
) -> Case:
    """One device has a tensor and every device of other hosts needs it.

    Args:
        hosts: Receiving hosts A.
        devices: Receiving devices B on each.
        nbytes: Size of the tensor; a multiple of 4.
        nic: Rate of a host's network card.
        local: Rate of a device's link inside its host.
        alpha: Seconds that a message between hosts costs.

    Raises:
        ValueError: A number is not above zero, or the size is no multiple of 4.

    Reference:
        Sec. 5.1.1: 1 GiB to one host with 1 to 4 devices, and to 1 to 4 hosts with 2.

    Example:
        >>> one_to_many_case(2, 4).name
        '1 to 2 x 4'
    """
    if hosts < 1 or devices < 1 or nbytes < 4 or nbytes % 4:
        raise ValueError(
            f"give at least one host and device and a multiple of 4 bytes; got {hosts}, {devices}, {nbytes}"
        )
    topology = Topology.uniform(1 + hosts, devices, nic=nic, local=local, alpha=alpha)
    source = Layout.sharded((nbytes // 4,), "float32", Mesh.grid((1,)), "R")
    target = Layout.sharded((nbytes // 4,), "float32", Mesh.grid((hosts, devices), first=devices), "R")
    return Case(f"1 to {hosts} x {devices}", {"x": Transfer(source, target)}, topology)

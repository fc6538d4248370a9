"""Transfers of the benchmarks beside those of the package: the paper's cases on small hosts, and large models."""

import numpy as np

from xmesh_reshard.cases import Case
from xmesh_reshard.layout import Layout, Mesh
from xmesh_reshard.plans import Transfer
from xmesh_reshard.topology import Topology

# Hosts of both meshes, and specs, as in the paper's table; 8 is 7 once more.
_CASES = {
    1: (2, "S0RR", 2, "S0RR"),
    2: (2, "RRR", 2, "S0RR"),
    3: (2, "RS0R", 2, "S0RR"),
    4: (2, "RS01R", 2, "S01RR"),
    5: (2, "S1RR", 2, "S0RR"),
    6: (2, "S0RR", 3, "S0RR"),
    7: (1, "S1RR", 2, "RRR"),
    9: (2, "RS0R", 2, "RRS0"),
}


def small_case(number: int, length: int = 128, *, nic: str, local: str, alpha: str) -> Case:
    """One of the paper's cases with two devices a host instead of four, and a cube of float32.

    Args:
        number: 1 to 7, or 9.
        length: Edge of the cube; case 6 has the shape (3 n, n, n / 3) to the nearest even number.
        nic: Rate of a host's card.
        local: Rate inside a host.
        alpha: Seconds that a message costs.
    """
    old, old_spec, new, new_spec = _CASES[number]
    shape = (3 * length, length, 2 * round(length / 6)) if number == 6 else (length,) * 3
    source = Layout.sharded(shape, "float32", Mesh.grid((old, 2)), old_spec)
    target = Layout.sharded(shape, "float32", Mesh.grid((new, 2), first=2 * old), new_spec)
    topology = Topology.uniform(old + new, 2, nic=nic, local=local, alpha=alpha)
    return Case(f"case {number}", {"x": Transfer(source, target)}, topology)


def repeated(layers: int, sources: int, replicas: int, topology: Topology) -> Case:
    """A decoder of equal layers (nine tensors each), from FSDP over many devices to replicas cut over 8.

    Args:
        layers: Number of layers of width 8192.
        sources: Devices of the source.
        replicas: Replicas of 8 devices.
        topology: The network.
    """
    h, ff, kv = 8192, 28672, 1024
    block = {
        "q": ((h, h), 0), "k": ((kv, h), 0), "v": ((kv, h), 0), "o": ((h, h), 1), "gate": ((ff, h), 0),
        "up": ((ff, h), 0), "down": ((h, ff), 1), "norm1": ((h,), None), "norm2": ((h,), None),
    }  # fmt: skip
    ends = {"embed": ((128_256, h), 0), "head": ((128_256, h), 0), "norm": ((h,), None)}
    before, after = Mesh.grid((sources,)), Mesh.grid((replicas, 8), first=sources)
    made = {}
    for shape, axis in {*block.values(), *ends.values()}:
        spec = tuple("1" if d == axis else None for d in range(len(shape)))
        pair = (Layout.sharded(shape, "bfloat16", mesh, s) for mesh, s in ((before, (0,)), (after, spec)))
        made[shape, axis] = Transfer(*pair)
    transfers = {f"{k}.{name}": made[entry] for k in range(layers) for name, entry in block.items()}
    transfers |= {name: made[entry] for name, entry in ends.items()}
    return Case(f"{len(transfers)} tensors of {layers} equal layers", transfers, topology)


def different(count: int, old: tuple[int, int], new: tuple[int, int], topology: Topology, seed: int = 0) -> Case:
    """Matrices of different shapes, cut both ways by one mesh and both ways, transposed, by another.

    Args:
        count: Number of matrices.
        old: Shape of the source mesh.
        new: Shape of the target mesh.
        topology: The network.
        seed: Of the shapes.
    """
    rng = np.random.default_rng(seed)
    before, after = Mesh.grid(old), Mesh.grid(new, first=old[0] * old[1])
    transfers = {}
    for k in range(count):
        shape = (int(rng.integers(64, 4096)) * 4, int(rng.integers(64, 2048)) * 8)
        pair = (Layout.sharded(shape, "bfloat16", before, (0, 1)), Layout.sharded(shape, "bfloat16", after, (1, 0)))
        transfers[f"t{k}"] = Transfer(*pair)
    return Case(f"{count} tensors of different shapes", transfers, topology)

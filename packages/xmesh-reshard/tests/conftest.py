"""Random layouts and networks, and an oracle that follows a plan message by message."""

from collections.abc import Callable

import numpy as np
import pytest

from xmesh_reshard import Host, Layout, Mesh, Nic, Plan, Topology


@pytest.fixture(scope="session")
def random_layout() -> Callable[[np.random.Generator, tuple[int, ...], np.ndarray], Layout]:
    """A function of a generator, a shape and devices: any mesh and spec, now and then boxes that overlap."""
    return _layout


@pytest.fixture(scope="session")
def random_topology() -> Callable[..., Topology]:
    """A function of a generator: up to six hosts of up to three devices; with ``mixed`` cards and racks differ."""
    return _topology


@pytest.fixture(scope="session")
def follow() -> Callable[[Plan, dict[str, np.ndarray]], dict[str, dict[int, np.ndarray]]]:
    """A function of a plan and global arrays: the new parts, after checking that nothing is sent that should not be."""
    return _follow


def _layout(rng: np.random.Generator, shape: tuple[int, ...], devices: np.ndarray) -> Layout:
    axes = int(rng.integers(1, 4))
    sizes = tuple(int(n) for n in rng.integers(1, 4, axes))
    while np.prod(sizes) > len(devices):
        sizes = tuple(int(n) for n in rng.integers(1, 4, axes))
    mesh = Mesh(rng.choice(devices, int(np.prod(sizes)), replace=False).reshape(sizes))
    if rng.random() < 0.15:
        held = mesh.devices.reshape(-1).tolist()
        boxes = {d: [tuple(sorted(rng.integers(0, n + 1, 2).tolist())) for n in shape] for d in held}
        return Layout.from_boxes(shape, "float32", boxes | {held[0]: [(0, n) for n in shape]})
    free = [str(a) for a in rng.permutation(axes)]
    spec = [tuple(free.pop() for _ in range(min(len(free), int(rng.integers(0, 3))))) or None for _ in shape]
    return Layout.sharded(shape, "float32", mesh, spec)


def _topology(rng: np.random.Generator, *, mixed: bool = False) -> Topology:
    hosts, each = int(rng.integers(1, 7)), int(rng.integers(1, 4))
    if not mixed:
        return Topology.uniform(hosts, each, nic=1e6, local=1e9)
    made = tuple(
        Host(
            f"h{h}",
            tuple(range(h * each, (h + 1) * each)),
            tuple(Nic(float(rng.choice([1e6, 2e6, 3e6])), 1e6) for _ in range(int(rng.integers(1, 3)))),
            float(rng.choice([1e7, np.inf])),
            None if rng.random() < 0.5 else str(rng.integers(2)),
        )
        for h in range(hosts)
    )
    named = sorted({host.rack for host in made if host.rack is not None})
    racks = {rack: float(rng.choice([5e5, 2e6])) for rack in named if rng.random() < 0.5}
    return Topology(made, float(rng.choice([0, 1e-5])), 0.0, racks, float(rng.choice([8e5, np.inf])))


def _follow(plan: Plan, arrays: dict[str, np.ndarray]) -> dict[str, dict[int, np.ndarray]]:
    host_of = plan.topology.host_of
    old = {name: pair.source.split(arrays[name]) for name, pair in plan.tensors.items()}
    new, writes, entered = {}, {}, {}
    for name, pair in plan.tensors.items():
        shapes = {int(d): pair.target.shard_shape(int(d)) for d in pair.target.devices}
        new[name] = {d: np.zeros(shape, arrays[name].dtype) for d, shape in shapes.items()}
        writes[name] = {d: np.zeros(shape, int) for d, shape in shapes.items()}

    def write(piece, device, data):
        where = piece.within(plan.tensors[piece.tensor].target, device)
        new[piece.tensor][device][where] = data
        writes[piece.tensor][device][where] += 1

    for device in plan.devices:
        for piece in plan.program(device).copies:
            write(piece, device, old[piece.tensor][device][piece.within(plan.tensors[piece.tensor].source, device)])
    for message in plan.messages:
        assert sum(piece.nbytes for piece in message.pieces) == message.nbytes > 0
        has = {message.sender}
        for hop in message.hops:
            assert hop.source in has, "a device passes on what it has not received"
            has.add(hop.target)
            assert (hop.out < 0) == (hop.into < 0) == (host_of[hop.source] == host_of[hop.target])
        for piece in message.pieces:
            data = old[piece.tensor][message.sender][piece.within(plan.tensors[piece.tensor].source, message.sender)]
            assert data.nbytes == piece.nbytes
            for hop in message.hops:
                write(piece, hop.target, data)
                if hop.out >= 0:
                    count = entered.setdefault(
                        (piece.tensor, host_of[hop.target]), np.zeros(arrays[piece.tensor].shape, int)
                    )
                    count[tuple(slice(a, b) for a, b in zip(piece.lower, piece.upper, strict=True))] += 1
    for name, pair in plan.tensors.items():
        for device in pair.target.devices.tolist():
            assert (writes[name][device] == 1).all(), "every element is written once"
    for (name, host), count in entered.items():
        assert count.max(initial=0) <= 1, "no element enters a host twice"
        source = plan.tensors[name].source
        for device in source.devices.tolist():
            if host_of[device] == host:
                assert not count[source.slices(device)].any(), "nothing enters a host that holds it"
    return new

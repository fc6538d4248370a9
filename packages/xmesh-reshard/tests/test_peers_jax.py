"""jax.device_put between meshes of one process: the shards that plans between the same layouts give."""

import numpy as np
import pytest

from xmesh_reshard import Layout, Topology, plan
from xmesh_reshard.transports import execute_reference

jax = pytest.importorskip("jax")
jax.config.update("jax_num_cpu_devices", 8)

pytestmark = pytest.mark.peer
SHAPE = (24, 8, 16)


def sharding(rng, devices):
    """A random mesh over some of the devices, and a random spec over its axes."""
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    shape = tuple(rng.choice([1, 2, 4], 2).tolist())
    while np.prod(shape) > len(devices):
        shape = tuple(rng.choice([1, 2, 4], 2).tolist())
    chosen = rng.choice(np.array(devices), int(np.prod(shape)), replace=False).reshape(shape)
    spec: list = [[], [], []]
    for axis in rng.permutation(["a", "b"]).tolist():
        where = int(rng.integers(4))
        if where < 3:
            spec[where].append(axis)
    return NamedSharding(Mesh(chosen, ("a", "b")), PartitionSpec(*[tuple(axes) or None for axes in spec]))


@pytest.mark.parametrize("seed", range(20))
def test_shards_are_those_of_device_put(seed):
    devices = jax.devices()
    assert len(devices) >= 8, "start this file before anything else uses JAX"
    rng = np.random.default_rng(seed)
    # Apart, overlapping, or the same devices; all shapes divide.
    spans = [(devices[:4], devices[4:]), (devices[:6], devices[2:]), (devices, devices)][seed % 3]
    old, new = (sharding(rng, span) for span in spans)
    x = jax.device_put(rng.normal(size=SHAPE).astype(np.float32), old)
    want = {shard.device.id: np.asarray(shard.data) for shard in jax.device_put(x, new).addressable_shards}
    source, target = (Layout.from_named_sharding(s, SHAPE, "float32") for s in (old, new))
    made = plan({"x": (source, target)}, Topology.uniform(4, 2))
    given = {shard.device.id: {"x": np.asarray(shard.data)} for shard in x.addressable_shards}
    found = execute_reference(made, given)
    assert {device for device, parts in found.items() if "x" in parts} == want.keys()
    for device, part in want.items():
        assert np.array_equal(found[device]["x"], part)

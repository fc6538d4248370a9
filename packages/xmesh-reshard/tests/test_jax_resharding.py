"""reshard(): the same as device_put where that is legal, and clear about what it cannot do."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from xmesh_reshard.jax_devices import topology_of_devices
from xmesh_reshard.resharding import reshard
from xmesh_reshard.topology import Topology, TopologyError

jax.config.update("jax_num_cpu_devices", 8)

TOPOLOGY = Topology.uniform(4, 2)


def mesh(numbers, *shape):
    found = np.array(jax.devices())
    assert len(found) >= 8, "start this file before anything else uses JAX"
    return Mesh(found[list(numbers)].reshape(shape), tuple("xy"[: len(shape)]))


def alike(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (a.sharding, a.dtype, a.committed) == (b.sharding, b.dtype, b.committed)
        for mine, theirs in zip(a.addressable_shards, b.addressable_shards, strict=True):
            assert mine.device == theirs.device
            assert np.asarray(mine.data).tobytes() == np.asarray(theirs.data).tobytes()


@pytest.mark.parametrize("method", ["auto", "plan", "device_put"])
def test_a_tree_becomes_what_device_put_makes_of_it(method):
    source = NamedSharding(mesh(range(4), 2, 2), P("x", "y"))
    tree = {
        "w": jax.device_put(np.arange(32.0, dtype=np.float32).reshape(4, 8), source),
        "more": (jax.device_put(np.arange(4), source.mesh.devices[0, 0]), jnp.float32(2.5), np.ones(8), 3),
    }
    targets = {
        "w": NamedSharding(mesh([6, 1, 4, 3, 0, 5], 3, 2), P(None, "y")),
        "more": NamedSharding(mesh([7, 2], 2), P()),  # a prefix
    }
    alike(reshard(tree, targets, method=method, topology=TOPOLOGY), jax.device_put(tree, targets))
    one = reshard(tree["w"], jax.devices()[5], method=method, topology=TOPOLOGY)
    alike(one, jax.device_put(tree["w"], jax.devices()[5]))


def test_by_default_a_process_is_a_host():
    source, target = NamedSharding(mesh(range(6), 3, 2), P("y", "x")), NamedSharding(mesh([7, 2, 3], 3), P("x"))
    array = jax.device_put(np.arange(36).reshape(6, 6), source)
    alike(reshard(array, target, method="plan"), jax.device_put(array, target))


def test_floating_arrays_are_converted_on_the_way():
    source, target = NamedSharding(mesh([0, 1], 2), P("x")), NamedSharding(mesh([4, 5], 2), P())
    tree = {"w": np.linspace(0, 1, 8, dtype=np.float32), "n": np.arange(8, dtype=np.int32)}
    given = jax.device_put(tree, source)
    expected = jax.device_put({"w": tree["w"].astype(jnp.bfloat16), "n": tree["n"]}, target)
    for method in ("auto", "plan"):
        alike(reshard(given, target, dtype=jnp.bfloat16, method=method, topology=TOPOLOGY), expected)
    wide = reshard(expected["w"], source, dtype="float32", donate=True)
    alike(wide, jax.device_put(tree["w"].astype(jnp.bfloat16).astype(np.float32), source))
    assert expected["w"].is_deleted()
    with pytest.raises(ValueError, match="floating or complex"):
        reshard(given, target, dtype="int32")


@pytest.mark.parametrize("transform", [jax.jit, jax.grad, jax.vmap])
def test_within_a_transformation_it_says_what_to_do(transform):
    target = SingleDeviceSharding(jax.devices()[0])
    with pytest.raises(TypeError, match=r"with_sharding_constraint"):
        transform(lambda x: reshard(x, target).sum())(jnp.ones((1,)))


def test_bad_arguments_are_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # our own messages
    target = NamedSharding(mesh([0, 1], 2), P("x"))
    array = jax.device_put(np.zeros(4, np.float32), jax.devices()[3])
    with pytest.raises(ValueError, match="'auto', 'plan' or 'device_put'"):
        reshard(array, target, method="fast")
    with pytest.raises(TypeError, match=r"NamedSharding\(mesh, spec\)"):
        reshard(array, None)
    with pytest.raises(TypeError, match=r"NamedSharding\(mesh, spec\)"):
        reshard(array, P("x"))
    with pytest.raises(ValueError, match="a prefix of x"):
        reshard({"a": array}, {"b": target})
    with pytest.raises(ValueError, match="pad the array"):
        reshard(jax.device_put(np.zeros(3), jax.devices()[3]), target, method="plan")
    with pytest.raises(TopologyError, match=r"holds the devices \[3\]"):
        reshard(array, target, method="plan", topology=topology_of_devices(jax.devices()[:2]))
    with pytest.raises(TypeError, match="wrap_key_data"):
        reshard(jax.device_put(jax.random.key(0), jax.devices()[0]), jax.devices()[1], method="plan")


def test_keys_are_left_to_device_put():
    key = jax.random.key(3)
    moved = reshard(key, jax.devices()[4])
    assert np.array_equal(jax.random.key_data(moved), jax.random.key_data(key))
    assert moved.sharding == SingleDeviceSharding(jax.devices()[4])


class Device:
    def __init__(self, number, process, piece=0):
        self.id, self.process_index, self.slice_index = number, process, piece


def test_hosts_are_processes_or_slices(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # our own messages
    devices = [Device(8 * p + k, p, p // 2) for p in range(4) for k in range(2)]
    found = topology_of_devices(devices, nic="80Gbit", nics=2, alpha="2s")
    assert [host.devices for host in found.hosts] == [(0, 1), (8, 9), (16, 17), (24, 25)]
    assert [host.rack for host in found.hosts] == ["slice0", "slice0", "slice1", "slice1"]
    assert (found.hosts[0].up, found.alpha) == (20e9, 2)
    joined = topology_of_devices(devices, processes_per_host=2)
    assert [host.devices for host in joined.hosts] == [(0, 1, 8, 9), (16, 17, 24, 25)]
    assert [host.devices for host in topology_of_devices(devices, hosts="slice").hosts] == [
        (0, 1, 8, 9),
        (16, 17, 24, 25),
    ]
    assert topology_of_devices(devices[:4]).hosts[0].rack is None
    for options in ({"devices": []}, {"processes_per_host": 0}, {"hosts": "rack"}, {"nics": 0}):
        with pytest.raises(ValueError, match="got"):
            topology_of_devices(**{"devices": devices, **options})


def test_none_in_a_tree_stays() -> None:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[1])
    moved = reshard({"a": None, "w": np.ones(3)}, sharding)
    assert moved["a"] is None
    assert moved["w"].sharding == sharding
    with pytest.raises(TypeError, match="sharding holds None"):
        reshard({"a": np.ones(2), "w": np.ones(3)}, {"a": None, "w": sharding})

"""Plans executed on JAX arrays in one process of eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from xmesh_reshard.jax_packing import from_words, to_words
from xmesh_reshard.jax_transport import JaxTransport
from xmesh_reshard.layout import Layout
from xmesh_reshard.planning import plan
from xmesh_reshard.topology import Topology
from xmesh_reshard.transports.errors import PartError
from xmesh_reshard.transports.reference import execute_reference

jax.config.update("jax_num_cpu_devices", 8)

TOPOLOGY = Topology.uniform(4, 2, alpha=1e-5)
TYPES = [
    "float32",
    "bfloat16",
    "float16",
    "float8_e4m3fn",
    "float8_e5m2",
    "bool",
    "complex64",
    "int8",
    "uint16",
    "int32",
]


def mesh(numbers, *shape):
    found = np.array(jax.devices())
    assert len(found) >= 8, "start this file before anything else uses JAX"
    return Mesh(found[list(numbers)].reshape(shape), tuple("xyz"[: len(shape)]))


def value(shape, dtype, seed=0):
    """Random bits, so that NaNs of all kinds and subnormals are among them."""
    bits = np.random.default_rng(seed).integers(0, 256, (*shape, jnp.dtype(dtype).itemsize), np.uint8)
    bits = bits % 2 if dtype == "bool" else bits
    return bits.view(jnp.dtype(dtype)).reshape(shape)


def transfers(arrays, targets):
    return {
        name: (
            Layout.from_named_sharding(array.sharding, array.shape, array.dtype),
            Layout.from_named_sharding(targets[name], array.shape, array.dtype),
        )
        for name, array in arrays.items()
    }


def same_bits(array, whole, sharding):
    assert array.sharding == sharding
    assert array.committed
    assert array.dtype == whole.dtype
    assert len(array.addressable_shards) == len(sharding.device_set)
    for shard in array.addressable_shards:
        assert np.asarray(shard.data).tobytes() == whole[shard.index].tobytes()


@pytest.mark.parametrize("dtype", TYPES)
def test_words_are_the_bits(dtype):
    array = value((5, 3), dtype)
    for word in [w for w in (jnp.uint8, jnp.uint16, jnp.uint32) if jnp.dtype(w).itemsize <= jnp.dtype(dtype).itemsize]:
        words = to_words(jnp.asarray(array), word)
        assert np.asarray(words).tobytes() == array.tobytes()
        assert np.asarray(from_words(words, dtype)).tobytes() == array.tobytes()


def test_every_type_crosses_bit_for_bit_and_inputs_stay():
    source, target = NamedSharding(mesh(range(4), 2, 2), P("x", "y")), NamedSharding(mesh(range(4, 8), 4), P(None, "x"))
    wholes = {name: value((6, 8), name, k) for k, name in enumerate(TYPES)}
    arrays = {name: jax.device_put(whole, source) for name, whole in wholes.items()}
    targets = dict.fromkeys(TYPES, target)
    found = JaxTransport().execute(plan(transfers(arrays, targets), TOPOLOGY), arrays, targets)
    for name, whole in wholes.items():
        same_bits(found[name], whole, target)
        same_bits(arrays[name], whole, source)


@pytest.mark.parametrize("seed", range(3))
def test_random_layouts_on_overlapping_meshes(seed):
    """Shapes of 0 to 4 dimensions, meshes of 1 to 8 devices, jointly, in several batches."""
    rng = np.random.default_rng(seed)
    wholes, arrays, targets = {}, {}, {}
    for k in range(6):
        shape = tuple(rng.choice([0, 4, 8], rng.integers(0, 5), p=[0.1, 0.5, 0.4]).tolist())
        sides = []
        for _ in range(2):
            grid = [(1,), (2, 1), (2, 2), (4, 2), (2, 2, 2)][rng.integers(5)]
            axes = rng.permutation(list("xyz"[: len(grid)]))[: len(shape)].tolist()
            spec = P(*(axis if rng.random() < 0.7 else None for axis in axes))
            sides.append(NamedSharding(mesh(rng.permutation(8)[: np.prod(grid)], *grid), spec))
        name = str(k)
        wholes[name] = value(shape, TYPES[rng.integers(len(TYPES))], k)
        arrays[name], targets[name] = jax.device_put(wholes[name], sides[0]), sides[1]
    transport = JaxTransport(buffer=200, most_rounds=4)
    made = plan(transfers(arrays, targets), TOPOLOGY)
    found = transport.execute(made, arrays, targets)
    for name, whole in wholes.items():
        same_bits(found[name], whole, targets[name])
    assert transport.buffer_bytes(made) <= 400  # a chunk beyond the buffer, which is no longer than the buffer


@pytest.mark.parametrize(("before", "after"), [("float32", "bfloat16"), ("bfloat16", "float32"), ("int8", "float32")])
def test_casts_are_those_of_the_reference(before, after):
    source, target = NamedSharding(mesh(range(4), 4), P("x")), NamedSharding(mesh(range(2, 8), 3, 2), P(None, "y"))
    whole = np.linspace(-100, 100, 32).reshape(8, 4).astype(jnp.dtype(before))
    layouts = Layout.from_named_sharding(source, (8, 4), before), Layout.from_named_sharding(target, (8, 4), after)
    made = plan({"w": layouts}, TOPOLOGY, cast=True)
    found = JaxTransport().execute(made, {"w": jax.device_put(whole, source)}, {"w": target})["w"]
    parts = {device: {"w": part} for device, part in layouts[0].split(whole).items()}
    reference = execute_reference(made, parts)
    for shard in found.addressable_shards:
        assert np.asarray(shard.data).tobytes() == reference[shard.device.id]["w"].tobytes()


def test_donated_arrays_are_given_up_but_for_what_stays():
    source, target = NamedSharding(mesh(range(4), 4), P("x")), NamedSharding(mesh([4, 5, 2, 6], 4), P("x"))
    whole = value((8, 2), "float32")
    array = jax.device_put(whole, source)
    old = [shard.data for shard in sorted(array.addressable_shards, key=lambda shard: shard.device.id)]
    made = plan(transfers({"w": array}, {"w": target}), TOPOLOGY)
    found = JaxTransport().execute(made, {"w": array}, {"w": target}, donate=True)["w"]
    same_bits(found, whole, target)
    assert [part.is_deleted() for part in old] == [True, True, False, True]  # device 2 holds the same rows as before
    away = NamedSharding(mesh([7], 1), P())
    made = plan(transfers({"w": found}, {"w": away}), TOPOLOGY)
    same_bits(JaxTransport().execute(made, {"w": found}, {"w": away}, donate=True)["w"], whole, away)
    assert found.is_deleted()


def test_programs_are_compiled_once_per_plan():
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **options: compiled.append(event) if "backend_compile" in event else None
    )
    source, target = NamedSharding(mesh(range(2), 2), P("x")), NamedSharding(mesh([5, 6], 2), P(None, "x"))
    whole = value((2, 6), "int32")
    array = jax.device_put(whole, source)
    transport = JaxTransport()
    counts = []
    for _ in range(3):
        made = plan(transfers({"w": array}, {"w": target}), TOPOLOGY)  # an equal plan, made anew
        before = len(compiled)
        same_bits(transport.execute(made, {"w": array}, {"w": target})["w"], whole, target)
        counts.append(len(compiled) - before)
    assert counts[0] > 0
    assert counts[1:] == [0, 0]


def test_host_memory_on_either_side():
    kinds = {memory.kind for memory in jax.devices()[0].addressable_memories()}
    if "pinned_host" not in kinds:
        pytest.skip("this JAX knows no pinned host memory on CPUs")
    source = NamedSharding(mesh(range(2), 2), P("x"), memory_kind="pinned_host")
    target = NamedSharding(mesh([4, 5], 2), P(None, "x"), memory_kind="pinned_host")
    whole = value((4, 4), "float32")
    arrays, targets = {"w": jax.device_put(whole, source)}, {"w": target}
    found = JaxTransport().execute(plan(transfers(arrays, targets), TOPOLOGY), arrays, targets)["w"]
    same_bits(found, whole, target)


def test_what_does_not_fit_the_plan_is_refused():
    here, there = SingleDeviceSharding(jax.devices()[0]), SingleDeviceSharding(jax.devices()[7])
    arrays = {"w": jax.device_put(np.zeros(4, np.float32), here)}
    made = plan(transfers(arrays, {"w": there}), TOPOLOGY)
    transport = JaxTransport()
    with pytest.raises(PartError, match="one array for each"):
        transport.execute(made, {}, {"w": there})
    with pytest.raises(PartError, match="one sharding for each"):
        transport.execute(made, arrays, {"w": there, "v": there})
    with pytest.raises(PartError, match="target layout is another"):
        transport.execute(made, arrays, {"w": here})
    with pytest.raises(PartError, match="source layout is another"):
        transport.execute(made, {"w": arrays["w"].astype(jnp.int32)}, {"w": there})
    layouts = [Layout.from_named_sharding(s, (4,), t) for s, t in ((here, "complex64"), (there, "float32"))]
    with pytest.raises(PartError, match="real or imaginary part"):
        transport.execute(
            plan({"w": tuple(layouts)}, TOPOLOGY, cast=True), {"w": arrays["w"].astype(jnp.complex64)}, {"w": there}
        )


@pytest.mark.parametrize(
    "options", [{"buffer": 0}, {"buffer": "4GiB"}, {"most_rounds": 0}, {"keep": 0}, {"timeout": -1}]
)
def test_options_are_checked(options):
    with pytest.raises(ValueError, match="got"):
        JaxTransport(**options)

"""What each of two JAX processes does; started by test_jax_processes.py: port, index, file for the findings."""

import json
import os
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=3"

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from xmesh_reshard.jax_devices import topology_of_devices
from xmesh_reshard.jax_transport import JaxTransport
from xmesh_reshard.resharding import reshard

FINDINGS: dict[str, object] = {}


def value(shape, dtype, seed=0):
    bits = np.random.default_rng(seed).integers(0, 256, (*shape, jnp.dtype(dtype).itemsize), np.uint8)
    if dtype == "bool":
        bits %= 2
    return bits.view(jnp.dtype(dtype)).reshape(shape)


def sharded(array, sharding):
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index], dtype=array.dtype)


def equal(found, array, sharding):
    """Each shard here, bit for bit."""
    mine = [d for d in sharding.device_set if d.process_index == jax.process_index()]
    return (
        found.sharding == sharding
        and found.committed
        and found.dtype == array.dtype
        and {shard.device for shard in found.addressable_shards} == {*mine}
        and all(np.asarray(s.data).tobytes() == array[s.index].tobytes() for s in found.addressable_shards)
    )


def check(name, arrays, sources, targets, **options):
    given = jax.tree.map(sharded, arrays, sources)
    found = reshard(given, targets, **options)
    FINDINGS[name] = all(jax.tree.leaves(jax.tree.map(equal, found, arrays, targets)))
    return given


def refused(name, call):
    try:
        call()
        FINDINGS[name] = "no error"
    except Exception as error:
        FINDINGS[name] = f"{type(error).__name__}: {error}"


def main(port, index, path):
    jax.distributed.initialize(f"localhost:{port}", 2, index, initialization_timeout=60)
    devices = np.array(sorted(jax.devices(), key=lambda d: d.id))
    left, right = Mesh(devices[:3], ("x",)), Mesh(devices[3:], ("x",))
    square, other = Mesh(devices[:4].reshape(2, 2), ("x", "y")), Mesh(devices[2:].reshape(2, 2), ("x", "y"))

    names = ["float32", "bfloat16", "float16", "float8_e4m3fn", "bool", "complex64", "int8", "uint16", "int32"]
    arrays = {name: value((12, 6), name, k) for k, name in enumerate(names)}
    cut, down = NamedSharding(left, P("x")), NamedSharding(right, P(None, "x"))
    everywhere = NamedSharding(right, P())
    given = check("types", arrays, dict.fromkeys(names, cut), dict.fromkeys(names, down))
    FINDINGS["inputs stay"] = all(equal(given[n], arrays[n], cut) for n in names)
    refused("device_put", lambda: reshard(given["float32"], down, method="device_put"))

    some = {"a": value((8, 4), "float32"), "scalar": value((), "int32"), "none": value((0, 4), "float32")}
    before = {"a": NamedSharding(square, P("x", "y")), "scalar": NamedSharding(square, P()), "none": cut}
    after = {"a": NamedSharding(other, P(("y", "x"))), "scalar": NamedSharding(other, P()), "none": everywhere}
    check("overlapping, scalar, empty", some, before, after)
    check("once more", some, before, after)

    whole = Mesh(devices, ("x",))
    check("same devices", some["a"][:6], NamedSharding(whole, P("x")), NamedSharding(whole, P()))
    check(
        "same devices, planned", some["a"][:6], NamedSharding(whole, P("x")), NamedSharding(whole, P()), method="plan"
    )
    check("elsewhere", some["a"], SingleDeviceSharding(devices[0]), SingleDeviceSharding(devices[1]))
    check("one to all", some["a"], SingleDeviceSharding(devices[4]), NamedSharding(whole, P()))

    rng = np.random.default_rng(5)
    tree, froms, tos = {}, {}, {}
    for k in range(6):
        sides = []
        for _ in range(2):
            shape = [(1, 1), (2, 1), (2, 2), (3, 2), (1, 4)][rng.integers(5)]
            mesh = Mesh(rng.permutation(devices)[: np.prod(shape)].reshape(shape), ("x", "y"))
            sides.append(
                NamedSharding(mesh, [P("x", "y"), P(None, ("y", "x")), P("y"), P(), P(None, "x")][rng.integers(5)])
            )
        tree[k], froms[k], tos[k] = value((12, 24), names[rng.integers(len(names))], k), *sides
    check("random", tree, froms, tos, transport=JaxTransport(buffer=700), method="plan")

    numbers = {"w": np.linspace(-3, 3, 12, dtype=np.float32).reshape(6, 2), "n": np.arange(6, dtype=np.int32)}
    half = reshard(jax.tree.map(lambda a: sharded(a, cut), numbers), everywhere, dtype="bfloat16", donate=True)
    FINDINGS["cast"] = equal(half["w"], numbers["w"].astype(jnp.bfloat16), everywhere) and equal(
        half["n"], numbers["n"], everywhere
    )

    uneven = topology_of_devices(devices, alpha=index * 1e-3)
    array = sharded(arrays["int32"], cut)
    refused("other topology", lambda: reshard(array, down, topology=uneven))
    refused("other shape", lambda: reshard(sharded(value((3, 3 + index), "int32"), cut), everywhere))
    if index == 0:
        refused("alone", lambda: reshard(array, everywhere, transport=JaxTransport(timeout=2)))
    Path(path).write_text(json.dumps(FINDINGS))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])

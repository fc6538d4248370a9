"""Reshard JAX arrays onto any mesh, in one process or many."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, final

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, Sharding, SingleDeviceSharding

from xmesh_reshard.jax_devices import topology_of_devices
from xmesh_reshard.jax_transport import JaxTransport
from xmesh_reshard.layout import Layout
from xmesh_reshard.planning import plan
from xmesh_reshard.plans import Plan
from xmesh_reshard.topology import Topology

ReshardMethod = Literal["auto", "plan", "device_put"]

_KEPT_PLANS = 64
_plans: OrderedDict[object, Plan] = OrderedDict()


def reshard(
    x: Any,
    sharding: Any,
    *,
    topology: Topology | None = None,
    method: ReshardMethod = "auto",
    dtype: Any = None,
    donate: bool = False,
    transport: JaxTransport | None = None,
) -> Any:
    """Give an array, or all arrays of a pytree, another sharding, on any mesh.

    The values are those that ``jax.device_put`` gives where it is legal: same elements, sharding and dtype, committed.
    Between devices of one process it *is* ``device_put``, which nothing beats there. Between processes ``device_put``
    wants the same devices on both sides; all else is planned jointly and executed by a :class:`JaxTransport`.

    In several processes, every process that holds a device of either side makes the same calls in the same order, as
    with any computation over them. A process without a part of ``x`` passes an array without addressable shards, as
    ``jax.make_array_from_single_device_arrays(shape, sharding, [], dtype=dtype)`` makes it.

    Args:
        x: An array or a pytree of arrays.
        sharding: A sharding or device, or a pytree of them of which ``x``'s structure is an extension.
        topology: The network; its devices are numbered by the JAX devices' ``id``. By default every process is a host:
            see :func:`~xmesh_reshard.jax_devices.topology_of_devices`, which takes rates.
        method: ``"auto"``; ``"plan"`` to plan everything that is on devices; ``"device_put"`` to leave all to JAX.
        dtype: Floating type that floating arrays are converted to, before they are sent where it is smaller.
        donate: Give up the arrays of ``x``, so that their memory can be used again.
        transport: Executes the plans; by default one for all calls of this process.

    Returns:
        The array or pytree in its new sharding.

    Raises:
        TypeError: Called under ``jit`` (or another transformation), or ``sharding`` is not made of shardings.
        ValueError: ``sharding`` is not a prefix of ``x``; an unknown method.
        LayoutError: A sharding does not fit the shape of its array.
        TopologyError: The topology lacks a device.
        RuntimeError: Devices of several processes, and ``jax.distributed`` is not initialised.
        PlanMismatchError: Another process came with other arguments.
        PeerLostError: Another process did not come at all.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jax.sharding import SingleDeviceSharding
        >>> moved = reshard({"w": jnp.ones(3)}, SingleDeviceSharding(jax.devices()[-1]))
        >>> moved["w"].sharding.device_set == {jax.devices()[-1]}
        True
    """
    if method not in ("auto", "plan", "device_put"):
        raise ValueError(f"method is 'auto', 'plan' or 'device_put'; got {method!r}")
    wanted = _dtype(dtype)
    paths, structure = jax.tree_util.tree_flatten_with_path(x)
    moves = [
        Move(jax.tree_util.keystr(path), leaf, target, _converted(leaf, wanted))
        for (path, leaf), target in zip(paths, _targets(sharding, x), strict=True)
    ]
    ways = [_way(move, method) for move in moves]
    joint = [move for move, way in zip(moves, ways, strict=True) if way == "plan"]
    planned = _by_plan(joint, topology, transport or default_transport(), donate) if joint else {}
    by_way = {"plan": lambda move: planned[move.name], "absent": _absent, "device_put": lambda move: _put(move, donate)}
    return jax.tree_util.tree_unflatten(structure, [by_way[way](move) for move, way in zip(moves, ways, strict=True)])


@final
@dataclass(frozen=True, eq=False)
class Move:
    """One array of the tree: its path there, the array, the sharding to come, the type to come (None: the same)."""

    name: str
    leaf: Any
    target: Sharding
    dtype: str | None

    @property
    def array(self) -> jax.Array | None:
        """The array, where it is on devices and stays there unless told otherwise."""
        return self.leaf if isinstance(self.leaf, jax.Array) and self.leaf.committed else None

    @property
    def devices(self) -> dict[int, Any]:
        """The devices of both sides, by number."""
        return {device.id: device for device in (*self.leaf.sharding.device_set, *self.target.device_set)}


@lru_cache(maxsize=1)
def default_transport() -> JaxTransport:
    """The transport of this process's calls."""
    return JaxTransport()


def _dtype(dtype: Any) -> str | None:
    if dtype is None:
        return None
    found = jax.dtypes.canonicalize_dtype(dtype)
    if not jnp.issubdtype(found, jnp.inexact):
        raise ValueError(f"dtype is a floating or complex type, which floating arrays are converted to; got {dtype!r}")
    return found.name


def _converted(leaf: Any, wanted: str | None) -> str | None:
    """The type that a leaf is converted to, if any."""
    given = jnp.result_type(leaf)
    return wanted if wanted and jnp.issubdtype(given, jnp.inexact) and given.name != wanted else None


def _targets(sharding: Any, x: Any) -> list[Sharding]:
    """The sharding for each leaf."""

    def is_leaf(node: Any) -> bool:
        return node is None or isinstance(node, Sharding | jax.Device)

    try:
        found = jax.tree.leaves(jax.tree.broadcast(sharding, x, is_leaf=is_leaf), is_leaf=is_leaf)
    except ValueError as error:
        raise ValueError(f"sharding must be one sharding, or a pytree of them that is a prefix of x: {error}") from None
    if len(whole := [node for node in found if node is not None]) == len(jax.tree.leaves(x)):
        found = whole  # None in x is no array, and stays
    if odd := [node for node in found if node is None or not is_leaf(node)]:
        raise TypeError(
            f"sharding holds {odd[0]!r}: give a jax.sharding.Sharding, such as NamedSharding(mesh, spec), or a device"
        )
    return [node if isinstance(node, Sharding) else SingleDeviceSharding(node) for node in found]


def _way(move: Move, method: ReshardMethod) -> str:
    """Who moves an array; equal in every process that has the same shardings."""
    if isinstance(move.leaf, jax.core.Tracer):
        raise TypeError(
            "reshard moves arrays between meshes and cannot be traced: call it outside jit, grad or vmap."
            " Within jit, on one mesh, use jax.lax.with_sharding_constraint"
        )
    array = move.array if jax.process_count() > 1 else move.leaf if isinstance(move.leaf, jax.Array) else None
    if method == "device_put" or array is None:
        return "device_put"
    if method == "auto":
        processes = {device.process_index for device in move.devices.values()}
        if len(processes) == 1:
            return "device_put" if jax.process_index() in processes else "absent"
        same = array.sharding.device_set == move.target.device_set
        if same and isinstance(array.sharding, NamedSharding) and isinstance(move.target, NamedSharding):
            return "device_put"
    if jnp.issubdtype(array.dtype, jax.dtypes.extended):
        raise TypeError(
            f"x{move.name} is an array of {array.dtype}, which no plan can send:"
            " reshard jax.random.key_data(x), and wrap_key_data the result"
        )
    return "plan"


def _by_plan(
    moves: Sequence[Move], topology: Topology | None, transport: JaxTransport, donate: bool
) -> dict[str, jax.Array]:
    devices = {d: device for move in moves for d, device in move.devices.items()}
    if all(device.process_index != jax.process_index() for device in devices.values()):
        return {move.name: _absent(move) for move in moves}
    made = _plan(
        tuple((m.name, m.leaf.shape, m.leaf.dtype.name, m.dtype, m.leaf.sharding, m.target) for m in moves),
        topology or topology_of_devices(devices.values()),
    )
    arrays = {move.name: move.leaf for move in moves}
    return transport.execute(made, arrays, {move.name: move.target for move in moves}, donate=donate)


def _plan(
    sides: tuple[tuple[str, tuple[int, ...], str, str | None, Sharding, Sharding], ...], topology: Topology
) -> Plan:
    """The plan of a call, kept for calls like it."""
    key = (sides, repr(topology.to_dict()))
    if key not in _plans:
        layouts: dict[Any, Layout] = {}

        def layout(sharding: Sharding, shape: tuple[int, ...], dtype: str) -> Layout:
            side = (sharding, shape, dtype)
            if side not in layouts:
                layouts[side] = Layout.from_named_sharding(sharding, shape, dtype)
            return layouts[side]

        pairs = {
            name: (layout(source, shape, dtype), layout(target, shape, after or dtype))
            for name, shape, dtype, after, source, target in sides
        }
        _plans[key] = plan(pairs, topology, cast=True)
        while len(_plans) > _KEPT_PLANS:
            _plans.popitem(last=False)
    _plans.move_to_end(key)
    return _plans[key]


def _put(move: Move, donate: bool) -> jax.Array:
    """Leave it to JAX; a smaller type is taken before, a larger one after."""
    if move.dtype is None:
        return jax.device_put(move.leaf, move.target, donate=donate)
    first = jnp.dtype(move.dtype).itemsize < jnp.result_type(move.leaf).itemsize
    moved = jax.device_put(_cast(move.leaf, move.dtype) if first else move.leaf, move.target, donate=first)
    found = moved if first else _cast(moved, move.dtype)
    if donate and isinstance(move.leaf, jax.Array):
        move.leaf.delete()
    return found


def _cast(leaf: Any, dtype: str) -> Any:
    return leaf.astype(dtype) if isinstance(leaf, jax.Array) else jnp.asarray(leaf, dtype)


def _absent(move: Move) -> jax.Array:
    """An array of which this process holds nothing, before and after."""
    dtype = move.dtype or move.leaf.dtype
    return jax.make_array_from_single_device_arrays(move.leaf.shape, move.target, [], dtype=dtype)

"""Execute a plan on JAX arrays, in one process or many: packed, sent and unpacked on the devices."""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, SupportsFloat, final

import jax
from jax.sharding import Sharding, SingleDeviceSharding

from xmesh_reshard import quantities
from xmesh_reshard.jax_agreement import agree
from xmesh_reshard.jax_exchange import Exchange, Parts, blank, corners, lengths
from xmesh_reshard.jax_packing import move
from xmesh_reshard.jax_rounds import batches
from xmesh_reshard.layout import Layout
from xmesh_reshard.plans import Piece, Plan, Transfer
from xmesh_reshard.transports.errors import PartError
from xmesh_reshard.transports.packing import check_cast

Side = tuple[str, Sharding, tuple[int, ...], str, Sharding]  # name, sharding, shape and type given, sharding to come


@final
class JaxTransport:
    """Moves JAX arrays between meshes by a plan, through the collectives of the backend.

    What a device sends is packed into a flat buffer on the device. The messages of all devices cross in one compiled
    program: rounds of ``ppermute`` over the devices that send or receive, in which each device sends at most one chunk
    and receives at most one. Chunks of a chain follow each other through the rounds. Nothing goes through host memory
    that the backend's own collectives do not put there. Programs are kept for the plans used last.

    In several processes, each process that holds a device of the layouts makes the same calls; the first call of a plan
    compares the processes' plans before any byte is moved. A process that dies meanwhile is noticed by JAX itself.

    Attributes:
        buffer: Bytes of a device's buffer: where a plan needs more, it is executed in several batches.
        most_rounds: Chunks grow until a batch has at most so many rounds (compile time grows with them).
        timeout: Seconds to wait for the other processes' plans.
        keep: Number of plans whose programs are kept.

    Example:
        >>> import jax.numpy as jnp
        >>> from xmesh_reshard import Topology, plan
        >>> here = SingleDeviceSharding(jax.devices()[0])
        >>> layout = Layout.from_named_sharding(here, (3,), "int32")
        >>> made = plan({"x": (layout, layout)}, Topology.uniform(1, 1))
        >>> JaxTransport().execute(made, {"x": jnp.arange(3)}, {"x": here})["x"]
        Array([0, 1, 2], dtype=int32)
    """

    def __init__(
        self,
        *,
        buffer: str | SupportsFloat = "1GiB",
        most_rounds: int = 256,
        timeout: SupportsFloat = 300.0,
        keep: int = 32,
    ) -> None:
        self.buffer = quantities.size(buffer)
        self.most_rounds = most_rounds
        self.timeout = quantities.seconds(timeout)
        self.keep = keep
        if not 1 <= self.buffer <= 2**31:
            raise ValueError(f"buffer is from one byte to 2GiB; got {buffer!r}")
        if most_rounds < 1 or keep < 1:
            raise ValueError(f"most_rounds and keep are at least 1; got {most_rounds} and {keep}")
        self._ready: OrderedDict[Any, Prepared] = OrderedDict()

    def execute(
        self,
        plan: Plan,
        arrays: Mapping[str, jax.Array],
        shardings: Mapping[str, Sharding],
        *,
        donate: bool = False,
    ) -> dict[str, jax.Array]:
        """Move all tensors of a plan.

        Args:
            plan: The plan; its devices are numbered by the JAX devices' ``id``.
            arrays: For each tensor the array, sharded as the plan's source layout says.
            shardings: For each tensor the sharding to come, as the plan's target layout says.
            donate: Free the given arrays' memory as soon as it has been read.

        Returns:
            For each tensor the new array.

        Raises:
            PartError: An array or sharding is missing, or differs from the plan's layouts.
            PlanMismatchError: Another process came with another plan.
            PeerLostError: Another process did not come at all.
        """
        prepared = self._prepare(plan, arrays, shardings)
        old = {
            (name, shard.device.id): in_memory(shard.data, shard.device, None)
            for name, array in arrays.items()
            for shard in array.addressable_shards
        }
        new = prepared.copies(old)
        shared = {key for key, part in new.items() if part is old.get(key)}
        for number, exchange in enumerate(prepared.exchanges, 1):
            buffers = exchange.run(old)
            if donate and number == len(prepared.exchanges):
                _give_up(arrays, old, shared)
            exchange.fill(new, buffers)
            del buffers
            if len(prepared.exchanges) > 1:
                jax.block_until_ready([*new.values()])  # so that there is one buffer at a time
        if donate and not prepared.exchanges:
            _give_up(arrays, old, shared)
        return {name: prepared.whole(name, shardings[name], new) for name in plan.tensors}

    def buffer_bytes(self, plan: Plan) -> int:
        """Most bytes of a device's buffer while a plan is executed, besides the old and new parts."""
        cut = batches(plan, buffer=self.buffer, most_rounds=self.most_rounds)
        return max((batch.words * batch.word for batch in cut), default=0)

    def _prepare(self, plan: Plan, arrays: Mapping[str, jax.Array], shardings: Mapping[str, Sharding]) -> "Prepared":
        for given, what in ((arrays, "array"), (shardings, "sharding")):
            if given.keys() != plan.tensors.keys():
                odd = sorted(given.keys() ^ plan.tensors.keys())[0]
                raise PartError(f"the plan needs one {what} for each of its tensors, and no other; see {odd!r}")
        sides = tuple(
            (name, arrays[name].sharding, arrays[name].shape, str(arrays[name].dtype), shardings[name])
            for name in plan.tensors
        )
        key = (plan.hash(), sides)
        if key not in self._ready:
            devices = _check(plan, sides)
            options = f"{plan.hash()} {self.buffer} {self.most_rounds}"
            processes = sorted({devices[d].process_index for d in plan.devices})
            if jax.process_index() in processes:
                agree(hashlib.sha256(options.encode()).hexdigest(), processes, timeout=self.timeout)
            cut = batches(plan, buffer=self.buffer, most_rounds=self.most_rounds)
            self._ready[key] = Prepared(plan, devices, tuple(Exchange(plan, batch, devices) for batch in cut))
            while len(self._ready) > self.keep:
                self._ready.popitem(last=False)
        self._ready.move_to_end(key)
        return self._ready[key]


@final
class Prepared:
    """All that this process needs to execute a plan.

    Args:
        plan: The plan.
        devices: The JAX devices by number.
        exchanges: The batches.
    """

    def __init__(self, plan: Plan, devices: Mapping[int, Any], exchanges: tuple[Exchange, ...]) -> None:
        self.exchanges = exchanges
        self._tensors = plan.tensors
        self._devices = {d: device for d, device in devices.items() if device.process_index == jax.process_index()}
        self._copies: dict[tuple[str, int], list[Piece]] = {}
        for d in self._devices:
            for piece in plan.program(d).copies if d in plan.devices else ():
                if piece.nbytes:
                    self._copies.setdefault((piece.tensor, d), []).append(piece)

    def copies(self, old: Mapping[tuple[str, int], jax.Array]) -> Parts:
        """The new parts of which this process holds something already; what stays as it is, is the old array itself."""
        new: Parts = {}
        for (name, d), pieces in self._copies.items():
            transfer, part = self._tensors[name], old[name, d]
            sizes = tuple(lengths(piece) for piece in pieces)
            if sizes == (transfer.target.shard_shape(d),) == (part.shape,) and part.dtype == transfer.target.dtype:
                new[name, d] = part
            else:
                begun = blank(transfer.target, d, self._devices[d])
                sources, targets = corners(pieces, transfer.source, d), corners(pieces, transfer.target, d)
                new[name, d] = move(begun, part, sources, targets, sizes)
        return new

    def whole(self, name: str, sharding: Sharding, new: Parts) -> jax.Array:
        """The new array of this process's parts; empty parts that nobody sends are made here."""
        target = self._tensors[name].target
        parts = [
            in_memory(new[name, d] if (name, d) in new else blank(target, d, device), device, sharding.memory_kind)
            for d, device in self._devices.items()
            if d in target.position
        ]
        dtype = jax.numpy.dtype(target.dtype)
        return jax.make_array_from_single_device_arrays(target.shape, sharding, parts, dtype=dtype)


def in_memory(part: jax.Array, device: Any, kind: str | None) -> jax.Array:
    """A part in a kind of its device's memory (None: where the device computes); itself where it is there already."""
    usual = device.default_memory().kind
    wanted, now = kind or usual, part.sharding.memory_kind or usual
    return part if wanted == now else jax.device_put(part, SingleDeviceSharding(device, memory_kind=wanted))


def _check(plan: Plan, sides: tuple[Side, ...]) -> dict[int, Any]:
    """Compare what was given with the plan; the devices by number."""
    devices: dict[int, Any] = {}
    layouts: dict[Any, Layout] = {}
    for name, source, shape, dtype, target in sides:
        transfer: Transfer = plan.tensors[name]
        check_cast(name, transfer)
        wanted = ((source, transfer.source, dtype), (target, transfer.target, transfer.target.dtype))
        for sharding, layout, given in wanted:
            key = (sharding, shape, given)
            if key not in layouts:
                layouts[key] = Layout.from_named_sharding(sharding, shape, given)
                devices.update({device.id: device for device in sharding.device_set})
            if layouts[key] != layout:
                which = "source" if layout is transfer.source else "target"
                raise PartError(
                    f"{name!r} was given as {given}{list(shape)} with {sharding}; the plan's {which} layout is another:"
                    f" {layout.dtype}{list(layout.shape)} on the devices {layout.devices.tolist()[:16]}"
                )
    if len({device.platform for device in devices.values()}) > 1:
        raise PartError("a plan moves arrays between devices of one platform; copy through the host instead")
    return devices


def _give_up(arrays: Mapping[str, jax.Array], old: Parts, shared: set[tuple[str, int]]) -> None:
    """Free the old parts, but for those that are new parts too."""
    old.clear()
    for name, array in arrays.items():
        kept = [shard.device.id for shard in array.addressable_shards if (name, shard.device.id) in shared]
        for shard in array.addressable_shards if kept else ():
            if shard.device.id not in kept:
                shard.data.delete()
        if not kept:
            array.delete()

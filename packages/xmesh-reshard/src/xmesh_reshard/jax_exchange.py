"""One batch of a plan's messages on JAX devices: pack, exchange in rounds of permutations, unpack."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

from xmesh_reshard.jax_packing import Size, read, read_whole, write
from xmesh_reshard.jax_rounds import Batch, Pairs
from xmesh_reshard.layout import Layout, dtype_of
from xmesh_reshard.plans import Piece, Plan

Parts = dict[tuple[str, int], jax.Array]  # by tensor and device number

_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


@final
class Exchange:
    """What this process does in a batch.

    Args:
        plan: The plan.
        batch: Some of its messages.
        devices: The JAX devices by number.
    """

    def __init__(self, plan: Plan, batch: Batch, devices: Mapping[int, Any]) -> None:
        rounds = batch.rounds
        mesh = Mesh(np.array([devices[d] for d in rounds.devices]), ("devices",))
        self._tensors = plan.tensors
        self._sharding = NamedSharding(mesh, PartitionSpec("devices"))
        self._devices = {d: devices[d] for d in rounds.devices if devices[d].process_index == jax.process_index()}
        self._words, self._word = batch.words, _WORDS[batch.word]
        self._length = len(rounds.devices)
        if not self._devices:
            return
        table = np.stack([rounds.send, rounds.receive, rounds.count], axis=1)
        self._table = jax.make_array_from_callback(table.shape, self._sharding, lambda index: table[index])
        self._program = _program(mesh, rounds.runs())
        self._writes, self._reads = {}, {}
        for d in self._devices:
            packed = [k for k, load in enumerate(batch.loads) if load.hops[0].source == d]
            received = [k for k, load in enumerate(batch.loads) if d in load.receivers]
            self._writes[d] = _by_tensor(plan, batch, d, packed, source=True)
            self._reads[d] = _by_tensor(plan, batch, d, received, source=False)

    def run(self, old: Mapping[tuple[str, int], jax.Array]) -> dict[int, jax.Array]:
        """Pack the old parts and exchange: the filled buffer of each device of this process."""
        if not self._devices:
            return {}
        packed = []
        for d, device in self._devices.items():
            buffer = jnp.zeros(self._words, self._word, device=device)
            for name, boxes in self._writes[d].items():
                wire = self._tensors[name].wire
                buffer = write(buffer, old[name, d], boxes.places, boxes.starts, boxes.sizes, wire)
            packed.append(buffer)
        shape = (self._length * self._words,)
        whole = jax.make_array_from_single_device_arrays(shape, self._sharding, packed, dtype=self._word)
        exchanged = self._program(whole, self._table)
        return {shard.device.id: shard.data for shard in exchanged.addressable_shards}

    def fill(self, new: Parts, buffers: Mapping[int, jax.Array]) -> None:
        """Unpack the buffers into the new parts, and begin those that are not there yet."""
        for d, buffer in buffers.items():
            for name, boxes in self._reads[d].items():
                target, wire = self._tensors[name].target, self._tensors[name].wire
                if boxes.sizes == (target.shard_shape(d),):
                    new[name, d] = read_whole(buffer, boxes.places[0], boxes.sizes[0], wire, target.dtype)
                else:
                    part = new[name, d] if (name, d) in new else blank(target, d, self._devices[d])
                    new[name, d] = read(part, buffer, boxes.places, boxes.starts, boxes.sizes, wire)


@final
@dataclass(frozen=True)
class Boxes:
    """Boxes of a device's part and where they lie in its buffer.

    Attributes:
        places: First word of each.
        starts: First corner of each in the part.
        sizes: Lengths of each.
    """

    places: Int[np.ndarray, "k"]
    starts: Int[np.ndarray, "k d"]
    sizes: tuple[Size, ...]


def blank(layout: Layout, device: int, where: Any) -> jax.Array:
    """A device's part, all zero."""
    return jnp.zeros(layout.shard_shape(device), dtype_of(layout.dtype), device=where)


def corners(pieces: Sequence[Piece], layout: Layout, device: int) -> Int[np.ndarray, "k d"]:
    """The first corners of pieces in a device's own part."""
    found = np.array([piece.lower for piece in pieces], np.int64).reshape(len(pieces), len(layout.shape))
    return (found - layout.lower[layout.position[device]]).astype(np.int32)


def lengths(piece: Piece) -> Size:
    """The lengths of a piece."""
    return tuple(b - a for a, b in zip(piece.lower, piece.upper, strict=True))


def _by_tensor(plan: Plan, batch: Batch, device: int, loads: list[int], *, source: bool) -> dict[str, Boxes]:
    """Boxes of each tensor that a device packs or unpacks."""
    found: dict[str, tuple[list[Piece], list[int]]] = {}
    for k in loads:
        place = batch.places[device][k]
        for piece in batch.loads[k].pieces:
            pieces, places = found.setdefault(piece.tensor, ([], []))
            pieces.append(piece)
            places.append(place)
            place += piece.nbytes // batch.word
    made = {}
    for name, (pieces, places) in found.items():
        layout = plan.tensors[name].source if source else plan.tensors[name].target
        starts = corners(pieces, layout, device)
        made[name] = Boxes(np.array(places, np.int32), starts, tuple(map(lengths, pieces)))
    return made


@lru_cache(maxsize=64)
def _program(mesh: Mesh, runs: tuple[tuple[Pairs, int, int, int], ...]) -> Callable[..., jax.Array]:
    """The rounds as one compiled program; rounds of equal pairs and width are a loop."""

    def step(pairs: Pairs, width: int, table: jax.Array, r: Any, buffer: jax.Array) -> jax.Array:
        send, receive, count = table[0, 0, r], table[0, 1, r], table[0, 2, r]
        got = jax.lax.ppermute(jax.lax.dynamic_slice(buffer, (send,), (width,)), "devices", pairs)
        kept = jax.lax.dynamic_slice(buffer, (receive,), (width,))
        return jax.lax.dynamic_update_slice(buffer, jnp.where(jnp.arange(width) < count, got, kept), (receive,))

    def body(buffer: jax.Array, table: jax.Array) -> jax.Array:
        for pairs, width, first, end in runs:

            def one(r: Any, held: jax.Array, pairs: Pairs = pairs, width: int = width) -> jax.Array:
                return step(pairs, width, table, r, held)

            buffer = one(first, buffer) if end - first == 1 else jax.lax.fori_loop(first, end, one, buffer)
        return buffer

    spec = PartitionSpec("devices")
    return jax.jit(jax.shard_map(body, mesh=mesh, in_specs=(spec, spec), out_specs=spec), donate_argnums=0)

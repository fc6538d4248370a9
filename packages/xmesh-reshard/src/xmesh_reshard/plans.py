"""A plan: every message in one total order, and what each device does."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, final, overload

import numpy as np
from jaxtyping import Float, Int

from xmesh_reshard.layout import Layout, dtype_of
from xmesh_reshard.topology import Topology

if TYPE_CHECKING:
    from xmesh_reshard.network import Simulation

FORMAT = 1
Method = Literal["chain", "send_recv"]


@final
@dataclass(frozen=True)
class Transfer:
    """One tensor, from where it is to where it shall be.

    Attributes:
        source: The layout it has.
        target: The layout it gets, of the same global shape; another dtype is cast on the way.
    """

    source: Layout
    target: Layout

    @property
    def wire(self) -> str:
        """The element type on the way: the smaller of both, so that a cast to a smaller type comes before sending."""
        shrinks = self.target.itemsize < self.source.itemsize
        return self.target.dtype if shrinks else self.source.dtype


@final
@dataclass(frozen=True)
class Piece:
    """A box of a tensor, in global indices.

    Attributes:
        tensor: The tensor's name.
        lower: First index in each dimension.
        upper: One past the last.
        nbytes: Bytes on the wire.
    """

    tensor: str
    lower: tuple[int, ...]
    upper: tuple[int, ...]
    nbytes: int

    def within(self, layout: Layout, device: int) -> tuple[slice, ...]:
        """Where the piece lies in a device's own part."""
        corner = layout.lower[layout.position[device]].tolist()
        return tuple(slice(a - o, b - o) for a, b, o in zip(self.lower, self.upper, corner, strict=True))


@final
@dataclass(frozen=True)
class Hop:
    """One leg of a message, from a device that has it to one that needs it.

    Attributes:
        source: The sending device.
        target: The receiving device.
        out: Network card of the sender's host; -1 inside a host.
        into: Network card of the receiver's host; -1 inside a host.
    """

    source: int
    target: int
    out: int = -1
    into: int = -1


@final
@dataclass(frozen=True)
class Message:
    """Pieces packed together (in order, each in row-major order) that travel from one device to others.

    Every device of ``hops`` but the first sender needs all the pieces. A device passes a chunk on once it has it, so
    the hops of a chain run at the same time on different chunks.

    Attributes:
        index: Place in the plan's total order.
        method: ``chain``, or ``send_recv`` where the sender sends to each receiver itself.
        hops: The legs, in an order in which each sender has received before.
        pieces: What is sent.
        nbytes: Their bytes.
        chunk: Bytes of a chunk; the last is shorter.
        start: Planned start, seconds.
        end: Planned end at the last receiver, seconds.
    """

    index: int
    method: Method
    hops: tuple[Hop, ...]
    pieces: tuple[Piece, ...]
    nbytes: int
    chunk: int
    start: float
    end: float

    @property
    def sender(self) -> int:
        """The device it starts from."""
        return self.hops[0].source

    @property
    def receivers(self) -> tuple[int, ...]:
        """The devices that it reaches, in order."""
        return tuple(hop.target for hop in self.hops)

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return -(-self.nbytes // self.chunk)


@final
@dataclass(frozen=True)
class Step:
    """A device's part in a message: receive each chunk from the parent, if any, and pass it on to the children.

    Attributes:
        message: The message's index: steps of all devices follow this one order.
        pieces: What is packed, in order.
        nbytes: Bytes of the packed message.
        chunk: Bytes of a chunk.
        parent: The device to receive from; None on the first sender, which packs.
        children: The devices to send each chunk to, in order.
    """

    message: int
    pieces: tuple[Piece, ...]
    nbytes: int
    chunk: int
    parent: int | None
    children: tuple[int, ...]

    def spans(self) -> Iterator[tuple[int, int]]:
        """First byte and end of each chunk."""
        return ((first, min(first + self.chunk, self.nbytes)) for first in range(0, self.nbytes, self.chunk))


@final
@dataclass(frozen=True)
class Program:
    """All that one device does.

    Attributes:
        device: The device.
        copies: Pieces that it holds already and copies (or casts) into its new part.
        steps: Its messages, in the plan's order.
    """

    device: int
    copies: tuple[Piece, ...]
    steps: tuple[Step, ...]


@final
@dataclass(frozen=True)
class Group:
    """Tensors of equal layouts, planned as one with a leading axis that counts them."""

    names: tuple[str, ...]
    transfer: Transfer


@final
@dataclass(frozen=True, eq=False)
class Tables:
    """The messages of a plan in columns; row m of M messages owns hops and pieces ``ptr[m]:ptr[m + 1]``.

    A piece covers tensors ``first`` to ``last`` (half open) of its group, each with the same box; columns beyond the
    tensor's dimensions hold 0 and 1.
    """

    hop_ptr: Int[np.ndarray, "M1"]
    hop_source: Int[np.ndarray, "H"]
    hop_target: Int[np.ndarray, "H"]
    hop_out: Int[np.ndarray, "H"]
    hop_into: Int[np.ndarray, "H"]
    piece_ptr: Int[np.ndarray, "M1"]
    piece_group: Int[np.ndarray, "P"]
    piece_first: Int[np.ndarray, "P"]
    piece_last: Int[np.ndarray, "P"]
    piece_lower: Int[np.ndarray, "P D"]
    piece_upper: Int[np.ndarray, "P D"]
    nbytes: Int[np.ndarray, "M"]
    chunk: Int[np.ndarray, "M"]
    star: Int[np.ndarray, "M"]
    start: Float[np.ndarray, "M"]
    end: Float[np.ndarray, "M"]
    copy_device: Int[np.ndarray, "C"]
    copy_group: Int[np.ndarray, "C"]
    copy_lower: Int[np.ndarray, "C D"]
    copy_upper: Int[np.ndarray, "C D"]


@final
@dataclass(frozen=True, eq=False)
class Plan:
    """How to move tensors: made by :func:`xmesh_reshard.plan`, executed by a transport.

    Attributes:
        groups: The tensors, by equal layouts.
        topology: The network planned for.
        tables: The messages in columns.
        makespan: Planned time until the last byte has arrived, seconds.
        lower_bound: No plan can be faster, seconds (Sec. 3.1: what the busiest port must carry).
        notes: What the planner chose and why, in order.
    """

    groups: tuple[Group, ...]
    topology: Topology
    tables: Tables
    makespan: float
    lower_bound: float
    notes: tuple[str, ...] = ()

    @property
    def gap(self) -> float:
        """How far the makespan may be from the best possible: makespan / lower bound - 1."""
        if self.makespan <= self.lower_bound:
            return 0.0
        return self.makespan / self.lower_bound - 1 if self.lower_bound else float("inf")

    @cached_property
    def tensors(self) -> Mapping[str, Transfer]:
        """Each tensor's layouts, by name."""
        return {name: group.transfer for group in self.groups for name in group.names}

    @cached_property
    def devices(self) -> tuple[int, ...]:
        """All devices of the source and target layouts, ascending."""
        parts = [d for g in self.groups for d in (g.transfer.source.devices, g.transfer.target.devices)]
        return tuple(np.unique(np.concatenate(parts)).tolist()) if parts else ()

    @property
    def window(self) -> int:
        """Messages that a device should have under way: two, and more where a host has several or faster cards."""
        return self.topology.window(self.devices)

    @property
    def messages(self) -> "Messages":
        """The messages in the total order that every device follows."""
        return Messages(self)

    def program(self, device: int) -> Program:
        """What one device does.

        Args:
            device: A device of a source or target layout.

        Raises:
            ValueError: The device takes no part in the plan.
        """
        if device not in self.devices:
            raise ValueError(f"device {device} is in no layout of this plan; its devices are {self.devices[:16]}")
        t = self.tables
        copies = [
            piece
            for c in np.flatnonzero(t.copy_device == device).tolist()
            for piece in self._expand(int(t.copy_group[c]), 0, None, t.copy_lower[c], t.copy_upper[c])
        ]
        return Program(device, tuple(copies), tuple(self._step(m, device) for m in self._mine(device).tolist()))

    def bytes_matrix(self) -> Int[np.ndarray, "hosts hosts"]:
        """Bytes that leave each host (row) for each host (column); within a host they are on the diagonal."""
        matrix = np.zeros((len(self.topology.hosts),) * 2, np.int64)
        sizes, source, target = self._hops()
        np.add.at(matrix, (source, target), sizes)
        return matrix

    def nic_bytes(self) -> dict[tuple[str, int], tuple[int, int]]:
        """Bytes out of and into each network card, by host name and number of the card."""
        t, hosts = self.tables, self.topology.hosts
        sizes, source, target = self._hops()
        found = {(host.name, k): [0, 0] for host in hosts for k in range(len(host.nics))}
        for side, (where, card) in enumerate(((source, t.hop_out), (target, t.hop_into))):
            for h, k, n in zip(where.tolist(), card.tolist(), sizes.tolist(), strict=True):
                if k >= 0:
                    found[hosts[h].name, k][side] += n
        return {key: (out, into) for key, (out, into) in found.items()}

    @property
    def network_bytes(self) -> int:
        """Bytes that cross between hosts."""
        matrix = self.bytes_matrix()
        return int(matrix.sum() - np.trace(matrix))

    def buffer_bytes(self, device: int) -> int:
        """Most bytes that a device needs besides its old and new parts: the messages under way, packed."""
        return int(np.sort(self.tables.nbytes[self._mine(device)])[-self.window :].sum())

    def hash(self) -> str:
        """A fingerprint of the plan, equal in every process that made the same plan (hexadecimal)."""
        return self._hash

    @cached_property
    def _hash(self) -> str:
        digest = hashlib.sha256(f"xmesh-reshard plan {FORMAT}".encode())
        for group in self.groups:
            digest.update(repr(group.names).encode())
            digest.update(group.transfer.source.key() + group.transfer.target.key())
        digest.update(repr(self.topology.to_dict()).encode())
        for entry in fields(Tables):
            column = getattr(self.tables, entry.name)
            if entry.name not in ("start", "end"):
                digest.update(f"{entry.name}{column.shape}".encode() + column.astype("<i8").tobytes())
        return digest.hexdigest()

    def simulate(self, **options: Any) -> "Simulation":
        """Run the plan through the network simulator: :func:`xmesh_reshard.network.simulate`."""
        from xmesh_reshard.network import simulate

        return simulate(self, **options)

    def explain(self) -> str:
        """What the plan does and why, as text: bound, load of the ports, methods, the busiest links."""
        from xmesh_reshard.explain import explain

        return explain(self)

    def save(self, path: Any) -> None:
        """Write the plan as JSON, atomically: :func:`xmesh_reshard.io.save_plan`."""
        from xmesh_reshard.io import save_plan

        save_plan(self, path)

    def __repr__(self) -> str:
        return (
            f"Plan({len(self.tensors)} tensors, {len(self.tables.nbytes)} messages, {self.makespan:.4g} s,"
            f" lower bound {self.lower_bound:.4g} s)"
        )

    def _mine(self, device: int) -> np.ndarray:
        """The messages that a device takes part in."""
        t = self.tables
        of_hop = np.repeat(np.arange(len(t.nbytes)), np.diff(t.hop_ptr))
        return np.unique(of_hop[(t.hop_source == device) | (t.hop_target == device)])

    def _hops(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Bytes, sending host and receiving host of each hop."""
        t, host_of = self.tables, self.topology.host_of
        sizes = np.repeat(t.nbytes, np.diff(t.hop_ptr))
        source = np.array([host_of[d] for d in t.hop_source.tolist()], np.int64)
        return sizes, source, np.array([host_of[d] for d in t.hop_target.tolist()], np.int64)

    def _expand(self, group: int, first: int, last: int | None, lower: np.ndarray, upper: np.ndarray) -> list[Piece]:
        made = self.groups[group]
        d = len(made.transfer.source.shape)
        low, high = tuple(lower[:d].tolist()), tuple(upper[:d].tolist())
        size = dtype_of(made.transfer.wire).itemsize
        for a, b in zip(low, high, strict=True):
            size *= b - a
        return [Piece(name, low, high, size) for name in made.names[first:last]]

    def _pieces(self, m: int) -> tuple[Piece, ...]:
        t = self.tables
        return tuple(
            piece
            for p in range(int(t.piece_ptr[m]), int(t.piece_ptr[m + 1]))
            for piece in self._expand(
                int(t.piece_group[p]), int(t.piece_first[p]), int(t.piece_last[p]), t.piece_lower[p], t.piece_upper[p]
            )
        )

    def _step(self, m: int, device: int) -> Step:
        t = self.tables
        legs = slice(int(t.hop_ptr[m]), int(t.hop_ptr[m + 1]))
        source, target = t.hop_source[legs].tolist(), t.hop_target[legs].tolist()
        parent = [s for s, r in zip(source, target, strict=True) if r == device]
        children = tuple(r for s, r in zip(source, target, strict=True) if s == device)
        parent_or_none = parent[0] if parent else None
        return Step(m, self._pieces(m), int(t.nbytes[m]), int(t.chunk[m]), parent_or_none, children)

    def _message(self, m: int) -> Message:
        t = self.tables
        legs = slice(int(t.hop_ptr[m]), int(t.hop_ptr[m + 1]))
        columns = (t.hop_source, t.hop_target, t.hop_out, t.hop_into)
        hops = tuple(Hop(*row) for row in zip(*(column[legs].tolist() for column in columns), strict=True))
        method: Method = "send_recv" if t.star[m] else "chain"
        return Message(
            m, method, hops, self._pieces(m), int(t.nbytes[m]), int(t.chunk[m]), float(t.start[m]), float(t.end[m])
        )


@final
class Messages(Sequence[Message]):
    """The messages of a plan, made when they are asked for."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def __len__(self) -> int:
        return len(self._plan.tables.nbytes)

    @overload
    def __getitem__(self, index: int) -> Message: ...
    @overload
    def __getitem__(self, index: slice) -> list[Message]: ...
    def __getitem__(self, index: int | slice) -> Message | list[Message]:
        """One message, or several."""
        if isinstance(index, slice):
            return [self._plan._message(m) for m in range(*index.indices(len(self)))]
        m = index + len(self) if index < 0 else index
        if not 0 <= m < len(self):
            raise IndexError(f"the plan has {len(self)} messages; got {index}")
        return self._plan._message(m)

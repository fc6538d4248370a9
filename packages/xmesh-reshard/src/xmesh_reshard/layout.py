"""Where the parts of a sharded tensor are: one box of the global index space on every device."""

import math
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import ml_dtypes
import numpy as np
from jaxtyping import Int

Spec = str | Sequence[Any]


class LayoutError(ValueError):
    """A layout that does not make sense: the spec, the mesh or the boxes do not fit the shape."""


def _name(dtype: object) -> str:
    """``float32`` for NumPy's, JAX's and torch's ways to write it."""
    if isinstance(dtype, np.dtype):
        return dtype.name
    return getattr(dtype, "__name__", str(dtype)).removeprefix("torch.")


def dtype_of(name: object) -> np.dtype:
    """The NumPy type of a name such as ``float32``, ``bfloat16`` or ``float8_e4m3fn``.

    Raises:
        LayoutError: There is no such type, or its elements have no fixed size of whole bytes.
    """
    text = _name(name)
    try:
        found = np.dtype(getattr(ml_dtypes, text)) if hasattr(ml_dtypes, text) else np.dtype(text)
    except TypeError:
        raise LayoutError(
            f"unknown dtype {text!r}: give a NumPy or ml_dtypes name such as 'float32', 'bfloat16'"
        ) from None
    if found.hasobject or found.itemsize == 0 or found.names or re.fullmatch(r"(u?int|float)[1246](_\w+)?", text):
        raise LayoutError(f"dtype {text!r} cannot be sent as bytes: give a numeric type of whole bytes")
    return found


@final
@dataclass(frozen=True, eq=False)
class Mesh:
    """Devices arranged in a grid with named axes.

    Attributes:
        devices: Device numbers, of any number of axes; no device twice.
        axes: A name for each axis; ``"0"``, ``"1"``, … where none are given.

    Example:
        >>> Mesh.grid((2, 4)).axes
        ('0', '1')
    """

    devices: np.ndarray
    axes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        devices = np.asarray(self.devices)
        if devices.size and not np.issubdtype(devices.dtype, np.integer):
            raise LayoutError(f"mesh devices are whole numbers; got dtype {devices.dtype}")
        devices = devices.astype(np.int64)
        axes = tuple(str(axis) for axis in self.axes) or tuple(str(i) for i in range(devices.ndim))
        if len(axes) != devices.ndim or len({*axes}) != len(axes):
            raise LayoutError(f"a mesh of {devices.ndim} axes needs as many different names; got {axes}")
        if devices.size == 0:
            raise LayoutError(f"a mesh needs at least one device; got shape {devices.shape}")
        if np.unique(devices).size != devices.size or devices.min() < 0:
            raise LayoutError("mesh devices are different numbers from 0 up; some are repeated or negative")
        object.__setattr__(self, "devices", devices)
        object.__setattr__(self, "axes", axes)

    @classmethod
    def grid(cls, shape: Sequence[int], axes: Sequence[str] = (), first: int = 0) -> "Mesh":
        """The devices ``first``, ``first + 1``, … in row-major order on a grid."""
        return cls(np.arange(first, first + math.prod(shape)).reshape(tuple(shape)), tuple(axes))

    def size(self, axis: str) -> int:
        """How many devices lie along an axis."""
        return self.devices.shape[self.axes.index(axis)]


@final
@dataclass(frozen=True, eq=False)
class Layout:
    """A tensor's shape and type, and the box of it that every device holds.

    Made by :meth:`sharded` (mesh and spec), :meth:`from_boxes`, :meth:`from_named_sharding` (JAX) or
    :meth:`from_placements` (DTensor). Boxes are half open, ``lower[k, d] <= index < upper[k, d]``; a box may be empty,
    and several devices may hold the same box (replicas) or overlapping ones.

    Attributes:
        shape: The global shape; ``()`` for a scalar.
        dtype: The name of the element type.
        devices: The n devices, ascending.
        lower: First index of each device's box, (n, d).
        upper: One past the last index, (n, d).

    Example:
        >>> layout = Layout.sharded((6, 4), "float32", Mesh.grid((2, 2)), "S0R")
        >>> layout.slices(2)
        (slice(3, 6, None), slice(0, 4, None))
    """

    shape: tuple[int, ...]
    dtype: str
    devices: Int[np.ndarray, "n"]
    lower: Int[np.ndarray, "n d"]
    upper: Int[np.ndarray, "n d"]

    def __post_init__(self) -> None:
        shape = _whole(self.shape)
        if any(n < 0 for n in shape):
            raise LayoutError(f"a shape has no negative lengths; got {shape}")
        devices = np.asarray(self.devices, np.int64).reshape(-1)
        lower = np.asarray(self.lower, np.int64).reshape(len(devices), len(shape))
        upper = np.asarray(self.upper, np.int64).reshape(len(devices), len(shape))
        if devices.size == 0:
            raise LayoutError("a layout needs at least one device")
        if np.unique(devices).size != devices.size or devices.min() < 0:
            raise LayoutError(f"devices are different numbers from 0 up; got {devices.tolist()}")
        bad = ((lower < 0) | (upper < lower) | (upper > np.array(shape, np.int64))).any(axis=1)
        if bad.any():
            k = int(np.flatnonzero(bad)[0])
            box = list(zip(lower[k].tolist(), upper[k].tolist(), strict=True))
            raise LayoutError(f"device {devices[k]} has the box {box}, which does not lie inside shape {shape}")
        order = np.argsort(devices)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "dtype", _name(self.dtype))
        dtype_of(self.dtype)
        for name, value in (("devices", devices), ("lower", lower), ("upper", upper)):
            fixed = np.ascontiguousarray(value[order])
            fixed.setflags(write=False)
            object.__setattr__(self, name, fixed)

    @classmethod
    def sharded(cls, shape: Sequence[int], dtype: object, mesh: Mesh, spec: Spec) -> "Layout":
        """The layout of a mesh and a partition spec, as JAX shards and as the paper writes it.

        An axis of length n cut k ways gives parts of ⌈n / k⌉, of which the last may be shorter or empty. A dimension
        cut by several mesh axes is cut by the first as the major one.

        Args:
            shape: The global shape.
            dtype: Name of the element type.
            mesh: The devices.
            spec: For each dimension None, the name (or number) of a mesh axis, or a tuple of them, as in JAX's
                ``PartitionSpec``; dimensions left out at the end are not cut. Or a string in the paper's notation:
                ``"S0RR"``, ``"RS01"``, where R is replicated and S is followed by the numbers of mesh axes.

        Raises:
            LayoutError: The spec has more dimensions than the shape, names an axis that is not there, or uses one
                twice.
        """
        shape = _whole(shape)
        entries = _entries(spec, len(shape), mesh)
        lower = np.zeros((mesh.devices.size, len(shape)), np.int64)
        upper = np.broadcast_to(np.array(shape, np.int64), lower.shape).copy()
        where = np.indices(mesh.devices.shape).reshape(mesh.devices.ndim, -1)
        for d, axes in enumerate(entries):
            part, parts = np.zeros(mesh.devices.size, np.int64), 1
            for axis in axes:
                part, parts = part * mesh.size(axis) + where[mesh.axes.index(axis)], parts * mesh.size(axis)
            chunk = -(-shape[d] // parts)
            lower[:, d] = np.minimum(part * chunk, shape[d])
            upper[:, d] = np.minimum((part + 1) * chunk, shape[d])
        return cls(shape, _name(dtype), mesh.devices.reshape(-1), lower, upper)

    @classmethod
    def from_boxes(cls, shape: Sequence[int], dtype: object, boxes: Mapping[int, Sequence[Any]]) -> "Layout":
        """The layout in which each device holds the box given for it.

        Args:
            shape: The global shape.
            dtype: Name of the element type.
            boxes: For each device a slice or a pair (first, end) for each dimension.

        Raises:
            LayoutError: A box has another number of dimensions, a step, or leaves the shape.

        Example:
            >>> Layout.from_boxes((5,), "int8", {0: [(0, 2)], 7: [slice(2, None)]}).shard_shape(7)
            (3,)
        """
        shape = _whole(shape)
        lower, upper = [], []
        for device, box in boxes.items():
            pairs = [_pair(entry, n, device) for entry, n in zip(box, shape, strict=False)]
            if len(box) != len(shape):
                raise LayoutError(
                    f"device {device} has a box of {len(box)} dimensions; the shape {shape} has {len(shape)}"
                )
            lower.append([a for a, _ in pairs])
            upper.append([b for _, b in pairs])
        n, d = len(boxes), len(shape)
        return cls(
            shape,
            _name(dtype),
            np.array(list(boxes), np.int64),
            np.array(lower, np.int64).reshape(n, d),
            np.array(upper, np.int64).reshape(n, d),
        )

    @classmethod
    def from_named_sharding(cls, sharding: Any, shape: Sequence[int], dtype: object) -> "Layout":
        """The layout of any JAX sharding that places whole boxes; devices are numbered by their ``id``.

        Args:
            sharding: A ``jax.sharding.Sharding``, for example a ``NamedSharding``; devices of other processes are fine.
            shape: The global shape.
            dtype: The array's type.

        Raises:
            LayoutError: The sharding does not fit the shape.
        """
        from xmesh_reshard.frameworks import boxes_of_sharding

        return cls.from_boxes(shape, dtype, boxes_of_sharding(sharding, shape))

    @classmethod
    def from_placements(cls, mesh: Any, placements: Sequence[Any], shape: Sequence[int], dtype: object) -> "Layout":
        """The layout of a DTensor: its device mesh and placements.

        Args:
            mesh: A ``torch.distributed.DeviceMesh``, a :class:`Mesh` or an array of ranks.
            placements: ``Replicate()``, ``Shard(d)`` or the strided shards that FSDP makes over tensor parallelism.
            shape: The global shape.
            dtype: ``torch.bfloat16`` or a name.

        Raises:
            LayoutError: A placement is a partial sum (reduce it first), names a dimension that is not there, or leaves
                a device with parts that are not one box.
        """
        from xmesh_reshard.frameworks import boxes_of_placements

        return cls.from_boxes(shape, dtype, boxes_of_placements(mesh, placements, shape))

    @cached_property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return dtype_of(self.dtype).itemsize

    @cached_property
    def position(self) -> dict[int, int]:
        """Row of each device in the tables of boxes."""
        return {int(device): k for k, device in enumerate(self.devices)}

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor."""
        return math.prod(self.shape) * self.itemsize

    def slices(self, device: int) -> tuple[slice, ...]:
        """The box of a device, to index the global array with."""
        k = self._row(device)
        return tuple(slice(int(a), int(b)) for a, b in zip(self.lower[k], self.upper[k], strict=True))

    def shard_shape(self, device: int) -> tuple[int, ...]:
        """Shape of the part that a device holds."""
        k = self._row(device)
        return tuple((self.upper[k] - self.lower[k]).tolist())

    def split(self, array: np.ndarray) -> dict[int, np.ndarray]:
        """Cut a global array into the devices' parts (copies).

        Raises:
            LayoutError: The array has another shape or type.
        """
        if array.shape != self.shape or array.dtype != dtype_of(self.dtype):
            raise LayoutError(
                f"got an array {array.dtype}{list(array.shape)}; the layout is {self.dtype}{list(self.shape)}"
            )
        return {device: np.array(array[self.slices(device)]) for device in self.devices.tolist()}

    def assemble(self, parts: Mapping[int, np.ndarray]) -> np.ndarray:
        """Put the devices' parts together again; where boxes overlap, the last device's part stays.

        Raises:
            LayoutError: A device's part is missing or has another shape, or the boxes leave a hole.
        """
        whole = np.empty(self.shape, dtype_of(self.dtype))
        seen = np.zeros(self.shape, bool)
        for device in self.devices.tolist():
            if device not in parts or parts[device].shape != self.shard_shape(device):
                given = parts[device].shape if device in parts else "nothing"
                raise LayoutError(f"device {device} holds a part of shape {self.shard_shape(device)}; got {given}")
            whole[self.slices(device)] = parts[device]
            seen[self.slices(device)] = True
        if not seen.all():
            raise LayoutError("the boxes do not cover the whole tensor")
        return whole

    def key(self) -> bytes:
        """What tells layouts apart: equal for equal layouts, in every process."""
        head = f"{self.shape}|{self.dtype}|{len(self.devices)}|".encode()
        return head + b"".join(t.astype("<i8").tobytes() for t in (self.devices, self.lower, self.upper))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layout) and self.key() == other.key()

    def __hash__(self) -> int:
        return hash(self.key())

    def __repr__(self) -> str:
        n, tiles = len(self.devices), len({*_rows(self.lower, self.upper)})
        return f"Layout({self.dtype}{list(self.shape)} on {n} devices in {tiles} different parts)"

    def _row(self, device: int) -> int:
        if device not in self.position:
            raise LayoutError(f"device {device} is not in this layout; it has {self.devices.tolist()[:16]}")
        return self.position[device]


def _whole(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape of whole numbers, with fewer than 2^63 elements."""
    try:
        lengths = tuple(operator.index(n) for n in shape)
    except TypeError:
        raise LayoutError(f"a shape has whole numbers; got {tuple(shape)}") from None
    if math.prod(lengths) * 16 >= 2**63:
        raise LayoutError(f"the shape {lengths} has more elements than can be counted in 64 bits")
    return lengths


def _rows(lower: np.ndarray, upper: np.ndarray) -> Iterator[bytes]:
    return (a.tobytes() + b.tobytes() for a, b in zip(lower, upper, strict=True))


def _pair(entry: Any, n: int, device: int) -> tuple[int, int]:
    if isinstance(entry, slice):
        if entry.step not in (None, 1):
            raise LayoutError(f"device {device} has a slice of step {entry.step}; boxes have step 1")
        return 0 if entry.start is None else operator.index(entry.start), n if entry.stop is None else operator.index(
            entry.stop
        )
    first, end = entry
    return operator.index(first), operator.index(end)


def _entries(spec: Spec, dims: int, mesh: Mesh) -> list[tuple[str, ...]]:
    """The mesh axes that cut each dimension, major first."""
    raw = _parse(spec, mesh) if isinstance(spec, str) else list(spec)
    if len(raw) > dims:
        raise LayoutError(f"the spec {spec!r} has {len(raw)} dimensions; the shape has {dims}")
    entries = [
        () if entry is None else tuple(str(a) for a in entry) if isinstance(entry, tuple | list) else (str(entry),)
        for entry in raw
    ]
    used = [axis for axes in entries for axis in axes]
    for axis in used:
        if axis not in mesh.axes:
            raise LayoutError(f"the spec {spec!r} names the mesh axis {axis!r}; the mesh has {mesh.axes}")
        if used.count(axis) > 1:
            raise LayoutError(f"the spec {spec!r} uses the mesh axis {axis!r} twice; each may cut one dimension")
    return entries + [()] * (dims - len(entries))


def _parse(spec: str, mesh: Mesh) -> list[tuple[str, ...]]:
    """The paper's notation: R, or S and digits, for each dimension."""
    entries: list[list[str]] = []
    replicated: list[bool] = []
    for letter in spec:
        if letter in "RS":
            entries.append([])
            replicated.append(letter == "R")
        elif letter.isdigit() and entries and not replicated[-1]:
            if int(letter) >= len(mesh.axes):
                raise LayoutError(f"the spec {spec!r} names mesh axis {letter}; the mesh has {len(mesh.axes)} axes")
            entries[-1].append(mesh.axes[int(letter)])
        else:
            raise LayoutError(f"cannot read the spec {spec!r}: write R, or S and mesh axis numbers, as in 'S0RS12'")
    if any(not axes and not whole for axes, whole in zip(entries, replicated, strict=True)):
        raise LayoutError(f"cannot read the spec {spec!r}: S needs the number of a mesh axis, as in 'S0R'")
    return [tuple(axes) for axes in entries]

"""From a device's old parts to the bytes of a message, and from these to its new parts."""

import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, final

import numpy as np

from xmesh_reshard.layout import Layout, dtype_of
from xmesh_reshard.plans import Piece, Transfer
from xmesh_reshard.transports.errors import PartError


class Packer(ABC):
    """Packs and unpacks what one device sends and receives; new parts are new arrays.

    Bytes of a message are its pieces one after another, each in row-major order and in the transfer's wire type. A cast
    to a smaller type comes before the sending, to a larger one after the receiving.

    Attributes:
        tensors: The layouts of each tensor.
        device: The device.
        old: Its parts by the source layouts.
        new: Its parts by the target layouts, allocated and to be filled.
    """

    def __init__(self, tensors: Mapping[str, Transfer], device: int, parts: Mapping[str, Any]) -> None:
        self.tensors = tensors
        self.device = device
        self.old = {name: self.accept(part) for name, part in parts.items()}
        self._check()
        self.new = {
            name: self.allocate(transfer.target.shard_shape(device), transfer.target.dtype)
            for name, transfer in tensors.items()
            if device in transfer.target.position
        }

    def outgoing(self, pieces: Sequence[Piece], take: Callable[[int], Any]) -> tuple[Any, bool]:
        """Pack pieces of the old parts.

        Args:
            pieces: What to pack, in order.
            take: Gives a buffer of so many bytes; not called where a view of the old part will do.

        Returns:
            The bytes, and whether they are a view of an old part.
        """
        if (view := self._direct(pieces, source=True)) is not None:
            return view, True
        buffer = take(sum(piece.nbytes for piece in pieces))
        for piece, first, end in _spans(pieces):
            transfer = self.tensors[piece.tensor]
            self.write(self._view(piece, source=True), buffer[first:end], transfer.wire)
        return buffer, False

    def incoming(self, pieces: Sequence[Piece], take: Callable[[int], Any]) -> tuple[Any, bool]:
        """A buffer to receive pieces in.

        Returns:
            The buffer, and whether it is a view of the new part, so that nothing remains to be unpacked.
        """
        if (view := self._direct(pieces, source=False)) is not None:
            return view, True
        return take(sum(piece.nbytes for piece in pieces)), False

    def unpack(self, pieces: Sequence[Piece], buffer: Any) -> None:
        """Put received pieces into the new parts."""
        for piece, first, end in _spans(pieces):
            transfer = self.tensors[piece.tensor]
            self.read(buffer[first:end], transfer.wire, self._view(piece, source=False))

    def copy(self, pieces: Iterable[Piece]) -> None:
        """Copy (and cast) pieces that the device holds from its old into its new parts."""
        for piece in pieces:
            if piece.nbytes:
                self.move(self._view(piece, source=True), self._view(piece, source=False))

    @abstractmethod
    def accept(self, part: Any) -> Any:
        """A given part as this packer's kind of array."""

    @abstractmethod
    def describe(self, part: Any) -> tuple[tuple[int, ...], str]:
        """Shape and type name of a part."""

    @abstractmethod
    def allocate(self, shape: tuple[int, ...], dtype: str) -> Any:
        """A new part, not yet filled."""

    @abstractmethod
    def buffer(self, nbytes: int) -> Any:
        """A new buffer of bytes."""

    @abstractmethod
    def flat(self, view: Any) -> Any:
        """The bytes of a contiguous view without copying, or None where it is not contiguous."""

    @abstractmethod
    def write(self, view: Any, buffer: Any, wire: str) -> None:
        """Put a view into the bytes of a buffer as elements of the wire type."""

    @abstractmethod
    def read(self, buffer: Any, wire: str, view: Any) -> None:
        """Put the bytes of a buffer, elements of the wire type, into a view."""

    @abstractmethod
    def move(self, source: Any, target: Any) -> None:
        """Copy and cast one view into another."""

    @abstractmethod
    def fill(self, buffer: Any, data: bytes) -> None:
        """Put bytes into a buffer of their length."""

    @abstractmethod
    def raw(self, buffer: Any) -> np.ndarray:
        """The bytes of a buffer in the memory of the host; a view where they are there already."""

    def checksum(self, buffer: Any) -> int:
        """CRC-32 of the bytes of a buffer."""
        return zlib.crc32(self.raw(buffer).data)

    def _view(self, piece: Piece, *, source: bool) -> Any:
        transfer = self.tensors[piece.tensor]
        layout, parts = (transfer.source, self.old) if source else (transfer.target, self.new)
        return parts[piece.tensor][(*piece.within(layout, self.device), ...)]

    def _direct(self, pieces: Sequence[Piece], *, source: bool) -> Any:
        """The bytes of the one piece where it is contiguous in the part and not cast."""
        filled = [piece for piece in pieces if piece.nbytes]
        if len(filled) != 1:
            return None
        transfer = self.tensors[filled[0].tensor]
        layout = transfer.source if source else transfer.target
        return self.flat(self._view(filled[0], source=source)) if layout.dtype == transfer.wire else None

    def _check(self) -> None:
        """Compare the given parts with the layouts."""
        needed = {name: t for name, t in self.tensors.items() if self.device in t.source.position}
        if extra := sorted(self.old.keys() - needed.keys()):
            raise PartError(
                f"device {self.device} was given a part of {extra[0]!r}, of which the source layouts give it none;"
                f" it holds parts of {sorted(needed)[:8]}"
            )
        for name, transfer in needed.items():
            want = (transfer.source.shard_shape(self.device), transfer.source.dtype)
            if name not in self.old:
                raise PartError(f"device {self.device} needs its part of {name!r}: {_text(*want)}; none was given")
            if (given := self.describe(self.old[name])) != want:
                raise PartError(
                    f"device {self.device} was given {_text(*given)} for {name!r};"
                    f" its source layout says {_text(*want)}"
                )
            check_cast(name, transfer)


@final
class NumpyPacker(Packer):
    """Packs NumPy arrays of any strides and of NumPy's and ml_dtypes' types.

    Example:
        >>> from xmesh_reshard import Layout, Transfer
        >>> before = Layout.from_boxes((2, 3), "int8", {0: [(0, 2), (0, 3)]})
        >>> after = Layout.from_boxes((2, 3), "int8", {1: [(0, 2), (1, 3)]})
        >>> part = np.arange(6, dtype=np.int8).reshape(2, 3)
        >>> packer = NumpyPacker({"w": Transfer(before, after)}, 0, {"w": part})
        >>> packer.outgoing([Piece("w", (0, 1), (2, 3), 4)], packer.buffer)[0].tolist()
        [1, 2, 4, 5]
    """

    def accept(self, part: Any) -> np.ndarray:
        """The part as an array."""
        return np.asarray(part)

    def describe(self, part: np.ndarray) -> tuple[tuple[int, ...], str]:
        """Shape and type; the type of the other byte order has another name."""
        return part.shape, part.dtype.name if part.dtype.isnative else str(part.dtype)

    def allocate(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """An empty array."""
        return np.empty(shape, dtype_of(dtype))

    def buffer(self, nbytes: int) -> np.ndarray:
        """Empty bytes."""
        return np.empty(nbytes, np.uint8)

    def flat(self, view: np.ndarray) -> np.ndarray | None:
        """The bytes of a C-contiguous view."""
        return view.reshape(-1).view(np.uint8) if view.flags.c_contiguous else None

    def write(self, view: np.ndarray, buffer: np.ndarray, wire: str) -> None:
        """Copy and cast into the buffer; NumPy allows elements at any byte offset."""
        self.move(view, buffer.view(dtype_of(wire)).reshape(view.shape))

    def read(self, buffer: np.ndarray, wire: str, view: np.ndarray) -> None:
        """Copy and cast out of the buffer."""
        self.move(buffer.view(dtype_of(wire)).reshape(view.shape), view)

    def move(self, source: np.ndarray, target: np.ndarray) -> None:
        """Copy and cast; a value too large for the new type becomes what the type makes of it, without a warning."""
        with np.errstate(over="ignore", invalid="ignore"):
            np.copyto(target, source, casting="unsafe")

    def fill(self, buffer: np.ndarray, data: bytes) -> None:
        """Copy the bytes."""
        buffer[:] = np.frombuffer(data, np.uint8)

    def raw(self, buffer: np.ndarray) -> np.ndarray:
        """The buffer itself."""
        return buffer


def check_cast(name: str, transfer: Transfer) -> None:
    """Refuse a cast that drops the imaginary part.

    Raises:
        PartError: Complex to real.
    """
    before, after = dtype_of(transfer.source.dtype), dtype_of(transfer.target.dtype)
    if before.kind == "c" and after.kind not in "cb":
        raise PartError(f"{name!r} is {before} and shall become {after}: take the real or imaginary part first")


def part_bytes(layout: Layout, device: int) -> int:
    """Bytes of a device's part; 0 where the layout does not have the device."""
    return math.prod(layout.shard_shape(device)) * layout.itemsize if device in layout.position else 0


def _spans(pieces: Iterable[Piece]) -> Iterable[tuple[Piece, int, int]]:
    """The pieces that have elements, with their first byte and end in the message."""
    first = 0
    for piece in pieces:
        if piece.nbytes:
            yield piece, first, first + piece.nbytes
        first += piece.nbytes


def _text(shape: tuple[int, ...], dtype: str) -> str:
    return f"{dtype}{list(shape)}"

"""Packing of PyTorch tensors, where they are: in the host's memory or on a GPU."""

from typing import Any, final

import numpy as np
import torch

from xmesh_reshard.layout import dtype_of
from xmesh_reshard.transports.errors import PartError
from xmesh_reshard.transports.packing import Packer


def torch_dtype(name: str) -> torch.dtype:
    """The PyTorch type of a name.

    Raises:
        PartError: PyTorch has none.
    """
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise PartError(f"PyTorch has no type {name!r}; cast to another, or use the NumPy transports")
    return found


@final
class TorchPacker(Packer):
    """Packs tensors of any strides on one device; DTensors are taken by their local part.

    New parts and buffers are made on the device of the old parts, or on ``place`` where there are none.
    """

    def __init__(self, tensors: Any, device: int, parts: Any, place: torch.device | None = None) -> None:
        places = {_local(part).device for part in parts.values()}
        if len(places) > 1:
            raise PartError(f"device {device} was given parts on several devices: {sorted(map(str, places))}")
        self.place = places.pop() if places else (place or torch.device("cpu"))
        if place is not None and self.place.type != place.type:
            raise PartError(
                f"device {device} was given parts on {self.place}; this transport moves tensors on {place.type}:"
                " move them there first, or use a process group of the other backend"
            )
        super().__init__(tensors, device, parts)

    def accept(self, part: Any) -> torch.Tensor:
        """The tensor without its history, or a DTensor's local part."""
        return _local(part).detach()

    def describe(self, part: torch.Tensor) -> tuple[tuple[int, ...], str]:
        """Shape and type."""
        return tuple(part.shape), str(part.dtype).removeprefix("torch.")

    def allocate(self, shape: tuple[int, ...], dtype: str) -> torch.Tensor:
        """An empty tensor."""
        return torch.empty(shape, dtype=torch_dtype(dtype), device=self.place)

    def buffer(self, nbytes: int) -> torch.Tensor:
        """Empty bytes."""
        return torch.empty(nbytes, dtype=torch.uint8, device=self.place)

    def flat(self, view: torch.Tensor) -> torch.Tensor | None:
        """The bytes of a contiguous view."""
        plain = view.is_contiguous() and not view.is_conj() and not view.is_neg()
        return view.reshape(-1).view(torch.uint8) if plain else None

    def write(self, view: torch.Tensor, buffer: torch.Tensor, wire: str) -> None:
        """Copy and cast into the buffer, at once where the offset suits the type."""
        kind = torch_dtype(wire)
        if buffer.storage_offset() % kind.itemsize == 0:
            buffer.view(kind).view(view.shape).copy_(view)
        else:
            made = torch.empty(view.shape, dtype=kind, device=view.device).copy_(view)
            buffer.copy_(made.reshape(-1).view(torch.uint8))

    def read(self, buffer: torch.Tensor, wire: str, view: torch.Tensor) -> None:
        """Copy and cast out of the buffer."""
        kind = torch_dtype(wire)
        suits = buffer.storage_offset() % kind.itemsize == 0
        view.copy_((buffer if suits else buffer.clone()).view(kind).view(view.shape))

    def move(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copy and cast."""
        target.copy_(source)

    def fill(self, buffer: torch.Tensor, data: bytes) -> None:
        """Copy the bytes."""
        buffer.copy_(torch.from_numpy(np.frombuffer(data, np.uint8).copy()))

    def raw(self, buffer: torch.Tensor) -> np.ndarray:
        """The bytes; from a GPU they are copied, which waits for it."""
        return buffer.cpu().numpy()


def _local(part: Any) -> torch.Tensor:
    found = part.to_local() if hasattr(part, "to_local") else part
    if not isinstance(found, torch.Tensor):
        raise PartError(f"parts are tensors; got {type(part).__name__}")
    return found


def to_torch(array: np.ndarray) -> torch.Tensor:
    """A tensor of the same type and values, in memory of its own."""
    own = np.ascontiguousarray(array).reshape(array.shape).copy()
    return torch.from_numpy(own.reshape(-1).view(np.uint8)).view(torch_dtype(array.dtype.name)).reshape(array.shape)


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """An array of the same type and values; types that NumPy lacks are those of ml_dtypes."""
    plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return plain.view(dtype_of(tensor.dtype)).reshape(tuple(tensor.shape))

"""Where copies of values wait while they are not in RAM: what an executor asks of a store, and the simplest one."""

from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import Tensor

Handle = Any


@runtime_checkable
class PageStore(Protocol):
    """Where copies of values wait: one store for each tier, in the order of the problem's tiers.

    Transfers may run beside the computation. They of one store happen in the order in which they were asked for.
    """

    def write(self, value: int, tensor: Tensor) -> Handle:
        """Begin to copy a value: a dense tensor, all of its storage. It must not be changed or freed before `wait`."""

    def read(self, handle: Handle) -> Tensor:
        """Allocate a tensor of the same shape, strides, type and device, and begin to fill it from the copy."""

    def wait(self, handle: Handle) -> None:
        """Return when every transfer of this copy that was begun has ended, as far as the computation can tell."""

    def drop(self, handle: Handle) -> None:
        """Give the copy back."""


@final
class MemoryStore:
    """Copies as plain bytes beside torch's memory: a tier for tests and simulations, without a device of its own.

    Attributes:
        held: Bytes of the copies it holds.
        written: Bytes written to it so far.
        read_back: Bytes read from it so far.
    """

    def __init__(self) -> None:
        self.held = self.written = self.read_back = 0

    def write(self, value: int, tensor: Tensor) -> Handle:
        """Copy a tensor."""
        layout = tensor.shape, tensor.stride(), tensor.dtype, tensor.device
        data = _bytes(tensor).cpu().numpy().tobytes()
        self.held += len(data)
        self.written += len(data)
        return layout, data

    def read(self, handle: Handle) -> Tensor:
        """Make the tensor again."""
        (shape, stride, dtype, device), data = handle
        tensor = torch.empty_strided(shape, stride, dtype=dtype, device=device)
        if data:
            _bytes(tensor).copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        self.read_back += len(data)
        return tensor

    def wait(self, handle: Handle) -> None:
        """Nothing to wait for."""

    def drop(self, handle: Handle) -> None:
        """Forget a copy."""
        self.held -= len(handle[1])


def _bytes(tensor: Tensor) -> Tensor:
    """The memory of a dense tensor, as bytes in one dimension."""
    start = tensor.storage_offset() * tensor.element_size()
    empty = torch.empty(0, dtype=torch.uint8, device=tensor.device)
    return empty.set_(tensor.untyped_storage(), start, (tensor.numel() * tensor.element_size(),), (1,))

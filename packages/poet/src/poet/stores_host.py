"""Pages in the host's memory: pinned buffers that are used again, and a stream for each direction.

Order is kept by events alone, and the host waits for nothing. Whoever gives up a tensor that is still being copied lets
the computing stream wait for the copy first (`wait`): the allocator may then hand the memory out again at once, which
`record_stream` would put off to a time that no schedule can plan.
"""

from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from poet.stores import Form, raw

_SMALLEST = 1 << 9


@final
@dataclass(slots=True, eq=False)
class Copy:
    """A copy in the host's memory: what `HostStore.write` returns.

    Attributes:
        form: How the value lies.
        block: The memory.
        events: Transfers of this copy that `wait` has not seen yet.
        last: Event after the last transfer.
        tensors: What those transfers read or fill.
    """

    form: Form
    block: "_Block"
    events: list[Any] = field(default_factory=list)
    last: Any = None
    tensors: list[Tensor] = field(default_factory=list)


@final
class HostStore:
    """Copies of values of one device in the host's memory.

    On the processor itself the copies lie in memory that torch does not count, and are made at once: this stands for
    the host of an accelerator, and relieves nothing.

    Attributes:
        device: Where the values are.
        held: Bytes of the copies.
        pooled: Bytes of memory that waits for another copy.

    Args:
        device: A CUDA device, or the processor.

    Raises:
        ValueError: If the device is another one.

    Example:
        >>> store = HostStore()
        >>> handle = store.write(0, torch.arange(5))
        >>> store.read(handle), store.held
        (tensor([0, 1, 2, 3, 4]), 40)
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        if self.device.type not in ("cpu", "cuda"):
            raise ValueError(f"device must be a CUDA device or 'cpu', got {str(device)!r}")
        if self.device.type == "cuda" and self.device.index is None:
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.held = self.pooled = 0
        self._pool: dict[int, list[_Block]] = {}
        cuda = self.device.type == "cuda"
        self._out = torch.cuda.Stream(self.device) if cuda else None
        self._in = torch.cuda.Stream(self.device) if cuda else None

    def write(self, value: int, tensor: Tensor) -> Copy:
        """Begin to copy the whole storage of a tensor, which must stay as it is until `wait`.

        Raises:
            ValueError: If the tensor is on another device.
        """
        if tensor.device != self.device:
            raise ValueError(f"value {value} is on {tensor.device}; this store is for {self.device}")
        form, storage = Form.of(tensor), raw(tensor)
        copy = Copy(form, self._take(form.nbytes))
        self.held += form.nbytes
        if self._out is None:
            np.copyto(copy.block.memory[: form.nbytes], storage.numpy())
        else:
            self._transfer(self._out, copy, storage, copy.block.memory[: form.nbytes], storage)
        return copy

    def read(self, handle: Copy) -> Tensor:
        """Allocate a tensor like the one that was written, and begin to fill it."""
        form = handle.form
        storage = form.empty()
        if self._in is None:
            np.copyto(storage.numpy(), handle.block.memory[: form.nbytes])
        else:
            self._transfer(self._in, handle, storage, storage, handle.block.memory[: form.nbytes])
        return form.tensor(storage)

    def wait(self, handle: Copy) -> None:
        """Let what is computed from here on come after the transfers of a copy."""
        if handle.events:
            stream = torch.cuda.current_stream(self.device)
            for event in handle.events:
                stream.wait_event(event)
        handle.events.clear()
        handle.tensors.clear()

    def drop(self, handle: Copy) -> None:
        """Give a copy back; its memory serves another one, after the transfers that were begun."""
        self.wait(handle)
        handle.block.busy = handle.last
        self.held -= handle.form.nbytes
        self.pooled += handle.block.nbytes
        self._pool.setdefault(handle.block.nbytes, []).append(handle.block)

    def trim(self) -> None:
        """Give memory that holds no copy back to the system."""
        for blocks in self._pool.values():
            for block in blocks:
                if block.busy is not None:
                    block.busy.synchronize()
        self._pool.clear()
        self.pooled = 0

    def close(self) -> None:
        """Give everything back."""
        self.trim()

    def _take(self, nbytes: int) -> "_Block":
        size = size_class(nbytes)
        blocks = self._pool.get(size)
        if blocks:
            self.pooled -= size
            return blocks.pop()
        if self._out is None:
            return _Block(size, np.empty(size, dtype=np.uint8))
        return _Block(size, torch.empty(size, dtype=torch.uint8, pin_memory=True))

    def _transfer(self, stream: Any, copy: Copy, on_device: Tensor, target: Tensor, source: Tensor) -> None:
        """Copy on a stream, after what was computed so far and after the last transfer of the same memory."""
        stream.wait_event(torch.cuda.current_stream(self.device).record_event())
        before = copy.last if copy.last is not None else copy.block.busy
        if before is not None:
            stream.wait_event(before)
        with torch.cuda.stream(stream):
            target.copy_(source, non_blocking=True)
        copy.last = stream.record_event()
        copy.events.append(copy.last)
        copy.tensors.append(on_device)


@final
@dataclass(slots=True, eq=False)
class _Block:
    """Memory of the host, and the event after which it may be written again."""

    nbytes: int
    memory: Any
    busy: Any = None


def size_class(nbytes: int) -> int:
    """Bytes rounded up to one of four sizes between powers of two, so that few sizes serve many values.

    Example:
        >>> size_class(1), size_class(1025), size_class(1537)
        (512, 1280, 1792)
    """
    if nbytes <= _SMALLEST:
        return _SMALLEST
    step = 1 << max(0, (nbytes - 1).bit_length() - 3)
    return -(-nbytes // step) * step

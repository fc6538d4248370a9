"""One allocation for many small buffers: codes of a step lie behind one another and are freed together."""

from typing import final

import torch

_ALIGNMENT = 16


@final
class Arena:
    """A bump allocator: buffers are cut from large blocks, and nothing is reused.

    A block lives as long as any buffer that was cut from it. Hundreds of small allocations of odd sizes a step would
    fragment a caching allocator; a few large ones of one size do not. Not thread-safe: one arena a thread.

    Args:
        device: Where the buffers live.
        block_bytes: Size of a block, at least 16; a larger buffer gets a block of its own.
        pin: Whether blocks are page-locked, for copies between a processor and a device.

    Raises:
        ValueError: If `block_bytes` is less than 16.

    Example:
        >>> arena = Arena("cpu", 1 << 20)
        >>> arena.take(5).data_ptr() + 16 == arena.take(5).data_ptr(), arena.reserved_bytes
        (True, 1048576)
    """

    def __init__(self, device: torch.device | str, block_bytes: int, *, pin: bool = False) -> None:
        if block_bytes < _ALIGNMENT:
            raise ValueError(f"block_bytes={block_bytes}: need at least {_ALIGNMENT}")
        self._device = torch.device(device)
        self._block_bytes = -(-block_bytes // _ALIGNMENT) * _ALIGNMENT
        self._pin = pin
        self._block: torch.Tensor | None = None
        self._used = 0
        self._reserved = 0

    @property
    def reserved_bytes(self) -> int:
        """Bytes of all blocks allocated since the arena was made or last cleared."""
        return self._reserved

    def take(self, nbytes: int) -> torch.Tensor:
        """Cut a buffer.

        Args:
            nbytes: Its size, at least 0.

        Returns:
            Uninitialised bytes, uint8, shape [nbytes], that start at a multiple of 16.

        Raises:
            ValueError: If `nbytes` is negative.
        """
        if nbytes < 0:
            raise ValueError(f"nbytes={nbytes}: need at least 0")
        padded = -(-nbytes // _ALIGNMENT) * _ALIGNMENT
        if padded > self._block_bytes:
            return self._allocate(padded)[:nbytes]
        if self._block is None or self._used + padded > self._block.numel():
            self._block, self._used = self._allocate(self._block_bytes), 0
        buffer = self._block[self._used : self._used + nbytes]
        self._used += padded
        return buffer

    def clear(self) -> None:
        """Forget the current block: the next buffer starts a new one, and old blocks go with their last buffer."""
        self._block, self._used, self._reserved = None, 0, 0

    def _allocate(self, nbytes: int) -> torch.Tensor:
        self._reserved += nbytes
        with torch.inference_mode(False):  # so that buffers can be written inside and outside of inference mode
            return torch.empty(nbytes, dtype=torch.uint8, device=self._device, pin_memory=self._pin)


@final
class Arenas:
    """An arena for each device that is asked for.

    Args:
        block_bytes: Size of a block, at least 16.

    Example:
        >>> Arenas(1 << 10).take(5, torch.device("cpu")).numel()
        5
    """

    def __init__(self, block_bytes: int) -> None:
        self._block_bytes = block_bytes
        self._arenas: dict[torch.device, Arena] = {}

    def take(self, nbytes: int, device: torch.device) -> torch.Tensor:
        """Cut a buffer on a device.

        Args:
            nbytes: Its size, at least 0.
            device: Where.

        Returns:
            As `Arena.take`.
        """
        if device not in self._arenas:
            self._arenas[device] = Arena(device, self._block_bytes)
        return self._arenas[device].take(nbytes)

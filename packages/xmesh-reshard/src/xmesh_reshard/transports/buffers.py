"""A device's buffers for messages: few, used again, and counted."""

from collections.abc import Callable
from typing import Any, final


@final
class Pool:
    """Buffers that are given back and used again.

    A block is made for one message and has its size, and a free one that is too small makes way for a larger, so w
    blocks in use never hold more bytes than the w largest messages.

    Attributes:
        peak: Most bytes held at any time.

    Example:
        >>> pool = Pool(bytearray)
        >>> pool.give(pool.take(100))
        >>> len(pool.take(60)), pool.peak
        (60, 100)
    """

    def __init__(self, make: Callable[[int], Any]) -> None:
        self._make = make
        self._free: list[Any] = []
        self._used: list[tuple[Any, Any]] = []
        self._held = 0
        self.peak = 0

    def take(self, nbytes: int) -> Any:
        """A buffer of so many bytes."""
        fitting: list[Any] = [block for block in self._free if len(block) >= nbytes]
        if fitting:
            block: Any = min(fitting, key=len)
            self._drop(block)
        else:
            if self._free:
                smaller = max(self._free, key=len)
                self._drop(smaller)
                self._held -= len(smaller)
                del smaller
            block = self._make(nbytes)
            self._held += nbytes
            self.peak = max(self.peak, self._held)
        view = block[:nbytes]
        self._used.append((view, block))
        return view

    def give(self, view: Any) -> None:
        """Give a buffer back; one that is not from here is let go."""
        for k, (taken, block) in enumerate(self._used):
            if taken is view:
                del self._used[k]
                self._free.append(block)
                return

    def _drop(self, block: Any) -> None:
        self._free = [other for other in self._free if other is not block]

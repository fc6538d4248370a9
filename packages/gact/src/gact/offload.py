"""Codes in the host's memory until the backward pass asks for them: a second stream, a pool, and a forecast.

Autograd runs the nodes of a graph in falling order of their sequence numbers, as far as they are ready. A buffer put
away carries the number that was current when it was saved; when one is fetched, those with the highest numbers below
are brought back ahead of time. That is a forecast only: any order of fetching gives the right numbers, and a wrong
guess costs a wait.
"""

from __future__ import annotations

import bisect
import threading
import weakref
from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

__all__ = ["CopyLane", "CpuLane", "CudaLane", "Handle", "HostStore", "StoreStats"]

_SMALLEST_BLOCK = 1 << 12


class CopyLane(ABC):
    """How bytes travel between a device and the host; copies of one lane happen in the order of their beginnings."""

    @abstractmethod
    def block(self, nbytes: int) -> Tensor:
        """Return host memory, uint8, shape `[nbytes]`."""

    @abstractmethod
    def send(self, buffer: Tensor, block: Tensor) -> Any:
        """Begin to copy a buffer into host memory of the same size; return a ticket."""

    @abstractmethod
    def fetch(self, block: Tensor) -> tuple[Tensor, Any]:
        """Begin to copy host memory into a new buffer on the device; return the buffer and a ticket."""

    @abstractmethod
    def done(self, ticket: Any) -> bool:
        """Whether a copy is over."""

    @abstractmethod
    def arrive(self, ticket: Any) -> None:
        """Let what the caller computes from here on come after a copy, and also what uses the buffer's memory next."""

    @abstractmethod
    def lend(self, buffer: Tensor) -> Tensor:
        """Return a buffer that what the caller computes from here on may use for as long as it holds it."""


@final
class CpuLane(CopyLane):
    """Copies within the host, each over when it returns: the device is the processor itself."""

    def block(self, nbytes: int) -> Tensor:
        """Return host memory."""
        return torch.empty(nbytes, dtype=torch.uint8)

    def send(self, buffer: Tensor, block: Tensor) -> None:
        """Copy a buffer."""
        block.copy_(buffer)

    def fetch(self, block: Tensor) -> tuple[Tensor, None]:
        """Copy a block."""
        return block.clone(), None

    def done(self, ticket: None) -> bool:
        """Return True."""
        return True

    def arrive(self, ticket: None) -> None:
        """Do nothing."""

    def lend(self, buffer: Tensor) -> Tensor:
        """Return the buffer."""
        return buffer


@final
class CudaLane(CopyLane):
    """Copies on a stream beside the computation.

    Buffers belong to the stream that computes: each copy waits for what that stream was given before, and whoever gives
    up a buffer first lets that stream wait for the copy, so that the allocator may use the memory again at once.

    Args:
        device: The device.
        pinned: Whether host memory is page-locked, without which copies and computation do not overlap.
        stream: For the copies; a new one by default.
    """

    def __init__(self, device: torch.device, *, pinned: bool = True, stream: Any = None) -> None:
        self._device, self._pinned = device, pinned
        self._stream = stream if stream is not None else torch.cuda.Stream(device)

    def block(self, nbytes: int) -> Tensor:
        """Return host memory, page-locked if the lane is."""
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=self._pinned)

    def send(self, buffer: Tensor, block: Tensor) -> Any:
        """Begin to copy to the host; return an event and the stream that computes."""
        owner = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(owner)
        with torch.cuda.stream(self._stream):
            block.copy_(buffer, non_blocking=True)
            return self._stream.record_event(), owner

    def fetch(self, block: Tensor) -> tuple[Tensor, Any]:
        """Begin to copy from the host; return the buffer, and an event with the stream that computes."""
        owner = torch.cuda.current_stream(self._device)
        buffer = torch.empty(block.numel(), dtype=torch.uint8, device=self._device)
        self._stream.wait_stream(owner)
        with torch.cuda.stream(self._stream):
            buffer.copy_(block, non_blocking=True)
            return buffer, (self._stream.record_event(), owner)

    def done(self, ticket: Any) -> bool:
        """Whether the event has happened."""
        return ticket[0].query()

    def arrive(self, ticket: Any) -> None:
        """Let the current stream wait for the event, and the stream whose memory it is."""
        event, owner = ticket
        current = torch.cuda.current_stream(self._device)
        current.wait_event(event)
        if owner != current:
            owner.wait_event(event)

    def lend(self, buffer: Tensor) -> Tensor:
        """Tell the allocator that the current stream uses the buffer; free of charge where it is its own."""
        buffer.record_stream(torch.cuda.current_stream(self._device))
        return buffer


@final
@dataclass(frozen=True, slots=True)
class StoreStats:
    """What a store has done so far.

    Args:
        stored_bytes: Bytes of the buffers it holds now.
        pooled_bytes: Bytes of host memory that wait for another buffer.
        sent_bytes: Bytes copied to the host.
        fetched_bytes: Bytes copied back.
        hits: Fetches that found their buffer on the device, or on its way there.
        misses: Fetches whose copy began only then.
        discarded: Buffers brought back that nobody had asked for when their turn was over.
    """

    stored_bytes: int
    pooled_bytes: int
    sent_bytes: int
    fetched_bytes: int
    hits: int
    misses: int
    discarded: int


@final
class Handle:
    """Access to a buffer that was put away; when the last reference goes, so does the copy on the host."""

    __slots__ = ("__weakref__", "_entry", "_store")

    def __init__(self, store: HostStore, entry: _Entry) -> None:
        self._store, self._entry = store, entry

    @property
    def nbytes(self) -> int:
        """Bytes of the buffer."""
        return self._entry.nbytes

    def get(self) -> Tensor:
        """Return the buffer on its device, uint8; any number of times, from any thread. Not to be written to."""
        return self._store.fetch(self._entry)


@final
class HostStore:
    """Puts buffers of one device into the host's memory and brings them back in time for the backward pass.

    Args:
        device: Where buffers come from: a CUDA device, or ``"cpu"``, where the copies stay in the same memory.
        pinned: Whether host memory is page-locked; has no meaning for ``"cpu"``.
        stream: CUDA stream of the copies; a new one by default.
        prefetch_bytes: At most so many bytes are brought back ahead of time, beyond what is needed now.
        in_flight_bytes: At most so many bytes wait on the device for their copy to the host to end; beyond that,
            computation waits for the copies.
        lane: How bytes travel; by default what the device asks for.

    Raises:
        ValueError: If a number of bytes is negative, or there is no lane for the device.

    Example:
        >>> store = HostStore("cpu")
        >>> handle = store.put(torch.arange(100, dtype=torch.uint8))
        >>> int(handle.get()[42]), store.stats().stored_bytes
        (42, 100)
    """

    def __init__(
        self,
        device: torch.device | str,
        *,
        pinned: bool = True,
        stream: Any = None,
        prefetch_bytes: int = 1 << 28,
        in_flight_bytes: int = 1 << 28,
        lane: CopyLane | None = None,
    ) -> None:
        self.device = torch.device(device)
        if self.device.type == "cuda" and self.device.index is None:
            self.device = torch.device("cuda", torch.cuda.current_device())
        if prefetch_bytes < 0 or in_flight_bytes < 0:
            raise ValueError(f"prefetch_bytes={prefetch_bytes}, in_flight_bytes={in_flight_bytes}: give 0 or more")
        if lane is None and self.device.type not in ("cpu", "cuda"):
            raise ValueError(f"device={str(device)!r}: give a CUDA device or 'cpu', or a lane for it")
        if lane is None:
            lane = CpuLane() if self.device.type == "cpu" else CudaLane(self.device, pinned=pinned, stream=stream)
        self._lane, self._prefetch_bytes, self._in_flight_bytes = lane, prefetch_bytes, in_flight_bytes
        self._lock = threading.RLock()
        self._order: dict[int, list[_Entry]] = {}  # by thread, in rising order of sequence numbers
        self._pool: dict[int, list[Tensor]] = {}
        self._leaving: OrderedDict[_Entry, tuple[Tensor, Any]] = OrderedDict()
        self._early: OrderedDict[_Entry, tuple[Tensor, Any]] = OrderedDict()
        self._given_up: deque[_Entry] = deque()  # filled by finalisers, which may run anywhere: they take no lock
        self._count = self._hits = self._misses = self._discarded = 0
        self._stored = self._sent = self._fetched = 0

    def put(self, buffer: Tensor, *, sequence: int | None = None) -> Handle:
        """Put a buffer away.

        Args:
            buffer: Bytes, uint8, 1-D, contiguous, on the store's device.
            sequence: Sequence number of the node that saves it; by default the one that is current on this thread.

        Returns:
            A handle.

        Raises:
            ValueError: If the buffer is not such a tensor.
        """
        line = buffer.ndim == 1 and buffer.is_contiguous()
        if buffer.dtype != torch.uint8 or not line or buffer.device != self.device:
            raise ValueError(
                f"a buffer of {buffer.dtype}, shape {tuple(buffer.shape)}, on {buffer.device}: give contiguous bytes "
                f"(uint8, 1-D) on {self.device}"
            )
        if sequence is None:
            sequence = torch._C._autograd._get_sequence_nr()
        with self._lock, torch.no_grad():
            self._tidy()
            self._count += 1
            entry = _Entry(
                sequence, self._count, threading.get_ident(), buffer.numel(), self._take_block(buffer.numel())
            )
            ticket = self._lane.send(buffer.detach(), entry.bytes)
            self._leaving[entry] = buffer.detach(), ticket
            self._stored += entry.nbytes
            self._sent += entry.nbytes
            bisect.insort(self._order.setdefault(entry.thread, []), entry, key=_place)
            self._bound_leaving()
        handle = Handle(self, entry)
        weakref.finalize(handle, self._given_up.append, entry)
        return handle

    def fetch(self, entry: _Entry) -> Tensor:
        """Return the buffer of an entry, and bring back those that are likely to be next; `Handle.get` calls it."""
        with self._lock, torch.no_grad():
            self._tidy()
            if entry in self._leaving:  # still here: the copy went the other way only
                buffer = self._leaving[entry][0]
                self._hits += 1
            elif entry in self._early:
                buffer, ticket = self._early.pop(entry)
                self._lane.arrive(ticket)
                self._hits += 1
            else:
                buffer, ticket = self._bring(entry)
                self._lane.arrive(ticket)
                self._misses += 1
            self._look_ahead(entry)
            return self._lane.lend(buffer)

    def stats(self) -> StoreStats:
        """Return what the store holds and has done."""
        with self._lock:
            self._tidy()
            pooled = sum(block.numel() for blocks in self._pool.values() for block in blocks)
            return StoreStats(
                self._stored, pooled, self._sent, self._fetched, self._hits, self._misses, self._discarded
            )

    def trim(self) -> None:
        """Give host memory that holds no buffer back to the system."""
        with self._lock:
            self._tidy()
            self._pool.clear()

    def _take_block(self, nbytes: int) -> Tensor:
        # A block may be taken while an earlier copy from it is under way: copies of a lane come one after the other.
        blocks = self._pool.get(_block_size(nbytes))
        return blocks.pop() if blocks else self._lane.block(_block_size(nbytes))

    def _bring(self, entry: _Entry) -> tuple[Tensor, Any]:
        self._fetched += entry.nbytes
        return self._lane.fetch(entry.bytes)

    def _bound_leaving(self) -> None:
        waiting = sum(entry.nbytes for entry in self._leaving)
        while waiting > self._in_flight_bytes:
            entry, (_, ticket) = self._leaving.popitem(last=False)
            self._lane.arrive(ticket)
            waiting -= entry.nbytes

    def _look_ahead(self, entry: _Entry) -> None:
        """Bring back the entries right below one, as many as the budget allows, and give up others of this thread."""
        budget = self._prefetch_bytes - sum(e.nbytes for e in self._early if e.thread != entry.thread)
        order, likely = self._order.get(entry.thread, []), []
        for i in range(bisect.bisect_left(order, _place(entry), key=_place) - 1, -1, -1):
            if order[i] in self._leaving:
                continue
            budget -= order[i].nbytes
            if budget < 0:
                break
            likely.append(order[i])
        for early in [e for e in self._early if e.thread == entry.thread and e not in likely]:
            self._lane.arrive(self._early.pop(early)[1])
            self._discarded += 1
        for next_one in likely:
            if next_one not in self._early:
                self._early[next_one] = self._bring(next_one)

    def _tidy(self) -> None:
        """Forget copies that are over and entries whose handles are gone."""
        while self._leaving and self._lane.done(next(iter(self._leaving.values()))[1]):
            self._leaving.popitem(last=False)
        while self._given_up:
            entry = self._given_up.popleft()
            for waiting in (self._leaving, self._early):
                if entry in waiting:
                    self._lane.arrive(waiting.pop(entry)[1])
            order = self._order[entry.thread]
            del order[bisect.bisect_left(order, _place(entry), key=_place)]
            if not order:
                del self._order[entry.thread]
            self._pool.setdefault(entry.block.numel(), []).append(entry.block)
            self._stored -= entry.nbytes


@final
@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    sequence: int
    number: int
    thread: int
    nbytes: int
    block: Tensor

    @property
    def bytes(self) -> Tensor:
        return self.block[: self.nbytes]


def _place(entry: _Entry) -> tuple[int, int]:
    return entry.sequence, entry.number


def _block_size(nbytes: int) -> int:
    """Bytes rounded up to one of four sizes between powers of two, so that few sizes serve many buffers."""
    if nbytes <= _SMALLEST_BLOCK:
        return _SMALLEST_BLOCK
    step = 1 << max(0, (nbytes - 1).bit_length() - 3)
    return -(-nbytes // step) * step

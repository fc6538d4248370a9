"""Pages on disk: a file without a name, transfers on a thread of their own, and every byte checked.

The file has no name in its folder: the system gives its space back when the process ends, however it ends, a power cut
included, and processes side by side cannot meet. Pages go through the system's page cache, which is given up when
memory is short.
"""

import os
import tempfile
import threading
import weakref
import zlib
from bisect import insort
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any, final

import torch
from torch import Tensor

from poet.stores import Form, PageError, default_page_dir, raw
from poet.units import show_bytes

_IN_FLIGHT = 256  # transfers that may wait for the thread
_PATIENCE = 5.0  # seconds after which a waiting caller looks whether the thread is alive


@final
@dataclass(slots=True, eq=False, weakref_slot=True)
class Page:
    """A copy on disk: what `DiskStore.write` returns.

    Attributes:
        value: The value's index.
        form: How the value lies.
        place: Where the copy begins in the file; -1 until it is written.
        checksum: CRC-32 of its bytes.
        error: What went wrong, once something has.
        pending: One event for each transfer that may still run.
    """

    value: int
    form: Form
    place: int = -1
    checksum: int = 0
    error: Exception | None = None
    pending: list[threading.Event] = field(default_factory=list)


@final
class DiskStore:
    """Copies of values in a file; transfers run on a thread of their own, one after the other.

    A transfer that fails raises `PageError` from the `wait` for it. From then on the store takes nothing until all of
    its copies are dropped, and other waits only wait: whoever clears up is not interrupted again.

    Attributes:
        folder: Where the file lies; it has no name there.

    Args:
        page_dir: An existing folder on the disk that is meant; the folder for temporary files unless given (or
            `/var/tmp` where that lies in memory).
        fsync: Whether to wait until each copy is on the disk, and not only with the system. Nothing outlives the
            process anyway: this is for measurements.

    Raises:
        ValueError: If the folder does not exist.
        PageError: If no file can be made in it.

    Example:
        >>> with DiskStore() as store:
        ...     page = store.write(0, torch.arange(5))
        ...     back = store.read(page)
        ...     store.wait(page)
        ...     store.drop(page)
        >>> back
        tensor([0, 1, 2, 3, 4])
    """

    def __init__(self, page_dir: str | os.PathLike[str] | None = None, *, fsync: bool = False) -> None:
        self.folder = Path(page_dir) if page_dir is not None else default_page_dir()
        if not self.folder.is_dir():
            raise ValueError(f"page_dir must be an existing folder, got {str(self.folder)!r}: make it first")
        self._owner = os.getpid()
        self._worker = _Worker(self.folder, fsync)
        self._held: weakref.WeakSet[Page] = weakref.WeakSet()
        self._failed = False  # a failure has been raised, and not all copies are dropped
        self._closer = weakref.finalize(self, _close, self._worker, self._owner)

    def __enter__(self) -> "DiskStore":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def write(self, value: int, tensor: Tensor) -> Page:
        """Begin to copy the whole storage of a tensor, which must stay as it is until `wait`."""
        page = Page(value, Form.of(tensor))
        self._held.add(page)
        self._do(page, _Write(page, raw(tensor), _issued(tensor)))
        return page

    def read(self, handle: Page) -> Tensor:
        """Allocate a tensor like the one that was written, and begin to fill it."""
        storage = handle.form.empty()
        self._do(handle, _Read(handle, storage, _issued(storage)))
        return handle.form.tensor(storage)

    def wait(self, handle: Page) -> None:
        """Return when all transfers of a copy have ended.

        Raises:
            PageError: If one failed, and no failure has been raised yet.
        """
        while handle.pending:
            self._worker.watch(handle.pending[0])
            handle.pending.pop(0)
        if handle.error is not None and not self._failed:
            self._failed = True
            raise handle.error

    def drop(self, handle: Page) -> None:
        """Give a copy back, after the transfers that were begun."""
        self._held.discard(handle)
        self._failed &= bool(self._held)
        if self._closer.alive:
            self._put(handle, _Drop(handle, empty=not self._held))

    def close(self) -> None:
        """Give everything back; transfers that have not begun fail."""
        self._closer()

    def _do(self, page: Page, job: "_Job") -> None:
        if not self._closer.alive:
            raise PageError("this store is closed: make another one")
        if self._failed:
            raise PageError("a transfer of this store has failed: drop all of its copies first")
        self._put(page, job)

    def _put(self, page: Page, job: "_Job") -> None:
        if os.getpid() != self._owner:
            raise PageError("this store belongs to the process that made it: make another one after a fork")
        page.pending.append(job.done)
        self._worker.put(job)


class _Job:
    """Something for the thread to do; what it refers to is let go before it is said to be done."""

    def __init__(self, page: Page, storage: Tensor | None = None, issued: Any = None) -> None:
        self.page, self.storage, self.issued = page, storage, issued
        self.done = threading.Event()

    def run(self, worker: "_Worker") -> None:
        """Do it."""
        raise NotImplementedError

    def transfer(self, worker: "_Worker") -> None:
        """Run a transfer; what goes wrong is told by `wait`."""
        try:
            if worker.closing:
                raise PageError("the store was closed before the transfer")
            if self.page.error is None:
                self.run(worker)
        except Exception as error:
            self.page.error = worker.explained(error, self.page)
        finally:
            self.storage = self.issued = None
            self.done.set()


@final
class _Write(_Job):
    def run(self, worker: "_Worker") -> None:
        assert self.storage is not None
        view = worker.outgoing(self.storage, self.issued)
        page = self.page
        page.checksum = zlib.crc32(view)
        page.place = worker.space.take(len(view))
        worker.write(view, page.place)


@final
class _Read(_Job):
    def run(self, worker: "_Worker") -> None:
        assert self.storage is not None
        page = self.page
        view = worker.incoming(self.storage)
        worker.read(view, page.place)
        if zlib.crc32(view) != page.checksum:
            raise PageError("its bytes on disk have changed since they were written: the disk or the memory is faulty")
        worker.arrive(self.storage, self.issued)


@final
class _Drop(_Job):
    def __init__(self, page: Page, empty: bool) -> None:
        super().__init__(page)
        self.empty = empty

    def transfer(self, worker: "_Worker") -> None:
        with suppress(OSError):
            self.run(worker)
        self.done.set()

    def run(self, worker: "_Worker") -> None:
        if self.page.place >= 0:
            worker.space.give(self.page.place, self.page.form.nbytes)
        if self.empty:  # what has not reached the disk yet never has to
            worker.clear()


class _Worker:
    """The file and the thread that alone touches it."""

    def __init__(self, folder: Path, fsync: bool) -> None:
        self.folder, self.fsync = folder, fsync
        try:
            self.file = tempfile.TemporaryFile(dir=folder, prefix="poet-pages-", buffering=0)  # noqa: SIM115 - closed by `close`
        except OSError as error:
            raise PageError(error.errno, f"no file for pages can be made in {folder}: {error.strerror}") from None
        self.handle = self.file.fileno()
        self.space = Space()
        self.jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self.room = threading.BoundedSemaphore(_IN_FLIGHT)
        self.thread: threading.Thread | None = None
        self.closing = False
        self.staging: Tensor | None = None
        self.streams: dict[torch.device, Any] = {}

    def put(self, job: _Job) -> None:
        if self.thread is None:
            self.thread = threading.Thread(target=self.loop, name="poet-pages", daemon=True)
            self.thread.start()
        self.room.acquire()
        self.jobs.put(job)

    def loop(self) -> None:
        while True:
            job = self.jobs.get()
            if job is None:
                return
            self.room.release()
            job.transfer(self)
            del job  # it must not keep a tensor alive while the thread waits

    def watch(self, done: threading.Event) -> None:
        while not done.wait(_PATIENCE):
            if self.thread is None or not self.thread.is_alive():
                raise PageError("the thread that moves pages has died; its last words are above")

    def close(self) -> None:
        self.closing = True
        if self.thread is not None:
            self.jobs.put(None)
            self.thread.join()
        self.file.close()
        self.staging = None

    # Files

    def write(self, view: memoryview, place: int) -> None:
        _whole(os.pwritev, self.handle, view, place)
        if self.fsync:
            os.fsync(self.handle)

    def read(self, view: memoryview, place: int) -> None:
        _whole(os.preadv, self.handle, view, place)

    def clear(self) -> None:
        self.space = Space()
        os.ftruncate(self.handle, 0)

    def explained(self, error: Exception, page: Page) -> PageError:
        what = f"a page of {show_bytes(page.form.nbytes)} (value {page.value}) in {self.folder}"
        if isinstance(error, PageError):
            return PageError(f"{what}: {error}")
        if isinstance(error, OSError):
            return PageError(
                error.errno, f"{what}: {error.strerror or error}; make room there or give another page_dir"
            )
        return PageError(f"{what}: {type(error).__name__}: {error}")

    # Devices: the processor's tensors are transferred in place, others through pinned memory

    def outgoing(self, storage: Tensor, issued: Any) -> memoryview:
        if issued is None:
            return storage.numpy().data
        stage = self.stage(storage.numel())
        stream = self.stream(storage.device)
        with torch.cuda.stream(stream):
            stream.wait_event(issued)
            stage.copy_(storage, non_blocking=True)
        stream.synchronize()
        return stage.numpy().data

    def incoming(self, storage: Tensor) -> memoryview:
        on_host = storage if storage.device.type == "cpu" else self.stage(storage.numel())
        return on_host.numpy().data

    def arrive(self, storage: Tensor, issued: Any) -> None:
        if issued is None:
            return
        stream = self.stream(storage.device)
        with torch.cuda.stream(stream):
            stream.wait_event(issued)  # what had the memory before may still be running
            storage.copy_(self.stage(storage.numel()), non_blocking=True)
        stream.synchronize()

    def stage(self, nbytes: int) -> Tensor:
        if self.staging is None or self.staging.numel() < nbytes:
            self.staging = None
            self.staging = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
        return self.staging[:nbytes]

    def stream(self, device: torch.device) -> Any:
        if device not in self.streams:
            self.streams[device] = torch.cuda.Stream(device)
        return self.streams[device]


@final
class Space:
    """Places in a file: the first gap that is wide enough, else its end.

    Example:
        >>> space = Space()
        >>> first, second = space.take(10), space.take(5)
        >>> space.give(first, 10)
        >>> second, space.take(4), space.take(7), space.end
        (10, 0, 15, 22)
    """

    def __init__(self) -> None:
        self.end = 0
        self._gaps: list[tuple[int, int]] = []  # place and length, in order, never adjacent

    def take(self, length: int) -> int:
        """A place for so many bytes."""
        for i, (place, width) in enumerate(self._gaps):
            if width >= length:
                self._gaps[i : i + 1] = [(place + length, width - length)] if width > length else []
                return place
        self.end += length
        return self.end - length

    def give(self, place: int, length: int) -> None:
        """Give a place back."""
        if not length:
            return
        insort(self._gaps, (place, length))
        merged: list[tuple[int, int]] = []
        for start, width in self._gaps:
            if merged and sum(merged[-1]) == start:
                merged[-1] = (merged[-1][0], merged[-1][1] + width)
            else:
                merged.append((start, width))
        if merged and sum(merged[-1]) == self.end:
            self.end = merged.pop()[0]
        self._gaps = merged


def _issued(tensor: Tensor) -> Any:
    """An event after everything that the device has been given so far; None on the processor."""
    return torch.cuda.current_stream(tensor.device).record_event() if tensor.device.type == "cuda" else None


def _whole(transfer: Callable[[int, list[memoryview], int], int], handle: int, view: memoryview, place: int) -> None:
    """Transfer all of it: the system may do less in one call."""
    done = 0
    while done < len(view):
        moved = transfer(handle, [view[done:]], place + done)
        if moved <= 0:
            raise PageError(
                f"the file ends after {done} of {len(view)} bytes: somebody has cut it short, or the disk is faulty"
            )
        done += moved


def _close(worker: _Worker, owner: int) -> None:
    if os.getpid() == owner:
        worker.close()

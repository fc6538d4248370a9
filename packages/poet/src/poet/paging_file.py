"""A file that is written and read around the page cache, so that timing it times the disk."""

import contextlib
import mmap
import os
from pathlib import Path
from typing import Any, final

import numpy as np

ALIGNMENT = 4096
"""Offsets, sizes and addresses of direct transfers are multiples of this."""


@final
class PagingFile:
    """A file with one page-aligned buffer.

    Attributes:
        method: How the page cache is avoided: `"O_DIRECT"`, `"dropped from the page cache before each read"`, or
            `"read through the page cache"` where the system offers neither.
        block: Bytes of a block of the file system.

    Args:
        path: The file; made here, removed by nobody.
        size: Bytes of the buffer, a multiple of 4096.

    Raises:
        OSError: If the file cannot be made or written.
    """

    def __init__(self, path: Path, size: int) -> None:
        if size < ALIGNMENT or size % ALIGNMENT:
            raise ValueError(f"size must be a positive multiple of {ALIGNMENT}, got {size}")
        buffer = mmap.mmap(-1, size)
        buffer[:] = np.random.default_rng(0).bytes(size)  # what does not compress
        self._view = memoryview(buffer)
        self._handle, self.method = _open(path, self._view[:ALIGNMENT])
        self.block = int(getattr(os.fstatvfs(self._handle), "f_frsize", 1)) if hasattr(os, "fstatvfs") else 1

    def __enter__(self) -> "PagingFile":
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._handle)  # the buffer goes with the object: an error on its way may still refer to it

    def write(self, size: int) -> None:
        """Write the first `size` bytes of the buffer, and wait until they are on the disk."""
        _whole(os.pwritev, self._handle, self._view[:size])
        os.fsync(self._handle)

    def read(self, size: int) -> None:
        """Read the first `size` bytes of the file into the buffer."""
        if self.method != "O_DIRECT" and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._handle, 0, 0, os.POSIX_FADV_DONTNEED)
        _whole(os.preadv, self._handle, self._view[:size])


def _open(path: Path, probe: memoryview) -> tuple[int, str]:
    """A handle, past the page cache if the file system can do that; some accept the flag and refuse the transfer."""
    flags = os.O_RDWR | os.O_CREAT
    direct = getattr(os, "O_DIRECT", 0)
    if direct:
        with contextlib.suppress(OSError):
            handle = os.open(path, flags | direct, 0o600)
            try:
                _whole(os.pwritev, handle, probe)
            except OSError:
                os.close(handle)
            else:
                return handle, "O_DIRECT"
    handle = os.open(path, flags, 0o600)
    if hasattr(os, "posix_fadvise"):
        return handle, "dropped from the page cache before each read"
    return handle, "read through the page cache"


def _whole(transfer: Any, handle: int, view: memoryview) -> None:
    """Transfer all of it: the system may do less in one call."""
    done = 0
    while done < len(view):
        moved = transfer(handle, [view[done:]], done)
        if moved <= 0:
            raise OSError(f"a file ended after {done} of {len(view)} bytes")
        done += moved

"""Links of given rates without any privilege: senders wait until their bytes would have got through."""

import fcntl
import mmap
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, final

from xmesh_reshard.topology import Topology
from xmesh_reshard.transports.channels import Pending


@final
class Ports:
    """When the port out of and the port into each host are free next, shared by the processes of one machine.

    The times lie in a file of zeros that all processes open; its lock falls when its holder dies. A chunk of S bytes
    from a to b takes the port out of a for S / up(a) as soon as it is free, and the port into b for S / down(b) as soon
    as that is free and the first has begun. A port that was free for no more than ``slack`` counts as busy without a
    pause, so that what processes need to wake up is not lost again with each chunk.

    Args:
        path: The file: 16 bytes for each host.
        topology: The hosts and their rates.
        clock: Seconds, the same in all processes.
        slack: Seconds.

    Example:
        >>> import tempfile
        >>> topology = Topology.uniform(3, 1, nic=100)
        >>> with tempfile.NamedTemporaryFile() as file, Ports.make(file.name, topology, lambda: 0.0) as ports:
        ...     [ports.reserve(0, 1, 100), ports.reserve(0, 2, 100), ports.reserve(2, 1, 50)]
        [1.0, 2.0, 1.5]
    """

    def __init__(
        self,
        path: str | Path,
        topology: Topology,
        clock: Callable[[], float] = time.monotonic,
        slack: float = 3e-3,
    ) -> None:
        self._topology, self._clock, self._slack = topology, clock, slack
        self._file = Path(path).open("r+b")  # noqa: SIM115 (held as long as the object)
        self._times = mmap.mmap(self._file.fileno(), 16 * len(topology.hosts))

    @classmethod
    def make(
        cls,
        path: str | Path,
        topology: Topology,
        clock: Callable[[], float] = time.monotonic,
        slack: float = 3e-3,
    ) -> "Ports":
        """Write the file and open it."""
        Path(path).write_bytes(bytes(16 * len(topology.hosts)))
        return cls(path, topology, clock, slack)

    def reserve(self, source: int, target: int, nbytes: int) -> float:
        """Take both ports for a chunk between two hosts; when its last byte is through, by the clock."""
        up, down = self._topology.hosts[source].up, self._topology.hosts[target].down
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            earliest = self._clock() - self._slack
            begin_up = max(earliest, self._read(2 * source))
            begin_down = max(begin_up, self._read(2 * target + 1))
            self._write(2 * source, begin_up + nbytes / up)
            self._write(2 * target + 1, begin_down + nbytes / down)
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)
        return max(begin_up + nbytes / up, begin_down + nbytes / down)

    def close(self) -> None:
        """Let the file go."""
        self._times.close()
        self._file.close()

    def __enter__(self) -> "Ports":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, k: int) -> float:
        return struct.unpack_from("<d", self._times, 8 * k)[0]

    def _write(self, k: int, value: float) -> None:
        struct.pack_into("<d", self._times, 8 * k, value)


@final
class BucketChannel:
    """A channel whose sends to other hosts wait for the ports, and for α once; sends inside a host pass.

    Args:
        channel: What really carries the bytes.
        device: The device that sends.
        ports: Of the hosts.
        topology: Where the devices are.
    """

    def __init__(self, channel: Any, device: int, ports: Ports, topology: Topology) -> None:
        self._channel, self._ports, self._topology = channel, ports, topology
        self._host = topology.host_of[device]

    def isend(self, target: int, buffer: Any, tag: int) -> Pending:
        """Wait for the ports, then send."""
        self._wait([(target, buffer)])
        return self._channel.isend(target, buffer, tag)

    def irecv(self, source: int, buffer: Any, tag: int) -> Pending:
        """Receive."""
        return self._channel.irecv(source, buffer, tag)

    def exchange(self, sends: Sequence[tuple[int, Any]], receives: Sequence[tuple[int, Any]]) -> Pending:
        """Wait for the ports of all sends, then start all."""
        self._wait(sends)
        return self._channel.exchange(sends, receives)

    def _wait(self, sends: Sequence[tuple[int, Any]]) -> None:
        hosts = [(self._topology.host_of[target], len(buffer)) for target, buffer in sends]
        ends = [self._ports.reserve(self._host, h, n) + self._topology.alpha for h, n in hosts if h != self._host]
        if ends and (left := max(ends) - time.monotonic()) > 0:
            time.sleep(left)

"""Hosts on one machine with links of given rates: network namespaces, joined by a bridge, slowed by token buckets."""

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import final

from xmesh_reshard.topology import Topology
from xmesh_reshard.transports.errors import TransportError

INTERFACE = "eth0"
# The kernel counts whole frames: of 1514 bytes, 1448 are payload (Ethernet 14, IP 20, TCP with time stamps 32).
FRAME = 1514 / 1448
_NEW_NET, _NEW_MOUNTS, _BIND, _PRIVATE = 0x40000000, 0x00020000, 0x1000, 0x4000 | 0x40000
_CAPABILITIES = {12: "CAP_NET_ADMIN", 21: "CAP_SYS_ADMIN"}


def why_no_namespaces() -> str | None:
    """Why this process cannot make shaped network namespaces, or None where it can."""
    if sys.platform != "linux":
        return f"network namespaces are a feature of Linux; this is {sys.platform}"
    if missing := [tool for tool in ("ip", "tc") if shutil.which(tool) is None]:
        return f"the program {missing[0]!r} is missing (package iproute2)"
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    held = int(next(line for line in status.splitlines() if line.startswith("CapEff")).split()[1], 16)
    if lacking := [name for bit, name in _CAPABILITIES.items() if not held >> bit & 1]:
        return f"this process lacks {' and '.join(lacking)} (run it as root)"
    return None


@final
class Namespaces:
    """A network namespace for each host of a topology, with its rates out and in, as a context.

    The rates are those of the payload. Cards of a host are one link of their rates together. The namespaces have no
    names: they live as long as a process or descriptor holds them, so nothing is left behind, not even by a process
    that is killed. Racks and the core are not limited.

    Args:
        topology: The hosts and their rates.
        burst: Seconds of its rate that a link may send at once.
        queue: Seconds of its rate that wait at a link before packets are dropped.
        buffer: Seconds of its rate that a connection takes from a sender ahead of the link. The system's own buffers of
            megabytes would swallow whole messages of a scaled-down experiment, and sends would end that have not begun.
    """

    def __init__(self, topology: Topology, *, burst: float = 1e-3, queue: float = 0.1, buffer: float = 5e-3) -> None:
        if (reason := why_no_namespaces()) is not None:
            raise TransportError(f"cannot make network namespaces: {reason}; use links='bucket'")
        self._topology, self._burst, self._queue, self._buffer = topology, burst, queue, buffer
        self._held: list[int] = []
        self._hosts: list[int] = []

    def __enter__(self) -> "Namespaces":
        outside = self._hold()
        try:
            switch = self._fresh()
            _run("ip link add name switch type bridge")
            _run("ip link set switch up")
            for h, host in enumerate(self._topology.hosts):
                inside = self._fresh()
                self._hosts.append(inside)
                _call("setns", switch, _NEW_NET)
                _run(f"ip link add v{h} type veth peer name {INTERFACE}")
                _run(f"ip link set {INTERFACE} netns /proc/{os.getpid()}/fd/{inside}")
                _run(f"ip link set v{h} master switch up")
                self._slow(f"v{h}", host.down)
                _call("setns", inside, _NEW_NET)
                _run(f"ip addr add {self.address(h)}/16 dev {INTERFACE}")
                _run(f"ip link set {INTERFACE} up")
                self._slow(INTERFACE, host.up)
                self._shorten(max(host.up, host.down))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        finally:
            _call("setns", outside, _NEW_NET)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for held in self._held:
            os.close(held)
        self._held, self._hosts = [], []

    def address(self, host: int) -> str:
        """IP address of a host."""
        return f"10.77.{host // 250}.{host % 250 + 1}"

    def enter(self, host: int) -> None:
        """Move the calling process (of one thread) into a host for good.

        Names are looked up nowhere from then on: gloo asks for the names of addresses, and would wait for a server that
        cannot be reached from there.
        """
        _call("setns", self._hosts[host], _NEW_NET)
        _call("unshare", _NEW_MOUNTS)
        _call("mount", b"none", b"/", None, _PRIVATE, None)
        with tempfile.NamedTemporaryFile("w", suffix=".conf", delete=False) as nowhere:
            nowhere.write("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
        _call("mount", nowhere.name.encode(), b"/etc/resolv.conf", None, _BIND, None)
        Path(nowhere.name).unlink()

    def _fresh(self) -> int:
        _call("unshare", _NEW_NET)
        _run("ip link set lo up")
        return self._hold()

    def _hold(self) -> int:
        self._held.append(os.open("/proc/self/ns/net", os.O_RDONLY))
        return self._held[-1]

    def _shorten(self, rate: float) -> None:
        """Bound the buffers of connections in the namespace that this process is in."""
        most = max(2**16, int(rate * self._buffer))
        for side in ("tcp_wmem", "tcp_rmem"):
            Path("/proc/sys/net/ipv4", side).write_text(f"4096 {min(most, 2**17)} {most}\n")

    def _slow(self, link: str, rate: float) -> None:
        """A token bucket for what leaves an interface."""
        frames = rate * FRAME
        burst, queue = max(2**17, int(frames * self._burst)), max(2**18, int(frames * self._queue))
        _run(f"tc qdisc add dev {link} root tbf rate {int(8 * frames)}bit burst {burst} limit {queue}")


def _run(command: str) -> None:
    done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise TransportError(f"{command!r} failed: {done.stderr.strip()}")


def _call(name: str, *arguments: object) -> None:
    """A call of the C library (os.setns and os.unshare came with Python 3.12)."""
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*arguments):
        number = ctypes.get_errno()
        raise TransportError(f"{name} failed: {os.strerror(number)}; use links='bucket'")

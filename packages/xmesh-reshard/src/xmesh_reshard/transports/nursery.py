"""The process that ranks are born from: it imports torch once and forks, as often as it is asked."""

import contextlib
import ctypes
import importlib
import importlib.util
import os
import pickle
import select
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any, final

from xmesh_reshard.topology import Topology
from xmesh_reshard.transports.buckets import BucketChannel, Ports
from xmesh_reshard.transports.shaping import INTERFACE, Namespaces

LINGER = 2.0  # seconds a failed rank stays: it may hold the store in which the others read why


@final
@dataclass(frozen=True)
class Rank:
    """What a function that runs on a rank is told; torch.distributed is initialised (gloo) when it is called.

    Attributes:
        rank: Its number.
        world: Number of ranks.
        device: The device that it stands for.
        host: Number of the host the device is on.
        topology: All hosts.
        wrap: Slows a channel down to the rates of the topology (links="bucket"); None where the network does.
    """

    rank: int
    world: int
    device: int
    host: int
    topology: Topology
    wrap: Callable[[Any], Any] | None = None


@final
@dataclass(frozen=True)
class Order:
    """What the nursery is asked to do.

    Attributes:
        module: Where the function is.
        file: The module's file, for modules that cannot be imported by name.
        function: Its name.
        each: The pickled arguments of each rank.
        devices: The device of each rank.
        topology: The hosts.
        links: None, "netns" or "bucket".
        timeout: Seconds until all ranks are ended.
        path: Where modules are looked for.
    """

    module: str
    file: str | None
    function: str
    each: tuple[bytes, ...]
    devices: tuple[int, ...]
    topology: Topology
    links: str | None
    timeout: float
    path: tuple[str, ...]


@final
@dataclass(frozen=True)
class RankResult:
    """How a rank ended.

    Attributes:
        rank: Its number.
        value: What the function returned.
        error: What it raised, or what else ended it, None if nothing.
        trace: The traceback as text.
        when: Time of the end, by the machine's monotonic clock.
    """

    rank: int
    value: Any = None
    error: BaseException | None = None
    trace: str = ""
    when: float = field(default_factory=time.monotonic)


class RankDied(RuntimeError):  # noqa: N818 (an event rather than an error of the rank)
    """A rank's process ended without a word, by a signal or by leaving Python."""


def write_frame(file: int, data: bytes) -> None:
    """Send bytes through a pipe, their number first."""
    data = struct.pack("<Q", len(data)) + data
    while data:
        data = data[os.write(file, data) :] if len(data) < 2**20 else _write_some(file, data)


def _write_some(file: int, data: bytes) -> bytes:
    view, done = memoryview(data), 0
    while done < len(data):
        done += os.write(file, view[done : done + 2**20])
    return b""


def read_frame(file: int) -> bytes | None:
    """Receive bytes; None at the end of the pipe."""
    head = _read(file, 8)
    return None if head is None else _read(file, struct.unpack("<Q", head)[0])


def _read(file: int, count: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < count:
        got = os.read(file, min(count - len(parts), 2**20))
        if not got:
            return None
        parts += got
    return bytes(parts)


def main() -> None:
    """Serve orders from standard input until it ends."""
    replies = os.dup(1)
    os.dup2(2, 1)  # what ranks print must not mix with the replies
    # What ranks use is imported once for all of them.
    for name in ("torch.distributed", "numpy.ma", "scipy.optimize", "xmesh_reshard.transports.torch_transport"):
        importlib.import_module(name)
    while (frame := read_frame(0)) is not None:
        results = _launch(pickle.loads(frame))
        write_frame(replies, pickle.dumps(results))


def _launch(order: Order) -> list[RankResult]:
    try:
        with tempfile.TemporaryDirectory(prefix="xmesh-") as folder, contextlib.ExitStack() as stack:
            spaces = stack.enter_context(Namespaces(order.topology)) if order.links == "netns" else None
            if order.links == "bucket":
                Ports.make(Path(folder) / "ports", order.topology).close()
            return _watch([_fork(order, r, Path(folder), spaces) for r in range(len(order.each))], order.timeout)
    except Exception as error:
        return [RankResult(-1, None, error, traceback.format_exc())]


def _fork(order: Order, rank: int, folder: Path, spaces: Namespaces | None) -> tuple[int, int, int]:
    """A rank: its process, the pipe its result comes from, and the pipe whose end lets it go."""
    out, into = os.pipe()
    held, release = os.pipe()
    sys.stdout.flush()
    if (process := os.fork()) != 0:
        os.close(into)
        os.close(held)
        return process, out, release
    try:
        os.close(out)
        os.close(release)
        ctypes.CDLL(None).prctl(1, signal.SIGKILL) if sys.platform == "linux" else None  # dies with the nursery
        result = _work(order, rank, folder, spaces)
        try:
            data = pickle.dumps(result)
        except Exception as error:
            reason = TypeError(f"rank {rank} returned what cannot be pickled: {error}")
            told = reason if result.error is None else RankDied(repr(result.error))
            data = pickle.dumps(RankResult(rank, None, told, result.trace))
        write_frame(into, data)
        os.close(into)
        select.select([held], [], [], LINGER if result.error else None)
    finally:
        os._exit(0)
    raise AssertionError("a rank has left already")


def _work(order: Order, rank: int, folder: Path, spaces: Namespaces | None) -> RankResult:
    device, host = order.devices[rank], order.topology.host_of[order.devices[rank]]
    try:
        sys.path[:] = order.path
        if spaces is not None:
            spaces.enter(host)
            os.environ["GLOO_SOCKET_IFNAME"] = INTERFACE
        address = "127.0.0.1" if spaces is None else spaces.address(order.topology.host_of[order.devices[0]])
        _join(rank, len(order.each), address, folder / "port", order.timeout)
        wrap = _wrap(folder / "ports", device, order.topology) if order.links == "bucket" else None
        function = _find(order)
        arguments = pickle.loads(order.each[rank])
        me = Rank(rank, len(order.each), device, host, order.topology, wrap)
        return RankResult(rank, function(me, *arguments))
    except BaseException as error:
        return RankResult(rank, None, error, traceback.format_exc())


def _join(rank: int, world: int, address: str, file: Path, timeout: float) -> None:
    """Initialise torch.distributed; rank 0 holds the store and writes its port to a file."""
    import torch.distributed as dist

    limit = timedelta(seconds=timeout)
    if rank == 0:
        store = dist.TCPStore(address, 0, world, is_master=True, timeout=limit, wait_for_workers=False)
        half = file.with_suffix(".half")
        half.write_text(str(store.port), encoding="ascii")
        half.rename(file)
    else:
        until = time.monotonic() + timeout
        while not file.exists():
            if time.monotonic() > until:
                raise TimeoutError("rank 0 did not open the store")
            time.sleep(0.002)
        store = dist.TCPStore(address, int(file.read_text(encoding="ascii")), world, is_master=False, timeout=limit)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=limit)


def _wrap(path: Path, device: int, topology: Topology) -> Callable[[Any], Any]:
    ports = Ports(path, topology)
    return lambda channel: BucketChannel(channel, device, ports, topology)


def _find(order: Order) -> Callable[..., Any]:
    """The function to run; a script's or test's module is loaded from its file."""
    module = None
    if order.module != "__main__":
        with contextlib.suppress(ImportError):
            module = importlib.import_module(order.module)
    if module is None:
        module = _load(order)
    found: Any = module
    for name in order.function.split("."):
        found = getattr(found, name)
    return found


def _load(order: Order) -> ModuleType:
    if order.file is None:
        raise ImportError(f"cannot import {order.module!r}, in which the function is: put it into a file")
    spec = importlib.util.spec_from_file_location(
        "__mp_main__" if order.module == "__main__" else order.module, order.file
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {order.file}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[order.module] = sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _watch(ranks: list[tuple[int, int, int]], timeout: float) -> list[RankResult]:
    """Collect the ranks' results; end all of them after the timeout, or soon after one has failed."""
    results: dict[int, RankResult] = {}
    numbers = {out: rank for rank, (_, out, _) in enumerate(ranks)}
    until = time.monotonic() + timeout
    try:
        while len(results) < len(ranks):
            ready, _, _ = select.select([0, *numbers], [], [], max(until - time.monotonic(), 0))
            if 0 in ready:  # nothing is sent meanwhile, so this is the end: the parent has gone
                os._exit(1)
            if not ready:
                break
            for out in ready:
                rank = numbers.pop(out)
                results[rank] = _collect(rank, out)
                if results[rank].error is not None:
                    until = min(until, time.monotonic() + timeout / 4 + LINGER)
    finally:
        for process, out, release in ranks:
            os.close(release)
            if out in numbers:
                os.kill(process, signal.SIGKILL)
            os.close(out)
    return [_buried(rank, process, results.get(rank), timeout) for rank, (process, _, _) in enumerate(ranks)]


def _collect(rank: int, out: int) -> RankResult:
    frame = read_frame(out)
    try:
        return RankResult(rank, None, RankDied(f"rank {rank} died")) if frame is None else pickle.loads(frame)
    except Exception as error:
        return RankResult(rank, None, RankDied(f"the result of rank {rank} cannot be read: {error!r}"))


def _buried(rank: int, process: int, result: RankResult | None, timeout: float) -> RankResult:
    """The result, after the process has ended."""
    _, status = os.waitpid(process, 0)
    if result is None:
        return RankResult(
            rank, None, TimeoutError(f"rank {rank} had not finished after {timeout:g} s, or long after another failed")
        )
    if isinstance(result.error, RankDied) and os.WIFSIGNALED(status):
        return RankResult(rank, None, RankDied(f"rank {rank} was ended by signal {os.WTERMSIG(status)}"))
    return result

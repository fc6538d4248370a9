"""Every device a thread, with links that block in order: the strictest network a plan can meet."""

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import numpy as np

from xmesh_reshard.plans import Plan
from xmesh_reshard.transports.channels import Done, Pending
from xmesh_reshard.transports.errors import DeadlockError, PeerLostError, TransportError
from xmesh_reshard.transports.executor import Report, execute, program_of
from xmesh_reshard.transports.packing import NumpyPacker


def execute_threads(
    plan: Plan,
    parts: Mapping[int, Mapping[str, np.ndarray]],
    *,
    capacity: int = 0,
    checksum: bool = False,
) -> tuple[dict[int, dict[str, np.ndarray]], list[Report]]:
    """Execute a plan with one thread a device over blocking links.

    A send returns when the receiver takes the bytes (``capacity=0``), or while at most ``capacity`` sends of the link
    are not yet taken. A deadlock is noticed at once, as all threads wait and none can go on, and reported.

    Args:
        plan: What to do.
        parts: For each device its part of each tensor, by the source layouts.
        capacity: Sends that a link holds.
        checksum: Compare checksums.

    Returns:
        For each device its new parts, and the devices' reports in ascending order of devices.

    Raises:
        PartError: A part is missing or does not fit; nothing has been sent.
        DeadlockError: Devices wait for each other; names them.
        CorruptedError: A chunk arrived changed.
    """
    packers = {device: NumpyPacker(plan.tensors, device, parts.get(device, {})) for device in plan.devices}
    fabric = Fabric(plan.devices, capacity)

    def work(device: int) -> tuple[dict[str, Any], Report]:
        return execute(program_of(plan, device), packers[device], fabric.channel(device), checksum=checksum, window=1)

    done = run_devices(fabric, plan.devices, work)
    return {device: done[device][0] for device in plan.devices}, [done[device][1] for device in plan.devices]


def run_devices(fabric: "Fabric", devices: tuple[int, ...], work: Callable[[int], Any]) -> dict[int, Any]:
    """Call ``work(device)`` in a thread for each device; the first error stops all and is raised."""
    results: dict[int, Any] = {}

    def body(device: int) -> None:
        try:
            results[device] = work(device)
        except BaseException as error:
            fabric.fail(device, error)
        finally:
            fabric.leave(device)

    threads = [threading.Thread(target=body, args=(d,), name=f"device {d}", daemon=True) for d in devices]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException as error:  # Ctrl-C leaves no thread behind
        fabric.fail(-1, error)
        raise
    if fabric.error is not None:
        raise fabric.error
    return results


@final
class Fabric:
    """Links between all pairs of devices under one lock, which knows who waits for what.

    Attributes:
        error: What stopped the execution first.
    """

    def __init__(self, devices: tuple[int, ...], capacity: int = 0) -> None:
        if capacity < 0:
            raise ValueError(f"the capacity of a link is from 0 up; got {capacity}")
        self.capacity = capacity
        self.error: BaseException | None = None
        self._changed = threading.Condition()
        self._alive = set(devices)
        self._links: dict[tuple[int, int], deque[Any]] = {}
        self._taken: dict[tuple[int, int], int] = {}
        self._waiting: dict[int, tuple[str, Callable[[], bool]]] = {}

    def channel(self, device: int) -> "FabricChannel":
        """The links of one device."""
        return FabricChannel(self, device)

    def post(self, source: int, target: int, data: Any) -> int:
        """Hand bytes to a link; their number on it."""
        key = (source, target)
        with self._changed:
            link = self._links.setdefault(key, deque())
            link.append(data if self.capacity == 0 else data.copy())
            self._changed.notify_all()
            return self._taken.get(key, 0) + len(link)

    def settle(self, source: int, target: int, number: int) -> None:
        """Block until the link has room again after what was handed to it."""
        key, room = (source, target), max(number - self.capacity, 0)
        with self._changed:
            self._block(source, f"{target} to receive", lambda: self._taken.get(key, 0) >= room)

    def receive(self, source: int, target: int, data: Any) -> None:
        """Take the next bytes of a link; blocks until there are some."""
        key = (source, target)
        with self._changed:
            self._block(target, f"{source} to send", lambda: bool(self._links.get(key)))
            sent = self._links[key].popleft()
            if len(sent) != len(data):
                raise TransportError(f"device {source} sent {len(sent)} bytes where {target} expects {len(data)}")
            data[:] = sent
            self._taken[key] = self._taken.get(key, 0) + 1
            self._changed.notify_all()

    def fail(self, device: int, error: BaseException) -> None:
        """Stop all: devices that wait get an error."""
        with self._changed:
            if self.error is None:
                self.error = error
            self._changed.notify_all()

    def leave(self, device: int) -> None:
        """A device is done."""
        with self._changed:
            self._alive.discard(device)
            self._look()
            self._changed.notify_all()

    def _block(self, device: int, what: str, ready: Callable[[], bool]) -> None:
        while not ready():
            self._waiting[device] = (what, ready)
            self._look()
            if self.error is not None:
                raise PeerLostError(f"device {device} stopped waiting for device {what}: {self.error}") from self.error
            self._changed.wait()
        self._waiting.pop(device, None)
        if self.error is not None:
            raise PeerLostError(f"device {device} stopped: {self.error}") from self.error

    def _look(self) -> None:
        """Find out whether every device that is not done waits in vain."""
        stuck = self._alive and self._alive <= self._waiting.keys()
        if self.error is None and stuck and not any(self._waiting[d][1]() for d in self._alive):
            waits = "; ".join(f"device {d} waits for device {self._waiting[d][0]}" for d in sorted(self._alive))
            self.error = DeadlockError(f"no device can go on: {waits}")
            self._changed.notify_all()


@final
class FabricChannel:
    """One device's links in a :class:`Fabric`; receives happen when they are waited for."""

    def __init__(self, fabric: Fabric, device: int) -> None:
        self._fabric = fabric
        self._device = device

    def isend(self, target: int, buffer: Any, tag: int) -> Pending:
        """Send, blocking."""
        self._fabric.settle(self._device, target, self._fabric.post(self._device, target, buffer))
        return Done()

    def irecv(self, source: int, buffer: Any, tag: int) -> Pending:
        """Receive once it is waited for."""
        return _Later(lambda: self._fabric.receive(source, self._device, buffer))

    def exchange(self, sends: Sequence[tuple[int, Any]], receives: Sequence[tuple[int, Any]]) -> Pending:
        """Several sends and receives that wait for each other only together."""
        fabric, device = self._fabric, self._device
        posted = [(target, fabric.post(device, target, buffer)) for target, buffer in sends]

        def complete() -> None:
            for source, buffer in receives:
                fabric.receive(source, device, buffer)
            for target, number in posted:
                fabric.settle(device, target, number)

        return _Later(complete)


@final
class _Later:
    """What takes place when it is waited for."""

    def __init__(self, action: Callable[[], None]) -> None:
        self._action = action

    def wait(self) -> None:
        self._action()

"""How messages get from device to device while a schedule runs: what a channel is, and one within this process."""

import threading
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, Protocol, final, runtime_checkable

from xmesh_reshard.pipeline.costs import Costs
from xmesh_reshard.pipeline.instructions import Message
from xmesh_reshard.pipeline.timeline import Transfer


class StoppedError(RuntimeError):
    """A device was stopped because another one failed or the run was interrupted."""


@runtime_checkable
class Channel(Protocol):
    """What `run_device` needs of a transport; one value may serve one device or several."""

    def send(self, message: Message, payload: Any) -> None:
        """Hand over a payload; return without waiting for its receiver."""
        ...

    def receive(self, message: Message) -> Any:
        """Wait for a payload and return it; raise if it can no longer come."""
        ...


@final
class LocalChannel:
    """Messages between the threads of a process, with links as slow as asked for.

    A link from one device to another carries one message at a time, in the order of sending, as in the simulator.

    Args:
        placement: The device of each stage.
        costs: Seconds that are added to each transfer between devices.
        overlap: Whether `send` returns at once; else it waits for those seconds.
        clock: Seconds of a clock that only goes forward.
    """

    def __init__(
        self,
        placement: Sequence[int],
        costs: Costs,
        *,
        overlap: bool = True,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._placement, self._costs, self._overlap, self._clock = placement, costs, overlap, clock
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self._mail: dict[Message, tuple[float, Any]] = {}
        self._free: dict[tuple[int, int], float] = {}
        self._log: list[Transfer] = []

    @property
    def transfers(self) -> tuple[Transfer, ...]:
        """The messages between devices so far, by the clock."""
        with self._changed:
            return tuple(self._log)

    def send(self, message: Message, payload: Any) -> None:
        """Put a message on its link.

        Raises:
            StoppedError: If the channel is stopped meanwhile.
        """
        source, target = self._placement[message.source], self._placement[message.target]
        now = self._clock()
        start = arrival = now
        if source != target:
            seconds = self._costs.transfers.get((message.source, message.target), 0.0)
            start = max(now, self._free.get((source, target), now))  # only this device's thread uses its links
            arrival = start + seconds
            self._free[source, target] = arrival
        if not self._overlap:
            self._wait_until(arrival)
        with self._changed:
            self._mail[message] = (arrival, payload)
            if source != target:
                self._log.append(Transfer(message, source, target, now, start, arrival, not self._overlap))
            self._changed.notify_all()

    def receive(self, message: Message) -> Any:
        """Wait until a message has arrived; the channel keeps no reference to it.

        Raises:
            StoppedError: If the channel is stopped meanwhile.
        """
        with self._changed:
            while message not in self._mail and not self._stopped.is_set():
                self._changed.wait()
            if self._stopped.is_set():
                raise StoppedError(f"stopped while waiting for {message}")
            arrival, payload = self._mail.pop(message)
        self._wait_until(arrival)
        return payload

    def stop(self) -> None:
        """Make everyone who waits, or will wait, raise `StoppedError`; drop what has not been received."""
        self._stopped.set()
        with self._changed:
            self._mail.clear()
            self._changed.notify_all()

    def _wait_until(self, time: float) -> None:
        left = time - self._clock()
        if left > 0:
            self._stopped.wait(left)
        if self._stopped.is_set():
            raise StoppedError("stopped while a message was under way")

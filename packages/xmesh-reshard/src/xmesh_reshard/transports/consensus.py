"""All processes begin the same plan together, and all learn how it ended."""

import time
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import Any, Protocol, final, runtime_checkable

from xmesh_reshard.transports.errors import PeerLostError, PlanMismatchError

_OK = "ok"


@runtime_checkable
class KeyValueStore(Protocol):
    """What all processes see, as ``torch.distributed.Store`` offers it."""

    def add(self, key: str, amount: int) -> int:
        """Add to a counter."""
        ...

    def get(self, key: str) -> bytes:
        """The value of a key that is there."""
        ...

    def set(self, key: str, value: str) -> None:
        """Set a key."""
        ...

    def check(self, keys: list[str]) -> bool:
        """Whether all keys are there."""
        ...

    def compare_set(self, key: str, expected: str, desired: str) -> bytes:
        """Set a key that is not there yet; the value it has then."""
        ...

    def wait(self, keys: list[str], timeout: timedelta) -> None:
        """Block until the keys are there; an exception after the timeout."""
        ...

    def delete_key(self, key: str) -> bool:
        """Remove a key."""
        ...


@final
class Ballot:
    """One execution, as a context: ``agree`` before the first byte, and a common verdict when it is left.

    Every process enters with the same number. One that fails, at any point, writes its reason; the others find it when
    they wait for the beginning or the end, so each of them either completes with all or raises. A process that dies
    without a word is missed after the timeout, counted from the last sign of progress of any process.

    Args:
        store: Shared by the processes.
        rank: This process.
        world: Number of processes.
        number: Of this execution, counted alike in all processes.
        timeout: Seconds without any progress after which the missing processes are given up.
        abort: Called when this process fails after the beginning, to make those that wait for its bytes fail as well.

    Attributes:
        begun: Whether all processes have begun; before, a failure leaves the connections as they are.
    """

    def __init__(
        self, store: KeyValueStore, rank: int, world: int, number: int, timeout: float, abort: Callable[[], None]
    ) -> None:
        self._store, self._rank, self._world, self._number = store, rank, world, number
        self._timeout, self._abort = timeout, abort
        self._told = time.monotonic()
        self.begun = False

    def __enter__(self) -> "Ballot":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._leave()
            return
        reason = f"{type(error).__name__}: {error}"
        first = self._fail(reason)
        if self.begun:
            self._abort()
        told = first is not None and first != self._verdict(reason)
        if told and isinstance(error, Exception) and not isinstance(error, PlanMismatchError):
            raise self._stopped(first) from error

    def agree(self, fingerprint: str) -> None:
        """Wait until all processes are ready with the same plan.

        Raises:
            PlanMismatchError: A process has another plan; raised in every process.
            PeerLostError: A process failed before it was ready, or did not come within the timeout.
        """
        first = self._do(lambda: self._store.compare_set(self._key("plan"), "", fingerprint)).decode()
        if first != fingerprint:
            message = f"rank {self._rank} has the plan {fingerprint[:12]}, the first rank to come has {first[:12]}"
            self._fail(f"PlanMismatchError: {message}")
            raise PlanMismatchError(_mismatch(message))
        self._ready("come")
        if self._count("come") == self._world:
            self._do(lambda: self._store.compare_set(self._key("begin"), "", _OK))
        self._await("begin", "come")
        self.begun = True
        if self._rank == 0 and self._number > 0:  # all have begun this one, so all have left the last one
            for name in self._names(self._number - 1):
                self._do(lambda name=name: self._store.delete_key(name))

    def tick(self) -> None:
        """Tell the others, now and then, that this process goes on."""
        if time.monotonic() - self._told > self._timeout / 4:
            self._told = time.monotonic()
            self._do(lambda: self._store.add(self._key("ticks"), 1))

    def _leave(self) -> None:
        self._ready("done")
        if self._count("done") == self._world:
            self._do(lambda: self._store.compare_set(self._key("end"), "", _OK))
        self._await("end", "done")

    def _fail(self, reason: str) -> str | None:
        """Write why this process fails; the first such word of any process, None where the store is gone."""
        verdict = self._verdict(reason)
        try:
            first = self._store.compare_set(self._key("end"), "", verdict).decode()  # before others can wake up
            self._store.compare_set(self._key("begin"), "", verdict)
            return first
        except (RuntimeError, OSError):
            return None

    def _verdict(self, reason: str) -> str:
        return f"rank {self._rank} failed: {reason}"

    def _await(self, key: str, marks: str) -> None:
        """Wait for the word of all, as long as somebody makes progress."""
        seen = self._progress()
        while True:
            try:
                self._store.wait([self._key(key)], timedelta(seconds=self._timeout))
                break
            except (RuntimeError, OSError) as error:
                now = self._progress()
                if now == seen:
                    self._give_up(key, marks, error)
                    break
                seen = now
        if (word := self._do(lambda: self._store.get(self._key(key))).decode()) != _OK:
            raise self._stopped(word)

    def _give_up(self, key: str, marks: str, error: Exception) -> None:
        """Settle with the others that this execution has failed, unless the word of all has come just now."""
        missed = self._missed(marks)
        verdict = self._verdict(f"PeerLostError: {missed}")
        if self._do(lambda: self._store.compare_set(self._key(key), "", verdict)).decode() == verdict:
            raise missed from error

    def _missed(self, marks: str) -> PeerLostError:
        missing = [
            r for r in range(self._world) if not self._do(lambda r=r: self._store.check([self._key(f"{marks}/{r}")]))
        ]
        return PeerLostError(f"no sign of ranks {missing[:16]} of {self._world} within {self._timeout:g} s")

    def _stopped(self, word: str) -> Exception:
        if "failed: PlanMismatchError: " in word:
            return PlanMismatchError(_mismatch(word.split("PlanMismatchError: ", 1)[1]))
        return PeerLostError(word)

    def _progress(self) -> tuple[int, ...]:
        return tuple(self._count(name) for name in ("come", "done", "ticks"))

    def _ready(self, marks: str) -> None:
        self._do(lambda: self._store.set(self._key(f"{marks}/{self._rank}"), "1"))
        self._do(lambda: self._store.add(self._key(marks), 1))

    def _count(self, name: str) -> int:
        return self._do(lambda: self._store.add(self._key(name), 0))

    def _key(self, name: str) -> str:
        return f"{self._number}/{name}"

    def _names(self, number: int) -> list[str]:
        words = ["plan", "begin", "end", "come", "done", "ticks"]
        words += [f"{marks}/{r}" for marks in ("come", "done") for r in range(self._world)]
        return [f"{number}/{word}" for word in words]

    def _do(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except (RuntimeError, OSError) as error:
            raise PeerLostError(f"the store that the processes share does not answer: {error}") from error


def _mismatch(message: str) -> str:
    return f"{message}: make the plan from the same layouts and topology everywhere; nothing was sent"

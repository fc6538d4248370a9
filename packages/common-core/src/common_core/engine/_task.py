"""What is run and what comes back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["done", "failed", "timeout", "crashed", "cancelled"]


@dataclass(frozen=True)
class Task:
    """One call of a function in a process of its own.

    Attributes:
        key: Unique name among the tasks of a run; also names its file in a store.
        function: A function at module level of an importable module (it is found again by name in the new process).
        kwargs: Its keyword arguments; picklable, and JSON values where a store is used.
        timeout: Seconds of wall time after which it is stopped; None for no limit.
        retries: How often a crash or a timeout is tried again. An exception is an answer and is not.
        num_cpus: Threads the task may use; also what it asks of a Ray cluster.
        num_gpus: Devices the task uses; locally, tasks that use one run one at a time.
    """

    key: str
    function: Callable[..., Any]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    timeout: float | None = None
    retries: int = 0
    num_cpus: float = 1
    num_gpus: float = 0

    def __post_init__(self) -> None:
        """Refuse what a new process could not find again."""
        if not self.key:
            raise ValueError("a task needs a key: any text that is unique in the run")
        if self.timeout is not None and not self.timeout > 0:
            raise ValueError(
                f"task {self.key!r}: timeout is {self.timeout!r} seconds; give more than 0, or leave it out"
            )
        if self.retries < 0:
            raise ValueError(f"task {self.key!r}: retries is {self.retries}; give 0 or more")
        module, name = self.reference
        if module == "__main__" or "<" in name:
            raise ValueError(
                f"task {self.key!r}: {module}.{name} cannot be imported by another process; "
                "define the function at module level of an importable module"
            )

    @property
    def reference(self) -> tuple[str, str]:
        """Module and qualified name of the function."""
        return getattr(self.function, "__module__", "?"), getattr(self.function, "__qualname__", "<object>")


@dataclass(frozen=True)
class TaskResult:
    """How a task ended.

    Attributes:
        key: The task's key.
        status: ``done``; ``failed`` by an exception; ``timeout``; ``crashed`` (its process died); ``cancelled``.
        value: What the function returned, when done.
        reason: One sentence when not done.
        log: The last lines of the task's output and traceback, when not done.
        wall_s: Wall time of the last attempt in seconds.
        cpu_s: CPU time of its process and their children in seconds; None where unknown.
        peak_rss_bytes: Largest resident set of its process in bytes; None where unknown.
        attempts: How many times it was started.
        resumed: Whether it was read from a store instead of run.
    """

    key: str
    status: Status
    value: Any = None
    reason: str = ""
    log: str = ""
    wall_s: float | None = None
    cpu_s: float | None = None
    peak_rss_bytes: int | None = None
    attempts: int = 0
    resumed: bool = False


@dataclass(frozen=True)
class Event:
    """A change that a watcher may want to show.

    Attributes:
        key: The task's key.
        kind: ``started``, ``progress`` or ``ended``.
        fraction: Share done in [0, 1] as the task reports it, or None.
        note: The task's own words on where it is.
        result: The result, with ``ended``.
    """

    key: str
    kind: Literal["started", "progress", "ended"]
    fraction: float | None = None
    note: str = ""
    result: TaskResult | None = None

"""Tasks in processes of this machine."""

import contextlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common_core.engine._task import Event, Task, TaskResult

_POLL_S = 0.02
_LOG_CHARACTERS = 4000


@dataclass
class _Running:
    task: Task
    attempt: int
    folder: Path
    process: subprocess.Popen[bytes]
    started: float = field(default_factory=time.monotonic)
    shown: str = ""

    @property
    def overdue(self) -> bool:
        return self.task.timeout is not None and time.monotonic() - self.started > self.task.timeout


def _child_environment(task: Task) -> dict[str, str]:
    env = dict(os.environ)
    env["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)  # noqa: PTH109
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        env.setdefault(name, str(max(1, int(task.num_cpus))))
    return env


def _start(task: Task, attempt: int, parent: Path) -> _Running:
    folder = Path(tempfile.mkdtemp(dir=parent))
    (folder / "task").write_bytes(pickle.dumps((*task.reference, dict(task.kwargs))))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", "from common_core.engine._child import main; main()", str(folder)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            env=_child_environment(task),
            start_new_session=True,  # a terminal's Ctrl-C reaches us alone, and its children end with it
        )  # fmt: skip
    return _Running(task, attempt, folder, process)


def _stop(running: _Running) -> None:
    # macOS answers "not permitted" where only a zombie is left in the group
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(running.process.pid, signal.SIGKILL)


def _log_tail(running: _Running) -> str:
    text = (running.folder / "log").read_bytes().decode(errors="replace")
    return text[-_LOG_CHARACTERS:].strip()


def _crash_reason(code: int) -> str:
    if code >= 0:
        return f"its process ended with exit status {code} before it answered"
    name = signal.Signals(-code).name
    hint = " (often the kernel's out-of-memory killer)" if -code == signal.SIGKILL else ""
    return f"its process was ended by {name}{hint}"


def _peak(running: _Running) -> int | None:
    """Peak memory as the task last noted it; it may have died before the first note."""
    try:
        return int((running.folder / "peak").read_text())
    except FileNotFoundError:
        return None


def _poll(running: _Running) -> TaskResult | None:
    """The result, if the task's process has ended or is overdue."""
    overdue = running.overdue
    if overdue:
        _stop(running)
    pid, code, usage = os.wait4(running.process.pid, 0 if overdue else os.WNOHANG)
    if pid == 0:
        return None
    running.process.returncode = code = os.waitstatus_to_exitcode(code)  # reaped here: Popen must not wait again
    _stop(running)  # whatever the task left running in its process group
    answer = running.folder / "answer"
    if answer.exists():
        status, value, reason, log = pickle.loads(answer.read_bytes())
        log = "\n".join(part for part in (_log_tail(running), log) if part) if status != "done" else ""
    elif overdue:
        limit = f"{running.task.timeout:g} s"
        status, value, reason, log = "timeout", None, f"stopped after its limit of {limit}", _log_tail(running)
    else:
        status, value, reason, log = "crashed", None, _crash_reason(code), _log_tail(running)
    return TaskResult(
        running.task.key, status, value, reason, log[-_LOG_CHARACTERS:],
        wall_s=time.monotonic() - running.started,
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_rss_bytes=_peak(running),
        attempts=running.attempt,
    )  # fmt: skip


def _progress(running: _Running) -> Event | None:
    try:
        text = (running.folder / "progress").read_text()
    except FileNotFoundError:
        return None
    if text == running.shown:
        return None
    running.shown = text
    fraction, note = json.loads(text)
    return Event(running.task.key, "progress", fraction, note)


def _next(waiting: deque[tuple[Task, int]], active: Sequence[_Running]) -> tuple[Task, int] | None:
    """The first waiting task that may start beside the active ones."""
    device_taken = any(item.task.num_gpus for item in active)
    for position, (task, attempt) in enumerate(waiting):
        if not (task.num_gpus and device_taken):
            del waiting[position]
            return task, attempt
    return None


def run_local(tasks: Sequence[Task], jobs: int) -> Generator[Event, None, None]:
    """Run the tasks in processes, at most ``jobs`` at a time; closing the iterator stops those that still run.

    Args:
        tasks: What to run.
        jobs: How many processes at most.

    Yields:
        Events, as they happen; exactly one ``ended`` for each task.
    """
    waiting = deque((task, 1) for task in tasks)
    active: list[_Running] = []
    parent = Path(tempfile.mkdtemp(prefix="repertory-"))
    try:
        while waiting or active:
            while len(active) < jobs and (ready := _next(waiting, active)):
                active.append(_start(*ready, parent))
                yield Event(ready[0].key, "started")
            for item in list(active):
                if (event := _progress(item)) is not None:
                    yield event
                if (result := _poll(item)) is None:
                    continue
                active.remove(item)
                shutil.rmtree(item.folder, ignore_errors=True)
                if result.status in ("crashed", "timeout") and item.attempt <= item.task.retries:
                    waiting.append((item.task, item.attempt + 1))
                else:
                    yield Event(item.task.key, "ended", result=result)
            time.sleep(_POLL_S)
    finally:
        for item in active:
            _stop(item)
            if item.process.returncode is None:
                item.process.wait()
        shutil.rmtree(parent, ignore_errors=True)

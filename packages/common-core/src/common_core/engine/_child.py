"""The side of a task that runs in the new process."""

import importlib
import json
import operator
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common_core.memory import resident_bytes

_progress_file: Path | None = None
_last_report = 0.0


def report_progress(done: float, total: float, note: str = "") -> None:
    """Tell whoever watches how far this task is; does nothing outside a task's process.

    Args:
        done: Units finished.
        total: Units in all (> 0).
        note: A few words on the present step.
    """
    global _last_report
    now = time.monotonic()
    if _progress_file is None or (now - _last_report < 0.1 and done < total):
        return
    _last_report = now
    staging = _progress_file.with_suffix(".new")
    staging.write_text(json.dumps([min(max(done / total, 0.0), 1.0), note]))
    staging.replace(_progress_file)


def call(module: str, name: str, kwargs: Mapping[str, Any]) -> tuple[str, Any, str, str]:
    """Find the function by name and call it.

    Returns:
        Status (``done`` or ``failed``), value, reason and log.
    """
    try:
        function = operator.attrgetter(name)(importlib.import_module(module))
        return "done", function(**kwargs), "", ""
    except Exception as error:
        text = str(error).strip()
        reason = f"{type(error).__name__}: {text}" if text else type(error).__name__
        return "failed", None, reason, traceback.format_exc()


def _write_peak(folder: Path) -> None:
    staging = folder / f"peak.{threading.get_ident()}"
    staging.write_text(str(resident_bytes()[1]))
    staging.replace(folder / "peak")


def _watch(folder: Path) -> None:
    """Note the peak memory now and then, and leave when the parent is gone: it may have been killed outright."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            try:
                _write_peak(folder)
            except OSError:  # the folder is removed when the run is stopped
                break
            time.sleep(0.25)
        os.killpg(os.getpgid(0), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Run the task described in the folder given as the only argument, and leave the answer there."""
    global _progress_file
    folder = Path(sys.argv[1])
    _watch(folder)
    _progress_file = folder / "progress"
    module, name, kwargs = pickle.loads((folder / "task").read_bytes())
    answer = call(module, name, kwargs)
    try:
        data = pickle.dumps(answer)
    except Exception as error:
        reason = f"the value returned by {module}.{name} cannot be sent to another process: {error}"
        data = pickle.dumps(("failed", None, reason, ""))
    _write_peak(folder)
    staging = folder / "answer.new"
    staging.write_bytes(data)
    staging.replace(folder / "answer")
    sys.stdout.flush()

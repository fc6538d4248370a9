"""Finished tasks on disk, so that a run can be continued."""

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common_core.engine._task import Task, TaskResult
from common_core.records import RecordError, read_json, write_json_atomic

SCHEMA = "repertory.task/1"


def _plain(value: Any) -> Any:
    return value


class ResultStore:
    """A folder with one JSON file for each finished task.

    A file counts for a task only if key, function and arguments are the same; what failed is run again.

    Args:
        folder: Where the files are; made when needed.
        decode: Makes the value again from its JSON form; the identity by default.
    """

    def __init__(self, folder: str | os.PathLike[str], decode: Callable[[Any], Any] = _plain) -> None:
        self.folder = Path(folder)
        self._decode = decode

    def _path(self, task: Task) -> Path:
        digest = hashlib.sha256(task.key.encode()).hexdigest()[:8]
        return self.folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', task.key)[:80]}-{digest}.json"

    @staticmethod
    def _fingerprint(task: Task) -> str:
        text = json.dumps([*task.reference, dict(task.kwargs)], sort_keys=True, default=repr)
        return hashlib.sha256(text.encode()).hexdigest()

    def get(self, task: Task) -> TaskResult | None:
        """The stored result of this very task, or None."""
        path = self._path(task)
        if not path.exists():
            return None
        data = read_json(path, SCHEMA)
        if data.get("fingerprint") != self._fingerprint(task):
            return None
        try:
            value = self._decode(data["value"])
            return TaskResult(
                task.key, "done", value, wall_s=data["wall_s"], cpu_s=data["cpu_s"],
                peak_rss_bytes=data["peak_rss_bytes"], attempts=data["attempts"], resumed=True,
            )  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise RecordError(f"{path}: incomplete task file ({error}); remove it to run the task again") from None

    def put(self, task: Task, result: TaskResult) -> None:
        """Keep a result that is done; anything else is left to be run again."""
        if result.status == "done":
            write_json_atomic(
                self._path(task),
                {
                    "schema": SCHEMA, "key": task.key, "fingerprint": self._fingerprint(task),
                    "wall_s": result.wall_s, "cpu_s": result.cpu_s, "peak_rss_bytes": result.peak_rss_bytes,
                    "attempts": result.attempts, "value": result.value,
                },
            )  # fmt: skip

"""Tabular solutions: made from settings, kept as npz files of plain arrays."""

import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ccvf.confidence import delta_grid
from ccvf.counts import Counts
from ccvf.io import FormatError, writing
from ccvf.tabular import TabularCCVL
from ccvf.tabular_values import TabularValues
from ccvf.transitions import Transitions

__all__ = ["counts_of", "load_values", "save_values", "solver_of"]

SCHEMA = "repertory.ccvf.tabular/1"
_ARRAYS = ("q", "deltas", "seen")
_HEAD = ("bound", "budget", "alpha", "return_range", "status", "sweeps", "error")


def solver_of(config: Mapping[str, Any]) -> TabularCCVL:
    """The solver of a training's settings.

    Args:
        config: Of `cli_settings.Settings`.

    Returns:
        The solver.

    Raises:
        ValueError: If a setting is out of range.
    """
    grid = delta_grid(int(config["confidences"]), config["smallest"])
    low_high = config["reward_range"]
    return TabularCCVL(
        config["gamma"], alpha=config["alpha"], budget=config["budget"], union=config["union"], deltas=grid.tolist(),
        reward_range=None if low_high is None else (float(low_high[0]), float(low_high[1])),
    )  # fmt: skip


def counts_of(data: Transitions, config: Mapping[str, Any]) -> Counts:
    """The counts of a log over the states of a training.

    Args:
        data: The log.
        config: Of `cli_settings.Settings`.

    Returns:
        Counts.

    Raises:
        ValueError: If the log is of another problem.
    """
    return Counts.from_transitions(data, n_states=config["n_states"])


def save_values(path: Path, values: TabularValues) -> None:
    """Write a tabular solution, whole or not at all.

    Args:
        path: Target file, usually ending in .npz.
        values: The solution.

    Raises:
        OSError: If the file cannot be written; an old one is then untouched.

    Example:
        >>> import tempfile
        >>> counts = Counts.from_model(np.ones((1, 1, 1)), np.array([[1.0]]), visits=4)
        >>> values = TabularCCVL(0.5, deltas=[0.1, 1.0]).fit(counts)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_values(Path(folder, "values.npz"), values)
        ...     bool((load_values(Path(folder, "values.npz")).q == values.q).all())
        True
    """
    head = json.dumps({"schema": SCHEMA, **{name: getattr(values, name) for name in _HEAD}})
    arrays = {name: getattr(values, name) for name in _ARRAYS}
    with writing(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, head=np.frombuffer(head.encode(), dtype=np.uint8), **arrays)


def load_values(path: Path) -> TabularValues:
    """Read what `save_values` wrote.

    Args:
        path: The file.

    Returns:
        The solution.

    Raises:
        FormatError: If the file is missing, foreign, damaged or newer.
    """
    if not path.is_file():
        raise FormatError(f"{path}: no such file")
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            head = json.loads(file["head"].tobytes())
            arrays = {name: file[name] for name in _ARRAYS}
        if head["schema"] != SCHEMA:
            raise FormatError(f"{path} has the schema {head['schema']!r}; this version reads {SCHEMA!r}")
        facts = {name: head[name] for name in _HEAD}
        low, high = facts.pop("return_range")
        return TabularValues(**arrays, **facts, return_range=(float(low), float(high)))
    except FormatError:
        raise
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise FormatError(f"{path} is not a tabular solution that ccvf saved, or it is damaged ({error})") from None

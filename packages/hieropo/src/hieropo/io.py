"""Saving and loading what an estimator has learned: one .npz file with a JSON header, no pickle."""

import io
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common_core.records import write_bytes_atomic
from hieropo.estimators import FlatOPO, GaussianOPO, GlobalOPO, HierOPO, OracleOPO
from hieropo.prior import GaussianHierarchy
from hieropo.statistics import TaskStatistics

FORMAT = "hieropo.posterior"
VERSION = 1

_CLASSES: Mapping[str, type[GaussianOPO]] = {cls.__name__: cls for cls in (HierOPO, FlatOPO, OracleOPO, GlobalOPO)}
_PRIOR = ("mu_q", "Sigma_q", "Sigma_0")
_STATISTICS = ("tasks", "count", "gram", "moment", "square")


class FormatError(ValueError):
    """A file that is not ours, is damaged, or is from a newer version."""


def save(estimator: GaussianOPO, path: str | os.PathLike[str]) -> None:
    """Write an estimator's prior, options and statistics; its posterior is recomputed when loaded.

    A reader sees the old file or the new one, never a part.

    Args:
        estimator: HierOPO, FlatOPO, OracleOPO or GlobalOPO.
        path: Target file, usually ending in .npz.

    Raises:
        TypeError: If the estimator is of another class.
        OSError: If the file cannot be written.

    Example:
        >>> import tempfile
        >>> prior = GaussianHierarchy.isotropic(2, sigma_q=1.0, sigma_0=0.5, sigma=0.5)
        >>> policy = HierOPO(prior).fit([[1.0, 0.0]], [1.0], ["ann"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(policy, folder + "/policy.npz")
        ...     load(folder + "/policy.npz")
        HierOPO(d=2, alpha=0.1, tasks=1, rows=1)
    """
    if type(estimator).__name__ not in _CLASSES or not isinstance(estimator, GaussianOPO):
        raise TypeError(f"cannot save a {type(estimator).__name__}; only {', '.join(_CLASSES)}")
    prior, stats = estimator.prior, estimator.statistics
    header = {
        "format": FORMAT,
        "version": VERSION,
        "class": type(estimator).__name__,
        "alpha": estimator.alpha,
        "delta": estimator.delta,
        "kind": estimator.kind,
        "sigma": prior.sigma,
    }
    arrays = {name: getattr(prior, name) for name in _PRIOR} | {name: getattr(stats, name) for name in _STATISTICS}
    buffer = io.BytesIO()
    np.savez(buffer, header=np.frombuffer(json.dumps(header).encode(), dtype=np.uint8), **arrays)
    write_bytes_atomic(path, buffer.getvalue())


def load(path: str | os.PathLike[str]) -> GaussianOPO:
    """Read an estimator that `save` wrote.

    Args:
        path: The file.

    Returns:
        An estimator of the class that was saved, with the same predictions to the last bit.

    Raises:
        OSError: If there is no such file, or it cannot be read.
        FormatError: If the file is not ours, is damaged, or is from a newer version.
    """
    header, arrays = _read(Path(path))
    try:
        cls = _CLASSES[header["class"]]
        prior = GaussianHierarchy(*(arrays[name] for name in _PRIOR), sigma=header["sigma"])
        stats = TaskStatistics(*(arrays[name] for name in _STATISTICS))
        return cls.restore(prior, stats, header["alpha"], header["delta"], header["kind"])
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{path} is damaged: {error}") from error


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    content = io.BytesIO(path.read_bytes())  # from memory: a damaged archive leaves no file open
    try:
        with np.load(content, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        header = json.loads(bytes(arrays.pop("header")))
        known = header["format"] == FORMAT
    except (OSError, EOFError, KeyError, TypeError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise FormatError(f"{path} is not a file that hieropo saved, or it is damaged ({error})") from error
    if not known:
        raise FormatError(f"{path} holds {header['format']!r}, not {FORMAT!r}")
    if not isinstance(header.get("version"), int) or header["version"] > VERSION:
        raise FormatError(
            f"{path} has format version {header.get('version')}, this release reads up to {VERSION}; upgrade hieropo"
        )
    return header, arrays

"""Saving and loading what an estimator has learned: one .npz file with a JSON header, no pickle."""

import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np

from common_core.records import write_bytes_atomic
from hieropo.estimators import FlatOPO, GaussianOPO, GlobalOPO, HierOPO, OracleOPO
from hieropo.learner import StatisticsLearner
from hieropo.logistic import LogisticHierarchy, LogisticRows
from hieropo.logistic_estimator import LogisticHierOPO
from hieropo.mixture import MixtureHierarchy
from hieropo.mixture_estimator import MixtureOPO
from hieropo.noise_estimator import NoiseHierOPO
from hieropo.prior import GaussianHierarchy
from hieropo.statistics import TaskStatistics
from hieropo.tree import Tree, TreePrior
from hieropo.tree_estimator import TreeOPO
from hieropo.unknown_noise import NoisePrior

FORMAT = "hieropo.posterior"
VERSION = 1

Saved = GaussianOPO | LogisticHierOPO | MixtureOPO | NoiseHierOPO | TreeOPO
Expected = TypeVar("Expected")
Header = dict[str, Any]
Arrays = dict[str, Any]

_GAUSSIAN: Mapping[str, type[GaussianOPO]] = {cls.__name__: cls for cls in (HierOPO, FlatOPO, OracleOPO, GlobalOPO)}
_OTHERS = (LogisticHierOPO, MixtureOPO, NoiseHierOPO, TreeOPO)
_NAMES = (*_GAUSSIAN, *(cls.__name__ for cls in _OTHERS))
_PRIOR = ("mu_q", "Sigma_q", "Sigma_0")
_MIXTURE = ("weights", *_PRIOR)
_TREE = ("mean", "root_cov", "level_covs")
_STATISTICS = ("tasks", "count", "gram", "moment", "square")
_ROWS = ("tasks", "features", "rewards", "codes")
# What a file of another kind, or one whose bytes were changed, makes the readers of zip, npy and JSON raise.
_UNREADABLE = (
    *(OSError, EOFError, KeyError, TypeError, ValueError, AttributeError, MemoryError, NotImplementedError),
    *(RuntimeError, SyntaxError, struct.error, zipfile.BadZipFile, zlib.error),
)
_ASYMMETRY = 1e-9  # relative; rounding of sums stays far below


class FormatError(ValueError):
    """A file that is not ours, is damaged, or is from a newer version."""


def save(estimator: Saved, path: str | os.PathLike[str]) -> None:
    """Write an estimator's prior, options and statistics (or rows); its posterior is recomputed when loaded.

    A reader sees the old file or the new one, never a part.

    Args:
        estimator: One of this package's estimators.
        path: Target file, usually ending in .npz.

    Raises:
        TypeError: If the estimator is of another class, or a node of its tree is named by something else than strings,
            integers, None and tuples of them.
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
    if type(estimator) not in (*_GAUSSIAN.values(), *_OTHERS):
        raise TypeError(f"cannot save a {type(estimator).__name__}; only {', '.join(_NAMES)}")
    header, arrays = _describe(estimator)
    header = {"format": FORMAT, "version": VERSION, "class": type(estimator).__name__} | header
    buffer = io.BytesIO()
    np.savez(buffer, header=np.frombuffer(json.dumps(header).encode(), dtype=np.uint8), **arrays)
    write_bytes_atomic(path, buffer.getvalue())


@overload
def load(path: str | os.PathLike[str]) -> Saved: ...


@overload
def load(path: str | os.PathLike[str], expected: type[Expected]) -> Expected: ...


def load(path: str | os.PathLike[str], expected: type[Any] | None = None) -> Any:
    """Read an estimator that `save` wrote.

    Args:
        path: The file.
        expected: The class it must be of, e.g. `GaussianOPO` for HierOPO and its baselines; any if not given.

    Returns:
        An estimator of the class that was saved, with the same predictions to the last bit.

    Raises:
        OSError: If there is no such file, or it cannot be read.
        FormatError: If the file is not ours, is damaged, is from a newer version, or holds another class.
    """
    header, arrays = _read(Path(path))
    try:
        estimator = _rebuild(header, arrays)
    except KeyError as error:
        raise FormatError(f"{path} is damaged: it lacks {error}") from error
    except (IndexError, TypeError, ValueError) as error:
        raise FormatError(f"{path} is damaged: {error}") from error
    if expected is not None and not isinstance(estimator, expected):
        raise FormatError(f"{path} holds a {type(estimator).__name__}, not a {expected.__name__}")
    return estimator


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    content = io.BytesIO(path.read_bytes())  # from memory: a damaged archive leaves no file open
    if not zipfile.is_zipfile(content):  # numpy would try other formats and speak of pickles
        raise FormatError(f"{path} is not a file that hieropo saved, or it is damaged: it is no .npz archive")
    content.seek(0)
    try:
        with np.load(content, allow_pickle=False) as file:
            names = ", ".join(file.files[:5])
            if "header" not in file.files:
                raise FormatError(f"{path} is not a file that hieropo saved: it lacks 'header' and holds {names}")
            arrays = {name: file[name] for name in file.files}
        header = json.loads(bytes(arrays.pop("header")))
        known = header["format"] == FORMAT
    except FormatError:
        raise
    except _UNREADABLE as error:
        raise FormatError(f"{path} is not a file that hieropo saved, or it is damaged ({error})") from error
    if not known:
        raise FormatError(f"{path} holds {header['format']!r}, not {FORMAT!r}")
    if not isinstance(header.get("version"), int) or header["version"] > VERSION:
        raise FormatError(
            f"{path} has format version {header.get('version')}, this release reads up to {VERSION}; upgrade hieropo"
        )
    return header, arrays


def _describe(estimator: Saved) -> tuple[Header, Arrays]:
    """What there is to know of an estimator: numbers and names, and arrays."""
    if isinstance(estimator, LogisticHierOPO):
        rows = {name: getattr(estimator.rows, name) for name in _ROWS}
        return {"alpha": estimator.alpha}, _attributes(estimator.prior, _PRIOR) | rows
    header = {"alpha": estimator.width, "delta": estimator.delta, "kind": estimator.kind}
    arrays = _attributes(estimator.statistics, _STATISTICS)
    match estimator:
        case NoiseHierOPO(prior=prior):
            header |= {"shape": prior.shape, "scale": prior.scale}
            arrays |= _attributes(prior.hierarchy, _PRIOR)
        case MixtureOPO(prior=prior):
            header["sigma"] = prior.sigma
            start = {} if estimator.start is None else {"start": estimator.start}
            arrays |= _attributes(prior, _MIXTURE) | start
        case TreeOPO(prior=prior):
            header |= {"sigma": prior.sigma, "labels": [_encoded(label) for label in prior.tree.labels]}
            nodes = np.array([prior.tree.position(label) for label in prior.node_covs], dtype=np.int64)
            covs = np.array(list(prior.node_covs.values())).reshape(-1, prior.d, prior.d)
            arrays |= _attributes(prior, _TREE) | {"parent": prior.tree.parent, "nodes": nodes, "node_covs": covs}
        case _:
            header["sigma"] = estimator.prior.sigma
            arrays |= _attributes(estimator.prior, _PRIOR)
    return header, arrays


def _rebuild(header: Header, arrays: Arrays) -> Saved:
    name = header["class"]
    if name not in _NAMES:
        raise ValueError(f"unknown class {name!r}")
    if name == LogisticHierOPO.__name__:
        codes = arrays["codes"]
        if codes.min(initial=0) < 0:
            raise ValueError("codes is negative")
        tasks = arrays["tasks"]
        rows = LogisticRows.from_rows(arrays["features"], arrays["rewards"], tasks[codes], tasks)
        return LogisticHierOPO(LogisticHierarchy(*(arrays[key] for key in _PRIOR)), header["alpha"]).merge(rows)
    alpha, delta, kind = header["alpha"], header["delta"], header["kind"]
    learner: StatisticsLearner[Any]
    match name:
        case NoiseHierOPO.__name__:
            hierarchy = GaussianHierarchy(*(arrays[key] for key in _PRIOR), sigma=1.0)
            learner = NoiseHierOPO(NoisePrior(hierarchy, header["shape"], header["scale"]), alpha)
        case MixtureOPO.__name__:
            mixture = MixtureHierarchy(*(arrays[key] for key in _MIXTURE), sigma=header["sigma"])
            learner = MixtureOPO(mixture, alpha, start=arrays.get("start"))
        case TreeOPO.__name__:
            learner = TreeOPO(_tree_prior(header, arrays), alpha)
        case _:
            prior = GaussianHierarchy(*(arrays[key] for key in _PRIOR), sigma=header["sigma"])
            learner = _GAUSSIAN[name].restore(prior, TaskStatistics.empty(prior.d), alpha, None, "simultaneous")
    stats = TaskStatistics(*(arrays[key] for key in _STATISTICS))
    if np.abs(stats.gram - np.swapaxes(stats.gram, 1, 2)).max(initial=0.0) > _ASYMMETRY * stats.gram.max(initial=0.0):
        raise ValueError("gram is not symmetric")
    return learner.derived_from(delta, kind).fit_statistics(stats)


def _tree_prior(header: Header, arrays: Arrays) -> TreePrior:
    labels, parent = [_decoded(label) for label in header["labels"]], arrays["parent"].tolist()
    if len(labels) != len(parent) or parent[0] != -1 or not all(0 <= above < i for i, above in enumerate(parent) if i):
        raise ValueError("parent does not describe a tree")
    tree = Tree.from_parents({labels[i]: labels[above] for i, above in enumerate(parent) if i})
    covs = {labels[i]: cov for i, cov in zip(arrays["nodes"].tolist(), arrays["node_covs"], strict=True)}
    return TreePrior(tree, *(arrays[name] for name in _TREE), sigma=header["sigma"], node_covs=covs)


def _attributes(source: object, names: tuple[str, ...]) -> Arrays:
    return {name: getattr(source, name) for name in names}


def _encoded(label: object) -> object:
    """A node's label as JSON; a tuple, which names a group by its path, becomes a list."""
    if isinstance(label, tuple):
        return [_encoded(part) for part in label]
    if label is None or (isinstance(label, (str, int)) and not isinstance(label, bool)):
        return label
    raise TypeError(f"cannot save a tree with node {label!r}; name nodes by strings, integers, None and tuples of them")


def _decoded(label: object) -> Any:
    return tuple(_decoded(part) for part in label) if isinstance(label, list) else label

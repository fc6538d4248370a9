"""Task labels: integers or strings, any values, kept sorted, looked up in bulk."""

import difflib

import numpy as np
import numpy.typing as npt
from jaxtyping import Integer

Task = int | str
TaskIds = npt.ArrayLike | int
Labels = np.ndarray  # one-dimensional, dtype int64 or fixed-width unicode, strictly increasing

_FEW = 4096  # strings that are sorted as they are; rows of a block of digests


def as_labels(labels: npt.ArrayLike, name: str = "task_ids") -> np.ndarray:
    """Task labels as a one-dimensional int64 or unicode array.

    Args:
        labels: Integers (any signed or unsigned kind that fits 64 bits) or strings, shape [n].
        name: The argument's name, for the message.

    Returns:
        An array of dtype int64 or ``<U…`` and shape [n].

    Raises:
        ValueError: If the labels are not one-dimensional or a string ends in a NUL character (it would not survive).
        TypeError: If they are neither all integers nor all strings.
    """
    if isinstance(labels, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, whose mask would be lost; select the valid entries first")
    array = np.asarray(labels)
    if array.ndim != 1:
        raise ValueError(f"{name} has shape {array.shape}; give a one-dimensional array of labels, one a row")
    if array.size == 0 and array.dtype.kind not in "iuU":
        return np.empty(0, np.int64)
    if array.dtype.kind == "O" or (array.dtype.kind in "Uf" and not isinstance(labels, np.ndarray)):
        array = _from_objects(list(np.asarray(labels, dtype=object)), name)
    if array.dtype.kind == "U":
        return array
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} has dtype {array.dtype}; give integers or strings")
    if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{name} holds {array.max()}, which does not fit a signed 64-bit integer")
    return array.astype(np.int64, copy=False)


def as_label(label: object, name: str = "task") -> np.ndarray:
    """One task label as an array of one.

    Args:
        label: An integer or a string.
        name: The argument's name, for the message.

    Returns:
        An array of dtype int64 or ``<U…`` and shape [1].

    Raises:
        TypeError: If it is several labels, or neither an integer nor a string.
    """
    if np.ndim(label) != 0:  # pyrefly: ignore[bad-argument-type]
        raise TypeError(f"{name} is a {type(label).__name__} of labels; give one label, and call once for each task")
    return as_labels(np.array([label[()] if isinstance(label, np.ndarray) else label], dtype=object), name)


def _from_objects(labels: list[object], name: str) -> np.ndarray:
    """Labels from Python objects; numpy alone would turn a mixture such as [1, 'a'] silently into strings."""
    if all(isinstance(label, str) for label in labels):
        texts = [str(label) for label in labels]
        if any(text.endswith("\0") for text in texts):
            raise ValueError(f"{name}: a label ends in a NUL character, which fixed-width strings drop; rename it")
        return np.asarray(texts, dtype=np.str_)
    if all(isinstance(label, (int, np.integer)) and not isinstance(label, bool) for label in labels):
        try:
            return np.asarray(labels, dtype=np.int64)
        except OverflowError:
            raise ValueError(f"{name} holds an integer that does not fit a signed 64-bit integer") from None
    kinds = sorted({type(label).__name__ for label in labels})
    raise TypeError(f"{name} holds {', '.join(kinds)}; give all integers or all strings")


def factorise(labels: np.ndarray) -> tuple[Labels, Integer[np.ndarray, " n"]]:
    """The sorted distinct labels, and the position of each row's label among them.

    Integers in a range not much larger than their number are counted instead of sorted; of many strings, digests are
    sorted.

    Args:
        labels: From `as_labels`, shape [n].

    Returns:
        The labels [m], sorted, and codes [n] in 0..m-1 with ``tasks[codes] == labels``.
    """
    if labels.size and labels.dtype.kind == "i":
        low, high = int(labels.min()), int(labels.max())
        if high - low < 4 * labels.size + 1024:
            shifted = labels if low == 0 else labels - low
            present = np.bincount(shifted) > 0
            if present.all():
                return np.arange(low, high + 1), shifted
            return np.flatnonzero(present) + low, (np.cumsum(present) - 1)[shifted]
    if labels.dtype.kind == "U" and labels.size > _FEW and labels.dtype.itemsize:
        return _factorise_text(labels)
    return _by_sorting(labels)


def _by_sorting(labels: np.ndarray) -> tuple[Labels, Integer[np.ndarray, " n"]]:
    tasks, codes = np.unique(labels, return_inverse=True)
    return tasks, codes.reshape(-1)


def _digest(labels: np.ndarray) -> Integer[np.ndarray, " n"]:
    """A 64-bit number for each string: its characters times fixed odd numbers, modulo 2⁶⁴."""
    n, width = labels.size, labels.dtype.itemsize // 4
    words = np.ascontiguousarray(labels).view(np.uint32).reshape(n, width)
    multipliers = np.random.default_rng(0).integers(0, 2**64, width, dtype=np.uint64) | np.uint64(1)
    digest = np.empty(n, np.uint64)
    for lo in range(0, n, _FEW):  # blocks stay in cache while they are widened
        np.dot(words[lo : lo + _FEW].astype(np.uint64), multipliers, out=digest[lo : lo + _FEW])
    return digest


def _factorise_text(labels: np.ndarray) -> tuple[Labels, Integer[np.ndarray, " n"]]:
    """Sorting digests is several times faster than sorting strings; the result is checked: a collision costs time."""
    distinct, codes = _by_sorting(_digest(labels))
    row = np.empty(distinct.size, np.int64)
    row[codes] = np.arange(labels.size)  # some row of each digest
    names = labels[row]
    if not np.array_equal(names[codes], labels):
        return _by_sorting(labels)
    order = np.argsort(names)
    rank = np.empty_like(order)
    rank[order] = np.arange(order.size)
    return names[order], rank[codes]


def same_kind(a: Labels, b: Labels, what: str) -> None:
    """Refuse to mix integer and string labels.

    Args:
        a: Labels on one side.
        b: Labels on the other side.
        what: What was attempted, for the message.

    Raises:
        TypeError: If one side holds integers and the other strings.
    """
    if a.size and b.size and (a.dtype.kind == "U") != (b.dtype.kind == "U"):
        kinds = ["strings" if x.dtype.kind == "U" else "integers" for x in (a, b)]
        raise TypeError(f"cannot {what}: the tasks are {kinds[0]} on one side and {kinds[1]} on the other")


def positions(tasks: Labels, labels: np.ndarray) -> Integer[np.ndarray, " n"]:
    """Where each label stands among the sorted tasks; -1 for a label that is not there.

    Args:
        tasks: Sorted distinct labels, shape [m].
        labels: Labels to look up, shape [n].

    Returns:
        Positions [n] in -1..m-1.
    """
    if tasks.size == 0 or labels.size == 0 or (tasks.dtype.kind == "U") != (labels.dtype.kind == "U"):
        return np.full(labels.size, -1)
    found = np.minimum(np.searchsorted(tasks, labels), tasks.size - 1)
    return np.where(tasks[found] == labels, found, -1)


def unknown_message(tasks: Labels, task: Task) -> str:
    """The sentence for a label that was never seen, with near matches.

    Args:
        tasks: The known labels, shape [m].
        task: The label asked for.

    Returns:
        One line for a KeyError or ValueError.
    """
    task = task.item() if isinstance(task, np.generic) else task
    if tasks.size == 0:
        return f"unknown task {task!r}: no task has been seen yet; fit first"
    if tasks.dtype.kind == "U":
        near = [str(t) for t in difflib.get_close_matches(str(task), tasks[:10_000].tolist(), n=3)]
    elif isinstance(task, (int, np.integer)):
        near = sorted(int(t) for t in tasks[np.argsort(np.abs(tasks.astype(float) - float(task)), kind="stable")[:3]])
    else:
        near = []
    kind = "strings" if tasks.dtype.kind == "U" else "integers"
    hint = f"; near: {', '.join(map(repr, near))}" if near else ""
    return f"unknown task {task!r}: {tasks.size} tasks are known, their labels are {kind}{hint}"

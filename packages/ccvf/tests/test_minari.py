import warnings
from contextlib import contextmanager

import gymnasium
import numpy as np
import pytest

from ccvf.io import FormatError
from ccvf.minari_io import from_minari, to_minari
from ccvf.multi_step import n_step
from ccvf.transitions import Transitions

minari = pytest.importorskip("minari")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))


@contextmanager
def quiet():
    """Without the warnings about authors and environments that are not told."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def log(dtype=np.float32, shape=(3,), metadata=None):
    rng = np.random.default_rng(0)
    lengths = [4, 1, 3]
    frames = [rng.integers(0, 2 if dtype is bool else 100, size=(n + 1, *shape)).astype(dtype) for n in lengths]
    return Transitions.from_arrays(
        np.concatenate([f[:-1] for f in frames]),
        rng.integers(3, size=8),
        rng.normal(size=8),
        np.concatenate([f[1:] for f in frames]),
        [0, 0, 0, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 0, 0, 0],
        np.repeat([0, 1, 2], lengths),
        n_actions=4,
        metadata=metadata,
    )


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [(np.float32, (3,)), (np.float64, (2, 2)), (bool, (10, 10, 2)), (np.uint8, (40, 40, 3)), (np.int64, ())],
)
def test_there_and_back(dtype, shape):
    data = log(dtype, shape, {"env": "somewhere", "seed": 3})
    to_minari(data, "test/there-v0", author="nobody")
    found = from_minari("test/there-v0")
    assert found.fingerprint() == data.fingerprint()
    assert found.metadata == {"env": "somewhere", "seed": 3, "minari": "test/there-v0"}


def test_gaps_become_episodes():
    data = log().select([0, 1, 3, 4, 5, 7])
    found = from_minari(to_minari(data, "gaps-v0"))
    assert found.episodes.tolist() == [0, 0, 1, 2, 3, 4]
    np.testing.assert_array_equal(found.observations(), data.observations())
    np.testing.assert_array_equal(found.next_observations(), data.next_observations())
    np.testing.assert_array_equal(found.terminated, data.terminated)
    np.testing.assert_array_equal(found.truncated, data.truncated)


def test_a_data_set_that_minari_collected():
    buffer = minari.data_collector.EpisodeBuffer
    episodes = [
        buffer(
            observations=np.arange(3 * k, 3 * k + 3), actions=np.array([5, 6]), rewards=np.array([0.0, 1.0]),
            terminations=np.array([False, k == 0]), truncations=np.array([False, k == 1]),
        )
        for k in range(2)
    ]  # fmt: skip
    with quiet():
        dataset = minari.create_dataset_from_buffers(
            "theirs-v0", episodes, observation_space=gymnasium.spaces.Discrete(6),
            action_space=gymnasium.spaces.Discrete(3, start=5),
        )  # fmt: skip
    data = from_minari(dataset, metadata={"more": 1})
    assert data.observations().tolist() == [0, 1, 3, 4]
    assert data.next_observations().tolist() == [1, 2, 4, 5]
    assert data.actions.tolist() == [0, 1, 0, 1]
    assert data.n_actions == 3
    assert data.terminated.tolist() == [False, True, False, False]
    assert data.truncated.tolist() == [False, False, False, True]
    assert data.metadata == {"minari": "theirs-v0", "more": 1}
    assert len(from_minari(dataset.filter_episodes(lambda episode: episode.id == 1))) == 2


def made(observation_space, action_space, observations, actions):
    episode = minari.data_collector.EpisodeBuffer(
        observations=observations, actions=actions, rewards=[0.0], terminations=[True], truncations=[False]
    )
    with quiet():
        return minari.create_dataset_from_buffers(
            "odd-v0", [episode], observation_space=observation_space, action_space=action_space
        )


def test_refusals():
    box, two = gymnasium.spaces.Box(-1, 1, (1,)), gymnasium.spaces.Discrete(2)
    zeros = np.zeros((2, 1), np.float32)
    with pytest.raises(FormatError, match="no Minari data set 'absent-v0' on this machine"):
        from_minari("absent-v0")
    with pytest.raises(TypeError, match="only discrete actions"):
        from_minari(made(box, box, zeros, zeros[:1]))
    minari.delete_dataset("odd-v0")
    with pytest.raises(TypeError, match="flatten dictionaries"):
        from_minari(made(gymnasium.spaces.Dict({"a": box}), two, {"a": zeros}, np.zeros(1, int)))
    minari.delete_dataset("odd-v0")
    with pytest.raises(FormatError, match="has no episode"):
        from_minari(made(box, two, zeros, np.zeros(1, int)).filter_episodes(lambda episode: False))
    with pytest.raises(ValueError, match="several steps"):
        to_minari(n_step(log(), 2, 0.9), "steps-v0")
    to_minari(log(), "twice-v0")
    with pytest.raises(ValueError, match="twice-v0"):
        to_minari(log(), "twice-v0")

from dataclasses import replace

import numpy as np
import pytest

from ccvf.collecting import ReplayOptions
from ccvf.configs import DQNConfig
from ccvf.datasets import MINATAR, atari_replay, cache_folder, lava_log, minatar_replay
from ccvf.environments import check_match, make_vector
from ccvf.io import load_transitions

TINY = ReplayOptions(warmup=100, batch_size=4, parts=3, frames_per_update=16)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CCVF_CACHE", str(tmp_path / "cache"))


def tiny(game="breakout", seed=0, frames=600, **options):
    return minatar_replay(game, seed, frames, options=TINY, **options)


def test_one_seed_one_log():
    first, second = lava_log("narrow", 300, 1), lava_log("narrow", 300, 1)
    assert first.fingerprint() == second.fingerprint() == first.metadata["fingerprint"]
    assert lava_log("narrow", 300, 2).fingerprint() != first.fingerprint()
    assert lava_log(0.3, 300, 1).fingerprint() == first.fingerprint()
    assert first.metadata["kind"] == "narrow"
    check_match(first, make_vector("gridworld:lava"))


@pytest.mark.parametrize("make", [lambda f: lava_log("broad", 800, 3, fraction=f), lambda f: tiny(fraction=f)])
def test_shares_of_one_seed_are_nested(make):
    def rows(data):
        columns = [data.episodes, data.actions, data.rewards, data.observations().reshape(len(data), -1)]
        return {np.column_stack(columns)[row].tobytes() for row in range(len(data))}

    whole, tenth, hundredth = (make(fraction) for fraction in (1.0, 0.1, 0.01))
    assert [len(data) / len(whole) for data in (tenth, hundredth)] == [0.1, 0.01]
    assert rows(hundredth) <= rows(tenth) <= rows(whole)
    assert make(0.1).fingerprint() == tenth.fingerprint() == tenth.metadata["fingerprint"]
    assert tenth.metadata["subsample"]["fraction"] == 0.1


def test_a_replay_is_made_once_and_kept(monkeypatch):
    first = tiny()
    assert len(first) == 600
    assert first.metadata["env"] == "minatar:breakout"
    assert first.metadata["fingerprint"] == first.fingerprint()
    assert first.metadata["config"]["learning_rate"] == MINATAR.learning_rate
    check_match(first, make_vector("minatar:breakout"))
    (file,) = cache_folder().iterdir()
    assert load_transitions(file).fingerprint() == first.fingerprint()

    with monkeypatch.context() as patched:
        patched.setattr("ccvf.datasets.collect_replay", None)
        assert tiny().fingerprint() == first.fingerprint()  # read, not made
        with pytest.raises(TypeError):
            tiny(seed=1)
        with pytest.raises(TypeError):
            tiny(config=replace(MINATAR, learning_rate=1e-3))

    file.write_bytes(file.read_bytes()[:-100])
    assert tiny().fingerprint() == first.fingerprint()  # made anew, to the same log
    assert tiny(seed=1).fingerprint() != first.fingerprint()


def test_a_folder_that_cannot_be_written_is_no_obstacle(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CCVF_CACHE", str(tmp_path / "file" / "cache"))
    assert len(tiny(frames=160)) == 160


def test_the_folder_follows_the_platform(monkeypatch):
    monkeypatch.delenv("CCVF_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    monkeypatch.setattr("sys.platform", "linux")
    assert cache_folder().as_posix() == "/somewhere/ccvf"
    monkeypatch.setattr("sys.platform", "darwin")
    assert cache_folder().as_posix().endswith("Library/Caches/ccvf")


def test_an_atari_replay_keeps_single_frames():
    pytest.importorskip("ale_py")
    config = DQNConfig(body="nature", clip_rewards=True)
    data = atari_replay("pong", 0, 48, envs=2, config=config, options=replace(TINY, warmup=30), device="cpu")
    assert (len(data), data.stack, data.observation_shape) == (48, 4, (4, 84, 84))
    # three parts of two episodes: an empty frame, a first one, and one a step
    assert len(data.frames) == 48 + 6 * 2
    check_match(data, make_vector("atari:pong", 1, threads=1))
    assert atari_replay("pong", 0, 48, envs=2, config=config, options=replace(TINY, warmup=30), device="cpu",
                        fraction=0.25, by="shards").linked.sum() == 0  # fmt: skip


def test_games_that_do_not_exist():
    with pytest.raises(ValueError, match="no MinAtar game 'pong'"):
        minatar_replay("pong")
    with pytest.raises(ValueError, match="share of random actions"):
        lava_log("wide")
    with pytest.raises(ValueError, match="outside"):
        lava_log(fraction=0)

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccvf.transitions import Transitions

ENDS = {"terminated": [False, False, True, False, False, False], "truncated": [False, False, False, False, True, False]}


def log(**changes):
    """Two ended episodes and the start of a third; observations count up, episodes are 100 apart."""
    columns: dict[str, Any] = {
        "observations": np.array([100, 101, 102, 200, 201, 300]),
        "actions": np.array([0, 1, 2, 0, 0, 1]),
        "rewards": np.array([0.0, 0.5, 1.0, -1.0, 0.0, 2.0]),
        "next_observations": np.array([101, 102, 103, 201, 202, 301]),
        "n_actions": 4,
        **ENDS,
    }
    return Transitions.from_arrays(**{**columns, **changes})


def random_columns(rng, lengths, dtype=np.uint8, shape=(2, 3)):
    """Columns of episodes of the given lengths, without any neighbouring frames that are equal by chance."""
    total = sum(lengths)
    frames = [rng.integers(0, 2 if dtype is bool else 200, size=(n + 1, *shape)).astype(dtype) for n in lengths]
    ends = np.cumsum(lengths) - 1
    terminated, truncated = np.zeros(total, bool), np.zeros(total, bool)
    terminated[ends[::2]], truncated[ends[1::2]] = True, True
    return {
        "observations": np.concatenate([f[:-1] for f in frames]),
        "actions": rng.integers(3, size=total),
        "rewards": rng.normal(size=total),
        "next_observations": np.concatenate([f[1:] for f in frames]),
        "terminated": terminated,
        "truncated": truncated,
        "n_actions": 3,
    }


def test_from_arrays_keeps_each_frame_once_and_gives_the_columns_back():
    data = log()
    assert data.frames.tolist() == [100, 101, 102, 103, 200, 201, 202, 300, 301]
    assert data.observations().tolist() == [100, 101, 102, 200, 201, 300]
    assert data.next_observations().tolist() == [101, 102, 103, 201, 202, 301]
    assert data.episodes.tolist() == [0, 0, 0, 1, 1, 2]
    assert data.last.tolist() == [False, False, True, False, True, True]
    assert data.linked.tolist() == [True, True, False, True, False, False]
    assert (data.n_actions, data.observation_shape, data.stack) == (4, (), 1)


@pytest.mark.property
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=6),
    st.sampled_from([bool, np.uint8, np.int32, np.float32, np.float64]),
    st.integers(0, 2**31),
)
def test_columns_come_back_whatever_the_dtype(lengths, dtype, seed):
    given_columns = random_columns(np.random.default_rng(seed), lengths, dtype)
    data = Transitions.from_arrays(**given_columns)
    np.testing.assert_array_equal(data.observations(), given_columns["observations"])
    np.testing.assert_array_equal(data.next_observations(), given_columns["next_observations"])
    assert data.frames.dtype == dtype
    assert data.observation_shape == (2, 3)
    assert len(data.frames) == sum(lengths) + len(lengths)


def test_pieces_of_a_large_log_join_without_a_seam(monkeypatch):
    columns = random_columns(np.random.default_rng(0), [5, 1, 7, 4])
    whole = Transitions.from_arrays(**columns).fingerprint()
    monkeypatch.setattr("ccvf.transitions_columns._CHUNK", 13)  # two rows of six bytes at a time
    assert Transitions.from_arrays(**columns).fingerprint() == whole


def test_a_missing_step_within_an_episode_is_a_gap_with_its_own_frame():
    data = log(next_observations=np.array([101, 999, 103, 201, 202, 301]))
    assert data.linked.tolist() == [True, False, False, True, False, False]
    assert data.next_observations([1]).tolist() == [999]


def test_columns_of_other_libraries():
    data = log(
        actions=np.array([[0.0], [1], [2], [0], [0], [1]], dtype=np.float32),
        rewards=np.array([[0], [1], [2], [0], [0], [1]]),
        terminated=np.array(ENDS["terminated"], dtype=np.float32),
        truncated=np.array(ENDS["truncated"], dtype=np.int64)[:, None],
        observations=np.array([100, 101, 102, 200, 201, 300]).astype(">i4"),
        next_observations=np.array([101, 102, 103, 201, 202, 301]).astype(">i4"),
        n_actions=None,
    )
    assert data.actions.tolist() == [0, 1, 2, 0, 0, 1]
    assert data.rewards.tolist() == [0, 1, 2, 0, 0, 1]
    assert data.rewards.dtype == np.float64
    assert data.n_actions == 3
    assert data.frames.dtype.isnative
    assert data.frames.tolist() == log().frames.tolist()


def test_terminated_wins_over_truncated():
    data = log(truncated=[False, False, True, False, True, False])
    assert data.truncated.tolist() == ENDS["truncated"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"actions": [0, 1, 2, 0, 0, 4]}, ValueError, "action 4 of transition 5 is not one of 0 to 3"),
        ({"actions": [0, -1, 2, 0, 0, 1]}, ValueError, "action -1 of transition 1"),
        ({"actions": [0, 0.5, 2, 0, 0, 1]}, TypeError, "whole numbers"),
        ({"actions": [0, np.inf, 2, 0, 0, 1]}, TypeError, "whole numbers"),
        ({"actions": [0, -np.inf, 2, 0, 0, 1]}, TypeError, "whole numbers"),
        ({"actions": np.array([0, 2**63, 2, 0, 0, 1], np.uint64)}, TypeError, "whole numbers"),
        ({"actions": [0, 1]}, ValueError, r"actions have shape \(2,\); there are 6"),
        ({"rewards": [0, 0, 0, np.nan, 0, 0]}, ValueError, "reward of transition 3 is nan"),
        ({"rewards": ["a"] * 6}, TypeError, "rewards have dtype"),
        ({"terminated": [0, 0, 2, 0, 0, 0]}, TypeError, "terminated must be true or false"),
        ({"truncated": ["no"] * 6}, TypeError, "truncated must be true or false"),
        ({"episodes": [0, 0, 0, 1, 1, 0]}, ValueError, "episode 0 are not together"),
        ({"episodes": [0, 0, 0, 0, 0, 1]}, ValueError, "episode 0 goes on after it ended at transition 2"),
        ({"episodes": [0.5] * 6}, TypeError, "episodes have dtype"),
        ({"next_observations": np.zeros((6, 2))}, ValueError, "both must be alike"),
        ({"next_observations": np.zeros(6)}, ValueError, "both must be alike"),
        ({"observations": np.array([{}] * 6)}, TypeError, "dtype object"),
        ({"observations": np.zeros(0)}, ValueError, "no transition"),
        ({"observations": np.array([0, 0, 0, np.inf, 0, 0])}, ValueError, "observations of transition 3"),
        (
            {"observations": np.zeros(6), "next_observations": np.full(6, np.nan)},
            ValueError,
            "next_observations of tra",
        ),
    ],
)
def test_unfit_columns_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        log(**changes)


def test_numbers_longer_than_64_bits_are_shortened():
    found = log(observations=np.arange(6, dtype=np.longdouble), next_observations=np.arange(1, 7, dtype=np.longdouble))
    assert found.frames.dtype == np.float64
    assert len(found.fingerprint()) == 64


def test_fingerprint_depends_on_content_alone():
    data = log(metadata={"a": 1})
    assert data.fingerprint() == log().fingerprint()
    assert len(data.fingerprint()) == 64
    others = [
        log(rewards=np.array([0.0, 0.5, 1.0, -1.0, 0.0, 2.1])),
        log(n_actions=5),
        log(episodes=[7, 7, 7, 8, 8, 9]),
        log(truncated=None),
        log(next_observations=np.array([101, 102, 104, 201, 202, 301])),
        log(observations=np.array([100, 101, 102, 200, 201, 300], np.int32),
            next_observations=np.array([101, 102, 103, 201, 202, 301], np.int32)),
    ]  # fmt: skip
    assert len({data.fingerprint(), *(other.fingerprint() for other in others)}) == 7


def test_fingerprint_is_the_same_everywhere():
    # Golden: the value is part of the format; a change of it makes every recorded fingerprint wrong.
    data = Transitions.from_arrays(np.arange(3), [0, 1, 0], [0, 1, 2], np.arange(1, 4), [0, 0, 1])
    assert data.fingerprint() == GOLDEN


GOLDEN = "83cc60326cf1cf731a89ce1452324833bb7b6a2d6502eef50cc74e38f763ecca"


def test_select_and_compact():
    part = log().select(np.array([3, 4]))
    assert part.frames is not None
    assert len(part.frames) == 9
    small = part.compact()
    assert small.frames.tolist() == [200, 201, 202]
    assert small.observations().tolist() == [200, 201]
    assert small.next_observations().tolist() == [201, 202]
    assert small.linked.tolist() == [True, False]


def test_subsample_by_transitions_is_uniform_and_nested():
    size, draws = 40, 4000
    frames = np.arange(size + 1)
    data = Transitions.from_arrays(frames[:-1], np.zeros(size, int), np.zeros(size), frames[1:], np.zeros(size))
    counts = np.zeros(size)
    for seed in range(draws):
        half = data.subsample(0.5, np.random.default_rng(seed))
        counts[half.observations()] += 1
    # Each of 40 counts is binomial(4000, 1/2); |z| > 5 somewhere has probability below 40 * 6e-7 = 2.4e-5.
    assert np.abs(counts - draws / 2).max() < 5 * np.sqrt(draws / 4)
    tenth = data.subsample(0.1, np.random.default_rng(1))
    assert len(tenth) == 4
    assert set(tenth.observations()) <= set(data.subsample(0.5, np.random.default_rng(1)).observations())
    assert (np.diff(tenth.observations()) > 0).all()
    assert len(tenth.frames) <= 8
    assert tenth.metadata["subsample"] == {"fraction": 0.1, "by": "transitions", "of": 40}


def test_subsample_by_episodes_keeps_them_whole():
    lengths = [3, 1, 4, 1, 5, 9, 2, 6]
    data = Transitions.from_arrays(**random_columns(np.random.default_rng(0), lengths))
    some = data.subsample(0.4, np.random.default_rng(3), by="episodes")
    more = data.subsample(0.7, np.random.default_rng(3), by="episodes")
    numbers, counts = np.unique(some.episodes, return_counts=True)
    assert counts.tolist() == [lengths[number] for number in numbers]
    assert set(numbers) < set(more.episodes)
    assert len(some) - max(counts) < 12 <= len(some)  # the share of 31 is reached by the last episode drawn
    assert data.subsample(1.0, np.random.default_rng(0), by="episodes").fingerprint() == data.compact().fingerprint()


def test_subsample_by_shards_takes_the_start_of_each():
    size = 100
    frames = np.arange(size + 1)
    data = Transitions.from_arrays(frames[:-1], np.zeros(size, int), np.zeros(size), frames[1:], np.zeros(size))
    part = data.subsample(0.2, by="shards", shards=5)
    assert part.observations().tolist() == [20 * shard + step for shard in range(5) for step in range(4)]
    assert part.linked.tolist() == ([True] * 3 + [False]) * 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, np.random.default_rng()), "outside"),
        ((1.5, np.random.default_rng()), "outside"),
        ((0.5,), "give rng"),
        ((0.5, np.random.default_rng(), "days"), "'transitions', 'episodes' or 'shards'"),
    ],
)
def test_subsamples_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        log().subsample(*arguments)


def test_concatenate_numbers_episodes_anew():
    both = Transitions.concatenate([log(), log(episodes=[5, 5, 5, 0, 0, 1])], metadata={"from": 2})
    assert both.episodes.tolist() == [0, 0, 0, 1, 1, 2, 3, 3, 3, 4, 4, 5]
    assert both.observations().tolist() == log().observations().tolist() * 2
    assert both.next_observations().tolist() == log().next_observations().tolist() * 2
    assert both.linked.tolist() == log().linked.tolist() * 2
    assert both.metadata == {"from": 2}
    with pytest.raises(ValueError, match="differ"):
        Transitions.concatenate([log(), log(n_actions=3)])
    with pytest.raises(ValueError, match="at least one"):
        Transitions.concatenate([])


def test_describe_counts_what_is_there():
    found = log().describe()
    assert (found.transitions, found.episodes, found.frames) == (6, 3, 9)
    assert found.action_counts == (3, 2, 1, 0)
    assert found.terminated == pytest.approx(1 / 3)
    assert found.truncated == pytest.approx(1 / 3)
    assert found.reward_range == (-1.0, 2.0)
    assert found.episode_returns == {"min": -1.0, "mean": pytest.approx(2.5 / 3), "median": 1.5, "max": 2.0}
    assert "6 transitions of 3 episodes" in str(found)
    assert found.to_json()["frame_bytes"] == 72


def test_returns_keep_the_order_of_the_log():
    assert log(episodes=[9, 9, 9, 1, 1, 5]).returns().tolist() == [1.5, -1.0, 2.0]

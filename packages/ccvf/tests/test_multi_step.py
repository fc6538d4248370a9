import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccvf.multi_step import n_step
from ccvf.transitions import Transitions


def make(lengths, rng, gaps=0.0):
    """Episodes that end in all three ways; observations are unique numbers, and some rows are left out."""
    total, starts = sum(lengths), np.cumsum([0, *lengths])
    observations = np.concatenate([np.arange(n) + 1000 * k for k, n in enumerate(lengths)])
    terminated, truncated = np.zeros(total, bool), np.zeros(total, bool)
    for k, end in enumerate(starts[1:] - 1):
        terminated[end], truncated[end] = k % 3 == 0, k % 3 == 1
    data = Transitions.from_arrays(
        observations, rng.integers(2, size=total), rng.normal(size=total), observations + 1, terminated, truncated,
        np.repeat(np.arange(len(lengths)), lengths),
    )  # fmt: skip
    kept = rng.random(total) >= gaps
    kept[0] = True
    return data.select(kept)


def brute_force(data, n, gamma):
    """Row by row, step by step, as one would say it."""
    found = []
    for row in range(len(data)):
        reward, steps, at = 0.0, 0, row
        while True:
            reward += gamma**steps * data.rewards[at]
            steps += 1
            ended = data.terminated[at] or data.truncated[at]
            onward = at + 1
            if steps == n or ended or onward == len(data) or data.episodes[onward] != data.episodes[at]:
                break
            if data.next_observations([at])[0] != data.observations([onward])[0]:
                break
            at = onward
        found.append((reward, steps, data.next_observations([at])[0], data.terminated[at], data.truncated[at]))
    return [np.array(column) for column in zip(*found, strict=True)]


@pytest.mark.property
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
    st.integers(1, 12),
    st.sampled_from([0.0, 0.9, 1.0]),
    st.sampled_from([0.0, 0.3]),
    st.integers(0, 2**31),
)
def test_against_brute_force(lengths, n, gamma, gaps, seed):
    data = make(lengths, np.random.default_rng(seed), gaps)
    found = n_step(data, n, gamma)
    rewards, steps, after, terminated, truncated = brute_force(data, n, gamma)
    np.testing.assert_allclose(found.rewards, rewards, rtol=1e-13, atol=1e-13)
    np.testing.assert_array_equal(found.steps, steps)
    np.testing.assert_array_equal(found.next_observations(), after)
    np.testing.assert_array_equal(found.terminated, terminated)
    np.testing.assert_array_equal(found.truncated, truncated)
    np.testing.assert_array_equal(found.observations(), data.observations())
    np.testing.assert_array_equal(found.actions, data.actions)


def test_one_step_changes_nothing():
    data = make([4, 2, 5], np.random.default_rng(0))
    assert n_step(data, 1, 0.9).fingerprint() == data.fingerprint()


def test_far_enough_ahead_is_the_return_of_the_episode():
    data = make([4, 2, 5], np.random.default_rng(0))
    found = n_step(data, 100, 1.0)
    np.testing.assert_allclose(found.rewards[[0, 4, 6]], data.returns(), rtol=1e-13)
    assert found.metadata["n_step"] == {"n": 100, "gamma": 1.0}


def test_refusals():
    data = make([4], np.random.default_rng(0))
    with pytest.raises(ValueError, match="several steps already"):
        n_step(n_step(data, 2, 0.9), 2, 0.9)
    with pytest.raises(ValueError, match="at least 1"):
        n_step(data, 0, 0.9)
    with pytest.raises(ValueError, match="gamma"):
        n_step(data, 1, 1.1)
    with pytest.raises(ValueError, match="sums over several steps"):
        n_step(data, 2, 0.9).returns()
    assert n_step(data, 2, 0.9).describe().episode_returns is None

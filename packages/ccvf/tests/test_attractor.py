"""Values that say nothing: found, whatever their level, and nothing else is."""

import numpy as np
import pytest

from ccvf.attractor import informative, no_spread, silent, undecided, watch


def seen(rows, steps=6, envs=2, seed=0):
    rng = np.random.default_rng(seed)
    spread, pairs = no_spread(rows, 3), []
    for _ in range(steps):
        q = rng.normal(size=(envs, 3, 4)) * np.array([1.0, 1e-6, 0.0])[:, None] + np.array([1e3, 5.0, -7.0])[:, None]
        actions = rng.integers(4, size=envs)
        spread = watch(spread, q, actions)
        pairs.append(np.stack([q[np.arange(envs), :, actions], q.max(-1)]))
    return spread, np.stack(pairs)


@pytest.mark.parametrize("rows", [1, 2])
def test_running_moments_are_those_of_all_values(rows):
    spread, pairs = seen(rows)
    values = pairs.reshape(12, 2, 3) if rows == 2 else pairs.reshape(24, 1, 3)
    np.testing.assert_allclose(spread.mean, values.mean(0))
    np.testing.assert_allclose(spread.deviation, values.std(0), rtol=1e-6, atol=1e-12)
    assert spread.count.tolist() == [len(values)] * rows


def test_constant_confidences_are_found_at_any_level():
    spread, _ = seen(1)
    assert informative(spread).tolist() == [[True, False, False]]
    assert informative(no_spread(1, 3)).all()


def test_unseen_actions_count_for_nothing():
    q = np.array([[[0.0, 0.0, -100.0], [0.3, 0.1, -100.0]], [[0.0, 0.0, -100.0], [0.5, 0.1, -100.0]]])
    spread = watch(no_spread(1, 2), q, np.array([0, 1]))
    assert informative(spread).tolist() == [[False, True]]


def test_silence_is_about_one_transition():
    spread, _ = seen(1)
    q = np.array([[[0.0, 0.0], [0.5, 0.2], [0.3, 0.3]]])
    after = np.array([[[0.0, 0.0], [0.5, 0.5], [0.4, 0.1]]])
    ask = (np.array([0]), after, np.array([False]))
    assert silent(spread, q, *ask).tolist() == [[True, True, False]]
    assert silent(spread, q, np.array([0]), after, np.array([True])).tolist() == [[True, False, False]]
    assert silent(spread, q, np.array([1]), after, np.array([False])).tolist() == [[True, False, False]]
    assert undecided(spread, q).tolist() == [[True, False, True]]

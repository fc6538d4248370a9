"""Calibration against returns: counted by hand, by closed form, and for values that lie."""

import numpy as np
import pytest

from ccvf.calibration import calibrate, returns_to_go
from ccvf.environments import Step, Stepper


class Coin(Stepper):
    """Episodes of `length` steps from state 0; the last one pays 1 with probability 1/2."""

    name, observation_shape, dtype, n_actions = "coin", (), np.dtype(np.int64), 2

    def __init__(self, n=4, length=3, cut=False):
        self.n, self.length, self.cut = n, length, cut

    def reset(self, seed=None):
        self.rng, self.age = np.random.default_rng(seed), np.zeros(self.n, np.int64)
        return self.age.copy()

    def step(self, actions):
        self.age += 1
        ended = self.age >= self.length
        rewards = np.where(ended, self.rng.integers(2, size=self.n), 0).astype(float)
        after = self.age.copy()
        self.age[ended] = 0
        none = np.zeros(self.n, bool)
        return Step(rewards, after, none if self.cut else ended, ended if self.cut else none, self.age.copy())


class Levels:
    """Worth `level(delta)` times gamma to the steps that remain; action 1 is always better."""

    n_actions = 2

    def __init__(self, level, length=3):
        self.level, self.length = level, length

    def q_values(self, observations, deltas):
        worth = 0.9 ** (self.length - 1 - observations)[:, None] * self.level(deltas)
        return np.stack([worth - 1, worth], -1)


def test_returns_by_hand():
    np.testing.assert_allclose(returns_to_go(np.array([1.0, 2.0, 3.0]), 0.5), [1 + 1 + 0.75, 2 + 1.5, 3])
    np.testing.assert_allclose(returns_to_go(np.array([1.0, 2.0]), 0), [1, 2])


def test_shares_have_their_closed_form():
    # Values at most 0 are always reached, values in (0, 1] when the coin pays, values above 1 never.
    found = calibrate(Levels(lambda d: 2.1 * d - 0.05), Coin(), [0.01, 0.1, 0.3, 1.0], 400, gamma=0.9, seed=0)
    assert found.share[0] == 1
    assert found.share[3] == 0
    # 400 fair coins: standard error .025; both shares lie within 5 of them but with probability 1e-6.
    assert abs(found.share[1:3] - 0.5).max() < 0.125
    assert found.share[1] == found.share[2]
    assert (found.low[1] < 0.5 < found.high[1]) or abs(found.share[1] - 0.5) > 0.04
    assert found.pairs.tolist() == [1200] * 4
    np.testing.assert_allclose(found.nominal, [0.99, 0.9, 0.7, 0.0])
    row = found.table()[0]
    assert (row["delta"], row["share"], row["dropped"]) == (0.01, 1.0, 0.0)
    mean = np.mean([0.9**2, 0.9, 1])
    np.testing.assert_allclose(found.gap, mean * (found.share[1] - (2.1 * found.deltas - 0.05)), atol=1e-12)


def test_intervals_resample_episodes_and_not_pairs():
    # All pairs of an episode agree here, so 30 steps of 40 episodes are worth 40 observations.
    short = calibrate(Levels(lambda d: 0.5 + 0 * d, 1), Coin(length=1), [0.5], 40, gamma=0.9, seed=1)
    long = calibrate(Levels(lambda d: 0.5 + 0 * d, 30), Coin(length=30), [0.5], 40, gamma=0.9, seed=1)
    assert long.pairs[0] == 30 * short.pairs[0]
    assert (long.high - long.low)[0] > 0.7 * (short.high - short.low)[0]


def test_what_a_time_limit_hides_is_left_out():
    found = calibrate(Levels(lambda d: 0 * d, 50), Coin(length=50, cut=True), [0.5], 4, gamma=0.9, seed=0)
    # gamma^(steps to the cut) <= .05 from 29 steps before the cut on: .9^28 = .052, .9^29 = .047.
    assert (found.pairs[0], found.dropped[0]) == (4 * 22, 4 * 28)
    with pytest.raises(ValueError, match="time limits"):
        calibrate(Levels(lambda d: 0 * d, 5), Coin(length=5, cut=True), [0.5], 4, gamma=0.9, seed=0)


def test_one_episode_has_the_widest_interval():
    found = calibrate(Levels(lambda d: 0.5 + 0 * d), Coin(n=1), [0.5], 1, gamma=0.9, seed=0)
    assert (found.low[0], found.high[0]) == (0, 1)
    assert found.to_json()["episodes"] == 1


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="gamma"):
        calibrate(Levels(lambda d: d), Coin(), [0.5], 4, gamma=2, seed=0)
    with pytest.raises(ValueError, match="outside"):
        calibrate(Levels(lambda d: d), Coin(), [2.0], 4, gamma=0.9, seed=0)

"""Evaluation: the asked number of whole episodes, short ones not preferred, everything counted once."""

import numpy as np
import pytest

from ccvf.adaptive import AdaptivePolicy
from ccvf.environments import Step, Stepper, make_vector
from ccvf.evaluating import evaluate, play
from ccvf.policies import Policy, RandomPolicy


class Counting(Stepper):
    """Environment k plays episodes of given lengths, in order and then anew; rewards number the steps."""

    name, observation_shape, dtype, n_actions = "counting", (), np.dtype(np.int64), 3

    def __init__(self, lengths, cut=False):
        self.lengths, self.n, self.cut = lengths, len(lengths), cut

    def reset(self, seed=None):
        self.episode, self.age = [0] * self.n, np.zeros(self.n, np.int64)
        return self.age.copy()

    def step(self, actions):
        self.age += 1
        ended = np.array(
            [self.age[k] >= self.lengths[k][self.episode[k] % len(self.lengths[k])] for k in range(self.n)]
        )
        after, rewards = self.age.copy(), self.age.astype(float) + 100.0 * np.arange(self.n)
        self.age[ended] = 0
        for k in np.flatnonzero(ended):
            self.episode[k] += 1
        none = np.zeros_like(ended)
        return Step(rewards, after, none if self.cut else ended, ended if self.cut else none, self.age.copy())


class Zeros(Policy):
    def __init__(self, action=0):
        self.action, self.seen, self.resets = action, [], []

    def act(self, observations):
        return np.full(len(observations), self.action)

    def observe(self, rewards, next_observations, terminated, truncated):
        self.seen.append((rewards, next_observations, terminated, truncated))

    def reset(self, envs=None):
        self.resets.append(None if envs is None else envs.copy())


def test_every_episode_is_counted_once_and_whole():
    stepper, policy = Counting([[2, 5, 3], [4]]), Zeros()
    found = evaluate(policy, stepper, 5, seed=0, gamma=0.5)
    assert found.envs.tolist() == [0, 1, 0, 1, 0]
    assert found.lengths.tolist() == [2, 4, 5, 4, 3]
    expected = [[1, 2], [101, 102, 103, 104], [1, 2, 3, 4, 5], [101, 102, 103, 104], [1, 2, 3]]
    assert found.returns.tolist() == [sum(rewards) for rewards in expected]
    np.testing.assert_allclose(found.discounted, [sum(r * 0.5**t for t, r in enumerate(x)) for x in expected])
    assert not found.truncated.any()
    assert len(policy.seen) == 10  # until the last episode that counts is over
    assert policy.resets[0] is None
    assert [r.tolist() for r in policy.resets[1:4]] == [[False, False], [True, False], [False, False]]


def test_short_episodes_are_not_preferred():
    # Half of the environments end at once, half late: the first ten to finish would all be short ones.
    found = evaluate(Zeros(), Counting([[1], [20]]), 10, seed=0)
    assert sorted(found.lengths.tolist()) == [1] * 5 + [20] * 5


def test_fewer_episodes_than_environments():
    assert evaluate(Zeros(), Counting([[3], [9], [9]]), 1, seed=0).lengths.tolist() == [3]


def test_cut_episodes_are_told_apart():
    assert evaluate(Zeros(), Counting([[3]], cut=True), 2, seed=0).truncated.all()
    found = evaluate(Zeros(), Counting([[2, 6], [5]]), 4, seed=0, max_steps=4)
    assert found.lengths.tolist() == [2, 4, 4, 4]
    assert found.truncated.tolist() == [False, True, True, True]
    assert found.returns.tolist() == [3, 410, 10, 410]
    exact = evaluate(Zeros(), Counting([[4]]), 1, seed=0, max_steps=4)
    assert exact.truncated.tolist() == [False]


def test_environments_without_an_end_are_noticed():
    assert evaluate(Zeros(), Counting([[10**6]] * 2), 2, seed=0, max_steps=3).lengths.tolist() == [3, 3]
    with pytest.raises(ValueError, match="no time limit"):
        evaluate(Zeros(), Counting([[10**6]]), 2, seed=0, max_steps=3)


def test_steps_carry_the_numbers_of_their_episodes():
    numbers = [
        (p.episode.tolist(), p.age.tolist(), p.ended.tolist()) for p in play(Zeros(), Counting([[1], [2]]), 3, seed=0)
    ]
    assert numbers == [([0, 1], [0, 0], [True, False]), ([2, 1], [0, 1], [True, True])]


def test_the_same_seed_plays_the_same_episodes():
    def run(seed):
        return evaluate(
            RandomPolicy(2, np.random.default_rng(0)), make_vector("CartPole-v1", 3), 6, seed=seed
        ).to_json()

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_the_belief_comes_along_and_intervals_know_it():
    class Flat:
        n_actions = 3

        def q_values(self, observations, deltas):
            return np.zeros((len(observations), len(deltas), 3)) + np.arange(3) + deltas[:, None]

    found = evaluate(AdaptivePolicy(Flat(), gamma=0.9), Counting([[2], [3]]), 4, seed=0)
    assert found.belief is not None
    assert found.belief.weights.shape == (6, 21)
    assert found.mean(np.random.default_rng(0)).n == 2
    plain = evaluate(Zeros(), Counting([[2], [3]]), 4, seed=0)
    estimate = plain.mean(np.random.default_rng(0), discounted=True)
    assert (estimate.n, estimate.value) == (4, pytest.approx(plain.discounted.mean()))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: evaluate(Zeros(), Counting([[2]]), 0, seed=0), "at least 1"),
        (lambda: evaluate(Zeros(), Counting([[2]]), 1, seed=0, gamma=1.5), "gamma"),
        (lambda: evaluate(Zeros(3), Counting([[2]]), 1, seed=0), "actions 0 to 2"),
        (lambda: evaluate(Zeros(), Counting([[2]]), 1, seed=0, max_steps=0), "at least 1"),
    ],
)
def test_what_is_wrong_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call()

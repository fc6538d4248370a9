from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from ccvf.baselines import DQN
from ccvf.collecting import ReplayOptions, collect, collect_replay, learning_curve
from ccvf.collecting_log import GrowingLog
from ccvf.collecting_replay import Replay
from ccvf.configs import DQNConfig
from ccvf.environments import GymnasiumStepper, Step, Stepper, make_vector
from ccvf.io import load_transitions
from ccvf.policies import Policy, RandomPolicy
from ccvf.transitions import Transitions


class Counting(gymnasium.Env):
    """Shows (its number, seed of the episode, step); episodes end after 2 to 5 steps, in turns by a time limit."""

    def __init__(self, number):
        self.observation_space = gymnasium.spaces.Box(0, 2**31, (3,), np.int64)
        self.action_space = gymnasium.spaces.Discrete(2)
        self.number, self.given, self.age = number, 0, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.given, self.age = seed or 0, 0
        return np.array([self.number, self.given, 0]), {}

    def step(self, action):
        self.age += 1
        end = self.age == 2 + self.given % 4
        cut = end and self.given % 3 == 0
        return np.array([self.number, self.given, self.age]), float(action), end and not cut, cut, {}


def counting(n=3) -> Stepper:
    numbers = iter(range(n))
    return GymnasiumStepper("counting", [lambda: Counting(next(numbers))] * n)


def prove(data, n, size):
    """What the counting environment showed is in the log as it was, nothing across a reset."""
    assert len(data) == size
    before, after = data.observations(), data.next_observations()
    np.testing.assert_array_equal(after[:, :2], before[:, :2])
    np.testing.assert_array_equal(after[:, 2], before[:, 2] + 1)
    ended = after[:, 2] == 2 + after[:, 1] % 4
    cut = ended & (after[:, 1] % 3 == 0)
    np.testing.assert_array_equal(data.terminated, ended & ~cut)
    np.testing.assert_array_equal(data.rewards, data.actions)
    starts = np.append(True, data.episodes[1:] != data.episodes[:-1])
    np.testing.assert_array_equal(before[starts, 2], 0)
    np.testing.assert_array_equal(np.append(starts[1:], True), data.last)
    np.testing.assert_array_equal(data.linked, ~data.last)
    np.testing.assert_array_equal(data.episodes, np.cumsum(starts) - 1)
    # a frame each transition, and a last one each episode
    assert len(data.frames) == size + int(starts.sum())
    assert (np.bincount(before[:, 0], minlength=n) == size // n).all()
    # cut where a time limit or the end of a part cut it, nowhere else
    np.testing.assert_array_equal(data.truncated, data.last & ~data.terminated)
    return int((data.truncated & ~cut).sum())


def test_collecting_keeps_what_was_shown():
    data = collect(counting(), RandomPolicy(2, np.random.default_rng(0)), 100, seed=3)
    assert prove(data, 3, 102) <= 3
    assert data.metadata == {"env": "counting", "collected": "RandomPolicy", "seed": 3, "envs": 3}
    again = collect(counting(), RandomPolicy(2, np.random.default_rng(0)), 100, seed=3)
    assert again.fingerprint() == data.fingerprint()
    other = collect(counting(), RandomPolicy(2, np.random.default_rng(0)), 100, seed=4)
    assert other.fingerprint() != data.fingerprint()


class Recording(Policy):
    """Checks that it is told of everything, once, and of resets before the next act."""

    def __init__(self):
        self.shown: Any = None
        self.led, self.fresh = 0, np.zeros(3, bool)

    def act(self, observations):
        np.testing.assert_array_equal(observations[:, 2] == 0, self.fresh)
        self.shown, self.fresh = observations, np.zeros(3, bool)
        return np.zeros(3, np.int64)

    def observe(self, rewards, next_observations, terminated, truncated):
        np.testing.assert_array_equal(next_observations[:, 2], self.shown[:, 2] + 1)
        self.led += 1

    def reset(self, envs=None):
        self.fresh |= True if envs is None else envs


def test_the_policy_is_told_everything():
    policy = Recording()
    collect(counting(), policy, 60)
    assert policy.led == 20


@pytest.mark.parametrize("actions", [[0, 1], [0, 1, 2], [0, 0, -1], [0.0, 1.0, 0.0]])
def test_a_policy_that_gives_no_actions_is_refused(actions):
    class Odd(Policy):
        def act(self, observations):
            return np.array(actions)

    with pytest.raises(ValueError, match="whole numbers from 0 to 1"):
        collect(counting(), Odd(), 60)


def test_the_log_grows_beyond_what_was_expected():
    stepper, rng = counting(), np.random.default_rng(0)
    log = GrowingLog(stepper, 1)
    log.begin(stepper.reset(0))
    for _ in range(50):
        actions = rng.integers(2, size=3)
        log.append(actions, stepper.step(actions))
    log.close_part()
    prove(log.log(), 3, 150)


class Stacked(Stepper):
    """Stacks of three numbered frames that start empty, as on Atari; episodes of 4 steps, one jumps within."""

    name, n, observation_shape, dtype, n_actions, stack = "stacked", 2, (3, 2, 2), np.dtype(np.uint8), 2, 3

    def __init__(self, jump=False):
        self.jump = jump
        self.age, self.next, self.stacks = 0, 1, np.zeros((2, 3, 2, 2), np.uint8)

    def frame(self):
        self.next += 1
        return np.full((2, 2), self.next, np.uint8)

    def reset(self, seed=None):
        self.age, self.stacks = 0, np.zeros((2, 3, 2, 2), np.uint8)
        self.stacks[:, -1] = np.stack([self.frame(), self.frame()])
        return self.stacks.copy()

    def step(self, actions):
        self.age += 1
        new = np.stack([self.frame(), self.frame()])
        after = np.concatenate([self.stacks[:, 1:], new[:, None]], axis=1)
        if self.jump and self.age == 2:
            after[1, 0] = 99
        self.stacks = after
        ended = np.full(2, self.age == 4)
        observations = self.reset() if ended.all() else after.copy()
        return Step(np.zeros(2), after, ended, np.zeros(2, bool), observations)


@pytest.mark.parametrize("jump", [False, True])
def test_stacks_share_their_frames(jump):
    stepper, shown = Stacked(jump), []
    log = GrowingLog(stepper, 16)
    observations = stepper.reset()
    log.begin(observations)
    for _ in range(8):
        step = stepper.step(np.zeros(2, int))
        shown.append((observations, step.next_observations))
        log.append(np.zeros(2, np.int64), step)
        observations = step.observations
    log.close_part()
    data = log.log()
    assert (data.stack, data.observation_shape) == (3, (3, 2, 2))
    before = np.concatenate([np.stack([pair[0][k] for pair in shown]) for k in range(2)])
    order = np.argsort([*([0] * 4 + [2] * 4), *([1] * 4 + [3] * 4)], kind="stable")
    np.testing.assert_array_equal(data.observations(), before[order])
    after = np.concatenate([np.stack([pair[1][k] for pair in shown]) for k in range(2)])
    np.testing.assert_array_equal(data.next_observations(), after[order])
    # an episode of 4 steps: the empty frame, the first one, and one a step; two more where a stack does not move
    assert len(data.frames) == 4 * 6 + (4 if jump else 0)


def grid_learner(seed=0):
    config = DQNConfig(body="tabular", n_states=49, learning_rate=0.05, target_period=20, gamma=0.9)
    return DQN((), 4, config, generator=torch.Generator().manual_seed(seed))


SMALL = ReplayOptions(warmup=40, batch_size=8, parts=5, frames_per_update=4)


def replay(seed=0, learner=None, stepper=None, **options):
    stepper = make_vector("gridworld:lava", 4) if stepper is None else stepper
    return collect_replay(stepper, grid_learner() if learner is None else learner, 400, SMALL, seed=seed, **options)


def test_equal_seeds_give_equal_logs():
    learner, twin = grid_learner(), grid_learner()
    first, second = replay(learner=learner), replay(learner=twin)
    assert first.fingerprint() == second.fingerprint()
    assert learner.updates == (400 - 40) // 4 == twin.updates
    assert replay(seed=1).fingerprint() != first.fingerprint()
    assert first.metadata["options"]["parts"] == 5
    assert first.metadata["frames"] == 400
    prove_grid(first)


def prove_grid(data):
    assert len(data) == 400
    np.testing.assert_array_equal(data.linked, ~data.last)
    assert len(data.frames) == 400 + data.episodes[-1] + 1


class Interrupted(Stepper):
    """Steps as another does, until Ctrl-C comes."""

    def __init__(self, inner, after):
        self.inner, self.left = inner, after
        for name in ("name", "n", "observation_shape", "dtype", "n_actions", "stack"):
            setattr(self, name, getattr(inner, name))

    def reset(self, seed=None):
        return self.inner.reset(seed)

    def step(self, actions):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.inner.step(actions)


@pytest.mark.parametrize("after", [3, 20, 47, 95])
def test_an_interrupted_log_goes_on_to_the_same_end(tmp_path, after):
    path, learner = tmp_path / "log.npz", grid_learner()
    expected = replay(learner=learner)
    with pytest.raises(KeyboardInterrupt):
        replay(path=path, stepper=Interrupted(make_vector("gridworld:lava", 4), after))
    assert not path.exists()
    resumed = grid_learner(seed=0 if after < 20 else 1)  # its weights come from the state, if there is one
    data = replay(path=path, learner=resumed)
    assert data.fingerprint() == expected.fingerprint()
    assert load_transitions(path).fingerprint() == expected.fingerprint()
    assert [file.name for file in tmp_path.iterdir()] == ["log.npz"]
    mine, other = resumed.state()[0], learner.state()[0]
    assert all(torch.equal(mine[name], other[name]) for name in other)


def test_a_crash_between_part_and_state_does_no_harm(tmp_path, monkeypatch):
    path, saved = tmp_path / "log.npz", []
    import ccvf.collecting as module

    real = module.save_checkpoint

    def failing(*arguments):
        saved.append(arguments)
        if len(saved) == 3:
            raise OSError("disk full")
        real(*arguments)

    monkeypatch.setattr(module, "save_checkpoint", failing)
    with pytest.raises(OSError, match="disk full"):
        replay(path=path)
    assert replay(path=path).fingerprint() == replay().fingerprint()


def test_parts_of_another_recipe_are_not_gone_on_with(tmp_path):
    path = tmp_path / "log.npz"
    with pytest.raises(KeyboardInterrupt):
        replay(path=path, stepper=Interrupted(make_vector("gridworld:lava", 4), 30))
    with pytest.raises(ValueError, match="other seed"):
        replay(path=path, seed=1)
    other = DQN((), 4, DQNConfig(body="tabular", n_states=49, gamma=0.8))
    with pytest.raises(ValueError, match="gamma"):
        replay(path=path, learner=other)
    (tmp_path / "log.npz.parts" / "part-0000.npz").unlink()
    with pytest.raises(ValueError, match="no such file"):
        replay(path=path)


def test_a_learner_of_another_environment_is_refused():
    with pytest.raises(ValueError, match="the learner takes observations"):
        replay(stepper=make_vector("CartPole-v1", 2))
    with pytest.raises(ValueError, match="at least 1"):
        collect_replay(make_vector("gridworld:lava"), grid_learner(), 0)


def test_the_share_of_random_actions_falls_as_said():
    options = ReplayOptions(epsilon=0.1, decay=0.5)
    assert [options.epsilon_at(frame, 100) for frame in (0, 25, 50, 99)] == pytest.approx([1.0, 0.55, 0.1, 0.1])
    assert ReplayOptions(decay=0.0, epsilon=0.2).epsilon_at(0, 100) == pytest.approx(0.2)
    wrong: Any = [{"epsilon": 2.0}, {"decay": -1.0}, {"warmup": -1}, {"parts": 0}, {"batch_size": 0}]
    for changes in wrong:
        with pytest.raises(ValueError, match=r"shares|counts"):
            ReplayOptions(**changes)


def test_draws_are_rows_of_the_log_and_uniform():
    stepper: Any = counting()
    log = GrowingLog(stepper, 30)
    log.begin(stepper.reset(0))
    for _ in range(10):
        actions = np.random.default_rng(log.size).integers(2, size=3)
        log.append(actions, stepper.step(actions))
    replayed, rng, seen = Replay(log, torch.device("cpu")), np.random.default_rng(0), []
    for _ in range(100):
        batch = replayed.draw(32, rng)
        np.testing.assert_array_equal(batch.next_observations[:, 2], batch.observations[:, 2] + 1)
        np.testing.assert_array_equal(batch.rewards, batch.actions)
        np.testing.assert_array_equal(
            batch.terminated,
            (batch.next_observations[:, 2] == 2 + batch.observations[:, 1] % 4) & (batch.observations[:, 1] % 3 != 0),
        )
        seen.append(batch.observations)
    _, counts = np.unique(torch.cat(seen).numpy(), axis=0, return_counts=True)
    # Each of 30 rows is drawn binomial(3200, 1/30) times; |z| > 5 somewhere has probability below 30 * 6e-7.
    assert len(counts) == 30
    assert np.abs(counts - 3200 / 30).max() < 5 * np.sqrt(3200 / 30)


def test_a_learner_learns_while_it_is_logged():
    class Bandit(gymnasium.Env):
        observation_space = gymnasium.spaces.Discrete(1)
        action_space = gymnasium.spaces.Discrete(3)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return np.int64(0), {}

        def step(self, action):
            return np.int64(0), float(action == 2), True, False, {}

    config = DQNConfig(body="tabular", n_states=1, learning_rate=0.05, target_period=10)
    learner = DQN((), 3, config, generator=torch.Generator().manual_seed(0))
    stepper = GymnasiumStepper("bandit", [Bandit] * 2)
    data = collect_replay(stepper, learner, 1200, ReplayOptions(warmup=50, parts=4), seed=0)
    curve = learning_curve(data, 4)
    assert curve[:, 0].tolist() == [300, 600, 900, 1200]
    # Random at first (1/3 of 300, mixed with the decay), then 1 - 0.05 * 2/3 = .967 of 600: below .92 has z < -6.
    assert curve[2:, 1].min() > 0.92
    assert curve[0, 1] < 0.85


def test_the_curve_is_the_mean_return_of_each_stretch():
    frames = np.arange(9)
    data = Transitions.from_arrays(
        frames[:-1], np.zeros(8, int), np.arange(8.0), frames[1:], [0, 1, 0, 0, 0, 1, 1, 0],
    )  # fmt: skip
    # episodes: rewards 0+1 (ends at 1), 2+3+4+5 (ends at 5), 6 (at 6), 7 (at 7)
    curve = learning_curve(data, 4)
    assert curve[:, 0].tolist() == [2, 4, 6, 8]
    np.testing.assert_allclose(curve[:, 1], [1, np.nan, 14, 6.5])


def test_a_copy_on_a_device_follows_the_log():
    stepper: Any = counting()
    log = GrowingLog(stepper, 6)  # grows again and again
    shared, mirrored = Replay(log, torch.device("cpu")), Replay(log, torch.device("cpu"))
    mirrored.resident = True  # as on a GPU: a copy that is brought up to date
    rng = np.random.default_rng(0)
    for part in range(4):
        begin = log.part
        log.begin(stepper.reset(part))
        for step in range(15):
            actions = rng.integers(2, size=3)
            log.append(actions, stepper.step(actions))
            if step % 4 == 3:
                left, right = (r.draw(50, np.random.default_rng(step)) for r in (shared, mirrored))
                assert all(torch.equal(getattr(left, name), getattr(right, name)) for name in vars(left))
        log.close_part()
        mirrored.forget(*begin)
        left, right = (r.draw(200, np.random.default_rng(part)) for r in (shared, mirrored))
        assert all(torch.equal(getattr(left, name), getattr(right, name)) for name in vars(left))

import subprocess
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from ccvf.environments import GymnasiumStepper, check_match, imported, make_vector
from ccvf.environments_grid import MDPEnv
from ccvf.environments_minatar import GAMES, MinAtarEnv
from ccvf.gridworlds import behaviour, lava_world
from ccvf.transitions import Transitions

MANY = ["minatar:breakout", "minatar:seaquest", "gridworld:lava", "CartPole-v1"]


class Counting(gymnasium.Env):
    """Shows (its number, episode, step); episode k of environment e ends after 2 + (e + k) % 3 steps, in turns."""

    def __init__(self, number):
        self.observation_space = gymnasium.spaces.Box(0, 10_000, (3,), np.int64)
        self.action_space = gymnasium.spaces.Discrete(2, start=5)
        self.number, self.episode, self.age, self.actions, self.seeds = number, -1, 0, [], []

    def seen(self):
        return np.array([self.number, self.episode, self.age])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.age = self.episode + 1, 0
        self.seeds.append(seed)
        return self.seen(), {}

    def step(self, action):
        self.actions.append(action)
        self.age += 1
        end = self.age == 2 + (self.number + self.episode) % 3
        # every second episode is cut, every fourth sets both flags
        terminated = end and self.episode % 4 != 1
        return self.seen(), float(100 * self.episode + self.age), terminated, end and self.episode % 2 == 1, {}


def counting(n=3, seed=0) -> Any:
    numbers = iter(range(n))
    return GymnasiumStepper("counting", [lambda: Counting(next(numbers))] * n, seed)


def play(stepper, steps, seed=None, actions_seed=0):
    rng = np.random.default_rng(actions_seed)
    found = [stepper.reset(seed)]
    for _ in range(steps):
        step = stepper.step(rng.integers(stepper.n_actions, size=stepper.n))
        found += [step.rewards, step.next_observations, step.terminated, step.truncated, step.observations]
    return found


def test_no_step_crosses_a_reset():
    stepper = counting()
    observations = stepper.reset()
    for _ in range(40):
        step = stepper.step(np.zeros(3, int))
        before, after, onward = observations.T, step.next_observations.T, step.observations.T
        np.testing.assert_array_equal(after[0], before[0])
        np.testing.assert_array_equal(after[1], before[1])  # the same episode
        np.testing.assert_array_equal(after[2], before[2] + 1)  # the next step, the last one included
        np.testing.assert_array_equal(step.rewards, 100 * before[1] + after[2])
        ended = after[2] == 2 + (after[0] + after[1]) % 3
        np.testing.assert_array_equal(step.ended, ended)
        np.testing.assert_array_equal(step.terminated, ended & (after[1] % 4 != 1))
        np.testing.assert_array_equal(step.truncated, ended & (after[1] % 4 == 1))
        np.testing.assert_array_equal(onward[1], before[1] + ended)
        np.testing.assert_array_equal(onward[2], np.where(ended, 0, after[2]))
        observations = step.observations
    assert observations[:, 1].min() > 5


def test_actions_start_where_the_space_says():
    stepper = counting(2)
    stepper.reset()
    stepper.step(np.array([0, 1]))
    assert [env.actions for env in stepper.envs] == [[5], [6]]


def test_every_episode_has_its_own_seed():
    stepper = counting()
    play(stepper, 30, seed=4)
    seeds = [seed for env in stepper.envs for seed in env.seeds]
    assert len(set(seeds)) == len(seeds) > 20
    again = counting()
    play(again, 30, seed=4)
    assert [env.seeds for env in again.envs] == [env.seeds for env in stepper.envs]


@pytest.mark.parametrize("name", MANY)
def test_equal_seeds_give_equal_play_and_others_do_not(name):
    first, second = play(make_vector(name, 3, seed=1), 60), play(make_vector(name, 3), 60, seed=1)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    other = play(make_vector(name, 3, seed=2), 60)
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("name", MANY)
def test_a_second_reset_with_a_seed_forgets_what_was_played(name):
    stepper = make_vector(name, 2)
    play(stepper, 50, seed=9, actions_seed=5)
    again, fresh = play(stepper, 50, seed=3), play(make_vector(name, 2), 50, seed=3)
    assert all(np.array_equal(a, b) for a, b in zip(again, fresh, strict=True))


def test_environments_are_independent_of_how_many_there_are():
    few, many = make_vector("minatar:asterix", 2), make_vector("minatar:asterix", 5)
    few.reset(0)
    many.reset(0)
    rng = np.random.default_rng(0)
    for _ in range(200):
        actions = rng.integers(5, size=5)
        left, right = few.step(actions[:2]), many.step(actions)
        np.testing.assert_array_equal(left.next_observations, right.next_observations[:2])
        np.testing.assert_array_equal(left.observations, right.observations[:2])


def test_arrays_are_the_callers():
    stepper = make_vector("CartPole-v1", 2)
    first = stepper.reset(0)
    kept = first.copy()
    stepper.step(np.zeros(2, int))
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("game", GAMES)
def test_minatar_games_are_environments(game):
    env: Any = MinAtarEnv(game, max_steps=50)
    check_env(env, skip_render_check=True)
    assert env.observation_space.shape[:2] == (10, 10)
    every: Any = MinAtarEnv(game, minimal_actions=False)
    assert every.action_space.n == 6


@pytest.mark.parametrize("game", GAMES)
def test_minatar_against_its_own_environment(game):
    import logging

    handlers = list(logging.getLogger().handlers)
    from minatar import Environment

    logging.getLogger().handlers[:] = handlers  # its import warns by logging, which installs a handler
    theirs, ours = Environment(game, sticky_action_prob=0.3), MinAtarEnv(game, sticky=0.3, minimal_actions=False)
    rng = np.random.default_rng(0)
    for seed in range(4):
        theirs.seed(seed)
        theirs.reset()
        theirs.last_action = 0  # it would carry the last action over into the next episode
        np.testing.assert_array_equal(ours.reset(seed=seed)[0], theirs.state())
        done = False
        for action in rng.integers(6, size=300):
            reward, done = theirs.act(action)
            state, mine, terminated, truncated, _ = ours.step(action)
            np.testing.assert_array_equal(state, theirs.state())
            assert (mine, terminated, truncated) == (reward, done, False)
            if done:
                break
    assert (game == "freeway") != done


def test_minatar_time_limit_truncates():
    env = MinAtarEnv("freeway", max_steps=7)
    for seed in (0, 1):
        env.reset(seed=seed)
        assert [env.step(0)[2:4] for _ in range(7)] == [(False, False)] * 6 + [(False, True)]


def test_minatar_is_made_without_plots_and_log_handlers():
    code = (
        "import logging, sys; from ccvf.environments_minatar import MinAtarEnv; MinAtarEnv('breakout');"
        "assert not {'matplotlib', 'seaborn', 'torch', 'minatar'} & set(sys.modules); assert not logging.root.handlers"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_the_gridworld_moves_as_its_process_says():
    world = lava_world()
    env = MDPEnv(world.mdp, horizon=100)
    check_env(env, skip_render_check=True)
    state = int(world.mdp.initial.argmax())
    counts, draws = np.zeros(world.mdp.n_states), 4000
    env.reset(seed=0)
    for _ in range(draws):
        env._state, env._age = state, 0
        counts[env.step(2)[0]] += 1
    expected = world.mdp.transition.toarray()[state * 4 + 2]
    assert (counts[expected == 0] == 0).all()
    # Four cells with binomial(4000, p) counts; |z| > 5 somewhere has probability below 4 * 6e-7.
    p = expected[expected > 0]
    assert (np.abs(counts[expected > 0] - draws * p) < 5 * np.sqrt(draws * p * (1 - p))).all()


def test_the_return_of_the_gridworld_is_its_value():
    world = lava_world()
    policy = world.mdp.optimal(world.gamma).policy
    stepper = make_vector("gridworld:lava", 50, seed=0, horizon=500)
    states, returns, weights = stepper.reset(), [], np.ones(50)
    totals = np.zeros(50)
    while len(returns) < 2000:
        step = stepper.step(policy[states])
        totals += weights * step.rewards
        weights *= world.gamma
        returns += totals[step.ended].tolist()
        totals[step.ended], weights[step.ended] = 0, 1
        states = step.observations
    value = world.mdp.expected_return(behaviour(world, 0.0), world.gamma)
    # Independent episodes; a fixed seed, and |z| > 5 has probability 6e-7 (short episodes end first: biased by far
    # less than the error at 2,000 of them, of which 50 are unfinished).
    assert abs(np.mean(returns) - value) < 5 * np.std(returns) / np.sqrt(len(returns))


def atari(**options):
    pytest.importorskip("ale_py")
    return make_vector("atari:pong", 2, threads=1, **options)


def test_atari_steps_hold_their_own_last_frames():
    stepper = atari(seed=3, max_steps=12)
    assert (stepper.observation_shape, stepper.dtype, stepper.n_actions, stepper.stack) == ((4, 84, 84), np.uint8, 6, 4)
    observations, ends = stepper.reset(), 0
    for _ in range(40):
        step = stepper.step(np.array([2, 3]))
        # the stack moves by one frame, in an episode's last step too
        np.testing.assert_array_equal(step.next_observations[:, :3], observations[:, 1:])
        assert not step.terminated.any()
        ends += step.ended.sum()
        for k in np.flatnonzero(step.ended):
            assert not step.observations[k, :3].any()  # a new episode's stack is empty but for its first frame
            assert step.next_observations[k, :3].any()
        observations = step.observations
    assert ends == 2 * 3
    stepper.close()


def test_atari_is_seeded():
    first, second = play(atari(seed=1, max_steps=15), 40), play(atari(max_steps=15), 40, seed=1)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("minatar:pacman", {}, "give one of asterix"),
        ("minatar:breakout", {"sticky": 1.0}, "sticky=1"),
        ("minatar:breakout", {"max_steps": 0}, "max_steps=0"),
        ("gridworld:ice", {}, "give 'lava'"),
        ("gridworld:lava", {"horizon": 0}, "horizon=0"),
        ("atari:SpaceInvaders", {}, "did you mean 'space_invaders'"),
        ("atari:pong", {"sticky": 2}, "sticky=2"),
        ("NoSuchGame-v0", {}, "no environment 'NoSuchGame-v0'"),
        ("nothing:here", {}, "no environment 'nothing:here'"),
        ("CartPole-v1", {"n": 0}, "at least 1"),
    ],
)
def test_environments_that_do_not_exist(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_vector(name, **options)


def test_spaces_that_are_not_supported():
    with pytest.raises(TypeError, match="only discrete actions"):
        make_vector("Pendulum-v1")

    class Dictionary(Counting):
        def __init__(self):
            super().__init__(0)
            self.observation_space = gymnasium.spaces.Dict({"a": gymnasium.spaces.Discrete(2)})

    with pytest.raises(TypeError, match="FlattenObservation"):
        GymnasiumStepper("dictionary", [Dictionary])


def test_a_log_must_be_of_the_environment():
    stepper = make_vector("minatar:breakout")
    frames = np.zeros((3, 10, 10, 4), bool)
    columns = (np.zeros(3, int), np.zeros(3), frames, np.zeros(3, bool))
    check_match(Transitions.from_arrays(frames, *columns, n_actions=3), stepper)
    with pytest.raises(ValueError, match=r"1 actions and they have 3.*n_actions="):
        check_match(Transitions.from_arrays(frames, *columns), stepper)
    with pytest.raises(ValueError, match="dtype is bool in the log and float32"):
        check_match(Transitions.from_arrays(frames, *columns), make_vector("CartPole-v1"))
    grid = Transitions.from_arrays(np.zeros(1, np.int32), [3], [0], np.zeros(1, np.int32), [True])
    check_match(grid, make_vector("gridworld:lava"))


def test_an_extra_that_is_missing_is_named():
    with pytest.raises(ImportError, match=r"ccvf\[atari\]"):
        imported("no_such_module_of_ours", "atari")

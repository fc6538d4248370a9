"""The lava world: no fixed conservatism is right for every log, and the adaptive policy is near the best for each."""

import numpy as np
import pytest

from ccvf.adaptive import AdaptivePolicy
from ccvf.confidence import u_grid
from ccvf.counts import Counts
from ccvf.gridworlds import gridworld_log, lava_world
from ccvf.tabular import TabularCCVL

GAMMA, GRID, ROWS = 0.95, u_grid(21), (("narrow", 300), ("narrow", 1000), ("broad", 2000))


def play(mdp, policy, rng, envs=32, skipped=5, episodes=15, limit=60):
    """Mean discounted return; every environment plays its episodes, of which the first are skipped."""
    states, shape = mdp.n_states, (mdp.n_states, mdp.n_actions, mdp.n_states)
    reach = mdp.transition.toarray().reshape(shape).cumsum(-1)
    start = int(mdp.initial.argmax())
    state, age, done = np.full(envs, start), np.zeros(envs, int), np.zeros(envs, int)
    total = np.zeros(envs)
    policy.reset()
    while (done < episodes).any():
        actions = policy.act(state)
        after = np.minimum((reach[state, actions] > rng.random((envs, 1))).argmax(1), states - 1)
        rewards = mdp.reward[state, actions] + mdp.entry_reward[after]
        age += 1
        terminated = mdp.terminal[after]
        truncated = ~terminated & (age >= limit)
        total += ((done >= skipped) & (done < episodes)) * GAMMA ** (age - 1) * rewards
        policy.observe(rewards, after, terminated, truncated)
        ended = terminated | truncated
        policy.reset(ended)
        done, state, age = done + ended, np.where(ended, start, after), np.where(ended, 0, age)
    return total.mean() / (episodes - skipped)


@pytest.mark.slow
def test_adaptation_recovers_the_best_conservatism_of_every_log():
    mdp = lava_world().mdp
    best_of_all = mdp.expected_return(mdp.optimal(GAMMA).policy, GAMMA)
    fixed, adaptive = np.zeros((3, 21)), np.zeros(3)
    for row, (kind, size) in enumerate(ROWS):
        for seed in range(3):
            log = gridworld_log(lava_world(), kind, size, np.random.default_rng(seed))
            values = TabularCCVL(GAMMA, alpha=0.1, deltas=GRID).fit(Counts.from_transitions(log, n_states=mdp.n_states))
            best = values.q_values(np.arange(mdp.n_states), GRID).argmax(-1)
            fixed[row] += [mdp.expected_return(actions, GAMMA) / best_of_all / 3 for actions in best.T]
            policy = AdaptivePolicy(values, gamma=GAMMA)
            adaptive[row] += play(mdp, policy, np.random.default_rng(seed + 100)) / best_of_all / 3
    # Returns of 960 episodes a row scatter by about .35 each, a standard error of .011; five of them fit between the
    # .02 that were measured and .08.
    assert (adaptive > fixed.max(1) - 0.08).all(), (adaptive, fixed.max(1))
    assert fixed[0, -1] < fixed[0].max() - 0.05  # none at all is wrong on narrow data
    assert (fixed[2, :3] < 0.5).all()  # and much of it on broad data

"""The adaptive policy: what it asks of the values, what it keeps and forgets, and where it ends up."""

import json
import warnings

import numpy as np
import pytest

from ccvf.adaptive import AdaptivePolicy
from ccvf.attractor import DegenerateValuesWarning
from ccvf.belief import PAPER, Evidence, bellman_residuals, uniform, update
from ccvf.confidence import conservatism
from ccvf.policies import FixedPolicy

DELTAS = np.array([1e-3, 0.1, 1.0])
NO = np.zeros(2, bool)


class Table:
    """Values of numbered states on a grid; counts what is asked of it."""

    def __init__(self, q, deltas=DELTAS):
        self.q, self.deltas, self.asked, self.n_actions = np.asarray(q, float), deltas, [], np.shape(q)[-1]

    def q_values(self, observations, deltas):
        np.testing.assert_array_equal(deltas, self.deltas)
        self.asked.append(len(observations))
        return self.q[np.asarray(observations)]


def table(seed=0, states=6, actions=4):
    return Table(np.random.default_rng(seed).normal(size=(states, 3, actions)))


def drive(policy, steps=30, envs=2, seed=0, table_=None):
    """Random successors and rewards; returns the actions and the residuals of each step."""
    rng = np.random.default_rng(seed)
    state, log = rng.integers(6, size=envs), []
    policy.reset()
    for _ in range(steps):
        actions = policy.act(state)
        after, rewards = rng.integers(6, size=envs), rng.normal(size=envs)
        end, cut = rng.random(envs) < 0.1, rng.random(envs) < 0.1
        cut &= ~end
        policy.observe(rewards, after, end, cut)
        policy.reset(end | cut)
        log.append((state, actions, rewards, after, end, cut))
        state = np.where(end | cut, rng.integers(6, size=envs), after)
    return log


@pytest.mark.parametrize("evidence", [PAPER, Evidence()])
def test_the_belief_is_the_one_that_the_residuals_make(evidence):
    values = table()
    policy = AdaptivePolicy(values, gamma=0.9, deltas=DELTAS, evidence=evidence, guard=False)
    belief = uniform(DELTAS, 2)
    for state, actions, rewards, after, end, cut in drive(policy):
        residuals = bellman_residuals(values.q[state], actions, rewards, values.q[after], end, 0.9)
        belief = update(belief, residuals, evidence, ended=end | cut)
    np.testing.assert_allclose(policy.belief.log_weights, belief.log_weights)


def test_a_step_asks_for_values_once_and_again_where_episodes_start():
    values = table()
    policy = AdaptivePolicy(values, gamma=0.9, deltas=DELTAS)
    log = drive(policy)
    restarts = sum(int((end | cut).any()) for *_, end, cut in log[:-1])
    assert len(log) + 1 <= len(values.asked) <= len(log) + 1 + restarts
    assert sum(values.asked[:1] + values.asked[1:]) <= 2 * (len(log) + 1) + 2 * restarts
    # Whatever was kept, actions are those of a policy that asks anew each time.
    plain = AdaptivePolicy(table(), gamma=0.9, deltas=DELTAS)
    plain._values_of = plain._evaluate
    assert all((a[1] == b[1]).all() for a, b in zip(log, drive(plain), strict=True))


@pytest.mark.parametrize("how", ["mean", "argmax", "quantile", "sample"])
def test_it_acts_greedily_at_the_confidence_that_it_says(how):
    values = table()
    policy = AdaptivePolicy(values, gamma=0.9, deltas=DELTAS, act=how, quantile=0.3, generator=np.random.default_rng(0))
    state = np.array([3, 5])
    for _ in range(20):
        actions = policy.act(state)
        chosen = policy.diagnostics.chosen
        for i in range(2):
            at = values.q[state[i], DELTAS.tolist().index(chosen[i])]
            assert actions[i] == at.argmax()
        policy.observe(np.array([1.0, -1.0]), state[::-1], NO, NO)
        state = state[::-1].copy()


def test_with_one_confidence_it_is_the_fixed_policy():
    values = table()
    one = Table(values.q[:, 1:2], DELTAS[1:2])
    log = drive(AdaptivePolicy(one, gamma=0.9, deltas=DELTAS[1:2]))
    fixed = FixedPolicy(one, DELTAS[1])
    assert all((fixed.act(state) == actions).all() for state, actions, *_ in log)


def test_persistence():
    state, kept = np.array([0, 1]), {}
    for persist in ("env", "episode", "shared"):
        policy = AdaptivePolicy(table(), gamma=0.9, deltas=DELTAS, persist=persist)
        drive(policy)
        before = policy.belief.weights
        assert before.shape == ((1, 3) if persist == "shared" else (2, 3))
        policy.reset(np.array([True, False]))
        kept[persist] = policy.belief.weights, before
        policy.act(state)
    np.testing.assert_array_equal(*kept["env"])
    np.testing.assert_array_equal(*kept["shared"])
    np.testing.assert_allclose(kept["episode"][0][0], 1 / 3)
    np.testing.assert_array_equal(kept["episode"][0][1], kept["episode"][1][1])


@pytest.mark.parametrize("persist", ["env", "episode", "shared"])
def test_an_episode_given_up_leaves_no_residuals_to_the_next(persist):
    policy = AdaptivePolicy(table(), gamma=0.9, deltas=DELTAS, persist=persist)
    policy.act(np.array([0, 1]))
    policy.observe(np.ones(2), np.array([2, 3]), NO, NO)
    policy.reset(np.array([True, False]))
    assert (policy.belief.traces[0] == 0).all()
    assert (policy.belief.traces[1] != 0).any()


def test_a_sampled_confidence_may_last_an_episode():
    policy = AdaptivePolicy(table(), gamma=0.9, deltas=DELTAS, act="sample", resample="episode",
                            evidence=Evidence(beta=0), generator=np.random.default_rng(1))  # fmt: skip
    seen = []
    for episode in range(30):
        policy.reset(None if episode else np.ones(0, bool) if policy._envs else None)
        held = set()
        for step in range(4):
            policy.act(np.array([0, 1]))
            held.add(tuple(policy.diagnostics.chosen))
            policy.observe(np.zeros(2), np.array([2, 3]), np.array([step == 3] * 2), NO)
        assert len(held) == 1
        seen.append(held.pop())
    assert len(set(seen)) > 4
    # The chance that 30 draws of 9 equally likely pairs show at most 4 of them is below 1e-8.


def test_state_goes_on_exactly():
    make = lambda seed: AdaptivePolicy(table(), gamma=0.9, deltas=DELTAS, act="sample",  # noqa: E731
                                       generator=np.random.default_rng(seed))  # fmt: skip
    first = make(0)
    drive(first, 20)
    arrays, extra = first.state()
    second = make(7)
    second.restore(arrays, json.loads(json.dumps(extra)))
    a, b = drive(first, 20, seed=3), drive(second, 20, seed=3)
    assert all((x[1] == y[1]).all() for x, y in zip(a, b, strict=True))
    np.testing.assert_array_equal(first.belief.log_weights, second.belief.log_weights)
    assert first.diagnostics.transitions == second.diagnostics.transitions == 80
    with pytest.raises(ValueError, match="persist='shared'"):
        AdaptivePolicy(table(), gamma=0.9, deltas=DELTAS, persist="shared").restore(arrays, extra)


def test_history_is_bounded_and_says_from_where():
    policy = AdaptivePolicy(table(), gamma=0.9, deltas=DELTAS, history=8)
    drive(policy)
    history = policy.history
    assert history.weights.shape == (8, 3)
    assert history.first == 22
    np.testing.assert_allclose(history.weights.sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(history.weights[-1], policy.belief.weights.mean(0), rtol=1e-6)
    np.testing.assert_allclose(history.mean_u, history.weights @ conservatism(DELTAS), rtol=1e-5)
    np.testing.assert_allclose(history.chosen_u[-1], conservatism(policy.diagnostics.chosen).mean())
    policy.forget()
    assert policy.history.weights.shape == (0, 3)
    assert policy.act(np.zeros(5, int)).shape == (5,)


# A corridor of 8 states, reward 1 at its right end only. Values are right up to a penalty, but for those at 1e-3 where
# they are clipped at 0: there every action ties, and the first one, left, goes nowhere.
def corridor(clipped):
    reach = 0.9 ** np.arange(8)[::-1]
    right, left = reach, 0.9 * np.maximum(np.append(reach[0], reach[:-1]), 0)
    q = np.stack([np.stack([left, right], -1) - penalty for penalty in (2.0, 0.05, 0.0)], 1)
    if clipped:
        q[:, 0] = 0.0
    return Table(q)


def walk(policy, episodes=20):
    state, total, steps = np.array([0]), 0.0, 0
    for _ in range(episodes):
        policy.reset(np.array([True])) if policy._envs else policy.reset()
        state = np.array([0])
        for step in range(30):
            action = policy.act(state)[0]
            goal = state[0] == 7 and action == 1
            after = np.array([min(state[0] + 1, 7) if action else max(state[0] - 1, 0)])
            policy.observe(np.array([float(goal)]), after, np.array([goal]), np.array([not goal and step == 29]))
            state, steps = after, steps + 1
            if goal:
                total += 1
                break
    return total / episodes


def test_clipped_values_trap_the_belief_and_the_guard_keeps_it_out():
    prior = np.array([0.9, 0.05, 0.05])
    make = lambda guard, evidence: AdaptivePolicy(corridor(True), gamma=0.9, deltas=DELTAS, evidence=evidence,  # noqa: E731
                                                  guard=guard, prior=prior, act="argmax")  # fmt: skip
    for evidence in (PAPER, Evidence()):
        trapped, guarded = make(False, evidence), make(True, evidence)
        assert walk(trapped) == 0
        assert trapped.belief.weights[0, 0] > 0.9
        with pytest.warns(DegenerateValuesWarning, match="1 of 3"):
            assert walk(guarded) == 1
        assert guarded.diagnostics.degenerate.tolist() == [[True, False, False]]
        assert (guarded.diagnostics.chosen != DELTAS[0]).all()


def test_honest_values_are_not_called_degenerate():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        policy = AdaptivePolicy(corridor(False), gamma=0.9, deltas=DELTAS)
        assert walk(policy) == 1
    assert not policy.diagnostics.degenerate.any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"act": "best"}, "act='best'"),
        ({"persist": "always"}, "persist="),
        ({"resample": "never"}, "resample="),
        ({"act": "sample"}, "generator"),
        ({"gamma": 2}, "gamma=2"),
        ({"quantile": -1}, "quantile"),
        ({"deltas": [0.0]}, "outside"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises((ValueError, TypeError), match=message):
        AdaptivePolicy(table(), **({"gamma": 0.9} | settings))


def test_wrong_use_is_refused():
    policy = AdaptivePolicy(table(), gamma=0.9, deltas=DELTAS)
    with pytest.raises(ValueError, match="before act"):
        policy.observe(np.zeros(2), np.zeros(2, int), NO, NO)
    policy.act(np.zeros(2, int))
    with pytest.raises(ValueError, match="forget"):
        policy.act(np.zeros(3, int))
    with pytest.raises(ValueError, match="acts in 2"):
        policy.reset(np.zeros(3, bool))
    bad = AdaptivePolicy(Table(np.full((6, 3, 2), np.nan)), gamma=0.9, deltas=DELTAS)
    with pytest.raises(ValueError, match="NaN"):
        bad.act(np.zeros(2, int))


def test_values_of_another_shape_and_observations_without_a_batch_are_refused():
    class Flat:
        n_actions = 2

        def q_values(self, observations, deltas):
            return np.zeros((len(observations), 2))

    with pytest.raises(ValueError, match="batch, confidences, actions"):
        AdaptivePolicy(Flat(), gamma=0.9).act(np.zeros(3))
    with pytest.raises(ValueError, match="length one"):
        AdaptivePolicy(Flat(), gamma=0.9).act(np.array(0.0))

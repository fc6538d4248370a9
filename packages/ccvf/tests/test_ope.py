"""Off-policy evaluation against values known exactly: the empirical process, and fitted Q evaluation on broad data."""

import numpy as np
import pytest
import torch

from ccvf.counts import Counts
from ccvf.mdp import TabularMDP
from ccvf.multi_step import n_step
from ccvf.ope import FittedQEvaluation, estimate_returns
from ccvf.ope_estimates import ReturnEstimates, choose_delta, episode_starts, mean_over_starts
from ccvf.ope_tabular import empirical_returns, empirical_values
from ccvf.sampling import Sampler
from ccvf.transitions import Transitions

GAMMA, DELTAS = 0.8, np.array([0.01, 0.2, 1.0])


class Table:
    """Values of numbered states, of which only the order of actions matters here."""

    def __init__(self, policies, actions=3):
        self.q, self.n_actions = np.eye(actions)[np.asarray(policies)], actions

    def q_values(self, observations, deltas):
        return self.q[[DELTAS.tolist().index(d) for d in deltas]][:, np.asarray(observations)].transpose(1, 0, 2)


@pytest.fixture(scope="module")
def world():
    rng = np.random.default_rng(0)
    P = rng.dirichlet(np.full(5, 0.5), size=(5, 3))
    terminal = np.array([False, False, False, False, True])
    mdp = TabularMDP.from_arrays(P, rng.normal(size=(5, 3)), terminal=terminal, initial=np.array([0.5, 0.5, 0, 0, 0]))
    policies = rng.integers(3, size=(3, 5))
    log = mdp.sample(np.full((5, 3), 1 / 3), 4000, rng, horizon=20)
    return mdp, Table(policies), policies, log


def exact_empirical(counts, policy, initial, low):
    """The same by value iteration over dense arrays."""
    S, A = counts.visits.shape
    moves, v = counts.transitions.toarray().reshape(S, A, S), np.zeros(S)
    for _ in range(400):
        q = np.full((S, A), low)
        for s in range(S):
            for a in range(A):
                if counts.visits[s, a]:
                    q[s, a] = (counts.reward_sum[s, a] + GAMMA * moves[s, a] @ v) / counts.visits[s, a]
        v = q[np.arange(S), policy]
    return initial @ v, v


def test_the_empirical_process_is_solved_exactly(world):
    mdp, values, policies, log = world
    for counts in (Counts.from_transitions(log), Counts.from_transitions(log.select(slice(0, 6)), n_states=5)):
        if counts.n_actions < 3:
            continue
        found = empirical_returns(counts, values, DELTAS, GAMMA, mdp.initial)
        low = min(counts.reward_range[0], 0) / (1 - GAMMA)
        for k, policy in enumerate(policies):
            value, v = exact_empirical(counts, policy, mdp.initial, low)
            assert found.value[k] == pytest.approx(value)
            np.testing.assert_allclose(empirical_values(counts, np.eye(3)[policy], GAMMA), v, atol=1e-10)
    assert np.isnan(found.low).all()


def test_with_the_expected_counts_it_is_the_true_value(world):
    mdp, values, policies, _ = world
    rng = np.random.default_rng(1)
    found = empirical_returns(Counts.from_transitions(mdp.sample(np.full((5, 3), 1 / 3), 20_000, rng)), values, DELTAS,
                              GAMMA, mdp.initial)  # fmt: skip
    exact = [mdp.expected_return(policy, GAMMA) for policy in policies]
    # Each pair is seen about 1,000 times; the standard error of a value is about .03, and 4 of them pass.
    np.testing.assert_allclose(found.value, exact, atol=0.12)


def fitted(world, updates=900, seed=0, **options):
    _, values, _, log = world
    evaluation = FittedQEvaluation(values, DELTAS, (), gamma=GAMMA, n_states=5, seed=seed, learning_rate=5e-3,
                                   target_every=30, **options)  # fmt: skip
    sampler = Sampler(log, 64, torch.Generator().manual_seed(seed))
    for _ in range(updates):
        evaluation.update(sampler.next())
    return evaluation, sampler


def test_fitted_values_are_those_of_the_empirical_process(world):
    mdp, _, policies, log = world
    evaluation, _ = fitted(world)
    counts = Counts.from_transitions(log)
    expected = np.stack([exact_empirical(counts, policy, mdp.initial, 0.0)[1] for policy in policies], -1)
    found = evaluation.returns(np.arange(4))
    np.testing.assert_allclose(found, expected[:4], atol=0.12)  # values spread over 2; the rest is noise of the steps
    assert np.ptp(expected[:4]) > 1
    estimates = estimate_returns(evaluation, log)
    exact = [mdp.expected_return(policy, GAMMA) for policy in policies]
    assert choose_delta(estimates) == DELTAS[int(np.argmax(exact))]
    assert estimates.starts == int(episode_starts(log).sum())
    assert ((estimates.low <= estimates.value) & (estimates.value <= estimates.high)).all()


def test_it_goes_on_exactly_and_is_the_same_again(world):
    whole, _ = fitted(world, 60)
    half, sampler = fitted(world, 30)
    tensors, extra = half.state()
    later = FittedQEvaluation(
        world[1], DELTAS, (), gamma=GAMMA, n_states=5, seed=9, learning_rate=5e-3, target_every=30
    )
    later.restore(tensors, extra)
    for _ in range(30):
        later.update(sampler.next())
    assert later.updates == 60
    np.testing.assert_array_equal(whole.returns(np.arange(5)), later.returns(np.arange(5)))
    with pytest.raises(ValueError, match="make it as it was"):
        later.restore(tensors, {**extra, "deltas": [0.5]})


def test_a_learner_is_asked_on_its_device(world):
    outer, _ = fitted(world, 5)
    inner = FittedQEvaluation(outer, DELTAS, (), gamma=GAMMA, n_states=5)
    observations = torch.arange(5)
    expected = outer.q_values(np.arange(5), DELTAS).argmax(-1)
    np.testing.assert_array_equal(inner._greedy(observations).numpy(), expected)
    with pytest.raises(ValueError, match="make it with that grid"):
        outer.q_values(np.arange(5), np.array([0.3]))


def test_ended_steps_have_no_future_and_cut_ones_have():
    def log(ended):
        return Transitions.from_arrays(np.zeros(8, int), np.zeros(8, int), np.ones(8), np.zeros(8, int),
                                       np.full(8, ended), np.full(8, not ended), n_actions=2)  # fmt: skip

    for ended, worth in ((True, 1.0), (False, 5.0)):
        values = Table(np.zeros((3, 1), int), 2)
        evaluation = FittedQEvaluation(values, DELTAS, (), gamma=GAMMA, n_states=1, learning_rate=0.1, target_every=10)
        sampler = Sampler(log(ended), 4, torch.Generator().manual_seed(0))
        for _ in range(400):
            evaluation.update(sampler.next())
        np.testing.assert_allclose(evaluation.returns(np.zeros(1, int)), worth, rtol=0.02)


def test_starts_and_choices():
    log = Transitions.from_arrays(np.arange(6), np.zeros(6, int), np.zeros(6), np.arange(1, 7),
                                  np.array([0, 1, 0, 0, 0, 1], bool), np.array([0, 0, 0, 1, 0, 0], bool))  # fmt: skip
    for data in (log, n_step(log, 2, 0.9), n_step(log, 9, 0.9)):
        assert episode_starts(data).tolist() == [True, False, True, False, True, False]
    values = np.array([[0.0, 2.0, 1.9], [1.0, 3.0, 2.9], [0.5, 0.0, 1.9]])
    found = mean_over_starts(DELTAS, values, method="test")
    np.testing.assert_allclose(found.value, values.mean(0))
    assert choose_delta(found) == 1.0
    assert choose_delta(found, "lower") == 1.0
    nothing = np.full(3, np.nan)
    with pytest.raises(ValueError, match="rule='best'"):
        choose_delta(ReturnEstimates(DELTAS, np.ones(3), nothing, nothing, 0, ""), "lower")
    with pytest.raises(ValueError, match="unknown"):
        choose_delta(found, "most")
    assert [row["delta"] for row in found.table()] == DELTAS.tolist()
    assert found.to_json()["starts"] == 3


def test_wrong_settings_are_refused(world):
    mdp, values, _, log = world
    counts = Counts.from_transitions(log)
    with pytest.raises(ValueError, match="gamma"):
        empirical_returns(counts, values, DELTAS, 1.0, mdp.initial)
    with pytest.raises(ValueError, match="add up to 1"):
        empirical_returns(counts, values, DELTAS, 0.9, np.ones(5))
    for wrong, message in (({"gamma": 2}, "gamma"), ({"target_every": 0}, "target_every"), ({"clip": 0}, "clip")):
        with pytest.raises(ValueError, match=message):
            FittedQEvaluation(values, DELTAS, (), **({"gamma": 0.9, "n_states": 5} | wrong))
    evaluation = FittedQEvaluation(values, DELTAS, (), gamma=0.9, n_states=5)
    with pytest.raises(ValueError, match="no transition is a start"):
        estimate_returns(evaluation, log, starts=np.zeros(len(log), bool))

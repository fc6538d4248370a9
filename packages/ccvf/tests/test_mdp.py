"""Values of known processes agree with value iteration, samples with the process."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from ccvf import theory
from ccvf.counts import Counts
from ccvf.mdp import TabularMDP


def drawn(seed: int, ends: bool = True) -> TabularMDP:
    rng = np.random.default_rng(seed)
    S, A = int(rng.integers(2, 6)), int(rng.integers(1, 4))
    terminal = np.zeros(S, bool)
    terminal[-1] = ends
    return TabularMDP.from_arrays(
        rng.dirichlet(np.full(S, 0.5), (S, A)), rng.normal(size=(S, A)), terminal=terminal,
        entry_reward=rng.normal(size=S), noise=0.25,
    )  # fmt: skip


@pytest.mark.property
@given(seed=st.integers(0, 2**32 - 1), gamma=st.sampled_from([0.0, 0.5, 0.95]))
def test_policy_iteration_and_evaluation_agree_with_value_iteration(seed: int, gamma: float) -> None:
    mdp = drawn(seed)
    best = mdp.optimal(gamma)
    dense = mdp.continuing.toarray().reshape(mdp.n_states, mdp.n_actions, mdp.n_states)
    np.testing.assert_allclose(best.q, theory.optimal_values(dense, mdp.expected_reward, gamma), atol=1e-9)
    np.testing.assert_allclose(mdp.evaluate(best.policy, gamma), best.v, atol=1e-12)
    np.testing.assert_allclose(best.v, best.q.max(1), atol=1e-9)
    assert best.v[-1] == 0
    other = np.random.default_rng(seed).dirichlet(np.ones(mdp.n_actions), mdp.n_states)
    v = mdp.evaluate(other, gamma)
    np.testing.assert_allclose((other * mdp.q_of(v, gamma)).sum(1), v, atol=1e-9)  # Bellman's equation of the policy
    assert (v <= best.v + 1e-9).all()
    assert mdp.expected_return(other, gamma) == pytest.approx(mdp.initial @ v)


def test_returns_by_hand() -> None:
    move = np.zeros((3, 2, 3))
    move[0, :, 1] = move[1, 0, 0] = move[1, 1, 2] = move[2, :, 2] = 1
    mdp = TabularMDP.from_arrays(
        move, np.array([[1.0, 0.0], [0.0, 0.0], [9.0, 9.0]]), terminal=np.array([False, False, True]),
        entry_reward=np.array([0.0, 0.0, 4.0]), initial=np.array([1.0, 0.0, 0.0]),
    )  # fmt: skip
    best = mdp.optimal(0.5)  # 1 + 0.5 * 4 and an end, against 1 + 0.25 * V
    assert best.v.tolist() == [3.0, 4.0, 0.0]
    assert best.policy[:2].tolist() == [0, 1]
    assert mdp.expected_return(np.array([0, 0, 0]), 0.5) == pytest.approx(4 / 3)
    assert mdp.reward_range == (0.0, 4.0)


def test_samples_follow_the_process_and_tell_ends_from_cuts() -> None:
    mdp = drawn(3)
    log = mdp.sample(
        np.full((mdp.n_states, mdp.n_actions), 1 / mdp.n_actions), 20_000, np.random.default_rng(0), horizon=7
    )
    states, following = log.observations(), log.next_observations()
    assert (log.terminated == mdp.terminal[following]).all()
    assert not mdp.terminal[states].any()
    assert not (log.terminated & log.truncated).any()
    assert (log.last[:-1] == (log.terminated | log.truncated)[:-1]).all()
    inside = ~log.last[:-1]
    assert (following[:-1][inside] == states[1:][inside]).all()
    lengths = np.bincount(log.episodes)
    assert lengths.max() == 7
    assert (lengths[log.episodes[log.truncated]][:-1] == 7).all()
    exact = mdp.reward[states, log.actions] + mdp.entry_reward[following]
    assert np.unique((log.rewards - exact).round(12)).tolist() == [-0.25, 0.25]
    low, high = mdp.reward_range
    assert low <= log.rewards.min() <= log.rewards.max() <= high
    counts = Counts.from_transitions(log)
    # Hoeffding for each of at most 90 entries: beyond sqrt(log(2 * 90 / 1e-6) / 2 / n) with probability 1e-6 together.
    live = ~mdp.terminal
    room = np.sqrt(np.log(1.8e8) / 2 / counts.visits[live]).ravel()[:, None]
    kept = counts.probabilities.toarray().reshape(mdp.n_states, -1, mdp.n_states)[live].reshape(len(room), -1)
    true = mdp.continuing.toarray().reshape(mdp.n_states, -1, mdp.n_states)[live].reshape(len(room), -1)
    assert (np.abs(kept - true) < room).all()


def test_the_same_seed_gives_the_same_log() -> None:
    mdp, policy = drawn(4), np.zeros(drawn(4).n_states, int)
    first, second = (mdp.sample(policy, 50, np.random.default_rng(5)) for _ in range(2))
    assert first.rewards.tobytes() == second.rewards.tobytes()
    assert (first.index == second.index).all()
    assert first.truncated[-1] or first.terminated[-1]


def test_what_is_not_a_process_is_refused() -> None:
    move, reward = np.full((2, 1, 2), 0.5), np.zeros((2, 1))
    with pytest.raises(ValueError, match=r"state 1, action 0: .* add up to 0\.9"):
        TabularMDP.from_arrays(np.array([[[0.5, 0.5]], [[0.5, 0.4]]]), reward)
    with pytest.raises(ValueError, match="shape"):
        TabularMDP.from_arrays(np.full((2, 2, 2), 0.5), reward)
    with pytest.raises(ValueError, match="rewards are of 2 states"):
        TabularMDP.from_arrays(sparse.csr_array(np.eye(3)), reward)
    with pytest.raises(ValueError, match="finite"):
        TabularMDP.from_arrays(move, np.array([[np.nan], [0.0]]))
    with pytest.raises(ValueError, match="leave out terminal"):
        TabularMDP.from_arrays(move, reward, terminal=np.array([False, True]), initial=np.array([0.5, 0.5]))
    mdp, rng = TabularMDP.from_arrays(move, reward), np.random.default_rng(0)
    with pytest.raises(ValueError, match="gamma"):
        mdp.optimal(1.0)
    with pytest.raises(ValueError, match="outside 0 to 0"):
        mdp.evaluate(np.array([0, 1]), 0.5)
    with pytest.raises(ValueError, match="a policy is"):
        mdp.evaluate(np.array([[0.5], [1.0]]), 0.5)
    with pytest.raises(ValueError, match="at least 1"):
        mdp.sample(np.array([0, 0]), 0, rng)
    with pytest.raises(ValueError, match="starts"):
        mdp.sample(np.array([0, 0]), 5, rng, starts=np.array([0.5, 0.4]))
    with pytest.raises(ValueError, match="visits are counts"):
        mdp.draw_counts(np.array([[1], [-1]]), rng)

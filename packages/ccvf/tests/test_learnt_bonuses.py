"""Estimates that are learnt: distillation and ensembles, where the optimum is known."""

import numpy as np
import pytest
import torch

from ccvf.behaviour import BehaviourCounts
from ccvf.ensemble_variance import EnsembleVariance
from ccvf.logged_pairs import logged_median, moments, pair_chunks, regress
from ccvf.reference_counts import reference_counts
from ccvf.rnd import RandomDistillation
from ccvf.transitions import Transitions

CPU = torch.device("cpu")
REPEATS = [1, 4, 16, 64]  # of states 0 to 3; state 4 is never seen


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def log_of(observations, actions, n_actions=2):
    n = len(actions)
    following, never = np.roll(observations, -1, 0), np.zeros(n, bool)
    return Transitions.from_arrays(observations, actions, np.zeros(n), following, never, n_actions=n_actions)


def tabular():
    states = np.repeat(np.arange(4), REPEATS)
    return log_of(states, np.zeros(len(states), int))


def test_an_ensemble_on_a_table_says_the_mean_of_its_flips():
    data = tabular()
    bonus = EnsembleVariance(members=256, n_states=5, steps=800, batch_size=85, learning_rate=0.1)
    values = bonus.fit(data, generator(1))(torch.arange(5))[:, 0]
    # Every state has weights of its own and every batch is the whole log: each member ends at the mean of its flips,
    # and the mean square of 256 such means has expectation 1/n and relative standard deviation at most
    # sqrt(2/256) = 9 %: half of that for the root. 5 of those: false alarm 2e-6 for the three together.
    for state, n in enumerate(REPEATS[1:], 1):
        assert float(values[state]) * np.sqrt(n) == pytest.approx(1, abs=0.22)
    assert float(values[0]) == pytest.approx(1, abs=1e-3)  # one flip is 1 or -1
    unseen = bonus(torch.arange(5))[:, 1]
    assert bool((unseen[:3] > 0.5).all())


def test_flips_are_fair_and_of_every_transition():
    flips = EnsembleVariance(members=64).flips(1000, generator())
    assert flips.dtype == torch.int8
    assert sorted(flips.unique().tolist()) == [-1, 1]
    assert abs(float(flips.float().mean())) < 5 / np.sqrt(64_000)  # false alarm 6e-7


def test_distillation_learns_what_was_logged_and_has_the_median_of_counts():
    rng = np.random.default_rng(0)
    observations, actions = rng.integers(2, size=(400, 6)).astype(np.float32), np.zeros(400, int)
    data = log_of(observations, actions)
    bonus = RandomDistillation(steps=400, width=64, unseen=1e6).fit(data, generator())
    counts = reference_counts(data, generator(), CPU)  # drawn first from the same seed
    assert logged_median(bonus, data, CPU) == pytest.approx(logged_median(counts, data, CPU), rel=1e-5)
    values = bonus(torch.as_tensor(observations))
    assert float(values[:, 1].median()) > 5 * float(values[:, 0].median())  # the second action was never logged


def test_distillation_on_a_table_learns_visited_entries_only():
    bonus = RandomDistillation(n_states=5, steps=500, batch_size=85, learning_rate=0.05, unseen=1e9)
    values = bonus.fit(tabular(), generator())(torch.arange(5))
    assert float(values[:4, 0].max()) < 1e-3 * float(values[:, 1].min())


def test_chunks_cover_the_log_in_order():
    rng = np.random.default_rng(0)
    data = log_of(rng.integers(256, size=(3000, 84, 84)).astype(np.uint8), rng.integers(2, size=3000))
    chunks = list(pair_chunks(data, CPU))
    assert len(chunks) > 1
    assert np.array_equal(torch.cat([x for x, _ in chunks]).numpy(), data.observations())
    assert np.array_equal(torch.cat([a for _, a in chunks]).numpy(), data.actions)


def test_moments_of_a_log():
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, size=(500, 4)).astype(np.float32)
    x[:, 3] = 7
    mean, deviation = moments(log_of(x, np.zeros(500, int)), CPU)
    np.testing.assert_allclose(mean.numpy(), x.astype(float).mean(0), rtol=1e-12)
    np.testing.assert_allclose(deviation.numpy(), [*x[:, :3].astype(float).std(0), 1], rtol=1e-9)
    _, alike = moments(log_of((x > 3).astype(np.uint8), np.zeros(500, int)), CPU)
    assert alike.tolist() == [1, 1, 1, 1]


def test_regression_reaches_least_squares():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 3)).astype(np.float32)
    wanted = torch.as_tensor(x @ [1.0, -2.0, 0.5]).float()
    weights = torch.nn.Parameter(torch.zeros(3))
    regress([weights], lambda o, a, rows: (o @ weights - wanted[rows]).square().mean(), log_of(x, np.zeros(64, int)),
            steps=600, batch_size=20, learning_rate=0.05, generator=generator(), device=CPU, progress=False,
            what="")  # fmt: skip
    torch.testing.assert_close(weights.detach(), torch.tensor([1.0, -2.0, 0.5]), atol=1e-4, rtol=0)


def shared_log(shares, n=4000, seed=0):
    """Observations of two states, one-hot, and actions taken in the given shares."""
    rng = np.random.default_rng(seed)
    state = rng.integers(2, size=n)
    action = np.array([rng.choice(3, p=shares[s]) for s in state])
    eye = np.eye(2, dtype=np.float32)
    return Transitions.from_arrays(eye[state], action, np.zeros(n), eye[state], np.ones(n, bool), n_actions=3)


def test_behaviour_counts_are_shares_of_the_state():
    shares = np.array([[0.7, 0.25, 0.05], [0.1, 0.1, 0.8]])
    data = shared_log(shares)
    bonus = BehaviourCounts(width=32, steps=800, batch_size=512, learning_rate=2e-3, unseen=1e6).fit(data, generator())
    seen = torch.eye(2)
    # 4,000 draws: a share of 5 % is known to 0.5 % in 99.6 of 100 logs; the seed is fixed.
    assert bonus.log_behaviour(seen).exp().numpy() == pytest.approx(shares, abs=0.03)
    ratio = bonus(seen)[:, :1] / bonus(seen)
    wanted = np.sqrt(shares / shares[:, :1])
    assert ratio.numpy() == pytest.approx(wanted, rel=0.2)
    counts = reference_counts(data, generator(), CPU)  # drawn first from the same seed
    assert logged_median(bonus, data, CPU) == pytest.approx(logged_median(counts, data, CPU), rel=1e-5)


def test_a_small_log_of_chance_is_not_learnt_by_heart():
    rng = np.random.default_rng(0)
    seen = rng.normal(size=(120, 16)).astype(np.float32)
    data = Transitions.from_arrays(seen, rng.integers(3, size=120), np.zeros(120), seen, np.ones(120, bool))
    bonus = BehaviourCounts(steps=800).fit(data, generator())
    logged = bonus.log_behaviour(torch.as_tensor(seen)).gather(1, torch.as_tensor(data.actions)[:, None].long())
    assert float(-logged.mean()) > 0.5  # learnt by heart it would be near 0; log 3 is 1.10

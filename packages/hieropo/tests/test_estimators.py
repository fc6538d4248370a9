"""The estimators: their relations, bounds, streaming, forgetting, cold start, ties and masks."""

import copy
import pickle
import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hieropo.estimators import FlatOPO, GlobalOPO, HierOPO, OracleOPO
from hieropo.evidence import log_marginal_likelihood
from hieropo.prior import GaussianHierarchy
from hieropo.theory import joint_posterior, log_evidence

CLASSES = [HierOPO, FlatOPO, GlobalOPO, lambda prior, **options: OracleOPO(prior, np.ones(prior.d), **options)]


def contexts(seed, rows=20, actions=4, d=3):
    return np.random.default_rng(seed).uniform(-1, 1, (rows, actions, d))


def fitted(problem, make=HierOPO, seed=0, **options):
    p = problem(seed=seed)
    return p, make(p.prior, **options).fit(p.features, p.rewards, p.codes)


def test_bounds_equal_the_joint_gaussian(problem):
    p, est = fitted(problem, alpha=0.7)
    joint = joint_posterior(*p.raw, p.features, p.rewards, p.codes, p.m)
    phi, tasks = contexts(1), np.random.default_rng(2).integers(1, p.m, 20)
    lower, upper, scores = est.lower_bound(phi, tasks), est.upper_bound(phi, tasks), est.uncertainty(phi, tasks)
    for b, s in enumerate(tasks + 1):
        for k in range(4):
            f = phi[b, k]
            std = np.sqrt(f @ joint.cov[s, :, s] @ f)
            assert lower[b, k] == pytest.approx(f @ joint.mean[s] - 0.7 * std, rel=1e-9, abs=1e-10)
            assert upper[b, k] == pytest.approx(f @ joint.mean[s] + 0.7 * std, rel=1e-9, abs=1e-10)
            assert scores.std[b, k] == pytest.approx(std, rel=1e-9)
    np.testing.assert_array_equal(est.predict(phi, tasks), lower.argmax(axis=1))


def test_uncertainty_is_split_by_what_is_unknown(problem):
    p, est = fitted(problem)
    phi, task = contexts(3), 4
    posterior, scores = est.posterior(task), est.uncertainty(phi, task)
    np.testing.assert_allclose(scores.task_var, np.einsum("bkd,de,bke->bk", phi, posterior.task_cov, phi), rtol=1e-10)
    np.testing.assert_allclose(scores.hyper_var, np.einsum("bkd,de,bke->bk", phi, posterior.hyper_cov, phi), rtol=1e-9)
    known_mean = OracleOPO(p.prior, est.hyper_posterior.mean).fit(p.features, p.rewards, p.codes)
    np.testing.assert_allclose(scores.task_var, known_mean.uncertainty(phi, task).var, rtol=1e-10)
    np.testing.assert_allclose(scores.mean, known_mean.uncertainty(phi, task).mean, rtol=1e-9)


def test_flat_is_ridge_regression_task_by_task(problem):
    p, est = fitted(problem, FlatOPO)
    cov = p.prior.Sigma_q + p.prior.Sigma_0
    for s in range(1, p.m):
        phi, y = p.features[p.codes == s], p.rewards[p.codes == s]
        precision = np.linalg.inv(cov) + phi.T @ phi / p.prior.sigma**2
        mean = np.linalg.solve(precision, np.linalg.solve(cov, p.prior.mu_q) + phi.T @ y / p.prior.sigma**2)
        np.testing.assert_allclose(est.posterior(s).mean, mean, rtol=1e-9)
        np.testing.assert_allclose(est.posterior(s).cov, np.linalg.inv(precision), rtol=1e-8, atol=1e-12)


def test_global_is_ridge_regression_on_everything(problem):
    p, est = fitted(problem, GlobalOPO)
    precision = np.linalg.inv(p.prior.Sigma_q) + p.features.T @ p.features / p.prior.sigma**2
    vector = np.linalg.solve(p.prior.Sigma_q, p.prior.mu_q) + p.features.T @ p.rewards / p.prior.sigma**2
    for posterior in (est.posterior(1), est.posterior(5), est.new_task_posterior()):
        np.testing.assert_allclose(posterior.mean, np.linalg.solve(precision, vector), rtol=1e-9)
        np.testing.assert_allclose(posterior.cov, np.linalg.inv(precision), rtol=1e-8, atol=1e-12)


def test_limits_of_the_hierarchy(problem):
    p, _ = fitted(problem)
    phi, tasks = contexts(4), np.random.default_rng(5).integers(0, p.m, 20)
    data = (p.features, p.rewards, p.codes)

    def bounds(est):
        return est.fit(*data).lower_bound(phi, tasks)

    # Σ_q → 0: the mean is known. Σ_0 → 0: the tasks are one.
    oracle = bounds(OracleOPO(p.prior, p.prior.mu_q))
    np.testing.assert_allclose(bounds(HierOPO(replace(p.prior, Sigma_q=np.zeros((3, 3))))), oracle, rtol=1e-10)
    np.testing.assert_allclose(
        bounds(HierOPO(replace(p.prior, Sigma_q=1e-9 * np.eye(3)))), oracle, rtol=1e-5, atol=1e-6
    )
    pooled = bounds(GlobalOPO(p.prior))
    np.testing.assert_allclose(
        bounds(HierOPO(replace(p.prior, Sigma_0=1e-9 * np.eye(3)))), pooled, rtol=1e-4, atol=1e-5
    )
    # With a known mean there is nothing to share: hierarchical and flat agree whatever the number of tasks.
    known = p.prior.given_mean(p.prior.mu_q)
    np.testing.assert_allclose(bounds(HierOPO(known)), bounds(FlatOPO(known)), rtol=1e-12)
    # One task alone has nobody to learn from: hierarchical and flat agree exactly.
    alone = p.codes == 5
    one = [cls(p.prior).fit(p.features[alone], p.rewards[alone], p.codes[alone]) for cls in (HierOPO, FlatOPO)]
    np.testing.assert_allclose(one[0].posterior(5).mean, one[1].posterior(5).mean, rtol=1e-9)
    np.testing.assert_allclose(one[0].posterior(5).cov, one[1].posterior(5).cov, rtol=1e-9)


def test_with_many_tasks_the_mean_becomes_known():
    prior = GaussianHierarchy.isotropic(2, 1.0, 0.5, 0.5)
    rng = np.random.default_rng(6)
    mu, theta = prior.sample(4000, rng)
    codes = np.repeat(np.arange(4000), 5)
    features = rng.uniform(-1, 1, (20_000, 2))
    rewards = np.sum(features * theta[codes], axis=1) + 0.5 * rng.standard_normal(20_000)
    hier = HierOPO(prior).fit(features, rewards, codes)
    oracle = OracleOPO(prior, mu).fit(features, rewards, codes)
    # Σ̄ is about (Σ_0 + G⁻¹)/m: standard deviation near 0.013; six of them.
    assert np.sqrt(np.trace(hier.hyper_posterior.cov)) < 0.03
    assert np.abs(hier.posterior(7).mean - oracle.posterior(7).mean).max() < 6 * 0.015


def test_evidence(problem):
    p, est = fitted(problem)
    assert est.log_marginal_likelihood() == pytest.approx(
        log_evidence(*p.raw, p.features, p.rewards, p.codes), rel=1e-11
    )
    flat = FlatOPO(p.prior).fit(p.features, p.rewards, p.codes)
    assert flat.log_marginal_likelihood() == pytest.approx(
        log_marginal_likelihood(p.stats, p.prior.marginal), rel=1e-12
    )


@pytest.mark.parametrize("make", CLASSES)
def test_before_any_data_the_prior_decides(problem, make):
    p = problem()
    est = make(p.prior)
    phi = contexts(7)
    np.testing.assert_allclose(est.uncertainty(phi, 3).mean, phi @ est.prior.mu_q, rtol=1e-12)
    assert est.tasks == []
    assert est.log_marginal_likelihood() == 0.0
    with pytest.raises(KeyError, match="fit first"):
        est.posterior(0)


def test_unseen_tasks_get_the_new_task_posterior(problem):
    _, est = fitted(problem)
    phi = contexts(8)
    new = est.new_task_posterior()
    scores = est.uncertainty(phi, 999)
    np.testing.assert_allclose(scores.mean, phi @ new.mean, rtol=1e-12)
    np.testing.assert_allclose(scores.var, np.einsum("bkd,de,bke->bk", phi, new.cov, phi), rtol=1e-10)
    mixed = est.uncertainty(phi, np.array([999, 4] * 10))
    np.testing.assert_array_equal(mixed.mean[::2], scores.mean[::2])
    np.testing.assert_allclose(mixed.mean[1::2], est.uncertainty(phi, 4).mean[1::2], rtol=1e-12)
    with pytest.raises(KeyError, match="unknown task 999"):
        est.posterior(999)


def test_streaming_equals_fitting_at_once(problem):
    p, est = fitted(problem)
    stream = HierOPO(p.prior)
    for part in np.array_split(np.arange(len(p.codes)), 4):
        stream.partial_fit(p.features[part], p.rewards[part], p.codes[part])
    halves = np.arange(len(p.codes)) % 2 == 0
    first = HierOPO(p.prior).fit(p.features[halves], p.rewards[halves], p.codes[halves])
    second = HierOPO(p.prior).fit(p.features[~halves], p.rewards[~halves], p.codes[~halves])
    for other in (stream, first.merge(second)):
        assert other.tasks == est.tasks
        for task in est.tasks:
            np.testing.assert_allclose(other.posterior(task).mean, est.posterior(task).mean, rtol=1e-9)
            np.testing.assert_allclose(other.posterior(task).cov, est.posterior(task).cov, rtol=1e-9, atol=1e-12)


def test_forgetting_a_task_and_rows(problem):
    p, est = fitted(problem)
    kept = p.codes != 4
    never = HierOPO(p.prior).fit(p.features[kept], p.rewards[kept], p.codes[kept])
    est.forget(task=4)
    assert est.tasks == never.tasks
    np.testing.assert_allclose(est.posterior(5).mean, never.posterior(5).mean, rtol=1e-12)
    gone = kept & (p.rewards > np.median(p.rewards))
    est.forget(rows=(p.features[gone], p.rewards[gone], p.codes[gone]))
    rest = kept & ~gone
    never = HierOPO(p.prior).fit(p.features[rest], p.rewards[rest], p.codes[rest])
    np.testing.assert_allclose(est.posterior(5).mean, never.posterior(5).mean, rtol=1e-8)
    np.testing.assert_allclose(est.posterior(5).cov, never.posterior(5).cov, rtol=1e-8, atol=1e-12)


def test_ties_go_to_the_lowest_index(problem):
    _, est = fitted(problem)
    phi = contexts(9, rows=200, actions=1)
    repeated = np.repeat(phi, 7, axis=1)
    assert not est.predict(repeated, 4).any()
    assert not HierOPO(GaussianHierarchy.isotropic(3, 1.0, 1.0, 1.0)).predict(np.zeros((2, 3, 3)), 0).any()
    np.testing.assert_array_equal(est.rank(repeated[:3], 4, 3), [[0, 1, 2]] * 3)


def test_masks(problem):
    _, est = fitted(problem)
    phi = contexts(10)
    mask = np.random.default_rng(11).random((20, 4)) < 0.5
    mask[:, 2] = True
    lower = np.where(mask, est.lower_bound(phi, 4), -np.inf)
    padded = np.where(mask[:, :, None], phi, np.nan)  # features of actions that do not exist are not looked at
    np.testing.assert_array_equal(est.predict(padded, 4, mask=mask), lower.argmax(axis=1))
    common = np.array([False, True, False, True])
    assert set(est.predict(phi, 4, mask=common)) <= {1, 3}


def test_common_actions_and_one_label_broadcast(problem):
    _, est = fitted(problem)
    phi, tasks = contexts(12)[0], np.array([1, 4, 5])
    np.testing.assert_array_equal(est.lower_bound(phi, tasks), est.lower_bound(np.stack([phi] * 3), tasks))
    np.testing.assert_array_equal(est.lower_bound(phi, 4), est.lower_bound(phi, [4]))


def test_action_dist_ranks_the_actions(problem):
    _, est = fitted(problem)
    phi = contexts(13)
    dist = est.to_action_dist(phi, 4, len_list=3)
    assert dist.shape == (20, 4, 3)
    order = np.argsort(-est.lower_bound(phi, 4), axis=1)[:, :3]
    np.testing.assert_array_equal(dist.argmax(axis=1), order)
    np.testing.assert_array_equal(dist.sum(axis=1), np.ones((20, 3)))


def test_string_labels(problem):
    p, est = fitted(problem)
    names = np.array(["zoe", "al", "bob", "carl", "dora", "eve"])
    named = HierOPO(p.prior).fit(p.features, p.rewards, names[p.codes])
    np.testing.assert_allclose(named.posterior("dora").mean, est.posterior(4).mean, rtol=1e-10)
    phi = contexts(14)
    np.testing.assert_array_equal(named.predict(phi, "dora"), est.predict(phi, 4))
    np.testing.assert_array_equal(named.predict(phi, ["dora"] * 20), est.predict(phi, np.full(20, 4)))


def test_alpha_zero_is_greedy_and_pessimism_avoids_the_unknown():
    prior = GaussianHierarchy.isotropic(2, 1.0, 1.0, 0.1)
    features = np.tile([1.0, 0.0], (50, 1))  # the second feature is never tried
    est = {a: HierOPO(prior, alpha=a).fit(features, np.full(50, -0.2), np.zeros(50, int)) for a in (0.0, 1.0)}
    actions = np.eye(2)
    assert est[0.0].predict(actions, 0).tolist() == [1]  # prior mean 0 beats −0.2
    assert est[1.0].predict(actions, 0).tolist() == [0]


def test_samples(problem):
    _, est = fitted(problem)
    mu, theta = est.sample(np.random.default_rng(0), 5, tasks=[4, 1])
    assert (mu.shape, theta.shape) == ((5, 3), (5, 2, 3))
    assert est.sample(np.random.default_rng(0), 2)[1].shape == (2, len(est.tasks), 3)
    with pytest.raises(KeyError, match="unknown task 77"):
        est.sample(np.random.default_rng(0), 5, tasks=[77])


def test_copies_are_independent(problem):
    _, est = fitted(problem)
    phi = contexts(15)
    for other in (copy.deepcopy(est), pickle.loads(pickle.dumps(est))):
        np.testing.assert_array_equal(other.lower_bound(phi, 4), est.lower_bound(phi, 4))
        other.forget(task=4)
        assert 4 in est.tasks


@pytest.mark.property
@settings(max_examples=50, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), alpha=st.floats(0, 10), index=st.integers(0, 3), rank=st.integers(0, 3))
def test_the_mean_lies_between_the_bounds(problem, seed, alpha, index, rank):
    p = problem(seed=seed, rank_0=rank)
    est = CLASSES[index](p.prior, alpha=alpha).fit(p.features, p.rewards, p.codes)
    phi, tasks = contexts(seed), np.random.default_rng(seed).integers(-1, p.m, 20)
    lower, upper, scores = est.lower_bound(phi, tasks), est.upper_bound(phi, tasks), est.uncertainty(phi, tasks)
    assert np.all(lower <= scores.mean)
    assert np.all(scores.mean <= upper)
    assert np.all(scores.task_var >= 0)
    np.testing.assert_allclose(upper - lower, 2 * alpha * scores.std, rtol=1e-9, atol=1e-9)


@pytest.mark.property
@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_forgetting_undoes_learning(problem, seed):
    p = problem(seed=seed)
    more = np.random.default_rng(seed)
    rows = more.uniform(-1, 1, (9, 3)), more.standard_normal(9), more.integers(0, p.m + 1, 9)
    est = HierOPO(p.prior).fit(p.features, p.rewards, p.codes)
    before = est.lower_bound(contexts(seed), 5)
    est.partial_fit(*rows).forget(rows=rows)
    np.testing.assert_allclose(est.lower_bound(contexts(seed), 5), before, rtol=1e-8, atol=1e-9)


def test_readers_see_one_state_or_the_other(problem):
    # Two logs with different tasks: a mixture of one's labels and the other's posterior would give a third answer.
    p = problem(seed=16)
    half = p.codes % 2 == 0
    logs = [(p.features[k], p.rewards[k], p.codes[k]) for k in (half, ~half)]
    est, phi, tasks = HierOPO(p.prior).fit(*logs[0]), contexts(17), np.arange(20) % p.m
    allowed = [HierOPO(p.prior).fit(*log).lower_bound(phi, tasks) for log in logs]
    strange, done = [], threading.Event()

    def read():
        while not done.is_set():
            found = est.lower_bound(phi, tasks)
            if not any(np.array_equal(found, one) for one in allowed):
                strange.append(found)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for turn in range(300):
        est.fit(*logs[turn % 2])
    done.set()
    for reader in readers:
        reader.join()
    assert not strange


def test_a_huge_bound_does_not_tie_the_others():
    prior = GaussianHierarchy(np.full(1, -1.0), np.zeros((1, 1)), np.zeros((1, 1)), 0.5)
    actions = np.array([[[1e13], [1.2], [1.0]]])  # bounds −1e13, −1.2, −1
    assert HierOPO(prior).predict(actions, "a").tolist() == [2]
    assert HierOPO(prior).rank(actions, "a", 3).tolist() == [[2, 1, 0]]


def test_a_task_asked_for_twice_is_drawn_once(problem):
    p = problem(seed=2)
    draws = HierOPO(p.prior).fit(p.features, p.rewards, p.codes).sample(np.random.default_rng(0), 5, [4, 1, 4])[1]
    np.testing.assert_array_equal(draws[:, 0], draws[:, 2])
    assert not np.any(draws[:, 0] == draws[:, 1])

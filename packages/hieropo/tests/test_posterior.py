"""The posterior against one big Gaussian, in every degenerate case."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hieropo import theory
from hieropo.evidence import evidence_of
from hieropo.posterior import condition, infer
from hieropo.prior import GaussianHierarchy
from hieropo.statistics import TaskStatistics
from hieropo.theory import joint_posterior

RANKS = [(3, 3), (0, 3), (3, 0), (0, 0), (1, 3), (3, 1), (2, 1)]


def assert_equals_joint(p, tolerance=1e-10):
    posterior = infer(p.stats, p.prior)
    joint = joint_posterior(*p.raw, p.features, p.rewards, p.codes, p.m)
    close = {"rtol": tolerance, "atol": tolerance}
    np.testing.assert_allclose(posterior.hyper.mean, joint.mean[0], **close)
    np.testing.assert_allclose(posterior.hyper.cov, joint.cov[0, :, 0], **close)
    np.testing.assert_allclose(posterior.means, joint.mean[1:], **close)
    covariances = posterior.covariances()
    for s in range(p.m):
        np.testing.assert_allclose(covariances[s], joint.cov[s + 1, :, s + 1], **close)
        np.testing.assert_allclose(posterior.marginal(s).cov, joint.cov[s + 1, :, s + 1], **close)
        for z in range(p.m):
            np.testing.assert_allclose(posterior.cross_cov(s, z), joint.cov[s + 1, :, z + 1], **close)


@pytest.mark.parametrize(("rank_q", "rank_0"), RANKS)
def test_equals_the_joint_gaussian(problem, rank_q, rank_0):
    assert_equals_joint(problem(seed=1, rank_q=rank_q, rank_0=rank_0))


@pytest.mark.parametrize("counts", [(0,), (0, 0), (1,), (5, 0), (1, 1, 1, 1), (40, 1)])
def test_equals_the_joint_gaussian_for_few_rows(problem, counts):
    assert_equals_joint(problem(seed=2, counts=counts))


def test_ill_conditioned_but_regular_covariance(problem):
    p = problem(seed=3)
    for small in (1e-5, 1e-9, 1e-14):
        prior = GaussianHierarchy(p.prior.mu_q, p.prior.Sigma_q, np.diag([1.0, small, 1.0]), p.prior.sigma)
        assert_equals_joint(p._replace(prior=prior), tolerance=1e-9)


def test_almost_equal_tasks_and_almost_no_noise(problem):
    p = problem(seed=4)
    for scale in (1e-12, 1e-6, 1e6):  # Σ_0 far below and far above what a row says
        prior = GaussianHierarchy(p.prior.mu_q, p.prior.Sigma_q, scale * np.eye(3), p.prior.sigma)
        assert_equals_joint(p._replace(prior=prior), tolerance=1e-8 * max(1.0, scale * 1e-2))
    # Noise of 1e-6: the brute force inverts cov(Y) with a condition number of 1e12, hence the tolerance.
    quiet = GaussianHierarchy(p.prior.mu_q, p.prior.Sigma_q, p.prior.Sigma_0, 1e-5)
    assert_equals_joint(p._replace(prior=quiet), tolerance=1e-4)


def test_known_answer_in_one_dimension():
    # μ ~ N(0, 1), θ_s ~ N(μ, 1), y_s ~ N(θ_s, 1), y = (2, 4): cov(y) = [[3, 1], [1, 3]], by hand.
    stats = TaskStatistics.from_rows(np.ones((2, 1)), [2.0, 4.0], [0, 1])
    posterior = infer(stats, GaussianHierarchy.isotropic(1, 1.0, 1.0, 1.0))
    assert posterior.hyper.mean[0] == pytest.approx(1.5)
    assert posterior.hyper.cov[0, 0] == pytest.approx(0.5)
    np.testing.assert_allclose(posterior.means[:, 0], [1.75, 2.75])
    np.testing.assert_allclose(posterior.covariances().ravel(), [0.625, 0.625])
    assert posterior.new_task().cov[0, 0] == pytest.approx(1.5)


def test_no_data_returns_the_prior(problem):
    p = problem(seed=5, counts=(0, 0))
    posterior = infer(p.stats, p.prior)
    np.testing.assert_allclose(posterior.hyper.cov, p.prior.Sigma_q, atol=1e-14)
    np.testing.assert_allclose(posterior.covariances()[0], p.prior.Sigma_q + p.prior.Sigma_0, atol=1e-14)
    np.testing.assert_array_equal(posterior.means, np.tile(p.prior.mu_q, (2, 1)))


def test_new_task_is_an_empty_task(problem):
    p = problem(seed=6)
    posterior = infer(p.stats, p.prior)
    new, empty = posterior.new_task(), posterior.marginal(0)
    np.testing.assert_allclose(new.mean, empty.mean, rtol=1e-12)
    np.testing.assert_allclose(new.cov, empty.cov, rtol=1e-12)
    np.testing.assert_allclose(new.task_cov, empty.task_cov, rtol=1e-12)


def test_flat_is_the_limit_of_a_wide_prior(problem):
    p = problem(seed=7)
    flat = infer(p.stats, p.prior, flat=True)
    wide = GaussianHierarchy(p.prior.mu_q, 1e7 * np.eye(3), p.prior.Sigma_0, p.prior.sigma)
    limit = infer(p.stats, wide)
    np.testing.assert_allclose(flat.hyper.mean, limit.hyper.mean, rtol=1e-5)
    np.testing.assert_allclose(flat.hyper.cov, limit.hyper.cov, rtol=1e-5)
    moved = infer(p.stats, p.prior.given_mean(np.array([3.0, -1.0, 2.0])), flat=True)
    np.testing.assert_allclose(moved.means, flat.means, rtol=1e-9)


def test_flat_without_enough_data_is_refused(problem):
    p = problem(seed=8, counts=(1, 1))
    with pytest.raises(np.linalg.LinAlgError):
        infer(p.stats, GaussianHierarchy.isotropic(3, 1.0, 0.0, 1.0), flat=True)


def test_information_forms_agree(problem):
    for seed in range(3):
        p = problem(seed=seed, d=4, counts=(0, 2, 9))
        gram = p.stats.gram / p.prior.sigma**2
        for scale in (1e-3, 1.0, 1e3):
            prior = GaussianHierarchy.isotropic(4, 1.0, scale, p.prior.sigma)
            direct = sum(np.linalg.inv(np.eye(4) + g @ prior.Sigma_0) @ g for g in gram)
            np.testing.assert_allclose(condition(p.stats, prior).information(), direct, rtol=1e-8, atol=1e-9)


def test_samples_have_the_posterior_moments(problem):
    p = problem(seed=9)
    posterior = infer(p.stats, p.prior)
    size = 40_000
    mu, theta = posterior.sample(np.random.default_rng(0), size, np.array([3, 1, -1]))
    draws = np.concatenate([mu[:, None], theta], axis=1).reshape(size, -1)
    joint = joint_posterior(*p.raw, p.features, p.rewards, p.codes, p.m)
    rows = [0, 4, 2, 1]  # task 0 has no row: its law is that of a new task
    mean, cov = joint.mean[rows].ravel(), joint.cov[np.ix_(rows, range(3), rows, range(3))].reshape(12, 12)
    # 5.5 standard errors on 12 means and 78 covariances: false alarm below 90 * 4e-8 = 4e-6.
    spread = np.sqrt(np.diag(cov))
    assert np.all(np.abs(draws.mean(0) - mean) < 5.5 * spread / np.sqrt(size) + 1e-12)
    error = np.sqrt((np.outer(spread, spread) ** 2 + cov**2) / size)
    assert np.all(np.abs(np.cov(draws.T) - cov) < 5.5 * error)


@pytest.mark.property
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    d=st.integers(1, 4),
    counts=st.lists(st.integers(0, 6), min_size=1, max_size=5),
    ranks=st.tuples(st.integers(0, 4), st.integers(0, 4)),
)
def test_equals_the_joint_gaussian_anywhere(problem, seed, d, counts, ranks):
    p = problem(seed, d, tuple(counts), min(ranks[0], d), min(ranks[1], d))
    assert_equals_joint(p, tolerance=1e-7)


@pytest.mark.property
@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_covariances_are_symmetric_and_shrink_with_data(problem, seed):
    p = problem(seed)
    posterior = infer(p.stats, p.prior)
    prior_cov = p.prior.Sigma_q + p.prior.Sigma_0
    for cov in posterior.covariances():
        np.testing.assert_array_equal(cov, cov.T)
        assert np.linalg.eigvalsh(cov)[0] > -1e-12
        assert np.linalg.eigvalsh(prior_cov - cov)[0] > -1e-9


@pytest.mark.parametrize("rank_0", [2, 3])  # a singular Sigma_0 and a regular one take different ways
@pytest.mark.parametrize("sigma", [1e-4, 1e-5, 1e-6])
def test_data_that_outweigh_the_prior(problem, rank_0, sigma):
    """Few rows with hardly any noise: the covariance of the rewards is well conditioned where G_s is not."""
    p = problem(seed=4, counts=(0, 1, 2, 1), rank_0=rank_0)
    prior = replace(p.prior, sigma=sigma)
    post = infer(p.stats, prior)
    raw = (prior.mu_q, prior.Sigma_q, prior.Sigma_0, sigma, p.features, p.rewards, p.codes)
    slow = theory.joint_posterior(*raw, p.m)
    fitted = np.sum(p.features * post.means[p.codes], axis=1)
    np.testing.assert_allclose(fitted, np.sum(p.features * slow.mean[1 + p.codes], axis=1), atol=1e-2 * sigma)
    np.testing.assert_allclose(post.means, slow.mean[1:], atol=1e-3)
    assert evidence_of(p.stats, post) == pytest.approx(theory.log_evidence(*raw), abs=1e-2)


def test_weak_features_under_a_vague_prior_keep_their_information():
    """W is a small difference of large matrices for a feature of size 1e-8, and Sigma_q lets it be felt."""
    rng = np.random.default_rng(0)
    features, codes = rng.uniform(-1, 1, (40, 3)), np.repeat(np.arange(8), 5)
    units = np.array([1e-8, 1.0, 1.0])
    wide = GaussianHierarchy(np.zeros(3), np.diag([1e16, 1.0, 1.0]), np.eye(3), 0.5)
    rewards = rng.standard_normal(40)
    # The same problem in units in which nothing is large or small.
    plain = GaussianHierarchy(np.zeros(3), np.eye(3), np.diag([1e-16, 1.0, 1.0]), 0.5)
    weak = infer(TaskStatistics.from_rows(features * units, rewards, codes), wide)
    same = infer(TaskStatistics.from_rows(features, rewards, codes), plain)
    np.testing.assert_allclose(weak.hyper.mean * units, same.hyper.mean, rtol=1e-9)
    np.testing.assert_allclose(weak.hyper.cov * np.outer(units, units), same.hyper.cov, rtol=1e-9, atol=1e-12)


def test_what_rounding_would_decide_is_refused(problem):
    p = problem(seed=4, counts=(0, 1, 2, 7))
    for sigma in (1e-8, 1e-10, 1e-12):
        with pytest.raises(np.linalg.LinAlgError, match=r"rows of task 1 .* raise sigma"):
            infer(p.stats, replace(p.prior, sigma=sigma))
    twice = TaskStatistics.from_rows(p.features[:, [0, 1, 1]], p.rewards, p.codes)
    with pytest.raises(np.linalg.LinAlgError, match="narrower Sigma_q"):
        infer(twice, replace(p.prior, Sigma_q=1e16 * np.eye(3)))
    full = problem(seed=4, counts=(9, 9))  # full rank: little noise is no difficulty for the posterior
    post = infer(full.stats, replace(full.prior, sigma=1e-8))
    for s in range(2):
        rows = full.codes == s
        np.testing.assert_allclose(
            post.means[s], np.linalg.lstsq(full.features[rows], full.rewards[rows])[0], rtol=1e-6
        )
    exact = TaskStatistics.from_rows(full.features, full.features @ np.ones(3), full.codes)
    with pytest.raises(np.linalg.LinAlgError, match="hide noise of size 1e-08"):
        evidence_of(exact, infer(exact, replace(full.prior, sigma=1e-8)))

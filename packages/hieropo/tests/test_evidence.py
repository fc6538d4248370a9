"""Evidence against the multivariate normal of the rewards; its gradient against finite differences."""

from dataclasses import replace

import numpy as np
import pytest

from hieropo.evidence import evidence_gradient, expected_moments, log_marginal_likelihood
from hieropo.linalg import symmetric
from hieropo.posterior import infer
from hieropo.prior import GaussianHierarchy
from hieropo.theory import joint_posterior, log_evidence, restricted_log_evidence

RANKS = [(3, 3), (0, 3), (3, 0), (0, 0), (1, 3), (3, 1), (2, 2)]


@pytest.mark.parametrize(("rank_q", "rank_0"), RANKS)
def test_equals_the_multivariate_normal(problem, rank_q, rank_0):
    p = problem(seed=1, rank_q=rank_q, rank_0=rank_0)
    exact = log_evidence(*p.raw, p.features, p.rewards, p.codes)
    assert log_marginal_likelihood(p.stats, p.prior) == pytest.approx(exact, rel=1e-11)


def test_no_rows_have_evidence_one(problem):
    p = problem(seed=2, counts=(0, 0))
    assert log_marginal_likelihood(p.stats, p.prior) == 0.0


def test_chain_rule(problem):
    # log p(Y1, Y2) = log p(Y1) + log p(Y2 | Y1), the second by prediction of one more reward.
    p = problem(seed=3)
    head = p._replace(features=p.features[:-1], rewards=p.rewards[:-1], codes=p.codes[:-1])
    posterior = infer(head.stats, p.prior).marginal(int(p.codes[-1]))
    phi = p.features[-1]
    variance = phi @ posterior.cov @ phi + p.prior.sigma**2
    step = -0.5 * (np.log(2 * np.pi * variance) + (p.rewards[-1] - phi @ posterior.mean) ** 2 / variance)
    total = log_marginal_likelihood(p.stats, p.prior)
    assert total == pytest.approx(log_marginal_likelihood(head.stats, p.prior) + step, rel=1e-11)


@pytest.mark.parametrize("rank_0", [3, 1, 0])
def test_flat_equals_restricted_likelihood(problem, rank_0):
    p = problem(seed=4, rank_0=rank_0)
    exact = restricted_log_evidence(p.prior.Sigma_0, p.prior.sigma, p.features, p.rewards, p.codes)
    assert log_marginal_likelihood(p.stats, p.prior, flat=True) == pytest.approx(exact, rel=1e-11)


def test_flat_is_the_limit_of_a_wide_prior(problem):
    p = problem(seed=5)
    width = 1e5
    wide = GaussianHierarchy(np.zeros(3), width**2 * np.eye(3), p.prior.Sigma_0, p.prior.sigma)
    density_at_zero = 3 * np.log(width) + 1.5 * np.log(2 * np.pi)
    proper = log_marginal_likelihood(p.stats, wide) + density_at_zero
    assert proper == pytest.approx(log_marginal_likelihood(p.stats, wide, flat=True), abs=1e-7)


def test_no_digits_are_lost_on_large_offsets(problem):
    # A mean of a million and ordinary residuals: differences of sums of squares, the textbook form, are off by 85 here.
    p = problem(seed=6)
    shift = np.full(3, 1e6)
    moved = replace(p.prior, mu_q=p.prior.mu_q + shift)
    rewards = p.rewards + p.features @ shift
    exact = log_marginal_likelihood(p.stats, p.prior)
    q = p._replace(prior=moved, rewards=rewards)
    assert log_marginal_likelihood(q.stats, moved) == pytest.approx(exact, abs=0.01)


def test_no_digits_are_lost_with_little_noise(problem):
    p = problem(seed=6)
    quiet = replace(p.prior, sigma=1e-4)
    rng = np.random.default_rng(0)
    theta = quiet.sample(p.m, rng)[1]
    rewards = np.sum(p.features * theta[p.codes], axis=1) + 1e-4 * rng.standard_normal(p.codes.size)
    q = p._replace(prior=quiet, rewards=rewards)
    exact = log_evidence(*q.raw, q.features, q.rewards, q.codes)
    assert log_marginal_likelihood(q.stats, quiet) == pytest.approx(exact, abs=1e-4)  # the textbook form is off by 2.5


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(("rank_q", "rank_0"), [(3, 3), (1, 3), (3, 1)])
def test_gradient_equals_differences(problem, rank_q, rank_0, flat):
    p = problem(seed=7, rank_q=rank_q, rank_0=rank_0)
    rng = np.random.default_rng(0)
    _, gradient = evidence_gradient(p.stats, p.prior, flat)
    root = rng.standard_normal((3, 3))
    upwards = root @ root.T  # directions that stay positive semi-definite from a singular covariance
    step = 1e-5

    def derivative(name, direction):
        values = []
        for k in (0, 1, 2):  # one-sided, second order: a singular covariance has no other side
            changed = replace(p.prior, **{name: getattr(p.prior, name) + k * step * direction})
            values.append(log_marginal_likelihood(p.stats, changed, flat))
        return (-3 * values[0] + 4 * values[1] - values[2]) / (2 * step)

    close = {"rel": 2e-5, "abs": 2e-5}
    assert np.vdot(gradient.Sigma_0, upwards) == pytest.approx(derivative("Sigma_0", upwards), **close)
    assert gradient.log_sigma == pytest.approx(derivative("sigma", p.prior.sigma), **close)
    if flat:
        assert not gradient.mu_q.any()
        assert not gradient.Sigma_q.any()
    else:
        assert np.vdot(gradient.Sigma_q, upwards) == pytest.approx(derivative("Sigma_q", upwards), **close)
        direction = rng.standard_normal(3)
        assert gradient.mu_q @ direction == pytest.approx(derivative("mu_q", direction), **close)


@pytest.mark.parametrize("rank_0", [3, 1])
def test_expected_moments_equal_those_of_the_joint(problem, rank_0):
    p = problem(seed=8, rank_0=rank_0)
    joint = joint_posterior(*p.raw, p.features, p.rewards, p.codes, p.m)
    moments = expected_moments(p.stats, infer(p.stats, p.prior))
    tasks, residual = np.zeros((3, 3)), 0.0
    for s in range(1, p.m + 1):
        shift = joint.mean[s] - joint.mean[0]
        cross = joint.cov[s, :, 0]
        tasks += np.outer(shift, shift) + joint.cov[s, :, s] + joint.cov[0, :, 0] - cross - cross.T
    for phi, y, s in zip(p.features, p.rewards, p.codes + 1, strict=True):
        residual += (y - phi @ joint.mean[s]) ** 2 + phi @ joint.cov[s, :, s] @ phi
    np.testing.assert_allclose(moments.tasks, symmetric(tasks), rtol=1e-9, atol=1e-10)
    assert moments.residual == pytest.approx(residual, rel=1e-10)

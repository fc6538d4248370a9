"""The slow theory against hand calculations, and the paper's bounds against the exact posterior."""

import math

import numpy as np
import pytest

from hieropo import theory
from hieropo.confidence import alpha_from_delta
from hieropo.posterior import infer
from hieropo.prior import GaussianHierarchy
from hieropo.statistics import TaskStatistics


def test_joint_posterior_by_hand():
    # μ ~ N(0, 1), θ ~ N(μ, 1), y ~ N(θ, 1): y has variance 3 and covariance 1 with μ, 2 with θ.
    joint = theory.joint_posterior(
        np.zeros(1), np.eye(1), np.eye(1), 1.0, np.ones((1, 1)), np.array([3.0]), np.array([0]), 1
    )
    np.testing.assert_allclose(joint.mean.ravel(), [1.0, 2.0])
    np.testing.assert_allclose(joint.cov.reshape(2, 2), [[2 / 3, 1 / 3], [1 / 3, 2 / 3]])


def test_log_evidence_by_hand():
    value = theory.log_evidence(
        np.zeros(1), np.eye(1), np.eye(1), 1.0, np.ones((2, 1)), np.array([1.0, -1.0]), np.array([0, 1])
    )
    # The covariance [[3, 1], [1, 3]] has eigenvalue 2 along (1, −1) and 4 along (1, 1).
    assert value == pytest.approx(-0.5 * (2 * math.log(2 * math.pi) + math.log(8) + 2 / 2))


def test_restricted_log_evidence_by_hand():
    # One task, φ = 1, Σ_0 = 0: the density of the contrast (y_1 − y_2)/√2, over √2 for the Jacobian of the mean.
    value = theory.restricted_log_evidence(
        np.zeros((1, 1)), 1.0, np.ones((2, 1)), np.array([1.0, 2.0]), np.zeros(2, int)
    )
    assert value == pytest.approx(-0.5 * (math.log(2 * math.pi) + math.log(2) + 0.5))


def test_theorem_one_is_twice_alpha_times_the_width():
    # With isotropic prior and G = γ n σ⁻² I, every unit vector has posterior variance 1/(σ_0⁻² + γ n/σ²);
    # the theorem adds √d because E[φφᵀ] has trace at most one.
    d, sigma_0, sigma, n, delta, gamma = 4, 0.5, 0.3, 37.0, 0.1, 0.5
    bound = theory.single_task_bound(sigma_0**2 * np.eye(d), sigma, n, delta, gamma)
    width = math.sqrt(1 / (sigma_0**-2 + gamma * n / sigma**2))
    assert bound == pytest.approx(2 * alpha_from_delta(delta, d, "paper") * math.sqrt(d) * width)


def test_theorem_two_covers_the_exact_widths():
    # Assumption 4: one-hot features, diagonal covariances, every action logged equally often (γ = 1, G_* = I/d).
    rng = np.random.default_rng(0)
    d, m, delta = 3, 5, 0.1
    prior = GaussianHierarchy(np.zeros(d), np.diag(rng.uniform(0.5, 2, d)), np.diag(rng.uniform(0.2, 1, d)), 0.4)
    counts = d * rng.integers(1, 20, m)
    codes = np.repeat(np.arange(m), counts)
    features = np.concatenate([np.tile(np.eye(d), (c // d, 1)) for c in counts])
    stats = TaskStatistics.from_rows(features, rng.standard_normal(len(codes)), codes)
    alpha = alpha_from_delta(delta, d, "paper")
    for s, cov in enumerate(infer(stats, prior).covariances()):
        exact = 2 * alpha * np.mean(np.sqrt(np.diagonal(cov)))  # 2 E[c(x, π*(x))] when π* takes each action equally
        bound = theory.multi_task_bound(prior.Sigma_q, prior.Sigma_0, prior.sigma, counts, s, delta, kappa=float(d))
        assert exact <= bound


def test_shape_of_the_bounds():
    cov_q, cov_0 = np.diag([1.0, 0.5]), 0.25 * np.eye(2)
    counts = np.array([50, 0, 50])

    def hyper(**changes):
        arguments = {"Sigma_q": cov_q, "Sigma_0": cov_0, "sigma": 0.5, "counts": counts, "delta": 0.1}
        return theory.hyper_term(**(arguments | changes))

    # Closed form: λ_d(Σ_q⁻¹) = 1, and the two tasks with rows give 1/(0.25 + 0.25/50) each.
    assert hyper() == pytest.approx(2 * math.sqrt(20 * math.log(10) / (1 + 2 / 0.255)))
    assert hyper(counts=np.zeros(3)) == pytest.approx(2 * math.sqrt(20 * math.log(10)))
    assert hyper(Sigma_q=np.zeros((2, 2))) == 0.0
    assert hyper(counts=np.full(10**6, 50)) < 0.01 * hyper()
    assert hyper(gamma=0.1) > hyper()
    assert hyper(kappa=np.array([4.0, 1.0, 4.0])) > hyper()
    flat = theory.flat_bound(cov_q, cov_0, 0.5, 50.0, 0.1)
    assert flat == theory.single_task_bound(cov_q + cov_0, 0.5, 50.0, 0.1)
    assert flat > theory.single_task_bound(cov_0, 0.5, 50.0, 0.1)
    assert theory.union_delta(0.1, 4) == 0.025
    large = [theory.single_task_bound(cov_0, 0.5, n, 0.1) for n in (1e8, 4e8)]
    assert large[0] / large[1] == pytest.approx(2.0, rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"delta": 0.5}, "1/e"), ({"gamma": 0.0}, "gamma"), ({"sigma": 0.0}, "sigma"), ({"n": -1.0}, "n -1")],
)
def test_bounds_refuse(changes, message):
    arguments = {"cov": np.eye(2), "sigma": 0.5, "n": 10.0, "delta": 0.1, "gamma": 1.0} | changes
    with pytest.raises(ValueError, match=message):
        theory.single_task_bound(**arguments)

"""The restricted likelihood and its maximum against statsmodels' MixedLM with random coefficients, the same model."""

import numpy as np
import pytest

from hieropo.evidence import log_marginal_likelihood
from hieropo.hyper import fit_hyperparameters
from hieropo.posterior import infer
from hieropo.prior import GaussianHierarchy
from hieropo.statistics import TaskStatistics

M, D = 60, 3


@pytest.fixture(scope="module")
def log():
    """Features, rewards and codes of tasks with 1 to 24 rows, from correlated Σ_0."""
    rng = np.random.default_rng(3)
    Sigma_0 = np.array([[0.4, 0.1, 0.0], [0.1, 0.3, -0.05], [0.0, -0.05, 0.2]])
    truth = GaussianHierarchy(np.array([1.0, -0.5, 0.3]), np.eye(D), Sigma_0, 0.5)
    codes = np.repeat(np.arange(M), rng.integers(1, 25, M))
    features = rng.uniform(-1, 1, (codes.size, D))
    theta = truth.sample(M, rng)[1]
    return features, np.sum(features * theta[codes], axis=1) + truth.sigma * rng.standard_normal(codes.size), codes


@pytest.fixture(scope="module")
def reml(log):
    """statsmodels at its optimum: Σ_0, σ², fixed effects and predicted random effects."""
    from statsmodels.regression.mixed_linear_model import MixedLM

    features, rewards, codes = log
    result = MixedLM(rewards, features, codes, exog_re=features).fit(reml=True, gtol=1e-8)
    assert result.converged
    return result


def at(result) -> GaussianHierarchy:
    """The prior that statsmodels found."""
    return GaussianHierarchy(np.zeros(D), np.zeros((D, D)), np.asarray(result.cov_re), float(result.scale) ** 0.5)


@pytest.mark.peer
def test_flat_evidence_is_the_restricted_likelihood(log, reml):
    assert log_marginal_likelihood(TaskStatistics.from_rows(*log), at(reml), flat=True) == pytest.approx(
        reml.llf, rel=1e-10
    )


@pytest.mark.peer
@pytest.mark.parametrize("method", ["em", "ml2"])
def test_optimum_is_that_of_reml(log, reml, method):
    """Near the optimum the evidence is flat: 1e-12 of it leaves about 1e-6 of the parameters."""
    stats = TaskStatistics.from_rows(*log)
    fit = fit_hyperparameters(stats, method, sigma_q="flat", tolerance=1e-13)
    assert fit.status == "converged"
    assert fit.log_evidence >= reml.llf - 1e-8
    np.testing.assert_allclose(fit.prior.Sigma_0, np.asarray(reml.cov_re), atol=2e-6)
    assert fit.prior.sigma**2 == pytest.approx(reml.scale, abs=2e-7)
    np.testing.assert_allclose(infer(stats, fit.prior, flat=True).hyper.mean, reml.fe_params, atol=1e-6)


@pytest.mark.peer
def test_task_means_and_covariances_given_the_mean_are_the_predicted_random_effects(log, reml):
    """statsmodels conditions on the estimated mean: its covariance is our Σ̃_s, which lacks what μ adds."""
    posterior = infer(TaskStatistics.from_rows(*log), at(reml), flat=True)
    for task in range(M):
        blup = np.asarray(reml.random_effects[task])
        np.testing.assert_allclose(posterior.means[task], reml.fe_params + blup, atol=1e-9)
        marginal = posterior.marginal(task)
        np.testing.assert_allclose(marginal.task_cov, np.asarray(reml.random_effects_cov[task]), atol=1e-9)
        assert np.trace(marginal.cov) > np.trace(marginal.task_cov)

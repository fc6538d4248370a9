"""Unknown noise against quadrature over σ², against the known-noise model, and against scipy's distributions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from scipy.special import logsumexp, ndtr

from hieropo.confidence import alpha_from_delta
from hieropo.estimators import HierOPO
from hieropo.noise_estimator import NoiseHierOPO
from hieropo.posterior import infer
from hieropo.prior import GaussianHierarchy
from hieropo.statistics import TaskStatistics
from hieropo.theory import log_evidence as joint_log_evidence
from hieropo.unknown_noise import NoisePrior, infer_with_noise, student_alpha

RANKS = [(3, 3), (0, 3), (3, 0), (1, 2)]


def noise_prior(p, shape=2.5, scale=1.2):
    return NoisePrior(GaussianHierarchy(p.prior.mu_q, p.prior.Sigma_q, p.prior.Sigma_0, 1.0), shape, scale)


def at_variance(prior, variance):
    h = prior.hierarchy
    return GaussianHierarchy(h.mu_q, variance * h.Sigma_q, variance * h.Sigma_0, np.sqrt(variance))


def by_quadrature(p, prior, points=400):
    """The evidence, and the posterior of σ² on a grid of log σ², from the brute-force evidence at every known σ²."""
    posterior = infer_with_noise(p.stats, prior)
    centre, width = np.log(posterior.scale / posterior.shape), 9.0 / np.sqrt(posterior.shape)
    grid = np.linspace(centre - width, centre + width, points)
    log_density = scipy_stats.invgamma.logpdf(np.exp(grid), prior.shape, scale=prior.scale) + grid
    for i, variance in enumerate(np.exp(grid)):
        h = at_variance(prior, variance)
        log_density[i] += joint_log_evidence(h.mu_q, h.Sigma_q, h.Sigma_0, h.sigma, p.features, p.rewards, p.codes)
    cell = np.log(grid[1] - grid[0])
    total = logsumexp(log_density) + cell
    return total, np.exp(grid), np.exp(log_density + cell - total)


@pytest.mark.parametrize(("rank_q", "rank_0"), RANKS)
def test_equals_quadrature_over_the_noise(problem, rank_q, rank_0):
    p = problem(seed=1, rank_q=rank_q, rank_0=rank_0)
    prior = noise_prior(p)
    posterior = infer_with_noise(p.stats, prior)
    log_evidence, variances, weights = by_quadrature(p, prior)
    assert posterior.log_evidence == pytest.approx(log_evidence, abs=1e-6)
    assert posterior.noise_variance == pytest.approx(weights @ variances, rel=1e-5)
    second = posterior.scale**2 / ((posterior.shape - 1) * (posterior.shape - 2))
    assert second == pytest.approx(weights @ variances**2, rel=1e-4)
    # Given σ² the posterior is the known-noise one; its mean does not depend on σ².
    for variance in (0.1, 1.7):
        known = infer(p.stats, at_variance(prior, variance))
        np.testing.assert_allclose(posterior.unit.means, known.means, atol=1e-9)
        np.testing.assert_allclose(variance * posterior.unit.covariances(), known.covariances(), atol=1e-9)


@pytest.mark.parametrize("delta", [0.3, 0.05, 0.001])
def test_pointwise_bounds_hold_with_exactly_the_stated_probability(problem, delta):
    p = problem(seed=2)
    prior = noise_prior(p)
    policy = NoiseHierOPO(prior, delta=delta, kind="pointwise").fit(p.features, p.rewards, p.codes)
    _, variances, weights = by_quadrature(p, prior, points=1000)
    phi = np.array([[0.3, -1.0, 0.5]])
    for task in (1, 3, 99):
        lower, upper = policy.lower_bound(phi[None], [task])[0, 0], policy.upper_bound(phi[None], [task])[0, 0]
        unit = policy.joint.unit
        gaussian = unit.new_task() if task == 99 else unit.marginal(policy.statistics.index(task))
        mean, width = phi[0] @ gaussian.mean, np.sqrt(phi[0] @ gaussian.cov @ phi[0] * variances)
        assert weights @ ndtr((mean - lower) / width) == pytest.approx(1 - delta, abs=1e-5)
        assert weights @ ndtr((upper - mean) / width) == pytest.approx(1 - delta, abs=1e-5)


def test_widths_are_student_and_fisher_quantiles():
    for nu in (1.0, 4.5, 60.0):
        for delta in (0.4, 0.05):
            pointwise = student_alpha(delta, kind="pointwise", d=3, degrees_of_freedom=nu)
            assert pointwise == pytest.approx(scipy_stats.t.ppf(1 - delta, nu), rel=1e-9)
            simultaneous = student_alpha(delta, kind="simultaneous", d=3, degrees_of_freedom=nu)
            assert simultaneous == pytest.approx(np.sqrt(3 * scipy_stats.f.ppf(1 - delta, 3, nu)), rel=1e-9)
            for kind in ("pointwise", "simultaneous"):
                limit = student_alpha(delta, kind=kind, d=3, degrees_of_freedom=1e9)
                assert limit == pytest.approx(alpha_from_delta(delta, 3, kind), rel=1e-6)


def test_certain_noise_is_known_noise(problem):
    p = problem(seed=3)
    sigma = 0.6
    hierarchy = GaussianHierarchy(p.prior.mu_q, p.prior.Sigma_q, p.prior.Sigma_0, 1.0)
    known_prior = GaussianHierarchy(p.prior.mu_q, sigma**2 * p.prior.Sigma_q, sigma**2 * p.prior.Sigma_0, sigma)
    gaps = []
    for shape in (1e4, 1e6, 1e8):
        unknown = NoiseHierOPO(NoisePrior(hierarchy, shape, shape * sigma**2), delta=0.05)
        known = HierOPO(known_prior, delta=0.05)
        for policy in (unknown, known):
            policy.fit(p.features, p.rewards, p.codes)
        actions = np.random.default_rng(0).standard_normal((5, 4, 3))
        gap = np.abs(unknown.lower_bound(actions, 3) - known.lower_bound(actions, 3)).max()
        gaps.append([gap, abs(unknown.log_marginal_likelihood() - known.log_marginal_likelihood())])
    gaps = np.array(gaps)
    assert gaps[-1, 0] < 1e-6
    np.testing.assert_allclose(gaps[0] / gaps[1], 100.0, rtol=0.05)  # the difference is O(1/shape)


@pytest.mark.property
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**16), n=st.integers(0, 30), split=st.integers(0, 30))
def test_streams_and_merges_are_exact(seed, n, split):
    rng = np.random.default_rng(seed)
    split = min(split, n)
    features, rewards, tasks = rng.standard_normal((n, 2)), rng.standard_normal(n), rng.integers(0, 4, n)
    prior = NoisePrior.isotropic(2, sigma_q=1.0, sigma_0=0.5, shape=0.7, scale=0.4)
    whole = NoiseHierOPO(prior).fit(features, rewards, tasks)
    streamed = NoiseHierOPO(prior).fit(features[:split], rewards[:split], tasks[:split])
    streamed.partial_fit(features[split:], rewards[split:], tasks[split:])
    assert streamed.joint.shape == whole.joint.shape == 0.7 + n / 2
    assert streamed.joint.scale == pytest.approx(whole.joint.scale, rel=1e-10)
    assert streamed.log_marginal_likelihood() == pytest.approx(whole.log_marginal_likelihood(), abs=1e-8)
    for task in whole.tasks:
        np.testing.assert_allclose(streamed.posterior(task).cov, whole.posterior(task).cov, atol=1e-10)


def test_the_evidence_is_a_product_of_predictions():
    # log p(y_1, y_2, ...) = Σ log p(y_t | before), each a Student-t of the posterior at hand.
    rng = np.random.default_rng(4)
    prior = NoisePrior.isotropic(2, sigma_q=1.0, sigma_0=0.5, shape=1.5, scale=0.8)
    features, rewards, tasks = rng.standard_normal((12, 2)), rng.standard_normal(12), rng.integers(0, 3, 12)
    policy, total = NoiseHierOPO(prior), 0.0
    for phi, y, task in zip(features, rewards, tasks.tolist(), strict=True):
        known = task in policy.tasks
        posterior = policy.posterior(task) if known else policy.new_task_posterior()
        scale = np.sqrt(phi @ posterior.cov @ phi + policy.noise**2)
        total += scipy_stats.t.logpdf(y, policy.joint.degrees_of_freedom, loc=phi @ posterior.mean, scale=scale)
        policy.partial_fit(phi[None], [y], [task])
    assert policy.log_marginal_likelihood() == pytest.approx(total, abs=1e-10)


def test_draws_have_the_posterior_moments(problem):
    p = problem(seed=5)
    posterior = infer_with_noise(p.stats, noise_prior(p))
    size = 20_000
    sigma, mu, theta = posterior.sample(np.random.default_rng(0), size)
    # Five standard errors on about 50 numbers: false alarm below 1e-4. The seed is fixed.
    assert np.mean(sigma**2) == pytest.approx(posterior.noise_variance, abs=5 * np.std(sigma**2) / np.sqrt(size))
    np.testing.assert_array_less(
        np.abs(mu.mean(axis=0) - posterior.unit.hyper.mean), 5 * mu.std(axis=0) / np.sqrt(size)
    )
    error = np.abs(theta.mean(axis=0) - posterior.unit.means)
    np.testing.assert_array_less(error, 5 * theta.std(axis=0) / np.sqrt(size))
    for s in range(p.m):
        cov = posterior.noise_variance * posterior.unit.marginal(s).cov
        products = (theta[:, s, :, None] - theta[:, s].mean(axis=0)[:, None]) * (
            theta[:, s] - theta[:, s].mean(axis=0)
        )[:, None]
        np.testing.assert_array_less(np.abs(products.mean(axis=0) - cov), 5 * products.std(axis=0) / np.sqrt(size))


def test_nothing_learned_yet():
    prior = NoisePrior.isotropic(2, sigma_q=1.0, sigma_0=0.5, shape=2.0, scale=0.5)
    policy = NoiseHierOPO(prior, delta=0.1)
    assert policy.log_marginal_likelihood() == 0.0
    assert policy.noise == 0.5
    assert policy.joint.noise_variance == 0.5
    assert policy.alpha == pytest.approx(np.sqrt(2 * scipy_stats.f.ppf(0.9, 2, 4)))
    np.testing.assert_allclose(policy.new_task_posterior().cov, 0.25 * 1.25 * np.eye(2))
    vague = NoisePrior.isotropic(2, sigma_q=1.0, sigma_0=0.5, shape=0.5, scale=0.5)
    assert NoiseHierOPO(vague).joint.noise_variance == np.inf
    assert NoiseHierOPO(vague, alpha=0.7).alpha == 0.7


def test_many_rows_keep_their_digits():
    rng = np.random.default_rng(6)
    n = 200_000
    rewards = 1000.0 + 0.01 * rng.standard_normal(n)
    prior = NoisePrior.isotropic(1, sigma_q=1e6, sigma_0=1.0, shape=1.0, scale=1e-4)
    policy = NoiseHierOPO(prior).fit(np.ones((n, 1)), rewards, np.zeros(n, dtype=int))
    # σ² is 1e-10 of the mean square, and ΣY² carries about 1e-14 relative rounding.
    assert policy.noise == pytest.approx(rewards.std(), rel=1e-3)


def test_errors():
    unit = GaussianHierarchy.isotropic(2, 1.0, 0.5, 1.0, np.zeros(2))
    with pytest.raises(ValueError, match="shape"):
        NoisePrior(unit, 0.0, 1.0)
    with pytest.raises(ValueError, match="scale"):
        NoisePrior(unit, 1.0, np.inf)
    with pytest.raises(ValueError, match="sigma=1"):
        NoisePrior(GaussianHierarchy.isotropic(2, 1.0, 0.5, 0.3, np.zeros(2)), 1.0, 1.0)
    prior = NoisePrior(unit, 1.0, 1.0)
    with pytest.raises(ValueError, match="unknown noise"):
        NoiseHierOPO(prior, delta=0.1, kind="paper")
    with pytest.raises(ValueError, match="delta"):
        NoiseHierOPO(prior, delta=1.5)
    with pytest.raises(ValueError, match=r"0\.5"):
        NoiseHierOPO(prior, delta=0.6, kind="pointwise")
    with pytest.raises(ValueError, match="alpha"):
        NoiseHierOPO(prior, -1.0)
    with pytest.raises(ValueError, match="one of them"):
        NoiseHierOPO(prior, 1.0, delta=0.1)
    with pytest.raises(TypeError, match="NoisePrior"):
        NoiseHierOPO(unit)
    with pytest.raises(ValueError, match="3 features"):
        infer_with_noise(TaskStatistics.empty(3), prior)
    policy = NoiseHierOPO(prior).fit([[1.0, 0.0]], [1.0], ["anna"])
    before = policy.joint
    with pytest.raises(ValueError, match="not finite"):
        policy.partial_fit([[1.0, np.nan]], [1.0], ["anna"])
    with pytest.raises(KeyError, match="anna"):
        policy.posterior("annna")
    assert policy.joint is before


def test_widths_for_tiny_delta_keep_their_digits():
    # t with one degree of freedom is Cauchy: its 1 − δ quantile is cot(πδ); F(1, 1) is its square.
    for delta in (1e-3, 1e-14, 1e-18):
        cauchy = 1.0 / np.tan(np.pi * delta)
        assert student_alpha(delta, kind="pointwise", d=1, degrees_of_freedom=1.0) == pytest.approx(cauchy, rel=1e-9)
        both = 1.0 / np.tan(np.pi * delta / 2)
        assert student_alpha(delta, kind="simultaneous", d=1, degrees_of_freedom=1.0) == pytest.approx(both, rel=1e-9)


def test_rewards_far_from_zero_are_refused_rather_than_lost():
    rng = np.random.default_rng(0)
    features = np.column_stack([rng.uniform(-1, 1, 50), np.ones(50)])
    prior = NoisePrior.isotropic(2, sigma_q=1e8, sigma_0=1.0, shape=1.0, scale=1.0)
    stats = TaskStatistics.from_rows(features, 1e8 + rng.standard_normal(50), np.arange(50) % 5)
    with pytest.raises(np.linalg.LinAlgError, match="subtract a common value"):
        infer_with_noise(stats, prior)

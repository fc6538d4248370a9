"""Hyper-parameters: the two methods against each other, the truth, and closed forms."""

import numpy as np
import pytest

from hieropo.evidence import evidence_gradient, log_marginal_likelihood
from hieropo.hyper import fit_hyperparameters
from hieropo.posterior import infer
from hieropo.prior import GaussianHierarchy
from hieropo.statistics import TaskStatistics
from hieropo.structure import STRUCTURES, pack, project, pull_back, unpack


def log_of(prior, tasks, rows, seed):
    rng = np.random.default_rng(seed)
    theta = prior.sample(tasks, rng)[1]
    codes = np.repeat(np.arange(tasks), rows)
    features = rng.uniform(-1, 1, (codes.size, prior.d))
    rewards = np.sum(features * theta[codes], axis=1) + prior.sigma * rng.standard_normal(codes.size)
    return TaskStatistics.from_rows(features, rewards, codes)


TRUTH = GaussianHierarchy(np.array([1.0, -1.0]), np.eye(2), np.array([[0.5, 0.2], [0.2, 0.3]]), 0.4)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("sigma_q", ["flat", 1.0])
def test_em_and_gradient_find_the_same_maximum(structure, sigma_q):
    stats = log_of(TRUTH, 60, 12, seed=1)
    em = fit_hyperparameters(stats, "em", sigma_q=sigma_q, structure=structure, tolerance=1e-13, max_iter=3000)
    ml2 = fit_hyperparameters(stats, "ml2", sigma_q=sigma_q, structure=structure, tolerance=1e-15)
    assert em.status == ml2.status == "converged"
    assert em.log_evidence == pytest.approx(ml2.log_evidence, abs=1e-5)
    np.testing.assert_allclose(em.prior.Sigma_0, ml2.prior.Sigma_0, rtol=2e-3, atol=1e-4)
    assert em.prior.sigma == pytest.approx(ml2.prior.sigma, rel=1e-4)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_em_never_decreases_the_evidence(problem, structure):
    for seed in range(5):
        p = problem(seed=seed, counts=(0, 1, 2, 4, 6, 9))
        fit = fit_hyperparameters(p.stats, "em", sigma_q=1.0, structure=structure, max_iter=60)
        gains = np.diff(fit.trace)
        assert gains.size > 0
        assert gains.min() > -1e-9 * abs(fit.trace[-1])
        assert fit.log_evidence >= fit.trace[0]


def test_the_gradient_vanishes_at_the_fit():
    stats = log_of(TRUTH, 80, 15, seed=2)
    fit = fit_hyperparameters(stats, "em", sigma_q="flat", tolerance=1e-14, max_iter=3000)
    _, gradient = evidence_gradient(stats, fit.prior, flat=True)
    # In units of the evidence a relative change of Σ_0 or σ of order one would bring.
    assert np.abs(fit.prior.Sigma_0 @ gradient.Sigma_0).max() < 1e-2
    assert abs(gradient.log_sigma) < 1e-2


def test_recovers_the_truth_from_many_tasks():
    stats = log_of(TRUTH, 1500, 30, seed=3)
    fit = fit_hyperparameters(stats)
    # Standard error of a variance from 1500 tasks is about √(2/1500) = 3.7 % (plus the tasks' own noise);
    # six of them: false alarm below 1e-8 for each of the three numbers.
    np.testing.assert_allclose(fit.prior.Sigma_0, TRUTH.Sigma_0, atol=0.24 * 0.5)
    assert fit.prior.sigma == pytest.approx(0.4, rel=6 / np.sqrt(2 * stats.n))


def test_closed_form_of_balanced_one_way_anova():
    # d = 1, φ = 1, k rows a task: REML is the analysis of variance, where its estimate is positive.
    rng = np.random.default_rng(4)
    m, k = 12, 5
    y = rng.standard_normal((m, 1)) + 0.5 * rng.standard_normal((m, k))
    stats = TaskStatistics.from_rows(np.ones((m * k, 1)), y.ravel(), np.repeat(np.arange(m), k))
    within = np.sum((y - y.mean(1, keepdims=True)) ** 2) / (m * (k - 1))
    between = k * np.sum((y.mean(1) - y.mean()) ** 2) / (m - 1)
    for method in ("em", "ml2"):
        fit = fit_hyperparameters(stats, method, sigma_q="flat", tolerance=1e-15, max_iter=5000)
        assert fit.prior.sigma**2 == pytest.approx(within, rel=1e-4)
        assert fit.prior.Sigma_0[0, 0] == pytest.approx((between - within) / k, rel=1e-3)


def test_several_hierarchies_identify_the_hyper_prior():
    # d = 1 and almost exact tasks: learning (μ_q, Σ_q) is fitting a Gaussian to the hierarchies' means.
    rng = np.random.default_rng(5)
    truth = GaussianHierarchy(np.array([2.0]), np.array([[1.5]]), np.array([[0.2]]), 0.1)
    logs = [log_of(truth, 40, 20, seed=int(s)) for s in rng.integers(0, 10**6, 25)]
    em = fit_hyperparameters(logs, tolerance=1e-13, max_iter=3000)
    ml2 = fit_hyperparameters(logs, "ml2", sigma_q="learn", tolerance=1e-15)
    assert em.log_evidence == pytest.approx(ml2.log_evidence, abs=1e-4)
    means = np.array([infer(log, em.prior, flat=True).hyper.mean[0] for log in logs])
    spread = np.mean([infer(log, em.prior, flat=True).hyper.cov[0, 0] for log in logs])
    assert em.prior.mu_q[0] == pytest.approx(means.mean(), abs=1e-3)
    assert em.prior.Sigma_q[0, 0] == pytest.approx(means.var() - spread, rel=1e-2)


def test_one_hierarchy_cannot_identify_the_hyper_prior():
    # Why 'learn' is refused for one hierarchy: with μ_q at μ̄ the evidence only falls as Σ_q grows.
    stats = log_of(TRUTH, 50, 10, seed=6)
    centre = infer(stats, TRUTH, flat=True).hyper.mean
    values = [
        log_marginal_likelihood(stats, GaussianHierarchy(centre, s * np.eye(2), TRUTH.Sigma_0, TRUTH.sigma))
        for s in (0.0, 1e-3, 1e-2, 0.1, 1.0)
    ]
    assert np.all(np.diff(values) < 0)
    with pytest.raises(ValueError, match="several hierarchies"):
        fit_hyperparameters(stats, sigma_q="learn")


def test_fixed_noise_stays_fixed_and_empty_tasks_do_not_matter(problem):
    p = problem(seed=7)
    fit = fit_hyperparameters(p.stats, sigma_q=1.0, sigma=0.7)
    assert fit.prior.sigma == 0.7
    without = fit_hyperparameters(p.stats.drop([0]), sigma_q=1.0, sigma=0.7)
    np.testing.assert_array_equal(fit.prior.Sigma_0, without.prior.Sigma_0)
    np.testing.assert_array_equal(fit.prior.Sigma_q, np.eye(3))


def test_statuses(problem):
    p = problem(seed=8)
    short = fit_hyperparameters(p.stats, sigma_q=1.0, max_iter=1, tolerance=0.0)
    assert short.status == "max_iter"
    with pytest.raises(RuntimeError, match="raise max_iter"):
        short.unwrap()
    few = fit_hyperparameters(problem(seed=8, counts=(1, 1)).stats, sigma_q="flat")
    assert few.status == "not_identified"
    assert "fix sigma_q" in few.message
    with pytest.raises(RuntimeError):
        few.unwrap()


def test_rewards_without_noise_end_at_the_floor():
    rng = np.random.default_rng(9)
    theta = rng.standard_normal((30, 2))
    codes = np.repeat(np.arange(30), 8)
    features = rng.uniform(-1, 1, (240, 2))
    stats = TaskStatistics.from_rows(features, np.sum(features * theta[codes], axis=1), codes)
    fit = fit_hyperparameters(stats, max_iter=5000)
    assert fit.status == "not_identified"
    assert "the noise reached its floor" in fit.message
    deviations = theta - theta.mean(0)
    np.testing.assert_allclose(fit.prior.Sigma_0, deviations.T @ deviations / 29, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "newton"}, "method is 'newton'"),
        ({"structure": "banded"}, "structure is 'banded'"),
        ({"sigma_q": "vague"}, "sigma_q is 'vague'"),
        ({"sigma_q": -np.eye(3)}, "not positive semi-definite"),
        ({"max_iter": 0}, "max_iter"),
        ({"sigma": -1.0}, "sigma is -1.0"),
        ({"start": GaussianHierarchy.isotropic(2, 1.0, 1.0, 1.0)}, "start has 2 features"),
        ({"method": "ml2", "start": GaussianHierarchy.isotropic(3, 1.0, 0.0, 1.0)}, "positive definite"),
    ],
)
def test_wrong_options_are_refused(problem, options, message):
    with pytest.raises(ValueError, match=message):
        fit_hyperparameters(problem().stats, **options)


def test_nothing_to_fit_is_refused(problem):
    with pytest.raises(ValueError, match="no task has a row"):
        fit_hyperparameters(problem(counts=(0, 0)).stats)
    with pytest.raises(ValueError, match="no statistics"):
        fit_hyperparameters([])
    with pytest.raises(ValueError, match="must agree"):
        fit_hyperparameters([problem().stats, problem(d=2, rank_q=2, rank_0=2).stats])


@pytest.mark.parametrize("structure", STRUCTURES)
def test_coordinates_round_trip_and_pull_back(structure):
    rng = np.random.default_rng(10)
    root = rng.standard_normal((3, 3))
    cov = project(root @ root.T, structure)
    x = pack(cov, structure)
    np.testing.assert_allclose(unpack(x, 3, structure), cov, rtol=1e-12)
    weight = root + root.T
    gradient = pull_back(weight, x, structure)
    for i, step in enumerate(1e-6 * np.eye(x.size)):
        rise = np.vdot(weight, unpack(x + step, 3, structure) - unpack(x - step, 3, structure)) / 2e-6
        assert gradient[i] == pytest.approx(rise, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("method", ["em", "ml2"])
@pytest.mark.parametrize("sigma_q", ["flat", 1.0])
def test_units_do_not_matter(problem, method, sigma_q):
    """φ → φ f, y → y r turns Σ_0 into Σ_0 r²/(f fᵀ) and σ into σ r; powers of two round nothing."""
    p = problem(seed=11, counts=(6,) * 30)
    f, r = np.exp2([-30.0, 0.0, 30.0]), 2.0**20
    plain = fit_hyperparameters(p.stats, method, sigma_q=np.eye(3) if sigma_q != "flat" else sigma_q)
    scaled = TaskStatistics.from_rows(p.features * f, p.rewards * r, p.codes)
    other = fit_hyperparameters(scaled, method, sigma_q=np.diag((r / f) ** 2) if sigma_q != "flat" else sigma_q)
    assert (plain.status, plain.n_iter) == ("converged", other.n_iter)
    np.testing.assert_array_equal(other.prior.Sigma_0 * np.outer(f, f) / r**2, plain.prior.Sigma_0)
    assert other.prior.sigma == plain.prior.sigma * r
    change = plain.log_evidence - p.stats.n * np.log(r) - (np.log(f / r).sum() if sigma_q == "flat" else 0.0)
    assert other.log_evidence == pytest.approx(change, abs=1e-8)
    flat = sigma_q == "flat"
    assert other.log_evidence == pytest.approx(log_marginal_likelihood(scaled, other.prior, flat), abs=1e-6)


def test_what_the_data_cannot_tell_is_no_convergence():
    rng = np.random.default_rng(12)
    features, rewards = rng.uniform(-1, 1, (50, 2)), rng.standard_normal(50)
    alone = fit_hyperparameters(TaskStatistics.from_rows(features, rewards, np.zeros(50, int)))
    assert alone.status == "not_identified"
    assert "one task" in alone.message
    assert alone.prior.Sigma_q[0, 0] > 1e3  # vague, not a known mean
    nothing = fit_hyperparameters(TaskStatistics.from_rows(features, np.zeros(50), np.arange(50) % 10))
    assert nothing.status == "not_identified"
    far = TaskStatistics.from_rows(np.column_stack([features, np.ones(50)]), 1e8 + rewards, np.arange(50) % 10)
    assert "subtract a common value" in fit_hyperparameters(far).message

"""Mixtures against the sum over all assignments, against the two-level model, and against known clusters."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

from hieropo.estimators import HierOPO
from hieropo.hyper import fit_hyperparameters
from hieropo.mixture import MixtureHierarchy, infer_mixture
from hieropo.mixture_estimator import MixtureOPO
from hieropo.mixture_hyper import fit_mixture
from hieropo.prior import GaussianHierarchy
from hieropo.statistics import TaskStatistics

# Arguments of a wrong shape or literal raise TypeError where annotations are checked at run time, else ValueError.
REFUSED = (ValueError, TypeError)


def random_cov(rng, d, rank):
    root = rng.standard_normal((d, rank))
    return root @ root.T / d


def random_mixture(rng, k, d, rank_q, rank_0):
    return MixtureHierarchy(
        rng.dirichlet(np.ones(k)),
        rng.standard_normal((k, d)),
        np.array([random_cov(rng, d, rank_q) for _ in range(k)]),
        np.array([random_cov(rng, d, rank_0) for _ in range(k)]),
        0.6,
    )


def random_log(rng, prior, counts):
    codes = np.repeat(np.arange(len(counts)), counts)
    _, _, theta = prior.sample(len(counts), rng)
    features = rng.standard_normal((codes.size, prior.d))
    rewards = np.sum(features * theta[codes], axis=1) + prior.sigma * rng.standard_normal(codes.size)
    return features, rewards, codes


def by_enumeration(prior, features, rewards, codes, m):
    """Evidence, assignment probabilities and moments of the tasks, summed over all k^m assignments of raw rows."""
    k, d, n = prior.k, prior.d, len(rewards)
    design = np.zeros((n, m, d))
    design[np.arange(n), codes] = features
    design = design.reshape(n, m * d)
    logs, shares, firsts, seconds = [], [], [], []
    for z in itertools.product(range(k), repeat=m):
        mean = prior.mu_q[list(z)].ravel()
        K = np.zeros((m, d, m, d))
        for s, t in itertools.product(range(m), repeat=2):
            K[s, :, t] = (prior.Sigma_q[z[s]] if z[s] == z[t] else 0.0) + (prior.Sigma_0[z[s]] if s == t else 0.0)
        K = K.reshape(m * d, m * d)
        V = design @ K @ design.T + prior.sigma**2 * np.eye(n)
        residual = rewards - design @ mean
        gain = K @ design.T @ np.linalg.inv(V)
        log_det = np.linalg.slogdet(2 * np.pi * V)[1]
        logs.append(np.log(prior.weights[list(z)]).sum() - 0.5 * (residual @ np.linalg.solve(V, residual) + log_det))
        shares.append(np.eye(k)[list(z)])
        first = (mean + gain @ residual).reshape(m, d)
        cov = (K - gain @ design @ K).reshape(m, d, m, d)[np.arange(m), :, np.arange(m)]
        firsts.append(first)
        seconds.append(cov + first[:, :, None] * first[:, None, :])
    total = logsumexp(logs)
    weights = np.exp(np.array(logs) - total)
    average = [np.tensordot(weights, np.array(x), axes=1) for x in (shares, firsts, seconds)]
    return total, average[0], average[1], average[2] - average[1][:, :, None] * average[1][:, None, :]


@pytest.mark.parametrize(("k", "rank_0"), [(1, 2), (2, 2), (3, 2), (2, 1), (2, 0)])
def test_known_centres_equal_the_sum_over_assignments(k, rank_0):
    rng = np.random.default_rng(10 * k + rank_0)
    prior = random_mixture(rng, k, 2, 0, rank_0)
    log = random_log(rng, prior, (0, 1, 3, 7))
    posterior = infer_mixture(TaskStatistics.from_rows(*log, tasks=np.arange(4)), prior)
    total, shares, means, covs = by_enumeration(prior, *log, 4)
    assert posterior.exact
    assert posterior.log_evidence == pytest.approx(total, abs=1e-9)
    np.testing.assert_allclose(posterior.responsibilities, shares, atol=1e-10)
    for s in range(4):
        np.testing.assert_allclose(posterior.marginal(s).mean, means[s], atol=1e-10)
        np.testing.assert_allclose(posterior.marginal(s).cov, covs[s], atol=1e-10)
    np.testing.assert_allclose(posterior.new_task().mean, posterior.marginal(0).mean, atol=1e-12)
    np.testing.assert_allclose(posterior.new_task().cov, posterior.marginal(0).cov, atol=1e-12)


@pytest.mark.property
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**16), k=st.integers(1, 3), rank_q=st.integers(0, 2), rank_0=st.integers(0, 2))
def test_the_bound_is_below_the_evidence(seed, k, rank_q, rank_0):
    rng = np.random.default_rng(seed)
    prior = random_mixture(rng, k, 2, rank_q, rank_0)
    log = random_log(rng, prior, (2, 5, 0, 3))
    posterior = infer_mixture(TaskStatistics.from_rows(*log, tasks=np.arange(4)), prior)
    total = by_enumeration(prior, *log, 4)[0]
    assert posterior.converged
    assert posterior.log_evidence <= total + 1e-8
    assert posterior.exact == (k == 1 or rank_q == 0)
    if posterior.exact:
        assert posterior.log_evidence == pytest.approx(total, abs=1e-8)


def test_separated_clusters_make_the_bound_tight():
    rng = np.random.default_rng(1)
    eye = np.eye(2)
    clusters = [
        GaussianHierarchy(np.array([-20.0, 0.0]), eye, 0.1 * eye, 0.5),
        GaussianHierarchy(np.array([20.0, 0.0]), 2 * eye, 0.2 * eye, 0.5),
    ]
    prior = MixtureHierarchy.of([0.5, 0.5], clusters)
    log = random_log(rng, prior, (6, 7, 8, 9, 5))
    posterior = infer_mixture(TaskStatistics.from_rows(*log), prior)
    total, shares, means, covs = by_enumeration(prior, *log, 5)
    assert posterior.log_evidence == pytest.approx(total, abs=1e-6)
    np.testing.assert_allclose(posterior.responsibilities, shares, atol=1e-6)
    for s in range(5):
        np.testing.assert_allclose(posterior.marginal(s).mean, means[s], atol=1e-6)
        np.testing.assert_allclose(posterior.marginal(s).cov, covs[s], atol=1e-6)


@pytest.mark.parametrize(("rank_q", "rank_0"), [(3, 3), (0, 3), (3, 0), (1, 2)])
def test_one_cluster_is_hieropo(problem, rank_q, rank_0):
    p = problem(seed=2, rank_q=rank_q, rank_0=rank_0)
    ours = MixtureOPO(MixtureHierarchy.of([1.0], [p.prior]), delta=0.1).fit(p.features, p.rewards, p.codes)
    theirs = HierOPO(p.prior, delta=0.1).fit(p.features, p.rewards, p.codes)
    assert ours.log_marginal_likelihood() == pytest.approx(theirs.log_marginal_likelihood(), abs=1e-9)
    for task in theirs.tasks:
        for name in ("mean", "cov", "task_cov", "hyper_cov"):
            a, b = getattr(ours.posterior(task), name), getattr(theirs.posterior(task), name)
            np.testing.assert_allclose(a, b, atol=1e-11)
    actions, tasks = np.random.default_rng(0).standard_normal((30, 5, 3)), np.arange(30) % (p.m + 2)
    np.testing.assert_allclose(ours.lower_bound(actions, tasks), theirs.lower_bound(actions, tasks), atol=1e-9)
    np.testing.assert_array_equal(ours.predict(actions, tasks), theirs.predict(actions, tasks))


def clustered(seed, m=150, n=4000, gap=2.0):
    rng = np.random.default_rng(seed)
    centres = gap * np.array([[1.0, 0.0], [-1.0, 1.0], [0.0, -1.5]])
    covs = [np.diag([0.1, 0.3]), 0.15 * np.eye(2), 0.05 * np.eye(2)]
    truth = MixtureHierarchy.known_centres([0.5, 0.3, 0.2], centres, covs, 0.5)
    z, _, theta = truth.sample(m, rng)
    tasks = rng.integers(0, m, n)
    features = rng.standard_normal((n, 2))
    rewards = np.sum(features * theta[tasks], axis=1) + 0.5 * rng.standard_normal(n)
    return truth, z, TaskStatistics.from_rows(features, rewards, tasks, tasks=np.arange(m))


@pytest.mark.parametrize("sigma_q", [None, 3.0])
def test_em_recovers_clusters_and_never_decreases(sigma_q):
    truth, z, stats = clustered(0)
    fit = fit_mixture(stats, 3, rng=np.random.default_rng(0), sigma_q=sigma_q, restarts=4, tolerance=1e-11)
    assert fit.status == "converged"
    assert np.min(np.diff(fit.trace)) >= -1e-9  # and "converged" excludes a fall
    assert fit.restarts == tuple(sorted(fit.restarts, reverse=True))
    assert fit.log_evidence == fit.restarts[0]
    # Standard errors: of a centre √(0.3/30) = 0.1, of a weight √(0.25/150) = 0.04; five of each.
    np.testing.assert_allclose(fit.centres, truth.mu_q, atol=0.5)
    np.testing.assert_allclose(fit.prior.weights, truth.weights, atol=0.2)
    assert fit.prior.sigma == pytest.approx(0.5, rel=5 / np.sqrt(2 * 3700))
    posterior = infer_mixture(stats, fit.prior, start=fit.centres)
    assert posterior.log_evidence == pytest.approx(fit.log_evidence, abs=1e-5)
    assert posterior.exact == (sigma_q is None)
    np.testing.assert_array_equal(posterior.responsibilities.argmax(axis=1), z)
    if sigma_q is None:
        assert fit.log_evidence > infer_mixture(stats, truth).log_evidence  # a maximum is above the truth


@pytest.mark.property
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**16), k=st.integers(1, 3), n=st.integers(4, 40), vague=st.booleans())
def test_em_never_decreases_for_any_data(seed, k, n, vague):
    rng = np.random.default_rng(seed)
    tasks = np.concatenate([np.arange(4), rng.integers(0, 6, n - 4)])
    rewards = rng.standard_normal(n) * 10.0 ** rng.uniform(-3, 3)
    stats = TaskStatistics.from_rows(rng.standard_normal((n, 2)), rewards, tasks)
    fit = fit_mixture(stats, k, rng=rng, sigma_q=2.0 if vague else None, restarts=1, max_iter=15, tolerance=0.0)
    # Near the floor of the noise, 1e-6 of the rewards, ΣY²/σ² keeps only four digits behind the point.
    exhausted = fit.prior.sigma < 1e-4 * np.sqrt(np.mean(rewards**2))
    assert exhausted or "lost" not in fit.message  # a fall ends the climb, and is reported
    assert np.all(np.diff(fit.trace) >= 0)
    assert np.all(np.linalg.eigvalsh(fit.prior.Sigma_0) > 0)
    assert np.isfinite(fit.centres).all()


def test_em_ends_at_a_stationary_point():
    _, _, stats = clustered(1, m=60, n=900, gap=0.8)  # overlapping clusters: the shares are soft
    fit = fit_mixture(stats, 2, rng=np.random.default_rng(0), restarts=3, tolerance=1e-14, max_iter=20_000)
    assert fit.status == "converged"
    best, h = fit.prior, 1e-4

    def at(**changes):
        fields = {name: getattr(best, name) for name in ("weights", "mu_q", "Sigma_q", "Sigma_0", "sigma")}
        return infer_mixture(stats, MixtureHierarchy(**(fields | changes))).log_evidence

    def slope(change):
        return (at(**change(h)) - at(**change(-h))) / (2 * h)

    for j, i in itertools.product(range(2), range(2)):
        step = np.zeros((2, 2))
        step[j, i] = 1.0
        assert slope(lambda t, e=step: {"mu_q": best.mu_q + t * e}) == pytest.approx(0.0, abs=0.02)
    for j in range(2):
        only = np.arange(2)[:, None, None] == j
        change = slope(lambda t, o=only: {"Sigma_0": np.where(o, np.exp(t), 1.0) * best.Sigma_0})
        assert change == pytest.approx(0.0, abs=0.02)
    assert slope(lambda t: {"weights": best.weights + t * np.array([1.0, -1.0])}) == pytest.approx(0.0, abs=0.02)
    assert slope(lambda t: {"sigma": best.sigma * np.exp(t)}) == pytest.approx(0.0, abs=0.02)


def test_one_cluster_is_the_maximum_likelihood_hierarchy(problem):
    p = problem(seed=3, counts=(6, 9, 12, 7, 0, 8, 15, 6, 9, 11))
    fit = fit_mixture(p.stats, 1, rng=np.random.default_rng(0), structure="diagonal", tolerance=1e-14, max_iter=20_000)
    known = GaussianHierarchy(fit.prior.mu_q[0], np.zeros((3, 3)), fit.prior.Sigma_0[0], fit.prior.sigma)
    assert HierOPO(known).fit_statistics(p.stats).log_marginal_likelihood() == pytest.approx(fit.log_evidence, abs=1e-6)
    two = fit_hyperparameters(
        p.stats, "ml2", sigma_q=0.0, mu_q=fit.prior.mu_q[0], structure="diagonal", tolerance=1e-14
    )
    assert fit.log_evidence == pytest.approx(two.log_evidence, abs=1e-4)


def test_labels_are_ordered_and_runs_repeat():
    _, _, stats = clustered(2)
    first = fit_mixture(stats, 3, rng=np.random.default_rng(5), restarts=4)
    again = fit_mixture(stats, 3, rng=np.random.default_rng(5), restarts=4)
    other = fit_mixture(stats, 3, rng=np.random.default_rng(6), restarts=4)
    np.testing.assert_array_equal(first.centres, again.centres)
    np.testing.assert_allclose(first.centres, other.centres, atol=1e-3)
    assert np.all(np.diff(first.prior.weights) <= 0)


def test_a_superfluous_cluster_is_reported():
    rng = np.random.default_rng(7)
    tasks = np.repeat(np.arange(12), 20)
    rewards = np.where(tasks == 0, 50.0, 0.0) + 0.1 * rng.standard_normal(tasks.size)
    stats = TaskStatistics.from_rows(np.ones((tasks.size, 1)), rewards, tasks)
    fit = fit_mixture(stats, 2, rng=rng)  # one task alone in its cluster: its spread falls to the floor
    assert fit.status == "degenerate"
    assert "shrunk to a point" in fit.message
    assert np.all(fit.prior.Sigma_0 > 0)
    assert np.isfinite(fit.log_evidence)
    assert np.min(np.diff(fit.trace)) >= -1e-9
    with pytest.raises(RuntimeError, match="fewer clusters"):
        fit.unwrap()


def test_an_unfinished_fit_says_so():
    _, _, stats = clustered(3, m=30, n=200, gap=0.5)
    fit = fit_mixture(stats, 2, rng=np.random.default_rng(0), restarts=1, max_iter=2, tolerance=0.0)
    assert fit.status == "max_iter"
    assert len(fit.trace) == 3


def test_draws_have_the_stated_moments():
    clusters = [
        GaussianHierarchy(np.array([0.0]), np.array([[0.5]]), np.array([[1.0]]), 1.0),
        GaussianHierarchy(np.array([4.0]), np.array([[0.1]]), np.array([[0.2]]), 1.0),
    ]
    prior = MixtureHierarchy.of([0.7, 0.3], clusters)
    rng = np.random.default_rng(8)
    theta = np.array([prior.sample(1, rng)[2][0, 0] for _ in range(4_000)])
    new = MixtureOPO(prior).new_task_posterior()
    assert new.mean[0] == pytest.approx(1.2)
    assert new.cov[0, 0] == pytest.approx(0.7 * 1.5 + 0.3 * 0.3 + 0.7 * 1.2**2 + 0.3 * 2.8**2)
    # Five standard errors each: false alarm below 1e-5. The seed is fixed.
    assert theta.mean() == pytest.approx(new.mean[0], abs=5 * theta.std() / np.sqrt(4_000))
    fourth = np.mean((theta - theta.mean()) ** 4)
    assert theta.var() == pytest.approx(new.cov[0, 0], abs=5 * np.sqrt(fourth / 4_000))


def test_streams_merges_and_forgetting():
    truth, _, stats = clustered(4, m=20, n=300)
    rng = np.random.default_rng(0)
    features, rewards, tasks = rng.standard_normal((40, 2)), rng.standard_normal(40), rng.integers(0, 25, 40)
    more = TaskStatistics.from_rows(features, rewards, tasks)
    whole = MixtureOPO(truth).fit_statistics(stats.merge(more))
    streamed = MixtureOPO(truth).fit_statistics(stats).partial_fit(features, rewards, tasks)
    back = MixtureOPO(truth).fit_statistics(stats.merge(more)).forget(rows=(features, rewards, tasks))
    before = MixtureOPO(truth).fit_statistics(stats)
    for task in before.tasks:
        np.testing.assert_allclose(streamed.posterior(task).mean, whole.posterior(task).mean, atol=1e-10)
        np.testing.assert_allclose(back.posterior(task).cov, before.posterior(task).cov, atol=1e-9)
        probabilities = whole.cluster_probabilities(task)
        assert probabilities.sum() == pytest.approx(1.0)


def test_errors():
    eye = np.eye(2)[None]
    with pytest.raises(REFUSED, match="weights"):
        MixtureHierarchy.known_centres([0.5, 0.6], np.zeros((2, 2)), np.repeat(eye, 2, axis=0), 1.0)
    with pytest.raises(REFUSED, match="mu_q"):
        MixtureHierarchy.known_centres([1.0], np.zeros((2, 2)), eye, 1.0)
    with pytest.raises(REFUSED, match="Sigma_"):
        MixtureHierarchy.known_centres([1.0], np.zeros((1, 2)), np.eye(3)[None], 1.0)
    with pytest.raises(REFUSED, match="semi-definite"):
        MixtureHierarchy.known_centres([1.0], np.zeros((1, 2)), -eye, 1.0)
    with pytest.raises(REFUSED, match="sigma"):
        MixtureHierarchy.known_centres([1.0], np.zeros((1, 2)), eye, 0.0)
    quiet, loud = (GaussianHierarchy.isotropic(2, 1.0, 1.0, s, np.zeros(2)) for s in (0.1, 1.0))
    with pytest.raises(REFUSED, match="common sigma"):
        MixtureHierarchy.of([0.5, 0.5], [quiet, loud])
    prior = MixtureHierarchy.of([0.5, 0.5], [quiet, quiet])
    with pytest.raises(REFUSED, match="start"):
        MixtureOPO(prior, start=np.zeros((3, 2)))
    with pytest.raises(REFUSED, match="start"):
        infer_mixture(TaskStatistics.empty(2), prior, start=np.full((2, 2), np.nan))
    with pytest.raises(REFUSED, match="3 features"):
        infer_mixture(TaskStatistics.empty(3), prior)
    with pytest.raises(TypeError, match="MixtureHierarchy"):
        MixtureOPO(quiet)
    _, _, stats = clustered(5, m=5, n=50)
    rng = np.random.default_rng(0)
    for options, message in (
        ({"k": 0}, "k is 0"),
        ({"k": 6}, "at most 5"),
        ({"k": 2, "structure": "banded"}, "structure"),
        ({"k": 2, "restarts": 0}, "restarts"),
        ({"k": 2, "floor": 0.0}, "floor"),
        ({"k": 2, "max_iter": 0}, "max_iter"),
        ({"k": 2, "tolerance": -1.0}, "tolerance"),
        ({"k": 2, "sigma_q": -np.eye(2)}, "sigma_q"),
    ):
        with pytest.raises(REFUSED, match=message):
            fit_mixture(stats, rng=rng, **options)
    with pytest.raises(REFUSED, match="no task has a row"):
        fit_mixture(TaskStatistics.empty(2), 1, rng=rng)
    policy = MixtureOPO(prior).fit([[1.0, 0.0]], [1.0], ["anna"])
    before = policy.joint
    with pytest.raises(REFUSED, match="not finite"):
        policy.partial_fit([[1.0, np.inf]], [1.0], ["anna"])
    with pytest.raises(KeyError, match="anna"):
        policy.cluster_probabilities("annna")
    assert policy.joint is before

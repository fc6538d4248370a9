"""The logistic hierarchy against quadrature, against a dense optimiser, and against Markov chain Monte Carlo."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import minimize
from scipy.special import expit, logsumexp

from hieropo.logistic import LogisticHierarchy, LogisticRows
from hieropo.logistic_estimator import LogisticHierOPO
from hieropo.logistic_hyper import fit_logistic_hyperparameters, laplace_evidence_gradient
from hieropo.logistic_laplace import laplace_posterior, mean_probability

# Arguments of a wrong shape or literal raise TypeError where annotations are checked at run time, else ValueError.
REFUSED = (ValueError, TypeError)


def random_cov(rng, d, rank):
    root = rng.standard_normal((d, rank))
    return root @ root.T / d


def random_log(seed, d=3, counts=(0, 1, 2, 9, 30)):
    rng = np.random.default_rng(seed)
    codes = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    features = rng.standard_normal((codes.size, d))
    theta = rng.standard_normal(d) + 0.7 * rng.standard_normal((len(counts), d))
    rewards = rng.random(codes.size) < expit(np.sum(features * theta[codes], axis=1))
    prior = LogisticHierarchy(rng.standard_normal(d), random_cov(rng, d, d), random_cov(rng, d, d))
    return prior, LogisticRows.from_rows(features, rewards, codes, tasks=np.arange(len(counts)))


class Dense:
    """The log posterior of (μ, θ_1, ..., θ_m) written down directly, for regular covariances."""

    def __init__(self, rows, prior):
        self.rows, self.m, self.d = rows, rows.m, rows.d
        self.mu_q = prior.mu_q
        self.P_q, self.P_0 = np.linalg.inv(prior.Sigma_q), np.linalg.inv(prior.Sigma_0)

    def negative(self, x):
        z = x.reshape(self.m + 1, self.d)
        eta = np.sum(self.rows.features * z[1:][self.rows.codes], axis=1)
        apart, root = z[1:] - z[0], z[0] - self.mu_q
        quadratic = np.einsum("sd,de,se->", apart, self.P_0, apart) + root @ self.P_q @ root
        return 0.5 * quadratic - np.sum(self.rows.rewards * eta - np.log1p(np.exp(eta)))

    def hessian(self, x):
        z = x.reshape(self.m + 1, self.d)
        H = np.zeros((self.m + 1, self.d, self.m + 1, self.d))
        H[0, :, 0] = self.P_q + self.m * self.P_0
        for s in range(self.m):
            H[s + 1, :, s + 1] = self.P_0
            H[0, :, s + 1] = H[s + 1, :, 0] = -self.P_0
        for phi, code in zip(self.rows.features, self.rows.codes, strict=True):
            p = expit(phi @ z[code + 1])
            H[code + 1, :, code + 1] += p * (1 - p) * np.outer(phi, phi)
        return H.reshape(x.size, x.size)


@pytest.mark.parametrize("seed", range(4))
def test_mode_covariance_and_evidence_equal_the_dense_ones(seed):
    prior, rows = random_log(seed)
    posterior = laplace_posterior(rows, prior)
    assert posterior.converged
    dense = Dense(rows, prior)
    mode = np.concatenate([posterior.gaussian.hyper.mean[None], posterior.gaussian.means]).ravel()
    found = minimize(dense.negative, np.zeros(mode.size), method="BFGS", options={"gtol": 1e-7, "maxiter": 5000})
    np.testing.assert_allclose(mode, found.x, atol=1e-5)
    assert dense.negative(mode) <= found.fun + 1e-9
    H = dense.hessian(mode)
    cov = np.linalg.inv(H).reshape(rows.m + 1, rows.d, rows.m + 1, rows.d)
    np.testing.assert_allclose(posterior.gaussian.hyper.cov, cov[0, :, 0], atol=1e-10)
    for s in range(rows.m):
        np.testing.assert_allclose(posterior.gaussian.marginal(s).cov, cov[s + 1, :, s + 1], atol=1e-10)
        np.testing.assert_allclose(posterior.gaussian.cross_cov(s, 0), cov[s + 1, :, 1], atol=1e-10)
    log_priors = -0.5 * (np.linalg.slogdet(prior.Sigma_q)[1] + rows.m * np.linalg.slogdet(prior.Sigma_0)[1])
    evidence = -dense.negative(mode) + log_priors - 0.5 * np.linalg.slogdet(H)[1]
    assert posterior.log_evidence == pytest.approx(evidence, abs=1e-8)


def by_quadrature(rows, prior, points=401):
    """Evidence, means and variances of two tasks with one feature, μ integrated out by hand."""
    q, v = prior.Sigma_q[0, 0], prior.Sigma_0[0, 0]
    grid = np.linspace(-9, 9, points) * np.sqrt(q + v)
    K = q * np.ones((2, 2)) + v * np.eye(2)
    pairs = np.stack(np.meshgrid(grid, grid, indexing="ij"), axis=-1)
    log_density = -0.5 * np.einsum("ijk,kl,ijl->ij", pairs, np.linalg.inv(K), pairs)
    log_density -= 0.5 * np.linalg.slogdet(2 * np.pi * K)[1]
    for phi, y, s in zip(rows.features[:, 0], rows.rewards, rows.codes, strict=True):
        eta = phi * (grid + prior.mu_q[0])
        term = y * eta - np.logaddexp(0.0, eta)
        log_density += term[:, None] if s == 0 else term[None, :]
    cell = 2 * np.log(grid[1] - grid[0])
    log_evidence = logsumexp(log_density) + cell
    weights = np.exp(log_density + cell - log_evidence)
    means = np.array([(weights * pairs[..., s]).sum() for s in range(2)])
    variances = np.array([(weights * pairs[..., s] ** 2).sum() for s in range(2)]) - means**2
    return log_evidence, means + prior.mu_q[0], variances


def two_tasks(n, seed):
    rng = np.random.default_rng(seed)
    features = rng.choice([-1.0, 1.0], 2 * n) * rng.uniform(0.5, 1.5, 2 * n)
    codes = np.repeat([0, 1], n)
    rewards = rng.random(2 * n) < expit(features * np.array([0.8, -0.3])[codes])
    return LogisticRows.from_rows(features[:, None], rewards, codes)


@pytest.mark.parametrize("seed", range(3))
def test_error_against_quadrature_falls_like_one_over_n(seed):
    # The next term of Laplace's expansion is O(1/n): from 256 to 1024 rows a task every error falls by about 4.
    prior = LogisticHierarchy(np.array([0.2]), np.eye(1), 0.5 * np.eye(1))
    errors = []
    for n in (4, 256, 1024):
        rows = two_tasks(n, seed)
        posterior = laplace_posterior(rows, prior)
        log_evidence, means, variances = by_quadrature(rows, prior)
        ratio = posterior.gaussian.covariances()[:, 0, 0] / variances
        shift = (posterior.gaussian.means[:, 0] - means) / np.sqrt(variances)
        errors.append([abs(posterior.log_evidence - log_evidence), *np.abs(ratio - 1.0), np.abs(shift).max()])
    few, some, many = np.array(errors)
    assert few[0] < 0.06
    assert few[1:3].max() < 0.12
    assert few[3] < 0.15
    assert many[0] < 1e-3
    np.testing.assert_allclose(some[:3] / many[:3], 4.0, rtol=0.2)
    assert some[3] / many[3] > 1.5  # in standard deviations, which shrink too, the shift falls like 1/√n


@pytest.mark.parametrize("structure", [(0, 2), (2, 0), (1, 1), (0, 0)])
def test_singular_covariances_are_limits_of_regular_ones(structure):
    rng = np.random.default_rng(3)
    _, rows = random_log(5, d=2)
    q, v = random_cov(rng, 2, structure[0]), random_cov(rng, 2, structure[1])
    mean = rng.standard_normal(2)
    exact = laplace_posterior(rows, LogisticHierarchy(mean, q, v))
    near = laplace_posterior(rows, LogisticHierarchy(mean, q + 1e-9 * np.eye(2), v + 1e-9 * np.eye(2)))
    assert exact.converged
    np.testing.assert_allclose(exact.gaussian.means, near.gaussian.means, atol=1e-5)
    np.testing.assert_allclose(exact.gaussian.covariances(), near.gaussian.covariances(), atol=1e-5)
    assert exact.log_evidence == pytest.approx(near.log_evidence, abs=1e-5)


def test_no_data_returns_the_prior():
    prior, rows = random_log(6, counts=(0, 0))
    posterior = laplace_posterior(rows, prior)
    np.testing.assert_array_equal(posterior.gaussian.means, np.tile(prior.mu_q, (2, 1)))
    np.testing.assert_allclose(posterior.gaussian.covariances()[0], prior.Sigma_q + prior.Sigma_0, atol=1e-13)
    assert posterior.log_evidence == 0.0
    nothing = LogisticHierOPO(prior)
    np.testing.assert_allclose(nothing.new_task_posterior().cov, prior.Sigma_q + prior.Sigma_0, atol=1e-13)


@pytest.mark.property
@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**16), log_scale=st.floats(-3, 3), separable=st.booleans())
def test_the_mode_is_found_for_any_scale_and_for_separable_data(seed, log_scale, separable):
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((40, 3)) * 10.0**log_scale
    rewards = features[:, 0] > 0 if separable else rng.random(40) < 0.5
    rows = LogisticRows.from_rows(features, rewards, rng.integers(0, 4, 40))
    posterior = laplace_posterior(rows, LogisticHierarchy.isotropic(3, sigma_q=1.0, sigma_0=0.5))
    assert posterior.converged
    assert np.isfinite(posterior.log_evidence)
    # At the mode u_s is the score of task s, and θ_s − μ = Σ_0 u_s.
    p = expit(np.sum(rows.features * posterior.gaussian.means[rows.codes], axis=1))
    score = np.zeros((rows.m, 3))
    np.add.at(score, rows.codes, rows.features * (rows.rewards - p)[:, None])
    slack = 1e-6 * max(1.0, float(np.abs(rows.features).max()))
    np.testing.assert_allclose(posterior.dual, score, atol=slack)
    apart = posterior.gaussian.means - posterior.gaussian.hyper.mean
    np.testing.assert_allclose(apart, 0.25 * posterior.dual, atol=slack)


def test_a_warm_start_changes_nothing():
    prior, rows = random_log(7)
    cold = laplace_posterior(rows, prior)
    for start in (cold.dual, cold.dual + 0.3, 1e6 * np.ones_like(cold.dual)):
        warm = laplace_posterior(rows, prior, start=start)
        np.testing.assert_allclose(warm.gaussian.means, cold.gaussian.means, atol=1e-9)


def test_an_unfinished_search_says_so():
    prior, rows = random_log(8)
    posterior = laplace_posterior(rows, prior, max_iter=1)
    assert not posterior.converged
    assert "max_iter" in posterior.message


@pytest.mark.parametrize("seed", range(3))
def test_gradient_of_the_evidence_equals_finite_differences(seed):
    prior, rows = random_log(seed, counts=(3, 0, 12, 25, 8, 40))
    gradient = laplace_evidence_gradient(rows, prior, laplace_posterior(rows, prior))
    h = 1e-5
    for i in range(3):
        for j in range(i + 1):
            direction = np.zeros((3, 3))
            direction[i, j] += 0.5
            direction[j, i] += 0.5
            values = [
                laplace_posterior(
                    rows, LogisticHierarchy(prior.mu_q, prior.Sigma_q, prior.Sigma_0 + sign * h * direction)
                ).log_evidence
                for sign in (1, -1)
            ]
            slope = (values[0] - values[1]) / (2 * h)
            assert np.sum(gradient * direction) == pytest.approx(slope, rel=1e-5, abs=1e-5)


def learning_problem(seed, m=150, n_each=60, spread=0.7):
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(m), n_each)
    theta = np.array([0.5, -0.5]) + spread * rng.standard_normal((m, 2))
    features = rng.standard_normal((codes.size, 2))
    rewards = rng.random(codes.size) < expit(np.sum(features * theta[codes], axis=1))
    return LogisticRows.from_rows(features, rewards, codes)


@pytest.mark.parametrize("structure", ["full", "diagonal", "isotropic"])
def test_evidence_maximisation_ends_where_the_gradient_vanishes(structure):
    rows = learning_problem(1)
    start = LogisticHierarchy.isotropic(2, sigma_q=2.0, sigma_0=2.0)
    fit = fit_logistic_hyperparameters(rows, start, structure=structure, tolerance=1e-13)
    assert fit.status == "converged"
    assert fit.trace[-1] > fit.trace[0]
    assert np.min(np.diff(fit.trace)) >= -1e-9
    posterior = laplace_posterior(rows, fit.prior)
    assert fit.log_evidence == pytest.approx(posterior.log_evidence, abs=1e-7)
    gradient = laplace_evidence_gradient(rows, fit.prior, posterior)
    free = {"full": gradient, "diagonal": np.diag(gradient), "isotropic": np.trace(gradient)}[structure]
    np.testing.assert_allclose(free, 0.0, atol=0.05)  # nats per unit of variance; at the start it is over 10
    if structure == "isotropic":
        # A variance from 300 coordinates, each known to about ±0.35 from 60 rows, has standard error (0.49 + 0.12) /
        # √150 = 0.05; five of them are missed with probability below 1e-6. The seed is fixed.
        assert fit.unwrap().Sigma_0[0, 0] == pytest.approx(0.49, abs=0.25)


def test_mean_probability_is_the_integral():
    for mean in (-3.0, 0.0, 0.4, 2.0):
        for variance in (0.01, 1.0, 9.0):
            density = np.sqrt(2 * np.pi * variance)
            truth = quad(
                lambda x, m=mean, v=variance, c=density: expit(x) * np.exp(-0.5 * (x - m) ** 2 / v) / c,
                mean - 12 * np.sqrt(variance),
                mean + 12 * np.sqrt(variance),
                epsabs=1e-12,
                limit=200,
            )[0]
            exact = mean_probability(np.array([mean]), np.array([variance]))[0]
            assert exact == pytest.approx(truth, abs=1e-6)
            assert mean_probability(np.array([mean]), np.array([variance]), method="probit")[0] == pytest.approx(
                truth, abs=0.02
            )
    assert mean_probability(np.array([1.0]), np.array([0.0]))[0] == pytest.approx(expit(1.0), rel=1e-14)
    with pytest.raises(ValueError, match="quadrature"):
        mean_probability(np.zeros(1), np.ones(1), method="guess")


def test_bounds_on_both_scales():
    prior, rows = random_log(9)
    policy = LogisticHierOPO(prior, alpha=1.5).fit(rows.features, rows.rewards, rows.codes)
    rng = np.random.default_rng(0)
    actions, tasks = rng.standard_normal((6, 4, 3)), np.array([1, 2, 3, 4, 4, 99])
    lower, upper = policy.lower_bound(actions, tasks), policy.upper_bound(actions, tasks)
    for row, task in enumerate(tasks):
        posterior = policy.new_task_posterior() if task == 99 else policy.posterior(int(task))
        width = 1.5 * np.sqrt(np.einsum("kd,de,ke->k", actions[row], posterior.cov, actions[row]))
        np.testing.assert_allclose(lower[row], actions[row] @ posterior.mean - width, atol=1e-10)
        np.testing.assert_allclose(upper[row], actions[row] @ posterior.mean + width, atol=1e-10)
    np.testing.assert_array_equal(policy.lower_probability(actions, tasks), expit(lower))
    np.testing.assert_array_equal(policy.upper_probability(actions, tasks), expit(upper))
    np.testing.assert_array_equal(policy.predict(actions, tasks), lower.argmax(axis=1))
    middle = policy.mean_reward(actions, tasks)
    assert np.all((middle > 0) & (middle < 1))
    # Averaging over the uncertainty pulls a probability towards one half.
    centre = expit(policy.uncertainty(actions, tasks).mean)
    assert np.all(np.abs(middle - 0.5) <= np.abs(centre - 0.5) + 1e-12)


def test_streams_merges_and_forgetting_are_exact():
    prior, rows = random_log(10)
    names = np.array(["a", "b", "c", "d", "e"])[rows.codes]
    phi, y, n = rows.features, rows.rewards, rows.n
    whole = LogisticHierOPO(prior).fit(phi, y, names)
    streamed = LogisticHierOPO(prior).fit(phi[:20], y[:20], names[:20]).partial_fit(phi[20:], y[20:], names[20:])
    merged = LogisticHierOPO(prior).fit(phi[20:], y[20:], names[20:])
    merged.merge(LogisticHierOPO(prior).fit(phi[:20], y[:20], names[:20]))
    shuffle = np.random.default_rng(0).permutation(n)
    shuffled = LogisticHierOPO(prior).fit(phi[shuffle], y[shuffle], names[shuffle])
    for other in (streamed, merged, shuffled):
        assert other.tasks == whole.tasks
        assert other.rows.n == n
        for task in whole.tasks:
            np.testing.assert_allclose(other.posterior(task).mean, whole.posterior(task).mean, atol=1e-9)
            np.testing.assert_allclose(other.posterior(task).cov, whole.posterior(task).cov, atol=1e-9)
    forgotten = streamed.forget(rows=(phi[20:], y[20:], names[20:]))
    before = LogisticHierOPO(prior).fit(phi[:20], y[:20], names[:20])
    for task in before.tasks:
        np.testing.assert_allclose(forgotten.posterior(task).mean, before.posterior(task).mean, atol=1e-9)
    dropped = whole.forget(task="e")
    kept = names != "e"
    expected = LogisticHierOPO(prior).fit(phi[kept], y[kept], names[kept])
    assert dropped.tasks == expected.tasks
    np.testing.assert_allclose(dropped.joint.gaussian.means, expected.joint.gaussian.means, atol=1e-9)


def test_errors_leave_the_estimator_as_it_was():
    prior = LogisticHierarchy.isotropic(1, sigma_q=1.0, sigma_0=1.0)
    policy = LogisticHierOPO(prior).fit([[1.0], [2.0]], [1, 0], ["anna", "bob"])
    before = policy.rows
    with pytest.raises(ValueError, match=r"rewards\[1\] is 0.5"):
        policy.fit([[1.0], [1.0]], [1.0, 0.5], ["anna", "anna"])
    with pytest.raises(ValueError, match="not finite"):
        policy.partial_fit([[np.nan]], [1], ["anna"])
    with pytest.raises(ValueError, match="is nan"):
        policy.partial_fit([[1.0]], [np.nan], ["anna"])
    with pytest.raises(ValueError, match="1 rows"):
        policy.partial_fit([[1.0]], [1, 0], ["anna"])
    with pytest.raises(ValueError, match="2 features"):
        policy.fit([[1.0, 2.0]], [1], ["anna"])
    with pytest.raises(ValueError, match="not in the log"):
        policy.forget(rows=([[1.0]], [0], ["anna"]))
    with pytest.raises(ValueError, match="not in the log"):
        policy.forget(rows=([[1.0], [1.0]], [1, 1], ["anna", "anna"]))
    with pytest.raises(KeyError, match="anna"):
        policy.forget(task="annna")
    with pytest.raises(KeyError, match="anna"):
        policy.posterior("annna")
    with pytest.raises(ValueError, match="either"):
        policy.forget()
    with pytest.raises(TypeError, match="merge"):
        policy.merge("rows")
    with pytest.raises(TypeError, match="integers"):
        policy.partial_fit([[1.0]], [1], [3])
    assert policy.rows is before
    with pytest.raises(ValueError, match="one of them"):
        LogisticHierOPO(prior, 0.1, delta=0.1)
    with pytest.raises(ValueError, match="alpha"):
        LogisticHierOPO(prior, -0.1)
    with pytest.raises(TypeError, match="LogisticHierarchy"):
        LogisticHierOPO("prior")
    with pytest.raises(ValueError, match="Sigma_0"):
        LogisticHierarchy(np.zeros(1), np.eye(1), -np.eye(1))
    with pytest.raises(ValueError, match="mu_q"):
        LogisticHierarchy(np.array([np.inf]), np.eye(1), np.eye(1))
    with pytest.raises(ValueError, match="singular"):
        fit_logistic_hyperparameters(before, LogisticHierarchy.isotropic(1, sigma_q=1.0, sigma_0=0.0))
    with pytest.raises(ValueError, match="no rows"):
        fit_logistic_hyperparameters(LogisticRows.empty(1), prior)
    with pytest.raises(REFUSED, match="structure"):
        fit_logistic_hyperparameters(before, prior, structure="banded")
    with pytest.raises(ValueError, match="dimension"):
        laplace_posterior(before, LogisticHierarchy.isotropic(2, sigma_q=1.0, sigma_0=1.0))
    with pytest.raises(ValueError, match="max_iter"):
        laplace_posterior(before, prior, max_iter=0)


@pytest.mark.peer
@pytest.mark.slow
def test_agrees_with_nuts():
    """Posterior means and spreads against NumPyro's NUTS on the same model."""
    import jax
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer import MCMC, NUTS

    rows = learning_problem(2, m=8, n_each=200)
    prior = LogisticHierarchy.isotropic(2, sigma_q=1.0, sigma_0=0.7)

    def model():
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        noise = numpyro.sample("noise", dist.Normal(0.0, 1.0).expand([8, 2]).to_event(2))
        theta = numpyro.deterministic("theta", mu + 0.7 * noise)
        eta = (rows.features * theta[rows.codes]).sum(axis=1)
        numpyro.sample("y", dist.Bernoulli(logits=eta), obs=rows.rewards)

    mcmc = MCMC(NUTS(model), num_warmup=500, num_samples=2000, progress_bar=False)
    mcmc.run(jax.random.key(0))
    theta = np.asarray(mcmc.get_samples()["theta"], dtype=float)
    posterior = laplace_posterior(rows, prior)
    std = theta.std(axis=0)
    ours = np.sqrt(np.diagonal(posterior.gaussian.covariances(), axis1=1, axis2=2))
    # The Monte Carlo error of a mean is about 1/√1000 standard deviations; Laplace's own shift at 200 rows is larger.
    np.testing.assert_allclose((posterior.gaussian.means - theta.mean(axis=0)) / std, 0.0, atol=0.25)
    np.testing.assert_allclose(ours / std, 1.0, atol=0.1)


def test_the_prior_is_not_changed_through_the_caller():
    mean = np.zeros(2)
    prior = LogisticHierarchy(mean, np.eye(2), np.eye(2))
    mean[0] = 9.0
    assert prior.mu_q[0] == 0.0

"""The closed-form posterior against NumPyro's NUTS on the same model."""

import numpy as np
import pytest

from hieropo.posterior import infer
from hieropo.prior import GaussianHierarchy
from hieropo.statistics import TaskStatistics

M, D = 20, 3


@pytest.fixture(scope="module")
def log():
    """A prior with correlations, and a log with tasks of no row, one row and many rows."""
    rng = np.random.default_rng(7)
    roots = 0.6 * rng.standard_normal((2, D, D)) + 0.5 * np.eye(D)
    prior = GaussianHierarchy(rng.standard_normal(D), roots[0] @ roots[0].T, roots[1] @ roots[1].T, 0.5)
    theta = prior.sample(M, rng)[1]
    codes = np.repeat(np.arange(M), np.concatenate([[0, 1, 2], rng.integers(3, 30, M - 3)]))
    features = rng.uniform(-1, 1, (codes.size, D))
    rewards = np.sum(features * theta[codes], axis=1) + prior.sigma * rng.standard_normal(codes.size)
    return prior, features, rewards, codes


@pytest.fixture(scope="module")
def draws(log):
    """μ and θ by NUTS, shape [chains, draws, 1 + M, D], in double precision, one chain after the other."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer import MCMC, NUTS

    prior, features, rewards, codes = log

    def model():
        mu = numpyro.sample("mu", dist.MultivariateNormal(prior.mu_q, prior.Sigma_q))
        with numpyro.plate("tasks", M):
            theta = numpyro.sample("theta", dist.MultivariateNormal(mu, prior.Sigma_0))
        mean = jnp.sum(jnp.asarray(features) * theta[codes], axis=1)
        numpyro.sample("y", dist.Normal(mean, prior.sigma), obs=jnp.asarray(rewards))

    numpyro.enable_x64()
    kernel = NUTS(model)
    mcmc = MCMC(kernel, num_warmup=500, num_samples=1500, num_chains=2, chain_method="sequential", progress_bar=False)
    mcmc.run(jax.random.key(0))
    samples = mcmc.get_samples(group_by_chain=True)
    return np.concatenate([np.asarray(samples["mu"])[:, :, None], np.asarray(samples["theta"])], axis=2)


@pytest.fixture(scope="module")
def exact(log):
    """Means [1 + M, D] and covariances [1 + M, D, D] of μ and every task."""
    prior, features, rewards, codes = log
    stats = TaskStatistics.from_rows(features, rewards, codes, tasks=np.arange(M))
    posterior = infer(stats, prior)
    means = np.concatenate([posterior.hyper.mean[None], posterior.means])
    return means, np.concatenate([posterior.hyper.cov[None], posterior.covariances()])


def z_scores(draws: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """(mean of the draws − exact) in Monte Carlo standard errors sd/√ESS; draws [chains, draws, ...]."""
    from numpyro.diagnostics import effective_sample_size

    error = draws.std(axis=(0, 1), ddof=1) / np.sqrt(effective_sample_size(draws))
    return (draws.mean(axis=(0, 1)) - exact) / error


# The bound 5 on the largest of k standard normal |z|: false alarm k · 5.7e-7, at most 1.1e-4 for both tests together
# (63 means and 126 covariances); seeds are fixed.
BOUND = 5.0


@pytest.mark.peer
def test_posterior_means_are_those_of_nuts(draws, exact):
    z = z_scores(draws, exact[0])
    assert z.shape == (1 + M, D)
    assert np.abs(z).max() < BOUND


@pytest.mark.peer
def test_posterior_covariances_are_those_of_nuts(draws, exact):
    means, covs = exact
    upper = np.triu_indices(D)
    apart = draws - means
    products = apart[..., upper[0]] * apart[..., upper[1]]
    z = z_scores(products, covs[:, upper[0], upper[1]])
    assert z.shape == (1 + M, D * (D + 1) // 2)
    assert np.abs(z).max() < BOUND


@pytest.mark.peer
def test_nuts_tells_the_hierarchy_from_independent_tasks(log, draws):
    """The same criterion rejects the posterior that ignores what tasks share: it is sharp enough to mean something."""
    prior, features, rewards, codes = log
    flat = infer(TaskStatistics.from_rows(features, rewards, codes, tasks=np.arange(M)), prior.marginal)
    assert np.abs(z_scores(draws[:, :, 1:], flat.means)).max() > 2 * BOUND

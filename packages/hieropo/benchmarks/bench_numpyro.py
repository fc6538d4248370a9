"""The closed-form posterior of 20 tasks, against NUTS on the same model in NumPyro."""

import harness  # isort: skip  (one thread: before numpy)

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC, NUTS

from common_core.seeding import numpy_rng
from hieropo.posterior import HierarchicalPosterior, infer
from hieropo.prior import GaussianHierarchy
from hieropo.statistics import TaskStatistics

NAME = "bench_numpyro"
DEVICES = ("cpu",)
M, D, ROWS = 20, 3, 20
GOAL = 1e-3  # at least a thousand times faster
NOTES = (
    "One thread, double precision, one chain, known covariances and noise. Ours: sums, hyper-posterior, means and "
    "covariances of all tasks, exact to rounding. NUTS: warmup and draws, default settings; its result carries "
    "Monte Carlo error. The last row is the largest of all |z| = |mean of the draws - exact| sqrt(ESS) / sd over the "
    "means of μ and every θ_s, and the expectation of that maximum if the exact posterior is right."
)
Log = tuple[GaussianHierarchy, np.ndarray, np.ndarray, np.ndarray]


def make_log() -> Log:
    """A prior and rows of tasks drawn from it."""
    rng = numpy_rng(0, NAME)
    prior = GaussianHierarchy.isotropic(D, sigma_q=1.0, sigma_0=0.5, sigma=0.5)
    codes = np.repeat(np.arange(M), ROWS)
    features = rng.uniform(-1, 1, (codes.size, D))
    theta = prior.sample(M, rng)[1]
    return prior, features, np.sum(features * theta[codes], axis=1) + 0.5 * rng.standard_normal(codes.size), codes


def sampler(log: Log, warmup: int, draws: int) -> MCMC:
    """NUTS for the model, not yet compiled: every call makes a model of its own."""
    prior, features, rewards, codes = log
    phi, y = jnp.asarray(features), jnp.asarray(rewards)

    def model() -> None:
        mu = numpyro.sample("mu", dist.MultivariateNormal(prior.mu_q, prior.Sigma_q))
        with numpyro.plate("tasks", M):
            theta = numpyro.sample("theta", dist.MultivariateNormal(mu, prior.Sigma_0))
        numpyro.sample("y", dist.Normal(jnp.sum(phi * theta[codes], axis=1), prior.sigma), obs=y)

    return MCMC(NUTS(model), num_warmup=warmup, num_samples=draws, progress_bar=False)


def run(mcmc: MCMC) -> dict[str, jax.Array]:
    """Warm up and draw."""
    mcmc.run(jax.random.key(0))
    return mcmc.get_samples(group_by_chain=True)


def largest_z(samples: dict[str, jax.Array], posterior: HierarchicalPosterior) -> tuple[float, float]:
    """The largest |z| over all means, and its expectation for independent standard normal z."""
    draws = np.concatenate([np.asarray(samples["mu"])[:, :, None], np.asarray(samples["theta"])], axis=2)
    exact = np.concatenate([posterior.hyper.mean[None], posterior.means])
    z = (draws.mean(axis=(0, 1)) - exact) / draws.std(axis=(0, 1)) * np.sqrt(effective_sample_size(draws))
    chance = np.abs(numpy_rng(0, NAME, "chance").standard_normal((10_000, z.size))).max(axis=1).mean()
    return float(np.abs(z).max()), float(chance)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    args = harness.options(NAME, argv)
    numpyro.enable_x64()
    warmup, draws, repeats = (50, 50, 2) if args.quick else (500, 1000, 7)
    log = make_log()
    prior, features, rewards, codes = log

    def ours() -> tuple[HierarchicalPosterior, np.ndarray]:
        posterior = infer(TaskStatistics.from_rows(features, rewards, codes), prior)
        return posterior, posterior.covariances()

    compiled = sampler(log, warmup, draws)
    peers: list[tuple[str, Callable[[], object], int]] = [
        ("compiled before", lambda: run(compiled), 1),
        ("compilation included", lambda: run(sampler(log, warmup, draws)), 0),
    ]
    rows = [
        harness.compare(
            f"posterior, m={M}, d={D}, n={M * ROWS}, {what}",
            ours,
            peer,
            f"NumPyro NUTS, {warmup} warmup steps and {draws} draws",
            GOAL,
            repeats=repeats,
            warmup=warm,
        )
        for what, peer, warm in peers
    ]
    z, chance = largest_z(run(compiled), ours()[0])
    rows.append(harness.row("largest |z| of the means", z, chance, "expected by chance", unit="standard errors"))
    harness.save(NAME, args, rows, NOTES, ["numpyro", "jax"])


if __name__ == "__main__":
    main()

"""Fitting the covariance of the tasks and the noise by EM and by gradient, against statsmodels' MixedLM."""

import harness  # isort: skip  (one thread: before numpy)

import time
from collections.abc import Sequence

import numpy as np
from statsmodels.regression.mixed_linear_model import MixedLM

from common_core.seeding import numpy_rng
from hieropo.hyper import HyperparameterFit, fit_hyperparameters
from hieropo.prior import GaussianHierarchy
from hieropo.statistics import TaskStatistics

NAME = "bench_hyper"
DEVICES = ("cpu",)
D = 8
TOLERANCE = 1e-9  # relative gain of the evidence at which ours stops
NOTES = (
    "One thread, processor time. Restricted likelihood (flat mean) of the same model from the same rows: full "
    "covariance of the tasks and noise; our time includes the sums. Ours stops when a step gains less than "
    f"{TOLERANCE:g} of the evidence, statsmodels by its defaults, standard errors of the parameters included. The "
    "rows in nats say how far each ended below the best evidence found (EM and ML-II continued to 1e-13): where "
    "both are below 0.01 nats, the times are times to the same optimum."
)


def make_log(m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of m tasks with 1 to 59 rows each and a correlated Σ_0."""
    rng = numpy_rng(0, NAME, str(m))
    root = 0.2 * rng.standard_normal((D, D)) + 0.4 * np.eye(D)
    prior = GaussianHierarchy(np.zeros(D), np.eye(D), root @ root.T, 0.5)
    codes = np.repeat(np.arange(m), rng.integers(1, 60, m))
    features = rng.uniform(-1, 1, (codes.size, D))
    theta = prior.sample(m, rng)[1]
    return features, np.sum(features * theta[codes], axis=1) + 0.5 * rng.standard_normal(codes.size), codes


def compare(m: int, repeats: int) -> list[harness.Row]:
    """EM against statsmodels, ML-II against EM, and where each of them ended."""
    features, rewards, codes = make_log(m)
    size = f"m={m}, n={codes.size}, d={D}"
    ends: dict[str, float] = {}

    def ours(method: str, tolerance: float = TOLERANCE) -> HyperparameterFit:
        stats = TaskStatistics.from_rows(features, rewards, codes)
        fit = fit_hyperparameters(stats, method, sigma_q="flat", tolerance=tolerance, max_iter=2000)
        ends[method] = fit.log_evidence
        return fit

    def peer() -> None:
        result = MixedLM(rewards, features, codes, exog_re=features).fit(reml=True)
        ends["statsmodels"] = float(result.llf)
        ends["statsmodels converged"] = bool(result.converged)

    best = max(ours("em", 1e-13).log_evidence, ours("ml2", 1e-13).log_evidence)
    who, clock = "statsmodels MixedLM, REML", time.process_time
    rows = [
        harness.compare(f"EM, {size}", lambda: ours("em"), peer, who, repeats=repeats, warmup=0, clock=clock),
        harness.compare(f"ML-II, {size}", lambda: ours("ml2"), lambda: ours("em"), "our EM", repeats=15, clock=clock),
    ]
    for method, name in (("em", "EM"), ("ml2", "ML-II")):
        below, peer_below = best - ends[method], best - ends["statsmodels"]
        row = harness.row(f"{name} below the best evidence, {size}", below, peer_below, who, unit="nats")
        rows.append(row | {"peer_converged": bool(ends["statsmodels converged"])})
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    args = harness.options(NAME, argv)
    sizes = [(60, 2)] if args.quick else [(200, 3), (600, 2), (2000, 2)]
    rows = [row for m, repeats in sizes for row in compare(m, repeats)]
    harness.save(NAME, args, rows, NOTES, ["statsmodels"])


if __name__ == "__main__":
    main()

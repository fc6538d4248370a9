"""Fitting a log and inferring all tasks, against one pass of BLAS over the same rows."""

import harness  # isort: skip  (one thread: before numpy)

import time
from collections.abc import Sequence

import numpy as np

from common_core.seeding import numpy_rng
from hieropo.posterior import infer
from hieropo.prior import GaussianHierarchy
from hieropo.statistics import TaskStatistics

NAME = "bench_fit"
DEVICES = ("cpu",)
D = 16
NOTES = (
    "One thread; processor time, so that other work on the machine counts less. 'One pass of BLAS' is X.T @ X "
    "over all rows: it reads each row once, in order, and writes one small matrix. Fit is the statistics of the "
    "log, rows of shuffled tasks gathered; posterior is hyper-posterior, means and conditional covariances of all "
    "tasks. The loop over tasks gets the rows already grouped by task. The two rows on parts time single NumPy "
    "calls that fit and posterior cannot do without: gathering the rows by task, and inverting one matrix a task."
)


def make_log(n: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of m tasks in random order."""
    rng = numpy_rng(0, NAME)
    return rng.standard_normal((n, D)), rng.standard_normal(n), rng.integers(0, m, n)


def fit_rows(n: int, m: int, repeats: int) -> list[harness.Row]:
    """Fit, fit and posterior, with shuffled, sorted and string labels."""
    features, rewards, ids = make_log(n, m)
    prior = GaussianHierarchy.isotropic(D, sigma_q=1.0, sigma_0=0.5, sigma=0.5)
    order = np.argsort(ids, kind="stable")
    grouped, names = features[order], np.char.add("user-", ids.astype(str))
    ends = np.cumsum(np.bincount(ids, minlength=m))
    pieces = np.split(grouped, ends[:-1])

    def fit(labels: np.ndarray, rows: np.ndarray = features, y: np.ndarray = rewards) -> TaskStatistics:
        return TaskStatistics.from_rows(rows, y, labels)

    def blas() -> np.ndarray:
        return features.T @ features

    def loop() -> list[np.ndarray]:
        return [piece.T @ piece for piece in pieces]

    def sorted_log() -> TaskStatistics:
        return fit(ids[order], grouped, rewards[order])

    stats, size = fit(ids), f"n={n:,}, m={m:,}, d={D}"
    once, each = "one pass of BLAS: X.T @ X", "loop over grouped tasks: X_s.T @ X_s"
    cases = [
        (f"fit + posterior, {size}", lambda: infer(fit(ids), prior), blas, once, 3.0),
        (f"fit + posterior, rows sorted by task, {size}", lambda: infer(sorted_log(), prior), blas, once, 3.0),
        (f"fit + posterior, string labels, {size}", lambda: infer(fit(names), prior), blas, once, None),
        (f"fit, {size}", lambda: fit(ids), blas, once, None),
        (f"fit, rows sorted by task, {size}", sorted_log, blas, once, None),
        (f"posterior, {size}", lambda: infer(stats, prior), blas, once, None),
        (f"part: gathering the rows by task, {size}", lambda: np.take(features, order, axis=0), blas, once, None),
        (f"part: inverting one matrix a task, {size}", lambda: np.linalg.inv(stats.gram + np.eye(D)), blas, once, None),
        (f"fit + posterior, against a loop, {size}", lambda: infer(fit(ids), prior), loop, each, None),
        (f"fit, rows sorted by task, against a loop, {size}", sorted_log, loop, each, None),
    ]
    return [
        harness.compare(name, ours, peer, peer_name, goal, repeats=repeats, clock=time.process_time)
        for name, ours, peer, peer_name, goal in cases
    ]


def posterior_rows(m: int, repeats: int) -> list[harness.Row]:
    """The posterior of many tasks from given sums, against one Cholesky factorisation of each task's matrix."""
    rng = numpy_rng(0, NAME, "posterior")
    features = rng.standard_normal((m, 2 * D, D))
    gram = np.swapaxes(features, 1, 2) @ features
    count = np.full(m, 2 * D)
    stats = TaskStatistics(np.arange(m), count, gram, rng.standard_normal((m, D)), np.full(m, 2.0 * D))
    prior = GaussianHierarchy.isotropic(D, sigma_q=1.0, sigma_0=0.5, sigma=0.5)
    return [
        harness.compare(
            f"posterior given the sums, m={m:,}, d={D}",
            lambda: infer(stats, prior),
            lambda: np.linalg.cholesky(gram),
            "one batched numpy.linalg.cholesky of the sums",
            6.0,
            repeats=repeats,
            clock=time.process_time,
        )
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    args = harness.options(NAME, argv)
    n, m, many, repeats = (20_000, 200, 1000, 3) if args.quick else (1_000_000, 10_000, 100_000, 25)
    harness.save(NAME, args, fit_rows(n, m, repeats) + posterior_rows(many, max(3, repeats // 2)), NOTES)


if __name__ == "__main__":
    main()

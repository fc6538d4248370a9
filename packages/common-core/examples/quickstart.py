"""Run three tasks that end in three ways, and put an interval on a measurement."""

import os
import statistics
import subprocess

from common_core.engine import Task, run
from common_core.seeding import numpy_rng
from common_core.stats import bootstrap_mean
from common_core.timing import paired_timing


def main() -> None:
    """Print how the tasks ended, and a speed ratio with its interval."""
    tasks = [
        Task("answers", statistics.fmean, {"data": [1.0, 2.0, 6.0]}),
        Task("raises", statistics.fmean, {"data": []}),
        Task("dies", os.abort),
        Task("takes too long", subprocess.run, {"args": ["sleep", "60"]}, timeout=1.0),
    ]
    for key, result in run(tasks, jobs=2).items():
        print(f"{key:>15}: {result.status}, {result.value if result.status == 'done' else result.reason}")
    draws = numpy_rng(7, "draws").normal(size=400)
    print(f"mean of 400 normal draws: {bootstrap_mean(draws, rng=numpy_rng(7, 'bootstrap')):.3f}")
    timing = paired_timing(lambda: sum(draws), lambda: draws.sum(), repeats=5)
    print(f"sum() takes {timing.ratio:.1f} times as long as ndarray.sum()")


if __name__ == "__main__":
    main()

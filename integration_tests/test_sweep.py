"""A sweep of hieropo through the engine: the same figures whatever the number of processes, and resumable."""

import sys

from common_core.engine import ResultStore, run, sweep

JOBS = """
import numpy as np
from hieropo import GaussianHierarchy, HierOPO
from common_core.seeding import numpy_rng


def evidence(m, seed):
    rng = numpy_rng(seed, "rows")
    prior = GaussianHierarchy.isotropic(3, sigma_q=1.0, sigma_0=0.5, sigma=0.3)
    features, tasks = rng.normal(size=(200, 3)), rng.integers(m, size=200)
    theta = rng.normal(size=(m, 3))
    rewards = np.einsum("nd,nd->n", features, theta[tasks]) + 0.3 * rng.normal(size=200)
    return HierOPO(prior).fit(features, rewards, tasks).log_marginal_likelihood()
"""


def test_a_sweep_gives_the_same_figures_on_one_process_and_two(tmp_path, monkeypatch):
    (tmp_path / "sweep_jobs.py").write_text(JOBS)
    monkeypatch.syspath_prepend(tmp_path)
    import sweep_jobs as jobs

    tasks = sweep(jobs.evidence, {f"m={m}": {"m": m} for m in (1, 5, 20)}, seed=11)
    one, two = run(tasks, jobs=1), run(tasks, jobs=2, store=ResultStore(tmp_path / "store"))
    assert {key: result.value for key, result in one.items()} == {key: result.value for key, result in two.items()}
    assert len({result.value for result in one.values()}) == 3
    again = run(tasks, store=ResultStore(tmp_path / "store"))
    assert all(result.resumed for result in again.values())
    assert {key: result.value for key, result in again.items()} == {key: result.value for key, result in one.items()}
    del sys.modules["sweep_jobs"]

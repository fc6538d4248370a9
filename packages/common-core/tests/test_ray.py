import json
import os
import subprocess
import sys

import pytest

from common_core.engine import Task, run, sweep

# Ray opens sockets and files that it leaves to the interpreter's end.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]

MODULE = """
import os, signal, time
from common_core.claims import Claim, Outcome, at_least
from common_core.seeding import numpy_rng

def draw(seed):
    return float(numpy_rng(seed, "draw").standard_normal())

def fail(text):
    raise ValueError(text)

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def sleep(seconds):
    time.sleep(seconds)

def measure(scale, seed, device):
    return Outcome({"draw": draw(seed)})

def claim(slug, run):
    return Claim(f"cluster.{slug}", "A draw is finite.", "ours", "none", run, lambda m: at_least("draw", m["draw"], -9),
                 "{draw:.6f}", num_cpus=2)

CLAIMS = (claim("draws", measure), claim("dies", lambda scale, seed, device: die()))
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A local Ray cluster whose workers find ``cluster_jobs``: its address, and the folder of that module."""
    import ray

    folder = tmp_path_factory.mktemp("cluster")
    (folder / "cluster_jobs.py").write_text(MODULE)
    info = folder / "cluster_jobs-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: cluster-jobs\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[repertory.claims]\ncluster = cluster_jobs:CLAIMS\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *sys.path]))
        patch.syspath_prepend(folder)
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield ray.get_runtime_context().gcs_address, folder
        ray.shutdown()


def test_both_engines_give_the_same_answers(cluster):
    import cluster_jobs as jobs

    tasks = [
        *sweep(jobs.draw, {"a": {}, "b": {}}, seed=3),
        Task("exception", jobs.fail, {"text": "no such luck"}),
        Task("killed", jobs.die),
        Task("timeout", jobs.sleep, {"seconds": 60}, timeout=3),
    ]
    here, there = run(tasks, jobs=2), run(tasks, jobs=2, engine="ray")
    assert list(there) == list(here)
    statuses = {"a": "done", "b": "done", "exception": "failed", "killed": "crashed", "timeout": "timeout"}
    assert {key: result.status for key, result in here.items()} == statuses
    assert {key: result.status for key, result in there.items()} == statuses
    for key in ("a", "b"):
        assert there[key].value == here[key].value
    assert there["exception"].reason == here["exception"].reason
    assert there["a"].peak_rss_bytes > 0


def test_claims_join_an_existing_cluster(cluster):
    address, folder = cluster
    program = "import sys; from common_core.cli import main; sys.exit(main())"
    verdicts, figures = [], []
    for name, words in [("local", []), ("ray", ["--engine", "ray", "--address", address])]:
        command = [sys.executable, "-c", program, "run", "cluster", "--seed", "7", "--out", name, *words]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 1, done.stderr
        claims = json.loads((folder / name / "results.json").read_text())["claims"]
        verdicts.append({claim["id"]: claim["verdict"] for claim in claims})
        figures.append(next(claim["metrics"] for claim in claims if claim["metrics"]))
    assert verdicts[0] == verdicts[1] == {"cluster.draws": "holds", "cluster.dies": "could not run"}
    assert figures[0] == figures[1]

"""The benchmarks' own parts: medians and goals, layouts, ways on real processes; and that the scripts run."""

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xmesh_reshard import Topology, plan
from xmesh_reshard.baseline_tasks import work_of
from xmesh_reshard.cases import multi_host_case, one_to_many_case
from xmesh_reshard.models import llama_refit
from xmesh_reshard.transports.shaping import why_no_namespaces

FOLDER = Path(__file__).parents[1] / "benchmarks"
if not FOLDER.is_dir():
    pytest.skip("the benchmarks are not part of this distribution", allow_module_level=True)

Load = Callable[[str], Any]


@pytest.fixture(scope="module")
def bench():
    """Imports a module of the benchmarks by name."""
    before, modules = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module
    sys.path[:] = before
    for name in set(sys.modules) - modules:
        if str(FOLDER) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_medians_and_ratios_are_taken_within_turns(bench: Load):
    harness = bench("harness")
    found = harness.ratio([1.0, 2.0, 30.0], [2.0, 4.0, 10.0])
    assert float(found) == 0.5  # of 1/2, 1/2, 3; the ratio of the medians is 1/2 as well, that of the means is not
    assert found.low == 0.5
    assert found.high == 3.0
    assert float(harness.median([4.0, 2.0])) == 3.0
    assert harness.median([4.0, 2.0]).low is None


def test_cases_on_small_hosts_are_the_papers(bench: Load):
    layouts = bench("layouts")
    for number in (1, 2, 3, 5, 7, 9):  # with half the devices and half the parts in cases 4 and 6
        small = layouts.small_case(number, 16, nic="10Gbit", local="inf", alpha=0.0)
        large = multi_host_case(number, 64)
        mine, theirs = (plan(case.transfers, case.topology) for case in (small, large))
        assert mine.lower_bound / small.seconds == pytest.approx(theirs.lower_bound / large.seconds, rel=1e-12)
        assert len(small.topology.hosts) == len(large.topology.hosts)
    assert len(work_of(*_pair(layouts.small_case(4, 16, nic=1e6, local="inf", alpha=0.0))).tasks) == 16
    assert len(layouts.small_case(6, 12, nic=1e6, local="inf", alpha=0.0).topology.hosts) == 5


def _pair(case):
    return case.transfers, case.topology


def test_models_that_are_timed(bench: Load):
    layouts, topology = bench("layouts"), Topology.uniform(4, 8)
    equal = layouts.repeated(2, 16, 2, topology)
    assert len(equal.transfers) == 2 * 9 + 3
    assert len({id(pair) for pair in equal.transfers.values()}) == 7  # different shapes and cuts
    other = layouts.different(6, (4, 4), (8, 2), topology)
    assert len({pair.source.shape for pair in other.transfers.values()}) == 6
    assert {pair.target.devices.min() for pair in other.transfers.values()} == {16}


def test_the_least_bytes_of_a_refit(bench: Load):
    planner = bench("bench_planner")
    case = llama_refit("8b", trainers=16, replicas=2)
    weights = sum(pair.source.nbytes for pair in case.transfers.values())
    assert planner.needed(case) == 2 * weights  # a host is a replica; norms are whole on each device, and count once
    assert plan(case.transfers, case.topology).network_bytes == 2 * weights


def test_which_broadcasts_have_goals(bench: Load):
    goal = bench("bench_broadcast").goal_of
    assert goal("gloo's broadcast", 2, 2, 1.1) == pytest.approx(0.4)
    assert goal("gloo's broadcast", 1, 2, 1.0) is None
    assert goal("send/recv to each receiver", 4, 2, 1.2) == pytest.approx(1.1 * 1.2 / 8)


def test_the_simulators_error_is_judged_by_its_worst_row(bench: Load):
    rows = bench("bench_real_cases").judged({"a": 0.1, "b": -0.3, "c": 0.05})
    assert [row["met"] for row in rows] == [False, True, False]
    assert (rows[0]["ours"], rows[0]["where"]) == (0.3, "b")
    assert rows[1]["ours"] == pytest.approx(0.1)
    assert rows[2]["ours"] == pytest.approx(2 / 3)


def test_token_buckets_take_plans_only(bench: Load):
    rig, case = bench("rig"), one_to_many_case(1, 1, 4096)
    made = plan(case.transfers, case.topology)
    with pytest.raises(ValueError, match="token buckets slow plans only"):
        rig.run(rig.Job({"ours": made}, {"other": "a:b"}), case.topology, made.devices, "bucket")


@pytest.mark.parametrize("links", ["bucket", "netns"])
def test_all_ways_arrive_in_every_turn(bench: Load, links: str):
    pytest.importorskip("torch")
    if links == "netns" and (reason := why_no_namespaces()):
        pytest.skip(reason)
    rig, case = bench("rig"), one_to_many_case(2, 2, 2**16 + 4, nic="100MB/s")  # no multiple of the receivers
    made = plan(case.transfers, case.topology)
    others = bench("bench_broadcast").OTHERS if links == "netns" else {}
    facts = {"nbytes": 2**16 + 4, "hosts": 2, "devices": 2}
    found = rig.run(rig.Job({"ours": made}, others, facts, 2), case.topology, made.devices, links)
    assert list(found) == ["ours", *others]
    for turns in found.values():
        assert turns.wrong == 0
        assert len(turns.seconds) == len(turns.moving) == 2
        assert all(0 < moving <= seconds for moving, seconds in zip(turns.moving, turns.seconds, strict=True))


@pytest.mark.parametrize(
    "name", ["bench_cases", "bench_planner", "bench_schedules", "bench_broadcast", "bench_real_cases", "bench_gpu"]
)
def test_a_benchmark_runs(bench: Load, tmp_path: Path, name: str):
    if name in ("bench_broadcast", "bench_real_cases", "bench_gpu"):
        pytest.importorskip("torch")
    out = tmp_path / "found.json"
    where = ["--device", "cpu"] if name == "bench_gpu" else []
    bench(name).main(["--quick", "--out", str(out), *where])
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["schema"] == "repertory.benchmark/1"
    assert found["rows"]
    assert all(np.isfinite(row["ours"]) for row in found["rows"])
    assert all(row.get("wrong", 0) == 0 for row in found["rows"])
    assert "figures mean nothing" in found["notes"]


def test_results_are_of_whole_runs():
    for path in (FOLDER / "results").glob("*.json"):
        found = json.loads(path.read_text(encoding="utf-8"))
        assert "--quick" not in str(found.get("command", "")), path.name

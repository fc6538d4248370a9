"""The benchmarks' own parts: courses of searches, outcomes, peers' gradients, what is judged; and that they run."""

import importlib
import json
import sys
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Any

import pytest

from poet import Device, legacy
from poet.baselines import all_resident
from poet.events import compute
from poet.problem import formulate
from poet.search import Progress

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


def problem(share: float = 0.6):
    graph = legacy.graph("linear")
    return formulate(graph, Device.load("nrf52840"), int(share * graph.forward_bytes), 2.0, paging="free")


def test_a_course_says_when_the_gap_was_small(bench: Load):
    course = bench("harness").Course()
    for objective, bound in ((inf, 100.0), (120.0, 101.0), (110.0, 109.5), (109.9, 109.8)):
        course(Progress(0.0, objective, bound, 100.0, "test"))
    assert [course.seconds_to(gap) for gap in (0.5, 0.006)] == [course.points[1][0], course.points[2][0]]
    assert course.seconds_to(1e-4) is None
    assert course.first() == course.points[1][0]


def test_ours_and_an_engine_are_judged_alike(bench: Load):
    harness, stated = bench("harness"), problem(2.0)
    mine, plain = harness.ours(stated, 5.0), harness.engine(stated, 5.0, all_resident)
    assert mine.valid
    assert plain.valid
    assert mine.overhead == pytest.approx(0.0, abs=1e-9) == plain.overhead
    assert mine.gap == pytest.approx(0.0, abs=1e-9)


def test_what_does_not_fit_costs_infinity(bench: Load):
    harness, stated = bench("harness"), problem()
    steps = [compute(i) for i in range(len(stated.graph.ops))]
    assert harness.cost(stated, None) == harness.cost(stated, steps) == inf
    outcome = harness.engine(stated, 5.0, all_resident)
    assert outcome.overhead == inf
    assert outcome.columns()["overhead"] is None
    assert harness.ratio(1.0, outcome.overhead) is None


@pytest.mark.parametrize("name", ["per_block", "sequential", "on_disk", "on_host"])
def test_peers_give_the_plain_gradient(bench: Load, name: str):
    torch = pytest.importorskip("torch")
    workloads, methods, execution = bench("workloads"), bench("methods"), bench("execution")
    method = methods.sequential(2) if name == "sequential" else getattr(methods, name)()
    for workload in (workloads.encoder(2, 2, 8, 32, 2), workloads.decoder(2, 32, 2, 16, 8, 2)):
        found = []
        for way in (methods.plain(), method):
            execution.zero(workload)
            way.prepare(workload)()
            found.append(execution.gradient(workload))
        assert float(found[0].norm()) > 0
        assert torch.equal(*found)


def test_files_hold_what_autograd_saves_of_a_convolution_in_place(bench: Load):
    torch = pytest.importorskip("torch")
    workloads, methods, execution = bench("workloads"), bench("methods"), bench("execution")
    workload = workloads.resnet(2, 32, 8, 1, 10)
    found = []
    for way in (methods.plain(), methods.on_disk()):
        execution.zero(workload)
        way.prepare(workload)()
        found.append(execution.gradient(workload))
    assert torch.equal(*found)


def test_files_take_less_memory(bench: Load):
    pytest.importorskip("torch")
    workloads, methods, execution = bench("workloads"), bench("methods"), bench("execution")
    workload = workloads.encoder(3, 4, 32, 64, 2)
    peaks = []
    for way in (methods.plain(), methods.on_disk()):
        execution.zero(workload)
        peaks.append(execution.measured(workload, way.name, way.family, way.prepare(workload), None).peak)
    assert peaks[1] < 0.5 * peaks[0]


@pytest.mark.peer  # torch's own partitioner; compiling takes seconds
def test_the_budget_gives_the_plain_gradient(bench: Load):
    torch = pytest.importorskip("torch")
    workloads, methods, execution = bench("workloads"), bench("methods"), bench("execution")
    workload, found = workloads.encoder(2, 2, 8, 32, 2), []
    for way in (methods.plain(), methods.budget(0.3)):
        execution.zero(workload)
        way.prepare(workload)()
        found.append(execution.gradient(workload))
    # the same operations on the same numbers; fused or reordered sums round differently in the last digits
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-7)


def test_the_fastest_peer_within_the_limit_is_the_judge(bench: Load):
    pytest.importorskip("torch")
    import numpy as np

    execution = bench("execution")

    def ready(name: str, family: str, peak: int) -> Any:
        return execution.Ready(name, family, lambda: None, peak, 0.0)

    all_of_them = [
        ready("plain", "plain", 100), ready("slow", "recompute", 40), ready("fast", "offload", 51),
        ready("large", "recompute", 52), ready("a", "ours", 50), ready("b", "ours", 55),
    ]  # fmt: skip
    seconds = {
        name: np.full(3, s)
        for name, s in zip(("plain", "slow", "fast", "large", "a", "b"), (1, 4, 3, 2, 2.4, 9), strict=True)
    }
    rows = {row["name"]: row for row in execution.judged("x", all_of_them, seconds, {"a": 50, "b": 45})}
    first = rows["x: a against the fastest peer within its limit"]
    assert (first["peer_name"], float(first["ratio"].value), first["met"]) == ("fast", pytest.approx(0.8), True)
    second = rows["x: b against the fastest peer within its limit"]
    assert (second["peer_name"], second["met"]) == ("slow", False)
    assert rows["x: peaks that rise where the limit falls"]["ours"] == 1


@pytest.mark.peer
def test_counts_of_revolve(bench: Load):
    from checkpoint_schedules import HRevolve, Revolve

    baselines = bench("bench_baselines")
    assert baselines.forward(Revolve(20, 3)) == (65, 0, 0)
    assert baselines.forward(HRevolve(20, 2, 20)) == (62, 2, 2)


@pytest.mark.peer
@pytest.mark.parametrize("name", ["bench_certificates", "bench_baselines", "bench_transformer"])
def test_runs(bench: Load, name: str, tmp_path: Path):
    out = tmp_path / "rows.json"
    bench(name).main(["--quick", "--limit", "0.5", "--out", str(out)])
    content = json.loads(out.read_text())
    assert content["benchmark"] == name
    assert content["rows"]
    assert all(row["met"] is not False for row in content["rows"])
    assert "Load average" in content["notes"]


def test_the_benchmark_of_solvers_runs(bench: Load, tmp_path: Path):
    out = tmp_path / "rows.json"
    bench("bench_solvers").main(["--quick", "--out", str(out)])
    rows = {row["name"]: row for row in json.loads(out.read_text())["rows"]}
    relaxation = rows["T = 20: relaxation"]
    stating = rows["T = 20: stating"]
    assert 0 <= relaxation["bound"] <= rows["T = 20: first schedule"]["overhead"] + 1e-6
    assert stating["peer_bound"] >= 0


def test_arguments_are_checked(bench: Load, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        bench("harness").options("x", ["--limit", "0"])
    assert "positive and finite" in capsys.readouterr().err
    assert bench("harness").options("x", ["--quick"]).out.name == "x-quick.json"


def test_without_a_gpu_its_benchmark_says_so(bench: Load, monkeypatch: pytest.MonkeyPatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="needs a CUDA device"):
        bench("bench_gpu").main(["--quick"])

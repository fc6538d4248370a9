"""The command: its verbs, its answers as JSON, files, and errors in one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from xmesh_reshard import Topology, load_plan, plan
from xmesh_reshard.cli import main
from xmesh_reshard.cli_inputs import find_job, numbers, on_network, pairs, slowed
from xmesh_reshard.cli_show import METHODS, WORDS, gantt_text, network_bytes
from xmesh_reshard.collectives import local_allgather
from xmesh_reshard.network import simulate

SPEC = """
topology: {hosts: 3, devices: 2, nic: 1Gbit, local: 10GB/s}
tensors:
  "layers.{0..3}.w":
    shape: [64, 32]
    source: {mesh: [2], spec: S0}
    target: {mesh: [2, 2], first: 2, spec: RS1}
"""


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, Any, str]:
    """Status, the answer as JSON, and what went to standard error."""
    status = main([*map(str, words), "--json"])
    captured = capsys.readouterr()
    return status, json.loads(captured.out) if captured.out else None, " ".join(captured.err.split())


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    file = tmp_path / "weights.yaml"
    file.write_text(SPEC)
    return file


def test_plan_writes_plan_and_pictures(spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    saved, chart, heat = (tmp_path / name for name in ("plan.json", "cards.svg", "bytes.svg"))
    status, answer, _ = run(capsys, "plan", spec, "--save", saved, "--gantt", chart, "--bytes-svg", heat)
    assert status == 0
    made = load_plan(saved)
    assert answer["hash"] == made.hash() == plan(made.tensors, made.topology).hash()
    assert answer["tensors"] == 4
    assert answer["network_bytes"] == 2 * 4 * 64 * 32 * 4  # every byte once to each of two hosts
    assert answer["makespan"] >= answer["lower_bound"] == pytest.approx(4 * 64 * 32 * 4 / 125e6)
    assert chart.read_text("utf-8").startswith("<svg")
    assert heat.read_text("utf-8").startswith("<svg")
    assert main(["plan", str(saved), "--explain"]) == 0
    assert "Network cards" in capsys.readouterr().out


def test_plan_on_another_network(spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    faster = tmp_path / "fast.yaml"
    faster.write_text("{hosts: 3, devices: 2, nic: 10Gbit, local: 10GB/s}")
    bounds = [run(capsys, "plan", spec, *more)[1]["lower_bound"] for more in ((), ("--topology", faster))]
    assert bounds[0] == pytest.approx(10 * bounds[1])
    assert find_job("case:1", None, 32).case.topology.hosts[0].up == 1.25e9


def test_simulate_compares_with_the_bound(capsys: pytest.CaptureFixture[str]) -> None:
    status, answer, _ = run(capsys, "simulate", "multicast:2x2", "--baselines", "send_recv", "local_allgather")
    assert status == 0
    ratios = {row["method"]: row["to_bound"] for row in answer["methods"]}
    assert ratios == {
        "plan": pytest.approx(1, rel=1e-3),
        "send_recv": pytest.approx(4),
        "local_allgather": pytest.approx(2, rel=1e-2),
    }
    bytes_ = {row["method"]: row["network_bytes"] for row in answer["methods"]}
    assert bytes_ == {"plan": 2 << 30, "send_recv": 4 << 30, "local_allgather": 2 << 30}
    assert main(["simulate", "case:1", "--shrink", "16"]) == 0
    assert "better of both / bound" in capsys.readouterr().out


def test_every_method_has_words_and_can_be_simulated(capsys: pytest.CaptureFixture[str]) -> None:
    assert {*METHODS} | {"plan"} == {*WORDS}
    status, answer, _ = run(capsys, "simulate", "case:5", "--shrink", 32, "--baselines", *METHODS)
    assert status == 0
    assert min(row["to_bound"] for row in answer["methods"]) >= 1 - 1e-9
    case = find_job("multicast:1x2").case
    assert network_bytes(local_allgather(case.transfers, case.topology)) == 1 << 30


def test_run_executes_and_checks(spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    saved = tmp_path / "plan.json"
    assert main(["plan", str(spec), "--save", str(saved)]) == 0
    capsys.readouterr()
    status, answer, _ = run(capsys, "run", saved, "--repeats", 1, "--rate", "2MB/s", "--baselines", "send_recv")
    assert status == 0
    ours, other = answer["methods"]
    assert ours["wrong"] == other["wrong"] == 0
    assert ours["checked"] > 0
    assert ours["lower_bound"] == pytest.approx(4 * 64 * 32 * 4 / 2e6)
    assert other["bytes_sent"] >= 2 * 4 * 64 * 32 * 4
    assert main(["run", str(spec), "--links", "none", "--repeats", "1", "--no-checksum"]) == 0
    shown = capsys.readouterr().out
    assert "equal to the bit" in shown
    assert "no checksums" in shown


def test_a_wrong_result_is_status_1(
    spec: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    from xmesh_reshard import cli_run

    monkeypatch.setattr(cli_run, "count_wrong", lambda *_: 2)
    assert main(["run", str(spec), "--links", "none", "--repeats", "1"]) == 1
    assert "2 parts WRONG" in capsys.readouterr().out


def test_schedule_of_each_kind_and_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, answer, _ = run(capsys, "schedule", "all", "--comm", 1)
    assert status == 0
    rows = {row["kind"]: row for row in answer["schedules"]}
    assert answer["lower_bound"] == rows["eager-1f1b"]["overlap"] == 63
    assert [rows["1f1b"][name] for name in ("overlap", "blocking")] == [85, 92]
    assert rows["eager-1f1b"]["peak_inflight"] == [7, 5, 3, 1]
    for kind in rows:
        status, one, _ = run(capsys, "schedule", kind, "--comm", "1")
        assert status == 0
        assert one["makespan"] == rows[kind]["overlap"]
    status, unet, _ = run(capsys, "schedule", "eager-1f1b", "--comm", "1000ms,1,1", "--skips", "0-3", "--tf", "1,1,1,1")
    assert status == 0
    assert unet["makespan"] >= 63
    assert len(run(capsys, "schedule", "all", "--skips", "0-3")[1]["schedules"]) == 4  # interleaved has other stages
    assert main(["schedule", "all"]) == 0
    assert "no schedule of whole stages" in capsys.readouterr().out


def test_schedule_writes_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    from xmesh_reshard import Schedule

    chart, saved = tmp_path / "pipeline.svg", tmp_path / "schedule.json"
    words = ["schedule", "1f1b", "--microbatches", "4", "--gantt", str(chart), "--save", str(saved)]
    assert main([*words, "--no-overlap", "--split-backward"]) == 0
    assert "device 3: F0 B0 W0 F1" in capsys.readouterr().out
    assert chart.read_text("utf-8").startswith("<svg")
    assert Schedule.from_json(saved.read_text("utf-8")).microbatches == 4


def test_measure_writes_a_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    file = tmp_path / "here.yaml"
    status, answer, _ = run(capsys, "measure", "--repeats", 2, "--out", file)
    assert status == 0
    assert Topology.load(file).to_dict() == answer["topology"]
    assert len(Topology.load(file).host_of) == 2


def test_demo_shows_the_effects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo.json"
    status, answer, _ = run(capsys, "demo", "--out", out)
    assert status == 0
    rows = {row["method"]: row["to_bound"] for row in answer["multicast"]}
    assert rows["send_recv"] == pytest.approx(8)
    assert rows["plan"] == pytest.approx(1, rel=1e-3)
    slow, fast = answer["orders"].values()
    assert slow / fast == pytest.approx(1.5, rel=1e-3)
    assert answer["pipeline"]["eager-1f1b"]["overlap"] == answer["pipeline_bound"] == 63
    assert json.loads(out.read_text("utf-8"))["charts"] == answer["charts"]
    assert main(["demo"]) == 0
    shown = capsys.readouterr().out
    assert "host0 nic0 out 0" in shown
    assert "All figures are simulated" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("plan", "absent"), "neither a file nor a built-in case"),
        (("plan", "absent.yaml"), "absent.yaml: no such file"),
        (("plan", "case:12"), "there is no built-in case 'case:12'"),
        (("plan", "case:1", "--shrink", "0"), "shrink is a whole number from 1 up"),
        (("plan", "llama:8b", "--shrink", "2"), "models have the shapes they have"),
        (("plan", "case:1", "--save", "absent/plan.json"), "the folder absent of plan.json does not exist"),
        (("plan", "case:1", "--topology", "absent.yaml"), "absent.yaml"),
        (("plan", "case:1", "--max-message", "much"), "cannot read the size 'much'"),
        (("simulate", "case:1", "--baselines", "teleport"), "there is no method 'teleport'"),
        (("run", "case:1"), "give smaller shapes, or --shrink"),
        (("run", "case:1", "--baselines", "local_allgather"), "cannot execute 'local_allgather'"),
        (("run", "llama:8b"), "to try a plan on one machine"),
        (("schedule", "all", "--chunks", "2"), "are for one kind"),
        (("schedule", "1f1b", "--tf", "soon"), "--tf is seconds such as 1.5 or 20ms"),
        (("schedule", "1f1b", "--skips", "3-0"), "a skip connection is two stages as 0-3"),
        (("schedule", "1f1b", "--skips", "0-2", "--comm", "1,2"), "--comm has 2 numbers; 4 stages have 3 boundaries"),
        (("schedule", "interleaved", "--skips", "0-2"), "interleaved cuts them"),
        (("schedule", "interleaved", "--tf", "1,2,3,4"), "interleaved stages are equal"),
        (("measure", "--processes", "1"), "at least 2 processes"),
    ],
)
def test_errors_are_one_line(words: tuple[object, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, answer, shown = run(capsys, *words)
    assert status == 2
    assert answer is None
    assert message in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("spec: RS1", "spec: RS7"), "tensors.layers.{0..3}.w.target"),
        (("shape: [64, 32]", "shape: big"), "tensors.layers.{0..3}.w.shape"),
        (("hosts: 3", "hosts: 1"), "topology: no host of the topology holds the devices"),
        (("tensors:", "tensor:"), "unknown key 'tensor'"),
        (("topology:", "topology: ["), "not readable as YAML"),
    ],
)
def test_a_bad_file_is_named_with_the_place(
    change: tuple[str, str], message: str, spec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec.write_text(SPEC.replace(*change))
    status, _, shown = run(capsys, "plan", spec)
    assert status == 2
    assert message in shown
    assert "weights.yaml" in shown


def test_bad_networks_and_plans_are_named(spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network, saved = tmp_path / "network.yaml", tmp_path / "plan.json"
    network.write_text("{hosts: 1, devices: 2, nic: 0}")
    assert "network.yaml: a rate is above zero" in run(capsys, "plan", spec, "--topology", network)[2]
    network.write_text("{hosts: 1, devices: 2}")
    assert "weights.yaml: topology: no host" in run(capsys, "plan", spec, "--topology", network)[2]
    assert "no host of the topology" in run(capsys, "plan", "case:1", "--topology", network)[2]
    assert run(capsys, "plan", spec, "--save", saved)[0] == 0
    assert "made for its own network" in run(capsys, "plan", saved, "--topology", network)[2]
    assert "shrink is for built-in cases" in run(capsys, "plan", saved, "--shrink", 2)[2]
    saved.write_text(saved.read_text("utf-8").replace('"makespan":', '"makespan":1'))
    assert "damaged" in run(capsys, "simulate", saved)[2]


def test_inputs() -> None:
    assert numbers(None, "tf") is None
    assert numbers("1e-3", "tf") == 0.001
    assert pairs(("0-2", "1-3"), 4) == [(0, 2), (1, 3)]
    network = Topology.uniform(2, 1, nic="10Gbit", core="20Gbit")
    slow = slowed(network, 1e6)
    assert (slow.hosts[1].down, slow.core) == (1e6, 2e6)
    assert slowed(network, 1e12) is network
    made = plan(find_job("multicast:1x1", None, 1024).case.transfers, network)
    assert on_network(made, network) is made
    assert on_network(made, slow).makespan == pytest.approx(1250 * made.makespan)


def test_a_chart_in_characters() -> None:
    case = find_job("multicast:1x1", None, 1024).case
    made = simulate(plan(case.transfers, case.topology))
    chart = gantt_text(made, ["host0 nic0 out", "host1 nic0 out"], 2 * made.makespan, 8)
    assert chart.splitlines() == ["host0 nic0 out 0000····", "host1 nic0 out ········"]

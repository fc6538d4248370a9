"""The command: its verbs, its answers as JSON, files, and errors in one line."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from poet import Device, cli_demo, legacy
from poet.cli import main
from poet.cli_inputs import find_graph, find_objective
from poet.cli_show import memory_text, progress_line
from poet.plan import Schedule
from poet.problem import Objective
from poet.search import Progress

LINEAR = ("legacy:linear", "--time-limit", 2)


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, Any, str]:
    """Status, the answer as JSON, and what went to standard error."""
    status = main([*map(str, words), "--json"])
    captured = capsys.readouterr()
    return status, json.loads(captured.out) if captured.out else None, " ".join(captured.err.split())


def test_solve_writes_schedule_table_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {name: tmp_path / f"out.{name}" for name in ("json", "h", "svg")}
    status, answer, _ = run(
        capsys, "solve", *LINEAR, "--ram", 3388, "--deadline", "2.0", "--paging", "free", "--out", files["json"],
        "--c-header", files["h"], "--plot", files["svg"],
    )  # fmt: skip
    assert status == 0
    assert answer["verified"] is True
    assert answer["baseline"] < answer["lower_bound"] <= answer["objective"]
    assert answer["overhead"] == pytest.approx(0.010895, abs=1e-5)  # what branch and bound proves optimal
    assert answer["peak"] <= 3388
    assert answer["arena"]["live_peak"] <= answer["arena"]["height"]
    graph = legacy.graph("linear")
    schedule = Schedule.load(files["json"], graph)
    assert schedule.joules == answer["modelled_joules"]
    assert f"POET_EVENTS {len(schedule.events or ())}u" in files["h"].read_text("utf-8")
    assert files["svg"].read_text("utf-8").startswith("<svg")


def test_solve_for_people_says_what_is_modelled(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["solve", *map(str, LINEAR), "--ram", "60%"]) == 0
    shown = capsys.readouterr().out
    assert "modelled energy" in shown
    assert "no rule is broken" in shown


def test_solve_explains_what_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    status, answer, _ = run(capsys, "solve", "resnet18_cifar", "--ram", "256KiB")
    assert status == 1
    assert answer["status"] == "INFEASIBLE"
    assert "parameters" in answer["explanation"]
    assert answer["smallest_ram"] > 256 * 1024


def test_pareto_costs_less_with_more_ram(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture, rows = tmp_path / "trade.svg", tmp_path / "trade.json"
    status, answer, _ = run(capsys, "pareto", *LINEAR, "--rams", 3388, "100%", "--plot", picture, "--out", rows)
    assert status == 0
    overheads = [row["overhead"] for row in answer["rows"]]
    assert overheads == sorted(overheads, reverse=True)
    assert overheads[0] > overheads[-1] == 0
    assert json.loads(rows.read_text("utf-8"))["rows"] == answer["rows"]
    assert picture.read_text("utf-8").startswith("<svg")


def test_pareto_as_a_table_with_deadlines(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["pareto", *map(str, LINEAR), "--rams", "100%", "--deadlines", "1.5", "3x", "--device", "rpi4b"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert len(re.findall(r"KiB +1\.5 ", shown)) == len(re.findall(r"KiB +3x ", shown)) == 1


def test_run_is_exact_and_keeps_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = """
import torch
def make():
    layers = [layer for _ in range(4) for layer in (torch.nn.Linear(64, 64), torch.nn.Tanh())]
    return torch.nn.Sequential(*layers), torch.nn.functional.mse_loss, (torch.randn(256, 64), torch.randn(256, 64))
"""
    (tmp_path / "users_step.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    status, answer, _ = run(
        capsys, "run", "users_step:make", "--ram", "60%", "--steps", 2, "--tiers", "ram", "--time-limit", 2
    )
    assert status == 0
    assert answer["equal"] is True
    assert answer["ours_peak"] <= answer["limit"] < answer["eager_peak"]
    assert answer["recomputed"] > 0 == answer["paged_out"]


def test_run_of_a_built_in_model_explains_what_cannot_be_kept(capsys: pytest.CaptureFixture[str]) -> None:
    status, answer, _ = run(capsys, "run", "perceptron", "--ram", "1KiB")
    assert status == 1
    assert "cannot keep to 1.0 KiB" in answer["explanation"]


def test_devices_say_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, answer, _ = run(capsys, "devices")
    assert status == 0
    assert list(answer) == Device.names()
    assert answer["jetson-tx2"]["missing"] == ["flops_per_second", "flops_per_joule"]
    assert main(["devices", "nrf52840"]) == 0
    assert "page_out" not in (shown := capsys.readouterr().out)
    assert "Nordic" in shown
    assert "chipsets.py" in shown
    mine = tmp_path / "mine.json"
    status, answer, _ = run(capsys, "devices", "--profile", "--seconds", 0.3, "--page-dir", tmp_path, "--out", mine)
    assert status == 0
    assert Device.load(mine) == Device.from_json(answer["this-cpu"])


def test_demo_shows_both_ahead_of_each(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cli_demo, "_SECONDS", 0.4)
    status, answer, _ = run(capsys, "demo")
    assert status == 0
    ways = answer["ways"]
    both = ways.pop("both together, searched")
    assert answer["bound"] <= both["overhead"]
    others = [way["overhead"] for name, way in ways.items() if way and not name.startswith("plain")]
    assert others
    assert all(both["overhead"] <= other for other in others)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("solve", "lenet"), "is no graph: give one of mlp, vgg16"),
        (("solve", "legacy:lenet"), "no legacy graph 'lenet'"),
        (("solve", "absent.json"), "absent.json"),
        (("solve", "bert", "--image", "32"), "does not have one of the options image"),
        (("solve", "legacy:linear", "--seq", "3"), "does not take seq"),
        (("solve", "legacy:linear", "--ram", "much"), "expected bytes such as"),
        (("solve", "legacy:linear", "--objective", "1:x"), "energy, time, or weights as 1:0.5"),
        (("solve", "legacy:linear", "--device", "z80"), "no device 'z80'"),
        (("solve", "legacy:linear", "--device", "jetson-tx2"), "has no flops_per_second"),
        (("solve", "legacy:linear", "--solver", "gurobi"), "solver must be one of"),
        (("solve", "legacy:linear", "--tiers", "tape"), "no tier 'tape'"),
        (("solve", "legacy:linear", "--out", "absent/s.json"), "the folder absent of s.json does not exist"),
        (("pareto", "legacy:linear", "--limits", "1"), "at least 2 limits"),
        (("run", "lstm"), "is no model: give convnet, encoder, perceptron, or module:function"),
        (("run", "math:pi"), "has no function 'pi'"),
        (("run", "time:time"), "return (model, loss_fn, (inputs, targets))"),
        (("run", "perceptron", "--steps", "0"), "steps must be 1 or more"),
        (("devices", "--out", "x.json"), "give --profile, or one device"),
    ],
)
def test_errors_are_one_line(words: tuple[object, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, answer, shown = run(capsys, *words)
    assert status == 2
    assert answer is None
    assert message in shown
    assert "Traceback" not in shown


def test_inputs() -> None:
    assert find_graph("resnet18_cifar", {"batch": 2, "seq": None}).name.startswith("resnet18_cifar, batch 2")
    assert find_objective("time") == Objective(0.0, 1.0)
    assert find_objective("0.5:2") == Objective(0.5, 2.0)


def test_a_line_of_progress_before_the_first_schedule() -> None:
    line = progress_line(Progress(3.0, float("inf"), 1.5, 1.0, "grid of depth 1"))
    assert line == "3.0 s: no schedule yet, proved 50.000 %, grid of depth 1"
    assert progress_line(Progress(3.0, 0.0, 0.0, 0.0, "start")) == "3.0 s: start"


def test_memory_as_text() -> None:
    chart = memory_text([0, 512, 1024, 256], 512, rows=4)
    assert chart.splitlines() == ["  █   1.0 KiB", "──█─  limit 512 B", " ██", " ███"]
    wide = memory_text(list(range(1000)), 2000, columns=50, rows=3).splitlines()
    assert max(map(len, wide)) <= 50 + len("  2.0 KiB")
    with pytest.raises(ValueError, match="memory at one event"):
        memory_text([], 1)

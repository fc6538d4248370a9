"""The command: its verbs, its answers as JSON, and errors in one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from gact.cli import main

SMALL = ("--batch", 2, "--layers", 1, "--width", 32, "--length", 64, "--image", 32, "--min-bytes", 0)


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, Any, str]:
    """Status, the answer as JSON, and what went to standard error."""
    status = main([*map(str, words), "--json"])
    captured = capsys.readouterr()
    return status, json.loads(captured.out) if captured.out else None, " ".join(captured.err.split())


def test_demo_shows_that_spread_bits_err_less(capsys: pytest.CaptureFixture[str]) -> None:
    status, answer, _ = run(capsys, "demo")
    assert status == 0
    assert answer["plain_bytes"] > 8 * answer["auto:2"]["saved_bytes"]
    assert answer["auto:4"]["saved_bytes"] <= answer["4"]["saved_bytes"]
    assert answer["8"]["gradient_error"] < answer["auto:4"]["gradient_error"] < answer["4"]["gradient_error"]


@pytest.mark.parametrize("model", ["gpt", "resnet", "vit"])
def test_estimate_of_the_built_in_models(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, answer, _ = run(capsys, "estimate", model, *SMALL, "--targets", 4, "auto:2", "--no-peak")
    assert status == 0
    assert answer["peak"] is None
    assert answer["smallest_bytes"] < answer["targets"]["auto:2"] < answer["targets"]["4"] < answer["plain_bytes"]
    assert sum(row["plain_bytes"] for row in answer["rows"]) == answer["plain_bytes"]


@pytest.mark.parametrize(
    "given", ["torch.randn(300, 16)", "(torch.randn(300, 16),)", "lambda x=torch.randn(300, 16): model(x).sum()"]
)
def test_estimate_of_a_users_model_writes_a_page(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"users_model_{abs(hash(given))}"
    code = f"""
        import torch
        def make():
            model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.GELU(), torch.nn.Linear(32, 1))
            return model, {given}
    """
    (tmp_path / f"{name}.py").write_text("\n".join(line[8:] for line in code.splitlines()))
    monkeypatch.chdir(tmp_path)
    status, answer, shown = run(capsys, "estimate", f"{name}:make", "--html", "page.html")
    assert status == 0
    assert answer["plain_bytes"] == 2 * 300 * 32 * 4
    assert answer["peak"]["peak_added"] > answer["plain_bytes"]
    assert "wrote page.html" in shown
    assert "Gelu" in (tmp_path / "page.html").read_text("utf-8")


def test_tables_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "vit", *map(str, SMALL)]) == 0
    shown = capsys.readouterr().out
    assert "smallest possible" in shown
    assert "blocks.0.mlp.1" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("estimate", "lstm"), "is no model: give gpt, resnet, vit, or module:function"),
        (("estimate", "gpt", "--layers", "0"), "must be 1 or more"),
        (("estimate", "gpt", "--html", "absent/page.html"), "does not exist"),
        (("estimate", "vit", *SMALL, "--targets", "3"), "give 1, 2, 4 or 8"),
        (("estimate", "math:pi"), "has no function 'pi'"),
        (("estimate", "absent_module:make"), "absent_module"),
        (("estimate", "time:time"), "return (model, batch)"),
    ],
)
def test_errors_are_one_line(words: tuple[object, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, answer, shown = run(capsys, *words)
    assert status == 2
    assert answer is None
    assert message in shown
    assert "Traceback" not in shown

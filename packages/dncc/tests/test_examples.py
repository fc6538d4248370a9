"""The examples run from any folder, leave nothing behind, and show the effect."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, folder: Path, *arguments: str) -> str:
    threads = {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments], cwd=folder, capture_output=True, text=True, timeout=110,
        env=os.environ | threads, encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_quickstart_decomposes_and_compares(tmp_path: Path) -> None:
    shown = run("quickstart.py", tmp_path)
    assert list(tmp_path.iterdir()) == []
    terms = [tuple(map(float, row)) for row in re.findall(r": ([\d.]+) - ([\d.]+) = ([\d.]+)$", shown, re.MULTILINE)]
    assert len(terms) == 5
    assert all(abs(ce - ambiguity - ensemble) < 2e-3 for ce, ambiguity, ensemble in terms)  # of three decimals
    ambiguity = [row[1] for row in terms]
    assert ambiguity[0] == 0
    assert ambiguity == sorted(ambiguity)  # lambda is what controls diversity
    assert "predicted: [" in shown


def test_quickstart_is_short() -> None:
    assert len((EXAMPLES / "quickstart.py").read_text("utf-8").splitlines()) <= 80


def test_frontier_of_one_run(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    shown = run("frontier.py", tmp_path, "trade.svg")
    rows = re.findall(r"^([\d.]+) +([\d.]+) +[\d.]+ \[.*\] +([\d.]+)$", shown, re.MULTILINE)
    assert [float(row[0]) for row in rows] == [0.0, 0.25, 0.5, 0.75, 0.9, 1.0]
    assert float(rows[-1][1]) > float(rows[0][1])  # members are worse alone
    disagreement = [float(row[2]) for row in rows]
    assert disagreement == sorted(disagreement)
    assert (tmp_path / "trade.svg").read_text("utf-8").startswith("<svg")


def test_the_guard_lowers_lambda_and_collusion(tmp_path: Path) -> None:
    shown = run("guarded.py", tmp_path)
    rows = re.findall(r"^(0|1|1, guarded) +([\d.]+) +(\d+)% +([\d.]+) +([\d.]+)$", shown, re.MULTILINE)
    (_, *alone), (_, *joint), (_, *guarded) = [(row[0], *map(float, row[1:])) for row in rows]
    assert joint[0] == 1
    assert 0 < guarded[0] < 1
    assert alone[1] <= guarded[1] < joint[1]
    assert guarded[2] < joint[2]  # a member alone is worth more
    assert list(tmp_path.iterdir()) == []


def test_own_backbone(tmp_path: Path) -> None:
    pytest.importorskip("torchvision", reason="needs dncc[backbones]")
    shown = run("own_backbone.py", tmp_path)
    sizes = [int(number.replace(",", "")) for number in re.findall(r"([\d,]{5,})", shown)]
    heads, backbone, tree = sizes[:3]
    assert heads == backbone + 512 * 3 + 8 * 3  # features are split: only the biases grow
    assert tree > 1.7 * backbone
    assert "largest difference below 1e-5: True" in shown or "ONNX left out" in shown
    assert list(tmp_path.iterdir()) == []

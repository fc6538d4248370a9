"""The examples run from any folder, leave nothing behind, and show the effect."""

import os
import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, EXAMPLES / name], cwd=folder, capture_output=True, text=True, timeout=110,
        env=os.environ | {"PYTHONIOENCODING": "utf-8", "CUDA_VISIBLE_DEVICES": ""}, encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list(folder.iterdir()) == []
    return done.stdout


def test_quickstart_plans_compares_and_executes(tmp_path: Path) -> None:
    shown = run("quickstart.py", tmp_path)
    times = re.search(r"planned ([\d.]+) ms, send/recv ([\d.]+) ms", shown)
    assert times is not None
    assert float(times[2]) > 7.9 * float(times[1])  # case 5: 4 T against T / 2
    assert "exact: True" in shown
    assert len((EXAMPLES / "quickstart.py").read_text("utf-8").splitlines()) <= 80


def test_refreshing_a_fleet_is_within_a_percent(tmp_path: Path) -> None:
    shown = run("refresh_fleet.py", tmp_path)
    ratios = {name: float(value) for name, value in re.findall(r"^(.+?) +[\d.]+ s, +([\d.]+) of", shown, re.MULTILINE)}
    assert float(re.findall(r"bound ([\d.]+)%", shown)[0]) <= 1
    assert ratios["planned"] < ratios["gather, then broadcast"] < ratios["point to point"]


def test_a_pipeline_is_simulated_and_run(tmp_path: Path) -> None:
    shown = run("train_pipeline.py", tmp_path)
    simulated = [int(n) for n in re.findall(r"(\d+) ms simulated", shown)]
    assert simulated == [245, 195]  # 5 ms of 11 T + 16 c and 11 T + 6 c, T = 3, c = 1
    assert "same gradients: True" in shown

"""The examples run from any folder, leave nothing behind, and show the effect."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, folder: Path) -> str:
    threads = {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, EXAMPLES / name], cwd=folder, capture_output=True, text=True, timeout=110,
        env=os.environ | threads, encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list(folder.iterdir()) == []
    return done.stdout


def test_quickstart_no_confidence_guessed_beforehand_suits_both_logs(tmp_path: Path) -> None:
    shown = run("quickstart.py", tmp_path)
    rows = {
        name: [float(share) for share in re.findall(r": (\d\.\d\d)", line)]
        for name, line in re.findall(r"^ *(narrow|broad)(:.*)$", shown, re.MULTILINE)
    }
    (*narrow, adaptive_narrow), (*broad, adaptive_broad) = rows["narrow"], rows["broad"]
    assert len(narrow) == len(broad) == 5
    assert narrow[0] > 0.9 > 0.1 > broad[0]  # exact values of the policies of two seeded logs
    # 160 episodes scatter by .35 of the optimum each: a standard error of .03, 5 of them lie between.
    assert min(adaptive_narrow, adaptive_broad) > 0.75


def test_quickstart_is_short() -> None:
    assert len((EXAMPLES / "quickstart.py").read_text("utf-8").splitlines()) <= 80


def test_deep_learns_all_confidences_at_once(tmp_path: Path) -> None:
    shown = run("deep.py", tmp_path)
    assert "values rise with delta: True" in shown
    assert len(re.findall(r"mean [\d.]+, shortest \d+", shown)) == 4


def test_own_log_ends_and_is_cut(tmp_path: Path) -> None:
    pytest.importorskip("minari", reason="needs ccvf[minari]")
    shown = run("own_log.py", tmp_path)
    assert "5 episodes (80% terminated, 20% truncated)" in shown
    values = [float(value) for value in re.findall(r"value of the first cell (-?[\d.]+)", shown)]
    assert values == sorted(values)
    assert 0.9**29 < values[-1] < 0.9**8  # without conservatism, between the longest walk and the shortest
    assert "which gives 107 transitions back" in shown


def test_choose_delta_avoids_the_worst(tmp_path: Path) -> None:
    shown = run("choose_delta.py", tmp_path)
    rows = re.findall(r"^([\d.]+) +(-?[\d.]+) +(-?[\d.]+) +(-?[\d.]+)$", shown, re.MULTILINE)
    truth = {float(delta): float(true) for delta, _, _, true in rows}
    assert len(truth) == 5
    for _, fitted, exact, _ in rows:
        assert abs(float(fitted) - float(exact)) < 0.1  # two estimates of one number
    for chosen in re.findall(r"([\d.]+) by the", shown):
        assert truth[float(chosen)] > 0.9 * max(truth.values())

"""The examples run from any folder, leave nothing behind, and show the effect."""

import os
import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments], cwd=folder, capture_output=True, text=True, timeout=110,
        env=os.environ | {"PYTHONIOENCODING": "utf-8", "CUDA_VISIBLE_DEVICES": ""}, encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_quickstart_schedules_verifies_and_explains(tmp_path: Path) -> None:
    shown = run("quickstart.py", tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert "verified: True" in shown
    assert "read back: True" in shown
    assert "alone take 1.4 MiB" in shown
    rows = re.findall(r"MiB +([\d.]+)% +([\d.]+)%$", shown, re.MULTILINE)
    overheads = [float(overhead) for overhead, _ in rows]
    assert len(rows) == 3
    assert overheads == sorted(overheads, reverse=True)
    assert overheads[-1] == 0


def test_quickstart_is_short() -> None:
    assert len((EXAMPLES / "quickstart.py").read_text("utf-8").splitlines()) <= 80


def test_microcontroller_writes_a_table_that_fits(tmp_path: Path) -> None:
    shown = run("microcontroller.py", tmp_path, "step.h")
    assert "\nfits\n" in shown
    header = (tmp_path / "step.h").read_text("utf-8")
    height = re.search(r"#define STEP_ARENA_BYTES (\d+)u", header)
    assert height is not None
    assert int(height[1]) <= 256 * 1024


def test_training_in_memory_is_exact(tmp_path: Path) -> None:
    shown = run("train_in_memory.py", tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert "parameters equal to the bit: True" in shown
    losses = re.findall(r"losses .*?: ([\d. ]+)$", shown, re.MULTILINE)
    assert len(losses) == 2
    assert losses[0] == losses[1]

"""The examples run from any folder, offline, and show the effect."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
KEPT = re.compile(r"of activations kept in .*?: ([\d.]+)x smaller")


def run(name: str, folder: Path) -> str:
    """What an example prints; it must leave nothing behind."""
    offline = {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "PYTHONIOENCODING": "utf-8",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [sys.executable, EXAMPLES / name], cwd=folder, capture_output=True, text=True, timeout=110,
        env=os.environ | offline, encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list(folder.iterdir()) == []
    return done.stdout


def test_quickstart_trains_as_well_on_an_eighth(tmp_path: Path) -> None:
    shown = run("quickstart.py", tmp_path)
    smaller = dict(re.findall(r"^ *(\S+): .*?: ([\d.]+)x smaller", shown, re.MULTILINE))
    assert float(smaller["auto:2"]) > 8
    losses = {name: float(value) for name, value in re.findall(r"^ *(\S+): final loss ([\d.]+)$", shown, re.MULTILINE)}
    assert set(losses) == {"plain", "8", "auto:4", "auto:2"}
    assert all(loss < 1.02 * losses["plain"] for loss in losses.values())


def test_quickstart_is_short() -> None:
    assert len((EXAMPLES / "quickstart.py").read_text("utf-8").splitlines()) <= 80


@pytest.mark.peer
@pytest.mark.parametrize(
    ("name", "least"), [("huggingface_callback.py", 6), ("lightning_module.py", 5), ("open_clip_towers.py", 5)]
)
def test_integrations_train_and_keep_less(name: str, least: float, tmp_path: Path) -> None:
    shown = run(name, tmp_path)
    match = KEPT.search(shown)
    assert match is not None
    assert float(match[1]) > least
    assert re.search(r"^loss [\d.]+", shown, re.MULTILINE)


@pytest.mark.peer
def test_the_graph_network_learns_in_every_mode(tmp_path: Path) -> None:
    right = [float(value) for value in re.findall(r"([\d.]+)% right", run("pyg_graph.py", tmp_path))]
    assert len(right) == 4
    assert min(right) > 80

"""The examples run from any folder and show the effect."""

import re
import subprocess
import sys
from pathlib import Path

QUICKSTART = Path(__file__).parents[1] / "examples" / "quickstart.py"


def test_quickstart_shows_that_sharing_loses_least(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, QUICKSTART], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    losses = {
        name: float(number) for name, number in re.findall(r"^(\S.*?\S) {2,}([\d.]+)$", done.stdout, re.MULTILINE)
    }
    assert set(losses) == {"together (HierOPO)", "each shop alone", "all as one"}
    assert losses["together (HierOPO)"] < min(losses["each shop alone"], losses["all as one"])
    assert list(tmp_path.iterdir()) == []


def test_quickstart_is_short() -> None:
    assert len(QUICKSTART.read_text("utf-8").splitlines()) <= 80

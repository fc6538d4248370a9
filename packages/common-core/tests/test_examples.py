import subprocess
import sys
from pathlib import Path


def test_the_quickstart_runs_from_another_folder(tmp_path):
    script = Path(__file__).parents[1] / "examples" / "quickstart.py"
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "answers: done, 3.0" in done.stdout
    assert "SIGABRT" in done.stdout
    assert "stopped after its limit of 1 s" in done.stdout

"""Run all benchmarks, one process each; options are passed on. Says which failed."""

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
WHERE = {"bench_gpu": ["--device", "cuda"]}


def scripts() -> list[Path]:
    """The benchmarks that can run here: those of the GPU only where there is one."""
    import torch

    found = sorted(FOLDER.glob("bench_*.py"))
    return [path for path in found if path.stem not in WHERE or torch.cuda.is_available()]


def main(argv: list[str]) -> int:
    """Run them; 1 if one fails."""
    failed = []
    for path in scripts():
        print(f"== {path.stem}", flush=True)
        if subprocess.run([sys.executable, path, *WHERE.get(path.stem, []), *argv], check=False).returncode:
            failed.append(path.stem)
    print(f"failed: {', '.join(failed)}" if failed else "all have run")
    return bool(failed)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

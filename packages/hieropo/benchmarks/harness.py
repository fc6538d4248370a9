"""What the benchmarks share: one thread, the command line, and the form of the results."""

# ruff: noqa: E402 (the variables below must be set before numpy loads)
import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # one thread against one thread

import argparse
from collections.abc import Sequence
from pathlib import Path

from common_core import benchmarks
from common_core.benchmarks import Row as Row
from common_core.benchmarks import compare as compare
from common_core.benchmarks import row as row

RESULTS = Path(__file__).parent / "results"
_OURS = ("hieropo", "numpy", "repertory-common-core", "scipy")


def options(name: str, argv: Sequence[str] | None) -> argparse.Namespace:
    """Read ``--device``, ``--out`` and ``--quick``.

    Args:
        name: The benchmark's name, from which the default of ``--out`` is made.
        argv: Arguments; those of the process if None.

    Returns:
        Fields device, out and quick.
    """
    parser = argparse.ArgumentParser(prog=f"{name}.py")
    parser.add_argument("--device", choices=["cpu"], default="cpu", help="where to run")
    parser.add_argument("--out", type=Path, default=RESULTS / f"{name}.json", help="file to write")
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it runs, measures nothing")
    return parser.parse_args(argv)


def save(name: str, args: argparse.Namespace, rows: Sequence[Row], notes: str, peers: Sequence[str] = ()) -> None:
    """Write the results and print one line a row.

    Args:
        name: The benchmark's name.
        args: From `options`.
        rows: From `row` and `compare`.
        notes: What a reader must know to judge the figures.
        peers: Distributions whose versions are recorded beside our own.
    """
    benchmarks.save(name, args, rows, notes, package="hieropo", versions=(*_OURS, *peers))

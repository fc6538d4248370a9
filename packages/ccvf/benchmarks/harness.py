"""What the benchmarks share: one thread, the command line, the form of results."""

# ruff: noqa: E402 (the variables below must be set before numpy and torch load)
import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # one thread against one thread

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common_core import benchmarks
from common_core.benchmarks import Row as Row
from common_core.benchmarks import compare as compare
from common_core.benchmarks import line as line
from common_core.benchmarks import row as row
from common_core.stats import Estimate, student_t_quantile

RESULTS = Path(__file__).parent / "results"
_OURS = ("ccvf", "numpy", "repertory-common-core", "scipy", "torch")


def parser(name: str, devices: Sequence[str] = ("cpu",)) -> argparse.ArgumentParser:
    """The options of all: ``--device``, ``--out`` and ``--quick``; a benchmark may add its own.

    Args:
        name: The benchmark's name.
        devices: Where it can run; the first by default.

    Returns:
        The parser, for `options`.
    """
    found = argparse.ArgumentParser(prog=f"{name}.py")
    found.add_argument("--device", choices=list(devices), default=devices[0], help="where to run")
    found.add_argument("--out", type=Path, help="file to write")
    found.add_argument("--quick", action="store_true", help="toy sizes: shows that it runs, measures nothing")
    return found


def options(
    name: str, argv: Sequence[str] | None, own: argparse.ArgumentParser | None = None, devices: Sequence[str] = ("cpu",)
) -> argparse.Namespace:
    """Read the options.

    Args:
        name: The benchmark's name, from which the default of ``--out`` is made.
        argv: Arguments; those of the process if None.
        own: From `parser`, with options of the benchmark's own.
        devices: Where it can run, without `own`.

    Returns:
        Fields device, out, quick and load (the machine's at the start), and the benchmark's own.
    """
    args = (own or parser(name, devices)).parse_args(argv)
    if args.out is None:  # toy figures overwrite none, nor does one device another's
        device = "" if args.device == "cpu" else f"-{args.device}"
        args.out = RESULTS / f"{name}{device}{'-quick' if args.quick else ''}.json"
    args.load = load()
    return args


def load() -> float:
    """The machine's load in the last minute: 1 for each busy processor."""
    return os.getloadavg()[0]


def mean(values: Sequence[float]) -> Estimate:
    """Mean with its 95 % interval by Student's t; without one where there are fewer than three values."""
    found = np.asarray(values, float)
    if len(found) < 3 or not np.isfinite(found).all():
        return Estimate(float(found.mean()), n=len(found))
    half = student_t_quantile(0.975, len(found) - 1) * float(found.std(ddof=1)) / math.sqrt(len(found))
    return Estimate(float(found.mean()), float(found.mean()) - half, float(found.mean()) + half, len(found))


def save(name: str, args: argparse.Namespace, rows: Sequence[Row], notes: str, peers: Sequence[str] = ()) -> None:
    """Write the results and print one line a row.

    Args:
        name: The benchmark's name.
        args: From `options`.
        rows: From `row` and `compare`.
        notes: What a reader must know to judge the figures; the load of the machine is added.
        peers: Distributions whose versions are recorded beside our own, where installed.
    """
    notes += f" Load average of the machine: {args.load:.1f} at the start, {load():.1f} at the end"
    notes += f", of {os.cpu_count()} processors."
    if args.quick:
        notes += " Toy sizes: these figures mean nothing."
    benchmarks.save(name, args, rows, notes, package="ccvf", versions=(*_OURS, *peers))

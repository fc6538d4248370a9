"""What the benchmarks share: one thread, the command line, medians over turns, the form of results."""

# ruff: noqa: E402 (the variables below must be set before numpy and torch load)
import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # one thread against one thread

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common_core import benchmarks
from common_core.benchmarks import Row as Row
from common_core.benchmarks import line as line
from common_core.benchmarks import row as row
from common_core.stats import Estimate, bootstrap

RESULTS = Path(__file__).parent / "results"
_OURS = ("ml-dtypes", "numpy", "repertory-common-core", "scipy", "xmesh-reshard")


def options(name: str, argv: Sequence[str] | None, devices: Sequence[str] = ("cpu",)) -> argparse.Namespace:
    """Read ``--device``, ``--repeats``, ``--out`` and ``--quick``.

    Args:
        name: The benchmark's name, from which the default of ``--out`` is made.
        argv: Arguments; those of the process if None.
        devices: Where it can run; the first by default.

    Returns:
        Fields device, repeats, out, quick, and the load of the machine at the start.
    """
    parser = argparse.ArgumentParser(prog=f"{name}.py")
    parser.add_argument("--device", choices=list(devices), default=devices[0], help="where to run")
    parser.add_argument("--repeats", type=int, help="turns of which the median counts; by default the benchmark's own")
    parser.add_argument("--out", type=Path, help="file to write")
    parser.add_argument("--quick", action="store_true", help="toy sizes: shows that it runs, measures nothing")
    args = parser.parse_args(argv)
    if args.repeats is not None and args.repeats < 1:
        parser.error(f"--repeats is at least 1; got {args.repeats}")
    if args.out is None:  # toy figures overwrite none
        args.out = RESULTS / f"{name}{'-quick' if args.quick else ''}.json"
    args.load = load()
    return args


def load() -> float:
    """The machine's load in the last minute: 1 for each busy processor."""
    return os.getloadavg()[0]


def median(values: Sequence[float]) -> Estimate:
    """Median with its 95 % interval by resampling; without one where there are fewer than three values."""
    found = np.asarray(values, float)
    if len(found) < 3:
        return Estimate(float(np.median(found)))
    return bootstrap(found, np.median, rng=np.random.default_rng(0))


def ratio(ours: Sequence[float], peer: Sequence[float]) -> Estimate:
    """Median of ours / peer over the turns, taken within turns."""
    return median((np.asarray(ours, float) / np.asarray(peer, float)).tolist())


def spent(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """A call's result, its seconds by the clock and those of the processor: the latter do not count who else works."""
    wall, processor = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - wall, time.process_time() - processor


def speed() -> float:
    """Seconds of the processor for a fixed piece of numpy and Python work: tells how slowed a busy machine is."""

    def work() -> None:
        values = np.arange(200_000, dtype=float)
        for _ in range(20):
            values = np.sort(values[::-1])
        sum(k * k for k in range(1_000_000))

    return min(spent(work)[2] for _ in range(3))


def show(rows: Sequence[Row]) -> None:
    """Print rows as soon as they are there."""
    print(*map(line, rows), sep="\n", flush=True)


def extra(values: Mapping[str, Any]) -> dict[str, Any]:
    """Further columns of a row: numbers rounded to what is worth reading."""
    return {key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in values.items()}


def save(name: str, args: argparse.Namespace, rows: Sequence[Row], notes: str, peers: Sequence[str] = ()) -> None:
    """Write the results.

    Args:
        name: The benchmark's name.
        args: From `options`.
        rows: From `row`.
        notes: What a reader must know to judge the figures; the load of the machine is added.
        peers: Distributions whose versions are recorded beside our own, where installed.
    """
    notes += f" Load average of the machine: {args.load:.1f} at the start, {load():.1f} at the end"
    notes += f", of {os.cpu_count()} processors."
    if args.quick:
        notes += " Toy sizes: these figures mean nothing."
    benchmarks.save(name, args, rows, notes, package="xmesh-reshard", versions=(*_OURS, *peers))

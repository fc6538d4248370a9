"""What the benchmarks share: one thread, the command line, a meter of the allocator, and the form of the results."""

# ruff: noqa: E402 (the variables below must be set before numpy and torch load)
import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # one thread against one thread
os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the meter below reads the profiler, which talks

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from common_core import benchmarks
from common_core.benchmarks import Row as Row
from common_core.benchmarks import line as line
from common_core.benchmarks import row as row
from common_core.memory import CudaPeakMeter

RESULTS = Path(__file__).parent / "results"
SCALES = ("quick", "cpu", "gpu")
_OURS = ("gact", "numpy", "repertory-common-core", "scipy", "torch")

torch.set_num_threads(1)


def options(name: str, argv: Sequence[str] | None) -> argparse.Namespace:
    """Read ``--device``, ``--scale``, ``--out`` and ``--quick``.

    Args:
        name: The benchmark's name, from which the default of ``--out`` is made.
        argv: Arguments; those of the process if None.

    Returns:
        Fields device, scale, out and quick.
    """
    parser = argparse.ArgumentParser(prog=f"{name}.py")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where to run")
    parser.add_argument("--scale", choices=SCALES, help="sizes; by default those of the device")
    parser.add_argument("--out", type=Path, help="file to write")
    parser.add_argument("--quick", action="store_true", help="toy sizes: shows that it runs, measures nothing")
    args = parser.parse_args(argv)
    args.scale = "quick" if args.quick else args.scale or {"cpu": "cpu", "cuda": "gpu"}[args.device]
    args.quick = args.scale == "quick"
    if args.scale == "gpu" and args.device == "cpu":
        parser.error("--scale gpu is for --device cuda; --quick shows on the CPU that the benchmark runs")
    if args.out is None:  # a GPU's figures never overwrite the CPU's, toy figures overwrite none
        suffix = {"quick": "-quick", "cpu": "", "gpu": "-gpu"}[args.scale]
        args.out = RESULTS / f"{name}{suffix}.json"
    return args


def peak_bytes(call: Callable[[], object], device: str) -> int:
    """Most bytes in use at once during a call, above those in use before it.

    On CUDA the allocator's own counter. On the CPU the allocator's events as torch's profiler records them, in order:
    unlike an observer of operators it also sees what an operator allocates inside and what compiled code allocates.

    Args:
        call: Called once.
        device: ``"cpu"`` or ``"cuda"``.

    Returns:
        Bytes.
    """
    return _allocated(call, device)[0]


def net_bytes(call: Callable[[], object], device: str) -> int:
    """Bytes that a call leaves allocated; see `peak_bytes`."""
    return _allocated(call, device)[1]


def _allocated(call: Callable[[], object], device: str) -> tuple[int, int]:
    """Peak and remainder of what a call allocates."""
    if device != "cpu":
        torch.cuda.synchronize()
        with CudaPeakMeter() as meter:
            call()
            torch.cuda.synchronize()
        return meter.reading().peak_added, meter.reading().current_added
    with torch.autograd.profiler.profile(profile_memory=True, use_kineto=True) as profile:
        call()
    events = [e for e in profile.kineto_results.events() if e.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak, total


def save(name: str, args: argparse.Namespace, rows: Sequence[Row], notes: str, peers: Sequence[str] = ()) -> None:
    """Write the results and print one line a row.

    Args:
        name: The benchmark's name.
        args: From `options`.
        rows: From `row`.
        notes: What a reader must know to judge the figures.
        peers: Distributions whose versions are recorded beside our own, where installed.
    """
    benchmarks.save(name, args, rows, notes, package="gact", versions=(*_OURS, *peers))

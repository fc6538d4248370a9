"""What the benchmarks share: one thread, the command line, a meter of the allocator, and the form of the results."""

# ruff: noqa: E402 (the variables below must be set before numpy and torch load)
import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # one thread against one thread
os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the meter below reads the profiler, which talks

import argparse
import importlib.metadata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from common_core import records
from common_core.memory import CudaPeakMeter
from common_core.stats import Estimate

SCHEMA = "repertory.benchmark/1"
RESULTS = Path(__file__).parent / "results"
SCALES = ("quick", "cpu", "gpu")
_OURS = ("gact", "numpy", "repertory-common-core", "scipy", "torch")
Row = dict[str, Any]

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


def row(
    name: str,
    ours: Estimate | float | None,
    peer: Estimate | float | None,
    peer_name: str,
    ratio: Estimate | float | None = None,
    goal: float | None = None,
    unit: str = "s",
    at_least: bool = False,
    **extra: Any,
) -> Row:
    """A row of the results.

    Args:
        name: What was measured.
        ours: Our figure.
        peer: The peer's figure.
        peer_name: Who the peer is.
        ratio: The two figures' ratio, with its interval where there is one.
        goal: The ratio aimed at, or our figure where there is no ratio; None if there was no aim.
        unit: Unit of the two figures.
        at_least: Whether the goal is a lower bound; else it is an upper one.
        **extra: Further columns.

    Returns:
        A mapping in the form of the schema; ``met`` is null where nothing was aimed at.
    """
    ratio = None if ratio is None else Estimate.from_any(ratio)
    met = None
    judged = ratio if ratio is not None else ours
    if goal is not None and judged is not None:
        met = bool(float(judged) >= goal if at_least else float(judged) <= goal)
    fields: Row = {"name": name, "unit": unit, "peer_name": peer_name, "ratio": ratio, "goal": goal, "met": met}
    if at_least:
        fields["goal_is"] = "at least"
    for key, value in (("ours", ours), ("peer", peer)):
        fields[key] = None if value is None else float(value)
        if isinstance(value, Estimate) and value.low is not None:
            fields[f"{key}_interval"] = [value.low, value.high]
    return fields | extra


def save(name: str, args: argparse.Namespace, rows: Sequence[Row], notes: str, peers: Sequence[str] = ()) -> None:
    """Write the results and print one line a row.

    Args:
        name: The benchmark's name.
        args: From `options`.
        rows: From `row`.
        notes: What a reader must know to judge the figures.
        peers: Distributions whose versions are recorded beside our own, where installed.
    """
    environment = records.environment(args.device)
    versions = {name: _version(name) for name in (*_OURS, *peers)}
    command = f"python packages/gact/benchmarks/{name}.py"
    command += "" if args.device == "cpu" else f" --device {args.device}"
    command += " --quick" if args.quick else ""
    head = {"schema": SCHEMA, "benchmark": name, "scale": args.scale, "device": environment["device"]}
    system = {key: environment[key] for key in ("python", "platform", "commit")}
    found = {key: value for key, value in sorted(versions.items()) if value is not None}
    body = {"versions": found, **system, "command": command, "rows": list(rows)}
    records.write_json_atomic(args.out, head | body | {"notes": notes})
    for entry in rows:
        print(line(entry))


def line(entry: Row) -> str:
    """One line of text for a row."""
    aim = "" if entry["goal"] is None else f"  (goal {entry['goal']:g}: {'met' if entry['met'] else 'MISSED'})"
    figures = f"{_show(entry, 'ours')} against {_show(entry, 'peer')} {entry['unit']}"
    return f"{entry['name']}: {figures} [{entry['peer_name']}], ratio {_show(entry, 'ratio')}{aim}"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _show(entry: Row, key: str) -> str:
    if entry[key] is None:
        return "-"
    interval = entry.get(f"{key}_interval")
    return format(entry[key], ".4g") + ("" if interval is None else " [{:.4g}, {:.4g}]".format(*interval))

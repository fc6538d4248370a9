"""What the benchmarks share: one thread, the command line, and the form of the results."""

# ruff: noqa: E402 (the variables below must be set before numpy loads)
import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # one thread against one thread

import argparse
import importlib.metadata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common_core import records, timing
from common_core.stats import Estimate

SCHEMA = "repertory.benchmark/1"
RESULTS = Path(__file__).parent / "results"
_OURS = ("hieropo", "numpy", "repertory-common-core", "scipy")
Row = dict[str, Any]


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


def compare(
    name: str,
    ours: Callable[[], object],
    peer: Callable[[], object],
    peer_name: str,
    goal: float | None = None,
    **kwargs: Any,
) -> Row:
    """Time ours and the peer in turns.

    Args:
        name: What is timed.
        ours: Our call.
        peer: The peer's call.
        peer_name: What the peer does.
        goal: Largest ratio ours / peer that was aimed at, if there was an aim.
        **kwargs: For `common_core.timing.paired_timing`.

    Returns:
        A row of the results.
    """
    measured = timing.paired_timing(ours, peer, **kwargs)
    return row(name, measured.ours_s, measured.peer_s, peer_name, measured.ratio, goal)


def row(
    name: str,
    ours: Estimate | float | None,
    peer: Estimate | float | None,
    peer_name: str,
    ratio: Estimate | None = None,
    goal: float | None = None,
    unit: str = "s",
    **extra: Any,
) -> Row:
    """A row of the results.

    Args:
        name: What was measured.
        ours: Our figure.
        peer: The peer's figure.
        peer_name: Who the peer is.
        ratio: Ours / peer, with its interval.
        goal: Largest ratio aimed at, if there was an aim.
        unit: Unit of the two figures.
        **extra: Further columns.

    Returns:
        A mapping in the form of the schema; ``met`` is null where nothing was aimed at.
    """
    met = None if goal is None or ratio is None else bool(ratio.value <= goal)
    fields = {"name": name, "unit": unit, "peer_name": peer_name, "ratio": ratio, "goal": goal, "met": met}
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
        rows: From `row` and `compare`.
        notes: What a reader must know to judge the figures.
        peers: Distributions whose versions are recorded beside our own.
    """
    environment = records.environment(args.device)
    versions = {name: importlib.metadata.version(name) for name in (*_OURS, *peers)}
    command = f"python packages/hieropo/benchmarks/{name}.py" + (" --quick" if args.quick else "")
    head = {"schema": SCHEMA, "benchmark": name, "device": environment["device"]}
    system = {key: environment[key] for key in ("python", "platform", "commit")}
    body = {"versions": dict(sorted(versions.items())), **system, "command": command, "rows": list(rows)}
    records.write_json_atomic(args.out, head | body | {"notes": notes})
    for entry in rows:
        aim = "" if entry["goal"] is None else f"  (goal {entry['goal']:g}: {'met' if entry['met'] else 'MISSED'})"
        figures = f"{_show(entry, 'ours')} against {_show(entry, 'peer')} {entry['unit']}"
        print(f"{entry['name']}: {figures} [{entry['peer_name']}], ratio {_show(entry, 'ratio')}{aim}")


def _show(entry: Row, key: str) -> str:
    if entry[key] is None:
        return "-"
    interval = entry.get(f"{key}_interval")
    return format(entry[key], ".4g") + ("" if interval is None else " [{:.4g}, {:.4g}]".format(*interval))

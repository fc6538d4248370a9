"""Results of benchmarks in one form: rows of our figure against a named peer's, with the ratio and the goal.

A benchmark measures ours and the peer in one process and run, in turns (`common_core.timing`), and writes what it found
as JSON beside the device's name and the versions; documentation quotes it from there.
"""

import argparse
import importlib.metadata
from collections.abc import Callable, Sequence
from typing import Any

from common_core import records, timing
from common_core.stats import Estimate

SCHEMA = "repertory.benchmark/1"
Row = dict[str, Any]


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

    Example:
        >>> row("solve", 1.0, 4.0, "a peer", 0.25, goal=0.5)["met"]
        True
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


def save(
    name: str, args: argparse.Namespace, rows: Sequence[Row], notes: str, *, package: str, versions: Sequence[str]
) -> None:
    """Write the results and print one line a row.

    Args:
        name: The benchmark's name.
        args: With `out`, `device` and `quick`, and `scale` where there are several.
        rows: From `row` and `compare`.
        notes: What a reader must know to judge the figures.
        package: The package's folder.
        versions: Distributions whose versions are recorded, where installed.
    """
    environment = records.environment(args.device)
    command = f"python packages/{package}/benchmarks/{name}.py"
    command += "" if args.device == "cpu" else f" --device {args.device}"
    command += " --quick" if args.quick else ""
    scale = {"scale": args.scale} if hasattr(args, "scale") else {}
    head = {"schema": SCHEMA, "benchmark": name, **scale, "device": environment["device"]}
    system = {key: environment[key] for key in ("python", "platform", "commit")}
    found = {key: value for key in sorted(versions) if (value := _version(key)) is not None}
    body = {"versions": found, **system, "command": command, "rows": list(rows)}
    records.write_json_atomic(args.out, head | body | {"notes": notes})
    for entry in rows:
        print(line(entry))  # noqa: T201 (a benchmark's answer)


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

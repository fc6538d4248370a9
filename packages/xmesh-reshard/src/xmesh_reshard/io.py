"""Plans as JSON: whole files or none, with a version and sums over the content; read with suspicion."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from common_core.records import RecordError, read_json, to_jsonable, write_bytes_atomic
from xmesh_reshard.layout import Layout
from xmesh_reshard.plans import Group, Plan, Tables, Transfer
from xmesh_reshard.topology import Topology

SCHEMA = "repertory.xmesh-reshard.plan/1"
_FLOATS = ("start", "end")


class FormatError(ValueError):
    """A file that is not one of our plans, is damaged, does not agree with itself, or is from a newer version."""


def save_plan(plan: Plan, path: str | os.PathLike[str]) -> None:
    """Write a plan; a reader sees the old file or the new one, never a part.

    Args:
        plan: What to write.
        path: Target file, usually ending in .json; its folder is made when missing.

    Raises:
        OSError: The file cannot be written.

    Example:
        >>> import tempfile
        >>> from xmesh_reshard.baselines import send_recv
        >>> from xmesh_reshard.cases import multi_host_case
        >>> case = multi_host_case(1, scale=64)
        >>> plan = send_recv(case.transfers, case.topology)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_plan(plan, folder + "/plan.json")
        ...     load_plan(folder + "/plan.json").hash() == plan.hash()
        True
    """
    content = to_jsonable(plan_to_json(plan))
    write_bytes_atomic(path, _text(content) + b"\n")


def load_plan(path: str | os.PathLike[str]) -> Plan:
    """Read a plan.

    Args:
        path: A file that :func:`save_plan` wrote.

    Returns:
        The plan, equal to the one written down to the last bit.

    Raises:
        FormatError: The file is missing, damaged, not a plan, does not agree with itself, or is newer.
    """
    try:
        content = read_json(path, SCHEMA)
    except RecordError as error:
        raise FormatError(str(error)) from None
    try:
        return plan_from_json(content)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from None


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """A plan as JSON holds it; NaN and infinities are strings.

    Args:
        plan: What to write.
    """
    numbers: dict[bytes, int] = {}
    layouts: list[dict[str, Any]] = []

    def number(layout: Layout) -> int:
        key = layout.key()
        if key not in numbers:
            numbers[key] = len(layouts)
            columns = {name: getattr(layout, name).tolist() for name in ("devices", "lower", "upper")}
            layouts.append({"shape": list(layout.shape), "dtype": layout.dtype, **columns})
        return numbers[key]

    groups = [
        {"names": list(g.names), "source": number(g.transfer.source), "target": number(g.transfer.target)}
        for g in plan.groups
    ]
    content = {
        "schema": SCHEMA,
        "hash": plan.hash(),
        "makespan": plan.makespan,
        "lower_bound": plan.lower_bound,
        "notes": list(plan.notes),
        "topology": plan.topology.to_dict(),
        "layouts": layouts,
        "groups": groups,
        "tables": {entry.name: getattr(plan.tables, entry.name).tolist() for entry in fields(Tables)},
    }
    return {**content, "digest": _digest(to_jsonable(content))}


def plan_from_json(content: Mapping[str, Any]) -> Plan:
    """The plan that :func:`plan_to_json` gave.

    Args:
        content: What ``json.loads`` gave.

    Raises:
        FormatError: It is not a plan of this version, was damaged, or does not agree with itself.
    """
    if content.get("schema") != SCHEMA:
        raise FormatError(f"not a plan of this version: its schema is {content.get('schema')!r}, not {SCHEMA!r}")
    if content.get("digest") != _digest({key: value for key, value in content.items() if key != "digest"}):
        raise FormatError("the content does not match its digest: the file was damaged or changed by hand; plan again")
    try:
        layouts = [_layout(entry) for entry in content["layouts"]]
        groups = tuple(_group(entry, layouts) for entry in content["groups"])
        dims = max((len(group.transfer.source.shape) for group in groups), default=0)
        plan = Plan(
            groups,
            Topology.from_dict(content["topology"]),
            _tables(content["tables"], dims),
            float(content["makespan"]),
            float(content["lower_bound"]),
            tuple(str(note) for note in content["notes"]),
        )
        _agree(plan)
        agrees = plan.hash() == content["hash"]
    except FormatError:
        raise
    except KeyError as error:
        raise FormatError(f"a plan lacks the entry {error}; plan again") from None
    except (AttributeError, IndexError, OverflowError, TypeError, ValueError) as error:
        raise FormatError(f"not a plan: {error}; plan again") from None
    if not agrees:
        raise FormatError("the plan's hash is not that of its content: the file does not agree with itself; plan again")
    return plan


def _text(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _layout(entry: Mapping[str, Any]) -> Layout:
    shape = tuple(entry["shape"])
    devices = np.array(entry["devices"], np.int64)
    boxes = (np.array(entry[side], np.int64).reshape(len(devices), len(shape)) for side in ("lower", "upper"))
    return Layout(shape, entry["dtype"], devices, *boxes)


def _group(entry: Mapping[str, Any], layouts: list[Layout]) -> Group:
    source, target = (entry["source"], entry["target"])
    if not 0 <= source < len(layouts) or not 0 <= target < len(layouts):
        raise FormatError(f"the tensors {entry['names'][:2]} name a layout that is not in the file")
    return Group(tuple(str(name) for name in entry["names"]), Transfer(layouts[source], layouts[target]))


def _tables(columns: Mapping[str, Any], dims: int) -> Tables:
    made: dict[str, np.ndarray] = {}
    for entry in fields(Tables):
        raw = columns[entry.name]
        if entry.name in _FLOATS:
            made[entry.name] = np.array([float(value) for value in raw], float)
            continue
        box = entry.name.endswith(("_lower", "_upper"))
        made[entry.name] = np.array(raw, np.int64).reshape((len(raw), dims) if box else len(raw))
    sizes = {name: len(made[name]) for name in ("nbytes", "hop_source", "piece_group", "copy_device")}
    for name, column in made.items():
        prefix = name.split("_")[0]
        like = {"hop": "hop_source", "piece": "piece_group", "copy": "copy_device"}.get(prefix, "nbytes")
        wanted = sizes["nbytes"] + 1 if name.endswith("_ptr") else sizes[like]
        if len(column) != wanted:
            raise FormatError(f"the column {name} has {len(column)} entries; {wanted} belong there")
    return Tables(**made)


def _agree(plan: Plan) -> None:
    """Refuse tables whose columns do not fit each other, the tensors or the network."""
    t, groups = plan.tables, plan.groups
    for name, last in (("hop_ptr", len(t.hop_source)), ("piece_ptr", len(t.piece_group))):
        ptr = getattr(t, name)
        if ptr[0] != 0 or ptr[-1] != last or (np.diff(ptr) < 0).any():
            raise FormatError(f"the column {name} does not divide {last} rows among {len(t.nbytes)} messages")
    if _outside(t.piece_group, len(groups)) or _outside(t.copy_group, len(groups)):
        raise FormatError("the plan does not agree with itself: a piece of an unknown tensor")
    counts = np.array([len(group.names) for group in groups], np.int64)
    known = {*plan.topology.host_of}
    devices = {*t.hop_source.tolist(), *t.hop_target.tolist(), *t.copy_device.tolist(), *plan.devices}
    beyond = (t.piece_first < 0) | (t.piece_last > counts[t.piece_group])
    for bad, what in (
        ((np.diff(t.hop_ptr) < 1).any(), "a message has no hop"),
        ((t.nbytes < 0).any() or (t.chunk < 1).any(), "a message has a negative size or an empty chunk"),
        (not devices <= known, "an unknown device"),
        (beyond.any(), "a piece of an unknown tensor"),
    ):
        if bad:
            raise FormatError(f"the plan does not agree with itself: {what}")


def _outside(numbers: np.ndarray, count: int) -> bool:
    return bool(((numbers < 0) | (numbers >= count)).any())

"""Graphs, devices and schedules as JSON: whole files or none, with a schema and its version, read with suspicion."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, TypeVar

from common_core.records import RecordError, read_json, write_json_atomic
from poet.device import SCHEMA as DEVICE_SCHEMA
from poet.device import Device
from poet.events import Event, Kind
from poet.graph import Graph, Op, Static, Value

GRAPH_SCHEMA = "repertory.poet.graph/1"
EVENTS_SCHEMA = "repertory.poet.events/1"

Loaded = TypeVar("Loaded")
_TIERLESS = (Kind.COMPUTE, Kind.FREE)


class FormatError(ValueError):
    """A file or JSON content that is not ours, is damaged, is from a newer version, or belongs to another graph."""


def graph_to_json(graph: Graph) -> dict[str, Any]:
    """A graph as JSON holds it."""
    return {
        "schema": GRAPH_SCHEMA,
        "name": graph.name,
        "fingerprint": graph.fingerprint,
        "static": asdict(graph.static),
        "notes": list(graph.notes),
        "values": [asdict(value) for value in graph.values],
        "ops": [asdict(op) for op in graph.ops],
    }


def graph_from_json(content: Any) -> Graph:
    """The graph that `graph_to_json` gave.

    Args:
        content: What `json.load` gave.

    Raises:
        FormatError: If it is not a graph of this schema, was damaged, or is not the graph that was saved.
    """
    _check_schema(content, GRAPH_SCHEMA)
    try:
        graph = Graph(
            _text(content["name"]),
            tuple(_op(entry) for entry in content["ops"]),
            tuple(_value(entry) for entry in content["values"]),
            _static(content["static"]),
            tuple(_text(note) for note in content["notes"]),
        )
    except KeyError as error:
        raise FormatError(f"a graph lacks the entry {error}; save it again") from None
    except (AttributeError, TypeError, ValueError) as error:
        raise FormatError(f"not a graph: {error}; save it again") from None
    if graph.fingerprint != content.get("fingerprint"):
        raise FormatError("the graph's content does not match its fingerprint: it was changed by hand; save it again")
    return graph


def save_graph(graph: Graph, path: str | os.PathLike[str]) -> None:
    """Write a graph; a reader sees the old file or the new one, never a part.

    Args:
        graph: The training step.
        path: Target file, usually ending in .json; its folder is made when missing.

    Raises:
        OSError: If the file cannot be written.

    Example:
        >>> import tempfile
        >>> from poet.graph import chain
        >>> graph = chain("three", [4, 4, 4])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_graph(graph, folder + "/graph.json")
        ...     load_graph(folder + "/graph.json") == graph
        True
    """
    write_json_atomic(path, graph_to_json(graph))


def load_graph(path: str | os.PathLike[str]) -> Graph:
    """Read a graph that `save_graph` wrote.

    Args:
        path: The file.

    Raises:
        FormatError: If the file is missing, foreign, damaged or newer; the message names it and says what to do.
    """
    return load_json(path, GRAPH_SCHEMA, graph_from_json, "poet.io.save_graph")


def save_device(device: Device, path: str | os.PathLike[str]) -> None:
    """Write a device's profile; a reader sees the old file or the new one, never a part.

    Args:
        device: The machine.
        path: Target file, ending in .json for `Device.load`; its folder is made when missing.

    Raises:
        OSError: If the file cannot be written.
    """
    write_json_atomic(path, device.to_json())


def load_device(path: str | os.PathLike[str]) -> Device:
    """Read a profile that `save_device` wrote.

    Args:
        path: The file.

    Raises:
        FormatError: If the file is missing, foreign, damaged or newer; the message names it and says what to do.
    """
    return load_json(path, DEVICE_SCHEMA, Device.from_json, "poet.io.save_device")


def events_to_json(events: Sequence[Event], graph: Graph, tiers: Sequence[str]) -> dict[str, Any]:
    """The events of a schedule as JSON holds them.

    Args:
        events: The schedule.
        graph: The graph that it was made for; its fingerprint is stored.
        tiers: Names of the problem's tiers, in their order.

    Returns:
        `{"schema", "graph", "tiers", "events"}`; an event is `[kind, target]` or `[kind, target, tier]`.

    Raises:
        ValueError: If an event names a tier beyond those.

    Example:
        >>> from poet.events import compute, page_out
        >>> from poet.graph import chain
        >>> events_to_json([compute(0), page_out(0)], chain("one", [4]), ["flash"])["events"]
        [['compute', 0], ['page_out', 0, 0]]
    """
    for event in events:
        if event.kind not in _TIERLESS and not 0 <= event.tier < len(tiers):
            raise ValueError(f"an event names tier {event.tier}, but {len(tiers)} tiers are given: {', '.join(tiers)}")
    rows = [[str(e.kind), e.target] + ([] if e.kind in _TIERLESS else [e.tier]) for e in events]
    return {"schema": EVENTS_SCHEMA, "graph": graph.fingerprint, "tiers": list(tiers), "events": rows}


def events_from_json(content: Any, graph: Graph, tiers: Sequence[str]) -> tuple[Event, ...]:
    """The events that `events_to_json` gave, for the tiers of the problem at hand.

    Args:
        content: What `json.load` gave.
        graph: The graph that the schedule is to be used with.
        tiers: Names of the problem's tiers, in their order, which may differ from the saved one's.

    Raises:
        FormatError: If it is not a schedule of this schema, was damaged, was made for another graph, or uses a tier
            that the problem does not have.
    """
    _check_schema(content, EVENTS_SCHEMA)
    if content.get("graph") != graph.fingerprint:
        raise FormatError(
            f"the schedule was made for the graph {content.get('graph')!r}, not for {graph.name!r} "
            f"({graph.fingerprint!r}): load that graph, or solve again"
        )
    try:
        names = [_text(name) for name in content["tiers"]]
        return tuple(_event(row, graph, names, tiers) for row in content["events"])
    except KeyError as error:
        raise FormatError(f"a schedule lacks the entry {error}; save it again") from None
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise FormatError(f"not a schedule: {error}") from None


def _event(row: Any, graph: Graph, saved: list[str], tiers: Sequence[str]) -> Event:
    kind = Kind(row[0])
    target = _whole(row[1])
    count = len(graph.ops if kind is Kind.COMPUTE else graph.values)
    if not 0 <= target < count or len(row) != (2 if kind in _TIERLESS else 3):
        raise ValueError(f"event {row!r} does not fit the graph; save the schedule again")
    if kind in _TIERLESS:
        return Event(kind, target)
    at = _whole(row[2])
    if not 0 <= at < len(saved):
        raise ValueError(f"event {row!r} names a tier beyond {saved}; save the schedule again")
    if saved[at] not in tiers:
        has = ", ".join(tiers) or "none"
        raise ValueError(f"it uses the tier {saved[at]!r}, which the problem lacks; it has {has}: solve again")
    return Event(kind, target, list(tiers).index(saved[at]))


def load_json(path: str | os.PathLike[str], schema: str, parse: Callable[[Any], Loaded], writer: str) -> Loaded:
    """Read a file of one schema; `writer` names what writes such files.

    Raises:
        FormatError: If the file is not there, not of this schema, or `parse` refuses it.
    """
    try:
        content = read_json(path, schema)
    except RecordError as error:
        raise FormatError(f"{error}: give a file that {writer} wrote") from None
    except RecursionError:
        raise FormatError(f"{path}: not readable as JSON: give a file that {writer} wrote") from None
    try:
        return parse(content)
    except ValueError as error:
        raise FormatError(f"{path}: {error}") from None


def _check_schema(content: Any, schema: str) -> None:
    found = content.get("schema") if isinstance(content, Mapping) else type(content).__name__
    if found != schema:
        raise FormatError(f"content of the schema {schema!r} was expected, got {found!r}")


def _op(entry: Any) -> Op:
    entry = _entries(entry, Op)
    return Op(
        _text(entry["name"]),
        tuple(_whole(v) for v in entry["inputs"]),
        tuple(_whole(v) for v in entry["outputs"]),
        _number(entry["flops"]),
        None if entry["seconds"] is None else _number(entry["seconds"]),
        _whole(entry["workspace"]),
        entry["phase"],
        _truth(entry["recomputable"]),
        _text(entry["kind"]),
    )


def _value(entry: Any) -> Value:
    entry = _entries(entry, Value)
    flags = _truth(entry["keep"]), _truth(entry["compressible"])
    return Value(_text(entry["name"]), _whole(entry["size"]), *flags)


def _static(entry: Any) -> Static:
    return Static(**{name: _whole(size) for name, size in _entries(entry, Static).items()})


def _entries(entry: Any, of: type[Op] | type[Value] | type[Static]) -> Mapping[str, Any]:
    if not isinstance(entry, Mapping):
        raise TypeError(f"entries of {of.__name__.lower()} were expected, got {entry!r}")
    unknown = sorted(set(entry) - {f.name for f in fields(of)})
    if unknown:
        raise ValueError(f"unknown entries: {', '.join(unknown)}")
    return entry


def _whole(number: Any) -> int:
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"an integer was expected, got {number!r}")
    return number


def _number(number: Any) -> float:
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise TypeError(f"a number was expected, got {number!r}")
    return number


def _truth(answer: Any) -> bool:
    if not isinstance(answer, bool):
        raise TypeError(f"true or false was expected, got {answer!r}")
    return answer


def _text(text: Any) -> str:
    if not isinstance(text, str):
        raise TypeError(f"text was expected, got {text!r}")
    return text

"""Transfers from a file: a YAML or JSON text that names the network, the tensors and their layouts.

topology: {hosts: 4, devices: 2, nic: 10Gbit}      # or the name of a file, or hosts one by one
defaults: {dtype: bfloat16, source: {mesh: [4], spec: [0]}}
tensors:
  embedding:
    shape: [1024, 256]
    target: {mesh: [2, 2], first: 4, axes: [replica, tensor], spec: [tensor]}
  layers.{0..79}.wq:                               # eighty tensors
    shape: [256, 256]
    target: {devices: [[4, 5], [6, 7]], spec: RS1}
  bias:
    shape: [10]
    source: {boxes: {0: [[0, 10]]}}
    target: {boxes: {4: [[0, 5]], 5: [[5, 10]]}}
    count: 3                                       # bias.0, bias.1, bias.2
"""

import itertools
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from xmesh_reshard.cases import Case
from xmesh_reshard.layout import Layout, LayoutError, Mesh
from xmesh_reshard.plans import Transfer
from xmesh_reshard.topology import Topology, TopologyError

_MOST = 1_000_000  # tensors of one file


class SpecError(ValueError):
    """A file of transfers that does not make sense; the message says where in the file."""


def load_transfers(path: str | os.PathLike[str]) -> Case:
    """Read tensors, layouts and network from a file.

    Args:
        path: A YAML or JSON file, see the module's text.

    Returns:
        The transfers by name, and the network.

    Raises:
        SpecError: The file is missing or does not make sense; names the place in it.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SpecError(f"{file}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{file}: not readable as text ({error})") from None
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SpecError(f"{file}: not readable as YAML or JSON: {error}") from None
    try:
        return parse_transfers(data, file.parent, file.stem)
    except SpecError as error:
        raise SpecError(f"{file}: {error}") from None


def parse_transfers(data: Any, folder: str | os.PathLike[str] = ".", name: str = "transfers") -> Case:
    """Tensors, layouts and network from plain values.

    Args:
        data: A mapping with ``topology``, ``tensors`` and perhaps ``defaults``.
        folder: Where a topology's file is looked for.
        name: What to call it all.

    Raises:
        SpecError: It does not make sense; names the place.

    Example:
        >>> target = {"mesh": [1], "first": 2, "spec": "R"}
        >>> two = {"w{0..1}": {"shape": [4], "source": {"mesh": [2], "spec": "S0"}, "target": target}}
        >>> made = parse_transfers({"topology": {"hosts": 3, "devices": 1, "nic": "1GB"}, "tensors": two})
        >>> list(made.transfers), made.transfers["w1"].source
        (['w0', 'w1'], Layout(float32[4] on 2 devices in 2 different parts))
    """
    top = _mapping(data, "the file")
    _known(top, {"topology", "defaults", "tensors"}, "the file")
    topology = _topology(top, Path(folder))
    defaults = _mapping(top.get("defaults", {}), "defaults")
    _known(defaults, {"shape", "dtype", "source", "target"}, "defaults")
    transfers: dict[str, Transfer] = {}
    for pattern, raw in _mapping(top.get("tensors"), "tensors").items():
        where = f"tensors.{pattern}"
        entry = _merged(defaults, _mapping(raw, where), where)
        transfer = _transfer(entry, where)
        for full in _names(str(pattern), entry.get("count"), where):
            if full in transfers:
                raise SpecError(f"{where}: the tensor {full!r} is there already")
            transfers[full] = transfer
            if len(transfers) > _MOST:
                raise SpecError(f"{where}: more than {_MOST} tensors")
    if not transfers:
        raise SpecError("tensors: name at least one")
    try:
        topology.require(
            [side for t in {id(t): t for t in transfers.values()}.values() for side in (t.source, t.target)]
        )
    except TopologyError as error:
        raise SpecError(f"topology: {error}") from None
    return Case(name, transfers, topology)


def _topology(top: Mapping[str, Any], folder: Path) -> Topology:
    given = top.get("topology")
    try:
        if isinstance(given, str):
            return Topology.load(folder / given)
        return Topology.from_dict(_mapping(given, "topology"))
    except OSError as error:
        raise SpecError(f"topology: cannot read the file {given!r} ({error.strerror})") from None
    except SpecError:
        raise
    except ValueError as error:
        raise SpecError(f"topology: {error}") from None


def _merged(defaults: Mapping[str, Any], entry: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A tensor's entry over the defaults; its layouts replace those of the defaults whole."""
    _known(entry, {"shape", "dtype", "source", "target", "count"}, where)
    return {**defaults, **entry}


def _transfer(entry: Mapping[str, Any], where: str) -> Transfer:
    for key in ("shape", "source", "target"):
        if key not in entry:
            raise SpecError(f"{where}: the key {key!r} is missing, also in defaults")
    shape = tuple(_whole(n, f"{where}.shape") for n in _sequence(entry["shape"], f"{where}.shape"))
    sides = []
    for side in ("source", "target"):
        place = f"{where}.{side}"
        try:
            sides.append(_layout(_mapping(entry[side], place), shape, str(entry.get("dtype", "float32")), place))
        except SpecError:
            raise
        except (LayoutError, TypeError, ValueError) as error:
            raise SpecError(f"{place}: {error}") from None
    return Transfer(*sides)


def _layout(entry: Mapping[str, Any], shape: tuple[int, ...], dtype: str, where: str) -> Layout:
    _known(entry, {"mesh", "devices", "first", "axes", "spec", "boxes", "dtype"}, where)
    dtype = str(entry.get("dtype", dtype))
    if "boxes" in entry:
        if extra := {*entry} - {"boxes", "dtype"}:
            raise SpecError(f"{where}: 'boxes' says all; take {sorted(extra)[0]!r} out")
        boxes = _mapping(entry["boxes"], f"{where}.boxes")
        return Layout.from_boxes(
            shape, dtype, {_whole(d, f"{where}.boxes"): _box(box, f"{where}.boxes.{d}") for d, box in boxes.items()}
        )
    if ("mesh" in entry) == ("devices" in entry):
        raise SpecError(f"{where}: give either 'mesh' (its lengths, with 'first'), 'devices' (a grid) or 'boxes'")
    axes = [str(axis) for axis in _sequence(entry.get("axes", []), f"{where}.axes")]
    if "mesh" in entry:
        lengths = [_whole(n, f"{where}.mesh") for n in _sequence(entry["mesh"], f"{where}.mesh")]
        mesh = Mesh.grid(lengths, axes, _whole(entry.get("first", 0), f"{where}.first"))
    elif "first" in entry:
        raise SpecError(f"{where}: 'first' goes with 'mesh'; 'devices' names them all")
    else:
        mesh = Mesh(np.array(entry["devices"]), tuple(axes))
    spec = entry.get("spec", [])
    return Layout.sharded(shape, dtype, mesh, spec if isinstance(spec, str) else _sequence(spec, f"{where}.spec"))


def _names(pattern: str, count: Any, where: str) -> Iterator[str]:
    """All names of a pattern: ``{first..last}`` counts, last included."""
    ranges = re.findall(r"\{(\d+)\.\.(\d+)\}", pattern)
    if count is not None:
        if ranges:
            raise SpecError(f"{where}: a name with a range and 'count' exclude each other")
        return (f"{pattern}.{k}" for k in range(_whole(count, f"{where}.count")))
    if len(ranges) != pattern.count("{") or len(ranges) != pattern.count("}"):
        raise SpecError(f"{where}: cannot read the name; a range is written as in 'layers.{{0..79}}.wq'")
    pieces = re.split(r"\{\d+\.\.\d+\}", pattern)
    numbers = (range(int(a), int(b) + 1) for a, b in ranges)
    return ("".join(map(str.__add__, pieces, [*map(str, row), ""])) for row in itertools.product(*numbers))


def _mapping(value: Any, where: str) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise SpecError(f"{where}: expected a mapping of keys to values; got {_short(value)}")
    return value


def _sequence(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise SpecError(f"{where}: expected a list; got {_short(value)}")
    return list(value)


def _box(value: Any, where: str) -> list[tuple[int, int]]:
    pairs = [_sequence(pair, where) for pair in _sequence(value, where)]
    if any(len(pair) != 2 for pair in pairs):
        raise SpecError(f"{where}: a box has a pair [first, end] for each dimension; got {_short(value)}")
    return [(_whole(a, where), _whole(b, where)) for a, b in pairs]


def _whole(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise SpecError(f"{where}: expected a whole number from 0 up; got {_short(value)}")
    return value


def _known(entry: Mapping[Any, Any], known: set[str], where: str) -> None:
    if unknown := sorted({*map(str, entry)} - known):
        raise SpecError(f"{where}: unknown key {unknown[0]!r}; known: {sorted(known)}")


def _short(value: Any) -> str:
    return "nothing" if value is None else repr(value)[:60]

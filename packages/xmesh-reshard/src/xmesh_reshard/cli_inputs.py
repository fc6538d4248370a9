"""What the command line names: files of transfers, plans, built-in cases, topologies, files to write."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import yaml

from xmesh_reshard import quantities
from xmesh_reshard.cases import Case, multi_host_case, one_to_many_case
from xmesh_reshard.io import load_plan
from xmesh_reshard.models import llama_refit
from xmesh_reshard.plans import Plan
from xmesh_reshard.specs import SpecError, load_transfers, parse_transfers
from xmesh_reshard.topology import Host, Nic, Topology

BUILT_IN = "case:1 to case:9, multicast:AxB (as multicast:4x2), llama:8b or llama:70b"


@final
@dataclass(frozen=True, eq=False)
class Job:
    """What is to be moved, and the plan for it where a file holds one.

    Attributes:
        case: The tensors and the network.
        plan: The plan, if the file was a plan.
    """

    case: Case
    plan: Plan | None = None


def find_job(name: str, topology: Path | None = None, shrink: int = 1) -> Job:
    """A file of transfers, a plan's file, or a built-in case.

    Args:
        name: What was asked for.
        topology: A file that replaces the network.
        shrink: Divides lengths of a built-in case's tensors.

    Raises:
        ValueError: There is no such case or file, or it does not make sense; says where.

    Example:
        >>> find_job("multicast:2x2").case.name
        '1 to 2 x 2'
    """
    if shrink < 1:
        raise ValueError(f"shrink is a whole number from 1 up, got {shrink}")
    network = None if topology is None else Topology.load(topology)
    case = _built_in(name, shrink)
    if case is not None:
        return Job(case if network is None else _on(case, network))
    if shrink != 1:
        raise ValueError(f"shrink is for built-in cases ({BUILT_IN}); {name!r} is a file: change its shapes")
    if not Path(name).exists() and not Path(name).suffix:
        raise ValueError(f"{name!r} is neither a file nor a built-in case; those are {BUILT_IN}")
    content = _json(Path(name))
    if isinstance(content, Mapping) and "schema" in content:
        if network is not None:
            raise ValueError(
                f"{name} is a plan, made for its own network: leave the topology out, or give the transfers"
            )
        made = load_plan(name)
        return Job(Case(Path(name).stem, made.tensors, made.topology), made)
    return Job(load_transfers(name) if network is None else _replaced(Path(name), network))


def slowed(topology: Topology, slowest: float) -> Topology:
    """The network with all rates between hosts in proportion, the slowest card at the rate given; never faster.

    Args:
        topology: The network.
        slowest: Rate of its slowest card, bytes/s.

    Returns:
        The network itself where its slowest card is no faster.

    Example:
        >>> slowed(Topology.uniform(2, 1, nic="10Gbit"), 25e6).hosts[0].up
        25000000.0
    """
    factor = slowest / min(min(nic.up, nic.down) for host in topology.hosts for nic in host.nics)
    if factor >= 1:
        return topology
    hosts = tuple(
        Host(h.name, h.devices, tuple(Nic(n.up * factor, n.down * factor) for n in h.nics), h.local, h.rack)
        for h in topology.hosts
    )
    racks = {name: rate * factor for name, rate in topology.racks.items()}
    return replace(topology, hosts=hosts, racks=racks, core=topology.core * factor)


def on_network(plan: Plan, topology: Topology) -> Plan:
    """A plan made for a network, on the same network with all rates slower in proportion.

    Args:
        plan: The plan.
        topology: The network as `slowed` gave it.
    """
    if topology is plan.topology:
        return plan
    factor = plan.topology.hosts[0].nics[0].up / topology.hosts[0].nics[0].up
    return replace(plan, topology=topology, makespan=plan.makespan * factor, lower_bound=plan.lower_bound * factor)


def numbers(text: str | None, what: str) -> float | list[float] | None:
    """One number of seconds, or several with commas.

    Args:
        text: What was given.
        what: The option, for the message.

    Raises:
        ValueError: It is something else.

    Example:
        >>> numbers("1.5", "tf"), numbers("1,2ms", "tf")
        (1.5, [1.0, 0.002])
    """
    if text is None:
        return None
    found = []
    for part in text.split(","):
        try:
            found.append(quantities.seconds(part if re.search(r"[a-zµμ]", part) else float(part)))
        except ValueError:
            raise ValueError(f"--{what} is seconds such as 1.5 or 20ms, or several as 1,2,1; got {text!r}") from None
    return found[0] if len(found) == 1 else found


def pairs(texts: tuple[str, ...], stages: int) -> list[tuple[int, int]]:
    """Skip connections as ``0-3``: pairs of stages.

    Raises:
        ValueError: A text is something else, or names a stage that is not there.
    """
    found = []
    for text in texts:
        match = re.fullmatch(r"(\d+)-(\d+)", text)
        if match is None or not int(match[1]) < int(match[2]) < stages:
            raise ValueError(f"a skip connection is two stages as 0-{stages - 1}, the first before; got {text!r}")
        found.append((int(match[1]), int(match[2])))
    return found


def _built_in(name: str, shrink: int) -> Case | None:
    if match := re.fullmatch(r"case:([1-9])", name):
        return multi_host_case(int(match[1]), shrink)
    if match := re.fullmatch(r"multicast:(\d+)x(\d+)", name):
        return one_to_many_case(int(match[1]), int(match[2]), max(4, (1 << 30) // shrink // 4 * 4))
    if name in ("llama:8b", "llama:70b"):
        if shrink != 1:
            raise ValueError("shrink is for case:N and multicast:AxB; models have the shapes they have")
        return llama_refit("8b" if name == "llama:8b" else "70b")
    if name.startswith(("case:", "multicast:", "llama:")):
        raise ValueError(f"there is no built-in case {name!r}; there are {BUILT_IN}")
    return None


def _on(case: Case, topology: Topology) -> Case:
    topology.require([side for pair in case.transfers.values() for side in (pair.source, pair.target)])
    return Case(case.name, case.transfers, topology)


def _json(file: Path) -> Any:
    if file.suffix != ".json":
        return None
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return None  # whoever reads it next says what is wrong


def _replaced(file: Path, topology: Topology) -> Case:
    """The transfers of a file over another network than its own."""
    try:
        data = yaml.safe_load(file.read_text("utf-8"))
        if not isinstance(data, Mapping):
            raise SpecError("expected a mapping of keys to values")
        return parse_transfers({**data, "topology": topology.to_dict()}, file.parent, file.stem)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return load_transfers(file)  # which says it in its words
    except SpecError as error:
        raise SpecError(f"{file}: {error}") from None

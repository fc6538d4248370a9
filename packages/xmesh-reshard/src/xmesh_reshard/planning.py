"""The planner: unit tasks, balanced senders, an order, messages and their chunks."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from xmesh_reshard import quantities
from xmesh_reshard.arranging import arrange, settle
from xmesh_reshard.chains import MIN_CHUNK
from xmesh_reshard.demands import Demands, Table, demands_of, group_transfers
from xmesh_reshard.emitting import Draft, tabulate
from xmesh_reshard.layout import Layout, LayoutError
from xmesh_reshard.plans import Plan, Transfer
from xmesh_reshard.stock import Stock
from xmesh_reshard.streams import Level, Options, each_host, schedule
from xmesh_reshard.topology import Host, Nic, Topology

_CLOSE = 0.01  # what sending to each host separately must save to be preferred: its senders wait for one another more
_FAST = 1e15  # bytes/s: stands for links without a limit
Pairs = Mapping[str, "tuple[Layout, Layout] | Transfer"]


def plan(
    transfers: Pairs,
    topology: Topology,
    *,
    cast: bool = False,
    split_senders: bool = True,
    max_message: str | int = "256MiB",
    min_chunk: str | int = MIN_CHUNK,
    target_gap: float = 0.005,
) -> Plan:
    """Plan how to move many tensors together.

    Every part crosses to a host once, and inside a host from device to device. Senders are balanced by a linear program
    over all tensors (:mod:`~xmesh_reshard.assigning`), the order comes from edge colouring and list scheduling
    (:mod:`~xmesh_reshard.ordering`), chunks from a closed form (:mod:`~xmesh_reshard.chains`). The same input, in the
    same order, gives the same plan in every process.

    Args:
        transfers: For each tensor its source and target layout.
        topology: The network; it must hold all devices.
        cast: Whether a tensor may change its type on the way.
        split_senders: Whether a part may be split over the hosts that hold it.
        max_message: Largest message, bytes: bounds the receive buffers.
        min_chunk: Smallest chunk, bytes.
        target_gap: Relative distance from the bound at which the search stops.

    Returns:
        The plan, with its makespan, lower bound and gap.

    Raises:
        LayoutError: Layouts of different shape, of different dtype without ``cast``, or parts that nobody holds.
        TopologyError: The topology lacks a device.

    Example:
        >>> from xmesh_reshard import Layout, Mesh, Topology
        >>> source = Layout.sharded((1024, 1024), "float32", Mesh.grid((2, 2)), "S0R")
        >>> target = Layout.sharded((1024, 1024), "float32", Mesh.grid((2, 2), first=4), "RS0")
        >>> made = plan({"w": (source, target)}, Topology.uniform(4, 2))
        >>> made.network_bytes, made.gap < 0.001
        (4194304, True)
    """
    pairs = {str(name): _transfer(str(name), pair, cast) for name, pair in transfers.items()}
    if len(pairs) < len(transfers):
        raise ValueError("two tensors have names that are equal as texts; give each its own")
    if not 0 <= target_gap < float("inf"):
        raise ValueError(f"target_gap is a number from 0 up; got {target_gap!r}")
    topology.require([layout for pair in pairs.values() for layout in (pair.source, pair.target)])
    options = Options(quantities.size(max_message), max(1, quantities.size(min_chunk)), split_senders, target_gap)
    if options.largest < 1:
        raise ValueError(f"max_message is at least one byte; got {max_message!r}")
    groups = group_transfers(pairs)
    demands = demands_of(groups, topology)
    network = schedule(demands.remote, demands.stock, topology, options)
    inside = [
        _inside_host(host, table, demands.stock, topology, options) for host, table in sorted(demands.local.items())
    ]
    devices = sorted(
        {d for pair in pairs.values() for side in (pair.source, pair.target) for d in side.devices.tolist()}
    )
    drafts, makespan = _in_order([network, *inside], topology, options, topology.window(devices))
    apart = each_host(demands.remote, topology)
    if len(apart) and makespan > network.bound[0] * (1 + _CLOSE):
        # Where the holders have rate to spare, sending to each host separately saves the time that chains take to fill.
        direct = schedule(apart, demands.stock, topology, options)
        if direct.bound[0] < makespan:
            other, seconds = _in_order([direct, *inside], topology, options, topology.window(devices))
            if seconds < makespan * (1 - _CLOSE):
                drafts, makespan, network = other, seconds, replace(direct, bound=network.bound)
    bound, cause = max([network.bound, *(level.bound for level in inside), _by_device(demands, topology)])
    tables = tabulate(drafts, demands.copies, demands.stock)
    notes = (f"bound by {cause}" if drafts else "nothing has to move", *network.notes, _methods(drafts))
    return Plan(groups, topology, tables, makespan, min(bound, makespan), notes)


def _transfer(name: str, pair: Any, cast: bool) -> Transfer:
    try:
        source, target = (pair.source, pair.target) if isinstance(pair, Transfer) else pair
    except (TypeError, ValueError):
        raise TypeError(
            f"tensor {name!r} needs a pair (source layout, target layout); got {type(pair).__name__}"
        ) from None
    for layout in (source, target):
        if not isinstance(layout, Layout):
            raise TypeError(f"tensor {name!r} needs two layouts; got {type(layout).__name__}: see Layout.sharded")
    if source.shape != target.shape:
        raise LayoutError(
            f"tensor {name!r} has the shape {source.shape} in the source and {target.shape} in the target"
        )
    if source.dtype != target.dtype and not cast:
        raise LayoutError(
            f"tensor {name!r} is {source.dtype} in the source and {target.dtype} in the target;"
            " pass cast=True to convert it on the way"
        )
    return Transfer(source, target)


def _in_order(levels: Sequence[Level], topology: Topology, options: Options, window: int) -> tuple[list[Draft], float]:
    """The messages between hosts (the first level) and inside them in one order, and their time."""
    # Copies: settling and timing write into the messages, and those inside hosts are part of each order tried.
    copies = (replace(message) for level in reversed(levels) for message in level.drafts)
    drafts = sorted(copies, key=lambda message: message.start)
    settle(drafts, levels[0].ports, topology, options.smallest)
    return arrange(drafts, levels[0].ports, topology, options.smallest, window)


def _inside_host(host: int, table: Table, stock: Stock, topology: Topology, options: Options) -> Level:
    """Schedule what stays inside a host, as a network in which every device is a host of its own."""
    made = topology.hosts[host]
    rate = min(made.local, _FAST)
    cards = tuple(Host(f"device {d}", (d,), (Nic(rate, rate),)) for d in made.devices)
    level = schedule(table, stock, Topology(cards, topology.local_alpha), options)
    for message in level.drafts:
        message.hops = [(a, b, -1, -1) for a, b, _, _ in message.hops]
        message.route, message.star = [], False
    seconds, cause = level.bound
    return replace(level, bound=(0.0 if rate == _FAST else seconds, f"{cause} over its link inside {made.name}"))


def _by_device(demands: Demands, topology: Topology) -> tuple[float, str]:
    """What every device must receive, or alone can send, over its card and its local link together."""
    need: dict[int, int] = {}
    give: dict[int, int] = {}
    for table in (demands.remote, *demands.local.values()):
        for routes in table.values():
            for (holders, needers), pieces in routes.items():
                nbytes = demands.stock.total(pieces)
                if len(holders) == 1:
                    give[holders[0]] = give.get(holders[0], 0) + nbytes
                for device in needers:
                    need[device] = need.get(device, 0) + nbytes
    bound, cause = 0.0, "nothing"
    for verb, load in (("receive", need), ("send", give)):
        for device, nbytes in sorted(load.items()):
            host = topology.hosts[topology.host_of[device]]
            if (least := nbytes / (host.local + (host.down if verb == "receive" else host.up))) > bound:
                bound, cause = least, f"bytes that device {device} must {verb}"
    return bound, cause


def _methods(drafts: Sequence[Draft]) -> str:
    stars = sum(message.star for message in drafts)
    several = sum(len(message.hops) > 1 for message in drafts) - stars
    single = len(drafts) - several - stars
    return f"{several} messages along chains, {stars} to each receiver separately, {single} to one receiver"

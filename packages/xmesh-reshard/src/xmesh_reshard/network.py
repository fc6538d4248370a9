"""Run a plan through a simulated network: hosts with cards, local links, racks and a core, shared max-min fairly."""

from dataclasses import dataclass, replace
from typing import final

import numpy as np
from jaxtyping import Float, Int

from xmesh_reshard.flows import Times, run_flows
from xmesh_reshard.links import Hops
from xmesh_reshard.lowering import Nodes, nodes_of
from xmesh_reshard.moves import Collective
from xmesh_reshard.plans import Plan
from xmesh_reshard.waiting import Edges, in_order, in_sequence

_MANY = 20_000  # chunks times hops from which a chain is taken as one flow
_SMALL = 1 << 16  # bytes up to which a message is one flow even if it is a single chunk


@final
@dataclass(frozen=True, eq=False)
class Simulation:
    """What happens when a plan is executed.

    Attributes:
        makespan: Seconds until the last byte has arrived.
        message_start: Start of each message, seconds.
        message_end: Arrival of its last byte at the last receiver, seconds.
        port_names: Ports with a limit that carry something: ``host0 nic0 out``, ``device 3 in``, ``rack a up``, ….
        port_rates: Their rates, bytes/s.
        port_bytes: Bytes that cross each.
        bar_port: Port of each bar of a Gantt chart: a hop of a message on a port.
        bar_message: Its message.
        bar_start: When the hop begins, seconds.
        bar_end: When it ends, seconds.
        flows: Number of flows simulated.
        events: Number of events.
    """

    makespan: float
    message_start: Float[np.ndarray, "m"]
    message_end: Float[np.ndarray, "m"]
    port_names: tuple[str, ...]
    port_rates: Float[np.ndarray, "r"]
    port_bytes: Int[np.ndarray, "r"]
    bar_port: Int[np.ndarray, "b"]
    bar_message: Int[np.ndarray, "b"]
    bar_start: Float[np.ndarray, "b"]
    bar_end: Float[np.ndarray, "b"]
    flows: int
    events: int

    @property
    def utilisation(self) -> dict[str, float]:
        """Share of the makespan that each port would need at its full rate."""
        if not self.makespan:
            return dict.fromkeys(self.port_names, 0.0)
        return dict(zip(self.port_names, (self.port_bytes / self.port_rates / self.makespan).tolist(), strict=True))

    @property
    def critical(self) -> str:
        """The port that needs longest for what it carries; empty where nothing moves."""
        seconds = self.port_bytes / self.port_rates
        return self.port_names[int(seconds.argmax())] if len(seconds) else ""

    @property
    def port_bound(self) -> float:
        """Seconds that the critical port needs at its full rate."""
        return float((self.port_bytes / self.port_rates).max(initial=0.0))

    def busy(self, port: str) -> Float[np.ndarray, "n 2"]:
        """When a port is in use: starts and ends of spans, ascending and apart.

        Args:
            port: One of ``port_names``.

        Raises:
            ValueError: The port carries nothing, has no limit or does not exist.
        """
        if port not in self.port_names:
            raise ValueError(f"no port {port!r} carries anything; those that do: {list(self.port_names[:8])}")
        mine = self.bar_port == self.port_names.index(port)
        bars = sorted(zip(self.bar_start[mine].tolist(), self.bar_end[mine].tolist(), strict=True))
        spans: list[list[float]] = []
        for start, end in bars:
            if spans and start <= spans[-1][1]:
                spans[-1][1] = max(spans[-1][1], end)
            else:
                spans.append([start, end])
        return np.array(spans, float).reshape(-1, 2)

    def __repr__(self) -> str:
        return f"Simulation({self.makespan:.4g} s, {len(self.message_end)} messages, busiest {self.critical!r})"


def simulate(plan: Plan | Collective, *, detail: str = "auto", in_flight: int | str | None = "plan") -> Simulation:
    """Execute a plan as the devices would, in a network that is shared max-min fairly.

    Every device works off its steps in the plan's order with ``in_flight`` messages under way, and passes chunks on as
    they arrive; see :mod:`~xmesh_reshard.waiting` for what waits for what. Copying, packing and casting take no time.

    Args:
        plan: What to execute: a plan, or a :class:`~xmesh_reshard.moves.Collective` of a baseline.
        detail: ``chunks``: every chunk on every hop is a flow. ``messages``: a message along a chain is one flow over
            all its ports, and the time that the chain needs to fill is added; both agree up to this time. ``auto``
            takes chunks for plans that have few of them.
        in_flight: Messages under way at a device; ``plan`` for the plan's own window, 1 for transports that work in one
            strict order, None for libraries that post everything at once.

    Returns:
        Times of the messages and loads of the ports.

    Raises:
        ValueError: An argument is not allowed, or a hop names a card that its host does not have.

    Example:
        >>> from xmesh_reshard.baselines import naive_broadcast
        >>> from xmesh_reshard.cases import multi_host_case
        >>> case = multi_host_case(3, scale=8)
        >>> run = simulate(naive_broadcast(case.transfers, case.topology))
        >>> run.critical, run.port_bound / case.seconds
        ('host0 nic0 out', 0.5)
    """
    if detail not in ("auto", "chunks", "messages"):
        raise ValueError(f"detail is 'auto', 'chunks' or 'messages'; got {detail!r}")
    if in_flight == "plan":
        in_flight = plan.window if isinstance(plan, Plan) else 2
    if isinstance(in_flight, str) or (in_flight is not None and in_flight < 1):
        raise ValueError(f"in_flight is a number from 1 up, None or 'plan'; got in_flight={in_flight!r}")
    if isinstance(plan, Plan):
        t = plan.tables
        hops = Hops(t.hop_ptr, t.hop_source, t.hop_target, t.hop_out, t.hop_into)
        nbytes, chunk = t.nbytes, t.chunk
    else:
        hops, nbytes, chunk = _columns(plan)
    nodes = nodes_of(hops, nbytes, chunk, plan.topology, _whole(hops, nbytes, chunk, detail))
    if isinstance(plan, Collective):
        edges = in_sequence(nodes, [move.after for move in plan.moves])
    elif in_flight is None:
        edges = Edges(nodes)
    else:
        edges = in_order(nodes, in_flight, nbytes == 0)
    times, flows = _run(nodes, edges)
    return _summary(nodes, nbytes, times, flows)


def _columns(collective: Collective) -> tuple[Hops, np.ndarray, np.ndarray]:
    moves = collective.moves
    legs = [(h.source, h.target, h.out, h.into) for move in moves for h in move.hops]
    table = np.array(legs, np.int64).reshape(-1, 4)
    ptr = np.cumsum([0, *(len(move.hops) for move in moves)]).astype(np.int64)
    hops = Hops(ptr, *(np.ascontiguousarray(column) for column in table.T))
    return hops, np.array([m.nbytes for m in moves], np.int64), np.array([m.chunk for m in moves], np.int64)


def _whole(hops: Hops, nbytes: np.ndarray, chunk: np.ndarray, detail: str) -> np.ndarray:
    """Messages to take as one flow: those of several chunks, and small ones, which hardly occupy what they cross."""
    count, legs = np.maximum(1, -(-nbytes // chunk)), np.diff(hops.ptr)
    if detail == "chunks" or (detail == "auto" and int((count * legs).sum()) <= _MANY):
        return np.zeros(len(nbytes), bool)
    return ((count > 1) | (nbytes <= _SMALL)) & (legs > 0)


def _run(nodes: Nodes, edges: Edges) -> tuple[Times, int]:
    before, after, lag = edges.columns()
    extra = edges.flows - len(nodes.flows.nbytes)
    flows = replace(
        nodes.flows,
        nbytes=np.append(nodes.flows.nbytes, np.zeros(extra)),
        route=np.append(nodes.flows.route, np.zeros(extra, np.int64)),
        latency=np.append(nodes.flows.latency, np.zeros(extra)),
        before=np.append(nodes.flows.before, before),
        after=np.append(nodes.flows.after, after),
        lag=np.append(nodes.flows.lag, lag),
    )
    return run_flows(flows), edges.flows


def _summary(nodes: Nodes, nbytes: np.ndarray, times: Times, flows: int) -> Simulation:
    message = nodes.hops.message
    # A chain taken as one flow uses a port all the time that the flow takes, shifted by the fill.
    shift = np.where(nodes.whole[message], nodes.tail, 0.0)
    start, end = times.start[nodes.first] + shift, times.end[nodes.last] + shift
    begin, arrive = np.full(len(nbytes), np.inf), np.zeros(len(nbytes))
    np.minimum.at(begin, message, start)
    np.maximum.at(arrive, message, end)
    hop, column = np.nonzero(nodes.ports >= 0)
    port = nodes.ports[hop, column]
    carried = np.zeros(len(nodes.links.rates), np.int64)
    np.add.at(carried, port, nbytes[message[hop]])
    used = np.flatnonzero((carried > 0) & np.isfinite(nodes.links.rates))
    number = np.full(len(carried), -1, np.int64)
    number[used] = np.arange(len(used))
    moved = number[port] >= 0
    hop, port = hop[moved], number[port[moved]]
    return Simulation(
        float(end.max(initial=0.0)),
        np.where(np.isfinite(begin), begin, 0.0),
        arrive,
        tuple(nodes.links.names[k] for k in used.tolist()),
        nodes.links.rates[used],
        carried[used],
        port,
        message[hop],
        start[hop],
        end[hop],
        flows,
        times.events,
    )

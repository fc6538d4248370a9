"""Which host sends what: the fractional linear program, and the bound that no plan can beat.

Every part that a host needs and does not hold must enter it once; every part must leave one of its holders at least
once, and after that hosts that have received it may pass it on. The least time T with

    Σ_h x[u, h] = receivers(u),   Σ_{h holds u} x[u, h] ≥ 1,   Σ_u size(u) x[u, h] ≤ T up(h),   in(h) ≤ T down(h)

is below the makespan of every plan whose messages go to hosts that need them (x counts how often host h sends part u; a
receiver may send at most to the others).
Racks and the core are bounded by what must cross them. The paper's bound is the case of equal hosts that do not relay.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float
from scipy.optimize import linprog
from scipy.sparse import coo_array

from xmesh_reshard.topology import Topology


@final
@dataclass(frozen=True)
class Demand:
    """Bytes that one set of hosts holds and another needs.

    Attributes:
        holders: Hosts of which any may send, ascending.
        receivers: Hosts that need all of it and hold none, ascending.
        nbytes: How much.
    """

    holders: tuple[int, ...]
    receivers: tuple[int, ...]
    nbytes: int


@final
@dataclass(frozen=True, eq=False)
class Assignment:
    """Who sends, and what bounds every plan.

    Attributes:
        shares: For each demand, the part that each of its holders sends first; sums to 1.
        relays: For each demand, how often each of its receivers passes it on; 1 where it does not matter.
        seconds: The bound, seconds.
        cause: The port that gives the bound, in words.
        load: Bytes that each host sends in the bound's solution, relays included.
    """

    shares: tuple[tuple[float, ...], ...]
    relays: tuple[tuple[float, ...], ...]
    seconds: float
    cause: str
    load: Float[np.ndarray, "hosts"]


def assign(demands: Sequence[Demand], topology: Topology, tiny: float = 1e-3) -> Assignment:
    """Balance the senders and bound the makespan.

    Args:
        demands: What must move between hosts.
        topology: The network.
        tiny: Shares below this go to the demand's other holders.

    Returns:
        Shares of the holders, and the bound.

    Reference:
        Sec. 3.2, Eq. (3), there with one whole sender a unit task.
    """
    bound, cause = _entering(demands, topology)
    load = np.zeros(len(topology.hosts))
    if all(len(d.holders) == 1 for d in demands) and not _relays(demands, topology):
        for d in demands:
            load[d.holders[0]] += d.nbytes
        shares: list[tuple[float, ...]] = [(1.0,)] * len(demands)
        relays = [(1.0,) * len(d.receivers) for d in demands]
        worst = max(range(len(load)), key=lambda h: load[h] / topology.hosts[h].up, default=0)
        leaving = float(load[worst] / topology.hosts[worst].up)
    else:
        leaving, shares, relays, load = _program(demands, topology, bound)
        worst = int(np.argmax(load / np.array([host.up for host in topology.hosts])))
        shares = [_rounded(row, tiny) for row in shares]
    if leaving > bound * (1 + 1e-9):
        bound, cause = leaving, f"bytes that must leave host {topology.hosts[worst].name}"
    return Assignment(tuple(shares), tuple(relays), bound, cause, load)


def _relays(demands: Sequence[Demand], topology: Topology) -> bool:
    """Whether passing data on can bind: a host that does also sends its own, or is slower out than in.

    Elsewhere a chain sends no more out of a host than it brings in.
    """
    senders = {h for d in demands for h in d.holders}
    relays = {h for d in demands if len(d.receivers) > 1 for h in d.receivers}
    return any(h in senders or topology.hosts[h].up < topology.hosts[h].down for h in relays)


def _entering(demands: Sequence[Demand], topology: Topology) -> tuple[float, str]:
    """The largest of what must enter hosts, and cross racks and the core, over their rates."""
    into = np.zeros(len(topology.hosts))
    racks = topology.rack_of
    crossing = {rack: [0.0, 0.0] for rack in racks}
    core = 0.0
    limited = bool(topology.racks) or np.isfinite(topology.core)
    for d in demands:
        into[list(d.receivers)] += d.nbytes
        if limited:
            held = {racks[h] for h in d.holders}
            new = sorted({racks[h] for h in d.receivers} - held)
            core += d.nbytes * len(new)
            for rack in new:
                crossing[rack][1] += d.nbytes
            if new and len(held) == 1:
                crossing[next(iter(held))][0] += d.nbytes
    found = [
        (float(into[h] / host.down), f"bytes that host {host.name} must receive")
        for h, host in enumerate(topology.hosts)
    ]
    found += [
        (max(both) / topology.uplink(rack), f"bytes that must cross the uplink of {rack}")
        for rack, both in crossing.items()
    ]
    found.append((core / topology.core, "bytes that must cross the core"))
    return max(found, key=lambda pair: pair[0])


def _program(
    demands: Sequence[Demand], topology: Topology, least: float
) -> tuple[float, list[tuple[float, ...]], list[tuple[float, ...]], np.ndarray]:
    """Solve the linear program; the variables are x and, last, T."""
    relays = _relays(demands, topology)
    own = [len(d.holders) for d in demands]
    hosts = [d.holders + (d.receivers if relays and len(d.receivers) > 1 else ()) for d in demands]
    starts = np.concatenate([[0], np.cumsum([len(h) for h in hosts])]).astype(np.int64)
    n = int(starts[-1])
    flat = np.array([h for row in hosts for h in row], np.int64)
    of = np.repeat(np.arange(len(demands)), np.diff(starts))
    scale = max(d.nbytes for d in demands)
    sizes = np.array([d.nbytes / scale for d in demands])
    up = np.array([host.up for host in topology.hosts])
    used = np.unique(flat)
    unit = max(least, scale / float(up[used].max()))
    row_of = np.full(len(up), -1)
    row_of[used] = np.arange(len(used))
    # Σ_u size x / up - T ≤ 0 for each host; and Σ over holders ≥ 1 where receivers may relay
    rows = [row_of[flat], np.arange(len(used))]
    cols = [np.arange(n), np.full(len(used), n)]
    data = [sizes[of] * (scale / (up[flat] * unit)), -np.ones(len(used))]
    relayed = [k for k in range(len(demands)) if len(hosts[k]) > own[k]]
    for place, k in enumerate(relayed):
        rows.append(np.full(own[k], len(used) + place))
        cols.append(np.arange(starts[k], starts[k] + own[k]))
        data.append(np.full(own[k], -1.0))
    shape = (len(used) + len(relayed), n + 1)
    upper = coo_array((np.concatenate(data), (np.concatenate(rows), np.concatenate(cols))), shape=shape)
    right = np.concatenate([np.zeros(len(used)), -np.ones(len(relayed))])
    total = coo_array((np.ones(n), (of, np.arange(n))), shape=(len(demands), n + 1))
    needed = np.array([len(d.receivers) if len(hosts[k]) > own[k] else 1 for k, d in enumerate(demands)], float)
    most = np.array([len(demands[k].receivers) - (i >= own[k]) for k, row in enumerate(hosts) for i in range(len(row))])
    bounds = np.column_stack([np.zeros(n + 1), np.append(most.astype(float), np.inf)])
    bounds[n, 0] = least / unit
    cost = np.zeros(n + 1)
    cost[n] = 1.0
    solved = linprog(cost, upper.tocsr(), right, total.tocsr(), needed, bounds, method="highs-ds")
    if solved.x is None:  # cannot be: every demand has a holder
        raise RuntimeError(f"the linear program of the senders was not solved: {solved.message}")
    x = solved.x
    load = np.zeros(len(up))
    np.add.at(load, flat, x[:n] * sizes[of] * scale)
    shares = [tuple(x[s : s + own[k]].tolist()) for k, s in enumerate(starts[:-1].tolist())]
    seconds = float(x[n] * unit)
    idle = load < 0.95 * seconds * up  # they may pass on what they like
    x = np.where(np.append(idle[flat], False), np.maximum(x, 1.0), x)
    passed = [
        tuple(x[s + own[k] : e].tolist()) or (1.0,) * len(demands[k].receivers)
        for k, (s, e) in enumerate(itertools.pairwise(starts.tolist()))
    ]
    return seconds, shares, passed, load


def _rounded(row: Sequence[float], tiny: float) -> tuple[float, ...]:
    """Shares that sum to one, none of them tiny."""
    whole = sum(row)
    kept = [max(0.0, value) / whole for value in row]
    kept = [value if value >= tiny else 0.0 for value in kept]
    return tuple(value / sum(kept) for value in kept)

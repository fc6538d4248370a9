"""The order of transfers: which job uses which ports when.

Ports are full duplex and work on one transfer at a time; a card that is faster than the slowest one has several lanes.
Jobs with one receiver are an open shop, solved exactly by weighted edge colouring where every lane has the same rate;
jobs with several receivers hold all their ports together and are list scheduled with restarts.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from xmesh_reshard.colouring import decompose
from xmesh_reshard.topology import Topology

_MOST_LANES = 64  # of one card; a card that is faster still has faster lanes
_MOST_SHARED = 4096  # of an uplink or the core
_MOST_COLOURED = 640  # lanes on both sides: more take too long to match
_MOST_LISTED = 6000  # jobs: beyond, the list schedule would compare too many
_CELLS = 3_000_000  # matrix cells that edge colouring may visit before list scheduling takes the rest


@final
@dataclass(frozen=True)
class Job:
    """Bytes from one host to a chain of others.

    Attributes:
        hosts: The sender's host, then the receivers' in chain order.
        nbytes: How much.
        lag: Seconds by which each hop trails the one before: one chunk's time.
    """

    hosts: tuple[int, ...]
    nbytes: int
    lag: float = 0.0


@final
@dataclass(frozen=True)
class Slot:
    """A slice of a job in the schedule.

    Attributes:
        job: Number of the job.
        nbytes: How much of it.
        start: Seconds.
        end: Seconds, at the last receiver.
        busy: Seconds that each of its ports is occupied.
        lanes: Lane of each port that the job uses, in the order of :meth:`Ports.of`.
    """

    job: int
    nbytes: float
    start: float
    end: float
    busy: float
    lanes: tuple[int, ...]


@final
class Ports:
    """All ports of a topology, with lanes of about equal rate.

    Args:
        topology: The network.
        hosts: Hosts that take part; the slowest of their cards gives the rate of a lane.
    """

    def __init__(self, topology: Topology, hosts: Sequence[int]) -> None:
        self._racks = topology.rack_of
        self._n = len(topology.hosts)
        cards = [nic for h in hosts for nic in topology.hosts[h].nics]
        base = min((min(nic.up, nic.down) for nic in cards), default=math.inf)
        self.base = base
        sides = [[(nic.up if up else nic.down) for nic in host.nics] for up in (True, False) for host in topology.hosts]
        lanes = [self._split(rates) for rates in sides]
        self._shared: dict[tuple[str, str], int] = {}
        limits = [(("out", r), topology.uplink(r)) for r in sorted({*self._racks})]
        limits += [(("in", r), topology.uplink(r)) for r in sorted({*self._racks})]
        for key, rate in [*limits, (("core", ""), topology.core)]:
            if math.isfinite(rate):
                self._shared[key] = len(lanes)
                lanes.append([(lane, -1) for lane, _ in self._split([rate], _MOST_SHARED)])
        self.card = [[card for _, card in port] for port in lanes]
        self.rate = [min(rate for rate, _ in port) for port in lanes]
        self.lanes = [len(port) for port in lanes]
        self.plain = not self._shared

    def _split(self, rates: Sequence[float], most: int = _MOST_LANES) -> list[tuple[float, int]]:
        """The lanes of several cards: rate and number of the card."""
        counts = [min(most, max(1, int(rate / self.base + 1e-9))) for rate in rates]
        return [(rate / n, card) for card, (rate, n) in enumerate(zip(rates, counts, strict=True)) for _ in range(n)]

    def of(self, hosts: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ports of a chain of hosts, and the hop each belongs to; the first two of a hop are its cards."""
        ports: list[int] = []
        hops: list[int] = []
        for hop, (a, b) in enumerate(itertools.pairwise(hosts)):
            mine = [a, self._n + b]
            ra, rb = self._racks[a], self._racks[b]
            if ra != rb:
                keys = (("out", ra), ("in", rb), ("core", ""))
                mine += [self._shared[key] for key in keys if key in self._shared]
            ports += mine
            hops += [hop] * len(mine)
        return tuple(ports), tuple(hops)


@final
class Clock:
    """When each lane of each port is free."""

    def __init__(self, ports: Ports) -> None:
        self.free = np.full((len(ports.lanes), max(ports.lanes)), np.inf)
        for port, count in enumerate(ports.lanes):
            self.free[port, :count] = 0.0
        self.first = np.zeros(len(ports.lanes))

    def book(self, ports: Sequence[int], begin: Sequence[float], end: Sequence[float]) -> tuple[int, ...]:
        """Occupy on each port the lane that has been free for the shortest time."""
        chosen = []
        for port, a, b in zip(ports, begin, end, strict=True):
            row = self.free[port]
            ready = np.where(row <= a * (1 + 1e-12) + 1e-15, row, -1.0)
            lane = int(ready.argmax()) if ready.max() >= 0 else int(row.argmin())
            row[lane] = b
            self.first[port] = row.min()
            chosen.append(lane)
        return tuple(chosen)


def order(jobs: Sequence[Job], ports: Ports, bound: float, *, target: float = 0.005, restarts: int = 24) -> list[Slot]:
    """A short schedule of all jobs.

    Args:
        jobs: What must be sent.
        ports: The ports.
        bound: Seconds that no schedule beats; the search stops at ``target`` above it.
        target: Relative gap that is good enough.
        restarts: Most random restarts of the list scheduling.

    Returns:
        Slices of the jobs by start time.

    Reference:
        Sec. 3.2: the paper orders whole unit tasks by depth-first search and by randomised greedy rounds.
    """
    if not jobs:
        return []
    lag = max(job.lag * (len(job.hosts) - 2) for job in jobs)
    good = max(bound, 1e-300) * (1 + target) + lag
    single = ports.plain and all(len(job.hosts) == 2 for job in jobs)
    if single and len(jobs) > _MOST_LISTED:
        return _in_turns(jobs, ports)
    best = list_schedule(jobs, ports, [float(job.nbytes) for job in jobs])
    if _end(best) <= good:
        return best
    if single:
        best = min(best, _coloured(jobs, ports) or best, key=_end)
    rng = np.random.default_rng(0)
    for attempt in range(restarts):
        if _end(best) <= good:
            break
        parts = (16, 32, 64, 128)[attempt % 4]
        count = sum(max(1.0, job.nbytes / (bound * ports.base / parts)) for job in jobs)
        if attempt and count * attempt > 25_000:
            break
        quantum = [min(float(job.nbytes), max(1.0, bound * ports.base / parts)) for job in jobs]
        noise = rng.uniform(0.0, 0.3, len(jobs)) if attempt >= 4 else None
        best = min(best, list_schedule(jobs, ports, quantum, noise), key=_end)
    return best


def list_schedule(
    jobs: Sequence[Job],
    ports: Ports,
    quantum: Sequence[float],
    noise: np.ndarray | None = None,
    clock: Clock | None = None,
    amounts: Sequence[float] | None = None,
) -> list[Slot]:
    """Give the ports, whenever free, to the job whose busiest port has most work left.

    Args:
        jobs: What must be sent.
        ports: The ports.
        quantum: Largest slice of each job, bytes.
        noise: Added to each job's priority, in parts of the largest.
        clock: Where the ports stand already.
        amounts: Bytes of each job that are left; all of them where not given.
    """
    clock = clock or Clock(ports)
    routes = [ports.of(job.hosts) for job in jobs]
    width = max(len(route) for route, _ in routes)
    spare = len(ports.lanes)  # an imaginary port that is always free
    table = np.full((len(jobs), width), spare)
    lags = np.zeros((len(jobs), width))
    rates = np.zeros(len(jobs))
    for j, (job, (route, hops)) in enumerate(zip(jobs, routes, strict=True)):
        table[j, : len(route)] = route
        lags[j, : len(route)] = np.array(hops) * job.lag
        rates[j] = min(ports.rate[p] / -(-route.count(p) // ports.lanes[p]) for p in route)
    left = np.array([float(job.nbytes) for job in jobs] if amounts is None else amounts, float)
    work = np.zeros(spare + 1)
    lanes = np.append(np.array(ports.lanes, float), 1.0)
    np.add.at(work, table.reshape(-1), np.repeat(left / rates, width))
    work[spare] = 0
    slots: list[Slot] = []
    eps = 1e-9 * float((work / lanes).max(initial=0.0))
    while (open_jobs := np.flatnonzero(left > 0)).size:
        first = np.append(clock.first, -np.inf)
        begin = np.maximum((first[table[open_jobs]] - lags[open_jobs]).max(axis=1), 0.0)
        now = np.flatnonzero(begin <= begin.min() + eps)
        weight = (work / lanes)[table[open_jobs[now]]]
        score = weight.max(axis=1) + 1e-3 * weight.sum(axis=1)
        if noise is not None:
            score = score * (1 + noise[open_jobs[now]])
        pick = now[int(score.argmax())]
        j, start = int(open_jobs[pick]), float(begin[pick])
        amount = float(left[j]) if left[j] <= 1.25 * quantum[j] else quantum[j]
        slots.append(_place(jobs, routes, rates, clock, j, amount, start))
        left[j] -= amount
        work[table[j]] -= amount / rates[j]
        work[spare] = 0
    return slots


def _place(
    jobs: Sequence[Job], routes: Sequence[tuple], rates: np.ndarray, clock: Clock, j: int, amount: float, start: float
) -> Slot:
    route, hops = routes[j]
    busy = amount / float(rates[j])
    begin = [start + hop * jobs[j].lag for hop in hops]
    end = [a + busy for a in begin]
    return Slot(j, amount, start, max(end), busy, clock.book(route, begin, end))


def _end(slots: Sequence[Slot]) -> float:
    return max((slot.end for slot in slots), default=0.0)


def _in_turns(jobs: Sequence[Job], ports: Ports) -> list[Slot]:
    """Every sender goes round the receivers, each beginning with another one."""
    n = 1 + max(max(job.hosts) for job in jobs)
    turn = sorted(range(len(jobs)), key=lambda k: ((jobs[k].hosts[1] - jobs[k].hosts[0]) % n, jobs[k].hosts))
    clock, slots = Clock(ports), []
    for k in turn:
        route, _ = ports.of(jobs[k].hosts)
        busy = jobs[k].nbytes / min(ports.rate[p] for p in route)
        start = max(float(clock.first[p]) for p in route)
        lanes = clock.book(route, [start] * len(route), [start + busy] * len(route))
        slots.append(Slot(k, float(jobs[k].nbytes), start, start + busy, busy, lanes))
    return sorted(slots, key=lambda slot: slot.start)


def _coloured(jobs: Sequence[Job], ports: Ports) -> list[Slot]:
    """Rounds of edge colouring on lanes, worked off in order; nothing where there are too many lanes."""
    routes = [ports.of(job.hosts) for job in jobs]
    outs, ins = (sorted({route[side] for route, _ in routes}) for side in (0, 1))
    rows, cols = ([(port, lane) for port in side for lane in range(ports.lanes[port])] for side in (outs, ins))
    if len(rows) + len(cols) > _MOST_COLOURED:
        return []
    load = np.zeros((len(rows), len(cols)))
    owner: dict[tuple[int, int], list[tuple[int, float]]] = {}
    _spread(jobs, routes, ports, rows, cols, load, owner)
    rounds = decompose(load, max_rounds=max(16, _CELLS // (len(rows) + len(cols)) ** 2))
    rates = [min(ports.rate[p] for p in route) for route, _ in routes]
    clock, slots = Clock(ports), []
    for length, pairs in rounds:
        for i, k in pairs:
            budget = length
            shares = owner.get((i, k), [])
            while budget > 0 and shares:
                j, whole = shares.pop()
                seconds = min(budget, whole)
                if whole - seconds > 1e-9 * whole:
                    shares.append((j, whole - seconds))
                else:
                    seconds = whole
                budget -= seconds
                start = max(float(clock.free[rows[i]]), float(clock.free[cols[k]]))
                for where in (rows[i], cols[k]):
                    clock.free[where] = start + seconds
                slots.append(Slot(j, seconds * rates[j], start, start + seconds, seconds, (rows[i][1], cols[k][1])))
    clock.first = clock.free.min(axis=1)
    rest = np.zeros(len(jobs))
    for shares in owner.values():
        for j, seconds in shares:
            rest[j] += seconds * rates[j]
    if rest.any():
        slots += list_schedule(jobs, ports, [float(job.nbytes) for job in jobs], None, clock, rest.tolist())
    return sorted(slots, key=lambda slot: slot.start)


def _spread(
    jobs: Sequence[Job],
    routes: Sequence[tuple],
    ports: Ports,
    rows: Sequence[tuple[int, int]],
    cols: Sequence[tuple[int, int]],
    load: np.ndarray,
    owner: dict[tuple[int, int], list[tuple[int, float]]],
) -> None:
    """Cut the jobs of every port into equal shares of its lanes."""
    seconds = [job.nbytes / min(ports.rate[p] for p in route) for job, (route, _) in zip(jobs, routes, strict=True)]
    filled: dict[int, float] = {}
    whole: dict[int, float] = {}
    for (route, _), t in zip(routes, seconds, strict=True):
        for port in route[:2]:
            whole[port] = whole.get(port, 0.0) + t
    row_at = {pair: i for i, pair in enumerate(rows)}
    col_at = {pair: i for i, pair in enumerate(cols)}

    def edges(port: int, a: float, b: float) -> list[float]:
        count = ports.lanes[port]
        return [whole[port] * k / count for k in range(1, count) if a < whole[port] * k / count < b]

    def lane(port: int, middle: float) -> int:
        return min(ports.lanes[port] - 1, int(middle / whole[port] * ports.lanes[port]))

    for j, ((route, _), t) in enumerate(zip(routes, seconds, strict=True)):
        out, into = route[:2]
        a, b = filled.get(out, 0.0), filled.get(into, 0.0)
        marks = sorted({0.0, t, *(e - a for e in edges(out, a, a + t)), *(e - b for e in edges(into, b, b + t))})
        for low, high in itertools.pairwise(marks):
            middle = (low + high) / 2
            key = (row_at[out, lane(out, a + middle)], col_at[into, lane(into, b + middle)])
            load[key] += high - low
            owner.setdefault(key, []).append((j, high - low))
        filled[out], filled[into] = a + t, b + t

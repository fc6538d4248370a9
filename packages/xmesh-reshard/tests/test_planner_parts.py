"""The parts of the planner against closed forms and brute force."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from xmesh_reshard import Host, Layout, LayoutError, Mesh, Nic, Topology
from xmesh_reshard.assigning import Demand, assign
from xmesh_reshard.chains import best_chunks, chain_seconds
from xmesh_reshard.colouring import decompose
from xmesh_reshard.ordering import Job, Ports, list_schedule, order
from xmesh_reshard.portions import Portion, cut
from xmesh_reshard.units import units_of


@pytest.mark.property
@pytest.mark.parametrize("seed", range(25))
def test_units_are_the_owner_sets_of_every_element(seed: int, random_layout) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(1, 9, int(rng.integers(0, 4))))
    source, target = (random_layout(rng, shape, np.arange(8)) for _ in range(2))
    units = units_of(source, target)
    seen = np.zeros(shape, int)
    for low, high, held, needed in zip(units.lower, units.upper, units.holders, units.needers, strict=True):
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        seen[box] += 1
        for index in itertools.product(*(range(a, b) for a, b in zip(low, high, strict=True))):
            assert units.sets[held] == _owners(source, index)
            assert units.sets[needed] == _owners(target, index)
    wanted = np.zeros(shape, int)
    for device in target.devices.tolist():
        wanted[target.slices(device)] = 1
    assert np.array_equal(seen, wanted)


def _owners(layout: Layout, index: tuple[int, ...]) -> tuple[int, ...]:
    inside = [
        device
        for device in layout.devices.tolist()
        if all(s.start <= i < s.stop for s, i in zip(layout.slices(device), index, strict=True))
    ]
    return tuple(inside)


def test_a_hole_in_the_source_is_named() -> None:
    source = Layout.from_boxes((6,), "int8", {0: [(0, 2)], 1: [(3, 6)]})
    with pytest.raises(LayoutError, match="lacks a part"):
        units_of(source, Layout.sharded((6,), "int8", Mesh.grid((2,), first=2), (0,)))
    overlapping = Layout.from_boxes((6,), "int8", {0: [(0, 2)], 1: [(1, 2)]})
    with pytest.raises(LayoutError, match="lacks a part"):
        units_of(overlapping, Layout.sharded((6,), "int8", Mesh.grid((2,), first=2), (0,)))


# Fractional splitting: replicated on s hosts, sharded over r: T max(1/s, 1/r); whole senders leave ⌈r/s⌉/r.
@pytest.mark.parametrize(("senders", "receivers"), [(2, 3), (3, 4), (2, 2), (4, 3), (3, 2)])
def test_fractional_senders(senders: int, receivers: int) -> None:
    size = 12_000_000
    wanted = [Demand(tuple(range(senders)), (senders + r,), size // receivers) for r in range(receivers)]
    found = assign(wanted, Topology.uniform(senders + receivers, 1, nic=1e6))
    assert found.seconds == pytest.approx(12 * max(1 / senders, 1 / receivers), rel=1e-9)
    load = np.zeros(senders)
    for demand, row in zip(wanted, found.shares, strict=True):
        load += np.array(row) * demand.nbytes
    assert load.max() <= size * max(1 / senders, 1 / receivers) * (1 + 1e-6)


@pytest.mark.property
@pytest.mark.parametrize("seed", range(20))
def test_bound_is_the_linear_program_of_one_sender_each(seed: int) -> None:
    rng = np.random.default_rng(seed)
    hosts, n = 4, int(rng.integers(1, 6))
    wanted = []
    for _ in range(n):
        holders = tuple(sorted(rng.choice(2, int(rng.integers(1, 3)), replace=False).tolist()))
        wanted.append(Demand(holders, (2 + int(rng.integers(0, 2)),), int(rng.integers(1, 100))))
    # dual of min max: the largest over mixtures y of ports of Σ_u size(u) min over holders y
    found = assign(wanted, Topology.uniform(hosts, 1, nic=1.0))
    rows = [[*(-1.0 if i == k else 0.0 for i in range(n)), *(0.0,) * hosts] for k in range(n)]
    cost = [-float(d.nbytes) for d in wanted] + [0.0] * hosts
    upper, right = [], []
    for k, d in enumerate(wanted):
        for h in d.holders:
            row = [0.0] * (n + hosts)
            row[k], row[n + h] = 1.0, -1.0
            upper.append(row)
            right.append(0.0)
    dual = linprog(cost, upper, right, [[0.0] * n + [1.0] * hosts], [1.0], bounds=[(0, None)] * (n + hosts))
    into = max(sum(d.nbytes for d in wanted if d.receivers == (r,)) for r in (2, 3))
    assert found.seconds == pytest.approx(max(-dual.fun, into), rel=1e-9)
    assert len(rows) == n


def test_relays_count_in_the_bound() -> None:
    # 0 holds a, 1 holds b, both need both, and so does 2: six receptions, none of them free for 0 and 1
    wanted = [Demand((0,), (1, 2), 10), Demand((1,), (0, 2), 10)]
    found = assign(wanted, Topology.uniform(3, 1, nic=1.0))
    assert found.seconds == pytest.approx(20)  # host 2 receives both
    both = [Demand((0,), (1,), 30), Demand((0,), (1, 2), 10), Demand((1,), (0, 2), 10)]
    assert assign(both, Topology.uniform(3, 1, nic=1.0)).seconds == pytest.approx(40)


@given(
    n=st.integers(1, 6),
    hops=st.integers(1, 9),
    alpha=st.sampled_from([0.0, 1e-5, 1e-3]),
    slow=st.sampled_from([1.0, 0.25]),
    local=st.integers(0, 3),
)
@settings(deadline=None, max_examples=80)
@pytest.mark.property
def test_best_chunks_by_trying_all(n: int, hops: int, alpha: float, slow: float, local: int) -> None:
    nbytes = 2.0**n * 1000
    alphas, rates = [alpha] * hops + [alpha / 3] * local, [1e6] * hops + [1e6 * slow] * local
    most = max(1, int(nbytes // 100))
    best = min(chain_seconds(nbytes, k, alphas, rates) for k in range(1, most + 1))
    chosen = best_chunks(nbytes, alphas, rates, 100)
    assert chain_seconds(nbytes, chosen, alphas, rates) == pytest.approx(best, rel=1e-12)


def test_chunks_of_equal_hops_follow_the_square_root() -> None:
    nbytes, alpha, rate, receivers = 2.0**30, 1e-5, 1e9, 8
    found = best_chunks(nbytes, [alpha] * receivers, [rate] * receivers, 1)
    assert found == pytest.approx(math.sqrt((receivers - 1) * nbytes / (alpha * rate)), abs=1)
    t = nbytes / rate
    assert chain_seconds(nbytes, 32, [0.0] * 3, [rate] * 3) == pytest.approx(t * (1 + 2 / 32))


@given(rows=st.integers(1, 5), cols=st.integers(1, 5), data=st.data())
@settings(deadline=None, max_examples=60)
@pytest.mark.property
def test_colouring_ends_with_the_busiest_port(rows: int, cols: int, data) -> None:
    entries = data.draw(st.lists(st.integers(0, 20), min_size=rows * cols, max_size=rows * cols))
    load = np.array(entries, float).reshape(rows, cols)
    done, total = np.zeros_like(load), 0.0
    for length, pairs in decompose(load):
        assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs)
        for i, j in pairs:
            done[i, j] += length
        total += length
    assert (done >= load - 1e-9).all()
    assert total <= max(load.sum(1).max(), load.sum(0).max()) + 1e-9


@pytest.mark.property
@pytest.mark.parametrize("seed", range(12))
def test_single_receiver_jobs_meet_the_bound(seed: int) -> None:
    rng = np.random.default_rng(seed)
    topology = Topology.uniform(6, 1, nic=1.0, nics=1 + seed % 2)
    jobs = [Job((int(s), int(r)), int(rng.integers(1, 1000))) for s in range(3) for r in range(3, 6)]
    up = [sum(j.nbytes for j in jobs if j.hosts[0] == s) for s in range(3)]
    down = [sum(j.nbytes for j in jobs if j.hosts[1] == r) for r in range(3, 6)]
    bound = max(up + down) / (1 + seed % 2)
    slots = order(jobs, Ports(topology, range(6)), bound, target=0.0)
    assert max(slot.end for slot in slots) == pytest.approx(bound, rel=1e-9)
    for k, job in enumerate(jobs):
        assert sum(slot.nbytes for slot in slots if slot.job == k) == pytest.approx(job.nbytes)
    _no_port_twice(slots, jobs, Ports(topology, range(6)))


def _no_port_twice(slots, jobs, ports) -> None:
    busy: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for slot in slots:
        route, hops = ports.of(jobs[slot.job].hosts)
        for port, hop, lane in zip(route, hops, slot.lanes, strict=True):
            begin = slot.start + hop * jobs[slot.job].lag
            busy.setdefault((port, lane), []).append((begin, begin + slot.busy))
    for intervals in busy.values():
        intervals.sort()
        for (_, end), (begin, _) in itertools.pairwise(intervals):
            assert begin >= end - 1e-9 * max(1.0, end)


@pytest.mark.property
@pytest.mark.parametrize("seed", range(12))
def test_list_schedules_use_no_port_twice(seed: int, random_topology) -> None:
    rng = np.random.default_rng(seed)
    topology = replace(random_topology(rng, mixed=True), racks={}, core=np.inf)
    n = len(topology.hosts)
    jobs = []
    for _ in range(8 if n > 1 else 0):
        hosts = rng.permutation(n)[: int(rng.integers(2, n + 1))].tolist()
        jobs.append(Job(tuple(hosts), int(rng.integers(1, 1000)), 1e-6))
    ports = Ports(topology, range(n))
    if jobs:
        slots = list_schedule(jobs, ports, [100.0] * len(jobs))
        for k, job in enumerate(jobs):
            assert sum(slot.nbytes for slot in slots if slot.job == k) == pytest.approx(job.nbytes)
        _no_port_twice(slots, jobs, ports)


@given(
    shape=st.lists(st.integers(1, 5), min_size=0, max_size=3),
    tensors=st.integers(1, 4),
    share=st.floats(0, 1.2),
)
@settings(deadline=None, max_examples=100)
@pytest.mark.property
def test_cut_portions_are_disjoint_and_whole(shape: list[int], tensors: int, share: float) -> None:
    whole = Portion(0, 0, tensors, (0,) * len(shape), tuple(shape), 4 * tensors * math.prod(shape))
    taken, rest = cut(whole, share * whole.nbytes)
    count = np.zeros((tensors, *shape), int)
    for part in [*taken, *rest]:
        box = (slice(part.first, part.last), *(slice(a, b) for a, b in zip(part.lower, part.upper, strict=True)))
        assert part.nbytes == 4 * count[box].size > 0
        count[box] += 1
    assert (count == 1).all()
    got = sum(part.nbytes for part in taken)
    assert min(whole.nbytes, share * whole.nbytes) - 4 < got <= min(whole.nbytes, share * whole.nbytes)


def test_lanes_follow_the_slowest_card_that_takes_part() -> None:
    topology = Topology.uniform(3, 1, nic=1e6, local=1e11)
    assert set(Ports(topology, []).lanes) == {1}
    mixed = Topology(
        (
            Host("a", (0,), (Nic(2.5e6, 2.5e6), Nic(1e6, 1e6))),
            Host("b", (1,), (Nic(1e6, 1e6),)),
        )
    )
    ports = Ports(mixed, [0, 1])
    assert (ports.lanes, ports.rate) == ([3, 1, 3, 1], [1e6] * 4)


@pytest.mark.parametrize("slow", [1e5, 10.0, 1e-3])
def test_a_slow_holder_does_not_blur_the_bound(slow: float) -> None:
    rates = (1e9, 3e9, 1e10, slow)
    hosts = tuple(Host(f"h{k}", (k,), (Nic(rate, rate),)) for k, rate in enumerate(rates))
    found = assign([Demand((0, 1, 3), (2,), 10**9)], Topology(hosts))
    assert found.seconds == pytest.approx(1e9 / (4e9 + slow), rel=1e-7)

"""The slow theory against hand calculations, and the planner's parts against the slow theory."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmesh_reshard import Host, Layout, Mesh, Nic, Topology, plan, theory, theory_optima
from xmesh_reshard.assigning import Demand, assign
from xmesh_reshard.chains import best_chunks, chain_seconds
from xmesh_reshard.theory_optima import Need, least_seconds
from xmesh_reshard.units import units_of


def ones(n):
    return dict.fromkeys(range(n), 1)


@pytest.mark.property
@pytest.mark.parametrize("seed", range(60))
def test_units_by_boxes_are_those_by_elements(seed, random_layout):
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(1, 7, int(rng.integers(0, 4))))
    source, target = (random_layout(rng, shape, np.arange(9)) for _ in range(2))
    units = units_of(source, target)
    found = {}
    for k in range(len(units.holders)):
        key = frozenset(units.sets[units.holders[k]]), frozenset(units.sets[units.needers[k]])
        box = itertools.product(*(range(a, b) for a, b in zip(units.lower[k], units.upper[k], strict=True)))
        mine = {tuple(map(int, index)) for index in box}
        assert not mine & found.setdefault(key, set())
        found[key] |= mine
    assert {key: elements for key, elements in found.items() if elements} == theory.unit_tasks(source, target)


@pytest.mark.property
@pytest.mark.parametrize("seed", range(20))
def test_what_must_enter_a_host(seed, random_layout, random_topology):
    rng = np.random.default_rng(seed)
    topology = random_topology(rng)
    devices = np.array(sorted(topology.host_of))
    source, target = (random_layout(rng, (6, 5), devices) for _ in range(2))
    matrix = plan({"w": (source, target)}, topology).bytes_matrix()
    entering = matrix.sum(axis=0) - np.diag(matrix)
    expected = theory.entering_elements(source, target, topology.host_of)
    assert {h: int(n) for h, n in enumerate(entering) if n} == {h: 4 * n for h, n in expected.items() if n}


def test_bounds_by_hand():
    # One part on one host, four receivers: each gets it once, the chain's hosts send it once each.
    assert least_seconds([Need((0,), (1, 2, 3, 4), 1)], ones(5), ones(5)) == 1
    # Replicated on two hosts, cut over three: 1/2 each, where whole parts give 2/3.
    thirds = [Need((0, 1), (r,), 1) for r in (2, 3, 4)]
    assert least_seconds(thirds, ones(5), ones(5)) == Fraction(3, 2)
    assert theory_optima.best_blocking_seconds(thirds) == 2
    # Three holders, four receivers: 1/3 of the tensor, where whole parts give 1/2.
    fourths = [Need((0, 1, 2), (r,), 1) for r in (3, 4, 5, 6)]
    assert least_seconds(fourths, ones(7), ones(7)) == Fraction(4, 3)
    assert theory_optima.best_blocking_seconds(fourths) == 2
    # Two hosts swap and a third needs both: it must receive 2; with slow cards out of host 0, 1 relays for it.
    swap = [Need((0,), (1, 2), 1), Need((1,), (0, 2), 1)]
    assert least_seconds(swap, ones(3), ones(3)) == 2
    fast = {0: 1, 1: 4, 2: 4}
    assert least_seconds(swap, fast, fast) == 1
    # Without relays in the account the bound is lower, never higher.
    slow = {0: 1, 1: 1, 2: 1}
    wide = {0: 9, 1: 9, 2: 9}
    assert least_seconds(swap, slow, wide) == Fraction(4, 3)
    assert least_seconds(swap, slow, wide, relay=False) == 1
    assert least_seconds([], {}, {}) == 0
    with pytest.raises(ValueError, match="no holder"):
        least_seconds([Need((), (1,), 1)], ones(2), ones(2))


instances = st.tuples(
    st.lists(st.tuples(st.text("HRN", min_size=4, max_size=4), st.integers(1, 5)), min_size=1, max_size=4),
    st.lists(st.integers(1, 4), min_size=4, max_size=4),
    st.lists(st.integers(1, 4), min_size=4, max_size=4),
)


def build(instance):
    """Needs and rates: for each part who holds (H), receives (R) or has nothing to do with it (N)."""
    parts, *rates = instance
    sides = [(tuple(h for h in range(4) if who[h] == side) for side in "HR") for who, _ in parts]
    needs = [Need(a, b, size) for (a, b), (_, size) in zip(sides, parts, strict=True) if a and b]
    return needs, *(dict(enumerate(row)) for row in rates)


@pytest.mark.property
@given(instances)
@settings(deadline=None, max_examples=80)
def test_the_planners_bound_is_the_exact_one(instance):
    needs, up, down = build(instance)
    if needs:
        topology = Topology(tuple(Host(f"h{h}", (h,), (Nic(float(up[h]), float(down[h])),)) for h in up))
        found = assign([Demand(n.holders, n.receivers, n.nbytes) for n in needs], topology)
        assert found.seconds == pytest.approx(float(least_seconds(needs, up, down)), rel=1e-7)
        assert least_seconds(needs, up, down, relay=False) <= least_seconds(needs, up, down)


@pytest.mark.property
@given(instances)
@settings(deadline=None, max_examples=60)
def test_no_whole_schedule_beats_the_bound(instance):
    needs, _, _ = build(instance)
    hosts = ones(4)
    assert theory_optima.best_blocking_seconds(needs) >= least_seconds(needs, hosts, hosts, relay=False)


def test_the_best_blocking_order_by_hand():
    # The grid of case 3: diagonal first, so that no receiver waits.
    grid = [Need((s,), (r,), 1) for r in (2, 3) for s in (0, 1)]
    assert theory_optima.best_blocking_seconds(grid) == 2
    assert theory_optima.best_blocking_seconds(grid, rate=4) == Fraction(1, 2)
    assert theory_optima.best_blocking_seconds([]) == 0


@pytest.mark.property
@given(
    st.integers(1, 3).flatmap(
        lambda n: st.lists(st.lists(st.integers(0, 6), min_size=n, max_size=n), min_size=1, max_size=3)
    )
)
@settings(deadline=None, max_examples=60)
def test_the_open_shop_reaches_its_bound(load):
    schedule = theory_optima.open_shop_schedule(load)
    assert sum(length for length, _ in schedule) == theory_optima.open_shop_seconds(load)
    done = np.zeros((len(load), len(load[0])), int)
    for length, pairs in schedule:
        senders, receivers = zip(*pairs, strict=True) if pairs else ((), ())
        assert len({*senders}) == len(senders)
        assert len({*receivers}) == len(receivers)
        for i, j in pairs:
            done[i, j] += length
    assert done.tolist() == [list(row) for row in load]


@pytest.mark.property
@given(st.lists(st.lists(st.integers(0, 5), min_size=3, max_size=3), min_size=2, max_size=3))
@settings(deadline=None, max_examples=25)
def test_single_receivers_are_planned_at_the_open_shops_optimum(load):
    # Host i sends load[i][j] MB to host j: the planner's order ends with the busiest port.
    m, n = len(load), len(load[0])
    transfers = {}
    for i, j in itertools.product(range(m), range(n)):
        if load[i][j]:
            size = load[i][j] * 10**6
            one = [Layout.sharded((size,), "uint8", Mesh.grid((1,), first=d), "R") for d in (i, m + j)]
            transfers[f"{i}-{j}"] = tuple(one)
    made = plan(transfers, Topology.uniform(m + n, 1, nic=1e6), min_chunk=1000)
    assert made.makespan == pytest.approx(theory_optima.open_shop_seconds(load), rel=0.006)


@pytest.mark.property
@given(st.integers(1, 9), st.integers(1, 60), st.floats(1e-3, 10), st.floats(1e-4, 1))
@settings(deadline=None)
def test_the_chains_closed_form(hops, chunks, nbytes, alpha):
    expected = theory.chain_seconds(hops, chunks, nbytes, alpha, 2.0)
    assert theory.chain_seconds_by_steps(hops, chunks, nbytes, alpha, 2.0) == pytest.approx(expected)
    assert chain_seconds(nbytes, chunks, [alpha] * hops, [2.0] * hops) == pytest.approx(expected)


@pytest.mark.property
@given(st.integers(2, 9), st.floats(1.0, 500), st.floats(0.05, 1), st.sampled_from([0.5, 1.0, 20.0]))
@settings(deadline=None, max_examples=40)
def test_the_best_number_of_chunks(hops, nbytes, alpha, rate):
    best = theory.best_chunk_count(hops, nbytes, alpha, rate, most=500)
    optimum = theory.chunk_optimum(hops, nbytes, alpha, rate)
    assert best in {min(500, max(1, int(np.floor(optimum)))), min(500, int(np.ceil(optimum)))}
    least = (np.sqrt((hops - 1) * alpha) + np.sqrt(nbytes / rate)) ** 2  # at K*, whole or not
    assert theory.chain_seconds(hops, best, nbytes, alpha, rate) >= least * (1 - 1e-12)
    chosen = best_chunks(nbytes, [alpha] * hops, [rate] * hops, min_chunk=1)
    expected = theory.best_chunk_count(hops, nbytes, alpha, rate, most=max(1, int(nbytes)))
    time = theory.chain_seconds
    assert time(hops, chosen, nbytes, alpha, rate) == pytest.approx(time(hops, expected, nbytes, alpha, rate))


def test_methods_by_hand():
    assert theory.send_recv_seconds(3, 2, 0.5) == 3
    assert theory.local_allgather_seconds(3, 0.5) == 1.5
    assert theory.global_allgather_seconds(1, 4, 2) == 2
    assert theory.global_allgather_seconds(2, 2, 1) == 1.75
    assert [theory.tree_seconds(r, 1) for r in (1, 2, 3, 4, 7, 8)] == [1, 2, 2, 3, 3, 4]
    assert theory.chain_seconds(3, 32, 1, 0, 1) == 1 + 2 / 32

"""Fair rates and fluid flows against hand calculations and exact arithmetic."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmesh_reshard.fairness import fair_rates
from xmesh_reshard.flows import Flows, run_flows

NO_EDGES = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))


def rates(capacity, routes, weights=None, count=None):
    ptr = np.cumsum([0, *map(len, routes)])
    resource = np.array([r for route in routes for r in route], np.int64)
    weight = np.ones(len(resource)) if weights is None else np.array([w for row in weights for w in row], float)
    return fair_rates(np.array(capacity, float), ptr, resource, weight, np.array(count or [1] * len(routes)))


def flows(capacity, routes, nbytes, edges=(), latency=None):
    before, after, lag = (np.array(column) for column in zip(*edges, strict=True)) if edges else NO_EDGES
    return Flows(
        np.array(capacity, float),
        np.cumsum([0, *map(len, routes)]),
        np.array([r for route in routes for r in route], np.int64),
        np.ones(sum(map(len, routes))),
        np.array(nbytes, float),
        np.arange(len(routes)),
        np.zeros(len(routes)) if latency is None else np.array(latency, float),
        before.astype(np.int64),
        after.astype(np.int64),
        lag.astype(float),
    )


def exact_rates(capacity, routes):
    """Progressive filling one resource at a time, in fractions."""
    left = [Fraction(c) for c in capacity]
    found = [None] * len(routes)
    while any(rate is None for rate in found):
        users = {r: [f for f, route in enumerate(routes) if found[f] is None and r in route] for r in range(len(left))}
        share, r = min((left[r] / len(fs), r) for r, fs in users.items() if fs)
        for f in users[r]:
            found[f] = share
            for used in routes[f]:
                left[used] -= share
    return found


networks = st.integers(1, 5).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(1, 20), min_size=n, max_size=n),
        st.lists(st.sets(st.integers(0, n - 1), min_size=1).map(sorted), min_size=1, max_size=8),
    )
)


def test_the_parking_lot():
    # One flow over three links of rate 1, and one flow on each: every link is shared by two.
    assert rates([1, 1, 1], [[0, 1, 2], [0], [1], [2]]).tolist() == [0.5] * 4
    # With the first link at 0.4 the long flow gets 0.2, and the others fill up their links.
    np.testing.assert_allclose(rates([0.4, 1, 1], [[0, 1, 2], [0], [1], [2]]), [0.2, 0.2, 0.8, 0.8])


def test_weights_and_counts():
    # A byte of the first flow crosses the link twice: rates x with 2x + x = 3.
    assert rates([3], [[0], [0]], [[2], [1]]).tolist() == [1, 1]
    # Three equal flows in a class and one beside them.
    assert rates([8], [[0], [0]], count=[3, 1]).tolist() == [2, 2]


def test_a_flow_that_nothing_limits():
    found = rates([np.inf, 1], [[0], [0, 1]])
    assert found.tolist() == [np.inf, 1]


@pytest.mark.property
@given(networks)
@settings(deadline=None)
def test_rates_are_those_of_exact_progressive_filling(network):
    capacity, routes = network
    np.testing.assert_allclose(rates(capacity, routes), [float(x) for x in exact_rates(capacity, routes)], rtol=1e-12)


@pytest.mark.property
@given(networks, st.integers(0, 4), st.integers(1, 10))
@settings(deadline=None)
def test_capacity_bottleneck_and_monotonicity(network, which, more):
    capacity, routes = network
    found = rates(capacity, routes)
    load = np.zeros(len(capacity))
    for rate, route in zip(found, routes, strict=True):
        load[route] += rate
    assert (load <= np.array(capacity) * (1 + 1e-12)).all()
    for rate, route in zip(found, routes, strict=True):  # every flow has a full resource on which none is faster
        assert any(
            load[r] >= capacity[r] * (1 - 1e-12)
            and all(found[g] <= rate * (1 + 1e-12) for g, other in enumerate(routes) if r in other)
            for r in route
        )
    # More capacity makes the sorted rates lexicographically larger, never smaller (max-min optimality).
    raised = list(capacity)
    raised[which % len(capacity)] += more
    before, after = np.sort(found), np.sort(rates(raised, routes))
    differs = np.flatnonzero(~np.isclose(before, after, rtol=1e-9))
    assert not len(differs) or after[differs[0]] > before[differs[0]]


def test_two_flows_then_one():
    done = run_flows(flows([10], [[0], [0]], [10, 30]))
    assert done.start.tolist() == [0, 0]
    assert done.end.tolist() == [2, 4]
    assert done.events == 2  # the first end and the second


def test_latency_edges_and_lag():
    # 0 takes 1 + 10/10 s; 1 begins 0.5 s after its end and takes 0.25 + 2 s; 2 begins with the end of 1.
    plan = flows([10], [[0]] * 3, [10, 20, 5], [(0, 1, 0.5), (1, 2, 0.0)], [1, 0.25, 0])
    done = run_flows(plan)
    np.testing.assert_allclose(done.start, [0, 2.5, 4.75])
    np.testing.assert_allclose(done.end, [2, 4.75, 5.25])


def test_the_latest_edge_decides():
    # 0 ends at 1 and lags by 5, 1 ends at 2: their common successor begins at 6.
    done = run_flows(flows([1, 1, 1], [[0], [1], [2]], [1, 2, 3], [(0, 2, 5.0), (1, 2, 0.0)]))
    assert done.end.tolist() == [1, 2, 9]


def test_flows_without_bytes_or_limits_take_no_time():
    plan = flows([np.inf, 1], [[0], [1], [0]], [7, 0, 9], [(0, 1, 0.0), (1, 2, 0.0)], [0, 0, 3])
    assert run_flows(plan).end.tolist() == [0, 0, 3]
    nothing = run_flows(flows([1], [], []))
    assert nothing.end.tolist() == []


def test_a_circle_is_refused():
    with pytest.raises(ValueError, match="2 flows wait for each other"):
        run_flows(flows([1], [[0]] * 3, [1, 1, 1], [(1, 2, 0.0), (2, 1, 0.0)]))


@st.composite
def programs(draw):
    capacity, routes = draw(networks)
    nbytes = draw(st.lists(st.integers(0, 30), min_size=len(routes), max_size=len(routes)))
    latency = draw(st.lists(st.sampled_from([0, 0.25, 1]), min_size=len(routes), max_size=len(routes)))
    pairs = [(a, b) for b in range(len(routes)) for a in range(b)]
    chosen = draw(st.lists(st.sampled_from(pairs), unique=True, max_size=6)) if pairs else []
    return flows(capacity, routes, nbytes, [(a, b, draw(st.sampled_from([0.0, 0.5]))) for a, b in chosen], latency)


@pytest.mark.property
@given(programs())
@settings(deadline=None)
def test_bytes_are_conserved_and_nothing_idles(plan):
    moved = np.zeros(len(plan.nbytes))
    clock = [0.0]

    def watch(begin, end, active, rate):
        assert begin == clock[0]
        clock[0] = end
        np.add.at(moved, active, rate * (end - begin))
        load = np.zeros(len(plan.capacity))
        for f, x in zip(active, rate, strict=True):
            mine = plan.resource[plan.route_ptr[f] : plan.route_ptr[f + 1]]
            load[mine] += x
        assert (load <= plan.capacity * (1 + 1e-9)).all()
        for f in active:  # work conserving: each flow under way has a full resource
            mine = plan.resource[plan.route_ptr[f] : plan.route_ptr[f + 1]]
            assert (load[mine] >= plan.capacity[mine] * (1 - 1e-9)).any()

    done = run_flows(plan, watch)
    np.testing.assert_allclose(moved, plan.nbytes, atol=1e-9)
    for a, b, lag in zip(plan.before, plan.after, plan.lag, strict=True):
        assert done.start[b] >= done.end[a] + lag - 1e-12
    assert (done.end >= done.start + plan.latency - 1e-12).all()
    assert done.end.max() == clock[0]


@pytest.mark.property
@given(programs(), st.sampled_from([2.0, 8.0]))
@settings(deadline=None)
def test_faster_network_scales_time(plan, factor):
    # With no fixed times, c times all rates is 1/c of every time (powers of two: exactly, but for the batching).
    edges = [(a, b, 0.0) for a, b in zip(plan.before, plan.after, strict=True)]
    base = flows(plan.capacity, _routes(plan), plan.nbytes, edges)
    fast = flows(plan.capacity * factor, _routes(plan), plan.nbytes, edges)
    np.testing.assert_allclose(run_flows(fast).end * factor, run_flows(base).end, rtol=1e-9)


def _routes(plan):
    return [plan.resource[a:b].tolist() for a, b in zip(plan.route_ptr[:-1], plan.route_ptr[1:], strict=True)]


def test_classes_of_equal_flows_are_flows():
    # 40 flows on 4 routes, once as classes and once with a route for each.
    rng = np.random.default_rng(3)
    kinds = [[0], [0, 1], [1, 2], [2]]
    kind, size = rng.integers(0, 4, 40), rng.integers(1, 50, 40)
    single = flows([5, 7, 3], [kinds[k] for k in kind], size)
    ptr = np.cumsum([0, *map(len, kinds)])
    resource = np.array([r for route in kinds for r in route])
    together = Flows(single.capacity, ptr, resource, np.ones(6), single.nbytes, kind, single.latency, *NO_EDGES)
    np.testing.assert_allclose(run_flows(together).end, run_flows(single).end, rtol=1e-12)

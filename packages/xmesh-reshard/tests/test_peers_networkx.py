"""networkx as oracle: maximum flows for who sends what, matchings for the order."""

import numpy as np
import pytest

from xmesh_reshard import Topology
from xmesh_reshard.assigning import Demand, assign
from xmesh_reshard.colouring import decompose

nx = pytest.importorskip("networkx")
pytestmark = pytest.mark.peer


def demands(rng, holders, receivers):
    """Parts that some hosts hold and one host each needs; sizes are multiples of the hosts' number."""
    found = []
    for _ in range(int(rng.integers(1, 12))):
        held = rng.choice(holders, int(rng.integers(1, holders + 1)), replace=False)
        needs = holders + int(rng.integers(receivers))
        found.append(Demand(tuple(sorted(held.tolist())), (needs,), int(rng.integers(1, 100))))
    return found


def fits(needs, hosts, capacity):
    """Whether all can leave and enter hosts that carry so many bytes each way: a maximum flow says."""
    graph = nx.DiGraph()
    for k, need in enumerate(needs):
        graph.add_edge("from", ("need", k), capacity=need.nbytes)
        for h in need.holders:
            graph.add_edge(("need", k), ("out", h), capacity=need.nbytes)
    for h in range(hosts):
        graph.add_edge(("out", h), "to", capacity=capacity)
    entering = [sum(need.nbytes for need in needs if need.receivers[0] == h) for h in range(hosts)]
    return (
        nx.maximum_flow_value(graph, "from", "to") == sum(need.nbytes for need in needs) and max(entering) <= capacity
    )


@pytest.mark.parametrize("seed", range(30))
def test_the_bound_is_the_least_capacity_with_a_full_flow(seed):
    rng = np.random.default_rng(seed)
    holders, receivers = int(rng.integers(1, 5)), int(rng.integers(1, 5))
    scale = int(np.lcm.reduce(np.arange(1, holders + 1)))  # least capacities are sums of sizes over up to so many hosts
    plain = demands(rng, holders, receivers)
    needs = [Demand(need.holders, need.receivers, need.nbytes * scale) for need in plain]
    hosts = holders + receivers
    low, high = 0, sum(need.nbytes for need in needs)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(needs, hosts, middle) else (middle, high)
    assert assign(needs, Topology.uniform(hosts, 1, nic=1.0)).seconds == pytest.approx(high, rel=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_rounds_are_matchings_as_long_as_the_busiest_port(seed):
    rng = np.random.default_rng(seed)
    load = rng.integers(0, 4, (int(rng.integers(1, 6)), int(rng.integers(1, 6)))).astype(float)
    graph = nx.Graph()
    graph.add_nodes_from(("out", i) for i in range(load.shape[0]))
    graph.add_nodes_from(("into", j) for j in range(load.shape[1]))
    graph.add_edges_from((("out", i), ("into", j)) for i, j in np.argwhere(load > 0).tolist())
    rounds = decompose(load)
    served = np.zeros_like(load)
    for length, pairs in rounds:
        assert nx.is_matching(graph, {(("out", i), ("into", j)) for i, j in pairs})
        for i, j in pairs:
            served[i, j] += length
    assert (served >= load - 1e-9).all()
    busiest = max([*load.sum(axis=0), *load.sum(axis=1)])
    assert sum(length for length, _ in rounds) == pytest.approx(busiest)  # Kőnig: no longer than the busiest port

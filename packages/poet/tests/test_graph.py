"""Graphs: closed forms of their memory, and what cannot be a training step."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poet.graph import Graph, GraphError, Op, Static, Value, chain


def graph_of(ops, sizes, keep=()):
    """A graph from (inputs, outputs) pairs."""
    made = tuple(Op(f"o{i}", tuple(reads), tuple(makes)) for i, (reads, makes) in enumerate(ops))
    return Graph("hand-made", made, tuple(Value(f"v{v}", size, v in keep) for v, size in enumerate(sizes)))


DIAMOND = graph_of([((), (0,)), ((0,), (1,)), ((0,), (2,)), ((1, 2), (3,))], [10, 20, 30, 5], keep=(3,))


def test_producers_users_and_working_sets_of_a_diamond():
    assert DIAMOND.producer == (0, 1, 2, 3)
    assert DIAMOND.users == ((1, 2), (3,), (3,), ())
    assert [DIAMOND.working_set(i) for i in range(4)] == [10, 30, 40, 55]
    assert DIAMOND.largest_working_set == 55
    assert DIAMOND.resident_peak == 10 + 20 + 30  # the third operation runs beside the second's output


def test_outputs_that_nobody_reads_go_at_once_unless_kept():
    ops = [((), (0, 1)), ((0,), (2,))]
    assert graph_of(ops, [1, 100, 1000]).resident_peak == 1 + 1000
    assert graph_of(ops, [1, 100, 1000], keep=(1,)).resident_peak == 1 + 100 + 1000
    assert graph_of(ops, [1, 2000, 1000]).resident_peak == 1 + 2000


def test_a_value_read_twice_by_an_operation_counts_once():
    graph = graph_of([((), (0,)), ((0, 0), (1,))], [7, 1])
    assert graph.users == ((1,), ())
    assert graph.working_set(1) == 8


def test_workspace_counts_while_its_operation_runs():
    plain = chain("three", [4, 4, 4])
    ops = (plain.ops[0], replace(plain.ops[1], workspace=100), plain.ops[2])
    graph = replace(plain, ops=ops)
    assert graph.working_set(1) == 108
    assert (plain.resident_peak, graph.resident_peak) == (8, 108)


@pytest.mark.property
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=20))
def test_a_chain_needs_two_neighbours(sizes):
    graph = chain("chain", sizes)
    expected = max([sizes[0], *(a + b for a, b in pairwise(sizes))])
    assert graph.resident_peak == graph.largest_working_set == expected
    assert graph.forward_bytes == sum(sizes)


@pytest.mark.property
@given(st.lists(st.integers(0, 50), min_size=1, max_size=10))
def test_forward_and_backward_of_a_chain(sizes):
    """Backward i reads value i and the gradient after it, so that all values are there when it starts."""
    n = len(sizes)
    forward = [((i - 1,) if i else (), (i,)) for i in range(n)]
    backward = [((n - 1 - j, n + j - 1) if j else (n - 1,), (n + j,)) for j in range(n)]
    graph = graph_of([*forward, *backward], sizes + sizes[::-1])
    peaks = [sum(sizes[: i + 1]) for i in range(n)]
    peaks += [sum(sizes[: n - j]) + (sizes[n - j] if j else 0) + sizes[n - 1 - j] for j in range(n)]
    assert graph.resident_peak == max(peaks)


def test_an_empty_graph_needs_nothing():
    graph = Graph("empty", (), ())
    assert (graph.resident_peak, graph.largest_working_set, graph.forward_bytes) == (0, 0, 0)


def test_bytes_of_the_forward_pass_include_the_loss():
    ops = tuple(
        Op(f"o{i}", (i - 1,) if i else (), (i,), phase=phase) for i, phase in enumerate(("forward", "loss", "backward"))
    )
    assert Graph("phases", ops, tuple(Value(f"v{i}", 10**i) for i in range(3))).forward_bytes == 11


def test_static_bytes():
    static = Static(1, 20, 300, 4000, 50000)
    assert static.total == 54321
    assert chain("c", [1]).with_static(static).static.total == 54321
    with pytest.raises(GraphError, match="bytes of static optimizer must not be negative, got -1"):
        chain("c", [1]).with_static(Static(optimizer=-1))


def test_fingerprints_tell_graphs_apart():
    graph = chain("one", [1, 2, 3])
    assert replace(graph, name="another", notes=("a note",)).fingerprint == graph.fingerprint
    others = [
        chain("one", [1, 2, 4]),
        chain("one", [1, 2, 3], [1.0, 1.0, 2.0]),
        graph.with_static(Static(parameters=1)),
        replace(graph, values=(*graph.values[:2], replace(graph.values[2], keep=True))),
        replace(graph, ops=(*graph.ops[:2], replace(graph.ops[2], recomputable=False))),
    ]
    assert len({graph.fingerprint, *(other.fingerprint for other in others)}) == 1 + len(others)


def test_chains_need_as_many_flops_as_sizes():
    with pytest.raises(GraphError, match="equally long, got 2 and 1"):
        chain("c", [1, 2], [1.0])


@pytest.mark.parametrize(
    ("ops", "sizes", "says"),
    [
        ([((1,), (0,)), ((), (1,))], [1, 1], "'o0' reads 'v1' before it is produced: the graph has a cycle"),
        ([((0,), (0,))], [1], "'o0' reads 'v0' before it is produced"),
        ([((), (0,)), ((), (0,))], [1], "'v0' is produced by 'o0' and by 'o1'"),
        ([((), (0, 0))], [1], "'v0' is produced by 'o0' and by 'o0'"),
        ([((), (0,))], [1, 1], "no operation produces 'v1'$"),
        ([((), (0,))], [1, 1, 1], "no operation produces 'v1' and 1 others"),
        ([((), (1,))], [1], "'o0' names value 1, but there are 1 values"),
        ([((), (0,)), ((-1,), (1,))], [1, 1], "'o1' names value -1"),
        ([((), ())], [], "'o0' produces nothing; drop it or give it an output of 0 bytes"),
        ([((), (0,))], [-3], "value 'v0' has -3 bytes; a size must not be negative"),
    ],
)
def test_refuses_what_is_no_step(ops, sizes, says):
    with pytest.raises(GraphError, match=says):
        graph_of(ops, sizes)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"flops": -1.0}, "flops of operation 'op0' must be finite and not negative, got -1.0"),
        ({"flops": float("inf")}, "flops .* got inf"),
        ({"seconds": float("nan")}, "seconds .* got nan"),
        ({"workspace": -1}, "workspace .* got -1"),
    ],
)
def test_refuses_impossible_operations(change, says):
    graph = chain("c", [1])
    with pytest.raises(GraphError, match=says):
        replace(graph, ops=(replace(graph.ops[0], **change),))


def test_names_are_unique():
    with pytest.raises(GraphError, match="two operations are called 'same'"):
        Graph("g", (Op("same", (), (0,)), Op("same", (), (1,))), (Value("a", 1), Value("b", 1)))
    with pytest.raises(GraphError, match="two values are called 'same'"):
        Graph("g", (Op("a", (), (0, 1)),), (Value("same", 1), Value("same", 1)))

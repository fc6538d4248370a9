"""Replay: memory, costs and time of schedules that are worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from poet import zoo
from poet.device import Device, Tier
from poet.events import Event, Kind, compute, computed, drop, free, page_in, page_out
from poet.graph import Graph, Op, Value
from poet.problem import Problem, formulate
from poet.replay import ReplayError, replay

FLASH = Tier("flash", 1.0, 10.0, 2.0, 5.0, power=3.0)
BUS = Tier("bus", 0.0, 10.0, 0.0, 10.0, duplex=True)
PACKED = Tier("packed", 0.0, 40.0, 0.0, 20.0, ratio=0.5, in_ram=True)
DEVICE = Device("hand-made", ram=10**6, flops_per_second=1.0, flops_per_joule=0.5, tiers=(FLASH,))
# o0 makes v0 (10 bytes, 4 s), o1 makes v1 (20, 5 s) from v0, o2 makes v2 (30, 6 s) from v0 and v1
GRAPH = Graph(
    "three",
    (Op("o0", (), (0,), 4.0), Op("o1", (0,), (1,), 5.0), Op("o2", (0, 1), (2,), 6.0, workspace=7)),
    (Value("v0", 10), Value("v1", 20), Value("v2", 30, keep=True)),
)


def problem(graph=GRAPH, tiers=(FLASH,), **options):
    return formulate(graph, DEVICE.with_tiers(*tiers), **options)


def plain(graph):
    """Every operation once, every value freed after its last use."""
    last = [max((made, *users)) for made, users in zip(graph.producer, graph.users, strict=True)]
    for i in range(len(graph.ops)):
        yield compute(i)
        yield from (free(v) for v, at in enumerate(last) if at == i and not graph.values[v].keep)


def test_the_plain_step():
    result = replay(problem(), list(plain(GRAPH)))
    np.testing.assert_array_equal(result.memory, [10, 30, 67, 60, 50])
    assert result.peak == GRAPH.resident_peak == 67
    assert (result.cost, result.compute_joules, result.paging_joules) == (30.0, 30.0, 0.0)
    assert (result.joules, result.compute_seconds, result.makespan) == (30.0, 15.0, 15.0)
    assert (result.recomputed, result.paged_out, result.paged_in) == (0, 0, 0)


def test_recomputation():
    events = [compute(0), compute(1), free(0), compute(0), compute(2)]
    result = replay(problem(), events)
    np.testing.assert_array_equal(result.memory, [10, 30, 30, 30, 67])
    assert (result.recomputed, result.compute_seconds, result.makespan) == (1, 19.0, 19.0)
    assert result.cost == result.compute_joules == 38.0
    assert computed(events) == [0, 1, 0, 2]


def test_recomputing_what_is_still_there_takes_twice_the_space():
    result = replay(problem(), [compute(0), compute(0), compute(1), compute(2)])
    np.testing.assert_array_equal(result.memory, [10, 20, 30, 67])


PAGED = [compute(0), compute(1), page_out(0), free(0), page_in(0), compute(2)]


def test_paging_beside_the_computation():
    # v0 goes out from 9 s to 9 + 2 + 10 / 5 = 13 s, comes in from 13 to 13 + 1 + 10 / 10 = 15 s, o2 ends at 21 s
    result = replay(problem(), PAGED)
    np.testing.assert_array_equal(result.memory, [10, 30, 30, 30, 30, 67])
    assert result.makespan == 21.0
    assert (result.paging_joules, result.compute_joules) == ((4 + 2) * 3.0, 30.0)
    assert result.cost == result.joules == 48.0
    assert (result.paged_out, result.paged_in, result.recomputed) == (1, 1, 0)


def test_a_transfer_hides_behind_an_operation():
    # v0 goes out from 4 to 8 s, while o1 runs from 4 to 9 s
    events = [compute(0), page_out(0), compute(1), free(0), page_in(0), compute(2)]
    result = replay(problem(), events)
    assert result.makespan == 9 + 2 + 6


def test_free_waits_for_the_transfer_that_reads():
    ops = (Op("o0", (), (0,), 1.0), Op("o1", (), (1,), 1.0))
    graph = Graph("two", ops, (Value("v0", 10), Value("v1", 10)))
    assert replay(problem(graph), [compute(0), page_out(0), free(0), compute(1)]).makespan == 1 + 4 + 1
    assert replay(problem(graph), [compute(0), page_out(0), compute(1), free(0)]).makespan == 1 + 4


@pytest.mark.parametrize(("paging", "makespan"), [("overlap", 17.0), ("serial", 21.0), ("free", 15.0)])
def test_three_ways_to_count_the_time_of_paging(paging, makespan):
    # beside: out 4-8 s within o1, in 9-11 s; serial: 15 s of computing and 6 s of transfers; free: computing alone
    events = [compute(0), page_out(0), compute(1), free(0), page_in(0), compute(2)]
    result = replay(problem(paging=paging), events)
    assert result.makespan == makespan
    assert result.paging_joules == 18.0


@pytest.mark.parametrize(("duplex", "makespan"), [(True, 5.0), (False, 6.0)])
def test_both_directions_at_once_or_in_turn(duplex, makespan):
    ops = (Op("o0", (), (0,), 1.0), Op("o1", (), (1,), 1.0))
    graph = Graph("two", ops, (Value("v0", 10), Value("v1", 20)))
    # o0 0-1, v0 out 1-2 and freed, o1 2-3, v1 out 3-5, v0 in 3-4 beside that, or 5-6 after it
    events = [compute(0), page_out(0), free(0), compute(1), page_out(1), page_in(0)]
    assert replay(problem(graph, (replace(BUS, duplex=duplex),)), events).makespan == makespan


def test_one_transfer_at_a_time_in_each_direction():
    ops = (Op("o0", (), (0,), 1.0), Op("o1", (), (1,), 1.0))
    graph = Graph("two", ops, (Value("v0", 100), Value("v1", 20)))
    # v0 goes out from 1 to 11 s, so v1, ready at 2 s, from 11 to 13 s
    result = replay(problem(graph, (BUS,)), [compute(0), page_out(0), compute(1), page_out(1)])
    assert result.makespan == 13.0


def test_tiers_have_channels_of_their_own():
    ops = (Op("o0", (), (0,), 1.0), Op("o1", (), (1,), 1.0))
    graph = Graph("two", ops, (Value("v0", 100), Value("v1", 20)))
    other = replace(BUS, name="other")
    result = replay(problem(graph, (BUS, other)), [compute(0), page_out(0, 0), compute(1), page_out(1, 1)])
    assert result.makespan == 11.0


def test_compressed_copies_lie_in_ram_and_take_the_processors_time():
    events = [compute(0), page_out(0), free(0), page_in(0), drop(0), compute(1), compute(2)]
    result = replay(problem(tiers=(PACKED,)), events)
    np.testing.assert_array_equal(result.memory, [10, 15, 15, 15, 15, 30, 67])
    assert result.makespan == 15 + 5 / 20 + 5 / 40


def test_a_copy_in_ram_counts_until_it_is_dropped():
    events = [compute(0), page_out(0), page_out(0), free(0), page_in(0), compute(1), compute(2), drop(0), free(0)]
    result = replay(problem(tiers=(PACKED,)), events)
    np.testing.assert_array_equal(result.memory, [10, 15, 15, 15, 15, 35, 72, 65, 60])
    assert result.paged_out == 2


def test_a_copy_serves_more_than_once():
    events = [compute(0), page_out(0), free(0), page_in(0), compute(1), free(0), page_in(0), compute(2)]
    result = replay(problem(), events)
    assert (result.paged_out, result.paged_in) == (1, 2)
    assert result.paging_joules == (4 + 2 + 2) * 3.0


def test_costs_are_those_of_the_objective():
    serial = problem(objective="time", paging="serial")
    assert replay(serial, PAGED).cost == 15 + 6
    assert replay(problem(objective="time"), PAGED).cost == 15
    assert replay(replace(problem(objective="time"), hidden=0.5), PAGED).cost == 15 + 3


@pytest.mark.parametrize(
    ("events", "says"),
    [
        ([compute(1)], "'v0' is not in RAM when 'o1' needs it"),
        ([compute(0), free(0), compute(1)], "'v0' is not in RAM when 'o1' needs it"),
        ([free(0)], "'v0' is not in RAM when 'free' needs it"),
        ([page_out(0)], "'v0' is not in RAM when 'page_out' needs it"),
        ([compute(0), free(0), page_in(0)], "'v0' is paged in from a tier that holds no copy of it"),
        ([compute(0), page_out(0), page_in(0)], "'v0' is paged in while it is in RAM"),
        ([compute(0), page_out(0), drop(0), free(0), page_in(0)], "from a tier that holds no copy"),
        ([compute(0), drop(0)], "a copy of 'v0' is dropped that is not there"),
        ([compute(0), compute(1)], "operation 'o2' is never executed"),
        ([*plain(GRAPH), free(2)], "'v2' must be in RAM at the end and is not"),
    ],
)
def test_refuses_what_cannot_happen(events, says):
    with pytest.raises(ReplayError, match=says):
        replay(problem(), events)


def test_events_are_what_they_say():
    assert compute(3) == Event(Kind.COMPUTE, 3)
    assert page_in(3, 1) == Event(Kind.PAGE_IN, 3, 1)
    assert [event.tier for event in (compute(0), free(0), page_out(0), page_in(0), drop(0))] == [-1, -1, 0, 0, 0]
    assert [str(kind) for kind in Kind] == ["compute", "page_out", "page_in", "free", "drop"]


# Plain data, built into graphs inside the tests: the hook that checks types draws random numbers; strategies may not.
@st.composite
def dags(draw):
    count = draw(st.integers(1, 8))
    reads = [draw(st.sets(st.integers(0, i - 1), max_size=3)) if i else set() for i in range(count)]
    sizes = draw(st.lists(st.integers(0, 100), min_size=count, max_size=count))
    work = draw(st.lists(st.integers(0, 9), min_size=count, max_size=count))
    extra = draw(st.lists(st.integers(0, 50), min_size=count, max_size=count))
    return reads, sizes, work, extra, draw(st.sets(st.integers(0, count - 1)))


def build(data):
    reads, sizes, work, extra, keep = data
    ops = [Op(f"o{i}", tuple(sorted(r)), (i,), float(work[i]), workspace=extra[i]) for i, r in enumerate(reads)]
    return Graph("drawn", tuple(ops), tuple(Value(f"v{i}", size, i in keep) for i, size in enumerate(sizes)))


@pytest.mark.property
@given(dags())
def test_the_plain_step_of_any_graph(data):
    graph = build(data)
    result = replay(problem(graph), list(plain(graph)))
    assert result.peak == graph.resident_peak
    assert result.cost == pytest.approx(problem(graph).baseline_cost)
    assert result.makespan == result.compute_seconds == problem(graph).baseline_seconds


@pytest.mark.property
@given(dags())
def test_recomputing_everything_needs_working_sets_alone(data):
    """Before each operation all its ancestors run again, and everything else is freed: the peak is bounded by both."""
    graph = build(data)
    events, executed = list(from_scratch(graph)), len(graph.ops)
    result = replay(problem(graph), events)
    assert result.recomputed == len(computed(events)) - executed
    assert result.compute_seconds == sum(graph.ops[i].flops for i in computed(events))
    assert graph.largest_working_set <= result.peak
    assert result.makespan == result.compute_seconds


def from_scratch(graph):
    resident: set[int] = set()
    for i in range(len(graph.ops)):
        needed, stack = set(), [i]
        while stack:
            for v in graph.ops[stack.pop()].inputs:
                if v not in needed:
                    needed.add(v)
                    stack.append(graph.producer[v])
        for at in [*sorted(graph.producer[v] for v in needed), i]:
            yield compute(at)
            resident.update(graph.ops[at].outputs)
        yield from (free(v) for v in sorted(resident) if not graph.values[v].keep)
        resident = {v for v in resident if graph.values[v].keep}


@pytest.mark.property
@given(dags())
def test_paging_everything_out_and_in_changes_nothing_but_the_cost(data):
    graph = build(data)
    events = []
    for i, op in enumerate(graph.ops):
        events += [page_in(v) for v in op.inputs]
        events += [compute(i), page_out(i), free(i), *(free(v) for v in op.inputs)]
    events += [page_in(v) for v, value in enumerate(graph.values) if value.keep]
    result = replay(problem(graph), events)
    steps = max((graph.working_set(i) for i in range(len(graph.ops))), default=0)
    assert result.peak == max(steps, sum(value.size for value in graph.values if value.keep))
    beside, serial = result.makespan, replay(problem(graph, paging="serial"), events).makespan
    assert result.compute_seconds <= beside <= serial * (1 + 1e-12)
    assert serial == pytest.approx(result.compute_seconds + result.paging_joules / FLASH.power)


def test_replay_of_a_real_step():
    graph = zoo.resnet18_cifar()
    at = Problem(graph, Device.load("nrf52840"), 10**9)
    result = replay(at, list(plain(graph)))
    assert result.peak == graph.resident_peak
    assert result.cost == pytest.approx(at.baseline_cost)

"""Trimming: waste by hand, and never more cost or memory on random schedules."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poet.device import Device, Tier
from poet.events import Kind, compute, drop, free, page_in, page_out
from poet.graph import Graph, Op, Value, chain
from poet.problem import Problem
from poet.replay import replay
from poet.trim import trim
from poet.verifier import verify

FLASH = Tier("flash", 1.0, 4.0, 2.0, 2.0, power=0.5)
TOY = Device("toy", flops_per_second=1.0, flops_per_joule=1.0, tiers=(FLASH, Tier("disk", 1.0, 1.0, 1.0, 1.0)))
SEEDS = st.integers(0, 10**6)

# b and d read a; d also reads c; d stays.
STEP = Graph(
    "step",
    (Op("a", (), (0,)), Op("b", (0,), (1,)), Op("c", (1,), (2,)), Op("d", (0, 2), (3,))),
    (Value("va", 4), Value("vb", 4), Value("vc", 4), Value("vd", 4, keep=True)),
)
PLAIN = (compute(0), compute(1), compute(2), free(1), compute(3), free(0), free(2))


def trimmed(*events, graph=STEP):
    return trim(Problem(graph, TOY, 10**6), events)


def test_every_value_is_freed_after_its_last_use():
    assert trimmed(compute(0), compute(1), compute(2), compute(3)) == PLAIN
    late = (compute(0), compute(1), compute(2), compute(3), free(2), free(1), free(0))
    assert trimmed(*late) == PLAIN


@pytest.mark.parametrize(
    "waste",
    [
        (compute(0), compute(0), compute(1), compute(2), compute(3)),  # replaced by an equal copy
        (compute(0), compute(1), compute(2), compute(3), compute(1)),  # never read
        (compute(0), compute(1), compute(1), compute(2), free(1), compute(1), compute(3)),
        (compute(0), page_out(0), compute(1), compute(2), compute(3)),  # never read
        (compute(0), compute(1), page_out(1), compute(2), free(1), page_in(1), compute(3)),
    ],
)
def test_what_nobody_needs_goes(waste):
    assert trimmed(*waste) == PLAIN


def test_what_is_needed_stays():
    repeat = (compute(0), compute(1), free(0), compute(0), compute(2), free(1), compute(3), free(0), free(2))
    waste = (compute(0), page_out(0), compute(1), free(0), page_in(0), free(0), compute(0), compute(2), compute(3))
    assert trimmed(*waste) == trimmed(*repeat) == repeat


def test_a_detour_goes_with_all_that_led_to_it():
    # b is made again from an a that was paged in for it, and nobody reads that b.
    waste = (compute(0), page_out(0), compute(1), free(0), compute(2), free(1), page_in(0), compute(1), compute(3))
    kept = (compute(0), page_out(0), compute(1), free(0), compute(2), free(1), page_in(0), drop(0), compute(3))
    assert trimmed(*waste) == (*kept, free(0), free(2))


def test_a_tier_is_written_once_while_it_holds_the_copy():
    twice = (compute(0), page_out(0), free(0), page_in(0), compute(1), page_out(0), free(0), compute(2), page_in(0))
    once = (compute(0), page_out(0), free(0), page_in(0), compute(1), free(0), compute(2), free(1), page_in(0), drop(0))
    assert trimmed(*twice, compute(3)) == (*once, compute(3), free(0), free(2))
    # A copy that was dropped in between is made anew; each is dropped after it is read last.
    again = (*twice[:4], drop(0), *twice[4:], compute(3))
    assert sum(event.kind is Kind.PAGE_OUT for event in trimmed(*again)) == 2
    assert trimmed(*again).count(drop(0)) == 2


def test_copies_in_two_tiers_are_apart():
    both = (compute(0), page_out(0, 0), page_out(0, 1), free(0), page_in(0, 1), compute(1), compute(2), compute(3))
    assert page_out(0, 0) not in trimmed(*both)
    assert page_out(0, 1) in trimmed(*both)


def test_an_output_that_nobody_reads_is_freed_at_once():
    graph = Graph(
        "two", (Op("a", (), (0, 1)), Op("b", (0,), (2,))), (Value("x", 1), Value("y", 9), Value("z", 1, True))
    )
    assert trimmed(compute(0), compute(1), graph=graph) == (compute(0), free(1), compute(1), free(0))


def test_kept_values_stay():
    graph = chain("kept", [1, 1])
    graph = Graph("kept", graph.ops, (Value("g", 1, keep=True), Value("h", 1, keep=True)))
    assert trimmed(compute(0), compute(1), free(0), compute(0), graph=graph) == (
        compute(0),
        compute(1),
        free(0),
        compute(0),
    )
    assert trimmed(compute(0), compute(1), compute(0), graph=graph) == (compute(0), compute(1))


def possible(graph, events):
    """Whether the events can happen if frees, drops and page-ins that cannot are left out."""
    resident, copies, done = set(), set(), set()
    for event in events:
        v, copy = event.target, (event.target, event.tier)
        if event.kind is Kind.COMPUTE:
            if not resident.issuperset(graph.ops[v].inputs):
                return False
            resident.update(graph.ops[v].outputs)
            done.add(v)
        elif event.kind is Kind.PAGE_OUT:
            if v not in resident:
                return False
            copies.add(copy)
        elif event.kind is Kind.PAGE_IN:
            if copy not in copies and v not in resident:
                return False
            resident.add(v)
        elif event.kind is Kind.FREE:
            resident.discard(v)
        else:
            copies.discard(copy)
    return len(done) == len(graph.ops) and all(v in resident for v, value in enumerate(graph.values) if value.keep)


@pytest.mark.property
@settings(max_examples=300)
@given(seed=SEEDS)
def test_trimming_never_costs(random_case, seed):
    problem, events = random_case(seed)
    result = trim(problem, events)
    before, after = replay(problem, events), replay(problem, result)
    verify(problem.graph, problem.device, result, limit=before.peak + problem.graph.static.total, order=True).unwrap()
    assert after.cost <= before.cost * (1 + 1e-12)
    assert after.recomputed <= before.recomputed
    assert after.paged_out <= before.paged_out
    assert after.paged_in <= before.paged_in
    assert trim(problem, result) == result
    kept = [event for event in result if event.kind not in (Kind.FREE, Kind.DROP)]
    remaining = iter(events)
    assert all(event in remaining for event in kept)  # in the order they had


@pytest.mark.property
@settings(max_examples=200)
@given(seed=SEEDS)
def test_nothing_is_left_to_trim(random_case, seed):
    problem, events = random_case(seed)
    graph = problem.graph
    result = trim(problem, events)
    executed = set()
    for e, event in enumerate(result):
        if event.kind in (Kind.FREE, Kind.DROP):
            user = next(other for other in reversed(result[:e]) if other.kind not in (Kind.FREE, Kind.DROP))
            op = graph.ops[user.target] if user.kind is Kind.COMPUTE else None
            assert event.target in ((*op.inputs, *op.outputs) if op else (user.target,))
        elif event.kind is not Kind.COMPUTE or event.target in executed:
            assert not possible(graph, (*result[:e], *result[e + 1 :]))
        if event.kind is Kind.COMPUTE:
            executed.add(event.target)

"""Overlapping transfers: what can be hidden by hand, and never a loss on random schedules."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poet.device import Device, Tier
from poet.events import Kind, compute, drop, free, page_in, page_out
from poet.graph import Graph, Op, Value
from poet.problem import Problem
from poet.replay import replay
from poet.transfers import overlap
from poet.trim import trim
from poet.verifier import verify

FLASH = Tier("flash", read_latency=2.0, read_throughput=2.0, write_latency=0.0, write_throughput=8.0)
SEEDS = st.integers(0, 10**6)

# a makes 8 bytes in 1 s that d reads; b (8 bytes, 4 s) and c (1 byte, 3 s) come between. A page-out takes 1 s, a
# page-in 6 s.
STEP = Graph(
    "gap",
    (
        Op("a", (), (0,), seconds=1.0),
        Op("b", (), (1,), seconds=4.0),
        Op("c", (), (2,), seconds=3.0),
        Op("d", (0,), (3,), seconds=1.0),
    ),
    (Value("va", 8), Value("vb", 8), Value("vc", 1), Value("vd", 0)),
)
PLAIN = (compute(0), page_out(0), free(0), compute(1), free(1), compute(2), free(2), page_in(0), compute(3), free(0))


def case(limit, tier=FLASH, graph=STEP, **options):
    return Problem(graph, Device("toy", flops_per_second=1.0, flops_per_joule=1.0, tiers=(tier,)), limit, **options)


def makespan(problem, events):
    result = overlap(problem, events)
    verdict = verify(problem.graph, problem.device, result, limit=problem.limit).unwrap()
    assert Counter(result) == Counter(events)
    assert replay(problem, result).makespan == verdict.makespan
    return verdict.makespan


def test_a_page_in_goes_back_as_far_as_memory_has_room():
    # As it stands: a 0..1, out 1..2, b 2..6, c 6..9, in 9..15, d 15..16.
    assert replay(case(99), PLAIN).makespan == 16.0
    # With 9 bytes it can be issued once vb is gone: in 6..12 beside c, d 12..13. With 8 not before c either.
    assert makespan(case(8), PLAIN) == 16.0
    assert makespan(case(9), PLAIN) == 13.0
    # With 16 bytes in 2..8 beside b, but not c (17 bytes); hidden: b 2..6, c 6..9, d 9..10.
    assert makespan(case(15), PLAIN) == 13.0
    assert makespan(case(16), PLAIN) == 10.0


def test_a_free_waits_no_more_than_memory_makes_it():
    # b needs nothing of a's room: the free goes past it, and the page-out (1..5) is hidden.
    slow = replace(FLASH, write_throughput=2.0)
    out = (compute(0), page_out(0), free(0), compute(1), free(1), compute(2))
    graph = replace(STEP, ops=STEP.ops[:3], values=STEP.values[:3])
    assert replay(case(99, slow, graph), out).makespan == 12.0
    assert makespan(case(15, slow, graph), out) == 12.0
    assert makespan(case(16, slow, graph), out) == 8.0


def test_a_page_out_is_issued_when_its_value_is_there():
    slow = replace(FLASH, write_throughput=2.0)
    graph = replace(STEP, ops=STEP.ops[:3], values=STEP.values[:3])
    late = (compute(0), compute(1), free(1), page_out(0), free(0), compute(2))
    assert replay(case(99, slow, graph), late).makespan == 1 + 4 + 4 + 3
    assert makespan(case(16, slow, graph), late) == 8.0


def chain_of_pages(count):
    """`count` values of 4 bytes, made in 1 s each and paged out; then read in the same order, 5 s each."""
    ops = [Op(f"f{i}", (), (i,), seconds=1.0) for i in range(count)]
    ops += [Op(f"b{i}", (i,), (count + i,), seconds=5.0) for i in range(count)]
    graph = Graph("pages", tuple(ops), tuple(Value(f"v{i}", 4 * (i < count)) for i in range(2 * count)))
    events = [event for i in range(count) for event in (compute(i), page_out(i), free(i))]
    events += [event for i in range(count) for event in (page_in(i), compute(count + i), free(i))]
    return graph, tuple(events)


def test_double_buffering_hides_all_but_the_first():
    graph, events = chain_of_pages(6)
    tier = Tier("flash", 0.0, 1.0, 0.0, 4.0)  # 1 s out, 4 s in
    assert replay(case(99, tier, graph), events).makespan == 6 * 2 + 6 * 9
    # Room for one value alone: nothing moves. For two: each page-in runs beside the operation before.
    assert makespan(case(4, tier, graph), events) == 66.0
    assert makespan(case(8, tier, graph), events) <= 6 * 1 + 1 + 4 + 6 * 5


def test_what_cannot_be_hidden_is_left_alone():
    assert overlap(case(99, paging="serial"), PLAIN) == PLAIN
    assert overlap(case(99, paging="free"), PLAIN) == PLAIN
    assert overlap(case(99, replace(FLASH, in_ram=True)), PLAIN) == PLAIN
    resident = (compute(0), compute(1), compute(2), compute(3))
    assert overlap(case(99), resident) == resident


def test_capacity_is_never_exceeded():
    # Room for one copy in flash; that of va must be dropped before vb goes there.
    graph = replace(STEP, ops=(*STEP.ops, Op("e", (1,), (4,), seconds=1.0)), values=(*STEP.values, Value("ve", 0)))
    events = (
        *(compute(0), page_out(0), free(0), compute(1), compute(2), page_in(0), drop(0), page_out(1), free(1)),
        *(compute(3), page_in(1), compute(4)),
    )
    problem = case(25, replace(FLASH, capacity=8), graph)
    assert makespan(problem, events) <= replay(problem, events).makespan
    # Without a limit the copies may overlap, and vb leaves as soon as it exists.
    assert makespan(case(25, graph=graph), events) < makespan(problem, events)


@pytest.mark.property
@settings(max_examples=250, deadline=None)
@given(seed=SEEDS, slack=st.sampled_from([0.0, 0.2, 1.0]), tidy=st.booleans())
def test_overlap_is_never_a_loss(random_case, seed, slack, tidy):
    problem, events = random_case(seed)
    events = trim(problem, events) if tidy else events
    before = replay(problem, events)
    problem = problem.with_ram(int(before.peak * (1 + slack)) + problem.graph.static.total)
    result = overlap(problem, events)
    after = replay(problem, result)
    verify(problem.graph, problem.device, result, limit=problem.limit).unwrap()
    assert Counter(result) == Counter(events)
    assert [e for e in result if e.kind is Kind.COMPUTE] == [e for e in events if e.kind is Kind.COMPUTE]
    assert after.makespan <= before.makespan
    assert (after.cost, after.joules) == (before.cost, before.joules)


@pytest.mark.property
@settings(max_examples=50, deadline=None)
@given(seed=SEEDS)
def test_a_schedule_over_the_limit_does_not_get_worse(random_case, seed):
    problem, events = random_case(seed)
    before = replay(problem, events)
    low = problem.with_ram(before.peak // 2 + problem.graph.static.total)
    assert replay(low, overlap(low, events)).peak <= before.peak


def training_chain(n, rng):
    sizes = [int(size) for size in rng.integers(50, 150, n)]
    seconds = [float(t) for t in rng.uniform(1, 3, n)]
    ops = [Op(f"f{i}", (i - 1,) if i else (), (i,), seconds=seconds[i]) for i in range(n)]
    values = [Value(f"a{i}", size) for i, size in enumerate(sizes)]
    for i in reversed(range(n)):
        out = len(values)
        reads = {i, max(i - 1, 0)} | ({out - 1} if i < n - 1 else set())
        ops.append(Op(f"b{i}", tuple(sorted(reads)), (out,), seconds=2 * seconds[i], phase="backward"))
        values.append(Value(f"g{i}", sizes[i]))
    return Graph("training", tuple(ops), tuple(values))


def test_a_long_chain_hides_all_its_transfers():
    n = 200
    graph = training_chain(n, np.random.default_rng(1))
    events = []
    for i in range(2 * n):
        needs = [v for v in graph.ops[i].inputs if v < n - 3 and page_out(v) in events]
        events += [page_in(v) for v in needs if page_in(v) not in events]
        events += [compute(i)]
        events += [page_out(i - 1), free(i - 1)] * (0 < i < n - 2)
    tier = Tier("host", 0.1, 70.0, 0.1, 70.0, duplex=True)
    events = trim(case(10**9, tier, graph), events)
    before = replay(case(10**9, tier, graph), events)
    assert before.makespan > 1.4 * before.compute_seconds
    assert before.peak < graph.resident_peak / 10
    roomy = case(before.peak + 300, tier, graph)
    assert makespan(roomy, events) == pytest.approx(before.compute_seconds, rel=1e-12)

"""The verifier: schedules worked out by hand, agreement with the replay, and mutations that it must see through."""

from collections import Counter
from dataclasses import replace
from math import inf, isnan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poet.device import Device, DeviceError, Tier
from poet.events import Event, Kind, compute, drop, free, page_in, page_out
from poet.graph import Graph, Op, Static, Value, chain
from poet.problem import Problem
from poet.replay import ReplayError, replay
from poet.stays import Rule
from poet.timeline import Job, Span, simulate, timeline
from poet.verifier import VerificationError, verify

FLASH = Tier("flash", read_latency=1.0, read_throughput=4.0, write_latency=2.0, write_throughput=2.0, power=0.5)
TOY = Device("toy", flops_per_second=2.0, flops_per_joule=4.0, tiers=(FLASH,))
SEEDS = st.integers(0, 10**6)

# x = f(), z = g(), w = h(x, z); w stays.
STEP = Graph(
    "step",
    (
        Op("f", (), (0,), flops=4.0, workspace=3),
        Op("g", (), (1,), flops=8.0),
        Op("h", (0, 1), (2,), flops=2.0, workspace=1),
    ),
    (Value("x", 8), Value("z", 4), Value("w", 2, keep=True)),
    Static(parameters=100, inputs=10),
)
PLAIN = (compute(0), compute(1), compute(2), free(0), free(1))
PAGED = (compute(0), page_out(0), free(0), compute(1), page_in(0), compute(2), free(0), free(1), drop(0))
REPEAT = (compute(0), compute(1), free(0), compute(0), compute(2))
BRANCH = Graph(
    "branch", (Op("f", (), (0,)), Op("g", (0,), (1,)), Op("h", (0,), (2,))), tuple(Value(name, 4) for name in "xyz")
)


def judge(events, graph=STEP, device=TOY, limit=10**6, **options):
    return verify(graph, device, events, limit=limit, **options)


def kinds(verdict):
    return [(violation.event, violation.kind) for violation in verdict.violations]


def test_memory_is_everything_resident_and_what_an_operation_adds():
    verdict = judge(PLAIN).unwrap()
    assert verdict.memory == (110 + 8 + 3, 110 + 12, 110 + 14 + 1, 110 + 14, 110 + 6)
    assert (verdict.peak, verdict.peak_event) == (125, 2)
    assert (verdict.makespan, verdict.compute_seconds) == (7.0, 7.0)
    assert (verdict.compute_joules, verdict.paging_joules, verdict.joules) == (3.5, 0.0, 3.5)


def test_paging_costs_latency_and_bytes_each_way():
    verdict = judge(PAGED).unwrap()
    # Written 2..8 after f, which the free waits for; g runs 8..12; read 12..15 (issued after g); h 15..16.
    assert verdict.makespan == 2 + 6 + 4 + 3 + 1
    assert verdict.paging_joules == 0.5 * (6 + 3)
    assert verdict.compute_seconds == 7.0
    assert verdict.memory == tuple(110 + used for used in (11, 8, 8, 4, 12, 15, 14, 6, 2))
    assert (verdict.paged_out, verdict.paged_in, verdict.recomputed) == (1, 1, 0)


def test_recomputation_costs_its_operation_again():
    verdict = judge(REPEAT).unwrap()
    assert (verdict.compute_joules, verdict.makespan, verdict.recomputed) == (4.5, 9.0, 1)
    assert verdict.memory == tuple(110 + used for used in (11, 12, 12, 4 + 8 + 3, 15))


def test_an_equal_copy_takes_space_beside_the_one_that_it_replaces():
    verdict = judge((compute(0), compute(0), compute(1), compute(2))).unwrap()
    assert verdict.memory == tuple(110 + used for used in (11, 8 + 8 + 3, 12, 15))


def test_what_is_replaced_waits_for_the_transfer_that_reads_it():
    events = (compute(0), page_out(0), compute(0), compute(1), compute(2))
    verdict = judge(events).unwrap()
    # Written 2..8 from the first copy, which the second replaces 8..10; g 10..14, h 14..15.
    assert verdict.makespan == 15.0
    assert verdict.makespan == replay(Problem(STEP, TOY, 10**6), events).makespan


def long_chain(seconds):
    """Operations that all read the value of the first, of the given durations."""
    ops = [Op("a", (), (0,), seconds=1.0)]
    ops += [Op(f"b{i}", (0,), (i,), seconds=float(t)) for i, t in enumerate(seconds, start=1)]
    return Graph("fan", tuple(ops), tuple(Value(f"v{i}", 8) for i in range(len(ops))))


def test_a_transfer_hides_beside_the_computation():
    graph = long_chain([2, 7, 1])
    # Written 1..7 beside b1 and b2, freed at 10 without waiting; read 10..13, for which b3 waits.
    late = (compute(0), page_out(0), compute(1), compute(2), free(0), page_in(0), compute(3))
    assert judge(late, graph).unwrap().makespan == 14.0
    # Freed after b1: waits from 3 to 7. Read 7..10; b2, which reads it too, waits; 10..17, 17..18.
    stalled = (compute(0), page_out(0), compute(1), free(0), page_in(0), compute(2), compute(3))
    assert judge(stalled, graph).unwrap().makespan == 18.0
    # "serial": everything one after the other; "free": the computation alone.
    assert judge(late, graph, paging="serial").unwrap().makespan == 11.0 + 6 + 3
    assert judge(late, graph, paging="free").unwrap().makespan == 11.0
    assert judge(late, graph).paging_joules == judge(late, graph, paging="free").paging_joules == 4.5


@pytest.mark.parametrize(("duplex", "makespan"), [(False, 18.0), (True, 14.0)])
def test_directions_share_a_channel_unless_the_tier_is_duplex(duplex, makespan):
    graph = Graph(
        "pair",
        tuple(Op(f"o{i}", (0,) if i == 2 else (), (i,), seconds=1.0) for i in range(3)),
        tuple(Value(f"v{i}", 8) for i in range(3)),
    )
    device = TOY.with_tiers(replace(FLASH, duplex=duplex))
    # v0 is written 2..8, freed at 8; v1 is written 8..14; v0 comes back 8..11, or 14..17 where they share.
    events = (compute(0), compute(1), page_out(0), free(0), page_out(1), page_in(0), compute(2))
    assert judge(events, graph, device).unwrap().makespan == makespan


def test_whole_blocks_are_transferred_and_stored():
    graph = chain("one", [5])
    device = TOY.with_tiers(replace(FLASH, block=8, capacity=8))
    events = (compute(0), page_out(0), free(0), page_in(0))
    verdict = judge(events, graph, device).unwrap()
    assert verdict.paging_joules == 0.5 * ((2 + 8 / 2) + (1 + 8 / 4))
    tight = judge(events, graph, TOY.with_tiers(replace(FLASH, block=8, capacity=7)))
    assert kinds(tight) == [(1, Rule.CAPACITY)]
    assert "8 bytes are in flash, over its capacity of 7" in tight.violations[0].sentence


def test_compressed_copies_take_ram_and_the_processor():
    packed = replace(FLASH, name="2-bit", ratio=0.25, in_ram=True)
    events = (compute(0), page_out(0), free(0), compute(1), page_in(0), compute(2), free(0), drop(0))
    verdict = judge(events, device=TOY.with_tiers(packed)).unwrap()
    assert verdict.memory == tuple(110 + used for used in (11, 8 + 2, 10, 6, 6 + 8, 14 + 2 + 1, 16, 8))
    # No channel: f 2, packing 2 + 2/2, g 4, unpacking 1 + 2/4, h 1.
    assert verdict.makespan == 2 + 3 + 4 + 1.5 + 1


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ((compute(1), compute(0), compute(2)), [(1, Rule.ORDER)]),
        ((compute(2), compute(0), compute(1)), [(0, Rule.INPUT), (0, Rule.INPUT), (1, Rule.ORDER), (2, Rule.ORDER)]),
        ((compute(0), free(0), compute(0), compute(1), free(0), compute(2)), [(5, Rule.INPUT)]),
        ((compute(0), compute(1), free(1), page_out(1), compute(1), compute(2)), [(3, Rule.PAGE_OUT)]),
        ((compute(0), compute(1), free(0), page_in(0), compute(2)), [(3, Rule.PAGE_IN_COPY)]),
        ((compute(0), page_out(0), page_in(0), compute(1), compute(2)), [(2, Rule.PAGE_IN_TWICE)]),
        ((*PLAIN, free(0)), [(5, Rule.FREE)]),
        ((compute(0), page_out(0), drop(0), drop(0), compute(1), compute(2)), [(3, Rule.DROP)]),
        ((compute(0), page_out(0), drop(0), free(0), page_in(0), compute(1), compute(2)), [(4, Rule.PAGE_IN_COPY)]),
        ((compute(0), compute(1)), [(-1, Rule.KEPT), (-1, Rule.MISSING)]),
        ((*PLAIN, free(2)), [(-1, Rule.KEPT)]),
        ((*PLAIN, compute(7), free(-1), page_out(0, 1)), [(e, Rule.TARGET) for e in (5, 6, 7)]),
        ((*PLAIN, Event(Kind.COMPUTE, 0, 0), Event(Kind.DROP, 0)), [(e, Rule.TARGET) for e in (5, 6)]),
    ],
)  # fmt: skip
def test_each_broken_rule_is_named(events, expected):
    verdict = judge(events)
    assert not verdict.ok
    assert sorted(kinds(verdict)) == sorted(expected)
    with pytest.raises(VerificationError):
        verdict.unwrap()


def test_an_operation_that_must_not_run_twice():
    once = replace(STEP, ops=(replace(STEP.ops[0], recomputable=False), *STEP.ops[1:]))
    assert kinds(judge(REPEAT, once)) == [(3, Rule.REPEATED)]
    assert kinds(judge(REPEAT, recompute=False)) == [(3, Rule.REPEATED)]


def test_the_order_of_first_executions_is_judged_on_request():
    events = (compute(0), compute(2), compute(1))
    assert kinds(judge(events, BRANCH)) == [(2, Rule.ORDER)]
    assert judge(events, BRANCH, order=False).ok


def test_the_limit_counts_static_bytes_to_the_byte():
    assert judge(PLAIN, limit=125).ok
    assert kinds(judge(PLAIN, limit=124)) == [(2, Rule.LIMIT)]
    twice = (compute(0), free(0), compute(0), compute(1), compute(2))  # 121, 118, 121, 122, 125 bytes
    assert kinds(judge(twice, limit=120)) == [(0, Rule.LIMIT), (4, Rule.LIMIT)]
    assert kinds(judge((), replace(STEP, ops=(), values=()), limit=109)) == [(-1, Rule.LIMIT)]


def test_the_deadline():
    assert judge(PAGED, deadline=16.0).ok
    assert kinds(judge(PAGED, deadline=15.99)) == [(-1, Rule.DEADLINE)]
    assert judge(PAGED, deadline=7.0, paging="free").ok


def test_measured_durations_and_powers():
    graph = chain("two", [1, 1], flops=[4.0, 4.0])
    graph = replace(graph, ops=(replace(graph.ops[0], seconds=3.0), graph.ops[1]))
    events = (compute(0), compute(1))
    assert judge(events, graph, replace(TOY, compute_power=5.0)).compute_joules == 15.0 + 1.0
    assert judge(events, graph, Device("w", flops_per_second=2.0, compute_power=5.0)).compute_joules == 15.0 + 10.0
    assert isnan(judge(events, graph, Device("dark", flops_per_second=2.0)).compute_joules)
    with pytest.raises(DeviceError, match="no measured duration"):
        judge(events, graph, Device("unknown"))


@pytest.mark.parametrize("options", [{"limit": -1}, {"deadline": 0.0}, {"deadline": float("nan")}, {"paging": "magic"}])
def test_bad_arguments_are_refused(options):
    with pytest.raises((ValueError, TypeError)):
        judge(PLAIN, **options)


def test_a_timeline_shows_what_takes_time():
    spans = timeline(STEP, TOY, PAGED)
    assert spans == [
        Span("processor", 0.0, 2.0, 0),
        Span("flash channel", 2.0, 8.0, 1),
        Span("processor", 8.0, 12.0, 3),
        Span("flash channel", 12.0, 15.0, 4),
        Span("processor", 15.0, 16.0, 5),
    ]


def test_jobs_wait_for_their_lane_and_their_needs():
    jobs = [Job("a", 1.0, (), 0), Job("b", 5.0, (), 1), Job("a", 2.0, (1,), 2), Job("b", 1.0, (0,), 3)]
    assert [(span.start, span.end) for span in simulate(jobs)] == [(0.0, 1.0), (0.0, 5.0), (5.0, 7.0), (5.0, 6.0)]
    assert simulate([]) == []


def replaced_in_transit(events, graph):
    """Whether an operation replaces a value that was paged in and that nothing has waited for."""
    moving = set()
    for event in events:
        if event.kind is Kind.PAGE_IN:
            moving.add(event.target)
        elif event.kind is Kind.FREE:
            moving.discard(event.target)
        elif event.kind is Kind.COMPUTE:
            moving -= set(graph.ops[event.target].inputs)
            if moving & set(graph.ops[event.target].outputs):
                return True
    return False


@pytest.mark.property
@settings(max_examples=250)
@given(seed=SEEDS, paging=st.sampled_from(["overlap", "serial", "free"]))
def test_two_ways_of_counting_agree(random_case, seed, paging):
    problem, events = random_case(seed, paging=paging)
    counted = replay(problem, events)
    verdict = judge(events, problem.graph, problem.device, paging=paging).unwrap()
    assert [used - problem.graph.static.total for used in verdict.memory] == counted.memory.tolist()
    assert verdict.peak == counted.peak + problem.graph.static.total
    assert verdict.compute_joules == pytest.approx(counted.compute_joules, rel=1e-12)
    assert verdict.paging_joules == pytest.approx(counted.paging_joules, rel=1e-12)
    assert verdict.compute_seconds == pytest.approx(counted.compute_seconds, rel=1e-12)
    assert (verdict.recomputed, verdict.paged_out, verdict.paged_in) == (
        counted.recomputed,
        counted.paged_out,
        counted.paged_in,
    )
    if replaced_in_transit(events, problem.graph):
        assert verdict.makespan >= counted.makespan * (1 - 1e-12)
    else:
        assert verdict.makespan == pytest.approx(counted.makespan, rel=1e-12)


def mutated(events, graph, tiers, how, at, other):
    """One change: an event gone, doubled, exchanged with its neighbour or another, or with another target or kind."""
    events = list(events)
    at %= len(events)
    event = events[at]
    if how == "delete":
        del events[at]
    elif how == "duplicate":
        events.insert(other % (len(events) + 1), event)
    elif how == "swap":
        at, other = at, other % len(events)
        events[at], events[other] = events[other], events[at]
    elif how == "next":
        events[at : at + 2] = reversed(events[at : at + 2])
    elif how == "target":
        things = graph.ops if event.kind is Kind.COMPUTE else graph.values
        events[at] = replace(event, target=other % len(things))
    elif event.tier >= 0:
        events[at] = replace(event, tier=other % tiers)
    return tuple(events)


STRUCTURE = {Rule.INPUT, Rule.PAGE_OUT, Rule.PAGE_IN_COPY, Rule.PAGE_IN_TWICE, Rule.FREE, Rule.DROP} | {
    Rule.MISSING,
    Rule.KEPT,
}


def broken_by_hand(graph, events):
    """Rules of execution, counted event by event in the plainest way."""
    broken = Counter()
    done = []
    for event in events:
        if event.kind is Kind.COMPUTE:
            broken[Rule.REPEATED] += event.target in done and not graph.ops[event.target].recomputable
            broken[Rule.ORDER] += event.target not in done and any(i > event.target for i in done)
            done.append(event.target)
    return +broken


@pytest.mark.property
@settings(max_examples=300)
@given(
    seed=SEEDS,
    how=st.sampled_from(["delete", "duplicate", "swap", "next", "target", "tier"]),
    at=st.integers(0, 999),
    other=st.integers(0, 999),
)
def test_a_mutation_is_rejected_exactly_when_it_breaks_a_rule(random_case, seed, how, at, other):
    problem, events = random_case(seed)
    events = mutated(events, problem.graph, len(problem.tiers), how, at, other)
    verdict = judge(events, problem.graph, problem.device)
    found = Counter(violation.kind for violation in verdict.violations)
    try:
        replay(problem, events)
        impossible = False
    except ReplayError:
        impossible = True
    assert impossible == bool(STRUCTURE & set(found))
    assert {rule: found[rule] for rule in (Rule.REPEATED, Rule.ORDER) if found[rule]} == broken_by_hand(
        problem.graph, events
    )
    assert set(found) <= STRUCTURE | {Rule.REPEATED, Rule.ORDER}


@pytest.mark.property
@given(seed=SEEDS)
def test_limits_are_sharp(random_case, seed):
    problem, events = random_case(seed)
    verdict = judge(events, problem.graph, problem.device).unwrap()
    assert judge(events, problem.graph, problem.device, limit=verdict.peak).ok
    if verdict.peak:
        low = judge(events, problem.graph, problem.device, limit=verdict.peak - 1)
        assert {violation.kind for violation in low.violations} == {Rule.LIMIT}
        assert verdict.peak_event in {violation.event for violation in low.violations}
    if verdict.makespan:
        assert judge(events, problem.graph, problem.device, deadline=verdict.makespan).ok
        late = judge(events, problem.graph, problem.device, deadline=verdict.makespan * 0.999)
        assert kinds(late) == [(-1, Rule.DEADLINE)]


@pytest.mark.property
@given(seed=SEEDS)
def test_capacities_are_sharp(random_case, seed):
    problem, events = random_case(seed)
    for k, tier in enumerate(problem.tiers):
        held = most = 0
        copies = set()
        for event in events:
            if event.tier == k and event.kind is Kind.PAGE_OUT and event.target not in copies:
                copies.add(event.target)
                held += tier.stored(problem.graph.values[event.target].size)
            most = max(most, held)
            if event.tier == k and event.kind is Kind.DROP:
                copies.remove(event.target)
                held -= tier.stored(problem.graph.values[event.target].size)
        for capacity, ok in ((most, True), (most - 1, False)):
            if capacity >= 0:
                tiers = [*problem.tiers[:k], replace(tier, capacity=capacity), *problem.tiers[k + 1 :]]
                verdict = judge(events, problem.graph, problem.device.with_tiers(*tiers))
                assert verdict.ok == ok
                assert {violation.kind for violation in verdict.violations} <= {Rule.CAPACITY}


def test_no_deadline_is_infinite():
    assert judge(PLAIN, deadline=inf).ok

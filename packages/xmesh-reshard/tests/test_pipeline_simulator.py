"""The event model against closed forms, longest paths and exhaustive search; bounds and what a timeline says."""

from functools import cache
from itertools import pairwise, product
from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmesh_reshard.pipeline import DeadlockError, Instruction, Op, Schedule, Status, schedule, theory, unet_transfers
from xmesh_reshard.pipeline.bounds import one_machine_bound
from xmesh_reshard.pipeline.costs import costs
from xmesh_reshard.pipeline.simulator import makespan, simulate
from xmesh_reshard.pipeline.theory_paths import exhaustive_optimum, longest_path

# Spec's table: p, m, c -> ideal, 1F1B blocking, 1F1B overlapped, eager overlapped, GPipe overlapped (tf = 1, tb = 2).
TABLE = {
    (2, 8, 0.5): (27, 31.5, 31, 28, 28),
    (2, 8, 1): (27, 36, 35, 29, 29),
    (4, 16, 0.5): (57, 74.5, 71, 60, 60),
    (4, 16, 1): (57, 92, 85, 63, 63),
    (8, 32, 0.5): (117, 154.5, 151, 124, 124),
    (8, 32, 1): (117, 192, 185, 131, 131),
}
PASSES = ((1, 1), (1, 2), (3, 1), (1, 5), (2, 3))


cached = cache(schedule)


def span(made, tf, tb, c, *, tw=None, **options):
    """The makespan alone, without the bound."""
    table = costs(made.stages, tf, tb, c, tw=tw, split=made.split_backward)
    return makespan(made.devices, made.placement, table, **options)


@pytest.mark.parametrize("case", TABLE)
def test_every_row_of_the_published_model(case):
    p, m, c = case
    found = (
        schedule("gpipe", p, m).simulate(1, 2, 0).makespan,
        schedule("1f1b", p, m).simulate(1, 2, c, overlap=False).makespan,
        *(schedule(kind, p, m).simulate(1, 2, c).makespan for kind in ("1f1b", "eager-1f1b", "gpipe")),
    )
    assert found == TABLE[case]
    closed = (
        theory.ideal(p, m, 1, 2),
        theory.one_f_one_b_blocking(p, m, 1, 2, c),
        theory.one_f_one_b_overlap(p, m, 1, 2, c),
        theory.eager_overlap(p, m, 1, 2, c),
        theory.gpipe_overlap(p, m, 1, 2, c),
    )
    assert closed == TABLE[case]


# All numbers are binary fractions, so equality is exact.
@pytest.mark.parametrize("p", range(1, 5))
def test_closed_forms_hold_where_they_say(p):
    for m, (tf, tb) in product((1, 2, 3, 4, 6, 9), PASSES[1:4]):
        plain, eager, fill = (cached(kind, p, m) for kind in ("1f1b", "eager-1f1b", "gpipe"))
        for c in (0.5, 1, 1.5, 2.75, 4, 9):
            assert span(plain, tf, tb, c) == theory.one_f_one_b_overlap(p, m, tf, tb, c)
            assert span(plain, tf, tb, c, overlap=False) == theory.one_f_one_b_blocking(p, m, tf, tb, c)
            assert span(fill, tf, tb, c) == theory.gpipe_overlap(p, m, tf, tb, c)
            assert span(fill, tf, tb, c, overlap=False) == theory.gpipe_blocking(p, m, tf, tb, c)
            if c <= 2 * (tf + tb):
                assert span(eager, tf, tb, c) == theory.eager_overlap(p, m, tf, tb, c)


def test_eager_meets_the_lower_bound_exactly_up_to_half_a_step_of_transfer():
    for p, m, (tf, tb) in product((2, 4), (1, 2, 3, 4, 9), PASSES[1:4]):
        whole = tf + tb
        limit = {1: inf, 2: whole, 3: whole}.get(m, whole / 2)
        for c in (k * whole / 8 for k in (2, 4, 5, 8, 9)):
            timeline = cached("eager-1f1b", p, m).simulate(tf, tb, c)
            reached = timeline.makespan == (m + p - 1) * whole + 2 * (p - 1) * c
            assert reached == (c <= limit)
            if reached:
                assert timeline.gap == 0


def test_weight_delaying_closed_form_in_its_ranges():
    for p, m, (tf, b, w) in product(
        (1, 2, 3, 5), (1, 2, 5, 11), ((1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 4), (3, 1, 2))
    ):
        whole = tf + b + w
        limits = {"1f1b": w / 2, "eager-1f1b": (whole + w) / 2, "gpipe": min(tf, b + w)}
        for (kind, limit), share in product(limits.items(), (0, 0.25, 0.5, 1)):
            c = limit * share
            expected = theory.weight_delayed_overlap(p, m, tf, b + w, w, c)
            assert span(cached(kind, p, m, split_backward=True), tf, b + w, c, tw=w) == expected
    # Beyond its range 1F1B is slower than that.
    late = span(cached("1f1b", 3, 11, split_backward=True), 1, 2, 0.75, tw=1)
    assert late > theory.weight_delayed_overlap(3, 11, 1, 2, 1, 0.75)


def test_zero_bubble_closed_forms():
    for p, m, tf, b, w in product((1, 2, 3, 5), (5, 9), (1, 2, 4), (1, 2, 4), (0, 1, 5)):
        once, twice = (cached("zero-bubble", p, m, max_inflight=limit) for limit in (p, 2 * p - 1))
        assert span(once, tf, b + w, 0, tw=w) == theory.zero_bubble(p, m, tf, b + w, w)
        if m >= 2 * p - 1:
            assert span(twice, tf, b + w, 0, tw=w) == theory.zero_bubble(p, m, tf, b + w, w, twice=True)
    # Bubbles of a device's own span are those of the zero-bubble paper, (p-1)(tf+b-w) and (p-1)(tf+b-2w).
    assert cached("zero-bubble", 4, 8).simulate(1, 2).period == 24 + 3
    assert cached("zero-bubble", 4, 8, max_inflight=7).simulate(1, 2).period == 24


def test_interleaved_bubble_is_one_vth_for_any_number_of_microbatches():
    for p, v, m, (tf, tb) in product((1, 2, 4), (1, 2, 3), (1, 3, 4, 5, 7, 10), ((1, 2), (2, 1))):
        timeline = cached("interleaved", p, m, chunks=v).simulate(tf, tb)
        assert timeline.makespan == theory.interleaved(p, m, v, tf, tb)
        assert timeline.gap == 0


SIZES = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 5), st.booleans(), st.integers(0, 2**32 - 1))


def problem(stages, microbatches, devices, split, seed):
    """A schedule in any order that can be run, on any placement, with costs in eighths, skip connections too."""
    rng = np.random.default_rng(seed)
    devices = min(stages, devices)
    placement = rng.permutation([*range(devices), *rng.integers(0, devices, stages - devices)]).tolist()
    ops = "FBW" if split else "FB"
    todo = {(op, s, k) for op in ops for s in range(stages) for k in range(microbatches)}
    orders = [[] for _ in range(devices)]
    while todo:
        ready = sorted(step for step in todo if not leads_to(step, stages) & todo)
        op, s, k = ready[rng.integers(len(ready))]
        todo.remove((op, s, k))
        orders[placement[s]].append(Instruction(Op(op), s, k))
    made = Schedule("any", tuple(map(tuple, orders)), tuple(placement), microbatches)

    def eighths(count):
        return tuple(map(float, rng.integers(0, 33, count) / 8))

    comm = {(s, s + 1): x for s, x in enumerate(eighths(stages - 1))}
    for i, j in product(range(stages), repeat=2):
        if i < j and rng.random() < 0.3:
            comm[i, j], comm[j, i] = eighths(2)
    tw = eighths(stages)
    tb = tuple(a + b for a, b in zip(tw, eighths(stages), strict=True))
    return made, costs(stages, eighths(stages), tb, comm, tw=tw, split=split)


def leads_to(step, stages):
    op, s, k = step
    if op == "F":
        return {("F", s - 1, k)} if s else set()
    if op == "W":
        return {("B", s, k)}
    return {("F", s, k), *([("B", s + 1, k)] if s + 1 < stages else [])}


MODES = {
    "overlap": {},
    "port": {"shared_port": True},
    "blocking": {"overlap": False},
    "rendezvous": {"overlap": False, "rendezvous": True},
}


def path(made, table, mode):
    orders = [[(str(s.op), s.stage, s.microbatch) for s in order] for order in made.devices]
    seconds = {"F": table.forward, "B": table.backward, "W": table.weight}
    return longest_path(orders, made.placement, seconds, table.transfers, mode)


@pytest.mark.property
@pytest.mark.parametrize("mode", MODES)
@given(sizes=SIZES)
def test_simulation_is_the_longest_path(mode, sizes):
    made, table = problem(*sizes)
    timeline = simulate(made.devices, made.placement, table, **MODES[mode])
    expected = path(made, table, mode)
    assert timeline.makespan == expected
    assert (timeline.status is Status.DEADLOCK) == (expected == inf)
    assert mode == "rendezvous" or expected < inf


@pytest.mark.property
@given(sizes=SIZES)
def test_timelines_keep_what_they_promise(sizes):
    made, table = problem(*sizes)
    for mode in ("overlap", "port", "blocking"):
        timeline = simulate(made.devices, made.placement, table, **MODES[mode])
        ends = {s.instruction: s for spans in timeline.devices for s in spans}
        assert tuple(tuple(s.instruction for s in spans) for spans in timeline.devices) == made.devices
        for spans in timeline.devices:
            assert all(a.end <= b.start for a, b in pairwise(spans))
            assert all(s.end - s.start == table.compute(s.instruction) for s in spans)
        for t in timeline.transfers:
            producer = Instruction(Op.B if t.message.backward else Op.F, t.message.source, t.message.microbatch)
            assert t.issued == ends[producer].end <= t.start
            assert t.end - t.start == table.transfer(t.message)
            assert t.end <= ends[t.message.consumer].start
        assert timeline.peak_inflight() == made.peak_inflight()
        assert all(
            0 <= e <= timeline.makespan - b for e, b in zip(timeline.exposed_communication, timeline.busy, strict=True)
        )
        assert -1e-9 <= timeline.bubble_fraction <= 1 if timeline.makespan else True
        assert timeline.period <= timeline.makespan


@pytest.mark.property
@given(sizes=SIZES)
def test_no_schedule_goes_below_the_bound(sizes):
    made, table = problem(*sizes)
    comm = table.transfers
    whole = tuple(b + w for b, w in zip(table.backward, table.weight, strict=True))
    for options in MODES.values():
        timeline = made.simulate(table.forward, whole, comm, tw=table.weight, **options)
        assert timeline.lower_bound <= timeline.makespan
    assert made.simulate(table.forward, whole, comm, tw=table.weight).lower_bound >= max(timeline.busy)


def test_bound_and_eager_against_every_order_there_is():
    rng = np.random.default_rng(5)
    for p, m, split in ((2, 2, False), (2, 3, False), (3, 2, False), (2, 2, True)):
        for _ in range(2):
            forward, weight = rng.integers(1, 17, p) / 8, rng.integers(1, 9, p) / 8 * split
            backward = rng.integers(1, 17, p) / 8
            comm = {(i, i + 1): float(rng.integers(0, 17) / 8) for i in range(p - 1)}
            table = costs(p, forward, backward + weight, comm, tw=weight, split=split)
            seconds = {"F": table.forward, "B": table.backward, "W": table.weight}
            best = exhaustive_optimum(p, m, seconds, table.transfers, split=split)
            made = schedule("eager-1f1b", p, m, split_backward=split)
            timeline = made.simulate(forward, backward + weight, comm, tw=weight)
            assert timeline.lower_bound <= best <= timeline.makespan
    # Balanced stages: eager-1F1B is optimal, and the bound proves it.
    seconds = {"F": (1, 1), "B": (2, 2)}
    best = exhaustive_optimum(2, 3, seconds, {(0, 1): 1, (1, 0): 1})
    timeline = schedule("eager-1f1b", 2, 3).simulate(1, 2, 1)
    assert best == timeline.makespan == timeline.lower_bound == 14
    assert schedule("1f1b", 2, 3).simulate(1, 2, 1).makespan == 16


def test_one_machine_bound_is_the_best_of_all_subsets():
    rng = np.random.default_rng(3)
    for _ in range(30):
        tasks = [tuple(map(float, rng.integers(0, 9, 3))) for _ in range(6)]
        best = 0.0
        for chosen in range(1, 1 << 6):
            some = [task for i, task in enumerate(tasks) if chosen >> i & 1]
            best = max(best, min(r for r, _, _ in some) + sum(p for _, p, _ in some) + min(q for _, _, q in some))
        assert one_machine_bound(tasks) == best


def test_rendezvous_deadlocks_where_real_blocking_would_and_says_who_waits():
    timeline = schedule("1f1b", 2, 4).simulate(1, 2, 1, overlap=False, rendezvous=True)
    assert timeline.status is Status.DEADLOCK
    assert timeline.makespan == timeline.period == inf
    assert timeline.reason == (
        "device 0 waits to send the activation of microbatch 1 from stage 0 to stage 1; "
        "device 1 waits to send the gradient of microbatch 0 from stage 1 to stage 0"
    )
    with pytest.raises(DeadlockError, match="deadlocks: every device"):
        timeline.unwrap()
    gpipe = schedule("gpipe", 4, 8)
    both = gpipe.simulate(1, 2, 1, overlap=False, rendezvous=True)
    assert both.unwrap() is both
    assert both.makespan >= gpipe.simulate(1, 2, 1, overlap=False).makespan


def test_skip_connections_are_where_eager_gains():
    comm = unet_transfers(4, 1.0)
    plain, eager = (schedule(kind, 4, 16).simulate(1, 2, comm) for kind in ("1f1b", "eager-1f1b"))
    assert (plain.makespan, eager.makespan) == (95, 68)
    # Every device but the last waits for gradients in 1F1B's steady state.
    assert sum(plain.exposed_communication) > 4 * sum(eager.exposed_communication) / 2


def test_exposed_communication_by_hand():
    # Two stages, one microbatch: device 1 waits 3 s for the activation, device 0 then 5 s for the gradient; what it
    # waits for device 1 to compute is no communication.
    timeline = schedule("1f1b", 2, 1).simulate(1, 2, {(0, 1): 3, (1, 0): 5})
    assert timeline.exposed_communication == (5, 3)
    assert timeline.makespan == 1 + 3 + 1 + 2 + 5 + 2
    # Blocking, both stall for what they send as well.
    blocking = schedule("1f1b", 2, 1).simulate(1, 2, {(0, 1): 3, (1, 0): 5}, overlap=False)
    assert blocking.exposed_communication == (3 + 5, 3 + 5)
    assert blocking.makespan == timeline.makespan
    assert schedule("1f1b", 4, 8).simulate(1, 2).exposed_communication == (0, 0, 0, 0)


def test_activations_and_buffers_over_time():
    timeline = schedule("1f1b", 2, 3).simulate(1, 2)
    assert timeline.inflight(1) == ((0, 0), (1, 1), (4, 0), (4, 1), (7, 0), (7, 1), (10, 0))
    assert timeline.peak_inflight() == (2, 1)
    eager = schedule("eager-1f1b", 2, 6).simulate(1, 2, 0.5)
    # F1 and F2 of stage 0 arrive before stage 1 has done F0 and B0; gradients are used at once.
    assert eager.peak_buffers() == (1, 2)


def test_shared_port_makes_skip_connections_wait():
    comm = {(0, 1): 1.0, (1, 2): 1.0, (0, 2): 1.0}
    free, shared = (schedule("gpipe", 3, 1).simulate(1, 1, comm, shared_port=x) for x in (False, True))
    # Nearest first: only the skip connections wait, and the slower chain hides that.
    assert free.makespan == shared.makespan == 10
    ends = {(t.message.source, t.message.target): t.end for t in shared.transfers}
    assert (ends[0, 1], ends[0, 2]) == (2, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tf": -1}, "tf must be a finite number of seconds, at least 0, got -1"),
        ({"tb": [1, 2]}, "tb must be one number or 3 of them, got 2"),
        ({"tb": float("nan")}, "tb must be a finite number"),
        ({"comm": [1.0]}, "comm must be one number or 2 of them, got 1"),
        ({"comm": {(0, 3): 1.0}}, "pairs of different stages of 0..2, got the key"),
        ({"comm": {(2, 0): 1.0}}, "gradient .2, 0. but not the activation .0, 2."),
        ({"rendezvous": True}, "give overlap=False with it"),
        ({"shared_port": True, "overlap": False}, "shared_port is"),
    ],
)
def test_bad_costs_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        schedule("gpipe", 3, 2).simulate(**arguments)


def test_weight_gradients_take_no_more_than_the_backward_pass():
    with pytest.raises(ValueError, match="tw is the part of tb"):
        schedule("zero-bubble", 3, 3).simulate(1, 2, tw=3)


def test_unequal_stages_and_arrays():
    tf = np.array([1.0, 2.0, 1.0])
    timeline = schedule("1f1b", 3, 4).simulate(tf, list(2 * tf), np.array([0.5, 0.25]))
    assert timeline.busy == (12, 24, 12)
    assert timeline.lower_bound == 1 + 0.5 + 24 + 0.5 + 2


def test_the_same_call_gives_the_same_timeline():
    first, second = (schedule("interleaved", 3, 7).simulate(1, 2, unet_transfers(6, 0.5)) for _ in range(2))
    assert first == second

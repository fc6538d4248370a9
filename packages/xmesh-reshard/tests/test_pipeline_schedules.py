"""Orders of the known rules, what makes a schedule, and how it is written down."""

from itertools import product

import pytest

from xmesh_reshard.pipeline import Instruction, Op, Schedule, ScheduleError, schedule, theory

KINDS = ("gpipe", "1f1b", "eager-1f1b", "interleaved", "zero-bubble")


def warmup(order):
    """Forward passes before the first backward pass."""
    return next(at for at, step in enumerate(order) if step.op is Op.B)


@pytest.mark.parametrize(("stages", "microbatches"), [(1, 1), (2, 3), (4, 16), (8, 32)])
def test_warm_up_and_activations_held_are_those_of_the_paper(stages, microbatches):
    for kind, width in (
        ("gpipe", lambda i: microbatches),
        ("1f1b", lambda i: stages - i),
        ("eager-1f1b", lambda i: 2 * (stages - i) - 1),
    ):
        made = schedule(kind, stages, microbatches)
        assert [warmup(order) for order in made.devices] == [min(microbatches, width(i)) for i in range(stages)]
        expected = tuple(theory.peak_inflight(kind, stages, microbatches, i) for i in range(stages))
        assert made.peak_inflight() == expected
        assert schedule(kind, stages, microbatches, split_backward=True).peak_inflight() == expected


def test_interleaved_is_megatrons_order():
    # Two devices, two chunks, four microbatches: written out by hand from Narayanan et al. 2021, Figure 4.
    assert schedule("interleaved", 2, 4, chunks=2).table().splitlines() == [
        "device 0: F0.0 F1.0 F0.1 F1.1 F2.0 B0.1 F3.0 B1.1 F2.1 B0.0 F3.1 B1.0 B2.1 B3.1 B2.0 B3.0",
        "device 1: F0.0 F1.0 F0.1 B0.1 F1.1 B1.1 F2.0 B0.0 F3.0 B1.0 F2.1 B2.1 F3.1 B3.1 B2.0 B3.0",
    ]


@pytest.mark.parametrize(("stages", "chunks"), list(product((1, 2, 3, 5), (1, 2, 3))))
def test_interleaved_runs_before_its_first_backward_pass_what_megatron_does(stages, chunks):
    for groups in (1, 2, 4):
        made = schedule("interleaved", stages, groups * stages, chunks=chunks)
        every = groups * stages * chunks
        expected = [min(every, 2 * (stages - 1 - d) + (chunks - 1) * stages + 1) for d in range(stages)]
        assert [warmup(order) for order in made.devices] == expected


def test_one_chunk_interleaved_is_eager():
    for stages, microbatches in product((1, 2, 4), (1, 3, 8)):
        one = schedule("interleaved", stages, microbatches, chunks=1)
        assert one.devices == schedule("eager-1f1b", stages, microbatches).devices


def test_zero_bubble_is_1f1b_or_eager_where_nothing_is_put_off():
    for stages, kind in ((4, "1f1b"), (4, "eager-1f1b")):
        limit = stages if kind == "1f1b" else 2 * stages - 1
        first = schedule("zero-bubble", stages, 16, max_inflight=limit).devices[0]
        assert first == schedule(kind, stages, 16, split_backward=True).devices[0]


@pytest.mark.parametrize("kind", ["1f1b", "eager-1f1b", "zero-bubble"])
def test_no_device_holds_more_than_the_limit(kind):
    for stages, microbatches, limit in product((1, 2, 4, 7), (1, 5, 20), range(1, 14)):
        made = schedule(kind, stages, microbatches, max_inflight=limit)
        assert max(made.peak_inflight()) <= limit
        if kind == "zero-bubble" and limit <= 2 * stages - 1 and microbatches >= limit:
            assert set(made.peak_inflight()) == {limit}


@pytest.mark.parametrize("kind", KINDS)
def test_microbatches_of_a_stage_are_accumulated_in_ascending_order(kind):
    for stages, microbatches in ((1, 4), (3, 3), (4, 10)):
        made = schedule(kind, stages, microbatches)
        last = Op.W if made.split_backward else Op.B
        for stage in range(made.stages):
            order = made.devices[made.placement[stage]]
            for op in {Op.F, Op.B, last}:
                found = [step.microbatch for step in order if step.op is op and step.stage == stage]
                assert found == list(range(microbatches))


@pytest.mark.parametrize("kind", KINDS)
def test_json_gives_the_same_schedule(kind):
    made = schedule(kind, 3, 5)
    again = Schedule.from_json(made.to_json())
    assert again == made
    assert hash(again) == hash(made)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a schedule"),
        ("[]", "format must be"),
        ('{"format": "xmesh-reshard pipeline schedule", "version": 9}', "of version 9"),
        ('{"format": "xmesh-reshard pipeline schedule", "version": 1}', "not a schedule: 'devices'"),
        (schedule("gpipe", 2, 2).to_json().replace('"B"', '"X"'), "'X' is not a valid Op"),
        (schedule("gpipe", 2, 2).to_json().replace('["B", 0, 0], ', ""), "B0 of stage 0 is never run"),
    ],
)
def test_what_is_no_schedule_is_not_read(text, message):
    with pytest.raises(ScheduleError, match=message):
        Schedule.from_json(text)


def lists(*texts):
    """Instructions from "F0.1": op, stage, microbatch."""
    return tuple(tuple(Instruction(Op(word[0]), int(word[1]), int(word[3])) for word in text.split()) for text in texts)


@pytest.mark.parametrize(
    ("orders", "message"),
    [
        (("F0.0 B0.0", "F1.0"), "B0 of stage 1 is never run"),
        (("F0.0 B0.0 B0.0", "F1.0 B1.0"), "run 2 times"),
        (("F0.0 B0.0", "F1.0 B1.0 F1.1"), "F1 of stage 1 is no pass of 2 stages and 1 microbatches"),
        (("F0.0 B0.0 F1.0", "B1.0"), "device 0 runs F0 of stage 1, which is on device 1"),
        (("B0.0 F0.0", "F1.0 B1.0"), "B0 of stage 0 before its F"),
        (("F0.0 W0.0 B0.0", "F1.0 B1.0 W1.0"), "W0 of stage 0 before its B"),
        (("F0.0 B0.0 W0.0", "F1.0 B1.0"), "W0 of stage 1 is never run"),
        (("F0.0 B0.0",), "placement must name each of 1 devices"),
    ],
)
def test_lists_that_are_no_schedule_are_refused(orders, message):
    with pytest.raises(ScheduleError, match=message):
        Schedule("mine", lists(*orders), (0, 1), 1)


def test_devices_that_wait_for_each_other_are_refused():
    # Device 0 wants the gradient of microbatch 0 before it sends the activation of 1, which device 1 wants first.
    orders = lists("F0.0 B0.0 F0.1 B0.1", "F1.0 F1.1 B1.0 B1.1")
    with pytest.raises(ScheduleError, match="wait for each other: device 1 waits for the activation of microbatch 1"):
        Schedule("mine", orders, (0, 1), 2)


def test_own_schedules_with_any_placement():
    # Four stages folded on two devices, the last beside the first.
    up = "F0.0 F3.0 B3.0 B0.0", "F1.0 F2.0 B2.0 B1.0"
    made = Schedule("folded", lists(*up), (0, 1, 1, 0), 1)
    assert [made.chunk(s) for s in range(4)] == [0, 0, 1, 1]
    assert made.peak_inflight() == (2, 2)
    # Between stages 1 and 2 nothing is sent: two transfers up, two down.
    assert made.simulate(1, 2, 10).makespan == 12 + 4 * 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("2f2b", 2, 2, {}), "kind must be one of gpipe, 1f1b"),
        (("gpipe", 0, 2, {}), "stages must be at least 1, got 0"),
        (("gpipe", 2, 0, {}), "microbatches must be at least 1, got 0"),
        (("interleaved", 2, 2, {"chunks": 0}), "chunks must be at least 1"),
        (("1f1b", 2, 2, {"chunks": 2}), "chunks is for kind 'interleaved' only"),
        (("1f1b", 2, 2, {"max_inflight": 0}), "max_inflight must be at least 1"),
        (("gpipe", 2, 2, {"max_inflight": 2}), "gpipe has no such limit"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    kind, stages, microbatches, options = arguments
    with pytest.raises(ValueError, match=message):
        schedule(kind, stages, microbatches, **options)

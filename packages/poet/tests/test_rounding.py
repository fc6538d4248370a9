"""Rounding of the relaxation, and what turns decisions into schedules."""

from math import inf

import numpy as np
import pytest

from poet import legacy
from poet.device import Device, Tier
from poet.events import compute, drop, free, page_in, page_out
from poet.graph import Graph, Op, Value
from poet.problem import Problem, formulate
from poet.repair import Prices, follow
from poet.replay import replay
from poet.rounding import prices_of, solve_rounding
from poet.schedule import Limits, Status
from poet.stages import StepError, add_copies, fits, settle
from poet.theory import optimum
from poet.theory_graphs import small_problem


def diamond(**tier) -> Problem:
    """a -> x; b reads x -> y; c reads y -> z; d reads x, z -> w."""
    ops = (
        Op("a", (), (0,), 4.0),
        Op("b", (0,), (1,), 2.0),
        Op("c", (1,), (2,), 1.0),
        Op("d", (0, 2), (3,), 1.0),
    )
    values = tuple(Value(name, 1, keep=name == "w") for name in "xyzw")
    tiers = (Tier("flash", 0.0, 1.0, 0.0, 1.0, power=1.0, **tier),)
    return Problem(
        Graph("diamond", ops, values), Device("toy", flops_per_second=1.0, compute_power=1.0, tiers=tiers), 3
    )


def test_settle_frees_at_the_last_reader_and_leaves_out_what_nobody_reads():
    steps = [compute(0), compute(1), compute(0), compute(2), page_out(1), compute(1), compute(3)]
    assert settle(diamond(), steps) == (
        compute(0), compute(1), free(0), compute(0), compute(2), free(1), compute(3), free(2), free(0),
    )  # fmt: skip


def test_settle_drops_copies_after_their_last_reader():
    steps = [compute(0), page_out(0), compute(1), compute(2), page_in(0), compute(3)]
    assert settle(diamond(), steps) == (
        compute(0), page_out(0), compute(1), free(0), compute(2), free(1), page_in(0), drop(0), compute(3), free(2),
        free(0),
    )  # fmt: skip


def test_settle_refuses_what_reads_nothing():
    with pytest.raises(StepError, match=r"values \[0\]"):
        settle(diamond(), [compute(1), compute(0), compute(2), compute(3)])
    with pytest.raises(StepError, match="values"):
        settle(diamond(), [compute(0), page_in(0), compute(1), compute(2), compute(3)])
    with pytest.raises(StepError, match="miss an operation"):
        settle(diamond(), [compute(0), compute(1)])


def test_copies_are_made_at_birth_outside_ram_and_at_the_last_reader_inside():
    steps = [compute(0), compute(1), compute(2), page_in(0), compute(3)]
    assert add_copies(diamond(), steps)[:2] == [compute(0), page_out(0)]
    late = add_copies(diamond(in_ram=True, ratio=0.5), steps)
    assert late[:3] == [compute(0), compute(1), page_out(0)]
    assert add_copies(diamond(capacity=1), steps)[:3] == late[:3]


def test_fits_looks_at_ram_rooms_deadline_and_channels():
    problem = diamond()
    events = settle(problem, add_copies(problem, [compute(0), compute(1), compute(2), page_in(0), compute(3)]))
    peak = replay(problem, events).peak

    def under(limit=peak, deadline=inf, paging="overlap", **tier):
        return fits(Problem(diamond().graph, diamond(**tier).device, limit, deadline, paging=paging), events)

    assert under()
    assert not under(limit=peak - 1)
    assert under(deadline=8.0)
    assert not under(deadline=7.9)
    assert not under(deadline=8.0, paging="serial")
    assert under(deadline=10.0, paging="serial")
    assert under(capacity=1)
    assert not under(capacity=0)
    assert not under(deadline=8.0, in_ram=True)  # the processor makes copies in RAM


def test_repair_takes_the_cheapest_way_back():
    problem = diamond()
    nothing = np.zeros((1, 4), dtype=bool)
    dear = prices_of(problem, nothing)  # 2 J for a page, 4 J for x
    assert dear.cheapest([0, 2], set()) == [page_in(0), page_in(2)]
    assert dear.cheapest([2], {1}) == [compute(2)]
    assert Prices(problem, problem.op_cost, np.full((1, 4), 9.0)).cheapest([2], set()) == [
        compute(0), compute(1), compute(2),
    ]  # fmt: skip
    assert prices_of(problem, np.array([[True, False, False, False]])).back[0] == 1.0  # the way out is paid
    fixed = Problem(problem.graph, problem.device.with_tiers(), 3, recompute=False)
    assert Prices(fixed, fixed.op_cost, np.empty((0, 4))).cheapest([2], set()) is None


def test_follow_keeps_what_is_wanted_as_long_as_it_fits():
    problem = diamond()
    everything = np.ones((5, 4), dtype=bool)
    prices = prices_of(problem, np.zeros((1, 4), dtype=bool))
    assert follow(problem, everything, prices) == [compute(i) for i in range(4)]
    narrow = problem.with_ram(2)  # c needs y and z: x has to go, whatever is wanted; d needs 3 bytes all the same
    assert follow(narrow, everything, prices) == [compute(0), compute(1), compute(2), page_in(0), compute(3)]
    assert follow(problem, ~everything, prices) == [
        compute(0), page_in(0), compute(1), page_in(1), compute(2), page_in(0), page_in(2), compute(3), page_in(3),
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(18))
def test_rounded_schedules_fit_and_are_never_below_the_optimum(seed):
    rng = np.random.default_rng(seed)
    paging, deadline = (("free", None), ("overlap", 1.5), ("serial", 2.0))[seed % 3]
    problem = small_problem(
        rng,
        5,
        tiers=1 + seed % 2,
        workspace=True,
        fixed=seed % 4 == 0,
        in_ram=seed % 6 == 1,
        paging=paging,
        deadline=deadline,
    )
    best = optimum(problem)
    found = solve_rounding(problem, Limits(seconds=5.0), rng=rng, draws=5)
    if found.events is None:
        assert found.status in (Status.UNKNOWN, Status.INFEASIBLE)
    else:
        assert best is not None
        assert fits(problem, found.events)
        assert replay(problem, found.events).cost >= best.cost - 1e-9
        assert found.lower_bound <= best.cost + 1e-9


def test_rounding_finds_most_small_optima():
    hits = total = 0
    for seed in range(16):
        problem = small_problem(np.random.default_rng(seed), 5)
        best = optimum(problem)
        if best is not None:
            total += 1
            found = solve_rounding(problem)
            hits += found.events is not None and replay(problem, found.events).cost <= best.cost + 1e-9
    assert hits >= 0.8 * total  # deterministic: thresholds alone


def test_rounding_on_a_real_graph():
    graph = legacy.graph("linear")
    problem = formulate(graph, Device.load("nrf52840"), int(0.6 * graph.forward_bytes), 2.0)
    found = solve_rounding(problem, Limits(seconds=20.0))
    assert found.status in (Status.FEASIBLE, Status.OPTIMAL)
    assert fits(problem, found.events)
    assert replay(problem, found.events).cost <= 1.02 * problem.baseline_cost


def test_too_little_ram_is_infeasible():
    problem = diamond().with_ram(1)
    assert solve_rounding(problem).status is Status.INFEASIBLE

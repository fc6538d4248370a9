"""Schedules to compare with: closed forms on chains, never below the optimum, infeasible where they do not fit."""

from math import inf

import numpy as np
import pytest

from poet import legacy
from poet.baselines import all_resident, best_segments, checkpointed, per_block, restrict, square_root
from poet.baselines_chain import ChainError, hrevolve, revolve
from poet.baselines_online import capuchin, dtr, page_only
from poet.device import Device, DeviceError, Tier
from poet.events import Kind, computed
from poet.graph import Graph, Op, Value
from poet.problem import Problem, formulate
from poet.replay import replay
from poet.schedule import Limits, Status
from poet.stages import fits, settle
from poet.theory import optimum
from poet.theory_chains import chain_executions, joint_chain
from poet.theory_graphs import small_problem

TOY = Device("toy", flops_per_second=1.0, compute_power=1.0)
FLASH = Tier("flash", 0.0, 4.0, 0.0, 4.0, power=1.0)
EVERYWHERE = (all_resident, square_root, best_segments, per_block, page_only, capuchin, dtr)


def cost(problem, found):
    if found.events is None:
        assert found.status is Status.INFEASIBLE
        return inf
    assert fits(problem, found.events)
    return replay(problem, found.events).cost


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8, 13, 20])
def test_revolve_executes_as_few_operations_as_any_schedule_of_the_chain(steps):
    for places in range(1, min(steps, 7) + 1):
        problem = formulate(joint_chain(steps), TOY, places)
        assert cost(problem, revolve(problem)) == chain_executions(steps, places) + steps


def test_hrevolve_uses_the_tier_when_it_is_cheap():
    for steps, places in ((8, 2), (12, 3)):
        plain = formulate(joint_chain(steps), TOY, places)
        paged = formulate(joint_chain(steps), TOY.with_tiers(FLASH), places, paging="free")  # 0.25 J a transfer
        found = hrevolve(paged)
        assert cost(plain, hrevolve(plain)) >= cost(plain, revolve(plain))
        assert cost(paged, found) < cost(plain, revolve(plain))
        assert any(event.kind is Kind.PAGE_IN for event in found.events)


def test_hrevolve_never_beats_the_exhaustive_search():
    for places in (2, 3):
        problem = formulate(joint_chain(3), TOY.with_tiers(FLASH), places, paging="free")
        assert cost(problem, hrevolve(problem)) >= optimum(problem, "any").cost - 1e-9


def test_binomial_checkpoints_need_a_chain():
    ops = (Op("a", (), (0,)), Op("b", (0,), (1,)), Op("c", (0, 1), (2,)))
    graph = Graph("skip", ops, tuple(Value(name, 1) for name in "xyz"))
    with pytest.raises(ChainError, match="'c' reads 'x'"):
        revolve(formulate(graph, TOY, 3, deadline=None, objective="time"))


@pytest.mark.parametrize("baseline", EVERYWHERE)
def test_never_below_the_optimum_and_always_within_the_limits(baseline):
    feasible = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        paging, deadline = (("free", None), ("overlap", 1.6), ("serial", 2.0))[seed % 3]
        problem = small_problem(
            rng, 5, tiers=1 + seed % 2, workspace=True, fixed=True, several_outputs=seed % 4 == 0, in_ram=seed % 5 == 1,
            paging=paging, deadline=deadline,
        )  # fmt: skip
        best = optimum(problem)
        found = cost(problem, baseline(problem))
        feasible += found < inf
        assert found >= (inf if best is None else best.cost - 1e-9)
    assert feasible or baseline in (all_resident, square_root, best_segments, per_block)


@pytest.mark.parametrize("baseline", EVERYWHERE)
def test_with_room_for_everything_nothing_is_overdone(baseline):
    graph = legacy.graph("resnet18_cifar")
    problem = formulate(graph, Device.load("nrf52840"), graph.resident_peak)
    found = cost(problem, baseline(problem))
    if baseline in (square_root, per_block):  # recompute whether there is room or not, at most the forward pass once
        forward = sum(float(problem.op_cost[i]) for i, op in enumerate(graph.ops) if op.phase == "forward")
        assert problem.baseline_cost < found <= problem.baseline_cost + forward
    else:
        assert found == pytest.approx(problem.baseline_cost)


@pytest.mark.parametrize("baseline", [page_only, capuchin, dtr])
def test_policies_fit_a_real_network_into_a_fifth(baseline):
    graph = legacy.graph("resnet18_cifar")
    problem = formulate(graph, Device.load("nrf52840"), int(0.2 * graph.forward_bytes))
    found = baseline(problem)
    assert fits(problem, found.events)
    played = replay(problem, found.events)
    assert (played.recomputed == 0) == (baseline is page_only) or baseline is capuchin
    assert (played.paged_in == 0) == (baseline is dtr)


def test_page_only_pages_what_is_read_last():
    """Belady: of x (read last), y, z, one has to wait outside; it is x."""
    ops = (
        Op("a", (), (0,), 1.0), Op("b", (), (1,), 1.0), Op("c", (), (2,), 1.0), Op("d", (2,), (3,), 1.0),
        Op("e", (1, 3), (4,), 1.0), Op("f", (0, 4), (5,), 1.0),
    )  # fmt: skip
    graph = Graph("three", ops, tuple(Value(name, 1, keep=name == "w") for name in "xyzuvw"))
    problem = formulate(graph, TOY.with_tiers(FLASH), 3)
    found = page_only(problem)
    assert [event.target for event in found.events if event.kind is Kind.PAGE_IN] == [0]
    assert cost(problem, found) == 6 + 0.5 == optimum(problem).cost


def test_dtr_recomputes_what_is_cheap_large_and_stale():
    ops = (
        Op("small", (), (0,), 1.0), Op("large", (), (1,), 1.0), Op("dear", (), (2,), 9.0), Op("mid", (), (3,), 1.0),
        Op("use", (0, 1, 2), (4,), 1.0),
    )  # fmt: skip
    sizes = (1, 4, 4, 6, 1)
    graph = Graph("h", ops, tuple(Value(f"v{i}", size, keep=i == 4) for i, size in enumerate(sizes)))
    found = dtr(formulate(graph, TOY, 14))  # 15 bytes are wanted when "mid" runs
    assert computed(found.events) == [0, 1, 2, 3, 1, 4]


def test_checkpoints_of_a_chain_are_chens():
    problem = formulate(joint_chain(9), TOY, 10**6)
    events = settle(problem, checkpointed(problem, [3, 6]))
    assert [i for i in computed(events)[9:] if i < 9] == [3, 4, 0, 1]  # a5 and a2 stayed: they cross a border
    assert replay(problem, events).peak == 5  # a2, a5, and the last segment
    assert cost(problem, square_root(problem)) == 18 + 4
    with pytest.raises(ValueError, match="segments must be between 1 and 9"):
        square_root(problem, segments=10)


def test_blocks_begin_after_joins_unless_given():
    graph = legacy.graph("resnet18_cifar")
    problem = formulate(graph, Device.load("nrf52840"), graph.resident_peak)
    joins = [i for i, op in enumerate(graph.ops) if op.phase == "forward" and len(op.inputs) > 1]
    assert joins
    given = per_block(problem, blocks=[i + 1 for i in joins])
    assert cost(problem, given) == cost(problem, per_block(problem))
    linear = formulate(joint_chain(9), TOY, 10**6)
    assert per_block(linear).events == square_root(linear).events


def test_restrict_takes_means_away():
    problem = small_problem(np.random.default_rng(0), 4, tiers=2)
    assert restrict(problem, tiers=()).tiers == ()
    assert [tier.name for tier in restrict(problem, tiers=("tier1",)).tiers] == ["tier1"]
    assert not restrict(problem, recompute=False).recomputable.any()
    assert restrict(problem) == problem
    with pytest.raises(DeviceError, match="no tier 'disk'"):
        restrict(problem, tiers=("disk",))


def test_both_means_are_never_worse_than_one():
    gains = 0
    for seed in range(12):
        problem = small_problem(np.random.default_rng(seed), 6)
        parts = []
        for alone in (restrict(problem, tiers=()), restrict(problem, recompute=False)):
            found = optimum(alone)
            parts.append(inf if found is None else found.cost)
        joint = optimum(problem)
        assert (inf if joint is None else joint.cost) <= min(parts) + 1e-9
        gains += joint is not None and joint.cost < min(parts) - 1e-6
    assert gains


def test_long_chains():
    problem = formulate(joint_chain(300), TOY.with_tiers(FLASH), 60)
    for baseline in (square_root, page_only, capuchin, dtr):
        assert cost(problem, baseline(problem)) < 2 * problem.baseline_cost


def test_no_time_is_no_proof_that_nothing_fits():
    problem = Problem(joint_chain(40), TOY, 6)
    for baseline in (best_segments, dtr, hrevolve):
        assert baseline(problem, Limits(seconds=-1.0)).status is not Status.INFEASIBLE

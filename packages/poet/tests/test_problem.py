"""The problem as arrays: costs by hand, and what a user can get wrong."""

import math
from dataclasses import replace

import jaxtyping
import numpy as np
import pytest

from poet.device import Device, DeviceError, Tier
from poet.graph import Graph, Static, chain
from poet.problem import Objective, Problem, formulate

FLASH = Tier("flash", 0.1, 100.0, 0.2, 50.0, power=3.0, block=10)
HOST = Tier("host", 0.0, 1000.0, 0.0, 1000.0, power=0.5, duplex=True)
PACKED = Tier("packed", 0.0, 10.0, 0.0, 10.0, power=2.0, ratio=0.25, in_ram=True)
DEVICE = Device("hand-made", ram=1000, flops_per_second=10.0, flops_per_joule=5.0, tiers=(FLASH, HOST, PACKED))
GRAPH = chain("two", [20, 25], [30.0, 40.0]).with_static(Static(parameters=7, inputs=3))


def test_costs_by_hand():
    problem = formulate(GRAPH, DEVICE)
    np.testing.assert_array_equal(problem.sizes, [20, 25])
    np.testing.assert_array_equal(problem.workspace, [0, 0])
    np.testing.assert_allclose(problem.op_seconds, [3.0, 4.0])
    np.testing.assert_allclose(problem.op_joules, [6.0, 8.0])
    np.testing.assert_array_equal(problem.stored, [[20, 30], [20, 25], [5, 7]])
    np.testing.assert_allclose(problem.read_seconds, [[0.3, 0.4], [0.02, 0.025], [0.5, 0.7]])
    np.testing.assert_allclose(problem.write_seconds, [[0.6, 0.8], [0.02, 0.025], [0.5, 0.7]])
    np.testing.assert_allclose(problem.read_joules, np.array([[0.9, 1.2], [0.01, 0.0125], [1.0, 1.4]]))
    np.testing.assert_allclose(problem.write_joules, np.array([[1.8, 2.4], [0.01, 0.0125], [1.0, 1.4]]))
    assert (problem.baseline_cost, problem.baseline_seconds) == (pytest.approx(14.0), pytest.approx(7.0))
    assert (problem.limit, problem.ram, problem.deadline) == (1000, 990, math.inf)


def test_energy_objective_charges_joules():
    problem = formulate(GRAPH, DEVICE, objective="energy")
    np.testing.assert_allclose(problem.op_cost, problem.op_joules)
    np.testing.assert_allclose(problem.in_cost, problem.read_joules)
    np.testing.assert_allclose(problem.out_cost, problem.write_joules)


@pytest.mark.parametrize(("paging", "shown"), [("overlap", [0, 0, 1]), ("serial", [1, 1, 1]), ("free", [0, 0, 0])])
def test_time_objective_charges_what_is_not_hidden(paging, shown):
    problem = formulate(GRAPH, DEVICE, objective="time", paging=paging)
    np.testing.assert_allclose(problem.op_cost, problem.op_seconds)
    np.testing.assert_allclose(problem.shown, shown)
    np.testing.assert_allclose(problem.in_cost, problem.read_seconds * np.array(shown)[:, None])
    np.testing.assert_allclose(problem.out_cost, problem.write_seconds * np.array(shown)[:, None])


def test_a_part_of_the_transfers_may_be_hidden():
    problem = replace(formulate(GRAPH, DEVICE, objective="time"), hidden=0.75)
    np.testing.assert_allclose(problem.shown, [0.25, 0.25, 1.0])


def test_weighted_objective_is_the_weighted_sum():
    both = formulate(GRAPH, DEVICE, objective=Objective(energy=2.0, time=3.0), paging="serial")
    np.testing.assert_allclose(both.op_cost, 2 * both.op_joules + 3 * both.op_seconds)
    np.testing.assert_allclose(both.in_cost, 2 * both.read_joules + 3 * both.read_seconds)


def test_measured_durations_come_first():
    ops = (replace(GRAPH.ops[0], seconds=0.5), GRAPH.ops[1])
    device = replace(DEVICE, compute_power=4.0)
    problem = formulate(replace(GRAPH, ops=ops), device)
    np.testing.assert_allclose(problem.op_seconds, [0.5, 4.0])
    np.testing.assert_allclose(problem.op_joules, [2.0, 8.0])


def test_energy_from_power_where_the_profile_has_nothing_better():
    device = replace(DEVICE, compute_power=4.0, flops_per_joule=None)
    np.testing.assert_allclose(formulate(GRAPH, device).op_joules, [12.0, 16.0])


def test_time_needs_no_energy():
    device = replace(DEVICE, flops_per_joule=None)
    problem = formulate(GRAPH, device, objective="time")
    assert problem.baseline_cost == pytest.approx(7.0)
    assert np.isnan(problem.op_joules).all()
    with pytest.raises(DeviceError, match="'hand-made' has no flops_per_joule, which the energy of operations need"):
        formulate(GRAPH, device)


def test_what_may_be_recomputed():
    ops = (replace(GRAPH.ops[0], recomputable=False), GRAPH.ops[1])
    graph = replace(GRAPH, ops=ops)
    np.testing.assert_array_equal(formulate(graph, DEVICE).recomputable, [False, True])
    np.testing.assert_array_equal(formulate(graph, DEVICE, recompute=False).recomputable, [False, False])


def test_ram_in_all_its_forms():
    assert formulate(GRAPH, DEVICE, "1KiB").limit == 1024
    assert formulate(GRAPH, DEVICE, 77).limit == 77
    assert formulate(GRAPH, DEVICE, "100%").limit == 10 + 45  # static bytes and the plain step's peak
    assert formulate(GRAPH, DEVICE, "40%").limit == 22
    assert formulate(GRAPH, DEVICE, 4).ram == -6  # less than what is always there: an answer, not an error
    assert formulate(GRAPH, DEVICE, 77).with_ram(88).limit == 88


def test_deadlines_refer_to_the_plain_step():
    assert formulate(GRAPH, DEVICE, deadline=2.0).deadline == pytest.approx(14.0)
    assert formulate(GRAPH, DEVICE, deadline="1.5x").deadline == pytest.approx(10.5)
    assert formulate(GRAPH, DEVICE, deadline="90s").deadline == 90.0


def test_tiers_are_chosen_by_name_and_in_that_order():
    assert [tier.name for tier in formulate(GRAPH, DEVICE).tiers] == ["flash", "host", "packed"]
    assert [tier.name for tier in formulate(GRAPH, DEVICE, tiers=("ram", "host", "flash", "host")).tiers] == [
        "host",
        "flash",
    ]
    none = formulate(GRAPH, DEVICE, tiers=("ram",))
    assert none.tiers == ()
    assert none.read_seconds.shape == none.stored.shape == none.in_cost.shape == (0, 2)
    assert none.shown.shape == (0,)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"paging": "never"}, "paging must be one of overlap, serial, free, got 'never'"),
        (
            {"objective": "money"},
            r"objective must be 'energy', 'time' or poet.Objective\(energy=, time=\), got 'money'",
        ),
        ({"tiers": ("disk",)}, "device 'hand-made' has no tier 'disk'; it has 'flash', 'host', 'packed'"),
        ({"ram": "much"}, "expected bytes such as 262144, '256KiB', '1.5MB' or '40%', got 'much'"),
        ({"ram": -1}, "bytes must not be negative, got -1"),
        ({"deadline": 0.0}, "expected a deadline"),
    ],
)
def test_refuses(options, says, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # our own messages
    with pytest.raises(ValueError, match=says):
        formulate(GRAPH, DEVICE, **options)


def test_refuses_graphs_without_operations():
    with pytest.raises(ValueError, match="graph 'empty' has no operations: there is nothing to schedule"):
        formulate(Graph("empty", (), ()), DEVICE)


def test_ram_must_be_known():
    with pytest.raises(DeviceError, match="'hand-made' does not say how much RAM it has: give ram="):
        formulate(GRAPH, replace(DEVICE, ram=None))


def test_costs_must_be_finite():
    device = replace(DEVICE, flops_per_joule=1e-300)
    with pytest.raises(ValueError, match="costs on 'hand-made' are not finite"):
        formulate(chain("huge", [1], [1e300]), device)


@pytest.mark.parametrize("weights", [(0.0, 0.0), (-1.0, 2.0), (1.0, math.inf), (math.nan, 1.0)])
def test_weights_that_weigh_nothing(weights):
    with pytest.raises(ValueError, match="weights must be finite, not negative and not both 0"):
        Objective(*weights)


def test_objectives_by_name():
    assert Objective.of("energy") == Objective(1.0, 0.0)
    assert Objective.of("time") == Objective(0.0, 1.0)
    assert Objective.of(Objective(0.5, 0.5)) == Objective(0.5, 0.5)


def test_arrays_are_computed_once():
    problem = Problem(GRAPH, DEVICE, 100)
    assert problem.op_cost is problem.op_cost
    assert problem.with_ram(50).op_cost is not problem.op_cost

"""The paper's program in cvxpy, against the exhaustive search of its class."""

import sys
from math import inf

import numpy as np
import pytest

from poet.device import Device, Tier
from poet.problem import Problem, formulate
from poet.reference import ReferenceUnavailableError, formulate_reference, solve_reference
from poet.replay import replay
from poet.schedule import Limits, Status
from poet.stages import fits
from poet.theory_chains import chain_executions, joint_chain
from poet.theory_graphs import small_problem
from poet.theory_stages import stage_optimum

cvxpy = pytest.importorskip("cvxpy", reason="the reference program needs cvxpy, extra [cvxpy]")
EXACT = Limits(seconds=20.0, gap=0.0)


@pytest.mark.parametrize("seed", range(14))
def test_equals_the_exhaustive_search_of_the_papers_class(seed):
    rng = np.random.default_rng(seed)
    paging, deadline = (("free", None), ("free", 1.3), ("serial", 1.5))[seed % 3]
    problem = small_problem(
        rng, 5, tiers=int(seed % 4 > 0), workspace=seed % 2 == 0, fixed=seed % 5 == 0, paging=paging, deadline=deadline
    )
    expected = stage_optimum(problem)
    found = solve_reference(problem, EXACT)
    if expected == inf:
        assert found.status is Status.INFEASIBLE
        assert found.events is None
        assert found.lower_bound == inf
    else:
        assert found.status is Status.OPTIMAL
        assert replay(problem, found.events).cost == pytest.approx(expected, abs=1e-6)
        assert found.lower_bound == pytest.approx(expected, abs=1e-6)
        assert fits(problem, found.events)


def test_a_chain_costs_what_the_recurrence_says():
    problem = formulate(joint_chain(5), Device("toy", flops_per_second=1.0, compute_power=1.0), 3)
    found = solve_reference(problem, EXACT)
    assert replay(problem, found.events).cost == chain_executions(5, 3) + 5


def test_solvers_agree():
    problem = small_problem(np.random.default_rng(10), 5)
    installed = [name for name in ("HIGHS", "SCIPY") if name in cvxpy.installed_solvers()]
    costs = [replay(problem, solve_reference(problem, EXACT, name).events).cost for name in installed]
    assert costs == pytest.approx([stage_optimum(problem)] * len(installed))


@pytest.mark.peer
@pytest.mark.parametrize("solver", ["SCIP", "GUROBI"])
def test_peer_solvers_agree(solver):
    for seed in range(6):
        problem = small_problem(np.random.default_rng(seed), 5)
        found = solve_reference(problem, EXACT, solver)
        cost = inf if found.events is None else replay(problem, found.events).cost
        assert cost == pytest.approx(stage_optimum(problem))


def test_the_number_of_variables_is_the_papers():
    problem = small_problem(np.random.default_rng(3), 6)
    program = formulate_reference(problem).program
    edges = sum(len(set(op.inputs)) for op in problem.graph.ops)
    count = sum(variable.size for variable in program.variables())
    assert count == 6 * 36 + 6 * edges + 2 * 6  # R, S, D, I, O, U: 6 T²; F: T |E|; and the end of the step


def test_what_the_paper_does_not_know_is_refused():
    limited = Tier("flash", 0.0, 1.0, 0.0, 1.0, capacity=4)
    inside = Tier("8-bit", 0.0, 1.0, 0.0, 1.0, in_ram=True)
    plain = small_problem(np.random.default_rng(0), 3, tiers=2)
    coarse = Tier("4-bit", 0.0, 1.0, 0.0, 1.0, exact=False)
    refused = (
        (plain.tiers, "2 tiers"),
        ((limited,), "limited size"),
        ((inside,), "lie in RAM"),
        ((coarse,), "inexact"),
    )
    for tiers, named in refused:
        problem = Problem(plain.graph, plain.device.with_tiers(*tiers), plain.limit)
        with pytest.raises(ValueError, match=named):
            solve_reference(problem)


def test_missing_things_are_named(monkeypatch):
    problem = small_problem(np.random.default_rng(0), 3)
    with pytest.raises(ValueError, match="solver must be one of HIGHS"):
        solve_reference(problem, solver="CPLEX")
    monkeypatch.setattr(cvxpy, "installed_solvers", lambda: ["SCIPY"])
    with pytest.raises(ReferenceUnavailableError, match=r"no solver 'SCIP' here; .* it has SCIPY"):
        solve_reference(problem, solver="SCIP")
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    with pytest.raises(ReferenceUnavailableError, match=r"repertory-poet\[cvxpy\]"):
        solve_reference(problem)


def test_ram_below_the_working_set_is_infeasible_at_once():
    problem = small_problem(np.random.default_rng(0), 4)
    found = solve_reference(problem.with_ram(problem.graph.largest_working_set - 1))
    assert found.status is Status.INFEASIBLE

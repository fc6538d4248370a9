"""The tightened program: equal to the paper's, its relaxation below it, and the bound for the larger class."""

from itertools import pairwise
from math import inf
from time import perf_counter

import numpy as np
import pytest
from scipy import sparse

from poet import legacy
from poet.baselines_online import page_only
from poet.bound import windows
from poet.device import Device, Tier
from poet.gaps import gap_bound, gaps_of
from poet.linear import Builder, Linear, minimise, safe_bound
from poet.optimiser import Optimiser
from poet.problem import Problem, formulate
from poet.reference import solve_reference
from poet.replay import replay
from poet.schedule import Limits, Status
from poet.stages import fits
from poet.theory import optimum
from poet.theory_chains import joint_chain
from poet.theory_graphs import small_problem
from poet.theory_stages import knapsack_bound, stage_optimum
from poet.tight import formulate_tight, relaxation, solve_tight

EXACT = Limits(seconds=20.0, gap=0.0)
TOY = Device("toy", flops_per_second=1.0, compute_power=1.0)


def windows_bound(problem):
    with Optimiser() as solver:
        return windows(problem, solver, list(range(1, len(problem.graph.ops)))).value


def cost(problem, found):
    if found.events is None:
        assert found.status is Status.INFEASIBLE
        return inf
    assert found.status is Status.OPTIMAL
    assert fits(problem, found.events)
    assert found.lower_bound <= replay(problem, found.events).cost + 1e-9
    return replay(problem, found.events).cost


@pytest.mark.parametrize("seed", range(41))
def test_equals_the_reference_and_the_exhaustive_search(seed):
    rng = np.random.default_rng(seed)
    paging, deadline = (("free", None), ("overlap", 1.3), ("serial", 1.5), ("overlap", None))[seed % 4]
    several = seed % 3 == 0
    nodes = 7 if seed % 14 == 6 else 6 if seed % 5 == 1 else 5
    problem = small_problem(
        rng,
        nodes,
        workspace=seed % 2 == 0,
        fixed=seed % 5 == 0,
        several_outputs=several,
        paging=paging,
        deadline=deadline,
    )
    found = cost(problem, solve_tight(problem, EXACT))
    assert found == pytest.approx(cost(problem, solve_reference(problem, EXACT)), abs=1e-6)
    if nodes < 7 and not several and not (paging == "overlap" and deadline):
        assert found == pytest.approx(stage_optimum(problem), abs=1e-6)


@pytest.mark.parametrize("seed", range(10))
def test_several_tiers_and_copies_in_ram_give_schedules_no_better_than_any(seed):
    rng = np.random.default_rng(seed)
    problem = small_problem(
        rng, 4, tiers=2, in_ram=seed % 2 == 0, workspace=True, several_outputs=True, paging="serial"
    )
    found = solve_tight(problem, EXACT)
    best = optimum(problem)
    assert cost(problem, found) >= (inf if best is None else best.cost - 1e-9)
    one = Problem(problem.graph, problem.device.with_tiers(problem.tiers[0]), problem.limit, paging="serial")
    assert cost(problem, found) <= cost(one, solve_tight(one, EXACT)) + 1e-9


def test_a_tier_of_limited_size():
    problem = small_problem(np.random.default_rng(17), 5)
    free = cost(problem, solve_tight(problem, EXACT))
    tier = problem.tiers[0]
    costs = []
    for capacity in (0, 2, 5, 100):
        limited = problem.device.with_tiers(type(tier)(**{**vars_of(tier), "capacity": capacity}))
        costs.append(cost(problem, solve_tight(Problem(problem.graph, limited, problem.limit, paging="free"), EXACT)))
    without = Problem(problem.graph, problem.device.with_tiers(), problem.limit)
    assert costs == sorted(costs, reverse=True)
    assert costs[0] == cost(without, solve_tight(without, EXACT)) > costs[-1] == free


def vars_of(tier):
    return {name: getattr(tier, name) for name in tier.__dataclass_fields__}


def test_relaxations_are_below_the_optima_of_their_classes():
    for seed in range(24):
        rng = np.random.default_rng(seed)
        paging, deadline = (("free", None), ("overlap", 1.3), ("serial", 1.5))[seed % 3]
        problem = small_problem(
            rng,
            5 if seed % 3 < 2 else 4,
            workspace=seed % 2 == 0,
            fixed=seed % 4 == 0,
            tiers=seed % 3,
            several_outputs=seed % 5 == 0,
            in_ram=seed % 7 == 0,
            paging=paging,
            deadline=deadline,
        )
        best = optimum(problem)
        paper = cost(problem, solve_tight(problem, EXACT))
        assert relaxation(problem).value <= paper + 1e-9
        assert windows_bound(problem) <= (inf if best is None else best.cost) + 1e-9
        bounds = [problem.baseline_cost, knapsack_bound(problem), gap_bound(problem)]
        assert all(a <= b + 1e-6 for a, b in pairwise(bounds))


@pytest.mark.parametrize("seed", [128, 135, 169, 302])
def test_the_papers_relaxation_is_no_bound_for_the_larger_class(seed):
    problem = small_problem(np.random.default_rng(seed), 5)
    best = optimum(problem).cost
    assert windows_bound(problem) <= best < relaxation(problem).value - 1e-6


def test_monotone_in_ram_and_deadline():
    problem = formulate(joint_chain(6), TOY, 4, 2.0)
    by_ram = [problem.with_ram(ram) for ram in (2, 3, 4, 5, 6)]
    by_time = [formulate(joint_chain(6), TOY, 3, factor) for factor in (1.0, 1.1, 1.2, 1.4, 2.0)]
    for problems in (by_ram, by_time):
        for values in (
            [cost(p, solve_tight(p, EXACT)) for p in problems],
            [relaxation(p).value for p in problems],
            [windows_bound(p) for p in problems],
        ):
            assert all(a >= b - 1e-9 for a, b in pairwise(values))


def test_no_means_and_too_little_ram():
    problem = formulate(joint_chain(4), TOY, 3, recompute=False)
    for found in (solve_tight(problem), solve_tight(problem.with_ram(0))):
        assert (found.status, found.events, found.lower_bound) == (Status.INFEASIBLE, None, inf)
    nothing = problem.with_ram(0)
    assert relaxation(nothing).value == windows_bound(nothing) == gap_bound(nothing) == inf


def test_no_time_leaves_the_plain_bound():
    graph = legacy.graph("vgg16_cifar")
    problem = formulate(graph, Device.load("nrf52840"), int(graph.forward_bytes * 0.5), 2.0)
    relaxed = relaxation(problem, Limits(seconds=0.0))
    assert (relaxed.value, relaxed.finished, relaxed.S) == (problem.baseline_cost, False, None)
    found = solve_tight(problem, Limits(seconds=0.0))
    assert found.status is Status.UNKNOWN
    assert found.lower_bound == problem.baseline_cost


def test_a_hundred_operations_are_stated_within_seconds():
    graph = legacy.graph("resnet18_cifar")
    problem = formulate(graph, Device.load("nrf52840"), "40%", 2.0)
    start = perf_counter()
    tight = formulate_tight(problem)
    assert perf_counter() - start < 5.0  # takes about 0.05 s: a quadratic Python loop would not pass
    # R, S, D, I, O and U have a triangle each, F one entry for each stage and later reader.
    assert tight.program.matrix.shape[1] < 9 * 133**2 / 2


def test_gaps_are_between_successive_readers():
    problem = formulate(joint_chain(3), TOY, 3)
    gaps = gaps_of(problem)  # a0 is read by f1 and b0, a1 by f2 and b1, a2 by b2 next to it; gradients have no bytes
    assert list(zip(gaps.value.tolist(), gaps.begin.tolist(), gaps.end.tolist(), strict=True)) == [(0, 1, 5), (1, 2, 4)]
    stage, gap = gaps.over()
    assert list(zip(stage.tolist(), gap.tolist(), strict=True)) == [(2, 0), (3, 0), (4, 0), (3, 1)]


def test_gap_bound_in_closed_form():
    for steps in range(2, 9):
        for places in range(2, steps + 1):
            problem = formulate(joint_chain(steps), TOY, places)
            # When the last value is made all others exist: each that is too many comes back, for 1 J at least.
            assert gap_bound(problem) == pytest.approx(2 * steps + steps - places, abs=1e-6)


def test_gap_bound_of_a_thousand_operations_is_met_by_paging():
    tier = Tier("flash", 0.0, 8.0, 0.0, 8.0, power=1.0)  # 1/8 J out and 1/8 J in for each that is too many
    problem = formulate(joint_chain(500), TOY.with_tiers(tier), 100, paging="free")
    found = page_only(problem)
    best = replay(problem, found.events).cost
    assert best == 1000 + 400 / 4
    assert gap_bound(problem) == pytest.approx(best, abs=1e-6)


def linear(seed: int) -> Linear:
    rng = np.random.default_rng(seed)
    matrix = sparse.csr_array(rng.integers(-3, 4, size=(6, 5)).astype(float))
    lower, upper = np.full(6, -np.inf), matrix @ rng.uniform(size=5)
    lower[:2] = upper[:2]  # two equations
    lower[2], upper[2] = upper[2], np.inf
    cost = rng.normal(size=5)
    return Linear(cost, matrix, lower, upper, np.zeros(5), np.ones(5), np.ones(5, dtype=bool))


@pytest.mark.parametrize("seed", range(10))
def test_safe_bound_is_the_optimum_at_the_multipliers_and_below_it_elsewhere(seed):
    program = linear(seed)
    relaxed = minimise(program)
    value = float(program.cost @ relaxed.x)
    assert relaxed.bound == pytest.approx(value, abs=1e-7)
    assert relaxed.bound <= value + 1e-9
    rng = np.random.default_rng(seed)
    for _ in range(20):
        assert safe_bound(program, rng.normal(size=6)) <= value + 1e-9


def test_builder_places_rows_and_leaves_out_what_does_not_exist():
    lp = Builder()
    x = lp.variables(np.array([[True, False], [True, True]]), cost=np.array([1.0, 5.0]))
    lp.rows([(1.0, x[:, 0]), (2.0, x[:, 1])], lower=1.0)
    lp.rows([(np.array([3.0, 4.0]), x)], upper=9.0)
    program = lp.build()
    assert x.tolist() == [[0, -1], [1, 2]]
    assert program.cost.tolist() == [1.0, 1.0, 5.0]
    assert program.matrix.toarray().tolist() == [[1, 0, 0], [0, 1, 2], [3, 0, 0], [0, 3, 4]]
    assert minimise(program).bound == pytest.approx(2.0)

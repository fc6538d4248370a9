"""Lower bounds: never above the optimum of the class, and what they are on cases solved by hand."""

import numpy as np
import pytest

from poet import legacy
from poet.bound import critical_stages, whole, windows, windows_program
from poet.device import Device
from poet.gaps import gap_bound
from poet.optimiser import Optimiser
from poet.problem import formulate
from poet.theory import optimum
from poet.theory_graphs import small_problem


@pytest.fixture(scope="module")
def highs():
    with Optimiser("highs") as solver:
        yield solver


@pytest.mark.parametrize("options", [{}, {"tiers": 0}, {"tiers": 2, "ops": 5}, {"in_ram": True, "ops": 5},
                                     {"several_outputs": True, "workspace": True, "ops": 5},
                                     {"paging": "serial", "deadline": 1.5, "fixed": True}])  # fmt: skip
def test_no_bound_exceeds_the_optimum_of_its_class(options, highs):
    tight = 0
    for seed in range(15):
        problem = small_problem(np.random.default_rng(100 + seed), **{"ops": 6, **options})
        indexed, graph = optimum(problem, "indexed"), optimum(problem, "graph")
        n = len(problem.graph.ops)
        least = np.inf if graph is None else graph.cost
        for cuts in (list(range(1, n)), critical_stages(problem, 2), [n - 1]):
            found = windows(problem, highs, cuts).value
            assert found <= least + 1e-6, (seed, cuts)
            program, base = windows_program(problem, cuts)
            answer = highs.minimise(program, seconds=20.0)
            assert base + answer.bound <= least + 1e-6, (seed, cuts)
        value = whole(problem, highs).value
        assert value <= (np.inf if indexed is None else indexed.cost) + 1e-6, seed
        tight += indexed is not None and value > indexed.cost - 1e-6
    assert tight >= 3  # it is the optimum in a fair share of cases


def test_the_bounds_on_the_original_graph_are_at_least_those_of_the_dense_program(highs):
    """At 40 % of the forward bytes the relaxation of the paper's program leaves 0.161 %."""
    graph = legacy.graph("resnet18_cifar")
    problem = formulate(graph, Device.load("nrf52840"), int(0.4 * graph.forward_bytes), 2.0, paging="free")
    bound = windows(problem, highs, critical_stages(problem, 10))
    assert 0.00161 <= bound.value / problem.baseline_cost - 1 <= 0.00164


def test_without_pressure_the_bound_is_the_plain_step(highs):
    problem = small_problem(np.random.default_rng(0), 6)
    roomy = problem.with_ram(10**6)
    assert windows(roomy, highs, [2, 4]).value == pytest.approx(roomy.baseline_cost)
    assert gap_bound(roomy) == pytest.approx(roomy.baseline_cost)


def test_an_impossible_deadline_has_an_infinite_bound(highs):
    problem = small_problem(np.random.default_rng(1), 6, tiers=0, paging="serial", deadline=1.0)
    needs = problem.with_ram(problem.graph.largest_working_set)
    assert optimum(needs, "graph") is None
    assert windows(needs, highs, list(range(1, 6))).value == np.inf


def test_cuts_are_operations_in_order():
    problem = formulate(legacy.graph("resnet18_cifar"), Device.load("nrf52840"), 500_000)
    for count in (1, 5, 40):
        cuts = critical_stages(problem, count)
        assert cuts == sorted(set(cuts))
        assert 1 <= len(cuts) <= count + 1
        assert 0 < cuts[0] <= cuts[-1] < len(problem.graph.ops)

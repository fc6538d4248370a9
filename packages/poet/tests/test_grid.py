"""The program on the grid: equal to the exhaustive search of its class, and to the events that it stands for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poet import legacy
from poet.device import Device, Tier
from poet.graph import Graph, Op, Value
from poet.grid import all_places, build, encode, near_places
from poet.optimiser import Optimiser, Program
from poet.problem import formulate
from poet.replay import replay
from poet.search import everything_resident
from poet.theory import optimum
from poet.theory_graphs import small_problem
from poet.verifier import verify


@pytest.fixture(scope="module")
def highs():
    with Optimiser("highs") as solver:
        yield solver


def solve(problem, highs, places=None):
    grid = build(problem, all_places(problem.graph) if places is None else places)
    answer = highs.minimise(Program(grid.cost, grid.matrix, grid.upper, grid.base), seconds=30.0)
    return grid, answer


CASES = {
    "one tier": {},
    "no tier": {"tiers": 0},
    "several outputs and workspace": {"several_outputs": True, "workspace": True, "ops": 5},
    "not everything runs twice": {"fixed": True},
    "serial under a deadline": {"paging": "serial", "deadline": 1.6},
    "two tiers": {"tiers": 2, "ops": 5},
    "copies in RAM": {"tiers": 1, "in_ram": True, "ops": 5},
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
def test_the_whole_grid_is_the_class_of_the_exhaustive_search(options, highs):
    for seed in range(12):
        problem = small_problem(np.random.default_rng(seed), **{"ops": 6, **options})
        best = optimum(problem, "indexed")
        grid, answer = solve(problem, highs)
        if best is None:
            assert answer.status == "INFEASIBLE", seed
            continue
        assert answer.status == "OPTIMAL", seed
        assert grid.objective(answer.x) == pytest.approx(best.cost, abs=1e-6), seed


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
def test_a_solution_is_a_valid_schedule_of_its_cost_and_encodes_back(options, highs):
    for seed in range(20, 28):
        problem = small_problem(np.random.default_rng(seed), **{"ops": 7, **options})
        grid, answer = solve(problem, highs)
        if answer.x is None:
            continue
        events = grid.decode(answer.x)
        seen = replay(problem, events)
        assert seen.peak <= problem.ram
        assert seen.cost == pytest.approx(grid.objective(answer.x), rel=1e-9)
        assert verify(problem.graph, problem.device, events, limit=problem.limit, paging=problem.paging).ok
        x = encode(grid, events)
        assert x is not None
        assert (grid.matrix @ x <= grid.upper + 1e-6).all()
        assert grid.objective(x) <= grid.objective(answer.x) + 1e-9


def test_a_wasteful_schedule_does_not_fit_its_rows():
    problem = small_problem(np.random.default_rng(3), 6)
    tight = problem.with_ram(problem.graph.resident_peak - 1)
    grid = build(tight, all_places(tight.graph))
    x = encode(grid, everything_resident(tight))
    assert (grid.matrix @ x > grid.upper).any()


def test_fewer_places_never_cost_less(highs):
    problem = formulate(legacy.graph("linear"), Device.load("nrf52840"), 3600, 2.0, paging="free")
    costs = []
    for depth in (1, 2, 4, 30):
        grid, answer = solve(problem, highs, near_places(problem.graph, depth))
        costs.append(grid.objective(answer.x) if answer.x is not None else np.inf)
    assert costs == sorted(costs, reverse=True)
    assert np.isfinite(costs[-1])


@pytest.mark.property
@given(st.integers(0, 10_000), st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_near_places_are_the_upstream_operations(seed, depth):
    graph = small_problem(np.random.default_rng(seed), 7).graph
    for t, near in enumerate(near_places(graph, depth)):
        frontier, reached = {t}, set()
        for _ in range(depth):
            frontier = {graph.producer[v] for i in frontier for v in graph.ops[i].inputs}
            reached |= frontier
        assert near == sorted(reached)


def test_operations_that_must_not_run_again_have_no_place():
    problem = small_problem(np.random.default_rng(1), 7, fixed=True)
    grid = build(problem, all_places(problem.graph))
    again = [i for i, c in zip(grid.op, grid.run, strict=True) if c >= 0]
    assert again
    assert all(problem.recomputable[i] for i in again)


def test_inexact_copies_are_read_by_the_backward_pass_alone():
    values = tuple(Value(f"v{i}", 10, compressible=i != 1) for i in range(4))
    ops = (
        Op("a", (), (0,)),
        Op("b", (0,), (1,)),
        Op("loss", (0, 1), (2,), phase="loss"),
        Op("grad", (0, 1, 2), (3,), phase="backward"),
    )
    codes = Tier("4-bit", 0.0, 1e9, 0.0, 1e9, ratio=0.25, in_ram=True, exact=False)
    problem = formulate(
        Graph("g", ops, values), Device("d", flops_per_second=1.0, flops_per_joule=1.0, tiers=(codes,)), 40
    )
    grid = build(problem, all_places(problem.graph))
    for v, life in enumerate(grid.lives):
        for j, into in enumerate(life.into):
            for c in into:
                if c >= 0:
                    assert v != 1
                    assert grid.stage[life.places[j]] == 3


def test_a_step_that_compresses(highs):
    """Four values of 100 bytes read in reverse: codes of 25 bytes make room that nothing else makes."""
    values = [Value(f"v{i}", 100, compressible=True) for i in range(4)] + [Value(f"g{i}", 4) for i in range(4)]
    ops = [Op(f"f{i}", (i - 1,) if i else (), (i,), 1.0, recomputable=False) for i in range(4)]
    ops += [
        Op(f"b{i}", (i, *((4 + k - 1,) if k else ())), (4 + k,), 1.0, phase="backward")
        for k, i in enumerate(reversed(range(4)))
    ]
    codes = Tier("2-bit", 0.0, 1e3, 0.0, 1e3, power=1.0, ratio=0.25, in_ram=True, exact=False)
    device = Device("d", flops_per_second=1.0, flops_per_joule=1.0, tiers=(codes,))
    problem = formulate(Graph("g", tuple(ops), tuple(values)), device, 290, paging="serial")
    grid, answer = solve(problem, highs)
    assert answer.status == "OPTIMAL"
    events = grid.decode(answer.x)
    seen = replay(problem, events)
    assert seen.peak <= 290
    assert seen.paged_in == seen.paged_out == 2  # 400 bytes held as 200 + 2 x 25, and room for one that returns
    assert encode(grid, events) is not None

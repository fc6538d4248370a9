"""Optimisers in processes of their own: right answers, and no quarrel between two builds of one solver."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
from scipy import sparse

from poet.optimiser import Optimiser, OptimiserError, Program, integral_rows


def knapsack(seed: int, count: int = 10, rows: int = 4) -> Program:
    rng = np.random.default_rng(seed)
    cost = -rng.uniform(0.1, 1.0, count)
    matrix = rng.integers(0, 9, (rows, count)).astype(float)
    return Program(cost, sparse.csr_array(matrix), matrix.sum(axis=1) * 0.4, 1.0)


def brute(program: Program) -> float:
    points = np.array(list(itertools.product((0.0, 1.0), repeat=len(program.cost))))
    fits = (points @ program.matrix.T.toarray() <= program.upper + 1e-9).all(axis=1)
    return float((points[fits] @ program.cost).min())


@pytest.mark.parametrize("engine", ["highs", "cpsat"])
def test_minimise_is_brute_force(engine):
    with Optimiser(engine) as solver:
        for seed in range(5):
            program = knapsack(seed)
            answer = solver.minimise(program, seconds=20.0)
            assert answer.status == "OPTIMAL"
            assert program.cost @ answer.x == pytest.approx(brute(program), abs=1e-6)
            assert answer.bound <= brute(program) + 1e-6
            assert (program.matrix @ answer.x <= program.upper + 1e-9).all()


@pytest.mark.parametrize("engine", ["highs", "cpsat"])
def test_fixed_variables_keep_their_value(engine):
    program = knapsack(0)
    hint = np.zeros(10, dtype=bool)
    hint[3] = True
    free = np.ones(10, dtype=bool)
    free[[3, 4]] = False
    with Optimiser(engine) as solver:
        answer = solver.minimise(program, hint=hint, free=free)
    assert answer.x[3]
    assert not answer.x[4]


@pytest.mark.parametrize("engine", ["highs", "cpsat"])
def test_what_cannot_be_is_infeasible(engine):
    program = Program(np.array([1.0]), sparse.csr_array([[1.0], [-1.0]]), np.array([0.2, -0.5]))
    with Optimiser(engine) as solver:
        answer = solver.minimise(program)
    assert (answer.status, answer.x, answer.bound) == ("INFEASIBLE", None, np.inf)


def test_the_relaxed_bound_holds_and_equals_the_value():
    with Optimiser() as solver:
        for seed in range(5):
            program = knapsack(seed)
            answer = solver.relax(program)
            assert answer.bound <= brute(program) + 1e-9
            assert answer.bound == pytest.approx(program.cost @ answer.relaxed, rel=1e-6)


def test_a_search_ends_when_told():
    seen = []
    with Optimiser() as solver:
        answer = solver.minimise(knapsack(1), on_better=lambda x, _: seen.append(x) or True)
        assert len(seen) == 1
        assert (answer.x == seen[0]).all()
        assert solver.minimise(knapsack(1)).status == "OPTIMAL"  # and can be asked again


def test_a_dead_process_is_named():
    with Optimiser() as solver:
        solver.minimise(knapsack(0))
        solver._process.kill()
        solver._process.wait()
        with pytest.raises(OptimiserError, match="highs ended with status"):
            solver.minimise(knapsack(0))


def test_rows_of_integers_imply_the_given_ones():
    rng = np.random.default_rng(0)
    matrix = sparse.csr_array(np.vstack([rng.integers(-3, 4, (3, 6)) * 6, rng.uniform(0, 1, (3, 6))]))
    upper = np.array([13.0, 6.0, 0.0, 1.0, 1.5, 0.7])
    rows, right = integral_rows(matrix, upper)
    for point in itertools.product((0, 1), repeat=6):
        inside = rows @ np.array(point) <= right
        wanted = matrix @ np.array(point) <= upper
        assert not (inside & ~wanted).any()
        assert (inside[:3] == wanted[:3]).all()  # integral rows exactly


ORDERS = {
    "OR-tools first": "import ortools.sat.python.cp_model\n{ours}",
    "after ours": "{ours}\nimport ortools.sat.python.cp_model",
    "highspy first": "import highspy\n{ours}",
    "highspy after": "{ours}\nimport highspy\nhighspy.Highs()",
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS.keys())
def test_both_solvers_work_whatever_else_the_process_imports(order):
    ours = (
        "from poet import legacy, Device, solve\n"
        "for solver in ('auto', 'cpsat'):\n"
        "    made = solve(legacy.graph('linear'), Device.load('nrf52840'), '60%', solver=solver, time_limit=20.0)\n"
        "    assert made.verify().ok, solver\n"
    )
    code = order.format(ours=ours)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""

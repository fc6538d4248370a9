"""The program of the search, solved by SCIP: its optimum is ours, and its relaxation is our bound."""

from typing import Any

import numpy as np
import pytest

from poet.bound import whole
from poet.grid import all_places, build
from poet.optimiser import Optimiser, Program
from poet.schedule import Limits
from poet.solving import solve_problem
from poet.theory_graphs import small_problem

pytestmark = pytest.mark.peer


def scip(program: Program, integral: bool) -> float:
    """The least cost, or that of the relaxation; infinite if nothing is feasible."""
    from pyscipopt import Model, quicksum

    model: Any = Model()
    model.hideOutput()
    count = len(program.cost)
    x = [model.addVar(vtype="B" if integral else "C", lb=0, ub=1) for _ in range(count)]
    matrix = program.matrix.tocsr()
    for i in range(matrix.shape[0]):
        row = slice(matrix.indptr[i], matrix.indptr[i + 1])
        if matrix.indptr[i] == matrix.indptr[i + 1]:
            assert program.upper[i] >= 0
            continue
        terms = zip(matrix.data[row], matrix.indices[row], strict=True)
        model.addCons(quicksum(float(a) * x[j] for a, j in terms) <= float(program.upper[i]))
    model.setObjective(quicksum(float(c) * v for c, v in zip(program.cost, x, strict=True)), "minimize")
    model.optimize()
    return np.inf if model.getStatus() == "infeasible" else float(model.getObjVal())


@pytest.mark.parametrize("seed", range(8))
def test_scip_agrees(seed: int):
    rng = np.random.default_rng(seed)
    problem = small_problem(rng, 6, tiers=int(seed % 2), paging="free", deadline=(None, 1.4)[seed % 4 == 3])
    grid = build(problem, all_places(problem.graph))
    program = Program(grid.cost, grid.matrix, grid.upper, grid.base)
    best = grid.base + scip(program, integral=True)
    ours = solve_problem(problem, Limits(10.0, 0.0))
    if best == np.inf:
        assert ours.events is None
        return
    assert ours.certificate is not None
    assert ours.certificate.objective == pytest.approx(best, rel=1e-6)
    with Optimiser("highs") as solver:
        bound = whole(problem, solver).value
    assert bound == pytest.approx(grid.base + scip(program, integral=False), rel=1e-6)
    assert bound <= best * (1 + 1e-9)

"""The process that holds an optimiser: reads programs from its input, writes what it finds to its output.

OR-tools and highspy carry two builds of one solver under one name: a process that has imported one cannot import the
other. So each lives in a process of its own, and the user's process imports neither. It also keeps Ctrl-C prompt.
"""

import os
import pickle
import signal
import struct
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

Reply = Callable[[tuple[Any, ...]], None]


def send(stream: BinaryIO, message: Any) -> None:
    """Write one message: its length and its pickle."""
    content = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    stream.write(struct.pack("<Q", len(content)) + content)
    stream.flush()


def receive(stream: BinaryIO) -> Any:
    """Read one message.

    Raises:
        EOFError: If the other side is gone.
    """
    head = stream.read(8)
    if len(head) < 8:
        raise EOFError("the other process ended")
    length = struct.unpack("<Q", head)[0]
    content = stream.read(length)
    if len(content) < length:
        raise EOFError("the other process ended in the middle of a message")
    return pickle.loads(content)


def solve_cpsat(program: dict[str, Any], reply: Reply) -> None:
    """Minimise a binary program of integers by CP-SAT."""
    from ortools.sat.python import cp_model

    model = cp_model.CpModel()
    x = [model.new_bool_var("") for _ in program["cost"]]
    indptr, indices, data, upper = (program[key].tolist() for key in ("indptr", "indices", "data", "upper"))
    for r, bound in enumerate(upper):
        span = slice(indptr[r], indptr[r + 1])
        if span.start < span.stop:
            model.add(cp_model.LinearExpr.weighted_sum([x[c] for c in indices[span]], data[span]) <= bound)
        elif bound < 0:
            reply(("done", "INFEASIBLE", np.inf, None))
            return
    for c, (low, high) in enumerate(zip(program["low"].tolist(), program["high"].tolist(), strict=True)):
        if low == high:
            model.add(x[c] == int(low))
    if program["hint"] is not None:
        for variable, value in zip(x, program["hint"].tolist(), strict=True):
            model.add_hint(variable, bool(value))
    model.minimize(cp_model.LinearExpr.weighted_sum(x, program["cost"].tolist()))

    class Report(cp_model.CpSolverSolutionCallback):
        def on_solution_callback(self) -> None:
            bits = np.packbits(np.array([self.value(variable) for variable in x], dtype=bool))
            reply(("better", bits, self.best_objective_bound))

    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = program["seconds"]
    solver.parameters.num_workers = program["workers"]
    solver.parameters.random_seed = program["seed"]
    solver.parameters.absolute_gap_limit = program["gap"]
    status = solver.solve(model, Report())
    name = solver.status_name(status)
    reply(("done", name, np.inf if name == "INFEASIBLE" else solver.best_objective_bound, None))


def solve_highs(program: dict[str, Any], reply: Reply) -> None:
    """Minimise a linear program, binary or relaxed, by HiGHS."""
    import highspy

    highs, count = _highs_model(highspy, program), len(program["cost"])
    if program["hint"] is not None:
        solution = highspy.HighsSolution()
        solution.col_value = program["hint"].astype(float).tolist()
        highs.setSolution(solution)

    def improved(event: Any) -> None:
        bits = np.packbits(np.asarray(event.data_out.mip_solution)[:count] > 0.5)
        reply(("better", bits, event.data_out.mip_dual_bound))

    if program["binary"]:
        highs.cbMipImprovingSolution += improved
    highs.run()
    status, info = highs.getModelStatus(), highs.getInfo()
    kinds = highspy.HighsModelStatus
    if status in (kinds.kInfeasible, kinds.kUnboundedOrInfeasible):
        reply(("done", "INFEASIBLE", np.inf, None))
        return
    names = {kinds.kOptimal: "OPTIMAL", kinds.kModelEmpty: "OPTIMAL"}
    found, solved = highs.getSolution(), names.get(status, "UNKNOWN")
    if not program["binary"]:
        duals = np.array(found.row_dual) if found.dual_valid or len(found.row_dual) else None
        reply(("done", solved, info.objective_function_value, (duals, np.array(found.col_value))))
        return
    if found.value_valid:
        reply(("better", np.packbits(np.array(found.col_value)[:count] > 0.5), info.mip_dual_bound))
        solved = "OPTIMAL" if solved == "OPTIMAL" else "FEASIBLE"
    reply(("done", solved, info.mip_dual_bound, None))


def _highs_model(highspy: Any, program: dict[str, Any]) -> Any:
    highs = highspy.Highs()
    highs.setOptionValue("output_flag", False)
    highs.setOptionValue("time_limit", program["seconds"])
    highs.setOptionValue("threads", program["workers"])
    highs.setOptionValue("random_seed", program["seed"])
    highs.setOptionValue("mip_abs_gap", program["gap"])
    highs.setOptionValue("mip_rel_gap", 0.0)
    rows, count = len(program["upper"]), len(program["cost"])
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = count, rows
    lp.col_cost_ = program["cost"]
    lp.col_lower_, lp.col_upper_ = program["low"], program["high"]
    lp.row_lower_, lp.row_upper_ = np.full(rows, -highspy.kHighsInf), program["upper"]
    lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    lp.a_matrix_.start_, lp.a_matrix_.index_ = program["indptr"], program["indices"]
    lp.a_matrix_.value_ = program["data"].astype(float)
    if program["binary"]:
        lp.integrality_ = [highspy.HighsVarType.kInteger] * count
    elif program["simplex"]:
        highs.setOptionValue("solver", "simplex")
    highs.passModel(lp)
    return highs


def main() -> None:
    """Serve programs until the other side closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    source = sys.stdin.buffer
    target = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a solver prints must not get between the messages
    engines = {"cpsat": solve_cpsat, "highs": solve_highs}
    while True:
        try:
            engine, program = receive(source)
        except EOFError:
            return
        engines[engine](program, lambda message: send(target, message))


if __name__ == "__main__":
    main()

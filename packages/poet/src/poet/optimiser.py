"""Binary and linear programs, solved in a process of their own by HiGHS or CP-SAT."""

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, Queue
from types import TracebackType
from typing import Any, BinaryIO, Literal, cast, final

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import sparse

from poet.solver_child import receive, send

Engine = Literal["highs", "cpsat"]

_STEPS = 10**9  # resolution of costs and of rows that are not integral
_GRACE = 20.0  # seconds that a solver may overrun its time limit before it is ended

Better = Callable[[Bool[np.ndarray, " x"], float], bool]
"""Called with a better solution and the bound; returning True ends the search."""


class OptimiserError(RuntimeError):
    """The optimiser's process failed."""


@final
@dataclass(frozen=True)
class Program:
    """Minimise `cost @ x` subject to `matrix @ x <= upper`, each x 0 or 1.

    Attributes:
        cost: Cost of each variable.
        matrix: Rows.
        upper: Right-hand sides.
        scale: A cost of which a billionth does not matter (the plain step's).
    """

    cost: Float[np.ndarray, " x"]
    matrix: sparse.csr_array
    upper: Float[np.ndarray, " rows"]
    scale: float = 1.0

    @property
    def unit(self) -> float:
        """Cost of one step of the resolution."""
        return self.scale / _STEPS if self.scale > 0 else 1.0


@final
@dataclass(frozen=True)
class Answer:
    """What an optimiser found.

    Attributes:
        x: Best binary solution, or None.
        bound: Lower bound on the cost; minus infinity if none is known, infinity if nothing is feasible.
        status: `"OPTIMAL"`, `"FEASIBLE"`, `"INFEASIBLE"` or `"UNKNOWN"`.
        relaxed: For a relaxation, its solution.
    """

    x: Bool[np.ndarray, " x"] | None
    bound: float
    status: str
    relaxed: Float[np.ndarray, " x"] | None = None


@final
class Optimiser:
    """A solver process, for several programs one after the other; use it as a context manager.

    Args:
        engine: `"highs"` or `"cpsat"`.

    Example:
        >>> program = Program(np.array([2.0, 1.0]), sparse.csr_array([[-1.0, -1.0]]), np.array([-1.0]))
        >>> with Optimiser("highs") as solver:  # one of the two, at least
        ...     answer = solver.minimise(program)
        >>> answer.x.tolist(), answer.status
        ([False, True], 'OPTIMAL')
    """

    def __init__(self, engine: Engine = "highs") -> None:
        self.engine: Engine = engine
        self._process: subprocess.Popen[bytes] | None = None
        self._inbox: Queue[Any] = Queue()
        self._lock = threading.Lock()
        self._retired = False

    def __enter__(self) -> "Optimiser":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.retire()

    def minimise(
        self,
        program: Program,
        *,
        seconds: float = 60.0,
        hint: Bool[np.ndarray, " x"] | None = None,
        free: Bool[np.ndarray, " x"] | None = None,
        workers: int = 1,
        seed: int = 0,
        gap: float = 0.0,
        on_better: Better | None = None,
    ) -> Answer:
        """Find a binary solution of least cost.

        Args:
            program: What to minimise. CP-SAT sees integers: integral rows exactly, others on the safe side.
            seconds: Time limit.
            hint: A solution to start from; need not be feasible.
            free: Variables that may differ from the hint; all unless given.
            workers: Threads.
            seed: Seed of the search.
            gap: Absolute gap, in units of the cost, at which it may stop.
            on_better: Called with each better solution and the bound; returning True ends the search.

        Returns:
            The best solution, also after an early end.

        Raises:
            OptimiserError: If the process cannot be started or dies.
        """
        low, high = np.zeros(len(program.cost)), np.ones(len(program.cost))
        if free is not None and hint is not None:
            low[~free] = high[~free] = hint[~free]
        common = {"seconds": float(seconds), "workers": workers, "seed": seed, "hint": hint, "low": low, "high": high}
        message = self._message(program) | common | {"gap": max(gap, 0.0) / program.unit, "binary": True}
        return self._ask(message, program, seconds, on_better)

    def relax(self, program: Program, *, seconds: float = 60.0, simplex: bool = True) -> Answer:
        """Solve with 0 <= x <= 1 and prove a bound.

        For multipliers y >= 0 every feasible x satisfies c x >= -b y + sum_j min(0, c_j + (A^T y)_j), whatever the
        solver's tolerances: that figure is the bound, also when the time limit cuts the solver short.

        Args:
            program: What to relax.
            seconds: Time limit.
            simplex: Whether to insist on the simplex method.
        """
        if self.engine != "highs":
            raise ValueError("only 'highs' solves relaxations")
        count = len(program.cost)
        more = {"seconds": float(seconds), "workers": 1, "seed": 0, "hint": None, "gap": 0.0, "simplex": simplex}
        bounds = {"low": np.zeros(count), "high": np.ones(count), "binary": False}
        return self._ask(self._message(program) | more | bounds, program, seconds, None)

    def retire(self) -> None:
        """End the process for good: asking again is refused. May be called from another thread than the one asking."""
        with self._lock:
            self._retired = True
        self.close()

    def close(self) -> None:
        """End the process; asking again starts another."""
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            process.kill()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
            process.wait()

    def _message(self, program: Program) -> dict[str, Any]:
        if self.engine == "cpsat":
            csr, right = integral_rows(program.matrix, program.upper)
            cost = np.rint(program.cost / program.unit).astype(np.int64)
        else:
            csr, right = program.matrix, program.upper
            cost = program.cost / program.unit / _COST_RANGE
        return {"cost": cost, "indptr": csr.indptr, "indices": csr.indices, "data": csr.data, "upper": right}

    def _ask(self, message: dict[str, Any], program: Program, seconds: float, on_better: Better | None) -> Answer:
        if self.engine == "highs":
            message["gap"] /= _COST_RANGE
        self._start()
        process = self._process
        if process is None:
            raise OptimiserError("this optimiser has been retired")
        try:
            send(cast("BinaryIO", process.stdin), (self.engine, message))
        except (OSError, ValueError):  # gone, or closed by another thread
            raise self._dead() from None
        return self._collect(program, time.monotonic() + seconds + _GRACE, on_better)

    def _start(self) -> None:
        with self._lock:
            self._start_locked()

    def _start_locked(self) -> None:
        if self._retired:
            raise OptimiserError("this optimiser has been retired")
        if self._process is not None:
            return
        command = [sys.executable, "-m", "poet.solver_child"]
        try:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        except OSError as error:
            raise OptimiserError(f"cannot start {' '.join(command)}: {error}") from None
        self._inbox = Queue()
        threading.Thread(target=_listen, args=(self._process.stdout, self._inbox), daemon=True).start()

    def _dead(self) -> OptimiserError:
        process = self._process
        code = process.wait() if process is not None else None
        self.close()
        return OptimiserError(f"the process of {self.engine} ended with status {code}; its last words are above")

    def _collect(self, program: Program, until: float, on_better: Better | None) -> Answer:
        unit = program.unit * (_COST_RANGE if self.engine == "highs" else 1)
        best: np.ndarray | None = None
        bound = -np.inf
        while True:
            try:
                message = self._inbox.get(timeout=max(until - time.monotonic(), 0.01))
            except Empty:  # it overran its own limit
                self.close()
                return Answer(best, bound, "FEASIBLE" if best is not None else "UNKNOWN")
            except BaseException:
                self.close()
                raise
            if message is None:
                raise self._dead()
            if message[0] == "done":
                _, status, value, relaxed = message
                if relaxed is not None:
                    return _relaxed(program, relaxed[0], relaxed[1], unit, status)
                return Answer(best, value * unit if np.isfinite(value) else value, status)
            best = np.unpackbits(message[1], count=len(program.cost)).astype(bool)
            bound = message[2] * unit
            if on_better is not None and on_better(best, bound):
                self.close()
                return Answer(best, bound, "FEASIBLE")


_COST_RANGE = 10**7  # HiGHS works with absolute tolerances of 1e-6 or so: the plain step costs 100 for it


def _relaxed(program: Program, duals: np.ndarray | None, x: np.ndarray, unit: float, status: str) -> Answer:
    bound = -np.inf
    if duals is not None and len(duals) == len(program.upper):
        y = np.maximum(-duals * unit, 0.0)  # HiGHS: reduced cost = c - A^T dual, dual <= 0 for <= rows
        bound = float(-(program.upper @ y) + np.minimum(program.cost + program.matrix.T @ y, 0.0).sum())
    return Answer(None, bound, status, x)


def integral_rows(
    matrix: sparse.csr_array, upper: Float[np.ndarray, " rows"]
) -> tuple[sparse.csr_array, Int[np.ndarray, " rows"]]:
    """Rows of integers that imply the given ones for x >= 0.

    Integral rows are divided by their greatest common divisor and stay equivalent; others are scaled, coefficients
    rounded up and right-hand sides down.
    """
    csr = matrix.tocsr(copy=True)
    csr.eliminate_zeros()
    data = np.empty(csr.nnz, dtype=np.int64)
    right = np.empty(len(upper), dtype=np.int64)
    for r, bound in enumerate(np.asarray(upper)):
        span = slice(csr.indptr[r], csr.indptr[r + 1])
        values = csr.data[span]
        if not len(values):
            right[r] = int(np.floor(min(max(bound, -1.0), 1.0)))
        elif (values == np.rint(values)).all() and np.abs(values).max() < 2**52:
            whole = values.astype(np.int64)
            divisor = int(np.gcd.reduce(np.abs(whole)))
            data[span] = whole // divisor
            right[r] = int(np.floor(bound)) // divisor
        else:
            steps = _STEPS / max(np.abs(values).sum(), abs(bound))
            data[span] = np.ceil(values * steps).astype(np.int64)
            right[r] = int(np.floor(bound * steps))
    return sparse.csr_array((data, csr.indices, csr.indptr), shape=csr.shape), right


def _listen(stream: Any, inbox: "Queue[Any]") -> None:
    """Pass messages on until the stream ends; a None says that it has."""
    with contextlib.suppress(EOFError, OSError, ValueError):
        while True:
            inbox.put(receive(stream))
    inbox.put(None)

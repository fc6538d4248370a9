"""The loop around an EM step: climb until the objective stands still, and say so; and what a fit returns."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar, final

import numpy as np
from jaxtyping import Float

from hieropo.briefly import briefly

__all__ = ["Ascent", "HyperparameterFit", "Status", "accelerated", "climb"]

_ROUNDING = 1e-10  # relative; a step that loses more has met data whose noise is near its floor

Status = Literal["converged", "max_iter", "not_identified"]
State = TypeVar("State")
Prior = TypeVar("Prior")


@final
@dataclass(frozen=True, eq=False)
class HyperparameterFit(Generic[Prior]):
    """Where a search for hyper-parameters ended.

    Args:
        prior: The fitted prior, ready for an estimator.
        log_evidence: The objective there: log p(Y), the restricted likelihood if μ is flat, or Laplace's approximation.
        trace: The objective at the start and after every step, never decreasing for EM.
        status: "converged", "max_iter", or "not_identified": the data do not determine what was to be learned, and the
            message says why; `prior` is where the search stood.
        message: One sentence for the user.
    """

    prior: Prior
    log_evidence: float
    trace: tuple[float, ...]
    status: Status
    message: str

    __repr__ = briefly("status", "log_evidence", "n_iter", "prior")

    @property
    def n_iter(self) -> int:
        """Number of steps: cycles of two or three EM steps where they are accelerated, or quasi-Newton steps."""
        return max(0, len(self.trace) - 1)

    def unwrap(self) -> Prior:
        """The fitted prior, or an error.

        Returns:
            The prior.

        Raises:
            RuntimeError: If the search did not converge.
        """
        if self.status != "converged":
            raise RuntimeError(self.message)
        return self.prior


@final
@dataclass(frozen=True, eq=False)
class Ascent(Generic[State]):
    """Where a climb ended.

    Args:
        state: The last state.
        trace: The objective at every state, the last included.
        converged: Whether the last step gained less than the tolerance.
        message: One sentence for the user.
    """

    state: State
    trace: tuple[float, ...]
    converged: bool
    message: str


def accelerated(
    step: Callable[[State], tuple[State, float]],
    pack: Callable[[State], Float[np.ndarray, " p"]],
    unpack: Callable[[State, Float[np.ndarray, " p"]], State],
) -> Callable[[State], tuple[State, float]]:
    """Two EM steps and, where it helps, a third from their extrapolation (SQUAREM): EM that does not crawl.

    With r = x₁ − x₀ and v = x₂ − 2x₁ + x₀ the extrapolation is x₀ + 2ar + a²v, a = |r|/|v|; what follows from it is
    kept if the objective did not fall.

    Args:
        step: Maps a state to the next state and the objective of the state it was given.
        pack: The learned part of a state as one vector without constraints; LinAlgError where it has none.
        unpack: A state with its learned part replaced.

    Returns:
        A step for `climb`.

    Reference:
        Varadhan and Roland, Scand. J. Stat. 2008.
    """

    def cycle(state: State) -> tuple[State, float]:
        first, value = step(state)
        second, _ = step(first)
        try:
            x0, x1, x2 = pack(state), pack(first), pack(second)
            rate, curve = x1 - x0, x2 - 2 * x1 + x0
            length = float(np.linalg.norm(rate)) / max(float(np.linalg.norm(curve)), 1e-300)
            if not 1.0 < length < 1e8:
                return second, value
            with np.errstate(over="ignore"):  # what is infinite is refused next
                candidate = unpack(state, x0 + 2 * length * rate + length**2 * curve)
            following, reached = step(candidate)
            accept = reached >= step(second)[1]
        except (np.linalg.LinAlgError, ValueError, OverflowError):  # the jump left the region where numbers make sense
            return second, value
        return (following, value) if accept else (second, value)

    return cycle


def climb(
    step: Callable[[State], tuple[State, float]], start: State, *, tolerance: float, max_iter: int
) -> Ascent[State]:
    """Repeat an EM step until it gains less than `tolerance · (1 + |objective|)`, or rounding makes it lose.

    Args:
        step: Maps a state to the next state and the objective of the state it was given.
        start: The first state.
        tolerance: Relative gain below which the climb ends.
        max_iter: Largest number of steps.

    Returns:
        The state whose objective is last in the trace.

    Raises:
        ValueError: tolerance < 0 or max_iter < 1.
        numpy.linalg.LinAlgError: If the first state has no objective; a later one ends the climb before it.
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance must not be negative, got {tolerance}")
    if max_iter < 1:
        raise ValueError(f"max_iter must be at least 1, got {max_iter}")
    state = before = start
    trace: list[float] = []
    for _ in range(max_iter + 1):
        try:
            following, value = step(state)
        except np.linalg.LinAlgError as error:
            if not trace:
                raise
            return Ascent(before, tuple(trace), False, f"stopped after {len(trace) - 1} steps: {error}")
        trace.append(value)
        gain = value - trace[-2] if len(trace) > 1 else math.inf
        if gain < 0.0:
            lost = f"stopped before a step that lost {-gain:.2g} to rounding: the data are almost without noise"
            converged = -gain <= max(tolerance, _ROUNDING) * (1.0 + abs(value))
            message = f"converged after {len(trace) - 2} steps" if converged else lost
            return Ascent(before, tuple(trace[:-1]), converged, message)
        if gain <= tolerance * (1.0 + abs(value)):
            return Ascent(state, tuple(trace), True, f"converged after {len(trace) - 1} steps")
        state, before = following, state
    gain = trace[-1] - trace[-2]
    message = f"stopped after {max_iter} steps, the last still gained {gain:.2g}; raise max_iter or tolerance"
    return Ascent(before, tuple(trace), False, message)

"""Tabular values at every confidence: bounds, policies, and how good the solution is."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, SupportsFloat, final

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy import sparse

from ccvf.confidence import check_deltas
from ccvf.coverage import Coverage, coverage_of
from ccvf.mdp import TabularMDP
from ccvf.splits import Budget

__all__ = ["NotConvergedError", "TabularValues"]

_ROUNDING = 1e-6  # relative: confidences that came through float32 still name their grid point


class NotConvergedError(RuntimeError):
    """Values were asked for that the solver did not reach."""


@final
@dataclass(frozen=True, eq=False)
class TabularValues:
    """Values of a tabular log at every confidence of a grid; a `ccvf.values.ConfidenceValues`.

    At a confidence between two grid points they are those of the lower one, which is a bound there too. Values are
    never clipped: at small confidences lower bounds can lie below anything that a return can be, which keeps actions
    apart. `bounds` clips.

    Args:
        q: Bounds of Q*, in units of return. Of lower bounds, those of an unseen action lie below those of every seen
            action; of upper bounds, not below any.
        deltas: The grid, ascending.
        seen: Which actions were taken in the log.
        bound: Whether they bound from below or above.
        budget: How confidences were split.
        alpha: Size of the penalty.
        return_range: What a return can be.
        status: "converged", or "not_converged" where sweeps ran out.
        sweeps: Sweeps that were made.
        error: Largest distance to the exact solution that is left, in units of return.
    """

    q: Float[np.ndarray, "states actions confidences"]
    deltas: Float[np.ndarray, " confidences"]
    seen: Bool[np.ndarray, "states actions"]
    bound: Literal["lower", "upper"]
    budget: Budget
    alpha: float
    return_range: tuple[float, float]
    status: Literal["converged", "not_converged"]
    sweeps: int
    error: float

    def __repr__(self) -> str:
        return (
            f"TabularValues(n_states={self.n_states}, n_actions={self.n_actions}, confidences={len(self.deltas)}, "
            f"bound={self.bound!r}, budget={self.budget!r}, status={self.status!r})"
        )

    @property
    def n_states(self) -> int:
        """Number of states S."""
        return self.q.shape[0]

    @property
    def n_actions(self) -> int:
        """Number of actions A."""
        return self.q.shape[1]

    def unwrap(self) -> "TabularValues":
        """Itself, if the solver converged.

        Returns:
            The values.

        Raises:
            NotConvergedError: If it did not; the message says how far off it is.
        """
        if self.status != "converged":
            raise NotConvergedError(
                f"not converged after {self.sweeps} sweeps: values may be off by {self.error:.3g}; "
                "raise max_sweeps or tol"
            )
        return self

    def _columns(self, deltas: SupportsFloat | Iterable[SupportsFloat]) -> Int[np.ndarray, " confidences"]:
        asked = check_deltas(deltas)
        found = np.searchsorted(self.deltas, asked * (1 + _ROUNDING), side="right") - 1
        if (found < 0).any():
            raise ValueError(
                f"confidence {asked.min():g} lies below the grid, which starts at {self.deltas[0]:g}; nothing but the "
                "trivial bound is known there: fit with a smaller first confidence"
            )
        return found

    def values(self, delta: SupportsFloat) -> Float[np.ndarray, " states"]:
        """Bounds of V* at one confidence: the largest of the actions' values.

        Args:
            delta: Confidence in (0, 1]; the largest grid point up to it counts.

        Returns:
            V(s).

        Raises:
            ValueError: If it lies outside (0, 1] or below the grid.
        """
        return self.q[..., self._columns(delta)[0]].max(axis=1)

    def policy(self, delta: SupportsFloat) -> Int[np.ndarray, " states"]:
        """Greedy actions at one confidence; the first of equals.

        Of lower bounds these are actions that the log has seen. A state that it has not seen acting in gets action 0.
        Upper bounds prefer unseen actions, as optimism wants.

        Args:
            delta: Confidence in (0, 1]; the largest grid point up to it counts.

        Returns:
            One action a state.

        Raises:
            ValueError: If it lies outside (0, 1] or below the grid.
        """
        return self.q[..., self._columns(delta)[0]].argmax(axis=1)

    def bounds(self, delta: SupportsFloat) -> Float[np.ndarray, "states actions"]:
        """Bounds of Q* at one confidence, clipped to what a return can be; the trivial ones where nothing was seen.

        Args:
            delta: Confidence in (0, 1]; the largest grid point up to it counts.

        Returns:
            Bounds of every action.

        Raises:
            ValueError: If it lies outside (0, 1] or below the grid.
        """
        low, high = self.return_range
        clipped = np.clip(self.q[..., self._columns(delta)[0]], low, high)
        return np.where(self.seen, clipped, low if self.bound == "lower" else high)

    def q_values(
        self, observations: Shaped[np.ndarray, " batch"], deltas: Float[np.ndarray, " confidences"]
    ) -> Float[np.ndarray, "batch confidences actions"]:
        """Values of a batch of states (see `ccvf.values.ConfidenceValues`).

        Args:
            observations: State numbers.
            deltas: Confidences in (0, 1]; the largest grid point up to each counts.

        Returns:
            Values.

        Raises:
            TypeError: If states are not whole numbers.
            ValueError: If a state or a confidence is out of range.
        """
        states = np.asarray(observations)
        if states.dtype.kind not in "iu":
            raise TypeError(f"state numbers have dtype {states.dtype}: give whole numbers")
        if states.ndim != 1:
            raise ValueError(f"states have shape {states.shape}: give one state number each, (batch,)")
        if states.size and (states.min() < 0 or states.max() >= self.n_states):
            raise ValueError(f"a state is outside 0 to {self.n_states - 1}: values and environment do not match")
        return self.q[states][:, :, self._columns(deltas)].swapaxes(1, 2)

    def coverage(
        self,
        transition: Float[np.ndarray, "states actions states"] | sparse.sparray,
        reward: Float[np.ndarray, "states actions"],
        gamma: SupportsFloat,
        terminal: Bool[np.ndarray, " states"] | None = None,
    ) -> Coverage:
        """Which bounds hold, if the model is known.

        Args:
            transition: Probabilities of next states, (S, A, S) or sparse (S A, S).
            reward: Expected rewards.
            gamma: Discount of one step.
            terminal: States that end the episode when entered.

        Returns:
            Where the bounds hold.

        Raises:
            ValueError: If shapes do not match.
        """
        return coverage_of(self, TabularMDP.from_arrays(transition, reward, terminal=terminal).optimal(gamma).q)

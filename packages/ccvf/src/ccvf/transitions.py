"""Logged transitions in columns: every frame is kept once, ended and cut episodes are told apart."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, SupportsInt, final

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

__all__ = ["Transitions"]


@final
@dataclass(frozen=True, eq=False)
class Transitions:
    """Logged transitions.

    Observations are rows of a pool of frames, so that a frame shared by neighbouring transitions, or by the stacks of
    several, is stored once. Make it with `from_arrays`; `select` keeps the pool, `compact` drops frames not needed.

    Args:
        frames: Pool of frames, (frames, *frame shape): bool, uint8, int or floating point; for tabular problems
            the state numbers, (frames,).
        index: Rows of `frames` that make each observation, (transitions, stack), oldest first.
        next_index: The same for the observation after the action.
        actions: Actions, 0 to n_actions - 1.
        rewards: Rewards; of several steps already summed with their discount if `steps` says so.
        terminated: The environment ended the episode after this transition: nothing follows, its future is worth 0.
        truncated: A time limit cut the episode after this transition: the future goes on unseen and is bootstrapped.
        episodes: Number of the episode each transition is of; transitions of one lie in time order.
        steps: Environment steps between observation and next observation (1 unless made by `n_step`).
        n_actions: Number of actions of the environment.
        metadata: What is known of the origin, JSON values.
    """

    frames: Shaped[np.ndarray, "frames ..."]
    index: Int[np.ndarray, "transitions stack"]
    next_index: Int[np.ndarray, "transitions stack"]
    actions: Int[np.ndarray, " transitions"]
    rewards: Float[np.ndarray, " transitions"]
    terminated: Bool[np.ndarray, " transitions"]
    truncated: Bool[np.ndarray, " transitions"]
    episodes: Int[np.ndarray, " transitions"]
    steps: Int[np.ndarray, " transitions"]
    n_actions: int
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def stack(self) -> int:
        """Frames an observation is made of."""
        return self.index.shape[1]

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """Shape of one observation; with a stack above 1 it comes first."""
        return (*((self.stack,) if self.stack > 1 else ()), *self.frames.shape[1:])

    def _gather(self, index: np.ndarray) -> np.ndarray:
        return self.frames[index[:, 0]] if self.stack == 1 else self.frames[index]

    def observations(self, rows: Any = slice(None)) -> Shaped[np.ndarray, "rows ..."]:
        """Observations of the given rows (a slice, numbers or a mask).

        Args:
            rows: Which transitions; all unless said.

        Returns:
            (rows, *observation_shape), in the dtype of the frames.
        """
        return self._gather(self.index[rows])

    def next_observations(self, rows: Any = slice(None)) -> Shaped[np.ndarray, "rows ..."]:
        """What followed the given rows, as `observations`."""
        return self._gather(self.next_index[rows])

    def select(self, rows: Any) -> "Transitions":
        """The given transitions (a slice, numbers or a mask) over the same pool of frames."""
        columns = {name: getattr(self, name)[rows] for name in _COLUMNS}
        return replace(self, **columns)

    def compact(self) -> "Transitions":
        """The same transitions over the frames that they use and no others."""
        used, renamed = np.unique(np.concatenate([self.index, self.next_index]), return_inverse=True)
        index, next_index = np.split(renamed.reshape(-1, self.stack), 2)
        return replace(self, frames=self.frames[used], index=index, next_index=next_index)

    @cached_property
    def last(self) -> Bool[np.ndarray, " transitions"]:
        """Whether a transition is the last of its episode in this log, for whatever reason."""
        follows = np.append(self.episodes[1:] == self.episodes[:-1], False)
        return ~follows | self.terminated | self.truncated

    @staticmethod
    def from_arrays(
        observations: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        next_observations: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray | None = None,
        episodes: np.ndarray | None = None,
        *,
        n_actions: SupportsInt | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> "Transitions":
        """Transitions of parallel columns, as most libraries hand them over; they are checked here.

        Args:
            observations: (transitions, *observation shape).
            actions: (transitions,), whole numbers from 0.
            rewards: (transitions,), finite.
            next_observations: What followed, (transitions, *observation shape).
            terminated: (transitions,), whether the environment ended the episode.
            truncated: (transitions,), whether a time limit cut it; None: never.
            episodes: (transitions,), episode numbers, each episode in one run; None: a new one starts after each
                terminated or truncated transition.
            n_actions: Number of actions; None: one more than the largest seen, which misses unseen last actions.
            metadata: What is known of the origin, JSON values.

        Returns:
            The transitions. A frame equal to the one the transition before led to is stored once.

        Raises:
            TypeError: If a column has an unfit dtype.
            ValueError: If there is no transition, lengths or shapes differ, a reward or observation is not finite,
                an action is out of range, or an episode's transitions are not together.
        """
        raise NotImplementedError


_COLUMNS = tuple(f.name for f in fields(Transitions) if f.name not in ("frames", "n_actions", "metadata"))

"""Logged transitions in columns: every frame is kept once, ended and cut episodes are told apart."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, SupportsFloat, SupportsInt, final

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from numpy.typing import ArrayLike

from ccvf.transitions_columns import (
    as_actions,
    as_episodes,
    as_flags,
    as_observations,
    as_rewards,
    chunks,
    rows_equal,
)
from ccvf.transitions_summary import LogSummary, returns_of

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
        # Of several steps the flags are those of the last, which may be shared by the transitions before it.
        return ~follows | ((self.terminated | self.truncated) & (self.steps == 1))

    @cached_property
    def linked(self) -> Bool[np.ndarray, " transitions"]:
        """Whether the next row goes on where this one led to; false at ends of episodes and where rows are missing."""
        follows = np.append((self.next_index[:-1] == self.index[1:]).all(1), False)
        return follows & ~self.last

    def returns(self) -> Float[np.ndarray, " episodes"]:
        """Undiscounted sum of the rewards of each episode as logged, in the order of the log.

        Returns:
            One number an episode.

        Raises:
            ValueError: If rewards are already sums over several steps.
        """
        if (self.steps != 1).any():
            raise ValueError("the rewards are sums over several steps: take returns before n_step")
        return returns_of(self.episodes, self.rewards)

    def fingerprint(self) -> str:
        """SHA-256 of all columns and frames: equal on every platform, and before and after saving.

        Metadata are not part of it.

        Returns:
            64 hexadecimal digits.
        """
        digest = hashlib.sha256(f"ccvf.transitions/1 {self.n_actions}".encode())
        for name in ("frames", *_COLUMNS):
            column = getattr(self, name)
            little = column.dtype.newbyteorder("<")
            digest.update(f"|{name} {little.str} {column.shape}|".encode())
            for part in chunks(len(column), column[:1].nbytes):
                digest.update(np.ascontiguousarray(column[part], dtype=little).data)
        return digest.hexdigest()

    def describe(self) -> LogSummary:
        """Figures of the log: episodes, returns, actions, ends, rewards.

        Returns:
            The figures; `print` shows them.
        """
        ends = np.append(self.episodes[1:] != self.episodes[:-1], True)
        episodes = int(ends.sum())
        returns = returns_of(self.episodes, self.rewards) if (self.steps == 1).all() else None
        return LogSummary(
            transitions=len(self),
            episodes=episodes,
            frames=len(self.frames),
            frame_bytes=self.frames.nbytes,
            observation_shape=self.observation_shape,
            observation_dtype=str(self.frames.dtype),
            action_counts=tuple(np.bincount(self.actions, minlength=self.n_actions).tolist()),
            terminated=float(self.terminated[ends].mean()),
            truncated=float((self.truncated & ~self.terminated)[ends].mean()),
            reward_range=(float(self.rewards.min()), float(self.rewards.max())),
            episode_returns=None
            if returns is None
            else {
                name: float(of(returns))
                for name, of in (("min", np.min), ("mean", np.mean), ("median", np.median), ("max", np.max))
            },
            metadata=self.metadata,
        )

    def subsample(
        self,
        fraction: SupportsFloat,
        rng: np.random.Generator | None = None,
        by: str = "transitions",
        *,
        shards: SupportsInt = 50,
    ) -> "Transitions":
        """A part of the log, over the frames that it needs.

        Parts drawn with generators of equal state are nested: the smaller fraction lies in the larger. Of a part by
        transitions most neighbours are gone, so `n_step` comes before it, not after.

        Args:
            fraction: Share of the transitions, in (0, 1]; at least one transition is kept.
            rng: Source of the draw; not needed for shards.
            by: "transitions" draws them uniformly; "episodes" draws whole episodes uniformly until the share is
                reached; "shards" keeps the first part of each of equal runs of the log, as the protocol of the
                DQN-replay data does.
            shards: How many runs; fewer if there are fewer transitions to keep.

        Returns:
            The part, rows in their order in the log.

        Raises:
            ValueError: If the fraction is out of range, `by` is unknown, or the generator is missing.

        Reference:
            Agarwal, Schuurmans, Norouzi (2020); Kumar et al. (2020), Section 6 (1 % and 10 % of the DQN-replay data).
        """
        share, size = float(fraction), len(self)
        if not 0 < share <= 1:
            raise ValueError(f"fraction={share:g} is outside (0, 1]")
        if by not in ("transitions", "episodes", "shards"):
            raise ValueError(f"by={by!r}: give 'transitions', 'episodes' or 'shards'")
        wanted = max(1, round(share * size))
        if by == "shards":
            edges = np.linspace(0, size, max(1, min(int(shards), wanted)) + 1).astype(np.int64)
            ends = edges[:-1] + np.maximum(1, np.round(share * np.diff(edges))).astype(np.int64)
            rows = np.concatenate([np.arange(a, b) for a, b in zip(edges[:-1], ends, strict=True)])
        elif rng is None:
            raise ValueError(f"by={by!r} draws at random: give rng=numpy.random.default_rng(seed)")
        elif by == "episodes":
            numbers, lengths = np.unique(self.episodes, return_counts=True)
            order = rng.permutation(len(numbers))
            most = int(np.searchsorted(np.cumsum(lengths[order]), wanted)) + 1
            rows = np.flatnonzero(np.isin(self.episodes, numbers[order[:most]]))
        else:
            rows = np.sort(rng.permutation(size)[:wanted])
        note = {"subsample": {"fraction": share, "by": by, "of": size}}
        return replace(self.select(rows).compact(), metadata={**self.metadata, **note})

    @staticmethod
    def concatenate(logs: "Sequence[Transitions]", metadata: Mapping[str, Any] | None = None) -> "Transitions":
        """Several logs of one environment as one; episodes are numbered anew, from 0.

        Args:
            logs: The logs, at least one.
            metadata: What is known of the whole; None: that of the first.

        Returns:
            One log; frames are copied.

        Raises:
            ValueError: If there is none, or shapes, dtypes or numbers of actions differ.
        """
        if not logs:
            raise ValueError("no log given; give at least one")
        kinds = {(log.observation_shape, log.stack, str(log.frames.dtype), log.n_actions) for log in logs}
        if len(kinds) > 1:
            raise ValueError(f"logs differ in observation shape, stack, dtype or number of actions: {sorted(kinds)}")
        starts = np.cumsum([0, *(len(log.frames) for log in logs)])
        columns = {name: np.concatenate([getattr(log, name) for log in logs]) for name in _COLUMNS}
        for name in ("index", "next_index"):
            columns[name] = np.concatenate([getattr(log, name) + at for log, at in zip(logs, starts[:-1], strict=True)])
        firsts = [np.append(True, log.episodes[1:] != log.episodes[:-1]) for log in logs]
        columns["episodes"] = np.cumsum(np.concatenate(firsts)).astype(np.int64) - 1
        frames = np.concatenate([log.frames for log in logs])
        found = logs[0].metadata if metadata is None else metadata
        return Transitions(frames=frames, n_actions=logs[0].n_actions, metadata=found, **columns)

    @staticmethod
    def from_arrays(
        observations: ArrayLike,
        actions: ArrayLike,
        rewards: ArrayLike,
        next_observations: ArrayLike,
        terminated: ArrayLike,
        truncated: ArrayLike | None = None,
        episodes: ArrayLike | None = None,
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
            The transitions. A frame equal to the one the transition before led to is stored once. Where both flags
            are set, terminated wins.

        Raises:
            TypeError: If a column has an unfit dtype.
            ValueError: If there is no transition, lengths or shapes differ, a reward or observation is not finite,
                an action is out of range, or an episode's transitions are not together.

        Example:
            >>> log = Transitions.from_arrays(
            ...     observations=np.array([0, 1, 0]), actions=[1, 1, 0], rewards=[0.0, 1.0, 0.0],
            ...     next_observations=np.array([1, 2, 0]), terminated=[False, True, False], n_actions=2,
            ... )
            >>> len(log), log.frames.tolist(), log.episodes.tolist()
            (3, [0, 1, 2, 0, 0], [0, 0, 1])
        """
        frames, after = (
            as_observations("observations", observations),
            as_observations("next_observations", next_observations),
        )
        if frames.shape != after.shape or frames.dtype != after.dtype:
            raise ValueError(
                f"observations are {frames.shape} {frames.dtype} and next_observations {after.shape} {after.dtype}; "
                "both must be alike"
            )
        size = len(frames)
        ended = as_flags("terminated", terminated, size)
        cut = as_flags("truncated", truncated, size) & ~ended
        numbers = as_episodes(episodes, ended, cut)
        acts, count = as_actions(actions, size, n_actions)
        pool, index = _pooled(frames, after, numbers)
        return Transitions(
            frames=pool,
            index=index[:, None],
            next_index=index[:, None] + 1,
            actions=acts,
            rewards=as_rewards(rewards, size),
            terminated=ended,
            truncated=cut,
            episodes=numbers,
            steps=np.ones(size, dtype=np.int64),
            n_actions=count,
            metadata=dict(metadata or {}),
        )


def _pooled(
    observations: Shaped[np.ndarray, "transitions ..."],
    after: Shaped[np.ndarray, "transitions ..."],
    episodes: Int[np.ndarray, " transitions"],
) -> tuple[Shaped[np.ndarray, "frames ..."], Int[np.ndarray, " transitions"]]:
    """Frames in order of time, and the row of each observation; what followed it is always the row after."""
    size = len(observations)
    shared = np.append(rows_equal(observations[1:], after[:-1]) & (episodes[1:] == episodes[:-1]), False)
    index = np.arange(size) + np.append(0, np.cumsum(~shared[:-1]))
    pool = np.empty((size + int((~shared).sum()), *observations.shape[1:]), dtype=observations.dtype)
    for part in chunks(size, observations[0].nbytes):
        pool[index[part]] = observations[part]
        own = part.start + np.flatnonzero(~shared[part])
        pool[index[own] + 1] = after[own]
    return pool, index


_COLUMNS = tuple(f.name for f in fields(Transitions) if f.name not in ("frames", "n_actions", "metadata"))

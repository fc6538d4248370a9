"""A log that grows step by step: every frame is kept once, stacks of frames too."""

from collections.abc import Mapping
from typing import Any, final

import numpy as np
from jaxtyping import Int, Shaped

from ccvf.environments import Step, Stepper
from ccvf.transitions import Transitions
from ccvf.transitions_columns import rows_equal

__all__ = ["GrowingLog"]

_COLUMNS = ("index", "next_index", "actions", "rewards", "terminated", "truncated", "episodes")


@final
class GrowingLog:
    """Transitions as they come from environments that step together.

    Rows come in the order of time, all environments side by side. `close_part` cuts the running episodes, puts the
    rows since the last part in order of episodes, and their frames in order of use: from then on the rows of the part
    lie as they would if they had been read from its file.

    Args:
        stepper: The environments the steps are of.
        capacity: How many transitions are expected; it grows beyond where needed.
    """

    def __init__(self, stepper: Stepper, capacity: int) -> None:
        self.stack, self.n_actions = stepper.stack, stepper.n_actions
        shape = stepper.observation_shape[1:] if self.stack > 1 else stepper.observation_shape
        rows = max(capacity, 1)
        self.frames = np.empty((rows + rows // 8 + stepper.n * self.stack, *shape), dtype=stepper.dtype)
        self.columns = {
            "index": np.empty((rows, self.stack), dtype=np.int64),
            "next_index": np.empty((rows, self.stack), dtype=np.int64),
            "actions": np.empty(rows, dtype=np.int64),
            "rewards": np.empty(rows),
            "terminated": np.empty(rows, dtype=bool),
            "truncated": np.empty(rows, dtype=bool),
            "episodes": np.empty(rows, dtype=np.int64),
        }
        self.size, self.n_frames, self.n_episodes = 0, 0, 0
        self.part = (0, 0)  # where the open part begins: row, frame
        self._now = np.empty((stepper.n, self.stack), dtype=np.int64)
        self._episode = np.empty(stepper.n, dtype=np.int64)

    def begin(self, observations: Shaped[np.ndarray, "envs ..."], envs: Int[np.ndarray, " envs"] | None = None) -> None:
        """Start an episode.

        Args:
            observations: First observations of the environments.
            envs: Which ones; None: all.
        """
        which = np.arange(len(self._now)) if envs is None else envs
        self._now[which] = self._stored(observations)
        self._episode[which] = self.n_episodes + np.arange(len(which))
        self.n_episodes += len(which)

    def append(self, actions: Int[np.ndarray, " envs"], step: Step) -> None:
        """Take over a step of all environments.

        Args:
            actions: What was done.
            step: What it led to.
        """
        after = self._followed(step.next_observations)
        rows = slice(self.size, self.size + len(actions))
        self._grow(rows.stop)
        values = (self._now, after, actions, step.rewards, step.terminated, step.truncated, self._episode)
        for name, value in zip(_COLUMNS, values, strict=True):
            self.columns[name][rows] = value
        self.size = rows.stop
        self._now = after
        ended = np.flatnonzero(step.ended)
        if ended.size:
            self.begin(step.observations[ended], ended)

    def close_part(self) -> Transitions:
        """Cut the running episodes, which counts as truncated, and put the part in order.

        Returns:
            The part as a log of its own; its arrays are views.
        """
        (first, frame), rows = self.part, slice(self.part[0], self.size)
        columns: dict[str, Any] = {name: self.columns[name][rows] for name in _COLUMNS}
        order = np.argsort(columns["episodes"], kind="stable")
        for name in _COLUMNS:
            columns[name][:] = columns[name][order]
        last = np.append(columns["episodes"][1:] != columns["episodes"][:-1], True)
        columns["truncated"][last & ~columns["terminated"]] = True
        # Frames in order of first use; a first observation that was never acted on is dropped.
        used = np.concatenate([columns["index"], columns["next_index"]], axis=1).ravel()
        values, firsts, inverse = np.unique(used, return_index=True, return_inverse=True)
        by_use = np.argsort(firsts, kind="stable")
        place = np.empty_like(by_use)
        place[by_use] = np.arange(len(by_use))
        self.frames[frame : frame + len(values)] = self.frames[values[by_use]]
        new = (place[inverse] + frame).reshape(len(order), -1)
        columns["index"][:], columns["next_index"][:] = new[:, : self.stack], new[:, self.stack :]
        self.n_frames = frame + len(values)
        _, columns["episodes"][:] = np.unique(columns["episodes"], return_inverse=True)
        columns["episodes"] += 0 if first == 0 else int(self.columns["episodes"][first - 1]) + 1
        self.part = (self.size, self.n_frames)
        return self._log(slice(first, self.size), slice(frame, self.n_frames))

    def extend(self, part: Transitions) -> None:
        """Take over a part that was closed earlier.

        Args:
            part: What `close_part` returned.
        """
        rows, frames = slice(self.size, self.size + len(part)), slice(self.n_frames, self.n_frames + len(part.frames))
        self._grow(rows.stop)
        self._grow_frames(frames.stop)
        self.frames[frames] = part.frames
        for name in _COLUMNS:
            self.columns[name][rows] = getattr(part, name)
        self.columns["index"][rows] += frames.start
        self.columns["next_index"][rows] += frames.start
        self.columns["episodes"][rows] += int(self.columns["episodes"][rows.start - 1]) + 1 if rows.start else 0
        self.size, self.n_frames, self.part = rows.stop, frames.stop, (rows.stop, frames.stop)

    def log(self, metadata: Mapping[str, Any] | None = None) -> Transitions:
        """All closed parts as one log.

        Args:
            metadata: What is known of the origin.

        Returns:
            The log; its arrays are views.
        """
        return self._log(slice(0, self.part[0]), slice(0, self.part[1]), metadata)

    def _log(self, rows: slice, frames: slice, metadata: Mapping[str, Any] | None = None) -> Transitions:
        columns = {name: self.columns[name][rows] for name in _COLUMNS}
        for name in ("index", "next_index"):
            columns[name] = columns[name] - frames.start
        columns["episodes"] = columns["episodes"] - columns["episodes"][0]
        return Transitions(
            frames=self.frames[frames],
            steps=np.ones(rows.stop - rows.start, dtype=np.int64),
            n_actions=self.n_actions,
            metadata=dict(metadata or {}),
            **columns,
        )

    def _stored(self, observations: np.ndarray) -> Int[np.ndarray, "envs stack"]:
        """Rows of new frames; within a stack, equal neighbours are one frame."""
        if self.stack == 1:
            return self._put(observations)[:, None]
        found = np.empty((len(observations), self.stack), dtype=np.int64)
        for k, stack in enumerate(observations):
            new = np.append(True, ~rows_equal(stack[1:], stack[:-1]))
            found[k] = self._put(stack[new])[np.cumsum(new) - 1]
        return found

    def _followed(self, observations: np.ndarray) -> Int[np.ndarray, "envs stack"]:
        """Rows of what followed: of a stack that moved by one frame only the newest is new."""
        if self.stack == 1:
            return self._put(observations)[:, None]
        moved = rows_equal(observations[:, :-1], self.frames[self._now[:, 1:]])
        found = np.empty_like(self._now)
        found[moved, :-1] = self._now[moved, 1:]
        found[moved, -1] = self._put(observations[moved, -1])
        if not moved.all():
            found[~moved] = self._stored(observations[~moved])
        return found

    def _put(self, frames: np.ndarray) -> Int[np.ndarray, " frames"]:
        rows = np.arange(self.n_frames, self.n_frames + len(frames))
        self._grow_frames(self.n_frames + len(frames))
        self.frames[rows] = frames
        self.n_frames += len(frames)
        return rows

    def _grow(self, rows: int) -> None:
        if rows > len(self.columns["actions"]):
            for name, column in self.columns.items():
                self.columns[name] = _larger(column, self.size, rows + rows // 2)

    def _grow_frames(self, rows: int) -> None:
        if rows > len(self.frames):
            self.frames = _larger(self.frames, self.n_frames, rows + rows // 2)


def _larger(array: np.ndarray, used: int, rows: int) -> np.ndarray:
    found = np.empty((rows, *array.shape[1:]), dtype=array.dtype)
    found[:used] = array[:used]
    return found

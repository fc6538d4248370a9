"""What is in a log, at a glance."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, final

import numpy as np

__all__ = ["LogSummary", "returns_of"]


@final
@dataclass(frozen=True)
class LogSummary:
    """Figures of a log.

    Args:
        transitions: How many.
        episodes: How many episodes they are of.
        frames: Frames in the pool.
        frame_bytes: Bytes of the pool.
        observation_shape: Shape of one observation.
        observation_dtype: Its dtype.
        action_counts: How often each action was taken.
        terminated: Share of the episodes that the environment ended.
        truncated: Share of the episodes that a time limit cut; the rest breaks off without either.
        reward_range: Smallest and largest reward.
        episode_returns: Undiscounted returns of episodes as logged: smallest, mean, median, largest; None where
            rewards are already sums over several steps.
        metadata: What is known of the origin.
    """

    transitions: int
    episodes: int
    frames: int
    frame_bytes: int
    observation_shape: tuple[int, ...]
    observation_dtype: str
    action_counts: tuple[int, ...]
    terminated: float
    truncated: float
    reward_range: tuple[float, float]
    episode_returns: Mapping[str, float] | None
    metadata: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        shape = f"{self.observation_shape} {self.observation_dtype}"
        actions = ", ".join(f"{count:,}" for count in self.action_counts)
        low, high = self.reward_range
        ends = f"{self.terminated:.0%} terminated, {self.truncated:.0%} truncated"
        lines = [
            f"{self.transitions:,} transitions of {self.episodes:,} episodes ({ends})",
            f"observations {shape}, {self.frames:,} frames, {self.frame_bytes / 2**20:.1f} MiB",
            f"actions {actions}; rewards {low:g} to {high:g}",
        ]
        if self.episode_returns is not None:
            lines.append("returns " + ", ".join(f"{name} {value:.4g}" for name, value in self.episode_returns.items()))
        return "\n".join(lines)


def returns_of(episodes: np.ndarray, rewards: np.ndarray) -> np.ndarray:
    """Sum of the rewards of each episode.

    Args:
        episodes: Episode number of each transition.
        rewards: Reward of each.

    Returns:
        Sums, in the order in which episodes first appear.
    """
    _, first, inverse = np.unique(episodes, return_index=True, return_inverse=True)
    return np.bincount(inverse, weights=rewards)[np.argsort(first)]

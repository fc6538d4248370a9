"""Confidences that say nothing, and would win a belief by it.

Values that are the same everywhere, as pessimistic values clipped at 0 are where rewards are rare, have no Bellman
residual until reward is seen. The belief takes that for accuracy, settles on them, and acts at random among equals: it
then never sees reward. Two tests find them, both relative to the confidence whose values vary most: over all that was
visited (a confidence that fails is not acted with, and a warning says so), and at each transition (a confidence whose
values there are all the same gets no better marks than the others, and is not acted with where its actions tie).
"""

from dataclasses import dataclass
from typing import SupportsFloat, final

import numpy as np
from jaxtyping import Bool, Float, Int

__all__ = ["DegenerateValuesWarning", "Spread", "informative", "no_spread", "silent", "undecided", "watch"]

LEAST = 0.01
"""Share of the greatest spread below which values over all that was visited count as constant."""
SILENCE = 1e-3
"""The same for the values about one transition, which differ less: by 1 - gamma even where they are exact."""


class DegenerateValuesWarning(UserWarning):
    """The values at some confidences do not vary over what was visited."""


@final
@dataclass(frozen=True, eq=False)
class Spread:
    """Running moments of the values about what was visited.

    Args:
        count: Values seen.
        mean: Their mean, in units of return.
        square: Sum of their squared deviations, in units of return squared.
    """

    count: Float[np.ndarray, " rows"]
    mean: Float[np.ndarray, "rows confidences"]
    square: Float[np.ndarray, "rows confidences"]

    @property
    def deviation(self) -> Float[np.ndarray, "rows confidences"]:
        """Standard deviation, in units of return; 0 before the first value."""
        return np.sqrt(self.square / np.maximum(self.count, 1.0)[:, None])


def no_spread(rows: int, confidences: int) -> Spread:
    """Nothing seen.

    Args:
        rows: Beliefs.
        confidences: Confidences.
    """
    return Spread(np.zeros(rows), np.zeros((rows, confidences)), np.zeros((rows, confidences)))


def watch(
    spread: Spread, q: Float[np.ndarray, "envs confidences actions"], actions: Int[np.ndarray, " envs"]
) -> Spread:
    """Take in the values of the actions taken and of the best; those of unseen actions mean nothing and stay out.

    Args:
        spread: What was seen before; with one row all environments count together.
        q: Values before the action.
        actions: Actions taken.

    Returns:
        The moments with them (Chan, Golub and LeVeque's update).
    """
    pair = np.stack([q[np.arange(len(q)), :, actions], q.max(-1)]).astype(np.float64)
    if len(spread.count) != len(q):
        pair = pair.reshape(-1, 1, pair.shape[-1])
    size, mean = len(pair), pair.mean(0)
    total = spread.count + size
    gap = mean - spread.mean
    square = spread.square + ((pair - mean) ** 2).sum(0) + gap**2 * (spread.count * size / total)[:, None]
    return Spread(total, spread.mean + gap * (size / total)[:, None], square)


def informative(spread: Spread, least: SupportsFloat = LEAST) -> Bool[np.ndarray, "rows confidences"]:
    """Confidences whose values vary over what was visited; all while none does.

    Args:
        spread: What was visited.
        least: Share of the greatest spread that counts as varying.

    Example:
        >>> q = np.array([[[0.0, 0.0], [0.2, 0.7]]])
        >>> informative(watch(no_spread(1, 2), q, np.array([0])))
        array([[False,  True]])
    """
    deviation = spread.deviation
    return deviation >= float(least) * deviation.max(-1, keepdims=True)


def silent(
    spread: Spread,
    q: Float[np.ndarray, "envs confidences actions"],
    actions: Int[np.ndarray, " envs"],
    next_q: Float[np.ndarray, "envs confidences actions"],
    terminated: Bool[np.ndarray, " envs"],
    silence: SupportsFloat = SILENCE,
) -> Bool[np.ndarray, "envs confidences"]:
    """Confidences that say nothing about a transition: action, best action and what followed are worth the same.

    Args:
        spread: What was visited.
        q: Values before the action.
        actions: Actions taken.
        next_q: Values of what followed.
        terminated: Whether the future is worth 0.
        silence: Share of the greatest spread that counts as a difference.
    """
    future = np.where(terminated[:, None], 0.0, next_q.max(-1))
    about = np.stack([q[np.arange(len(q)), :, actions], q.max(-1), future])
    return np.ptp(about, axis=0) <= float(silence) * spread.deviation.max(-1, keepdims=True)


def undecided(
    spread: Spread, q: Float[np.ndarray, "envs confidences actions"], silence: SupportsFloat = SILENCE
) -> Bool[np.ndarray, "envs confidences"]:
    """Confidences whose actions tie.

    Args:
        spread: What was visited.
        q: Values to act on.
        silence: Share of the greatest spread that counts as a difference.
    """
    return np.ptp(q, axis=-1) <= float(silence) * spread.deviation.max(-1, keepdims=True)

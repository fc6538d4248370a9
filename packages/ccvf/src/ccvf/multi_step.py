"""Returns of several steps: rewards summed until the observation n steps on."""

from dataclasses import replace
from typing import SupportsFloat, SupportsInt

import numpy as np

from ccvf.transitions import Transitions

__all__ = ["n_step"]


def n_step(data: Transitions, n: SupportsInt, gamma: SupportsFloat) -> Transitions:
    r"""Transitions that look n steps ahead.

    $$r^{(n)}_t = \sum_{k=0}^{m-1} \gamma^k r_{t+k}, \qquad m = \min(n, \text{steps until the end or a gap}),$$

    with the observation after step m as the next one, and the flags of step m: near the end of a terminated episode
    nothing follows, near that of a truncated one its last observation is bootstrapped with $\gamma^m$. Rewards of
    the logged behaviour are used as they are: for n > 1 the values learnt lean towards the behaviour's.

    Args:
        data: Single steps of whole episodes; take subsamples by transitions afterwards.
        n: Steps to look ahead, at least 1.
        gamma: Discount of one step, in [0, 1].

    Returns:
        As many transitions over the same frames; `steps` says how many steps each holds.

    Raises:
        ValueError: If n or gamma is out of range, or the data hold several steps already.

    Example:
        >>> log = Transitions.from_arrays(
        ...     observations=np.arange(3), actions=[0, 0, 0], rewards=[1.0, 10.0, 100.0],
        ...     next_observations=np.arange(1, 4), terminated=[False, False, True],
        ... )
        >>> ahead = n_step(log, 2, 0.5)
        >>> ahead.rewards.tolist(), ahead.steps.tolist(), ahead.terminated.tolist()
        ([6.0, 60.0, 100.0], [2, 2, 1], [False, True, True])
    """
    count, discount = int(n), float(gamma)
    if count < 1 or not 0 <= discount <= 1:
        raise ValueError(f"n={count}, gamma={discount:g}: n is at least 1 and gamma in [0, 1]")
    if (data.steps != 1).any():
        raise ValueError("the transitions hold several steps already; give the log as it was before n_step")
    size = len(data)
    rewards, reached = data.rewards.astype(np.float64), np.arange(size)
    going = np.ones(size, dtype=bool)
    for ahead in range(1, min(count, size)):
        going[: size - ahead + 1] &= data.linked[ahead - 1 :]
        going[size - ahead :] = False
        rows = np.flatnonzero(going)
        if not rows.size:
            break
        rewards[rows] += discount**ahead * data.rewards[rows + ahead]
        reached[rows] = rows + ahead
    return replace(
        data,
        rewards=rewards,
        next_index=data.next_index[reached],
        terminated=data.terminated[reached],
        truncated=data.truncated[reached],
        steps=reached - np.arange(size) + 1,
        metadata={**data.metadata, "n_step": {"n": count, "gamma": discount}},
    )

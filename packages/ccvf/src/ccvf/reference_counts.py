"""The counts that estimates without a count of their own are scaled by."""

import math

import torch

from ccvf.exact_counts import ExactCounts
from ccvf.hashing import HashCounts
from ccvf.penalties import Bonus
from ccvf.transitions import Transitions

__all__ = ["reference_counts"]


def reference_counts(data: Transitions, generator: torch.Generator, device: torch.device) -> Bonus:
    """Counts by random signs of 16 bits, or exact ones where observations are single numbers.

    Args:
        data: The log.
        generator: Source of randomness.
        device: Where they are asked.

    Returns:
        The fitted counts.
    """
    if math.prod(data.observation_shape) == 1:
        return ExactCounts(device=device).fit(data, generator)
    return HashCounts(device=device).fit(data, generator)

"""Ranks that train together: the same bits everywhere, rounding noise of their own."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from gact.counter_rng import stream_key


def ready() -> bool:
    """Whether torch.distributed is there and initialised with more than one rank."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank_seed(seed: int, group: Any = None) -> int:
    """A seed of this rank's own.

    Args:
        seed: The run's.
        group: The ranks; all by default.
    """
    return stream_key(seed, dist.get_rank(group), 0) % 2**63


def agree(bits: Mapping[str, int], group: Any = None) -> dict[str, int]:
    """Return the bits that all ranks use: of each tensor the most that any rank chose.

    Args:
        bits: This rank's choice.
        group: The ranks; all by default.
    """
    everyone: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, dict(bits), group=group)
    keys = {key: None for other in everyone for key in other}
    return {key: max(other[key] for other in everyone if key in other) for key in keys}


def any_rank(here: bool, group: Any = None) -> bool:
    """Whether something holds on any rank.

    Args:
        here: Whether it holds on this one.
        group: The ranks; all by default.
    """
    backend = dist.get_backend(group)
    flag = torch.tensor([float(here)], device="cuda" if backend == "nccl" else "cpu")
    dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=group)
    return bool(flag.item())

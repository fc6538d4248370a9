"""Several ranks: one choice of bits for all of them, rounding noise of their own, and parameters that come and go.

Gradients are averaged over ranks, so independent rounding noise averages out as the noise of the batch does; with one
seed everywhere it would not. Bits, on the other hand, must be equal, or ranks would differ in memory and in time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from gact.counter_rng import stream_key

__all__ = ["agree", "any_rank", "is_parameter_storage", "rank_seed", "ready", "world"]

_RANKS = 0x72616E6B  # keeps these keys apart from those of the steps


def ready(group: Any = None) -> bool:
    """Whether there are ranks to agree with.

    Args:
        group: A process group; the default one if None.

    Returns:
        True if torch.distributed is initialised and the group has more than one rank.
    """
    return world(group)[1] > 1


def world(group: Any = None) -> tuple[int, int]:
    """Rank of this process and number of ranks.

    Args:
        group: A process group; the default one if None.

    Returns:
        (rank in the group, size); (0, 1) where torch.distributed is not initialised.

    Raises:
        ValueError: If this process is not in the group.
    """
    if not dist.is_available() or not dist.is_initialized():
        return 0, 1
    rank = dist.get_rank(group)
    if rank < 0:
        raise ValueError("this process is not a member of the process group: give a group that it belongs to")
    return rank, dist.get_world_size(group)


def agree(bits: Mapping[str, int], group: Any = None) -> dict[str, int]:
    """The bits that all ranks of a group use from now on.

    Those of the group's first rank. Where ranks know different tensors (pipeline stages, data-dependent control flow),
    everything that some rank knows, each at the largest width that a rank has for it. A collective call: every rank of
    the group must make it.

    Args:
        bits: Width of each tensor, by key.
        group: A process group; the default one if None.

    Returns:
        Width of each tensor, the same on all ranks.

    Raises:
        ValueError: If this process is not in the group.

    Example:
        >>> agree({"linear.input": 4})
        {'linear.input': 4}
    """
    _, size = world(group)
    own = dict(bits)
    if size == 1:
        return own
    everyone: list[Any] = [None] * size
    dist.all_gather_object(everyone, own, group=group)
    first = everyone[0]
    if all(other.keys() == first.keys() for other in everyone):
        return first
    return {key: max(b[key] for b in everyone if key in b) for key in sorted({k for b in everyone for k in b})}


def rank_seed(seed: int, group: Any = None) -> int:
    """A seed of the rounding that differs from rank to rank.

    Args:
        seed: The run's seed, equal on all ranks.
        group: The group of all ranks whose gradients are averaged; the default one if None.

    Returns:
        `seed` itself with a single rank, else 64 bits mixed from `seed` and the rank.

    Raises:
        ValueError: If this process is not in the group.

    Example:
        >>> rank_seed(7)
        7
    """
    rank, size = world(group)
    return seed if size == 1 else stream_key(seed, rank, _RANKS)


def any_rank(here: bool, group: Any = None) -> bool:
    """Whether something holds on any rank of a group. A collective call: every rank of the group must make it.

    Args:
        here: Whether it holds on this one.
        group: A process group; the default one if None.

    Returns:
        The same on all ranks.

    Raises:
        ValueError: If this process is not in the group.
    """
    _, size = world(group)
    if size == 1:
        return here
    everyone: list[Any] = [None] * size
    dist.all_gather_object(everyone, here, group=group)
    return any(everyone)


def is_parameter_storage(tensor: Tensor, known: Collection[int] = ()) -> bool:
    """Whether a tensor that autograd saves is a parameter or a view of one, also of one that FSDP has gathered.

    FSDP gathers a whole parameter for the forward pass, frees its memory afterwards by resizing the storage to nothing,
    and fills the same storage again before the backward pass. Such a tensor costs nothing between the passes. It must
    be kept as it is: a copy would keep what was to be freed. The gathered parameter is a `torch.nn.Parameter` that the
    model's own list does not name, so it is recognised by its type, and views by that of their base; frozen ones too,
    whose views no graph leads back to.

    Args:
        tensor: As a pack hook gets it.
        known: Addresses (``untyped_storage()._cdata``) of storages that count as parameters as well.

    Returns:
        True if it has to be kept as it is.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(3, 2), requires_grad=False)
        >>> is_parameter_storage(weight.t()), is_parameter_storage(weight.t() * 2)
        (True, False)
    """
    base = tensor if tensor._base is None else tensor._base
    if isinstance(base, torch.nn.Parameter):
        return True
    return bool(known) and tensor.layout == torch.strided and tensor.untyped_storage()._cdata in known

"""Exact counts of observations: each different one is a state of its own, known by 64 bits."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, SupportsFloat, final

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from ccvf.count_table import CountTable
from ccvf.logged_pairs import check_kind, check_unseen, need_fit, pair_chunks
from ccvf.penalties import Bonus
from ccvf.transitions import Transitions

__all__ = ["ExactCounts", "draw_multipliers", "row_codes"]


def draw_multipliers(size: int, generator: torch.Generator) -> Int[Tensor, "planes size"]:
    """Random multipliers of `row_codes`, 64 bits each.

    Args:
        size: Numbers in one observation.
        generator: Source of randomness.

    Returns:
        One for each of the eight bytes of every number.
    """
    return torch.randint(-(2**63), 2**63 - 1, (8, size), generator=generator, device=generator.device)


def row_codes(
    observations: Shaped[Tensor, "batch ..."], multipliers: Int[Tensor, "planes size"]
) -> Int[Tensor, " batch"]:
    r"""A code of 64 bits for each observation: $\sum_{p,i} m_{p,i} x_{p,i} \bmod 2^{64}$ over its bytes x.

    Two different observations share a code with probability at most 2**-57 over the multipliers: their bytes differ
    by less than 2**8, so that at most 7 bits of the sum are lost. Among a million, 4 in a million logs have any such
    pair. Whole numbers have the same code in any dtype; floating point is rounded to float32, and -0 counts as 0.

    Args:
        observations: Any.
        multipliers: From `draw_multipliers`, on the same device.

    Returns:
        The codes.
    """
    flat = observations.reshape(len(observations), -1)
    if flat.dtype in (torch.bool, torch.uint8):
        return (flat.long() * multipliers[0]).sum(1)
    planes = 8
    if flat.is_floating_point():
        planes, flat = 4, (flat.float() + 0.0).view(torch.int32)
    shifts = torch.arange(0, 8 * planes, 8, device=flat.device)[:, None, None]
    return (((flat.long() >> shifts) & 255) * multipliers[:planes, None]).sum((0, 2))


@final
class ExactCounts(Bonus):
    r"""$1/\sqrt{n(s,a)}$ with exact counts of the log; right where states recur: gridworlds, small tables.

    Args:
        unseen: The bonus where n = 0: above 1, which a pair seen once has, unseen actions rank below seen ones.
        device: Where it is asked.

    Raises:
        ValueError: If `unseen` is below 1.

    Example:
        >>> import numpy as np
        >>> log = Transitions.from_arrays(np.array([0, 0, 1]), [0, 0, 1], [0, 0, 0], np.array([1, 1, 2]), [0, 0, 0])
        >>> bonus = ExactCounts(unseen=2).fit(log, torch.Generator().manual_seed(0))
        >>> bonus(torch.tensor([0, 1, 5])).round(decimals=3).tolist()
        [[0.7070000171661377, 2.0], [2.0, 1.0], [2.0, 2.0]]
    """

    kind: ClassVar[str] = "exact"

    def __init__(self, *, unseen: SupportsFloat = 10.0, device: str | torch.device = "cpu") -> None:
        self.unseen, self.device = check_unseen(unseen), torch.device(device)
        self._fitted: tuple[Tensor, CountTable] | None = None

    def fit(self, data: Transitions, generator: torch.Generator) -> "ExactCounts":
        """Count the log (see `Bonus.fit`); the generator draws the multipliers of the codes."""
        multipliers = draw_multipliers(math.prod(data.observation_shape), generator).to(self.device)
        parts = [(row_codes(x, multipliers), actions) for x, actions in pair_chunks(data, self.device)]
        codes, actions = (torch.cat(column) for column in zip(*parts, strict=True))
        self._fitted = multipliers, CountTable.of(codes, actions, data.n_actions)
        return self

    def counts(self, observations: Shaped[Tensor, "batch ..."]) -> Int[Tensor, "batch actions"]:
        """How often every action was logged.

        Args:
            observations: As in the log.

        Returns:
            n(s, a).
        """
        multipliers, table = self._need()
        return table.look_up(row_codes(observations.to(self.device), multipliers))

    @torch.no_grad()
    def __call__(self, observations: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch actions"]:
        """The estimate for every action (see `Bonus.__call__`)."""
        multipliers, table = self._need()
        return table.bonus(row_codes(observations.to(self.device), multipliers), self.unseen)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What `restore` needs (see `Bonus.state`)."""
        multipliers, table = self._need()
        return {"multipliers": multipliers, **table.state()}, {"bonus": self.kind, "unseen": self.unseen}

    def restore(self, tensors: Mapping[str, Tensor], extra: Mapping[str, Any]) -> None:
        """Take over a `state` (see `Bonus.restore`)."""
        check_kind(extra, self.kind)
        self.unseen = check_unseen(extra["unseen"])
        self._fitted = tensors["multipliers"].to(self.device), CountTable.restored(tensors, self.device)

    def _need(self) -> tuple[Tensor, CountTable]:
        need_fit(self._fitted)
        assert self._fitted is not None
        return self._fitted

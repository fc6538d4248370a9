"""Counts of (code, action) pairs, looked up on the device by a search among sorted codes."""

from collections.abc import Mapping
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["CountTable"]


@final
class CountTable:
    """How often each action was logged under each code.

    Args:
        codes: Different codes, ascending.
        counts: (codes + 1, actions); the last row, of zeros, is for codes not in the table.
    """

    def __init__(self, codes: Int[Tensor, " codes"], counts: Int[Tensor, "rows actions"]) -> None:
        self.codes, self.counts = codes, counts

    @staticmethod
    def of(codes: Int[Tensor, " pairs"], actions: Int[Tensor, " pairs"], n_actions: int) -> "CountTable":
        """The table of logged pairs.

        Args:
            codes: Code of each pair's observation.
            actions: Action of each pair.
            n_actions: Number of actions.

        Returns:
            The table.

        Example:
            >>> table = CountTable.of(torch.tensor([7, 5, 7]), torch.tensor([0, 1, 0]), 2)
            >>> table.look_up(torch.tensor([5, 6, 7])).tolist()
            [[0, 1], [0, 0], [2, 0]]
        """
        unique, position = codes.unique(return_inverse=True)
        counts = torch.zeros((len(unique) + 1) * n_actions, dtype=torch.int64, device=codes.device)
        counts.scatter_add_(0, position * n_actions + actions, torch.ones_like(position))
        return CountTable(unique, counts.view(-1, n_actions))

    def look_up(self, codes: Int[Tensor, " batch"]) -> Int[Tensor, "batch actions"]:
        """Counts of every action.

        Args:
            codes: Any.

        Returns:
            Counts; 0 where the code is not in the table.
        """
        place = torch.searchsorted(self.codes, codes).clamp_max(len(self.codes) - 1)
        return self.counts[torch.where(self.codes[place] == codes, place, len(self.codes))]

    def bonus(self, codes: Int[Tensor, " batch"], unseen: float) -> Float[Tensor, "batch actions"]:
        r"""$1/\sqrt{n}$ of every action, or `unseen` where n = 0.

        Args:
            codes: Any.
            unseen: The bonus of what was never logged.

        Returns:
            Bonuses, float32.
        """
        counts = self.look_up(codes)
        return torch.where(counts > 0, counts.clamp_min(1).double().rsqrt(), unseen).float()

    def state(self) -> dict[str, Tensor]:
        """Tensors by name."""
        return {"codes": self.codes, "counts": self.counts}

    @staticmethod
    def restored(tensors: Mapping[str, Tensor], device: torch.device) -> "CountTable":
        """The table of a `state`.

        Args:
            tensors: Tensors by name.
            device: Where it is wanted.

        Returns:
            The table.
        """
        return CountTable(tensors["codes"].to(device), tensors["counts"].to(device))

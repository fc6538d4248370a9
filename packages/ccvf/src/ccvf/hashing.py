"""Counts of neighbourhoods: observations whose random projections have the same signs count as one state."""

from collections.abc import Mapping
from typing import Any, ClassVar, SupportsFloat, final

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from ccvf.count_table import CountTable
from ccvf.logged_pairs import check_kind, check_unseen, moments, need_fit, pair_chunks, without_autocast
from ccvf.penalties import Bonus
from ccvf.transitions import Transitions

__all__ = ["HashCounts", "sign_codes"]

_MOST_BITS = 62


def sign_codes(x: Float[Tensor, "batch size"], projection: Float[Tensor, "size bits"]) -> Int[Tensor, " batch"]:
    """Signs of projections as the bits of a number.

    Two vectors at an angle theta differ in each bit with probability theta / pi over Gaussian projections.

    Args:
        x: Vectors.
        projection: One column a bit.

    Returns:
        Codes from 0 to 2**bits - 1.

    Reference:
        Charikar (2002). Similarity estimation techniques from rounding algorithms. STOC.
    """
    weights = 2 ** torch.arange(projection.shape[1], device=x.device)
    return ((x @ projection > 0) * weights).sum(1)


@final
class HashCounts(Bonus):
    r"""$1/\sqrt{n}$ with counts of (SimHash code, action): more bits tell more observations apart.

    Observations are centred by the log's mean; numbers of floating point are divided by their standard deviation.

    Args:
        bits: Length of the code, 1 to 62.
        unseen: The bonus where n = 0, at least 1.
        device: Where it is asked.

    Raises:
        ValueError: If an option is out of range.

    Reference:
        Tang et al. (2017). #Exploration: a study of count-based exploration for deep RL (arXiv:1611.04717), section 2.
    """

    kind: ClassVar[str] = "hash"

    def __init__(self, *, bits: int = 16, unseen: SupportsFloat = 10.0, device: str | torch.device = "cpu") -> None:
        if not 1 <= bits <= _MOST_BITS:
            raise ValueError(f"bits={bits}: a code has 1 to {_MOST_BITS} bits")
        self.bits, self.unseen, self.device = bits, check_unseen(unseen), torch.device(device)
        self._fitted: tuple[Tensor, Tensor, CountTable] | None = None

    def fit(self, data: Transitions, generator: torch.Generator) -> "HashCounts":
        """Count the log (see `Bonus.fit`); the generator draws the projection.

        Raises:
            ValueError: If observations are single numbers, of which signs tell only two sides apart.
        """
        mean, deviation = moments(data, self.device)
        if mean.numel() == 1:
            raise ValueError("observations are single numbers, whose projections have only two signs: use 'exact'")
        drawn = torch.randn(mean.numel(), self.bits, generator=generator, device=generator.device, dtype=torch.float64)
        # In float64, so that a batch of another size, or another device, gives the same signs.
        projection = drawn.to(self.device) / deviation.unsqueeze(1)
        parts = [(_codes(x, mean, projection), actions) for x, actions in pair_chunks(data, self.device)]
        codes, actions = (torch.cat(column) for column in zip(*parts, strict=True))
        self._fitted = mean, projection, CountTable.of(codes, actions, data.n_actions)
        return self

    def counts(self, observations: Shaped[Tensor, "batch ..."]) -> Int[Tensor, "batch actions"]:
        """How often every action was logged under the code of each observation.

        Args:
            observations: As in the log.

        Returns:
            n(s, a).
        """
        mean, projection, table = self._need()
        return table.look_up(_codes(observations.to(self.device), mean, projection))

    @torch.no_grad()
    def __call__(self, observations: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch actions"]:
        """The estimate for every action (see `Bonus.__call__`)."""
        mean, projection, table = self._need()
        return table.bonus(_codes(observations.to(self.device), mean, projection), self.unseen)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What `restore` needs (see `Bonus.state`)."""
        mean, projection, table = self._need()
        extra = {"bonus": self.kind, "bits": self.bits, "unseen": self.unseen}
        return {"mean": mean, "projection": projection, **table.state()}, extra

    def restore(self, tensors: Mapping[str, Tensor], extra: Mapping[str, Any]) -> None:
        """Take over a `state` (see `Bonus.restore`)."""
        check_kind(extra, self.kind)
        self.bits, self.unseen = int(extra["bits"]), check_unseen(extra["unseen"])
        mean, projection = (tensors[name].to(self.device) for name in ("mean", "projection"))
        self._fitted = mean, projection, CountTable.restored(tensors, self.device)

    def _need(self) -> tuple[Tensor, Tensor, CountTable]:
        need_fit(self._fitted)
        assert self._fitted is not None
        return self._fitted


def _codes(observations: Tensor, mean: Tensor, projection: Tensor) -> Tensor:
    with without_autocast(mean.device):
        return sign_codes(observations.reshape(len(observations), -1).double() - mean, projection)

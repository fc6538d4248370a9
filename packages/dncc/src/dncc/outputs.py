"""What an ensemble loss returns: the loss and the terms of the decomposition that it was made of."""

from dataclasses import dataclass
from typing import final

from jaxtyping import Float
from torch import Tensor

__all__ = ["EnsembleOutput", "Measured"]


@final
@dataclass(frozen=True)
class Measured:
    """The decomposition on a split of the data, in nats, means over samples.

    Attributes:
        ce: Mean cross-entropy of the members.
        ensemble_ce: Cross-entropy of the ensemble.
        ambiguity: ce - ensemble_ce.
    """

    ce: float
    ensemble_ce: float
    ambiguity: float


@final
@dataclass(frozen=True, eq=False)
class EnsembleOutput:
    """The loss of a batch, and how accurate and how diverse the members are on it.

    `ensemble_ce = ce - ambiguity` for the aggregation of the loss, exactly (up to rounding). All entries stay attached
    to the graph, except where the fused kernel made them (then only `loss` is).

    Attributes:
        loss: What to call `backward` on; in nats. A scalar; shape (batch,) with `reduction="none"`.
        ce: Mean over members of their cross-entropy, averaged over the batch, in nats. Shape as `loss`.
        ensemble_ce: Cross-entropy of the aggregated prediction, in nats. Shape as `loss`.
        ambiguity: Mean divergence of members from their aggregate, never negative, in nats. Shape as `loss`.
        member_ce: Cross-entropy of every member, in nats. Shape (members,); (members, batch) with `reduction="none"`.
        lam: The lambda in force.

    Reference:
        Zhang et al. (2022), arXiv:2212.07070; Wood et al. (2023), JMLR 24, for the frame of such decompositions.
    """

    loss: Float[Tensor, "*samples"]
    ce: Float[Tensor, "*samples"]
    ensemble_ce: Float[Tensor, "*samples"]
    ambiguity: Float[Tensor, "*samples"]
    member_ce: Float[Tensor, "members *samples"]
    lam: float | Float[Tensor, ""]

    def measured(self) -> Measured:
        """The terms as numbers, for logs and controllers; waits for the device.

        Returns:
            Means over the batch.
        """
        terms = (self.ce, self.ensemble_ce, self.ambiguity)
        return Measured(*(float(term.detach().mean()) for term in terms))

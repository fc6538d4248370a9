"""What every ensemble of this package is: a module whose forward gives the logits of all members."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dncc.aggregation import Aggregate, aggregate_log_proba, log_softmax

__all__ = ["EnsembleModule"]


class EnsembleModule(nn.Module, ABC):
    """M classifiers in one module: `forward(x)` gives member-first logits of shape (members, batch, classes).

    Attributes:
        num_members: M.
        num_classes: Number of classes.
    """

    num_members: int
    num_classes: int

    @abstractmethod
    def forward(self, x: Tensor) -> Float[Tensor, "members batch classes"]:
        """Logits of every member.

        Args:
            x: A batch as the backbone takes it.

        Returns:
            Member-first logits.
        """

    @torch.no_grad()
    def members(self, x: Tensor) -> Float[Tensor, "members batch classes"]:
        """Probabilities of every member, without gradients.

        Args:
            x: A batch as the backbone takes it.

        Returns:
            Probabilities, at least float32.
        """
        return log_softmax(self(x)).exp()

    @torch.no_grad()
    def predict_log_proba(self, x: Tensor, aggregate: Aggregate = "arithmetic") -> Float[Tensor, "batch classes"]:
        """Log-probabilities of the ensemble, without gradients. Call `eval()` first, as for any module.

        Args:
            x: A batch as the backbone takes it.
            aggregate: How members are averaged; take what the loss was trained with.

        Returns:
            Normalised log-probabilities, at least float32.
        """
        return aggregate_log_proba(log_softmax(self(x)), aggregate)

    @torch.no_grad()
    def predict_proba(self, x: Tensor, aggregate: Aggregate = "arithmetic") -> Float[Tensor, "batch classes"]:
        """Probabilities of the ensemble, without gradients. Call `eval()` first, as for any module.

        Args:
            x: A batch as the backbone takes it.
            aggregate: How members are averaged; take what the loss was trained with.

        Returns:
            Probabilities, at least float32.
        """
        return self.predict_log_proba(x, aggregate).exp()

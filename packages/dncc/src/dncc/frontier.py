"""The accuracy-diversity frontier in one run: groups of heads on one trunk, each trained with a lambda of its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, SupportsFloat, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dncc.aggregation import Aggregate
from dncc.checks import checked_lambda
from dncc.losses import DNCCLoss
from dncc.outputs import EnsembleOutput

__all__ = ["FrontierLoss", "FrontierOutput", "member_groups"]


@final
@dataclass(frozen=True, eq=False)
class FrontierOutput:
    """Loss of all groups, and the terms of every group.

    Attributes:
        loss: Mean of the groups' losses, in nats.
        groups: The result of every lambda, in the order of the lambdas.
    """

    loss: Float[Tensor, ""]
    groups: tuple[EnsembleOutput, ...]


def member_groups(
    logits: Float[Tensor, "members *shape"], groups: int
) -> tuple[Float[Tensor, "group_members *shape"], ...]:
    """The members in equal groups, in order: group g has members g K ... (g + 1) K - 1.

    Args:
        logits: Member-first values.
        groups: How many groups.

    Returns:
        Views, one a group.

    Raises:
        ValueError: If the members cannot be split evenly.
    """
    members = logits.shape[0]
    if groups < 1 or members % groups:
        raise ValueError(f"{members} members cannot be split into {groups} equal groups; build the model with a "
                         f"multiple of {groups} members")  # fmt: skip
    return tuple(logits.unflatten(0, (groups, members // groups)).unbind(0))


@final
class FrontierLoss(nn.Module):
    """One ensemble a lambda, all on the same trunk: the whole trade-off from a single training run.

    The members are split into equal groups, each with its own aggregate and its own lambda; every group's loss is exact
    for that group. The trunk is trained by all of them, so this shows what lambda does to heads on a common
    representation; separate runs differ by what lambda does to the trunk.

    Args:
        lams: One lambda a group, each in [0, 1].
        aggregate: How members of a group are averaged.
        **options: As for `DNCCLoss`; `reduction` "mean" or "sum".

    Raises:
        ValueError: If there is no lambda, or one is outside [0, 1].

    Example:
        >>> import torch
        >>> from dncc import FrontierLoss
        >>> logits = torch.randn(8, 16, 3, generator=torch.Generator().manual_seed(0))  # 4 groups of 2 members
        >>> out = FrontierLoss([0.0, 0.5, 0.9, 1.0])(logits, torch.arange(16) % 3)
        >>> len(out.groups), torch.allclose(out.loss, sum(group.loss for group in out.groups) / 4)
        (4, True)
    """

    def __init__(self, lams: Sequence[SupportsFloat], aggregate: Aggregate = "arithmetic", **options: Any) -> None:
        super().__init__()
        if not len(lams):
            raise ValueError("lams is empty; give one lambda a group, such as [0, 0.25, 0.5, 0.75, 0.9, 1]")
        if options.get("reduction") == "none":
            raise ValueError("FrontierLoss averages over the batch: reduction is 'mean' or 'sum'")
        self.lams = tuple(checked_lambda(lam, f"lams[{i}]") for i, lam in enumerate(lams))
        self.losses = nn.ModuleList(DNCCLoss(lam, aggregate=aggregate, **options) for lam in self.lams)

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        sample_weight: Tensor | None = None,
    ) -> FrontierOutput:
        """Loss and terms of every group.

        Args:
            logits: Scores (members, batch, ..., classes) of all members, group by group.
            target: Class indices or soft labels, as for `DNCCLoss`.
            sample_weight: What a sample counts.

        Returns:
            The mean loss and the groups' results.

        Raises:
            ValueError: If the members cannot be split evenly, and as `DNCCLoss`.
        """
        parts = member_groups(logits, len(self.lams))
        groups = tuple(loss(part, target, sample_weight) for loss, part in zip(self.losses, parts, strict=True))
        return FrontierOutput(torch.stack([group.loss for group in groups]).mean(), groups)

"""M whole networks as one ensemble: stacked where they share an architecture, one after another where they do not.

Joint training needs all members in one step; with `reduction="sum"` and lambda = 0 the step is that of M networks
trained on their own (a deep ensemble).

Reference:
    Lakshminarayanan, Pritzel, Blundell (2017). Simple and Scalable Predictive Uncertainty Estimation using Deep
    Ensembles. arXiv:1612.01474.
"""

from collections.abc import Callable, Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dncc.ensembles import EnsembleModule
from dncc.initialising import build_members
from dncc.stacking import Execution, StackedModule, architecture_difference
from dncc.surgery import find_lazy, known_classes, refuse_lazy

__all__ = ["LoopNetworks", "SeparateNetworks", "separate_networks"]


@final
class SeparateNetworks(EnsembleModule):
    """M networks of one architecture with stacked parameters.

    Optimisers, `state_dict` and `.to()` see one tensor of shape (members, ...) for each parameter of the architecture.
    Updates that treat entries one by one (SGD, Adam, weight decay) equal those of M optimisers; clipping by the norm
    of all gradients couples the members.

    Args:
        modules: Networks, copied into the stack and left as they are; or a function that builds one, called `members`
            times.
        members: How many; needless with a list.
        num_classes: Number of classes; read from the last layer if None.
        generator: Makes what a function builds reproducible (on the CPU); torch's default generator if None.
        execution: "auto", "vmap" or "loop", see `StackedModule`.
        chunk: With vmap, how many networks are run at once; all if None.

    Raises:
        ValueError: If architectures differ (`LoopNetworks` takes those), or the number of classes cannot be found.

    Example:
        >>> model = SeparateNetworks(lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), members=4)
        >>> model(torch.randn(5, 6)).shape
        torch.Size([4, 5, 3])
        >>> len(model.unstack())
        4
    """

    def __init__(
        self,
        modules: Sequence[nn.Module] | Callable[[], nn.Module],
        members: int | None = None,
        *,
        num_classes: int | None = None,
        generator: torch.Generator | None = None,
        execution: Execution = "auto",
        chunk: int | None = None,
    ) -> None:
        super().__init__()
        built = build_members(modules, members, generator)
        for module in built:
            refuse_lazy(module, "a member")
        if (reason := architecture_difference(built)) is not None:
            raise ValueError(f"members cannot be stacked: {reason}; LoopNetworks runs networks that differ")
        self.num_members = len(built)
        self.num_classes = known_classes(built[0], num_classes)
        self.networks = StackedModule(built, execution=execution, chunk=chunk)

    def forward(self, x: Tensor) -> Float[Tensor, "members batch classes"]:
        """Logits of every network.

        Args:
            x: A batch as a network takes it.

        Returns:
            Member-first logits.

        Raises:
            ValueError: If a network does not give (batch, classes).
        """
        return _checked(self.networks(x), self.num_classes)

    def unstack(self) -> list[nn.Module]:
        """The networks as ordinary modules: copies, with the current parameters, buffers and mode.

        Returns:
            One module a member.
        """
        return self.networks.unstack()


@final
class LoopNetworks(EnsembleModule):
    """M networks of any architectures, run one after another on the same batch.

    Args:
        modules: Networks, used as they are, not copied; or a function that builds one, called `members` times.
        members: How many; needless with a list.
        num_classes: Number of classes; read from the first network's last layer if None.
        generator: Makes what a function builds reproducible (on the CPU); torch's default generator if None.
        reason: Why they are not stacked, for the record.

    Raises:
        ValueError: If the number of classes cannot be found.

    Example:
        >>> model = LoopNetworks([nn.Linear(6, 3), nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))])
        >>> model(torch.randn(5, 6)).shape
        torch.Size([2, 5, 3])
    """

    def __init__(
        self,
        modules: Sequence[nn.Module] | Callable[[], nn.Module],
        members: int | None = None,
        *,
        num_classes: int | None = None,
        generator: torch.Generator | None = None,
        reason: str = "",
    ) -> None:
        super().__init__()
        built = build_members(modules, members, generator)
        self.num_members = len(built)
        self.num_classes = known_classes(built[0], num_classes)
        self.networks = nn.ModuleList(built)
        self.reason = reason

    def forward(self, x: Tensor) -> Float[Tensor, "members batch classes"]:
        """Logits of every network.

        Args:
            x: A batch as every network takes it.

        Returns:
            Member-first logits.

        Raises:
            ValueError: If a network does not give (batch, classes), or networks differ in classes.
        """
        outputs = [network(x) for network in self.networks]
        for m, logits in enumerate(outputs):
            if logits.shape != (x.shape[0], self.num_classes):
                raise ValueError(f"network {m} gives shape {tuple(logits.shape)}; it must be (batch, classes) = "
                                 f"({x.shape[0]}, {self.num_classes})")  # fmt: skip
        return torch.stack(outputs)


def separate_networks(
    modules: Sequence[nn.Module] | Callable[[], nn.Module],
    members: int | None = None,
    *,
    num_classes: int | None = None,
    generator: torch.Generator | None = None,
) -> SeparateNetworks | LoopNetworks:
    """Whole networks as an ensemble: stacked if they share an architecture, else in a loop that says why.

    Args:
        modules: Networks, or a function that builds one, called `members` times.
        members: How many; needless with a list.
        num_classes: Number of classes; read from the last layer if None.
        generator: Makes what a function builds reproducible (on the CPU); torch's default generator if None.

    Returns:
        `SeparateNetworks`, or `LoopNetworks` with its `reason`.

    Example:
        >>> separate_networks([nn.Linear(6, 3), nn.Linear(6, 3, bias=False)]).reason
        "member 1 differs from member 0: its parameters are named differently (['bias'])"
    """
    built = build_members(modules, members, generator)
    lazy = [name for module in built for name in find_lazy(module)]
    reason = f"lazy parameters ({lazy[0]})" if lazy else architecture_difference(built)
    if reason is None:
        return SeparateNetworks(built, num_classes=num_classes)
    return LoopNetworks(built, num_classes=num_classes, reason=reason)


def _checked(logits: Tensor, num_classes: int) -> Tensor:
    if logits.ndim != 3 or logits.shape[-1] != num_classes:
        raise ValueError(f"a network gives shape {tuple(logits.shape[1:])}; it must be (batch, {num_classes})")
    return logits

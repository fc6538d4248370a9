"""A shared trunk that splits into members part of the way up (TreeNet): as much sharing as wished.

Reference:
    Lee, Purushwalkam, Cogswell, Crandall, Batra (2015). Why M Heads are Better than One: Training a Diverse Ensemble
    of Deep Networks. arXiv:1511.06314.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Literal, final, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dncc.cutting import cut_at
from dncc.ensembles import EnsembleModule
from dncc.initialising import build_members, checked_members, draw_seeds, fresh_copies, fresh_copy
from dncc.stacking import Execution, StackedModule
from dncc.surgery import find_classifier, known_classes, resized, with_replaced

__all__ = ["BranchInit", "Branching", "branch_at"]

BranchInit = Literal["reset", "keep"]


@final
class Branching(EnsembleModule):
    """One trunk, M branches of one architecture: z_m(x) = branch_m(trunk(x)).

    The branches' parameters are stacked (see `StackedModule`): batch-norm statistics are each member's own, dropout
    differs between members. With the default `reduction="mean"` of the losses, a branch receives 1/M of its gradient.

    Args:
        trunk: Shared; used as it is, not copied.
        branch: From the trunk's output to (batch, classes). A module is copied `members` times, each copy with fresh
            weights from `reset_parameters` of its layers; a function is called `members` times and builds a branch
            with its own initialisation; a list of modules is taken as it is (and copied into the stack).
        members: How many; needless with a list.
        num_classes: Number of classes; read from the branch's last layer if None.
        generator: Source of the fresh weights; torch's default generator if None.
        execution: "auto", "vmap" or "loop", see `StackedModule`.
        chunk: With vmap, how many branches are run at once; all if None.

    Raises:
        ValueError: If branches differ in architecture, or the number of classes cannot be found.

    Example:
        >>> trunk, branch = nn.Linear(6, 8), nn.Sequential(nn.ReLU(), nn.Linear(8, 3))
        >>> model = Branching(trunk, branch, members=4)
        >>> model(torch.randn(5, 6)).shape
        torch.Size([4, 5, 3])
    """

    def __init__(
        self,
        trunk: nn.Module,
        branch: nn.Module | Callable[[], nn.Module] | Sequence[nn.Module],
        members: int | None = None,
        *,
        num_classes: int | None = None,
        generator: torch.Generator | None = None,
        execution: Execution = "auto",
        chunk: int | None = None,
    ) -> None:
        super().__init__()
        if isinstance(branch, nn.Module):
            if members is None:
                raise ValueError("members= is needed: how many branches to make")
            branches = fresh_copies(branch, members, generator)
        else:
            branches = build_members(branch, members, generator)
        self.num_members = len(branches)
        self.num_classes = known_classes(branches[0], num_classes)
        self.trunk = trunk
        self.branches = StackedModule(branches, execution=execution, chunk=chunk)

    def forward(self, x: Tensor) -> Float[Tensor, "members batch classes"]:
        """Logits of every branch.

        Args:
            x: A batch as the trunk takes it.

        Returns:
            Member-first logits.

        Raises:
            ValueError: If a branch does not give (batch, classes).
        """
        logits = self.branches(self.trunk(x))
        if logits.ndim != 3 or logits.shape[-1] != self.num_classes:
            raise ValueError(f"a branch gives shape {tuple(logits.shape[1:])}; it must be (batch, {self.num_classes})")
        return logits


def branch_at(
    model: nn.Module,
    at: str,
    members: int,
    *,
    num_classes: int | None = None,
    init: BranchInit = "reset",
    generator: torch.Generator | None = None,
    execution: Execution = "auto",
    chunk: int | None = None,
) -> Branching:
    """Split a model into a shared trunk and `members` branches, at a named part.

    All that runs before the part is the trunk: the model's own modules, shared with it. The part and all after it are
    copied for each member; the given model keeps its own. The model's outer forward method is traced with torch.fx;
    what is inside of its parts is not, so ResNets, DenseNets, ConvNeXts, EfficientNets and ViTs of timm and
    torchvision work, and every `nn.Sequential`.

    Args:
        model: A classifier that takes one tensor.
        at: Path of the first part that is each member's own, such as "layer4", "layer4.1" or "blocks.10".
        members: How many.
        num_classes: Gives every member a new classifier of so many classes; the model's own number if None.
        init: "reset" initialises all of a branch anew, by `reset_parameters` of its layers; "keep" starts from the
            model's weights (a pretrained model's, say) and makes only the classifier anew, which is what keeps
            members different.
        generator: Source of the fresh weights; torch's default generator if None.
        execution: "auto", "vmap" or "loop", see `StackedModule`.
        chunk: With vmap, how many branches are run at once; all if None.

    Returns:
        The ensemble.

    Raises:
        CutError: If the model cannot be cut there; says why.
        ValueError: If the classifier is needed and not recognised, or an option is out of range.

    Example:
        >>> model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 10))
        >>> branch_at(model, "1", members=4, num_classes=3)(torch.randn(5, 6)).shape
        torch.Size([4, 5, 3])
    """
    if init not in get_args(BranchInit):
        raise ValueError(f"init is {init!r}; it must be 'reset' (all of a branch anew) or 'keep' (only the classifier)")
    path = find_classifier(model)
    if path is None and (num_classes is not None or init == "keep"):
        raise ValueError(f"the classifier of {type(model).__name__} could not be recognised: cut the model yourself "
                         "and give both halves to Branching(trunk, branch, members)")  # fmt: skip
    if path is not None and num_classes is not None:
        model = with_replaced(model, {path: resized(model.get_submodule(path), num_classes)})
    trunk, branch = cut_at(model, at)
    if init == "reset":
        branches = fresh_copies(branch, members, generator)
    else:
        seeds = draw_seeds(checked_members(members), generator)
        branches = [_with_fresh_classifier(branch, path or "", seed) for seed in seeds]
    classes = known_classes(model, num_classes)
    return Branching(trunk, branches, num_classes=classes, execution=execution, chunk=chunk)


def _with_fresh_classifier(branch: nn.Module, path: str, seed: int) -> nn.Module:
    other = copy.deepcopy(branch)
    owner, _, name = path.rpartition(".")
    setattr(other.get_submodule(owner), name, fresh_copy(branch.get_submodule(path), seed))
    return other

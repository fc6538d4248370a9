"""An ensemble from one backbone: a shared trunk with M heads, at about the cost of one network."""

from collections.abc import Sequence
from typing import Any, SupportsFloat, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dncc.backbones import FeatureExtractor, Pool, as_backbone
from dncc.ensembles import EnsembleModule
from dncc.heads import Activation, HeadMode, HeadNorm, Heads
from dncc.initialising import checked_members

__all__ = ["MultiHead"]


@final
class MultiHead(EnsembleModule):
    """M heads on one backbone: z_m(x) = head_m(backbone(x)), in one forward pass.

    Args:
        backbone: A model of timm, torchvision, Hugging Face transformers, or any module that gives features; shared,
            not copied, see `as_backbone`.
        num_classes: Number of classes.
        members: M.
        mode: "partition" splits the features among the heads, so that weights do not grow with M (F must be divisible
            by M); "full" gives every head all of them.
        in_features: Width F of the features, if it cannot be found from the backbone.
        hidden: Widths of each head's hidden layers.
        activation: After each hidden layer.
        norm: Each head's own, after each hidden layer: None, "batch" or "layer".
        dropout: Of the heads, with masks of each head's own; see `Heads`.
        init_scale: Of the heads' initial last layer; one number, or one a head.
        kernel_size: Of hidden layers on maps (needs pool="none").
        pool: How tokens or maps become vectors, see `as_backbone`.
        classifier: The backbone's layer to leave out, see `as_backbone`.
        example: A batch for one dry run that finds F.
        freeze_backbone: Train the heads only; see the method of this name.
        generator: Source of the heads' initial weights; torch's default generator if None.

    Raises:
        ValueError: If an option is out of range, or the backbone's features are not known or cannot be split.

    Example:
        >>> model = MultiHead(nn.Sequential(nn.Linear(6, 16), nn.ReLU()), num_classes=3, members=4)
        >>> x = torch.randn(5, 6)
        >>> model(x).shape, model.predict_proba(x).shape
        (torch.Size([4, 5, 3]), torch.Size([5, 3]))

    Reference:
        Zhang et al. (2022), arXiv:2212.07070: heads that share a backbone.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        members: int = 8,
        mode: HeadMode = "partition",
        *,
        in_features: int | None = None,
        hidden: Sequence[int] = (),
        activation: Activation = "relu",
        norm: HeadNorm | None = None,
        dropout: SupportsFloat = 0.0,
        init_scale: SupportsFloat | Sequence[SupportsFloat] = 1.0,
        kernel_size: int = 1,
        pool: Pool = "auto",
        classifier: str | None = "auto",
        example: Tensor | None = None,
        freeze_backbone: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        checked_members(members)
        extractor = as_backbone(backbone, in_features, pool=pool, classifier=classifier, example=example)
        self.num_members, self.num_classes = members, num_classes
        self.backbone: FeatureExtractor = extractor
        self.heads = Heads(
            extractor.out_features, num_classes, members, mode, hidden=hidden, activation=activation, norm=norm,
            dropout=dropout, init_scale=init_scale, kernel_size=kernel_size, generator=generator,
        )  # fmt: skip
        self.backbone_frozen = False
        if freeze_backbone:
            self.freeze_backbone()

    def forward(self, x: Tensor) -> Float[Tensor, "members batch classes"]:
        """Logits of every head.

        Args:
            x: A batch as the backbone takes it.

        Returns:
            Member-first logits.
        """
        return self.heads(self.backbone(x))

    def freeze_backbone(self, frozen: bool = True) -> None:
        """Stop (or resume) training the backbone: no gradients, and evaluation mode whatever `train()` says.

        Frozen batch norm thus normalises with its running statistics and leaves them alone.

        Args:
            frozen: False resumes; all of the backbone's parameters are then trained.
        """
        self.backbone_frozen = frozen
        self.backbone.requires_grad_(not frozen)
        self.backbone.train(self.training and not frozen)

    def train(self, mode: bool = True) -> "MultiHead":
        """Set training mode, or evaluation mode; a frozen backbone stays in evaluation mode.

        Args:
            mode: Whether to train.

        Returns:
            The module itself.
        """
        super().train(mode)
        if self.backbone_frozen:
            self.backbone.eval()
        return self

    def param_groups(
        self, lr: SupportsFloat, head_lr_scale: SupportsFloat | None = None, **options: Any
    ) -> list[dict[str, Any]]:
        """Parameters for an optimiser: backbone at `lr`, heads at `lr * head_lr_scale`.

        A loss that is the mean over members gives each head 1/M of the gradient that it would get alone, while the
        backbone gets the mean of M gradients. The default scale M undoes that for SGD; it is what heads trained with
        `reduction="sum"` would get. Optimisers that normalise gradients (Adam) need no scale: give 1. Mind that
        decoupled and SGD weight decay are multiplied by the learning rate as well.

        Args:
            lr: Learning rate of the backbone.
            head_lr_scale: Learning rate of the heads over that of the backbone; the number of members if None.
            **options: More entries for both groups, such as weight_decay.

        Returns:
            One group of trained backbone parameters (left out if there are none), one of heads.

        Example:
            >>> model = MultiHead(nn.Sequential(nn.Linear(6, 16), nn.ReLU()), num_classes=3, members=4)
            >>> [group["lr"] for group in model.param_groups(0.5)]
            [0.5, 2.0]
        """
        scale = float(self.num_members if head_lr_scale is None else head_lr_scale)
        if scale <= 0:
            raise ValueError(f"head_lr_scale is {scale}; it must be positive")
        trunk = [p for p in self.backbone.parameters() if p.requires_grad]
        groups = [{"params": trunk, "lr": float(lr)}] if trunk else []
        groups.append({"params": list(self.heads.parameters()), "lr": float(lr) * scale})
        return [group | options for group in groups]

"""Ensembles as the command line names them: a backbone, how many members, and what they share."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from dncc.backbones import FeatureExtractor, as_backbone, create_backbone
from dncc.batch_ensemble import batch_ensemble
from dncc.branching import branch_at
from dncc.classifier_parts import seeded
from dncc.ensembles import EnsembleModule
from dncc.multihead import MultiHead
from dncc.separate import separate_networks
from dncc.surgery import find_classifier

__all__ = ["Architecture", "Standardised", "build", "statistics"]

MODES = ("partition", "full", "separate", "batch-ensemble", "branch:LAYER")
_BACKBONES = "mlp, small-cnn, timm:NAME or torchvision:NAME"
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@final
@dataclass(frozen=True)
class Architecture:
    """What determines the shapes of all weights.

    Attributes:
        backbone: mlp, small-cnn, timm:NAME or torchvision:NAME.
        width: Of the mlp's layers, or of the small CNN's first; 0 for the backbone's own.
        members: M.
        mode: partition, full, separate, batch-ensemble, or branch:LAYER.
        head_hidden: Widths of each head's hidden layers, for partition and full.
        shape: Of an input.
        classes: Number of classes.
    """

    backbone: str
    width: int
    members: int
    mode: str
    head_hidden: tuple[int, ...]
    shape: tuple[int, ...]
    classes: int


@final
class Standardised(EnsembleModule):
    """An ensemble behind (x - mean) / std, which is saved with it.

    Args:
        ensemble: The ensemble.
        mean: Mean of every channel (or feature).
        std: Standard deviation of every channel; constant ones are only shifted.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, ensemble: EnsembleModule, mean: Float[Tensor, " c"], std: Float[Tensor, " c"]) -> None:
        super().__init__()
        self.ensemble = ensemble
        self.num_members, self.num_classes = ensemble.num_members, ensemble.num_classes
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x: Tensor) -> Float[Tensor, "members batch classes"]:
        """Logits of every member.

        Args:
            x: A batch of raw inputs.

        Returns:
            Member-first logits.
        """
        shape = (1, -1, *[1] * (x.ndim - 2))
        return self.ensemble((x - self.mean.reshape(shape)) / self.std.reshape(shape))


def statistics(x: Float[np.ndarray, "samples *shape"], pretrained: bool) -> tuple[Tensor, Tensor]:
    """What inputs are standardised with: the training data's mean and deviation a channel; ImageNet's for weights.

    Args:
        x: Training inputs.
        pretrained: Whether weights from elsewhere are loaded, which expect three colours as ImageNet has them.

    Returns:
        Mean and standard deviation.
    """
    if pretrained and x.ndim == 4 and x.shape[1] == 3:
        mean, std = (torch.tensor(values) for values in _IMAGENET)
        return mean, std
    axes = tuple(axis for axis in range(x.ndim) if axis != 1)
    mean, std = x.mean(axes, dtype=np.float64), x.std(axes, dtype=np.float64)
    return torch.tensor(mean).float(), torch.tensor(np.where(std > 1e-6, std, 1.0)).float()


def build(
    what: Architecture, seed: int, moments: tuple[Tensor, Tensor] | None = None, weights: Path | None = None
) -> Standardised:
    """The ensemble, with random weights or with a backbone's from a file.

    Args:
        what: Its architecture.
        seed: Of the random weights; the global stream is left as it was.
        moments: Mean and deviation to standardise inputs with; 0 and 1 if None, to be loaded later.
        weights: A backbone's safetensors file.

    Returns:
        The ensemble.

    Raises:
        ValueError: If a name is unknown, parts do not fit, or the file is not one of this backbone.
        ImportError: If timm or torchvision is asked for and not installed.
    """
    channels = what.shape[0]
    mean, std = moments if moments is not None else (torch.zeros(channels), torch.ones(channels))
    with seeded(seed):
        return Standardised(_ensemble(what, torch.Generator().manual_seed(seed), weights), mean, std)


def _ensemble(what: Architecture, generator: torch.Generator, weights: Path | None) -> EnsembleModule:
    kind, _, layer = what.mode.partition(":")
    if kind in ("partition", "full") and not layer:
        trunk = _loaded(_trunk(what), weights)
        example = None if hasattr(trunk, "out_features") else torch.zeros(2, *what.shape)
        return MultiHead(
            trunk, what.classes, what.members, "partition" if kind == "partition" else "full",
            hidden=what.head_hidden, example=example, generator=generator,
        )  # fmt: skip
    if what.head_hidden:
        raise ValueError(f"mode {what.mode} has no heads with hidden layers of their own; leave them out")
    if kind == "separate" and not layer:
        return separate_networks(lambda: _classifier(what, weights), what.members, generator=generator)
    if kind == "batch-ensemble" and not layer:
        return batch_ensemble(_classifier(what, weights), what.members, generator=generator)
    if kind == "branch" and layer:
        start = "reset" if weights is None else "keep"
        return branch_at(_classifier(what, weights), layer, what.members, init=start, generator=generator)
    raise ValueError(f"mode is {what.mode!r}; give one of {', '.join(MODES)}")


def _trunk(what: Architecture) -> nn.Module:
    """From inputs to features."""
    if what.backbone == "mlp":
        width, inputs = what.width or 128, int(np.prod(what.shape))
        return nn.Sequential(nn.Flatten(), nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
    _check_pictures(what)
    if what.backbone == "small-cnn":
        return _small_cnn(what.shape, what.width or 32)
    if what.width:
        raise ValueError(f"{what.backbone} has its own width; --width is for mlp and small-cnn")
    return create_backbone(what.backbone, **_channels(what))


def _classifier(what: Architecture, weights: Path | None) -> nn.Module:
    """A whole network, the library's own where there is one, so that its layers can be named."""
    library, _, name = what.backbone.partition(":")
    if library == "timm":
        _check_pictures(what)
        model = _imported("timm").create_model(name, pretrained=False, num_classes=what.classes, **_channels(what))
    elif library == "torchvision":
        _check_pictures(what)
        models, options = _imported("torchvision.models"), _channels(what)
        model = models.get_model(name, weights=None, num_classes=what.classes, **options)
    else:
        trunk = _trunk(what)
        layers = list(trunk.children())
        model = nn.Sequential(*layers, nn.Linear(_width(trunk, what), what.classes))
    return _loaded(model, weights, find_classifier(model))


def _width(trunk: nn.Module, what: Architecture) -> int:
    with torch.no_grad():
        return as_backbone(trunk, example=torch.zeros(2, *what.shape)).out_features


def _imported(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f'{module.split(".")[0]} is not installed: pip install "dncc[backbones]"') from error


def _channels(what: Architecture) -> dict[str, Any]:
    """How a library is told the number of channels."""
    if what.shape[0] == 3:
        return {}
    if what.backbone.startswith("timm:"):
        return {"in_chans": what.shape[0]}
    if what.backbone.startswith("torchvision:"):
        raise ValueError(f"torchvision's models take 3 channels and the data have {what.shape[0]}: read pictures in "
                         "colour, or take a backbone of timm")  # fmt: skip
    raise ValueError(f"{what.backbone!r} is no backbone; give {_BACKBONES}")


def _check_pictures(what: Architecture) -> None:
    if what.backbone != "small-cnn" and not what.backbone.startswith(("timm:", "torchvision:")):
        raise ValueError(f"{what.backbone!r} is no backbone; give {_BACKBONES}")
    if len(what.shape) != 3:
        raise ValueError(f"{what.backbone} takes pictures (channels, height, width) and inputs have shape "
                         f"{what.shape}; the backbone mlp takes any")  # fmt: skip


def _small_cnn(shape: Sequence[int], width: int) -> nn.Module:
    """Three convolutions with batch norm; halves the sides while they have 4 pixels or more."""
    layers: list[nn.Module] = []
    channels, side = shape[0], min(shape[1:])
    for k, size in enumerate((width, 2 * width, 4 * width)):
        layers += [nn.Conv2d(channels, size, 3, padding=1, bias=False), nn.BatchNorm2d(size), nn.ReLU()]
        channels = size
        if k < 2 and side >= 4:
            layers.append(nn.MaxPool2d(2))
            side //= 2
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _loaded(model: nn.Module, weights: Path | None, classifier: str | None = None) -> nn.Module:
    """The model with a file's weights: all but its classifier must be in the file; what is beyond is left out."""
    if weights is None:
        return model
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not weights.is_file():
        raise FileNotFoundError(2, "No such file or directory", str(weights))
    try:
        found = load_file(weights)
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{weights} is no safetensors file, or it is damaged ({error})") from None
    inner = model.model if isinstance(model, FeatureExtractor) else model
    own, spared = inner.state_dict(), "\0" if classifier is None else f"{classifier}."
    fits = {key: found[key] for key, value in own.items() if key in found and found[key].shape == value.shape}
    missing = [key for key in own if key not in fits and not key.startswith(spared) and "num_batches" not in key]
    if missing:
        state = "with another shape" if missing[0] in found else "missing"
        raise ValueError(f"{weights} does not hold this backbone's weights: {len(missing)} of {len(own)} tensors do "
                         f"not fit, {missing[0]} is {state}")  # fmt: skip
    inner.load_state_dict(fits, strict=False)
    return model

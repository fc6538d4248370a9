"""Any image model as a feature extractor of known width: timm, torchvision, Hugging Face and plain modules.

The extractor shares the given model's layers and leaves its classifier out, without changing the given model, which
keeps its classifier. Layers are used, not copied: training the ensemble trains the given model's trunk.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol, final, get_args, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dncc.cutting import CutError, cut_at
from dncc.surgery import family_of, find_classifier, layer_widths, refuse_lazy, with_replaced

__all__ = ["Backbone", "FeatureExtractor", "Pool", "as_backbone", "create_backbone"]

Pool = Literal["auto", "mean", "max", "first", "none"]

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_GLOBAL_POOLS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_WIDTH_KEEPING = tuple(f"torch.nn.modules.{name}" for name in ("activation", "dropout", "pooling", "linear"))


@runtime_checkable
class Backbone(Protocol):
    """A module from inputs to features: (batch, out_features), or (batch, out_features, height, width).

    Attributes:
        out_features: Width of the features.
    """

    out_features: int

    def __call__(self, x: Tensor) -> Tensor:
        """Features of a batch."""
        ...


@final
class FeatureExtractor(nn.Module):
    """A model whose output, of whatever kind, is brought to (batch, F), or (batch, F, height, width) for pool "none".

    Made by `as_backbone`.

    Args:
        model: Gives a tensor, or a Hugging Face output.
        out_features: F.
        pool: How tokens or maps become vectors.
        family: "timm", "transformers", "torchvision" or "plain".
    """

    def __init__(self, model: nn.Module, out_features: int, pool: Pool, family: str) -> None:
        super().__init__()
        self.model = model
        self.out_features = out_features
        self.pool = pool
        self.family = family

    def forward(self, x: Tensor) -> Float[Tensor, "batch features *space"]:
        """Features of a batch.

        Args:
            x: A batch as the model takes it.

        Returns:
            Features.

        Raises:
            ValueError: If they are not of the stated width.
            TypeError: If the model does not give a tensor.
        """
        features = features_of(self.model, x, self.pool, self.family)
        if features.shape[1] != self.out_features:
            raise ValueError(f"{type(self.model).__name__} gives features of width {features.shape[1]}, not "
                             f"{self.out_features}: give in_features={features.shape[1]}")  # fmt: skip
        return features

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"out_features={self.out_features}, pool={self.pool!r}, family={self.family!r}"


def as_backbone(
    model: nn.Module,
    in_features: int | None = None,
    *,
    pool: Pool = "auto",
    classifier: str | None = "auto",
    example: Tensor | None = None,
) -> FeatureExtractor:
    """A feature extractor from a model of timm, torchvision, Hugging Face transformers, or any module.

    What is known to be a classifier is left out: timm's `get_classifier()`, torchvision's fc, classifier, heads or
    head (its last layer only: VGG keeps its two dense layers), the head of a Hugging Face model for classification. A
    plain module that ends in a layer of such a name is refused until you say what it is.

    Args:
        model: Shared, not copied; it keeps its classifier. A backbone that says its width (`Backbone`) is returned as
            it is.
        in_features: Width of the features, if it cannot be found from the model.
        pool: "auto" is the model's own pooling where it has one (Hugging Face: `pooler_output`), and the mean over
            tokens or over the map elsewhere. "mean", "max", "first" (the class token) choose; "none" gives maps, for
            heads with convolutions. What a timm model computes after its feature maps is then left out, and layers
            there stay untrained (DistributedDataParallel needs find_unused_parameters if there are any).
        classifier: "auto"; the path of the layer to leave out; or None to take the model's output as features.
        example: A batch for one dry run (without gradients, in evaluation mode), from which the width is read.

    Returns:
        A module with `out_features`.

    Raises:
        ValueError: If the model ends in its classifier, the width cannot be found or does not fit, the model has lazy
            parameters, or the pooling does not suit it.

    Example:
        >>> trunk = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU())
        >>> backbone = as_backbone(trunk, 16)
        >>> backbone(torch.randn(2, 3, 8, 8)).shape
        torch.Size([2, 16])
    """
    if pool not in get_args(Pool):
        raise ValueError(f"pool is {pool!r}; it must be one of {', '.join(map(repr, get_args(Pool)))}")
    if in_features is not None and in_features < 1:
        raise ValueError(f"in_features is {in_features}; it must be at least 1")
    refuse_lazy(model, "the backbone")
    if isinstance(model, FeatureExtractor) and pool in ("auto", model.pool):
        if in_features not in (None, model.out_features):
            raise ValueError(f"in_features is {in_features}; this extractor gives {model.out_features} features")
        return model
    family = family_of(model)
    trunk, width = _trunk(model, family, pool, classifier)
    width = in_features or width
    if example is not None and width is None:
        with _evaluating(trunk):
            width = features_of(trunk, example, pool, family).shape[1]
    if width is None:
        raise ValueError(f"the width of {type(model).__name__}'s features cannot be seen: give in_features=, or "
                         "example= (a batch) for one dry run")  # fmt: skip
    extractor = FeatureExtractor(trunk, width, pool, family)
    if example is not None:
        with _evaluating(extractor):
            extractor(example)
    extractor.training = model.training
    return extractor


def _trunk(model: nn.Module, family: str, pool: Pool, classifier: str | None) -> tuple[nn.Module, int | None]:
    """The model without its last layer, and the width of its features where it can be seen."""
    if family == "transformers":
        return _transformers_trunk(model, pool, classifier)
    if family == "timm":
        return _timm_trunk(model, pool, classifier)
    if family == "torchvision":
        return _torchvision_trunk(model, pool, classifier)
    return _plain_trunk(model, classifier)


def create_backbone(name: str, **options: Any) -> FeatureExtractor:
    """A feature extractor by name: "timm:resnet18" or "torchvision:resnet18", with random weights unless asked.

    Args:
        name: Library and model.
        **options: For `timm.create_model` or `torchvision.models.get_model` (such as pretrained=True or weights=).

    Returns:
        A module with `out_features`.

    Raises:
        ValueError: If the name is not of this form.
        ImportError: If the library is not installed.
    """
    library, _, model = name.partition(":")
    if library not in ("timm", "torchvision") or not model:
        raise ValueError(f"{name!r} is no backbone's name; write 'timm:NAME' or 'torchvision:NAME'")
    try:
        module = importlib.import_module("timm" if library == "timm" else "torchvision.models")
    except ImportError as error:
        raise ImportError(f'{library} is not installed: pip install "dncc[backbones]"') from error
    if library == "timm":
        return as_backbone(module.create_model(model, **({"pretrained": False, "num_classes": 0} | options)))
    return as_backbone(module.get_model(model, **({"weights": None} | options)))


def features_of(model: nn.Module, x: Tensor, pool: Pool, family: str) -> Float[Tensor, "batch features *space"]:
    """Features of a batch, pooled as asked.

    Args:
        model: Without its classifier.
        x: A batch.
        pool: How tokens or maps become vectors.
        family: Whose conventions the model follows.

    Returns:
        Vectors, or maps for pool "none".

    Raises:
        TypeError: If the model does not give a tensor.
        ValueError: If the shape cannot be pooled.
    """
    if family == "transformers":
        output: Any = model(pixel_values=x) if model.main_input_name == "pixel_values" else model(x)
        pooled = getattr(output, "pooler_output", None)
        if pool == "auto" and pooled is not None:
            return pooled.flatten(1)  # convolutional models keep two axes of length 1
        hidden = getattr(output, "last_hidden_state", None)
        output = hidden if hidden is not None else getattr(output, "logits", output)
    elif family == "timm" and pool != "auto":
        output = model.forward_features(x)  # type: ignore[operator]
    else:
        output = model(x)
    if not isinstance(output, Tensor):
        raise TypeError(f"{type(model).__name__} gives a {type(output).__name__}, not a tensor of features: wrap it "
                        "in a module that picks one (for Inception or GoogLeNet, set aux_logits=False)")  # fmt: skip
    return _pooled(output, pool)


def _pooled(x: Tensor, pool: Pool) -> Tensor:
    if x.ndim == 2 and pool in ("auto", "none"):
        return x
    if x.ndim == 4 and pool != "first":
        if pool == "none":
            return x
        return x.amax((2, 3)) if pool == "max" else x.mean((2, 3))
    if x.ndim == 3 and pool != "none":
        return {"max": lambda: x.amax(1), "first": lambda: x[:, 0]}.get(pool, lambda: x.mean(1))()
    kinds = {2: "vectors", 3: "tokens", 4: "maps"}
    raise ValueError(f"the model gives {kinds.get(x.ndim, 'an output')} of shape {tuple(x.shape)}, which pool={pool!r} "
                     "does not suit: vectors take 'auto'; (batch, tokens, F) 'auto', 'mean', 'max' or 'first'; "
                     "(batch, F, height, width) 'auto', 'mean', 'max' or 'none'")  # fmt: skip


def _transformers_trunk(model: nn.Module, pool: Pool, classifier: str | None) -> tuple[nn.Module, int | None]:
    """The base model, whose classifier is outside of it, and its width where the configuration says it."""
    if classifier not in ("auto", None):
        raise ValueError(f"classifier={classifier!r} does not suit a Hugging Face model: its base model is used; "
                         "classifier=None takes its logits as features")  # fmt: skip
    config: Any = model.config
    base: nn.Module = model if classifier is None else getattr(model, "base_model", model)
    if classifier is None and base is not getattr(model, "base_model", model):
        return base, getattr(config, "num_labels", None)
    width = getattr(config, "hidden_size", None)
    if not isinstance(width, int):
        width = (getattr(config, "hidden_sizes", None) or [None])[-1]
    pooler = getattr(base, "pooler", None)
    if pool != "auto" and isinstance(pooler, nn.Module):
        base = with_replaced(base, {"pooler": nn.Identity()})  # or its weights would stay without gradients
    return base, width


def _timm_trunk(model: nn.Module, pool: Pool, classifier: str | None) -> tuple[nn.Module, int | None]:
    path = find_classifier(model) if classifier == "auto" else classifier
    if path is None and classifier == "auto" and not isinstance(model.get_classifier(), nn.Identity):  # type: ignore[operator]
        raise ValueError(f"the classifier of this timm {type(model).__name__} is not a single linear layer: create it "
                         "with num_classes=0")  # fmt: skip
    trunk = model if path is None else with_replaced(model, {path: nn.Identity()})
    if pool != "auto":
        return trunk, int(model.num_features)  # type: ignore[arg-type]
    if path:
        return trunk, _widths_at(model, path)[0]
    outputs: Any = getattr(model, "num_classes", 0) or getattr(model, "head_hidden_size", None) or model.num_features
    return trunk, outputs


def _torchvision_trunk(model: nn.Module, pool: Pool, classifier: str | None) -> tuple[nn.Module, int | None]:
    path = find_classifier(model) if classifier == "auto" else classifier
    if path is None:
        whole = find_classifier(model)
        return model, _widths_at(model, whole)[1] if whole else None
    width = _widths_at(model, path)[0]
    if pool == "auto":
        return with_replaced(model, {path: nn.Identity()}), width
    try:
        trunk, _ = cut_at(model, "avgpool")
    except CutError as error:
        raise ValueError(f"maps of a torchvision {type(model).__name__} cannot be had (its pooling is no part named "
                         f"avgpool): take pool='auto', or a module that gives maps. {error}") from error  # fmt: skip
    size = getattr(model.get_submodule("avgpool"), "output_size", None)
    return trunk, width if size in (1, (1, 1)) else None


def _plain_trunk(model: nn.Module, classifier: str | None) -> tuple[nn.Module, int | None]:
    if classifier is None:
        return model, plain_width(model)
    if classifier != "auto":
        return with_replaced(model, {classifier: nn.Identity()}), _widths_at(model, classifier)[0]
    path = None if isinstance(model, nn.Sequential) else find_classifier(model)
    if path:
        inputs, outputs = _widths_at(model, path)
        layer = type(model.get_submodule(path)).__name__
        raise ValueError(f"{type(model).__name__} seems to end in its classifier {path!r} ({layer} {inputs} -> "
                         f"{outputs}): give classifier={path!r} to leave it out, or classifier=None to take its "
                         "outputs as features")  # fmt: skip
    return model, plain_width(model)


def _widths_at(model: nn.Module, path: str) -> tuple[int, int]:
    try:
        layer = model.get_submodule(path)
    except AttributeError as error:
        raise ValueError(f"{type(model).__name__} has no part {path!r}") from error
    widths = layer_widths(layer)
    if widths is None:
        raise ValueError(f"classifier={path!r} is a {type(layer).__name__}, not a linear or convolutional layer")
    return widths


def plain_width(model: nn.Module) -> int | None:
    """Width of a module's output as far as its layers tell it: attribute `out_features`, or the last layer's width.

    Args:
        model: Any module.

    Returns:
        The width, None where it depends on more than the layers.

    Example:
        >>> plain_width(nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU()))
        16
        >>> plain_width(nn.Sequential(nn.Conv2d(3, 16, 3), nn.Flatten())) is None
        True
    """
    if isinstance(width := getattr(model, "out_features", None), int):
        return width
    if not isinstance(model, nn.Sequential):
        widths = layer_widths(model)
        return widths[1] if widths else _norm_width(model)
    flattened = False
    for layer in reversed(list(_chain(model))):
        if isinstance(layer, nn.Flatten):
            flattened = True
        elif isinstance(layer, _GLOBAL_POOLS) and layer.output_size in (1, (1, 1)):
            flattened = False
        elif any(True for _ in layer.parameters()) or type(layer).__module__ not in _WIDTH_KEEPING:
            return None if flattened and not isinstance(layer, nn.Linear) else plain_width(layer)
    return None


def _norm_width(layer: nn.Module) -> int | None:
    if isinstance(layer, _BATCH_NORMS):
        return layer.num_features
    if isinstance(layer, nn.GroupNorm):
        return layer.num_channels
    return int(layer.normalized_shape[-1]) if isinstance(layer, nn.LayerNorm) else None


def _chain(model: nn.Sequential) -> Iterator[nn.Module]:
    for layer in model:
        if isinstance(layer, nn.Sequential):
            yield from _chain(layer)
        else:
            yield layer


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, and every part's own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training

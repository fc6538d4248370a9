"""Small operations on a model's tree of modules: find its classifier, replace a part, without touching the original."""

from collections.abc import Mapping

from torch import nn
from torch.nn.parameter import is_lazy

__all__ = [
    "family_of",
    "find_classifier",
    "find_lazy",
    "known_classes",
    "layer_widths",
    "refuse_lazy",
    "resized",
    "with_replaced",
]

_NAMES = ("fc", "classifier", "heads", "head")  # what model libraries call the last part


def family_of(model: nn.Module) -> str:
    """Which library's conventions a model follows: "timm", "transformers", "torchvision" or "plain".

    Decided by what the model has, so that no library is imported and subclasses count.

    Args:
        model: Any module.

    Returns:
        The family.

    Example:
        >>> family_of(nn.Linear(2, 3))
        'plain'
    """
    if all(hasattr(model, name) for name in ("forward_features", "forward_head", "get_classifier", "num_features")):
        return "timm"
    if all(hasattr(model, name) for name in ("config", "base_model_prefix", "main_input_name")):
        return "transformers"
    if any(kind.__module__.startswith("torchvision.models") for kind in type(model).__mro__):
        return "torchvision"
    return "plain"


def find_classifier(model: nn.Module) -> str | None:
    """The path of the layer that turns features into classes, or None if there is none that can be recognised.

    timm models are asked; elsewhere it is the last linear or convolutional layer of a child named fc, classifier,
    heads or head, or of a model that is an `nn.Sequential` itself.

    Args:
        model: Any module.

    Returns:
        A path as `named_modules` gives it; "" if the model itself is such a layer.

    Example:
        >>> find_classifier(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))
        '2'
    """
    if family_of(model) == "timm":
        wanted = model.get_classifier()  # type: ignore[operator]
        paths = [path for path, module in model.named_modules() if module is wanted and layer_widths(module)]
        return paths[0] if paths else None
    if isinstance(model, nn.Sequential) or layer_widths(model):
        return _last_layer(model, "")
    for name in _NAMES:
        child = dict(model.named_children()).get(name)
        if child is not None:
            return _last_layer(child, name)
    return None


def _last_layer(part: nn.Module, path: str) -> str | None:
    """The last linear or convolutional layer of a part, found through sequences only."""
    if layer_widths(part):
        return path
    if not isinstance(part, nn.Sequential):
        return None
    for name, child in reversed(list(part.named_children())):
        if any(True for _ in child.parameters()):
            return _last_layer(child, f"{path}.{name}" if path else name)
    return None


def layer_widths(layer: nn.Module) -> tuple[int, int] | None:
    """Width of a linear or convolutional layer's input and output; None for every other module.

    Args:
        layer: Any module.

    Returns:
        (inputs, outputs).
    """
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return layer.in_channels, layer.out_channels
    return None


def with_replaced(model: nn.Module, parts: Mapping[str, nn.Module]) -> nn.Module:
    """A model that has other parts at some paths and shares everything else with the given one, which keeps its own.

    Only the containers on the way to a replaced part are copied, and those shallowly: parameters and all other modules
    are the same objects.

    Args:
        model: Left as it is.
        parts: New modules by path.

    Returns:
        The new model; the new part itself where the path is "".

    Raises:
        ValueError: If a path leads nowhere.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
        >>> features = with_replaced(model, {"1": nn.Identity()})
        >>> features[0] is model[0], type(features[1]).__name__, type(model[1]).__name__
        (True, 'Identity', 'Linear')
    """
    result = model
    for path, part in parts.items():
        result = _replaced(result, path.split(".") if path else [], part)
    return result


def _replaced(model: nn.Module, path: list[str], part: nn.Module) -> nn.Module:
    if not path:
        return part
    name, *rest = path
    children = dict(model.named_children())
    if name not in children:
        raise ValueError(f"{type(model).__name__} has no part {name!r}; it has: {', '.join(children) or 'none'}")
    other = type(model).__new__(type(model))
    other.__dict__.update(model.__dict__)
    # a dictionary of its own, so that the exchange below does not reach the given model
    other.__dict__["_modules"] = dict(model.__dict__["_modules"])
    setattr(other, name, _replaced(children[name], rest, part))
    return other


def resized(layer: nn.Module, outputs: int) -> nn.Module:
    """A new layer like a linear or convolutional one, with other outputs and fresh weights.

    Args:
        layer: An `nn.Linear` or `nn.Conv2d`.
        outputs: Width of the new layer's output.

    Returns:
        The layer, on the device and of the type of the given one.

    Raises:
        TypeError: If it is another layer.

    Example:
        >>> resized(nn.Linear(4, 8), 3)
        Linear(in_features=4, out_features=3, bias=True)
    """
    if isinstance(layer, nn.Linear):
        place = {"device": layer.weight.device, "dtype": layer.weight.dtype}
        return nn.Linear(layer.in_features, outputs, layer.bias is not None, **place)
    if isinstance(layer, nn.Conv2d) and layer.groups == 1:
        new = nn.Conv2d(layer.in_channels, outputs, layer.kernel_size, layer.stride, layer.padding,  # type: ignore[arg-type]
                        layer.dilation, 1, layer.bias is not None, layer.padding_mode)  # type: ignore[arg-type]  # fmt: skip
        return new.to(device=layer.weight.device, dtype=layer.weight.dtype)
    raise TypeError(f"a classifier is an nn.Linear or an nn.Conv2d; this one is a {type(layer).__name__}")


def known_classes(model: nn.Module, num_classes: int | None) -> int:
    """The number of classes as given, or the width of a model's last layer.

    Args:
        model: Ends in its classifier.
        num_classes: If known.

    Returns:
        Number of classes.

    Raises:
        ValueError: If it is below 1, or not given and not to be seen from the model.
    """
    if num_classes is not None:
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}; it must be at least 1")
        return num_classes
    path = find_classifier(model)
    widths = None if path is None else layer_widths(model.get_submodule(path))
    if widths is None:
        raise ValueError(f"the last layer of {type(model).__name__} could not be recognised: give num_classes=")
    return widths[1]


def find_lazy(model: nn.Module) -> list[str]:
    """Names of parameters and buffers whose shape is not known yet.

    Args:
        model: Any module.

    Returns:
        Names; empty when everything has its shape.
    """
    named = [*model.named_parameters(), *model.named_buffers()]
    return [name for name, tensor in named if is_lazy(tensor)]


def refuse_lazy(model: nn.Module, role: str) -> None:
    """Raise if a model has lazy parameters: they could be neither copied nor counted nor stacked.

    Args:
        model: Any module.
        role: What the model is, for the message.

    Raises:
        ValueError: If a parameter or buffer has no shape yet.
    """
    lazy = find_lazy(model)
    if lazy:
        raise ValueError(f"{role} has lazy parameters without a shape ({', '.join(lazy[:3])}): run one batch through "
                         "it first, or use layers of a stated width")  # fmt: skip

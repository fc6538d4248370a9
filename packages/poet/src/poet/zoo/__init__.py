"""Graphs of well-known networks' training steps, from the shapes of their layers; needs no framework.

The backward passes are those of reverse-mode differentiation: gradients of a value with several users are summed, the
first layer wants no gradient of its input, and what a backward needs of the forward pass is an input of its operation.
"""

from collections.abc import Callable
from types import MappingProxyType
from typing import Any

from poet.graph import Graph
from poet.zoo.convnets import mlp as mlp
from poet.zoo.convnets import resnet18 as resnet18
from poet.zoo.convnets import resnet18_cifar as resnet18_cifar
from poet.zoo.convnets import resnet50 as resnet50
from poet.zoo.convnets import vgg16 as vgg16
from poet.zoo.tape import Training as Training
from poet.zoo.transformers import bert as bert
from poet.zoo.transformers import gpt2 as gpt2


def _vgg16_cifar(batch: int = 1, **options: Any) -> Graph:
    return vgg16(batch, 32, **options)


def _gpt2_medium(batch: int = 1, **options: Any) -> Graph:
    return gpt2("medium", batch, **options)


_NETWORKS: MappingProxyType[str, Callable[..., Graph]] = MappingProxyType(
    {
        "mlp": mlp,
        "vgg16": vgg16,
        "vgg16_cifar": _vgg16_cifar,
        "resnet18": resnet18,
        "resnet18_cifar": resnet18_cifar,
        "resnet50": resnet50,
        "bert": bert,
        "gpt2": gpt2,
        "gpt2_medium": _gpt2_medium,
    }
)


def names() -> list[str]:
    """Names that `load` knows."""
    return list(_NETWORKS)


def load(name: str, **options: Any) -> Graph:
    """A network by name.

    Args:
        name: One of `names()`.
        options: What the function of that name takes: `batch`, `image` or `seq`, `gradients`, `optimizer`, `itemsize`.

    Raises:
        ValueError: If there is no such network, or an option is out of range.
        TypeError: If the network does not have such an option.

    Example:
        >>> load("resnet18_cifar", batch=2).name
        'resnet18_cifar, batch 2, 32×32 pixels'
    """
    if name not in _NETWORKS:
        raise ValueError(f"no network {name!r}: give one of {', '.join(_NETWORKS)}")
    return _NETWORKS[name](**options)

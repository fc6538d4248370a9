"""Members that share every weight matrix up to a rank-one factor: W_m = W * (s_m r_m^T), entry by entry.

The members' inputs are packed along the batch, member by member, so that one product with W serves all:
y = ((x * r_m) W^T) * s_m + b_m.

Reference:
    Wen, Tran, Ba (2020). BatchEnsemble: An Alternative Approach to Efficient Ensemble and Lifelong Learning.
    arXiv:2002.06715, Sections 3.1 and 3.2.
"""

import copy
from collections.abc import Collection, Iterator
from typing import Literal, SupportsFloat, final, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dncc.aggregation import unpack_members
from dncc.ensembles import EnsembleModule
from dncc.initialising import checked_members
from dncc.surgery import find_classifier, known_classes, refuse_lazy, resized, with_replaced

__all__ = ["BatchEnsemble", "FactorInit", "RankOneLayer", "batch_ensemble"]

FactorInit = Literal["signs", "gaussian"]

# These read the weights of the layers in them without calling the layers.
_CLOSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


@final
class RankOneLayer(nn.Module):
    """A linear or convolutional layer that serves M members, each with factors of its own on inputs and outputs.

    Attributes:
        shared: The layer with the weights of all members, without bias.
        r: Factors of the inputs, shape (members, in).
        s: Factors of the outputs, shape (members, out).
        bias: Shape (members, out), or None.

    Args:
        layer: Its weight is used, not copied; its bias is where the members' biases start.
        members: M.
        init: "signs" draws factors from {-1, 1}, "gaussian" from N(1, std²).
        std: Standard deviation of "gaussian".
        generator: Source of the factors; torch's default generator if None.

    Example:
        >>> layer = RankOneLayer(nn.Linear(4, 3), members=2)
        >>> layer(torch.randn(2 * 5, 4)).shape
        torch.Size([10, 3])
    """

    def __init__(
        self,
        layer: nn.Linear | nn.Conv2d,
        members: int,
        *,
        init: FactorInit = "signs",
        std: SupportsFloat = 0.5,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if init not in get_args(FactorInit):
            raise ValueError(f"init is {init!r}; it must be 'signs' or 'gaussian'")
        if not float(std) > 0:
            raise ValueError(f"std is {std!r}; it must be positive, or members would start equal")
        self.members, self.init, self.std = checked_members(members), init, float(std)
        linear = isinstance(layer, nn.Linear)
        widths = (layer.in_features, layer.out_features) if linear else (layer.in_channels, layer.out_channels)
        self.channel_last = linear
        self.shared = copy.copy(layer)
        self.shared.__dict__["_parameters"] = dict(layer.__dict__["_parameters"]) | {"bias": None}
        place = {"device": layer.weight.device, "dtype": layer.weight.dtype}
        self.r = nn.Parameter(torch.empty(members, widths[0], **place))
        self.s = nn.Parameter(torch.empty(members, widths[1], **place))
        started = None if layer.bias is None else layer.bias.detach().repeat(members, 1)
        self.bias = None if started is None else nn.Parameter(started)
        self.reset_factors(generator)

    @torch.no_grad()
    def reset_factors(self, generator: torch.Generator | None = None) -> None:
        """Draw r and s anew.

        Args:
            generator: Source; torch's default generator if None.
        """
        for factor in (self.r, self.s):
            device = factor.device if generator is None else generator.device
            if self.init == "signs":
                drawn = torch.randint(2, factor.shape, generator=generator, device=device) * 2.0 - 1
            else:
                drawn = torch.empty(factor.shape, device=device).normal_(1, self.std, generator=generator)
            factor.copy_(drawn)

    def forward(self, x: Float[Tensor, "packed *shape"]) -> Float[Tensor, "packed *outs"]:
        """Outputs of a packed batch.

        Args:
            x: Shape (members * batch, ...), member by member.

        Returns:
            Packed likewise.

        Raises:
            ValueError: If the packed batch is not a multiple of the members.
        """
        y = self._times(self.shared(self._times(x, self.r)), self.s)
        return y if self.bias is None else (unpack_members(y, self.members) + self._shaped(self.bias, y)).flatten(0, 1)

    def _times(self, x: Tensor, factor: Tensor) -> Tensor:
        return (unpack_members(x, self.members) * self._shaped(factor, x)).flatten(0, 1)

    def _shaped(self, factor: Tensor, x: Tensor) -> Tensor:
        """(members, width) with ones where the packed tensor has its batch and its other axes."""
        others = [1] * (x.ndim - 2)
        shape = [*others, factor.shape[1]] if self.channel_last else [factor.shape[1], *others]
        return factor.reshape(self.members, 1, *shape)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"members={self.members}, init={self.init!r}"


@final
class BatchEnsemble(EnsembleModule):
    """A network whose layers are `RankOneLayer`s, fed with M copies of the batch. Made by `batch_ensemble`.

    Batch normalisation and other layers that were not converted are shared by all members.

    Args:
        network: From a packed batch to packed logits.
        members: M.
        num_classes: Number of classes.
    """

    def __init__(self, network: nn.Module, members: int, num_classes: int) -> None:
        super().__init__()
        self.network = network
        self.num_members = members
        self.num_classes = num_classes

    def forward(self, x: Tensor) -> Float[Tensor, "members batch classes"]:
        """Logits of every member.

        Args:
            x: A batch as the network takes it; repeated for every member.

        Returns:
            Member-first logits.

        Raises:
            ValueError: If the network does not give (batch, classes).
        """
        packed = self.network(x.expand(self.num_members, *x.shape).flatten(0, 1))
        logits = unpack_members(packed, self.num_members)
        if logits.shape[1:] != (x.shape[0], self.num_classes):
            raise ValueError(f"the network gives shape {tuple(packed.shape)} for {self.num_members} times {x.shape[0]} "
                             f"inputs; it must be (members * batch, {self.num_classes})")  # fmt: skip
        return logits

    def rank_one_parameters(self) -> Iterator[nn.Parameter]:
        """The factors r and s of all layers, which weight decay is often kept from.

        Yields:
            Parameters of shape (members, width).
        """
        for module in self.network.modules():
            if isinstance(module, RankOneLayer):
                yield from (module.r, module.s)


def batch_ensemble(
    model: nn.Module,
    members: int,
    num_classes: int | None = None,
    *,
    layers: Collection[str] | None = None,
    init: FactorInit = "signs",
    std: SupportsFloat = 0.5,
    generator: torch.Generator | None = None,
) -> BatchEnsemble:
    """A classifier as M members that differ by rank-one factors in its linear and 2-d convolutional layers.

    Adds, for a layer of n inputs and k outputs, M (n + k) factors and (M - 1) k biases. The given model is copied and
    left as it is. One forward pass computes M times as much as the model.

    Args:
        model: A classifier whose forward keeps samples apart along the first axis.
        members: M.
        num_classes: Gives the copy a new classifier of so many classes; the model's own number if None.
        layers: Paths of the layers to convert; all that can be if None. Layers inside of `nn.MultiheadAttention` and
            `nn.TransformerEncoderLayer` cannot: those read the weights without calling the layers.
        init: "signs" draws the factors from {-1, 1}, "gaussian" from N(1, std²).
        std: Standard deviation of "gaussian".
        generator: Source of the factors; torch's default generator if None.

    Returns:
        The ensemble.

    Raises:
        ValueError: If nothing can be converted, a path is none of a layer that can be, or the classifier is needed
            and not recognised.

    Example:
        >>> model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> ensemble = batch_ensemble(model, members=4)
        >>> ensemble(torch.randn(5, 6)).shape
        torch.Size([4, 5, 3])
    """
    checked_members(members)
    refuse_lazy(model, "the model")
    classes = known_classes(model, num_classes)
    if num_classes is not None:
        path = find_classifier(model)
        if path is None:
            raise ValueError(f"the classifier of {type(model).__name__} could not be recognised: give it its final "
                             "number of classes and leave num_classes out")  # fmt: skip
        model = with_replaced(model, {path: resized(model.get_submodule(path), num_classes)})
    model = copy.deepcopy(model)
    found = dict(_convertible(model, ""))
    if layers is not None and (unknown := sorted(set(layers) - set(found))):
        raise ValueError(f"no linear or convolutional layer that could be converted is named {unknown[0]!r}; "
                         f"there are: {', '.join(list(found)[:8])}")  # fmt: skip
    chosen = {path: layer for path, layer in found.items() if layers is None or path in layers}
    if not chosen:
        raise ValueError(f"{type(model).__name__} has no linear or convolutional layer to convert")
    parts = {path: RankOneLayer(layer, members, init=init, std=std, generator=generator)
             for path, layer in chosen.items()}  # fmt: skip
    return BatchEnsemble(with_replaced(model, parts), members, classes)


def _convertible(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    if isinstance(module, nn.Linear | nn.Conv2d):
        yield path, module
    elif not isinstance(module, _CLOSED):
        for name, child in module.named_children():
            yield from _convertible(child, f"{path}.{name}" if path else name)

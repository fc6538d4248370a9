"""The graphs of the original release, faults included: fixtures for comparing solvers with its published figures.

Never a model of a real training step: `poet.zoo` has the corrected graphs. `Graph.notes` lists the faults.

Reference:
    The data in `poet/architectures` and `poet/power_computation*.py` of the repository ShishirPatil/poet (2022).
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import final

from poet.graph import Graph, Op, Phase, Value

BYTES = 4
"""Bytes of a number, whatever the model."""

Shape = tuple[int, ...]

_FAULTS = (
    "the released graph, faults included; poet.zoo has a corrected one",
    "gradient operations form a chain: gradients of a value with several users are never summed",
    "every gradient has the shape of the downstream layer's output, and parameter gradients do not exist",
    "a gradient costs twice its layer's forward FLOPs, whatever the layer is",
    "the network's input is an operation that can be recomputed at no cost",
    "numbers have 4 bytes; parameters, gradients and optimizer state take no memory",
    "nothing had to be in memory at the end; here the last gradient has to, which changes no optimum",
    "operations are in the order in which the layers were written; the release ordered parallel branches at random",
)
_CONV = "FLOPs of a convolution ignore its stride, and those of pooling are 2 per window entry"
_LINEAR = "FLOPs of a linear layer ignore the batch and the sequence length"
_BATCH = "the batch size was accepted and ignored; here another one than 1 is refused"


@final
@dataclass(frozen=True)
class _Layer:
    kind: str
    shape: Shape
    flops: float
    inputs: tuple[int, ...]


@final
class _Net:
    """Layers in the order of writing; every method adds one and returns its index."""

    def __init__(self, *shape: int) -> None:
        self.layers = [_Layer("input", shape, 0.0, ())]

    @property
    def last(self) -> int:
        return len(self.layers) - 1

    def shape(self, x: int | None = None) -> Shape:
        return self.layers[self.last if x is None else x].shape

    def add(self, kind: str, shape: Shape, flops: int, *inputs: int) -> int:
        self.layers.append(_Layer(kind, shape, float(flops), inputs or (self.last,)))
        return self.last

    def conv(self, width: int, kernel: int, stride: int = 1, pad: int = 0, x: int | None = None) -> int:
        x = self.last if x is None else x
        batch, _, *sides = given = self.shape(x)
        shape = (batch, width, *((side - kernel + 2 * pad) // stride + 1 for side in sides))
        return self.add(f"conv{kernel}", shape, 2 * kernel**2 * prod(given) * width + prod(shape), x)

    def pool(self, kind: str, kernel: int, stride: int) -> int:
        batch, width, *sides = self.shape()
        shape = (batch, width, *((side - kernel) // stride + 1 for side in sides))
        return self.add(kind, shape, 2 * kernel**2 * prod(shape))

    def each(self, kind: str, flops: int = 1) -> int:
        """An elementwise layer."""
        return self.add(kind, self.shape(), flops * prod(self.shape()))

    def flatten(self) -> int:
        batch, *rest = self.shape()
        return self.add("flatten", (batch, prod(rest)), prod(self.shape()))

    def linear(self, width: int, kind: str = "linear") -> int:
        rows, features = self.shape()
        relu = rows * width if kind == "linear_relu" else 0
        return self.add(kind, (rows, width), 2 * (features + 1) * width + width + relu)

    def skip(self, first: int, second: int) -> int:
        """A sum that takes the shape of its first operand, even where the second has another."""
        return self.add("add", self.shape(first), prod(self.shape(first)), first, second)

    def loss(self, classes: int) -> int:
        return self.add("cross_entropy", (classes,), prod(self.shape()) * classes)

    def bn_relu(self) -> int:
        self.each("batch_norm", 2)
        return self.each("relu")


def _linear(_batch: int) -> _Net:
    net = _Net(1, 784)
    for width in (10, 120, 100, 200, 10, 10):
        net.linear(width)
        net.each("relu")
    net.loss(10)
    return net


def _vgg(classes: int, side: int) -> Callable[[int], _Net]:
    def build(batch: int) -> _Net:
        net = _Net(batch, 3, side, side)
        for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            for _ in range(count):
                net.conv(width, 3, pad=1)
                net.each("relu")
            net.pool("max_pool", 2, 2)
        net.flatten()
        for _ in range(2):
            net.linear(4096)
            net.each("relu")
            net.each("dropout")
        net.linear(classes)
        net.loss(classes)
        return net

    return build


def _head(net: _Net, window: int, classes: int) -> _Net:
    net.pool("avg_pool", window, 1)
    net.flatten()
    net.linear(classes)
    net.loss(classes)
    return net


def _resnet18(batch: int) -> _Net:
    net = _stem(batch)
    for width, stride in _stages((64, 2), (128, 2), (256, 2), (512, 2)):
        net.conv(width, 3, stride, 1)
        first = net.bn_relu()
        net.conv(width, 3, 1, 1)
        net.skip(first, net.each("batch_norm", 2))
        net.each("relu")
    return _head(net, 7, 1000)


def _resnet50(batch: int) -> _Net:
    net = _stem(batch)
    for width, stride in _stages((64, 3), (128, 4), (256, 6), (512, 3)):
        net.conv(width, 1, stride)
        first = net.bn_relu()
        net.conv(width, 3, 1, 1)
        net.bn_relu()
        net.conv(4 * width, 1)
        net.skip(net.each("batch_norm", 2), first)
        net.each("relu")
    return _head(net, 7, 1000)


def _resnet18_cifar(batch: int) -> _Net:
    net = _Net(batch, 3, 32, 32)
    net.conv(16, 3, 1, 1)
    net.each("batch_norm", 2)
    for width, stride in _stages((16, 2), (32, 2), (64, 2)):
        x = net.last
        net.conv(width, 3, stride, 1)
        net.bn_relu()
        net.conv(width, 3, 1, 1)
        main = net.bn_relu()
        net.conv(width, 3, stride, 1, x)
        net.skip(main, net.each("batch_norm", 2))
        net.each("relu")
    return _head(net, 8, 10)


def _stem(batch: int) -> _Net:
    net = _Net(batch, 3, 224, 224)
    net.conv(64, 7, 2, 3)
    net.each("batch_norm", 2)
    net.pool("max_pool", 3, 2)
    return net


def _stages(*stages: tuple[int, int]) -> list[tuple[int, int]]:
    """Width and stride of each block; the first block of every stage but the first halves the sides."""
    return [(width, 2 if s and not i else 1) for s, (width, count) in enumerate(stages) for i in range(count)]


def _transformer(blocks: int, length: int = 512, hidden: int = 768, heads: int = 12) -> Callable[[int], _Net]:
    def build(_batch: int) -> _Net:
        inner = hidden // heads
        net = _Net(length, hidden)
        for _ in range(blocks):
            x = net.last
            net.add("qkv", (3 * length, inner, heads), 3 * length * hidden * inner * heads)
            scores = length * length * heads
            net.add("scores", (length, length, heads), scores * inner + 2 * scores)
            net.add("context", (length, inner * heads), 2 * length * length * inner * heads)
            attended = net.linear(hidden)
            net.skip(x, attended)
            net.linear(4 * hidden, "linear_relu")
            net.skip(attended, net.linear(hidden))  # the fault: the sum above was meant
        net.loss(length)
        return net

    return build


_RESNET = (
    _CONV,
    _LINEAR,
    "skip connections start inside the block, and its sums take operands of different shapes",
)
_BERT = (
    _BATCH,
    _LINEAR,
    "the second residual sum of a block takes the attention's output, not the first sum",
    "products of attention count 1 FLOP per multiply-add; embeddings, layer norms and biases are absent",
)
_MODELS: MappingProxyType[str, tuple[Callable[[int], _Net], tuple[str, ...]]] = MappingProxyType(
    {
        "linear": (_linear, (_BATCH, _LINEAR)),
        "vgg16": (_vgg(1000, 224), (_CONV, _LINEAR)),
        "vgg16_cifar": (_vgg(10, 32), (_CONV, _LINEAR)),
        "resnet18": (_resnet18, _RESNET),
        "resnet18_cifar": (_resnet18_cifar, (_CONV, _LINEAR, "every block has a convolution on its skip connection")),
        "resnet50": (_resnet50, _RESNET),
        "bert": (_transformer(12), _BERT),
        "transformer": (_transformer(1), _BERT),
    }
)


def names() -> list[str]:
    """Names of the original's graphs."""
    return list(_MODELS)


def graph(name: str, batch: int = 1) -> Graph:
    """One of the original's graphs; its notes list what is wrong with it.

    Args:
        name: One of `names()`; `"transformer"` is one block of `"bert"`, whose sequences have 512 tokens.
        batch: Batch size of the convolutional networks.

    Raises:
        ValueError: If there is no such graph, or the batch size is not one that it can have.

    Example:
        >>> g = graph("resnet18_cifar")
        >>> len(g.ops), g.largest_working_set
        (133, 262144)
    """
    if name not in _MODELS:
        raise ValueError(f"no legacy graph {name!r}: give one of {', '.join(_MODELS)}")
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise ValueError(f"batch must be a positive integer, got {batch!r}")
    build, faults = _MODELS[name]
    if batch != 1 and _BATCH in faults:
        raise ValueError(f"the original's {name!r} ignores the batch size: leave batch at 1, got {batch}")
    return _with_gradients(f"legacy {name}, batch {batch}", build(batch), (*_FAULTS, *faults))


def _with_gradients(name: str, net: _Net, notes: tuple[str, ...]) -> Graph:
    """The forward layers and the original's chain of gradients."""
    layers = net.layers
    count = len(layers)
    names = [f"{layer.kind}_{i}" for i, layer in enumerate(layers)]
    ops = [
        Op(names[i], layer.inputs, (i,), layer.flops, phase=_phase(layer), kind=layer.kind)
        for i, layer in enumerate(layers)
    ]
    values = [Value(names[i], prod(layer.shape) * BYTES) for i, layer in enumerate(layers)]
    for i in reversed(range(count - 1)):
        at = len(values)
        values.append(Value(f"grad_{names[i]}", values[i + 1].size, keep=i == 0))
        inputs = tuple(dict.fromkeys((i, i + 1, at - 1)))  # the first gradient reads the loss as both
        kind = f"{layers[i].kind}_backward"
        ops.append(Op(f"grad_{names[i]}", inputs, (at,), 2 * layers[i].flops, phase="backward", kind=kind))
    return Graph(name, tuple(ops), tuple(values), notes=notes)


def _phase(layer: _Layer) -> Phase:
    return "loss" if layer.kind == "cross_entropy" else "forward"

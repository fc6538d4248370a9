"""Perceptrons and convolutional networks with their corrected backward passes."""

from collections.abc import Sequence
from itertools import pairwise

from poet.graph import Graph
from poet.zoo import layers
from poet.zoo.tape import Gradients, Optimizer, Tape, Tensor, Training
from poet.zoo.validate import positive

NOTES = (
    "analytic: sizes and FLOPs follow from the layers' shapes; convolutions need no workspace",
    "the gradients of a layer's parameters are one value, and no layer works in place",
    "recomputing is exact if dropout draws the same mask again and running statistics change once",
)
_SMALL = 64
"""Images with fewer pixels a side get a stem that does not shrink them."""


def mlp(
    batch: int = 32,
    sizes: Sequence[int] = (784, 512, 512, 10),
    *,
    gradients: Gradients = "keep",
    optimizer: Optimizer = "sgd",
    itemsize: int = 4,
) -> Graph:
    """A perceptron with ReLUs.

    Args:
        batch: Rows in a batch.
        sizes: Width of the input, of each layer, and the number of classes.
        gradients: What becomes of the parameters' gradients; see `Training`.
        optimizer: What the optimizer remembers; see `Training`.
        itemsize: Bytes of a number.

    Example:
        >>> graph = mlp(batch=2, sizes=(4, 3, 2))
        >>> [op.name for op in graph.ops][:4]
        ['linear1', 'relu1', 'linear2', 'loss']
        >>> graph.static.parameters
        92
    """
    positive(batch=batch, **{f"sizes[{i}]": size for i, size in enumerate(sizes)})
    if len(sizes) < 2:
        raise ValueError(f"sizes must give the width of the input and of at least one layer, got {tuple(sizes)}")
    tape = Tape(Training(gradients, optimizer, itemsize))
    x = tape.input((batch, sizes[0]), labels=batch)
    for i, (_, width) in enumerate(pairwise(sizes), 1):
        x = layers.linear(tape, f"linear{i}", x, width)
        if i < len(sizes) - 1:
            x = layers.relu(tape, f"relu{i}", x)
    return tape.finish(f"mlp, batch {batch}", layers.cross_entropy(tape, "loss", x), NOTES)


def vgg16(
    batch: int = 1,
    image: int = 224,
    classes: int | None = None,
    *,
    gradients: Gradients = "keep",
    optimizer: Optimizer = "sgd",
    itemsize: int = 4,
) -> Graph:
    """VGG-16 without batch normalisation.

    Args:
        batch: Images in a batch.
        image: Pixels a side, a multiple of 32.
        classes: Number of classes; 1000 for images of 224 pixels, 10 otherwise, unless given.
        gradients: What becomes of the parameters' gradients; see `Training`.
        optimizer: What the optimizer remembers; see `Training`.
        itemsize: Bytes of a number.

    Reference:
        Simonyan, Zisserman (2015). Very deep convolutional networks for large-scale image recognition. ICLR. Column D.
    """
    if classes is None:
        classes = 1000 if image == 224 else 10
    positive(batch=batch, image=image, classes=classes)
    if image % 32:
        raise ValueError(f"VGG-16 halves its images five times: image must be a multiple of 32, got {image}")
    tape = Tape(Training(gradients, optimizer, itemsize))
    x = tape.input((batch, 3, image, image), labels=batch)
    for stage, (width, count) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)), 1):
        for i in range(1, count + 1):
            x = layers.conv(tape, f"conv{stage}_{i}", x, width, 3, padding=1, bias=True)
            x = layers.relu(tape, f"relu{stage}_{i}", x)
        x = layers.max_pool(tape, f"pool{stage}", x, 2, 2)
    x = layers.flatten(tape, x)
    for i in (6, 7):
        x = layers.linear(tape, f"linear{i}", x, 4096)
        x = layers.dropout(tape, f"dropout{i}", layers.relu(tape, f"relu{i}", x))
    x = layers.linear(tape, "linear8", x, classes)
    loss = layers.cross_entropy(tape, "loss", x)
    return tape.finish(f"vgg16, batch {batch}, {image}×{image} pixels", loss, NOTES)


def resnet18(
    batch: int = 1,
    image: int = 224,
    classes: int | None = None,
    *,
    gradients: Gradients = "keep",
    optimizer: Optimizer = "sgd",
    itemsize: int = 4,
) -> Graph:
    """ResNet-18; images below 64 pixels get a 3×3 stem without pooling.

    Args:
        batch: Images in a batch.
        image: Pixels a side.
        classes: Number of classes; 1000 from 64 pixels on, 10 below, unless given.
        gradients: What becomes of the parameters' gradients; see `Training`.
        optimizer: What the optimizer remembers; see `Training`.
        itemsize: Bytes of a number.

    Reference:
        He, Zhang, Ren, Sun (2016). Deep residual learning for image recognition. CVPR. Table 1.

    Example:
        >>> resnet18().static.parameters // 4
        11689512
    """
    training = Training(gradients, optimizer, itemsize)
    return _resnet("resnet18", training, batch, image, classes, (2, 2, 2, 2), bottleneck=False)


def resnet50(
    batch: int = 1,
    image: int = 224,
    classes: int | None = None,
    *,
    gradients: Gradients = "keep",
    optimizer: Optimizer = "sgd",
    itemsize: int = 4,
) -> Graph:
    """ResNet-50 with the stride in the 3×3 convolutions; images below 64 pixels get a 3×3 stem without pooling.

    Args:
        batch: Images in a batch.
        image: Pixels a side.
        classes: Number of classes; 1000 from 64 pixels on, 10 below, unless given.
        gradients: What becomes of the parameters' gradients; see `Training`.
        optimizer: What the optimizer remembers; see `Training`.
        itemsize: Bytes of a number.

    Reference:
        He, Zhang, Ren, Sun (2016). Deep residual learning for image recognition. CVPR. Table 1.
    """
    training = Training(gradients, optimizer, itemsize)
    return _resnet("resnet50", training, batch, image, classes, (3, 4, 6, 3), bottleneck=True)


def resnet18_cifar(
    batch: int = 1,
    classes: int = 10,
    *,
    gradients: Gradients = "keep",
    optimizer: Optimizer = "sgd",
    itemsize: int = 4,
) -> Graph:
    """The small network that the paper calls ResNet-18 for CIFAR-10: three stages of two blocks, 16 to 64 channels.

    The corrected counterpart of `poet.legacy.graph("resnet18_cifar")`; its skip connections have a convolution only
    where the shape changes.

    Args:
        batch: Images of 32×32 pixels in a batch.
        classes: Number of classes.
        gradients: What becomes of the parameters' gradients; see `Training`.
        optimizer: What the optimizer remembers; see `Training`.
        itemsize: Bytes of a number.
    """
    training = Training(gradients, optimizer, itemsize)
    return _resnet("resnet18_cifar", training, batch, 32, classes, (2, 2, 2), bottleneck=False, width=16)


def _resnet(
    name: str,
    training: Training,
    batch: int,
    image: int,
    classes: int | None,
    stages: tuple[int, ...],
    *,
    bottleneck: bool,
    width: int = 64,
) -> Graph:
    if classes is None:
        classes = 10 if image < _SMALL else 1000
    positive(batch=batch, image=image, classes=classes)
    tape = Tape(training)
    x = tape.input((batch, 3, image, image), labels=batch)
    kernel, stride = (3, 1) if image < _SMALL else (7, 2)
    x = _conv_norm(tape, "conv1", x, width, kernel, stride)
    x = layers.relu(tape, "relu", x)
    if image >= _SMALL:
        x = layers.max_pool(tape, "maxpool", x, 3, 2, 1)
    for stage, count in enumerate(stages, 1):
        for i in range(count):
            stride = 2 if stage > 1 and not i else 1
            block = _bottleneck if bottleneck else _basic
            x = block(tape, f"layer{stage}.{i}", x, width << (stage - 1), stride)
    x = layers.linear(tape, "fc", layers.average(tape, "avgpool", x), classes)
    loss = layers.cross_entropy(tape, "loss", x)
    return tape.finish(f"{name}, batch {batch}, {image}×{image} pixels", loss, NOTES)


def _conv_norm(tape: Tape, name: str, x: Tensor, width: int, kernel: int, stride: int = 1) -> Tensor:
    x = layers.conv(tape, name, x, width, kernel, stride=stride, padding=kernel // 2)
    return layers.batch_norm(tape, f"{name}.norm", x)


def _basic(tape: Tape, name: str, x: Tensor, width: int, stride: int) -> Tensor:
    y = layers.relu(tape, f"{name}.relu1", _conv_norm(tape, f"{name}.conv1", x, width, 3, stride))
    y = _conv_norm(tape, f"{name}.conv2", y, width, 3)
    return _residual(tape, name, x, y, stride)


def _bottleneck(tape: Tape, name: str, x: Tensor, width: int, stride: int) -> Tensor:
    y = layers.relu(tape, f"{name}.relu1", _conv_norm(tape, f"{name}.conv1", x, width, 1))
    y = layers.relu(tape, f"{name}.relu2", _conv_norm(tape, f"{name}.conv2", y, width, 3, stride))
    y = _conv_norm(tape, f"{name}.conv3", y, 4 * width, 1)
    return _residual(tape, name, x, y, stride)


def _residual(tape: Tape, name: str, x: Tensor, y: Tensor, stride: int) -> Tensor:
    if x.shape != y.shape:
        x = _conv_norm(tape, f"{name}.skip", x, y.shape[1], 1, stride)
    return layers.relu(tape, f"{name}.relu", layers.add(tape, f"{name}.add", y, x))

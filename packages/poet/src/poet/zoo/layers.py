"""Layers for the tape: what each computes, what its backward reads, and what both cost.

A multiply-add counts as two FLOPs, and the addition of a bias is not counted (as in `torch.utils.flop_counter`); the
other layers cost nominal FLOPs per number, given in `PER_NUMBER`. Convolutions and products have one backward operation
for each of their gradients, so that what only one of them reads need not wait for the other.
"""

from math import prod
from types import MappingProxyType

from poet.zoo.tape import INDEX_BYTES, MASK_BYTES, STATISTIC_BYTES, Parameter, Tape, Tensor

PER_NUMBER = MappingProxyType(
    {
        "relu": (1, 1),
        "gelu": (8, 13),
        "tanh": (6, 3),
        "dropout": (2, 1),
        "softmax": (5, 4),
        "batch_norm": (8, 11),
        "layer_norm": (8, 11),
        "cross_entropy": (5, 3),
    }
)
"""Nominal FLOPs for each number, forward and backward; copies and sums count one."""


def conv(
    tape: Tape,
    name: str,
    x: Tensor,
    width: int,
    kernel: int,
    *,
    stride: int = 1,
    padding: int = 0,
    bias: bool = False,
) -> Tensor:
    """A square convolution: one FLOP pair for each output number, input channel and tap.

    Args:
        tape: Where it is recorded.
        name: Its name.
        x: Images (batch, channels, height, width).
        width: Output channels.
        kernel: Taps on each side.
        stride: Step, on both sides.
        padding: Zeros on each side.
        bias: Whether it adds a bias.
    """
    batch, channels, *sides = x.shape
    shape = (batch, width, *((side + 2 * padding - kernel) // stride + 1 for side in sides))
    if min(shape) < 1:
        raise ValueError(f"images of {sides[0]}×{sides[1]} pixels are too small for {name!r}: give larger ones")
    taps = channels * kernel**2
    weight = tape.parameter(width * taps + bias * width)
    out, _ = tape.forward(name, "conv", [x], shape, 2 * taps * prod(shape), parameters=[weight])
    _weighted(tape, name, "conv", x, out, weight, 2 * taps * out.count)
    return out


def linear(
    tape: Tape,
    name: str,
    x: Tensor,
    width: int,
    *,
    bias: bool = True,
    weight: Parameter | None = None,
) -> Tensor:
    """A linear layer on the last axis.

    Args:
        tape: Where it is recorded.
        name: Its name.
        x: Any shape.
        width: Outputs.
        bias: Whether it adds a bias.
        weight: Parameters that it shares with another layer; its own unless given.
    """
    features = x.shape[-1]
    weight = weight or tape.parameter(features * width + bias * width)
    shape = (*x.shape[:-1], width)
    flops = 2 * features * prod(shape)
    out, _ = tape.forward(name, "linear", [x], shape, flops, parameters=[weight])
    _weighted(tape, name, "linear", x, out, weight, flops)
    return out


def matmul(tape: Tape, name: str, a: Tensor, b: Tensor, shape: tuple[int, ...], inner: int) -> Tensor:
    """A batch of products of two tensors.

    Args:
        tape: Where it is recorded.
        name: Its name.
        a: First operand.
        b: Second operand.
        shape: Shape of the result.
        inner: Length of the sums.
    """
    flops = 2 * inner * prod(shape)
    out, _ = tape.forward(name, "matmul", [a, b], shape, flops)

    def backward(gradient: int) -> None:
        tape.backward(f"{name}.grad_second", "matmul.grad_second", [a.value, gradient], flops, to=b)
        tape.backward(f"{name}.grad_first", "matmul.grad_first", [b.value, gradient], flops, to=a)

    tape.rule(out, backward)
    return out


def relu(tape: Tape, name: str, x: Tensor) -> Tensor:
    """max(x, 0); its backward reads its output."""
    return _elementwise(tape, name, "relu", x, reads_output=True)


def tanh(tape: Tape, name: str, x: Tensor) -> Tensor:
    """Hyperbolic tangent; its backward reads its output."""
    return _elementwise(tape, name, "tanh", x, reads_output=True)


def gelu(tape: Tape, name: str, x: Tensor) -> Tensor:
    """X Φ(x); its backward reads its input."""
    return _elementwise(tape, name, "gelu", x, reads_output=False)


def softmax(tape: Tape, name: str, x: Tensor) -> Tensor:
    """Softmax of scaled, masked scores on the last axis; its backward reads its output."""
    return _elementwise(tape, name, "softmax", x, reads_output=True)


def add(tape: Tape, name: str, a: Tensor, b: Tensor) -> Tensor:
    """The sum of two tensors of one shape; both get the gradient of the sum as it is."""
    if a.shape != b.shape:
        raise ValueError(f"{name!r} adds tensors of shapes {a.shape} and {b.shape}; they must be equal")
    out, _ = tape.forward(name, "add", [a, b], a.shape, a.count)

    def backward(gradient: int) -> None:
        tape.contribute(a, gradient)
        tape.contribute(b, gradient)

    tape.rule(out, backward)
    return out


def dropout(tape: Tape, name: str, x: Tensor) -> Tensor:
    """Dropout; its backward reads a mask of one byte per number."""
    forward, back = PER_NUMBER["dropout"]
    saved = ("mask", x.count * MASK_BYTES)
    out, mask = tape.forward(name, "dropout", [x], x.shape, forward * x.count, saved=saved)
    tape.rule(out, lambda g: tape.backward(f"{name}.backward", "dropout.backward", [mask, g], back * x.count, to=x))
    return out


def batch_norm(tape: Tape, name: str, x: Tensor) -> Tensor:
    """Batch normalisation; its backward reads its input and the batch's mean and deviation of each channel."""
    channels = x.shape[1]
    running = 2 * channels * STATISTIC_BYTES + INDEX_BYTES  # mean, variance, number of batches
    return _norm(tape, name, "batch_norm", x, tape.parameter(2 * channels, running), groups=channels)


def layer_norm(tape: Tape, name: str, x: Tensor) -> Tensor:
    """Layer normalisation; its backward reads its input and the mean and deviation of each row."""
    features = x.shape[-1]
    return _norm(tape, name, "layer_norm", x, tape.parameter(2 * features), groups=x.count // features)


def max_pool(tape: Tape, name: str, x: Tensor, kernel: int, stride: int, padding: int = 0) -> Tensor:
    """Maxima of square windows; its backward reads where they were."""
    batch, channels, *sides = x.shape
    shape = (batch, channels, *((side + 2 * padding - kernel) // stride + 1 for side in sides))
    if min(shape) < 1:
        raise ValueError(f"images of {sides[0]}×{sides[1]} pixels are too small for {name!r}: give larger ones")
    count = prod(shape)
    saved = ("indices", count * INDEX_BYTES)
    out, indices = tape.forward(name, "max_pool", [x], shape, kernel**2 * count, saved=saved)
    tape.rule(out, lambda g: tape.backward(f"{name}.backward", "max_pool.backward", [indices, g], x.count, to=x))
    return out


def average(tape: Tape, name: str, x: Tensor) -> Tensor:
    """Mean of each channel of each image; its backward reads nothing but the gradient."""
    out, _ = tape.forward(name, "average", [x], x.shape[:2], x.count)
    tape.rule(out, lambda g: tape.backward(f"{name}.backward", "average.backward", [g], x.count, to=x))
    return out


def flatten(tape: Tape, x: Tensor) -> Tensor:
    """A view with one row per image."""
    out = tape.view(x.value, (x.shape[0], x.count // x.shape[0]))
    tape.rule(out, lambda gradient: tape.contribute(x, gradient))
    return out


def split(tape: Tape, name: str, x: Tensor, parts: int) -> list[Tensor]:
    """Views of equal parts of the last axis; the gradients of all are joined as soon as the last one is there."""
    *rows, features = x.shape
    views = [tape.view(x.value, (*rows, features // parts)) for _ in range(parts)]
    got: list[int] = []

    def backward(gradient: int) -> None:
        got.append(gradient)
        if len(got) == parts:
            tape.backward(f"{name}.backward", "split.backward", got, x.count, to=x)

    for view in views:
        tape.rule(view, backward)
    return views


def first_row(tape: Tape, name: str, x: Tensor) -> Tensor:
    """A view of the first position of each sequence; its backward fills the other positions with zeros."""
    batch, _, features = x.shape
    out = tape.view(x.value, (batch, features))
    tape.rule(out, lambda g: tape.backward(f"{name}.backward", "first_row.backward", [g], x.count, to=x))
    return out


def embedding(tape: Tape, name: str, tokens: Tensor, width: int, tables: list[Parameter]) -> Tensor:
    """The sum of one row of each table; its backward reads nothing but the gradient."""
    shape = (*tokens.shape, width)
    flops = len(tables) * prod(shape)
    out, _ = tape.forward(name, "embedding", [tokens], shape, flops, parameters=tables)
    tape.rule(
        out, lambda g: tape.backward(f"{name}.grad_weight", "embedding.grad_weight", [g], flops, parameters=tables)
    )
    return out


def cross_entropy(tape: Tape, name: str, logits: Tensor) -> Tensor:
    """Mean cross-entropy of rows of logits; its backward reads their log-probabilities."""
    forward, back = PER_NUMBER["cross_entropy"]
    saved = ("log_probabilities", logits.count * tape.training.itemsize)
    out, log_probabilities = tape.forward(
        name, "cross_entropy", [logits], (1,), forward * logits.count, saved=saved, phase="loss"
    )
    flops = back * logits.count
    tape.rule(
        out,
        lambda _: tape.backward(f"{name}.backward", "cross_entropy.backward", [log_probabilities], flops, to=logits),
    )
    return out


def _weighted(tape: Tape, name: str, kind: str, x: Tensor, out: Tensor, weight: Parameter, flops: int) -> None:
    """Both gradients of a product with weights.

    The weights' comes first, for it lets go of the input; where it changes the weights at once, it comes last.
    """

    def backward(gradient: int) -> None:
        def to_weight() -> None:
            reads = [x.value, gradient]
            tape.backward(f"{name}.grad_weight", f"{kind}.grad_weight", reads, flops, parameters=[weight])

        def to_input() -> None:
            tape.backward(f"{name}.grad_input", f"{kind}.grad_input", [gradient], flops, to=x, weights=True)

        steps = (to_input, to_weight) if tape.training.gradients == "apply" else (to_weight, to_input)
        for step in steps:
            step()

    tape.rule(out, backward)


def _elementwise(tape: Tape, name: str, kind: str, x: Tensor, reads_output: bool) -> Tensor:
    forward, back = PER_NUMBER[kind]
    out, _ = tape.forward(name, kind, [x], x.shape, forward * x.count)
    saved = out.value if reads_output else x.value
    tape.rule(out, lambda g: tape.backward(f"{name}.backward", f"{kind}.backward", [saved, g], back * x.count, to=x))
    return out


def _norm(tape: Tape, name: str, kind: str, x: Tensor, scale: Parameter, groups: int) -> Tensor:
    forward, back = PER_NUMBER[kind]
    saved = ("statistics", 2 * groups * STATISTIC_BYTES)
    out, statistics = tape.forward(name, kind, [x], x.shape, forward * x.count, parameters=[scale], saved=saved)

    def backward(gradient: int) -> None:
        reads = [x.value, statistics, gradient]
        tape.backward(
            f"{name}.backward", f"{kind}.backward", reads, back * x.count, to=x, parameters=[scale], weights=True
        )

    tape.rule(out, backward)
    return out

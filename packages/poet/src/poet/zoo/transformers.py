"""Transformers with their corrected backward passes; attention is written out, scores included."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, final

from poet.graph import Graph
from poet.zoo import layers
from poet.zoo.tape import Gradients, Optimizer, Tape, Tensor, Training
from poet.zoo.validate import positive

NOTES = (
    "analytic: sizes and FLOPs follow from the layers' shapes; products need no workspace",
    "the gradients of a layer's parameters are one value, and no layer works in place",
    "recomputing is exact if dropout draws the same mask again",
    "attention scores are in memory, scaling and masks are part of the softmax, and heads are views",
)
_TOKEN_BYTES = 8


@final
@dataclass(frozen=True)
class _Shape:
    batch: int
    length: int
    width: int
    heads: int
    dropout: bool


def bert(
    batch: int = 1,
    seq: int = 128,
    *,
    blocks: int = 12,
    width: int = 768,
    heads: int = 12,
    vocabulary: int = 30522,
    positions: int = 512,
    classes: int = 2,
    dropout: bool = True,
    gradients: Gradients = "keep",
    optimizer: Optimizer = "sgd",
    itemsize: int = 4,
) -> Graph:
    """BERT with a pooler and a classifier; BERT-base unless told otherwise.

    Args:
        batch: Sequences in a batch.
        seq: Tokens in a sequence.
        blocks: Number of blocks.
        width: Width of the residual stream; the feed-forward layers are four times as wide.
        heads: Number of heads.
        vocabulary: Number of different tokens.
        positions: Most tokens that a sequence can have.
        classes: Number of classes.
        dropout: Whether there is dropout.
        gradients: What becomes of the parameters' gradients; see `Training`.
        optimizer: What the optimizer remembers; see `Training`.
        itemsize: Bytes of a number.

    Reference:
        Devlin, Chang, Lee, Toutanova (2019). BERT: pre-training of deep bidirectional transformers. NAACL.

    Example:
        >>> head = 768 * 2 + 2
        >>> bert().static.parameters // 4 - head
        109482240
    """
    positive(blocks=blocks, vocabulary=vocabulary, classes=classes)
    at = _check(_Shape(batch, seq, width, heads, dropout), positions)
    tape = Tape(Training(gradients, optimizer, itemsize))
    tokens = tape.input((batch, seq), itemsize=2 * _TOKEN_BYTES, labels=batch)  # a token and a segment each
    tables = [tape.parameter((vocabulary + positions + 2) * width)]
    x = layers.embedding(tape, "embedding", tokens, width, tables)
    x = _dropout(tape, "embedding.dropout", layers.layer_norm(tape, "embedding.norm", x), at)
    for i in range(blocks):
        name = f"block{i}"
        q, k, v = (layers.linear(tape, f"{name}.{part}", x, width) for part in ("query", "key", "value"))
        y = _attention(tape, name, q, k, v, at)
        y = _dropout(tape, f"{name}.attention.dropout", y, at)
        x = layers.layer_norm(tape, f"{name}.norm1", layers.add(tape, f"{name}.add1", y, x))
        y = _dropout(tape, f"{name}.mlp.dropout", _feed_forward(tape, name, x), at)
        x = layers.layer_norm(tape, f"{name}.norm2", layers.add(tape, f"{name}.add2", y, x))
    x = layers.linear(tape, "pooler", layers.first_row(tape, "first", x), width)
    x = _dropout(tape, "pooler.dropout", layers.tanh(tape, "pooler.tanh", x), at)
    loss = layers.cross_entropy(tape, "loss", layers.linear(tape, "classifier", x, classes))
    return tape.finish(f"bert, batch {batch}, {seq} tokens", loss, NOTES)


GPT2_SIZES: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {"small": (12, 768, 12), "medium": (24, 1024, 16), "large": (36, 1280, 20), "xl": (48, 1600, 25)}
)
"""Blocks, width and heads of each GPT-2."""


def gpt2(
    size: Literal["small", "medium", "large", "xl"] = "small",
    batch: int = 1,
    seq: int = 1024,
    *,
    vocabulary: int = 50257,
    positions: int = 1024,
    dropout: bool = True,
    gradients: Gradients = "keep",
    optimizer: Optimizer = "sgd",
    itemsize: int = 4,
) -> Graph:
    """GPT-2, whose output layer and token embedding share their weights.

    Args:
        size: `"small"`, `"medium"`, `"large"` or `"xl"`.
        batch: Sequences in a batch.
        seq: Tokens in a sequence; every one is predicted.
        vocabulary: Number of different tokens.
        positions: Most tokens that a sequence can have.
        dropout: Whether there is dropout.
        gradients: What becomes of the parameters' gradients; see `Training`.
        optimizer: What the optimizer remembers; see `Training`.
        itemsize: Bytes of a number.

    Reference:
        Radford, Wu, Child, Luan, Amodei, Sutskever (2019). Language models are unsupervised multitask learners.

    Example:
        >>> gpt2("small", seq=64).static.parameters // 4
        124439808
    """
    if size not in GPT2_SIZES:
        raise ValueError(f"size must be one of {', '.join(GPT2_SIZES)}, got {size!r}")
    blocks, width, heads = GPT2_SIZES[size]
    positive(vocabulary=vocabulary)
    at = _check(_Shape(batch, seq, width, heads, dropout), positions)
    tape = Tape(Training(gradients, optimizer, itemsize))
    tokens = tape.input((batch, seq), itemsize=_TOKEN_BYTES, labels=batch * seq)
    table = tape.parameter(vocabulary * width)
    x = layers.embedding(tape, "embedding", tokens, width, [table, tape.parameter(positions * width)])
    x = _dropout(tape, "embedding.dropout", x, at)
    for i in range(blocks):
        name = f"block{i}"
        y = layers.linear(tape, f"{name}.qkv", layers.layer_norm(tape, f"{name}.norm1", x), 3 * width)
        q, k, v = layers.split(tape, f"{name}.qkv.split", y, 3)
        y = _attention(tape, name, q, k, v, at)
        x = layers.add(tape, f"{name}.add1", _dropout(tape, f"{name}.attention.dropout", y, at), x)
        y = _feed_forward(tape, name, layers.layer_norm(tape, f"{name}.norm2", x))
        x = layers.add(tape, f"{name}.add2", _dropout(tape, f"{name}.mlp.dropout", y, at), x)
    x = layers.layer_norm(tape, "norm", x)
    logits = layers.linear(tape, "head", x, vocabulary, bias=False, weight=table)
    loss = layers.cross_entropy(tape, "loss", logits)
    return tape.finish(f"gpt2 {size}, batch {batch}, {seq} tokens", loss, NOTES)


def _check(at: _Shape, positions: int) -> _Shape:
    positive(batch=at.batch, seq=at.length, width=at.width, heads=at.heads, positions=positions)
    if at.width % at.heads:
        raise ValueError(f"width must be a multiple of heads, got {at.width} and {at.heads}")
    if at.length > positions:
        raise ValueError(f"seq must be at most positions, {positions}, got {at.length}")
    return at


def _attention(tape: Tape, name: str, q: Tensor, k: Tensor, v: Tensor, at: _Shape) -> Tensor:
    scores = (at.batch, at.heads, at.length, at.length)
    s = layers.matmul(tape, f"{name}.scores", q, k, scores, at.width // at.heads)
    p = _dropout(tape, f"{name}.softmax.dropout", layers.softmax(tape, f"{name}.softmax", s), at)
    context = layers.matmul(tape, f"{name}.context", p, v, (at.batch, at.length, at.width), at.length)
    return layers.linear(tape, f"{name}.projection", context, at.width)


def _feed_forward(tape: Tape, name: str, x: Tensor) -> Tensor:
    width = x.shape[-1]
    y = layers.gelu(tape, f"{name}.gelu", layers.linear(tape, f"{name}.mlp1", x, 4 * width))
    return layers.linear(tape, f"{name}.mlp2", y, width)


def _dropout(tape: Tape, name: str, x: Tensor, at: _Shape) -> Tensor:
    return layers.dropout(tape, name, x) if at.dropout else x

"""Models to train, each with one fixed batch: ResNet-18, a transformer encoder, and a GPT-2-like decoder."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional


@final
class Stack(nn.Module):
    """A stem, blocks in a row, and a head.

    Args:
        stem: Takes the inputs.
        blocks: Each takes one tensor and gives one; what a user would checkpoint.
        head: Gives the output.
    """

    def __init__(self, stem: nn.Module, blocks: list[nn.Module], head: nn.Module) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = stem, nn.Sequential(*blocks), head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))


@dataclass(frozen=True)
class Workload:
    """A model and one batch.

    Args:
        name: What it is, in words.
        model: Called as ``model(inputs)``.
        inputs: The batch.
        targets: What `loss_fn` compares the output with.
        loss_fn: Takes output and targets.
    """

    name: str
    model: Stack = field(repr=False)
    inputs: Tensor = field(repr=False)
    targets: Tensor = field(repr=False)
    loss_fn: Callable[[Tensor, Tensor], Tensor] = field(repr=False)

    @property
    def device(self) -> str:
        """Device type."""
        return self.inputs.device.type

    def loss(self, call: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """The loss of the batch; `call` stands for the model."""
        return self.loss_fn((self.model if call is None else call)(self.inputs), self.targets)


@final
class Residual(nn.Module):
    """Two 3 × 3 convolutions and a shortcut."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.short: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            self.short = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.norm1(self.conv1(x)), inplace=True)
        y = self.norm2(self.conv2(y))
        y += self.short(x)
        return functional.relu(y, inplace=True)


def resnet(batch: int, image: int, width: int = 64, per_stage: int = 2, classes: int = 100) -> Workload:
    """A residual network on noise; by default ResNet-18."""
    torch.manual_seed(0)
    widths = [width << stage for stage in range(4) for _ in range(per_stage)]
    blocks: list[nn.Module] = [Residual(a, b, 1 + (b > a)) for a, b in zip([width, *widths], widths, strict=False)]
    convolution = nn.Conv2d(3, width, 7, 2, 3, bias=False)
    stem = nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes))
    images, labels = torch.randn(batch, 3, image, image), torch.randint(classes, (batch,))
    name = f"ResNet-18, {batch}×3×{image}²" if (width, per_stage) == (64, 2) else "ResNet"
    return Workload(name, Stack(stem, blocks, head), images, labels, functional.cross_entropy)


def encoder(layers: int, batch: int, length: int, width: int, heads: int, dropout: float = 0.0) -> Workload:
    """A transformer encoder on noise."""
    torch.manual_seed(0)
    make = nn.TransformerEncoderLayer
    blocks: list[nn.Module] = [make(width, heads, 4 * width, dropout, "gelu", batch_first=True) for _ in range(layers)]
    tokens, targets = torch.randn(batch, length, width), torch.randn(batch, length, width)
    name = f"{layers}-layer encoder, {batch}×{length}×{width}"
    return Workload(name, Stack(nn.Identity(), blocks, nn.Identity()), tokens, targets, functional.mse_loss)


@final
class Embedding(nn.Module):
    """Tokens and positions."""

    def __init__(self, vocabulary: int, length: int, width: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]


@final
class Block(nn.Module):
    """A pre-norm block with causal attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(*qkv.unbind(0), is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(n, length, width))
        return x + self.mlp(self.norm2(x))


def decoder(
    layers: int, width: int, heads: int, vocabulary: int, length: int, batch: int, device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Workload:  # fmt: skip
    """A GPT-2-like decoder on random tokens; 24 layers of width 1024 with 16 heads make GPT-2 medium."""
    torch.manual_seed(0)
    blocks: list[nn.Module] = [Block(width, heads) for _ in range(layers)]
    head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False))
    model = Stack(Embedding(vocabulary, length, width), blocks, head).to(device, dtype)
    tokens = torch.randint(vocabulary, (batch, length + 1)).to(device)
    name = f"decoder, {layers} layers of {width}, {batch}×{length}"
    return Workload(name, model, tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), _tokens_loss)


def _tokens_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

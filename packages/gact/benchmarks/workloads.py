"""Models to train, each with one fixed batch: a GPT-2-like decoder, ResNet-18, a vision transformer and a GELU MLP."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Workload:
    """A model and one batch.

    Args:
        name: What it is, in words.
        model: Called as ``model(inputs)``.
        inputs: The batch.
        targets: Class of every sample, or of every token.
        blocks: Sub-modules that a user would checkpoint, each called with one tensor.
        autocast: Data type of autocast, or None.
    """

    name: str
    model: nn.Module
    inputs: Tensor
    targets: Tensor
    blocks: tuple[nn.Module, ...] = field(repr=False)
    autocast: torch.dtype | None = None

    @property
    def device(self) -> str:
        """Device type."""
        return self.inputs.device.type

    def loss(self, call: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Mean cross-entropy of the batch; `call` stands for the model, such as its compiled form."""
        with torch.autocast(self.device, dtype=self.autocast, enabled=self.autocast is not None):
            logits = (self.model if call is None else call)(self.inputs)
            return functional.cross_entropy(logits.flatten(0, -2), self.targets.flatten())

    def batch(self, size: int) -> "Workload":
        """The same model with another number of samples; those of the batch, repeated."""
        index = torch.arange(size, device=self.inputs.device) % len(self.inputs)
        return replace(self, inputs=self.inputs[index], targets=self.targets[index])


@final
class Attention(nn.Module):
    """Multi-head self-attention by torch's fused kernel."""

    def __init__(self, width: int, heads: int, causal: bool, dropout: float) -> None:
        super().__init__()
        self.heads, self.causal, self.dropout = heads, causal, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        drop = self.dropout if self.training else 0.0
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal, dropout_p=drop)
        return self.out(y.transpose(1, 2).reshape(n, length, width))


@final
class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, causal: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal, dropout)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.drop = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.attention(self.norm1(x)))
        return x + self.drop(self.mlp(self.norm2(x)))


@final
class Decoder(nn.Module):
    """A GPT-2-like language model with tied embeddings."""

    def __init__(self, layers: int, width: int, heads: int, vocabulary: int, length: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads, True, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return functional.linear(self.norm(x), self.tokens.weight)


@final
class VisionTransformer(nn.Module):
    """A ViT that averages over patches."""

    def __init__(self, layers: int, width: int, heads: int, image: int, patch: int, classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.positions = nn.Parameter(0.02 * torch.randn(1, (image // patch) ** 2, width))
        self.blocks = nn.ModuleList(Block(width, heads, False) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


@final
class Residual(nn.Module):
    """Two 3 x 3 convolutions and a shortcut."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.short: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            short = nn.Conv2d(channels, width, 1, stride=stride, bias=False)
            self.short = nn.Sequential(short, nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        y += self.short(x)
        return self.relu(y)


@final
class ResNet(nn.Module):
    """ResNet with basic blocks; two a stage make ResNet-18."""

    def __init__(self, width: int = 64, per_stage: int = 2, stages: int = 4, classes: int = 1000) -> None:
        super().__init__()
        first = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.stem = nn.Sequential(first, nn.BatchNorm2d(width), nn.ReLU(inplace=True), pool)
        blocks, channels = [], width
        for stage in range(stages):
            for index in range(per_stage):
                stride = 2 if stage and index == 0 else 1
                blocks.append(Residual(channels, width << stage, stride))
                channels = width << stage
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def decoder(
    layers: int,
    width: int,
    heads: int,
    vocabulary: int,
    length: int,
    batch: int,
    device: str = "cpu",
    dropout: float = 0.0,
    autocast: torch.dtype | None = None,
    seed: int = 0,
) -> Workload:
    """A decoder on random tokens."""
    with _seeded(seed):
        model = Decoder(layers, width, heads, vocabulary, length, dropout).to(device)
        tokens = torch.randint(vocabulary, (batch, length + 1)).to(device)
    return _workload("GPT decoder", model, tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), autocast)


def resnet(
    width: int,
    per_stage: int,
    stages: int,
    image: int,
    classes: int,
    batch: int,
    device: str = "cpu",
    autocast: torch.dtype | None = None,
    seed: int = 0,
) -> Workload:
    """A residual network on random images."""
    with _seeded(seed):
        model = ResNet(width, per_stage, stages, classes).to(device)
        images, labels = torch.randn(batch, 3, image, image).to(device), torch.randint(classes, (batch,)).to(device)
    name = "ResNet-18" if (width, per_stage, stages) == (64, 2, 4) else "ResNet"
    return _workload(name, model, images, labels, autocast)


def vision_transformer(
    layers: int,
    width: int,
    heads: int,
    image: int,
    patch: int,
    classes: int,
    batch: int,
    device: str = "cpu",
    autocast: torch.dtype | None = None,
    seed: int = 0,
) -> Workload:
    """A vision transformer on random images."""
    with _seeded(seed):
        model = VisionTransformer(layers, width, heads, image, patch, classes).to(device)
        images, labels = torch.randn(batch, 3, image, image).to(device), torch.randint(classes, (batch,)).to(device)
    return _workload("ViT", model, images, labels, autocast)


def mlp(layers: int, width: int, classes: int, batch: int, device: str = "cpu", seed: int = 0) -> Workload:
    """Linear layers and GELU on random features."""
    with _seeded(seed):
        blocks = [nn.Sequential(nn.Linear(width, width), nn.GELU()) for _ in range(layers)]
        model = nn.Sequential(*blocks, nn.Linear(width, classes)).to(device)
        features, labels = torch.randn(batch, width).to(device), torch.randint(classes, (batch,)).to(device)
    return Workload("GELU MLP", model, features, labels, tuple(blocks))


def suite(scale: str, device: str) -> tuple[Workload, ...]:
    """The transformer and the CNN of a scale.

    ``quick`` is a toy, ``cpu`` takes about a second a step on one core, ``gpu`` is GPT-2 small (124 million parameters)
    at 1024 tokens and ResNet-18 at 224 pixels, both in bf16 autocast.
    """
    if scale == "quick":
        return decoder(2, 64, 2, 128, 64, 4, device), resnet(8, 1, 2, 32, 10, 4, device)
    if scale == "cpu":
        return decoder(6, 192, 3, 1024, 256, 8, device), resnet(64, 2, 4, 112, 100, 16, device)
    bf16 = torch.bfloat16
    gpt2 = decoder(12, 768, 12, 50257, 1024, 8, device, autocast=bf16)
    return gpt2, resnet(64, 2, 4, 224, 1000, 64, device, autocast=bf16)


def _workload(name: str, model: nn.Module, inputs: Tensor, targets: Tensor, autocast: torch.dtype | None) -> Workload:
    blocks = tuple(model.get_submodule("blocks").children())
    return Workload(name, model, inputs, targets, blocks, autocast)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """A fork of the CPU generator, so that building a model does not disturb the caller's random numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield

"""The models of claims, demo and command: plain torch modules that know nothing of compression."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional

Mlp = Literal["linear", "gelu", "norm-gelu", "relu"]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's random numbers inside follow from a seed; outside they go on as if nothing had been."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@final
class Attention(nn.Module):
    """Multi-head self-attention.

    Args:
        width: Features.
        heads: Heads.
        causal: Whether a position sees only those before it.
    """

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attend, [batch, length, width]."""
        n, length, width = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(y.transpose(1, 2).reshape(n, length, width))


@final
class Block(nn.Module):
    """A pre-norm transformer block with GELU.

    Args:
        width: Features.
        heads: Heads.
        causal: Whether a position sees only those before it.
    """

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Transform, [batch, length, width]."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


@final
class Decoder(nn.Module):
    """A GPT-2-like language model.

    Args:
        vocabulary: Tokens.
        length: Most tokens in a sequence.
        layers: Blocks.
        width: Features.
        heads: Heads.
    """

    def __init__(self, vocabulary: int, length: int, layers: int, width: int, heads: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads, causal=True) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [batch, length, vocabulary] of tokens [batch, length]."""
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


@final
class VisionTransformer(nn.Module):
    """A transformer over patches of an image.

    Args:
        image: Pixels a side.
        patch: Pixels a side of a patch.
        layers: Blocks.
        width: Features.
        heads: Heads.
        classes: Classes.
        channels: Of the image.
    """

    def __init__(
        self, image: int, patch: int, layers: int, width: int, heads: int, classes: int, channels: int = 3
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.positions = nn.Parameter(0.02 * torch.randn(1, (image // patch) ** 2, width))
        self.blocks = nn.ModuleList(Block(width, heads, causal=False) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, classes] of images [batch, channels, image, image]."""
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


@final
class Residual(nn.Module):
    """Two 3 x 3 convolutions with batch norm and a shortcut.

    Args:
        channels: In.
        width: Out.
        stride: Of the first convolution.
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.short: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            project = nn.Conv2d(channels, width, 1, stride=stride, bias=False)
            self.short = nn.Sequential(project, nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """Transform, [batch, channels, height, width]."""
        y = functional.relu(self.norm1(self.conv1(x)), inplace=True)
        return functional.relu(self.norm2(self.conv2(y)) + self.short(x), inplace=True)


def resnet(width: int, blocks: int, stages: int, classes: int) -> nn.Sequential:
    """A residual network; width 64, 2 blocks in each of 4 stages is ResNet-18.

    Args:
        width: Channels of the first stage; each stage doubles them.
        blocks: In a stage.
        stages: The first keeps the size, each further one halves it.
        classes: Classes.
    """
    stem = (nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
    body: list[nn.Module] = []
    channels = width
    for stage in range(stages):
        for index in range(blocks):
            body.append(Residual(channels, width << stage, 2 if stage and not index else 1))
            channels = width << stage
    ends = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
    return nn.Sequential(*stem, nn.MaxPool2d(3, stride=2, padding=1), *body, *ends)


def small_cnn(width: int = 16, image: int = 8, classes: int = 10) -> nn.Sequential:
    """Two convolutions with batch norm, ReLU and max-pooling, and a linear layer, for grey images.

    Args:
        width: Channels after the first convolution.
        image: Pixels a side.
        classes: Classes.
    """
    layers: list[nn.Module] = []
    for channels, out in ((1, width), (width, 2 * width)):
        convolution = nn.Conv2d(channels, out, 3, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(out), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(2 * width * (image // 4) ** 2, classes))


def mlp(kind: Mlp, width: int, layers: int) -> nn.Sequential:
    """Linear layers of one width with something between them, and one number at the end.

    Args:
        kind: Nothing, GELU, layer norm and GELU, or ReLU.
        width: Features.
        layers: Hidden layers.
    """
    between: dict[str, Callable[[], list[nn.Module]]] = {
        "linear": list,
        "gelu": lambda: [nn.GELU()],
        "norm-gelu": lambda: [nn.LayerNorm(width), nn.GELU()],
        "relu": lambda: [nn.ReLU()],
    }
    parts: list[nn.Module] = []
    for _ in range(layers):
        parts += [nn.Linear(width, width), *between[kind]()]
    return nn.Sequential(*parts, nn.Linear(width, 1))


def graph_network(kind: Literal["GCN", "GAT"], features: int, width: int, classes: int) -> nn.Module:
    """Two graph convolutions or attentions with ELU and dropout, by torch_geometric; called with (x, edge_index).

    Args:
        kind: Which.
        features: Of a node.
        width: Hidden features.
        classes: Classes.
    """
    from torch_geometric.nn import GAT, GCN

    settings = {"dropout": 0.5, "act": "elu"}
    if kind == "GCN":
        return GCN(features, width, num_layers=2, out_channels=classes, **settings)
    return GAT(features, width, num_layers=2, out_channels=classes, heads=2, **settings)

"""Small models with batch normalisation, dropout and attention: what is hard to execute twice."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

Loss = Callable[[Tensor, Tensor], Tensor]
Sample = tuple[Tensor, Tensor]


class Residual(nn.Module):
    """Two convolutions with batch normalisation, and a shortcut; one sum in place.

    Args:
        inside: Channels that come in.
        outside: Channels that go out.
        stride: Of the first convolution.
    """

    def __init__(self, inside: int, outside: int, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(outside) for _ in range(2)])
        self.side: nn.Module = nn.Identity()
        if stride > 1 or inside != outside:
            self.side = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        """Of images."""
        y = self.norms[1](self.second(functional.relu(self.norms[0](self.first(x)), inplace=True)))
        y += self.side(x)
        return functional.relu(y)


def convnet(
    width: int = 16, image: int = 32, batch: int = 8, depth: int = 2, blocks: int = 3
) -> tuple[nn.Module, Loss, Sample]:
    """A residual network with dropout, its loss, and a batch of noise.

    Args:
        width: Channels of the first stage; doubled from stage to stage.
        image: Pixels a side.
        batch: Images.
        depth: Stages.
        blocks: Blocks in a stage.

    Example:
        >>> model, loss_fn, (images, labels) = convnet(4, 8, 2, 1, 1)
        >>> loss_fn(model(images), labels).shape
        torch.Size([])
    """
    widths = [width, *(width << stage for stage in range(depth) for _ in range(blocks))]
    body = [Residual(a, b, 1 if a == b else 2) for a, b in pairwise(widths)]
    stem = [nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(widths[-1], 10)]
    model = nn.Sequential(*stem, *body, *head)
    return model, functional.cross_entropy, (torch.randn(batch, 3, image, image), torch.randint(10, (batch,)))


def encoder(width: int = 64, length: int = 64, batch: int = 4, depth: int = 2) -> tuple[nn.Module, Loss, Sample]:
    """A transformer encoder with dropout, its loss, and a batch of noise.

    Args:
        width: Features; 16 a head.
        length: Tokens.
        batch: Sequences.
        depth: Layers.

    Example:
        >>> model, loss_fn, (tokens, targets) = encoder(16, 4, 2, 1)
        >>> loss_fn(model(tokens), targets).shape
        torch.Size([])
    """
    layer = nn.TransformerEncoderLayer(width, max(width // 16, 1), 4 * width, 0.1, "gelu", batch_first=True)
    model = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
    return model, functional.mse_loss, (torch.randn(batch, length, width), torch.randn(batch, length, width))


def perceptron(width: int = 64, batch: int = 256, depth: int = 4) -> tuple[nn.Module, Loss, Sample]:
    """A perceptron with dropout, its loss, and a batch of noise.

    Args:
        width: Features.
        batch: Rows.
        depth: Hidden layers.

    Example:
        >>> model, loss_fn, (rows, targets) = perceptron(4, 2, 1)
        >>> loss_fn(model(rows), targets).shape
        torch.Size([])
    """
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), nn.Tanh(), nn.Dropout(0.1)]
    model = nn.Sequential(*layers, nn.Linear(width, 1))
    return model, functional.mse_loss, (torch.randn(batch, width), torch.randn(batch, 1))


MODELS: dict[str, Callable[..., tuple[nn.Module, Loss, Sample]]] = {
    "convnet": convnet, "encoder": encoder, "perceptron": perceptron,
}  # fmt: skip
"""Built-in models by name."""

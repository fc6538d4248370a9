"""Train a small language model on compressed activations: what is kept, what the gradient feels, what the loss does."""

from pydoc_data.topics import topics

import numpy as np
import torch
from torch import nn
from torch.nn import functional

import gact

LENGTH, WIDTH, STEPS = 64, 64, 30
text = torch.from_numpy(np.frombuffer("\n".join(topics.values()).encode("ascii", "ignore"), np.uint8).copy()).long()


class Model(nn.Module):
    """A byte-level transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(128, WIDTH), nn.Embedding(LENGTH, WIDTH)
        layer = nn.TransformerEncoderLayer(
            WIDTH, 4, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 128)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        return self.head(self.body(self.tokens(tokens) + self.positions.weight, mask=mask, is_causal=True))


def batch(rng: np.random.Generator) -> torch.Tensor:
    """Sixteen passages."""
    starts = torch.from_numpy(rng.integers(0, len(text) - LENGTH - 1, 16))
    return text[starts[:, None] + torch.arange(LENGTH + 1)]


def loss_of(model: nn.Module, passages: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each next byte."""
    return functional.cross_entropy(model(passages[:, :-1]).flatten(0, 1), passages[:, 1:].flatten())


def train(bits: int | str | None) -> float:
    """Train from the same start; return the mean loss of the last ten steps."""
    torch.manual_seed(0)
    model, rng, losses = Model(), np.random.default_rng(0), []
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    compressor = gact.ActivationCompressor(model, bits or 8)
    for _ in range(STEPS):
        optimiser.zero_grad()
        if bits is None:
            loss = loss_of(model, batch(rng))
        else:
            with compressor:  # the one line around the forward pass
                loss = loss_of(model, batch(rng))
        loss.backward()
        if bits is not None:
            compressor.step()  # optional: learn again when the gradients have changed much
        optimiser.step()
        losses.append(float(loss.detach()))
    if bits is not None:
        print(f"{bits!s:>8}: {compressor.report().summary()}")
    return float(np.mean(losses[-10:]))


torch.manual_seed(0)
model, passages = Model(), batch(np.random.default_rng(1))
census = gact.estimate(model, closure=lambda: loss_of(model, passages))  # before training: what would be saved
print(census.text(most=5))
final = {bits: train(bits) for bits in (None, 8, "auto:4", "auto:2")}
for bits, loss in final.items():
    print(f"{'plain' if bits is None else bits!s:>8}: final loss {loss:.3f}")

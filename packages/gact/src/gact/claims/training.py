"""Data that come with packages, and one training loop for all modes of compression."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from gact.claims.models import seeded
from gact.compressor import ActivationCompressor

MODES = ("plain", "8", "auto:4", "auto:2", "2")
MIN_BYTES = 1024  # small models have small tensors; by default those below 16 KiB would stay exact


@dataclass(frozen=True, eq=False)
class Labelled:
    """Inputs and classes, to learn from and to be judged by."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


@lru_cache(maxsize=1)
def digits() -> Labelled:
    """scikit-learn's handwritten digits, half and half: images [n, 1, 8, 8] in 0..1."""
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    images = torch.from_numpy(found.images).float().unsqueeze(1) / 16
    labels = torch.from_numpy(found.target).long()
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(labels)))
    known, unknown = order[: len(order) // 2], order[len(order) // 2 :]
    return Labelled(images[known], labels[known], images[unknown], labels[unknown])


@lru_cache(maxsize=1)
def text() -> Tensor:
    """Bytes of the help texts that come with Python: English prose and grammar, shape [about 460,000]."""
    from pydoc_data.topics import topics

    joined = "\n".join(topics[name] for name in sorted(topics)).encode("ascii", "ignore")
    return torch.from_numpy(np.frombuffer(joined, np.uint8).copy()).long()


def passages(length: int, batch: int, rng: np.random.Generator, part: str = "train") -> Tensor:
    """Pieces of the text, shape [batch, length + 1].

    Args:
        length: Bytes to predict.
        batch: Pieces.
        rng: Where they begin.
        part: ``"train"``, the first nine tenths, or ``"test"``, the rest.
    """
    whole = text()
    border = len(whole) * 9 // 10
    low, high = (0, border) if part == "train" else (border, len(whole))
    starts = torch.from_numpy(rng.integers(low, high - length - 1, batch))
    return whole[starts[:, None] + torch.arange(length + 1)]


def next_byte_loss(model: nn.Module, pieces: Tensor) -> Tensor:
    """Cross-entropy of each next byte, nats."""
    return functional.cross_entropy(model(pieces[:, :-1]).flatten(0, 1), pieces[:, 1:].flatten())


def knn_edges(features: Tensor, neighbours: int = 8) -> Tensor:
    """Edges between every row and its nearest others, in both directions, shape [2, edges]."""
    distance = torch.cdist(features, features)
    distance.fill_diagonal_(float("inf"))
    near = distance.topk(neighbours, largest=False).indices
    source = torch.arange(len(features)).repeat_interleave(neighbours)
    pairs = torch.stack([source, near.flatten()])
    return torch.unique(torch.cat([pairs, pairs.flip(0)], dim=1), dim=1)


def compressor(model: nn.Module, mode: str, seed: int) -> ActivationCompressor | None:
    """A compressor in a mode; None for plain training.

    Args:
        model: The model.
        mode: ``"plain"``, a number of bits, or what else a compressor takes as bits.
        seed: Of the rounding.
    """
    if mode == "plain":
        return None
    return ActivationCompressor(model, int(mode) if mode.isdigit() else mode, seed=seed, min_bytes=MIN_BYTES)


def fit(
    model: nn.Module, loss_of: Callable[[int], Tensor], mode: str, steps: int, *, lr: float, seed: int
) -> list[float]:
    """Train by AdamW with a linearly falling rate.

    Args:
        model: Trained in place.
        loss_of: From the number of a step to its loss; what it draws must depend on nothing else.
        mode: See `compressor`.
        steps: Optimiser steps.
        lr: First learning rate.
        seed: Of dropout and rounding.

    Returns:
        Loss of every step.
    """
    used = compressor(model, mode, seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    losses = []
    with seeded(seed):
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = lr * (1 - step / steps)
            optimiser.zero_grad()
            with used if used is not None else nullcontext():
                loss = loss_of(step)
            loss.backward()
            if used is not None:
                used.step(float(loss.detach()))
            optimiser.step()
            losses.append(float(loss.detach()))
    return losses


def gradient(loss: Tensor, model: nn.Module) -> Tensor:
    """Gradient with respect to all parameters as one vector of doubles."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]).double()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients."""
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train()


def paired_drops(scores: Mapping[str, list[float]]) -> dict[str, np.ndarray]:
    """Plain minus mode, seed by seed, for all modes but plain."""
    plain = np.array(scores["plain"])
    return {mode: plain - np.array(values) for mode, values in scores.items() if mode != "plain"}

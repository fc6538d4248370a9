"""Variance of the gradient with adaptive against fixed bits at equal bytes, by Monte Carlo over the rounding.

Runs on cpu and cuda; needs scikit-learn for its digits.
"""

import harness  # isort: skip  (one thread: before numpy)

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, final

import measure
import numpy as np
import torch
from peers import Prepared, plain
from sklearn.datasets import load_digits
from torch import Tensor, nn
from workloads import Block, Workload

from common_core.stats import Estimate, bootstrap

NAME = "bench_adaptive"
DEVICES = ("cpu", "cuda")
DRAWS = {"quick": 3, "cpu": 40, "gpu": 200}
TRAINED = {"quick": 2, "cpu": 200, "gpu": 200}
SETTINGS = {"quick": (2,), "cpu": (2, 4), "gpu": (2, 4)}
GOALS = {"GELU transformer": 1 / 3, "CNN": 1.0}
NOTES = (
    "Real images: scikit-learn's 8 x 8 digits. Each model is first trained by plain torch (Adam, 200 steps), then one "
    "batch of 512 and its dropout are held fixed and only the rounding is drawn anew. Variance: trace of the "
    "covariance of the whole gradient. Adaptive bits get as a budget the bytes that the report gives for the fixed "
    "ones, exact forms and group ends included, and are calibrated once on the same batch. Bytes: measured, what a "
    "forward pass leaves allocated. Intervals: bootstrap over the draws. Ratios: adaptive / fixed. 'predicted' is the "
    "report's own variance for the same bits. ReLU and pooling are kept in exact forms."
)


@final
class DigitsTransformer(nn.Module):
    """One GELU block over the rows of an image."""

    def __init__(self, layers: int = 1, width: int = 64, dropout: float = 0.1) -> None:
        super().__init__()
        self.rows, self.positions = nn.Linear(8, width), nn.Parameter(0.02 * torch.randn(1, 8, width))
        self.blocks = nn.Sequential(*(Block(width, 4, False, dropout) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.rows(x) + self.positions)).mean(1))


@final
class DigitsCNN(nn.Module):
    """Convolution, batch norm, ReLU and pooling, twice."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)),
            nn.Sequential(nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU()),
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(32 * width, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x[:, None]))


def trained(name: str, device: str, steps: int, seed: int = 0) -> Workload:
    """One of the two models after some training, with a fixed batch."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32, device=device) / 16
    labels = torch.tensor(digits.target, device=device)
    devices = [] if device == "cpu" else None
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        model = (DigitsCNN() if name == "CNN" else DigitsTransformer()).to(device)
        optimiser = torch.optim.Adam(model.parameters(), 1e-3)
        for _ in range(steps):
            index = torch.randint(len(images), (128,)).to(device)
            optimiser.zero_grad()
            Workload(name, model, images[index], labels[index], ()).loss().backward()
            optimiser.step()
        index = torch.randperm(len(images))[:512].to(device)
    return Workload(name, model, images[index], labels[index], tuple(model.blocks))


@dataclass(frozen=True)
class Spread:
    """What the rounding does to a gradient.

    Args:
        squares: ‖g_k − ḡ‖² K/(K−1) of each of K draws, of which the mean estimates the variance.
        nbytes: Bytes of the report.
        held: Bytes that a forward pass really leaves allocated.
        predicted: Variance that the report predicts, or None.
        bits: How many stored tensors have how many bits.
    """

    squares: np.ndarray
    nbytes: int
    held: int
    predicted: float | None
    bits: dict[str, int]


def spread(workload: Workload, bits: int | str, draws: int) -> Spread:
    """Draw the rounding `draws` times for one setting."""
    compressor: Any = import_module("gact").ActivationCompressor(workload.model, bits=bits, min_bytes=4096)
    if isinstance(bits, str):
        compressor.calibrate(workload.loss)

    def forward() -> Tensor:
        with compressor:
            return workload.loss()

    gradients = torch.stack([measure.gradient(workload, Prepared(forward)) for _ in range(draws)])
    squares = (gradients - gradients.mean(0)).square().sum(1) * draws / (draws - 1)
    report = compressor.report()
    used = [f"{row.bits:g} bits" for row in report.rows if row.form == "affine" and row.nbytes]
    counts = {width: used.count(width) for width in sorted(set(used))}
    held = measure.held(workload, Prepared(forward))
    return Spread(squares.cpu().numpy(), report.saved_bytes, held, report.predicted_variance, counts)


def ratio(ours: np.ndarray, peer: np.ndarray) -> Estimate:
    """Ratio of two means over independent draws, with its interval."""
    rows = np.stack([ours, peer], axis=1)
    return bootstrap(rows, lambda r: r[:, 0].mean() / r[:, 1].mean(), rng=np.random.default_rng(0))


def rows_of(workload: Workload, width: int, draws: int, judge: bool) -> list[harness.Row]:
    """Adaptive against one fixed width."""
    exact = measure.gradient(workload, plain().prepare(workload))
    fixed = spread(workload, width, draws)
    adaptive = spread(workload, f"bytes:{fixed.nbytes}B", draws)
    scale = float(exact.square().sum())
    goal = GOALS[workload.name] if judge else None
    label = f"{workload.name}, bytes of {width} bits"
    columns = {
        "predicted": {"adaptive": adaptive.predicted, "fixed": fixed.predicted},
        "bits": adaptive.bits,
        "gradient_square": scale,
    }
    means = float(adaptive.squares.mean()), float(fixed.squares.mean())
    found = ratio(adaptive.squares, fixed.squares)
    used = adaptive.held, fixed.held
    return [
        harness.row(f"{label}: variance", *means, "fixed bits", found, goal, "squared gradient", **columns),
        harness.row(f"{label}: bytes", *used, "fixed bits", used[0] / used[1], 1.0 if judge else None, "B"),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    args = harness.options(NAME, argv)
    rows = []
    for name in GOALS:
        workload = trained(name, args.device, TRAINED[args.scale])
        for width in SETTINGS[args.scale]:
            some = rows_of(workload, width, DRAWS[args.scale], not args.quick)
            print(*map(harness.line, some), sep="\n", flush=True)
            rows += some
    harness.save(NAME, args, rows, NOTES, ["scikit-learn"])


if __name__ == "__main__":
    main()

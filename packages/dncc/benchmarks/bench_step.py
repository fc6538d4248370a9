"""Time and parameters of one training step of an ensemble against the single network it is made from."""

import harness  # isort: skip  (one thread: before numpy)

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from dncc.batch_ensemble import batch_ensemble
from dncc.branching import branch_at
from dncc.ensembles import EnsembleModule
from dncc.losses import DNCCLoss
from dncc.multihead import MultiHead
from dncc.separate import SeparateNetworks
from dncc.stacking import Execution

NAME = "bench_step"
GOAL = 1.1  # times the single network's time and parameters, for heads on a shared trunk
SINGLE = "one ResNet-18"
NOTES = (
    "A step is forward, loss, backward and SGD with momentum on one batch of random 32 x 32 images, in float32. The "
    "network is torchvision's ResNet-18 with random weights: on the CPU with its own stem, which leaves the trunk "
    "little to do at this size, so that heads weigh more; on CUDA with a 3 x 3 stem of stride 1 and no max-pooling. "
    "The single network is trained with cross-entropy, ensembles with DNCCLoss(lam=0.5). Ratios are taken within "
    "interleaved pairs. Heads, rank-one members and branches see the same batch as the single network; a row against "
    "loop compares the two ways to run stacked members."
)


@dataclass(frozen=True)
class Size:
    """How large the benchmark is.

    Args:
        batch: Images a step.
        classes: Number of classes.
        repeats: Interleaved pairs.
        small_stem: Whether the network keeps the resolution of small images.
    """

    batch: int
    classes: int
    repeats: int
    small_stem: bool


SIZES = {"quick": Size(2, 10, 2, False), "cpu": Size(64, 100, 20, False), "cuda": Size(256, 100, 50, True)}


def network(size: Size) -> nn.Module:
    """The single network."""
    model = resnet18(num_classes=size.classes)
    if size.small_stem:
        model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    return model


def perceptron() -> nn.Module:
    """A small network without convolutions."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def step(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    """A call that makes one training step and returns the loss."""
    optimiser = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9, weight_decay=5e-4)
    ensemble_loss = DNCCLoss(lam=0.5)

    def call() -> Tensor:
        optimiser.zero_grad(set_to_none=True)
        logits = model(x)
        if isinstance(model, EnsembleModule):
            loss = ensemble_loss(logits, y).loss
        else:
            loss = nn.functional.cross_entropy(logits, y)
        loss.backward()
        optimiser.step()
        return loss.detach()

    return call


def ensembles(size: Size) -> dict[str, tuple[Callable[[], EnsembleModule], float | None]]:
    """Every ensemble by its name, and the goal where there is one."""
    classes = size.classes
    return {
        "8 heads, partition": (lambda: MultiHead(network(size), classes, 8), GOAL),
        "8 heads, partition, hidden 64": (lambda: MultiHead(network(size), classes, 8, hidden=(64,)), GOAL),
        "8 heads, full": (lambda: MultiHead(network(size), classes, 8, "full"), GOAL),
        "8 heads, full, hidden 64": (lambda: MultiHead(network(size), classes, 8, "full", hidden=(64,)), GOAL),
        "4 branches at layer4": (lambda: branch_at(network(size), "layer4", 4), None),
        "4 branches at layer4.1": (lambda: branch_at(network(size), "layer4.1", 4), None),
        "4 rank-one members": (lambda: batch_ensemble(network(size), 4), None),
        "4 separate networks": (lambda: SeparateNetworks(lambda: network(size), 4), None),
    }


def stacked(size: Size) -> dict[str, Callable[[Execution], EnsembleModule]]:
    """Ensembles with stacked members, by the way they are run."""
    return {
        "4 branches at layer4": lambda how: branch_at(network(size), "layer4", 4, execution=how),
        "4 separate networks": lambda how: SeparateNetworks(lambda: network(size), 4, execution=how),
        "8 separate perceptrons": lambda how: SeparateNetworks(perceptron, 8, execution=how),
    }


def parameters(model: nn.Module) -> int:
    """Number of trained parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    args = harness.options(NAME, argv, devices=("cpu", "cuda"))
    size = SIZES["quick" if args.quick else args.device]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.randn(size.batch, 3, 32, 32, device=args.device)
    y = torch.randint(10, (size.batch,), device=args.device)
    options = {"repeats": size.repeats, "min_time_s": 0.0 if args.quick else 0.1}
    rows = []
    for name, (build, goal) in ensembles(size).items():
        single, model = network(size).to(args.device), build().to(args.device)
        goal = None if args.quick else goal
        counts = parameters(model), parameters(single)
        rows.append(harness.row(f"{name}: parameters", *counts, SINGLE, counts[0] / counts[1], goal, "parameters"))
        rows.append(harness.compare(f"{name}: step", step(model, x, y), step(single, x, y), SINGLE, goal, **options))
    for name, build in stacked(size).items():
        ours, peer = (step(build(how).to(args.device), x, y) for how in ("vmap", "loop"))
        rows.append(harness.compare(f"{name}, vmap: step", ours, peer, "the same in a loop", **options))
    harness.save(NAME, args, rows, NOTES, ["torchvision"])


if __name__ == "__main__":
    main()

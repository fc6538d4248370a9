"""The methods of the quality benchmark: how each is built, and what it is trained with."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import quality_peers as peers
from quality_data import Task, single_layers, trunk_layers
from torch import nn

from dncc.branching import Branching
from dncc.guarding import GuardedLambda
from dncc.losses import ADPLoss, DNCCLoss, IndependentLoss
from dncc.multihead import MultiHead
from dncc.separate import SeparateNetworks

HEADS, NETWORKS = 8, 4  # members of shared trunks, and of what costs as many times more
LAMBDAS = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0)
Aggregate = Literal["arithmetic", "geometric"]


@dataclass(frozen=True)
class Method:
    """A way to get an ensemble.

    `family` is "dncc" for 0 < lambda < 1 on one shared trunk, "endpoint" for lambda 0 and 1 there, "networks" for whole
    networks, and "peer" for everything else.
    """

    name: str
    family: str
    build: Callable[[Task], nn.Module]
    loss: Callable[[], Any]
    lam: float | None = None
    own_training: bool = False  # trained by the peer's own loop
    images_only: bool = False


def heads(mode: str) -> Callable[[Task], nn.Module]:
    """Eight heads that share the features out; or heads that each read all: four on averaged maps, eight on vectors."""

    def build(task: Task) -> nn.Module:
        trunk, features = trunk_layers(task, averaged=mode == "full")
        members = NETWORKS if mode == "full" and task.images else HEADS
        options = {"in_features": features, "dropout": task.dropout}
        return MultiHead(nn.Sequential(*trunk), task.classes, members, mode, **options)

    return build


def branches(task: Task) -> nn.Module:
    """The last block of the trunk and the classifier once for each of four members."""
    layers = single_layers(task)
    at = 6 if task.images else 1
    return Branching(nn.Sequential(*layers[:at]), nn.Sequential(*layers[at:]), NETWORKS, num_classes=task.classes)


def networks(task: Task) -> nn.Module:
    """Four whole networks."""
    return SeparateNetworks(lambda: nn.Sequential(*single_layers(task)), NETWORKS)


def single(averaged: bool) -> Callable[[Task], nn.Module]:
    """One network."""
    return lambda task: nn.Sequential(*single_layers(task, averaged))


def dncc(lam: float, aggregate: Aggregate = "arithmetic", reduction: str = "mean") -> Callable[[], Any]:
    """The loss of a lambda."""
    return lambda: DNCCLoss(lam, aggregate=aggregate, reduction=reduction, validate=False)


def guarded() -> Any:
    """The loss with the guard, from 0.95 down."""
    return DNCCLoss(GuardedLambda(start=0.95), validate=False)


def _shared() -> list[Method]:
    found = []
    for mode in ("partition", "full"):
        for lam in LAMBDAS:
            family = "dncc" if 0 < lam < 1 else "endpoint"
            found.append(Method(f"{mode}, lambda {lam:g}", family, heads(mode), dncc(lam), lam))
        for lam in (0.5, 0.9) if mode == "partition" else (0.9,):
            name = f"{mode}, geometric, lambda {lam:g}"
            found.append(Method(name, "dncc", heads(mode), dncc(lam, "geometric"), lam))
    found.append(Method("partition, guarded", "guarded", heads("partition"), guarded))
    found.append(Method("full, ADP", "peer", heads("full"), lambda: ADPLoss(validate=False)))
    return found


def _large() -> list[Method]:
    found = []
    for lam in (0.0, 0.5, 0.9):
        name = "4 networks (deep ensemble)" if lam == 0 else f"4 networks, lambda {lam:g}"
        found.append(Method(name, "networks", networks, dncc(lam, reduction="sum"), lam))
    found.append(Method("4 branches, lambda 0.9", "networks", branches, dncc(0.9), 0.9))
    found.append(Method("4 networks, ADP", "networks", networks, lambda: ADPLoss(reduction="sum", validate=False)))
    for name, kind in (("torchensemble voting", "voting"), ("torchensemble fusion", "fusion")):
        found.append(Method(name, "networks", peers.torchensemble(kind, NETWORKS), IndependentLoss, own_training=True))
    return found


def _light() -> list[Method]:
    alone = dncc(0.0)
    return [
        Method("single", "peer", single(False), alone),
        Method("single, averaged maps", "peer", single(True), alone, images_only=True),
        Method("MC dropout", "peer", peers.mc_dropout(HEADS), alone),
        Method("packed ensemble", "peer", peers.packed(NETWORKS), alone),
        Method("BatchEnsemble", "peer", peers.batch_ensemble(), alone),
    ]


METHODS = {method.name: method for method in (*_light(), *_shared(), *_large())}


def methods_of(task: Task) -> list[Method]:
    """The methods that make sense for a task."""
    return [method for method in METHODS.values() if task.images or not method.images_only]

"""The peers' ensembles, from torch-uncertainty's and torchensemble's own layers, wrappers and training loop."""

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from quality_data import Task, single_layers
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

# Dropout of the Monte-Carlo peer where the task's network has none: without dropout it would be the single network.
MC_RATE = 0.2
BUDGET = 1.12  # times the parameters of the single network: 1.1, rounded up so that BatchEnsemble fits everywhere


class Unpacked(nn.Module):
    """A torch-uncertainty model, which packs members in the batch, as member-first logits."""

    def __init__(self, packed: nn.Module, members: int, members_in_training: int | None = None) -> None:
        super().__init__()
        self.packed, self.members, self.in_training = packed, members, members_in_training or members

    def forward(self, x: Tensor) -> Tensor:
        members = self.in_training if self.training else self.members
        return self.packed(x).unflatten(0, (members, len(x)))


def mc_dropout(members: int) -> Callable[[Task], nn.Module]:
    """The single network with dropout before the last layer (and where the task has it), kept on when predicting."""

    def build(task: Task) -> nn.Module:
        from torch_uncertainty.methods import mc_dropout as wrapped

        layers = single_layers(task)
        layers[-2] = nn.Dropout(task.dropout or MC_RATE)
        return Unpacked(wrapped(nn.Sequential(*layers), num_estimators=members), members, 1)

    return build


def batch_ensemble() -> Callable[[Task], nn.Module]:
    """The single network with rank-one factors for two to four members, as fit; every sample trains every member."""

    def build(task: Task) -> nn.Module:
        from torch_uncertainty.methods import batch_ensemble as wrapped

        found = None
        for members in (4, 3, 2):
            core = nn.Sequential(*single_layers(task))
            found = Unpacked(wrapped(core, members, repeat_training_inputs=True, convert_layers=True), members)
            if weights(found) <= BUDGET * weights(nn.Sequential(*single_layers(task))):
                break
        assert found is not None
        return found

    return build


def packed(members: int) -> Callable[[Task], nn.Module]:
    """The single network in grouped layers, as many times as wide as fits, one to two."""

    def build(task: Task) -> nn.Module:
        plain = nn.Sequential(*single_layers(task))
        found = None
        for alpha in (2.0, 1.75, 1.5, 1.25, 1.0):
            with contextlib.suppress(ValueError):  # widths that the members do not divide
                found = Unpacked(nn.Sequential(*_packed_layers(list(plain), members, alpha)), members)
            if found is not None and weights(found) <= BUDGET * weights(plain):
                break
        assert found is not None
        return found

    return build


def _packed_layers(plain: list[nn.Module], members: int, alpha: float) -> list[nn.Module]:
    from torch_uncertainty.layers import PackedConv2d, PackedLinear

    layers: list[nn.Module] = []
    dense = [layer for layer in plain if isinstance(layer, nn.Conv2d | nn.Linear)]
    options: dict[str, Any] = {"alpha": alpha, "num_estimators": members}
    for layer in plain:
        ends = {"first": layer is dense[0], "last": layer is dense[-1]}
        if isinstance(layer, nn.Conv2d):
            shape = (layer.in_channels, layer.out_channels, layer.kernel_size)
            rest = {"stride": layer.stride, "padding": layer.padding, "bias": False, "minimum_channels_per_group": 1}
            layers.append(PackedConv2d(*shape, **options, **rest, **ends))
            wide = layers[-1].conv.out_channels
        elif isinstance(layer, nn.Linear):
            layers.append(PackedLinear(layer.in_features, layer.out_features, **options, **ends))
        elif isinstance(layer, nn.BatchNorm2d):
            layers.append(nn.BatchNorm2d(wide))
        else:
            layers.append(layer)
    return layers


def weights(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


class Torchensemble(nn.Module):
    """A torchensemble classifier as member-first logits, trained by its own `fit`."""

    def __init__(self, kind: str, members: int, task: Task) -> None:
        super().__init__()
        self.kind, self.members, self.task = kind, members, task
        self.networks = nn.ModuleList()

    @property
    def aggregate(self) -> str:
        """Fusion averages scores before the softmax, voting probabilities."""
        return "geometric" if self.kind == "fusion" else "arithmetic"

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([network(x) for network in self.networks])

    def train_itself(self, train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], rate: float, seed: int) -> None:
        """Its own loop, schedule and choice of the best epoch (by validation accuracy)."""
        import torchensemble

        task, generator = self.task, torch.Generator().manual_seed(seed)
        make = {"fusion": torchensemble.FusionClassifier, "voting": torchensemble.VotingClassifier}[self.kind]
        logging.disable(logging.WARNING)
        quiet = contextlib.redirect_stdout(io.StringIO())
        with tempfile.TemporaryDirectory() as folder, quiet, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of schedulers and tensors, inside the peer
            size = self.task.batch_size
            batches = DataLoader(TensorDataset(*train), size, shuffle=True, drop_last=True, generator=generator)
            model = make(estimator=Network, estimator_args={"task": task}, n_estimators=self.members, cuda=False)
            model.set_optimizer("AdamW", lr=rate, weight_decay=task.weight_decay)
            model.set_scheduler("CosineAnnealingLR", T_max=task.epochs)
            model.fit(batches, task.epochs, 10**6, DataLoader(TensorDataset(*val), 256), True, folder)
            (file,) = Path(folder).iterdir()
            saved = torch.load(file, weights_only=False)["model"]  # the peer's own file, of this moment
        self.networks = nn.ModuleList([Network(task) for _ in range(self.members)])
        own = {name.removeprefix("estimators_."): value for name, value in saved.items()}
        self.networks.load_state_dict(own)


class Network(nn.Sequential):
    """The single network, as torchensemble builds its members."""

    def __init__(self, task: Task) -> None:
        super().__init__(*single_layers(task))


def torchensemble(kind: str, members: int) -> Callable[[Task], nn.Module]:
    """Voting (independent networks) or fusion (their average trained as one)."""
    return lambda task: Torchensemble(kind, members, task)

"""Other libraries' ensembles are special cases: the same predictions, gradients and trained weights."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dncc.aggregation import aggregate_log_proba, log_softmax, unpack_members
from dncc.heads import Heads
from dncc.losses import DNCCLoss, IndependentLoss
from dncc.separate import SeparateNetworks
from dncc.training import fit

pytestmark = pytest.mark.peer
M, N, CLASSES = 3, 40, 4


class Network(nn.Sequential):
    """A member."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, CLASSES))


@pytest.fixture
def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(N, 5, generator=generator), torch.randint(CLASSES, (N,), generator=generator)


@pytest.fixture
def quiet() -> Iterator[None]:
    """torchensemble prints, logs, and warns of its own use of torch."""
    logging.disable(logging.CRITICAL)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


def trained_by_peer(kind: str, epochs: int, x: torch.Tensor, y: torch.Tensor) -> tuple[Any, list[nn.Module]]:
    """A torchensemble model after full-batch gradient descent, and its members as they were at the start."""
    import torchensemble

    started = []

    class Noted(Network):
        def __init__(self) -> None:
            super().__init__()
            started.append(Network())
            started[-1].load_state_dict(self.state_dict())

    torch.manual_seed(1)
    peer = getattr(torchensemble, kind)(estimator=Noted, n_estimators=M, cuda=False)
    peer.set_optimizer("SGD", lr=0.5)
    peer.fit(DataLoader(TensorDataset(x, y), N), epochs, 10**6, None, False)
    return peer, started[:M]


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    ("kind", "loss", "aggregate"),
    [
        # Fusion averages scores before the softmax: the geometric mean, trained end to end.
        ("FusionClassifier", DNCCLoss(1.0, aggregate="geometric"), "geometric"),
        # Voting trains each member alone; summed over members, one step is one step of each.
        ("VotingClassifier", IndependentLoss(reduction="sum"), "arithmetic"),
    ],
)
def test_torchensemble_is_an_end_of_lambda(kind: str, loss: Any, aggregate: Any, data: Any) -> None:
    x, y = data
    peer, started = trained_by_peer(kind, 5, x, y)
    ours = SeparateNetworks(started)
    options: dict[str, Any] = {"optimiser": torch.optim.SGD, "schedule": "constant", "lr": 0.5}
    fit(ours, loss, (x, y), epochs=5, batch_size=N, **options)
    for mine, theirs in zip(ours.unstack(), peer.estimators_, strict=True):
        for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.predict_proba(x, aggregate), peer.predict(x), rtol=1e-5, atol=1e-6)


def test_deep_ensembles_pack_members_first(data: Any) -> None:
    from torch_uncertainty.methods import deep_ensembles

    networks = [Network() for _ in range(M)]
    packed = deep_ensembles(networks)(data[0])
    ours = SeparateNetworks(networks)
    torch.testing.assert_close(unpack_members(packed, M), ours(data[0]), rtol=1e-5, atol=1e-6)
    theirs = unpack_members(packed.softmax(-1), M).mean(0)  # what its routine predicts
    torch.testing.assert_close(aggregate_log_proba(log_softmax(ours(data[0]))).exp(), theirs)


def test_partition_heads_are_a_packed_last_layer() -> None:
    from torch_uncertainty.layers import PackedLinear

    peer = PackedLinear(12, CLASSES, alpha=1, num_estimators=M, last=True)
    ours = Heads(12, CLASSES, M, "partition")
    with torch.no_grad():
        ours.last.weight.copy_(peer.weight)
        ours.last.bias.copy_(peer.bias.view(M, CLASSES))
    x = torch.randn(N, 12)
    torch.testing.assert_close(ours(x), unpack_members(peer(x), M), rtol=1e-5, atol=1e-6)

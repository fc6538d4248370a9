"""Stacked networks equal networks run and trained on their own; what cannot be stacked runs in a loop."""

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dncc.losses import DNCCLoss
from dncc.separate import LoopNetworks, SeparateNetworks, separate_networks
from dncc.stacking import StackedModule, architecture_difference, checked_execution

EXECUTIONS: list[Any] = ["auto", "loop", "vmap"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def convolutional() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                         nn.Linear(16, 3)).double()  # fmt: skip


def perceptron() -> nn.Module:
    layers = (nn.Flatten(), nn.Linear(72, 8), nn.LayerNorm(8), nn.GELU(), nn.BatchNorm1d(8), nn.Linear(8, 3))
    return nn.Sequential(*layers).double()


class Tied(nn.Module):
    """Two layers that share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(72, 72), nn.Linear(72, 72), nn.Linear(72, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x.flatten(1)).relu()))


class Recurrent(nn.Module):
    """The last state of a recurrent layer, for which vmap has no rules."""

    def __init__(self) -> None:
        super().__init__()
        self.steps, self.head = nn.LSTM(2, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.steps(x)[0][:, -1])


def batch() -> tuple[Tensor, Tensor]:
    x = torch.randn(10, 2, 6, 6, generator=seeded(1), dtype=torch.float64)
    return x, torch.randint(3, (10,), generator=seeded(2))


BUILDERS: list[Any] = [convolutional, perceptron, lambda: Tied().double()]


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("build", BUILDERS, ids=["convolutional", "perceptron", "tied"])
@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_steps_equal_those_of_networks_trained_alone(build: Any, execution: Any, optimiser: str) -> None:
    def optimise(parameters: Any) -> torch.optim.Optimizer:
        if optimiser == "sgd":
            return torch.optim.SGD(parameters, 0.1, momentum=0.9, weight_decay=0.01)
        return torch.optim.AdamW(parameters, 0.01)

    modules = [build() for _ in range(3)]
    model = SeparateNetworks(modules, execution=execution)
    (x, y), loss = batch(), DNCCLoss(lam=0.0, reduction="sum")
    joint, alone = optimise(model.parameters()), [optimise(m.parameters()) for m in modules]
    for _ in range(3):
        joint.zero_grad()
        logits = model(x)
        loss(logits, y).loss.backward()
        joint.step()
        for m, (module, single) in enumerate(zip(modules, alone, strict=True)):
            single.zero_grad()
            theirs = module(x)
            torch.testing.assert_close(logits[m], theirs, rtol=0, atol=1e-9)
            nn.functional.cross_entropy(theirs, y).backward()
            single.step()
    for ours, module in zip(model.unstack(), modules, strict=True):
        states = zip(ours.state_dict().items(), module.state_dict().items(), strict=True)
        for (name, value), (other_name, other) in states:
            assert name == other_name
            torch.testing.assert_close(value, other, rtol=0, atol=1e-9)
        ours.eval()
        torch.testing.assert_close(ours(x), module.eval()(x), rtol=0, atol=1e-9)


def test_states_have_the_keys_of_one_network_and_one_axis_more() -> None:
    module = convolutional()
    model = SeparateNetworks([module, convolutional()])
    state = model.state_dict()
    assert list(state) == [f"networks.template.{name}" for name in module.state_dict()]
    for name, value in module.state_dict().items():
        assert state[f"networks.template.{name}"].shape == (2, *value.shape)
    assert all(p.dtype == torch.float32 for p in model.float().parameters())


def test_tied_weights_stay_tied() -> None:
    model = SeparateNetworks(Tied, 2)
    assert sum(p.numel() for p in model.parameters()) == 2 * sum(p.numel() for p in Tied().parameters())
    first = model.unstack()[0]
    assert first.second.weight is first.first.weight


def test_frozen_parameters_stay_frozen() -> None:
    def build() -> nn.Module:
        module = perceptron()
        module[1].requires_grad_(False)
        return module

    model = SeparateNetworks(build, 2)
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in build().parameters()]
    assert [p.requires_grad for p in model.unstack()[1].parameters()] == [p.requires_grad for p in build().parameters()]


def test_given_modules_and_members_are_not_touched() -> None:
    modules = [convolutional(), convolutional()]
    before = copy.deepcopy([m.state_dict() for m in modules])
    model, (x, y) = SeparateNetworks(modules), batch()
    nn.functional.cross_entropy(model(x).flatten(0, 1), y.repeat(2)).backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    for module, state in zip(modules, before, strict=True):
        assert all(p.grad is None for p in module.parameters())
        assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    copies = model.unstack()
    with torch.no_grad():
        copies[0][0].weight.zero_()
    assert model.networks.template[0].weight[0].abs().sum() > 0


def test_a_generator_decides_what_a_function_builds() -> None:
    first, same, other = (SeparateNetworks(convolutional, 2, generator=seeded(s)) for s in (0, 0, 1))
    x, _ = batch()
    assert torch.equal(first(x), same(x))
    assert not torch.equal(first(x), other(x))
    assert not torch.equal(first(x)[0], first(x)[1])


def test_how_members_are_run() -> None:
    networks = SeparateNetworks(perceptron, 2).networks
    assert networks.uses_vmap()
    with torch.autocast("cpu", torch.bfloat16):
        assert not networks.uses_vmap()
    assert not SeparateNetworks(convolutional, 2).networks.uses_vmap()
    asked = SeparateNetworks(convolutional, 2, execution="vmap").networks
    assert asked.uses_vmap()
    with torch.autocast("cpu", torch.bfloat16):
        assert not asked.uses_vmap()

    def averaging() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(72, momentum=None), nn.Linear(72, 3)).double()

    modules = [averaging(), averaging()]
    model, (x, _) = SeparateNetworks(modules, execution="vmap"), batch()
    torch.testing.assert_close(model(x), torch.stack([m(x) for m in modules]), rtol=0, atol=1e-12)
    recurrent = SeparateNetworks([Recurrent(), Recurrent()], num_classes=3, execution="vmap")
    assert recurrent(torch.zeros(4, 7, 2)).shape == (2, 4, 3)
    with pytest.raises(ValueError, match="execution is 'scan'"):
        inspect.unwrap(checked_execution)("scan")


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("build", [convolutional, perceptron])
def test_autocast_reaches_every_layer(build: Any, execution: Any) -> None:
    model, (x, y) = SeparateNetworks(build, 2, execution=execution).float(), batch()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x.float())
        loss = DNCCLoss(lam=0.5)(logits, y).loss
    assert (logits.dtype, loss.dtype) == (torch.bfloat16, torch.float32)
    loss.backward()


def test_networks_that_differ_run_in_a_loop_that_says_why() -> None:
    narrow, wide = nn.Linear(4, 3), nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    model = separate_networks([narrow, wide])
    assert isinstance(model, LoopNetworks)
    assert model.reason == "member 1 differs from member 0: it is a Sequential, not a Linear"
    x = torch.randn(5, 4)
    assert torch.equal(model(x), torch.stack([narrow(x), wide(x)]))
    assert isinstance(separate_networks([narrow, nn.Linear(4, 3)]), SeparateNetworks)
    with pytest.raises(ValueError, match=r"cannot be stacked: member 1 .*; LoopNetworks runs networks that differ"):
        SeparateNetworks([narrow, wide])
    lazy = separate_networks([nn.LazyLinear(3), nn.LazyLinear(3)], num_classes=3)
    assert isinstance(lazy, LoopNetworks)
    assert lazy.reason == "lazy parameters (weight)"
    with pytest.raises(ValueError, match="lazy parameters without a shape"):
        SeparateNetworks([nn.LazyLinear(3), nn.LazyLinear(3)], num_classes=3)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)), r"set differently \(\(1\): Dropout\(p=0.5"),
        (nn.Sequential(nn.Linear(4, 3, bias=False), nn.Dropout(0.1)), r"parameters are named differently"),
        (nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.1)), r"'0.weight' is \(5, 4\)"),
        (nn.Sequential(nn.Linear(4, 3).double(), nn.Dropout(0.1)), "torch.float64"),
        (nn.Sequential(nn.Linear(4, 3).requires_grad_(False), nn.Dropout(0.1)), "trained in one"),
    ],
)
def test_architectures_are_compared_in_full(other: nn.Module, reason: str) -> None:
    first = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.1))
    found = architecture_difference([first, copy.deepcopy(first), other])
    assert found is not None
    assert found.startswith("member 2 differs from member 0")
    with pytest.raises(ValueError, match=reason):
        StackedModule([first, other])


def test_shapes_that_are_no_logits() -> None:
    with pytest.raises(ValueError, match=r"network 1 gives shape \(5, 2\); it must be \(batch, classes\) = \(5, 3\)"):
        LoopNetworks([nn.Linear(4, 3), nn.Linear(4, 2)])(torch.zeros(5, 4))
    with pytest.raises(ValueError, match=r"a network gives shape \(5, 3\); it must be \(batch, 7\)"):
        SeparateNetworks([nn.Linear(4, 3)], num_classes=7)(torch.zeros(5, 4))
    with pytest.raises(ValueError, match="no modules were given"):
        StackedModule([])


@pytest.mark.parametrize("kind", [SeparateNetworks, LoopNetworks])
def test_copies_pickles_and_states_give_the_same_logits(kind: Any) -> None:
    model, other, (x, _) = kind(convolutional, 2).eval(), kind(convolutional, 2).eval(), batch()
    assert not torch.equal(other(x), model(x))
    other.load_state_dict(model.state_dict())
    for found in (other, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(found(x), model(x))

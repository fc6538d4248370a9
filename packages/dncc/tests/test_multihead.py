"""The shared trunk: gradients, frozen trunks, learning rates of the heads, copies."""

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dncc.heads import Heads
from dncc.losses import DNCCLoss
from dncc.multihead import MultiHead


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trunk(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5))


def batch(n: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 5, generator=seeded(1)), torch.randint(3, (n,), generator=seeded(2))


def test_it_is_the_heads_of_the_features() -> None:
    model, (x, _) = MultiHead(trunk(), 3, 4, "full", hidden=(6,), generator=seeded()).eval(), batch()
    heads = Heads(8, 3, 4, "full", hidden=(6,), generator=seeded())
    assert torch.equal(model(x), heads(trunk().eval()(x)))
    assert (model.num_members, model.num_classes) == (4, 3)
    torch.testing.assert_close(model.members(x), model(x).softmax(-1))
    torch.testing.assert_close(model.predict_proba(x), model(x).softmax(-1).mean(0))
    torch.testing.assert_close(model.predict_proba(x, "geometric"), model(x).mean(0).softmax(-1))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradients_at_lambda_0_are_those_of_heads_trained_alone(reduction: Any) -> None:
    model, (x, y) = MultiHead(trunk(), 3, 4, generator=seeded()).eval().double(), batch()
    x = x.double()
    DNCCLoss(lam=0.0, reduction=reduction)(model(x), y).loss.backward()
    expected = torch.zeros_like(model.backbone.model[0].weight)
    for m in range(4):
        alone = copy.deepcopy(model)
        alone.zero_grad()
        nn.functional.cross_entropy(alone(x)[m], y).backward()
        scale = 1 if reduction == "sum" else 1 / 4
        head = alone.heads.last.weight.grad[m]
        torch.testing.assert_close(model.heads.last.weight.grad[m], scale * head, rtol=0, atol=1e-12)
        expected += scale * alone.backbone.model[0].weight.grad
    torch.testing.assert_close(model.backbone.model[0].weight.grad, expected, rtol=0, atol=1e-12)


def test_scaled_heads_step_as_far_as_with_the_sum() -> None:
    x, y = batch()
    stepped = []
    for reduction, scale in (("mean", None), ("sum", 1)):
        model = MultiHead(trunk(), 3, 4, generator=seeded()).eval()
        optimiser = torch.optim.SGD(model.param_groups(0.1, scale))
        DNCCLoss(lam=0.5, reduction=reduction)(model(x), y).loss.backward()
        optimiser.step()
        stepped.append(model.heads.last.weight.detach())
    torch.testing.assert_close(stepped[0], stepped[1], rtol=0, atol=1e-6)


def test_groups_hold_every_trained_parameter_once() -> None:
    model = MultiHead(trunk(), 3, 4)
    groups = model.param_groups(0.1, weight_decay=0.01)
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [(0.1, 0.01), (0.4, 0.01)]
    found = [id(p) for g in groups for p in g["params"]]
    assert sorted(found) == sorted(id(p) for p in model.parameters())
    assert [g["lr"] for g in MultiHead(trunk(), 3, 4, freeze_backbone=True).param_groups(1, 2)] == [2.0]
    with pytest.raises(ValueError, match="head_lr_scale is 0"):
        model.param_groups(0.1, 0)


def test_a_frozen_trunk_stays_what_it_was() -> None:
    model, (x, y) = MultiHead(trunk(), 3, 4, freeze_backbone=True), batch()
    before = copy.deepcopy(model.backbone.state_dict())
    optimiser = torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.1)
    model.train()
    assert (model.training, model.heads.training, model.backbone.training) == (True, True, False)
    for _ in range(2):
        optimiser.zero_grad()
        DNCCLoss(lam=0.5)(model(x), y).loss.backward()
        optimiser.step()
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, before[name])
    assert torch.equal(model(x), model(x))  # no dropout in the trunk
    model.freeze_backbone(False)
    assert all(p.requires_grad for p in model.parameters())
    assert all(module.training for module in model.modules())
    model(x)
    assert not torch.equal(model.backbone.model[1].running_mean, before["model.1.running_mean"])


def test_a_step_in_bf16_keeps_the_loss_in_fp32() -> None:
    for mode in ("partition", "full"):
        model, (x, y) = MultiHead(trunk(), 3, 4, mode, hidden=(6,), norm="layer"), batch()  # type: ignore[arg-type]
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(x)
            out = DNCCLoss(lam=0.5)(logits, y)
        assert logits.dtype == torch.bfloat16
        assert out.loss.dtype == torch.float32
        out.loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_copies_pickles_and_states_give_the_same_logits() -> None:
    model, (x, _) = MultiHead(trunk(), 3, 4, hidden=(6,), norm="batch").eval(), batch()
    other = MultiHead(trunk(1), 3, 4, hidden=(6,), norm="batch").eval()
    assert not torch.equal(other(x), model(x))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other.load_state_dict(model.state_dict())
    for found in (other, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(found(x), model(x))


def test_options_that_are_refused() -> None:
    with pytest.raises(ValueError, match="members is 0; an ensemble has at least 1 member"):
        MultiHead(trunk(), 3, 0)
    with pytest.raises(ValueError, match="8 features cannot be split evenly among 3 members: take members=2 or 4"):
        MultiHead(trunk(), 3, 3)
    assert MultiHead(trunk(), 3, 1)(batch()[0]).shape == (1, 6, 3)

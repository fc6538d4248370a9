"""Ensembles on a device: the logits of the CPU, weights that do not depend on the device, both ways to run members."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from dncc.batch_ensemble import batch_ensemble
from dncc.branching import Branching, branch_at
from dncc.initialising import fresh_copy
from dncc.multihead import MultiHead
from dncc.separate import SeparateNetworks

pytestmark = pytest.mark.gpu


def trunk() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())


def tail() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(4, 5))  # fmt: skip


MODELS: dict[str, Any] = {
    "heads": lambda: MultiHead(trunk(), 5, 4, hidden=(6,), norm="batch"),
    "maps": lambda: MultiHead(trunk(), 5, 4, "full", pool="none", hidden=(3,), kernel_size=3, norm="layer"),
    "branching, loop": lambda: Branching(trunk(), tail(), 3, execution="loop"),
    "branching, vmap": lambda: Branching(trunk(), tail(), 3, execution="vmap"),
    "separate, loop": lambda: SeparateNetworks(lambda: nn.Sequential(*trunk(), *tail()), 3, execution="loop"),
    "separate, vmap": lambda: SeparateNetworks(lambda: nn.Sequential(*trunk(), *tail()), 3, execution="vmap"),
    "rank one": lambda: batch_ensemble(nn.Sequential(*trunk(), *tail()), 3),
}
X = torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("name", MODELS)
def test_a_device_gives_the_cpus_logits_gradients_and_statistics(name: str) -> None:
    torch.manual_seed(0)
    here = MODELS[name]().double()
    there = copy.deepcopy(here).cuda()
    ours, theirs = there(X.cuda()), here(X)
    torch.testing.assert_close(ours.cpu(), theirs, rtol=0, atol=1e-9)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    for a, b in zip(there.parameters(), here.parameters(), strict=True):
        torch.testing.assert_close(a.grad.cpu(), b.grad, rtol=1e-9, atol=1e-8)
    for a, b in zip(there.buffers(), here.buffers(), strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_half_precision(name: str) -> None:
    model = MODELS[name]().cuda()
    with torch.autocast("cuda", torch.bfloat16):
        logits = model(X.float().cuda())
        loss = logits.float().square().sum()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_compiled(name: str) -> None:
    torch.compiler.reset()
    model = MODELS[name]().double().cuda().eval()
    compiled = torch.compile(model)
    with torch.no_grad():
        torch.testing.assert_close(compiled(X.cuda()), model(X.cuda()), rtol=0, atol=1e-9)


def test_fresh_weights_do_not_depend_on_the_device() -> None:
    module = trunk()
    before = torch.cuda.get_rng_state()
    here, there = fresh_copy(module, 3), fresh_copy(copy.deepcopy(module).cuda(), 3)
    assert there[0].weight.is_cuda
    assert torch.equal(there[0].weight.cpu(), here[0].weight)
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_models_are_cut_on_the_device_where_they_are() -> None:
    model = nn.Sequential(*trunk(), *tail()).cuda()
    ensemble = branch_at(model, "3", 3, num_classes=7)
    assert ensemble(X.float().cuda()).shape == (3, 16, 7)
    assert all(p.is_cuda for p in ensemble.parameters())

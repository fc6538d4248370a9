"""An ensemble of many heads trained in compressed memory: gact's saved tensors under dncc's loss."""

import pytest
import torch
from torch import nn

import dncc
import gact


def ensemble() -> dncc.MultiHead:
    generator = torch.Generator().manual_seed(0)
    trunk = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3))
    with torch.no_grad():
        for parameter in trunk.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * (2 / parameter[0].numel()) ** 0.5)
    return dncc.MultiHead(trunk, 5, members=8, mode="full", in_features=32, hidden=(16,), generator=generator)


@pytest.mark.parametrize("aggregate", ["arithmetic", "geometric"])
def test_gradients_of_a_compressed_ensemble_are_near_the_exact_ones(aggregate: str) -> None:
    model = ensemble()
    loss = dncc.DNCCLoss(0.7, aggregate=aggregate)
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(32, 3, 12, 12, generator=generator), torch.randint(5, (32,), generator=generator)
    loss(model(x), y).loss.backward()
    exact = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    with gact.ActivationCompressor(model, bits=8):
        out = loss(model(x), y)
    out.loss.backward()
    compressed = torch.cat([p.grad.flatten() for p in model.parameters()])
    # 8 bits a value: an error of about a hundredth of each group's range in every saved tensor
    assert 0 < float((compressed - exact).norm() / exact.norm()) < 0.05
    assert out.ambiguity.item() >= 0

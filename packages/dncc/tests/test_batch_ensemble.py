"""Rank-one members equal networks whose weights are multiplied out; the peer's layers; what is converted."""

import copy
import inspect
import pickle
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from dncc.batch_ensemble import BatchEnsemble, RankOneLayer, batch_ensemble


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, padding_mode="reflect", bias=False), nn.ReLU(),
        nn.Conv2d(4, 6, 3, groups=2), nn.GroupNorm(2, 6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5), nn.Tanh(),
        nn.Linear(5, 3, bias=False),
    ).double()  # fmt: skip


X = torch.randn(7, 2, 8, 8, generator=seeded(1), dtype=torch.float64)


def multiplied_out(ensemble: BatchEnsemble, m: int) -> nn.Module:
    """Member m as an ordinary network: W_m[o, i] = s_m[o] W[o, i] r_m[i]."""
    member = network()
    for ours, layer in zip(ensemble.network, member, strict=True):
        if isinstance(ours, RankOneLayer):
            weight = ours.shared.weight
            groups = getattr(layer, "groups", 1)
            inputs = ours.r[m].reshape(groups, -1).repeat_interleave(len(weight) // groups, 0)
            shape = [*weight.shape[:2], *[1] * (weight.ndim - 2)]
            with torch.no_grad():
                layer.weight.copy_(weight * (ours.s[m][:, None] * inputs).reshape(shape))
                if ours.bias is not None:
                    layer.bias.copy_(ours.bias[m])
        else:
            layer.load_state_dict(ours.state_dict())
    return member


@pytest.mark.parametrize("init", ["signs", "gaussian"])
def test_members_equal_networks_whose_weights_are_multiplied_out(init: Any) -> None:
    ensemble = batch_ensemble(network(), 3, init=init, generator=seeded())
    with torch.no_grad():
        for module in ensemble.modules():
            if isinstance(module, RankOneLayer) and module.bias is not None:
                module.bias.normal_(generator=seeded(3))
    x, other = X.clone().requires_grad_(), X.clone().requires_grad_()
    ours = ensemble(x)
    theirs = torch.stack([multiplied_out(ensemble, m)(other) for m in range(3)])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    weights = torch.randn(ours.shape, generator=seeded(2), dtype=torch.float64)
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    torch.testing.assert_close(x.grad, other.grad, rtol=0, atol=1e-12)
    assert all(p.grad is not None for p in ensemble.parameters())


def test_unit_factors_give_the_model_itself() -> None:
    model = network()
    ensemble = batch_ensemble(model, 2)
    with torch.no_grad():
        for factor in ensemble.rank_one_parameters():
            factor.fill_(1)
    expected = model(X)
    torch.testing.assert_close(ensemble(X), torch.stack([expected, expected]), rtol=0, atol=1e-12)


def test_counts_are_the_stated_ones() -> None:
    model, members = network(), 4
    layers = [m for m in model if isinstance(m, nn.Conv2d | nn.Linear)]
    expected = sum(p.numel() for p in model.parameters())
    for layer in layers:
        n, k = (layer.in_channels, layer.out_channels) if isinstance(layer, nn.Conv2d) else (
            layer.in_features, layer.out_features)  # fmt: skip
        expected += members * (n + k) + (members - 1) * (k if layer.bias is not None else 0)
    ensemble = batch_ensemble(model, members)
    assert sum(p.numel() for p in ensemble.parameters()) == expected
    assert len(list(ensemble.rank_one_parameters())) == 2 * len(layers)


def test_initial_factors() -> None:
    layer = nn.Linear(400, 100)
    signs = RankOneLayer(layer, 10, generator=seeded())
    assert set(signs.r.flatten().tolist()) == {-1.0, 1.0}
    # 4000 fair signs: |mean| > 5 / sqrt(4000) has probability below 1e-6.
    assert abs(signs.r.mean()) < 5 / 4000**0.5
    gaussian = RankOneLayer(layer, 10, init="gaussian", std=0.1, generator=seeded())
    # 4000 draws of N(1, 0.1): five standard errors of the mean and of the deviation, each below 1e-6.
    assert abs(gaussian.r.mean() - 1) < 5 * 0.1 / 4000**0.5
    assert abs(gaussian.r.std() - 0.1) < 5 * 0.1 / 8000**0.5
    assert torch.equal(signs.r, RankOneLayer(layer, 10, generator=seeded()).r)
    assert not torch.equal(signs.r, RankOneLayer(layer, 10, generator=seeded(1)).r)
    torch.testing.assert_close(signs.bias, layer.bias.expand(10, -1))


def test_the_given_model_is_left_as_it_is() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    ensemble = batch_ensemble(model, 2, num_classes=9)
    ensemble(X).square().sum().backward()
    torch.optim.SGD(ensemble.parameters(), 0.1).step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert (ensemble(X).shape, model(X).shape) == ((2, 7, 9), (7, 3))


def test_chosen_layers_only() -> None:
    ensemble = batch_ensemble(network(), 2, layers=["6", "8"])
    kinds = [type(m).__name__ for m in ensemble.network]
    assert [i for i, kind in enumerate(kinds) if kind == "RankOneLayer"] == [6, 8]
    assert ensemble(X).shape == (2, 7, 3)


def test_a_timm_network() -> None:
    model = timm.create_model("resnet10t", num_classes=5)
    ensemble = batch_ensemble(model, 2, num_classes=4)
    x = torch.randn(3, 3, 32, 32)
    assert ensemble(x).shape == (2, 3, 4)
    ensemble(x).sum().backward()


def test_tokens_and_attention() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.attention = nn.Linear(4, 8), nn.MultiheadAttention(8, 2, batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))

    model = Tokens().eval()
    ensemble = batch_ensemble(model, 2)
    assert not any(isinstance(m, RankOneLayer) for m in ensemble.network.attention.modules())
    x = torch.randn(5, 6, 4)
    with torch.no_grad():
        for factor in ensemble.rank_one_parameters():
            factor.fill_(1)
    torch.testing.assert_close(ensemble(x)[1], model(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"named 'attention.out_proj'; there are: embed, head"):
        batch_ensemble(model, 2, layers=["attention.out_proj"])


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="members is 0"):
        batch_ensemble(network(), 0)
    with pytest.raises(ValueError, match="give num_classes="):
        batch_ensemble(nn.Bilinear(2, 2, 2), 2)
    with pytest.raises(ValueError, match="the classifier of Bilinear could not be recognised"):
        batch_ensemble(nn.Bilinear(2, 2, 2), 2, 3)
    with pytest.raises(ValueError, match="has no linear or convolutional layer to convert"):
        batch_ensemble(network(), 2, layers=[])
    with pytest.raises(ValueError, match="std is 0"):
        RankOneLayer(nn.Linear(2, 2), 2, std=0)
    with pytest.raises(ValueError, match="init is 'ones'"):
        inspect.unwrap(RankOneLayer.__init__)(RankOneLayer.__new__(RankOneLayer), nn.Linear(2, 2), 2, init="ones")
    with pytest.raises(ValueError, match="7 packed rows cannot be split among 2 members"):
        RankOneLayer(nn.Linear(2, 2), 2)(torch.zeros(7, 2))
    with pytest.raises(ValueError, match=r"gives shape \(4, 3, 5\) for 2 times 2 inputs"):
        batch_ensemble(nn.Sequential(nn.Linear(4, 5)), 2)(torch.zeros(2, 3, 4))


def test_copies_pickles_and_states_give_the_same_logits() -> None:
    model, other = batch_ensemble(network(), 2), batch_ensemble(network(), 2)
    assert not torch.equal(other(X), model(X))
    other.load_state_dict(model.state_dict())
    for found in (other, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(found(X), model(X))


@pytest.mark.peer
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_the_peers_layers(kind: str) -> None:
    from torch_uncertainty.layers import BatchConv2d, BatchLinear

    if kind == "linear":
        peer, plain, x = BatchLinear(6, 4, 3), nn.Linear(6, 4), torch.randn(15, 6, generator=seeded())
        shared = peer.linear
    else:
        peer, plain = BatchConv2d(6, 4, 3, 3, stride=2, padding=1), nn.Conv2d(6, 4, 3, stride=2, padding=1)
        x, shared = torch.randn(15, 6, 5, 5, generator=seeded()), peer.conv
    ours = RankOneLayer(plain, 3)
    with torch.no_grad():
        ours.shared.weight.copy_(shared.weight)
        ours.r.copy_(peer.r_group)
        ours.s.copy_(peer.s_group)
        ours.bias.copy_(peer.bias)
    torch.testing.assert_close(ours(x), peer(x), rtol=1e-5, atol=1e-6)

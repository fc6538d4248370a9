"""Estimates of where noise goes: against exact Jacobians by autograd, and against the measured noise of a model."""

import importlib
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn
from torch.nn import functional

from gact.contributions import Saved, contributions
from gact.elementwise import SLOPES, elementwise, energy_of_groups, relative
from gact.gains import ParameterGains
from gact.rules import operation
from gact.theory_gradients import law_element_variance

FOLDER = Path(__file__).parents[1] / "benchmarks"
GROUP = 256


def _randn(*size, seed=0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _seeded(module, seed=0):
    for number, p in enumerate(module.parameters()):
        p.data = _randn(*p.shape, seed=seed + number) / max(1, p[0].numel()) ** 0.5
    return module.double()


def _exact_gain(output, leaves):
    """‖∂(gradients of the leaves)/∂δ‖² over the number of elements of δ: the mean gain of independent noise δ."""

    def gradients(delta):
        found = torch.autograd.grad(output, leaves, delta, retain_graph=True, create_graph=True)
        return torch.cat([g.reshape(-1) for g in found])

    jacobian = torch.autograd.functional.jacobian(gradients, torch.zeros_like(output))
    return float(jacobian.square().sum()) / output.numel()


def _kappa(module, x):
    leaves = list(module.parameters())
    output = module(x)
    return ParameterGains(leaves)(output.grad_fn), _exact_gain(output, leaves)


class _Product(nn.Module):
    """A batched product of two linear maps of the input, times a third."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(4, 3)

    def forward(self, x):
        return (self.a(x) @ self.b(x).mT) @ self.c(x) / 2.0


class _Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)

    def forward(self, x):
        h = self.first(x)
        return h.view(-1, 4) + 0.1 * self.second(h.view(-1, 4))


CHAINS = {
    "linear": lambda: nn.Linear(4, 3),
    "two linear": lambda: nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3, bias=False)),
    "pointwise convolution": lambda: nn.Sequential(nn.Conv1d(5, 4, 1, groups=1), nn.Conv1d(4, 2, 1)),
    "grouped": lambda: nn.Conv1d(6, 4, 1, groups=2),
}


@pytest.mark.parametrize("name", CHAINS)
def test_gains_of_linear_chains_are_exact(name):
    module = _seeded(CHAINS[name]())
    channels = next(p for p in module.parameters() if p.dim() > 1).shape[1] * (2 if name == "grouped" else 1)
    size = (3, channels, 5) if "conv" in name or name == "grouped" else (7, channels)
    estimate, exact = _kappa(module, _randn(*size))
    assert estimate == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize(
    ("module", "size", "within"),
    [  # how far mean field may be off: measured once, on fixed numbers
        (lambda: nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4)), (40, 8), 1.5),
        (lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), (40, 8), 1.5),
        (lambda: nn.Sequential(nn.Linear(8, 32), nn.LayerNorm(32)), (20, 8), 1.5),
        (
            lambda: nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3)),
            (4, 2, 6, 6),
            2.0,
        ),
        (lambda: nn.Sequential(nn.ConvTranspose1d(3, 4, 4, stride=2), nn.Tanh()), (4, 3, 8), 2.0),
        (_Product, (5, 6, 4), 3.0),  # three factors that depend on one x
        (_Residual, (10, 4), 1.5),
    ],
)
def test_gains_by_mean_field(module, size, within):
    estimate, exact = _kappa(_seeded(module()), _randn(*size, seed=9))
    assert 1 / within < estimate / exact < within


def test_only_the_given_parameters_count():
    module = _seeded(CHAINS["two linear"]())
    x = _randn(7, 4).requires_grad_()
    node = module(x).grad_fn
    every, own, last = (ParameterGains(p)(node) for p in (None, list(module.parameters()), [module[1].weight]))
    assert every > own > last > 0
    assert ParameterGains([])(node) == 0.0
    assert ParameterGains()(None) == 0.0


def test_deep_graphs_do_not_recurse():
    w = torch.ones(4, requires_grad=True)
    y = w
    for _ in range(5000):
        y = y + 0.0
    assert ParameterGains()(y.grad_fn) == 1.0


def _exact_noise(gradient, x):
    """Σ_i ‖∂ gradient/∂x_i‖² v_i with v by the law at one bit, and the ranges of the groups."""
    jacobian = torch.autograd.functional.jacobian(gradient, x)
    a = jacobian.reshape(-1, x.numel()).square().sum(0).numpy()
    groups = x.reshape(-1).split(GROUP)
    low, high = (torch.stack([getattr(g, f)() for g in groups]) for f in ("min", "max"))
    return float(np.sum(a * law_element_variance(x.reshape(-1).numpy(), GROUP, 1))), low, high


def _estimated(output, grad, name, x, low, high):
    """c of every edge of the node behind an output."""
    saved = Saved(name, tuple(x.shape), tuple(range(x.dim())), low, high, GROUP)
    found = []
    node = output.grad_fn
    handle = node.register_hook(lambda sent, received: found.extend(contributions(node, saved, sent, received)))
    output.backward(grad)
    handle.remove()
    return {entry.edge: float(entry.c) for entry in found}, {entry.edge: entry.exact for entry in found}


FUNCTIONS = {
    "Gelu": functional.gelu,
    "Silu": functional.silu,
    "Softplus": functional.softplus,
    "LogSigmoid": functional.logsigmoid,
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0])
def test_functions_of_the_saved_input(name, scale):
    x, g = scale * _randn(4, 256), _randn(4, 256, seed=1)

    def gradient(u):
        u = u if u.requires_grad else u.requires_grad_()
        return torch.autograd.grad(FUNCTIONS[name](u), u, g, create_graph=True)[0]

    exact, low, high = _exact_noise(gradient, x)
    u = x.clone().requires_grad_()
    output = FUNCTIONS[name](u)
    assert operation(output.grad_fn.name()) == name
    found, _ = _estimated(output, g, "self", x, low, high)
    assert found[0] == pytest.approx(exact, rel=0.25)  # the range's normal distribution stands for the group's own


@pytest.mark.parametrize(("name", "slope"), [("Tanh", lambda y: 1 - y**2), ("Sigmoid", lambda y: y * (1 - y))])
def test_functions_of_the_saved_result(name, slope):
    y, g = getattr(torch, name.lower())(_randn(4, 256)), _randn(4, 256, seed=1)
    exact, low, high = _exact_noise(lambda u: g * slope(u), y)
    c = elementwise(name, energy_of_groups(g.reshape(-1), GROUP), low, high)
    assert 0.5 < float(c) / exact < 2  # as if the result filled its range evenly


def test_products_are_exact():
    a, b, g = _randn(2, 300), _randn(2, 300, seed=1), _randn(2, 300, seed=2)
    exact, low, high = _exact_noise(lambda u: g * u, a)
    output = a.clone().requires_grad_() * b.clone().requires_grad_()
    found, _ = _estimated(output, g, "self", a, low, high)
    assert found == {1: pytest.approx(exact, rel=1e-9)}  # noise in a goes to the gradient of b


def test_broadcast_factors():
    a, b, g = _randn(4, 1, 5), _randn(4, 6, 5, seed=1), _randn(4, 6, 5, seed=2)
    exact, low, high = _exact_noise(lambda u: g * u, a)
    output = a.clone().requires_grad_() * b.clone().requires_grad_()
    found, _ = _estimated(output, g, "self", a, low, high)
    assert found == {1: pytest.approx(exact, rel=1e-9)}


def test_matrix_products_are_closed_forms():
    x, w, b, g = _randn(20, 16), _randn(3, 16, seed=1), _randn(3, seed=3), _randn(20, 3, seed=2)
    exact, low, high = _exact_noise(lambda u: g.T @ u, x)
    output = functional.linear(x, w.requires_grad_(), b.requires_grad_())
    assert _estimated(output, g, "mat1", x, low, high) == ({2: pytest.approx(exact, rel=1e-9)}, {2: True})


@pytest.mark.parametrize("channels_last", [False, True])
def test_convolutions_are_closed_forms(channels_last):
    x, w = _randn(2, 3, 8, 8), _randn(4, 3, 3, 3, seed=1).requires_grad_()
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    output = functional.conv2d(x, w, stride=2, padding=1)
    g = torch.randn(output.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    memory = x.permute(0, 2, 3, 1) if channels_last else x

    def gradient(u):
        u = u.permute(0, 3, 1, 2) if channels_last else u
        return torch.autograd.grad(functional.conv2d(u, w, stride=2, padding=1), w, g, create_graph=True)[0]

    exact, low, high = _exact_noise(gradient, memory.contiguous())
    saved = Saved("input", tuple(x.shape), (0, 2, 3, 1) if channels_last else (0, 1, 2, 3), low, high, GROUP)
    entry, *rest = contributions(output.grad_fn, saved, [None, w, None], [g])
    assert not rest
    assert entry.exact
    assert float(entry.c) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("kind", ["layer", "batch", "evaluation"])
def test_norms(kind):
    size = (24, 32) if kind == "layer" else (4, 3, 8, 8)
    x, g = 2 * _randn(*size) + 1, _randn(*size, seed=1)
    norm = nn.LayerNorm(32) if kind == "layer" else nn.BatchNorm2d(3)
    norm = norm.double().train(kind != "evaluation")
    norm.weight.data = 1 + 0.3 * _randn(*norm.weight.shape, seed=2)

    def gradient(place):
        def of(u):
            u = u if u.requires_grad else u.requires_grad_()
            return torch.autograd.grad(norm(u), (u, norm.weight), g, create_graph=True)[place]

        return of

    u = x.clone().requires_grad_()
    weight, low, high = _exact_noise(gradient(1), x)
    found, _ = _estimated(norm(u), g, "input", x, low, high)
    assert found[1] == pytest.approx(weight, rel=0.15)  # autograd's Jacobian moves mean and σ too: terms of 1/n
    if kind == "evaluation":
        assert set(found) == {1}
    else:
        assert found[0] == pytest.approx(_exact_noise(gradient(0), x)[0], rel=0.35)


def test_softmax_of_the_loss():
    logits = 3 * _randn(30, 20)
    result, g = logits.log_softmax(-1), torch.zeros(30, 20, dtype=torch.float64)
    g[torch.arange(30), torch.arange(30) % 20] = -1 / 30
    exact, low, high = _exact_noise(lambda r: g - r.exp() * g.sum(-1, keepdim=True), result)
    output = logits.clone().requires_grad_().log_softmax(-1)
    found, _ = _estimated(output, g, "result", result, low, high)
    assert 0.25 < found[0] / exact < 4  # the exponential of a range is a coarse thing


def test_what_reads_only_a_shape_feels_nothing():
    x = _randn(1, 2, 8, 8).requires_grad_()
    output = functional.max_pool2d(x, 2)
    assert _estimated(output, torch.ones_like(output), "self", x.detach(), torch.zeros(1), torch.ones(1)) == ({}, {})


def test_other_operations_get_the_relative_noise():
    x = _randn(4, 256).requires_grad_()
    low, high = x.detach().amin(1), x.detach().amax(1)
    output = x.pow(2)
    found, exact = _estimated(output, torch.ones_like(output), "self", x.detach(), low, high)
    truth = 4 * float((high - low).square().sum()) * 256 / 6  # ∇x = 2x: variance 4 v
    assert exact == {0: False}
    assert found[0] == pytest.approx(truth, rel=0.2)


def test_relative_noise_of_a_constant_is_none():
    assert float(relative(torch.ones(()), torch.ones(3), torch.ones(3))) == 0.0
    assert float(relative(torch.ones(()), torch.zeros(3), torch.zeros(3))) == 0.0


def test_unknown_functions():
    with pytest.raises(ValueError, match=f"one of {', '.join(SLOPES)}"):
        elementwise("Erf", *[torch.ones(1)] * 3)


@pytest.fixture(scope="module")
def bench():
    """Imports a module of the benchmarks by name."""
    if not FOLDER.is_dir():
        pytest.skip("the benchmarks are not part of this distribution")
    before, modules = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module
    sys.path[:] = before
    for name in set(sys.modules) - modules:
        if str(FOLDER) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_estimates_rank_the_tensors_of_a_transformer(bench):
    # One backward pass against 8 draws for each of about 25 tensors at 4 bits; all is seeded. A squared error sums over
    # thousands of parameters, so that the truths are good to a few percent, and the factors below are wide.
    workload = bench("workloads").decoder(2, 64, 2, 128, 64, 4)
    tape = bench("tape").Tape(workload.model, workload.loss)
    estimates = tape.estimates()
    truth = {key: tape.truth(key, 4, 8) for key in tape.entries}
    predicted = {key: estimates[key] * tape.shape(key, 4) for key in tape.entries}
    assert len(truth) > 15
    ratios = np.array([predicted[key] / truth[key] for key in truth])
    assert spearmanr(list(truth.values()), [predicted[key] for key in truth])[0] > 0.85
    assert 0.7 < np.median(ratios) < 1.5
    assert np.exp(np.abs(np.log(ratios))).max() < 8
    products = [key for key, entry in tape.entries.items() if {u[0].name() for u in entry.users} <= {"AddmmBackward0"}]
    assert products
    for key in products:  # closed forms: 10 % is far more than 6 standard errors of 8 draws over 10⁴ parameters
        assert predicted[key] == pytest.approx(truth[key], rel=0.1)
    assert not math.isnan(sum(predicted.values()))


def test_attention_written_out_is_estimated_like_any_softmax():
    # TransformerEncoderLayer without a mask runs a softmax of another name; a gain of 1 for it, in place of the mean of
    # p², made all that is upstream look a thousand times too important.
    from gact import ActivationCompressor

    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 4, 256, dropout=0.1, batch_first=True, norm_first=True, activation="gelu")
    model, x = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), torch.randn(32, 32, 64)
    compressor = ActivationCompressor(model, bits="auto:4")

    def loss():
        return model(x).square().mean()

    with compressor:
        value = loss()
    value.backward()
    compressor.step()
    estimated = compressor.sensitivities
    compressor.calibrate(loss, width=4, draws=4)
    probed = compressor.sensitivities
    ratios = [estimated[k].c / probed[k].c for k in probed if probed[k].source == "probed" and "Softmax" not in k]
    assert len(ratios) > 10
    assert min(ratios) > 1 / 4
    assert max(ratios) < 4

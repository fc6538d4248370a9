"""Predicted variance of the gradient against measured, and what calibration leaves alone."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from gact import ActivationCompressor, AllocationError

DRAWS = 150


def gradient(model, loss):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]).double()


def measured(model, comp, loss_of):
    """Mean of ‖ĝ − g‖² over passes with fresh rounding, and its standard error."""
    exact, squares = gradient(model, loss_of()), []
    for _ in range(DRAWS):
        with comp:
            loss = loss_of()
        squares.append(float((gradient(model, loss) - exact).square().sum()))
    return np.mean(squares), np.std(squares, ddof=1) / math.sqrt(DRAWS)


def linear_model():
    return nn.Sequential(nn.Linear(64, 128), nn.Linear(128, 64), nn.Linear(64, 8)), torch.randn(128, 64)


def convolutions():
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 2, groups=2), nn.ConvTranspose2d(8, 4, 2, 2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 14 * 14, 5)), torch.randn(16, 3, 16, 16)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("make", [linear_model, convolutions])
def test_closed_forms_predict_the_variance_of_linear_networks(make, bits):
    # Six standard errors of the measured mean (false alarm below 1e-8), and 2 % because noise is taken as even within
    # a group. Everything stored goes straight into a weight's gradient, so this is all the noise there is.
    torch.manual_seed(0)
    model, x = make()
    weight = torch.randn(model(x).shape)
    comp = ActivationCompressor(model, bits=f"auto:{bits}", min_bytes=0)

    def loss_of():
        return (model(x) * weight).sum()

    with comp:
        loss = loss_of()
    loss.backward()
    comp.step()
    assert {s.source for s in comp.sensitivities.values()} == {"closed form"}
    mean, error = measured(model, comp, loss_of)
    assert abs(comp.predicted_variance - mean) < 6 * error + 0.02 * mean
    assert error < 0.03 * mean


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        first = [nn.Linear(64, 128), nn.GELU(), nn.BatchNorm1d(128)]
        second = [nn.Linear(128, 128), nn.GELU(), nn.Dropout(0.2), nn.Linear(128, 8)]
        self.layers = nn.Sequential(*first, *second)

    def forward(self, x):
        return self.layers(x)


def case():
    torch.manual_seed(0)
    model, x = Mlp(), torch.randn(96, 64)

    def loss_of():
        torch.manual_seed(3)  # the same dropout in every pass
        return model(x).square().mean()

    return model, loss_of


@pytest.mark.parametrize("bits", [4, 8])
def test_calibration_predicts_the_variance_of_a_network_with_gelu_and_norm(bits):
    # Twelve draws a cluster tell its variance to about 3 %; 15 % is five such errors with that of the measured mean.
    model, loss_of = case()
    comp = ActivationCompressor(model, bits=f"auto:{bits}", min_bytes=0)
    comp.calibrate(loss_of, draws=12)
    assert {s.source for s in comp.sensitivities.values()} == {"closed form", "probed"}
    mean, error = measured(model, comp, loss_of)
    assert abs(comp.predicted_variance / mean - 1) < 0.15
    assert error < 0.03 * mean


def test_the_share_of_each_tensor_is_that_of_its_own_noise():
    # Only one kind of tensor at a time is stored with noise: the report's shares say how much each contributes.
    model, loss_of = case()
    comp = ActivationCompressor(model, bits="auto:4", min_bytes=0)
    comp.calibrate(loss_of, draws=12)
    with comp:
        loss_of()
    rows = [r for r in comp.report().rows if r.variance is not None]
    assert sum(r.variance for r in rows) == pytest.approx(comp.predicted_variance)
    assert sum(r.share for r in rows) == pytest.approx(1)
    assert all(r.variance == pytest.approx(comp.sensitivities[r.key].variance(int(r.bits))) for r in rows)


def states(model):
    return (
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        [p.detach().clone() for p in model.parameters()],
        [b.clone() for b in model.buffers()],
        torch.get_rng_state(),
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        model.training,
    )


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("bits", ["auto:4", 4, "fit:1GiB"])
def test_calibration_leaves_everything_as_it_was(bits):
    model, _ = case()
    x = torch.randn(96, 64)
    model(x).square().mean().backward()
    comp = ActivationCompressor(model, bits=bits, min_bytes=0)
    torch.manual_seed(11)
    before = states(model)
    comp.calibrate(lambda: model(x).square().mean())
    assert same(states(model), before)
    with pytest.raises(ValueError, match="loss with a graph"):
        comp.calibrate(lambda: model(x))
    assert same(states(model), before)

    def broken():
        model(x)
        raise KeyError("on purpose")

    with pytest.raises(KeyError):
        comp.calibrate(broken)
    assert same(states(model), before)


def test_a_fixed_width_is_calibrated_for_its_report_alone():
    model, loss_of = case()
    comp = ActivationCompressor(model, bits=4, min_bytes=0)
    assert comp.calibrate(loss_of) is None
    with comp:
        loss_of()
    assert comp.report().predicted_variance > 0
    assert {int(r.bits) for r in comp.report().rows if r.form == "affine"} == {4}


def test_state_comes_back_with_bits_sensitivities_and_noise():
    model, loss_of = case()
    comp = ActivationCompressor(model, bits="auto:3", min_bytes=0)
    comp.calibrate(loss_of)
    with comp:
        loss = loss_of()
    loss.backward()
    comp.step(loss)
    model.zero_grad()
    state = copy.deepcopy(comp.state_dict())
    assert _plain(state)
    other = ActivationCompressor(model, bits="auto:3", min_bytes=0)
    other.load_state_dict(state)
    assert other.bits == comp.bits
    assert other.sensitivities == comp.sensitivities
    assert other.state_dict() == state
    gradients = []
    for c in (comp, other):
        with c:
            loss = loss_of()
        gradients.append(gradient(model, loss))
        assert c.bits == state["bits"]
    assert torch.equal(*gradients)  # the same bits and the same noise, none of it used before


def _plain(value):
    """Whether a value survives ``torch.save`` with ``weights_only`` and JSON alike: no objects."""
    if isinstance(value, dict):
        return all(isinstance(k, str) for k in value) and all(map(_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    return value is None or isinstance(value, bool | int | float | str | torch.Tensor)


@pytest.mark.parametrize("unit", ["bytes", "fit"])
def test_a_budget_too_small_says_the_smallest_and_that_one_works(unit):
    model, loss_of = case()
    with pytest.raises(AllocationError, match=r"the smallest possible is [\d,]+") as error:
        ActivationCompressor(model, bits=f"{unit}:1kB", min_bytes=0).calibrate(loss_of)
    smallest = int(str(error.value).rsplit(" ", 1)[1].rstrip(".").replace(",", ""))
    with pytest.raises(AllocationError):
        ActivationCompressor(model, bits=f"{unit}:{smallest - 1}", min_bytes=0).calibrate(loss_of)
    comp = ActivationCompressor(model, bits=f"{unit}:{smallest}", min_bytes=0)
    comp.calibrate(loss_of)
    with comp:
        loss = loss_of()
    if unit == "bytes":
        assert comp.report().saved_bytes <= smallest
    loss.backward()


@pytest.mark.parametrize("kib", [60, 90, 150])
def test_a_budget_in_bytes_is_kept_to_the_byte(kib):
    model, loss_of = case()
    comp = ActivationCompressor(model, bits=f"bytes:{kib}KiB", min_bytes=0)
    allocation = comp.calibrate(loss_of)
    with comp:
        loss_of()
    report = comp.report()
    assert report.saved_bytes <= kib * 1024
    assert report.saved_bytes > 0.7 * kib * 1024  # the next step is up to a whole tensor away
    stored = sum(r.nbytes for r in report.rows if r.form == "affine" or r.reason == "bits")
    assert stored == allocation.nbytes


def test_without_calibration_the_first_backward_pass_teaches():
    model, loss_of = case()
    comp = ActivationCompressor(model, bits="auto:4", min_bytes=0)
    assert comp.bits == {}
    for _ in range(2):
        with comp:
            loss = loss_of()
        loss.backward()
    assert set(comp.bits) == set(comp.sensitivities) != set()
    assert comp.allocation is not None
    kept = dict(comp.bits)
    with comp:
        loss_of().backward()
    assert comp.bits == kept


def test_transformers_have_few_clusters():
    torch.manual_seed(0)
    model = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 6, enable_nested_tensor=False
    )
    x = torch.randn(2, 16, 32)
    comp = ActivationCompressor(model, bits="auto:4", min_bytes=0)
    passes = 0
    backward = torch.autograd.grad

    def counting(*args, **kwargs):
        nonlocal passes
        passes += 1
        return backward(*args, **kwargs)

    torch.autograd.grad = counting
    try:
        comp.calibrate(lambda: functional.mse_loss(model(x), x), draws=1)
    finally:
        torch.autograd.grad = backward
    probed = [k for k, s in comp.sensitivities.items() if s.source == "probed"]
    assert len(probed) > 30
    assert passes < 16

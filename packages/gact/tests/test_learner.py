"""Budgets from pass to pass, and the mistakes around them."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional

from gact import ActivationCompressor, AllocationError, GuardWarning


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 512), nn.GELU(), nn.Linear(512, 512), nn.GELU(), nn.Linear(512, 1))


def saved(compressor, model, rows):
    with compressor:
        loss = model(torch.randn(rows, 64)).square().mean()
    loss.backward()
    return compressor.report()


def test_a_budget_holds_again_after_batches_have_grown():
    model, budget = mlp(), 500 * 1024
    compressor = ActivationCompressor(model, bits=f"bytes:{budget}")
    assert [saved(compressor, model, 256).saved_bytes <= budget for _ in range(2)] == [True, True]
    assert saved(compressor, model, 1024).saved_bytes > budget  # nobody knew
    assert [saved(compressor, model, rows).saved_bytes <= budget for rows in (1024, 256, 1024)] == [True] * 3


def test_a_budget_that_a_larger_batch_cannot_meet_is_said_in_the_report_and_raised_by_the_next_pass():
    model = mlp()
    compressor = ActivationCompressor(model, bits="bytes:400KiB")
    saved(compressor, model, 256)
    report = saved(compressor, model, 1024)
    assert "smallest possible is" in report.notes[0]
    with pytest.raises(AllocationError, match="smallest possible is"):
        saved(compressor, model, 1024)


def test_slices_that_are_kept_whole_count_with_their_storage():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 4, 256, batch_first=True)
    model, budget = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), 3 << 20
    compressor, x = ActivationCompressor(model, bits=f"bytes:{budget}"), torch.randn(32, 32, 64)
    for _ in range(3):
        with compressor:
            loss = model(x).square().mean()
        loss.backward()
        assert compressor.report().saved_bytes <= budget


def test_noise_of_an_output_does_not_enter_the_gradient_of_a_squared_error_twice():
    # The error is small beside the output: stored noise of the output would drown it, and would not average out. The
    # mean of 200 gradients has a standard error near a fourteenth of one gradient's noise, 0.15 of the gradient.
    torch.manual_seed(0)
    model, x = nn.Identity(), torch.randn(1024, 64)
    target = torch.sigmoid(x) + 0.01 * torch.randn(1024, 64)
    compressor = ActivationCompressor(model, bits=2)

    def gradient(compressed):
        z = x.clone().requires_grad_()
        if compressed:
            with compressor:
                loss = functional.mse_loss(torch.sigmoid(z * 1.0), target, reduction="sum")
        else:
            loss = functional.mse_loss(torch.sigmoid(z * 1.0), target, reduction="sum")
        return torch.autograd.grad(loss, z)[0]

    exact = gradient(False)
    mean = sum(gradient(True) for _ in range(200)) / 200
    assert (mean - exact).norm() < 0.2 * exact.norm()


def test_guard_says_that_there_are_no_gradients():
    model = mlp()
    compressor = ActivationCompressor(model, guard=0.1)
    saved(compressor, model, 256)
    model.zero_grad()
    with pytest.warns(GuardWarning, match="before zero_grad"):
        compressor.step()


def test_a_compressor_is_neither_copied_nor_pickled():
    model = mlp()
    compressor = ActivationCompressor(model)
    for take in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="state_dict"):
            take(compressor)


def test_a_store_of_a_wrong_kind_is_named():
    with pytest.raises(TypeError, match="HostStore"):
        ActivationCompressor(mlp(), offload=True)

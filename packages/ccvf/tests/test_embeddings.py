"""Embeddings of confidences: accuracy of u, and features that cannot fall."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ccvf.embeddings import CosineEmbedding, LearnedRamps, Ramps, conservatism_of


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("delta", [1e-30, 1e-8, 1e-4, 0.1, 0.5, 0.999, 1 - 2**-24])
def test_u_is_accurate_to_single_precision(delta):
    single = np.float32(delta)
    exact = math.sqrt(-math.log(float(single)))  # of the confidence that float32 holds
    assert float(conservatism_of(torch.tensor(single))) == pytest.approx(exact, rel=2e-7)


def test_u_at_the_ends():
    u = conservatism_of(torch.tensor([1.0, 0.0]))
    assert u[0] == 0
    assert not torch.signbit(u[0])
    assert torch.isfinite(u[1])


@pytest.mark.property
@given(st.lists(st.floats(2**-100, 1.0, width=32), min_size=2, max_size=20))
def test_u_falls_as_delta_rises(deltas):
    u = conservatism_of(torch.tensor(sorted(deltas)))
    assert bool((u.diff() <= 0).all())


def test_ramps_add_up_to_u_and_bend_at_knots():
    ramps = Ramps(4, 2.0)
    u = torch.tensor([0.0, 0.25, 0.5, 1.75, 3.0])
    expected = [[0, 0, 0, 0], [0.25, 0, 0, 0], [0.5, 0, 0, 0], [0.5, 0.5, 0.5, 0.25], [0.5, 0.5, 0.5, 1.5]]
    torch.testing.assert_close(ramps(u), torch.tensor(expected))
    many = torch.linspace(0, 5, 101)
    torch.testing.assert_close(ramps(many).sum(-1), many)


@pytest.mark.property
@settings(max_examples=50)
@given(st.integers(0, 2**31), st.floats(0.1, 30.0))
def test_learnt_ramps_start_at_zero_and_rise(seed, scale):
    ramps = LearnedRamps(8, 3.0, generator())
    with torch.no_grad():
        for values in ramps.parameters():
            values.copy_(scale * torch.randn(values.shape, generator=generator(seed)))
    ramps.double()
    heights = ramps(torch.linspace(0, 6, 61, dtype=torch.float64))
    rounding = 1e-14 * float(heights.detach().max())
    assert float(heights[0].detach().abs().max()) <= rounding
    assert bool((heights.diff(dim=0) >= -rounding).all())


def test_learnt_ramps_differ_at_the_start_and_have_slopes_near_one():
    heights = LearnedRamps(8, 3.0, generator())(torch.linspace(0, 3, 31)).detach()
    assert 0.2 < float(heights[-1].mean()) / 3 < 2
    assert int(torch.linalg.matrix_rank(heights, rtol=1e-3)) >= 4


def test_cosines_as_printed():
    embedding = CosineEmbedding(5, generator(), frequencies=3)
    x = np.array([0.1, 0.7])
    cosines = np.cos(np.pi * np.arange(1, 4) * x[:, None])
    dense = embedding.dense
    expected = np.maximum(cosines @ dense.weight.detach().numpy().T + dense.bias.detach().numpy(), 0)
    np.testing.assert_allclose(embedding(torch.tensor(x, dtype=torch.float32)).detach().numpy(), expected, atol=1e-6)

"""Closed-form sensitivities against loops, against autograd, and against the noise of the quantiser."""

import itertools
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gact import kernels
from gact.sensitivity import convolution, energy_by_group, linear, matmul, memory_order, pooled, row_energy
from gact.theory_gradients import (
    convolution_weights,
    element_variance,
    law_element_variance,
    linear_variance,
    matmul_variance,
)
from gact.variance import law

DRAWS = 300


def _randn(*size, seed=0, dtype=torch.float64):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _ranges(x, group_size):
    groups = x.reshape(-1).split(group_size)
    return torch.stack([g.min() for g in groups]), torch.stack([g.max() for g in groups])


def _law(x, group_size):
    """Variance of each element at one bit by the law, in the shape of x."""
    return law_element_variance(x.reshape(-1).numpy(), group_size, 1).reshape(tuple(x.shape))


def _monte_carlo(x, gradient, bits, draws=DRAWS):
    """Mean of ‖gradient(x̂) − gradient(x)‖² over draws of the quantiser's noise in x (row by row), and its error."""
    exact = gradient(x)
    squares = []
    for key in range(draws):
        noisy = kernels.dequantise(kernels.quantise(x.reshape(-1), bits, key=key)).view(x.shape)
        squares.append(float((gradient(noisy) - exact).double().square().sum()))
    return np.mean(squares), np.std(squares, ddof=1) / math.sqrt(draws)


def _check_noise(x, a, gradient, bits):
    """Σ a v with the exact variance of each element, to 6 standard errors: false alarm below 1e-8."""
    v = element_variance(x.reshape(-1).double().numpy(), 256, bits).reshape(tuple(x.shape))
    mean, error = _monte_carlo(x, gradient, bits)
    assert abs(mean - float((np.asarray(a) * v).sum())) < 6 * error
    assert error < 0.03 * mean


@pytest.mark.parametrize("seed", range(80))
def test_energy_by_group_equals_expansion(seed):
    rng = random.Random(seed)
    shape = [rng.randint(1, 5) for _ in range(rng.randint(1, 5))]
    energy = _randn(*(s if rng.random() < 0.5 else 1 for s in shape), seed=seed).square()
    group_size = rng.randint(1, 9)
    expected = [float(chunk.sum()) for chunk in energy.expand(shape).reshape(-1).split(group_size)]
    assert energy_by_group(energy, shape, group_size).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dim", [0, 1, 2, -1, (1, 2), (0, 2), (1, 3), (0, 2, 3)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_row_energy_of_every_layout(dim, dtype):
    for size in ((3, 4, 5, 6), (40, 64, 7, 9), (2, 0, 3, 4)):
        x = _randn(*size).to(dtype)
        for grad in (x, x.movedim(1, -1), x.to(memory_format=torch.channels_last)):
            expected = grad.double().square().sum(dim)
            torch.testing.assert_close(row_energy(grad, dim).double(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize(("rows", "columns", "group_size"), [(6, 7, 4), (5, 8, 16), (3, 64, 16), (1, 5, 8), (7, 1, 3)])
@pytest.mark.parametrize("column_major", [False, True])
def test_linear_equals_loops(rows, columns, group_size, column_major):
    x, grad = _randn(rows, columns), _randn(rows, 3, seed=1)
    memory = x.T if column_major else x
    v = _law(memory, group_size)
    expected = linear_variance(grad.numpy(), v.T if column_major else v)
    c = linear(row_energy(grad), *_ranges(memory, group_size), columns, group_size, column_major=column_major)
    assert c.shape == ()
    assert float(c) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("columns", [96, 256, 300])
def test_linear_is_what_the_noise_of_the_quantiser_does(bits, columns):
    # Rows of very different scales, in the input and in the gradient.
    x = (_randn(64, columns) * _randn(64, 1, seed=1).exp()).float()
    grad = (_randn(64, 32, seed=2) * _randn(64, 1, seed=3).exp()).float()
    _check_noise(x, row_energy(grad)[:, None], lambda noisy: grad.T @ noisy, bits)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_law_predicts_the_noise_where_a_group_is_one_row(bits):
    # 3 % for the law, and 6 standard errors: false alarm below 1e-8.
    x = (_randn(64, 256) * _randn(64, 1, seed=1).exp()).float()
    grad = (_randn(64, 32, seed=2) * _randn(64, 1, seed=3).exp()).float()
    c = linear(row_energy(grad), *_ranges(x, 256), 256, 256)
    mean, error = _monte_carlo(x, lambda noisy: grad.T @ noisy, bits)
    assert abs(mean - float(c) * law(bits)) < 0.03 * mean + 6 * error


def test_the_law_is_off_where_a_group_mixes_rows_of_different_scales():
    # A small row within the range of a large one sits next to one level, so that its fractional parts are not uniform:
    # here the exact variance is 13 % above the law. `profile` gives the ratio to correct by.
    x = (_randn(64, 96) * _randn(64, 1, seed=1).exp()).float()
    grad = (_randn(64, 32, seed=2) * _randn(64, 1, seed=3).exp()).float()
    c = linear(row_energy(grad), *_ranges(x, 256), 96, 256)
    v = element_variance(x.reshape(-1).double().numpy(), 256, 2).reshape(64, 96)
    exact = float((row_energy(grad)[:, None].numpy() * v).sum())
    assert 1.08 < exact / (float(c) * law(2)) < 1.18


@pytest.mark.parametrize("operand", ["left", "right"])
@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (2, 1, 0)])
def test_matmul_equals_loops(operand, order):
    saved, grad = _randn(3, 4, 5), _randn(3, 4, 6, seed=1)
    if operand == "right":
        grad = _randn(3, 6, 5, seed=1)
    memory = saved.permute(order).contiguous()
    back = [order.index(d) for d in range(3)]
    v = np.transpose(_law(memory, 7), back)
    c = matmul(grad, saved.shape, *_ranges(memory, 7), 7, operand=operand, order=order)
    assert float(c) == pytest.approx(matmul_variance(grad.numpy(), v, operand), rel=1e-12)


@pytest.mark.parametrize("operand", ["left", "right"])
def test_matmul_is_what_the_noise_of_the_quantiser_does(operand):
    saved = (_randn(4, 24, 40) * _randn(4, 24, 1, seed=1).exp()).float()
    grad = _randn(4, *((24, 10) if operand == "left" else (10, 40)), seed=2, dtype=torch.float32)
    a = row_energy(grad)[..., None] if operand == "left" else row_energy(grad, -2)[:, None]

    def gradient(noisy):
        return noisy.mT @ grad if operand == "left" else grad @ noisy.mT

    _check_noise(saved, a, gradient, 4)


def test_matmul_of_a_broadcast_operand():
    # One saved matrix times a batch: each product's gradient has the same noise, in entries of its own.
    saved, grad = _randn(1, 4, 5), _randn(3, 4, 6, seed=1)
    v = np.repeat(_law(saved, 7), 3, axis=0)
    c = matmul(grad, saved.shape, *_ranges(saved, 7), 7, operand="left")
    assert float(c) == pytest.approx(matmul_variance(grad.numpy(), v, "left"), rel=1e-12)


CONVOLUTIONS = [
    # input, kernel, stride, padding, dilation, groups
    ((2, 3, 7), (4, 3, 3), (2,), (1,), (1,), 1),
    ((2, 3, 5, 6), (4, 3, 3, 2), (1, 1), (0, 0), (1, 1), 1),
    ((2, 4, 7, 8), (6, 2, 3, 3), (2, 3), (1, 2), (2, 1), 2),
    ((1, 4, 6, 6), (4, 1, 3, 3), (1, 1), (1, 1), (1, 1), 4),
    ((2, 4, 5, 5), (3, 4, 1, 1), (1, 1), (0, 0), (1, 1), 1),
    ((2, 4, 5, 5), (3, 4, 1, 1), (2, 2), (1, 1), (1, 1), 1),
    ((1, 2, 4, 3, 5), (3, 2, 2, 1, 3), (2, 1, 2), (1, 0, 2), (1, 1, 2), 1),
]
TRANSPOSED = [
    # input, kernel, stride, padding, dilation, groups, output padding
    ((2, 3, 5), (3, 4, 3), (2,), (1,), (1,), 1, (1,)),
    ((2, 4, 4, 3), (4, 3, 3, 2), (2, 3), (1, 0), (2, 1), 2, (1, 2)),
    ((1, 2, 3, 4), (2, 2, 2, 2), (1, 1), (0, 0), (3, 3), 1, (2, 0)),
    ((1, 2, 2, 3, 2), (2, 3, 2, 2, 1), (2, 1, 1), (0, 1, 0), (1, 1, 1), 1, (0, 0, 0)),
]


def _forward(x, weight, stride, padding, dilation, groups, transposed, output_padding=None):
    output_padding = (0,) * len(stride) if output_padding is None else output_padding
    return torch.ops.aten.convolution(x, weight, None, stride, padding, dilation, transposed, output_padding, groups)


def _cases():
    for size, weight, stride, padding, dilation, groups in CONVOLUTIONS:
        yield size, weight, stride, padding, dilation, groups, False, None
    for size, weight, stride, padding, dilation, groups, rest in TRANSPOSED:
        yield size, weight, stride, padding, dilation, groups, True, rest


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("case", list(_cases()))
def test_convolution_equals_loops(case, channels_last):
    size, weight_size, stride, padding, dilation, groups, transposed, rest = case
    x = _randn(*size)
    shape = _forward(x, _randn(*weight_size), stride, padding, dilation, groups, transposed, rest).shape
    grad = _randn(*shape, seed=1)
    memory = x.movedim(1, -1).contiguous() if channels_last else x
    v = _law(memory, 7)
    v = np.moveaxis(v, -1, 1) if channels_last else v
    layer = (stride, padding, dilation, groups, transposed)
    a = convolution_weights(grad.numpy(), size, weight_size, *layer)
    low, high = _ranges(memory, 7)
    c = convolution(grad, size, weight_size, *layer, low, high, 7, channels_last)
    assert float(c) == pytest.approx((a * v).sum(), rel=1e-12)


@pytest.mark.parametrize("case", list(_cases()))
def test_weights_of_a_convolution_are_its_jacobian(case):
    # a_q is the squared norm of ∂∇W/∂x_q, here by autograd: an independent check of the loops as well.
    size, weight_size, stride, padding, dilation, groups, transposed, rest = case
    weight = _randn(*weight_size).requires_grad_()
    layer = (stride, padding, dilation, groups, transposed)
    shape = _forward(_randn(*size), weight, *layer, rest).shape
    grad = _randn(*shape, seed=1)

    def weight_gradient(x):
        out = _forward(x, weight, *layer, rest)
        return torch.autograd.grad(out, weight, grad, create_graph=True)[0].reshape(-1)

    jacobian = torch.autograd.functional.jacobian(weight_gradient, _randn(*size))
    a = convolution_weights(grad.numpy(), size, weight_size, *layer)
    np.testing.assert_allclose(jacobian.square().sum(0).numpy(), a, rtol=1e-10, atol=1e-12)


def test_convolution_is_what_the_noise_of_the_quantiser_does():
    x = (_randn(4, 6, 12, 12) * _randn(4, 6, 1, 1, seed=1).exp()).float()
    weight = _randn(8, 3, 3, 3, dtype=torch.float32).requires_grad_()
    layer = ((2, 2), (1, 1), (1, 1), 2, False)
    grad = torch.randn_like(_forward(x, weight, *layer), generator=torch.Generator().manual_seed(2))
    a = convolution_weights(grad.numpy(), x.shape, weight.shape, *layer)
    _check_noise(x, a, lambda n: torch.autograd.grad(_forward(n, weight, *layer), weight, grad)[0], 4)


def test_shared_input_adds_up():
    # Three layers read one stored x: their gradients' noises are correlated, the total variance is still the sum.
    x = _randn(32, 96, dtype=torch.float32)
    grads = [_randn(32, 16, seed=s, dtype=torch.float32) for s in (1, 1, 2)]  # two of them even alike
    a = sum(row_energy(g) for g in grads)[:, None]
    _check_noise(x, a, lambda noisy: torch.stack([g.T @ noisy for g in grads]), 4)


def test_tied_weight_with_two_inputs_adds_up():
    # One parameter used twice: ∇W = ∇y₁ᵀx₁ + ∇y₂ᵀx₂, and x₁, x₂ are rounded independently.
    x = _randn(2, 32, 128, dtype=torch.float32)
    grads = _randn(2, 32, 16, seed=1, dtype=torch.float32)
    _check_noise(x, row_energy(grads)[..., None], lambda noisy: (grads.mT @ noisy).sum(0), 4)


def test_one_input_meeting_one_parameter_twice_does_not_add_up():
    # The same codes twice in the same gradient: gradients must be added first, as the module says.
    x, g = _randn(32, 128, dtype=torch.float32), _randn(32, 16, seed=1, dtype=torch.float32)
    _check_noise(x, row_energy(g + g)[:, None], lambda noisy: g.T @ noisy + g.T @ noisy, 4)  # twice 2 ‖g‖²


def test_large_rows_do_not_swallow_small_ones():
    # Cumulative sums over energies of 1e8 and 1: double precision keeps eight digits of the small.
    energy = torch.tensor([1e8, 1.0, 1e8, 1.0])[:, None]
    assert energy_by_group(energy, (4, 256), 256).tolist() == pytest.approx([2.56e10, 256, 2.56e10, 256], rel=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_gradients_of_every_type(dtype):
    grad, x = _randn(16, 8).to(dtype), _randn(16, 32).to(dtype)
    c = linear(row_energy(grad), *_ranges(x, 64), 32, 64)
    expected = linear_variance(grad.double().numpy(), _law(x.double(), 64))
    assert float(c) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_stays_so(bad):
    grad = torch.ones(4, 3)
    grad[1, 1] = bad
    assert not math.isfinite(float(linear(row_energy(grad), torch.zeros(1), torch.ones(1), 4, 16)))


def test_nothing_saved():
    empty = torch.empty(0)
    assert float(linear(empty, empty, empty, 5, 16)) == 0.0


def test_memory_order_of_views():
    x = torch.empty(2, 3, 4, 5)
    for order in itertools.permutations(range(4)):
        view = x.permute(order)
        found = memory_order(view.shape, view.stride())
        assert [view.stride(d) for d in found] == sorted(x.stride(), reverse=True)


def test_bad_arguments():
    ones = torch.ones(2)
    with pytest.raises(ValueError, match="in groups of"):
        linear(torch.ones(3), ones, ones, 4, 4)
    with pytest.raises(ValueError, match="same size or 1"):
        energy_by_group(torch.ones(2, 2), (2, 3), 4)
    with pytest.raises(ValueError, match="group_size"):
        energy_by_group(torch.ones(2), (2,), 0)
    with pytest.raises(ValueError, match="does not fit"):
        matmul(torch.ones(2, 3), (5, 4), ones, ones, 16, operand="left")
    with pytest.raises(ValueError, match="spatial"):
        convolution(torch.ones(2, 3), (2, 3), (3, 3), (), (), (), 1, False, ones, ones, 4)


@pytest.mark.property
@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 40), st.integers(0, 99))
def test_linear_scales_and_adds(rows, columns, group_size, seed):
    x, energy = _randn(rows, columns, seed=seed), _randn(rows, seed=seed + 1).square()
    low, high = _ranges(x, group_size)
    c = float(linear(energy, low, high, columns, group_size))
    assert float(linear(4 * energy, low, high, columns, group_size)) == pytest.approx(4 * c, rel=1e-12)
    assert float(linear(energy, 3 * low, 3 * high, columns, group_size)) == pytest.approx(9 * c, rel=1e-12)
    bound = float(energy.sum()) * columns * float((high - low).square().max()) / 6
    assert 0 <= c <= bound * (1 + 1e-12)
    constant = pooled(torch.ones(1, 1, dtype=torch.float64), (rows, columns), low, high, group_size)
    assert float(constant) == pytest.approx(_law(x, group_size).sum(), rel=1e-12, abs=1e-300)

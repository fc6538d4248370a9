"""The variance of a stored tensor against brute force, the quantiser itself, and the law."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gact import kernels
from gact.theory_gradients import element_variance, law_element_variance
from gact.variance import BITS, law, law_variance, profile, range_energy


def _tensor(numel, seed=0, dtype=torch.float32):
    return torch.randn(numel, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def _ranges(x, group_size):
    groups = x.split(group_size)
    return torch.stack([g.min() for g in groups]), torch.stack([g.max() for g in groups])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("numel", [1, 64, 200, 1000, 70_000])
def test_profile_equals_brute_force(numel, dtype):
    x = _tensor(numel, dtype=dtype)
    exact = [element_variance(x.double().numpy(), 64, b).sum() for b in BITS]
    # Probabilities are multiples of 2⁻¹⁶, and fp32 offsets lie on levels of their own: far below 1e-3 of the sum.
    assert profile(x, 64) == pytest.approx(exact, rel=1e-3)


def test_profile_is_what_the_quantiser_does():
    # 400 draws of 64 × 256 elements. The mean of the squared error has relative standard error below 1e-3 (checked by
    # its own spread below), and the limit is 6 of them: false alarm below 1e-8 for four widths together.
    x = _tensor(64 * 256)
    predicted = profile(x, 256)
    for place, bits in enumerate(BITS):
        draws = [
            float((kernels.dequantise(kernels.quantise(x, bits, key=key)).double() - x.double()).square().sum())
            for key in range(400)
        ]
        error = np.std(draws, ddof=1) / math.sqrt(len(draws))
        assert abs(np.mean(draws) - predicted[place]) < 6 * error
        assert error < 2e-3 * predicted[place]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_law_is_close_on_normal_numbers(bits):
    x = _tensor(256 * 256)
    exact = profile(x, 256)[BITS.index(bits)]
    # Fixed numbers, so no false alarm. The fractional part is least uniform at two bits.
    assert float(law_variance(*_ranges(x, 256), x.numel(), 256, bits)) == pytest.approx(exact, rel=0.02)


def test_law_fails_at_one_bit_and_the_profile_does_not():
    x = _tensor(256 * 256)
    groups = x.double().view(-1, 256)
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    exact = float(((groups - low) * (high - groups)).sum())
    assert profile(x, 256)[0] == pytest.approx(exact, rel=1e-4)
    assert float(law_variance(*_ranges(x, 256), x.numel(), 256, 1)) < 0.85 * exact


@pytest.mark.parametrize("numel", [1, 7, 8, 9, 100])
def test_law_counts_the_short_group(numel):
    x = _tensor(numel)
    expected = law_element_variance(x.numpy(), 8, 4).sum()
    assert float(law_variance(*_ranges(x, 8), numel, 8, 4)) == pytest.approx(expected, rel=1e-6)


def test_levels_are_exact():
    x = torch.tensor([0.0, 1.0, 2.0, 3.0, 0.0, 3.0])
    one, *rest = profile(x, 6)
    assert rest == [0.0, 0.0, 0.0]  # all six are levels at 2, 4 and 8 bits
    assert one == pytest.approx(4.0, rel=1e-4)  # 1 · 2 twice; probabilities are multiples of 2⁻¹⁶


def test_constant_groups_have_no_variance():
    assert profile(torch.full((300,), 0.1), 256) == (0.0, 0.0, 0.0, 0.0)
    assert profile(torch.tensor([0.0, 1e-42]), 256) == (0.0, 0.0, 0.0, 0.0)  # a range below the normal numbers


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_has_no_finite_variance(bad):
    x = _tensor(600)
    x[300] = bad
    assert profile(x, 256) == (math.inf,) * 4


def test_given_ranges_are_used():
    x = _tensor(1000)
    assert profile(x, 64, *_ranges(x, 64)) == profile(x, 64)


def test_nothing_stored_has_no_variance():
    empty = torch.empty(0)
    assert profile(empty, 64) == (0.0,) * 4
    assert float(law_variance(empty, empty, 0, 64, 4)) == 0.0


def test_range_energy_does_not_overflow():
    assert range_energy(torch.tensor([-1e30]), torch.tensor([1e30])).tolist() == pytest.approx([4e60])


def test_law_of_the_bits():
    assert [1 / law(b) for b in BITS] == pytest.approx([1, 9, 225, 65025], rel=1e-12)
    with pytest.raises(ValueError, match="positive number of bits"):
        law(0)


def test_bad_arguments():
    x = _tensor(10)
    with pytest.raises(ValueError, match="group_size"):
        profile(x, 0)
    with pytest.raises(ValueError, match="both"):
        profile(x, 4, low=x[:3])
    with pytest.raises(ValueError, match="groups of"):
        law_variance(x[:3], x[:3], 100, 4, 4)


@pytest.mark.property
@given(
    st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=40),
    st.integers(1, 12),
    st.floats(-3, 3).map(lambda e: 2.0 ** round(e)),
)
def test_scaling_and_order(values, group_size, factor):
    x = torch.tensor(values)
    variances = profile(x, group_size)
    # A power of two scales everything exactly.
    tiny = np.float32(1e-30)
    if x.abs().max() == 0 or x[x != 0].abs().min() > tiny:
        assert profile(x * factor, group_size) == pytest.approx([v * factor**2 for v in variances], rel=1e-6, abs=1e-30)
    # One bit is the worst, up to chances of 2⁻¹⁶ at the levels, and no width exceeds Δ²/4 an element.
    squares = range_energy(*_ranges(x, group_size))
    rounding = float(squares.sum()) * group_size * 2**-16
    for bits, value in zip(BITS, variances, strict=True):
        assert value <= variances[0] + rounding
        assert value <= float(squares.sum()) * group_size * law(bits) / 4 * (1 + 1e-6)

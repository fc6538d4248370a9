"""The random integers: their definition, and that they look uniform and independent wherever they are used so.

Seeds are fixed. Each statistic is compared with a quantile of its null distribution; the chance that a perfect
generator fails stands with each test. All together it is below 1e-4.
"""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gact import counter_rng, theory

KEY = counter_rng.stream_key(3, 1, 4)
ALARM = 1e-6  # of one test


def draws(count, key=KEY, start=0):
    return counter_rng.random16(start, count, key).numpy()


def uncorrelated(a, b):
    """|r|·√n is standard normal if a and b are independent."""
    n = len(a)
    r = np.corrcoef(a, b)[0, 1]
    return abs(r) * np.sqrt(n) < stats.norm.isf(ALARM / 2)


def uniform(counts):
    """χ² of counts against equal ones, both tails: too even is wrong too."""
    p = stats.chisquare(counts).pvalue
    return ALARM / 2 < p < 1 - ALARM / 2


@given(
    index=st.one_of(st.integers(0, 1 << 18), st.integers(1 << 31, 1 << 40)),
    key=st.integers(0, 2**64 - 1),
)
@pytest.mark.property
def test_definition(index, key):
    assert counter_rng.random16(index, 1, key).item() == theory.random16(index, key)


@pytest.mark.parametrize("words", [1, 100, counter_rng.BLOCK_WORDS])
@pytest.mark.parametrize("block", [0, 1, 77777])
def test_words_of_a_block(words, block):
    places = counter_rng.place_terms(KEY, words)
    out, spare = np.empty(words, np.uint32), np.empty(words, np.uint32)
    counter_rng.fill_words(places, KEY, block, out, spare)
    expected = draws(2 * words, start=block * counter_rng.BLOCK)
    np.testing.assert_array_equal(out.view(np.uint16), expected)


def test_value_depends_on_the_index_alone():
    whole = draws(200_000)
    for start, count in ((0, 1), (1, 2), (65_535, 3), (131_071, 10_000)):
        np.testing.assert_array_equal(draws(count, start=start), whole[start : start + count])


def test_keys_do_not_collide():
    keys = {counter_rng.stream_key(s, t, i) for s in range(10) for t in range(20) for i in range(50)}
    assert len(keys) == 10_000  # chance of a collision of random 64-bit keys: 3e-12
    assert all(0 <= key < 2**64 for key in keys)
    assert counter_rng.stream_key(-1, 0, 0) == counter_rng.stream_key(2**64 - 1, 0, 0)


def test_keys_avalanche():
    base = counter_rng.stream_key(0, 0, 0)
    flips = [bin(base ^ counter_rng.stream_key(*n)).count("1") for n in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1))]
    assert all(8 <= f <= 56 for f in flips)  # Binomial(64, 1/2): 4 · 2·P(X <= 7) = 8e-10


def test_every_value_is_equally_likely():
    assert uniform(np.bincount(draws(1 << 22), minlength=65536))


@pytest.mark.parametrize("bit", range(16))
def test_every_bit_is_fair(bit):
    ones = int(((draws(1 << 20) >> bit) & 1).sum())
    assert abs(ones - (1 << 19)) / np.sqrt(1 << 18) < stats.norm.isf(ALARM / 32)


def test_ends_of_the_range_occur():
    values = draws(1 << 21)  # each is missed with probability exp(-32)
    assert values.min() == 0
    assert values.max() == 65535


@pytest.mark.parametrize("lag", [1, 2, 3, 64, 256, 2048, 65536, 131072])
def test_neighbours_are_independent(lag):
    values = draws((1 << 21) // (2 * lag) * (2 * lag)).reshape(-1, 2, lag)  # disjoint pairs at this distance
    a, b = values[:, 0].ravel(), values[:, 1].ravel()
    assert uncorrelated(a, b)
    assert uniform(np.bincount((a >> 11) * 32 + (b >> 11), minlength=1024))
    assert uniform(np.bincount((a & 31) * 32 + (b & 31), minlength=1024))


@pytest.mark.parametrize(
    "other",
    [(3, 1, 5), (3, 2, 4), (3, 2, 3), (4, 1, 4), (2, 1, 4), (3, 1, 4 + 2**32)],
    ids=["tensor", "step", "step-tensor", "seed", "seed-before", "high-bit"],
)
def test_streams_are_independent(other):
    a, b = draws(1 << 20), draws(1 << 20, counter_rng.stream_key(*other))
    assert uncorrelated(a, b)
    assert uniform(np.bincount((a >> 11) * 32 + (b >> 11), minlength=1024))
    assert uniform(np.bincount(((a & 31) * 32 + (b & 31)), minlength=1024))
    assert abs(int((a == b).sum()) - 16) < 16 + 30  # Poisson(16): P(X >= 46) = 7e-10


def test_blocks_are_independent():
    block = counter_rng.BLOCK
    values = draws(64 * block).reshape(64, block).astype(np.float64)
    r = np.corrcoef(values)[np.triu_indices(64, 1)]
    assert np.abs(r).max() * np.sqrt(block) < stats.norm.isf(ALARM / 2 / len(r))
    # sums over the blocks at one place: a place that all blocks share would show here
    sums = values.sum(0)
    z2 = ((sums - 64 * 32767.5) ** 2).mean() / (64 * (65536**2 - 1) / 12)
    assert abs(z2 - 1) < stats.norm.isf(ALARM / 2) * np.sqrt(2 / block)


def test_serial_spectrum_is_flat():
    """The largest Fourier coefficient of n numbers: P(max > x) ≈ m·exp(−x) for m frequencies."""
    n = 1 << 20
    centred = (draws(n) - 32767.5) / np.sqrt((65536**2 - 1) / 12)
    power = np.abs(np.fft.rfft(centred))[1:-1] ** 2 / n
    assert power.max() < np.log(len(power) / ALARM)


@pytest.mark.parametrize(("start", "count", "key"), [(-1, 1, 0), (0, -1, 0), (0, 1, -1), (0, 1, 2**64)])
def test_bad_arguments(start, count, key):
    with pytest.raises(ValueError, match=r"at least 0|outside"):
        counter_rng.random16(start, count, key)


def test_result_is_int32_on_the_device_asked_for():
    r = counter_rng.random16(0, 5, KEY, torch.device("cpu"))
    assert r.dtype == torch.int32
    assert r.shape == (5,)

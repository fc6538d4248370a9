"""Estimates that are counts: exact ones, and those of hashed neighbourhoods."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ccvf.count_table import CountTable
from ccvf.exact_counts import ExactCounts, draw_multipliers, row_codes
from ccvf.hashing import HashCounts, sign_codes
from ccvf.transitions import Transitions


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def log_of(observations, actions, n_actions=3):
    n = len(actions)
    following, never = np.roll(observations, -1, 0), np.zeros(n, bool)
    return Transitions.from_arrays(observations, actions, np.zeros(n), following, never, n_actions=n_actions)


def by_hand(observations, actions, asked, n_actions):
    """Counts by a dictionary over the observations' bytes."""
    counter = Counter((row.tobytes(), int(action)) for row, action in zip(observations, actions, strict=True))
    return np.array([[counter[row.tobytes(), a] for a in range(n_actions)] for row in asked])


@pytest.mark.property
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_table_counts_pairs(data):
    pair = st.tuples(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3), st.integers(0, 2))
    pairs = data.draw(st.lists(pair, min_size=1, max_size=30))
    codes, actions = (torch.tensor(column) for column in zip(*pairs, strict=True))
    table = CountTable.of(codes, actions, 3)
    asked = [0, 1, 2**63 - 1, -(2**63), *(code for code, _ in pairs)]
    expected = [[pairs.count((code, a)) for a in range(3)] for code in asked]
    assert table.look_up(torch.tensor(asked)).tolist() == expected


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int64, np.float32])
def test_exact_counts_are_exact(dtype):
    rng = np.random.default_rng(0)
    observations = rng.integers(2, size=(500, 2, 3)).astype(dtype)
    actions = rng.integers(2, size=500)
    bonus = ExactCounts(unseen=3).fit(log_of(observations, actions), generator())
    expected = by_hand(observations, actions, observations, 3)
    assert expected.sum(1).min() >= 1
    np.testing.assert_array_equal(bonus.counts(torch.as_tensor(observations)).numpy(), expected)
    wanted = np.where(expected > 0, 1 / np.sqrt(np.maximum(expected, 1)), 3)
    np.testing.assert_allclose(bonus(torch.as_tensor(observations)).numpy(), wanted, rtol=1e-7)


def test_what_was_never_logged_has_the_bonus_of_the_unseen():
    bonus = ExactCounts().fit(log_of(np.zeros((2, 3), np.uint8), np.array([0, 0])), generator())
    assert bonus(torch.ones(1, 3, dtype=torch.uint8)).tolist() == [[10.0, 10.0, 10.0]]
    assert bonus.counts(torch.zeros(1, 3, dtype=torch.uint8)).tolist() == [[2, 0, 0]]


def test_the_same_numbers_have_the_same_code_in_any_dtype():
    multipliers = draw_multipliers(4, generator())
    numbers = torch.tensor([[0, 1, 1, 0], [3, 200, 255, 7]])
    codes = row_codes(numbers, multipliers)
    for dtype in (torch.uint8, torch.int16, torch.int32):
        assert torch.equal(row_codes(numbers.to(dtype), multipliers), codes)
    assert torch.equal(row_codes(numbers[:1].bool(), multipliers), codes[:1])
    negative = torch.tensor([[-1, -300, 70_000, 2**31 - 1]])
    assert torch.equal(row_codes(negative.int(), multipliers), row_codes(negative, multipliers))
    fractions = torch.tensor([[0.5, -0.25, 1e-3, -0.0]])
    same = torch.tensor([[0.5, -0.25, 1e-3, 0.0]], dtype=torch.float64)
    assert torch.equal(row_codes(fractions, multipliers), row_codes(same, multipliers))


def test_different_observations_have_different_codes():
    # Every number is one of 2**16; a shared code among these pairs has probability below 2**31 / 2**57 = 1.5e-8.
    multipliers = draw_multipliers(2, generator())
    everything = torch.cartesian_prod(torch.arange(256), torch.arange(256))
    assert len(row_codes(everything.to(torch.uint8), multipliers).unique()) == 2**16
    assert len(row_codes(everything * 2**40, multipliers).unique()) == 2**16
    assert len(row_codes(everything / 7, multipliers).unique()) == 2**16


def test_signs_are_the_bits_of_the_code():
    projection = torch.tensor([[1.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    x = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0]])
    assert sign_codes(x, projection).tolist() == [0b011, 0b110, 0b001]


def test_bits_differ_with_probability_angle_over_pi():
    bits, angle = 62, 0.7
    x = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]])
    differ = []
    for seed in range(200):
        first, second = sign_codes(x, torch.randn(2, bits, generator=generator(seed))).tolist()
        differ.append((first ^ second).bit_count())
    p, n = angle / math.pi, 200 * bits
    # 5 standard errors of a binomial share: false alarm 6e-7.
    assert sum(differ) / n == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / n))


def test_many_bits_tell_all_apart_and_count_exactly():
    # Two of 32 corners of a cube, centred, share 60 signs with probability below (1 - 0.14)**60 = 1e-4 for the nearest.
    rng = np.random.default_rng(0)
    observations = rng.integers(2, size=(300, 5)).astype(np.float32)
    actions = rng.integers(3, size=300)
    bonus = HashCounts(bits=60).fit(log_of(observations, actions), generator())
    expected = by_hand(observations, actions, observations, 3)
    np.testing.assert_array_equal(bonus.counts(torch.as_tensor(observations)).numpy(), expected)


def test_fewer_bits_pool_counts():
    rng = np.random.default_rng(0)
    data = log_of(rng.normal(size=(400, 4)), rng.integers(3, size=400))
    x = torch.as_tensor(data.observations()).float()
    totals = [HashCounts(bits=bits).fit(data, generator()).counts(x).sum().item() for bits in (1, 4, 16)]
    assert totals[0] > totals[1] > totals[2] >= 400


def test_the_scale_of_a_number_does_not_decide():
    rng = np.random.default_rng(0)
    numbers, actions = rng.normal(size=(200, 3)), rng.integers(3, size=200)
    moved = numbers * [1.0, 1024.0, 0.5] + [0.0, 2048.0, -8.0]
    plain, other = (HashCounts(bits=8).fit(log_of(x, actions), generator()) for x in (numbers, moved))
    counts = plain.counts(torch.as_tensor(numbers, dtype=torch.float32))
    assert torch.equal(other.counts(torch.as_tensor(moved, dtype=torch.float32)), counts)


def test_signs_of_single_numbers_are_refused():
    with pytest.raises(ValueError, match="exact"):
        HashCounts().fit(log_of(np.arange(4), np.zeros(4, int)), generator())

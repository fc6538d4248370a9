"""Splits respect their budgets, and the pruned search finds what a full one finds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccvf.confidence import delta_grid
from ccvf.splits import Budget, best_splits, between, envelope, first_confidences, left_over, split_costs

SEEDS = st.integers(0, 2**32 - 1)
BUDGETS: tuple[Budget, ...] = ("box", "sum", "product")


@pytest.mark.parametrize("budget", BUDGETS)
def test_splits_use_up_their_budget_and_no_more(budget: Budget) -> None:
    deltas = delta_grid(40, 1e-6)
    first = first_confidences(deltas, budget)
    second = np.concatenate([[0.0], deltas])
    k, j = np.nonzero(~np.isnan(first))
    whole, one, two = deltas[k], first[k, j], second[j]
    if budget == "box":
        assert (np.maximum(one, two) == whole).all()
    elif budget == "sum":
        np.testing.assert_allclose(one + two, whole, rtol=1e-12)
    else:
        inner = whole < 1
        np.testing.assert_allclose(np.log1p(-one[inner]) + np.log1p(-two[inner]), np.log1p(-whole[inner]), rtol=1e-9)
    # all grid points below, and 0; delta itself where 1 beside 1 or delta beside delta is admissible
    itself = {"box": len(deltas), "sum": 0, "product": 1}[budget]
    assert len(k) == len(deltas) * (len(deltas) + 1) // 2 + itself


@pytest.mark.parametrize("budget", BUDGETS)
def test_costs_never_rise_with_the_confidence_and_never_fall_with_the_second(budget: Budget) -> None:
    costs = split_costs(delta_grid(300, 1e-8), budget, union=7)
    finite = np.where(np.isinf(costs), 1e300, costs)
    assert (np.diff(finite, axis=0) <= 0).all()
    assert (np.diff(finite, axis=1) >= 0).all()
    assert costs[-1, 0] == pytest.approx(np.sqrt(np.log(7)))


def test_a_smaller_budget_costs_more() -> None:
    deltas = delta_grid(50)
    box, total, product = (split_costs(deltas, budget) for budget in ("box", "sum", "product"))
    assert (total >= product - 1e-12).all()
    assert (product >= box - 1e-12).all()


@pytest.mark.property
@given(seed=SEEDS, budget=st.sampled_from(["sum", "product"]), single=st.booleans())
def test_the_pruned_search_is_the_full_one_bit_for_bit(seed: int, budget: Budget, single: bool) -> None:
    rng = np.random.default_rng(seed)
    deltas = delta_grid(int(rng.integers(2, 120)), 1e-8)
    k, pairs = int(rng.integers(1, len(deltas))), int(rng.integers(1, 2500))
    steepness = 10.0 ** rng.uniform(-3, 2, pairs)
    gains = np.cumsum(rng.exponential(size=(k, pairs)), axis=0) / k * steepness + rng.normal(size=pairs)
    gains = gains.astype(np.float32 if single else np.float64)
    costs = split_costs(deltas, budget)[k]
    start = (rng.normal(size=pairs) * 3).astype(gains.dtype)
    found = best_splits(gains, costs[1 : k + 1], start, costs[0])
    full = np.maximum((gains - costs[1 : k + 1].astype(gains.dtype)[:, None]).max(axis=0), start)
    assert found.dtype == gains.dtype
    assert (found == full).all()


@pytest.mark.property
@given(seed=SEEDS)
def test_an_envelope_is_the_highest_of_its_lines(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 20))
    weights, costs = rng.integers(0, 6, count) / 5, rng.normal(size=count)
    x = np.concatenate([rng.normal(size=50) * 10, [0.0]])
    slope, price = envelope(weights, costs).best(x)
    np.testing.assert_allclose(slope * x - price, (weights[:, None] * x - costs[:, None]).max(axis=0), atol=1e-12)
    assert np.isin(slope, weights).all()


@pytest.mark.parametrize("budget", ["sum", "product"])
def test_splits_between_grid_points_lie_where_they_say(budget: Budget) -> None:
    deltas = delta_grid(30, 1e-4)
    for k in (0, 1, 15, 29):
        first, at, share = between(deltas, k, budget)
        if k == 0:
            assert not len(first)
            continue
        second = np.exp((1 - share) * np.log(deltas[at]) + share * np.log(deltas[at + 1]))
        np.testing.assert_allclose(second, left_over(deltas[k], deltas[first], budget), rtol=1e-9)
        assert ((share >= 0) & (share < 1 + 1e-12)).all()
        assert (at + 1 <= k).all()


def test_what_a_budget_leaves() -> None:
    assert left_over(0.3, 0.1, "box") == 0.3
    assert left_over(0.3, 0.1, "sum") == pytest.approx(0.2)
    assert left_over(0.3, 0.1, "product") == pytest.approx(0.2 / 0.9)
    assert left_over(1.0, 1.0, "product") == 1

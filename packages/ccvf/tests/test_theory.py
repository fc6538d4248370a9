"""The slow derivation agrees with itself and with brute force."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize

from ccvf import theory


@pytest.mark.parametrize("budget", ["sum", "product"])
def test_the_split_of_a_chain_is_that_of_a_general_optimiser(budget: str) -> None:
    weights, delta = np.array([1.0, 0.7, 0.2, 0.4]), 0.3
    split = theory.chain_split(weights, delta, budget)
    used = split.sum() if budget == "sum" else 1 - np.prod(1 - split)
    assert used == pytest.approx(delta, rel=1e-9)

    def cost(logits: np.ndarray) -> float:
        share = np.exp(logits - logits.max())
        share /= share.sum()
        first = delta * share if budget == "sum" else -np.expm1(math.log1p(-delta) * share)
        return float(weights @ np.sqrt(-np.log(first)))

    found = minimize(cost, np.zeros(4), method="BFGS", options={"gtol": 1e-9})
    assert float(weights @ np.sqrt(-np.log(split))) == pytest.approx(found.fun, abs=1e-9)


def test_two_equal_steps_share_evenly() -> None:
    np.testing.assert_allclose(theory.chain_split(np.ones(2), 0.1, "sum"), 0.05, rtol=1e-9)
    np.testing.assert_allclose(theory.chain_split(np.ones(2), 0.1, "product"), 1 - math.sqrt(0.9), rtol=1e-9)


def test_budgets_are_nested_and_bounds_symmetric() -> None:
    for delta in (1e-4, 0.05, 0.5):
        total, product, box = (
            theory.chain_bound([0.5, 1, 0], [3, 9, 20], delta, 0.9, 0.3, budget) for budget in ("sum", "product", "box")
        )
        assert total < product < box
    plain = 0.5 + 0.9
    for budget in ("sum", "product", "box"):
        low = theory.chain_bound([0.5, 1, 0], [3, 9, 20], 0.05, 0.9, 0.3, budget)
        high = theory.chain_bound([0.5, 1, 0], [3, 9, 20], 0.05, 0.9, 0.3, budget, upper=True)
        assert low + high == pytest.approx(2 * plain)


def test_box_of_a_chain_in_closed_form() -> None:
    found = theory.chain_bound([0] * 6, [20] * 6, 0.05, 0.95, 1.0, "box")
    assert found == pytest.approx(-math.sqrt(math.log(20) / 20) * (1 - 0.95**6) / 0.05, rel=1e-12)


def test_out_of_range_confidences_are_refused() -> None:
    for budget, delta in (("sum", 0.7), ("product", 1.0), ("sum", 0.0)):
        with pytest.raises(ValueError, match="outside"):
            theory.chain_split(np.ones(2), delta, budget)
    with pytest.raises(ValueError, match="budget"):
        theory.chain_split(np.ones(2), 0.1, "other")


def test_an_endless_union_costs_little_more_than_none() -> None:
    for gamma in (0.9, 0.99, 0.999):
        box = math.sqrt(math.log(20) / 5) / (1 - gamma)
        cost = theory.unbounded_horizon_cost(0.05, 5, gamma, 1.0)
        assert box < cost < box * math.sqrt(1 + 2 * math.log(math.pi / math.sqrt(6) / (1 - gamma)) / math.log(20))
    # the best split of a long chain is at least as good
    best = -theory.chain_bound([0] * 150, [5] * 150, 0.05, 0.9, 1.0, "sum")
    assert best < theory.unbounded_horizon_cost(0.05, 5, 0.9, 1.0)


def test_hoeffdings_size_is_the_inequalitys() -> None:
    n, delta, low, high = 17, 0.03, -1.0, 2.0
    assert theory.hoeffding_alpha(low, high) * math.sqrt(math.log(1 / delta) / n) == pytest.approx(
        (high - low) * math.sqrt(math.log(1 / delta) / (2 * n))
    )

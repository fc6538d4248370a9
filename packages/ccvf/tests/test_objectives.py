"""Losses of the learners against plain formulas."""

import math
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from ccvf.objectives import (
    best_next,
    conservative_gap,
    expectile_loss,
    split_confidences,
    stratified_u,
    take,
    td_loss,
)


def test_take_and_best_next_pick_what_they_say() -> None:
    q = torch.arange(12.0).view(2, 2, 3)
    assert take(q, torch.tensor([0, 2])).tolist() == [[0.0, 3.0], [8.0, 11.0]]
    chooser = torch.tensor([[[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]])
    assert best_next(chooser, q[:1]).tolist() == [[1.0, 3.0]]


@pytest.mark.parametrize("huber", [None, 0.5, 2.0])
def test_td_loss_is_half_the_square_up_to_the_threshold_and_linear_after(huber: float | None) -> None:
    error = torch.linspace(-3, 3, 25, dtype=torch.float64)
    wanted = []
    for e in error.tolist():
        linear = huber is not None and abs(e) > huber
        wanted.append(huber * (abs(e) - huber / 2) if linear and huber is not None else e * e / 2)
    assert float(td_loss(error, torch.zeros_like(error), huber)) == pytest.approx(np.mean(wanted), rel=1e-12)


def test_the_conservative_gap_of_equal_values_is_log_actions() -> None:
    gap = conservative_gap(torch.full((3, 2, 5), 7.0), torch.tensor([0, 1, 4]))
    assert gap.shape == (3, 2)
    assert torch.allclose(gap, torch.full((3, 2), math.log(5)))


def test_the_minimiser_of_the_expectile_loss_balances_weighted_errors() -> None:
    sample = torch.tensor([0.0, 1.0, 4.0], dtype=torch.float64)
    value = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    # For tau = 0.8 and a value between 1 and 4: 0.2 (v + v - 1) = 0.8 (4 - v), so v = 3.4 / 1.2.
    expectile_loss(sample - (value + 3.4 / 1.2), 0.8).backward()
    assert value.grad is not None
    assert float(value.grad) == pytest.approx(0.0, abs=1e-12)
    assert float(expectile_loss(sample - 1.0, 0.5)) == pytest.approx(0.5 * (1 + 0 + 9) / 3)


def test_stratified_draws_lie_one_in_each_stratum() -> None:
    u = stratified_u(50, 8, 3.2, torch.Generator().manual_seed(0))
    assert u.shape == (50, 8)
    assert torch.equal((u / 0.4).floor().long(), torch.arange(8).expand(50, 8))


@pytest.mark.property
@settings(deadline=None, max_examples=60)
@given(delta=st.floats(1e-4, 1.0), budget=st.sampled_from(["box", "sum", "product"]), seed=st.integers(0, 2**31 - 1))
def test_every_split_is_within_its_budget(delta: float, budget: Any, seed: int) -> None:
    noise = torch.rand(6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    deltas = torch.tensor([[delta]], dtype=torch.float64)
    first, rest = (x.flatten() for x in split_confidences(deltas, noise, budget, 1e-12))
    assert bool((first > 0).all())
    assert bool((rest > 0).all())
    if budget == "box":
        assert bool((first <= delta).all() and (rest <= delta).all())
    elif budget == "sum":
        assert torch.allclose(first + rest, torch.full_like(first, delta), rtol=1e-12)
    else:
        assert torch.allclose((1 - first) * (1 - rest), torch.full_like(first, 1 - delta), rtol=1e-9, atol=1e-12)


def test_the_product_leaves_no_less_than_the_sum_and_everything_at_one() -> None:
    noise, deltas = torch.full((6,), 0.5), torch.tensor([[1e-6, 0.01, 0.5, 1.0]])
    (own, later), (own_sum, later_sum) = (split_confidences(deltas, noise, b, 1e-12) for b in ("product", "sum"))
    assert bool((own >= own_sum * (1 - 1e-6)).all())
    assert bool((later >= later_sum * (1 - 1e-6)).all())
    assert bool((own[0, -1] == 1).all() and (later[0, -1] == 1).all())


def test_what_is_left_of_a_budget_stays_where_networks_are_trained() -> None:
    _, rest = split_confidences(torch.tensor([[1e-4]]), torch.full((4,), 0.5), "sum", 1e-4)
    assert rest.min() == pytest.approx(1e-4)

"""On random logs with gaps: the fast solver is the naive one, budgets are nested, values rise with the confidence."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccvf import theory
from ccvf.confidence import delta_grid
from ccvf.counts import Counts
from ccvf.splits import Budget
from ccvf.tabular import TabularCCVL

SEEDS = st.integers(0, 2**32 - 1)
RANGES = ((0.0, 1.0), (-1.0, 0.0), (-1.0, 2.0))


def drawn(seed: int) -> tuple[Counts, float, tuple[float, float]]:
    rng = np.random.default_rng(seed)
    S, A, size = int(rng.integers(1, 5)), int(rng.integers(1, 4)), int(rng.integers(1, 40))
    low, high = RANGES[int(rng.integers(3))]
    counts = Counts.from_arrays(
        rng.integers(S, size=size), rng.integers(A, size=size), rng.uniform(low, high, size),
        rng.integers(S, size=size), rng.random(size) < 0.2, n_states=S, n_actions=A,
    )  # fmt: skip
    return counts, float(10.0 ** rng.uniform(-2, 1)), (low, high)


@pytest.mark.property
@settings(max_examples=30)
@given(
    seed=SEEDS,
    budget=st.sampled_from(["box", "box with the trivial bound", "sum", "product"]),
    upper=st.booleans(),
    pairs=st.booleans(),
)
def test_the_solver_is_the_naive_one(seed: int, budget: str, upper: bool, pairs: bool) -> None:
    counts, alpha, rewards = drawn(seed)
    deltas, gamma = delta_grid(7, 1e-4), 0.8
    kind: Budget = budget.split()[0]  # pyrefly: ignore
    solver = TabularCCVL(
        gamma, alpha=alpha, budget=kind, bound="upper" if upper else "lower", deltas=deltas,
        union="pairs" if pairs else "none", reward_range=rewards, trivial=True if " " in budget else None, tol=1e-10,
    )  # fmt: skip
    found = solver.fit(counts).unwrap()
    p = counts.probabilities.toarray().reshape(*counts.visits.shape, counts.n_states)
    expected = theory.naive_values(
        p, counts.mean_reward, counts.visits, deltas, gamma, alpha, kind, found.return_range[1 if upper else 0],
        trivial=budget != "box", union=counts.visits.size if pairs else 1, upper=upper,
    )  # fmt: skip
    np.testing.assert_allclose(found.q[counts.seen], expected[counts.seen], atol=1e-9 * (1 + alpha))


@pytest.mark.property
@settings(max_examples=30)
@given(seed=SEEDS, upper=st.booleans())
def test_budgets_are_nested_and_values_rise_with_the_confidence(seed: int, upper: bool) -> None:
    counts, alpha, rewards = drawn(seed)
    bound = "upper" if upper else "lower"
    side = -1 if upper else 1
    found = {}
    for budget in ("sum", "product", "box"):
        solver = TabularCCVL(
            0.9,
            alpha=alpha,
            budget=budget,
            bound=bound,
            deltas=delta_grid(30, 1e-5),
            reward_range=rewards,
            trivial=True,
        )
        found[budget] = side * solver.fit(counts).unwrap().q
        assert (np.diff(found[budget], axis=-1) >= 0).all()  # bit for bit, at the lowest grid point too
    plain = side * TabularCCVL(
        0.9, alpha=alpha, bound=bound, deltas=delta_grid(30, 1e-5), reward_range=rewards
    ).fit(counts).unwrap().q  # fmt: skip
    seen, room = counts.seen, 1e-7 * (1 + alpha)
    assert (found["sum"] <= found["product"] + room)[seen].all()
    assert (found["product"] <= found["box"] + room)[seen].all()
    assert (plain <= found["box"] + room)[seen].all()
    assert (np.diff(plain, axis=-1) >= 0).all()


@pytest.mark.property
@settings(max_examples=30)
@given(seed=SEEDS, budget=st.sampled_from(["box", "sum", "product"]))
def test_lower_bounds_lie_below_upper_ones_and_interpolated_above_certified(seed: int, budget: Budget) -> None:
    counts, alpha, rewards = drawn(seed)
    args = {"alpha": alpha, "budget": budget, "deltas": delta_grid(15, 1e-4), "reward_range": rewards}
    low, high = (TabularCCVL(0.9, bound=bound, **args).fit(counts).unwrap() for bound in ("lower", "upper"))
    assert (low.q <= high.q + 1e-7)[counts.seen].all()
    between = TabularCCVL(0.9, splits="interpolated", **args).fit(counts).unwrap()
    assert (between.q >= low.q - 1e-7)[counts.seen].all()
    assert (np.diff(between.q, axis=-1) >= 0).all()


@pytest.mark.property
@settings(max_examples=30)
@given(seed=SEEDS)
def test_more_data_of_the_same_kind_raise_lower_bounds(seed: int) -> None:
    counts, alpha, rewards = drawn(seed)
    twice = counts.merge(counts)
    for budget in ("box", "sum", "product"):
        solver = TabularCCVL(0.9, alpha=alpha, budget=budget, deltas=delta_grid(15), reward_range=rewards)
        once, more = solver.fit(counts).unwrap(), solver.fit(twice).unwrap()
        assert (more.q >= once.q - 1e-7)[counts.seen].all()

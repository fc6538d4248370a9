"""The knapsack against trying everything, its bound, and the paper's greedy."""

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gact.allocation import RAW, Allocation, AllocationError, Item, allocate
from gact.theory_gradients import exhaustive, greedy_from_top
from gact.variance import law


def _items(seed, count=5):
    """Items with up to four choices, in no order, some of them alike, costs over sixteen decades."""
    rng = random.Random(seed)
    items = []
    for number in range(rng.randint(1, count)):
        choices = rng.randint(1, 4)
        sizes = tuple(rng.randint(0, 20) for _ in range(choices))
        costs = tuple(rng.choice([10 ** rng.uniform(-8, 8), float(rng.randint(0, 4))]) for _ in range(choices))
        labels = tuple(range(1, choices + 1))
        if items and rng.random() < 0.3:
            labels, sizes, costs = items[-1].bits, items[-1].nbytes, items[-1].costs
        items.append(Item(str(number), labels, sizes, costs))
    return items, rng.randint(0, 60)


def _layers(seed, count, shape=(1, 2, 4, 8)):
    """Items as a model has them: sizes of any kind, sensitivities over six decades."""
    rng = random.Random(seed)
    items = []
    for number in range(count):
        numel = rng.choice([2**16, 2**18, 3 * 2**17, rng.randint(10**4, 10**6)])
        sizes = {b: numel * b // 8 + numel // 32 for b in shape} | {RAW: 4 * numel}
        items.append(Item.from_law(f"layer{number}", 10 ** rng.uniform(-4, 2), sizes))
    return items


def _columns(items):
    return [item.nbytes for item in items], [item.costs for item in items]


@pytest.mark.parametrize("seed", range(120))
def test_equals_trying_everything(seed):
    items, budget = _items(seed)
    best = exhaustive(*_columns(items), budget)
    found, quick = allocate(items, budget), allocate(items, budget, exact=False)
    if best is None:
        assert found.status == quick.status == "infeasible"
        return
    assert found.status == "optimal"
    assert found.cost == pytest.approx(best[1], rel=1e-6, abs=0)
    for allocation in (found, quick):
        assert allocation.bound <= best[1] * (1 + 1e-12) <= allocation.cost * (1 + 2e-12)
        assert allocation.nbytes <= budget
        _is_consistent(items, allocation)


def _is_consistent(items: list[Item], allocation: Allocation) -> None:
    places = [item.bits.index(allocation.bits[item.key]) for item in items]
    assert sum(item.nbytes[j] for item, j in zip(items, places, strict=True)) == allocation.nbytes
    assert math.fsum(item.costs[j] for item, j in zip(items, places, strict=True)) == pytest.approx(allocation.cost)


@pytest.mark.parametrize("share", [0.3, 0.6, 1.0, 1.7, 4.0])
@pytest.mark.parametrize("count", [3, 30, 300])
def test_models(count, share):
    items = _layers(count, count)
    budget = int(share * sum(item.nbytes[1] for item in items))
    if budget < sum(min(item.nbytes) for item in items):
        assert allocate(items, budget).status == "infeasible"
        return
    found, quick = allocate(items, budget), allocate(items, budget, exact=False)
    old = greedy_from_top(*_columns(items), budget)
    assert old is not None
    assert found.status == "optimal"
    assert quick.bound <= found.bound * (1 + 1e-12) <= found.cost * (1 + 2e-12) <= quick.cost * (1 + 3e-12)
    assert found.cost <= old[1] * (1 + 1e-12)


def test_the_paper_s_greedy_can_be_arbitrarily_bad():
    # Greedy from the top lowers the cheap large one first, and then still has to lower the other: a waste.
    sizes, costs = [(1, 10), (1, 100)], [(1.0, 0.0), (5.0, 0.0)]
    items = [Item(str(k), (1, 8), n, c) for k, (n, c) in enumerate(zip(sizes, costs, strict=True))]
    assert greedy_from_top(sizes, costs, 101) == ((1, 0), 5.0)
    assert allocate(items, 101).cost == 1.0


def test_no_limit_takes_the_cheapest():
    items = _layers(0, 10)
    found = allocate(items, math.inf)
    assert set(found.bits.values()) == {RAW}
    assert found.cost == found.bound == found.gap == 0.0


def test_nothing_to_allocate():
    assert allocate([], 0) == Allocation({}, 0, 0.0, 0.0, "optimal")


def test_too_small_a_budget_says_the_smallest():
    items = _layers(1, 4)
    smallest = sum(min(item.nbytes) for item in items)
    found = allocate(items, smallest - 1)
    assert found.status == "infeasible"
    assert found.nbytes == smallest
    with pytest.raises(AllocationError, match=f"smallest possible is {smallest} bytes"):
        found.unwrap()
    assert allocate(items, smallest).unwrap().nbytes == smallest


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_known_gets_the_most_bits(bad):
    sizes = {2: 25, 4: 50, 8: 100}
    items = [Item.from_law("known", 1.0, sizes), Item.from_law("unknown", bad, sizes)]
    found = allocate(items, 150)
    assert found.bits == {"known": 4, "unknown": 8}
    assert found.unknown == ("unknown",)
    assert "unknown" in found.message
    assert math.isfinite(found.cost)


def test_a_choice_of_infinite_cost_is_not_taken():
    item = Item("masked", (1, 2, 4), (10, 20, 40), (math.nan, 1.0, 0.1))
    assert allocate([item], 30).bits == {"masked": 2}
    assert allocate([item], 15).status == "infeasible"


def test_alike_items_share_the_budget():
    items = [Item.from_law(str(k), 1.0, {2: 2, 4: 4}) for k in range(1000)]
    found = allocate(items, 2 * 1000 + 2 * 300)
    assert sorted(found.bits.values()) == [2] * 700 + [4] * 300
    assert found.status == "optimal"


def test_stops_in_time_and_says_so():
    rng = random.Random(0)
    # Strongly correlated sizes and costs: the hard kind.
    items = [Item(str(k), (1, 2), (0, n := rng.randint(10**6, 10**7)), (n + 10.0**5, 0.0)) for k in range(200)]
    found = allocate(items, sum(item.nbytes[1] for item in items) // 2, time_limit=1e-3)
    assert found.nbytes <= sum(item.nbytes[1] for item in items) // 2
    assert found.status == "within gap"
    assert found.bound <= found.cost
    assert "may exceed the optimum by up to" in found.message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (((1, 2), (1,), (0.0, 0.0)), "one of each"),
        (((), (), ()), "at least one choice"),
        (((1, 1), (1, 2), (0.0, 0.0)), "once"),
        (((1,), (-1,), (0.0,)), "whole numbers of bytes"),
        (((1,), (1,), (-1.0,)), "not negative"),
    ],
)
def test_bad_items(fields, message):
    with pytest.raises(ValueError, match=message):
        Item("x", *fields)


@pytest.mark.parametrize("budget", [math.nan, -1])
def test_bad_budgets(budget):
    with pytest.raises(ValueError, match="budget"):
        allocate([], budget)


def test_keys_must_differ():
    item = Item("x", (1,), (1,), (0.0,))
    with pytest.raises(ValueError, match="same key"):
        allocate([item, item], 5)


def test_costs_follow_the_law():
    item = Item.from_law("x", 3.0, {1: 1, 8: 8, RAW: 32})
    assert item.costs == (3.0, 3.0 * law(8), 0.0)


cost = st.one_of(st.integers(0, 5).map(float), st.floats(0, 1e6, allow_subnormal=False))
choice = st.tuples(st.integers(0, 50), cost)
tables = st.lists(st.lists(choice, min_size=1, max_size=4), min_size=1, max_size=6)


@pytest.mark.property
@given(tables, st.lists(st.integers(0, 200), min_size=2, max_size=4))
def test_bound_optimum_greedy_and_monotony(table, budgets):
    items = [
        Item(str(k), tuple(range(len(row))), tuple(n for n, _ in row), tuple(c for _, c in row))
        for k, row in enumerate(table)
    ]
    results = [allocate(items, budget) for budget in sorted(budgets)]
    for budget, found in zip(sorted(budgets), results, strict=True):
        quick = allocate(items, budget, exact=False)
        assert (found.status == "infeasible") == (quick.status == "infeasible") == (found.nbytes > budget)
        if found.status != "infeasible":
            assert quick.bound <= found.cost * (1 + 1e-9)
            assert found.cost <= quick.cost * (1 + 1e-9)
            _is_consistent(items, found)
    feasible = [found.cost for found in results if found.status != "infeasible"]
    assert all(b <= a * (1 + 2e-6) for a, b in itertools.pairwise(feasible))

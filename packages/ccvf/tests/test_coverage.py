"""Bounds hold as often as they promise, where they promise anything; reports say how often."""

import json

import numpy as np
import pytest
from scipy.stats import binom

from ccvf.counts import Counts
from ccvf.coverage import clopper_pearson, coverage_of, coverage_report
from ccvf.mdp import TabularMDP
from ccvf.splits import Budget
from ccvf.tabular import TabularCCVL

DELTAS = [0.02, 0.05, 0.1, 0.2, 0.5]


def branching(seed: int = 0) -> TabularMDP:
    """Ten states, two actions, every step to one of three states; rewards of 0 or 1 with a bias."""
    rng = np.random.default_rng(seed)
    move = np.zeros((10, 2, 10))
    for s, a in np.ndindex(10, 2):
        move[s, a, rng.choice(10, 3, replace=False)] = rng.dirichlet(np.ones(3))
    return TabularMDP.from_arrays(move, np.full((10, 2), 0.5), noise=0.5)


def tail(promised: float, sets: int, probability: float) -> int:
    """Fewest of `sets` in which a bound holds that is kept to with `promised`, but for this probability."""
    return int(binom.ppf(probability, sets, promised))


@pytest.mark.parametrize("bound", ["lower", "upper"])
def test_with_a_union_all_bounds_hold_at_once_as_often_as_promised(bound: str) -> None:
    mdp, visits = branching(), np.random.default_rng(1).integers(1, 30, (10, 2))
    for budget in ("box", "sum", "product"):
        solver = TabularCCVL(
            0.5, alpha="hoeffding", budget=budget, bound=bound, union="pairs", reward_range=(0, 1),  # pyrefly: ignore
            deltas=DELTAS if budget == "box" else np.unique(np.append(np.geomspace(1e-6, 1, 30), DELTAS)),
        )  # fmt: skip
        report = coverage_report(mdp, solver, lambda rng: mdp.draw_counts(visits, rng), 60, np.random.default_rng(2))
        # At most 2e-5 false alarms for 75 confidences and 2 sides together with 1e-7 each.
        for row in report.table():
            assert row["everywhere"] * 60 >= tail(row["nominal"], 60, 1e-7)
        assert (report.mean >= report.worst).all()


@pytest.mark.parametrize("budget", ["box", "sum", "product"])
def test_on_chains_a_bound_holds_as_often_as_promised_without_a_union(budget: Budget) -> None:
    # Coin flips visited once: the inequality is as tight as it gets.
    move = np.zeros((3, 1, 3))
    move[[0, 1, 2], 0, [1, 2, 2]] = 1
    mdp = TabularMDP.from_arrays(
        move, np.full((3, 1), 0.5), noise=0.5, terminal=np.array([False, False, True]), initial=np.array([1.0, 0, 0])
    )
    grid = DELTAS if budget == "box" else np.unique(np.append(np.geomspace(1e-6, 1, 40), DELTAS))
    solver = TabularCCVL(0.9, alpha=1 / np.sqrt(2), budget=budget, deltas=grid, return_range=(-100, 100))
    visits = np.array([[2], [2], [0]])
    report = coverage_report(mdp, solver, lambda rng: mdp.draw_counts(visits, rng), 200, np.random.default_rng(3))
    for row in report.table():  # false alarms below 5e-5 for 45 confidences with 1e-6 each
        assert row["worst"] * 200 >= tail(row["nominal"], 200, 1e-6)


def test_a_size_far_below_hoeffdings_fails_and_the_report_shows_it() -> None:
    mdp, visits = branching(), np.full((10, 2), 3)
    solver = TabularCCVL(0.5, alpha=0.02, reward_range=(0, 1), deltas=DELTAS)
    report = coverage_report(mdp, solver, lambda rng: mdp.draw_counts(visits, rng), 60, np.random.default_rng(2))
    assert report.everywhere[0] < 0.5 < report.nominal[0]
    assert report.worst_interval[0, 1] < report.nominal[0]


def test_logs_that_an_agent_walked_through_are_covered_with_their_counts() -> None:
    mdp = branching()
    solver = TabularCCVL(0.5, alpha="hoeffding", union="pairs_and_counts", reward_range=(0, 1), deltas=[0.1, 0.5])
    policy = np.full((10, 2), 0.5)
    report = coverage_report(mdp, solver, lambda rng: mdp.sample(policy, 150, rng), 60, np.random.default_rng(4))
    for row in report.table():  # false alarms below 2e-6
        assert row["everywhere"] * 60 >= tail(row["nominal"], 60, 1e-6)


def test_what_covers_what_by_hand() -> None:
    move = np.ones((1, 2, 1))
    counts = Counts.from_arrays(*(np.zeros(4, int),) * 2, np.ones(4), np.zeros(4, int), np.zeros(4, bool), n_actions=2)
    values = TabularCCVL(0.5, alpha=1.0, deltas=[np.exp(-4), np.exp(-1), 1]).fit(counts)
    np.testing.assert_allclose(values.q[0, 0], [0, 1, 2], atol=1e-7)  # (1 - u / 2) / (1 - 0.5)
    found = values.coverage(move, np.array([[0.75, 0.0]]), 0.5)  # worth 1.5
    assert found.holds.tolist() == [[[True, True, False], [True, True, True]]]
    assert found.share.tolist() == [1, 1, 0]
    assert found.everywhere.tolist() == [True, True, False]
    high = TabularCCVL(0.5, alpha=1.0, bound="upper", deltas=[np.exp(-1), 1]).fit(counts)
    np.testing.assert_allclose(high.q[0, 0], [3.5, 2], atol=1e-7)  # 1 + u / 2 + V / 2, V = 2 + 2 u of the unseen
    with pytest.raises(ValueError, match="true values of"):
        coverage_of(values, np.zeros((2, 2)))


def test_reports_are_rows_and_json() -> None:
    mdp = branching()
    sets = [mdp.draw_counts(np.full((10, 2), 5), np.random.default_rng(seed)) for seed in range(4)]
    solver = TabularCCVL(0.5, deltas=[0.1, 1])
    report = coverage_report(mdp, solver, sets)
    rows = json.loads(report.to_json())["rows"]
    assert rows == report.table()
    assert [row["nominal"] for row in rows] == [0.9, 0.0]
    assert report.sets == 4
    assert report.mean[1] == pytest.approx(
        np.mean([coverage_of(solver.fit(s), mdp.optimal(0.5).q).share[1] for s in sets])
    )
    with pytest.raises(ValueError, match="default_rng"):
        coverage_report(mdp, solver, lambda rng: sets[0])
    with pytest.raises(ValueError, match="no data set"):
        coverage_report(mdp, solver, [])


def test_clopper_pearson_keeps_its_level() -> None:
    n = 12
    low, high = clopper_pearson(np.arange(n + 1), np.full(n + 1, n), 0.9).T
    for p in (0.01, 0.3, 0.77):
        assert binom.pmf(np.flatnonzero((low <= p) & (p <= high)), n, p).sum() >= 0.9
    assert low[0] == 0
    assert high[-1] == 1
    assert binom.sf(6, n, low[7]) == pytest.approx(0.05)

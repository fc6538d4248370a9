"""Aggregates: the definitions of rliable, intervals that cover."""

import importlib

import numpy as np
import pytest

from ccvf.scores import (
    aggregate,
    interquartile_mean,
    median_of_tasks,
    normalise,
    optimality_gap,
    probability_of_improvement,
)
from common_core.stats import iqm


def scores(runs=5, tasks=3, seed=0):
    return np.random.default_rng(seed).gamma(2.0, size=(runs, tasks))


@pytest.mark.peer
@pytest.mark.parametrize(("runs", "tasks"), [(1, 1), (3, 3), (5, 2), (10, 7)])
def test_point_estimates_are_those_of_rliable(runs, tasks):
    metrics = importlib.import_module("rliable.metrics")
    x, y = scores(runs, tasks), scores(runs + 2, tasks, 1)
    assert float(interquartile_mean(x)) == pytest.approx(metrics.aggregate_iqm(x))
    assert float(median_of_tasks(x)) == pytest.approx(metrics.aggregate_median(x))
    assert float(optimality_gap(x)) == pytest.approx(metrics.aggregate_optimality_gap(x))
    found = probability_of_improvement(x.round(), y.round(), np.random.default_rng(0)).value
    assert found == pytest.approx(metrics.probability_of_improvement(x.round(), y.round()))


def test_leading_axes_are_kept():
    batch = np.stack([scores(seed=k) for k in range(4)])
    for statistic in (interquartile_mean, median_of_tasks, optimality_gap):
        np.testing.assert_allclose(statistic(batch), [float(statistic(one)) for one in batch])


def test_aggregates_come_with_intervals_and_again():
    methods = {"a": scores(), "b": scores(4, 3, 1) + 1}
    first = aggregate(methods, np.random.default_rng(0))
    assert first == aggregate(methods, np.random.default_rng(0))
    a = first["a"]
    assert (a.runs, a.tasks) == (5, 3)
    for estimate in (a.iqm, a.median, a.mean, a.optimality_gap):
        assert estimate.low < estimate.value < estimate.high
    assert a.mean.value == pytest.approx(scores().mean())
    assert set(a.to_json()) == {"iqm", "median", "mean", "optimality_gap", "runs", "tasks"}
    # A second way to the same interval: both resample runs within tasks 2,000 times and widen alike.
    other = iqm(scores(), rng=np.random.default_rng(1))
    assert (a.iqm.low, a.iqm.high) == pytest.approx((other.low, other.high), rel=0.06)


def test_a_single_run_has_no_interval():
    found = aggregate({"a": scores(1)}, np.random.default_rng(0))["a"]
    assert found.iqm.low is None
    assert probability_of_improvement(scores(1), scores(3), np.random.default_rng(0)).low is None


def test_intervals_of_three_runs_cover():
    # 400 intervals of the mean of 3 x 3 normals: at a coverage of 95 %, fewer than 362 cover with probability 1e-4. The
    # bootstrap's own standard error is sqrt(2/3) of the right one, so plain percentiles cover 84 %, 336 of 400.
    rng, covered = np.random.default_rng(0), 0
    for _ in range(400):
        found = aggregate({"a": rng.normal(size=(3, 3))}, rng, resamples=400)["a"].mean
        covered += found.low <= 0 <= found.high
    assert covered >= 362


def test_improvement_is_a_probability_with_ties_in_half():
    rng = np.random.default_rng(0)
    same = probability_of_improvement(np.ones((4, 2)), np.ones((3, 2)), rng)
    assert (same.value, same.low, same.high) == (0.5, 0.5, 0.5)
    better = probability_of_improvement(scores() + 100, scores(), rng)
    assert (better.value, better.low) == (1.0, 1.0)
    x, y = scores(), scores(4, 3, 2)
    assert probability_of_improvement(x, y, rng).value + probability_of_improvement(y, x, rng).value == pytest.approx(1)


def test_normalised_scores_place_random_and_reference():
    random, reference = np.array([-20.0, 1.0]), np.array([20.0, 3.0])
    assert normalise(np.stack([random, reference]), random, reference).tolist() == [[0, 0], [1, 1]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda rng: aggregate({"a": np.zeros((0, 3))}, rng), "shape"),
        (lambda rng: aggregate({"a": np.array([[np.nan, 1.0]])}, rng), "NaN"),
        (lambda rng: aggregate({"a": scores(), "b": scores(3, 2)}, rng), "same ones"),
        (lambda rng: aggregate({"a": scores()}, rng, confidence=1), "between 0 and 1"),
        (lambda rng: probability_of_improvement(scores(), scores(3, 2), rng), "same ones"),
        (lambda rng: normalise(scores(3, 2), np.zeros(2), np.zeros(2)), "differ"),
    ],
)
def test_what_is_wrong_is_said(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(np.random.default_rng(0))

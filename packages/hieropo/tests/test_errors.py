"""Every refusal: what it says, and that nothing has changed after it."""

import numpy as np
import pytest

from hieropo.estimators import FlatOPO, GaussianOPO, HierOPO, OracleOPO
from hieropo.prior import GaussianHierarchy
from hieropo.statistics import TaskStatistics

EYE = np.eye(2)
PRIOR = GaussianHierarchy.isotropic(2, 1.0, 0.5, 0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros(2), EYE, EYE, 0.0), "sigma is 0.0"),
        ((np.zeros(2), EYE, EYE, -1.0), "sigma is -1.0"),
        ((np.zeros(2), EYE, EYE, np.nan), "sigma is nan"),
        ((np.zeros(2), EYE, EYE, 1e-200), "sigma is 1e-200"),
        ((np.zeros(2), EYE, np.diag([1.0, -0.1]), 1.0), "Sigma_0 is not positive semi-definite"),
        ((np.zeros(2), -EYE, EYE, 1.0), "Sigma_q is not positive semi-definite"),
        ((np.zeros(2), EYE, np.array([[1.0, 0.5], [0.0, 1.0]]), 1.0), "Sigma_0 is not symmetric"),
        ((np.zeros(2), np.eye(3), EYE, 1.0), r"Sigma_q has shape \(3, 3\)"),
        ((np.zeros(2), np.full((2, 2), np.inf), EYE, 1.0), "Sigma_q holds a number that is not finite"),
        ((np.array([0.0, np.nan]), EYE, EYE, 1.0), "mu_q holds"),
        ((np.zeros((1, 2)), EYE, EYE, 1.0), "mu_q has shape"),
        ((np.zeros(0), EYE, EYE, 1.0), "mu_q has shape"),
    ],
)
def test_bad_priors(arguments, message):
    with pytest.raises(ValueError, match=message):
        GaussianHierarchy(*arguments)


def test_complex_numbers_are_not_made_real():
    with pytest.raises(TypeError, match="Sigma_0 has dtype complex128"):
        GaussianHierarchy(np.zeros(2), EYE, 1j * EYE, 1.0)


def test_bad_isotropic_priors():
    with pytest.raises(ValueError, match="sigma_0 is -1"):
        GaussianHierarchy.isotropic(2, 1.0, -1.0, 1.0)
    with pytest.raises(ValueError, match="d is 0"):
        GaussianHierarchy.isotropic(0, 1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match=r"mu has shape \(3,\)"):
        OracleOPO(PRIOR, np.zeros(3))


def test_a_prior_is_not_changed_through_the_caller():
    cov = np.eye(2)
    prior = GaussianHierarchy(np.zeros(2), cov, cov, 1.0)
    cov[0, 0] = 5.0
    assert prior.Sigma_0[0, 0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        prior.Sigma_0[0, 0] = 2.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -0.1}, "alpha is -0.1"),
        ({"alpha": np.nan}, "alpha is nan"),
        ({"delta": 0.0}, "delta is 0.0"),
        ({"delta": 0.4, "kind": "paper"}, "1/e"),
        ({"delta": 0.1, "kind": "joint"}, "kind is 'joint'"),
        ({"alpha": 0.1, "delta": 0.1}, "give one of them"),
        ({"alpha": 0.1, "kind": "joint"}, "kind is 'joint'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        HierOPO(PRIOR, **options)


def test_abstract_and_foreign_arguments():
    with pytest.raises(TypeError, match="abstract"):
        GaussianOPO(PRIOR, 0.1, None, "simultaneous")
    with pytest.raises(TypeError, match="cannot merge FlatOPO into HierOPO"):
        HierOPO(PRIOR).merge(FlatOPO(PRIOR))


@pytest.fixture
def learned():
    return HierOPO(PRIOR).fit(EYE, [1.0, 2.0], ["a", "b"])


CHANGES = [
    (lambda e: e.fit([[1.0, np.nan]], [1.0], ["a"]), ValueError, "not finite"),
    (lambda e: e.fit([[1.0, 0.0]], [np.inf], ["a"]), ValueError, "rewards"),
    (lambda e: e.fit([[1.0, 0.0]], [1.0, 2.0], ["a"]), ValueError, "rewards has shape"),
    (lambda e: e.fit([[1.0, 0.0]], [1.0], ["a", "b"]), ValueError, "task_ids has shape"),
    (lambda e: e.fit([[1.0]], [1.0], ["a"]), ValueError, "1 features given"),
    (lambda e: e.partial_fit([[1.0]], [1.0], ["a"]), ValueError, "1 features given"),
    (lambda e: e.partial_fit([[1.0, np.nan]], [1.0], ["c"]), ValueError, "not finite"),
    (lambda e: e.partial_fit([[1.0, 0.0]], [1.0], [3]), TypeError, "cannot merge"),
    (lambda e: e.merge(TaskStatistics.empty(3)), ValueError, "3 features given"),
    (lambda e: e.forget(task="c"), KeyError, "unknown task 'c'"),
    (lambda e: e.forget(rows=([[0.0, 1.0]], [1.0], ["a"])), ValueError, "cannot forget 1 rows of task 'a'"),
    (lambda e: e.forget(rows=([[1.0, 0.0]], [1.0], ["c"])), KeyError, "unknown task 'c'"),
    (lambda e: e.forget(), ValueError, "either task"),
    (lambda e: e.forget(task="a", rows=([[1.0, 0.0]], [1.0], ["a"])), ValueError, "either task"),
]


@pytest.mark.parametrize(("change", "error", "message"), CHANGES)
def test_nothing_has_changed_after_an_error(learned, change, error, message):
    before, bounds = learned.statistics, learned.lower_bound(EYE, ["a", "b", "c"])
    with pytest.raises(error, match=message):
        change(learned)
    assert learned.statistics is before
    np.testing.assert_array_equal(learned.lower_bound(EYE, ["a", "b", "c"]), bounds)


@pytest.mark.parametrize(
    ("features", "tasks", "mask", "error", "message"),
    [
        (np.zeros((2, 3, 3)), "a", None, ValueError, "action_features has shape"),
        (np.zeros(2), "a", None, ValueError, "action_features has shape"),
        (np.zeros((2, 0, 2)), "a", None, ValueError, "action_features has shape"),
        (np.full((2, 3, 2), np.nan), "a", None, ValueError, r"action_features\[0\] is not finite"),
        (np.zeros((2, 3, 2), complex), "a", None, TypeError, "real numbers"),
        (np.zeros((2, 3, 2)), ["a"], None, ValueError, "task_ids has shape"),
        (np.zeros((2, 3, 2)), 3, None, TypeError, "strings on one side and integers"),
        (np.zeros((2, 3, 2)), "a\0", None, ValueError, "NUL"),
        (np.ma.zeros((2, 3, 2)), "a", None, TypeError, "masked array"),
        (np.zeros((2, 3, 2)), np.array(1.5), None, TypeError, "holds float64"),
        (np.zeros((2, 3, 2)), "a", np.ones((2, 3)), ValueError, "mask has dtype float64"),
        (np.zeros((2, 3, 2)), "a", np.ones((3, 2), bool), ValueError, "mask has dtype bool and shape"),
        (np.zeros((2, 3, 2)), "a", np.zeros((2, 3), bool), ValueError, "row 0 has no available action"),
    ],
)
def test_bad_queries(learned, features, tasks, mask, error, message):
    with pytest.raises(error, match=message):
        learned.predict(features, tasks, mask)


def test_more_actions_wanted_than_there_are(learned):
    with pytest.raises(ValueError, match="row 0 has 3 available actions, 4 wanted"):
        learned.to_action_dist(np.zeros((2, 3, 2)), "a", len_list=4)


def test_no_rows_is_no_error(learned):
    assert learned.predict(np.zeros((0, 3, 2)), []).shape == (0,)
    assert learned.partial_fit(np.zeros((0, 2)), [], []).tasks == ["a", "b"]


def test_bad_certificates(learned):
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="draws >= 2"):
        learned.certificate(EYE, "a", rng=rng, draws=1)
    with pytest.raises(ValueError, match="at least one context"):
        learned.certificate(np.zeros((0, 2, 2)), "a", rng=rng)
    with pytest.raises(ValueError, match=r"delta is 2\.0"):
        learned.certificate(EYE, "a", rng=rng, delta=2.0)
    with pytest.raises(ValueError, match="needs at least 9999 draws"):
        learned.certificate(EYE, "a", rng=rng, delta=1e-4)

"""Off-policy evaluation against enumeration of a small discrete problem."""

import math

import numpy as np
import pytest

from hieropo import ope
from hieropo.ope import LoggedFeedback

# Three contexts, two actions, Bernoulli rewards: everything is a finite sum.
CONTEXT = np.array([0.5, 0.3, 0.2])
REWARD = np.array([[0.2, 0.7], [0.9, 0.4], [0.5, 0.5]])
LOGGING = np.array([[0.8, 0.2], [0.5, 0.5], [0.3, 0.7]])
TARGET = np.array([[0.1, 0.9], [1.0, 0.0], [0.5, 0.5]])
MODEL = np.array([[0.3, 0.5], [0.8, 0.6], [0.4, 0.5]])  # wrong, on purpose
VALUE = float(CONTEXT @ np.sum(TARGET * REWARD, axis=1))


def log_of(n, seed):
    rng = np.random.default_rng(seed)
    x = rng.choice(3, n, p=CONTEXT)
    a = (rng.random(n) < LOGGING[x, 1]).astype(int)
    y = (rng.random(n) < REWARD[x, a]).astype(float)
    return x, LoggedFeedback(a, y, LOGGING[x, a])


def moments(term):
    """Mean and variance of term(x, a, y) under the logging policy, by enumeration."""
    first = second = 0.0
    for x in range(3):
        for a in range(2):
            for y in (0.0, 1.0):
                p = CONTEXT[x] * LOGGING[x, a] * (REWARD[x, a] if y else 1 - REWARD[x, a])
                first, second = first + p * term(x, a, y), second + p * term(x, a, y) ** 2
    return first, second - first**2


def weight(x, a):
    return TARGET[x, a] / LOGGING[x, a]


def ips_term(x, a, y):
    return weight(x, a) * y


def dr_term(x, a, y):
    return TARGET[x] @ MODEL[x] + weight(x, a) * (y - MODEL[x, a])


@pytest.mark.parametrize("term", [ips_term, dr_term])
def test_terms_are_unbiased_in_the_enumeration(term):
    assert moments(term)[0] == pytest.approx(VALUE, rel=1e-12)


def test_estimates_equal_their_formulas():
    x, log = log_of(50, seed=0)
    w = TARGET[x, log.actions] / log.propensities
    ips, snips = ope.inverse_propensity(log, TARGET[x]), ope.self_normalised(log, TARGET[x])
    dr, dm = ope.doubly_robust(log, TARGET[x], MODEL[x]), ope.direct_method(TARGET[x], MODEL[x])
    assert ips.value == pytest.approx(
        np.mean([ips_term(*row) for row in zip(x, log.actions, log.rewards, strict=True)])
    )
    assert dr.value == pytest.approx(np.mean([dr_term(*row) for row in zip(x, log.actions, log.rewards, strict=True)]))
    assert snips.value == pytest.approx((w @ log.rewards) / w.sum())
    assert dm.value == pytest.approx(np.mean([TARGET[c] @ MODEL[c] for c in x]))
    assert ips.effective_n == pytest.approx(w.sum() ** 2 / (w @ w))
    assert ips.max_weight == w.max()
    assert (dm.effective_n, dm.max_weight) == (50, 1)


def test_means_and_standard_errors_over_repetitions():
    runs, n = 400, 200
    found = {"ips": np.empty((runs, 2)), "snips": np.empty((runs, 2)), "dr": np.empty((runs, 2))}
    for run in range(runs):
        x, log = log_of(n, seed=100 + run)
        for name, values in found.items():
            estimate = evaluate(name, x, log)
            values[run] = estimate.value, estimate.stderr
    snips_variance = moments(lambda x, a, y: weight(x, a) * (y - VALUE))[1]  # linearised, mean weight one
    exact = {"ips": moments(ips_term)[1], "dr": moments(dr_term)[1], "snips": snips_variance}
    for name, values in found.items():
        std = math.sqrt(exact[name] / n)
        # Mean within 5 standard errors (SNIPS has a bias of order 1/n = 0.005 besides): false alarm below 1e-6.
        assert values[:, 0].mean() == pytest.approx(VALUE, abs=5 * std / math.sqrt(runs) + 0.005 * (name == "snips"))
        assert values[:, 0].std() == pytest.approx(std, rel=5 / math.sqrt(2 * runs))
        assert values[:, 1].mean() == pytest.approx(std, rel=0.05)


def evaluate(estimator, x, log, **options):
    if estimator == "dm":
        return ope.direct_method(TARGET[x], MODEL[x], **options)
    if estimator == "dr":
        return ope.doubly_robust(log, TARGET[x], MODEL[x], **options)
    return {"ips": ope.inverse_propensity, "snips": ope.self_normalised}[estimator](log, TARGET[x], **options)


INTERVALS = [(e, i) for e in ("ips", "snips", "dr", "dm") for i in ("normal", "bootstrap", "bernstein")]
INTERVALS.remove(("snips", "bernstein"))  # a ratio has no such interval; the refusal is tested below


@pytest.mark.parametrize(("estimator", "interval"), INTERVALS)
def test_intervals_cover(estimator, interval):
    runs, n, hits = 60, 120, 0
    truth = VALUE if estimator != "dm" else float(CONTEXT @ np.sum(TARGET * MODEL, axis=1))
    for run in range(runs):
        x, log = log_of(n, seed=1000 + run)
        options = {"confidence": 0.9, "interval": interval}
        if interval == "bootstrap":
            options["rng"] = np.random.default_rng(run)
        if interval == "bernstein" and estimator == "dm":
            options["value_range"] = (0.0, 1.0)
        elif interval == "bernstein":
            options |= {"reward_range": (0.0, 1.0), "min_propensity": 0.2}
        found = evaluate(estimator, x, log, **options)
        assert found.low <= found.value <= found.high
        hits += found.low <= truth <= found.high
    # Coverage 0.9 of 60 runs (0.88 allowed for n = 120): fewer than 42 has probability below 1e-4.
    assert hits >= 42
    if interval == "bernstein":
        assert hits == runs


def test_evaluating_the_logging_policy_is_the_mean_reward():
    x, log = log_of(80, seed=5)
    for found in (ope.inverse_propensity(log, LOGGING[x]), ope.self_normalised(log, LOGGING[x])):
        assert found.value == pytest.approx(log.rewards.mean())
        assert found.effective_n == pytest.approx(80)
        assert found.stderr == pytest.approx(log.rewards.std(ddof=1) / math.sqrt(80))


def test_invariances():
    x, log = log_of(80, seed=6)
    shifted = LoggedFeedback(log.actions, log.rewards + 7, log.propensities)
    assert ope.self_normalised(shifted, TARGET[x]).value == pytest.approx(ope.self_normalised(log, TARGET[x]).value + 7)
    exact = ope.doubly_robust(log, TARGET[x], np.zeros((80, 2)))
    assert exact.value == pytest.approx(ope.inverse_propensity(log, TARGET[x]).value)
    three = ope.inverse_propensity(log, TARGET[x][:, :, None])  # the shape to_action_dist returns
    assert three == ope.inverse_propensity(log, TARGET[x])


def test_effective_sample_size_by_hand():
    assert ope.effective_sample_size([1.0, 1.0, 1.0]) == 3.0
    assert ope.effective_sample_size([3.0, 0.0, 0.0]) == 1.0
    assert ope.effective_sample_size([0.0, 0.0]) == 0.0
    assert ope.effective_sample_size([1.0, 2.0]) == pytest.approx(9 / 5)


def test_one_row_has_an_infinite_interval():
    found = ope.inverse_propensity(LoggedFeedback(np.array([0]), np.array([1.0]), np.array([0.5])), [[1.0, 0.0]])
    assert (found.value, found.low, found.high) == (2.0, -math.inf, math.inf)
    assert found.estimate.n == 1


ONE = (np.array([0, 1]), np.array([1.0, 0.0]), np.array([0.5, 0.5]))


@pytest.mark.parametrize(
    ("position", "value", "error", "message"),
    [
        (2, np.array([0.5, 0.0]), ValueError, r"propensities\[1\] is 0.0"),
        (2, np.array([1.5, 0.5]), ValueError, r"propensities\[0\] is 1.5"),
        (2, np.array([np.nan, 0.5]), ValueError, r"propensities\[0\] is nan"),
        (1, np.array([np.nan, 0.5]), ValueError, r"rewards\[0\] is not finite"),
        (1, np.array([0.5]), ValueError, "shapes"),
        (0, np.array([0.0, 1.0]), TypeError, "integers"),
    ],
)
def test_bad_logs_are_refused(position, value, error, message):
    with pytest.raises(error, match=message):
        LoggedFeedback(*(value if i == position else part for i, part in enumerate(ONE)))


def test_bad_requests_are_refused():
    log, policy = LoggedFeedback(*ONE), np.array([[1.0, 0.0], [1.0, 0.0]])
    cases = [
        (lambda: ope.inverse_propensity(log, policy[:1]), "1 rows, the log 2"),
        (lambda: ope.inverse_propensity(log, policy[:, :1]), "outside 0..0"),
        (lambda: ope.inverse_propensity(log, 0.5 * policy), "not a distribution"),
        (lambda: ope.inverse_propensity(log, np.array([[2.0, -1.0], [1.0, 0.0]])), "not a distribution"),
        (lambda: ope.inverse_propensity(log, policy[0]), "action_dist has shape"),
        (lambda: ope.inverse_propensity(log, policy, confidence=1.0), "confidence is 1.0"),
        (lambda: ope.inverse_propensity(log, policy, interval="exact"), "interval is 'exact'"),
        (lambda: ope.inverse_propensity(log, policy, interval="bootstrap"), "needs rng"),
        (lambda: ope.inverse_propensity(log, policy, interval="bernstein"), "min_propensity is None"),
        (lambda: ope.inverse_propensity(log, policy, interval="bernstein", min_propensity=0.5), "reward_range is None"),
        (lambda: ope.self_normalised(log, policy, interval="bernstein"), "a ratio has"),
        (lambda: ope.direct_method(policy, policy, interval="bernstein"), "range of possible values"),
        (lambda: ope.direct_method(policy, policy[:1]), "predicted_rewards has shape"),
        (lambda: ope.direct_method(policy, policy * np.nan), "not finite"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    away = LoggedFeedback(np.array([1, 1]), *ONE[1:])
    with pytest.raises(ValueError, match="every weight is zero"):
        ope.self_normalised(away, policy)


def test_predictions_outside_the_stated_range_are_refused():
    with pytest.raises(ValueError, match="predicted_rewards leave it"):
        ope.direct_method(np.full((4, 2), 0.5), np.full((4, 2), 2.0), interval="bernstein", value_range=(0.0, 1.0))

import itertools
import json
import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common_core import stats
from common_core.stats import Estimate, bootstrap, bootstrap_mean, fit_rate, iqm, permutation_test, student_t_quantile

vectors = st.lists(st.floats(-100, 100), min_size=2, max_size=8)


def test_estimate_formats_value_and_interval():
    assert f"{Estimate(0.0451, 0.0399, 0.0503):.3f}" == "0.045 [0.040, 0.050]"
    assert f"{Estimate(0.0451):.3f}" == "0.045"
    assert str(Estimate(1.5, 1, 2)) == "1.5 [1, 2]"
    assert float(Estimate(2)) == 2.0


@pytest.mark.parametrize("value", [0.5, -math.inf, math.inf, math.nan])
def test_estimate_survives_strict_json(value):
    estimate = Estimate(value, -math.inf, 1.0, n=np.int64(7))
    back = Estimate.from_json(json.loads(json.dumps(estimate.to_json(), allow_nan=False)))
    assert (back.low, back.high, back.n) == (-math.inf, 1.0, 7)
    assert back.value == value or (math.isnan(back.value) and math.isnan(value))
    assert Estimate.from_json(3) == Estimate(3.0) == Estimate.from_any(3)
    assert Estimate(1.0).to_json() == {"value": 1.0}


def test_estimate_overlap_is_of_closed_intervals():
    middle = Estimate(0.5, 0.0, 1.0)
    assert middle.overlaps(Estimate(2, 1.0, 3.0))
    assert middle.overlaps(0.0)
    assert not middle.overlaps(1.01)
    assert not middle.overlaps(math.nan)
    assert Estimate(2.0).overlaps(Estimate(2.0))


def test_estimate_refuses_half_and_reversed_intervals():
    with pytest.raises(ValueError, match="both ends"):
        Estimate(0.0, low=-1.0)
    with pytest.raises(ValueError, match="above"):
        Estimate(0.0, 1.0, -1.0)
    with pytest.raises(ValueError, match="fields"):
        Estimate.from_json({"value": 1, "mean": 2})


@pytest.mark.parametrize("p", [1e-8, 0.01, 0.3, 0.5, 0.9, 0.999])
def test_t_quantile_closed_forms(p):
    assert student_t_quantile(p, 1) == pytest.approx(math.tan(math.pi * (p - 0.5)), rel=1e-7, abs=1e-12)
    assert student_t_quantile(p, 2) == pytest.approx((2 * p - 1) / math.sqrt(2 * p * (1 - p)), rel=1e-7, abs=1e-12)


@pytest.mark.peer
@pytest.mark.parametrize("df", [1, 2, 3, 4, 5, 8, 31, 100, 1999, 2000, 2001, 50_000])
def test_t_quantile_against_scipy(df):
    from scipy.stats import t

    p = [1e-9, 1e-4, 0.025, 0.3, 0.6, 0.975, 0.9999]
    np.testing.assert_allclose([student_t_quantile(q, df) for q in p], t.ppf(p, df), rtol=1e-7)


@pytest.mark.parametrize(("p", "df"), [(0.0, 3), (1.0, 3), (0.5, 0)])
def test_t_quantile_refuses_its_limits(p, df):
    with pytest.raises(ValueError, match="need 0 < p < 1"):
        student_t_quantile(p, df)


@pytest.mark.parametrize(("n", "resamples"), [(12, 200_000), (300, 100_000), (1000, 50_000)])
def test_bootstrap_mean_tends_to_the_student_interval(n, resamples):
    # The widening turns the bootstrap's normal limit into mean +- t s / sqrt(n). The samples are symmetric, so what is
    # left is the Monte Carlo error of the ends (about 0.01 standard errors) and, for n = 12, the light tails of a mean
    # of few bounded values. Without the factor sqrt(n / (n - 1)) the ends for n = 12 would be 0.10 off.
    x = np.array([NormalDist().inv_cdf((i + 0.5) / n) for i in range(n)])
    got = bootstrap_mean(x, rng=np.random.default_rng(0), resamples=resamples)
    error = x.std(ddof=1) / math.sqrt(n)
    reach = student_t_quantile(0.975, n - 1) * error
    assert got.value == pytest.approx(0.0, abs=1e-12)
    assert (got.low, got.high) == pytest.approx((-reach, reach), abs=0.04 * error)


def test_bootstrap_mean_covers():
    # 400 intervals of nominal 95 %: outside of [0.90, 0.99] with probability below 1e-4 if the coverage is nominal.
    rng = np.random.default_rng(1)
    hits = sum(bootstrap_mean(rng.normal(size=20), rng=rng, resamples=400).overlaps(0.0) for _ in range(400))
    assert 0.90 <= hits / 400 <= 0.99


def test_bootstrap_of_constants_and_of_one():
    rng = np.random.default_rng(0)
    assert bootstrap_mean([2.0] * 5, rng=rng) == Estimate(2.0, 2.0, 2.0, 5)
    assert bootstrap_mean([2.0], rng=rng) == Estimate(2.0, n=1)
    assert bootstrap([0.0, 1.0, 2.0], lambda x: math.nan, rng=rng).low is None


def test_bootstrap_gives_the_same_with_and_without_axis(monkeypatch):
    monkeypatch.setattr(stats, "_BLOCK", 1000)  # several blocks
    x = np.random.default_rng(0).exponential(size=30)
    at_once = bootstrap(x, np.median, rng=np.random.default_rng(1), resamples=200)
    one_by_one = bootstrap(x, lambda row: float(np.median(row)), rng=np.random.default_rng(1), resamples=200)
    assert at_once == one_by_one


def test_bootstrap_resamples_rows_together():
    x = np.random.default_rng(0).normal(size=40)
    rows = np.stack([x, 3 * x], axis=1)  # the ratio is 3 in every resample of whole rows, and in no other
    got = bootstrap(rows, lambda r: r[:, 1].sum() / r[:, 0].sum(), rng=np.random.default_rng(0), resamples=100)
    assert (got.value, got.low, got.high) == pytest.approx((3.0, 3.0, 3.0))


@pytest.mark.peer
@pytest.mark.parametrize("statistic", [np.mean, np.std])
def test_bootstrap_against_scipy(statistic):
    from scipy.stats import bootstrap as scipy_bootstrap

    x = np.random.default_rng(0).exponential(size=500)
    ours = bootstrap(x, statistic, rng=np.random.default_rng(1), resamples=20_000)
    theirs = scipy_bootstrap((x,), statistic, n_resamples=20_000, method="BCa", rng=np.random.default_rng(2))
    low, high = theirs.confidence_interval
    # Monte Carlo error of either end: about 0.5 % of the width; the widening for n = 500 adds 0.2 %.
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=0.04 * (high - low))


@pytest.mark.property
@given(x=vectors, scale=st.sampled_from([2.0, 4.0]), seed=st.integers(0, 9))
def test_bootstrap_scales_with_its_samples_and_stays_in_their_range(x, scale, seed):
    plain = bootstrap_mean(x, rng=np.random.default_rng(seed), resamples=50)
    scaled = bootstrap_mean(np.multiply(x, scale), rng=np.random.default_rng(seed), resamples=50)
    slack = 1e-9 * (1 + max(map(abs, x)))
    assert min(x) - slack <= plain.low <= plain.high <= max(x) + slack
    assert (scaled.value, scaled.low, scaled.high) == pytest.approx(
        (scale * plain.value, scale * plain.low, scale * plain.high), rel=1e-9, abs=1e-9
    )


def test_iqm_drops_a_quarter_at_either_end():
    rng = np.random.default_rng(0)
    assert iqm([-1e6, 1.0, 2.0, 1e6], rng=rng, resamples=10).value == 1.5
    assert iqm([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], rng=rng, resamples=10).value == 3.5  # 6 // 4 = 1 dropped: 2..5
    assert iqm([[1.0, 2.0, 6.0]], rng=rng) == Estimate(3.0, n=3)


def test_iqm_resamples_within_tasks():
    scores = np.tile([0.0, 10.0, 50.0, 90.0], (6, 1))  # all the variation is between tasks, and tasks are not resampled
    assert iqm(scores, rng=np.random.default_rng(0), resamples=50) == Estimate(30.0, 30.0, 30.0, 24)


def test_iqm_interval_covers_its_limit():
    # Uniform scores: the interquartile mean is 0.5 by symmetry. Nominal 95 % over 300 trials: fewer than 265 hits has
    # probability below 1e-5.
    rng = np.random.default_rng(2)
    hits = sum(iqm(rng.random((5, 8)), rng=rng, resamples=300).overlaps(0.5) for _ in range(300))
    assert hits >= 265


@pytest.mark.peer
@pytest.mark.parametrize("shape", [(5, 7), (4, 4), (3, 1)])
def test_iqm_against_scipy(shape):
    from scipy.stats import trim_mean

    x = np.random.default_rng(0).normal(size=shape)
    assert iqm(x, rng=np.random.default_rng(0), resamples=10).value == pytest.approx(trim_mean(x, 0.25, axis=None))


def test_permutation_test_closed_forms():
    rng = np.random.default_rng(0)
    a, b = [2.0, 3.0, 4.0], [1.0, 1.0, 1.0]
    assert permutation_test(a, b, rng=rng) == 1 / 8
    assert permutation_test(b, a, rng=rng) == 1.0
    assert permutation_test(b, a, rng=rng, alternative="less") == 1 / 8
    assert permutation_test(a, b, rng=rng, alternative="two-sided") == 2 / 8
    assert permutation_test(a, a, rng=rng) == 1.0


@pytest.mark.parametrize("alternative", ["greater", "less", "two-sided"])
def test_permutation_test_against_enumeration(alternative, monkeypatch):
    monkeypatch.setattr(stats, "_BLOCK", 30)  # several blocks
    d = np.array([0.1, 0.2, -0.3, 0.4, -0.5, 0.1, 0.7])  # sums that tie but for rounding
    fold = {"greater": lambda s: s, "less": lambda s: -s, "two-sided": abs}[alternative]
    sums = [round(fold(float(np.dot(signs, d))), 9) for signs in itertools.product([1, -1], repeat=len(d))]
    expected = np.mean([s >= round(fold(float(d.sum())), 9) for s in sums])
    assert permutation_test(d, np.zeros(7), rng=np.random.default_rng(0), alternative=alternative) == expected


def test_random_permutations_agree_with_all_of_them():
    rng = np.random.default_rng(0)
    a = rng.normal(0.4, 1.0, size=12)
    exact = permutation_test(a, np.zeros(12), rng=rng)
    sampled = permutation_test(a, np.zeros(12), rng=rng, resamples=4000)
    assert 0.01 < exact < 0.99
    assert abs(sampled - exact) < 5 * math.sqrt(exact * (1 - exact) / 4000) + 1 / 4000  # false alarm below 1e-6


@pytest.mark.peer
@pytest.mark.parametrize("alternative", ["greater", "less", "two-sided"])
def test_permutation_test_against_scipy(alternative):
    from scipy.stats import permutation_test as scipy_test

    a, b = np.random.default_rng(3).normal(size=(2, 9))
    theirs = scipy_test(
        (a, b), lambda x, y: np.mean(x - y), permutation_type="samples", alternative=alternative, n_resamples=np.inf
    )
    ours = permutation_test(a, b, rng=np.random.default_rng(0), alternative=alternative)
    assert ours == pytest.approx(theirs.pvalue)


@pytest.mark.property
@given(x=vectors, y=vectors)
def test_permutation_p_values_are_probabilities_and_complementary(x, y):
    n = min(len(x), len(y))
    rng = np.random.default_rng(0)
    greater = permutation_test(x[:n], y[:n], rng=rng)
    less = permutation_test(x[:n], y[:n], rng=rng, alternative="less")
    assert 2.0**-n <= greater <= 1
    assert greater + less >= 1


def test_fit_rate_recovers_a_power():
    sizes = [10, 20, 40, 80]
    got = fit_rate(sizes, [7.0 * s**-0.5 for s in sizes])
    assert (got.value, got.low, got.high) == pytest.approx((-0.5, -0.5, -0.5))
    assert fit_rate([1, 10], [1, 100]) == Estimate(2.0, n=2)


def test_fit_rate_interval_covers():
    # Exact under normal log errors: outside of [0.90, 0.99] over 500 trials with probability below 1e-5.
    rng = np.random.default_rng(0)
    sizes = np.array([10.0, 30.0, 100.0, 300.0])
    hits = sum(fit_rate(sizes, sizes**-1.0 * np.exp(rng.normal(size=4))).overlaps(-1.0) for _ in range(500))
    assert 0.90 <= hits / 500 <= 0.99


@pytest.mark.peer
def test_fit_rate_against_scipy():
    from scipy.stats import linregress, t

    x, y = np.exp(np.random.default_rng(0).normal(size=(2, 9)))
    theirs, ours = linregress(np.log(x), np.log(y)), fit_rate(x, y, confidence=0.9)
    half = t.ppf(0.95, 7) * theirs.stderr
    assert (ours.value, ours.low, ours.high) == pytest.approx((theirs.slope, theirs.slope - half, theirs.slope + half))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda rng: bootstrap_mean([], rng=rng), "at least one"),
        (lambda rng: bootstrap_mean(1.0, rng=rng), "at least one"),
        (lambda rng: bootstrap_mean([1.0, math.nan], rng=rng), "1 values that are NaN"),
        (lambda rng: bootstrap_mean([[1.0]], rng=rng), "vector"),
        (lambda rng: bootstrap_mean([1.0, 2.0], rng=rng, confidence=95), "between 0 and 1"),
        (lambda rng: bootstrap_mean([1.0, 2.0], rng=rng, resamples=0), "at least 1"),
        (lambda rng: iqm(np.zeros((2, 2, 2)), rng=rng), r"\[runs, tasks\]"),
        (lambda rng: permutation_test([1.0], [1.0, 2.0], rng=rng), "paired"),
        (lambda rng: permutation_test([1.0], [2.0], rng=rng, alternative="more"), "choose 'greater'"),
        (lambda rng: fit_rate([1.0, 2.0], [1.0, 0.0]), "exactly zero"),
        (lambda rng: fit_rate([2.0, 2.0], [1.0, 1.0]), "two different sizes"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.random.default_rng(0))

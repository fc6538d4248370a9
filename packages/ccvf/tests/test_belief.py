"""Beliefs: Bayes' rule where it applies, what must not matter, and what must not happen."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccvf.belief import PAPER, Evidence, bellman_residuals, reset, restrict, uniform, update
from ccvf.confidence import conservatism, u_grid

DELTAS = np.array([1e-3, 0.1, 1.0])
RAW = Evidence(beta=0.5, trace=0, under=1, scaled=False)


def after(residuals, evidence, belief=None):
    belief = belief or uniform(DELTAS, residuals.shape[1])
    for one in residuals:
        belief = update(belief, one, evidence)
    return belief


def noise(steps=50, envs=2, seed=0):
    return np.random.default_rng(seed).normal(size=(steps, envs, 3)) + np.array([0.5, 0.0, 0.1])


def test_posterior_odds_are_those_of_a_gaussian_likelihood():
    sigma, prior = 0.7, np.array([0.2, 0.3, 0.5])
    found = after(
        noise(), Evidence(beta=1 / (2 * sigma**2), trace=0, under=1, scaled=False), uniform(DELTAS, 2, prior=prior)
    )
    log_posterior = -(noise() ** 2).sum(0) / (2 * sigma**2) + np.log(prior)
    expected = np.exp(log_posterior) / np.exp(log_posterior).sum(-1, keepdims=True)
    np.testing.assert_allclose(found.weights, expected, rtol=1e-10)


def test_a_shared_belief_takes_in_every_environment():
    shared = after(noise(), RAW, uniform(DELTAS, 2, shared=True))
    one = after(noise().reshape(100, 1, 3), RAW)
    assert shared.weights.shape == (1, 3)
    np.testing.assert_allclose(shared.weights, one.weights, rtol=1e-10)


def test_order_matters_only_when_something_is_forgotten():
    there, back = after(noise(), RAW), after(noise()[::-1], RAW)
    np.testing.assert_allclose(there.log_weights, back.log_weights, rtol=1e-9)
    fading = Evidence(beta=0.5, trace=0, under=1, scaled=False, forget=0.9)
    assert np.abs(after(noise(), fading).weights - after(noise()[::-1], fading).weights).max() > 0.01


def test_forgetting_weighs_evidence_by_its_age():
    fading = Evidence(beta=0.3, trace=0, under=1, scaled=False, forget=0.8)
    prior = np.array([0.1, 0.1, 0.8])
    found = after(noise(), fading, uniform(DELTAS, 2, prior=prior)).log_weights
    age = 0.8 ** np.arange(50)[::-1]
    expected = np.log(prior) - 0.3 * (age[:, None, None] * noise() ** 2).sum(0)
    np.testing.assert_allclose(found - found[:, :1], expected - expected[:, :1], rtol=1e-9)
    nothing = after(np.zeros((200, 1, 3)), fading, uniform(DELTAS, 1, prior=prior))
    np.testing.assert_allclose(nothing.weights[0], prior)


def test_traces_are_sums_that_fade_and_end_with_the_episode():
    residuals, evidence = noise(6, 1), Evidence(beta=1, trace=0.5, under=0.25, scaled=False)
    belief, trace, expected = uniform(DELTAS, 1), np.zeros(3), np.zeros(3)
    for k, one in enumerate(residuals):
        belief = update(belief, one, evidence, ended=np.array([k == 2]))
        trace = 0.5 * trace + one[0]
        expected -= 0.75 * trace**2 * np.where(trace > 0, 1, 0.25)
        trace = np.zeros(3) if k == 2 else trace
    found = belief.log_weights[0]
    np.testing.assert_allclose(found - found[0], expected - expected[0], rtol=1e-10)
    np.testing.assert_allclose(belief.traces[0], trace)


def test_the_trace_leaves_white_noise_its_size_and_lifts_what_is_steady():
    # The mean of (1 - trace^2) z^2 over 2e5 unit normals has a standard error below .02 at trace .9: 8 of them pass.
    white = np.random.default_rng(0).normal(size=200_000)
    z = np.zeros_like(white)
    for t in range(1, len(z)):
        z[t] = 0.9 * z[t - 1] + white[t]
    assert abs((0.19 * z**2).mean() - 1) < 0.16
    belief = uniform(DELTAS, 1)
    for _ in range(400):
        belief = update(belief, np.array([[1.0, 0.0, 0.0]]), Evidence(beta=0, trace=0.9, under=1, scaled=False))
    assert 0.19 * belief.traces[0, 0] ** 2 == pytest.approx((1 + 0.9) / (1 - 0.9))


@given(power=st.integers(-30, 30), seed=st.integers(0, 100))
@settings(max_examples=30, deadline=None)
@pytest.mark.property
def test_scaling_the_rewards_changes_nothing(power, seed):
    residuals = noise(20, 2, seed)
    for evidence in (Evidence(), Evidence(trace=0, under=1, forget=0.9), Evidence(mix=0.01)):
        plain, scaled = after(residuals, evidence), after(residuals * 2.0**power, evidence)
        np.testing.assert_array_equal(plain.log_weights, scaled.log_weights)
        np.testing.assert_allclose(scaled.scale, plain.scale * 2.0**power, rtol=1e-12)


@given(
    seed=st.integers(0, 1000),
    size=st.floats(-150, 150),
    forget=st.sampled_from([1.0, 0.5]),
    mix=st.sampled_from([0.0, 0.01]),
    zero=st.booleans(),
)
@settings(max_examples=60, deadline=None)
@pytest.mark.property
def test_a_belief_stays_a_belief(seed, size, forget, mix, zero):
    rng = np.random.default_rng(seed)
    residuals = rng.normal(size=(30, 2, 3)) * 10.0 ** rng.uniform(min(size, 0), max(size, 0), size=(30, 2, 3))
    residuals[:, :, 0] *= not zero
    belief = after(residuals, Evidence(forget=forget, mix=mix))
    assert np.isfinite(belief.log_weights).all()
    np.testing.assert_allclose(belief.weights.sum(-1), 1)
    if mix:
        assert (belief.weights >= mix / 3 * (1 - 1e-9)).all()
    assert ((belief.entropy >= 0) & (belief.entropy <= np.log(3) + 1e-9)).all()
    assert np.isfinite(belief.mean_u).all()


def test_exact_values_everywhere_move_nothing():
    np.testing.assert_allclose(after(np.zeros((5, 2, 3)), Evidence()).weights, 1 / 3)


def test_in_a_deterministic_world_the_exact_confidence_wins():
    residuals = np.tile(np.array([-0.2, -0.1, 0.0]), (40, 1, 1))
    assert after(residuals, PAPER).weights[0, 2] > 0.999
    assert after(residuals, Evidence()).weights[0, 2] > 0.99


def test_pessimism_is_forgiven_and_optimism_is_not():
    residuals = np.tile(np.array([-0.2, -0.05, 0.2]), (10, 1, 1))
    weights = after(residuals, Evidence()).weights[0]
    assert weights[2] < weights[0] < weights[1]
    strict = after(residuals, PAPER).weights[0]
    assert strict[0] == pytest.approx(strict[2])


def test_residuals_bootstrap_what_was_cut_and_not_what_ended():
    rng = np.random.default_rng(0)
    q, after_ = rng.normal(size=(2, 4, 3, 5))
    actions, rewards, ended = np.array([0, 4, 2, 2]), rng.normal(size=4), np.array([False, True, False, True])
    found = bellman_residuals(q, actions, rewards, after_, ended, 0.9)
    for i in range(4):
        for k in range(3):
            future = 0 if ended[i] else 0.9 * max(after_[i, k])
            assert found[i, k] == pytest.approx(q[i, k, actions[i]] - rewards[i] - future)


def test_statistics_are_those_of_the_weights():
    deltas = np.array([1.0, 0.1, 1e-3])  # any order
    prior = np.array([0.5, 0.3, 0.2])
    belief = uniform(deltas, 2, prior=prior)
    np.testing.assert_allclose(belief.mean_u, prior @ conservatism(deltas))
    assert belief.mode.tolist() == [1.0, 1.0]
    np.testing.assert_allclose(belief.entropy, -(prior * np.log(prior)).sum())
    np.testing.assert_allclose(np.log(belief.effective_number), belief.entropy)
    assert [int(belief.quantile(q)[0]) for q in (0, 0.1, 0.25, 0.6, 1)] == [2, 2, 1, 0, 0]
    assert deltas[belief.nearest_mean()].tolist() == [0.1, 0.1]
    # Frequencies of 20,000 draws: standard error at most .0036, so 6 of them pass with probability > 1 - 1e-8.
    rng = np.random.default_rng(0)
    draws = np.concatenate([belief.sample(rng) for _ in range(10_000)])
    np.testing.assert_allclose(np.bincount(draws, minlength=3) / len(draws), prior, atol=0.022)


def test_restricting_conditions():
    belief = uniform(DELTAS, 2, prior=np.array([0.5, 0.3, 0.2]))
    allowed = np.array([[False, True, True], [False, False, False]])
    found = restrict(belief, allowed)
    np.testing.assert_allclose(found.weights, [[0, 0.6, 0.4], [0.5, 0.3, 0.2]])
    assert found.entropy[0] == pytest.approx(-(0.6 * np.log(0.6) + 0.4 * np.log(0.4)))
    assert set(found.sample(np.random.default_rng(0)).tolist()) <= {0, 1, 2}
    assert found.quantile(0)[0] == 1
    wide = restrict(uniform(DELTAS, 2, shared=True), allowed)
    np.testing.assert_allclose(wide.weights, [[0, 0.5, 0.5], [1 / 3] * 3])


def test_reset_forgets_evidence_and_keeps_the_scale():
    belief = after(noise(), Evidence())
    found = reset(belief, np.array([True, False]))
    np.testing.assert_allclose(found.weights[0], 1 / 3)
    np.testing.assert_array_equal(found.log_weights[1], belief.log_weights[1])
    np.testing.assert_array_equal(found.traces[0], 0)
    np.testing.assert_array_equal(found.scale, belief.scale)
    shared = after(noise(), RAW, uniform(DELTAS, 2, shared=True))
    np.testing.assert_allclose(reset(shared).weights, 1 / 3)


def test_silence_is_not_rewarded_but_errors_still_count():
    residuals, quiet = np.array([[0.0, 0.6, 0.8]]), np.array([[True, False, False]])
    found = update(uniform(DELTAS), residuals, RAW, silent=quiet).log_weights[0]
    assert found[0] - found[1] == pytest.approx(-0.5 * (0.36 + 0.64) / 2 + 0.5 * 0.36)
    wrong = update(uniform(DELTAS), np.array([[2.0, 0.6, 0.8]]), RAW, silent=quiet).log_weights[0]
    assert wrong[0] - wrong[1] == pytest.approx(-0.5 * 4 + 0.5 * 0.36)
    nobody = update(uniform(DELTAS), np.zeros((1, 3)), RAW, silent=np.ones((1, 3), bool))
    np.testing.assert_allclose(nobody.weights, 1 / 3)


def test_a_grid_of_the_package_is_fit():
    assert uniform(u_grid(7), 2).mean_u == pytest.approx(conservatism(u_grid(7)).mean())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Evidence(beta=-1), "beta"),
        (lambda: Evidence(trace=1), "trace"),
        (lambda: Evidence(under=2), "under"),
        (lambda: Evidence(forget=0), "forget"),
        (lambda: Evidence(mix=1), "mix"),
        (lambda: uniform(DELTAS, 0), "at least one environment"),
        (lambda: uniform(DELTAS, 1, prior=np.array([1.0, 0.0, 1.0])), "positive finite"),
        (lambda: uniform(np.array([0.0, 1.0])), "outside"),
        (lambda: update(uniform(DELTAS), np.array([[np.nan, 0, 0]])), "NaN"),
        (lambda: uniform(DELTAS).quantile(1.5), "quantile"),
    ],
)
def test_what_is_wrong_is_said(make, message):
    with pytest.raises(ValueError, match=message):
        make()

"""The gradient's own variance from consecutive steps, the decision to give more bits, and drift."""

import gc
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gact.guard import CoordinateSample, Decision, Drift, decide


def _parameter(*size):
    return torch.nn.Parameter(torch.zeros(size))


def _feed(sample, pairs):
    """Observe gradients one after the other; each is a list of (parameter, gradient)."""
    values = []
    for pair in pairs:
        for parameter, grad in pair:
            parameter.grad = None if grad is None else torch.as_tensor(grad)
        values.append(sample.observe())
    return values


def test_two_steps_by_hand():
    p, q = _parameter(2), _parameter(1, 1)
    sample = CoordinateSample([p, q], decay=0.5)
    first, second, third = _feed(
        sample,
        [
            [(p, [1.0, 0.0]), (q, [[0.0]])],
            [(p, [0.0, 0.0]), (q, [[3.0]])],  # ½ (1 + 9) = 5
            [(p, [0.0, 2.0]), (q, [[3.0]])],  # ½ · 4 = 2
        ],
    )
    assert math.isnan(first)
    assert [second, third] == pytest.approx([5.0, (0.5 * 5 + 2) / 1.5])
    assert sample.norm_square == pytest.approx((0.25 * 1 + 0.5 * 9 + 13) / 1.75)


def test_is_unbiased_for_the_variance_of_the_whole_gradient():
    # 12 000 coordinates of different scales, of which 200 + 50 are read; independent gradients around a fixed mean.
    # The mean over 60 samples and 10 pairs each, to 6 standard errors over the samples: false alarm below 1e-8 (with
    # 60 samples, Student's t).
    generator = torch.Generator().manual_seed(0)
    p, q = _parameter(100, 100), _parameter(2000)
    scale_p, scale_q = torch.rand(p.shape, generator=generator), 3 * torch.rand(q.shape, generator=generator)
    truth = float(scale_p.square().sum() + scale_q.square().sum())
    values = []
    for seed in range(60):
        sample = CoordinateSample([("p", p), ("q", q)], coordinates=200, seed=seed, decay=0.99)
        for _ in range(11):
            p.grad = 5 + scale_p * torch.randn(p.shape, generator=generator)
            q.grad = scale_q * torch.randn(q.shape, generator=generator)
            value = sample.observe()
        values.append(value)
    error = np.std(values, ddof=1) / math.sqrt(len(values))
    assert abs(np.mean(values) - truth) < 6 * error
    assert error < 0.03 * truth


def test_small_parameters_are_read_whole():
    p = _parameter(10)
    sample = CoordinateSample([p], coordinates=10)
    grads = np.random.default_rng(0).standard_normal((2, 10), dtype=np.float32)
    assert _feed(sample, [[(p, g)] for g in grads])[-1] == pytest.approx(0.5 * np.sum((grads[1] - grads[0]) ** 2))


def test_the_moving_mean_comes_on_top():
    p = _parameter(3)
    sample = CoordinateSample([p])
    assert _feed(sample, [[(p, [0.0, 0.0, 0.0])], [(p, [2.0, 0.0, 0.0])]])[-1] == 2.0  # no noise, ½ · 2²


def test_missing_gradients_are_left_out_of_the_pair():
    p, q = _parameter(1), _parameter(1)
    sample = CoordinateSample([p, q], decay=0.0)
    values = _feed(
        sample,
        [
            [(p, [1.0]), (q, [100.0])],
            [(p, [3.0]), (q, None)],  # only p: ½ · 4
            [(p, None), (q, [50.0])],  # nothing in common with the step before
            [(p, None), (q, None)],
            [(p, [0.0]), (q, [52.0])],  # only q: ½ · 4
        ],
    )
    assert values[1:] == [2.0, 2.0, 2.0, 2.0]


def test_sparse_gradients_are_left_out():
    p = _parameter(4, 2)
    sample = CoordinateSample([p])
    p.grad = torch.eye(4)[:, :2].to_sparse()
    assert math.isnan(sample.observe())
    assert math.isnan(sample.norm_square)


def test_parameters_come_and_go():
    p, q = _parameter(1), _parameter(1)
    sample = CoordinateSample([("p", p), ("q", q)], decay=0.0)
    _feed(sample, [[(p, [1.0]), (q, [1.0])]])
    del q
    gc.collect()
    assert _feed(sample, [[(p, [3.0])]]) == [2.0]  # held weakly: the other is gone
    r = _parameter(2)
    sample.track([("p", p), ("r", r)])
    assert _feed(sample, [[(p, [4.0]), (r, [9.0, 9.0])]]) == [0.5]  # r was not there a step ago
    assert _feed(sample, [[(p, [4.0]), (r, [9.0, 7.0])]]) == [2.0]


def test_a_parameter_that_changes_size_starts_anew():
    p = _parameter(50)
    sample = CoordinateSample([("p", p)], coordinates=20, decay=0.0)
    _feed(sample, [[(p, torch.ones(50))], [(p, torch.ones(50))]])
    larger = _parameter(80)
    sample.track([("p", larger)])
    assert _feed(sample, [[(larger, torch.full((80,), 7.0))]]) == [0.0]  # no pair of two different sizes
    assert _feed(sample, [[(larger, torch.full((80,), 6.5))]]) == [pytest.approx(0.5 * 80 * 0.25)]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_steps_that_loss_scaling_skips_do_not_count(bad):
    p = _parameter(1)
    sample = CoordinateSample([p], decay=0.0)
    values = _feed(sample, [[(p, [g])] for g in (1.0, 3.0, bad, 100.0, 102.0)])
    assert values[1:] == [2.0, 2.0, 2.0, 2.0]
    assert sample.norm_square == 102.0**2


def test_loss_scaling_is_undone():
    p = _parameter(1)
    sample = CoordinateSample([p], decay=0.0)
    for scale, grad in ((1024.0, 1.0), (512.0, 3.0)):
        p.grad = torch.tensor([grad * scale])
        value = sample.observe(scale=scale)
    assert value == 2.0


def test_half_precision_gradients_do_not_overflow():
    p = torch.nn.Parameter(torch.zeros(300, dtype=torch.float16))
    sample = CoordinateSample([p])
    p.grad = torch.full((300,), 6e4, dtype=torch.float16)
    sample.observe()
    assert sample.norm_square == pytest.approx(300 * float(p.grad[0]) ** 2)


def test_own_variance():
    p = _parameter(1)
    sample = CoordinateSample([p])
    assert math.isnan(sample.own(1.0))
    _feed(sample, [[(p, [0.0])], [(p, [2.0])]])
    assert sample.own(0.5) == 1.5
    assert sample.own(5.0) == 0.0


def test_same_seed_same_coordinates_and_state():
    p = _parameter(1000)
    grads = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0))
    one, two = (CoordinateSample([("p", p)], coordinates=10, seed=3) for _ in range(2))
    _feed(one, [[(p, g)] for g in grads[:2]])
    _feed(two, [[(p, g)] for g in grads[:2]])
    assert one.variance == two.variance
    other = CoordinateSample([("p", p)], coordinates=500, seed=9)
    state = json.loads(json.dumps(one.state_dict()))
    other.load_state_dict(state)
    assert other.variance == one.variance
    assert other.state_dict() == one.state_dict()
    assert _feed(other, [[(p, g)] for g in grads[2:]])[0] == one.variance  # the first step starts a pair
    assert CoordinateSample([("p", p)], coordinates=10, seed=4).state_dict() != one.state_dict()


def test_bad_samples():
    with pytest.raises(ValueError, match="coordinates"):
        CoordinateSample([], coordinates=0)
    with pytest.raises(ValueError, match="decay"):
        CoordinateSample([], decay=1.0)
    with pytest.raises(ValueError, match="scale"):
        CoordinateSample([]).observe(scale=0.0)


@pytest.mark.parametrize(
    ("predicted", "own", "expected"),
    [(0.5, 10.0, (False, 0.5)), (1.0, 10.0, (False, 1.0)), (3.0, 10.0, (True, 3.0)), (1.0, 0.0, (True, math.inf))],
)
def test_decisions(predicted, own, expected):
    decision = decide(predicted, own, 0.1)
    assert (decision.raise_bits, pytest.approx(decision.factor)) == expected
    assert ("give more bits" in decision.message) is expected[0]


@pytest.mark.parametrize(("predicted", "own"), [(math.nan, 1.0), (1.0, math.nan)])
def test_no_decision_on_what_is_not_known(predicted, own):
    decision = decide(predicted, own)
    assert not decision.raise_bits
    assert math.isnan(decision.factor)


def test_no_noise_no_decision():
    assert decide(0.0, 0.0) == Decision(False, 0.0, "compression adds no variance: bits stay")


@pytest.mark.parametrize(("arguments", "message"), [((1.0, 1.0, 0.0), "share"), ((-1.0, 1.0), "variances >= 0")])
def test_bad_decisions(arguments, message):
    with pytest.raises(ValueError, match=message):
        decide(*arguments)


@pytest.mark.property
@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6), st.floats(1e-3, 10))
def test_falling_by_the_factor_is_enough(predicted, own, share):
    decision = decide(predicted, own, share)
    if decision.raise_bits:
        assert decision.factor > 1
        assert not decide(predicted / decision.factor * (1 - 1e-9), own, share).raise_bits


def test_drift_of_loss_and_of_norm_both_ways():
    for losses, norms, expected in [
        ((4.0, 2.1, 1.9), (1.0, 1.0, 1.0), [False, False, True]),
        ((4.0, 7.9, 8.1), (1.0, 1.0, 1.0), [False, False, True]),
        ((4.0, 4.0, 4.0), (1.0, 1.9, 2.1), [False, False, True]),
        ((4.0, 4.0, 4.0), (1.0, 0.6, 0.4), [False, False, True]),
    ]:
        drift = Drift(decay=0.0, warmup=1)
        assert [drift.update(*pair) for pair in zip(losses, norms, strict=True)] == expected


def test_drift_asks_until_refreshed():
    drift = Drift(decay=0.0, warmup=1)
    assert [drift.update(loss) for loss in (8.0, 3.0, 2.5)] == [False, True, True]
    drift.refreshed()
    assert [drift.update(loss) for loss in (2.5, 1.3, 1.2)] == [False, False, True]


def test_one_odd_step_is_no_drift():
    drift = Drift()
    assert not any(drift.update(1.0, 1.0) for _ in range(20))
    assert not drift.update(5.0, 5.0)
    assert not any(drift.update(1.0, 1.0) for _ in range(20))
    assert any(drift.update(1.0, 5.0) for _ in range(20))


def test_drift_waits_for_its_reference():
    drift = Drift(decay=0.0, warmup=3)
    assert [drift.update(loss) for loss in (100.0, 10.0, 2.0, 1.5, 0.9)] == [False, False, False, False, True]


def test_losses_without_a_ratio_are_ignored():
    drift = Drift(decay=0.0, warmup=1)
    assert [drift.update(loss, 1.0) for loss in (-1.0, -50.0, 0.0, 3.0, math.nan, math.inf)] == [False] * 6
    assert drift.update(grad_norm=3.0)


def test_drift_goes_on_from_its_state():
    one, two = Drift(warmup=2), Drift(warmup=2)
    for _ in range(5):
        one.update(4.0, 1.0)
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert two.state_dict() == one.state_dict()
    assert [one.update(0.1) for _ in range(12)] == [two.update(0.1) for _ in range(12)]
    fresh = Drift()
    fresh.load_state_dict(Drift().state_dict())
    assert not fresh.update(1.0, 1.0)


@pytest.mark.parametrize("bad", [{"factor": 1.0}, {"warmup": 0}, {"decay": 1.0}])
def test_bad_drift(bad):
    with pytest.raises(ValueError, match="give"):
        Drift(**bad)

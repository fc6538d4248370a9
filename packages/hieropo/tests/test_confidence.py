"""α from δ: closed forms, and coverage of the sets they define."""

import math

import numpy as np
import pytest

from hieropo.confidence import KINDS, alpha_from_delta, check_alpha


def test_closed_forms():
    # χ² with two degrees of freedom is exponential: √(−2 log δ).
    assert alpha_from_delta(0.05, 2) == pytest.approx(math.sqrt(-2 * math.log(0.05)), rel=1e-12)
    # One degree of freedom, two-sided: z at 1 − δ/2, the pointwise width at δ/2.
    assert alpha_from_delta(0.1, 1) == pytest.approx(alpha_from_delta(0.05, 7, "pointwise"), rel=1e-9)
    assert alpha_from_delta(0.5, 3, "pointwise") == 0.0
    assert alpha_from_delta(math.exp(-1), 4, "paper") == pytest.approx(math.sqrt(20))


@pytest.mark.parametrize("d", [1, 2, 5, 50, 500])
@pytest.mark.parametrize("delta", [math.exp(-1), 0.1, 1e-3, 1e-9])
def test_the_paper_is_wider_than_the_exact_set(d, delta):
    pointwise, simultaneous, paper = (alpha_from_delta(delta, d, kind) for kind in ("pointwise", *KINDS[::2]))
    assert pointwise < simultaneous <= paper


def test_sets_cover():
    rng = np.random.default_rng(0)
    d, delta, n = 3, 0.2, 20_000
    root = rng.standard_normal((d, d))
    theta = rng.standard_normal((n, d)) @ root.T
    cov = root @ root.T
    length = np.sqrt(np.sum(theta * np.linalg.solve(cov, theta.T).T, axis=1))
    phi = rng.standard_normal(d)
    below = theta @ phi < -alpha_from_delta(delta, d, "pointwise") * math.sqrt(phi @ cov @ phi)
    # Both misses are binomial with mean δ: five standard errors, false alarm below 1e-6 each.
    slack = 5 * math.sqrt(delta * (1 - delta) / n)
    assert np.mean(length > alpha_from_delta(delta, d)) == pytest.approx(delta, abs=slack)
    assert np.mean(below) == pytest.approx(delta, abs=slack)
    assert np.mean(length > alpha_from_delta(delta, d, "paper")) < delta


@pytest.mark.parametrize(
    ("delta", "d", "kind", "message"),
    [
        (0.0, 2, "simultaneous", "delta is 0.0"),
        (1.0, 2, "simultaneous", "delta is 1.0"),
        (math.nan, 2, "simultaneous", "delta is nan"),
        (0.6, 2, "pointwise", "delta <= 0.5"),
        (0.4, 2, "paper", "1/e"),
        (0.1, 0, "paper", "d is 0"),
        (0.1, 2, "both", "kind is 'both'"),
    ],
)
def test_refusals(delta, d, kind, message):
    with pytest.raises(ValueError, match=message):
        alpha_from_delta(delta, d, kind)


@pytest.mark.parametrize("alpha", [-0.1, math.nan, math.inf])
def test_alpha_by_hand_is_checked(alpha):
    with pytest.raises(ValueError, match="alpha >= 0"):
        check_alpha(alpha)

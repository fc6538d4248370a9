"""The certificate against closed forms, and whether it holds."""

import numpy as np
import pytest
from scipy.special import ndtr

from hieropo.confidence import alpha_from_delta
from hieropo.estimators import HierOPO
from hieropo.prior import GaussianHierarchy


def test_two_actions_have_a_closed_form(problem):
    # V(π_θ) − V(π̂) = max(0, Δᵀθ) with Δ = φ(other) − φ(chosen): the expected improvement of a Gaussian.
    p = problem(seed=1)
    est = HierOPO(p.prior, alpha=0.5).fit(p.features, p.rewards, p.codes)
    phi = np.random.default_rng(0).uniform(-1, 1, (1, 2, 3))
    posterior, chosen = est.posterior(4), int(est.predict(phi, 4)[0])
    delta = phi[0, 1 - chosen] - phi[0, chosen]
    mean, std = delta @ posterior.mean, np.sqrt(delta @ posterior.cov @ delta)
    exact = mean * ndtr(mean / std) + std * np.exp(-0.5 * (mean / std) ** 2) / np.sqrt(2 * np.pi)
    found = est.certificate(phi, 4, rng=np.random.default_rng(1), draws=40_000)
    # Five standard errors: false alarm below 1e-6, for this and for the probability below.
    assert found.expected_suboptimality == pytest.approx(exact, abs=5 * found.expected_suboptimality_stderr)
    width, s = alpha_from_delta(0.05, 3), est.uncertainty(phi, 4).std[0]
    other = ndtr(mean / std)
    bound = (width - 0.5) * s[chosen] + (width + 0.5) * (other * s[1 - chosen] + (1 - other) * s[chosen])
    assert found.bound == pytest.approx(bound, abs=5 * found.bound_stderr + 1e-12)


def test_the_papers_form_when_the_policy_has_the_width_of_the_set(problem):
    # α = β: the bound is 2 E[c(x, π_θ(x))], c = αs; with equal widths of all actions it is 2c whatever θ.
    prior = GaussianHierarchy.isotropic(2, 1.0, 1.0, 0.5)
    est = HierOPO(prior, delta=0.1)
    angles = np.linspace(0, 2, 5)
    phi = np.stack([np.cos(angles), np.sin(angles)], axis=1)[None]
    found = est.certificate(phi, "new", rng=np.random.default_rng(0), delta=0.1, draws=100)
    assert found.width == est.alpha
    assert found.bound == pytest.approx(2 * est.alpha * np.sqrt(2.0), rel=1e-12)
    assert found.worst_case == pytest.approx(found.bound, rel=1e-12)


def test_it_holds_for_parameters_drawn_from_the_model():
    # The quantile and the worst case are exceeded by the true loss with probability δ and at most δ.
    prior = GaussianHierarchy.isotropic(2, 0.5, 0.5, 0.5)
    rng, delta, runs = np.random.default_rng(2), 0.2, 400
    phi = rng.uniform(-1, 1, (15, 4, 2))
    over = np.zeros(2)
    losses, promised = np.empty(runs), np.empty(runs)
    for run in range(runs):
        theta = prior.sample(3, rng)[1]
        codes, features = np.arange(18) % 3, rng.uniform(-1, 1, (18, 2))
        rewards = np.sum(features * theta[codes], axis=1) + 0.5 * rng.standard_normal(18)
        est = HierOPO(prior, delta=delta).fit(features, rewards, codes)
        found = est.certificate(phi, 0, rng=rng, delta=delta, draws=400)
        values = phi @ theta[0]
        loss = np.mean(values.max(axis=1) - values[np.arange(15), est.predict(phi, 0)])
        over += [loss > found.quantile, loss > found.worst_case]
        losses[run], promised[run] = loss, found.expected_suboptimality
    # Binomial, five standard errors (and the quantile's own Monte-Carlo error, 1/400): false alarm below 1e-6.
    slack = 5 * np.sqrt(delta * (1 - delta) / runs) + 1 / 400
    assert over[0] / runs == pytest.approx(delta, abs=slack)
    assert over[1] / runs <= delta + slack
    # On average over the prior the expectation is right: five standard errors of the paired difference.
    gap = losses - promised
    assert abs(gap.mean()) < 5 * gap.std() / np.sqrt(runs)


def test_order_and_shrinkage(problem):
    p = problem(seed=3)
    phi = np.random.default_rng(4).uniform(-1, 1, (10, 4, 3))
    few = HierOPO(p.prior).fit(p.features, p.rewards, p.codes)
    many = HierOPO(p.prior)
    for _ in range(200):
        many.partial_fit(p.features, p.rewards, p.codes)
    a, b = (e.certificate(phi, 5, rng=np.random.default_rng(5), draws=500) for e in (few, many))
    for found in (a, b):
        assert 0 <= found.expected_suboptimality <= found.bound
        assert 0 <= found.quantile <= found.worst_case
    assert b.bound < 0.2 * a.bound


def test_masked_actions_do_not_count(problem):
    p = problem(seed=6)
    est = HierOPO(p.prior).fit(p.features, p.rewards, p.codes)
    phi = np.random.default_rng(7).uniform(-1, 1, (6, 4, 3))
    mask = np.array([True, False, True, False])
    masked = est.certificate(np.where(mask[:, None], phi, np.nan), 4, rng=np.random.default_rng(0), mask=mask)
    without = est.certificate(phi[:, mask], 4, rng=np.random.default_rng(0))
    assert masked == without


def test_string_tasks_and_common_actions(problem):
    p = problem(seed=8)
    est = HierOPO(p.prior).fit(p.features, p.rewards, p.codes.astype(str))
    found = est.certificate(np.eye(3), "4", rng=np.random.default_rng(0))
    assert found == est.certificate(np.eye(3)[None], "4", rng=np.random.default_rng(0))


def test_the_quantile_is_one_that_a_further_draw_keeps(problem):
    p = problem(seed=3)
    est = HierOPO(p.prior).fit(p.features, p.rewards, p.codes)
    phi = np.random.default_rng(0).uniform(-1, 1, (20, 4, 3))
    # 19 draws are the fewest for δ = 0.05: the quantile is their maximum, 1/20 the chance that one more exceeds it.
    few = est.certificate(phi, 4, rng=np.random.default_rng(0), draws=19)
    theta = est.sample(np.random.default_rng(0), 19, [4])[1][:, 0]
    values = np.einsum("bkd,sd->sbk", phi, theta)
    losses = (values.max(axis=2) - values[:, np.arange(20), est.predict(phi, 4)]).mean(axis=1)
    assert few.quantile == pytest.approx(losses.max(), rel=1e-12)
    with pytest.raises(ValueError, match="at least 19 draws"):
        est.certificate(phi, 4, rng=np.random.default_rng(0), draws=18)

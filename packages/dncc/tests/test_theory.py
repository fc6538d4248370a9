"""The slow derivation agrees with itself and with what is known in closed form."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dncc import theory

SEEDS = st.integers(0, 2**32 - 1)


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits (M, C), a hard label and a soft label."""
    rng = np.random.default_rng(seed)
    members, classes = int(rng.integers(1, 6)), int(rng.integers(2, 6))
    z = rng.normal(size=(members, classes)) * float(rng.choice([0.1, 1.0, 5.0]))
    return z, np.eye(classes)[rng.integers(classes)], rng.dirichlet(np.ones(classes))


@pytest.mark.property
@pytest.mark.parametrize("aggregate", ["arithmetic", "geometric"])
@given(seed=SEEDS)
def test_ensemble_loss_is_mean_loss_minus_ambiguity(aggregate: str, seed: int) -> None:
    z, hard, soft = drawn(seed)
    p = theory.softmax(z)
    for t in (hard, soft):
        mean = np.mean([theory.cross_entropy(t, member) for member in p])
        ensemble = theory.cross_entropy(t, theory.ensemble(p, aggregate))
        amb = theory.ambiguity(p, t, aggregate)
        assert amb >= -1e-12 * max(1, mean)
        np.testing.assert_allclose(ensemble, mean - amb, rtol=1e-9, atol=1e-12)


@pytest.mark.property
@given(seed=SEEDS, lam=st.floats(0, 1))
def test_the_papers_loss_interpolates_between_members_and_ensemble(seed: int, lam: float) -> None:
    z, hard, soft = drawn(seed)
    p = theory.softmax(z)
    for aggregate in ("arithmetic", "geometric"):
        for t in (hard, soft):
            mean = np.mean([theory.cross_entropy(t, member) for member in p])
            ensemble = theory.cross_entropy(t, theory.ensemble(p, aggregate))
            np.testing.assert_allclose(
                theory.dncc_loss(p, t, lam, aggregate), (1 - lam) * mean + lam * ensemble, rtol=1e-9, atol=1e-12
            )


@pytest.mark.parametrize("aggregate", ["arithmetic", "geometric"])
def test_holding_the_aggregate_constant_changes_no_gradient(aggregate: str) -> None:
    z = np.random.default_rng(0).normal(size=(4, 5))
    t = np.eye(5)[2]
    fixed = theory.ensemble(theory.softmax(z), aggregate)
    whole = theory.numeric_gradient(lambda s: theory.dncc_loss(theory.softmax(s), t, 0.7, aggregate), z)
    held = theory.numeric_gradient(lambda s: theory.dncc_loss(theory.softmax(s), t, 0.7, aggregate, fixed), z)
    np.testing.assert_allclose(held, whole, atol=1e-10)


def test_a_members_gradient_is_its_usual_one_times_its_weight() -> None:
    z, lam = np.random.default_rng(1).normal(size=(4, 5)), 0.7
    p, t = theory.softmax(z), np.eye(5)[2]
    q = theory.ensemble(p)
    weights = np.array([theory.member_weight(member[2], q[2], lam) for member in p])
    gradient = theory.numeric_gradient(lambda s: theory.dncc_loss(theory.softmax(s), t, lam), z)
    np.testing.assert_allclose(gradient, weights[:, None] * (p - t) / 4, atol=1e-10)
    np.testing.assert_allclose(weights.mean(), 1, rtol=1e-12)
    np.testing.assert_allclose(
        [theory.member_weight(member[2], q[2], 1.0) for member in p], 4 * theory.joint_responsibility(p[:, 2])
    )


def test_only_matching_pairs_of_divergence_and_aggregate_are_exact() -> None:
    p = theory.softmax(np.random.default_rng(2).normal(size=(5, 4)) * 2)
    t = np.eye(4)[1]
    mean = np.mean([theory.cross_entropy(t, member) for member in p])
    q, g = theory.ensemble(p), theory.ensemble(p, "geometric")
    wrong = {
        "KL from the mean": mean - np.mean([theory.kl(q, member) for member in p]) - theory.cross_entropy(t, q),
        "Jensen-Shannon": mean - np.mean([theory.kl(member, q) for member in p]) - theory.cross_entropy(t, q),
        "KL to the geometric mean": mean - np.mean([theory.kl(member, g) for member in p]) - theory.cross_entropy(t, g),
    }
    assert all(abs(error) > 0.01 for error in wrong.values()), wrong


def test_above_one_a_weight_turns_negative_where_stated() -> None:
    ratio = theory.unstable_below(1.25)
    assert ratio == pytest.approx(0.2)
    assert theory.member_weight(ratio * 0.5, 0.5, 1.25) == pytest.approx(0, abs=1e-12)
    assert theory.member_weight(0.9 * ratio * 0.5, 0.5, 1.25) < 0 < theory.member_weight(1.1 * ratio * 0.5, 0.5, 1.25)
    assert theory.unstable_below(1.0) == 0
    assert theory.unstable_below(0.0) == 0

"""Measures of diversity against brute force over samples, scikit-learn, and the identities between them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from dncc import diversity as d
from dncc.aggregation import aggregate_log_proba, log_softmax


def ensemble(members=5, n=300, classes=4, seed=0):
    """Log-probabilities of members that share part of their logits, and labels."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(n, classes, generator=generator, dtype=torch.float64)
    log_p = log_softmax(shared + torch.randn(members, n, classes, generator=generator, dtype=torch.float64))
    target = torch.multinomial(torch.softmax(shared, -1), 1, generator=generator)[:, 0]
    return log_p, target


def of(log_p, target):
    """All measures of pairs."""
    own = log_p.gather(-1, target.expand(len(log_p), -1).unsqueeze(-1)).squeeze(-1)
    return d.pairwise_diversity(log_p.argmax(-1), target, own), own


def test_pairs_by_brute_force():
    log_p, y = ensemble()
    votes, y_ = log_p.argmax(-1).numpy(), y.numpy()
    right = votes == y_
    found, own = of(log_p, y)
    for i in range(5):
        for j in range(5):
            n11, n10 = np.sum(right[i] & right[j]), np.sum(right[i] & ~right[j])
            n01, n00 = np.sum(~right[i] & right[j]), np.sum(~right[i] & ~right[j])
            q = (n11 * n00 - n01 * n10) / (n11 * n00 + n01 * n10)
            assert float(found.q_statistic[i, j]) == pytest.approx(q, rel=1e-12)
            assert float(found.double_fault[i, j]) == n00 / 300
            assert float(found.disagreement[i, j]) == pytest.approx(np.mean(votes[i] != votes[j]), rel=1e-12)
            assert float(found.kappa[i, j]) == pytest.approx(cohen_kappa_score(votes[i], votes[j]), rel=1e-12)
            correlation = np.corrcoef(right[i], right[j])[0, 1]
            assert float(found.error_correlation[i, j]) == pytest.approx(correlation, rel=1e-10)
            losses = np.corrcoef(-own[i].numpy(), -own[j].numpy())[0, 1]
            assert float(found.loss_correlation[i, j]) == pytest.approx(losses, rel=1e-10)


def test_the_functions_are_the_fields():
    log_p, y = ensemble()
    votes = log_p.argmax(-1)
    found, own = of(log_p, y)
    assert torch.equal(found.q_statistic, d.q_statistic(votes == y))
    assert torch.equal(found.double_fault, d.double_fault(votes == y))
    assert torch.equal(found.error_correlation, d.error_correlation(votes == y))
    assert torch.equal(found.kappa, d.cohen_kappa(votes))
    assert torch.equal(found.disagreement, d.disagreement(votes))
    assert torch.equal(found.loss_correlation, d.loss_correlation(own))
    table = d.pair_counts(votes == y)
    total = table.both + table.first + table.second + table.neither
    torch.testing.assert_close(total, torch.ones(5, 5, dtype=torch.float64), rtol=0, atol=1e-14)


def test_constant_members_have_no_association():
    right = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 1, 0]], dtype=torch.bool)
    for measure in (d.q_statistic, d.error_correlation):
        matrix = measure(right)
        assert matrix[3, 3] == 1
        assert float(matrix.abs().sum()) == 1
    kappa = d.cohen_kappa(torch.tensor([[2, 2, 2], [2, 2, 2], [0, 0, 0], [0, 1, 2]]))
    assert float(kappa[:2, :2].abs().sum()) == 0
    assert kappa[0, 2] == 0
    assert kappa[3, 3] == 1
    losses = torch.tensor([[0.1, 0.1, 0.1], [0.1, 0.2, 0.4]])
    assert d.loss_correlation(losses).tolist() == [[0, 0], [0, pytest.approx(1)]]


def test_q_of_independent_and_of_exclusive_errors():
    independent = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0]], dtype=torch.bool)
    assert d.q_statistic(independent)[0, 1] == 0
    assert d.error_correlation(independent)[0, 1] == 0
    exclusive = torch.tensor([[1, 1, 0], [0, 1, 1]], dtype=torch.bool)
    assert d.q_statistic(exclusive)[0, 1] == -1


@pytest.mark.property
@given(members=st.integers(2, 9), n=st.integers(1, 40), classes=st.integers(2, 6), seed=st.integers(0, 10**6))
def test_identities(members, n, classes, seed):
    log_p, y = ensemble(members, n, classes, seed)
    votes = log_p.argmax(-1)
    table = d.pair_counts(votes == y)
    one_right = d.mean_over_pairs(table.first + table.second)
    expected = (members - 1) / (2 * members) * one_right
    assert d.kohavi_wolpert_variance(votes == y) == pytest.approx(expected, abs=1e-14)
    entropy = d.vote_entropy(votes)
    assert bool((entropy >= 0).all())
    assert float(entropy.max()) <= np.log(min(members, classes)) + 1e-12
    for aggregate in ("arithmetic", "geometric"):
        found = d.ambiguity(log_p, y, aggregate)
        assert float(found.min()) >= -1e-12
        q = aggregate_log_proba(log_p, aggregate)
        index = y[:, None]
        ce = -log_p.gather(-1, index.expand(members, -1, -1)).mean(0)
        torch.testing.assert_close(found, (ce + q.gather(-1, index))[:, 0], rtol=0, atol=1e-12)
    information = d.mutual_information(log_p)
    assert float(information.min()) >= -1e-12
    assert float(information.max()) <= np.log(members)


def test_mutual_information_is_a_difference_of_entropies():
    log_p, _ = ensemble()
    p = log_p.exp().numpy()
    entropy = lambda q: -np.sum(q * np.log(q), -1)  # noqa: E731
    expected = entropy(p.mean(0)) - entropy(p).mean(0)
    np.testing.assert_allclose(d.mutual_information(log_p).numpy(), expected, rtol=1e-9)


def test_sure_members_that_differ_carry_log_members():
    log_p = torch.eye(3, dtype=torch.float64)[:, None].log()
    assert d.mutual_information(log_p).tolist() == pytest.approx([np.log(3)], rel=1e-12)
    assert d.vote_entropy(log_p.argmax(-1)).tolist() == pytest.approx([np.log(3)], rel=1e-12)


def test_vote_entropy_by_counting():
    votes = torch.tensor([[0, 1, 5], [0, 1, 4], [2, 1, 3], [2, 0, 2]])
    quarter, half = np.log(4) / 4, np.log(2) / 2
    expected = [2 * half, quarter - 0.75 * np.log(0.75), 4 * quarter]
    assert d.vote_entropy(votes).tolist() == pytest.approx(expected, rel=1e-12)


def test_one_member_and_equal_members_have_no_diversity():
    log_p, y = ensemble(members=1)
    same = log_p.expand(3, -1, -1)
    for members in (log_p, same):
        assert d.kohavi_wolpert_variance(members.argmax(-1) == y) == 0
        assert float(d.vote_entropy(members.argmax(-1)).abs().max()) == 0
        assert float(d.mutual_information(members).abs().max()) < 1e-14
        assert float(d.ambiguity(members, y).abs().max()) < 1e-14
        assert float(d.ambiguity(members, None, "geometric").abs().max()) < 1e-14
    assert np.isnan(d.mean_over_pairs(of(log_p, y)[0].disagreement))
    assert d.mean_over_pairs(of(same, y)[0].error_correlation) == pytest.approx(1)


def test_bad_input_is_refused():
    log_p, y = ensemble()
    votes = log_p.argmax(-1)
    with pytest.raises(ValueError, match="depends on the labels"):
        d.ambiguity(log_p)
    with pytest.raises(ValueError, match="members, batch"):
        d.disagreement(votes[:, :0])
    with pytest.raises(ValueError, match="class indices from 0"):
        d.cohen_kappa(votes - 1)
    with pytest.raises(ValueError, match="at least one of each"):
        d.pair_counts((votes == y)[:0])

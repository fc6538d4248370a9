"""Metrics of one predictor against closed forms, brute force over orders and thresholds, and torchmetrics."""

from itertools import pairwise, permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score
from torchmetrics.functional.classification import multiclass_calibration_error

from dncc import metrics as m
from dncc import selective as s
from dncc.aggregation import aggregate_log_proba, log_softmax
from dncc.predictions import checked_predictions, checked_votes


def predictions(n=400, classes=5, seed=0, scale=2.0, dtype=torch.float64):
    """Log-probabilities and labels drawn from a sharpened version of them: neither perfect nor useless."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(n, classes, generator=generator, dtype=dtype)
    target = torch.multinomial(torch.softmax(logits / 2, -1), 1, generator=generator)[:, 0]
    return log_softmax(logits), target


def tied(n=60, classes=3, levels=4, seed=0):
    """Predictions with a handful of confidences."""
    generator = torch.Generator().manual_seed(seed)
    top = torch.linspace(0.4, 0.9, levels, dtype=torch.float64)[torch.randint(levels, (n,), generator=generator)]
    p = ((1 - top) / (classes - 1))[:, None].repeat(1, classes)
    p[torch.arange(n), torch.randint(classes, (n,), generator=generator)] = top
    return p.log(), torch.randint(classes, (n,), generator=generator)


def test_likelihood_accuracy_and_brier_are_those_of_the_definition():
    log_p, y = predictions()
    p = log_p.exp().numpy()
    assert m.nll(log_p, y) == pytest.approx(log_loss(y.numpy(), p, labels=range(5)), rel=1e-12)
    assert m.accuracy(log_p, y) == np.mean(p.argmax(1) == y.numpy())
    assert m.brier_score(log_p, y) == pytest.approx(np.mean(np.sum((p - np.eye(5)[y]) ** 2, 1)), rel=1e-12)


def test_a_sure_and_right_or_wrong_prediction():
    log_p, right, wrong = torch.tensor([[0.0, -torch.inf]]), torch.tensor([0]), torch.tensor([1])
    values = (m.nll, m.brier_score, m.accuracy, m.calibration_error, m.adaptive_calibration_error, s.aurc, s.augrc)
    assert [f(log_p, right) for f in values] == [0, 0, 1, 0, 0, 0, 0]
    assert [f(log_p, wrong) for f in values] == [np.inf, 2, 0, 1, 1, 1, 0.5]
    assert m.classwise_calibration_error(log_p, wrong) == 1


def test_calibration_error_is_torchmetrics_multiclass_one():
    log_p, y = predictions(dtype=torch.float32)
    theirs = multiclass_calibration_error(log_p.exp(), y, num_classes=5, n_bins=10)
    assert m.calibration_error(log_p, y, bins=10) == pytest.approx(float(theirs), abs=1e-6)


def test_rounding_above_one_is_not_taken_for_logits():
    # Averaging equal members can leave log-probabilities of +1e-7; torchmetrics squashes what exceeds 1 as if logits.
    log_p = aggregate_log_proba(torch.tensor([[[0.0, -40.0]]] * 5)) + 1e-6
    assert float(log_p.max()) > 0
    assert m.calibration_error(log_p, torch.tensor([0])) == pytest.approx(0, abs=1e-5)


def test_classwise_error_is_the_mean_over_events():
    log_p, y = predictions(classes=3)
    p, total = log_p.exp().numpy(), 0.0
    for c in range(3):
        index = np.minimum((p[:, c] * 15).astype(int), 14)
        for b in range(15):
            inside = index == b
            if inside.any():
                total += inside.mean() * abs(np.mean(y.numpy()[inside] == c) - p[inside, c].mean())
    assert m.classwise_calibration_error(log_p, y) == pytest.approx(total / 3, rel=1e-12)


def test_reliability_points_make_up_the_calibration_error():
    log_p, y = predictions()
    points = m.reliability(log_p, y, bins=12)
    assert float(points.weight.sum()) == pytest.approx(1, abs=1e-12)
    assert float((points.weight * points.accuracy).sum()) == pytest.approx(m.accuracy(log_p, y), abs=1e-12)
    gap = float((points.weight * (points.accuracy - points.confidence).abs()).sum())
    assert gap == pytest.approx(m.calibration_error(log_p, y, bins=12), abs=1e-12)
    last = m.reliability(torch.tensor([[0.0, -torch.inf], [-0.01, np.log(1 - np.exp(-0.01))]]), torch.tensor([0, 1]))
    assert last.accuracy.tolist() == [0.5]


def test_adaptive_bins_hold_equally_many():
    p = torch.tensor([0.55, 0.6, 0.7, 0.75, 0.9, 0.95], dtype=torch.float64)
    y = torch.tensor([1, 0, 0, 0, 0, 1])
    log_p = torch.stack([p, 1 - p], 1).log()
    expected = (abs(0.5 - 0.575) + abs(1 - 0.725) + abs(0.5 - 0.925)) / 3
    assert m.adaptive_calibration_error(log_p, y, bins=3) == pytest.approx(expected, rel=1e-12)
    each = (0.55 + 0.4 + 0.3 + 0.25 + 0.1 + 0.95) / 6
    assert m.adaptive_calibration_error(log_p, y, bins=50) == pytest.approx(each, rel=1e-12)


def test_one_adaptive_bin_is_the_gap_of_the_means():
    log_p, y = predictions()
    gap = abs(m.accuracy(log_p, y) - float(log_p.exp().max(-1).values.mean()))
    assert m.adaptive_calibration_error(log_p, y, bins=1) == pytest.approx(gap, rel=1e-12)


@pytest.mark.property
@given(seed=st.integers(0, 10**6), shuffle=st.integers(0, 10**6))
def test_no_figure_depends_on_the_order_of_samples(seed, shuffle):
    log_p, y = tied(seed=seed)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(shuffle))
    for f in (m.adaptive_calibration_error, s.aurc, s.augrc, m.calibration_error, m.nll):
        assert f(log_p, y) == pytest.approx(f(log_p[order], y[order]), rel=1e-12, abs=1e-15)


def areas(errors):
    """AURC and trapezoidal AUGRC by their definitions, for errors in one order."""
    n = len(errors)
    risk = [sum(errors[:k]) / k for k in range(1, n + 1)]
    joint = [0.0] + [sum(errors[:k]) / n for k in range(1, n + 1)]
    return sum(risk) / n, sum((a + b) / 2 for a, b in pairwise(joint)) / n


def test_areas_are_means_over_the_orders_of_tied_samples():
    top = torch.tensor([0.9, 0.9, 0.8, 0.8, 0.8, 0.6], dtype=torch.float64)
    wrong = [1, 0, 0, 1, 0, 1]
    log_p, y = torch.stack([top, 1 - top], 1).log(), torch.tensor(wrong)
    orders = [[*a, *b, 5] for a in permutations((0, 1)) for b in permutations((2, 3, 4))]
    expected = np.mean([areas([wrong[i] for i in order]) for order in orders], axis=0)
    assert (s.aurc(log_p, y), s.augrc(log_p, y)) == pytest.approx(tuple(expected), rel=1e-12)


@pytest.mark.parametrize("make", [predictions, tied])
def test_augrc_is_auroc_and_accuracy(make):
    log_p, y = make()
    wrong = (log_p.argmax(-1) != y).numpy()
    a, auroc = 1 - wrong.mean(), roc_auc_score(~wrong, log_p.max(-1).values.numpy())
    assert s.augrc(log_p, y) == pytest.approx((1 - auroc) * a * (1 - a) + (1 - a) ** 2 / 2, rel=1e-12)


def test_risk_at_full_coverage_is_the_error_rate_and_a_constant_confidence_keeps_it():
    log_p, y = predictions()
    coverage, risk = s.risk_coverage(log_p, y)
    assert (float(coverage[0]), float(coverage[-1])) == (1 / 400, 1.0)
    error = 1 - m.accuracy(log_p, y)
    assert float(risk[-1]) == pytest.approx(error, rel=1e-12)
    flat = torch.zeros(len(y))
    assert s.aurc(log_p, y, flat) == pytest.approx(error, rel=1e-12)
    assert s.augrc(log_p, y, flat) == pytest.approx(error / 2, rel=1e-12)
    best = s.aurc(log_p, y, (log_p.argmax(-1) == y).double())
    assert best <= s.aurc(log_p, y) <= s.aurc(log_p, y, (log_p.argmax(-1) != y).double())


def test_detection_by_brute_force_over_pairs_and_thresholds():
    rng = np.random.default_rng(0)
    inside, outside = rng.integers(2, 12, 70) / 10, rng.integers(0, 9, 45) / 10
    found = s.detection(torch.tensor(inside), torch.tensor(outside))
    pairs = inside[:, None] - outside[None, :]
    assert found.auroc == pytest.approx(np.mean(pairs > 0) + np.mean(pairs == 0) / 2, rel=1e-12)
    rates = [np.mean(inside <= t) for t in np.unique([*inside, *outside]) if np.mean(outside <= t) >= 0.95]
    assert found.fpr95 == pytest.approx(min(rates), rel=1e-12)
    steps, hits, area = np.unique([*inside, *outside]), 0.0, 0.0
    for t in steps:
        rate = np.mean(outside <= t)
        flagged = np.sum(inside <= t) + np.sum(outside <= t)
        area, hits = area + (rate - hits) * np.sum(outside <= t) / flagged, rate
    assert found.aupr == pytest.approx(area, rel=1e-12)


def test_detection_extremes():
    low, high = torch.tensor([0.1, 0.2]), torch.tensor([0.8, 0.9])
    assert s.detection(high, low) == s.Detection(1.0, 1.0, 0.0)
    assert s.detection(low, high).auroc == 0
    assert s.detection(low, low).auroc == 0.5


def test_confidences():
    log_p = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64).log()
    assert s.negative_entropy(log_p).tolist() == pytest.approx([-np.log(2), 0], abs=1e-15)
    assert s.max_log_proba(log_p).tolist() == pytest.approx([-np.log(2), 0], abs=1e-15)


def test_half_precision_labels_of_any_integer_type_and_gradients_are_taken():
    log_p, y = predictions()
    kept = log_p.clone().requires_grad_()
    assert m.nll(kept, y.to(torch.uint8)) == m.nll(log_p, y)
    assert m.nll(log_p.bfloat16(), y) == pytest.approx(m.nll(log_p, y), rel=0.01)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda p, y: (p[None], y), ValueError, "aggregate_log_proba"),
        (lambda p, y: (p[:0], y[:0]), ValueError, "at least one sample"),
        (lambda p, y: (p[:, :1], y), ValueError, "two classes"),
        (lambda p, y: (p + 1, y), ValueError, "normalised"),
        (lambda p, y: (p * torch.nan, y), ValueError, "normalised"),
        (lambda p, y: (p, y[:-1]), ValueError, r"needs \(400,\)"),
        (lambda p, y: (p.numpy(), y), TypeError, "ndarray"),
        (lambda p, y: (p.long(), y), TypeError, "int64"),
        (lambda p, y: (p, y.double()), TypeError, "soft labels"),
        (lambda p, y: (p, y == 0), TypeError, "bool"),
        (lambda p, y: (p, y.tolist()), TypeError, "list"),
        (lambda p, y: (p, y - 1), ValueError, "from 0 to 4"),
        (lambda p, y: (p, y + 1), ValueError, "from 0 to 4"),
    ],
)
def test_bad_predictions_are_refused(change, error, words):
    log_p, y = change(*predictions())
    with pytest.raises(error, match=words):
        checked_predictions(log_p, y)


def test_bad_settings_and_confidences_are_refused():
    log_p, y = predictions()
    for bins in (0, -3):
        with pytest.raises(ValueError, match="positive integer"):
            m.calibration_error(log_p, y, bins)
    for f in (m.accuracy, m.nll, m.brier_score, m.calibration_error, m.reliability, s.aurc, s.augrc):
        with pytest.raises(ValueError, match="from 0 to 4"):
            f(log_p, y + 1)
    with pytest.raises(ValueError, match="400 NaN"):
        s.aurc(log_p, y, torch.full((400,), torch.nan))
    with pytest.raises(ValueError, match="outside"):
        s.detection(torch.zeros(3), torch.zeros(0))


def test_bad_votes_are_refused():
    votes = torch.zeros(2, 3, dtype=torch.int64)
    for bad in (votes.double(), votes == 0, votes.tolist()):
        with pytest.raises(TypeError, match=r"logits.argmax\(-1\)"):
            checked_votes(bad)
    for bad in (votes[0], votes[:0], votes - 1):
        with pytest.raises(ValueError, match="class indices from 0"):
            checked_votes(bad)

"""Metrics against torch-uncertainty's, which writes its own."""

import pytest
import torch

from dncc import diversity as d
from dncc import metrics as m
from dncc import selective as s
from dncc.aggregation import log_softmax

pytestmark = pytest.mark.peer
N, CLASSES = 500, 6


@pytest.fixture(scope="module")
def peer():
    """The peer's metrics; imported here, because only the peers session has them."""
    from torch_uncertainty.metrics import classification

    return classification


@pytest.fixture(scope="module")
def data():
    """Log-probabilities of members without ties, and labels."""
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(N, CLASSES, generator=generator, dtype=torch.float64)
    log_p = log_softmax(1.5 * shared + torch.randn(4, N, CLASSES, generator=generator, dtype=torch.float64))
    return log_p, torch.multinomial(torch.softmax(shared, -1), 1, generator=generator)[:, 0]


def theirs(metric, *arguments):
    metric.update(*arguments)
    return float(metric.compute())


@pytest.mark.parametrize("bins", [7, 15])
def test_adaptive_and_classwise_calibration(peer, data, bins):
    log_p, y = data[0][0], data[1]
    ace = peer.AdaptiveCalibrationError(task="multiclass", num_classes=CLASSES, num_bins=bins)
    assert m.adaptive_calibration_error(log_p, y, bins) == pytest.approx(theirs(ace, log_p.exp(), y), abs=1e-6)
    classwise = peer.ClasswiseCalibrationError(num_classes=CLASSES, num_bins=bins)
    assert m.classwise_calibration_error(log_p, y, bins) == pytest.approx(theirs(classwise, log_p.exp(), y), abs=1e-6)


def test_brier(peer, data):
    log_p, y = data[0][0], data[1]
    assert m.brier_score(log_p, y) == pytest.approx(theirs(peer.BrierScore(CLASSES), log_p.exp(), y), rel=1e-6)


def test_areas_differ_by_their_quadrature_only(peer, data):
    log_p, y = data[0][0], data[1]
    _, risk = s.risk_coverage(log_p, y)
    first, last = float(risk[0]), float(risk[-1])
    # The peer joins the points by straight lines between coverages 1/n and 1 and divides by that width.
    trapezia = (N * s.aurc(log_p, y) - (first + last) / 2) / (N - 1)
    assert theirs(peer.AURC(), log_p.exp(), y) == pytest.approx(trapezia, rel=1e-6)
    without_origin = (s.augrc(log_p, y) - first / N / (2 * N)) / (1 - 1 / N)
    assert theirs(peer.AUGRC(), log_p.exp(), y) == pytest.approx(without_origin, rel=1e-6)


@pytest.mark.filterwarnings("ignore:Metric `FPR95`")
def test_detection(peer, data):
    inside, outside = s.max_log_proba(data[0][0]), s.max_log_proba(data[0][1]) - 0.3
    label = torch.cat([torch.zeros(N), torch.ones(N)]).long()
    expected = theirs(peer.FPR95(pos_label=1), -torch.cat([inside, outside]), label)
    assert s.detection(inside, outside).fpr95 == pytest.approx(expected, abs=1e-7)


def test_disagreement_and_mutual_information(peer, data):
    log_p = data[0]
    p = log_p.exp().transpose(0, 1)
    expected = theirs(peer.Disagreement(), p)
    assert d.mean_over_pairs(d.disagreement(log_p.argmax(-1))) == pytest.approx(expected, rel=1e-5)
    expected = theirs(peer.MutualInformation(), p)
    assert float(d.mutual_information(log_p).mean()) == pytest.approx(expected, rel=1e-5)

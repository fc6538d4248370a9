"""The report: every figure is what its function gives, however the logits come in, and nothing is tempered unsaid."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from common_core.console import as_text
from dncc import diversity as d
from dncc import metrics as m
from dncc import selective as s
from dncc.aggregation import aggregate_log_proba, log_softmax
from dncc.ensembles import EnsembleModule
from dncc.report import EnsembleReport
from dncc.report_comparison import compare
from dncc.report_data import collect_logits
from dncc.report_scores import predicted
from dncc.temperature import MAX_TEMPERATURE, MIN_TEMPERATURE, fit_temperature, tempered


def ensemble(members=4, n=250, classes=3, seed=0, spread=1.0, signal=1.5):
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(classes, (n,), generator=generator)
    shared = signal * nn.functional.one_hot(target, classes) + torch.randn(n, classes, generator=generator)
    return shared + spread * torch.randn(members, n, classes, generator=generator), target


def report_of(*arguments, **options):
    return EnsembleReport.from_logits(*arguments, **{"resamples": 100, **options})


@pytest.fixture(scope="module")
def full():
    """A report with everything in it, and what it was made of."""
    logits, target = ensemble()
    train, val, ood = ensemble(seed=1, spread=3.0), ensemble(seed=2), ensemble(seed=3, signal=0.0)[0]
    extra = {"train_logits": train[0], "train_target": train[1], "val_logits": val[0], "val_target": val[1]}
    return report_of(logits, target, **extra, ood_logits=ood), logits, target, train, val, ood


def test_figures_are_those_of_the_functions(full):
    report, logits, target, *_ = full
    log_p = log_softmax(logits.double())
    for aggregate in ("arithmetic", "geometric"):
        log_q, found = aggregate_log_proba(log_p, aggregate), report.ensemble[aggregate]
        pairs = {
            "accuracy": m.accuracy,
            "nll": m.nll,
            "ece": m.calibration_error,
            "adaptive_ece": m.adaptive_calibration_error,
            "classwise_ece": m.classwise_calibration_error,
            "brier": m.brier_score,
            "aurc": s.aurc,
            "augrc": s.augrc,
        }
        for name, function in pairs.items():
            assert getattr(found, name) == pytest.approx(function(log_q, target), rel=1e-12)
        ambiguity = float(d.ambiguity(log_p, target, aggregate).mean())
        assert report.test[aggregate].ambiguity == pytest.approx(ambiguity, rel=1e-12)
        assert report.test[aggregate].ensemble_ce == pytest.approx(found.nll, rel=1e-12)
    for own, member in zip(log_p, report.members, strict=True):
        expected = (
            m.accuracy(own, target),
            m.nll(own, target),
            m.calibration_error(own, target),
            m.brier_score(own, target),
        )
        assert (member.accuracy, member.nll, member.ece, member.brier) == pytest.approx(expected, rel=1e-12)
    votes = log_p.argmax(-1)
    assert report.vote_entropy == pytest.approx(float(d.vote_entropy(votes).mean()))
    assert report.mutual_information == pytest.approx(float(d.mutual_information(log_p).mean()), rel=1e-12)
    assert report.kohavi_wolpert == d.kohavi_wolpert_variance(votes == target)
    assert report.pair_means()["kappa"] == d.mean_over_pairs(d.cohen_kappa(votes))


def test_blocks_do_not_show(full, monkeypatch):
    _, logits, target, *_ = full
    whole = predicted(logits, target)
    monkeypatch.setattr("dncc.report_scores._BLOCK", 4 * 3 * 7)
    parts = predicted(logits, target)
    assert torch.equal(parts.votes, whole.votes)
    torch.testing.assert_close(parts.log_proba, whole.log_proba, rtol=0, atol=1e-14)
    torch.testing.assert_close(parts.ambiguity, whole.ambiguity, rtol=0, atol=1e-14)
    torch.testing.assert_close(parts.mutual_information, whole.mutual_information, rtol=0, atol=1e-14)
    torch.testing.assert_close(parts.brier, whole.brier, rtol=0, atol=1e-14)
    assert torch.equal(parts.confidence, whole.confidence)
    assert set(predicted(logits, None).ambiguity) == {"geometric"}


def test_a_label_that_a_member_excludes(full):
    _, logits, target, *_ = full
    logits = logits.clone()
    logits[0, 0, target[0]] = -math.inf
    report = report_of(logits, target, train_logits=logits, train_target=target)
    assert report.test["arithmetic"].ce == math.inf
    assert report.test["arithmetic"].ensemble_ce == pytest.approx(report.nll.value, rel=1e-12)
    assert math.isfinite(report.nll.value)
    assert math.isnan(report.gap.nats)
    assert "probability 0" in report.text()
    assert json.loads(report.to_json())["gap"] == {"nats": "nan", "share": "nan"}


def test_intervals_hold_the_values_and_come_from_the_generator(full):
    report, logits, target, *_ = full
    for estimate in (report.nll, report.accuracy, report.ambiguity):
        assert estimate.low < estimate.value < estimate.high
        assert estimate.n == 250
    assert report.nll.value == pytest.approx(report.ensemble["arithmetic"].nll, rel=1e-12)
    same, other = report_of(logits, target, rng=np.random.default_rng(0)), report_of(logits, target, rng=1)
    assert same.nll == report.nll
    assert other.nll.low != report.nll.low


def test_the_gap_is_training_minus_test_ambiguity(full):
    report, _, _, train, *_ = full
    ambiguity = float(d.ambiguity(log_softmax(train[0].double()), train[1]).mean())
    assert report.train["arithmetic"].ambiguity == pytest.approx(ambiguity, rel=1e-12)
    assert report.gap.nats == pytest.approx(ambiguity - report.ambiguity.value, rel=1e-9)
    assert "do not carry over" in report.text()
    assert report_of(*train, train_logits=train[0], train_target=train[1]).gap.nats == 0


def test_unknown_samples_are_ranked_by_each_uncertainty(full):
    report, logits, _, _, _, ood = full
    inside, outside = (aggregate_log_proba(log_softmax(part.double())) for part in (logits, ood))
    assert report.ood["entropy"] == s.detection(s.negative_entropy(inside), s.negative_entropy(outside))
    information = [-d.mutual_information(log_softmax(part.double())) for part in (logits, ood)]
    assert report.ood["mutual information"].auroc == pytest.approx(s.detection(*information).auroc, abs=1e-12)
    assert report.ood["maximum probability"].auroc > 0.5


def test_temperature_is_the_minimiser_and_stays_in_its_own_row(full):
    report, logits, target, _, val, _ = full
    log_q = aggregate_log_proba(log_softmax(val[0].double()))
    best = minimize_scalar(lambda t: m.nll(tempered(log_q, t), val[1]), bounds=(0.1, 10), method="bounded",
                           options={"xatol": 1e-10})  # fmt: skip
    assert report.tempered.temperature == pytest.approx(best.x, rel=1e-5)
    here = aggregate_log_proba(log_softmax(logits.double()))
    assert report.tempered.scores.nll == pytest.approx(m.nll(tempered(here, report.tempered.temperature), target))
    plain = report_of(logits, target)
    assert plain.tempered is None
    assert plain.ensemble == report.ensemble
    assert "fitted on validation" in report.text()
    assert "temperature" not in plain.text()


def test_temperatures_without_optimum_end_at_the_bounds():
    log_p = torch.tensor([[0.7, 0.3], [0.2, 0.8]]).log()
    assert fit_temperature(log_p, torch.tensor([0, 1])) == MIN_TEMPERATURE
    assert fit_temperature(log_p, torch.tensor([1, 0])) == MAX_TEMPERATURE
    sure = torch.tensor([[0.0, -torch.inf]] * 4)
    assert fit_temperature(sure, torch.tensor([0, 0, 0, 0])) == MIN_TEMPERATURE


def test_geometric_reports_choose_the_geometric_average():
    logits, target = ensemble()
    report = report_of(logits, target, aggregate="geometric")
    assert report.nll.value == pytest.approx(report.ensemble["geometric"].nll, rel=1e-12)
    assert report.ambiguity.value == pytest.approx(report.test["geometric"].ambiguity, rel=1e-12)
    assert "geometric (chosen)" in as_text([report.table()])


def test_one_member_has_no_pairs():
    logits, target = ensemble(members=1)
    report = report_of(logits, target)
    assert math.isnan(report.pair_means()["disagreement"])
    assert report.ensemble["arithmetic"].nll == pytest.approx(report.members[0].nll, rel=1e-12)
    assert report.to_dict()["pair_means"]["disagreement"] == "nan"
    assert "pairs" not in report.text()


def test_impossible_labels_are_infinitely_unlikely_and_still_reported():
    logits, target = ensemble(n=20)
    logits[:, 3, target[3]] = -torch.inf
    report = report_of(logits, target)
    assert report.nll.value == math.inf
    assert report.nll.low is None
    assert json.loads(report.to_json())["nll"]["value"] == "inf"


def test_json_holds_every_figure(full):
    report = full[0]
    data = json.loads(report.to_json())
    assert data["ensemble"]["geometric"]["aurc"] == report.ensemble["geometric"].aurc
    assert data["members"][2]["brier"] == report.members[2].brier
    assert data["pairwise"]["q_statistic"] == report.pairwise.q_statistic.tolist()
    assert data["gap"]["nats"] == report.gap.nats
    assert data["ood"]["entropy"]["fpr95"] == report.ood["entropy"].fpr95
    assert data["tempered"]["temperature"] == report.tempered.temperature
    assert data["nll"]["low"] == report.nll.low


def test_arrays_half_precision_and_unsigned_labels_are_taken(full):
    report, logits, target, *_ = full
    again = report_of(logits.numpy(), target.numpy().astype(np.uint8))
    assert again.ensemble == report.ensemble
    half = report_of(logits.bfloat16().requires_grad_(), target)
    assert half.nll.value == pytest.approx(report.nll.value, rel=0.02)


class Slopes(EnsembleModule):
    """Three linear members with noise in training; one part is frozen in evaluation mode."""

    num_members, num_classes = 3, 2

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3, 4, 2, generator=generator))
        self.dropout, self.frozen = nn.Dropout(0.5), nn.BatchNorm1d(4)

    def forward(self, x):
        return torch.einsum("bi,mic->mbc", self.dropout(self.frozen(x)), self.weight)


def test_models_are_judged_in_evaluation_mode_and_left_as_they_were():
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(50, 4, generator=generator), torch.randint(2, (50,), generator=generator)
    model = Slopes().train()
    model.frozen.eval()
    report = EnsembleReport.from_model(model, (x, y), resamples=100, batch_size=16, train=(x, y), ood=x + 3, val=(x, y))
    assert (model.training, model.dropout.training, model.frozen.training) == (True, True, False)
    assert report.gap.nats == 0
    expected = report_of(model.eval()(x).detach(), y)
    assert report.ensemble["arithmetic"].nll == pytest.approx(expected.ensemble["arithmetic"].nll, rel=1e-6)
    batches = [(x[:30], y[:30]), (x[30:], y[30:])]
    loader = DataLoader(TensorDataset(x, y), batch_size=16)
    loaders = (loader, TensorDataset(x, y), batches, (x.numpy(), y.numpy()))
    for data in loaders:
        logits, target = collect_logits(model, data, batch_size=16)
        assert torch.equal(target, y)
        torch.testing.assert_close(logits, model(x).detach())
    logits, target = collect_logits(model, DataLoader(TensorDataset(x), batch_size=16), labelled=False, progress=True)
    assert target is None
    assert logits.shape == (3, 50, 2)


def test_a_plain_network_is_an_ensemble_of_one():
    x, y = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 2
    report = EnsembleReport.from_model(nn.Linear(4, 2), (x, y), resamples=50)
    assert len(report.members) == 1
    assert report.ambiguity.value == 0


def test_data_that_cannot_be_read_are_refused():
    model, x, y = Slopes(), torch.zeros(6, 4), torch.zeros(6, dtype=torch.int64)
    with pytest.raises(ValueError, match="no labels"):
        collect_logits(model, x)
    with pytest.raises(ValueError, match="6 inputs and 5 labels"):
        collect_logits(model, (x, y[:5]))
    with pytest.raises(ValueError, match="6 inputs and 5 labels"):
        collect_logits(model, [(x, y[:5])])
    with pytest.raises(ValueError, match="empty"):
        collect_logits(model, [])
    with pytest.raises(TypeError, match="3 parts"):
        collect_logits(model, [(x, y, y)])
    with pytest.raises(TypeError, match="a int"):
        collect_logits(model, 3)


def test_logits_that_do_not_fit_are_refused():
    logits, target = ensemble()
    bad = (
        ({"train_logits": logits}, "both train_logits and train_target"),
        ({"val_target": target}, "both val_logits and val_target"),
        ({"train_logits": logits[:2], "train_target": target}, "members and classes must be the same"),
        ({"ood_logits": logits[..., :2]}, "members and classes must be the same"),
        ({"ood_logits": logits[:, :0]}, "ood_logits"),
        ({"aggregate": "median"}, "'median'"),
        ({"bins": 0}, "bins is 0"),
    )
    for options, words in bad:
        with pytest.raises(ValueError, match=words):
            report_of(logits, target, **options)
    for shape, words in (((250, 3), "logits\\[None\\]"), ((2, 5, 5, 3), "flatten"), ((4, 0, 3), "at least one")):
        with pytest.raises(ValueError, match=words):
            report_of(torch.zeros(shape), target)
    with pytest.raises(ValueError, match="NaN"):
        report_of(logits * torch.nan, target)
    with pytest.raises(ValueError, match="from 0 to 2"):
        report_of(logits, target + 1)


def test_comparison_pairs_the_samples():
    logits, target = ensemble(members=6)
    reports = {
        "one": report_of(logits[:1], target),
        "six": report_of(logits, target),
        "same": report_of(logits[:1], target),
    }
    found = compare(reports, resamples=500)
    difference = found.nll_difference["six"]
    assert difference.value == pytest.approx(reports["six"].nll.value - reports["one"].nll.value, rel=1e-9)
    assert (found.nll_difference["same"].low, found.nll_difference["same"].high) == (0, 0)
    values = (reports["six"].sample_nll - reports["one"].sample_nll).numpy()
    half = 1.96 * values.std() / np.sqrt(len(values))
    # Sixth of the normal interval's width: an interval of unpaired samples would be several times wider.
    assert difference.high - difference.low == pytest.approx(2 * half, rel=1 / 6)
    lines = found.text().splitlines()
    assert len(lines) == 4
    assert "NLL - one" in lines[0]
    assert json.dumps(found.to_dict())


def test_comparison_of_other_samples_is_refused():
    logits, target = ensemble()
    reports = {"a": report_of(logits, target), "b": report_of(logits[:, :-1], target[:-1])}
    with pytest.raises(ValueError, match="'b' has 249 test samples and 'a' has 250"):
        compare(reports)
    with pytest.raises(ValueError, match="no report"):
        compare({})

"""Report and classifier on a device: the same figures as on the CPU, and pickles that load without a device."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.preprocessing import StandardScaler
from torch import nn

from dncc.classifier import DNCCClassifier
from dncc.report import EnsembleReport
from dncc.report_data import collect_logits

pytestmark = pytest.mark.gpu


def test_logits_on_a_device_are_judged_as_on_the_cpu():
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(4, 300, 5, generator=generator), torch.randint(5, (300,), generator=generator)
    options = {"resamples": 100}
    here = EnsembleReport.from_logits(logits, target, ood_logits=logits + 1, **options)
    there = EnsembleReport.from_logits(logits.cuda(), target.cuda(), ood_logits=logits.cuda() + 1, **options)
    assert there.to_dict() == here.to_dict()


def test_logits_are_collected_from_a_model_on_a_device():
    x, y = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)), torch.arange(50) % 3
    model = nn.Linear(4, 3)
    expected, _ = collect_logits(model, (x, y))
    logits, target = collect_logits(model.cuda(), (x, y), batch_size=16)
    assert logits.device.type == "cpu"
    assert torch.equal(target, y)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["full", "separate"])
def test_a_classifier_on_a_device(mode):
    X, y = load_iris(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    options = {"members": 4, "mode": mode, "hidden_sizes": (24,), "max_epochs": 15, "lr": 0.03, "random_state": 0}
    cuda_before = torch.cuda.get_rng_state()
    model = DNCCClassifier(device="cuda", **options).fit(X, y)
    assert torch.equal(torch.cuda.get_rng_state(), cuda_before)
    assert next(model.module_.parameters()).device.type == "cuda"
    assert model.score(X, y) > 0.8
    loaded = pickle.loads(pickle.dumps(model))
    assert next(loaded.module_.parameters()).device.type == "cpu"
    np.testing.assert_allclose(loaded.predict_proba(X), model.predict_proba(X), rtol=1e-3, atol=1e-5)
    assert DNCCClassifier(device="auto", **options).fit(X, y).module_ is not None
    again = DNCCClassifier(device="cuda", **options).fit(X, y)
    np.testing.assert_allclose(again.predict_proba(X), model.predict_proba(X), rtol=1e-3, atol=1e-5)

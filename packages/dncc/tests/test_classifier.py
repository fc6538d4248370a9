"""The scikit-learn classifier: scikit-learn's own checks, its conventions, and a training loop written by hand."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_iris, make_classification
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from dncc.classifier import DNCCClassifier
from dncc.classifier_parts import split
from dncc.controllers import LinearLambda
from dncc.ensembles import EnsembleModule
from dncc.guarding import GuardedLambda
from dncc.losses import DNCCLoss, IndependentLoss
from dncc.report import EnsembleReport


def quick(**options):
    defaults = {"members": 3, "hidden_sizes": (24,), "max_epochs": 12, "lr": 0.03, "random_state": 0}
    return DNCCClassifier(**{**defaults, **options})


# In float32 one check fails by rounding: weighting a sample and repeating it must agree to 1e-7.
@parametrize_with_checks([quick(dtype="float64", members=2, max_epochs=6, lr=0.05)])
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def iris():
    X, y = load_iris(return_X_y=True)
    return StandardScaler().fit_transform(X), y


@pytest.mark.parametrize("labels", [("no", "maybe", "yes"), (-5, 3, 10), (2.0, 7.0, 9.0)])
def test_labels_of_any_kind(iris, labels):
    X, y = iris
    model = quick().fit(X, np.array(labels)[y])
    plain = quick().fit(X, y)
    order = np.argsort(np.argsort(labels))
    assert list(model.classes_) == sorted(labels)
    assert set(model.predict(X)) == set(labels)
    if list(order) == [0, 1, 2]:
        np.testing.assert_array_equal(model.predict_proba(X), plain.predict_proba(X))


def test_probabilities_are_averages_of_the_members(iris):
    X, y = iris
    for aggregate in ("arithmetic", "geometric"):
        model = quick(aggregate=aggregate).fit(X, y)
        members = model.members_proba(X)
        assert members.shape == (3, 150, 3)
        mean = members.mean(0) if aggregate == "arithmetic" else np.exp(np.log(members).mean(0))
        np.testing.assert_allclose(model.predict_proba(X), mean / mean.sum(1, keepdims=True), rtol=2e-5)
        np.testing.assert_allclose(np.exp(model.predict_log_proba(X)), model.predict_proba(X), rtol=1e-6)
        assert model.score(X, y) > 0.9


def test_fits_are_deterministic_and_leave_global_generators_alone(iris):
    X, y = iris
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    dropped = lambda: nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Dropout(0.3))  # noqa: E731
    first = quick(module=dropped).fit(X, y).predict_proba(X)
    torch.rand(7)
    torch.set_rng_state(torch_before)
    assert np.array_equal(first, quick(module=dropped).fit(X, y).predict_proba(X))
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002
    assert not np.array_equal(first, quick(module=dropped, random_state=1).fit(X, y).predict_proba(X))


def test_in_a_pipeline_and_a_search_over_lambda():
    X, y = load_iris(return_X_y=True)
    pipeline = make_pipeline(StandardScaler(), quick(max_epochs=8))
    search = GridSearchCV(pipeline, {"dnccclassifier__lam": [0.0, 0.5, 1.0]}, cv=3, scoring="neg_log_loss")
    search.fit(X, y)
    assert search.best_params_["dnccclassifier__lam"] in (0.0, 0.5, 1.0)
    assert len(set(search.cv_results_["mean_test_score"])) == 3
    assert search.best_estimator_.score(X, y) > 0.85
    assert cross_val_score(pipeline, X, y, cv=3).min() > 0.6


def test_training_is_that_of_a_loop_by_hand(iris):
    X, y = iris
    model = quick(lam=0.7, batch_size=150, weight_decay=0.01).partial_fit(X, y, classes=[0, 1, 2])
    by_hand = pickle.loads(pickle.dumps(model)).module_
    optimiser = torch.optim.AdamW(by_hand.parameters(), lr=0.03, weight_decay=0.01)
    fresh = quick(lam=0.7, batch_size=150, weight_decay=0.01, max_epochs=1, lr=1e-30)
    by_hand.load_state_dict(fresh.fit(X, y).module_.state_dict())  # the same first weights, after a step of no length
    x, target, loss = torch.tensor(X, dtype=torch.float32), torch.tensor(y), DNCCLoss(0.7)
    for _ in range(5):
        optimiser.zero_grad()
        loss(by_hand(x), target).loss.backward()
        optimiser.step()
    for _ in range(4):
        model.partial_fit(X, y)
    for ours, theirs in zip(model.module_.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert model.n_iter_ == 5


def test_partial_fit_goes_on_after_pickling(iris):
    X, y = iris
    model = quick().partial_fit(X, y, classes=[0, 1, 2])
    copied = pickle.loads(pickle.dumps(model))
    assert np.array_equal(copied.partial_fit(X, y).predict_proba(X), model.partial_fit(X, y).predict_proba(X))


def test_partial_fit_of_batches_without_all_classes(iris):
    X, y = iris
    model = quick(class_weight={0: 1.0, 1: 1.0, 2: 2.0})
    for _ in range(10):
        for c in (0, 1, 2):
            model.partial_fit(X[y != c], y[y != c], classes=[0, 1, 2])
    assert model.score(X, y) > 0.85


def test_warm_start_goes_on(iris):
    X, y = iris
    model = quick(warm_start=True, max_epochs=3).fit(X, y)
    weights = [p.clone() for p in model.module_.parameters()]
    losses = [model.history_.epochs[-1].train.ce]
    losses += [model.fit(X, y).history_.epochs[0].train.ce for _ in range(3)]
    assert losses == sorted(losses, reverse=True)
    assert model.n_iter_ == 12
    with pytest.raises(ValueError, match="keeps the classes"):
        model.fit(X, y + 1)
    cold = quick(max_epochs=3).fit(X, y)
    assert all(torch.equal(a, b) for a, b in zip(weights, cold.module_.parameters(), strict=True))


def test_weights_of_classes_are_weights_of_samples(iris):
    X, y = iris
    few = np.concatenate([np.arange(60), np.arange(100, 150)])
    X, y = X[few], y[few]
    balanced = quick(class_weight="balanced").fit(X, y)
    by_hand = quick().fit(X, y, sample_weight=len(y) / (3 * np.bincount(y)[y]))
    np.testing.assert_allclose(balanced.predict_proba(X), by_hand.predict_proba(X), rtol=1e-5)
    plain = quick().fit(X, y)
    assert balanced.predict_proba(X)[:, 1].mean() > plain.predict_proba(X)[:, 1].mean()


def test_a_class_of_weight_0_is_left_out(iris):
    X, y = iris
    without = quick(class_weight={0: 0.0}, batch_size=2, max_epochs=1).fit(X, y)  # batches of it alone would be NaN
    np.testing.assert_array_equal(without.classes_, [0, 1, 2])
    assert without.predict_proba(X)[:, 0].max() < 0.5
    without.partial_fit(X[40:60], y[40:60])
    assert np.isfinite(without.predict_proba(X)).all()


def test_early_stopping_goes_back_to_the_best_epoch():
    X, y = make_classification(120, 20, n_informative=3, flip_y=0.4, random_state=0)
    model = quick(early_stopping=True, max_epochs=60, n_iter_no_change=4, validation_fraction=0.3).fit(X, y)
    history = model.history_
    assert history.stopped_early
    assert model.n_iter_ == history.best_epoch + 4 < 60
    held = [epoch.validation.ensemble_ce for epoch in history.epochs]
    assert min(held) == held[history.best_epoch - 1]
    assert model.history_.epochs[0].validation is not None
    assert quick(max_epochs=1).fit(X, y).history_.epochs[0].validation is None


def test_lambda_by_word_and_by_controller(iris):
    X, y = iris
    scheduled = quick(lam="schedule").fit(X, y)
    assert scheduled.lam_ == pytest.approx(0.9)
    assert [e.lam for e in scheduled.history_.epochs] == sorted(e.lam for e in scheduled.history_.epochs)
    guarded = quick(lam="guarded").fit(X, y)
    assert isinstance(guarded.objective_.lam, GuardedLambda)
    assert guarded.objective_.lam.epochs == 12
    watching = quick(lam=GuardedLambda(0.8, wait=0)).fit(X, y)
    assert watching.objective_.lam.epochs == 12
    own = LinearLambda(0.2, 0.6, steps=5)
    assert quick(lam=own).fit(X, y).lam_ == pytest.approx(0.6)
    assert own.value == 0.2
    assert quick(lam=0.25).fit(X, y).lam_ == 0.25


def test_lambda_trades_members_for_diversity():
    X, y = make_classification(300, 10, n_informative=5, n_classes=3, flip_y=0.2, random_state=0)
    fitted = [quick(lam=lam, members=6, max_epochs=30).fit(X, y) for lam in (0.0, 0.9)]
    apart, joint = [model.report(X, y, resamples=50) for model in fitted]
    # 0.0004 and 0.15 nats with 40 epochs: three hundred times, far beyond what another seed does.
    assert joint.ambiguity.value > 10 * apart.ambiguity.value
    assert joint.pair_means()["disagreement"] > 3 * apart.pair_means()["disagreement"]
    assert np.mean([member.nll for member in joint.members]) > np.mean([member.nll for member in apart.members])
    assert joint.nll.value < apart.nll.value  # of the ensemble, on the data that it was trained on


@pytest.mark.parametrize("mode", ["full", "partition", "separate"])
def test_modes(iris, mode):
    X, y = iris
    model = quick(mode=mode, head_hidden=(5,)).fit(X, y)
    count = sum(p.numel() for p in model.module_.parameters())
    trunk, h, C, M, F = 4 * 24 + 24, 5, 3, 3, 24
    heads = {"full": M * (F * h + h + h * C + C), "partition": F * h + M * (h + h * C + C)}
    expected = M * (trunk + F * h + h + h * C + C) if mode == "separate" else trunk + heads[mode]
    assert count == expected
    assert model.score(X, y) > 0.8
    assert model.objective_.reduction == ("sum" if mode == "separate" else "mean")
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict_proba(X), model.predict_proba(X))


def test_no_hidden_layer_is_linear(iris):
    X, y = iris
    model = quick(hidden_sizes=(), mode="full").fit(X, y)
    assert sum(p.numel() for p in model.module_.parameters()) == 3 * (4 * 3 + 3)
    logits = np.log(model.members_proba(np.stack([X[:50], 2 * X[:50], 3 * X[:50]]).reshape(150, 4)))
    contrast = (logits[..., 1:] - logits[..., :1]).reshape(3, 3, 50, 2)
    np.testing.assert_allclose(contrast[:, 1] * 2, contrast[:, 0] + contrast[:, 2], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("objective", ["dncc", "independent", "end_to_end", "mse_ncl", "kl_to_mean", "adp"])
def test_objectives(iris, objective):
    X, y = iris
    assert quick(objective=objective, lam=0.3, members=2, max_epochs=25).fit(X, y).score(X, y) > 0.8


def by_function(logits, target, sample_weight=None):
    return DNCCLoss(0.5)(logits, target, sample_weight)


def test_an_objective_may_be_a_function(iris):
    X, y = iris
    model = quick(objective=by_function).fit(X, y)
    assert np.isnan(model.lam_)
    np.testing.assert_array_equal(model.predict_proba(X), quick(lam=0.5).fit(X, y).predict_proba(X))
    assert np.array_equal(pickle.loads(pickle.dumps(model)).predict(X), model.predict(X))


def test_settings_reach_the_objective(iris):
    X, y = iris
    model = quick(label_smoothing=0.1, aggregate="geometric").fit(X, y)
    assert (model.objective_.label_smoothing, model.objective_.aggregate) == (0.1, "geometric")
    own = IndependentLoss(aggregate="geometric")
    model = quick(objective=own).fit(X, y)
    assert isinstance(model.objective_, IndependentLoss)
    assert model.objective_ is not own
    members = np.log(model.members_proba(X)).mean(0)
    np.testing.assert_array_equal(model.predict(X), members.argmax(1))  # averaged as the loss says


class Small(EnsembleModule):
    """An ensemble of one's own."""

    num_members, num_classes = 2, 3

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return torch.stack([self.first(x), self.second(x)])


def convolutions():
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())


def test_backbones_take_images():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 80)
    X = rng.normal(size=(80, 1, 8, 8)).astype(np.float32)
    X[y == 1, :, 2:6, 2:6] += 1.0
    backbone = convolutions()
    before = [p.clone() for p in backbone.parameters()]
    for module, mode in ((backbone, "partition"), (convolutions, "full"), (convolutions, "separate")):
        model = quick(module=module, mode=mode, max_epochs=10).fit(X, y)
        assert model.score(X, y) > 0.9
        assert model.members_proba(X[:5]).shape == (3, 5, 2)
        assert np.array_equal(pickle.loads(pickle.dumps(model)).predict(X), model.predict(X))
    assert all(torch.equal(a, b) for a, b in zip(before, backbone.parameters(), strict=True))
    with pytest.raises(ValueError, match="dim"):
        quick().fit(X, y)


def test_a_whole_ensemble_is_taken_as_it_is(iris):
    X, y = iris
    model = quick(module=Small, max_epochs=30).fit(X, y)
    assert isinstance(model.module_, Small)
    assert model.members_proba(X).shape == (2, 150, 3)
    assert model.score(X, y) > 0.8
    with pytest.raises(ValueError, match="3 classes; y has 2"):
        quick(module=Small).fit(X[:100], y[:100])


def test_copies_predict_the_same(iris):
    X, y = iris
    model = quick(lam=LinearLambda(0.0, 0.5, 10), module=nn.Linear(4, 6)).fit(X, y)
    assert np.array_equal(pickle.loads(pickle.dumps(model)).predict_proba(X), model.predict_proba(X))
    assert np.array_equal(clone(model).fit(X, y).predict_proba(X), model.predict_proba(X))


def test_compilation_is_for_training_only(iris, monkeypatch):
    X, y = iris
    plain, backends = quick().fit(X, y), []

    class Compiled(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, x):
            return self.module(x)

    monkeypatch.setattr(torch, "compile", lambda module, backend: backends.append(backend) or Compiled(module))
    models = [quick(compile=compile_).fit(X, y) for compile_ in (True, "aot_eager")]
    assert backends == ["inductor", "aot_eager"]
    for model in models:
        assert not isinstance(model.module_, Compiled)
        assert np.array_equal(model.predict_proba(X), plain.predict_proba(X))


def test_double_precision(iris):
    X, y = iris
    double, single = quick(dtype="float64").fit(X, y), quick().fit(X, y)
    assert (double.predict_proba(X).dtype, single.predict_proba(X).dtype) == (np.float64, np.float32)
    np.testing.assert_allclose(double.predict_proba(X), single.predict_proba(X), rtol=1e-3)


def test_the_report_is_that_of_the_logits():
    X, y = load_iris(return_X_y=True)
    names = np.array(["c", "b", "a"])[y]
    model = quick().fit(X, names)
    report = model.report(X, names, resamples=50)
    assert isinstance(report, EnsembleReport)
    assert report.accuracy.value == model.score(X, names)
    chosen = model.predict_proba(X)[np.arange(150), np.searchsorted(model.classes_, names)]
    assert report.nll.value == pytest.approx(-np.log(chosen).mean(), rel=1e-5)
    more = model.report(X[::2], names[::2], train=(X, names), val=(X, names), ood=X[:9] + 5, resamples=50, bins=5)
    assert more.train["arithmetic"].ensemble_ce == pytest.approx(report.nll.value, rel=1e-9)
    assert (more.bins, more.samples, set(more.ood)) == (5, 75, {"maximum probability", "entropy", "mutual information"})
    assert more.tempered.temperature > 0
    with pytest.raises(ValueError, match="'z'"):
        model.report(X[:1], ["z"])


def test_validation_rows_keep_the_classes():
    target = np.repeat([0, 1, 2], [40, 10, 2])
    kept, rest = split(target, 0.25, seed=0)
    assert sorted([*kept, *rest]) == list(range(52))
    np.testing.assert_allclose(np.bincount(target[rest], minlength=3), [10, 2.5, 0.5], atol=0.5)
    assert set(target[kept]) == {0, 1, 2}
    lonely = np.array([0] * 9 + [1])
    for seed in range(20):  # a class of one sample is trained on
        kept, rest = split(lonely, 0.2, seed=seed)
        assert sorted([*kept, *rest]) == list(range(10))
        assert len(rest) == 2
        assert 9 in kept
    kept, rest = split(np.arange(6), 0.5, seed=0)  # there is nothing else
    assert sorted([*kept, *rest]) == list(range(6))
    assert len(rest) == 3
    with pytest.raises(ValueError, match="leaves nothing"):
        split(lonely, 0.01, seed=0)
    with pytest.raises(ValueError, match="inside"):
        split(lonely, 1.0, seed=0)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"lam": 1.5}, ValueError, "at most 1"),
        ({"lam": "often"}, ValueError, "'often'"),
        ({"mode": "apart"}, ValueError, "'apart'"),
        ({"members": 0}, ValueError, "members"),
        ({"aggregate": "median"}, ValueError, "'median'"),
        ({"objective": "dice"}, ValueError, "'dice'"),
        ({"objective": 3}, ValueError, "objective is 3"),
        ({"objective": "adp", "aggregate": "geometric"}, ValueError, "averages probabilities"),
        ({"mode": "separate", "module": nn.Linear(4, 6)}, ValueError, "a network a member"),
        ({"module": "resnet18"}, TypeError, "module is a str"),
        ({"mode": "partition", "hidden_sizes": (10,)}, ValueError, "10"),
        ({"dtype": "float16"}, ValueError, "'float16'"),
        ({"max_epochs": 0}, ValueError, "epochs"),
        ({"lr": -1.0}, ValueError, "lr"),
        ({"label_smoothing": 2.0}, ValueError, "label_smoothing"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"class_weight": {0: 0.0, 1: 0.0, 2: 0.0}}, ValueError, "no sample counts"),
        ({"class_weight": {0: -1.0, 1: -1.0, 2: -1.0}}, ValueError, "at least 0"),
    ],
)
def test_bad_settings_are_refused_in_fit(iris, options, error, words):
    model = quick(**options)
    with pytest.raises(error, match=words):
        model.fit(*iris)
    with pytest.raises(NotFittedError):
        model.predict(iris[0])


def test_a_fit_that_fails_changes_nothing(iris):
    X, y = iris
    model = quick(max_epochs=2).fit(X, y)
    before = model.predict_proba(X)
    for options in ({"lam": 1.5}, {"lr": -1.0}, {"objective": "adp", "members": 3}):
        with pytest.raises(ValueError, match=r"at most|lr is"):
            model.set_params(**options).fit(X, y)
        model.set_params(lam=0.5, lr=0.03)
        np.testing.assert_array_equal(model.predict_proba(X), before)


def test_what_partial_fit_cannot_do_is_said(iris):
    X, y = iris
    for options, words in (
        ({"lam": "guarded"}, "call fit"),
        ({"lam": GuardedLambda()}, "call fit"),
        ({"lam": "schedule"}, "call fit"),
        ({"early_stopping": True}, "early_stopping"),
        ({"class_weight": "balanced"}, "weights by label"),
    ):
        with pytest.raises(ValueError, match=words):
            quick(**options).partial_fit(X, y, classes=[0, 1, 2])
    with pytest.raises(ValueError, match="first call"):
        quick().partial_fit(X, y)
    model = quick().partial_fit(X, y, classes=[0, 1, 2])
    with pytest.raises(ValueError, match="same or None"):
        model.partial_fit(X, y, classes=[0, 1])
    with pytest.raises(ValueError, match=r"holds \[3\]"):
        model.partial_fit(X, y + 1)
    with pytest.raises(ValueError, match="finite numbers of at least 0"):
        model.partial_fit(X, y, sample_weight=-np.ones(150))

"""`fit`: determinism, exact resumption, schedules, early stopping, controllers, weights, and errors that help."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from dncc.controllers import LambdaController, LinearLambda
from dncc.evaluating import decomposed, evaluate, predict_logits
from dncc.guarding import GuardedLambda
from dncc.history import EpochRecord, History
from dncc.hypergradient import HyperGradientLambda
from dncc.io import FormatError
from dncc.losses import DNCCLoss, IndependentLoss
from dncc.outputs import Measured
from dncc.training import DivergenceError, fit


class Stack(nn.Module):
    """M linear classifiers on a dropped-out input, with batch normalisation: state of every kind."""

    def __init__(self, members: int = 3, features: int = 4, classes: int = 3, dropout: float = 0.3) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.norm, self.drop = nn.BatchNorm1d(features), nn.Dropout(dropout)
        self.weight = nn.Parameter(torch.randn(members, features, classes, generator=generator))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.norm(x)) @ self.weight


def blobs(n: int = 60, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    return torch.randn(n, 4, generator=generator) + 2 * nn.functional.one_hot(y, 4).float(), y


def trained(model: nn.Module, seed: int = 1, loss: Any = None, **options: Any) -> History:
    options = {"epochs": 4, "batch_size": 16, "lr": 0.05} | options
    loss = loss or DNCCLoss(0.5)
    return fit(model, loss, blobs(), generator=torch.Generator().manual_seed(seed), **options)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def untimed(history: History) -> list[tuple[Any, ...]]:
    return [(r.epoch, r.loss, r.train, r.validation, r.lam, r.lr) for r in history.epochs]


def test_equal_generators_give_equal_weights_and_the_global_stream_is_left_alone() -> None:
    one, two, other = Stack(), Stack(), Stack()
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first = trained(one)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(4)
    second = trained(two)
    trained(other, seed=2)
    assert same(one, two)
    assert untimed(first) == untimed(second)
    assert not same(one, other)


def test_a_step_is_the_optimisers_own() -> None:
    """One full-batch epoch of plain SGD without momentum, by hand."""
    x, y = blobs(16)
    model, twin = Stack(dropout=0.0), Stack(dropout=0.0)
    fit(model, DNCCLoss(0.3), (x, y), epochs=1, batch_size=16, lr=0.1, optimiser=torch.optim.SGD, schedule="constant")
    twin.train()
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    DNCCLoss(0.3)(twin(x[order]), y[order]).loss.backward()
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter -= 0.1 * parameter.grad
    for got, want in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


def test_cosine_goes_down_to_zero_and_constant_stays() -> None:
    cosine, constant = trained(Stack(), epochs=5), trained(Stack(), epochs=5, schedule="constant")
    steps = 5 * 4
    want = [0.05 * 0.5 * (1 + math.cos(math.pi * (4 * e - 1) / steps)) for e in range(1, 6)]
    assert cosine.column("lr") == pytest.approx(want, rel=1e-12)
    assert constant.column("lr") == [0.05] * 5


@pytest.mark.parametrize("optimiser", ["adam", "sgd", torch.optim.RMSprop])
def test_an_interrupted_run_resumes_to_the_same_weights(optimiser: Any, tmp_path: Any) -> None:
    """Stop by an exception in the third epoch; the checkpoint of the second goes on to the same end, to the bit."""
    path, val = tmp_path / "run.safetensors", blobs(30, seed=9)

    def loss() -> DNCCLoss:
        return DNCCLoss(LinearLambda(0.0, 0.9, steps=12))

    def interrupt(record: EpochRecord) -> None:
        if record.epoch == 3:
            raise KeyboardInterrupt

    options: dict[str, Any] = {"val": val, "epochs": 6, "patience": 6, "optimiser": optimiser}
    whole, cut = Stack(), Stack()
    want = trained(whole, loss=loss(), **options)
    with pytest.raises(KeyboardInterrupt):
        trained(cut, loss=loss(), checkpoint=path, on_epoch=interrupt, **options)
    resumed = Stack()
    with torch.no_grad():
        resumed.weight.zero_()  # the checkpoint's weights must replace these
    got = trained(resumed, seed=77, loss=loss(), resume=path, checkpoint=path, **options)
    assert same(resumed, whole)
    assert untimed(got) == untimed(want)
    assert got.best_epoch == want.best_epoch
    again = trained(Stack(), loss=loss(), resume=path, **options)  # nothing is left to do
    assert untimed(again) == untimed(want)


def test_resuming_with_other_settings_or_another_model_is_refused(tmp_path: Any) -> None:
    path = tmp_path / "run.safetensors"
    trained(Stack(), checkpoint=path)
    with pytest.raises(FormatError, match=r"made with lr=0.05 \(now 0.1\)"):
        trained(Stack(), resume=path, lr=0.1)
    with pytest.raises(FormatError, match="another model"):
        trained(Stack(members=2), resume=path)
    with pytest.raises(FormatError, match="controller in one of the two runs"):
        trained(Stack(), resume=path, loss=DNCCLoss(LinearLambda(0.0, 1.0, steps=3)))
    with pytest.raises(FormatError, match="no such file"):
        trained(Stack(), resume=tmp_path / "absent")


def test_patience_restores_the_best_weights() -> None:
    """A constant, far too large rate on few samples: the best epoch is not the last."""
    model, val = Stack(), blobs(200, seed=9)
    options: dict[str, Any] = {"lr": 1.0, "schedule": "constant", "optimiser": torch.optim.SGD}
    history = fit(model, IndependentLoss(), blobs(12), val=val, epochs=60, patience=5, **options)
    losses = history.column("ensemble_ce", "validation")
    assert history.best_epoch == 1 + losses.index(min(losses))
    assert history.stopped_early
    assert len(losses) == history.best_epoch + 5
    assert evaluate(model, val).ensemble_ce == pytest.approx(min(losses), abs=1e-6)
    assert not model.training


def test_on_epoch_may_stop() -> None:
    history = trained(Stack(), epochs=9, on_epoch=lambda record: record.epoch == 2)
    assert len(history.epochs) == 2
    assert history.stopped_early


class Watching(LambdaController):
    """Writes down how it is called."""

    watches = True

    def __init__(self) -> None:
        super().__init__(0.25)
        self.steps, self.seen = 0, []

    def step(self) -> float:
        self.steps += 1
        return self.value

    def observe(self, train: Measured, validation: Measured) -> float:
        self.seen.append((train, validation))
        self.set(0.5)
        return self.value

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None:
        pass


def test_the_losss_controller_is_stepped_and_shown_what_was_measured() -> None:
    controller, model = Watching(), Stack()
    history = trained(model, loss=DNCCLoss(controller), val=blobs(30, seed=2))
    assert controller.steps == 4 * 4
    assert [validation for _, validation in controller.seen] == [record.validation for record in history.epochs]
    # Training data are looked at as validation data are: in evaluation mode, after the epoch, as many samples.
    x, y = blobs()
    rows = torch.linspace(0, len(x) - 1, 30).long()
    assert controller.seen[-1][0] == evaluate(model, (x[rows], y[rows]))
    assert history.column("lam") == [0.5] * 4
    linear = LinearLambda(0.0, 0.8, steps=16)
    trained(Stack(), loss=DNCCLoss(linear))
    assert linear.taken == 16


def test_terms_are_those_of_the_loss() -> None:
    """One batch an epoch: the record's terms are the loss's of that batch; validation equals `evaluate`."""
    x, y = blobs(48)
    for aggregate in ("arithmetic", "geometric"):
        model, twin, val = Stack(dropout=0.0), Stack(dropout=0.0), blobs(20, seed=3)
        loss = DNCCLoss(0.7, aggregate=aggregate)
        history = fit(model, loss, (x, y), val=val, epochs=1, batch_size=48, lr=0.01)
        twin.train()
        out, record = loss(twin(x), y), history.epochs[0]
        want = [float(v.detach()) for v in (out.loss, out.ce, out.ensemble_ce, out.ambiguity)]
        got = [record.loss, record.train.ce, record.train.ensemble_ce, record.train.ambiguity]
        assert got == pytest.approx(want, abs=1e-5)
        assert record.validation == evaluate(model, val, aggregate)


def test_weighted_samples_count_as_often() -> None:
    """Weight 0 leaves a sample out: the same gradient as without it, in one full batch without normalisation."""
    x, y = blobs(12)
    weight = (torch.arange(12) < 8).float()
    models = [nn.Linear(4, 3) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    options: dict[str, Any] = {"epochs": 1, "batch_size": 12, "optimiser": torch.optim.SGD, "lr": 0.1}
    fit(models[0], DNCCLoss(0.5), (x, y), sample_weight=weight, **options)
    fit(models[1], DNCCLoss(0.5), (x[:8], y[:8]), **options)
    torch.testing.assert_close(models[0].weight, models[1].weight, rtol=0, atol=1e-6)


def test_soft_labels_are_decomposed_as_their_hard_limit() -> None:
    logits = torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(0))
    y = torch.arange(7) % 4
    for aggregate in ("arithmetic", "geometric"):
        hard, soft = (decomposed(logits, t, aggregate) for t in (y, nn.functional.one_hot(y, 4).float()))
        torch.testing.assert_close(hard, soft)
    ignoring = decomposed(logits, torch.where(y == 3, -100, y))
    torch.testing.assert_close(ignoring, decomposed(logits[:, y != 3], y[y != 3]))


def test_evaluation_does_not_depend_on_batches() -> None:
    x, y = blobs(50)
    y[:7] = -100
    model = nn.Linear(4, 3)
    for target in (y, nn.functional.one_hot(y.clamp(min=0), 3).float()):
        want = decomposed(model(x)[None].double(), target)
        for size in (1, 7, 64):  # one batch of seven has no label
            measured = evaluate(model, (x, target), batch_size=size)
            assert (measured.ce, measured.ensemble_ce) == pytest.approx(want[:2].tolist(), rel=1e-6)
            assert measured.ambiguity == 0
    masked = torch.where(y == -100, 9, y)
    assert evaluate(model, (x, masked), ignore_index=9) == evaluate(model, (x, y))


def test_a_batch_of_one_left_over_is_dropped_and_augmentation_sees_training_only() -> None:
    sizes: list[int] = []

    def augment(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        sizes.append(len(x))
        return x + torch.randn(x.shape, generator=generator)

    fit(Stack(), DNCCLoss(0.5), blobs(33), val=blobs(10, seed=1), epochs=2, batch_size=16, augment=augment)
    assert sizes == [16, 16, 16, 16]


def test_autocast_trains_and_stays_near() -> None:
    """bfloat16 has 8 bits: the loss after an epoch agrees to a few per cent."""
    plain, narrow = trained(Stack(dropout=0.0)), trained(Stack(dropout=0.0), amp=True)
    assert narrow.epochs[-1].train.ce == pytest.approx(plain.epochs[-1].train.ce, rel=0.05)


def test_predict_logits_restores_every_mode_and_adds_a_member() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))
    model.train()
    model[0].eval()
    logits = predict_logits(model, torch.randn(5, 4), batch_size=2)
    assert logits.shape == (1, 5, 3)
    assert (model.training, model[0].training, model[1].training) == (True, False, True)


def test_history_survives_json() -> None:
    history = trained(Stack(), val=blobs(12, seed=2))
    assert History.from_json(history.to_json()) == history
    assert math.isnan(trained(Stack()).column("ce", "validation")[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"lr": -1.0}, "positive learning rate"),
        ({"lr": math.nan}, "positive learning rate"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"schedule": "linear"}, "'cosine' or 'constant'"),
        ({"optimiser": "lion"}, "give 'adam', 'sgd' or a class"),
        ({"patience": 3}, "patience needs val"),
        ({"patience": 0, "val": (torch.zeros(2, 4), torch.zeros(2).long())}, "patience is 0"),
        ({"sample_weight": torch.ones(3)}, "60 numbers of at least 0"),
        ({"sample_weight": torch.zeros(60)}, "0 everywhere"),
        ({"val": (torch.zeros(2, 4), torch.zeros(3).long())}, "val has 2 inputs and 3 labels"),
    ],
)
def test_settings_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trained(Stack(), **options)


def test_empty_data_and_odd_logits_are_refused() -> None:
    with pytest.raises(ValueError, match="train is empty"):
        fit(Stack(), DNCCLoss(0.5), (torch.zeros(0, 4), torch.zeros(0).long()))
    with pytest.raises(ValueError, match=r"logits of shape \(16, 3, 1, 1\)"):
        fit(nn.Sequential(nn.Linear(4, 3), nn.Unflatten(1, (3, 1, 1))), DNCCLoss(0.5), blobs(16))


def test_divergence_says_when_and_what_to_try() -> None:
    class Blowing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.calls = nn.Parameter(torch.ones(())), 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return x[None, :, :3] * self.scale * (math.inf if self.calls == 6 else 1.0)

    with pytest.raises(DivergenceError, match=r"nan in epoch 2, step 2 of 4, .*learning rate 3 to 10 times smaller"):
        trained(Blowing(), loss=DNCCLoss(0.5, validate=False))


def test_controllers_that_would_stand_still_are_refused() -> None:
    with pytest.raises(ValueError, match="GuardedLambda watches validation data"):
        fit(Stack(), DNCCLoss(GuardedLambda()), blobs(), epochs=1)
    model = Stack()
    hyper = DNCCLoss(HyperGradientLambda(model.parameters()))
    with pytest.raises(ValueError, match="before\\(\\) and after\\(\\)"):
        fit(model, hyper, blobs(), val=blobs(), epochs=1)


def test_samples_without_label_are_left_out_in_training_and_validation() -> None:
    x, y = blobs()
    y[: len(y) // 2] = 255
    history = fit(Stack(), DNCCLoss(0.5, ignore_index=255), (x, y), val=(x, y), epochs=3, batch_size=2)
    assert all(math.isfinite(record.train.ce) for record in history.epochs)
    assert history.epochs[-1].validation is not None
    with pytest.raises(ValueError, match="no training sample counts"):
        fit(Stack(), DNCCLoss(0.5, ignore_index=255), (x, torch.full_like(y, 255)), epochs=1)

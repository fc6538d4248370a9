"""The losses agree with the slow derivation, with torch's cross-entropy, and with each other where they must."""

import copy
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dncc import (
    ADPLoss,
    DNCCLoss,
    EndToEndLoss,
    EnsembleLoss,
    IndependentLoss,
    KLToMeanLoss,
    LinearLambda,
    MSENCLLoss,
    aggregate_log_proba,
    theory,
)
from dncc.aggregation import checked_aggregate
from dncc.base_loss import checked_reduction

LAMBDAS = [0.0, 0.3, 0.9, 1.0]
AGGREGATES = ["arithmetic", "geometric"]


def drawn(seed: int = 0, members: int = 4, batch: int = 7, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(members, batch, classes, generator=g, dtype=torch.float64) * 2
    return z, torch.randint(classes, (batch,), generator=g)


def soft_labels(batch: int = 7, classes: int = 5) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(0).dirichlet(np.ones(classes), size=batch))


@pytest.mark.property
@pytest.mark.parametrize("aggregate", AGGREGATES)
@given(seed=st.integers(0, 2**32 - 1), lam=st.floats(0, 1))
def test_every_sample_agrees_with_the_papers_form(aggregate: str, seed: int, lam: float) -> None:
    rng = np.random.default_rng(seed)
    members, batch, classes = (int(rng.integers(a, b)) for a, b in ((1, 6), (1, 4), (2, 6)))
    z = rng.normal(size=(members, batch, classes)) * float(rng.choice([0.1, 1, 5]))
    hard = rng.integers(classes, size=batch)
    soft = rng.dirichlet(np.ones(classes), size=batch)
    loss = DNCCLoss(lam, aggregate=aggregate, reduction="none")
    for target, rows in ((hard, np.eye(classes)[hard]), (soft, soft)):
        out = loss(torch.tensor(z), torch.tensor(target))
        for n in range(batch):
            p = theory.softmax(z[:, n])
            want = theory.dncc_loss(p, rows[n], lam, aggregate)
            assert float(out.loss[n]) == pytest.approx(want, rel=1e-9, abs=1e-12)
            ensemble = theory.cross_entropy(rows[n], theory.ensemble(p, aggregate))
            assert float(out.ensemble_ce[n]) == pytest.approx(ensemble, rel=1e-9, abs=1e-12)
            assert float(out.ambiguity[n]) == pytest.approx(theory.ambiguity(p, rows[n], aggregate), rel=1e-6, abs=1e-9)
            assert float(out.ambiguity[n]) >= 0


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("lam", LAMBDAS)
def test_gradient_agrees_with_differences_of_the_papers_form(lam: float, aggregate: str, soft: bool) -> None:
    z, y = drawn(batch=2)
    target = soft_labels(2) if soft else y
    rows = target.numpy() if soft else np.eye(5)[y.numpy()]
    z.requires_grad_()
    DNCCLoss(lam, aggregate=aggregate)(z, target).loss.backward()
    for n in range(2):
        want = theory.numeric_gradient(
            lambda s, n=n: theory.dncc_loss(theory.softmax(s), rows[n], lam, aggregate), z.detach().numpy()[:, n]
        )
        np.testing.assert_allclose(z.grad[:, n].numpy() * 2, want, atol=1e-9)


def test_at_one_the_gradient_is_weighted_by_responsibility() -> None:
    z, y = drawn()
    z.requires_grad_()
    DNCCLoss(1.0)(z, y).loss.backward()
    p = torch.softmax(z.detach(), -1)
    label = p[:, torch.arange(7), y]
    responsibility = label / label.sum(0)
    want = responsibility[..., None] * (p - nn.functional.one_hot(y, 5)) / 7
    torch.testing.assert_close(z.grad, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("lam", LAMBDAS)
@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_one_member_is_cross_entropy_for_every_lambda(lam: float, aggregate: str) -> None:
    z, y = drawn(members=1)
    mine = z.clone().requires_grad_()
    theirs = z.clone().requires_grad_()
    out = DNCCLoss(lam, aggregate=aggregate)(mine, y)
    reference = nn.functional.cross_entropy(theirs[0], y)
    out.loss.backward()
    reference.backward()
    torch.testing.assert_close(out.loss, reference, rtol=1e-12, atol=0)
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-10, atol=1e-14)
    assert abs(out.ambiguity.item()) < 1e-15


def test_identical_members_have_no_ambiguity_and_stay_identical() -> None:
    z, y = drawn(members=1)
    z = z.expand(3, -1, -1).clone().requires_grad_()
    out = DNCCLoss(0.8)(z, y)
    out.loss.backward()
    assert out.ambiguity.item() == pytest.approx(0, abs=1e-15)
    torch.testing.assert_close(z.grad[0], z.grad[1], rtol=0, atol=1e-16)
    torch.testing.assert_close(z.grad[0] * 3, (torch.softmax(z[0], -1) - nn.functional.one_hot(y, 5)).detach() / 7)


@pytest.mark.parametrize("lam", LAMBDAS)
def test_sum_over_members_is_members_times_the_mean(lam: float) -> None:
    z, y = drawn()
    mean, total = DNCCLoss(lam)(z, y), DNCCLoss(lam, reduction="sum")(z, y)
    torch.testing.assert_close(total.loss, 4 * mean.loss)
    torch.testing.assert_close(total.ce, mean.ce)


def test_ends_are_independent_and_end_to_end_training() -> None:
    z, y = drawn()
    members = torch.stack([nn.functional.cross_entropy(row, y) for row in z])
    torch.testing.assert_close(IndependentLoss(reduction="sum")(z, y).loss, members.sum())
    torch.testing.assert_close(DNCCLoss(0)(z, y).member_ce, members)
    q = torch.softmax(z, -1).mean(0)
    torch.testing.assert_close(EndToEndLoss()(z, y).loss, nn.functional.nll_loss(q.log(), y))
    torch.testing.assert_close(
        EndToEndLoss(aggregate="geometric")(z, y).loss, nn.functional.cross_entropy(z.mean(0), y)
    )
    for loss, lam in ((IndependentLoss(), 0.0), (EndToEndLoss(), 1.0)):
        torch.testing.assert_close(loss(z, y).loss, DNCCLoss(lam)(z, y).loss)


def test_class_weights_and_ignored_samples_as_in_torch() -> None:
    z, y = drawn()
    weight = torch.tensor([1.0, 0.0, 2.0, 0.5, 3.0], dtype=torch.float64)
    y[0] = -100
    out = DNCCLoss(0, weight=weight)(z, y)
    torch.testing.assert_close(
        out.member_ce, torch.stack([nn.functional.cross_entropy(r, y, weight=weight) for r in z])
    )
    z[:, 0] = math.inf  # what is ignored may be anything finite or not; NaN apart
    z[:, 0, 1:] = 0
    torch.testing.assert_close(DNCCLoss(0, weight=weight)(z, y).loss, out.loss)


@pytest.mark.parametrize("lam", LAMBDAS)
@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_weighting_samples_is_repeating_them(lam: float, aggregate: str) -> None:
    z, y = drawn()
    counts = torch.tensor([0, 1, 2, 3, 1, 0, 2])
    loss = DNCCLoss(lam, aggregate=aggregate)
    weighted = loss(z, y, sample_weight=counts.double())
    repeated = loss(z.repeat_interleave(counts, 1), y.repeat_interleave(counts))
    for name in ("loss", "ce", "ensemble_ce", "ambiguity", "member_ce"):
        torch.testing.assert_close(getattr(weighted, name), getattr(repeated, name))


def test_smoothing_is_the_soft_label_it_stands_for() -> None:
    z, y = drawn()
    soft = 0.9 * nn.functional.one_hot(y, 5).double() + 0.1 / 5
    smoothed = DNCCLoss(0.4, label_smoothing=0.1)(z, y)
    torch.testing.assert_close(smoothed.loss, DNCCLoss(0.4)(z, soft).loss)
    torch.testing.assert_close(
        smoothed.member_ce, torch.stack([nn.functional.cross_entropy(r, y, label_smoothing=0.1) for r in z])
    )


def test_one_hot_labels_are_hard_labels() -> None:
    z, y = drawn()
    hard = nn.functional.one_hot(y, 5).double()
    for aggregate in AGGREGATES:
        a, b = (DNCCLoss(0.6, aggregate=aggregate)(z, t) for t in (y, hard))
        torch.testing.assert_close(a.loss, b.loss)
        torch.testing.assert_close(a.ambiguity, b.ambiguity)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("lam", LAMBDAS)
def test_extreme_logits_stay_finite(lam: float, aggregate: str, soft: bool) -> None:
    z, y = drawn()
    z = (z * 1e4).float()
    z[:, :, (int(y[0]) + 1) % 5] = -math.inf  # a class that is masked out everywhere
    y[:] = y[0]
    target = nn.functional.one_hot(y, 5).float() if soft else y
    z.requires_grad_()
    out = DNCCLoss(lam, aggregate=aggregate)(z, target)
    out.loss.backward()
    for value in (out.loss, out.ce, out.ensemble_ce, out.ambiguity, z.grad):
        assert torch.isfinite(value).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    z, y = drawn()
    half = z.to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = DNCCLoss(0.5)(half, y)
    assert out.loss.dtype == torch.float32
    torch.testing.assert_close(out.loss, DNCCLoss(0.5)(half.float(), y).loss, rtol=0, atol=0)


@pytest.mark.parametrize("fused", [False, True])
def test_at_one_a_member_may_exclude_the_label_whatever_lambda_is_given_as(fused: bool) -> None:
    z, y = drawn()
    z[0, 0, y[0]] = -math.inf
    for lam in (1.0, torch.tensor(1.0), LinearLambda(1.0, 1.0, 1)):
        mine = z.clone().requires_grad_()
        out = DNCCLoss(lam, fused=fused)(mine, y)
        out.loss.backward()
        torch.testing.assert_close(out.loss, out.ensemble_ce)
        assert torch.isfinite(out.loss)
        assert torch.isfinite(mine.grad).all()
    for lam in (0.0, torch.tensor(0.0), torch.tensor(0.5)):
        assert DNCCLoss(lam, aggregate="geometric", fused=fused)(z, y).loss == math.inf


def test_autocast_rounds_neither_class_weights_nor_volumes() -> None:
    z, y = drawn(members=3)
    weight = torch.rand(5, generator=torch.Generator().manual_seed(1))
    for loss, target in ((DNCCLoss(weight=weight), soft_labels().float()), (ADPLoss(), y)):
        want = loss(z.float(), target).loss
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(loss(z.float(), target).loss, want, rtol=1e-6, atol=0)


@pytest.mark.parametrize("apart", [0.0, 1e-5, 1e-3])
def test_adp_of_many_members_that_agree_is_finite(apart: float) -> None:
    base, y = drawn(members=1, classes=70)
    z = (base + apart * drawn(members=64, classes=70)[0]).float().requires_grad_()
    out = ADPLoss()(z, y)
    out.loss.backward()
    torch.testing.assert_close(out.loss.double(), ADPLoss()(z.detach().double(), y).loss, rtol=1e-5, atol=0)
    assert torch.isfinite(z.grad).all()


def test_dense_predictions_are_samples() -> None:
    z, y = drawn(batch=12)
    flat = DNCCLoss(0.5)(z, y)
    dense = DNCCLoss(0.5)(z.unflatten(1, (3, 4)), y.view(3, 4))
    torch.testing.assert_close(dense.loss, flat.loss)
    each = DNCCLoss(0.5, reduction="none")(z.unflatten(1, (3, 4)), y.view(3, 4))
    assert each.loss.shape == (3, 4)
    assert each.member_ce.shape == (4, 3, 4)
    torch.testing.assert_close(each.loss.mean(), flat.loss)


def test_lambda_may_be_learnt_scheduled_and_saved() -> None:
    z, y = drawn()
    learnt = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
    loss = DNCCLoss(learnt)
    assert list(loss.parameters()) == [learnt]
    out = loss(z, y)
    out.loss.backward()
    assert learnt.grad.item() == pytest.approx((out.ensemble_ce - out.ce).item(), rel=1e-12)
    same = DNCCLoss(nn.Parameter(torch.tensor(0.9, dtype=torch.float64)))
    same.load_state_dict(loss.state_dict())
    assert same.lam.item() == 0.3
    torch.optim.SGD([learnt], lr=10.0).step()  # the training loss falls with lambda, so it runs away
    with pytest.raises(ValueError, match="must be at most 1"):
        loss(z, y)

    scheduled = DNCCLoss(LinearLambda(0.0, 1.0, steps=2))
    torch.testing.assert_close(scheduled(z, y).loss, IndependentLoss()(z, y).loss)
    scheduled.lam.step()
    torch.testing.assert_close(scheduled(z, y).loss, DNCCLoss(0.5)(z, y).loss)
    other = DNCCLoss(LinearLambda(0.0, 1.0, steps=2))
    other.load_state_dict(copy.deepcopy(scheduled.state_dict()))
    assert (other.lam.value, other.lam.taken) == (0.5, 1)

    loss.lam = 0.7
    fixed = DNCCLoss(0.1)
    fixed.load_state_dict(loss.state_dict())
    assert fixed.lam == 0.7
    with pytest.raises(ValueError, match="has no lambda to set"):
        IndependentLoss().lam = 0.5
    with pytest.raises(ValueError, match="had a fixed lambda"):
        other.load_state_dict(fixed.state_dict())


def test_compiled_losses_are_the_same_and_moving_lambda_does_not_compile_anew() -> None:
    # In a process of its own: the shape checks of this one wrap dataclasses in what cannot be compiled.
    script = Path(__file__).with_name("compiled_losses.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["same", "same", "same", "compiled", "anew", "0"]


def test_squared_errors_have_their_own_exact_decomposition() -> None:
    z, y = drawn()
    p, t = torch.softmax(z, -1), nn.functional.one_hot(y, 5).double()
    q = p.mean(0)
    want = ((p - t).square().sum(-1) / 2 - 0.3 * (p - q).square().sum(-1) / 2).mean()
    torch.testing.assert_close(MSENCLLoss(0.3)(z, y).loss, want)
    torch.testing.assert_close(MSENCLLoss(1.0)(z, y).loss, ((q - t).square().sum(-1) / 2).mean())


def test_kl_to_the_mean_is_what_it_says_and_not_exact() -> None:
    z, y = drawn(seed=1)
    p = torch.softmax(z, -1)
    q = p.mean(0)
    kl = (q * (q.log() - p.log())).sum(-1).mean()
    out = KLToMeanLoss(1.0)(z, y)
    torch.testing.assert_close(out.loss, out.ce - kl)
    assert abs(out.loss.item() - out.ensemble_ce.item()) > 0.01
    # No lower bound: a member may deny a wrong class that another believes in.
    worse = torch.zeros(2, 1, 3, dtype=torch.float64)
    worse[0, 0, 1] = -200.0
    assert KLToMeanLoss(1.0)(worse, torch.tensor([0])).loss.item() < -10
    assert DNCCLoss(1.0)(worse, torch.tensor([0])).loss.item() > 0


def test_adp_agrees_with_the_published_sum_by_brute_force() -> None:
    z, y = drawn(members=3)
    total = 0.0
    for n in range(7):
        p = theory.softmax(z[:, n].numpy())
        others = np.delete(p, int(y[n]), axis=1)
        unit = others / np.linalg.norm(others, axis=1, keepdims=True)
        q = p.mean(0)
        entropy = -(q * np.log(q)).sum()
        volume = np.log(np.linalg.det(unit @ unit.T + 1e-6 * np.eye(3)))
        total += -np.log(p[:, int(y[n])]).sum() - 2 * entropy - 0.5 * volume
    assert ADPLoss(reduction="sum")(z, y).loss.item() == pytest.approx(total / 7, rel=1e-10)
    z = (z * 500).requires_grad_()  # certain members: the other classes underflow
    out = ADPLoss()(z, y)
    out.loss.backward()
    assert torch.isfinite(out.loss)
    assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize("loss", [DNCCLoss(0.5), MSENCLLoss(), KLToMeanLoss(), ADPLoss(), EndToEndLoss()], ids=str)
def test_every_objective_reports_the_same_terms(loss: EnsembleLoss) -> None:
    z, y = drawn()
    want, out = IndependentLoss()(z, y), loss(z, y)
    for name in ("ce", "ensemble_ce", "ambiguity", "member_ce"):
        torch.testing.assert_close(getattr(out, name), getattr(want, name))
    assert out.measured().ambiguity == pytest.approx(want.ce.item() - want.ensemble_ce.item())


def test_gradients_hold_to_second_order() -> None:
    z, _ = drawn(batch=2, classes=3, members=2)
    z.requires_grad_()
    soft = soft_labels(2, 3)
    for aggregate in AGGREGATES:
        assert torch.autograd.gradgradcheck(lambda s, a=aggregate: DNCCLoss(0.6, aggregate=a)(s, soft).loss, z)


@pytest.mark.parametrize(
    ("logits", "target", "message"),
    [
        (torch.zeros(3, 4), torch.zeros(3).long(), r"shape \(3, 4\).*members, batch"),
        (torch.zeros(0, 3, 4), torch.zeros(3).long(), "no member"),
        (torch.zeros(2, 3, 1), torch.zeros(3).long(), "at least two"),
        (torch.full((2, 3, 4), math.nan), torch.zeros(3).long(), r"NaN in members \[0, 1\]"),
        (torch.zeros(2, 3, 4), torch.zeros(4).long(), r"have shape \(3,\)"),
        (torch.zeros(2, 3, 4), torch.tensor([0, 4, 1]), "holds 4; class indices go from 0 to 3"),
        (torch.zeros(2, 3, 4), torch.tensor([0, -1, 1]), "holds -1"),
        (torch.zeros(2, 3, 4), torch.zeros(3), "class indices are integers"),
        (torch.zeros(2, 3, 4), torch.ones(3, 5) / 5, r"have shape \(3, 4\)"),
        (torch.zeros(2, 3, 4), torch.ones(3, 4), "sum to 1"),
        (torch.zeros(2, 3, 4), torch.tensor([[2.0, -1, 0, 0]] * 3), "negative"),
        (torch.zeros(2, 3, 4), nn.functional.one_hot(torch.zeros(3).long(), 4), "must be floating point"),
    ],
)
def test_wrong_input_says_what_is_wrong(logits: torch.Tensor, target: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DNCCLoss(0.5)(logits, target)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lam": 1.5}, "at most 1.*turns negative"),
        ({"lam": -0.1}, "agreement is rewarded"),
        ({"lam": math.nan}, r"in \[0, 1\]"),
        ({"lam": torch.tensor([0.1, 0.2])}, "FrontierLoss"),
        ({"lam": torch.tensor(1.1)}, "at most 1"),
        ({"label_smoothing": 1.5}, r"label_smoothing is 1.5"),
        ({"weight": torch.tensor([1.0, -1.0])}, "not negative"),
    ],
)
def test_wrong_settings_say_what_is_allowed(options: dict[str, object], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        DNCCLoss(**options)


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'arithmetic'"):
        checked_aggregate("median")
    with pytest.raises(ValueError, match="must be one of mean, sum, none"):
        checked_reduction("max")


def test_weights_of_wrong_shape_and_adps_limits() -> None:
    z, y = drawn()
    with pytest.raises(ValueError, match="3 class weights"):
        DNCCLoss(weight=torch.ones(3))(z, y)
    with pytest.raises(ValueError, match=r"sample_weight has shape \(3,\)"):
        DNCCLoss()(z, y, sample_weight=torch.ones(3))
    with pytest.raises(ValueError, match="finite and not negative"):
        DNCCLoss()(z, y, sample_weight=-torch.ones(7))
    with pytest.raises(ValueError, match="at most 4"):
        ADPLoss()(*drawn(members=5))
    with pytest.raises(ValueError, match="not soft labels"):
        ADPLoss()(z, soft_labels())
    with pytest.raises(ValueError, match="hard labels"):
        ADPLoss(label_smoothing=0.1)
    with pytest.raises(ValueError, match="fused=True"):
        DNCCLoss(fused=True, reduction="none")(z, y)
    learnt = torch.ones(7, requires_grad=True)
    with pytest.raises(ValueError, match="without a gradient"):
        DNCCLoss(fused=True)(z, y, sample_weight=learnt)
    DNCCLoss(0.0)(z, y, sample_weight=learnt).loss.backward()  # d/dw of sum w v / sum w: (v - mean v) / n
    ce = DNCCLoss(0.0, reduction="none")(z, y).loss
    torch.testing.assert_close(learnt.grad.double(), (ce - ce.mean()) / 7, rtol=1e-5, atol=1e-7)


def test_aggregates_are_distributions() -> None:
    z, _ = drawn()
    for aggregate in AGGREGATES:
        log_q = aggregate_log_proba(torch.log_softmax(z, -1), aggregate)
        torch.testing.assert_close(log_q.exp().sum(-1), torch.ones(7, dtype=torch.float64))
        want = np.stack([theory.ensemble(theory.softmax(z[:, n].numpy()), aggregate) for n in range(7)])
        np.testing.assert_allclose(log_q.exp().numpy(), want, rtol=1e-10)

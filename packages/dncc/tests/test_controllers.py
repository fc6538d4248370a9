"""Controllers move lambda as stated; collusion is a part of the generalisation gap; one step's hypergradient."""

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dncc import (
    DNCCLoss,
    FrontierLoss,
    GuardedLambda,
    HyperGradientLambda,
    LambdaController,
    LinearLambda,
    Measured,
    collusion_between,
    member_groups,
)
from dncc.hypergradient import hypergradient

NATS = st.floats(0, 5)


def test_linear_waits_goes_straight_and_stays() -> None:
    controller = LinearLambda(0.2, 1.0, steps=4, wait=2)
    path = [controller.value] + [controller.step() for _ in range(8)]
    assert path == pytest.approx([0.2, 0.2, 0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0])
    falling = LinearLambda(1.0, 0.0, steps=2)
    assert [falling.step() for _ in range(3)] == pytest.approx([0.5, 0.0, 0.0])
    train = Measured(1.0, 0.5, 0.5)
    assert falling.observe(train, train) == 0.0


@pytest.mark.property
@given(a=NATS, b=NATS, c=NATS, d=NATS)
def test_collusion_is_a_part_of_the_generalisation_gap(a: float, b: float, c: float, d: float) -> None:
    train, validation = Measured(a + b, a, b), Measured(c + d, c, d)
    found = collusion_between(train, validation)
    gap = validation.ensemble_ce - train.ensemble_ce
    assert gap == pytest.approx((validation.ce - train.ce) + found.nats, abs=1e-9)
    assert found.share >= 0
    if found.nats > 0 and gap > 0.02:
        assert found.share == pytest.approx(found.nats / gap)


def observation(share: float) -> tuple[Measured, Measured]:
    """Measurements with a generalisation gap of 1 nat, of which `share` is collusion."""
    return Measured(1.0 + share, 0.5, 0.5 + share), Measured(2.0, 1.5, 0.5)


def test_guard_falls_under_collusion_and_rises_without_it() -> None:
    guard = GuardedLambda(0.8, tolerance=0.2, fall=0.5, rise=0.1, maximum=0.9, minimum=0.1, smoothing=0.0, wait=1)
    moves = [guard.observe(*observation(share)) for share in (0.5, 0.5, 0.5, 0.5, 0.5, 0.0, 0.1, 0.19)]
    assert moves == pytest.approx([0.8, 0.4, 0.2, 0.1, 0.1, 0.2, 0.3, 0.4])
    for _ in range(20):
        guard.observe(*observation(0.0))
    assert guard.value == pytest.approx(0.9)
    assert guard.step() == pytest.approx(0.9)


def test_guard_averages_the_share_over_epochs() -> None:
    guard = GuardedLambda(0.5, tolerance=0.2, smoothing=0.5, wait=0)
    shares = []
    for share in (0.1, 0.3, 0.5):
        guard.observe(*observation(share))
        shares.append(guard.share)
    assert shares == pytest.approx([0.1, 0.2, 0.35])
    assert guard.last.nats == pytest.approx(0.5)


def test_guard_holds_lambda_where_the_share_meets_the_tolerance() -> None:
    # A share that grows with lambda: lambda settles about where it is the tolerance.
    guard = GuardedLambda(1.0, tolerance=0.2, wait=0)
    path = [guard.observe(*observation(0.4 * guard.value)) for _ in range(200)]
    assert sum(path[50:]) / 150 == pytest.approx(0.5, abs=0.06)


def test_states_are_taken_up_again() -> None:
    first = GuardedLambda(0.8, wait=0)
    second = GuardedLambda(0.3, wait=0)
    first.observe(*observation(0.6))
    second.load_state_dict(first.state_dict())
    assert first.observe(*observation(0.1)) == second.observe(*observation(0.1))
    linear, other = LinearLambda(0.0, 1.0, 5), LinearLambda(0.0, 1.0, 5)
    linear.step()
    other.load_state_dict(linear.state_dict())
    assert other.step() == linear.step() == pytest.approx(0.4)


def quadratic(seed: int = 0) -> tuple[nn.Linear, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    model = nn.Linear(4, 3 * 3).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g, dtype=torch.float64))
    x, x_val = (torch.randn(12, 4, generator=g, dtype=torch.float64) for _ in range(2))
    return model, x, torch.randint(3, (12,), generator=g), x_val, torch.randint(3, (12,), generator=g)


def logits(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model(x).unflatten(-1, (3, 3)).movedim(1, 0)


@pytest.mark.parametrize("aggregate", ["arithmetic", "geometric"])
def test_hypergradient_is_the_derivative_of_the_validation_loss_after_a_step(aggregate: str) -> None:
    eta = 0.3

    def after(lam: float, probe: bool = False) -> tuple[float, float]:
        model, x, y, x_val, y_val = quadratic()
        loss = DNCCLoss(lam, aggregate=aggregate)
        optimiser = torch.optim.SGD(model.parameters(), lr=eta)
        out = loss(logits(model, x), y)
        ambiguity = torch.autograd.grad(out.ambiguity, list(model.parameters()), retain_graph=True)
        out.loss.backward()
        optimiser.step()
        value = loss(logits(model, x_val), y_val).ensemble_ce
        slope = 0.0
        if probe:
            slope = hypergradient(ambiguity, torch.autograd.grad(value, list(model.parameters())), [eta, eta]).item()
        return value.item(), slope

    h = 1e-4
    numeric = (after(0.5 + h)[0] - after(0.5 - h)[0]) / (2 * h)
    assert after(0.5, probe=True)[1] == pytest.approx(numeric, rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "options", "factor"),
    [
        ("SGD", {"momentum": 0.9, "weight_decay": 0.1}, 1.0),
        ("SGD", {"momentum": 0.9, "nesterov": True}, 1 / 1.9),
        ("SGD", {"momentum": 0.9, "dampening": 0.5}, 2.0),
        ("Adam", {}, None),
        ("RMSprop", {}, None),
        ("Adagrad", {}, None),
    ],
)
def test_hypergradient_through_other_steps(kind: str, options: dict[str, Any], factor: float | None) -> None:
    """Exact up to a number for SGD; where second moments scale the steps, of the same sign."""
    model, x, y, x_val, y_val = quadratic()
    optimiser = getattr(torch.optim, kind)(model.parameters(), lr=0.01, **options)
    for _ in range(20):
        optimiser.zero_grad()
        DNCCLoss(0.5)(logits(model, x), y).loss.backward()
        optimiser.step()

    def after(lam: float) -> tuple[float, float]:
        there, moved = copy.deepcopy((model, optimiser))
        controller = HyperGradientLambda(there.parameters(), 0.5, optimiser=moved, rate=1.0, smoothing=0.0)
        out = DNCCLoss(lam)(logits(there, x), y)
        ambiguity = torch.autograd.grad(out.ambiguity, list(there.parameters()), retain_graph=True)
        controller.before(out)
        moved.zero_grad()
        out.loss.backward()
        moved.step()
        value = DNCCLoss(lam)(logits(there, x_val), y_val).ensemble_ce
        slope = hypergradient(ambiguity, torch.autograd.grad(value, list(there.parameters()), retain_graph=True))
        controller.after(value)
        return value.item(), 0.01 * slope.item() if factor else 0.5 - controller.value

    h = 1e-4
    numeric = (after(0.5 + h)[0] - after(0.5 - h)[0]) / (2 * h)
    found = after(0.5)[1]
    assert found * numeric > 0
    if factor:
        assert found == pytest.approx(factor * numeric, rel=1e-5)


def test_a_gradient_that_is_not_finite_does_not_move_lambda() -> None:
    model, x, y, _, _ = quadratic()
    lam = HyperGradientLambda(model.parameters(), 0.5)
    lam.before(DNCCLoss(lam)(logits(model, x), y))
    with pytest.raises(ValueError, match="not finite"):
        lam.after(DNCCLoss(lam)(logits(model, x), y).ensemble_ce * math.nan)
    assert (lam.value, lam.updates) == (0.5, 0)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_lambda_moves_against_the_validation_loss(kind: type[torch.optim.Optimizer]) -> None:
    model, x, y, x_val, y_val = quadratic()
    optimiser = kind(model.parameters(), lr=0.05)
    lam = HyperGradientLambda(model.parameters(), 0.5, optimiser=optimiser, rate=0.1, smoothing=0.0)
    loss = DNCCLoss(lam)
    for _ in range(3):
        out = loss(logits(model, x), y)
        optimiser.zero_grad()
        lam.before(out)
        out.loss.backward()
        optimiser.step()
        old = lam.value
        lam.after(loss(logits(model, x_val), y_val).ensemble_ce)
    assert 0 < abs(lam.value - old) <= 0.1  # the cosine of two gradients is at most 1
    late = loss(logits(model, x_val), y_val).ensemble_ce
    with pytest.raises(RuntimeError, match="call before"):
        lam.after(late)


def test_joint_training_helps_where_it_is_judged_on_its_own_batch() -> None:
    # Validation on the training batch itself: the ensemble's loss falls fastest at lambda = 1, and lambda goes there.
    model, x, y, _, _ = quadratic()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    lam = HyperGradientLambda(model.parameters(), 0.2, optimiser=optimiser, rate=0.1)
    loss = DNCCLoss(lam)
    for _ in range(100):
        out = loss(logits(model, x), y)
        optimiser.zero_grad()
        lam.before(out)
        out.loss.backward()
        optimiser.step()
        lam.after(loss(logits(model, x), y).ensemble_ce)
    assert lam.value == 1.0


def test_frontier_groups_are_ensembles_of_their_own() -> None:
    g = torch.Generator().manual_seed(0)
    z = torch.randn(6, 9, 4, generator=g, dtype=torch.float64, requires_grad=True)
    y = torch.randint(4, (9,), generator=g)
    out = FrontierLoss([0.0, 0.6, 1.0])(z, y)
    out.loss.backward()
    for k, lam in enumerate((0.0, 0.6, 1.0)):
        part = z.detach()[2 * k : 2 * k + 2].clone().requires_grad_()
        alone = DNCCLoss(lam)(part, y)
        alone.loss.backward()
        torch.testing.assert_close(out.groups[k].loss, alone.loss)
        torch.testing.assert_close(z.grad[2 * k : 2 * k + 2] * 3, part.grad)
    assert [part.shape[0] for part in member_groups(z, 3)] == [2, 2, 2]


def test_wrong_settings_say_what_is_allowed() -> None:
    with pytest.raises(ValueError, match="at least one step"):
        LinearLambda(0.0, 1.0, steps=0)
    with pytest.raises(ValueError, match=r"end is 1\.2"):
        LinearLambda(0.0, 1.2, steps=3)
    with pytest.raises(ValueError, match="fall and smoothing below 1"):
        GuardedLambda(tolerance=0.0)
    with pytest.raises(ValueError, match="between minimum"):
        GuardedLambda(0.9, maximum=0.5)
    with pytest.raises(ValueError, match="not finite"):
        GuardedLambda().observe(Measured(math.nan, 1.0, 1.0), Measured(1.0, 1.0, 0.0))
    with pytest.raises(ValueError, match="positive number of nats"):
        collusion_between(Measured(1.0, 1.0, 0.0), Measured(1.0, 1.0, 0.0), floor=0.0)
    with pytest.raises(ValueError, match="parameters is empty"):
        HyperGradientLambda([])
    model, x, y, _, _ = quadratic()
    with torch.no_grad():
        out = DNCCLoss(0.5)(logits(model, x), y)
    controller = HyperGradientLambda(model.parameters())
    with pytest.raises(ValueError, match="fused=False"):
        controller.before(out)
    with pytest.raises(ValueError, match="lams is empty"):
        FrontierLoss([])
    with pytest.raises(ValueError, match="cannot be split into 4 equal groups"):
        FrontierLoss([0.0, 0.1, 0.2, 0.3])(torch.zeros(6, 2, 3), torch.zeros(2).long())
    with pytest.raises(ValueError, match="at most 1"):
        GuardedLambda().set(1.3)
    assert issubclass(GuardedLambda, LambdaController)
    assert repr(LinearLambda(0.25, 1.0, 3)) == "LinearLambda(lambda now 0.25)"

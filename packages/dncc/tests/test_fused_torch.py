"""What is the torch path's own: the divergence's series, slices of the batch, memory; and what `fused_dncc` refuses."""

import decimal
import importlib.util

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dncc import fused, fused_torch
from dncc.fused import fused_backend, fused_dncc


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_excess_against_decimal_arithmetic(dtype):
    points = [
        -60.0,
        -5.0,
        -0.5001,
        -0.5,
        -0.4999,
        -0.1,
        -1e-3,
        -1e-7,
        0.0,
        1e-12,
        1e-5,
        0.03,
        0.49,
        0.5,
        0.51,
        2.0,
        9.0,
    ]
    u = torch.tensor(points, dtype=dtype)
    with decimal.localcontext(prec=60):
        exact = [float(x.exp() - 1 - x) for x in map(decimal.Decimal, u.tolist())]
    found = fused_torch.excess(u)
    assert found.dtype == dtype
    assert bool((found >= 0).all())
    expected = torch.tensor(exact, dtype=torch.float64)
    assert bool(((found.double() - expected).abs() <= 12 * torch.finfo(dtype).eps * expected).all())


@pytest.mark.parametrize("aggregate", ["arithmetic", "geometric"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 90, 10_000])
def test_slices_of_the_batch_change_nothing(monkeypatch, aggregate, dtype, size):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 11, 10, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    target, weight = torch.randint(0, 10, (11,), generator=generator), torch.rand(11, generator=generator)

    def run(z):
        found = fused_dncc(z, target, 0.5, weight=weight, aggregate=aggregate, backend="torch")
        grad = torch.autograd.grad(found.loss, z)[0] if z.requires_grad else z
        return found.loss.detach(), found.member_ce, found.ensemble_ce, found.ambiguity, grad

    strided = logits.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    whole = run(logits)
    monkeypatch.setattr(fused_torch, "_SLICE", {"cpu": size})
    for z in (logits, strided, logits.detach()):
        for a, b in zip(run(z)[: 5 if z.requires_grad else 4], whole, strict=False):
            assert float((a - b).abs().max()) <= (1e-6 if dtype == torch.bfloat16 else 1e-14)


@pytest.mark.parametrize("aggregate", ["arithmetic", "geometric"])
@pytest.mark.parametrize(("dtype", "gradient"), [(torch.float32, True), (torch.float32, False), (torch.bfloat16, True)])
def test_nothing_of_the_logits_size_beside_the_gradient(monkeypatch, aggregate, dtype, gradient):
    """The allocator's events, as the profiler records them: also what operators allocate inside."""
    members, batch, classes = 8, 400, 250
    monkeypatch.setattr(fused_torch, "_SLICE", {"cpu": members * classes * 10})
    logits = torch.zeros(members, batch, classes, dtype=dtype, requires_grad=gradient)
    target, result = torch.zeros(batch, dtype=torch.long), []

    def call():
        loss = fused_dncc(logits, target, 0.5, aggregate=aggregate, backend="torch").loss
        result.append(torch.autograd.grad(loss * 2, logits)[0] if gradient else loss)

    call()
    with torch.autograd.profiler.profile(profile_memory=True, use_kineto=True) as profile:
        call()
    events = [e for e in profile.kineto_results.events() if e.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    needed = logits.nbytes if gradient else 0
    assert peak >= needed
    shared = batch * classes * 4 if aggregate == "geometric" and dtype == torch.float32 and gradient else 0
    assert peak < needed + shared + 0.15 * logits.numel() * 4


@pytest.mark.property
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 9)),
    seed=st.integers(0, 1000),
    spread=st.floats(0, 30),
    lam=st.floats(0, 1),
    aggregate=st.sampled_from(["arithmetic", "geometric"]),
)
def test_sums_and_bounds(shape, seed, spread, lam, aggregate):
    """CE >= ensemble's CE >= 0, loss between them; a gradient sums to 0 over the classes."""
    _, batch, classes = shape
    generator = torch.Generator().manual_seed(seed)
    logits = (spread * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()
    target = torch.randint(0, classes, (batch,), generator=generator)
    weight = torch.rand(batch, generator=generator) + 0.1
    found = fused_dncc(logits, target, lam, weight=weight, aggregate=aggregate, backend="torch")
    assert float(found.ambiguity.min()) >= 0
    assert float(found.ensemble_ce.min()) >= -1e-12
    assert float((found.member_ce.mean(0) - found.ensemble_ce - found.ambiguity).abs().max()) < 1e-11
    low, high = ((weight * v).sum() / weight.double().sum() for v in (found.ensemble_ce, found.member_ce.mean(0)))
    assert float(low) - 1e-11 <= float(found.loss.detach()) <= float(high) + 1e-11
    assert float(torch.autograd.grad(found.loss, logits)[0].sum(-1).abs().max()) < 1e-13


def below_the_shape_checker(function):
    """It refuses some of these first."""
    return getattr(function, "__wrapped__", function)


def good():
    return {"logits": torch.zeros(2, 3, 4), "target": torch.zeros(3, dtype=torch.long), "lam": 0.5}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logits": torch.zeros(2, 3, 4, dtype=torch.long)}, TypeError, "float16, bfloat16"),
        ({"target": torch.zeros(3)}, TypeError, "int32 or int64"),
        ({"logits": torch.zeros(0, 3, 4)}, ValueError, "at least one member"),
        ({"target": torch.zeros(4, dtype=torch.long)}, ValueError, r"target has shape \(4,\)"),
        ({"target": torch.tensor([0, 4, 1])}, ValueError, "from 0 to 4; class indices go from 0 to 3"),
        ({"target": torch.tensor([0, -100, 1])}, ValueError, "weight 0"),
        ({"weight": torch.ones(2)}, ValueError, r"weight has shape \(2,\)"),
        ({"weight": torch.ones(3, requires_grad=True)}, ValueError, "detach"),
        ({"weight": torch.ones(3, dtype=torch.long)}, ValueError, "floating point"),
        ({"lam": float("nan")}, ValueError, "finite"),
        ({"lam": torch.tensor([0.5])}, ValueError, "without axes"),
        ({"lam": torch.tensor(1)}, ValueError, "without axes"),
        ({"aggregate": "median"}, ValueError, "'geometric'"),
        ({"reduction": "none"}, ValueError, "'mean' or 'sum'"),
    ],
)
def test_what_is_refused(change, error, message):
    with pytest.raises(error, match=message):
        below_the_shape_checker(fused_dncc)(**(good() | change))


def test_the_choice_of_the_backend(monkeypatch):
    logits = torch.zeros(2, 3, 4)
    assert fused_backend(logits) == "torch"
    if importlib.util.find_spec("triton") is not None:
        with pytest.raises(ValueError, match="on a GPU"):
            fused_backend(logits, "triton")
    with pytest.raises(ValueError, match="auto, torch, triton"):
        below_the_shape_checker(fused_backend)(logits, "cuda")
    monkeypatch.setattr(fused, "_HAS_TRITON", False)
    with pytest.raises(ImportError, match=r"dncc\[triton\]"):
        fused_backend(logits, "triton")
    assert fused_backend(logits) == "torch"

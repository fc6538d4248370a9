"""The fused loss against its definition in probabilities, in float64 and by autograd.

Every test here holds for both backends: `test_fused_triton.py` runs this file again under Triton's interpreter, and
`gpu/test_fused.py` on a device, by these two variables.
"""

import functools
import os

import pytest
import torch
from torch.nn import functional

from dncc.fused import fused_dncc

BACKEND = os.environ.get("DNCC_TEST_BACKEND", "torch")
DEVICE = os.environ.get("DNCC_TEST_DEVICE", "cpu")
AGGREGATES = ["arithmetic", "geometric"]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# Members, batch, classes: one tile of several samples; members and classes that are no powers of two; many members.
SHAPES = [(1, 3, 2), (2, 9, 4), (3, 7, 10), (5, 3, 129), (33, 2, 60)]
CASES = [(shape, dtype) for shape in SHAPES for dtype in DTYPES]
CASES += [((3, 2, 9001), torch.float32)]  # two loops over the classes, and a tail
INTERPRETED = BACKEND == "triton" and DEVICE == "cpu"
LONG = 300 if INTERPRETED else 9001  # classes that take the loops, with the fixture `small_tiles`
# Rounding of the gradient to 16 bits, relative: half a unit in the last place; Triton's interpreter truncates bfloat16.
UNIT = {torch.float64: 0.0, torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
if INTERPRETED:
    UNIT[torch.bfloat16] = 2.0**-7


fused = functools.partial(fused_dncc, backend=BACKEND)


def problem(shape, dtype=torch.float32, seed=0, spread=3.0):
    generator = torch.Generator().manual_seed(seed)
    members, batch, classes = shape
    logits = spread * torch.randn(members, batch, classes, generator=generator, dtype=torch.float64)
    target = torch.randint(0, classes, (batch,), generator=generator)
    weight = torch.rand(batch, generator=generator) + 0.1
    return (logits.to(dtype).to(DEVICE).requires_grad_(), target.to(DEVICE), weight.to(DEVICE))


def defined(logits, target, lam, weight=None, aggregate="arithmetic"):
    """Loss and terms from probabilities, by the definition, in float64."""
    p = torch.softmax(logits.double(), -1)
    if aggregate == "arithmetic":
        q = p.mean(0)
    else:
        q = p.log().mean(0).exp()
        q = q / q.sum(-1, keepdim=True)
    rows = torch.arange(len(target), device=target.device)
    member_ce, ensemble_ce = -p[:, rows, target.long()].log(), -q[rows, target.long()].log()
    value = (1 - lam) * member_ce.mean(0) + lam * ensemble_ce
    weight = torch.ones_like(value) if weight is None else weight.double()
    return (weight * value).sum() / weight.sum(), member_ce, ensemble_ce, member_ce.mean(0) - ensemble_ce


def gradient(loss, logits, factor=1.0):
    return torch.autograd.grad(loss * factor, logits)[0]


def close(found, expected, tolerance, relative=0.0):
    found, expected = found.detach().double(), expected.detach().double()
    assert found.shape == expected.shape
    over = (found - expected).abs() - (tolerance + relative * expected.abs())
    assert bool((over <= 0).all()), f"off by {float((found - expected).abs().max())}, by {float(over.max())} too much"


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles that make the interpreter loop over a few hundred classes: it is slow."""
    if INTERPRETED:
        from dncc import fused_triton

        monkeypatch.setattr(fused_triton, "_TILE", 256)
        monkeypatch.setattr(fused_triton, "_LARGEST", 512)


@pytest.mark.parametrize(("shape", "dtype"), CASES)
@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize(("weighted", "lam"), [(True, 0.3), (False, 1.0)])
def test_terms_and_gradient_are_those_of_the_definition(shape, dtype, aggregate, weighted, lam):
    logits, target, weight = problem(shape, dtype)
    weight = weight if weighted else None
    found = fused(logits, target, lam, weight=weight, aggregate=aggregate)
    truth = logits.detach().double().requires_grad_()
    expected = defined(truth, target, lam, weight, aggregate)
    exact = 1e-12 if dtype == torch.float64 else 1e-5
    for ours, theirs in zip((found.loss, found.member_ce, found.ensemble_ce, found.ambiguity), expected, strict=True):
        assert ours.dtype == torch.promote_types(dtype, torch.float32)
        close(ours, theirs.detach(), exact)
    ours, theirs = gradient(found.loss, logits), gradient(expected[0], truth)
    assert ours.dtype == dtype
    assert ours.shape == logits.shape
    # float16 has a smallest number; the rest is the rounding of the result
    close(ours, theirs, 2.0**-25 if dtype == torch.float16 else 1e-12 if dtype == torch.float64 else 1e-6, UNIT[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_gradient_is_exact_relative_to_a_samples_share(dtype, aggregate):
    """The factor 1 / (members sum w) hides nothing."""
    logits, target, weight = problem((4, 64, 50), dtype)
    truth = logits.detach().double().requires_grad_()
    ours = gradient(fused(logits, target, 0.7, weight=weight, aggregate=aggregate).loss, logits)
    theirs = gradient(defined(truth, target, 0.7, weight, aggregate)[0], truth)
    share = (weight / weight.sum() / 4)[None, :, None]
    close(ours / share, theirs / share, 1e-12 if dtype == torch.float64 else 5e-6)


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("shape", [(3, 5, 10), (2, 1, LONG)])
@pytest.mark.usefixtures("small_tiles")
def test_sum_over_members_is_members_times_the_mean(aggregate, shape):
    logits, target, weight = problem(shape, torch.float64)
    mean, total = (
        fused(logits, target, 0.6, weight=weight, aggregate=aggregate, reduction=reduction)
        for reduction in ("mean", "sum")
    )
    close(total.loss, shape[0] * mean.loss, 1e-12)
    close(gradient(total.loss, logits), shape[0] * gradient(mean.loss, logits), 1e-14)
    assert torch.equal(total.member_ce, mean.member_ce)


def layouts():
    yield "batch, members, classes", lambda x: x.transpose(0, 1).contiguous().transpose(0, 1)
    yield "batch, classes, members", lambda x: x.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    yield "every second class", lambda x: x.repeat_interleave(2, -1)[..., ::2]
    yield "a slice, not aligned", lambda x: functional.pad(x, (3, 2))[..., 3:-2]
    yield "a slice of the batch", lambda x: torch.cat([x, x, x], 1)[:, x.shape[1] : 2 * x.shape[1]]


@pytest.mark.parametrize(("name", "layout"), list(layouts()), ids=[name for name, _ in layouts()])
@pytest.mark.parametrize("shape", [(3, 5, 12), (2, 2, LONG)])
@pytest.mark.usefixtures("small_tiles")
def test_any_strides(name, layout, shape):
    logits, target, weight = problem(shape, torch.float64)
    strided = layout(logits.detach()).requires_grad_()
    assert torch.equal(strided, logits)
    assert not strided.is_contiguous()
    for aggregate in AGGREGATES:
        plain, other = (fused(z, target, 0.4, weight=weight, aggregate=aggregate) for z in (logits, strided))
        close(other.loss, plain.loss, 1e-13)
        close(other.ambiguity, plain.ambiguity, 1e-13)
        close(gradient(other.loss, strided, 3), gradient(plain.loss, logits, 3), 1e-14)


def test_members_that_share_memory():
    """An expanded axis: stride 0."""
    one, target, _ = problem((1, 6, 20), torch.float64)
    found = fused(one.expand(4, -1, -1), target, 0.8)
    assert float(found.ambiguity.max()) < 1e-15
    close(gradient(found.loss, one), gradient(functional.cross_entropy(one[0], target), one), 1e-14)


def test_targets_of_both_widths_and_strides():
    logits, target, _ = problem((3, 8, 6), torch.float64)
    reference = fused(logits, target, 0.5)
    for other in (target.int(), torch.stack([target, target], 1)[:, 0], torch.stack([target, target], 1).int()[:, 1]):
        assert torch.equal(fused(logits, other, 0.5).member_ce, reference.member_ce)


@pytest.mark.parametrize("lam", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_one_member_is_cross_entropy(lam, aggregate):
    logits, target, weight = problem((1, 12, 30), torch.float64)
    found = fused(logits, target, lam, weight=weight, aggregate=aggregate)
    each = functional.cross_entropy(logits[0], target, reduction="none")
    expected = (each * weight).sum() / weight.double().sum()
    assert torch.allclose(found.ambiguity, torch.zeros_like(found.ambiguity), atol=1e-14)
    close(found.loss, expected, 1e-13)
    close(gradient(found.loss, logits), gradient(expected, logits), 1e-14)


def test_at_lambda_1_members_are_weighted_by_their_responsibility():
    logits, target, _ = problem((4, 6, 5), torch.float64)
    p = torch.softmax(logits.detach(), -1)
    own = p[:, torch.arange(6), target]
    expected = (own / own.mean(0)).unsqueeze(-1) * (p - functional.one_hot(target, 5)) / (4 * 6)
    close(gradient(fused(logits, target, 1.0).loss, logits), expected, 1e-14)


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_empty_batch(aggregate, dtype):
    """NaN as in torch, and a gradient without entries."""
    logits = torch.zeros(3, 0, 5, dtype=dtype, device=DEVICE, requires_grad=True)
    target = torch.zeros(0, dtype=torch.long, device=DEVICE)
    found = fused(logits, target, 0.5, aggregate=aggregate)
    assert torch.isnan(found.loss)
    assert found.member_ce.shape == (3, 0)
    assert found.ambiguity.shape == (0,)
    assert gradient(found.loss, logits, 2).shape == (3, 0, 5)


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("shape", [(3, 6, 7), (2, 3, LONG)])
@pytest.mark.usefixtures("small_tiles")
def test_samples_of_weight_0_add_nothing_whatever_they_hold(aggregate, shape):
    logits, target, weight = problem(shape, torch.float64)
    weight[0] = weight[2] = 0
    logits = logits.detach()
    logits[:, 0], logits[0, 2, 1] = float("nan"), float("inf")
    kept = weight > 0
    logits.requires_grad_()
    part = logits.detach()[:, kept].requires_grad_()
    lam = torch.tensor(0.3, device=DEVICE, dtype=torch.float64, requires_grad=True)
    found = fused(logits, target, lam, weight=weight, aggregate=aggregate)
    expected = fused(part, target[kept], lam, weight=weight[kept], aggregate=aggregate)
    close(found.loss, expected.loss, 1e-13)
    theirs, slope = torch.autograd.grad(expected.loss, (part, lam))
    for factor, keep in ((1, True), (3, True), (2, False)):
        ours = torch.autograd.grad(found.loss * factor, (logits, lam), retain_graph=keep)
        assert torch.equal(ours[0][:, ~kept], torch.zeros_like(ours[0][:, ~kept]))
        close(ours[0][:, kept], factor * theirs, 1e-14)
        close(ours[1], factor * slope, 1e-13)


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_no_sample_that_counts(aggregate):
    logits, target, weight = problem((2, 3, 4))
    found = fused(logits, target, 0.5, weight=torch.zeros_like(weight), aggregate=aggregate)
    assert torch.isnan(found.loss)
    assert torch.equal(gradient(found.loss, logits), torch.zeros_like(logits))


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize(
    ("classes", "dtype"), [*((6, dtype) for dtype in DTYPES), (LONG, torch.float32), (LONG, torch.float16)]
)
@pytest.mark.usefixtures("small_tiles")
def test_extreme_logits_are_finite(aggregate, classes, dtype):
    logits, target, _ = problem((3, 4, classes), dtype)
    logits = logits.detach()
    other = (target + 1) % classes
    rows = torch.arange(4, device=DEVICE)
    logits[0, 0], logits[1, 0, target[0]], logits[2, 0, other[0]] = -1e4, 1e4, 1e4
    logits[:, 1] += 1e4  # an offset changes nothing, to the precision of the sum
    logits[0, 2, other[2]] = -float("inf")  # one member has excluded a class
    logits[:, 3] = -float("inf")  # all have excluded all but the label
    logits[:, rows[3], target[3]] = 2.0
    logits.requires_grad_()
    found = fused(logits, target, 0.5, aggregate=aggregate)
    for value in (found.loss, found.member_ce, found.ensemble_ce, found.ambiguity):
        assert bool(torch.isfinite(value).all())
    assert float(found.ambiguity.min()) >= 0
    assert float(found.member_ce[:, 3].abs().max()) == 0
    grad = gradient(found.loss, logits)
    assert bool(torch.isfinite(grad).all())
    assert float(grad[:, 3].abs().max()) == 0
    # sure of a wrong class by 10^4: probability 0 in any type, cross-entropy 10^4 and more (20 000 with both)
    assert float(found.member_ce[2, 0].detach()) > 9e3
    log_p = torch.log_softmax(logits.detach().double(), -1)
    close(found.member_ce, -log_p[:, rows, target], 1e-5, 1e-6)


def test_the_ends_leave_out_what_is_infinite():
    """A member, or all of them, may give the label probability 0."""
    logits, target, _ = problem((3, 4, 6))
    logits = logits.detach()
    logits[0, 0, target[0]] = -float("inf")
    joint = fused(logits.requires_grad_(), target, 1.0)
    close(joint.loss, joint.ensemble_ce.mean(), 1e-6)
    assert bool(torch.isfinite(gradient(joint.loss, logits)).all())
    for lam in (0.0, 0.5):
        assert float(fused(logits, target, lam, aggregate="geometric").loss.detach()) == float("inf")
    logits = logits.detach()
    logits[:, 1, target[1]] = -float("inf")
    for lam in (0.0, 0.5, 1.0):
        found = fused(logits, target, lam)
        assert float(found.loss) == float(found.ensemble_ce[1]) == float("inf")


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_ambiguity_is_never_negative_and_the_decomposition_holds(aggregate):
    for spread, noise in ((1.0, 0.0), (1.0, 1e-6), (20.0, 1e-3), (5.0, 5.0)):
        base, target, _ = problem((1, 256, 8), spread=spread)
        logits = base.detach() + noise * problem((5, 256, 8), seed=1, spread=1.0)[0].detach()
        found = fused(logits, target, 0.5, aggregate=aggregate)
        assert float(found.ambiguity.min()) >= 0
        ce = found.member_ce.mean(0)
        assert float(((ce - found.ensemble_ce - found.ambiguity).abs() / (1 + ce)).max()) < 1e-6


def test_a_small_ambiguity_keeps_its_digits():
    """Members 10^-4 apart: the ambiguity is about 10^-9, far below the rounding of cross-entropies near 1."""
    base, target, _ = problem((1, 64, 8), spread=1.0)
    logits = base.detach() + 1e-4 * problem((5, 64, 8), seed=1, spread=1.0)[0].detach()
    found = fused(logits, target, 0.5).ambiguity.double()
    expected = defined(logits, target, 0.5)[3]
    assert float(expected.max()) < 1e-7
    # a log-likelihood is off by some 10^-7, so a deviation of 10^-4 by some 10^-3 of itself
    assert float((found - expected).abs().max() / expected.max()) < 0.02


@pytest.mark.parametrize("factor", [1.0, 0.37, -4.0, 0.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gradient_of_the_loss_is_multiplied_in(factor, dtype):
    logits, target, weight = problem((3, 5, 11), dtype)
    truth = logits.detach().double().requires_grad_()
    expected = gradient(defined(truth, target, 0.5, weight)[0], truth, factor)
    found = fused(logits, target, 0.5, weight=weight).loss
    close(gradient(found, logits, factor), expected, 2e-6 if dtype != torch.float64 else 1e-13,
          2 * UNIT[dtype] + 1e-12)  # rounded twice  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_graph_that_is_kept_can_be_run_again(dtype):
    logits, target, _ = problem((3, 5, 11), dtype)
    loss = fused(logits, target, 0.5).loss
    first = torch.autograd.grad(4 * loss, logits, retain_graph=True)[0]
    second = torch.autograd.grad(loss, logits, retain_graph=True)[0]
    third = torch.autograd.grad(4 * loss, logits)[0]
    assert torch.equal(first, third)
    close(first, 4 * second, 1e-6, UNIT[dtype])
    assert bool((second != 0).any())
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, logits)


def test_gradients_of_two_losses_add_up_in_a_leaf():
    logits, target, _ = problem((2, 4, 5), torch.float64)
    for lam in (0.2, 0.6):
        (2 * fused(logits, target, lam).loss).backward()
    expected = sum(gradient(defined(logits, target, lam)[0], logits, 2) for lam in (0.2, 0.6))
    close(logits.grad, expected, 1e-14)


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradient_by_lambda(aggregate, reduction):
    logits, target, weight = problem((3, 6, 7), torch.float64)
    lam = torch.tensor(0.4, dtype=torch.float64, device=DEVICE, requires_grad=True)
    found = fused(logits.detach(), target, lam, weight=weight, aggregate=aggregate, reduction=reduction).loss
    terms = defined(logits.detach(), target, 0.4, weight, aggregate)
    slope = -(weight * terms[3]).sum() / weight.double().sum() * (3 if reduction == "sum" else 1)
    close(torch.autograd.grad(2 * found, lam)[0], 2 * slope, 1e-13)
    both = torch.autograd.grad(fused(logits, target, lam, weight=weight, aggregate=aggregate).loss, (logits, lam))
    close(both[0], gradient(fused(logits, target, 0.4, weight=weight, aggregate=aggregate).loss, logits), 0)


def test_lambda_may_be_a_tensor_of_another_type_or_place():
    logits, target, _ = problem((3, 6, 7))
    expected = fused(logits, target, 0.25).loss
    for lam in (torch.tensor(0.25), torch.tensor(0.25, dtype=torch.float64, device=DEVICE)):
        assert torch.equal(fused(logits, target, lam).loss, expected)
    parameter = torch.nn.Parameter(torch.tensor(0.25, dtype=torch.float64))  # on the CPU
    fused(logits, target, parameter).loss.backward()
    assert parameter.grad is not None
    assert parameter.grad.dtype == torch.float64


def test_a_second_derivative_is_refused():
    logits, target, _ = problem((2, 3, 4))
    loss = fused(logits, target, 0.5).loss
    with pytest.raises(RuntimeError, match="no second derivative"):  # at once: later it could go unnoticed
        torch.autograd.grad(loss, logits, create_graph=True)


def test_only_the_loss_carries_a_gradient():
    logits, target, _ = problem((2, 3, 4))
    found = fused(logits, target, 0.5)
    assert found.loss.requires_grad
    assert not any(v.requires_grad for v in (found.member_ce, found.ensemble_ce, found.ambiguity))
    assert not fused(logits.detach(), target, 0.5).loss.requires_grad
    with torch.no_grad():
        assert not fused(logits, target, 0.5).loss.requires_grad


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_float16_keeps_small_gradients_under_a_scaler(aggregate):
    """The scaler's factor comes before rounding: unscaled, these would be subnormal or 0."""
    logits, target, _ = problem((8, 64, 100), torch.float16, spread=5.0)
    truth = logits.detach().double().requires_grad_()
    scale = 2.0**16
    ours = gradient(fused(logits, target, 0.5, aggregate=aggregate).loss, logits, scale).double()
    theirs = gradient(defined(truth, target, 0.5, None, aggregate)[0], truth, scale)
    large = theirs.abs() > 2.0**-14
    assert float(((ours - theirs).abs() / theirs.abs())[large].max()) < 2.0**-10
    assert int((large & (theirs.abs() / scale < 2.0**-24)).sum()) > 100  # these would have become 0


def test_autocast_changes_nothing():
    logits, target, weight = problem((3, 6, 40))
    for aggregate in AGGREGATES:
        plain = fused(logits, target, 0.5, weight=weight, aggregate=aggregate)
        with torch.autocast(DEVICE, torch.bfloat16):
            other = fused(logits, target, 0.5, weight=weight, aggregate=aggregate)
        assert torch.equal(other.loss, plain.loss)
        assert torch.equal(gradient(other.loss, logits), gradient(plain.loss, logits))


def test_the_same_bits_at_every_run():
    logits, target, weight = problem((4, 300, 10))
    for aggregate in AGGREGATES:
        runs = [fused(logits, target, 0.5, weight=weight, aggregate=aggregate) for _ in range(2)]
        assert torch.equal(runs[0].loss, runs[1].loss)
        grads = [gradient(run.loss, logits, 3) for run in runs]
        assert torch.equal(*grads)


def test_inputs_stay_as_they_are():
    logits, target, weight = problem((3, 4, 5))
    before = [x.detach().clone() for x in (logits, target, weight)]
    gradient(fused(logits, target, 0.5, weight=weight).loss, logits, 2)
    assert all(torch.equal(x, y) for x, y in zip(before, (logits, target, weight), strict=True))


if BACKEND == "triton":  # the kernel's own, and what the shape checker of the other runs is in the way of

    @pytest.mark.parametrize("wrong", [-100, 4, 10**12])
    def test_a_label_out_of_range_makes_the_loss_nan_and_reads_nothing_outside(wrong):
        from dncc import fused_triton

        logits, target, _ = problem((2, 3, 4))
        target[1], lam = wrong, torch.tensor(0.5, device=DEVICE)
        found = fused_triton.terms(logits.detach(), target, lam, None, "arithmetic", False, True)
        assert bool(torch.isnan(found[0]))
        assert torch.isnan(found[1]).any(0).tolist() == [False, True, False]

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_the_factor_is_read_by_the_kernel_that_applies_it(monkeypatch, dtype):
        from dncc import fused_triton

        monkeypatch.setattr(fused_triton, "_SCALE_BLOCK", 128)
        monkeypatch.setattr(fused_triton, "_SCALE_PROGRAMS", 3)  # several rounds a program, and a tail
        wide = torch.promote_types(dtype, torch.float32)
        for x in (problem((10, 10, 10), dtype)[0].detach(), problem((4, 50, 6), dtype)[0].detach().transpose(0, 2)):
            grad = x.clone()
            assert fused_triton.rescale(grad, torch.tensor(1.0, dtype=wide, device=DEVICE)) is grad
            assert torch.equal(grad, x)
            fused_triton.rescale(grad, torch.tensor(0.3, dtype=wide, device=DEVICE))
            close(grad, 0.3 * x.double(), 1e-7 if dtype != torch.float64 else 1e-16, UNIT[dtype] + 1e-7)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("backend", ["torch", "triton"])
    def test_inside_a_compiled_function(dtype, backend):
        """One graph, forward and backward, for two batch sizes; the gradient by lambda too."""
        torch.compiler.reset()
        layer = torch.nn.Linear(6, 3 * 7, device=DEVICE)
        lam = torch.tensor(0.4, requires_grad=True, device=DEVICE)
        aggregate = "arithmetic" if dtype == torch.float32 else "geometric"

        def step(x, target, weight):
            logits = layer(x).unflatten(-1, (3, 7)).transpose(0, 1).to(dtype)
            found = fused(logits, target, lam, weight=weight, aggregate=aggregate, backend=backend)
            return 2 * found.loss, found.ambiguity, found.member_ce

        compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
        for batch in (5, 9):
            _, target, weight = problem((1, batch, 7))
            x = torch.randn(batch, 6, generator=torch.Generator().manual_seed(batch)).to(DEVICE)
            plain, other = step(x, target, weight), compiled(x, target, weight)
            for a, b in zip(other, plain, strict=True):
                close(a, b, 1e-6)
            wanted = (*layer.parameters(), lam)
            for a, b in zip(torch.autograd.grad(other[0], wanted), torch.autograd.grad(plain[0], wanted), strict=True):
                close(a, b, 1e-6, UNIT[dtype] if backend == "triton" else 2.0**-8)

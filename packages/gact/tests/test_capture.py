"""One forward pass under compression: forms, names, sharing, and odd tensors, on frames without a compressor."""

import math
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from gact.allocation import RAW
from gact.capture import Frame, Plan
from gact.ledger import affine_bytes, field_bytes
from gact.nodes import HAS_CREATION_HOOK, watch
from gact.rules import Rule, Rules


def plan(bits=8, **settings):
    return Plan(
        **{"rules": Rules(), "bits": lambda key, least: bits, "min_bytes": 0, "group_size": 64, "seed": 0} | settings
    )


@contextmanager
def following(frame):
    try:
        with torch.autograd.graph.saved_tensors_hooks(frame.pack, frame.unpack), watch(frame.observe):
            yield frame
    finally:
        frame.close()


def run(function, **settings):
    frame = Frame(plan(**settings), 1, HAS_CREATION_HOOK)
    with following(frame):
        result = function()
    return frame.settled, result


DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
FUNCTIONS = {
    "square": (lambda h: h * h, 2.0),
    "exp of half": (lambda h: (h / 2).exp() * 2, math.exp(0.5)),
    "tanh": (torch.tanh, 2.0),
    "relu": (functional.relu, 0.0),
    "clamp": (lambda h: h.clamp(-0.5, 0.5), 0.0),
    "softmax of rows": (
        lambda h: h.reshape(max(h.shape[0], 1) if h.dim() else 1, -1).softmax(0) if h.numel() else h,
        4.0,
    ),
}


@st.composite
def tensors(draw):
    size = draw(st.lists(st.integers(0, 7), min_size=0, max_size=4))
    dtype = draw(st.sampled_from(DTYPES))
    seed = draw(st.integers(0, 2**16))
    x = (2 * torch.rand(size, generator=torch.Generator().manual_seed(seed)) - 1).to(dtype)
    if draw(st.booleans()) and x.numel():
        x.view(-1)[draw(st.integers(0, x.numel() - 1))] = draw(st.sampled_from([math.nan, math.inf, -math.inf]))
    return x


@st.composite
def views(draw):
    """A view: permuted, sliced, expanded."""
    order, step, repeat = draw(st.randoms(use_true_random=False)), draw(st.integers(1, 3)), draw(st.integers(1, 3))

    def view(x):
        if x.dim():
            x = x.permute(order.sample(range(x.dim()), x.dim()))
            x = x[::step]
        return x.expand(repeat, *x.shape)

    seed = order.getstate()

    def same(x):
        order.setstate(seed)
        return view(x)

    return same


@pytest.mark.property
@settings(max_examples=150)
@given(tensors(), views(), st.sampled_from(sorted(FUNCTIONS)), st.sampled_from([1, 2, 4, 8]))
def test_any_tensor_goes_through(x, view, name, bits):
    function, slope = FUNCTIONS[name]
    leaf = x.clone().requires_grad_()

    def forward():
        return function(view(leaf.neg().neg()))

    settled, y = run(forward, bits=bits)
    plain = forward()
    assert torch.equal(y.nan_to_num(), plain.nan_to_num())
    weight = torch.ones_like(plain)
    (found,) = torch.autograd.grad(y, leaf, weight)
    (exact,) = torch.autograd.grad(plain, leaf, weight)
    assert found.shape == exact.shape
    assert bool((torch.isfinite(found) <= torch.isfinite(exact)).all())
    if slope == 0:
        assert torch.equal(found.nan_to_num(), exact.nan_to_num())
    elif bool(torch.isfinite(x).all()):
        repeats = view(leaf).shape[0]
        rounding = 60 * torch.finfo(x.dtype).eps
        bound = repeats * slope * (2.0 * math.e / (2**bits - 1) + rounding)
        assert bool(((found - exact).abs().double() <= bound).all())
    assert all(s.nbytes >= 0 for s in settled)


@pytest.mark.property
@given(st.integers(0, 3000), st.sampled_from([1, 2, 4, 8]), st.sampled_from([64, 256, 2048]), st.sampled_from(DTYPES))
def test_bytes_follow_from_the_shape(numel, bits, group_size, dtype):
    x = torch.ones(numel, dtype=dtype, requires_grad=True)
    settled, _ = run(lambda: functional.relu(x.neg().tanh()), bits=bits, group_size=group_size)
    assert [(s.operation, s.nbytes) for s in settled] == [
        ("Tanh", affine_bytes(numel, bits, group_size, dtype)),
        ("Relu", field_bytes(numel, 1)),
    ]


def test_records_name_module_operation_and_number():
    x = torch.randn(64, requires_grad=True)
    frame = Frame(plan(), 1, HAS_CREATION_HOOK)
    with following(frame):
        frame.modules.append("body.0")
        y = x.exp().exp()
        frame.modules[-1] = "head"
        y = y.tanh() * y
    assert [(s.key, s.item) for s in frame.settled if s.operation != "Mul"] == [
        ("body.0/Exp.result#0", "body.0/Exp.result#0"),
        ("body.0/Exp.result#1", "body.0/Exp.result#1"),
        ("head/Tanh.result#0", "head/Tanh.result#0"),
    ]
    shared = {s.saved: s for s in frame.settled if s.operation == "Mul"}
    assert shared["self"].item == "head/Tanh.result#0"
    assert shared["other"].item == "body.0/Exp.result#1"
    assert all(s.result == (s.operation != "Mul") for s in frame.settled)
    assert {s.module for s in frame.settled} == {"body.0", "head"}


def test_names_do_not_depend_on_earlier_passes():
    x = torch.randn(64, requires_grad=True)
    first, second = (run(lambda: x.exp().sin())[0] for _ in range(2))
    assert [s.key for s in first] == [s.key for s in second]


class Statistics(torch.autograd.Function):
    """A fused norm, whose saved tensors need no gradient: activations and one number a row."""

    @staticmethod
    def forward(ctx, x):
        scale = x.square().mean(1, keepdim=True).rsqrt()
        hidden = x * scale
        ctx.save_for_backward(hidden, scale)
        return hidden.clone()

    @staticmethod
    def backward(ctx, grad):
        hidden, scale = ctx.saved_tensors
        return (grad - hidden * (grad * hidden).mean(1, keepdim=True)) * scale


def test_custom_functions_keep_their_statistics_and_store_the_rest():
    x = torch.randn(32, 64, requires_grad=True)
    settled, y = run(lambda: Statistics.apply(x.neg()) * 1)
    assert [(s.shape, s.form, s.reason) for s in settled if s.operation == "Statistics"] == [
        ((32, 64), "affine", ""),
        ((32, 1), "exact", "statistic"),
    ]
    (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
    (plain,) = torch.autograd.grad(Statistics.apply(x.neg()), x, torch.ones_like(y))
    assert torch.allclose(grad, plain, atol=0.1)
    assert not torch.equal(grad, plain)


def test_a_rule_for_a_custom_function_by_its_name():
    x = torch.randn(32, 64, requires_grad=True)
    settled, _ = run(lambda: Statistics.apply(x.neg()), rules=Rules([Rule("exact", operation="Statistics")]))
    assert {s.form for s in settled} == {"exact"}


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x, x)
        return x * x

    @staticmethod
    def backward(ctx, grad):
        a, b = ctx.saved_tensors
        return grad * (a + b)


def test_one_tensor_saved_twice_by_one_function_is_stored_once():
    x = torch.randn(256, requires_grad=True)
    settled, y = run(lambda: Twice.apply(x.neg()) + 0, bits=2)
    assert [(s.operation, s.item) for s in settled] in (
        [("Twice", "/Twice.tensors#0")],
        [("Twice", "/Twice.tensors#0"), ("Twice", "/Twice.tensors#0")],
    )
    (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
    low, high = 2 * x.min(), 2 * x.max()
    assert bool(((grad >= low) & (grad <= high)).all())  # a = b: with noise of their own they would differ
    levels = 4 * 4  # four groups of four codes
    assert grad.unique().numel() <= levels


def test_codes_may_live_elsewhere_and_in_given_memory():
    class Box:
        def __init__(self, buffer):
            self.kept = buffer.clone()
            buffer.fill_(255)

        def get(self):
            return self.kept

    taken = []

    def take(nbytes, device):
        taken.append((nbytes, device.type))
        return torch.empty(nbytes, dtype=torch.uint8)

    x = torch.linspace(-1, 1, 640, requires_grad=True)
    settled, y = run(lambda: x.neg() * x.neg(), keep=Box, take=take)
    assert taken == [(affine_bytes(640, 8, 64, torch.float32), "cpu")] * 2
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.allclose(grad, 2 * x, atol=4 / 255)
    assert settled[0].nbytes == taken[0][0]


def test_exact_widths_and_small_and_sharded_tensors_say_why():
    x = torch.randn(64, requires_grad=True)
    assert run(lambda: x.neg().exp(), bits=RAW)[0][0].reason == "bits"
    assert run(lambda: x.neg().exp(), min_bytes=257)[0][0].reason == "small"
    assert run(lambda: x.neg().exp(), min_bytes=256)[0][0].reason == ""
    (sharded,), _ = run(lambda: x.neg().exp(), is_exempt=lambda tensor: tensor.numel() == 64)
    assert (sharded.reason, sharded.outside) == ("parameter", True)


def test_a_small_view_does_not_keep_its_large_storage():
    x = torch.randn(256, 256, requires_grad=True)

    def function():
        h = x.neg()
        return h[0].exp() * h[0], h[:, :1] * h[:, 1:2]

    settled, (y, z) = run(function, min_bytes=4096)
    copies = [s for s in settled if s.storage_bytes == 4 * 256 * 256]
    assert [(s.form, s.reason, s.nbytes) for s in copies] == [("exact copy", "small", 1024)] * 3
    found = torch.autograd.grad(y.sum() + z.sum(), x)[0]
    y, z = function()
    assert torch.equal(found, torch.autograd.grad(y.sum() + z.sum(), x)[0])


def test_what_another_operation_keeps_exact_is_not_stored_beside():
    x = torch.rand(64, requires_grad=True)
    settled, _ = run(lambda: (lambda h: h.log() + h * h)(x.neg().neg() + 1))
    assert [(s.operation, s.reason) for s in settled] == [
        ("Log", "singular"),
        ("Mul", "kept exact by another operation"),
        ("Mul", "kept exact by another operation"),
    ]


@pytest.mark.parametrize(
    ("values", "form"),
    [
        ([0.0, 2.0], "two values"),
        ([0.0, -0.5], "two values"),
        ([0.0, 0.0], "two values"),
        ([3.0, 3.0], "two values"),
        ([1.0, 2.0], "exact"),
        ([0.0, math.nan], "exact"),
        ([0.0, math.inf], "exact"),
    ],
)
def test_constants_of_two_values_are_exact_in_a_bit(values, form):
    x = torch.randn(100, requires_grad=True)
    noise = torch.tensor(values).repeat(50)
    settled, y = run(lambda: x.neg() * noise)
    assert [s.form for s in settled if s.saved == "other"] == [form]
    (grad,) = torch.autograd.grad(y, x, torch.ones(100))
    (plain,) = torch.autograd.grad(x.neg() * noise, x, torch.ones(100))
    assert torch.equal(grad.view(torch.int32), plain.view(torch.int32))


def test_noise_depends_on_seed_pass_and_tensor_alone():
    x = torch.rand(640, requires_grad=True)

    def codes(seed, invocation):
        frame = Frame(plan(bits=1, seed=seed), invocation, HAS_CREATION_HOOK)
        with following(frame):
            y = x.neg().tanh() + x.neg().tanh()
        return torch.autograd.grad(y.sum(), x)[0]

    assert torch.equal(codes(0, 1), codes(0, 1))
    assert not torch.equal(codes(0, 1), codes(0, 2))
    assert not torch.equal(codes(0, 1), codes(1, 1))
    frame = Frame(plan(bits=1), 1, HAS_CREATION_HOOK)
    with following(frame):
        a, b = x.neg().tanh(), x.neg().tanh()  # the same numbers, in two tensors
    a, b = (torch.autograd.grad(y.sum(), x)[0] for y in (a, b))
    assert not torch.equal(a, b)

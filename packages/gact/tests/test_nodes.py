"""Being told of autograd's nodes: by torch's own hook, and by walking; the two agree on every model."""

import dataclasses
import threading
from contextlib import ExitStack

import pytest
import torch
from torch import nn
from torch.nn import functional

from gact import ActivationCompressor, Rule
from gact.capture import Frame, Plan
from gact.nodes import HAS_CREATION_HOOK, is_custom, saved_names, variant, views_parameter, watch
from gact.rules import Rules, operation

needs_hook = pytest.mark.skipif(not HAS_CREATION_HOOK, reason="this torch has no hook on the creation of nodes")


class Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        ctx.mark_non_differentiable(positive := x > 0)
        return x * w, positive

    @staticmethod
    def backward(ctx, grad, _):
        x, w = ctx.saved_tensors
        return grad * w, (grad * x).sum(0)


class Everything(nn.Module):
    """Fused and plain attention, recurrence, convolutions, custom functions, in-place changes, lists of results."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.gru, self.w = nn.GRU(8, 8, batch_first=True), nn.Parameter(torch.ones(8))

    def forward(self, x):
        x = functional.max_pool2d(functional.relu_(self.norm(self.conv(x))), 2)
        x = self.block(x.flatten(2).transpose(1, 2))
        left, right = torch.var_mean(x, -1, keepdim=True)
        parts = ((x - right) / (left + 1).sqrt()).chunk(2, 1)
        x, _ = Scale.apply(torch.cat([part.exp() * part for part in parts], 1), self.w)
        x, _ = self.gru(x)
        values, _ = x.topk(3, 1)
        q, r = torch.linalg.qr(x[:, :8])
        return (
            functional.dropout(values, 0.3).sum() + x.sin().amax() + (q @ r).abs().mean() + x.std(1).logsumexp(0).sum()
        )


def settle(function, *, walk, bits=4):
    """What a frame settles, and the function's result."""
    plan = Plan(Rules(), lambda key, least: bits, 0, 256, 0)
    frame = Frame(plan, 1, HAS_CREATION_HOOK and not walk)
    with ExitStack() as stack:
        stack.callback(frame.close)
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(frame.pack, frame.unpack))
        stack.enter_context(watch(frame.observe, walk=walk))
        torch.manual_seed(1)
        result = function()
    return frame.settled, result


def described(settled):
    """What matters of the records; addresses and reasons of what no node was seen for differ."""
    rows = [dataclasses.replace(s, storage=0, reason="" if s.operation == "Unknown" else s.reason) for s in settled]
    return sorted(map(repr, rows))


@needs_hook
def test_walking_finds_what_the_hook_finds():
    torch.manual_seed(0)
    model, x = Everything(), torch.randn(2, 3, 8, 8)
    hooked, a = settle(lambda: model(x), walk=False)
    walked, b = settle(lambda: model(x), walk=True)
    assert torch.equal(a, b)
    assert len(hooked) > 60
    assert described(walked) == described(hooked)
    assert {s.operation for s in hooked} > {
        "Addmm",
        "Convolution",
        "Scale",
        "LinalgQr",
        "VarMean",
        "MaxPool2DWithIndices",
    }


@needs_hook
def test_walking_gives_the_same_gradients_noise_and_all():
    torch.manual_seed(0)
    model, x = Everything(), torch.randn(2, 3, 8, 8)
    parameters = list(model.parameters())
    a, b = (
        torch.cat(
            [g.flatten() for g in torch.autograd.grad(settle(lambda: model(x), walk=walk, bits=8)[1], parameters)]
        )
        for walk in (False, True)
    )
    assert (a - b).norm() < 0.1 * a.norm()


def test_walking_leaves_old_nodes_alone_even_freed_ones():
    x = torch.randn(64, requires_grad=True)
    old = x.exp() * x.sin()
    old.sum().backward()
    seen = []
    with watch(seen.append, walk=True):
        new = old * 2 + 1
    assert [operation(node.name()) for node in seen] == ["Mul", "Add"]
    assert new.requires_grad


def test_walks_inside_of_walks_hide_nothing_from_each_other():
    x = torch.randn(4, requires_grad=True)
    outer, inner = [], []
    with watch(outer.append, walk=True):
        y = x.exp()
        with watch(inner.append, walk=True):
            z = y.sin()
        z.cos()
    assert [operation(node.name()) for node in outer] == ["Exp", "Sin", "Cos"]
    assert [operation(node.name()) for node in inner] == ["Sin"]


def test_a_walk_belongs_to_its_thread():
    x, seen = torch.randn(4, requires_grad=True), []
    with watch(seen.append, walk=True):
        thread = threading.Thread(target=x.exp)
        thread.start()
        thread.join()
    assert seen == []


def test_a_view_changed_in_place_hides_its_node_and_what_that_saves_stays_exact():
    x = torch.linspace(-2, 2, 64).view(8, 8).requires_grad_()
    for walk in {True, not HAS_CREATION_HOOK}:
        settled, y = settle(lambda: functional.leaky_relu_(x.neg().flatten(), 0.1).exp(), walk=walk, bits=8)
        (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
        plain = functional.leaky_relu(x.neg().flatten(), 0.1).exp()
        assert torch.allclose(grad, torch.autograd.grad(plain, x, torch.ones_like(y))[0], atol=0.1)
        hidden = [s for s in settled if s.operation == "Unknown"]
        assert [(s.form, s.storage_bytes) for s in hidden] == [("exact", 256)]


@pytest.mark.parametrize("name", ["mul_", "div_", "addcdiv_", "atan2_", "relu_", "pow_"])
@pytest.mark.parametrize("view", [False, True])
def test_changes_in_place_keep_what_the_plain_operation_keeps(name, view):
    # Such operations save a copy of their operand in between, whose node must not take the other operands for its own.
    model = nn.Identity()
    a = torch.rand(16, 64, generator=torch.Generator().manual_seed(0)).add(0.5).requires_grad_()
    b = torch.rand(16, 64, generator=torch.Generator().manual_seed(1)).add(0.1).requires_grad_()

    def function():
        x, y = a.neg().neg(), b.neg().neg()
        target = x[2:9] if view else x
        operands = () if name == "relu_" else (y.sin(), y) if name == "addcdiv_" else (y,)
        getattr(target, name)(*(o[2:9] if view else o for o in operands))
        return x

    comp = ActivationCompressor(model, bits=2, min_bytes=0, rules=[Rule("exact", "Sin"), Rule("exact", "*", "tensor1")])
    with comp:
        y = function()
    found, plain = (torch.autograd.grad(out.sum(), (a, b), allow_unused=True) for out in (y, function()))
    if name == "mul_" and not view:
        assert {(r.operation, r.saved) for r in comp.report().rows} == {("Mul", "self"), ("Mul", "other")}
        return
    rows = {(r.operation, r.saved): r.form for r in comp.report().rows}
    assert rows.get(("Div", "other"), "exact") == "exact"
    if name == "div_" and not view:
        assert rows == {("Div", "self"): "affine", ("Div", "other"): "exact"}
        assert torch.equal(found[0], plain[0])
        return
    for x, y in zip(found, plain, strict=True):
        assert (x is None and y is None) or torch.equal(x, y)


def test_saved_names():
    x = torch.randn(4, 4, requires_grad=True)
    assert saved_names(torch.addmm(x, x, x).grad_fn) == ("mat1", "mat2")
    assert saved_names(x.exp().grad_fn) == ("result",)
    node = Scale.apply(x, torch.ones(4, requires_grad=True))[0].grad_fn
    assert is_custom(node)
    assert saved_names(node) == ("tensors",)
    assert not is_custom(x.exp().grad_fn)


def test_what_views_a_parameter():
    w = nn.Parameter(torch.randn(4, 4))
    views = [
        w.t(), w.view(2, 8), w[1:], w.to(torch.bfloat16), w.to(torch.bfloat16).t(), w.expand(3, 4, 4), w.unbind()[0],
        w.chunk(2)[1], w.flatten().unsqueeze(0).squeeze(0), w.select(0, 1),
    ]  # fmt: skip
    assert all(views_parameter(v.grad_fn) for v in views)
    others = [w * 2, w + w, w.t() @ w, (w * 1).t(), torch.cat([w, w])]
    assert not any(views_parameter(o.grad_fn) for o in others)
    assert not views_parameter(None)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x**2, "2"),
        (lambda x: x**1, "2"),
        (lambda x: x**3.0, "power"),
        (lambda x: x**0.5, ""),
        (lambda x: x**-1, ""),
        (lambda x: x ** float("inf"), ""),
        (lambda x: x**x, ""),
        (lambda x: 2**x, ""),
        (lambda x: torch.linalg.vector_norm(x), "2"),
        (lambda x: torch.linalg.vector_norm(x, 1), "1"),
        (lambda x: torch.linalg.vector_norm(x, float("inf")), "inf"),
        (lambda x: torch.ops.aten.norm(x, 2), "2"),
        (functional.elu, ""),
        (lambda x: functional.elu(x, 2.0), "jump"),
        (functional.selu, "jump"),
        (functional.softplus, ""),
        (lambda x: functional.softplus(x, 1, 2), "jump"),
        (functional.logsigmoid, "buffer"),
        (lambda x: torch.zeros(4).scatter_reduce(0, torch.arange(4), x, "amax"), "amax"),
    ],
)
def test_variants(function, expected):
    result = function(torch.rand(4, requires_grad=True))
    if isinstance(result, torch.Tensor) and result.grad_fn is not None and operation(result.grad_fn.name()) != "Clone":
        assert variant(result.grad_fn) == expected

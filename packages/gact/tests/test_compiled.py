"""Hooks inlined by torch.compile: their format, their rounding, what they store, and the gradients they give."""

import contextlib
import math
import warnings

import pytest
import torch
from torch import nn

from common_core.testing import assert_unbiased
from gact import affine, ledger, masks
from gact.affine import AffineCodes
from gact.compiled import CompiledHooks, CompileWarning, can_inline, is_compiling
from gact.compiled_affine import dequantise_traced, pack_bits_traced, quantise_traced, unpack_bits_traced
from gact.compiled_rules import Form, form_of

pytestmark = pytest.mark.filterwarnings("ignore::gact.compiled.CompileWarning")


def key(number: int) -> torch.Tensor:
    return torch.tensor((number * 2654435761) % (1 << 32) - (1 << 31), dtype=torch.int32)


def numbers(n: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(n), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_eager_quantiser_reads_traced_codes(bits: int, dtype: torch.dtype) -> None:
    x = numbers(1000, dtype)
    x[3], x[260], x[600] = -math.inf, math.nan, math.inf  # the first three groups; the last one is plain and short
    payload, low, high = quantise_traced(x, bits, 256, key(1))
    buffer = torch.cat([payload, low.view(torch.uint8), high.view(torch.uint8)])
    assert buffer.numel() == ledger.affine_bytes(1000, bits, 256, dtype)
    ours = dequantise_traced(payload, low, high, bits, 256, 1000)
    theirs = affine.dequantise(AffineCodes(buffer, 1000, bits, 256, dtype))
    # Both round a product, a quotient and a sum, of numbers below 8.
    torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=0, atol=3 * 8 * torch.finfo(dtype).eps)
    reference = affine.quantise(x, bits, key=1)
    torch.testing.assert_close(low, reference.low, equal_nan=True, rtol=0, atol=0)
    torch.testing.assert_close(high, reference.high, equal_nan=True, rtol=0, atol=0)
    assert ours.dtype == dtype
    assert ours[768:].isfinite().all()
    assert ours[256:768].isnan().all()
    assert ours[:256].isnan().all() if bits == 1 else ours[:256].isneginf().nonzero().flatten().tolist() == [3]


def test_groups_of_one_value_and_of_nothing_are_exact() -> None:
    x = torch.cat([torch.full((256,), 3.0), torch.full((256,), -math.inf), torch.zeros(256)])
    x[7] = x[600] = -math.inf
    for bits in (1, 2, 4, 8):
        assert torch.equal(dequantise_traced(*quantise_traced(x, bits, 256, key(2)), bits, 256, 768), x)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_rounding_is_unbiased_over_keys(bits: int) -> None:
    # False alarm 1e-6, plus the 2^-16 of a step by which 16-bit rounding may be off: added to the target's side below.
    x = numbers(512)
    draws = torch.stack(
        [dequantise_traced(*quantise_traced(x, bits, 256, key(k)), bits, 256, 512) for k in range(2000)]
    )
    step = (x.view(2, 256).amax(1) - x.view(2, 256).amin(1)).repeat_interleave(256).double() / (2**bits - 1)
    place = (x.view(2, 256) - x.view(2, 256).amin(1, keepdim=True)).reshape(-1).double() / step
    expected = x.double() - step * ((place * 65536) % 1) / 65536  # the fixed-point floor
    inside = (place % 1 > 1e-3) & (place % 1 < 1 - 1e-3)  # elsewhere 2000 draws see no variance
    assert_unbiased(draws.double()[:, inside].numpy(), expected[inside].numpy())
    variance = draws.double().var(0)[inside] / (step**2 * (place % 1) * (1 - place % 1))[inside]
    # Mean over ~500 elements of a variance ratio, each with relative error < 0.5 here: 6 standard errors = 0.13.
    assert abs(variance.mean().item() - 1) < 0.13


def test_bits_are_packed_as_the_eager_masks_are() -> None:
    mask = numbers(1003) > 0
    packed = pack_bits_traced(mask)
    assert torch.equal(packed, masks.pack_bits(mask))
    assert torch.equal(unpack_bits_traced(packed, 1003), mask)


class Block(nn.Module):
    """A small transformer block with all that takes a form of its own."""

    def __init__(self, d: int = 32) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(d), nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down, self.drop = nn.Linear(d, 4 * d), nn.Linear(4 * d, d), nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (t.unflatten(-1, (4, -1)).transpose(1, 2) for t in self.qkv(self.norm(x)).chunk(3, -1))
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))
        return x + self.drop(self.down(nn.functional.gelu(self.up(x))))


def relu_net() -> nn.Module:
    layers = (nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.LeakyReLU(), nn.Linear(64, 8))
    return nn.Sequential(*layers)


def gradient(model, f, x, hooks=None, seed=0, amp=False):
    model.zero_grad()
    torch.manual_seed(seed)
    with hooks.active() if hooks else contextlib.nullcontext(), torch.autocast("cpu", torch.bfloat16, enabled=amp):
        y = f(x)
        saved = {t.data_ptr(): t.nbytes for t in getattr(y.grad_fn, "saved_tensors", ())}
        loss = y.float().square().mean()
    loss.backward()
    return y.detach(), torch.cat([p.grad.flatten() for p in model.parameters()]), sum(saved.values())


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(("filtering", "amp"), [("donated", True), ("no_static", False)])
def test_transformer_block(filtering: str, amp: bool) -> None:
    model, x = Block(), torch.randn(8, 64, 32)
    f = torch.compile(model, backend="aot_eager")
    plain, exact, plain_bytes = gradient(model, f, x, amp=amp)
    hooks = CompiledHooks(4, min_bytes=1024, filtering=filtering)
    forward, noisy, few_bytes = gradient(model, f, x, hooks, amp=amp)
    assert torch.equal(forward, plain)
    assert few_bytes < plain_bytes / (2 if amp else 4)
    assert 0 < (noisy - exact).norm() < 0.2 * exact.norm()
    forms = {(row.operation.split(".")[-2] if "." in row.operation else "", row.form) for row in hooks.traced}
    assert ("gelu", Form.AFFINE) not in forms or not amp  # what gelu takes is what addmm made
    assert all(row.form is Form.BITS for row in hooks.traced if row.dtype is torch.bool)
    statistics = [row for row in hooks.traced if row.shape[-1] == 1 or row.shape == (8, 4, 64)]  # of the norm; the LSE
    assert len(statistics) == 3
    assert all(row.form is Form.RAW for row in statistics)
    squares = [row for row in hooks.traced if sorted(row.shape) in ([32, 32], [32, 96], [32, 128])]  # weights, cast
    assert all(row.form is Form.RAW for row in squares)
    assert bool(squares) == amp


def test_gradient_is_unbiased_over_steps_and_nothing_recompiles() -> None:
    # Linear in what is stored except for LayerNorm, softmax and GELU, whose bias at 8 bits is far below this noise.
    # Sixteen fixed projections of 60 gradients; false alarm 1e-6.
    model, x = Block(), torch.randn(8, 64, 32)
    f = torch.compile(model, backend="aot_eager")
    _, exact, _ = gradient(model, f, x)
    hooks = CompiledHooks(8, min_bytes=1024)
    gradient(model, f, x, hooks)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    directions = torch.randn(exact.numel(), 16, generator=torch.Generator().manual_seed(1))
    draws = torch.stack([gradient(model, f, x, hooks)[1] @ directions for _ in range(60)])
    assert_unbiased(draws.double().numpy(), (exact.double() @ directions.double()).numpy())
    assert draws.std(0).min() > 0
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


@pytest.mark.parametrize("bits", [1, 2])
def test_rectifiers_decide_exactly(bits: int) -> None:
    model, x = relu_net(), torch.randn(256, 32)
    f = torch.compile(model, backend="aot_eager")
    hooks = CompiledHooks(bits, min_bytes=1024)
    plain, _, _ = gradient(model, f, x)
    # The gradient of a bias takes masks and what comes from above only: exact if the masks are.
    (bias,) = torch.autograd.grad(f(x).square().mean(), model[0].bias)
    with hooks.active():
        y = f(x)
    (noisy,) = torch.autograd.grad(y.square().mean(), model[0].bias)
    assert torch.equal(y.detach(), plain)
    torch.testing.assert_close(noisy, bias, rtol=1e-5, atol=1e-7)
    assert {row.form for row in hooks.traced} >= {Form.RECTIFIED, Form.SIGN}


def test_rectified_numbers_are_unbiased() -> None:
    # The weight gradient behind a ReLU is linear in its result. 150 draws, 16 projections, false alarm 1e-6.
    model, x = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8)), torch.randn(256, 32)
    f = torch.compile(model, backend="aot_eager")
    hooks = CompiledHooks(1, min_bytes=1024)
    _, exact, _ = gradient(model, f, x)
    directions = torch.randn(exact.numel(), 16, generator=torch.Generator().manual_seed(1))
    draws = torch.stack([gradient(model, f, x, hooks)[1] @ directions for _ in range(150)])
    assert_unbiased(draws.double().numpy(), (exact.double() @ directions.double()).numpy())


def test_what_eager_code_saves_goes_to_the_eager_hooks() -> None:
    model, x, packed, unpacked = relu_net(), torch.randn(256, 32), [], []

    def pack(t: torch.Tensor) -> torch.Tensor:
        packed.append(t.shape)
        return t.detach()

    def unpack(t: torch.Tensor) -> torch.Tensor:
        unpacked.append(t.shape)
        return t

    f = torch.compile(model, backend="aot_eager")
    hooks = CompiledHooks(4, min_bytes=1024, eager=(pack, unpack))
    with hooks.active():
        loss = f(x).sin().sum()
    assert packed == [(256, 8)]
    loss.backward()
    assert unpacked == [(256, 8)]
    with hooks.active():  # nothing compiled at all
        model(x).sum().backward()
    assert len(packed) > 1


def test_eager_code_without_eager_hooks_is_exact() -> None:
    model, x = relu_net(), torch.randn(256, 32)
    expected = torch.autograd.grad(model(x).sum(), list(model.parameters()))
    with CompiledHooks(1, min_bytes=0).active():
        loss = model(x).sum()
    for one, other in zip(torch.autograd.grad(loss, list(model.parameters())), expected, strict=True):
        assert torch.equal(one, other)


def test_sizes_that_change() -> None:
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU())
    f = torch.compile(model, backend="aot_eager", dynamic=True)
    hooks = CompiledHooks(8, min_bytes=1024)
    for batch in (256, 131, 300):
        x = torch.randn(batch, 32, generator=torch.Generator().manual_seed(batch))
        plain, exact, _ = gradient(model, model, x)
        forward, noisy, _ = gradient(model, f, x, hooks)
        assert torch.equal(forward, plain)
        assert (noisy - exact).norm() < 0.05 * exact.norm()


def test_channels_last_and_gaps() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(1568, 4)
    )
    x = torch.randn(8, 4, 16, 16).to(memory_format=torch.channels_last)
    model.to(memory_format=torch.channels_last)
    f = torch.compile(model, backend="aot_eager")
    plain, exact, plain_bytes = gradient(model, f, x)
    forward, noisy, few_bytes = gradient(model, f, x, CompiledHooks(8, min_bytes=1024))
    assert torch.equal(forward, plain)
    assert (noisy - exact).norm() < 0.02 * exact.norm()
    assert few_bytes < plain_bytes / 2


def test_warns_once_of_what_is_lost() -> None:
    model, x = relu_net(), torch.randn(256, 32)
    hooks = CompiledHooks(4, min_bytes=1024)
    with pytest.warns(CompileWarning, match="fixed 4 bits"), hooks.active():
        torch.compile(model, backend="aot_eager")(x)
    torch._dynamo.reset()
    with warnings.catch_warnings(), hooks.active():
        warnings.simplefilter("error")
        torch.compile(model, backend="aot_eager")(x)


def test_settings_come_back() -> None:
    before = torch._functorch.config.saved_tensors_hooks_filtering_mode
    hooks = CompiledHooks(4, filtering="all")

    def fails() -> None:
        with hooks.active():
            assert torch._functorch.config.saved_tensors_hooks_filtering_mode == "all"
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert torch._functorch.config.saved_tensors_hooks_filtering_mode == before
    assert can_inline()


def test_detection() -> None:
    assert not is_compiling()
    assert not is_compiling(torch.ones(2))
    inside = []

    @torch.compile(backend="eager")
    def f(x: torch.Tensor) -> torch.Tensor:
        inside.append(is_compiling())
        return x + 1 if is_compiling() else x

    assert torch.equal(f(torch.ones(2)), torch.full((2,), 2.0))
    assert inside == [True]
    with torch._subclasses.FakeTensorMode():
        assert is_compiling([torch.empty(2)])


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"bits": 3}, "bits=3"),
        ({"bits": 4, "group_size": 20}, "group_size=20"),
        ({"bits": 4, "min_bytes": -1}, "min_bytes=-1"),
        ({"bits": 4, "step_bits": 16}, "step_bits=16"),
        ({"bits": 4, "filtering": "some"}, "filtering='some'"),
    ],
)
def test_bad_arguments(arguments: dict, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        CompiledHooks(**arguments)


def test_forms_without_a_graph() -> None:
    large = torch.randn(100, 100)
    for tensor, form in [
        (large, Form.AFFINE),
        (large.t(), Form.AFFINE),
        (large > 0, Form.BITS),
        (large.long(), Form.RAW),
        (large[:1].expand(100, 100), Form.RAW),
        (large[:, :50], Form.AFFINE),
        (large[:2], Form.RAW),
        (large.to(torch.complex64), Form.RAW),
        (large.reshape(-1, 1), Form.RAW),
        (large[:0], Form.RAW),
    ]:
        assert form_of(tensor, None, None, min_bytes=4096) is form


class Graphs:
    """A forward graph that saves one node, and what a backward graph does with it."""

    def __init__(self, use, made=torch.ops.aten.addmm.default, static=False) -> None:
        forward, self.backward = torch.fx.Graph(), torch.fx.Graph()
        source = forward.placeholder("primals_1")
        if static is not None:
            source.meta["is_static_input"] = static
        self.node = forward.create_node("call_function", made, (source,), name="saved")
        saved, tangent = self.backward.placeholder("saved"), self.backward.placeholder("tangents_1")
        use(self.backward, saved, tangent)

    def form(self) -> Form:
        return form_of(torch.randn(100, 100), self.node, self.backward, min_bytes=1)


aten = torch.ops.aten


@pytest.mark.parametrize(
    ("form", "use"),
    [
        (Form.AFFINE, lambda g, s, t: g.call_function(aten.mm.default, (t, s))),
        (Form.AFFINE, lambda g, s, t: g.call_function(aten.div.Tensor, (s, t))),
        (Form.AFFINE, lambda g, s, t: g.call_function(aten.pow.Tensor_Scalar, (s, 2))),
        (Form.RAW, lambda g, s, t: g.call_function(aten.div.Tensor, (t, s))),
        (Form.RAW, lambda g, s, t: g.call_function(aten.pow.Tensor_Scalar, (s, 0.5))),
        (Form.RAW, lambda g, s, t: g.call_function(aten.log.default, (s,))),
        (Form.RAW, lambda g, s, t: g.call_function(aten.gt.Scalar, (s, 6))),
        (Form.RAW, lambda g, s, t: g.call_function(aten.lt.Scalar, (s, 0))),
        (Form.RAW, lambda g, s, t: g.call_function(aten.hardtanh_backward.default, (t, s, -1, 1))),
        (Form.SIGN, lambda g, s, t: g.call_function(aten.le.Scalar, (s, 0))),
        (Form.SIGN, lambda g, s, t: g.call_function(aten.threshold_backward.default, (t, s, 0))),
        (Form.RAW, lambda g, s, t: g.call_function(aten.threshold_backward.default, (t, s, 1))),
        (Form.AFFINE, lambda g, s, t: g.call_function(aten.threshold_backward.default, (s, t, 0))),
        (Form.RECTIFIED, lambda g, s, t: g.call_function(aten.relu.default, (s,))),
    ],
)
def test_forms_by_use(form: Form, use) -> None:
    assert Graphs(use).form() is form


def test_forms_by_several_uses() -> None:
    def mask_and_value(g, s, t):
        view = g.call_function(aten.view.default, (s, [10_000]))
        g.call_function(aten.le.Scalar, (view, 0))
        g.call_function(aten.mm.default, (t, s))

    assert Graphs(mask_and_value, aten.relu.default).form() is Form.RECTIFIED  # is max(x, 0) itself
    assert Graphs(mask_and_value).form() is Form.RAW  # its negative numbers matter

    def step_behind_a_product(g, s, t):
        product = g.call_function(aten.mul.Tensor, (s, s))
        g.call_function(aten.le.Scalar, (product, 0))

    assert Graphs(step_behind_a_product).form() is Form.WIDE

    def step_behind_the_gradient(g, s, t):
        product = g.call_function(aten.mul.Tensor, (s, t))
        g.call_function(aten.le.Scalar, (product, 0))

    assert Graphs(step_behind_the_gradient).form() is Form.AFFINE


def test_forms_by_origin() -> None:
    def product(g, s, t):
        g.call_function(aten.mm.default, (t, s))

    assert Graphs(product, aten.rsqrt.default).form() is Form.RAW
    assert Graphs(product, aten.t.default, static=True).form() is Form.RAW
    assert Graphs(product, aten._to_copy.default, static=True).form() is Form.RAW
    assert Graphs(product, aten.t.default).form() is Form.AFFINE
    assert Graphs(product, aten.t.default, static=None).form() is Form.RAW  # an older torch does not tell
    assert Graphs(product, aten.mul.Tensor, static=None).form() is Form.AFFINE
    assert Graphs(product, aten.mul.Tensor, static=True).form() is Form.AFFINE


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")  # torch 2.11's own, when Inductor loads
def test_inductor() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8)), torch.randn(256, 32)
    f = torch.compile(model)
    plain, exact, _ = gradient(model, model, x)  # the same products and the same maximum: the same bits
    hooks = CompiledHooks(4, min_bytes=1024)
    forward, _, few_bytes = gradient(model, f, x, hooks)
    assert torch.equal(forward, plain)
    weights = 4 * (32 * 64 + 64 * 8)
    assert (
        few_bytes <= weights + sum(ledger.affine_bytes(n, 4, 256, x.dtype) for n in (x.numel(), 2 * x.numel())) + 2048
    )
    assert {row.form for row in hooks.traced} == {Form.AFFINE, Form.RECTIFIED}
    # Sixteen fixed projections of 100 gradients; false alarm 1e-6.
    directions = torch.randn(exact.numel(), 16, generator=torch.Generator().manual_seed(1))
    draws = torch.stack([gradient(model, f, x, hooks)[1] @ directions for _ in range(100)])
    assert_unbiased(draws.double().numpy(), (exact.double() @ directions.double()).numpy())

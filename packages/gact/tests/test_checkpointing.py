"""Checkpoints with compressed inputs: exact forward, the right gradient, few bytes, and every way to call them."""

import gc
import threading
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from common_core.memory import PeakMeter
from common_core.testing import assert_unbiased
from gact import ledger
from gact.checkpointing import FixedBits, checkpoint, compressing
from gact.compressor import ActivationCompressor
from gact.ledger import affine_bytes
from gact.nodes import packs_with


def exact(_: Tensor) -> None:
    """Keeps every tensor as it is."""


def blocks(dropout: float = 0.1, depth: int = 3) -> nn.ModuleList:
    torch.manual_seed(0)
    return nn.ModuleList(
        nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Dropout(dropout), nn.Linear(64, 32)) for _ in range(depth)
    )


def gradients(modules: nn.ModuleList, x: Tensor, call: Callable, **backward: bool) -> tuple[Tensor, Tensor]:
    modules.zero_grad()
    torch.manual_seed(1)
    y = x
    for block in modules:
        y = call(block, y)
    y.square().mean().backward(**backward)
    return y.detach(), torch.cat([p.grad.flatten() for p in modules.parameters()])


def test_with_exact_holders_it_is_torchs_checkpoint() -> None:
    modules, x = blocks(), torch.randn(256, 32)
    expected = gradients(modules, x, lambda f, h: torch_checkpoint(f, h, use_reentrant=False))
    plain = gradients(modules, x, lambda f, h: f(h))
    found = gradients(modules, x, lambda f, h: checkpoint(f, h, compress=exact))
    for one, two, three in zip(expected, plain, found, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_forward_is_exact_and_the_error_shrinks_with_the_step(bits: int) -> None:
    modules, x = blocks(), torch.randn(256, 32)
    y, g = gradients(modules, x, lambda f, h: f(h))
    y_noisy, g_noisy = gradients(modules, x, lambda f, h: checkpoint(f, h, compress=FixedBits(bits, min_bytes=0)))
    assert torch.equal(y, y_noisy)
    error = ((g_noisy - g).norm() / g.norm()).item()
    assert 0 < error < 2 / (2**bits - 1)


def test_gradient_is_unbiased_at_8_bits() -> None:
    # Second-order bias is (step / range)² ≈ 1e-5 here, the noise of 100 draws ≈ 1e-4; 16 projections, false alarm 1e-6.
    modules, x = blocks(dropout=0.0, depth=2), torch.randn(128, 32)
    _, g = gradients(modules, x, lambda f, h: f(h))
    directions = torch.randn(g.numel(), 16, generator=torch.Generator().manual_seed(1))
    keep = FixedBits(8, min_bytes=0)
    draws = [gradients(modules, x, lambda f, h: checkpoint(f, h, compress=keep))[1] @ directions for _ in range(100)]
    assert_unbiased(torch.stack(draws).double().numpy(), (g.double() @ directions.double()).numpy())


@pytest.mark.parametrize("bits", [2, 8])
def test_bytes_held_are_those_of_the_ledger(bits: int) -> None:
    modules, x = blocks(depth=4), torch.randn(4096, 32)
    keep = FixedBits(bits, min_bytes=0)
    gradients(modules, x, lambda f, h: checkpoint(f, h, compress=keep))  # whatever is kept between calls is there now
    with PeakMeter(alive=(modules, x)) as meter:
        y = x
        for block in modules:
            y = checkpoint(block, y, compress=keep)
        gc.collect()
        held = meter.held_bytes(excluding=(x, y))
    random_states = 4 * torch.get_rng_state().nbytes
    assert held <= 4 * ledger.affine_bytes(x.numel(), bits, 256, x.dtype) + random_states + 64
    assert held >= 4 * ledger.affine_bytes(x.numel(), bits, 256, x.dtype)


def test_the_input_is_let_go() -> None:
    keep, layer = FixedBits(4, min_bytes=0), nn.Linear(32, 32)
    h = torch.randn(64, 32) * 2
    alive = weakref.ref(h)
    y = checkpoint(nn.Sequential(nn.GELU(), layer), h, compress=keep)
    del h
    gc.collect()
    assert alive() is None
    y.sum().backward()
    assert layer.weight.grad is not None


def test_nothing_is_left_over_after_the_backward_pass() -> None:
    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor, self.nbytes = tensor.clone(), tensor.nbytes

        def decode(self) -> Tensor:
            return self.tensor.clone()

    kept = []

    def keep(tensor: Tensor) -> Kept:
        holder = Kept(tensor)
        kept.append(weakref.ref(holder))
        return holder

    layer, gone = nn.Linear(32, 32), 0
    gc.disable()  # reference counts must do
    try:
        for _ in range(5):
            y = checkpoint(layer, torch.randn(64, 32) * 2, compress=keep)
            y.sum().backward()
            del y
            gone += kept[-1]() is None
    finally:
        gc.enable()
    assert gone == 5


def test_nested_arguments_integers_and_several_uses() -> None:
    seen = []

    def fn(pair: tuple[Tensor, dict], scale: int, *, mask: Tensor, table: list[Tensor]) -> dict[str, Tensor]:
        first, named = pair
        seen.append((first is table[0], named["index"].dtype, scale, first.requires_grad, mask.requires_grad))
        return {"y": (first * named["b"]).sin() * scale * mask, "z": table[0][named["index"]]}

    a, b = torch.randn(100, 8, requires_grad=True), torch.randn(100, 8, requires_grad=True)
    index, mask = torch.arange(0, 100, 3), torch.rand(100, 8) > 0.5

    def gradient(call: Callable) -> tuple[Tensor, ...]:
        inner = a * 1  # not a leaf, so that it is compressed
        out = call(fn, (inner, {"b": b, "index": index}), 3, mask=mask, table=[inner])
        return torch.autograd.grad(out["y"].sum() + out["z"].square().sum(), (a, b))

    plain = gradient(lambda f, *args, **kwargs: f(*args, **kwargs))
    same = gradient(lambda f, *args, **kwargs: checkpoint(f, *args, compress=exact, **kwargs))
    noisy = gradient(lambda f, *args, **kwargs: checkpoint(f, *args, compress=FixedBits(8, min_bytes=0), **kwargs))
    assert all(torch.equal(p, s) for p, s in zip(plain, same, strict=True))
    assert all(0 < (p - n).norm() < 0.02 * p.norm() for p, n in zip(plain, noisy, strict=True))
    assert len(seen) == 5  # forward of each, recomputation of two
    assert set(seen) == {(True, torch.int64, 3, True, False)}


@pytest.mark.parametrize("early", ["leaf", "inner"])
def test_graphs_kept_for_a_second_backward_pass(early: str) -> None:
    modules = blocks(dropout=0.2)
    x = torch.randn(64, 32, requires_grad=True)
    y = checkpoint(modules[0], x if early == "leaf" else x * 1, compress=FixedBits(4, min_bytes=0))
    first = torch.autograd.grad(y.square().sum(), modules[0][0].weight, retain_graph=True)[0]
    second = torch.autograd.grad(y.square().sum(), modules[0][0].weight)[0]
    assert torch.equal(first, second)  # the same codes, the same dropout


def test_in_place_changes_of_an_argument_inside() -> None:
    layer = nn.Linear(32, 32)

    def fn(h: Tensor) -> Tensor:
        return layer(h.mul_(2).relu_())

    x, source = torch.randn(64, 32), torch.zeros(64, 32, requires_grad=True)
    plain = torch.autograd.grad(fn(x + source).square().sum(), layer.weight)[0]
    y = checkpoint(fn, x + source, compress=FixedBits(8, min_bytes=0))
    noisy = torch.autograd.grad(y.square().sum(), layer.weight)[0]
    assert 0 < (plain - noisy).norm() < 0.02 * plain.norm()


def test_a_change_of_a_kept_argument_is_found() -> None:
    layer, x = nn.Linear(8, 8), torch.randn(4, 8)
    y = checkpoint(layer, x)  # small: kept as it is
    x.add_(1)
    with pytest.raises(RuntimeError, match="changed in place"):
        y.sum().backward()
    layer, x = nn.Linear(8, 8), torch.randn(4, 8)
    y = checkpoint(layer, x, compress=FixedBits(8, min_bytes=0))  # codes do not mind
    x.add_(1)
    y.sum().backward()


def test_random_numbers_autocast_and_nesting() -> None:
    modules, x = blocks(dropout=0.5), torch.randn(128, 32)

    def run(call: Callable) -> tuple[Tensor, Tensor]:
        modules.zero_grad()
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16):
            y = call(lambda h: call(modules[1], call(modules[0], h)), x)
        y.float().square().mean().backward()
        return y.detach(), torch.cat([p.grad.flatten() for p in modules[:2].parameters()])

    y, g = run(lambda f, h: f(h))
    y_noisy, g_noisy = run(lambda f, h: checkpoint(f, h, compress=FixedBits(8, min_bytes=0)))
    assert torch.equal(y, y_noisy)
    assert (g - g_noisy).norm() < 0.03 * g.norm()  # another dropout would make it about 1


def test_draws_no_random_numbers() -> None:
    torch.manual_seed(0)
    checkpoint(nn.Identity(), torch.randn(64, 64, requires_grad=True) * 1, compress=FixedBits(4, min_bytes=0))
    after = torch.rand(3)
    torch.manual_seed(0)
    torch.randn(64, 64)
    assert torch.equal(after, torch.rand(3))


def test_without_gradients_nothing_is_kept() -> None:
    def fails(_: Tensor) -> None:
        raise AssertionError

    with torch.no_grad():
        checkpoint(nn.Linear(32, 32), torch.randn(512, 32), compress=fails)


def test_which_compress_counts() -> None:
    calls = []

    def named(name: str) -> Callable[[Tensor], None]:
        return lambda tensor: calls.append((name, tensor.requires_grad))

    x, layer = torch.randn(8, 8) * 1, nn.Linear(8, 8)
    with compressing(named("outer")):
        checkpoint(layer, x)
        with compressing(named("inner")):
            checkpoint(layer, x)
            checkpoint(layer, x, compress=named("given"))
            other = threading.Thread(target=lambda: checkpoint(layer, x))  # another thread has its own
            other.start()
            other.join()
        checkpoint(layer, x)
    checkpoint(layer, x)
    assert calls == [("outer", False), ("inner", False), ("given", False), ("outer", False)]


def test_parameters_are_never_compressed() -> None:
    weight = nn.Parameter(torch.randn(64, 64))

    def keep(tensor: Tensor) -> None:
        assert tensor.data_ptr() != weight.data_ptr()

    y = checkpoint(lambda h, w: h @ w, torch.randn(64, 64), weight, compress=keep)
    y.sum().backward()
    assert weight.grad is not None


def test_hooks_around_it_see_nothing_of_it() -> None:
    packed = []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tuple(tensor.shape))
        return tensor.detach()

    modules = blocks()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = checkpoint(modules[0], torch.randn(64, 32) * 1, compress=FixedBits(8, min_bytes=0))
        assert packed == []
        loss = y.exp().sum()
        assert packed == [(64, 32)]
    loss.backward()


def test_noise_is_new_on_every_call_and_the_same_for_the_same_seed() -> None:
    x = torch.randn(1000)
    one, two = FixedBits(2, min_bytes=0, seed=3), FixedBits(2, min_bytes=0, seed=3)
    first, second = one(x).decode(), one(x).decode()
    assert not torch.equal(first, second)
    assert torch.equal(first, two(x).decode())


def test_strides_come_back() -> None:
    keep = FixedBits(8, min_bytes=0)
    for x in (torch.randn(8, 6, 4).permute(2, 0, 1), torch.randn(4, 1).expand(4, 9)):
        decoded = keep(x).decode()
        assert (decoded.shape, decoded.stride()) == (x.shape, x.stride())
        assert (decoded - x).abs().max() <= (x.max() - x.min()) / 255 * 1.0001


def test_what_is_kept_as_it_is() -> None:
    keep = FixedBits(8, min_bytes=100)
    for x in (torch.arange(100), torch.randn(24), torch.zeros(0), torch.randn(100).to_sparse(), torch.randn(50) > 0):
        assert keep(x) is None
    assert keep(torch.randn(25)) is not None


@pytest.mark.parametrize("arguments", [{"bits": 3}, {"group_size": 100}, {"min_bytes": -1}])
def test_bad_arguments(arguments: dict) -> None:
    with pytest.raises(ValueError, match="give bits from"):
        FixedBits(**arguments)


def test_what_torchs_checkpoint_saves_is_told_apart() -> None:
    mine = []

    def pack(tensor: Tensor) -> Tensor:
        mine.append(packs_with(pack))
        return tensor.detach()

    def inside(h: Tensor) -> Tensor:
        mine.append(packs_with(pack))
        return h.sin()

    assert not packs_with(pack)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        assert packs_with(pack)
        torch_checkpoint(inside, torch.randn(8, requires_grad=True), use_reentrant=False)
        assert packs_with(pack)
    assert mine == [True, False]  # the input goes to the hook around, what is saved inside does not


@pytest.mark.parametrize("kind", ["gact", True, False])
def test_checkpoints_in_a_compressor(kind: str | bool) -> None:
    torch.manual_seed(0)
    block = nn.Sequential(nn.ReLU(), nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))
    model, x = nn.ModuleList([nn.Linear(64, 64), block]), torch.randn(256, 64)

    def compressed(f: nn.Module, h: Tensor) -> Tensor:
        if kind == "gact":
            return checkpoint(f, h, compress=FixedBits(8, min_bytes=0))
        return torch_checkpoint(f, h, use_reentrant=kind)

    parameters = list(model.parameters())
    plain = torch.autograd.grad(block(model[0](x)).square().mean(), parameters)
    with ActivationCompressor(model, bits=8, min_bytes=1024):
        loss = compressed(block, model[0](x)).square().mean()
    loss.backward()  # torch's reentrant checkpoint knows no other way
    noisy = torch.cat([p.grad.flatten() for p in parameters])
    plain = torch.cat([g.flatten() for g in plain])
    assert (noisy - plain).norm() < 0.02 * plain.norm()


@pytest.mark.parametrize("kind", ["gact", True, False])
def test_learning_does_not_read_what_a_checkpoint_recomputes(kind: str | bool) -> None:
    torch.manual_seed(0)
    block = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))
    model, x = nn.ModuleList([nn.Linear(64, 64), block, nn.LayerNorm(64), nn.Linear(64, 8)]), torch.randn(256, 64)
    compressor = ActivationCompressor(model, bits="auto:4", min_bytes=1024)
    for _ in range(2):
        with compressor:
            h = torch.nn.functional.gelu(model[0](x))
            h = checkpoint(block, h) if kind == "gact" else torch_checkpoint(block, h, use_reentrant=kind)
            loss = model[3](model[2](h)).square().mean()
        loss.backward()
    report = compressor.report()
    assert report.predicted_variance is not None
    if kind == "gact":
        kept = [row for row in report.rows if row.operation == "Checkpoint"]
        assert [row.nbytes for row in kept] == [affine_bytes(256 * 64, 8, 256, torch.float32)]


def test_under_compile_it_is_torchs_checkpoint() -> None:
    modules, x = blocks(dropout=0.0), torch.randn(256, 32)
    _, expected = gradients(modules, x, lambda f, h: f(h))
    torch._dynamo.reset()
    compiled = torch.compile(lambda h: checkpoint(modules[0], h), backend="aot_eager", fullgraph=True)
    _, found = gradients(modules, x, lambda f, h: compiled(h) if f is modules[0] else f(h))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    torch._dynamo.reset()

"""The compressor on a device: exactness, names of its own kernels, bytes by the allocator, scalers, leaks."""

import gc
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from gact import ActivationCompressor, Rule

pytestmark = pytest.mark.gpu
MODEL = nn.Identity()  # a compressor does not keep its model alive


@pytest.fixture(autouse=True)
def deterministic():
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    torch.manual_seed(0)
    yield
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(0.1))

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(self.first(x)).chunk(3, -1))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.mlp(self.second(x))


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.norms, self.head = nn.ModuleList([nn.BatchNorm2d(32), nn.BatchNorm2d(32)]), nn.Linear(32, 5)

    def forward(self, x):
        x = functional.max_pool2d(functional.relu(self.norms[0](self.a(x))), 3, 2, 1)
        x = functional.hardswish(self.norms[1](self.b(x)))
        return self.head(functional.adaptive_avg_pool2d(functional.dropout(x, 0.2), 1).flatten(1))


CASES = {
    "transformer": lambda: (nn.Sequential(*[Block(128, 4) for _ in range(3)]), torch.randn(4, 128, 128)),
    "convolutions": lambda: (Convolutions(), torch.randn(16, 3, 32, 32)),
}


@pytest.fixture(params=CASES)
def case(request):
    model, x = CASES[request.param]()
    return model.cuda(), x.cuda()


def loss_of(model, x):
    torch.manual_seed(1)
    return model(x).float().square().mean()


def gradients(model, loss):
    return torch.autograd.grad(loss, list(model.parameters()))


def relative_error(a, b):
    a, b = (torch.cat([g.flatten() for g in grads]) for grads in (a, b))
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_is_exact_and_so_are_gradients_without_compression(case, dtype):
    model, x = case
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        plain = loss_of(model, x)
        with ActivationCompressor(model, bits=2, min_bytes=0):
            assert torch.equal(loss_of(model, x), plain)
        with ActivationCompressor(model, bits=2, min_bytes=0, rules=[Rule("exact")]):
            loss = loss_of(model, x)
    again = gradients(model, plain)
    found = gradients(model, loss)
    # Attention's backward pass may add in any order; all else is deterministic here.
    assert relative_error(found, again) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradients_are_near(case, dtype):
    model, x = case
    errors = []
    for bits in (8, 4, 2):
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            plain = gradients(model, loss_of(model, x))
            with ActivationCompressor(model, bits=bits, min_bytes=0):
                loss = loss_of(model, x)
        errors.append(relative_error(gradients(model, loss), plain))
    assert 0 < errors[0] < 0.1
    assert errors[0] < errors[1] < errors[2]


STEPS = {
    "relu": functional.relu,
    "leaky_relu": lambda x: functional.leaky_relu(x, 0.1),
    "threshold": lambda x: functional.threshold(x, 0.5, 9.0),
    "hardtanh": lambda x: functional.hardtanh(x.nan_to_num()),
    "hardsigmoid": functional.hardsigmoid,
    "abs": torch.abs,
    "clamp": lambda x: x.clamp(-1, 3),
    "clamp from": lambda x: x.clamp(min=0.25),
    "clamp_max": lambda x: x.clamp_max(0.5),
    "max_pool2d": lambda x: functional.max_pool2d(x.view(1, 4, 32, 32), 3, 2, 1),
    "max_pool3d": lambda x: functional.max_pool3d(x.view(1, 4, 16, 8, 8), 2),
    "dropout": lambda x: functional.dropout(x, 0.3),
    "masked_fill": lambda x: x.masked_fill(torch.arange(4096, device="cuda") % 3 == 0, 1.0),
    "avg_pool2d": lambda x: functional.avg_pool2d(x.view(1, 4, 32, 32), 2),
    "reflection_pad": lambda x: functional.pad(x.view(1, 4, 32, 32), (1, 2, 3, 4), "reflect"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", STEPS)
def test_small_forms_are_exact(name, dtype):
    bounds = torch.tensor([-3.0, -1.0, 0.0, -0.0, 0.25, 0.5, 1.0, 3.0, math.inf, -math.inf, math.nan], device="cuda")
    x = torch.randn(4096, device="cuda").to(dtype)
    x[: 11 * 20] = bounds.repeat(20).to(dtype)

    def gradient(comp):
        leaf = x.clone().requires_grad_()
        torch.manual_seed(5)
        if comp is None:
            y = STEPS[name](leaf.neg().neg())
        else:
            with comp:
                y = STEPS[name](leaf.neg().neg())
        weight = torch.linspace(-1, 2, y.numel(), device="cuda").view(y.shape).to(dtype)
        return torch.autograd.grad(y, leaf, weight)[0]

    comp = ActivationCompressor(MODEL, bits=2, min_bytes=0)
    assert torch.equal(gradient(comp).view(torch.uint8), gradient(None).view(torch.uint8))
    assert comp.report().saved_bytes <= 4096 * x.element_size() / 4


def test_fused_attention_and_norms_keep_their_statistics():
    model, x = CASES["transformer"]()
    model, x = model.cuda(), x.cuda()
    comp = ActivationCompressor(model, bits=4, min_bytes=0)
    with torch.autocast("cuda", torch.bfloat16), comp:
        loss = loss_of(model, x)
    rows = comp.report().rows
    attention = [r for r in rows if r.operation.startswith("ScaledDotProduct")]
    assert attention
    assert {r.form for r in attention if r.saved in ("query", "key", "value", "output")} == {"affine"}
    assert {r.form for r in attention if "log" in r.saved} == {"exact"}
    norms = [r for r in rows if r.operation == "NativeLayerNorm" and r.saved in ("result1", "result2")]
    assert {r.form for r in norms} == {"exact"}
    masks = [r for r in rows if r.dtype == "bool"]
    assert {r.bits for r in masks} == {1.0}
    loss.backward()


def test_recurrent_kernels_of_cudnn_stay_exact():
    model = nn.LSTM(64, 64, 2).cuda()
    x = torch.randn(16, 8, 64, device="cuda")
    with ActivationCompressor(model, bits=2, min_bytes=0):
        loss = model(x)[0].square().mean()
    for a, b in zip(gradients(model, loss), gradients(model, model(x)[0].square().mean()), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-8)


def test_bytes_are_what_the_allocator_has_handed_out(case):
    # Blocks of the allocator are multiples of 512 bytes: that much for each form is not the compressor's.
    model, x = case
    comp = ActivationCompressor(model, bits=4, min_bytes=4096)
    for _ in range(2):
        gc.collect()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        with comp:
            loss = loss_of(model, x)
        held = torch.cuda.memory_allocated() - before
        report = comp.report()
        gradients(model, loss)
        del loss
    blocks = len(report.rows)
    assert 0 <= held - report.saved_bytes + 512 <= 512 * (blocks + 2)
    assert report.ratio > 4


def test_the_peak_falls():
    model = nn.Sequential(*[Block(256, 4) for _ in range(8)]).cuda()
    x = torch.randn(8, 512, 256, device="cuda")

    def peak(comp):
        for _ in range(2):
            model.zero_grad()
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            if comp is None:
                loss = loss_of(model, x)
            else:
                with comp:
                    loss = loss_of(model, x)
            loss.backward()
            del loss
        return torch.cuda.max_memory_allocated()

    base = sum(p.numel() * 8 for p in model.parameters()) + x.numel() * 4  # parameters, gradients, input
    assert peak(ActivationCompressor(model, bits=2)) - base < 0.4 * (peak(None) - base)


def test_a_gradient_scaler_sees_what_overflows_and_training_goes_on():
    model, x = CASES["convolutions"]()
    model, x = model.cuda(), x.cuda()
    comp = ActivationCompressor(model, bits="auto:4", min_bytes=0)
    optimiser = torch.optim.SGD(model.parameters(), 1e-2)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40, growth_interval=1000)
    losses = []
    for _ in range(40):
        with torch.autocast("cuda", torch.float16), comp:
            loss = loss_of(model, x)
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        comp.step(loss, scale=scaler.get_scale())
        scaler.update()
        optimiser.zero_grad()
        losses.append(float(loss.detach()))
    assert scaler.get_scale() < 2.0**40  # steps that overflowed were seen and skipped
    assert losses[-1] < losses[0]
    assert comp.bits


def test_thirty_steps_without_the_collector_leak_nothing(case):
    model, x = case
    comp = ActivationCompressor(model, bits="auto:4", min_bytes=0)
    gc.collect()
    gc.disable()
    try:
        counts = []
        for step in range(30):
            with comp:
                loss = loss_of(model, x)
            loss.backward()
            comp.step(loss)
            model.zero_grad()
            del loss
            if step in (9, 29):
                torch.cuda.synchronize()
                counts.append(torch.cuda.memory_allocated())
    finally:
        gc.enable()
    assert counts[0] == counts[1]


def test_device_and_processor_store_the_same_numbers():
    # The same noise on both: what differs is the arithmetic of the products around.
    layers = nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 8)).double()
    x = torch.randn(64, 256, dtype=torch.float64)
    found = []
    for device in ("cpu", "cuda"):
        layers.to(device)
        with ActivationCompressor(layers, bits=1, min_bytes=0):
            loss = layers(x.to(device)).sum()
        found.append([g.cpu() for g in gradients(layers, loss)])
    assert relative_error(*found) < 1e-2  # one rounding in a thousand may differ with the last bit of the input


def test_calibration_restores_the_devices_random_state(case):
    model, x = case
    comp = ActivationCompressor(model, bits="auto:4", min_bytes=0)
    torch.manual_seed(7)
    before, buffers = torch.cuda.get_rng_state(), [b.clone() for b in model.buffers()]
    comp.calibrate(lambda: model(x).square().mean())
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(buffers, model.buffers(), strict=True))

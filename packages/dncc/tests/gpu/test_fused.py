"""The fused kernel on a device: the tests of the torch path, memory, synchronisation, large offsets, compiling."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dncc.fused import fused_backend, fused_dncc

pytestmark = pytest.mark.gpu
SHARED = Path(__file__).parents[1] / "test_fused.py"
AGGREGATES = ["arithmetic", "geometric"]


def data(shape, dtype=torch.bfloat16):
    members, batch, classes = shape
    logits = torch.empty(shape, dtype=dtype, device="cuda")
    part = torch.randn(batch, classes, device="cuda").to(dtype)
    for member in range(members):
        logits[member] = part.roll(member, 0)
    return logits.requires_grad_(), torch.randint(0, classes, (batch,), device="cuda")


def gradient(logits, target, **options):
    return torch.autograd.grad(fused_dncc(logits, target, 0.5, **options).loss, logits)[0]


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_the_tests_of_the_torch_path_pass_on_the_device(backend):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", os.devnull, "-q", "--import-mode=importlib", "-p", "no:cacheprovider",
         str(SHARED)],
        env=os.environ | {"DNCC_TEST_BACKEND": backend, "DNCC_TEST_DEVICE": "cuda"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]


def test_triton_is_the_choice_for_a_device():
    pytest.importorskip("triton")
    assert fused_backend(torch.zeros(1, 1, 2, device="cuda")) == "triton"


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(8, 512, 1000), (4, 4096, 100), (3, 64, 30_522), (16, 100, 1000), (4, 8192, 10)])
def test_large_problems_agree_with_the_torch_path(shape, dtype, aggregate):
    logits, target = data(shape, dtype)
    ours, theirs = (fused_dncc(logits, target, 0.5, aggregate=aggregate, backend=b) for b in ("triton", "torch"))
    for name in ("loss", "member_ce", "ensemble_ce", "ambiguity"):
        difference = (getattr(ours, name) - getattr(theirs, name)).abs()
        assert float((difference / (1 + getattr(theirs, name).abs())).max().detach()) < 1e-5, name
    scale = 2.0**10  # so that float16 holds what is compared
    a, b = (torch.autograd.grad(scale * found.loss, logits)[0].double() for found in (ours, theirs))
    share = scale / (shape[0] * shape[1])
    rounding = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10, torch.float32: 0.0}[dtype]
    assert bool(((a - b).abs() <= 1e-5 * share + 2.0**-24 + rounding * b.abs()).all())


@pytest.mark.parametrize("shape", [(8, 2000, 1000), (4, 2000, 30_522)])
@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_nothing_of_the_logits_size_beside_the_gradient(shape, factor):
    logits, target = data(shape)
    for _ in range(2):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        grad = torch.autograd.grad(factor * fused_dncc(logits, target, 0.5).loss, logits)[0]
        peak = torch.cuda.max_memory_allocated() - before
        assert grad.shape == logits.shape
        del grad
    assert peak < 1.02 * logits.nbytes


def test_nothing_waits_for_the_device():
    logits, target = data((4, 64, 100))
    weight = torch.ones(64, device="cuda")
    lams = (0.5, torch.tensor(0.5), torch.tensor(0.5, device="cuda"))
    for aggregate in AGGREGATES:
        gradient(logits, target, weight=weight, aggregate=aggregate)  # compiles
        torch.cuda.set_sync_debug_mode("error")
        try:
            for lam in lams:
                loss = fused_dncc(logits, target, lam, weight=weight, aggregate=aggregate).loss
                torch.autograd.grad(0.5 * loss, logits, retain_graph=True)
                loss.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_offsets_beyond_32_bits():
    """More than 2^31 logits: the last samples get what they get alone."""
    shape = (4, 5400, 100_003)
    if torch.cuda.get_device_properties(0).total_memory < 16e9:
        pytest.skip("needs 10 GB of the device's memory")
    assert shape[0] * shape[1] * shape[2] > 2**31
    logits, target = data(shape)
    loss = fused_dncc(logits, target, 0.5)
    grad = torch.autograd.grad(loss.loss * shape[1], logits)[0]
    tail = logits[:, -3:].detach().clone().requires_grad_()
    alone = fused_dncc(tail, target[-3:], 0.5, backend="torch")
    assert float((loss.member_ce[:, -3:] - alone.member_ce).abs().max()) < 1e-4
    expected = torch.autograd.grad(alone.loss * 3, tail)[0].double()
    found = grad[:, -3:].double()
    assert bool(((found - expected).abs() <= 1e-6 + 2.0**-6 * expected.abs()).all())


def test_every_run_gives_the_same_bits():
    logits, target = data((8, 5000, 100), torch.float32)
    weight = torch.rand(5000, device="cuda")
    runs = [fused_dncc(logits, target, 0.5, weight=weight) for _ in range(5)]
    assert len({float(run.loss.detach()) for run in runs}) == 1
    grads = [torch.autograd.grad(3 * run.loss, logits)[0] for run in runs]
    assert all(torch.equal(grads[0], grad) for grad in grads)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_inside_a_compiled_training_step(dtype):
    torch.compiler.reset()
    layer = torch.nn.Linear(64, 8 * 100, device="cuda")
    x, target = torch.randn(256, 64, device="cuda"), torch.randint(0, 100, (256,), device="cuda")

    def loss(x, target):
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            logits = layer(x).unflatten(-1, (8, 100)).transpose(0, 1)
        return fused_dncc(logits, target, 0.5).loss

    plain, compiled = loss(x, target), torch.compile(loss, fullgraph=True)(x, target)
    assert abs(float(plain.detach()) - float(compiled.detach())) < 1e-3
    parameters = list(layer.parameters())
    for a, b in zip(torch.autograd.grad(plain, parameters), torch.autograd.grad(compiled, parameters), strict=True):
        assert float((a - b).norm() / a.norm()) < (1e-5 if dtype == torch.float32 else 2e-2)


def test_on_the_second_of_two_devices():
    if torch.cuda.device_count() < 2:
        pytest.skip("one device")
    logits, target = data((3, 20, 10), torch.float32)
    found = fused_dncc(logits.to("cuda:1"), target.to("cuda:1"), 0.5)
    assert found.loss.device == torch.device("cuda:1")
    assert abs(float(found.loss.detach()) - float(fused_dncc(logits, target, 0.5).loss.detach())) < 1e-6

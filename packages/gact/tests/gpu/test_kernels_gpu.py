"""On a device: the kernels in Triton, and those in PyTorch, make the bytes and the numbers of the processor's."""

import math

import pytest
import torch

from gact import affine, counter_rng, kernels, ledger, masks
from gact.arena import Arena

pytestmark = pytest.mark.gpu
KEY = counter_rng.stream_key(8, 9, 10)
BACKENDS = ["torch", "triton"]


def normal(n, dtype, seed=0):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def same(a, b):
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def spoiled(n, dtype):
    x = normal(n, dtype)
    x[::701] = math.nan
    x[100:200] = -math.inf
    x[n // 2 : n // 2 + 300] = 0.25
    x[-50:] = torch.finfo(dtype).max
    return x


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", affine.DTYPES)
@pytest.mark.parametrize("bits", affine.BITS)
@pytest.mark.parametrize("n", [1, 65, 5000, 300_001])
@pytest.mark.parametrize("make", [normal, spoiled])
def test_bytes_and_numbers_are_the_processors(backend, dtype, bits, n, make):
    if make is spoiled and n < 5000:
        pytest.skip("too short to be spoiled")
    x = make(n, dtype)
    for group_size in (64, 256, 2048):
        host = affine.quantise(x, bits, key=KEY, group_size=group_size)
        with kernels.use(backend):
            codes = kernels.quantise(x.cuda(), bits, key=KEY, group_size=group_size)
            assert torch.equal(codes.buffer.cpu(), host.buffer)
            for back in affine.DTYPES:
                assert same(kernels.dequantise(codes, dtype=back).cpu(), affine.dequantise(host, dtype=back))


@pytest.mark.parametrize("bits", affine.BITS)
@pytest.mark.parametrize("dtype", affine.DTYPES)
def test_smallest_numbers(dtype, bits):
    """Subnormal numbers are not flushed to zero."""
    x = normal(1000, dtype) * torch.finfo(dtype).tiny * 4
    host = affine.quantise(x, bits, key=KEY)
    codes = kernels.quantise(x.cuda(), bits, key=KEY)
    assert torch.equal(codes.buffer.cpu(), host.buffer)
    assert same(kernels.dequantise(codes).cpu(), affine.dequantise(host))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("width", masks.WIDTHS)
def test_fields(backend, width):
    for n in (1, 9, 100_003):
        values = torch.randint(0, 1 << width, (n,), generator=torch.Generator().manual_seed(n), dtype=torch.uint8)
        with kernels.use(backend):
            packed = kernels.pack_fields(values.cuda(), width)
            assert torch.equal(packed.cpu(), masks.pack_fields(values, width))
            assert torch.equal(kernels.unpack_fields(packed, width, n).cpu(), values)


def test_random_integers():
    assert torch.equal(counter_rng.random16(3, 200_000, KEY, "cuda").cpu(), counter_rng.random16(3, 200_000, KEY))


def test_an_arena_holds_the_codes():
    arena, x = Arena("cuda", 1 << 20), normal(10_001, torch.bfloat16)
    out = arena.take(ledger.affine_bytes(10_001, 4, 256, x.dtype))
    codes = kernels.quantise(x.cuda(), 4, key=KEY, out=out)
    assert codes.buffer is out
    assert torch.equal(out.cpu(), affine.quantise(x, 4, key=KEY).buffer)


def test_the_host_does_not_wait():
    """Neither way asks the device for a number."""
    x = normal(100_000, torch.float32).cuda()
    for backend in BACKENDS:
        with kernels.use(backend):
            kernels.dequantise(kernels.quantise(x, 4, key=KEY))  # compile
            torch.cuda.set_sync_debug_mode("error")
            try:
                kernels.dequantise(kernels.quantise(x, 4, key=KEY))
            finally:
                torch.cuda.set_sync_debug_mode("default")


def test_more_than_two_to_the_31_numbers():
    n = (1 << 31) + 12_345
    if torch.cuda.mem_get_info()[0] < 12 * n:
        pytest.skip("too little memory on the device")
    x = torch.zeros(n, dtype=torch.bfloat16, device="cuda")
    tail = normal(12_345, torch.bfloat16)
    x[-12_345:] = tail.cuda()
    codes = kernels.quantise(x, 4, key=KEY)
    back = kernels.dequantise(codes)
    assert int(back[:-13_000].count_nonzero()) == 0
    delta = (codes.high - codes.low)[-50:].max().item() / 15
    assert (back[-12_345:].cpu() - tail).abs().max().item() <= delta * 1.01

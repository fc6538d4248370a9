"""The Triton kernels under Triton's interpreter, byte for byte against the kernels in PyTorch.

The interpreter must be chosen before Triton is imported, so each test is a process of its own.
"""

import importlib.util
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

HEAD = """
import torch
from gact import affine, affine_triton, counter_rng, masks, masks_triton
torch.set_num_threads(1)
key = counter_rng.stream_key(5, 6, 7)
generator = torch.Generator().manual_seed(0)

def normal(n, dtype):
    return torch.randn(n, dtype=torch.float64, generator=generator).to(dtype)

def some(n, share):
    return torch.rand(n, generator=generator) < share

def check(x, bits, group, key=key, back=affine.DTYPES):
    name = (x.numel(), x.dtype, bits, group)
    ours, ref = (m.quantise(x, bits, key=key, group_size=group) for m in (affine_triton, affine))
    assert torch.equal(ours.buffer, ref.buffer), name
    for dtype in back:
        a, b = (m.dequantise(ref, dtype=dtype) for m in (affine_triton, affine))
        assert a.dtype == b.dtype and bool(((a == b) | (a.isnan() & b.isnan())).all()), (name, dtype)
"""


def interpret(body):
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", HEAD + body], env=environment, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_affine():
    """Shapes, tails, types, bits and group sizes; blocks of the random stream; what is not a number; both extremes."""
    interpret("""
inf = float("inf")
for dtype in affine.DTYPES:
    for bits in affine.BITS:
        spoiled = normal(13 * 64 + 3, dtype)
        spoiled[3] = float("nan")
        spoiled[64 + 7] = inf
        spoiled[128:192] = 1 / 3
        spoiled[192:230] = -0.0
        spoiled[256:320][some(64, 0.4)] = -inf
        spoiled[320:384] = torch.where(some(64, 0.5), -inf, 2.0)
        spoiled[384:448] = -inf
        spoiled[448:512] *= torch.finfo(dtype).tiny * 4
        spoiled[512] = torch.finfo(dtype).max
        spoiled[576] = torch.finfo(dtype).min
        spoiled[640:642] = torch.tensor([torch.finfo(dtype).max, torch.finfo(dtype).min])
        spoiled[704:768] = spoiled[704:768] * 2.0 ** -10 + 1
        check(spoiled, bits, 64, back=(dtype, affine.DTYPES[bits % 3 + 1]))
for bits, group in zip(affine.BITS * 2, affine.GROUP_SIZES):
    check(normal(2 * group + 9, torch.bfloat16), bits, group, back=(torch.bfloat16,))
for n in (0, 1, 63, 64, 65):
    check(normal(n, torch.float32), 2, 64, back=(torch.float32,))
check(normal(counter_rng.BLOCK + 5000, torch.float32), 4, 2048, back=())
for key in (0, 2**31, 2**32, 2**63, 2**64 - 1):
    check(normal(100, torch.float32), 8, 64, key=key, back=())
""")


def test_fields_and_the_choice_of_kernels():
    interpret("""
from gact import kernels
for n in (0, 1, 7, 8, 9, 8192, 9000):
    for width in masks.WIDTHS:
        values = torch.randint(0, 1 << width, (n,), dtype=torch.uint8, generator=generator)
        packed = masks_triton.pack_fields(values, width)
        assert torch.equal(packed, masks.pack_fields(values, width)), (n, width)
        assert torch.equal(masks_triton.unpack_fields(packed, width, n), values), (n, width)
for wrong, arguments in ((masks_triton.pack_bits, (torch.zeros(2),)),
                         (masks_triton.pack_fields, (torch.zeros(2, dtype=torch.uint8), 3)),
                         (masks_triton.unpack_fields, (torch.zeros(2, dtype=torch.uint8), 4, 9))):
    try:
        wrong(*arguments)
    except (TypeError, ValueError):
        continue
    raise AssertionError(wrong)
x = normal(300, torch.float32)
with kernels.use("triton"):
    codes = kernels.quantise(x, 4, key=key)
    assert torch.equal(kernels.dequantise(codes), affine.dequantise(codes))
    assert torch.equal(kernels.unpack_bits(kernels.pack_bits(x > 0), 300), x > 0)
    assert torch.equal(kernels.unpack_fields(kernels.pack_fields((x > 0).byte(), 2), 2, 300), (x > 0).byte())
assert torch.equal(codes.buffer, affine.quantise(x, 4, key=key).buffer)
""")

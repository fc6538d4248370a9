"""The quantiser as a codec: it is the quantiser, and its bytes are those of the ledger."""

from importlib.metadata import entry_points

import pytest
import torch

from gact import affine, kernels, ledger
from gact.codec import CODEC, AffineCodec

NUMBERS = [0, 1, 255, 256, 1000]


@pytest.mark.parametrize("dtype", affine.DTYPES, ids=str)
@pytest.mark.parametrize("bits", affine.BITS)
@pytest.mark.parametrize("numel", NUMBERS)
def test_it_is_the_quantiser(numel, bits, dtype):
    x = torch.randn(numel, generator=torch.Generator().manual_seed(numel)).to(dtype)
    codes = CODEC.compress(x, bits, key=5)
    assert torch.equal(codes, kernels.quantise(x, bits, key=5).buffer)
    assert codes.shape == (CODEC.nbytes(numel, dtype, bits),) == (ledger.affine_bytes(numel, bits, 256, dtype),)
    out = torch.full_like(x, 7)
    CODEC.decompress(codes, bits, out)
    if numel:
        assert torch.equal(out, kernels.dequantise(kernels.quantise(x, bits, key=5)))


def test_it_is_unbiased():
    # the mean of n = 1000 draws of a rounding with variance at most (step/2)² lies within 5 standard errors but for
    # 6e-7 a number (normal tail), 6e-5 for all 100
    x = torch.linspace(-1, 1, 100)
    total, out, draws = torch.zeros(100, dtype=torch.float64), torch.empty(100), 1000
    for key in range(draws):
        CODEC.decompress(CODEC.compress(x, 2, key=key * 0x9E3779B97F4A7C15 % 2**64), 2, out)
        total += out
    assert float((total / draws - x).abs().max()) <= 5 * (2 / 3 / 2) / draws**0.5


def test_group_sizes():
    codec = AffineCodec(group_size=64)
    assert codec.nbytes(65, torch.float32, 4) == 2 * (32 + 8)
    with pytest.raises(ValueError, match="group_size=100"):
        AffineCodec(group_size=100)


def test_codes_of_another_length_are_refused():
    codes = CODEC.compress(torch.ones(100), 4, key=0)
    with pytest.raises(ValueError, match=r"136,\) bytes of codes: 300 numbers at 4 bits take 272"):
        CODEC.decompress(codes, 4, torch.empty(300))


def test_it_is_found_by_its_entry_point():
    (point,) = entry_points(group="repertory.codecs", name="gact")
    assert point.load() is CODEC

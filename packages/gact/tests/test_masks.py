"""Packed fields against numpy, and max-pool indices against what max-pooling saves."""

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from gact import ledger, masks

SIZES = [0, 1, 7, 8, 9, 1000, (1 << 20) + 13]


def values_of(n, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 1 << width, (n,), generator=generator, dtype=torch.uint8)


def packed_by_numpy(values, width):
    """Bits of each value, least significant first, one behind another."""
    bits = (values.numpy()[:, None] >> np.arange(width)) & 1
    return torch.from_numpy(np.packbits(bits.astype(np.uint8).reshape(-1), bitorder="little"))


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("width", masks.WIDTHS)
def test_fields_are_numpys(width, n):
    values = values_of(n, width)
    packed = masks.pack_fields(values, width)
    assert packed.numel() == ledger.field_bytes(n, width)
    assert torch.equal(packed, packed_by_numpy(values, width))
    assert torch.equal(masks.unpack_fields(packed, width, n), values)


@pytest.mark.parametrize("n", SIZES)
def test_bits_are_numpys(n):
    mask = values_of(n, 1).bool()
    packed = masks.pack_bits(mask)
    assert torch.equal(packed, torch.from_numpy(np.packbits(mask.numpy(), bitorder="little")))
    back = masks.unpack_bits(packed, n)
    assert back.dtype == torch.bool
    assert torch.equal(back, mask)


@pytest.mark.property
@given(
    n=st.integers(0, 300),
    offset=st.integers(0, 9),
    width=st.sampled_from(masks.WIDTHS),
    seed=st.integers(0, 2**32 - 1),
)
def test_round_trip_from_any_address(n, offset, width, seed):
    values = values_of(n + offset, width, seed)[offset:]
    packed = masks.pack_fields(values, width)
    assert torch.equal(packed, packed_by_numpy(values, width))
    assert torch.equal(masks.unpack_fields(packed, width, n), values)


@pytest.mark.parametrize("byte", range(256))
def test_every_byte(byte):
    packed = torch.tensor([byte], dtype=torch.uint8)
    for width in masks.WIDTHS:
        fields = masks.unpack_fields(packed, width, 8 // width)
        assert torch.equal(masks.pack_fields(fields, width), packed)


def test_bad_fields(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # our own messages
    with pytest.raises(TypeError, match=r"torch\.bool"):
        masks.pack_bits(torch.zeros(3))
    with pytest.raises(TypeError, match="uint8"):
        masks.pack_fields(torch.zeros(3), 4)
    with pytest.raises(ValueError, match="3 bits"):
        masks.pack_fields(torch.zeros(3, dtype=torch.uint8), 3)
    with pytest.raises(ValueError, match="one contiguous dimension"):
        masks.pack_fields(torch.zeros(4, 4, dtype=torch.uint8), 4)
    with pytest.raises(ValueError, match="need 2"):
        masks.unpack_fields(torch.zeros(3, dtype=torch.uint8), 4, 4)


def test_field_width():
    assert [masks.field_width(n) for n in (1, 2, 3, 4, 5, 16, 17, 256)] == [1, 1, 2, 2, 4, 4, 8, 8]
    for n in (0, 257):
        with pytest.raises(ValueError, match=f"{n} values"):
            masks.field_width(n)


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [
        ((2, 2), (2, 2), (0, 0), (1, 1)),
        ((3, 3), (2, 2), (1, 1), (1, 1)),
        ((3, 3), (1, 1), (1, 1), (2, 2)),
        ((3, 2), (2, 1), (1, 0), (1, 2)),
        ((5, 4), (3, 4), (2, 2), (1, 1)),
        ((1, 9), (1, 1), (0, 4), (1, 1)),  # as wide as the image
        ((16, 16), (1, 1), (8, 8), (1, 1)),  # 256 places, wider than the image
    ],
)
def test_pool2d(kernel, stride, padding, dilation, ceil_mode):
    x = torch.randn(2, 3, 13, 9, generator=torch.Generator().manual_seed(0))
    _, indices = functional.max_pool2d(x, kernel, stride, padding, dilation, ceil_mode, return_indices=True)
    where = ((13, 9), kernel, stride, padding, dilation)
    offsets = masks.pool_offsets(indices, *where)
    assert offsets.numel() == indices.numel()
    assert int(offsets.max()) < kernel[0] * kernel[1]
    assert torch.equal(masks.pool_indices(offsets, indices.shape, *where), indices)


def test_offsets_are_places_in_the_window():
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, 1, 0] = x[0, 0, 0, 3] = x[0, 0, 2, 2] = x[0, 0, 3, 1] = 1.0
    _, indices = functional.max_pool2d(x, 2, 2, return_indices=True)
    offsets = masks.pool_offsets(indices, (4, 4), (2, 2), (2, 2), (0, 0), (1, 1))
    assert offsets.tolist() == [2, 1, 3, 0]


def test_pool3d_and_pool1d():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 2, 7, 6, 5, generator=generator)
    _, indices = functional.max_pool3d(x, (2, 3, 2), (2, 1, 2), (1, 1, 0), 1, True, return_indices=True)
    where = ((7, 6, 5), (2, 3, 2), (2, 1, 2), (1, 1, 0), (1, 1, 1))
    assert torch.equal(masks.pool_indices(masks.pool_offsets(indices, *where), indices.shape, *where), indices)
    _, indices = functional.max_pool1d(torch.randn(3, 4, 20, generator=generator), 3, 2, return_indices=True)
    where = ((20,), (3,), (2,), (0,), (1,))
    assert torch.equal(masks.pool_indices(masks.pool_offsets(indices, *where), indices.shape, *where), indices)


def test_pool_without_a_batch_and_empty():
    _, indices = functional.max_pool2d(torch.rand(3, 8, 8), 2, return_indices=True)
    where = ((8, 8), (2, 2), (2, 2), (0, 0), (1, 1))
    assert torch.equal(masks.pool_indices(masks.pool_offsets(indices, *where), indices.shape, *where), indices)
    nothing = torch.zeros(0, 3, 4, 4, dtype=torch.int64)
    assert masks.pool_indices(masks.pool_offsets(nothing, *where), nothing.shape, *where).shape == nothing.shape


def test_bad_windows():
    indices = torch.zeros(1, 1, 2, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match="one number a pooled dimension"):
        masks.pool_offsets(indices, (4, 4), (2,), (2, 2), (0, 0), (1, 1))
    with pytest.raises(ValueError, match="256 places"):
        masks.pool_offsets(indices, (40, 40), (17, 17), (2, 2), (0, 0), (1, 1))

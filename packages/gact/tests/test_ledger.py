"""Bytes by formula, by an independent count, and by what is stored."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gact import affine, ledger, masks, theory

PUBLISHED = {  # n = 2²⁰, groups of 256, two numbers of the tensor's type a group; bits 1, 2, 4, 8
    torch.float32: (163_840, 294_912, 557_056, 1_081_344),
    torch.bfloat16: (147_456, 278_528, 540_672, 1_064_960),
}


@pytest.mark.parametrize("dtype", PUBLISHED)
@pytest.mark.parametrize("place", range(4))
def test_published_sizes(dtype, place):
    bits, expected = affine.BITS[place], PUBLISHED[dtype][place]
    assert ledger.affine_bytes(1 << 20, bits, 256, dtype) == expected
    assert affine.quantise(torch.zeros(1 << 20, dtype=dtype), bits, key=0).buffer.numel() == expected


@given(
    numel=st.integers(0, 1 << 40),
    bits=st.sampled_from(affine.BITS),
    group_size=st.sampled_from(affine.GROUP_SIZES),
    dtype=st.sampled_from(affine.DTYPES),
)
@pytest.mark.property
def test_affine_bytes_by_an_independent_count(numel, bits, group_size, dtype):
    stored = theory.stored_bits(numel, bits, group_size, torch.finfo(dtype).bits)
    assert 8 * ledger.affine_bytes(numel, bits, group_size, dtype) == stored


@given(numel=st.integers(0, 300), width=st.sampled_from(masks.WIDTHS))
@pytest.mark.property
def test_field_bytes_are_what_is_stored(numel, width):
    packed = masks.pack_fields(torch.zeros(numel, dtype=torch.uint8), width)
    assert packed.numel() == packed.untyped_storage().nbytes() == ledger.field_bytes(numel, width)


def test_nothing_but_the_buffer_is_stored():
    codes = affine.quantise(torch.zeros(1000, dtype=torch.float16), 2, key=0, group_size=64)
    assert codes.buffer.untyped_storage().nbytes() == ledger.affine_bytes(1000, 2, 64, torch.float16)
    parts = (codes.payload, codes.low, codes.high)
    assert sum(part.numel() * part.element_size() for part in parts) == codes.nbytes
    assert all(part.untyped_storage().data_ptr() == codes.buffer.data_ptr() for part in parts)

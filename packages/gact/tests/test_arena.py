"""The bump allocator: alignment, no overlap, blocks that live as long as their buffers."""

import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gact import affine, counter_rng, ledger
from gact.arena import Arena


@pytest.mark.property
@given(sizes=st.lists(st.integers(0, 3000), max_size=40), block=st.integers(16, 2000))
def test_buffers_are_aligned_and_apart(sizes, block):
    arena = Arena("cpu", block)
    buffers = [arena.take(size) for size in sizes]
    for number, buffer in enumerate(buffers):
        assert buffer.dtype == torch.uint8
        assert buffer.storage_offset() % 16 == 0
        buffer.fill_(number)
    for number, (size, buffer) in enumerate(zip(sizes, buffers, strict=True)):
        assert buffer.shape == (size,)
        assert bool((buffer == number).all())
    kept = {buffer.untyped_storage().data_ptr(): buffer.untyped_storage().nbytes() for buffer in buffers}
    assert arena.reserved_bytes == sum(kept.values()) >= sum(sizes)


def test_small_buffers_share_a_block_and_large_ones_do_not():
    arena = Arena("cpu", 1024)
    small = [arena.take(100) for _ in range(9)]
    assert len({buffer.untyped_storage().data_ptr() for buffer in small}) == 1
    large = arena.take(5000)
    assert large.untyped_storage().nbytes() == 5008
    after = arena.take(16)  # the block is not lost to the large buffer
    assert after.untyped_storage().data_ptr() == small[0].untyped_storage().data_ptr()


def test_a_block_goes_with_its_last_buffer():
    arena = Arena("cpu", 1024)
    first, second = arena.take(10), arena.take(10)
    block = weakref.ref(first._base)
    arena.clear()
    assert arena.reserved_bytes == 0
    del first
    assert block() is not None
    del second
    assert block() is None


def test_codes_fit_into_an_arena():
    arena = Arena("cpu", 1 << 16)
    x = torch.randn(1001, generator=torch.Generator().manual_seed(0))
    for bits in affine.BITS:
        out = arena.take(ledger.affine_bytes(1001, bits, 64, x.dtype))
        codes = affine.quantise(x, bits, key=counter_rng.stream_key(0, 0, bits), group_size=64, out=out)
        assert torch.equal(
            codes.buffer, affine.quantise(x, bits, key=counter_rng.stream_key(0, 0, bits), group_size=64).buffer
        )


def test_bad_sizes():
    with pytest.raises(ValueError, match="block_bytes=15"):
        Arena("cpu", 15)
    with pytest.raises(ValueError, match="nbytes=-1"):
        Arena("cpu", 16).take(-1)

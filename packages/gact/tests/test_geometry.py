"""Tensors as flat lines of their distinct numbers, and back."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gact.geometry import flatten, is_dense, owners


@st.composite
def strided(draw):
    """A strided tensor: permuted, sliced, expanded, of any rank and with empty dimensions."""
    size = draw(st.lists(st.integers(0, 4), max_size=4))
    tensor = torch.arange(float(torch.Size(size).numel())).view(size)
    if size:
        tensor = tensor.permute(draw(st.permutations(range(len(size)))))
    for dim in range(tensor.dim()):
        step = draw(st.sampled_from([1, 1, 1, 2, 3]))
        start = draw(st.integers(0, max(tensor.shape[dim] - 1, 0)))
        tensor = tensor[(slice(None),) * dim + (slice(start, None, step),)]
    for _ in range(draw(st.integers(0, 2))):
        tensor = tensor.unsqueeze(draw(st.integers(0, tensor.dim())))
    target = [draw(st.sampled_from([1, 3])) if length == 1 else length for length in tensor.shape]
    return tensor.expand(target)


@pytest.mark.property
@given(strided())
def test_numbers_come_back_and_repeated_ones_are_taken_once(tensor):
    flat, geometry = flatten(tensor)
    assert flat.dim() == 1
    assert flat.is_contiguous()
    assert torch.equal(geometry.restore(flat.clone()), tensor)
    repeats = 1
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        repeats *= length if stride == 0 and length > 1 else 1
    assert flat.numel() * repeats == tensor.numel()


@pytest.mark.property
@given(strided())
def test_density_is_what_it_says(tensor):
    offsets = {
        sum(i * s for i, s in zip(index, tensor.stride(), strict=True))
        for index in itertools.product(*map(range, tensor.shape))
    }
    once = len(offsets) == tensor.numel()
    assert is_dense(tensor) == (once and (not offsets or max(offsets) == len(offsets) - 1))


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x,
        lambda x: x.transpose(0, 2),
        lambda x: x.permute(1, 0, 2)[None],
        lambda x: x.unsqueeze(0).to(memory_format=torch.channels_last),
        lambda x: x[2:4],
    ],
)
def test_dense_tensors_are_read_where_they_lie(make):
    tensor = make(torch.randn(4, 5, 6))
    flat, geometry = flatten(tensor)
    assert flat.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
    assert flat.storage_offset() == tensor.storage_offset()
    assert geometry.restore(flat).stride() == tensor.stride()


def test_restore_of_a_view_into_a_larger_storage_starts_at_the_view():
    flat = torch.arange(12.0)[4:]
    tensor = torch.zeros(2, 4)
    _, geometry = flatten(tensor)
    assert torch.equal(geometry.restore(flat), flat.view(2, 4))


def test_owners_are_counted():
    tensor = torch.zeros(3)
    place = tensor.untyped_storage()._cdata
    assert owners(place) == 1
    view = tensor[1:]
    other = tensor.detach()
    assert owners(place) == 3
    del view, other
    assert owners(place) == 1

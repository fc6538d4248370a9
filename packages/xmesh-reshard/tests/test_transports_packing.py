"""Packing: bytes of messages against slicing; what is a view and what a copy; parts that do not fit."""

import itertools
import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmesh_reshard import Layout, Transfer
from xmesh_reshard.layout import dtype_of
from xmesh_reshard.plans import Piece
from xmesh_reshard.transports.buffers import Pool
from xmesh_reshard.transports.errors import PartError
from xmesh_reshard.transports.packing import NumpyPacker

TYPES = ("bool", "int8", "uint16", "int64", "float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2")


def one_box(shape, before, after=None, boxes=None):
    """A transfer from device 0, with the whole tensor, to device 1, with the box."""
    box = boxes or [(0, n) for n in shape]
    source = Layout.from_boxes(shape, before, {0: [(0, n) for n in shape]})
    return Transfer(source, Layout.from_boxes(shape, after or before, {1: box}))


def whole_piece(name, transfer, lower, upper):
    size = dtype_of(transfer.wire).itemsize * math.prod(b - a for a, b in zip(lower, upper, strict=True))
    return Piece(name, tuple(lower), tuple(upper), size)


def send(transfers, parts, pieces, make=NumpyPacker):
    sender, receiver = make(transfers, 0, parts), make(transfers, 1, {})
    data, _ = sender.outgoing(pieces, sender.buffer)
    buffer, direct = receiver.incoming(pieces, receiver.buffer)
    buffer[:] = data
    if not direct:
        receiver.unpack(pieces, buffer)
    return receiver.new


@pytest.mark.parametrize(("before", "after"), list(itertools.product(TYPES, TYPES)))
def test_every_cast_is_one_cast_wherever_it_happens(before, after):
    values = np.array([0, 1, 2.5, 100, 300, 3]).astype(dtype_of(before)).reshape(2, 3)
    transfer = one_box((2, 3), before, after)
    new = send({"w": transfer}, {"w": values}, [whole_piece("w", transfer, (0, 0), (2, 3))])["w"]
    with np.errstate(all="ignore"):
        want = values.astype(dtype_of(after))
    assert new.dtype == want.dtype
    assert new.tobytes() == want.tobytes()


@pytest.mark.property
@given(st.data())
def test_pieces_of_several_tensors_and_types_in_one_message(data):
    transfers, parts, pieces = {}, {}, []
    for k in range(data.draw(st.integers(1, 4))):
        shape = tuple(data.draw(st.lists(st.integers(0, 4), max_size=4)))
        transfers[f"t{k}"] = one_box(shape, data.draw(st.sampled_from(TYPES)), data.draw(st.sampled_from(TYPES)))
        values = np.arange(math.prod(shape)).astype(dtype_of(transfers[f"t{k}"].source.dtype))
        axes = data.draw(st.permutations(range(len(shape))))  # any strides
        back = [axes.index(d) for d in range(len(shape))]
        laid = values.reshape(shape)
        parts[f"t{k}"] = np.ascontiguousarray(laid.transpose(axes)).transpose(back) if shape else laid
        if shape and data.draw(st.booleans()):  # two pieces, which together are the tensor
            cut = data.draw(st.integers(0, shape[0]))
            zeros = (0,) * (len(shape) - 1)
            pieces.append(whole_piece(f"t{k}", transfers[f"t{k}"], (0, *zeros), (cut, *shape[1:])))
            pieces.append(whole_piece(f"t{k}", transfers[f"t{k}"], (cut, *zeros), shape))
        else:
            pieces.append(whole_piece(f"t{k}", transfers[f"t{k}"], (0,) * len(shape), shape))
    new = send(transfers, parts, pieces)
    for name, transfer in transfers.items():
        with np.errstate(all="ignore"):
            want = parts[name].astype(dtype_of(transfer.target.dtype))
        assert new[name].tobytes() == want.tobytes()
        assert new[name].shape == want.shape


def test_bytes_are_row_major_and_in_order_of_the_pieces():
    transfer = one_box((2, 3), "uint8")
    part = np.arange(6, dtype=np.uint8).reshape(2, 3)
    packer = NumpyPacker({"w": transfer}, 0, {"w": part[::-1, ::-1][::-1, ::-1]})
    pieces = [whole_piece("w", transfer, (0, 1), (2, 3)), whole_piece("w", transfer, (0, 0), (2, 1))]
    assert packer.outgoing(pieces, packer.buffer)[0].tolist() == [1, 2, 4, 5, 0, 3]


def test_negative_strides_are_read_as_what_they_show():
    transfer = one_box((4,), "int16")
    backwards = np.arange(4, dtype=np.int16)[::-1]
    new = send({"w": transfer}, {"w": backwards}, [whole_piece("w", transfer, (0,), (4,))])
    assert new["w"].tolist() == [3, 2, 1, 0]


def test_contiguous_pieces_are_views_and_others_are_not():
    transfer = one_box((4, 4), "float32")
    part = np.zeros((4, 4), np.float32)
    packer = NumpyPacker({"w": transfer}, 0, {"w": part})
    rows, columns = whole_piece("w", transfer, (1, 0), (3, 4)), whole_piece("w", transfer, (0, 1), (4, 3))
    data, direct = packer.outgoing([rows], packer.buffer)
    assert direct
    assert np.shares_memory(data, part)
    data, direct = packer.outgoing([columns], packer.buffer)
    assert not direct
    assert not np.shares_memory(data, part)
    receiver = NumpyPacker({"w": transfer}, 1, {})
    buffer, direct = receiver.incoming([rows], receiver.buffer)
    assert direct
    assert np.shares_memory(buffer, receiver.new["w"])


def test_offsets_beyond_two_gib():
    size = 2**31 + 64
    source = Layout.from_boxes((size,), "int8", {0: [(0, size)]})
    transfer = Transfer(source, Layout.from_boxes((size,), "int8", {1: [(size - 8, size)]}))
    part = np.zeros(size, np.int8)  # pages that are not touched take no memory
    part[-8:] = np.arange(8)
    new = send({"w": transfer}, {"w": part}, [Piece("w", (size - 8,), (size,), 8)])
    assert new["w"].tolist() == list(range(8))


def test_copies_cast_and_leave_the_old_part():
    layout = Layout.from_boxes((3,), "float32", {0: [(0, 3)]})
    transfer = Transfer(layout, Layout.from_boxes((3,), "bfloat16", {0: [(0, 3)]}))
    part = np.array([1.0, 2.0, 3.0], np.float32)
    packer = NumpyPacker({"w": transfer}, 0, {"w": part})
    packer.copy([whole_piece("w", transfer, (0,), (3,))])
    assert packer.new["w"].dtype == ml_dtypes.bfloat16
    assert packer.new["w"].astype(float).tolist() == [1.0, 2.0, 3.0]
    assert part.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({}, "needs its part of 'w': float32"),
        ({"w": np.zeros((2, 2), np.float32)}, r"float32\[2, 2\] for 'w'; its source layout says float32\[2, 3\]"),
        ({"w": np.zeros((2, 3))}, "float64"),
        ({"w": np.zeros((2, 3), ">f4")}, ">f4"),
        ({"w": np.zeros((2, 3), np.float32), "v": np.zeros(1)}, "'v'"),
    ],
)
def test_parts_that_do_not_fit(parts, words):
    with pytest.raises(PartError, match=words):
        NumpyPacker({"w": one_box((2, 3), "float32")}, 0, parts)


def test_complex_numbers_do_not_become_real_silently():
    with pytest.raises(PartError, match="imaginary"):
        NumpyPacker({"w": one_box((1,), "complex64", "float32")}, 0, {"w": np.zeros(1, np.complex64)})


@pytest.mark.property
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 100)), max_size=30))
def test_pool_holds_no_more_than_the_largest_messages(steps):
    pool, used, sizes = Pool(bytearray), [], []
    for release, size in steps:
        while len(used) > min(release, 1):
            pool.give(used.pop(0))
        sizes.append(size)
        used.append(pool.take(size))
        assert len(used[-1]) == size
    assert pool.peak <= sum(sorted(sizes)[-2:])


@pytest.mark.parametrize(("before", "after"), [(t, t) for t in TYPES] + [("float32", "bfloat16"), ("int8", "float32")])
def test_torch_packs_the_same_bytes(before, after):
    torch = pytest.importorskip("torch")
    from xmesh_reshard.transports.torch_packing import TorchPacker, to_numpy, to_torch

    transfers = {"a": one_box((3,), "int8"), "w": one_box((4, 5), before, after), "s": one_box((), before, after)}
    parts = {name: np.ones(t.source.shape, dtype_of(t.source.dtype)) for name, t in transfers.items()}
    parts["w"] = np.arange(20).astype(dtype_of(before)).reshape(5, 4).T
    pieces = [
        whole_piece("a", transfers["a"], (0,), (3,)),  # three bytes: what follows is not aligned
        whole_piece("w", transfers["w"], (0, 0), (4, 5)),
        whole_piece("s", transfers["s"], (), ()),
    ]
    tensors = {name: to_torch(part) for name, part in parts.items()}
    ours, theirs = NumpyPacker(transfers, 0, parts), TorchPacker(transfers, 0, tensors)
    want = ours.outgoing(pieces, ours.buffer)[0]
    got = theirs.outgoing(pieces, theirs.buffer)[0]
    assert got.numpy().tobytes() == want.tobytes()
    assert theirs.checksum(got) == ours.checksum(want)
    new = send(transfers, tensors, pieces, TorchPacker)
    for name, values in send(transfers, parts, pieces).items():
        assert to_numpy(new[name]).tobytes() == values.tobytes()
        assert new[name].dtype == getattr(torch, transfers[name].target.dtype)

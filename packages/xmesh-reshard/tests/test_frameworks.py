"""Boxes of JAX shardings and DTensor placements against what the frameworks themselves do."""

from importlib import import_module

import jax
import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AbstractMesh, AxisType, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import Placement, _StridedShard

from xmesh_reshard.frameworks import boxes_of_placements, boxes_of_sharding
from xmesh_reshard.layout import Layout, LayoutError, Mesh

jax.config.update("jax_num_cpu_devices", 8)


def devices(n=8):
    found = jax.devices()
    assert len(found) >= n, "start this file before anything else uses JAX"
    return np.array(found[:n])


@st.composite
def cases(draw, strided):
    """A mesh of up to three axes, a shape and placements."""
    grid = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    shape = draw(st.lists(st.integers(0, 9), min_size=1, max_size=3))
    shard = st.integers(-len(shape), len(shape) - 1).map(Shard)
    strides = st.builds(
        lambda d, f: _StridedShard(d, split_factor=f), st.integers(0, len(shape) - 1), st.integers(1, 4)
    )
    kinds = [st.just(Replicate()), shard, strides] if strided else [st.just(Replicate()), shard]
    placements = draw(st.lists(st.one_of(kinds), min_size=len(grid), max_size=len(grid)))
    return draw(st.permutations(range(int(np.prod(grid))))), grid, shape, placements


def selected(n, dim, where, grid, placements):
    """The indices of one dimension that a rank is left with, by torch's own splitting."""
    held = torch.arange(n)
    for part, parts, placement in zip(where, grid, placements, strict=True):
        if not placement.is_replicate() and placement.dim == dim:
            factor = getattr(placement, "split_factor", None)
            line = Shard(0) if factor is None else _StridedShard(0, split_factor=factor)
            held = line._split_tensor(held, parts, with_padding=False)[0][part]
    return held.tolist()


@pytest.mark.property
@given(cases(strided=True))
@settings(max_examples=150, deadline=None)
def test_placements_select_what_torch_selects(case):
    ranks, grid, shape, placements = case
    mesh = np.array(ranks).reshape(grid)
    normal = [Shard(p.dim % len(shape)) if type(p) is Shard else p for p in placements]
    held = {w: [selected(n, d, w, grid, normal) for d, n in enumerate(shape)] for w in np.ndindex(*grid)}
    if all(line == list(range(line[0], line[-1] + 1)) for lines in held.values() for line in lines if line):
        boxes = boxes_of_placements(mesh, placements, shape)
        for where, lines in held.items():
            assert [list(range(a, b)) for a, b in boxes[int(mesh[where])]] == lines
    else:
        with pytest.raises(LayoutError, match="not one box"):
            boxes_of_placements(mesh, placements, shape)


@pytest.mark.property
@given(cases(strided=False))
@settings(max_examples=50, deadline=None)
def test_without_strides_placements_are_nested_cuts(case):
    """The closed form: along a dimension, n elements over k ranks in parts of ⌈n / k⌉, from left to right."""
    ranks, grid, shape, placements = case
    mesh = np.array(ranks).reshape(grid)
    boxes = boxes_of_placements(mesh, placements, shape)
    for where in np.ndindex(*grid):
        expected = [(0, n) for n in shape]
        for part, parts, placement in zip(where, grid, placements, strict=True):
            if not placement.is_replicate():
                a, b = expected[placement.dim]
                chunk = -(-(b - a) // parts)
                expected[placement.dim] = (min(a + part * chunk, b), min(a + (part + 1) * chunk, b))
        for n, (a, b), (x, y) in zip(shape, boxes[int(mesh[where])], expected, strict=True):
            assert (a, b) == ((x, y) if x < y else (n, n))


@pytest.fixture
def processes():
    """Torch's process group without processes: makes this one each rank in turn."""
    import_module("torch.testing._internal.distributed.fake_pg")  # registers the backend

    def become(rank, world):
        if dist.is_initialized():
            dist.destroy_process_group()
        dist.init_process_group("fake", rank=rank, world_size=world, store=dist.HashStore())

    yield become
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore")  # of the fake group
@pytest.mark.parametrize(
    "placements",
    [
        [Shard(0), Shard(0)],
        [Shard(-1), Shard(0)],
        [Replicate(), Shard(1)],
        [Shard(1), Replicate()],
        [Shard(0), Shard(1)],
    ],
)
def test_a_dtensor_holds_its_box(processes, placements):
    whole = torch.arange(35).reshape(5, 7)
    for rank in range(6):
        processes(rank, 6)
        mesh = DeviceMesh("cpu", torch.tensor([[4, 2, 0], [1, 5, 3]]))
        tensor = distribute_tensor(whole, mesh, placements, src_data_rank=None)
        assert isinstance(tensor, DTensor)
        layout = Layout.from_placements(mesh, tensor.placements, tensor.shape, tensor.dtype)
        assert torch.equal(tensor.to_local(), whole[layout.slices(rank)])


def test_fsdp_over_tensor_parallelism_by_hand():
    """FSDP2 cuts each tensor-parallel part once more: the major cut is by the second mesh axis."""
    boxes = boxes_of_placements(Mesh.grid((2, 2)), [_StridedShard(0, split_factor=2), Shard(0)], (8, 3))
    assert boxes == {0: [(0, 2), (0, 3)], 1: [(4, 6), (0, 3)], 2: [(2, 4), (0, 3)], 3: [(6, 8), (0, 3)]}


@pytest.mark.parametrize(
    ("mesh", "placements", "shape", "said"),
    [
        ([0, 1], [Partial()], (4,), "redistribute the DTensor"),
        ([0, 1], [Shard(1)], (4,), "names dimension 1"),
        ([0, 1], [Shard(-2)], (4,), "names dimension -2"),
        ([0, 1], [Shard(0)], (), "names dimension 0"),
        ([0, 1], [Shard(0), Replicate()], (4,), "as many placements"),
        ([0, 1], [_StridedShard(0, split_factor=2)], (8,), "not one box"),
        ([0, 1], [Placement()], (4,), "unknown placement"),
        ([0, 0], [Shard(0)], (4,), "repeated"),
        (["a", "b"], [Shard(0)], (4,), "whole numbers"),
        (object(), [Shard(0)], (4,), "whole numbers"),
    ],
)
def test_what_is_no_layout_of_boxes_is_refused(mesh, placements, shape, said):
    with pytest.raises(LayoutError, match=said):
        boxes_of_placements(mesh, placements, shape)


@pytest.mark.parametrize("spec", [P("a", "b"), P(("b", "a")), P(None, "a"), P(), P(("a", "b"), None)])
def test_shardings_place_what_jax_places(spec):
    mesh = jax.sharding.Mesh(devices()[[3, 1, 5, 0, 2, 7, 6, 4]].reshape(2, 4), ("a", "b"))
    whole = np.arange(8 * 12).reshape(8, 12)
    array = jax.device_put(whole, NamedSharding(mesh, spec))
    layout = Layout.from_named_sharding(array.sharding, whole.shape, "int64")
    for shard in array.addressable_shards:
        assert np.array_equal(shard.data, whole[layout.slices(shard.device.id)])
    assert layout == Layout.sharded(
        whole.shape, "int64", Mesh(np.vectorize(lambda d: d.id)(mesh.devices), ("a", "b")), list(spec)
    )


def test_shardings_that_jit_chose():
    array = jax.jit(lambda: np.arange(8), out_shardings=None)()
    (device,) = array.sharding.device_set
    assert boxes_of_sharding(array.sharding, (8,)) == {device.id: [(0, 8)]}
    assert boxes_of_sharding(SingleDeviceSharding(device), ()) == {device.id: []}
    assert boxes_of_sharding(SingleDeviceSharding(device), (0, 3)) == {device.id: [(0, 0), (0, 3)]}


def test_shardings_that_do_not_fit_are_refused():
    mesh = jax.sharding.Mesh(devices(4).reshape(2, 2), ("a", "b"))
    with pytest.raises(LayoutError, match="pad the array"):
        boxes_of_sharding(NamedSharding(mesh, P("a")), (7,))
    with pytest.raises(LayoutError, match="more dimensions"):
        boxes_of_sharding(NamedSharding(mesh, P("a")), ())
    with pytest.raises(LayoutError, match="take a mesh of devices"):
        boxes_of_sharding(NamedSharding(AbstractMesh((2,), ("a",)), P("a")), (8,))
    with pytest.raises(TypeError, match=r"a jax.sharding.Sharding"):
        boxes_of_sharding(P("a"), (8,))
    explicit = jax.sharding.Mesh(mesh.devices, ("a", "b"), axis_types=(AxisType.Explicit,) * 2)
    with pytest.raises(LayoutError, match="still to be reduced"):
        boxes_of_sharding(NamedSharding(explicit, P(unreduced={"a"})), (8,))

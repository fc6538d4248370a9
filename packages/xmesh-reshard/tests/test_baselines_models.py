"""The Llama weights and the paper's settings as data."""

import math

import numpy as np
import pytest

from xmesh_reshard import plan
from xmesh_reshard.cases import case_numbers, multi_host_case, one_to_many_case
from xmesh_reshard.models import llama_refit, llama_shapes
from xmesh_reshard.network import simulate


@pytest.mark.parametrize(("size", "weights", "tensors"), [("8b", 8_030_261_248, 291), ("70b", 70_553_706_496, 723)])
def test_numbers_of_weights(size, weights, tensors):
    shapes = llama_shapes(size)
    assert len(shapes) == tensors
    assert sum(math.prod(shape) for shape in shapes.values()) == weights


def test_refit_layouts():
    case = llama_refit("8b", trainers=16, replicas=2)
    wq = case.transfers["model.layers.3.self_attn.q_proj.weight"]
    down = case.transfers["model.layers.3.mlp.down_proj.weight"]
    norm = case.transfers["model.norm.weight"]
    assert wq.source.shard_shape(5) == (256, 4096)
    assert wq.target.shard_shape(16) == wq.target.shard_shape(31) == (512, 4096)
    assert wq.target.slices(17) == wq.target.slices(25)  # the same part of both replicas
    assert down.target.shard_shape(20) == (4096, 14_336 // 8)
    assert norm.target.shard_shape(20) == (4096,)
    assert wq.source.dtype == "bfloat16"
    per_device = {d: sum(np.prod(t.target.shard_shape(d)) for t in case.transfers.values()) for d in range(16, 32)}
    assert len({*per_device.values()}) == 1


def test_a_fleet_that_does_not_fill_its_hosts():
    case = llama_refit("8b", trainers=6, tensor_parallel=2, replicas=3, host_devices=4)
    assert case.transfers["model.norm.weight"].target.devices.tolist() == list(range(8, 14))
    assert len(case.topology.hosts) == 4
    made = plan(case.transfers, case.topology)
    assert simulate(made).makespan >= made.lower_bound


def test_sizes_of_the_cases():
    for number in case_numbers():
        tensor = multi_host_case(number).transfers["x"].source
        assert tensor.nbytes == pytest.approx(2 * 2**30, rel=0.01)
        small = multi_host_case(number, scale=8)
        assert small.transfers["x"].source.nbytes == pytest.approx(tensor.nbytes / 512, rel=0.02)
        assert len(small.topology.hosts) == {6: 5, 7: 3, 8: 3}.get(number, 4)
    assert one_to_many_case(3, 2, 64).transfers["x"].target.devices.tolist() == list(range(2, 8))


def test_bad_numbers():
    with pytest.raises(ValueError, match="sizes are \\['70b', '8b'\\]; got '7b'"):
        llama_shapes("7b")
    with pytest.raises(ValueError, match="at least 1"):
        llama_refit("8b", replicas=0)
    with pytest.raises(ValueError, match="numbers 1 to 9; got 10"):
        multi_host_case(10)
    with pytest.raises(ValueError, match="at least 1; got 0"):
        multi_host_case(1, scale=0)
    with pytest.raises(ValueError, match="got 1, 0, 64"):
        one_to_many_case(1, 0, 64)
    with pytest.raises(ValueError, match="multiple of 4"):
        one_to_many_case(1, 1, 6)

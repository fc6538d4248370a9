"""A profile of a CUDA device."""

import math

import pytest

pytestmark = pytest.mark.gpu


def test_a_profile_of_the_device(tmp_path):
    from poet.profiling import profile_device

    device = profile_device(tmp_path, 1.0, device="cuda")
    assert [tier.name for tier in device.tiers] == ["host", "disk"]
    host, disk = device.tiers
    assert host.duplex
    assert device.flops_per_second is not None
    assert 0 < device.flops_per_second < math.inf
    size = 2**24
    assert disk.read_seconds(size) > host.read_seconds(size)  # the disk lies behind the host
    assert disk.write_seconds(size) > host.write_seconds(size)
    assert "compute_power" in device.missing
    assert list(tmp_path.iterdir()) == []

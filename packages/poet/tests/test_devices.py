"""Device profiles: their figures, their arithmetic, and what is refused."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poet import legacy
from poet.device import SCHEMA, Device, DeviceError, Tier
from poet.problem import formulate

# RAM, FLOP/s, FLOP/J, compute power; latency and throughput in, out; page power
FIGURES = {
    "mkr1000": (32768, 2000 / 0.012, 2.525e6, 0.066, 1.09e-4, 4.617e6, 1.13e-4, 4.44e6, 0.33),
    "nrf52840": (262144, 1.6283e9 / 255.62, 5.80e8, 0.01098, 1.09e-4, 4.617e6, 1.13e-4, 4.44e6, 0.33),
    "rpi4b": (2**31, 2e9, 1.6283e9 / (13.53 * 3), 3.0, 5.1e-6, 4.55e7, 1.85e-5, 2.45e7, 0.15),
    "rpi4b-nocache": (2**31, 1.2035e8, 1.6283e9 / (13.53 * 3), 3.0, 5.1e-6, 4.55e7, 4.24e-3, 1.71e7, 0.15),
    "jetson-tx2": (2**33, None, None, 0.766, 5.4e-4, 1.085e8, 2.4e-3, 9.44e7, 0.309),
}


def entries(device):
    flash = device.tier("flash")
    return (
        *(device.ram, device.flops_per_second, device.flops_per_joule, device.compute_power),
        *(flash.read_latency, flash.read_throughput, flash.write_latency, flash.write_throughput, flash.power),
    )


def test_every_built_in_device_is_listed():
    assert Device.names() == sorted(FIGURES)


@pytest.mark.parametrize("name", FIGURES)
def test_figures(name):
    got = entries(Device.load(name))
    for mine, theirs in zip(got, FIGURES[name], strict=True):
        assert mine == (theirs if theirs is None else pytest.approx(theirs, rel=2e-3))


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_has_a_source_or_is_missing(name):
    device = Device.load(name)
    for entry in ("ram", "flops_per_second", "flops_per_joule", "compute_power"):
        assert (entry in device.provenance) == (getattr(device, entry) is not None) == (entry not in device.missing)
    for entry in ("read_latency", "read_throughput", "write_latency", "write_throughput", "power", "block", "duplex"):
        assert f"tiers[0].{entry}" in device.provenance
    assert device.tier("flash").block == 512
    assert not device.tier("flash").duplex


def test_power_of_the_mkr1000s_card_is_flagged():
    assert "ten times" in Device.load("mkr1000").provenance["tiers[0].power"]


def test_energy_is_power_times_time_where_one_source_gave_both():
    for name in ("mkr1000", "nrf52840", "rpi4b-nocache"):
        device = Device.load(name)
        assert device.op_joules(1e6, None) == pytest.approx(device.op_seconds(1e6, None) * device.compute_power)


def test_a_device_without_speed_says_so():
    device = Device.load("jetson-tx2")
    with pytest.raises(DeviceError, match=r"'jetson-tx2' has no flops_per_second.*dataclasses.replace"):
        formulate(legacy.graph("linear"), device)
    with pytest.raises(DeviceError, match="flops_per_second"):
        device.op_joules(1.0, None)
    assert device.op_joules(1.0, seconds=2.0) == pytest.approx(2 * 0.766)
    given_speed = replace(device, flops_per_second=1e9)
    assert given_speed.op_joules(1e9, None) == pytest.approx(0.766)


def test_a_device_without_energy_says_so():
    with pytest.raises(DeviceError, match="flops_per_joule"):
        Device("bare", flops_per_second=1.0).op_joules(1.0, None)


def test_transfers_are_whole_blocks():
    flash = Device.load("nrf52840").tier("flash")
    assert [flash.stored(size) for size in (0, 1, 512, 513)] == [0, 512, 512, 1024]
    assert flash.read_seconds(513) == flash.read_latency + 1024 / flash.read_throughput
    assert flash.write_seconds(513) == flash.write_latency + 1024 / flash.write_throughput


@pytest.mark.property
@given(st.integers(0, 2**40), st.integers(1, 4096), st.sampled_from([1.0, 0.5, 0.25, 0.125]))
def test_stored_bytes_are_the_least_blocks_that_hold_the_copy(size, block, ratio):
    stored = Tier("t", 0.0, 1.0, 0.0, 1.0, block=block, ratio=ratio).stored(size)
    assert stored % block == 0
    assert stored - block < size * ratio <= stored


def test_loads_what_it_wrote(tmp_path):
    device = Device.load("rpi4b")
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(device.to_json()), encoding="utf-8")
    again = Device.load(path)
    assert again == device
    assert again.provenance == device.provenance


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is not JSON"),
        ("[]", "has the schema .*got 'list'"),
        ('{"schema": "other/1"}', "got 'other/1'"),
        (json.dumps({"schema": SCHEMA, "name": "x", "speed": 1}), "unknown entries in a device profile: speed"),
        (json.dumps({"schema": SCHEMA}), "not a device profile"),
        (json.dumps({"schema": SCHEMA, "name": "x", "ram": -1}), "ram of device 'x' must be finite and positive"),
        (json.dumps({"schema": SCHEMA, "name": "x", "tiers": [{"name": "flash"}]}), "not a device profile"),
    ],
)
def test_refuses_files_that_are_no_profile(tmp_path, content, says):
    path = tmp_path / "device.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DeviceError, match=says):
        Device.load(path)


def test_names_the_devices_that_exist():
    with pytest.raises(DeviceError, match="no device 'esp32': give one of jetson-tx2, mkr1000, nrf52840"):
        Device.load("esp32")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"read_latency": -1.0}, "read_latency of tier 't' must be finite and not negative, got -1.0"),
        ({"write_latency": float("nan")}, "write_latency"),
        ({"write_throughput": 0.0}, "write_throughput of tier 't' must be positive, got 0.0"),
        ({"ratio": 0.0}, "ratio of tier 't' must be positive"),
        ({"block": 0}, "a block of at least 1 byte"),
        ({"capacity": -1}, "a capacity of at least 0"),
    ],
)
def test_refuses_impossible_tiers(change, says):
    with pytest.raises(DeviceError, match=says):
        replace(Tier("t", 0.0, 1.0, 0.0, 1.0), **change)


def test_tiers_need_names_of_their_own():
    tier = Tier("flash", 0.0, 1.0, 0.0, 1.0)
    with pytest.raises(DeviceError, match="different names"):
        Device("d", tiers=(tier, tier))
    with pytest.raises(DeviceError, match="other than 'ram'"):
        Device("d", tiers=(replace(tier, name="ram"),))
    with pytest.raises(DeviceError, match="device 'd' has no tier 'disk'; it has 'flash'"):
        Device("d", tiers=(tier,)).tier("disk")
    with pytest.raises(DeviceError, match="it has none"):
        Device("d").tier("disk")

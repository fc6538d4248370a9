"""Profiling: fits of planted figures from a clock that is not real, and plausible figures from the machine."""

import math
import os
import sys

import jaxtyping
import pytest
from hypothesis import given
from hypothesis import strategies as st

from poet import profiling
from poet.device import DeviceError
from poet.graph import chain
from poet.paging_file import ALIGNMENT, PagingFile
from poet.problem import formulate
from poet.profiling import Transfer, fit_transfer, profile_device, time_flops, time_median, time_transfers

latencies = st.floats(1e-6, 1e-2)
throughputs = st.floats(1e6, 1e11)


class Machine:
    """A clock that only work advances."""

    def __init__(self, latency=0.0, throughput=1.0):
        self.now, self.line = 0.0, Transfer(latency, throughput)
        self.calls = []

    def clock(self):
        return self.now

    def transfer(self, size):
        self.calls.append(size)
        self.now += self.line.seconds(size)


@pytest.mark.property
@given(latencies, throughputs)
def test_a_fit_recovers_what_was_planted(latency, throughput):
    line = Transfer(latency, throughput)
    fit = fit_transfer(profiling.SIZES, [line.seconds(size) for size in profiling.SIZES])
    for size in profiling.SIZES:
        assert fit.seconds(size) == pytest.approx(line.seconds(size), rel=1e-9)
    # a part of the time that is a thousandth at every size is only known to a thousandth of that
    assert fit.latency == pytest.approx(latency, rel=1e-6, abs=1e-9 * line.seconds(profiling.SIZES[0]))


def test_transfers_of_a_machine_without_noise():
    machine = Machine(3e-4, 5e7)
    fit = time_transfers(machine.transfer, 1.0, machine.clock)
    assert fit.latency == pytest.approx(3e-4, rel=1e-6)
    assert fit.throughput == pytest.approx(5e7, rel=1e-6)
    assert set(machine.calls) == set(profiling.SIZES)


def test_slow_machines_get_fewer_sizes_and_the_same_fit():
    machine = Machine(1e-3, 1e4)
    fit = time_transfers(machine.transfer, 1.0, machine.clock)
    assert set(machine.calls) == set(profiling.SIZES[:2])
    assert (fit.latency, fit.throughput) == (pytest.approx(1e-3, rel=1e-3), pytest.approx(1e4))


def test_no_slower_for_more_bytes():
    fit = fit_transfer([10, 1000], [2.0, 1.0])
    assert fit == Transfer(0.0, 1000.0)


def test_a_fit_has_no_negative_latency():
    sizes, seconds = [1000, 2000, 3000], [0.9, 2.0, 3.1]  # a plain line would start at -0.2
    fit = fit_transfer(sizes, seconds)
    rates = [size / time for size, time in zip(sizes, seconds, strict=True)]
    assert fit.latency == 0
    assert fit.throughput == pytest.approx(sum(rate**2 for rate in rates) / sum(rates))


def test_medians_do_not_count_the_first_call_or_an_outlier():
    durations = iter([100.0, 1.0, 1.0, 50.0, 1.0, 1.0, 1.0, 1.0])
    machine = Machine()

    def run():
        machine.now += next(durations)

    assert time_median(run, 54.5, machine.clock) == 1.0
    assert next(durations, None) == 1.0  # it stopped when the time was over, not when there was nothing left


def test_three_repeats_even_when_there_is_no_time():
    machine = Machine(5.0)
    time_median(lambda: machine.transfer(0), 1e-9, machine.clock)
    assert len(machine.calls) == 1 + 3


@pytest.mark.parametrize("speed", [1e6, 1e9, 1e12, 1e15])
def test_flops_of_a_machine_without_noise(speed):
    machine = Machine()
    sides = []

    def product(side):
        sides.append(side)
        return lambda: setattr(machine, "now", machine.now + 2 * side**3 / speed)

    assert time_flops(product, 0.1, machine.clock) == pytest.approx(speed, rel=1e-6)
    assert sides[-1] == 4096 or 2 * sides[-1] ** 3 / speed >= 0.02
    assert sides == [64 << i for i in range(len(sides))]


def test_one_transfer_after_another():
    both = Transfer(0.1, 100.0).after(Transfer(0.2, 50.0))
    for size in (0, 1000):
        assert both.seconds(size) == pytest.approx(0.3 + size / 100 + size / 50)


@pytest.mark.parametrize(
    ("sizes", "seconds"),
    [([1], [1.0]), ([1, 1], [1.0, 1.0]), ([1, 2], [1.0]), ([1, 2], [0.0, 1.0])],
)
def test_fits_that_cannot_be(sizes, seconds):
    with pytest.raises(ValueError, match="give positive durations of two sizes or more"):
        fit_transfer(sizes, seconds)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    device = profile_device(folder, 0.1, tiers=("host", "disk"))
    return device, list(folder.iterdir())


def test_the_machine_at_hand_is_plausible(measured):
    device, left = measured
    assert left == []
    assert device.flops_per_second is not None
    assert 0 < device.flops_per_second < math.inf
    assert device.ram is None or device.ram > 2**20
    assert [tier.name for tier in device.tiers] == ["host", "disk"]
    for tier in device.tiers:
        for number in (tier.read_throughput, tier.write_throughput):
            assert 0 < number < math.inf
        for number in (tier.read_latency, tier.write_latency):
            assert 0 <= number < math.inf
    assert device.tier("disk").capacity is not None
    assert device.tier("disk").block >= 1


def test_energy_is_said_to_be_missing(measured):
    device, _ = measured
    assert set(device.missing) == {"flops_per_joule", "compute_power", "tiers[0].power", "tiers[1].power"}
    assert all(entry in device.provenance for entry in (*device.missing, "tiers[0]", "tiers[1]", "flops_per_second"))
    graph = chain("one", [4])
    assert formulate(graph, device, objective="time").baseline_seconds == 1 / device.flops_per_second
    with pytest.raises(DeviceError, match="flops_per_joule"):
        formulate(graph, device)


def test_the_disk_alone_by_default_and_without_torch(tmp_path, monkeypatch):
    monkeypatch.setattr(profiling.importlib.util, "find_spec", lambda name: None)
    device = profile_device(tmp_path, 0.02)
    assert [tier.name for tier in device.tiers] == ["disk"]
    assert "NumPy" in device.provenance["flops_per_second"]


def test_nothing_to_do_but_the_product(tmp_path):
    assert profile_device(tmp_path, 0.02, tiers=()).tiers == ()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"seconds": 0.0}, "seconds must be positive and finite, got 0.0"),
        ({"seconds": math.inf}, "seconds must be positive and finite"),
        ({"device": "tpu"}, "device must be 'cpu' or 'cuda', got 'tpu'"),
        ({"tiers": ("flash",)}, "tiers that can be measured are 'host' and 'disk'"),
        ({"page_dir": "absent/folder"}, "page_dir must be an existing folder, got 'absent/folder': make it first"),
    ],
)
def test_refuses(options, says, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # our own messages
    with pytest.raises(ValueError, match=says):
        profile_device(**options)


def test_cuda_that_is_not_there():
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(ValueError, match="torch sees no CUDA device: use device='cpu'"):
        profile_device(device="cuda")


def test_a_paging_file_gives_back_what_it_wrote(tmp_path):
    path = tmp_path / "pages"
    with PagingFile(path, 4 * ALIGNMENT) as file:
        file.write(4 * ALIGNMENT)
        file.read(4 * ALIGNMENT)
        file.write(4 * ALIGNMENT)  # what was read
    content = path.read_bytes()
    assert len(content) == 4 * ALIGNMENT
    assert len(set(content)) == 256  # nothing that a disk could compress
    with PagingFile(tmp_path / "other", 4 * ALIGNMENT) as file:
        file.write(4 * ALIGNMENT)
    assert (tmp_path / "other").read_bytes() == content


def test_a_file_that_ends_too_early(tmp_path):
    with PagingFile(tmp_path / "pages", 4 * ALIGNMENT) as file:
        file.write(ALIGNMENT)
        with pytest.raises(OSError, match=f"ended after {ALIGNMENT} of {2 * ALIGNMENT} bytes"):
            file.read(2 * ALIGNMENT)


def test_file_systems_without_direct_transfers(tmp_path, monkeypatch):
    real = os.open

    def refuse(path, flags, *rest):
        if flags & direct:
            raise OSError(22, "Invalid argument")
        return real(path, flags, *rest)

    direct = getattr(os, "O_DIRECT", 0x4000)
    monkeypatch.setattr(os, "O_DIRECT", direct, raising=False)
    monkeypatch.setattr(os, "open", refuse)
    with PagingFile(tmp_path / "pages", ALIGNMENT) as file:
        file.write(ALIGNMENT)
        file.read(ALIGNMENT)
        assert file.method == "dropped from the page cache before each read"


def test_file_systems_that_accept_the_flag_and_refuse_the_transfer(tmp_path, monkeypatch):
    real, calls = os.pwritev, []

    def refuse_once(*arguments):
        calls.append(None)
        if len(calls) == 1:
            raise OSError(22, "Invalid argument")
        return real(*arguments)

    monkeypatch.setattr(os, "pwritev", refuse_once)
    with PagingFile(tmp_path / "pages", ALIGNMENT) as file:
        file.write(ALIGNMENT)
    assert "cache" in file.method
    assert len(calls) == 2


@pytest.mark.parametrize("size", [0, 1000, ALIGNMENT + 1])
def test_sizes_that_cannot_be_direct(tmp_path, size):
    with pytest.raises(ValueError, match=f"a positive multiple of {ALIGNMENT}, got {size}"):
        PagingFile(tmp_path / "pages", size)


@pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's")
def test_memory_of_this_process():
    assert 2**20 < profile_device(seconds=0.001, tiers=()).ram < 2**50

"""Shaped links and measured ones: token buckets against closed forms, namespaces that leave nothing, fits of lines."""

import subprocess

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmesh_reshard import Host, Nic, Topology
from xmesh_reshard.transports.buckets import BucketChannel, Ports
from xmesh_reshard.transports.channels import Done
from xmesh_reshard.transports.errors import TransportError
from xmesh_reshard.transports.measuring import fit_line
from xmesh_reshard.transports.shaping import Namespaces, why_no_namespaces


def hosts(*rates):
    return Topology(tuple(Host(f"h{k}", (k,), (Nic(float(up), float(down)),)) for k, (up, down) in enumerate(rates)))


@pytest.mark.property
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(1, 50)), min_size=1, max_size=40))
def test_no_port_carries_more_than_its_rate_and_the_busiest_is_never_idle(tmp_path_factory, chunks):
    """Sends at time 0: the last end is at least the load of the busiest port, and each port's ends keep its rate."""
    topology = hosts((10, 20), (20, 10), (5, 40), (40, 5))
    file = tmp_path_factory.mktemp("ports") / "ports"
    out, into, ends = np.zeros(4), np.zeros(4), []
    with Ports.make(file, topology, clock=lambda: 0.0) as ports:
        for a, b, n in chunks:
            out[a] += n / topology.hosts[a].up
            into[b] += n / topology.hosts[b].down
            ends.append(ports.reserve(a, b, n))
            assert ends[-1] >= max(out[a], into[b]) * (1 - 1e-12)
    assert max(ends) >= max(out.max(), into.max()) * (1 - 1e-12)
    assert max(ends) <= (out.sum() + into.sum()) * (1 + 1e-12)


def test_one_sender_to_many_and_many_to_one(tmp_path):
    topology = hosts((10, 10), (10, 10), (10, 10))
    with Ports.make(tmp_path / "a", topology, clock=lambda: 0.0) as ports:
        assert [ports.reserve(0, 1, 10), ports.reserve(0, 2, 10)] == [1.0, 2.0]  # one port out
    with Ports.make(tmp_path / "b", topology, clock=lambda: 0.0) as ports:
        assert [ports.reserve(0, 2, 10), ports.reserve(1, 2, 10)] == [1.0, 2.0]  # one port in
    with Ports.make(tmp_path / "c", topology, clock=lambda: 0.0) as ports:
        assert [ports.reserve(0, 1, 10), ports.reserve(1, 0, 10)] == [1.0, 1.0]  # both ways at once


def test_a_late_sender_does_not_lose_what_it_needed_to_wake_up(tmp_path):
    times = iter([0.0, 1.002, 5.0])
    with Ports.make(tmp_path / "ports", hosts((10, 10), (10, 10)), lambda: next(times), slack=0.003) as ports:
        ends = [ports.reserve(0, 1, 10) for _ in range(3)]
    assert ends == [1.0, 2.0, 5.997]


class Recorder:
    def __init__(self):
        self.calls = []

    def isend(self, target, buffer, tag):
        self.calls.append((target, len(buffer), tag))
        return Done()


def test_sends_inside_a_host_take_no_port(tmp_path):
    topology = Topology.uniform(2, 2, nic=1.0)  # one byte a second: a send between hosts would be noticed
    with Ports.make(tmp_path / "ports", topology) as ports:
        recorder = Recorder()
        BucketChannel(recorder, 0, ports, topology).isend(1, bytes(1000), 7).wait()
        assert ports.reserve(0, 1, 0) < ports.reserve(0, 1, 1) + 1e9
    assert recorder.calls == [(1, 1000, 7)]


def test_two_handles_share_one_file(tmp_path):
    topology = hosts((10, 10), (10, 10))
    with (
        Ports.make(tmp_path / "ports", topology, lambda: 0.0) as one,
        Ports(tmp_path / "ports", topology, lambda: 0.0) as two,
    ):
        assert [one.reserve(0, 1, 10), two.reserve(0, 1, 10), one.reserve(0, 1, 10)] == [1.0, 2.0, 3.0]


def links():
    return subprocess.run(["ip", "-br", "link"], capture_output=True, text=True, check=True).stdout


def test_namespaces_have_the_rates_and_leave_nothing():
    if (reason := why_no_namespaces()) is not None:
        pytest.skip(reason)
    before = links()
    with Namespaces(Topology.uniform(3, 1, nic="100Mbit")) as spaces:
        assert links() == before  # the maker itself stays outside
        assert len({spaces.address(h) for h in range(3)}) == 3
    assert links() == before


def test_namespaces_are_refused_with_the_reason(monkeypatch):
    monkeypatch.setattr("xmesh_reshard.transports.shaping.why_no_namespaces", lambda: "no tool")
    with pytest.raises(TransportError, match="no tool; use links='bucket'"):
        Namespaces(Topology.uniform(2, 1))


@pytest.mark.property
@given(st.floats(0, 1e-2), st.floats(1e3, 1e12), st.lists(st.integers(0, 2**30), min_size=4, max_size=9, unique=True))
def test_exact_times_give_back_the_line(alpha, rate, sizes):
    times = [alpha + n / rate + 1e-9 for n in sizes]
    fit = fit_line(sizes, times)
    largest = max(times)
    assert all(
        abs(fit.alpha + n / fit.rate - t) <= 1e-6 * largest for n, t in zip(fit.sizes, sorted(times), strict=True)
    )
    assert fit.error <= 1e-3


def test_a_disturbed_time_of_the_small_and_of_the_large_does_not_matter():
    sizes = [0, 10, 20, 40, 1000, 2000, 4000]
    times = [1 + n / 100 for n in sizes]
    times[1], times[5] = 17.0, 300.0
    fit = fit_line(sizes, times)
    assert fit.alpha == pytest.approx(1.0)
    assert fit.rate == pytest.approx(100.0)


def test_links_with_a_burst_show_their_lasting_rate():
    sizes = [0, 1000, 10_000, 100_000, 200_000, 400_000]
    times = [1e-4 + max(n - 50_000, 0) / 1e6 for n in sizes]  # 50 kB pass at once
    fit = fit_line(sizes, times)
    assert fit.rate == pytest.approx(1e6)
    assert fit.alpha == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize(
    ("sizes", "times"), [([1], [1.0]), ([1, 1], [1.0, 2.0]), ([1, 2], [0.0, 1.0]), ([1, 2], [1.0])]
)
def test_fits_that_make_no_sense(sizes, times):
    with pytest.raises(ValueError, match="two different sizes"):
        fit_line(sizes, times)

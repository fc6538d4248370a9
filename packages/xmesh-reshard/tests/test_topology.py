"""Networks: quantities, files, and what is refused."""

import json
import math

import pytest
import yaml

from xmesh_reshard import Host, Layout, Mesh, Nic, Topology, TopologyError, quantities


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("10Gbit", 1.25e9),
        ("400 Gbit/s", 5e10),
        ("100GB/s", 1e11),
        ("1MiB/s", 2**20),
        ("8bit", 1.0),
        ("inf", math.inf),
        (3, 3.0),
    ],
)
def test_rates(text, value: float) -> None:
    assert quantities.rate(text) == value


def test_sizes_and_times() -> None:
    assert [quantities.size(t) for t in ("64KiB", "1.5GB", "10", 7)] == [65536, 1_500_000_000, 10, 7]
    assert [quantities.seconds(t) for t in ("20us", "3 µs", "1.5ms", 0)] == pytest.approx([2e-5, 3e-6, 1.5e-3, 0])


@pytest.mark.parametrize("bad", ["10", "fast", "10Xbit", 0, -1.0, "0bit", float("nan")])
def test_bad_rates(bad) -> None:
    with pytest.raises(ValueError, match="rate"):
        quantities.rate(bad)


@pytest.mark.parametrize("bad", ["10GHz", -1, float("inf"), "ten"])
def test_bad_sizes_and_times(bad) -> None:
    with pytest.raises(ValueError, match="size"):
        quantities.size(bad)
    with pytest.raises(ValueError, match="time"):
        quantities.seconds(bad)


def test_a_file_says_the_same(tmp_path) -> None:
    made = Topology(
        (
            Host("a", (0, 1), (Nic(1e9, 2e9), Nic(1e9, 1e9)), 1e11, "r1"),
            Host("b", (2,), (Nic(5e8, 5e8),)),
        ),
        alpha=1e-5,
        local_alpha=1e-6,
        racks={"r1": 1.5e9},
        core=2e9,
    )
    for name, dump in (("t.yaml", yaml.safe_dump), ("t.json", json.dumps)):
        (tmp_path / name).write_text(dump(made.to_dict()))
        assert Topology.load(tmp_path / name) == made


def test_a_short_file(tmp_path) -> None:
    (tmp_path / "t.yaml").write_text("hosts: 4\ndevices: 8\nnic: 10Gbit\nlocal: 100GB/s\nalpha: 20us\n")
    assert Topology.load(tmp_path / "t.yaml") == Topology.uniform(4, 8, nic="10Gbit", local="100GB/s", alpha="20us")
    (tmp_path / "t.yaml").write_text(
        "hosts:\n- devices: [0, 1]\n  nic: 10Gbit\n  nics: 2\n- {devices: [2], nics: [1Gbit]}\n"
    )
    assert [host.up for host in Topology.load(tmp_path / "t.yaml").hosts] == [2.5e9, 1.25e8]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("hosts: 2\n", "devices"),
        ("hosts: [{nic: 1Gbit}]\n", "devices"),
        ("hosts: 2\ndevices: 2\nnick: 1Gbit\n", "unknown key 'nick'"),
        ("hosts: 2\ndevices: 2\nnic: 0\n", "above zero"),
        ("hosts: [{devices: [0], nic: 1Gbit}, {devices: [0], nic: 1Gbit}]\n", "on one host"),
        ("hosts: [{devices: [0], nics: []}]\n", "no network card"),
        ("- 1\n", "mapping"),
        ("hosts: [", "not YAML"),
        ("hosts: [{devices: [0], nic: 1Gbit}]\nracks: {x: 1Gbit}\n", "rack 'x'"),
    ],
)
def test_bad_files(tmp_path, text: str, says: str) -> None:
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(ValueError, match=says):
        Topology.load(tmp_path / "t.yaml")


def test_devices_that_no_host_has_are_named() -> None:
    with pytest.raises(TopologyError, match=r"\[4, 5\]"):
        Topology.uniform(2, 2).require([Layout.sharded((2,), "int8", Mesh.grid((2,), first=4), (0,))])

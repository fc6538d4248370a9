"""Files of transfers: all forms, and errors that name the place."""

import json

import numpy as np
import pytest

from xmesh_reshard import Layout, Mesh
from xmesh_reshard.specs import SpecError, load_transfers, parse_transfers

TEXT = """
topology: {hosts: 4, devices: 2, nic: 10Gbit, alpha: 20us}
defaults: {dtype: bfloat16, source: {mesh: [4], spec: [0]}}
tensors:
  embedding:
    shape: [1024, 256]
    target: {mesh: [2, 2], first: 4, axes: [replica, tensor], spec: [tensor]}
  layers.{0..79}.w{1..2}:
    shape: [256, 256]
    target: {devices: [[4, 5], [6, 7]], spec: RS1, dtype: float8_e4m3fn}
  bias:
    shape: [10]
    source: {boxes: {0: [[0, 10]]}}
    target: {boxes: {4: [[0, 5]], 5: [[5, 10]]}}
    count: 3
  scalar: {shape: [], source: {mesh: [1]}, target: {mesh: [2], first: 6}}
"""


def test_all_forms(tmp_path):
    file = tmp_path / "refit.yaml"
    file.write_text(TEXT)
    case = load_transfers(file)
    assert case.name == "refit"
    assert len(case.topology.hosts) == 4
    assert case.topology.alpha == pytest.approx(2e-5)
    assert len(case.transfers) == 1 + 160 + 3 + 1
    assert [*case.transfers][:3] == ["embedding", "layers.0.w1", "layers.0.w2"]
    first = Layout.sharded((1024, 256), "bfloat16", Mesh.grid((4,)), (0,))
    fleet = Mesh.grid((2, 2), ("replica", "tensor"), first=4)
    assert case.transfers["embedding"].source == first
    assert case.transfers["embedding"].target == Layout.sharded((1024, 256), "bfloat16", fleet, ("tensor",))
    last = case.transfers["layers.79.w2"].target
    assert last == Layout.sharded((256, 256), "float8_e4m3fn", Mesh(np.array([[4, 5], [6, 7]])), "RS1")
    assert case.transfers["bias.2"].target.slices(5) == (slice(5, 10),)
    assert case.transfers["scalar"].target.shape == ()


def test_json_and_a_topology_of_its_own_file(tmp_path):
    (tmp_path / "net.yaml").write_text("hosts: 2\ndevices: 1\nnic: 1GB\n")
    entry = {"shape": [4], "source": {"mesh": [1]}, "target": {"mesh": [1], "first": 1}}
    (tmp_path / "a.json").write_text(json.dumps({"topology": "net.yaml", "tensors": {"w": entry}}))
    assert load_transfers(tmp_path / "a.json").topology.hosts[1].up == 1e9
    assert load_transfers(tmp_path / "a.json").transfers["w"].source.dtype == "float32"


GOOD = {
    "topology": {"hosts": 2, "devices": 1, "nic": "1GB"},
    "tensors": {"w": {"shape": [4], "source": {"mesh": [1]}, "target": {"mesh": [1], "first": 1}}},
}


def with_tensor(**changes):
    entry = {**GOOD["tensors"]["w"], **changes}
    return GOOD | {"tensors": {"w": {key: value for key, value in entry.items() if value is not None}}}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "the file: expected a mapping of keys to values; got nothing"),
        (GOOD | {"tensor": {}}, "the file: unknown key 'tensor'"),
        (GOOD | {"tensors": {}}, "tensors: name at least one"),
        (GOOD | {"tensors": [1]}, "tensors: expected a mapping"),
        (GOOD | {"topology": {"hosts": 2}}, "topology: a topology file needs the key 'devices'"),
        (GOOD | {"topology": {"hosts": 2, "devices": 1, "nic": "fast"}}, "topology: cannot read the rate 'fast'"),
        (GOOD | {"topology": "nowhere.yaml"}, "topology: cannot read the file 'nowhere.yaml'"),
        (
            GOOD | {"topology": {"hosts": 1, "devices": 1}},
            "topology: no host of the topology holds the devices \\[1\\]",
        ),
        (GOOD | {"defaults": {"mesh": 1}}, "defaults: unknown key 'mesh'"),
        (with_tensor(shape=None), "tensors.w: the key 'shape' is missing"),
        (with_tensor(shape=4), "tensors.w.shape: expected a list; got 4"),
        (with_tensor(shape=[4, -1]), "tensors.w.shape: expected a whole number from 0 up; got -1"),
        (with_tensor(shape=[True]), "tensors.w.shape: expected a whole number from 0 up; got True"),
        (with_tensor(dtype="float33"), "tensors.w.source: unknown dtype 'float33'"),
        (with_tensor(shapes=[4]), "tensors.w: unknown key 'shapes'"),
        (with_tensor(count=-1), "tensors.w.count: expected a whole number"),
        (with_tensor(source={"mesh": [1], "spec": "S1"}), "tensors.w.source: .*mesh axis 1"),
        (with_tensor(source={"mesh": [1], "spec": ["x"]}), "tensors.w.source: .*'x'"),
        (with_tensor(source={"mesh": [1], "spec": 3}), "tensors.w.source.spec: expected a list; got 3"),
        (with_tensor(source={"mesh": [0]}), "tensors.w.source: a mesh needs at least one device"),
        (with_tensor(source={"mesh": [1], "devices": [0]}), "tensors.w.source: give either 'mesh'"),
        (with_tensor(source={}), "tensors.w.source: give either 'mesh'"),
        (with_tensor(source={"devices": [0], "first": 1}), "tensors.w.source: 'first' goes with 'mesh'"),
        (with_tensor(source={"devices": [[0], [1, 2]]}), "tensors.w.source: "),
        (with_tensor(source={"boxes": {0: [[0, 9]]}}), "tensors.w.source: device 0 has the box"),
        (with_tensor(source={"boxes": {0: [[0, 1, 2]]}}), "tensors.w.source.boxes.0: a box has a pair"),
        (with_tensor(source={"boxes": {"a": [[0, 4]]}}), "tensors.w.source.boxes: expected a whole number"),
        (with_tensor(source={"boxes": {0: [[0, 4]]}, "mesh": [1]}), "tensors.w.source: 'boxes' says all"),
    ],
)
def test_errors_name_the_place(data, message, tmp_path):
    with pytest.raises(SpecError, match=message):
        parse_transfers(data, tmp_path)


def test_names():
    tensor = GOOD["tensors"]["w"]
    for names, message in (
        ({"w{0..1": tensor}, "tensors.w{0..1: cannot read the name"),
        ({"w{a..b}": tensor}, "cannot read the name"),
        ({"w{0..1}": tensor | {"count": 2}}, "exclude each other"),
        ({"w{0..3}": tensor, "w2": tensor}, "the tensor 'w2' is there already"),
        ({"w{0..9999999}": tensor}, "more than 1000000 tensors"),
    ):
        with pytest.raises(SpecError, match=message):
            parse_transfers(GOOD | {"tensors": names})
    made = parse_transfers(GOOD | {"tensors": {"a{8..10}b{0..1}": tensor}})
    assert [*made.transfers] == ["a8b0", "a8b1", "a9b0", "a9b1", "a10b0", "a10b1"]


def test_bad_files(tmp_path):
    with pytest.raises(SpecError, match="no such file"):
        load_transfers(tmp_path / "x.yaml")
    (tmp_path / "x.yaml").write_text("tensors: {")
    with pytest.raises(SpecError, match=r"x.yaml: not readable as YAML or JSON"):
        load_transfers(tmp_path / "x.yaml")
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="not readable"):
        load_transfers(tmp_path / "x.yaml")
    (tmp_path / "x.yaml").write_text("!!python/object/apply:os.getcwd []")
    with pytest.raises(SpecError, match="not readable as YAML"):
        load_transfers(tmp_path / "x.yaml")
    (tmp_path / "x.yaml").write_text("topology: 3\ntensors: {}")
    with pytest.raises(SpecError, match=r"x.yaml: topology: expected a mapping"):
        load_transfers(tmp_path / "x.yaml")

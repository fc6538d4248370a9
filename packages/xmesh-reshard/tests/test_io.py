"""Plans come back from files to the last bit, and bad files are refused with a reason."""

import hashlib
import json
from dataclasses import fields

import numpy as np
import pytest

from xmesh_reshard import Layout, Mesh, Topology, plan
from xmesh_reshard.assembling import assemble
from xmesh_reshard.baselines import PLANS
from xmesh_reshard.cases import multi_host_case
from xmesh_reshard.io import FormatError, load_plan, plan_from_json, plan_to_json, save_plan
from xmesh_reshard.plans import Tables


def same(a, b):
    assert a.hash() == b.hash()
    assert [g.names for g in a.groups] == [g.names for g in b.groups]
    assert all(x.transfer == y.transfer for x, y in zip(a.groups, b.groups, strict=True))
    assert (a.topology, a.notes) == (b.topology, b.notes)
    assert np.array([a.makespan, a.lower_bound]).tobytes() == np.array([b.makespan, b.lower_bound]).tobytes()
    for entry in fields(Tables):
        one, two = getattr(a.tables, entry.name), getattr(b.tables, entry.name)
        assert (one.dtype, one.shape, one.tobytes()) == (two.dtype, two.shape, two.tobytes()), entry.name


@pytest.mark.property
@pytest.mark.parametrize("seed", range(12))
def test_plans_come_back(seed, tmp_path, random_layout, random_topology):
    rng = np.random.default_rng(seed)
    topology = random_topology(rng, mixed=bool(seed % 2))
    devices = np.array(sorted(topology.host_of))
    transfers = {}
    for k in range(int(rng.integers(0, 4))):
        shape = tuple(int(n) for n in rng.integers(0, 9, int(rng.integers(0, 4))))
        transfers[f"t{k} – ä"] = (random_layout(rng, shape, devices), random_layout(rng, shape, devices))
    made = plan(transfers, topology)
    made.save(tmp_path / "deep" / "plan.json")
    same(load_plan(tmp_path / "deep" / "plan.json"), made)


@pytest.mark.parametrize("name", PLANS)
def test_baselines_come_back(name, tmp_path):
    case = multi_host_case(4, scale=32, alpha=1e-5)
    made = PLANS[name](case.transfers, case.topology)
    save_plan(made, tmp_path / "plan.json")
    same(load_plan(tmp_path / "plan.json"), made)


def test_a_plan_without_time(tmp_path):
    made = assemble({}, Topology.uniform(1, 1, local="inf"), [])
    save_plan(made, tmp_path / "plan.json")
    back = load_plan(tmp_path / "plan.json")
    assert np.isnan(back.makespan)
    same(back, made)


def test_casts_and_many_tensors_are_kept(tmp_path):
    old = Layout.sharded((8, 4), "float32", Mesh.grid((2,)), "S0R")
    new = Layout.sharded((8, 4), "bfloat16", Mesh.grid((2,), first=2), "RS0")
    made = plan({f"layer.{k}": (old, new) for k in range(100)}, Topology.uniform(4, 1), cast=True)
    save_plan(made, tmp_path / "plan.json")
    same(load_plan(tmp_path / "plan.json"), made)
    assert len(json.loads((tmp_path / "plan.json").read_text())["layouts"]) == 2


@pytest.fixture
def content():
    case = multi_host_case(3, scale=64)
    return json.loads(json.dumps(plan_to_json(plan(case.transfers, case.topology))))


def refused(content, message, *, resign=True):
    if resign:  # somebody who changes the file and knows how to sum it
        rest = {key: value for key, value in content.items() if key != "digest"}
        content["digest"] = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    with pytest.raises(FormatError, match=message):
        plan_from_json(content)


def test_every_changed_number_is_noticed(content):
    for key in ("makespan", "lower_bound"):
        changed = json.loads(json.dumps(content))
        changed[key] = np.nextafter(changed[key], 1)
        refused(changed, "does not match its digest", resign=False)
    for name in content["tables"]:
        changed = json.loads(json.dumps(content))
        column = changed["tables"][name]
        column.append(column[0] if column else 0)
        refused(changed, "does not match its digest", resign=False)


def test_files_that_do_not_agree_with_themselves(content):
    def changed(name, edit):
        copy = json.loads(json.dumps(content))
        edit(copy["tables"][name])
        return copy

    hops, messages = len(content["tables"]["hop_source"]), len(content["tables"]["nbytes"])
    refused(changed("hop_target", list.pop), f"column hop_target has {hops - 1} entries; {hops} belong there")
    refused(changed("chunk", list.pop), f"column chunk has {messages - 1} entries; {messages} belong there")
    refused(changed("piece_ptr", list.pop), f"column piece_ptr has {messages} entries; {messages + 1} belong there")
    refused(changed("hop_ptr", lambda c: c.__setitem__(1, hops + 1)), "column hop_ptr does not divide")
    refused(changed("piece_ptr", lambda c: c.__setitem__(-1, 9)), "column piece_ptr does not divide")
    refused(changed("hop_target", lambda c: c.__setitem__(0, 99)), "an unknown device")
    refused(changed("piece_group", lambda c: c.__setitem__(0, 1)), "a piece of an unknown tensor")
    refused(changed("piece_last", lambda c: c.__setitem__(0, 2)), "a piece of an unknown tensor")
    refused(changed("chunk", lambda c: c.__setitem__(0, 0)), "an empty chunk")
    refused(changed("nbytes", lambda c: c.__setitem__(0, "many")), "not a plan: ")
    refused(changed("nbytes", lambda c: c.__setitem__(0, c[0] + 4)), "hash is not that of its content")
    refused(changed("piece_lower", lambda c: c.__setitem__(0, [0])), "not a plan: ")
    for key in ("topology", "layouts", "groups", "hash", "makespan"):
        copy = {k: v for k, v in content.items() if k != key}
        refused(copy, f"lacks the entry '{key}'")
    refused(content | {"groups": [{"names": ["x"], "source": 0, "target": 7}]}, "a layout that is not in the file")
    refused(content | {"topology": {"hosts": []}}, "not a plan: a topology has at least one host")
    refused(content | {"schema": "repertory.xmesh-reshard.plan/2"}, "not a plan of this version")
    refused(content | {"tables": {}}, "lacks the entry 'hop_ptr'")


def test_bad_files(tmp_path, content):
    file = tmp_path / "plan.json"
    with pytest.raises(FormatError, match="no such file"):
        load_plan(file)
    text = json.dumps(content)
    for bad, message in (
        (text[:-40], "not readable as JSON"),
        ("[]", "not a repertory.xmesh-reshard.plan file"),
        ('{"schema": "other/1"}', "not a repertory.xmesh-reshard.plan file"),
        (text.replace("plan/1", "plan/7"), "written by a newer version"),
        (text.replace('"lower_bound"', '"lower bound"'), "plan.json: the content does not match its digest"),
    ):
        file.write_text(bad)
        with pytest.raises(FormatError, match=message):
            load_plan(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(FormatError, match=r"plan.json: not readable as JSON"):
        load_plan(file)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    case = multi_host_case(1, scale=64)
    made = plan(case.transfers, case.topology)
    save_plan(made, tmp_path / "plan.json")
    before = (tmp_path / "plan.json").read_bytes()

    def full(*_):
        raise OSError(28, "no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        save_plan(made, tmp_path / "plan.json")
    assert (tmp_path / "plan.json").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]

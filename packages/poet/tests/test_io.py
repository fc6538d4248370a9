"""Files: exact round trips, and messages for everything that is not such a file."""

import copy
import json
from dataclasses import replace

import jaxtyping
import pytest
from hypothesis import given
from hypothesis import strategies as st

from poet import io, legacy, zoo
from poet.device import Device, Tier
from poet.events import compute, drop, free, page_in, page_out
from poet.graph import PHASES, Graph, Op, Static, Value, chain

amounts = st.integers(0, 2**70)
finite = st.floats(0.0, allow_infinity=False, allow_nan=False)
positive = st.floats(min_value=5e-324, allow_infinity=False, allow_nan=False)
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)


# Plain data, built into graphs inside the tests: the hook that checks types draws random numbers; strategies may not.
@st.composite
def graph_data(draw):
    values, ops = [], []
    for i in range(draw(st.integers(0, 6))):
        made = tuple(range(len(values), len(values) + draw(st.integers(1, 2))))
        reads = tuple(sorted(draw(st.sets(st.sampled_from(range(len(values)))))) if values else ())
        values += [(f"v{v}{draw(texts)}", draw(amounts), draw(st.booleans())) for v in made]
        rest = (draw(finite), draw(st.none() | finite), draw(amounts), draw(st.sampled_from(PHASES)))
        ops.append((f"o{i}", reads, made, *rest, draw(st.booleans()), draw(texts)))
    static = tuple(draw(amounts) for _ in range(5))
    return draw(texts), ops, values, static, draw(st.lists(texts, max_size=2))


def build_graph(data):
    name, ops, values, static, notes = data
    return Graph(name, tuple(Op(*op) for op in ops), tuple(Value(*v) for v in values), Static(*static), tuple(notes))


known = st.none() | positive
tier_data = st.tuples(
    *(finite, positive, finite, positive, finite, st.none() | amounts, st.integers(1, 2**40)),
    *(st.booleans(), positive, st.booleans(), st.booleans()),
)
device_data = st.tuples(
    *(texts, texts, st.none() | st.integers(1, 2**60), known, known, known, st.lists(tier_data, max_size=3)),
    *(st.dictionaries(texts, texts, max_size=2), st.lists(texts, max_size=2)),
)


def build_device(data):
    *head, tiers, provenance, missing = data
    return Device(*head, tuple(Tier(f"t{i}", *tier) for i, tier in enumerate(tiers)), provenance, tuple(missing))


def through_json(content):
    return json.loads(json.dumps(content))


@pytest.mark.property
@given(graph_data())
def test_graphs_come_back_exactly(data):
    graph = build_graph(data)
    again = io.graph_from_json(through_json(io.graph_to_json(graph)))
    assert again == graph
    assert again.notes == graph.notes
    assert again.fingerprint == graph.fingerprint


@pytest.mark.property
@given(device_data)
def test_devices_come_back_exactly(data):
    device = build_device(data)
    again = Device.from_json(through_json(device.to_json()))
    assert again == device
    assert again.provenance == device.provenance


@pytest.mark.parametrize("graph", [zoo.resnet18_cifar(), legacy.graph("linear")], ids=["zoo", "legacy"])
def test_files_of_graphs(tmp_path, graph):
    path = tmp_path / "folder" / "graph.json"
    io.save_graph(graph, path)
    assert io.load_graph(path) == graph
    assert io.load_graph(str(path)).notes == graph.notes
    assert [entry.name for entry in path.parent.iterdir()] == ["graph.json"]  # nothing temporary is left


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "graph.json"
    io.save_graph(chain("old", [1]), path)
    with pytest.raises(UnicodeEncodeError):
        io.save_graph(replace(chain("new", [1]), notes=("\ud800",)), path)
    assert io.load_graph(path).name == "old"


@pytest.mark.parametrize("name", Device.names())
def test_files_of_devices(tmp_path, name):
    path = tmp_path / "device.json"
    device = Device.load(name)
    io.save_device(device, path)
    assert io.load_device(path) == device == Device.load(path)
    assert io.load_device(path).provenance == device.provenance


EVENTS = [compute(0), page_out(0, 1), free(0), page_in(0, 1), drop(0, 1), compute(1), page_out(1, 0)]
GRAPH = chain("two", [4, 8])


def test_events_come_back_exactly():
    content = through_json(io.events_to_json(EVENTS, GRAPH, ["host", "disk"]))
    assert io.events_from_json(content, GRAPH, ["host", "disk"]) == tuple(EVENTS)
    assert content["graph"] == GRAPH.fingerprint


def test_events_follow_the_names_of_the_tiers():
    content = io.events_to_json(EVENTS, GRAPH, ["host", "disk"])
    moved = io.events_from_json(content, GRAPH, ["disk", "host"])
    assert [event.tier for event in moved] == [-1, 0, -1, 0, 0, -1, 1]


@pytest.mark.property
@given(
    st.lists(st.tuples(st.sampled_from([page_in, page_out, drop]), st.integers(0, 1), st.integers(0, 2)), max_size=9)
)
def test_any_events_come_back(steps):
    events = [make(value, tier) for make, value, tier in steps]
    names = ["a", "b", "c"]
    content = through_json(io.events_to_json(events, GRAPH, names))
    assert io.events_from_json(content, GRAPH, names) == tuple(events)


def test_events_of_another_graph_are_refused():
    content = io.events_to_json(EVENTS, GRAPH, ["host", "disk"])
    with pytest.raises(io.FormatError, match=r"was made for the graph .* not for 'other'.*solve again"):
        io.events_from_json(content, chain("other", [4, 9]), ["host", "disk"])


def test_events_for_a_tier_that_is_not_there_are_refused():
    content = io.events_to_json(EVENTS, GRAPH, ["host", "disk"])
    with pytest.raises(io.FormatError, match="uses the tier 'disk', which the problem lacks; it has host"):
        io.events_from_json(content, GRAPH, ["host"])
    with pytest.raises(ValueError, match="names tier 1, but 1 tiers are given: host"):
        io.events_to_json(EVENTS, GRAPH, ["host"])


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (["sleep", 0], "'sleep' is not a valid Kind"),
        (["compute", 2], "does not fit the graph"),
        (["compute", -1], "does not fit the graph"),
        (["compute", 0, 0], "does not fit the graph"),
        (["page_in", 0], "does not fit the graph"),
        (["page_in", 0, 2], "names a tier beyond"),
        (["page_in", 0.0, 0], "an integer was expected, got 0.0"),
        (["free", True], "an integer was expected, got True"),
        ([], "not a schedule"),
        (3, "not a schedule"),
    ],
)
def test_damaged_events_are_refused(row, says):
    content = io.events_to_json(EVENTS, GRAPH, ["host", "disk"]) | {"events": [row]}
    with pytest.raises(io.FormatError, match=says):
        io.events_from_json(content, GRAPH, ["host", "disk"])


@pytest.mark.parametrize("lacking", ["tiers", "events"])
def test_incomplete_events_are_refused(lacking):
    content = io.events_to_json(EVENTS, GRAPH, ["host", "disk"])
    del content[lacking]
    with pytest.raises(io.FormatError, match=f"lacks the entry '{lacking}'"):
        io.events_from_json(content, GRAPH, ["host", "disk"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not readable as JSON .*save_graph"),
        ("{", "not readable as JSON"),
        ("[" * 100_000, "not readable as JSON"),
        ("[]", "not a repertory.poet.graph file .*save_graph"),
        ('{"schema": "repertory.poet.device/1"}', "its schema field is 'repertory.poet.device/1'"),
        ('{"schema": "repertory.poet.graph/2"}', "written by a newer version .*upgrade"),
        ('{"schema": "repertory.poet.graph/1"}', "lacks the entry 'name'; save it again"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, text, says):
    path = tmp_path / "strange.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(io.FormatError, match=says) as caught:
        io.load_graph(path)
    assert str(path) in str(caught.value)


def test_missing_files_are_named(tmp_path):
    for load in (io.load_graph, io.load_device):
        with pytest.raises(io.FormatError, match=r"absent.json: no such file: give a file that poet.io.save_"):
            load(tmp_path / "absent.json")


def test_damaged_devices_are_named(tmp_path):
    path = tmp_path / "device.json"
    path.write_text(json.dumps(Device.load("rpi4b").to_json() | {"ram": -5}), encoding="utf-8")
    with pytest.raises(io.FormatError, match=r"device.json: ram of device 'rpi4b' must be finite and positive"):
        io.load_device(path)


def changed(*path, to):
    content = copy.deepcopy(io.graph_to_json(GRAPH))
    at = content
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = to
    return content


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "got 'NoneType'"),
        (changed("schema", to="repertory.poet.graph/7"), "got 'repertory.poet.graph/7'"),
        (changed("values", 0, "size", to=5), "does not match its fingerprint"),
        (changed("values", 0, "size", to=-5), "must not be negative"),
        (changed("values", 0, "size", to=4.0), "an integer was expected, got 4.0"),
        (changed("values", 0, "keep", to=0), "true or false was expected, got 0"),
        (changed("values", 0, "colour", to=0), "unknown entries: colour"),
        (changed("ops", 0, "flops", to="many"), "a number was expected, got 'many'"),
        (changed("ops", 0, "flops", to=float("nan")), "must be finite"),
        (changed("ops", 0, "phase", to="sideways"), "phase"),
        (changed("ops", 0, "inputs", to=[1]), "cycle"),
        (changed("ops", 0, to=[]), "entries of op were expected"),
        (changed("ops", to=3), "not a graph"),
        (changed("static", to={"heap": 1}), "unknown entries: heap"),
        (changed("notes", to=[1]), "text was expected, got 1"),
        (changed("fingerprint", to="0"), "does not match its fingerprint"),
    ],
)
def test_damaged_graphs_are_refused(content, says, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # our own messages
    with pytest.raises(io.FormatError, match=says):
        io.graph_from_json(content)

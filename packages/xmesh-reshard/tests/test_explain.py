"""The explanation says what the plan's own numbers say."""

import numpy as np
import pytest

from xmesh_reshard import Layout, Mesh, Topology, plan
from xmesh_reshard.assembling import assemble
from xmesh_reshard.baselines import naive_broadcast, send_recv
from xmesh_reshard.cases import multi_host_case
from xmesh_reshard.explain import bytes_text, explain, seconds_text
from xmesh_reshard.models import llama_refit


def row(text, start):
    return next(line for line in text.splitlines() if line.startswith(start)).split("  ")


def test_a_plan_at_its_bound():
    case = multi_host_case(2, scale=8)
    text = plan(case.transfers, case.topology).explain()
    lines = text.splitlines()
    assert lines[0].startswith("1 tensor (4 MiB) between 16 devices on 4 hosts: ")
    assert "Between hosts at least 4 MiB must move, 4 MiB do." in lines
    assert any(line.startswith("Planned time 1.6") and "lower bound 1.678 ms" in line for line in lines)
    assert any(line.startswith("The network cannot do it in less than 1.678 ms: bytes that ") for line in lines)
    assert [cell.strip() for cell in row(text, "host0 card 0") if cell][1:3] == ["2 MiB", "0 B"]
    assert any(line.startswith("host0 → host2") and line.endswith("2 MiB") for line in lines)
    assert "along a chain or tree" in text
    assert lines[-1].startswith("Note: ")


def test_bytes_that_move_more_than_once():
    case = multi_host_case(2, scale=8)
    text = explain(send_recv(case.transfers, case.topology))
    assert "Between hosts at least 4 MiB must move, 16 MiB do (4 times)." in text
    assert "% above what no plan can beat" in text
    assert "to one receiver" in text
    naive = explain(naive_broadcast(case.transfers, case.topology))
    assert "host1 card 0" not in naive  # it sends nothing


def test_copies_and_local_traffic():
    topology = Topology.uniform(1, 2, local="1GB")
    old = Layout.from_boxes((2048,), "uint8", {0: [(0, 2048)]})
    new = Layout.sharded((2048,), "uint8", Mesh.grid((2,)), "S0")
    text = explain(send_recv({"w": (old, new)}, topology))
    assert "Inside hosts 1 KiB move; 1 KiB are there already." in text
    assert "Network cards" not in text
    assert "The network cannot" not in text


def test_buffers_are_those_of_the_plan():
    case = multi_host_case(4, scale=8)
    made = send_recv(case.transfers, case.topology)
    most = max(made.buffer_bytes(device) for device in made.devices)
    assert f"Buffers take at most {bytes_text(most)}, on device" in explain(made)


def test_long_tables_are_cut():
    case = llama_refit("8b", trainers=128, replicas=16)
    text = explain(plan(case.transfers, case.topology))
    assert sum(line.startswith("host") and " card 0" in line for line in text.splitlines()) == 16
    assert "and 16 more" in text
    assert max(map(len, text.splitlines())) <= 200


def test_plans_without_messages_or_times():
    same = Layout.sharded((4,), "int8", Mesh.grid((1,)), "R")
    text = explain(send_recv({"w": (same, same)}, Topology.uniform(1, 1)))
    assert "0 messages" in text
    assert "No buffers are needed." in text
    assert "no time was planned" in explain(assemble({}, Topology.uniform(1, 1), []))


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1.5 * 2**30, "1.5 GiB"), (2**70, "1.049e+06 PiB")],
)
def test_bytes(nbytes, text):
    assert bytes_text(nbytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (1e-9, "0.001 µs"), (0.5, "500 ms"), (1, "1 s"), (np.nan, "not known")]
)
def test_seconds(seconds, text):
    assert seconds_text(seconds) == text

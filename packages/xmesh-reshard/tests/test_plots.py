"""Pictures hold what they show, are the same whenever the data are, and refuse what cannot be drawn."""

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from common_core.plotting import svg
from xmesh_reshard import Layout, Mesh, Topology, plan, plots
from xmesh_reshard.baselines import naive_broadcast
from xmesh_reshard.cases import multi_host_case, one_to_many_case
from xmesh_reshard.network import simulate

CASE = multi_host_case(3, 8)
PLAN = plan(CASE.transfers, CASE.topology)


def nothing():
    layout = Layout.sharded((4,), "int8", Mesh.grid((1,)), "R")
    return plan({"x": (layout, layout)}, Topology.uniform(1, 1))


def test_a_chart_has_a_row_for_each_busy_port_and_all_bars() -> None:
    run = simulate(PLAN)
    axes = plots.gantt(PLAN, title="as planned").axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["host0 nic0 out", "host1 nic0 out", "host2 nic0 in", "host3 nic0 in"]
    assert len(axes.collections) == sum(name.startswith("host") for name in np.array(run.port_names)[run.bar_port])
    assert {text.get_text() for text in axes.texts} == {*map(str, range(len(PLAN.messages))), "lower bound"}


def test_bars_that_overlap_lie_beside_each_other() -> None:
    bars = [(0.0, 2.0, 0), (1.0, 3.0, 1), (2.0, 4.0, 2), (2.5, 3.5, 3)]
    assert plots._lanes(bars) == [0, 1, 0, 2]
    overlapping = simulate(naive_broadcast(CASE.transfers, CASE.topology), in_flight=None)
    figure = plots.gantt(overlapping, bound=PLAN.lower_bound / 2)
    (line,) = figure.axes[0].lines
    assert np.asarray(line.get_xdata())[0] == pytest.approx(1e3 * PLAN.lower_bound / 2)  # in ms, wherever the bars end
    assert svg(figure).startswith("<svg")


def test_of_many_ports_the_busiest_are_shown() -> None:
    case = one_to_many_case(30, 1, 1 << 20)
    run = simulate(plan(case.transfers, case.topology))
    assert len(plots.chart_ports(run)) == 24
    assert plots.chart_ports(run, 1) == ["host0 nic0 out"]


def test_inside_one_host_devices_are_shown() -> None:
    source = Layout.sharded((1 << 16,), "int8", Mesh.grid((1,)), "R")
    target = Layout.sharded((1 << 16,), "int8", Mesh.grid((2,), first=1), "S0")
    run = simulate(plan({"x": (source, target)}, Topology.uniform(1, 3, local="1GB/s")))
    assert all(name.startswith("device ") for name in plots.chart_ports(run))
    assert plots.chart_ports(run)


def test_pictures_are_the_same_to_the_byte() -> None:
    figures = [
        lambda: plots.gantt(PLAN),
        lambda: plots.bytes_figure(PLAN, title="bytes"),
        lambda: plots.bars_figure({"ours": {"1": 1.0, "2": 2.0}}, {"1": 1.0}, logarithmic=True),
        lambda: plots.scatter_figure({"ours": [(1.0, 1.1), (2.0, 2.1)]}),
        lambda: plots.curves_figure({"a": [(0, 1), (1, 2)]}, x_label="x", y_label="y"),
    ]
    for make in figures:
        assert svg(make()) == svg(make())


def test_the_heat_map_shows_the_bytes() -> None:
    axes = plots.bytes_figure(PLAN).axes[0]
    shown = {text.get_position(): float(text.get_text()) for text in axes.texts}
    matrix = PLAN.bytes_matrix()
    # columns are x, rows y; 2 GiB / 8³ are 4 MiB, of which a quarter goes over each link
    assert shown[2, 0] == matrix[0, 2] / 2**20 == 1.0
    assert len(shown) == np.count_nonzero(matrix)


def test_the_bound_of_each_case_is_a_line_at_its_height() -> None:
    axes = plots.bars_figure({"ours": {"a": 2.0, "b": 3.0}, "other": {"b": 5.0}}, {"a": 1.5, "b": 2.5}).axes[0]
    assert [patch.get_extents().height > 0 for patch in axes.patches] == [True] * 3
    assert [patch.get_path().get_extents(patch.get_transform() - axes.transData).y1 for patch in axes.patches] == [
        pytest.approx(height) for height in (2.0, 3.0, 5.0)
    ]
    lines = [np.asarray(path.vertices) for found in axes.collections for path in found.get_paths()]
    assert [line[0][1] for line in lines] == [1.5, 2.5]
    assert lines[1][0][0] < 1 < lines[1][1][0]


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        plots.gantt(nothing())
    with pytest.raises(ValueError, match="nothing to draw"):
        plots.bytes_figure(nothing())
    with pytest.raises(ValueError, match="one to 6 methods"):
        plots.bars_figure({})
    with pytest.raises(ValueError, match="one to 6 methods"):
        plots.scatter_figure({str(k): [(1.0, 1.0)] for k in range(7)})
    with pytest.raises(ValueError, match="one to 6 lines"):
        plots.curves_figure({}, x_label="x", y_label="y")

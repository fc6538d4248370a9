"""Pictures: what they draw is what the numbers say, and equal data give equal files."""

import numpy as np
import pytest
import torch

from common_core.plotting import svg
from common_core.stats import Estimate
from dncc import diversity, metrics, plots, selective
from dncc.aggregation import aggregate_log_proba, log_softmax


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(800, 4, generator=generator, dtype=torch.float64)
    log_p = log_softmax(2 * shared + torch.randn(3, 800, 4, generator=generator, dtype=torch.float64))
    return log_p, torch.multinomial(torch.softmax(shared, -1), 1, generator=generator)[:, 0]


def labels(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_the_frontier_is_in_order_of_lambda_with_intervals():
    members = [Estimate(2.4, 2.0, 3.0), 1.1, Estimate(1.2, 1.1, 1.4)]
    figure = plots.frontier_figure([1, 0, 0.5], members=members, ensemble=[1.1, 1.0, 0.9], disagreement=[0.6, 0.2, 0.3])
    left, middle, right = figure.axes
    assert left.lines[0].get_xydata().tolist() == [[0, 1.1], [0.5, 1.2], [1, 2.4]]
    assert middle.lines[0].get_ydata().tolist() == [1.0, 0.9, 1.1]
    assert right.lines[0].get_ydata().tolist() == [0.2, 0.3, 0.6]
    bars = left.collections[0].get_segments()
    np.testing.assert_allclose([bar[:, 1] for bar in bars if len(bar) and np.isfinite(bar).all()], [[1.1, 1.4], [2, 3]])
    assert "nats" in left.get_ylabel()


def test_reliability_is_that_of_members_and_ensemble(data):
    log_p, y = data
    top, bottom = plots.reliability_figure(log_p, y, "geometric", bins=8, least=1).axes
    assert labels(top) == ["calibrated", "members", "ensemble, geometric"]
    for line, own in zip(top.lines[1:], [*log_p, aggregate_log_proba(log_p, "geometric")], strict=True):
        points = metrics.reliability(own, y, 8)
        np.testing.assert_array_equal(line.get_xydata(), torch.stack([points.confidence, points.accuracy], 1))
    points = metrics.reliability(aggregate_log_proba(log_p, "geometric"), y, 8)
    assert [bar.get_height() for bar in bottom.patches] == points.weight.tolist()
    for bar, confidence in zip(bottom.patches, points.confidence.tolist(), strict=True):
        assert abs(bar.get_x() + bar.get_width() / 2 - confidence) <= 1 / 16
    fuller = plots.reliability_figure(log_p, y, "geometric", bins=8, least=100).axes[0]
    full = points.weight * 800 >= 100
    assert 0 < int(full.sum()) < len(full)
    assert fuller.lines[-1].get_xdata().tolist() == points.confidence[full].tolist()


def test_a_point_for_every_pair(data):
    log_p, y = data
    votes = log_p.argmax(-1)
    kappa, error = diversity.cohen_kappa(votes), 1 - (votes == y).double().mean(1)
    (axes,) = plots.kappa_error_figure({"a": (kappa, error), "b": (kappa / 2, error)}).axes
    first, second = (line.get_xydata() for line in axes.lines)
    expected = [[float(kappa[i, j]), float(error[i] + error[j]) / 2] for i, j in ((0, 1), (0, 2), (1, 2))]
    np.testing.assert_allclose(first, expected)
    np.testing.assert_allclose(second[:, 0], first[:, 0] / 2)
    assert labels(axes) == ["a", "b"]


def test_collusion_is_the_area_between_the_curves():
    top, bottom = plots.ambiguity_figure([1, 2, 3], [0.1, 0.3, 0.4], [0.1, 0.2, 0.2], [0.9, 0.9, 0.5]).axes
    assert labels(top) == ["does not carry over", "training data", "validation data"]
    corners = {tuple(point) for point in top.collections[0].get_paths()[0].vertices.round(9).tolist()}
    assert {(2, 0.3), (3, 0.4), (2, 0.2), (3, 0.2)} <= corners
    assert bottom.lines[0].get_ydata().tolist() == [0.9, 0.9, 0.5]
    without = plots.ambiguity_figure([1, 2], [0.1, 0.1], [0.2, 0.2], [0, 0]).axes[0]
    assert labels(without) == ["training data", "validation data"]


def test_curves_of_risk_end_at_the_error_rate(data):
    log_p, y = data
    curve = selective.risk_coverage(log_p[0], y)
    (axes,) = plots.risk_coverage_figure({"member": curve, "short": ([0.5, 1.0], [0.0, 0.5])}).axes
    drawn = axes.lines[0].get_xydata()
    assert drawn[0, 0] == 8 / 800
    assert drawn[-1].tolist() == [1, float(curve[1][-1])]
    assert len(drawn) == 400
    assert {tuple(point) for point in drawn} <= set(zip(*(part.tolist() for part in curve), strict=True))
    assert axes.lines[1].get_xydata().tolist() == [[0.5, 0.0], [1.0, 0.5]]


def test_heat_maps_show_pairs_and_not_the_diagonal():
    matrix = np.array([[1.0, 0.25, 0.5], [0.25, 1.0, 0.75], [0.5, 0.75, 1.0]])
    axes, bar = plots.matrix_figure(matrix, "disagreement").axes
    assert [text.get_text() for text in axes.texts] == ["0.25", "0.50", "0.25", "0.75", "0.50", "0.75"]
    assert (axes.texts[0].get_position(), axes.get_title()) == ((1.5, 0.5), "disagreement")
    assert axes.collections[0].get_clim() == (0.25, 0.75)
    assert "#000000" not in {text.get_color() for text in axes.texts}
    signed = plots.matrix_figure(np.array([[1.0, -0.25, 0.5], [-0.25, 1, 0], [0.5, 0, 1]]))
    assert signed.axes[0].collections[0].get_clim() == (-0.5, 0.5)
    assert not plots.matrix_figure(np.full((20, 20), 0.3)).axes[0].texts
    assert plots.matrix_figure(np.full((20, 20), 0.3)).axes[0].collections[0].get_clim() == pytest.approx((0.29, 0.31))
    assert bar is not axes


def test_equal_data_give_equal_files(data):
    log_p, y = data
    makes = (
        lambda: plots.frontier_figure(
            [0, 1], members=[1, 2], ensemble=[1, 1], disagreement=[0, Estimate(0.5, 0.4, 0.6)]
        ),
        lambda: plots.reliability_figure(log_p, y),
        lambda: plots.kappa_error_figure({"a": (np.eye(2), [0.1, 0.2])}),
        lambda: plots.ambiguity_figure([1, 2], [0.1, 0.2], [0.1, 0.1], [0, 0]),
        lambda: plots.risk_coverage_figure({"a": selective.risk_coverage(log_p[0], y)}),
        lambda: plots.matrix_figure(np.eye(3)),
    )
    for make in makes:
        first = svg(make())
        assert first == svg(make())
        assert first.startswith("<svg")


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="lengths"):
        plots.frontier_figure([0, 1], members=[1], ensemble=[1, 2], disagreement=[0, 0])
    with pytest.raises(ValueError, match="lengths"):
        plots.frontier_figure([], members=[], ensemble=[], disagreement=[])
    with pytest.raises(ValueError, match="lengths"):
        plots.ambiguity_figure([1, 2], [0.1], [0.1], [0.0])
    with pytest.raises(ValueError, match="at least one ensemble"):
        plots.kappa_error_figure({})
    with pytest.raises(ValueError, match="'a'"):
        plots.kappa_error_figure({"a": (np.eye(3), [0.1, 0.2])})
    with pytest.raises(ValueError, match="at least one curve"):
        plots.risk_coverage_figure({})
    with pytest.raises(ValueError, match="as many of each"):
        plots.risk_coverage_figure({"a": ([0.5, 1.0], [0.1])})
    for matrix in (np.zeros((2, 3)), np.zeros((1, 1)), np.zeros(4)):
        with pytest.raises(ValueError, match="at least two members"):
            plots.matrix_figure(matrix)

"""Pictures: what they draw is what the numbers say, and equal data give equal files."""

import numpy as np
import pytest

from ccvf import plots, plots_grid
from ccvf.adaptive import BeliefHistory
from ccvf.confidence import conservatism
from ccvf.gridworlds import ACTIONS, lava_world
from common_core.plotting import svg
from common_core.stats import Estimate

DELTAS = [1.0, 0.01, 0.1]


def labels(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def history(steps=400):
    rng = np.random.default_rng(0)
    deltas = np.array([1e-4, 0.01, 0.1, 1.0])
    weights = rng.dirichlet(np.ones(4), size=steps)
    mean = weights @ conservatism(deltas)
    return BeliefHistory(deltas, weights, mean, mean, mean, np.zeros(steps), 7)


class Values:
    """Right is best everywhere at low confidence, down at delta = 1."""

    n_actions = 4

    def q_values(self, observations, deltas):
        q = np.zeros((len(observations), len(deltas), 4)) + 0.01 * observations[:, None, None]
        q[:, deltas < 1, 1] += 1
        q[:, deltas == 1, 2] += 1
        return q


def make_return():
    return plots.return_figure(DELTAS, [0.5, Estimate(0.2, 0.1, 0.4), 0.9], adaptive=Estimate(0.85, 0.8, 0.9),
                               references={"behaviour": 0.3})  # fmt: skip


def make_calibration():
    return plots.calibration_figure(DELTAS, {"a": ([0.1, 0.9, 0.8], [0.0, 0.8, 0.7], [0.2, 1.0, 0.9]),
                                             "b": (np.zeros(3), None, None)})  # fmt: skip


def make_aggregate():
    return plots.aggregate_figure({"CCVL": {"1 %": Estimate(0.5, 0.4, 0.7), "100 %": 1.0}, "REM": {"100 %": 0.3}})


def make_grid():
    return plots_grid.grid_figure(lava_world(), Values(), [0.01, 1.0])


def test_returns_stand_at_their_confidence_with_intervals():
    (axes,) = make_return().axes
    drawn = axes.lines[2].get_xydata()
    np.testing.assert_allclose(drawn[:, 0], conservatism(sorted(DELTAS)))
    np.testing.assert_allclose(drawn[:, 1], np.array([0.5, 0.2, 0.9])[np.argsort(DELTAS)])
    assert labels(axes) == ["adaptive", "behaviour", "fixed δ"]
    assert axes.lines[0].get_ydata()[0] == 0.85
    assert axes.lines[1].get_ydata()[0] == 0.3
    (bars,) = axes.collections
    ends = [bar[:, 1] for bar in bars.get_segments() if len(bar) and np.isfinite(bar).all()]
    np.testing.assert_allclose(ends, [[0.1, 0.4]])
    assert axes.get_xlim()[0] > axes.get_xlim()[1]  # conservative left
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0.01", "0.1", "0.5", "1"]


def test_a_belief_keeps_its_mass_when_steps_are_averaged():
    axes, bar = plots.belief_figure(history()).axes
    cells = axes.collections[0].get_array()
    assert cells.shape == (4, 150)
    np.testing.assert_allclose(cells.sum(0), 1)
    np.testing.assert_allclose(cells[:, 0], history().weights[:3].mean(0)[::-1])
    assert axes.get_xlim() == (7, 407)
    assert bar.get_ylabel() == "belief"
    short = plots.belief_figure(history(5)).axes[0]
    np.testing.assert_allclose(short.lines[0].get_ydata(), history(5).mean_u)


def test_calibration_shows_curve_interval_and_what_it_should_be():
    (axes,) = make_calibration().axes
    nominal = axes.lines[0].get_xydata()
    np.testing.assert_allclose(nominal[:, 1], 1 - np.exp(-(nominal[:, 0] ** 2)))
    np.testing.assert_allclose(axes.lines[1].get_ydata(), [0.9, 0.8, 0.1])
    np.testing.assert_allclose(axes.lines[1].get_xdata(), conservatism([0.01, 0.1, 1.0]))
    assert labels(axes) == ["1 − δ", "a", "b"]
    (band,) = axes.collections
    assert band.get_paths()[0].get_extents().y0 == 0.0
    assert band.get_paths()[0].get_extents().y1 == 1.0


def test_methods_stand_side_by_side():
    figure = make_aggregate()
    (axes,) = figure.axes
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[-0.2, 0.5], [0.8, 1.0]])
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1 %", "100 %"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["CCVL", "REM"]


def test_maps_show_greedy_actions():
    figure = make_grid()
    world = lava_world()
    free = int((~world.mdp.terminal).sum())
    for axes, action in zip(figure.axes, ("right", "down"), strict=True):
        arrows = [note for note in axes.texts if note.get_text() == ""]
        assert len(arrows) == free
        down, right = ACTIONS[action]
        for arrow in arrows:
            np.testing.assert_allclose(np.subtract(arrow.xy, arrow.xyann), [0.6 * right, 0.6 * down], atol=1e-12)
        assert axes.collections[0].get_array().shape == (len(world.layout), len(world.layout[0]))
    assert figure.axes[1].get_title().startswith("δ = 1\n")


def test_equal_data_give_equal_files():
    for make in (make_return, make_calibration, make_aggregate, make_grid, lambda: plots.belief_figure(history())):
        first = svg(make())
        assert first == svg(make())
        assert first.startswith("<svg")


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="one return for each"):
        plots.return_figure(DELTAS, [1.0])
    with pytest.raises(ValueError, match="empty"):
        plots.belief_figure(history(0))
    with pytest.raises(ValueError, match="at least one curve"):
        plots.calibration_figure(DELTAS, {})
    with pytest.raises(ValueError, match="both ends"):
        plots.calibration_figure(DELTAS, {"a": (np.zeros(3), np.zeros(3), None)})
    with pytest.raises(ValueError, match="at least one method"):
        plots.aggregate_figure({"a": {}})
    with pytest.raises(ValueError, match="at most 6"):
        plots_grid.grid_figure(lava_world(), Values(), np.linspace(0.1, 1, 7))

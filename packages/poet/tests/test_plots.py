"""Pictures: what they draw is what the numbers say."""

import numpy as np
import pytest

from common_core.plotting import svg
from poet.arena import memory_layers
from poet.device import Device, Tier
from poet.events import compute, drop, free, page_in, page_out
from poet.graph import chain
from poet.plots import MARKS, marks, memory_figure, pareto_figure, timeline_figure
from poet.timeline import timeline

FLASH = Tier("flash", 0.5, 4096.0, 0.5, 4096.0, duplex=True)
TOY = Device("toy", flops_per_second=1.0, flops_per_joule=1.0, tiers=(FLASH,))
STEP = chain("three", [4096, 2048, 1024])
EVENTS = (
    *(compute(0), page_out(0), free(0), compute(0), compute(1), free(0), page_in(0), drop(0), compute(1)),
    *(compute(2), free(0), free(1)),
)


def labels(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_events_by_what_they_are_drawn_as():
    first, again = "first execution", "recomputation"
    expected = [first, "page-out", "", again, first, "", "page-in", "", again, first, "", ""]
    assert marks(EVENTS) == expected
    assert set(expected) - {""} == set(MARKS)


def test_memory_is_stacked_to_the_curve():
    layers = memory_layers(STEP, EVENTS, TOY.tiers)
    figure = memory_figure(layers, EVENTS, limit=8192, title="three")
    top, strip = figure.axes
    heights = top.collections[-1].get_paths()[0].vertices[:, 1]
    memory = np.array(list(layers.values())).sum(axis=0)
    assert heights.max() == memory.max() / 1024
    assert labels(top) == ["limit", "forward"]
    assert top.get_ylabel() == "memory (KiB)"
    assert [line.get_ydata()[0] for line in top.lines] == [8.0]
    assert [text.get_text() for text in strip.get_yticklabels()] == ["recomputation", "page-out", "page-in"]
    ticks = [[path.vertices[0, 0] for path in lines.get_paths()] for lines in strip.collections]
    assert ticks == [[3.5, 8.5], [1.5], [6.5]]
    assert len(memory_figure({"values": [1, 2]}).axes) == 1


def test_a_timeline_has_a_row_for_each_lane():
    spans = timeline(STEP, TOY, EVENTS)
    (axes,) = timeline_figure(spans, EVENTS, deadline=9.0).axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["processor", "flash reads", "flash writes"]
    drawn = sorted(
        (float(path.vertices[:, 0].min()), float(path.vertices[:, 0].max()))
        for bars in axes.collections
        for path in bars.get_paths()
    )
    np.testing.assert_allclose(drawn, sorted((span.start, span.end) for span in spans), rtol=1e-12)
    assert labels(axes) == [*MARKS, "deadline"]


def test_the_band_is_the_gap():
    curve, bounds = [(2048, 3.0), (1024, 5.0)], [(1024, 4.0), (2048, 3.0)]
    (axes,) = pareto_figure({"poet": curve, "other": [(2048, 6.0)]}, bounds, least=512).axes
    band = axes.collections[0].get_paths()[0].vertices
    assert {tuple(point) for point in band.tolist()} == {(1.0, 4.0), (1.0, 5.0), (2.0, 3.0)}
    assert labels(axes) == ["gap", "lower bound", "poet", "other", "nothing fits below"]
    assert axes.get_ylabel() == "modelled energy (J)"
    assert axes.get_xlabel() == "RAM (KiB)"


def test_equal_data_give_equal_files():
    layers = memory_layers(STEP, EVENTS, TOY.tiers)
    pictures = [svg(memory_figure(layers, EVENTS, limit=8192)) for _ in range(2)]
    assert pictures[0] == pictures[1]
    assert pictures[0].startswith("<svg")


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match="equally long"):
        memory_figure({"a": [1], "b": [1, 2]})
    with pytest.raises(ValueError, match="equally long"):
        memory_figure({})
    with pytest.raises(ValueError, match="equally long"):
        memory_figure({"a": [1]}, EVENTS)
    with pytest.raises(ValueError, match="no spans"):
        timeline_figure([], EVENTS)
    with pytest.raises(ValueError, match="no curve"):
        pareto_figure({"poet": []})
    with pytest.raises(ValueError, match="first curve"):
        pareto_figure({"poet": [(1, 1.0)]}, [(2, 1.0)])

"""Gantt charts: what is drawn, and that equal timelines give equal files."""

import pytest

pytest.importorskip("matplotlib")

from xmesh_reshard.pipeline import Timeline, gantt_figure, gantt_svg, schedule, unet_transfers


def bars(figure):
    """Number of bars by colour."""
    counts = {}
    for collection in figure.axes[0].collections:
        color = tuple(round(float(part), 3) for part in collection.get_facecolor()[0][:3])
        counts[color] = counts.get(color, 0) + len(collection.get_paths())
    return counts


def test_every_pass_and_transfer_is_drawn_once():
    timeline = schedule("1f1b", 4, 8, split_backward=True).simulate(1, 2, unet_transfers(4, 1.0))
    figure = gantt_figure(timeline)
    skips = 8  # from stage 0 to 3 and back; between 1 and 2 it shares the boundary of the chain
    assert sorted(bars(figure).values()) == sorted([32, 32, 32, 3 * 8 + skips, 3 * 8 + skips])
    numbers = [text.get_text() for text in figure.axes[0].texts]
    assert sorted(numbers) == sorted(str(k) for k in range(8) for _ in range(12))
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["forward", "input gradient", "weight gradient", "activation under way", "gradient under way"]
    rows = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert rows[:4] == ["device 0", "to 1", "to 3", "device 1"]


def test_chunks_are_told_apart_and_narrow_bars_have_no_numbers():
    figure = gantt_figure(schedule("interleaved", 2, 40, chunks=2).simulate(1, 2), width=4)
    assert sorted(bars(figure).values()) == [80, 80, 80, 80]
    assert [text.get_text() for text in figure.axes[0].texts] == []
    assert len(figure.axes[0].get_legend().get_texts()) == 2  # transfers take no time: none to see


def test_the_unit_fits_the_times():
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-7, "µs")):
        figure = gantt_figure(schedule("gpipe", 2, 2).simulate(scale, scale, scale))
        assert figure.axes[0].get_xlabel() == f"time ({unit})"


def test_equal_timelines_give_equal_files():
    first, second = (gantt_svg(schedule("zero-bubble", 3, 5).simulate(comm=0.5), title="t") for _ in range(2))
    assert first == second
    assert first.startswith("<svg")


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match="no spans"):
        gantt_svg(Timeline(((), ()), ()))

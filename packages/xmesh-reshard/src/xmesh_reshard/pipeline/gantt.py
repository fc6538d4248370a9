"""Gantt charts of pipelines: what every device computes, and what its links carry below it.

Needs the extra `xmesh-reshard[plot]`.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, SupportsFloat

from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from common_core.plotting import COLORS, new_figure, svg
from xmesh_reshard.pipeline.instructions import Op
from xmesh_reshard.pipeline.timeline import Span, Timeline, Transfer

BLUE, ORANGE, TEAL, VIOLET, BROWN, TAUPE = COLORS
PASSES = {Op.F: BLUE, Op.B: ORANGE, Op.W: TEAL}
_NAMES = {Op.F: "forward", Op.B: "backward", Op.W: "weight gradient"}
_LANE = 0.32  # height of a link's row; a device's is 1
_GAP = 0.28
_POINTS = 6.5  # size of the numbers


def gantt_figure(timeline: Timeline, *, title: str = "", width: SupportsFloat = 9.0) -> Figure:
    """A row for each device with its passes and their microbatches, and thin rows below for the links it sends over.

    Where a device holds several stages, the later ones are darker.

    Args:
        timeline: Simulated or measured.
        title: Title.
        width: Inches.

    Raises:
        ValueError: If there is nothing to draw.
    """
    if not any(timeline.devices):
        raise ValueError("there is nothing to draw: the timeline has no spans")
    links = sorted({(t.source, t.target) for t in timeline.transfers})
    end = max(chain((s[-1].end for s in timeline.devices if s), (t.end for t in timeline.transfers)))
    unit, factor = ("s", 1.0) if end >= 1 else ("ms", 1e-3) if end >= 1e-3 else ("µs", 1e-6)
    tops, ticks, depth = _rows(len(timeline.devices), links)
    figure, axes = new_figure(float(width), 1.0 + 0.3 * depth)
    per_second = 72 * (float(width) - 1.0) / (end or 1.0)  # points of paper, about
    for d, spans in enumerate(timeline.devices):
        _draw_passes(axes, spans, tops[d], factor, per_second)
    _draw_links(axes, timeline.transfers, tops, factor)
    axes.set(yticks=[y for y, _ in ticks], yticklabels=[name for _, name in ticks], xlabel=f"time ({unit})")
    for (_, name), label in zip(ticks, axes.get_yticklabels(), strict=True):
        label.set_fontsize(8 if name.startswith("device") else 5.5)
    axes.set(xlim=(0, 1.005 * (end or 1.0) / factor), ylim=(depth, -_GAP / 2), title=title)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.legend(
        handles=_legend(timeline),
        loc="upper center",
        bbox_to_anchor=(0.5, -0.5 / (0.3 * depth)),
        ncols=5,
        fontsize=8,
        frameon=False,
    )
    return figure


def gantt_svg(timeline: Timeline, *, title: str = "", width: SupportsFloat = 9.0) -> str:
    """`gantt_figure` as an SVG element for light and dark pages; equal timelines give equal bytes.

    Args:
        timeline: Simulated or measured.
        title: Title.
        width: Inches.

    Raises:
        ValueError: If there is nothing to draw.

    Example:
        >>> from xmesh_reshard.pipeline.schedules import schedule
        >>> gantt_svg(schedule("eager-1f1b", 4, 8).simulate(comm=1.0)).startswith("<svg")
        True
    """
    return svg(gantt_figure(timeline, title=title, width=width))


def _rows(
    devices: int, links: Sequence[tuple[int, int]]
) -> tuple[dict[int | tuple[int, int], float], list[tuple[float, str]], float]:
    """Where the rows of devices and links begin, labels with their places, and where everything ends."""
    tops: dict[int | tuple[int, int], float] = {}
    ticks: list[tuple[float, str]] = []
    y = 0.0
    for d in range(devices):
        tops[d] = y
        ticks.append((y + 0.5, f"device {d}"))
        y += 1.0
        for source, target in links:
            if source == d:
                tops[source, target] = y + 0.04
                ticks.append((y + 0.04 + _LANE / 2, f"to {target}"))
                y += _LANE
        y += _GAP
    return tops, ticks, y


def _draw_passes(axes: Any, spans: Sequence[Span], top: float, factor: float, per_second: float) -> None:
    """Bars of a device, darker for its later chunks, with the numbers of microbatches where they fit."""
    stages = sorted({span.instruction.stage for span in spans})
    for op, color in PASSES.items():
        for chunk, stage in enumerate(stages):
            mine = [s for s in spans if s.instruction.op is op and s.instruction.stage == stage]
            bars = [(s.start / factor, (s.end - s.start) / factor) for s in mine]
            shade = _darker(color, 0.4 * chunk / max(1, len(stages) - 1))
            if bars:
                axes.broken_barh(bars, (top, 1.0), facecolors=shade, edgecolors="white", linewidth=0.4)
    for span in spans:
        text = str(span.instruction.microbatch)
        if (span.end - span.start) * per_second > _POINTS * (0.3 + 0.62 * len(text)):
            middle = (span.start + span.end) / 2 / factor
            style = {"color": "white", "fontsize": _POINTS, "ha": "center", "va": "center", "clip_on": True}
            axes.text(middle, top + 0.53, text, **style)


def _darker(color: str, share: float) -> tuple[float, ...]:
    """A colour mixed with a share of black."""
    return tuple((1 - share) * part for part in to_rgb(color))


def _draw_links(
    axes: Any, transfers: Sequence[Transfer], tops: Mapping[int | tuple[int, int], float], factor: float
) -> None:
    for backward, color in ((False, VIOLET), (True, BROWN)):
        for link in sorted({(t.source, t.target) for t in transfers}):
            mine = [t for t in transfers if (t.source, t.target) == link and t.message.backward is backward]
            bars = [(t.start / factor, (t.end - t.start) / factor) for t in mine if t.end > t.start]
            if bars:
                axes.broken_barh(bars, (tops[link], _LANE * 0.8), facecolors=color, edgecolors="white", linewidth=0.3)


def _legend(timeline: Timeline) -> list[Patch]:
    used = {span.instruction.op for spans in timeline.devices for span in spans}
    names = {**_NAMES, Op.B: "input gradient"} if Op.W in used else _NAMES
    handles = [Patch(color=color, label=names[op]) for op, color in PASSES.items() if op in used]
    ways = {t.message.backward for t in timeline.transfers if t.end > t.start}
    handles += [Patch(color=VIOLET, label="activation under way")] if False in ways else []
    return handles + ([Patch(color=BROWN, label="gradient under way")] if True in ways else [])

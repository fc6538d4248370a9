"""Pictures of schedules: memory over the events, who works when, cost against RAM.

Figures are matplotlib's, made in the house style; `common_core.plotting.svg` writes them. Everything in joules is
modelled, and the pictures say so. Needs the extra `repertory-poet[plot]`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from common_core.plotting import COLORS, new_figure
from poet.events import Event, Kind
from poet.timeline import PROCESSOR, Span

BLUE, ORANGE, TEAL, VIOLET, BROWN, TAUPE = COLORS
LAYERS = {
    "static": TAUPE,
    "forward": BLUE,
    "loss": VIOLET,
    "backward": ORANGE,
    "copies": TEAL,
    "workspace": BROWN,
}
MARKS = {"first execution": BLUE, "recomputation": ORANGE, "page-out": VIOLET, "page-in": TEAL}
"""What events are drawn as; frees and drops are not drawn."""


def marks(events: Sequence[Event]) -> list[str]:
    """What each event is drawn as: a key of `MARKS`, or "" for frees and drops.

    Args:
        events: The schedule.

    Example:
        >>> from poet.events import compute, free
        >>> marks([compute(0), free(0), compute(0)])
        ['first execution', '', 'recomputation']
    """
    done: set[int] = set()
    names: list[str] = []
    for event in events:
        if event.kind is Kind.COMPUTE:
            names.append("recomputation" if event.target in done else "first execution")
            done.add(event.target)
        else:
            names.append({Kind.PAGE_OUT: "page-out", Kind.PAGE_IN: "page-in"}.get(event.kind, ""))
    return names


def memory_figure(
    layers: Mapping[str, Sequence[int]], events: Sequence[Event] = (), *, limit: int | None = None, title: str = ""
) -> Figure:
    """Memory over the events, stacked by what it is, with the limit; below, where work is repeated or paged.

    Args:
        layers: Bytes at each event by what they are, as `poet.arena.memory_layers` gives them.
        events: The schedule, for the marks below; none without it.
        limit: Bytes.
        title: Title.

    Raises:
        ValueError: If there is nothing to draw, or layers and events differ in length.
    """
    lengths = {len(layer) for layer in layers.values()} | ({len(events)} if events else set())
    if len(lengths) != 1 or lengths == {0}:
        raise ValueError(f"layers and events must be equally long and not empty, got lengths {sorted(lengths)}")
    count = lengths.pop()
    figure, axes = new_figure(7.0, 4.0 if events else 3.3, rows=2 if events else 1)
    top = axes[0] if events else axes
    unit, factor = _unit(max(limit or 0, *(sum(bytes_) for bytes_ in zip(*layers.values(), strict=True))))
    edges, floor = np.arange(count + 1), np.zeros(count + 1)
    for (name, layer), spare in zip(layers.items(), COLORS * len(layers), strict=False):
        height = floor + np.array([*layer, layer[-1]]) / factor
        color = LAYERS.get(name, spare)
        top.fill_between(edges, floor, height, step="post", color=color, linewidth=0, alpha=0.85, label=name)
        floor = height
    if limit is not None:
        top.axhline(limit / factor, color="black", linestyle="--", linewidth=1.2, label="limit")
    top.set(xlim=(0, count), ylabel=f"memory ({unit})", title=title)
    top.set_ylim(0, 1.05 * max(float(floor.max()), (limit or 0) / factor))
    top.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False, reverse=True)
    if events:
        _strips(axes[1], marks(events))
        axes[1].set(xlim=(0, count), xlabel="event")
        top.tick_params(labelbottom=False)
        top.get_gridspec().set_height_ratios([5, 1.2])
    else:
        top.set_xlabel("event")
    return figure


def timeline_figure(spans: Sequence[Span], events: Sequence[Event], *, deadline: float | None = None) -> Figure:
    """Who works when: the processor and every channel as rows.

    Args:
        spans: What `poet.timeline.timeline` gives.
        events: The schedule.
        deadline: Seconds.

    Raises:
        ValueError: If there is nothing to draw.
    """
    if not spans:
        raise ValueError("there is nothing to draw: the timeline has no spans")
    lanes = [PROCESSOR, *sorted({span.lane for span in spans} - {PROCESSOR})]
    names = marks(events)
    end = max(span.end for span in spans)
    unit, factor = ("s", 1.0) if end >= 1 else ("ms", 1e-3) if end >= 1e-3 else ("µs", 1e-6)
    figure, axes = new_figure(7.0, 1.1 + 0.5 * len(lanes))
    for name, color in MARKS.items():
        mine = [span for span in spans if names[span.event] == name]
        for row, lane in enumerate(lanes):
            bars = [(span.start / factor, (span.end - span.start) / factor) for span in mine if span.lane == lane]
            if bars:
                axes.broken_barh(bars, (row - 0.38, 0.76), facecolors=color, edgecolors="white", linewidth=0.3)
    used = {names[span.event] for span in spans}
    handles: list[Any] = [Patch(color=color, label=name) for name, color in MARKS.items() if name in used]
    if deadline is not None:
        handles.append(axes.axvline(deadline / factor, color="black", linestyle="--", linewidth=1.2, label="deadline"))
    axes.set(yticks=range(len(lanes)), yticklabels=lanes, xlabel=f"time ({unit})", ylim=(len(lanes) - 0.4, -0.6))
    axes.set_xlim(0, 1.02 * max(end, deadline or 0.0) / factor)
    axes.grid(visible=False, axis="y")
    axes.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=5, fontsize=8, frameon=False)
    return figure


def pareto_figure(
    curves: Mapping[str, Sequence[tuple[int, float]]],
    bounds: Sequence[tuple[int, float]] = (),
    *,
    least: int | None = None,
    cost: str = "modelled energy (J)",
) -> Figure:
    """Cost against RAM: a curve for each way of scheduling, and the band between the first and what is proved.

    Args:
        curves: Points (bytes of RAM, cost) by name; the first is the one that the bounds are of.
        bounds: Points (bytes of RAM, proved lower bound), at RAM limits of the first curve.
        least: Bytes below which no schedule fits.
        cost: What the cost is, with its unit.

    Raises:
        ValueError: If there is nothing to draw, or a bound is at a limit that the first curve has not.
    """
    if not any(curves.values()):
        raise ValueError("there is nothing to draw: no curve has points")
    unit, factor = _unit(max(ram for points in curves.values() for ram, _ in points))
    figure, axes = new_figure(6.0, 3.6)
    first = dict(next(iter(curves.values())))
    proved = sorted(bounds)
    if not {ram for ram, _ in proved} <= set(first):
        raise ValueError("bounds must be at RAM limits of the first curve")
    if proved:
        rams = [ram / factor for ram, _ in proved]
        low, high = [bound for _, bound in proved], [first[ram] for ram, _ in proved]
        axes.fill_between(rams, low, high, color=COLORS[0], alpha=0.25, linewidth=0, label="gap")
        axes.plot(rams, low, color="black", linestyle=":", linewidth=1.2, label="lower bound")
    for (name, points), color, marker in zip(
        curves.items(), COLORS * len(curves), "osD^vP" * len(curves), strict=False
    ):
        ordered = sorted(points)
        x, y = [ram / factor for ram, _ in ordered], [value for _, value in ordered]
        axes.plot(x, y, color=color, marker=marker, markersize=4, label=name)
    if least is not None:
        axes.axvline(least / factor, color="black", linestyle="--", linewidth=1.0, label="nothing fits below")
    axes.set(xlabel=f"RAM ({unit})", ylabel=cost)
    axes.set_xlim(left=0)
    axes.legend(fontsize=8, frameon=False)
    return figure


def _strips(axes: Any, names: Sequence[str]) -> None:
    """Rows of ticks: where events of each kind are."""
    rows = [name for name in MARKS if name != "first execution" and name in names]
    for row, name in enumerate(rows):
        at = [e + 0.5 for e, other in enumerate(names) if other == name]
        axes.vlines(at, row - 0.38, row + 0.38, color=MARKS[name], linewidth=1.0)
    axes.set(yticks=range(len(rows)), yticklabels=rows, ylim=(max(len(rows), 1) - 0.4, -0.6))
    axes.grid(visible=False, axis="y")


def _unit(size: int) -> tuple[str, int]:
    """A unit in which the size is a small number, and its bytes."""
    return next(((unit, n) for unit, n in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)) if size >= n), ("B", 1))

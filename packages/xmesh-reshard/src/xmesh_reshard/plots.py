"""Pictures of plans: what every network card carries when, bytes between hosts, times of methods side by side.

Figures are matplotlib's, made in the house style; `common_core.plotting.svg` writes them. Needs the extra
`xmesh-reshard[plot]`. Pipelines have `xmesh_reshard.pipeline.gantt`.
"""

from collections.abc import Mapping, Sequence
from typing import SupportsFloat

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from common_core.plotting import COLORS, new_figure
from xmesh_reshard.network import Simulation
from xmesh_reshard.plans import Plan

Points = Sequence[tuple[SupportsFloat, SupportsFloat]]
_ROWS = 24  # ports of a chart; of more, the busiest are shown
_LABELS = 40  # bars up to which messages have their numbers
_INK = "#111111"  # black on a cell's own colour: it must not follow the page
_SHADES = LinearSegmentedColormap.from_list("bytes", ["#D5DCF2", COLORS[0], "#26336B"])


def gantt(run: Plan | Simulation, *, title: str = "", bound: SupportsFloat | None = None) -> Figure:
    """Every network card's ports as rows, and the messages that they carry; numbers are messages of the plan.

    Inside one host the links of the devices are shown instead. Of many ports the busiest are shown.

    Args:
        run: A simulation, or a plan to simulate; a plan brings its lower bound.
        title: Title.
        bound: Seconds at which a line is drawn: no plan ends before.

    Raises:
        ValueError: If there is nothing to draw.
    """
    if isinstance(run, Plan):
        bound = run.lower_bound if bound is None else bound
        run = run.simulate()
    limit = 0.0 if bound is None else float(bound)
    rows = chart_ports(run)
    if not rows:
        raise ValueError("there is nothing to draw: no port carries anything")
    unit, factor = _time(max(run.makespan, limit))
    figure, axes = new_figure(7.5, 1.1 + 0.3 * len(rows))
    mine = np.isin(run.bar_port, [run.port_names.index(name) for name in rows])
    numbers = bool(int(mine.sum()) <= _LABELS * 2)
    for row, name in enumerate(rows):
        bars = sorted(_bars(run, name))
        lanes = _lanes(bars)
        height = 0.8 / (max(lanes, default=0) + 1)
        for (start, end, message), lane in zip(bars, lanes, strict=True):
            low = row - 0.4 + lane * height
            color = COLORS[message % len(COLORS)]
            box = [(start / factor, (end - start) / factor)]
            axes.broken_barh(box, (low, height), facecolors=color, edgecolors="white", linewidth=0.4)
            if numbers and (end - start) / run.makespan > 0.012 * len(str(message)):
                middle = (start + end) / 2 / factor, low + 0.53 * height
                axes.text(*middle, str(message), color="white", fontsize=6.5, ha="center", va="center")
    if limit:
        axes.axvline(limit / factor, color="black", linestyle="--", linewidth=1.2)
        place = {"xy": (limit / factor, 1.0), "xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        axes.annotate("lower bound", xytext=(-3, 3), ha="right", fontsize=8, **place)
    axes.set(yticks=range(len(rows)), yticklabels=rows, ylim=(len(rows) - 0.5, -0.5), xlabel=f"time ({unit})")
    axes.set_xlim(0, 1.02 * max(run.makespan, limit) / factor)
    axes.grid(visible=False, axis="y")
    axes.set_title(title, loc="left")
    return figure


def chart_ports(run: Simulation, most: int = _ROWS) -> list[str]:
    """The ports that a chart shows: cards, racks and the core in their order, or devices where nothing leaves a host.

    Args:
        run: A simulation.
        most: Of more, the busiest.
    """
    network = [k for k, name in enumerate(run.port_names) if not name.startswith("device ")]
    shown = network or list(range(len(run.port_names)))
    seconds = run.port_bytes / run.port_rates
    busiest = sorted(shown, key=lambda k: -seconds[k])[:most]
    return [run.port_names[k] for k in sorted(busiest)]


def bytes_figure(plan: Plan, *, title: str = "") -> Figure:
    """Bytes from each host (row) to each host (column) as a heat map; inside a host on the diagonal.

    Args:
        plan: The plan.
        title: Title.

    Raises:
        ValueError: If nothing moves.
    """
    matrix = plan.bytes_matrix()
    if not matrix.any():
        raise ValueError("there is nothing to draw: the plan moves nothing")
    unit, factor = _size(int(matrix.max()))
    names = [host.name for host in plan.topology.hosts]
    side = min(1.6 + 0.5 * len(names), 8.0)
    figure, axes = new_figure(side + 1.0, side)
    values = matrix / factor
    image = axes.imshow(np.where(matrix > 0, values, np.nan), cmap=_SHADES, vmin=0)
    if len(names) <= 12:
        for a, b in np.argwhere(matrix > 0).tolist():
            ink = "white" if values[a, b] > 0.4 * values.max() else _INK
            axes.text(b, a, f"{values[a, b]:.3g}", ha="center", va="center", fontsize=7, color=ink)
        axes.set(xticks=range(len(names)), yticks=range(len(names)))
        axes.set_xticklabels(names, rotation=45, ha="right")
        axes.set_yticklabels(names)
    axes.set(xlabel="to", ylabel="from", title=title)
    axes.grid(visible=False)
    figure.colorbar(image, ax=axes, label=unit, shrink=0.8)
    return figure


def bars_figure(
    series: Mapping[str, Mapping[str, SupportsFloat]],
    bounds: Mapping[str, SupportsFloat] | None = None,
    *,
    label: str = "time (units of T)",
    logarithmic: bool = False,
    bound_label: str = "lower bound",
) -> Figure:
    """Groups of bars, one group for each case and one bar for each method, with each case's bound as a line.

    Args:
        series: By method, a value for each case; a case may be missing.
        bounds: A bound for each case.
        label: What is shown, with its unit.
        logarithmic: Whether the axis is logarithmic.
        bound_label: What the bound is called.

    Raises:
        ValueError: If there is nothing to draw, or there are more methods than colours.
    """
    cases = list(dict.fromkeys(case for values in series.values() for case in values))
    if not cases or len(series) > len(COLORS):
        raise ValueError(f"give values of one to {len(COLORS)} methods; got {len(series)} with {len(cases)} cases")
    wide = min(11.0, max(6.0, 0.85 * len(cases) + 1.2))
    figure, axes = new_figure(wide, 3.4)
    width = 0.84 / len(series)
    for k, ((name, values), color) in enumerate(zip(series.items(), COLORS, strict=False)):
        x = [cases.index(case) - 0.42 + width * (k + 0.5) for case in values]
        axes.bar(x, [float(value) for value in values.values()], width * 0.95, color=color, label=name)
    for number, (case, value) in enumerate((bounds or {}).items()):
        ends = cases.index(case) - 0.46, cases.index(case) + 0.46
        axes.hlines(
            float(value),
            *ends,
            color="black",
            linestyle="--",
            linewidth=1.3,
            label=None if number else bound_label,
            zorder=3,
        )
    axes.set_xticks(range(len(cases)), cases)
    if max(map(len, cases)) * len(cases) > 13 * wide:  # they would run into each other
        for text in axes.get_xticklabels():
            text.set(rotation=20, ha="right")
    axes.set(ylabel=label, xlim=(-0.6, len(cases) - 0.4))
    if logarithmic:
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter(FuncFormatter(_plain))
        least = min(float(value) for values in (*series.values(), bounds or {}) for value in values.values())
        axes.set_ylim(bottom=least / 1.5)
    axes.grid(visible=False, axis="x")
    columns = max(1, min(4, int(13 * wide / (5 + max(map(len, (*series, bound_label)))))))
    axes.legend(fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns)
    return figure


def scatter_figure(groups: Mapping[str, Points], *, band: SupportsFloat = 0.2) -> Figure:
    """Measured against simulated seconds, with the diagonal and a band of relative error around it.

    Args:
        groups: By method, points (simulated, measured).
        band: The band's relative half width.

    Raises:
        ValueError: If there is nothing to draw, or there are more methods than colours.
    """
    points = [(float(x), float(y)) for rows in groups.values() for x, y in rows]
    width = float(band)
    if not points or len(groups) > len(COLORS):
        raise ValueError(f"give points of one to {len(COLORS)} methods; got {len(groups)} with {len(points)} points")
    figure, axes = new_figure(4.6, 4.2)
    ends = np.array([min(map(min, points)) / 1.3, max(map(max, points)) * 1.3])
    axes.fill_between(ends, ends * (1 - width), ends * (1 + width), color="#808080", alpha=0.25, linewidth=0)
    axes.plot(ends, ends, color="black", linewidth=1.0, linestyle="--", label=f"equal, ± {width:.0%}")
    for (name, rows), color, marker in zip(groups.items(), COLORS, "osD^vP", strict=False):
        x, y = [float(x) for x, _ in rows], [float(y) for _, y in rows]
        axes.plot(x, y, color=color, marker=marker, linestyle="none", markersize=5, label=name)
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel="simulated (s)", ylabel="measured (s)")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(_plain))
        axis.set_minor_formatter(NullFormatter())
    axes.legend(fontsize=8, frameon=False)
    return figure


def curves_figure(curves: Mapping[str, Points], *, x_label: str, y_label: str, marks: str = "osD^vP") -> Figure:
    """Lines through points, one for each name.

    Args:
        curves: By name, points (x, y).
        x_label: What x is.
        y_label: What y is.
        marks: Markers in turn.

    Raises:
        ValueError: If there is nothing to draw, or there are more lines than colours.
    """
    if not any(curves.values()) or len(curves) > len(COLORS):
        raise ValueError(f"give points of one to {len(COLORS)} lines; got {len(curves)}")
    figure, axes = new_figure(6.0, 3.4)
    for (name, points), color, marker in zip(curves.items(), COLORS, marks, strict=False):
        x, y = [float(x) for x, _ in points], [float(y) for _, y in points]
        axes.plot(x, y, color=color, marker=marker, markersize=4, label=name)
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.legend(fontsize=8, frameon=False)
    return figure


def _bars(run: Simulation, port: str) -> list[tuple[float, float, int]]:
    mine = run.bar_port == run.port_names.index(port)
    columns = (run.bar_start[mine].tolist(), run.bar_end[mine].tolist(), run.bar_message[mine].tolist())
    return list(zip(*columns, strict=True))


def _lanes(bars: Sequence[tuple[float, float, int]]) -> list[int]:
    """A lane for each bar, so that no two of a lane overlap; starts ascend."""
    free: list[float] = []
    lanes = []
    for start, end, _ in bars:
        lane = next((k for k, time in enumerate(free) if time <= start + 1e-9 * end), len(free))
        free[lane : lane + 1] = [end]
        lanes.append(lane)
    return lanes


def _plain(value: float, _: object) -> str:
    """A tick of a logarithmic axis without an exponent."""
    return f"{value:g}"


def _time(seconds: float) -> tuple[str, float]:
    return ("s", 1.0) if seconds >= 1 else ("ms", 1e-3) if seconds >= 1e-3 else ("µs", 1e-6)


def _size(nbytes: int) -> tuple[str, int]:
    """A unit in which the size is a small number, and its bytes."""
    return next(((unit, n) for unit, n in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)) if nbytes >= n), ("B", 1))

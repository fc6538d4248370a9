"""What the claims' figures have in common."""

from collections.abc import Mapping, Sequence
from typing import Any

from common_core.plotting import COLORS
from common_core.plotting import new_figure as new_figure
from common_core.plotting import svg as svg
from common_core.stats import Estimate

_STYLES = {  # a learner looks the same in every figure
    "Hier": (COLORS[0], "-", "o"),
    "Flat": (COLORS[1], "--", "s"),
    "Oracle": (COLORS[2], "-.", "^"),
    "Global": (COLORS[3], ":", "D"),
    "prior only": (COLORS[3], ":", "D"),
}


def style(label: str, position: int = 0) -> dict[str, Any]:
    """Colour, line and marker of a learner; of the position for anything else."""
    colour, line, marker = _STYLES.get(label, (COLORS[position % len(COLORS)], "-", "osD^vP"[position % 6]))
    return {"color": colour, "linestyle": line, "marker": marker, "markersize": 4, "label": label}


def curves(axes: Any, x: Sequence[float], series: Mapping[str, Sequence[Estimate]], *, log: str = "x") -> None:
    """Draw estimates against x, intervals as bands; `log` names the logarithmic axes.

    Args:
        axes: Where to draw.
        x: Positions, all labelled on the axis.
        series: Label to estimates.
        log: "", "x", "y" or "xy".
    """
    for position, (label, estimates) in enumerate(series.items()):
        look = style(label, position)
        axes.plot(x, [float(e) for e in estimates], **look)
        if all(e.low is not None for e in estimates):
            low, high = [e.low for e in estimates], [e.high for e in estimates]
            axes.fill_between(x, low, high, color=look["color"], alpha=0.18, linewidth=0)
    for axis in log:
        getattr(axes, f"set_{axis}scale")("log")
    axes.set_xticks(list(x), [f"{value:g}" for value in x])
    axes.minorticks_off()


def legend_below(axes: Any, columns: int) -> None:
    """A legend under the axes, where it covers no curve."""
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=columns, fontsize=8)


def points(axes: Any, estimates: Mapping[str, Estimate], *, highlight: str = "") -> None:
    """Draw one row for each estimate: a point and its interval.

    Args:
        axes: Where to draw.
        estimates: Label to estimate, from top to bottom.
        highlight: The label drawn in the first colour.
    """
    for row, (label, e) in enumerate(estimates.items()):
        colour = COLORS[0] if label == highlight else "#808080"
        if e.low is not None:
            axes.plot([e.low, e.high], [row, row], color=colour, linestyle="-", linewidth=2)
        axes.plot([float(e)], [row], color=colour, marker="o", markersize=6, linestyle="none")
    axes.set_yticks(range(len(estimates)), list(estimates))
    axes.invert_yaxis()
    axes.set_ylim(len(estimates) - 0.4, -0.6)

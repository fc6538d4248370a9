"""What the claims' figures have in common."""

from collections.abc import Sequence
from typing import Any

from common_core.plotting import COLORS
from common_core.plotting import new_figure as new_figure
from common_core.plotting import svg as svg
from common_core.stats import Estimate

_MARKS = "osD^vP"


def curve(axes: Any, x: Sequence[float], estimates: Sequence[Estimate], label: str, position: int) -> None:
    """Estimates against x with their intervals as a band.

    Args:
        axes: Where to draw.
        x: Positions.
        estimates: Values with intervals.
        label: For the legend.
        position: Which colour and marker.
    """
    colour = COLORS[position % len(COLORS)]
    axes.plot(x, [float(e) for e in estimates], color=colour, marker=_MARKS[position % 6], markersize=4, label=label)
    axes.fill_between(
        x, [e.lower for e in estimates], [e.upper for e in estimates], color=colour, alpha=0.18, linewidth=0
    )


def bars(axes: Any, labels: Sequence[str], estimates: Sequence[Estimate]) -> None:
    """One row an estimate: a point and its interval, the first on top.

    Args:
        axes: Where to draw.
        labels: Names of the rows.
        estimates: Values with intervals.
    """
    for row, estimate in enumerate(estimates):
        ends = [[float(estimate) - estimate.lower], [estimate.upper - float(estimate)]]
        axes.errorbar(
            float(estimate), row, xerr=ends, fmt="o", color=COLORS[row % len(COLORS)], capsize=3, markersize=5
        )
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()

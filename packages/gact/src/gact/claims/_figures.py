"""What the claims' figures have in common."""

from collections.abc import Mapping, Sequence
from typing import Any

from common_core.plotting import COLORS
from common_core.plotting import new_figure as new_figure
from common_core.plotting import svg as svg
from common_core.stats import Estimate

_STYLES = {  # a mode looks the same in every figure
    "plain": ("#808080", "-"),
    "8": (COLORS[2], "-."),
    "auto:4": (COLORS[0], "-"),
    "4": (COLORS[4], ":"),
    "auto:2": (COLORS[3], "--"),
    "2": (COLORS[1], ":"),
}
_WORDS = {"plain": "no compression", "8": "8 bits", "4": "4 bits", "2": "2 bits"}


def words(mode: str) -> str:
    """A mode in words."""
    return _WORDS.get(mode) or f"{mode.removeprefix('auto:')} bits on average"


def style(mode: str) -> dict[str, Any]:
    """Colour, line and label of a mode."""
    colour, line = _STYLES.get(mode, (COLORS[5], "-"))
    return {"color": colour, "linestyle": line, "label": words(mode)}


def bars(axes: Any, groups: Sequence[str], series: Mapping[str, Sequence[Estimate]]) -> None:
    """Draw groups of bars with intervals.

    Args:
        axes: Where to draw.
        groups: Names under the groups.
        series: Label to one estimate a group.
    """
    width = 0.8 / len(series)
    for position, (label, estimates) in enumerate(series.items()):
        x = [k - 0.4 + width * (position + 0.5) for k in range(len(groups))]
        values = [float(e) for e in estimates]
        low = [max(0.0, v - e.low) if e.low is not None else 0.0 for v, e in zip(values, estimates, strict=True)]
        high = [max(0.0, e.high - v) if e.high is not None else 0.0 for v, e in zip(values, estimates, strict=True)]
        axes.bar(x, values, width, color=COLORS[position % len(COLORS)], label=label)
        axes.errorbar(x, values, [low, high], color="black", linestyle="none", linewidth=0.9)
    axes.set_xticks(range(len(groups)), list(groups))

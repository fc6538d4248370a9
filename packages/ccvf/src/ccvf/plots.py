"""Pictures: return against confidence, a belief over time, calibration, scores of methods.

Confidences are drawn evenly in u = sqrt(log(1 / delta)), conservative ones left. Figures are matplotlib's, made in the
house style; `common_core.plotting.svg` writes them, equal for equal data. Needs the extra `ccvf[plot]`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, SupportsFloat

import numpy as np
from jaxtyping import Float

from ccvf.adaptive import BeliefHistory
from ccvf.confidence import check_deltas, conservatism
from common_core.stats import Estimate

try:
    from matplotlib.figure import Figure

    from common_core.plotting import COLORS, new_figure
except ImportError as error:
    raise ImportError('pictures need matplotlib, which is not installed: pip install "ccvf[plot]"') from error

__all__ = ["aggregate_figure", "belief_figure", "calibration_figure", "return_figure"]

BLUE, ORANGE, TEAL, VIOLET, BROWN, TAUPE = COLORS
_MARKERS = "osD^vP"
_TICKS = (1e-8, 1e-6, 1e-4, 1e-3, 0.01, 0.1, 0.5, 1.0)
_STEPS = 150  # columns of a heat map; more are averaged

Points = Sequence[SupportsFloat | Estimate]


def return_figure(
    deltas: Iterable[SupportsFloat],
    returns: Points,
    *,
    adaptive: SupportsFloat | Estimate | None = None,
    references: Mapping[str, SupportsFloat] | None = None,
    label: str = "return",
) -> Figure:
    """Return of every fixed confidence with intervals, and of the adaptive policy as a band.

    Args:
        deltas: Confidences, in any order.
        returns: Return of each; an `Estimate` is drawn with its interval.
        adaptive: Return of the adaptive policy.
        references: Further levels by name, such as the behaviour's.
        label: What the vertical axis shows, with units.

    Returns:
        A figure.

    Raises:
        ValueError: If lengths differ.

    Example:
        >>> figure = return_figure([0.01, 0.1, 1.0], [0.2, 0.9, 0.5], adaptive=0.85)
        >>> len(figure.axes)
        1
    """
    grid = check_deltas(deltas)
    if len(returns) != len(grid):
        raise ValueError(f"{len(grid)} confidences and {len(returns)} returns: give one return for each")
    order = np.argsort(grid, kind="stable")
    found = [_estimate(returns[k]) for k in order]
    figure, axes = new_figure(5.4, 3.4)
    if adaptive is not None:
        level = _estimate(adaptive)
        if level.low is not None and level.high is not None:
            axes.axhspan(level.low, level.high, color=ORANGE, alpha=0.25, linewidth=0)
        axes.axhline(level.value, color=ORANGE, linestyle="--", label="adaptive")
    for k, (name, reference) in enumerate((references or {}).items()):
        axes.axhline(float(reference), color=(TAUPE, BROWN, VIOLET)[k % 3], linestyle=(":", "-.", (0, (5, 1)))[k % 3],
                     linewidth=1.2, label=name)  # fmt: skip
    axes.errorbar(conservatism(grid[order]), [e.value for e in found], yerr=_reach(found), color=BLUE, linestyle="-",
                  marker="o", markersize=4, capsize=2.5, elinewidth=1.0, label="fixed δ")  # fmt: skip
    _delta_axis(axes, grid)
    axes.set(ylabel=label)
    axes.legend(fontsize=8, frameon=False)
    return figure


def belief_figure(history: BeliefHistory) -> Figure:
    """A belief over time: its weights as a heat map, its mean as a line.

    Args:
        history: `AdaptivePolicy.history`.

    Returns:
        A figure of two axes, the second a colour bar.

    Raises:
        ValueError: If the history is empty.
    """
    steps = len(history.weights)
    if not steps:
        raise ValueError("the history is empty: act and observe first")
    parts = np.array_split(np.arange(steps), min(steps, _STEPS))
    weights = np.array([history.weights[part].mean(0) for part in parts])
    mean_u = np.array([history.mean_u[part].mean() for part in parts])
    edges = history.first + np.array([part[0] for part in parts] + [steps])
    u = conservatism(history.deltas)
    order = np.argsort(u)
    figure, axes = new_figure(6.0, 3.2)
    mesh = axes.pcolormesh(edges, _edges(u[order]), weights[:, order].T, cmap="cividis", vmin=0, edgecolors="face",
                           linewidth=0.4)  # fmt: skip
    axes.plot((edges[:-1] + edges[1:]) / 2, mean_u, color=ORANGE, linestyle="-", linewidth=2.0, label="mean")
    _delta_axis(axes, history.deltas, upright=True)
    axes.set(xlabel="steps", xlim=(edges[0], edges[-1]))
    axes.grid(visible=False)
    bar = figure.colorbar(mesh, ax=axes)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8)
    bar.set_label("belief", fontsize=9)
    figure.legend(fontsize=8, frameon=False, loc="outside upper center")  # the map may be as bright as any text
    return figure


def calibration_figure(
    deltas: Iterable[SupportsFloat],
    curves: Mapping[str, tuple[Any, Any, Any]],
    label: str = "share of returns that reach the value",
) -> Figure:
    """How often the bound holds at each confidence, against 1 - delta.

    Args:
        deltas: Confidences, in any order.
        curves: By name: shares, and the lower and upper ends of their intervals (None, None: no intervals).
        label: What is a share of what.

    Returns:
        A figure.

    Raises:
        ValueError: If there is no curve or lengths differ.
    """
    grid = check_deltas(deltas)
    if not curves:
        raise ValueError("there is nothing to draw: give at least one curve")
    order, u = np.argsort(grid, kind="stable"), conservatism(grid)
    figure, axes = new_figure(5.4, 3.4)
    fine = np.linspace(u.min(), u.max(), 200)
    axes.plot(fine, 1 - np.exp(-(fine**2)), color="black", linestyle="--", linewidth=1.2, label="1 − δ")
    for k, (name, (share, low, high)) in enumerate(curves.items()):
        columns = [np.asarray(column, dtype=float) for column in (share, low, high) if column is not None]
        if any(column.shape != grid.shape for column in columns) or len(columns) == 2:
            raise ValueError(f"{name!r} has shapes {[c.shape for c in columns]}; give one number for each "
                             f"of {len(grid)} confidences, and both ends of the intervals or neither")  # fmt: skip
        if len(columns) == 3:
            axes.fill_between(
                u[order], columns[1][order], columns[2][order], color=COLORS[k % 6], alpha=0.2, linewidth=0
            )
        axes.plot(u[order], columns[0][order], color=COLORS[k % 6], linestyle="-", marker=_MARKERS[k % 6], markersize=4,
                  label=name)  # fmt: skip
    _delta_axis(axes, grid)
    axes.set(ylim=(-0.03, 1.03), ylabel=label)
    axes.legend(fontsize=8, frameon=False)
    return figure


def aggregate_figure(
    scores: Mapping[str, Mapping[str, SupportsFloat | Estimate]],
    label: str = "IQM of normalised scores",
    xlabel: str = "",
) -> Figure:
    """Scores of methods side by side for each setting, such as each size of the data, with intervals.

    Args:
        scores: By method, scores by setting; a method may lack a setting.
        label: What the scores are.
        xlabel: What the settings are.

    Returns:
        A figure.

    Raises:
        ValueError: If there is no score.
    """
    settings = list(dict.fromkeys(name for of in scores.values() for name in of))
    if not settings:
        raise ValueError("there is nothing to draw: give at least one method with one score")
    figure, axes = new_figure(max(4.2, 1.2 + 0.28 * len(settings) * (len(scores) + 1)), 3.4)
    width = 0.8 / len(scores)
    for k, (name, of) in enumerate(scores.items()):
        places = np.array([i for i, setting in enumerate(settings) if setting in of], dtype=float)
        found = [_estimate(of[setting]) for setting in settings if setting in of]
        color = COLORS[k % len(COLORS)]
        axes.errorbar(places + (k + 0.5) * width - 0.4, [e.value for e in found], yerr=_reach(found), color=color,
                      linestyle="none", marker=_MARKERS[k % 6], markersize=5.5, capsize=2.5, elinewidth=1.4, label=name,
                      markerfacecolor=color if k < 6 else "none")  # fmt: skip
    for between in range(1, len(settings)):
        axes.axvline(between - 0.5, color="#808080", alpha=0.35, linewidth=0.6, linestyle="-")
    axes.set(
        xlim=(-0.5, len(settings) - 0.5), xticks=range(len(settings)), xticklabels=settings, xlabel=xlabel, ylabel=label
    )
    axes.grid(visible=False, axis="x")
    figure.legend(fontsize=8, frameon=False, loc="outside upper center", ncols=min(len(scores), 5))
    return figure


def _estimate(value: SupportsFloat | Estimate) -> Estimate:
    return value if isinstance(value, Estimate) else Estimate(float(value))


def _reach(found: Sequence[Estimate]) -> Float[np.ndarray, "2 points"]:
    """Lengths of the error bars; NaN draws none."""
    ends = [(np.nan, np.nan) if e.low is None or e.high is None else (e.value - e.low, e.high - e.value) for e in found]
    return np.maximum(np.array(ends, dtype=float).reshape(-1, 2).T, 0.0)


def _delta_axis(axes: Any, deltas: Float[np.ndarray, " confidences"], *, upright: bool = False) -> None:
    """Evenly in u, labelled by delta; conservative left, or below when upright."""
    u = conservatism(deltas)
    shown = [delta for delta in _TICKS if u.min() - 1e-9 <= conservatism(delta)[0] <= u.max() + 1e-9]
    shown = shown if len(shown) > 1 else sorted(set(deltas.tolist()))
    axis = axes.yaxis if upright else axes.xaxis
    axis.set_ticks(conservatism(shown), [f"{delta:g}" for delta in shown])
    axis.set_label_text("confidence δ")
    low, high = (_edges(np.sort(u))[[0, -1]]) if upright else (u.min(), u.max())
    room = 0.0 if upright else 0.03 * max(high - low, 0.1)
    (axes.set_ylim if upright else axes.set_xlim)(high + room, low - room)


def _edges(middles: Float[np.ndarray, " confidences"]) -> Float[np.ndarray, " edges"]:
    """Boundaries of cells around ascending middles."""
    if len(middles) == 1:
        return np.array([middles[0] - 0.5, middles[0] + 0.5])
    between = (middles[:-1] + middles[1:]) / 2
    return np.concatenate([[2 * middles[0] - between[0]], between, [2 * middles[-1] - between[-1]]])

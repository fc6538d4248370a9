"""Gridworlds as pictures: values and greedy actions at several confidences, side by side. Needs `ccvf[plot]`."""

from collections.abc import Iterable
from typing import Any, SupportsFloat

import numpy as np

from ccvf.confidence import check_deltas
from ccvf.gridworlds import ACTIONS, GridWorld
from ccvf.values import ConfidenceValues

try:
    from matplotlib.figure import Figure

    from common_core.plotting import COLORS, new_figure
except ImportError as error:
    raise ImportError('pictures need matplotlib, which is not installed: pip install "ccvf[plot]"') from error

__all__ = ["grid_figure"]

_LAVA, _GOAL, _WALL = COLORS[1], COLORS[2], "#808080"
_DARK, _LIGHT = "#111111", "#f7f7f7"  # on cells, whose colour does not follow the page; pure black would


def grid_figure(world: GridWorld, values: ConfidenceValues, deltas: Iterable[SupportsFloat]) -> Figure:
    """Values of the states as colours and the greedy actions as arrows, one map for each confidence.

    Each map has its own colours, from its lowest to its highest value, which are written above it.

    Args:
        world: The gridworld.
        values: Values of its states.
        deltas: Confidences, one to six.

    Returns:
        A figure of as many axes.

    Raises:
        ValueError: If more than six confidences are given, or the values are of other actions.
    """
    grid = check_deltas(deltas)
    if len(grid) > 6:
        raise ValueError(f"{len(grid)} confidences given: at most 6 maps fit side by side")
    if values.n_actions != len(ACTIONS):
        raise ValueError(f"values have {values.n_actions} actions; a gridworld has {', '.join(ACTIONS)}")
    q = np.asarray(values.q_values(np.arange(world.mdp.n_states), grid), dtype=float)
    rows, columns = len(world.layout), len(world.layout[0])
    figure, found = new_figure(max(2.1 * len(grid), 2.6), 2.1 * rows / columns + 0.5, cols=len(grid))
    for k, axes in enumerate(np.atleast_1d(found)):
        _map(axes, world, q[:, k], f"δ = {grid[k]:g}")
    return figure


def _map(axes: Any, world: GridWorld, q: np.ndarray, title: str) -> None:
    rows, columns = len(world.layout), len(world.layout[0])
    best = np.where(world.mdp.terminal, np.nan, q.max(-1))
    picture = world.picture(best)
    mesh = axes.pcolormesh(picture, cmap="cividis", edgecolors="face", linewidth=0.4)
    for row, line in enumerate(world.layout):
        for column, kind in enumerate(line):
            if kind in "LG#":
                color = {"L": _LAVA, "G": _GOAL, "#": _WALL}[kind]
                axes.fill(
                    [column, column + 1, column + 1, column], [row, row, row + 1, row + 1], color=color, linewidth=0
                )
            if kind in "SG":
                axes.text(column + 0.08, row + 0.3, kind, fontsize=7, color=_DARK if kind == "G" else _LIGHT)
    moves = np.array(list(ACTIONS.values()), dtype=float)
    for state in np.flatnonzero(~world.mdp.terminal):
        row, column = world.cells[state]
        red, green, blue, _ = mesh.cmap(mesh.norm(picture[row, column]))
        ink = _DARK if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else _LIGHT
        down, right = 0.3 * moves[q[state].argmax()]
        start, end = (column + 0.5 - right, row + 0.5 - down), (column + 0.5 + right, row + 0.5 + down)
        style = {"arrowstyle": "->", "color": ink, "linewidth": 0.9, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 6}
        axes.annotate("", xy=end, xytext=start, arrowprops=style)
    axes.set(xlim=(0, columns), ylim=(rows, 0), aspect="equal", xticks=[], yticks=[])
    axes.set_title(f"{title}\n{np.nanmin(best):.2g} to {np.nanmax(best):.2g}", fontsize=8)
    axes.grid(visible=False)
    for side in axes.spines.values():
        side.set_visible(False)

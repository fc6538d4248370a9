"""One style for every figure, and SVG text that is the same, byte for byte, whenever the data are.

Needs matplotlib, which the extra ``repertory-common-core[plot]`` brings. Figures are made without pyplot, so nothing is
registered globally. Black is the foreground: `svg` writes it as ``currentColor``, and the background is transparent, so
that one file serves light and dark pages.
"""

import io
import re
import threading
from typing import Any

try:
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.rcsetup import cycler
except ImportError as error:
    raise ImportError(
        "plotting needs matplotlib, which is not installed: pip install 'repertory-common-core[plot]'"
    ) from error

COLORS: tuple[str, ...] = ("#4B5FA6", "#EE6B00", "#00A3B1", "#9A00E1", "#9A4E22", "#A3846F")
"""Blue, orange, teal, violet, brown, taupe: the contrast to white and to #121212 is 3:1 or more, and any two stay at
least 25 CIELAB units apart in normal vision and in simulated protanopia, deuteranopia and tritanopia."""

_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))  # a second channel beside the colour
_CREATE = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same glyphs on every machine
    "grid.alpha": 0.35,
    "grid.color": "#808080",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}
_WRITE = {"svg.fonttype": "path", "svg.hashsalt": "repertory", "svg.image_inline": True, "path.simplify": False}
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
_rc_lock = threading.Lock()  # matplotlib reads these settings from a global table while it draws


def new_figure(width: float = 6.0, height: float = 3.5, rows: int = 1, cols: int = 1) -> tuple[Figure, Any]:
    """Return a figure in the house style and its axes.

    Args:
        width: Width in inches.
        height: Height in inches.
        rows: Rows of axes.
        cols: Columns of axes.

    Returns:
        The figure, and one `Axes`, or an array of them as ``Figure.subplots`` gives it when there are several.

    Raises:
        ValueError: If a size or a count is not positive.

    Example:
        >>> figure, axes = new_figure()
        >>> _ = axes.plot([0, 1], [0, 1])
        >>> svg(figure).startswith("<svg")
        True
    """
    if not (width > 0 and height > 0 and rows >= 1 and cols >= 1):
        raise ValueError(f"width={width}, height={height}, rows={rows}, cols={cols}: all must be positive")
    cycle = cycler(color=COLORS) + cycler(linestyle=_LINES)
    with _rc_lock, matplotlib.rc_context({**_CREATE, "axes.prop_cycle": cycle}):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(rows, cols)
    return figure, axes


def svg(figure: Figure) -> str:
    """Return the figure as an SVG element for a page or a file, and clear the figure.

    Equal data give equal bytes with one version of matplotlib: identifiers are hashes of what they name, text is drawn
    as paths, and there is no date.

    Args:
        figure: A figure of `new_figure`; it is empty afterwards.

    Returns:
        The ``<svg>`` element, without an XML prologue, foreground ``currentColor``, transparent background.
    """
    for legend in (*figure.legends, *(axes.get_legend() for axes in figure.axes)):
        if legend is not None:
            legend.set_frame_on(False)
    buffer = io.StringIO()
    with _rc_lock, matplotlib.rc_context({**_CREATE, **_WRITE}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=_NO_METADATA)
    figure.clear()
    return _for_pages(buffer.getvalue())


def _for_pages(text: str) -> str:
    """Make matplotlib's SVG fit to stand inside a page beside others."""
    text = text[text.index("<svg") :]
    # A style element in an inlined SVG applies to the whole page; attributes of the root are inherited instead.
    text = re.sub(r"\s*<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", text, count=1, flags=re.DOTALL)
    root = '<svg role="img" fill="currentColor" stroke-linejoin="round" stroke-linecap="butt"'
    text = text.replace("<svg", root, 1)  # matplotlib leaves the fill of black glyphs to the default
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # never referred to, and the same in every figure
    return re.sub(r"#000000\b", "currentColor", text)

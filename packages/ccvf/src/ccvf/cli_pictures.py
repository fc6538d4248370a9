"""Figures that the command writes; a missing matplotlib is said before any work."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ccvf.cli_evaluate import ADAPTIVE, Played, estimate
from ccvf.cli_runs import Run
from ccvf.ope_estimates import ReturnEstimates
from common_core.records import write_bytes_atomic
from common_core.stats import Estimate

__all__ = ["drawn", "estimates_figure", "evaluated", "need_pictures", "need_values"]


def need_pictures(*files: Path | None) -> None:
    """Make sure that figures can be drawn, if any is asked for.

    Args:
        files: Files that will be written; None for those that were not asked for.

    Raises:
        ValueError: If a name does not end in .svg.
        ImportError: If matplotlib is not installed.
    """
    for file in files:
        if file is not None and file.suffix.lower() != ".svg":
            raise ValueError(f"{file}: pictures are written as SVG; give a name that ends in .svg")
    if any(file is not None for file in files):
        import ccvf.plots as _  # noqa: F401 (for its ImportError)


def need_values(runs: Iterable[Run], adaptive: bool, figure: Path | None, belief: Path | None) -> None:
    """Make sure that there is something to draw.

    Args:
        runs: What is to be played.
        adaptive: Whether the adaptive policy is.
        figure: Where return against confidence goes.
        belief: Where the belief goes.

    Raises:
        ValueError: If there is not.
    """
    conditioned = any(run.settings.conditioned for run in runs)
    if figure is not None and not conditioned:
        raise ValueError("none of these trainings has a confidence: there is no return against confidence to draw")
    if belief is not None and not (conditioned and adaptive):
        raise ValueError("there is no belief to draw: no adaptive policy is played")


def drawn(file: Path, figure: Any) -> str:
    """Write a figure as SVG.

    Args:
        file: Where to.
        figure: A matplotlib figure.

    Returns:
        What to tell.
    """
    from common_core.plotting import svg

    write_bytes_atomic(file, svg(figure).encode())
    return f"wrote {file}"


def estimates_figure(found: ReturnEstimates) -> Any:
    """Estimated return against confidence.

    Args:
        found: The estimates.

    Returns:
        A matplotlib figure.
    """
    from ccvf.plots import return_figure

    points = [
        Estimate(value) if np.isnan(low) else Estimate(value, low, high)
        for value, low, high in zip(found.value, found.low, found.high, strict=True)
    ]
    return return_figure(found.deltas, points, label="estimated discounted return")


def evaluated(played: Mapping[str, Played], seed: int, figure: Path | None, belief: Path | None) -> list[str]:
    """Return against confidence, and the belief of the first training that has one.

    Args:
        played: What was played, by name; curves of several confidence-conditioned trainings are averaged.
        seed: Of the intervals.
        figure: Where the first goes.
        belief: Where the second goes.

    Returns:
        What to tell.
    """
    from ccvf.plots import belief_figure

    told, first = [], next((one for one in played.values() if one.adaptive is not None), None)
    if figure is not None:
        told.append(drawn(figure, _returns(played, seed)))
    if belief is not None:
        assert first is not None
        assert first.adaptive is not None
        assert first.adaptive.belief is not None
        told.append(drawn(belief, belief_figure(first.adaptive.belief)))
    return told


def _returns(played: Mapping[str, Played], seed: int) -> Any:
    from ccvf.plots import return_figure

    conditioned = [one for one in played.values() if one.fixed[0][0] is not None]
    deltas = [delta for delta, _ in conditioned[0].fixed if delta is not None]
    columns = [
        [estimate(found, seed) for _, found in one.fixed] for one in conditioned if len(one.fixed) == len(deltas)
    ]
    points = [_together(row) for row in zip(*columns, strict=True)]
    adaptive = [estimate(one.adaptive, seed) for one in conditioned if one.adaptive is not None]
    references = {
        name: float(one.fixed[0][1].returns.mean()) for name, one in played.items() if one.fixed[0][0] is None
    }
    return return_figure(deltas, points, adaptive=_together(adaptive) if adaptive else None, references=references)


def _together(found: Any) -> Estimate:
    """One training's interval; of several their mean, with the interval of that mean."""
    if len(found) == 1:
        return found[0]
    from common_core.seeding import Streams
    from common_core.stats import bootstrap_mean

    return bootstrap_mean([one.value for one in found], rng=Streams(0, "ccvf.cli").numpy(ADAPTIVE), confidence=0.95)

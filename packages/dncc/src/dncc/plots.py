"""Pictures of ensembles: what lambda buys, calibration, pairs of members, collusion while training, selective risk.

Figures are matplotlib's, made in the house style; `common_core.plotting.svg` writes them, equal for equal data. Needs
the extra `dncc[plot]`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, SupportsFloat

import numpy as np
from jaxtyping import Float, Integer
from torch import Tensor

from common_core.stats import Estimate
from dncc.aggregation import Aggregate, aggregate_log_proba
from dncc.metrics import Reliability, reliability

try:
    from matplotlib.figure import Figure

    from common_core.plotting import COLORS, new_figure
except ImportError as error:
    raise ImportError("pictures need matplotlib, which is not installed: pip install 'dncc[plot]'") from error

__all__ = [
    "ambiguity_figure",
    "frontier_figure",
    "kappa_error_figure",
    "matrix_figure",
    "reliability_figure",
    "risk_coverage_figure",
]

BLUE, ORANGE, TEAL, VIOLET, BROWN, TAUPE = COLORS
_MARKERS = "osD^vP"
_DARK, _LIGHT = "#111111", "#f7f7f7"  # on cells, whose colour does not follow the page; pure black would
_POINTS = 400  # of a curve
_WRITTEN = 10  # members up to which a heat map writes its numbers
_SPREAD = 0.02  # least range of the colours: smaller differences are not blown up

Points = Sequence[SupportsFloat | Estimate]


def frontier_figure(
    lams: Sequence[SupportsFloat], *, members: Points, ensemble: Points, disagreement: Points
) -> Figure:
    """What lambda trades: NLL of members and of the ensemble, and disagreement, against lambda, with intervals.

    Each has an axis of its own: near lambda = 1 the members' NLL would flatten the ensemble's.

    Args:
        lams: The lambdas, in any order.
        members: Mean NLL of the members at each, in nats; an `Estimate` is drawn with its interval.
        ensemble: NLL of the ensemble, in nats.
        disagreement: Mean share of samples on which two members differ.

    Returns:
        A figure of three axes.

    Raises:
        ValueError: If there is nothing to draw, or lengths differ.

    Example:
        >>> figure = frontier_figure([0, 0.5, 1], members=[1.1, 1.2, 2.4], ensemble=[1.0, 0.9, 1.1],
        ...                          disagreement=[0.2, 0.3, 0.6])
        >>> len(figure.axes)
        3
    """
    lengths = {len(lams), len(members), len(ensemble), len(disagreement)}
    if len(lengths) != 1 or not len(lams):
        raise ValueError(f"lengths are {sorted(lengths)}; give one value of each kind for each of at least one lambda")
    figure, (left, middle, right) = new_figure(8.4, 2.9, cols=3)
    _line(left, lams, members, ORANGE, "o")
    _line(middle, lams, ensemble, BLUE, "s")
    _line(right, lams, disagreement, TEAL, "D")
    left.set(xlabel="λ", ylabel="NLL of a member, mean (nats)")
    middle.set(xlabel="λ", ylabel="NLL of the ensemble (nats)")
    right.set(xlabel="λ", ylabel="disagreement of two members")
    right.set_ylim(bottom=0)
    return figure


def reliability_figure(
    log_p: Float[Tensor, "members batch classes"],
    target: Integer[Tensor, " batch"],
    aggregate: Aggregate = "arithmetic",
    bins: int = 15,
    least: int = 10,
) -> Figure:
    """Accuracy against confidence: members thin, the ensemble thick, with the share of samples in each bin below.

    Args:
        log_p: Normalised log-probabilities of the members.
        target: Class indices.
        aggregate: How members are averaged.
        bins: Bins between 0 and 1.
        least: Samples below which a bin's accuracy is not drawn.

    Returns:
        A figure of two axes.

    Raises:
        ValueError: If shapes or labels do not fit.
    """
    figure, (top, bottom) = new_figure(4.2, 4.8, rows=2)
    top.get_gridspec().set_height_ratios([4, 1])
    top.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1.0, label="calibrated")
    for m, own in enumerate(log_p):
        points = reliability(own, target, bins)
        full = points.weight * len(target) > least - 0.5
        x, y, label = points.confidence[full], points.accuracy[full], "members" if m == 0 else None
        top.plot(x.numpy(), y.numpy(), color=TAUPE, linestyle="-", linewidth=0.8, label=label)
    points = reliability(aggregate_log_proba(log_p, aggregate), target, bins)
    full = points.weight * len(target) > least - 0.5
    x, y, label = points.confidence[full], points.accuracy[full], f"ensemble, {aggregate}"
    top.plot(x.numpy(), y.numpy(), color=BLUE, linestyle="-", linewidth=2.6, marker="o", markersize=4, label=label)
    bottom.bar(_places(points, bins), points.weight.numpy(), width=0.9 / bins, color=BLUE, linewidth=0)
    top.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    top.tick_params(labelbottom=False)
    bottom.set(xlim=(0, 1), xlabel="confidence", ylabel="samples")
    top.legend(fontsize=8, frameon=False, loc="upper left")
    return figure


def kappa_error_figure(ensembles: Mapping[str, tuple[Any, Any]]) -> Figure:
    """A point for every pair of members: agreement beyond chance, and the mean of the two error rates.

    Left is diverse, low is accurate; ensembles trade the one for the other.

    Args:
        ensembles: By name, the matrix of Cohen's kappa (members, members) and the members' error rates (members,).

    Returns:
        A figure.

    Raises:
        ValueError: If there is no ensemble, one has a single member, or shapes differ.

    Reference:
        Margineantu and Dietterich (1997), Pruning Adaptive Boosting, ICML.
    """
    if not ensembles:
        raise ValueError("there is nothing to draw: give at least one ensemble")
    figure, axes = new_figure(5.0, 3.8)
    for k, (name, (kappa, error)) in enumerate(ensembles.items()):
        matrix, errors = np.asarray(kappa, dtype=float), np.asarray(error, dtype=float)
        if errors.ndim != 1 or matrix.shape != (len(errors), len(errors)) or len(errors) < 2:
            raise ValueError(f"{name!r} has kappa of shape {matrix.shape} and errors of shape {errors.shape}; give "
                             "(members, members) and (members,) of at least two members")  # fmt: skip
        i, j = np.triu_indices(len(errors), 1)
        axes.plot(matrix[i, j], (errors[i] + errors[j]) / 2, linestyle="none", marker=_MARKERS[k % len(_MARKERS)],
                  markersize=5, color=COLORS[k % len(COLORS)], alpha=0.75, label=name)  # fmt: skip
    axes.set(xlabel="Cohen's κ of the pair", ylabel="mean error rate of the pair")
    axes.legend(fontsize=8, frameon=False)
    return figure


def ambiguity_figure(
    epochs: Sequence[SupportsFloat],
    train: Sequence[SupportsFloat],
    validation: Sequence[SupportsFloat],
    lam: Sequence[SupportsFloat],
) -> Figure:
    """Ambiguity on training and on validation data while training, and lambda below.

    Where the training curve lies above the other, the gap is diversity that does not carry over: collusion.

    Args:
        epochs: When, such as `History.column("epoch")`.
        train: Ambiguity on training data, in nats: `History.column("ambiguity", "train")`.
        validation: Ambiguity on validation data, in nats.
        lam: lambda in force.

    Returns:
        A figure of two axes.

    Raises:
        ValueError: If there is nothing to draw, or lengths differ.
    """
    lengths = {len(epochs), len(train), len(validation), len(lam)}
    if len(lengths) != 1 or not len(epochs):
        raise ValueError(f"lengths are {sorted(lengths)}; give one value of each kind for each of at least one epoch")
    x, above, below = _floats(epochs), _floats(train), _floats(validation)
    figure, (top, bottom) = new_figure(6.0, 4.0, rows=2)
    top.get_gridspec().set_height_ratios([3, 1.2])
    collusion = above >= below
    gap = top.fill_between(x, above, below, where=collusion, interpolate=True, color=ORANGE, alpha=0.25)
    gap.set(linewidth=0, label="does not carry over" if collusion.any() else None)
    top.plot(x, above, color=ORANGE, linestyle="-", label="training data")
    top.plot(x, below, color=BLUE, linestyle="--", label="validation data")
    bottom.plot(x, _floats(lam), color=VIOLET, linestyle="-")
    top.set(ylabel="ambiguity (nats)")
    top.set_ylim(bottom=0)
    top.tick_params(labelbottom=False)
    bottom.set(xlabel="epoch", ylabel="λ")
    bottom.set_ylim(0, max(1.0, float(_floats(lam).max())))
    bottom.sharex(top)
    top.legend(fontsize=8, frameon=False)
    return figure


def risk_coverage_figure(curves: Mapping[str, tuple[Any, Any]]) -> Figure:
    """Error rate among the most confident samples against their share.

    The first hundredth, where a few samples decide, is left out, and a curve has at most 400 points.

    Args:
        curves: By name, coverages and risks, as `dncc.selective.risk_coverage` gives them.

    Returns:
        A figure.

    Raises:
        ValueError: If there is no curve, or one is empty or has coverages and risks of different number.
    """
    if not curves:
        raise ValueError("there is nothing to draw: give at least one curve")
    figure, axes = new_figure(5.0, 3.4)
    for name, (coverage, risk) in curves.items():
        x, y = np.asarray(coverage, dtype=float), np.asarray(risk, dtype=float)
        if x.shape != y.shape or x.ndim != 1 or not len(x):
            raise ValueError(f"{name!r} has coverages of shape {x.shape} and risks of shape {y.shape}; give as many of "
                             "each, at least one")  # fmt: skip
        kept = np.unique(np.linspace(max(0, len(x) // 100 - 1), len(x) - 1, _POINTS).round().astype(int))
        axes.plot(x[kept], y[kept], label=name)
    axes.set(xlim=(0, 1), xlabel="coverage: share of samples kept", ylabel="risk: error rate among them")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8, frameon=False)
    return figure


def matrix_figure(matrix: Any, title: str = "") -> Figure:
    """A measure of pairs as a heat map; the diagonal, which is no pair, is left empty.

    Numbers of both signs are coloured from violet (negative) through white to green, others from yellow (the least) to
    blue (the greatest).

    Args:
        matrix: A measure of pairs, (members, members).
        title: What it is.

    Returns:
        A figure.

    Raises:
        ValueError: If it is not square, or has a single member.
    """
    values = np.array(matrix, dtype=float)
    if values.ndim != 2 or values.shape[0] != values.shape[1] or len(values) < 2:
        raise ValueError(f"matrix has shape {values.shape}; give (members, members) of at least two members")
    np.fill_diagonal(values, np.nan)
    least, most = float(np.nanmin(values)), float(np.nanmax(values))
    signed = least < 0
    if signed:
        least, most = -max(-least, most), max(-least, most)
    elif most - least < _SPREAD:
        least, most = (least + most - _SPREAD) / 2, (least + most + _SPREAD) / 2
    figure, axes = new_figure(4.6, 3.8)
    colours = "PRGn" if signed else "cividis_r"
    mesh = axes.pcolormesh(values, cmap=colours, vmin=least, vmax=most, edgecolors="face", linewidth=0.2)
    if len(values) <= _WRITTEN:
        for (i, j), value in np.ndenumerate(values):
            if np.isfinite(value):
                red, green, blue, _ = mesh.cmap(mesh.norm(value))
                ink = _DARK if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else _LIGHT
                axes.text(j + 0.5, i + 0.5, f"{value:.2f}", ha="center", va="center", fontsize=7, color=ink)
    places = np.arange(len(values)) if len(values) <= 16 else np.arange(0, len(values), 4)
    axes.set(xticks=places + 0.5, yticks=places + 0.5, xticklabels=places, yticklabels=places, title=title)
    axes.set(xlabel="member", ylabel="member", ylim=(len(values), 0), aspect="equal")
    axes.grid(visible=False)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    bar = figure.colorbar(mesh, ax=axes, shrink=0.85)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8)
    return figure


def _line(axes: Any, lams: Sequence[SupportsFloat], values: Points, color: str, marker: str) -> None:
    """Points joined in order of lambda, with the interval of each that has one."""
    order = np.argsort(_floats(lams), kind="stable")
    x = _floats(lams)[order]
    found = [Estimate.from_any(value if isinstance(value, Estimate) else float(value)) for value in values]
    y = np.array([found[k].value for k in order])
    ends = np.array([[found[k].low, found[k].high] if found[k].low is not None else [np.nan] * 2 for k in order])
    reach = np.abs(ends.astype(float) - y[:, None]).T
    axes.errorbar(x, y, yerr=reach, color=color, linestyle="-", marker=marker, markersize=4.5, capsize=2.5,
                  elinewidth=1.0)  # fmt: skip


def _places(points: Reliability, bins: int) -> np.ndarray:
    """Middles of the bins that hold samples."""
    return (np.minimum(np.floor(points.confidence.numpy() * bins), bins - 1) + 0.5) / bins


def _floats(values: Sequence[SupportsFloat]) -> np.ndarray:
    return np.array([float(value) for value in values])

"""Claim 3: with negative correlation even heads on one trunk gain, at a fraction of the cost of separate networks."""

from collections.abc import Mapping

import numpy as np

from common_core.claims import Check, Claim, Estimate, Outcome, at_most, report_progress
from common_core.seeding import numpy_rng
from common_core.stats import bootstrap_mean
from dncc.claims._curve import SETTING

_SEEDS = {"quick": 3, "full": 20}
_LAM = 0.9
_METHODS = (
    ("single", "single", 0.0, "one network"),
    ("heads", "shared", 0.0, "8 heads, λ = 0"),
    ("dncc", "shared", _LAM, f"8 heads, λ = {_LAM}"),
    ("separate", "separate", 0.0, "8 networks, λ = 0"),
)


def run_sharing(scale: str, seed: int, device: str) -> Outcome:
    """One network, heads on one trunk with and without negative correlation, and separate networks."""
    from dncc.claims.experiments import trained

    seeds = _SEEDS[scale]
    nll: dict[str, dict[str, list[float]]] = {name: {"clean": [], "fresh": [], "correct": []} for name, *_ in _METHODS}
    parameters: dict[str, int] = {}
    for run in range(seeds):
        for k, (name, kind, lam, _) in enumerate(_METHODS):
            report_progress(run * len(_METHODS) + k, seeds * len(_METHODS), f"{name}, seed {run}")
            out = trained(kind, lam, 1000 * seed + run)  # type: ignore[arg-type]
            nll[name]["clean"].append(out.clean.ensemble_ce)
            nll[name]["fresh"].append(out.fresh.ensemble_ce)
            nll[name]["correct"].append(out.correct)
            parameters[name] = out.parameters
    rng = numpy_rng(seed, "dncc", "intervals")
    metrics: dict[str, float | Estimate] = {}
    for name, found in nll.items():
        metrics |= {f"{name}_{part}": bootstrap_mean(values, rng=rng) for part, values in found.items()}
    for part in ("clean", "fresh"):
        for name in ("heads", "dncc", "separate"):
            metrics[f"{name}_less_single_{part}"] = bootstrap_mean(_pairs(nll, name, "single", part), rng=rng)
        for other in ("heads", "separate"):
            metrics[f"dncc_less_{other}_{part}"] = bootstrap_mean(_pairs(nll, "dncc", other, part), rng=rng)
    metrics["of_separate"] = parameters["dncc"] / parameters["separate"]
    metrics["of_single"] = parameters["dncc"] / parameters["single"]
    return Outcome(metrics, {"Test NLL of the ensemble less that of one network, seed by seed": _figure(metrics)})


def _pairs(nll: Mapping[str, Mapping[str, list[float]]], name: str, other: str, part: str) -> np.ndarray:
    return np.subtract(nll[name][part], nll[other][part])


def _figure(metrics: Mapping[str, float | Estimate]) -> str:
    from dncc.claims._figures import bars, new_figure, svg

    figure, (left, right) = new_figure(7.6, 2.6, cols=2)
    shown = _METHODS[1:]
    labels = [label for *_, label in shown]
    for axes, part, title in ((left, "clean", "right test labels"), (right, "fresh", "labels as noisy as training")):
        found = [Estimate.from_any(metrics[f"{method[0]}_less_single_{part}"]) for method in shown]
        bars(axes, labels if axes is left else [""] * len(labels), found)
        axes.axvline(0.0, color="black", linewidth=0.9, linestyle=":")
        axes.set_xlabel("test NLL less one network's, nats")
        axes.set_title(title, fontsize=9)
    return svg(figure)


def holds_sharing(metrics: Mapping[str, Estimate]) -> list[Check]:
    """Better than one network and than heads without it; no worse than separate networks, at half the parameters."""
    return [
        at_most("test NLL less that of one network, mean", metrics["dncc_less_single_clean"], 0.0),
        at_most("test NLL less that of heads at lambda 0, upper end", metrics["dncc_less_heads_clean"].upper, 0.0),
        at_most("test NLL less that of separate networks, mean", metrics["dncc_less_separate_clean"], 0.0),
        at_most("parameters, of those of separate networks", metrics["of_separate"], 0.5),
    ]


CLAIMS = (
    Claim(
        id="dncc.shared-backbone",
        statement=(
            "With negative correlation, heads on one trunk gain what separate networks gain, at a fraction of the cost."
        ),
        source="Abstract: works well even with a shared backbone, which significantly improves its efficiency",
        paper="not found: the tables are in no public text; only the abstract's words",
        run=run_sharing,
        holds=holds_sharing,
        headline=(
            "8 heads at λ = 0.9, test NLL less one network's {dncc_less_single_clean:+.3f}, less heads' at λ = 0 "
            "{dncc_less_heads_clean:+.3f}, less 8 networks' {dncc_less_separate_clean:+.3f} with {of_separate:.0%} "
            "of their parameters; on test labels as noisy as the training's {dncc_less_single_fresh:+.3f}, "
            "{dncc_less_heads_fresh:+.3f}, {dncc_less_separate_fresh:+.3f}"
        ),
        differs=SETTING + " The trunk is small, so heads weigh; at ResNet-18 size see the benchmark of the step.",
        requires={"matplotlib": "dncc[claims]"},
    ),
)

"""Claim 4: trained jointly, members collude; the guard sees it and stops it."""

from collections.abc import Mapping

import numpy as np

from common_core.claims import Check, Claim, Estimate, Outcome, at_least, at_most, report_progress
from common_core.seeding import numpy_rng
from common_core.stats import bootstrap_mean
from dncc.claims._curve import SETTING

_SEEDS = {"quick": 2, "full": 16}
_METHODS = (("alone", "λ = 0"), ("half", "λ = 0.5"), ("joint", "λ = 1"), ("guarded", "guarded, from 1"))


def run_collusion(scale: str, seed: int, device: str) -> Outcome:
    """Eight separate networks, trained on their own, half jointly, jointly, and jointly under guard."""
    from dncc.claims.experiments import trained
    from dncc.collusion import collusion_between
    from dncc.guarding import GuardedLambda

    seeds = _SEEDS[scale]
    columns = ("share", "nats", "member", "fresh", "clean", "lam")
    rows = np.empty((len(_METHODS), seeds, len(columns)))
    paths = []
    for run in range(seeds):
        for k, (name, _) in enumerate(_METHODS):
            report_progress(run * len(_METHODS) + k, seeds * len(_METHODS), f"{name}, seed {run}")
            lam = GuardedLambda(1.0) if name == "guarded" else {"alone": 0.0, "half": 0.5, "joint": 1.0}[name]
            out = trained("separate", lam, 1000 * seed + run)
            # Judged on test data that the guard has not seen.
            found = collusion_between(out.train, out.fresh)
            rows[k, run] = [
                found.share,
                found.nats,
                out.fresh.ce,
                out.fresh.ensemble_ce,
                out.clean.ensemble_ce,
                out.path[-1],
            ]
            if name == "guarded":
                paths.append(out.path)
    rng = numpy_rng(seed, "dncc", "intervals")
    metrics: dict[str, float | Estimate] = {}
    for k, (name, _) in enumerate(_METHODS):
        for column, what in enumerate(columns):
            metrics[f"{name}_{what}"] = bootstrap_mean(rows[k, :, column], rng=rng)
    for other in ("alone", "half", "joint"):
        row = [name for name, _ in _METHODS].index(other)
        metrics[f"guarded_against_{other}"] = bootstrap_mean(rows[3, :, 3] - rows[row, :, 3], rng=rng)
    return Outcome(metrics, {"Collusion, and lambda under guard": _figure(metrics, np.array(paths))})


def _figure(metrics: Mapping[str, float | Estimate], paths: np.ndarray) -> str:
    from dncc.claims._figures import COLORS, bars, new_figure, svg

    figure, (left, middle, right) = new_figure(9.0, 2.6, cols=3)
    labels = [label for _, label in _METHODS]
    for axes, what, title in ((left, "share", "share of the gap"), (middle, "fresh", "ensemble's test NLL, nats")):
        found = [Estimate.from_any(metrics[f"{name}_{what}"]) for name, _ in _METHODS]
        bars(axes, labels if axes is left else [""] * len(labels), found)
        axes.set_xlabel(title)
    for path in paths:
        right.plot(np.arange(1, len(path) + 1), path, color=COLORS[0], linestyle="-", linewidth=0.7, alpha=0.5)
    right.set_xlabel("epoch")
    right.set_ylabel("λ under guard")
    right.set_ylim(0, 1.03)
    return svg(figure)


def holds_collusion(metrics: Mapping[str, Estimate]) -> list[Check]:
    """Collusion at 1 and none at 0; the guard removes most of it and the ensemble is better for it."""
    spoilt = float(metrics["joint_member"]) - float(metrics["alone_member"])
    better = metrics["guarded_against_joint"].upper
    return [
        at_least("share of the generalisation gap that is collusion at 1, low end", metrics["joint_share"].lower, 0.2),
        at_most("the same at 0, upper end", metrics["alone_share"].upper, 0.05),
        at_least("NLL of a member at lambda 1 less at lambda 0, nats", spoilt, 0.3),
        at_most("the share under guard, upper end (tolerance 0.2)", metrics["guarded_share"].upper, 0.2),
        at_most("ensemble's test NLL under guard less at lambda 1, upper end", better, 0.0),
    ]


CLAIMS = (
    Claim(
        id="dncc.collusion-guarded",
        statement=(
            "At lambda = 1 members collude: diversity shown in training does not carry over. The guard stops it."
        ),
        source="ours; collusion: Jeffares et al. (2023), NeurIPS, for joint training",
        paper="none for DNCC; Jeffares et al.: joint training inflates a diversity that does not generalise",
        run=run_collusion,
        holds=holds_collusion,
        headline=(
            "share of the generalisation gap: {alone_share:.0%} at λ = 0, {joint_share:.0%} at 1, {guarded_share:.0%} "
            "under guard; ensemble's test NLL {alone_fresh:.3f}, {joint_fresh:.3f}, {guarded_fresh:.3f} (right labels: "
            "{alone_clean:.3f}, {joint_clean:.3f}, {guarded_clean:.3f})"
        ),
        differs=SETTING + " Here 8 separate networks, and test labels as noisy as the training's.",
        requires={"matplotlib": "dncc[claims]"},
    ),
)

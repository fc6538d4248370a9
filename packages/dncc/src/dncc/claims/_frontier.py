"""Claim 5: one training run shows the whole trade-off."""

from collections.abc import Mapping

import numpy as np

from common_core.claims import Check, Claim, Estimate, Outcome, at_least, at_most, report_progress
from common_core.seeding import numpy_rng
from common_core.stats import bootstrap_mean
from dncc.claims._curve import SETTING

_LAMBDAS = (0.0, 0.5, 0.9, 1.0)
_SEEDS = {"quick": 2, "full": 12}
_SHOWN = ("member", "ensemble", "disagreement")


def run_frontier(scale: str, seed: int, device: str) -> Outcome:
    """Groups of heads, each with its lambda, on one trunk; and a run for every lambda."""
    import torch

    from dncc.claims.experiments import EPOCHS, MEMBERS, few_noisy_digits, grouped, network, trained
    from dncc.frontier import FrontierLoss
    from dncc.training import fit

    seeds = _SEEDS[scale]
    one, many = (np.empty((len(_LAMBDAS), seeds, len(_SHOWN))) for _ in range(2))
    for run in range(seeds):
        number = 1000 * seed + run
        report_progress(run * 5, seeds * 5, f"one run, seed {run}")
        data = few_noisy_digits(number)
        model = network("shared", number, MEMBERS * len(_LAMBDAS))
        generator = torch.Generator().manual_seed(number)
        fit(model, FrontierLoss(_LAMBDAS), (data.x_train, data.y_train), epochs=EPOCHS, batch_size=50, lr=3e-3,
            generator=generator)  # fmt: skip
        for k, out in enumerate(grouped(model, data, number, len(_LAMBDAS))):
            one[k, run] = [out.clean.ce, out.clean.ensemble_ce, out.disagreement]
        for k, lam in enumerate(_LAMBDAS):
            report_progress(run * 5 + 1 + k, seeds * 5, f"lambda {lam:g}, seed {run}")
            out = trained("shared", lam, number)
            many[k, run] = [out.clean.ce, out.clean.ensemble_ce, out.disagreement]
    rng = numpy_rng(seed, "dncc", "intervals")
    metrics: dict[str, float | Estimate] = {}
    for column, name in enumerate(_SHOWN):
        for k, lam in enumerate(_LAMBDAS):
            metrics[f"one_{name}_{100 * lam:.0f}"] = bootstrap_mean(one[k, :, column], rng=rng)
            metrics[f"many_{name}_{100 * lam:.0f}"] = bootstrap_mean(many[k, :, column], rng=rng)
        metrics[f"{name}_apart"] = float(np.abs(one[:, :, column].mean(axis=1) - many[:, :, column].mean(axis=1)).max())
    steps = np.diff(one[:, :, 2], axis=0)
    metrics["least_step"] = bootstrap_mean(steps[int(np.argmin(steps.mean(axis=1)))], rng=rng)
    return Outcome(metrics, {"One run against one a lambda": _figure(metrics)})


def _figure(metrics: Mapping[str, float | Estimate]) -> str:
    from dncc.claims._figures import curve, new_figure, svg

    figure, (left, right) = new_figure(7.2, 3.2, cols=2)
    for position, (run, label) in enumerate((("many", "a run each"), ("one", "one run"))):
        for axes, name in ((left, "ensemble"), (right, "disagreement")):
            found = [Estimate.from_any(metrics[f"{run}_{name}_{100 * lam:.0f}"]) for lam in _LAMBDAS]
            curve(axes, _LAMBDAS, found, label, position)
    left.set_ylabel("ensemble's test NLL, nats")
    right.set_ylabel("disagreement")
    for axes in (left, right):
        axes.set_xlabel("λ")
        axes.legend()
    return svg(figure)


def holds_frontier(metrics: Mapping[str, Estimate]) -> list[Check]:
    """The order is that of separate runs, and the figures are near."""
    return [
        at_least("least step of disagreement within the run, lower end", metrics["least_step"].lower, 0.0),
        at_most("ensemble's test NLL, largest distance from a run of its own, nats", metrics["ensemble_apart"], 0.05),
        at_most("disagreement, largest distance from a run of its own", metrics["disagreement_apart"], 0.08),
    ]


CLAIMS = (
    Claim(
        id="dncc.frontier-in-one-run",
        statement="Groups of heads with a lambda each, on one trunk, show the trade-off of a run for every lambda.",
        source="ours",
        paper="none: a run for every lambda",
        run=run_frontier,
        holds=holds_frontier,
        headline=(
            "disagreement {one_disagreement_0:.1%} to {one_disagreement_100:.1%} in one run ({many_disagreement_0:.1%} "
            "to {many_disagreement_100:.1%} in a run each), ensemble's NLL at most {ensemble_apart:.3f} nats apart"
        ),
        differs=SETTING + " One run has 4 groups of 8 heads.",
        requires={"matplotlib": "dncc[claims]"},
    ),
)

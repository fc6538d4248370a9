"""Claim 2: lambda trades the accuracy of the members for their diversity, step by step."""

from collections.abc import Mapping

import numpy as np

from common_core.claims import Check, Claim, Estimate, Outcome, at_least, at_most, report_progress
from common_core.seeding import numpy_rng
from common_core.stats import bootstrap_mean

_INSIDE = 0.9  # the lambda that is held against the ends
_LAMBDAS = {"quick": (0.0, 0.9, 1.0), "full": (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0)}
_SEEDS = {"quick": 2, "full": 12}
_SHOWN = ("member", "ensemble", "disagreement", "ambiguity")
SETTING = (
    "scikit-learn digits, 30 training pictures a class, 10% of the labels wrong; one layer of 64 as trunk, heads with "
    "a layer of 32, M = 8; 60 epochs of Adam. The paper trains convolutional networks on image benchmarks."
)


def run_curve(scale: str, seed: int, device: str) -> Outcome:
    """Train the same heads on the same trunk at every lambda, with several seeds."""
    from dncc.claims.experiments import trained

    lambdas, seeds = _LAMBDAS[scale], _SEEDS[scale]
    rows = np.empty((len(lambdas), seeds, len(_SHOWN)))
    for k, lam in enumerate(lambdas):
        for run in range(seeds):
            report_progress(k * seeds + run, len(lambdas) * seeds, f"lambda {lam:g}")
            out = trained("shared", lam, 1000 * seed + run)
            rows[k, run] = [out.clean.ce, out.clean.ensemble_ce, out.disagreement, out.train.ambiguity]
    rng = numpy_rng(seed, "dncc", "intervals")
    metrics: dict[str, float | Estimate] = {}
    for column, name in enumerate(_SHOWN):
        steps = np.diff(rows[:, :, column], axis=0)
        least = int(np.argmin(steps.mean(axis=1)))
        metrics[f"{name}_least_step"] = bootstrap_mean(steps[least], rng=rng)
        for k, lam in enumerate(lambdas):
            metrics[f"{name}_{100 * lam:.0f}"] = bootstrap_mean(rows[k, :, column], rng=rng)
    inside = lambdas.index(_INSIDE)
    metrics["inside_less_0"] = bootstrap_mean(rows[inside, :, 1] - rows[0, :, 1], rng=rng)
    metrics["inside_less_1"] = bootstrap_mean(rows[inside, :, 1] - rows[-1, :, 1], rng=rng)
    return Outcome(metrics, {"What lambda does to members and ensemble": _figure(metrics, lambdas)})


def _figure(metrics: Mapping[str, float | Estimate], lambdas: tuple[float, ...]) -> str:
    from dncc.claims._figures import curve, new_figure, svg

    figure, (left, right) = new_figure(7.2, 3.2, cols=2)

    def over(name: str) -> list[Estimate]:
        return [Estimate.from_any(metrics[f"{name}_{100 * lam:.0f}"]) for lam in lambdas]

    for position, (name, label) in enumerate((("member", "members, mean"), ("ensemble", "ensemble"))):
        curve(left, lambdas, over(name), label, position)
    for position, (name, label) in enumerate((("disagreement", "disagreement"), ("ambiguity", "ambiguity, training"))):
        curve(right, lambdas, over(name), label, position + 2)
    left.set_ylabel("test NLL, nats")
    right.set_ylabel("share, nats")
    for axes in (left, right):
        axes.set_xlabel("λ")
        axes.legend()
    return svg(figure)


def holds_curve(metrics: Mapping[str, Estimate]) -> list[Check]:
    """Diversity grows with every step of lambda, the members' accuracy falls, and the ensemble gains on lambda 0."""
    low = {name: estimate.lower for name, estimate in metrics.items()}
    return [
        at_least(
            "lower end of the least step of disagreement from lambda to lambda", low["disagreement_least_step"], 0.0
        ),
        at_least("lower end of the least step of training ambiguity, nats", low["ambiguity_least_step"], 0.0),
        at_least("mean of the least step of the members' test NLL, nats", metrics["member_least_step"], -0.005),
        at_least(
            "members' test NLL at lambda 1 less at 0, lower end, nats",
            low["member_100"] - metrics["member_0"].upper,
            0.0,
        ),
        at_most("ensemble's test NLL at lambda 0.9 less at 0, upper end, nats", metrics["inside_less_0"].upper, 0.0),
    ]


CLAIMS = (
    Claim(
        id="dncc.lambda-trades",
        statement=(
            "Lambda trades the accuracy of the members for their diversity monotonically, and the ensemble gains: "
            "it is not best at lambda = 0."
        ),
        source="Abstract: the trade-off is systematically controlled; the curve over lambda",
        paper="not found: the tables are in no public text; only the abstract's words",
        run=run_curve,
        holds=holds_curve,
        headline=(
            "from λ = 0 to 1: disagreement {disagreement_0:.1%} to {disagreement_100:.1%}, members' test NLL "
            "{member_0:.2f} to {member_100:.2f}; ensemble {ensemble_0:.3f} at 0, {ensemble_90:.3f} at 0.9, "
            "{ensemble_100:.3f} at 1 "
            "(0.9 less 1: {inside_less_1:+.3f})"
        ),
        differs=SETTING,
        requires={"matplotlib": "dncc[claims]"},
    ),
)

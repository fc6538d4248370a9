"""Claim 6: the prior can be learned from the log, and little is lost by it."""

from collections.abc import Mapping

import numpy as np

from common_core.claims import Check, Claim, Estimate, Outcome, at_most, report_progress
from common_core.seeding import Streams, numpy_rng
from common_core.stats import bootstrap, bootstrap_mean, fit_rate
from hieropo.claims._synthetic import Setting, draw, suboptimality
from hieropo.estimators import HierOPO
from hieropo.hyper import fit_hyperparameters
from hieropo.statistics import TaskStatistics

_RUNS = {"quick": 6, "full": 30}
_BOTH = {"quick": 2, "full": 10}  # runs in which ML-II is tried too
_TASKS = (10, 30, 100, 300)
_ROWS_EACH = 50  # as in the paper's problem of 10 tasks and 500 rows
_CONTEXTS = {"quick": 20_000, "full": 200_000}  # over all tasks
_COLUMNS = ("Sigma_0", "sigma", "sigma_0_methods", "evidence_methods", "true", "learned")


def _run(setting: Setting, contexts: int, both: bool, streams: Streams) -> list[float]:
    """Errors of the learned prior, disagreement of the two methods, and losses under both priors."""
    problem = draw(setting, streams)
    stats = TaskStatistics.from_rows(problem.features, problem.rewards, problem.tasks)
    em = fit_hyperparameters(stats)
    ml2 = fit_hyperparameters(stats, "ml2") if both else em
    truth, learned = setting.prior, em.prior

    def apart(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.linalg.norm(a - b) / np.linalg.norm(truth.Sigma_0))

    policies = [HierOPO(prior).fit_statistics(stats) for prior in (truth, learned)]
    losses = suboptimality(policies, problem, contexts // setting.m, streams.numpy("test"))
    return [
        apart(learned.Sigma_0, truth.Sigma_0),
        abs(learned.sigma / truth.sigma - 1),
        apart(learned.Sigma_0, ml2.prior.Sigma_0),
        abs(em.log_evidence - ml2.log_evidence),
        *losses.tolist(),
    ]


def run_learned_prior(scale: str, seed: int, device: str) -> Outcome:
    """Learn (Σ_0, σ) from more and more tasks, by EM and by ML-II."""
    runs, root = _RUNS[scale], Streams(seed, "hieropo", "prior")
    rows = np.empty((len(_TASKS), runs, len(_COLUMNS)))
    for k, m in enumerate(_TASKS):
        for run in range(runs):
            report_progress(k * runs + run, len(_TASKS) * runs, f"m = {m}")
            setting = Setting(m=m, n=_ROWS_EACH * m)
            rows[k, run] = _run(setting, _CONTEXTS[scale], run < _BOTH[scale], root.child(m, run))
    rng = numpy_rng(seed, "hieropo", "intervals")
    column = {name: rows[:, :, k] for k, name in enumerate(_COLUMNS)}
    metrics: dict[str, float | Estimate] = {
        "rate_Sigma_0": fit_rate(np.repeat(_TASKS, runs), column["Sigma_0"].ravel()),
        "methods_apart": float(column["sigma_0_methods"].max()),
        "evidence_apart": float(column["evidence_methods"].max()),
    }
    for k, m in enumerate(_TASKS):
        metrics[f"Sigma_0_error_m{m}"] = bootstrap_mean(column["Sigma_0"][k], rng=rng)
        metrics[f"sigma_error_m{m}"] = bootstrap_mean(column["sigma"][k], rng=rng)
        pair = np.stack([column["true"][k], column["learned"][k]], axis=1)
        metrics[f"excess_m{m}"] = bootstrap(pair, _excess, rng=rng)
    return Outcome(metrics, {"Errors of the learned prior, and what the policy loses by it": _figure(metrics)})


def _excess(pairs: np.ndarray) -> float:
    """How much more the learned prior loses than the true one, as a share."""
    true, learned = pairs.mean(axis=0)
    return float(learned / true - 1)


def _figure(metrics: Mapping[str, float | Estimate]) -> str:
    from hieropo.claims._figures import curves, new_figure, svg

    figure, (left, right) = new_figure(7.2, 3.2, cols=2)

    def over_m(name: str) -> list[Estimate]:
        return [Estimate.from_any(metrics[f"{name}_m{m}"]) for m in _TASKS]

    curves(left, _TASKS, {"Σ_0 (Frobenius)": over_m("Sigma_0_error"), "σ": over_m("sigma_error")}, log="xy")
    reference = float(metrics[f"Sigma_0_error_m{_TASKS[0]}"]) * np.sqrt(_TASKS[0] / np.array(_TASKS))
    left.plot(_TASKS, reference, color="black", linewidth=0.9, linestyle=":", label="1/√m")
    left.set_ylabel("relative error")
    left.legend()
    curves(right, _TASKS, {"learned": over_m("excess")})
    right.axhline(0.0, color="black", linewidth=0.9, linestyle=":")
    right.set_ylabel("loss above the true prior's, share")
    for axes in (left, right):
        axes.set_xlabel("tasks m, with 50 rows each")
    return svg(figure)


def holds_learned_prior(metrics: Mapping[str, Estimate]) -> list[Check]:
    """Errors fall with m, the methods agree, and the policy hardly suffers."""
    few, many = _TASKS[0], _TASKS[-1]
    high = {name: estimate.upper for name, estimate in metrics.items()}
    return [
        at_most("upper end of the rate of the error of Σ_0 in m (theory: −½)", high["rate_Sigma_0"], -0.3),
        at_most(f"upper end of the relative error of Σ_0, m = {many}", high[f"Sigma_0_error_m{many}"], 0.25),
        at_most(f"upper end of the relative error of σ, m = {many}", high[f"sigma_error_m{many}"], 0.02),
        at_most("EM and ML-II apart in Σ_0, largest over runs", metrics["methods_apart"], 0.05),
        at_most("EM and ML-II apart in log evidence, largest over runs", metrics["evidence_apart"], 0.05),
        at_most(f"upper end of the excess loss, m = {few}", high[f"excess_m{few}"], 0.25),
        at_most(f"upper end of the excess loss, m = {many}", high[f"excess_m{many}"], 0.05),
    ]


CLAIMS = (
    Claim(
        id="hieropo.learned-prior",
        statement="Σ_0 and σ can be learned from the log; with many tasks the policy is as good as with the truth.",
        source="ours; the paper takes the prior as known",
        paper="none: the prior is given (synthetic), or estimated outside the method (MovieLens-1M)",
        run=run_learned_prior,
        holds=holds_learned_prior,
        headline=(
            "relative error of Σ_0: {Sigma_0_error_m10:.2f} from 10 tasks, {Sigma_0_error_m300:.2f} from 300; "
            "loss above the true prior's: {excess_m10:.1%} and {excess_m300:.1%}"
        ),
        differs="The paper's synthetic problem at σ_q = 1 with 50 rows a task; Σ_0 full, flat prior of μ.",
        requires={"matplotlib": "hieropo[claims]"},
    ),
)

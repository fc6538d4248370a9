"""Claim 7: a task that has never been logged is served by what the others taught about their mean."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from common_core.claims import Check, Claim, Estimate, Outcome, at_least, at_most, report_progress
from common_core.seeding import Streams, numpy_rng
from common_core.stats import bootstrap, bootstrap_mean
from hieropo.claims._synthetic import Setting
from hieropo.estimators import HierOPO, OracleOPO
from hieropo.statistics import TaskStatistics

_RUNS = {"quick": 40, "full": 600}
_TASKS = (1, 2, 5, 10, 20, 50, 100)
_ROWS_EACH, _NEW_TASKS = 20, 1000  # one context of each new task
_NEW = -1  # a label that no logged task has


def _run(setting: Setting, streams: Streams) -> Float[np.ndarray, "sizes 6"]:
    """Mean rewards of the prior-only, learned and oracle policy; the learned one's loss; its two-action check.

    All policies are greedy, so that the learned one is the Bayes-optimal policy of a new task.
    """
    prior = setting.prior
    mu, theta = prior.sample(max(_TASKS), streams.numpy("truth"))
    rng = streams.numpy("log")
    tasks = np.repeat(np.arange(max(_TASKS)), _ROWS_EACH)
    features = rng.uniform(-0.5, 0.5, (len(tasks), prior.d))
    rewards = np.sum(features * theta[tasks], axis=1) + prior.sigma * rng.standard_normal(len(tasks))
    stats = TaskStatistics.from_rows(features, rewards, tasks)
    rng = streams.numpy("test")
    phi = rng.uniform(-0.5, 0.5, (_NEW_TASKS, setting.actions, prior.d))
    new = mu + setting.sigma_0 * rng.standard_normal((_NEW_TASKS, prior.d))

    def chosen(policy: HierOPO | OracleOPO, actions: int) -> np.ndarray:
        pick = policy.predict(phi[:, :actions], _NEW)
        return phi[np.arange(_NEW_TASKS), pick]

    def reward(features: np.ndarray) -> float:
        return float(np.mean(np.sum(features * new, axis=1)))

    ignorant, oracle = chosen(HierOPO(prior, 0.0), setting.actions), chosen(OracleOPO(prior, mu, 0.0), setting.actions)
    out = []
    for m in _TASKS:
        policy = HierOPO(prior, 0.0).fit_statistics(stats.select(np.arange(m)))
        mine = chosen(policy, setting.actions)
        expected = _two_action_value(phi[:, 0] - phi[:, 1], prior.Sigma_q - policy.hyper_posterior.cov)
        loss = float(np.mean((oracle - mine) @ mu))  # exact over new tasks, whose mean is μ
        out.append([reward(ignorant), reward(mine), reward(oracle), loss, reward(chosen(policy, 2)), expected])
    return np.array(out)


def _two_action_value(delta: Float[np.ndarray, "B d"], cov: Float[np.ndarray, "d d"]) -> float:
    """Bayesian value of the greedy choice among two actions: E max(φ_1ᵀμ̄, φ_2ᵀμ̄) = √(δᵀSδ / 2π).

    Before the rewards are seen, μ̄ ~ N(0, S) with S = Σ_q − Σ̄ (total covariance), and E max of two centred Gaussians
    is half the mean absolute difference; δ = φ_1 − φ_2.
    """
    return float(np.mean(np.sqrt(np.sum((delta @ cov) * delta, axis=1) / (2 * np.pi))))


def run_cold_start(scale: str, seed: int, device: str) -> Outcome:
    """Serve new tasks after m others have been logged."""
    runs, root = _RUNS[scale], Streams(seed, "hieropo", "cold-start")
    rows = np.empty((runs, len(_TASKS), 6))
    for run in range(runs):
        report_progress(run, runs, "runs")
        rows[run] = _run(Setting(), root.child(run))
    rng = numpy_rng(seed, "hieropo", "intervals")
    ignorant, mine, oracle, loss, two, expected = np.moveaxis(rows, 2, 0)
    metrics: dict[str, float | Estimate] = {
        "prior_only": bootstrap_mean(ignorant[:, 0], rng=rng),
        "oracle": bootstrap_mean(oracle[:, 0], rng=rng),
        "rate_of_loss": bootstrap(loss[:, 2:], _rate, rng=rng),
    }
    for k, m in enumerate(_TASKS):
        metrics[f"reward_m{m}"] = bootstrap_mean(mine[:, k], rng=rng)
        metrics[f"gain_m{m}"] = bootstrap_mean(mine[:, k] - ignorant[:, k], rng=rng)
        metrics[f"attained_m{m}"] = bootstrap(rows[:, k, :3], _attained, rng=rng)
    off = two - expected
    metrics["closed_form_off"] = float(np.abs(off.mean(axis=0) / (off.std(axis=0, ddof=1) / np.sqrt(runs))).max())
    return Outcome(metrics, {"Mean reward of a task without a single row": _figure(metrics)})


def _attained(rows: np.ndarray) -> float:
    """Share of the way from the prior-only policy to the one that knows μ."""
    ignorant, mine, oracle = rows.mean(axis=0)
    return float((mine - ignorant) / (oracle - ignorant))


def _rate(loss: np.ndarray) -> float:
    """Slope of log mean loss against log m, from five tasks on; no run's loss is negative."""
    return float(np.polyfit(np.log(_TASKS[2:]), np.log(loss.mean(axis=0)), 1)[0])


def _figure(metrics: Mapping[str, float | Estimate]) -> str:
    from hieropo.claims._figures import curves, new_figure, svg

    figure, axes = new_figure(6.0, 3.4)
    series = {"Hier": "reward_m{}", "Oracle": "oracle", "prior only": "prior_only"}
    shown = {k: [Estimate.from_any(metrics[name.format(m)]) for m in _TASKS] for k, name in series.items()}
    curves(axes, _TASKS, shown)
    axes.set_xlabel("logged tasks m, with 20 rows each")
    axes.set_ylabel("mean reward of a new task")
    axes.legend(loc="center right")
    return svg(figure)


def holds_cold_start(metrics: Mapping[str, Estimate]) -> list[Check]:
    """Better than the prior from the first task on, close to the oracle after many, and as the closed form says."""
    many, attained = _TASKS[-1], metrics[f"attained_m{_TASKS[-1]}"]
    return [
        *(at_least(f"lower end of the gain over the prior, m = {m}", metrics[f"gain_m{m}"].lower, 0.0) for m in _TASKS),
        at_least(f"lower end of the share attained of the oracle's gain, m = {many}", attained.lower, 0.95),
        # −1/2 is the rate of the error in μ; a greedy choice loses its square
        at_most("upper end of the rate of the loss in m (theory: −1)", metrics["rate_of_loss"].upper, -0.5),
        at_most(
            "deviation from the closed form of two actions, largest, in standard errors",
            metrics["closed_form_off"],
            4.0,
        ),
    ]


CLAIMS = (
    Claim(
        id="hieropo.cold-start",
        statement="A task without a single row gains from the others, almost as much as if their mean were known.",
        source="ours; the paper remarks that the hyper-posterior is a prior of new tasks",
        paper="none",
        run=run_cold_start,
        holds=holds_cold_start,
        headline=(
            "share of the oracle's gain over the prior: {attained_m1:.2f} after one task, {attained_m10:.2f} after 10, "
            "{attained_m100:.3f} after 100"
        ),
        differs="The paper's synthetic problem at σ_q = 1; 20 rows a logged task, greedy policies (α = 0).",
        requires={"matplotlib": "hieropo[claims]"},
    ),
)

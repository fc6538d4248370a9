"""The command: `demo`, `fit`, `predict`, `evaluate`, `info` and `claims`."""

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from common_core.cli import Answer, option, package_app
from common_core.console import progress, table
from common_core.records import write_bytes_atomic
from common_core.seeding import Streams
from hieropo.confidence import Kind
from hieropo.estimators import GaussianOPO, HierOPO
from hieropo.hyper import fit_hyperparameters
from hieropo.io import load, save
from hieropo.ope import LoggedFeedback, direct_method, doubly_robust, inverse_propensity, self_normalised
from hieropo.prior import GaussianHierarchy
from hieropo.statistics import TaskStatistics
from hieropo.structure import Structure

Policy = Annotated[Path, option("POLICY.npz")]

_TOLERANCE = 1e-6  # of the evidence, relative: no policy feels less
_LISTED = 10  # tasks that `info` lists from either end


def demo(seed: int = 0) -> Answer:
    """Show on one small problem what sharing between tasks is worth.

    Args:
        seed: Seed of the problem.
    """
    from hieropo.claims._synthetic import Setting, draw, learners, suboptimality

    setting, streams = Setting(n=200), Streams(seed, "hieropo", "demo")
    problem = draw(setting, streams)
    made = learners(problem)
    losses = dict(zip(made, suboptimality(list(made.values()), problem, 2000, streams.numpy("test")), strict=True))
    notes = {
        "Hier": "all tasks together, their mean unknown",
        "Flat": "every task alone",
        "Oracle": "told the tasks' mean",
        "Global": "all tasks taken as one",
    }
    best = min(losses.values())
    rows = [(name, f"{loss:.4f}", f"{loss / best:.1f}x", notes[name]) for name, loss in losses.items()]
    hier = made["Hier"]
    actions = streams.numpy("actions").uniform(-0.5, 0.5, (1, setting.actions, setting.d))
    scores, chosen = hier.uncertainty(actions, 0), int(hier.predict(actions, 0)[0])
    truth = actions[0] @ problem.theta[0]
    shown: list[Any] = [
        f"{setting.m} tasks, {setting.n} logged rows in all, {setting.d} features, {setting.actions} actions.\n",
        table(["learner", "mean suboptimality", "of the best", ""], rows),
        "\nOne context of task 0, as Hier sees it (★ chosen, ● best in truth):\n",
        table(
            ["action", "", "true reward", "estimate", "lower bound", "± own rows", "± tasks' mean"],
            [
                (
                    str(a),
                    ("★" if a == chosen else "") + ("●" if a == int(np.argmax(truth)) else ""),
                    f"{truth[a]:+.3f}",
                    f"{scores.mean[0, a]:+.3f}",
                    f"{scores.mean[0, a] - hier.alpha * scores.std[0, a]:+.3f}",
                    f"{np.sqrt(scores.task_var[0, a]):.3f}",
                    f"{np.sqrt(scores.hyper_var[0, a]):.3f}",
                )
                for a in range(setting.actions)
            ],
        ),
    ]
    return Answer({"suboptimality": losses, "chosen": chosen, "best": int(np.argmax(truth))}, shown)


def fit(
    log: Annotated[Path, option("LOG.npz")],
    out: Annotated[Path, option("POLICY.npz")],
    /,
    alpha: Annotated[float | None, option("FLOAT", "0.1, or from delta")] = None,
    delta: Annotated[float | None, option("FLOAT", "alpha as given")] = None,
    kind: Kind = "simultaneous",
    sigma: Annotated[float | None, option("FLOAT", "learned")] = None,
    sigma_0: Annotated[float | None, option("FLOAT", "learned")] = None,
    sigma_q: Annotated[float | None, option("FLOAT", "flat")] = None,
    structure: Structure = "full",
) -> Answer:
    """Learn policies of all tasks from a log, and its prior too unless it is given.

    LOG.npz holds features [n, d] of the logged actions, rewards [n] and task_ids [n] (integers or strings).

    Args:
        log: The log.
        out: Where the policy goes; replaced whole or not at all.
        alpha: Width of the lower bounds in standard deviations; 0 is greedy.
        delta: Failure probability from which the width is derived instead.
        kind: What delta means: all actions at once, a single one, or the paper's width.
        sigma: Standard deviation of the reward noise.
        sigma_0: Standard deviation of each weight of a task around the mean. Needs the other two.
        sigma_q: Standard deviation of each weight of the mean; flat assumes nothing.
        structure: Structure of the learned covariance of tasks around the mean.
    """
    _distinct(out, log)
    if alpha is not None and delta is not None:
        raise ValueError("--alpha and --delta are both given; give one of them")
    if delta is None and kind != "simultaneous":
        raise ValueError(f"--kind {kind} says what a delta means: give --delta with it")
    arrays = _read(log, ("features", "rewards", "task_ids"))
    stats = TaskStatistics.from_rows(arrays["features"], arrays["rewards"], arrays["task_ids"])
    progress().print(f"read {stats.n} rows of {stats.m} tasks with {stats.d} features")
    note = "given"
    if sigma_0 is not None:
        if sigma is None or sigma_q is None:
            raise ValueError("--sigma-0 is given: give --sigma and --sigma-q too, or none of the three to learn them")
        prior = GaussianHierarchy.isotropic(stats.d, sigma_q, sigma_0, sigma)
    else:
        progress().print("learning the prior by its evidence")
        found = fit_hyperparameters(
            stats,
            sigma_q="flat" if sigma_q is None else sigma_q,
            sigma=sigma,
            structure=structure,
            tolerance=_TOLERANCE,
        )
        if found.status == "not_identified":
            raise ValueError(f"the prior cannot be learned: {found.message}")
        prior, note = found.prior, f"learned, {found.status} after {found.n_iter} iterations"
    policy = HierOPO(prior, alpha, delta=delta, kind=kind).fit_statistics(stats)
    save(policy, out)
    evidence = policy.log_marginal_likelihood()
    data = {"policy": str(out), "rows": stats.n, "tasks": stats.m, "features": stats.d, "alpha": policy.alpha,
            "sigma": prior.sigma, "Sigma_0": prior.Sigma_0, "prior": note, "log_evidence": evidence}  # fmt: skip
    rows = [*_summary(policy), ("prior", note), ("log evidence", f"{evidence:.4g}")]
    return Answer(data, [table(["policy", ""], rows), f"\nSaved to {out}"])


def predict(
    policy: Policy, contexts: Annotated[Path, option("CONTEXTS.npz")], out: Annotated[Path, option("OUT.npz")], /
) -> Answer:
    """Choose an action in each context.

    CONTEXTS.npz holds action_features [B, K, d], task_ids [B] and, where actions are missing, mask [B, K]. OUT.npz will
    hold actions [B], and mean, std and lower_bound [B, K]. Tasks without rows are served by what the others taught.

    Args:
        policy: What fit saved.
        contexts: The contexts.
        out: Where the choices go; replaced whole or not at all.
    """
    _distinct(out, policy, contexts)
    estimator = load(policy, GaussianOPO)
    arrays = _read(contexts, ("action_features", "task_ids"), ("mask",))
    features, tasks, mask = arrays["action_features"], arrays["task_ids"], arrays.get("mask")
    actions = estimator.predict(features, tasks, mask)
    present = features if mask is None else np.where(mask[..., None], features, 0.0)
    scores = estimator.uncertainty(present, tasks)
    bound = scores.mean - estimator.alpha * scores.std
    if mask is None:
        mask = np.ones(bound.shape, dtype=bool)
    mean, std, lower = (np.where(mask, values, np.nan) for values in (scores.mean, scores.std, bound))
    buffer = io.BytesIO()
    np.savez(buffer, actions=actions, mean=mean, std=std, lower_bound=lower)
    write_bytes_atomic(out, buffer.getvalue())
    new = int(np.sum(estimator.statistics.positions(tasks) < 0))
    best = np.take_along_axis(bound, actions[:, None], axis=1)
    data = {"out": str(out), "contexts": len(actions), "of_new_tasks": new, "mean_lower_bound": float(best.mean())}
    shown = f"{len(actions)} contexts, {new} of them of tasks without rows; mean lower bound {best.mean():.4g}."
    return Answer(data, f"{shown}\nSaved to {out}")


def evaluate(policy: Policy, log: Annotated[Path, option("LOG.npz")], /, confidence: float = 0.95) -> Answer:
    """Estimate what a policy earns, from a log with propensities that it was not learned from.

    LOG.npz holds action_features [n, K, d], task_ids [n], and of the logged actions: actions [n] in 0..K-1, rewards [n]
    and propensities [n].

    Args:
        policy: What fit saved.
        log: The log; rows that the policy was learned from make it look better than it is.
        confidence: Coverage of the intervals.
    """
    estimator = load(policy, GaussianOPO)
    arrays = _read(log, ("action_features", "task_ids", "actions", "rewards", "propensities"))
    feedback = LoggedFeedback(arrays["actions"], arrays["rewards"], arrays["propensities"])
    features, tasks = arrays["action_features"], arrays["task_ids"]
    dist, model = estimator.to_action_dist(features, tasks), estimator.uncertainty(features, tasks).mean
    estimates = [
        direct_method(dist, model, confidence=confidence),
        inverse_propensity(feedback, dist, confidence=confidence),
        self_normalised(feedback, dist, confidence=confidence),
        doubly_robust(feedback, dist, model, confidence=confidence),
    ]
    logged = float(np.mean(feedback.rewards))
    rows = [(e.estimator.upper(), f"{e.estimate:.4g}", f"{e.effective_n:.0f}") for e in estimates]
    data = {e.estimator: {**e.estimate.to_json(), "effective_n": e.effective_n} for e in estimates}
    head = ["estimator", f"value, {confidence:.0%} interval", "effective rows"]
    return Answer({"logged": logged, **data}, [table(head, rows), f"\nThe logging policy earned {logged:.4g} a row."])


def info(policy: Policy, /, task: Annotated[str | None, option("LABEL", "all tasks in brief")] = None) -> Answer:
    """Show what a policy file holds, or what is known about one task.

    Args:
        policy: What fit saved.
        task: A task's label.
    """
    estimator = load(policy, GaussianOPO)
    stats = estimator.statistics
    if task is not None:
        label = task if stats.tasks.dtype.kind == "U" or not task.lstrip("-").isdigit() else int(task)
        posterior, rows = estimator.posterior(label), int(stats.count[stats.index(label)])
        parts = [np.sqrt(np.diagonal(cov)) for cov in (posterior.cov, posterior.task_cov, posterior.hyper_cov)]
        lines = [
            (str(k), f"{mean:+.4g}", *(f"{part[k]:.3g}" for part in parts)) for k, mean in enumerate(posterior.mean)
        ]
        head = ["feature", "weight", "±", "± own rows", "± tasks' mean"]
        data = {"task": label, "rows": rows, "mean": posterior.mean, "std": parts[0]}
        return Answer(data, [f"task {label!r}, {rows} rows\n", table(head, lines)])
    hyper = estimator.hyper_posterior
    order = np.argsort(-stats.count, kind="stable")
    ends = order if len(order) <= 2 * _LISTED else np.concatenate([order[:_LISTED], order[-_LISTED:]])
    data = {
        "class": type(estimator).__name__, "tasks": stats.m, "rows": stats.n, "features": stats.d,
        "alpha": estimator.alpha, "delta": estimator.delta, "sigma": estimator.prior.sigma,
        "Sigma_0": estimator.prior.Sigma_0, "hyper_mean": hyper.mean, "hyper_std": np.sqrt(np.diagonal(hyper.cov)),
    }  # fmt: skip
    weights = [
        (str(k), f"{mean:+.4g}", f"{data['hyper_std'][k]:.3g}", f"{estimator.prior.Sigma_0[k, k] ** 0.5:.3g}")
        for k, mean in enumerate(hyper.mean)
    ]
    shown: list[Any] = [
        table(["policy", ""], _summary(estimator)),
        "",
        table(["feature", "mean of tasks", "±", "tasks' spread"], weights),
        "",
        table(["task", "rows"], [(str(stats.tasks[k]), str(stats.count[k])) for k in ends]),
    ]
    if len(ends) < len(order):
        shown.append(f"The {_LISTED} tasks with the most rows and the {_LISTED} with the fewest, of {stats.m}.")
    return Answer(data, shown)


def _summary(policy: GaussianOPO) -> list[tuple[str, str]]:
    stats, prior = policy.statistics, policy.prior
    width = f"{policy.alpha:.4g}" + (f" (δ = {policy.delta:g}, {policy.kind})" if policy.delta is not None else "")
    return [
        ("learner", type(policy).__name__),
        ("rows", f"{stats.n} of {stats.m} tasks, {stats.d} features"),
        ("α", width),
        ("noise σ", f"{prior.sigma:.4g}"),
        ("tasks around the mean", f"{np.sqrt(np.trace(prior.Sigma_0) / prior.d):.4g} (root mean variance of Σ_0)"),
    ]


def _distinct(out: Path, *sources: Path) -> None:
    """Refuse to write over what is read, and into a folder that does not exist: it is likely a slip of the pen."""
    for source in sources:
        if out.exists() and source.exists() and out.samefile(source):
            raise ValueError(f"{out} is read and would be written over; give another file for the output")
    if out.is_dir():
        raise ValueError(f"{out} is a folder; give a file for the output")
    if not out.parent.is_dir():
        raise ValueError(f"the folder {out.parent} of the output does not exist; make it, or mend the path")


def _read(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Named arrays of an .npz file, without pickle."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            if not hasattr(file, "files"):
                raise ValueError("it holds a single array")
            missing = [name for name in required if name not in file.files]
            if missing:
                have = ", ".join(file.files) or "nothing"
                raise KeyError(f"{path} lacks {', '.join(missing)}; it holds {have}; needed are {', '.join(required)}")
            return {name: _plain(file, name, path) for name in (*required, *optional) if name in file.files}
    except _ObjectArrayError as error:
        raise ValueError(str(error)) from None
    except (ValueError, EOFError, zipfile.BadZipFile):
        raise ValueError(f"{path} is not an .npz file of plain arrays; write it by np.savez") from None


def _plain(file: Any, name: str, path: Path) -> np.ndarray:
    try:
        return file[name]
    except ValueError:  # numpy refuses to unpickle
        raise _ObjectArrayError(
            f"{path}: array {name!r} holds Python objects; save labels by .astype(str), numbers by .astype(float)"
        ) from None


class _ObjectArrayError(Exception):
    """An array that only pickle could read."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    verbs = {"demo": demo, "fit": fit, "predict": predict, "evaluate": evaluate, "info": info}
    description = "Off-policy learning for many related tasks from logged bandit feedback."
    return package_app("hieropo", verbs, description, arguments)

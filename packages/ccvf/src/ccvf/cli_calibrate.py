"""What `ccvf calibrate` does: a confidence chosen before deployment, and how far the bounds can be believed."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ccvf.cli_runs import Run
from ccvf.confidence import check_deltas
from ccvf.environments import Stepper
from ccvf.ope_estimates import ReturnEstimates, choose_delta, episode_starts
from ccvf.transitions import Transitions
from ccvf.values import ConfidenceValues
from common_core.console import progress, table
from common_core.seeding import Streams

__all__ = [
    "against_returns",
    "check_calibrated",
    "coverage_rows",
    "cut_notes",
    "estimates_of",
    "returns_share",
    "show_estimates",
]


def check_calibrated(run: Run, with_environment: bool) -> None:
    """Whether there is a confidence to choose, and values that can be compared with returns.

    Args:
        run: The training.
        with_environment: Whether values are to be compared with returns.

    Raises:
        ValueError: If not.
    """
    settings = run.settings
    if not settings.conditioned:
        raise ValueError(f"{run.folder} is of method {settings.method}, which knows no confidence: there is nothing to "
                         "choose or to calibrate")  # fmt: skip
    if with_environment and settings.config.get("clip_rewards"):
        raise ValueError(f"{run.folder} was trained on the signs of rewards: its values are not in the units of "
                         "returns; leave --env out")  # fmt: skip


def estimates_of(
    run: Run, values: ConfidenceValues, data: Transitions, deltas: Sequence[float], *, updates: int, seed: int,
    device: str,
) -> tuple[ReturnEstimates, str]:  # fmt: skip
    """Estimated returns of the greedy policy of every confidence, from a log alone.

    Args:
        run: The training.
        values: Its values.
        data: The log.
        deltas: Confidences.
        updates: Of fitted Q evaluation.
        seed: Of it and of the intervals.
        device: Where it is fitted.

    Returns:
        The estimates; for tabular values those in the process that the log describes, solved exactly. And how they
        were found, in words.

    Raises:
        ValueError: If a number is out of range.
    """
    settings = run.settings
    if settings.method == "tabular":
        from ccvf.cli_tabular import counts_of
        from ccvf.ope_tabular import empirical_returns

        counts = counts_of(data, settings.config)
        first = data.observations(episode_starts(data))
        initial = np.bincount(first, minlength=counts.n_states) / len(first)
        found = empirical_returns(counts, values, deltas, settings.gamma, initial)
        return found, f"exact in the process that the log describes, from {len(first)} starts of episodes"
    from ccvf.ope import FittedQEvaluation, estimate_returns
    from ccvf.training import train

    config = settings.config
    evaluation = FittedQEvaluation(
        values, deltas, data.observation_shape, gamma=settings.gamma, seed=seed, body=config["body"],
        n_states=config["n_states"], hidden=tuple(config["hidden"]), device=device,
    )  # fmt: skip
    train(
        evaluation, data, updates=updates, batch_size=min(128, len(data)), record_every=max(1, updates // 20),
        generator=Streams(seed, "ccvf.cli").torch("evaluation"), progress=progress().is_terminal,
    )  # fmt: skip
    found = estimate_returns(evaluation, data, seed=seed)
    return found, f"fitted Q evaluation, {updates} updates, from {found.starts} starts of episodes"


def show_estimates(found: ReturnEstimates, rule: str) -> tuple[Any, float]:
    """The table of the estimates, and the confidence that a rule chooses.

    Args:
        found: The estimates.
        rule: "best" or "lower".

    Returns:
        Both.

    Raises:
        ValueError: If the rule needs intervals and there are none.
    """
    chosen = choose_delta(found, rule)
    rows = []
    for delta, value, low, high in zip(found.deltas, found.value, found.low, found.high, strict=True):
        interval = f" [{low:.4g}, {high:.4g}]" if np.isfinite(low) else ""
        rows.append([f"{delta:g}", f"{value:.4g}{interval}", "chosen" if delta == chosen else ""])
    return table(["delta", "estimated discounted return", ""], rows), chosen


def cut_notes(run: Run, data: Transitions) -> list[str]:
    """What weakens the estimates of this log.

    Args:
        run: The training.
        data: The log.

    Returns:
        Sentences.
    """
    notes = []
    if data.fingerprint() == run.log["fingerprint"]:
        notes.append(
            "The log is the one that was learnt from, which flatters little conservatism: better give another."
        )
    if data.metadata.get("subsample", {}).get("by") == "transitions":
        notes.append("Of this log single transitions were drawn: what counts as the start of an episode here is none. "
                     "Draw episodes instead (ccvf collect --by episodes).")  # fmt: skip
    return notes


def returns_share(
    run: Run, values: ConfidenceValues, stepper: Stepper, deltas: Sequence[float], *, episodes: int, seed: int,
    max_steps: int | None,
) -> tuple[Any, Any]:  # fmt: skip
    """How often returns reach the values, when the greedy policy of each confidence is played.

    Args:
        run: The training.
        values: Its values.
        stepper: The environments.
        deltas: Confidences.
        episodes: At each.
        seed: Of the environments.
        max_steps: Steps after which an episode is cut.

    Returns:
        The calibration, and its table.

    Raises:
        ValueError: If training and environments do not fit, or time limits cut every return.
    """
    from ccvf.calibration import calibrate

    run.check_environment(stepper)
    found = calibrate(
        values, stepper, deltas, episodes, gamma=run.settings.gamma, seed=seed, max_steps=max_steps,
        progress=progress().is_terminal,
    )  # fmt: skip
    rows = [
        [f"{row['delta']:g}", f"{row['nominal']:.4g}", f"{row['share']:.3f} [{row['low']:.3f}, {row['high']:.3f}]",
         f"{row['gap']:+.4g}", f"{row['pairs']:.0f}"]
        for row in found.table()
    ]  # fmt: skip
    return found, table(["delta", "1 - delta", "share of returns", "return - value", "visits"], rows)


def coverage_rows(run: Run, data: Transitions, deltas: Sequence[float], sets: int, seed: int) -> tuple[Any, Any]:
    """How often tabular bounds hold in a known gridworld, over logs drawn anew with the visits of this one.

    Args:
        run: A tabular training of a gridworld.
        data: The log, whose visits are drawn again.
        deltas: Confidences to show.
        sets: Logs.
        seed: Of the draws.

    Returns:
        The report, and its table.

    Raises:
        ValueError: If fewer than one log is asked for.
    """
    from ccvf.cli_tabular import counts_of, solver_of
    from ccvf.coverage import coverage_report
    from ccvf.gridworlds import lava_world

    if sets < 1:
        raise ValueError(f"--sets is {sets}; give 1 or more")
    mdp, config = lava_world().mdp, run.settings.config
    visits = counts_of(data, config).visits.astype(np.int64)
    grid = check_deltas(sorted(set(deltas)))
    solver = solver_of(config)
    if run.settings.config["budget"] == "box":
        solver = replace(solver, deltas=grid.tolist())  # of the box, points of the grid do not depend on each other
    if solver.reward_range is None:
        solver = replace(solver, reward_range=mdp.reward_range)  # a log drawn anew may hold no reward at all
    report = coverage_report(
        mdp, solver, lambda rng: mdp.draw_counts(visits, rng), sets, Streams(seed, "ccvf.cli").numpy("sets")
    )
    known = np.searchsorted(report.deltas, grid * (1 + 1e-6), side="right") - 1
    chosen = [row for k, row in enumerate(report.table()) if k in set(known.tolist())]
    rows = [
        [f"{row['delta']:g}", f"{row['nominal']:.4g}", f"{row['mean']:.4f}",
         f"{row['worst']:.3f} [{row['worst_low']:.3f}, {row['worst_high']:.3f}]",
         f"{row['everywhere']:.3f} [{row['everywhere_low']:.3f}, {row['everywhere_high']:.3f}]"]
        for row in chosen
    ]  # fmt: skip
    return report, table(["delta", "1 - delta", "all pairs", "worst pair", "all pairs at once"], rows)


def against_returns(
    run: Run, values: ConfidenceValues, data: Transitions, env: str, deltas: Sequence[float], *, episodes: int,
    envs: int, sets: int, max_steps: int | None, seed: int,
) -> tuple[dict[str, Any], list[Any], Any]:  # fmt: skip
    """Values against played returns, and of tabular values in the gridworld coverage of the truth.

    Args:
        run: The training.
        values: Its values.
        data: The log.
        env: Environment.
        deltas: Confidences.
        episodes: At each.
        envs: Environments side by side.
        sets: Logs drawn anew.
        max_steps: Steps after which an episode is cut.
        seed: Of everything.

    Returns:
        JSON values, what is shown, and a function that draws the curves.

    Raises:
        ValueError: If training and environment do not fit, or a number is out of range.
    """
    from ccvf.environments import make_vector

    stepper = make_vector(env, envs, seed=seed)
    try:
        found, shown = returns_share(
            run, values, stepper, deltas, episodes=episodes, seed=seed, max_steps=max_steps
        )  # fmt: skip
    finally:
        stepper.close()
    answer: dict[str, Any] = {"calibration": found.to_json()}
    parts: list[Any] = [
        f"greedy at each confidence in {env}, {episodes} episodes: returns that reach the value\n",
        shown,
    ]
    curves = {"returns that reach the value": (found.share, found.low, found.high)}
    if run.settings.config.get("relative"):
        parts.append("Values with relative charges are no lower bounds; the share says how far off they are.")
    if run.settings.method == "tabular" and env == "gridworld:lava":
        report, shown = coverage_rows(run, data, deltas, sets, seed)
        answer["coverage"] = json.loads(report.to_json())
        parts += ["", f"bounds that hold, over {sets} logs drawn anew with the visits of this one\n", shown]
        if len(report.deltas) == len(found.deltas):
            ends = report.everywhere_interval
            curves["all bounds hold at once"] = (report.everywhere, ends[:, 0], ends[:, 1])

    def picture() -> Any:
        from ccvf.plots import calibration_figure

        return calibration_figure(found.deltas, curves, label="share")

    return answer, [*parts, ""], picture

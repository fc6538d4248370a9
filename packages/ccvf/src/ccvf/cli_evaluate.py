"""What `ccvf evaluate` does: fixed confidences and the adaptive policy of one or several trainings, side by side."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np

from ccvf.adaptive import AdaptivePolicy, BeliefHistory
from ccvf.attractor import DegenerateValuesWarning
from ccvf.belief import PAPER, Evidence
from ccvf.cli_runs import Run
from ccvf.confidence import check_deltas, u_grid
from ccvf.environments import Stepper
from ccvf.evaluating import Evaluation, evaluate
from ccvf.policies import FixedPolicy, Policy
from ccvf.values import ConfidenceValues
from common_core.console import progress, table
from common_core.seeding import Streams
from common_core.stats import Estimate

__all__ = ["ADAPTIVE", "DELTAS", "Adapting", "Played", "labels", "play_run", "show", "tables"]

ADAPTIVE = "adaptive"
DELTAS = (1e-4, 0.01, 0.1, 0.5, 1.0)
_NO_CONFIDENCE = "greedy"


@final
@dataclass(frozen=True)
class Adapting:
    """How the adaptive policy is played.

    Attributes:
        act: How a confidence is taken from the belief.
        quantile: Of act="quantile".
        persist: How long a belief lasts.
        evidence: "default" or "paper".
        beta: Weight of the evidence; None: the default's.
        forget: Share of the evidence that is kept at a step.
        guard: Whether confidences that say nothing are set aside.
    """

    act: str = "mean"
    quantile: float = 0.5
    persist: str = "env"
    evidence: str = "default"
    beta: float | None = None
    forget: float = 1.0
    guard: bool = True

    def weighing(self) -> Evidence:
        """The evidence."""
        chosen = PAPER if self.evidence == "paper" else Evidence()
        return replace(chosen, forget=self.forget, beta=chosen.beta if self.beta is None else self.beta)

    def policy(self, run: Run, values: ConfidenceValues, seed: int) -> AdaptivePolicy:
        """The policy.

        Args:
            run: The training.
            values: Its values.
            seed: Of samples.
        """
        return AdaptivePolicy(
            values, gamma=run.settings.gamma, deltas=u_grid(smallest=max(1e-4, run.settings.smallest)).tolist(),
            evidence=self.weighing(), act=self.act, quantile=self.quantile, persist=self.persist, guard=self.guard,
            generator=Streams(seed, "ccvf.cli").numpy("belief"),
        )  # fmt: skip


@final
@dataclass(frozen=True)
class Played:
    """What was played of one training.

    Attributes:
        run: The training.
        fixed: Confidences (None: of values without one) and their episodes.
        adaptive: Episodes of the adaptive policy.
        notes: What was noticed.
    """

    run: Run
    fixed: tuple[tuple[float | None, Evaluation], ...]
    adaptive: Evaluation | None
    notes: tuple[str, ...]

    def policies(self) -> dict[str, Evaluation]:
        """Episodes by the name of the policy."""
        named = {_NO_CONFIDENCE if delta is None else f"delta {delta:g}": found for delta, found in self.fixed}
        return named if self.adaptive is None else {**named, ADAPTIVE: self.adaptive}

    def to_json(self, seed: int) -> dict[str, Any]:
        """Plain values.

        Args:
            seed: Of the intervals.
        """
        rows = [{"delta": delta, **_facts(found, seed)} for delta, found in self.fixed]
        facts: dict[str, Any] = {"method": self.run.settings.method, "fixed": rows, "notes": list(self.notes)}
        if self.adaptive is not None:
            facts[ADAPTIVE] = _facts(self.adaptive, seed) | _belief(self.adaptive.belief)
        return facts


def _facts(found: Evaluation, seed: int) -> dict[str, Any]:
    return {
        "return": estimate(found, seed).to_json(), "discounted": estimate(found, seed, discounted=True).to_json(),
        "length": float(found.lengths.mean()), "truncated": float(found.truncated.mean()), "episodes": len(found),
    }  # fmt: skip


def _belief(history: BeliefHistory | None) -> dict[str, Any]:
    if history is None or not len(history.weights):
        return {}
    last = history.weights[-1].astype(float)
    return {
        "belief": {
            "deltas": history.deltas.tolist(), "weights": last.tolist(), "mean_u": float(history.mean_u[-1]),
            "entropy": float(history.entropy[-1]), "steps": history.first + len(history.weights),
        }
    }  # fmt: skip


def estimate(found: Evaluation, seed: int, *, discounted: bool = False) -> Estimate:
    """Mean return with its interval.

    Args:
        found: Episodes.
        seed: Of the resamples.
        discounted: Of discounted returns.
    """
    return found.mean(Streams(seed, "ccvf.cli").numpy("interval"), discounted=discounted)


@final
class _Signs(Policy):
    """Tells a policy the signs of rewards only, for values that were trained on those."""

    def __init__(self, inner: Policy) -> None:
        self.inner = inner

    def act(self, observations: np.ndarray) -> np.ndarray:
        return self.inner.act(observations)

    def observe(
        self, rewards: np.ndarray, next_observations: np.ndarray, terminated: np.ndarray, truncated: np.ndarray
    ) -> None:
        self.inner.observe(np.sign(rewards), next_observations, terminated, truncated)

    def reset(self, envs: np.ndarray | None = None) -> None:
        self.inner.reset(envs)


def play_run(
    run: Run,
    stepper: Stepper,
    *,
    deltas: Sequence[float] | None,
    episodes: int,
    seed: int,
    adapting: Adapting | None,
    max_steps: int | None = None,
    device: str = "cpu",
) -> Played:
    """Play the policies of a training; all of them play the same episodes.

    Args:
        run: The training.
        stepper: The environments.
        deltas: Fixed confidences; None: `DELTAS` as far as the values know them.
        episodes: Of each policy.
        seed: Of the environments.
        adapting: How the adaptive policy is played; None: not.
        max_steps: Steps after which an episode is cut.
        device: Where values are computed.

    Returns:
        What was played.

    Raises:
        ValueError: If training and environments do not fit, or a number is out of range.
    """
    run.check_environment(stepper)
    values, settings = run.values(device), run.settings
    grid: list[float | None] = [None]
    if settings.conditioned:
        given = DELTAS if deltas is None else deltas
        known = [delta for delta in given if delta >= settings.smallest or deltas is not None]
        grid = list(check_deltas(known).tolist())
    bar = progress().is_terminal

    def play(policy: Policy) -> Evaluation:
        return evaluate(
            policy, stepper, episodes, seed=seed, gamma=settings.gamma, max_steps=max_steps, progress=bar
        )  # fmt: skip

    fixed = tuple((delta, play(FixedPolicy(values, 1.0 if delta is None else delta))) for delta in grid)
    if adapting is None or not settings.conditioned:
        return Played(run, fixed, None, ())
    policy = adapting.policy(run, values, seed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DegenerateValuesWarning)
        found = play(_Signs(policy) if settings.config.get("clip_rewards") else policy)
    notes = tuple(str(warning.message) for warning in caught if issubclass(warning.category, DegenerateValuesWarning))
    return Played(run, fixed, replace(found, belief=policy.history), notes)


def labels(runs: Mapping[str, Run]) -> dict[str, str]:
    """What each training is called in a comparison: its method, and settings in which methods of that name differ.

    Trainings that differ in seed and log only share a name.

    Args:
        runs: Trainings by name.

    Returns:
        A label for each.
    """
    flat = {name: _kind(run) for name, run in runs.items()}
    found = {}
    for name, own in flat.items():
        alike = [other for other in flat.values() if other["method"] == own["method"]]
        keys = [key for key in own if any(other.get(key) != own[key] for other in alike)]
        found[name] = " ".join([own["method"], *(f"{key.replace('_', '-')}={own[key]}" for key in keys)])
    return found


def _kind(run: Run) -> dict[str, Any]:
    left_out = ("seed", "n_states", "amp")
    return {"updates": run.settings.updates} | {
        key: value for key, value in run.settings.flat().items() if key not in left_out
    }


def show(played: Played, seed: int) -> Any:
    """The table of one training.

    Args:
        played: What was played.
        seed: Of the intervals.

    Returns:
        A table.
    """
    rows = [
        [name, f"{estimate(found, seed):.4g}", f"{estimate(found, seed, discounted=True):.4g}",
         f"{found.lengths.mean():.4g}", f"{found.truncated.mean():.0%}"]
        for name, found in played.policies().items()
    ]  # fmt: skip
    return table(["policy", "return", "discounted", "steps", "cut"], rows)


def tables(played: Mapping[str, Played], seed: int) -> tuple[Any, dict[str, Any]]:
    """Several trainings side by side: the interquartile mean over trainings that differ in seed or log only.

    Args:
        played: By name.
        seed: Of the intervals.

    Returns:
        A table, and the figures as JSON values.
    """
    from ccvf.scores import aggregate

    called = labels({name: one.run for name, one in played.items()})
    groups: dict[str, dict[str, list[float]]] = {}
    for name, one in played.items():
        of = groups.setdefault(called[name], {})
        for policy, found in one.policies().items():
            of.setdefault(policy, []).append(float(found.returns.mean()))
    rows, facts = [], {}
    for label, policies in groups.items():
        matrices = {policy: np.array(values)[:, None] for policy, values in policies.items()}
        scores = {policy: aggregate({policy: matrix}, Streams(seed, "ccvf.cli").numpy("iqm"))[policy]
                  for policy, matrix in matrices.items()}  # fmt: skip
        facts[label] = {policy: score.iqm.to_json() | {"runs": score.runs} for policy, score in scores.items()}
        for k, (policy, score) in enumerate(scores.items()):
            means = ", ".join(f"{value:.4g}" for value in policies[policy])
            rows.append([label if k == 0 else "", policy, f"{score.iqm:.4g}", means])
    return table(["trainings", "policy", "IQM of returns", "each"], rows), facts

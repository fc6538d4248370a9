"""The paper's synthetic problem, and what policies lose on it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Integer

from common_core.claims import report_progress
from common_core.seeding import Streams
from hieropo.estimators import FlatOPO, GlobalOPO, HierOPO, OracleOPO
from hieropo.policy import PessimisticPolicy
from hieropo.prior import GaussianHierarchy
from hieropo.statistics import TaskStatistics

RUNS = {"quick": 30, "full": 30}  # the paper: 30
CONTEXTS = {"quick": 2000, "full": 20_000}  # test contexts, over all tasks
FEW_ROWS = (100, 200, 500)  # the paper's range of n, where sharing matters
_BLOCK = 1 << 16  # test contexts times actions scored at a time


@dataclass(frozen=True)
class Setting:
    """A problem of the paper's family: d features, K actions with φ ~ U[−½, ½]^d, uniform logging.

    Args:
        sigma_q: Standard deviation of the coordinates of the task mean.
        m: Tasks.
        n: Logged rows, over all tasks.
        sigma_0: Standard deviation of a task around the mean.
        sigma: Standard deviation of the reward noise.
        d: Features.
        actions: K.
    """

    sigma_q: float = 1.0
    m: int = 10
    n: int = 500
    sigma_0: float = 0.5
    sigma: float = 0.5
    d: int = 4
    actions: int = 5

    @property
    def prior(self) -> GaussianHierarchy:
        """The true prior."""
        return GaussianHierarchy.isotropic(self.d, self.sigma_q, self.sigma_0, self.sigma)


@dataclass(frozen=True, eq=False)
class Problem:
    """One draw: the truth and its log."""

    setting: Setting
    mu: Float[np.ndarray, " d"]
    theta: Float[np.ndarray, "m d"]
    features: Float[np.ndarray, "n d"]
    rewards: Float[np.ndarray, " n"]
    tasks: Integer[np.ndarray, " n"]


def draw(setting: Setting, streams: Streams) -> Problem:
    """Draw a truth and a log; equal streams give the same standard normals whatever σ_q, so settings can be paired.

    Args:
        setting: What to draw from.
        streams: One node for each run.

    Returns:
        The problem.
    """
    mu, theta = setting.prior.sample(setting.m, streams.numpy("truth"))
    rng = streams.numpy("log")
    tasks = rng.integers(setting.m, size=setting.n)
    # With uniform logging the features of the logged action are those of any one action.
    features = rng.uniform(-0.5, 0.5, (setting.n, setting.d))
    noise = setting.sigma * rng.standard_normal(setting.n)
    return Problem(setting, mu, theta, features, np.sum(features * theta[tasks], axis=1) + noise, tasks)


def suboptimality(
    policies: Sequence[PessimisticPolicy], problem: Problem, each: int, rng: np.random.Generator
) -> Float[np.ndarray, " policies"]:
    """Mean over tasks and fresh contexts of max_a φᵀθ_s − φ(π(x))ᵀθ_s, on the same contexts for every policy.

    Args:
        policies: The policies.
        problem: The truth.
        each: Test contexts of each task.
        rng: Source of randomness.

    Returns:
        What each policy loses, in units of the reward.
    """
    setting, lost = problem.setting, np.zeros(len(policies))
    at_once = max(1, _BLOCK // (each * setting.actions))
    for low in range(0, setting.m, at_once):
        tasks = np.arange(low, min(low + at_once, setting.m))
        # One row a task with all its contexts side by side: a task's matrices are then looked up once.
        features = rng.uniform(-0.5, 0.5, (len(tasks), each * setting.actions, setting.d))
        shape = (len(tasks), each, setting.actions)
        value = (features @ problem.theta[tasks][:, :, None]).reshape(shape)
        best = value.max(axis=2)
        for k, policy in enumerate(policies):
            actions = np.argmax(policy.lower_bound(features, tasks).reshape(shape), axis=2)
            lost[k] += np.sum(best - np.take_along_axis(value, actions[:, :, None], 2)[:, :, 0])
    return lost / (setting.m * each)


def learners(problem: Problem) -> dict[str, PessimisticPolicy]:
    """The paper's four learners on the log of a problem, with the paper's α = 0.1 and the true prior."""
    prior = problem.setting.prior
    stats = TaskStatistics.from_rows(problem.features, problem.rewards, problem.tasks)
    return {
        "Hier": HierOPO(prior).fit_statistics(stats),
        "Flat": FlatOPO(prior).fit_statistics(stats),
        "Oracle": OracleOPO(prior, problem.mu).fit_statistics(stats),
        "Global": GlobalOPO(prior).fit_statistics(stats),
    }


def compare(
    settings: Sequence[Setting],
    scale: str,
    seed: int,
    runs: int | None = None,
    contexts: int | None = None,
) -> dict[Setting, dict[str, Float[np.ndarray, " runs"]]]:
    """Suboptimality of learners over runs; run r has the same streams in every setting.

    Args:
        settings: Problems to draw from.
        scale: "quick" or "full".
        seed: The claim's seed.
        runs: How many; `RUNS` of the scale if not given.
        contexts: Test contexts over all tasks; `CONTEXTS` of the scale if not given.

    Returns:
        Setting to learner to losses, one a run.
    """
    runs, contexts = runs or RUNS[scale], contexts or CONTEXTS[scale]
    root = Streams(seed, "hieropo", "synthetic")
    results: dict[Setting, dict[str, np.ndarray]] = {}
    for done, setting in enumerate(settings):
        rows = []
        for run in range(runs):
            report_progress(done * runs + run, len(settings) * runs, f"m = {setting.m}, n = {setting.n}")
            streams = root.child(run)
            problem = draw(setting, streams)
            made = learners(problem)
            rows.append(suboptimality(list(made.values()), problem, contexts // setting.m, streams.numpy("test")))
        results[setting] = dict(zip(made, np.array(rows).T, strict=True))
    return results

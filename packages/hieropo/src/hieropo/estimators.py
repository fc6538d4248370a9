"""HierOPO and its baselines: the same computation under four priors."""

# ruff: noqa: PYI019 (typing.Self cannot be checked at run time function by function, as the tests do)

from __future__ import annotations

from typing import TypeVar, final

import numpy as np
import numpy.typing as npt
from jaxtyping import Float

from hieropo.certificate import Certificate, certify
from hieropo.checks import as_generator, as_size
from hieropo.confidence import Kind
from hieropo.evidence import evidence_of
from hieropo.labels import Task, as_label, as_labels, unknown_message
from hieropo.learner import Knowledge, StatisticsLearner
from hieropo.linalg import blocks
from hieropo.policy import ActionScores
from hieropo.posterior import HierarchicalPosterior, HyperPosterior, infer
from hieropo.prior import GaussianHierarchy
from hieropo.statistics import TaskStatistics

G = TypeVar("G", bound="GaussianOPO")


class GaussianOPO(StatisticsLearner[HierarchicalPosterior]):
    """Pessimistic off-policy learning under a two-level Gaussian prior; abstract, see the four subclasses.

    Args:
        prior: The prior that is actually used.
        alpha: Width of the bounds, >= 0; 0 is greedy. The paper's 0.1 if neither alpha nor delta is given.
        delta: Failure probability from which alpha is derived instead.
        kind: "simultaneous", "pointwise" or "paper": what delta means.
    """

    def __init__(self, prior: GaussianHierarchy, alpha: float | None, delta: float | None, kind: Kind | str) -> None:
        if type(self) is GaussianOPO:
            raise TypeError("GaussianOPO is abstract; use HierOPO, FlatOPO, OracleOPO or GlobalOPO")
        if not isinstance(prior, GaussianHierarchy):
            raise TypeError(f"prior is a {type(prior).__name__}; give a GaussianHierarchy")
        self._prior = prior
        super().__init__(prior.d, alpha, delta, kind)

    @classmethod
    def restore(
        cls: type[G],
        prior: GaussianHierarchy,
        stats: TaskStatistics,
        alpha: float,
        delta: float | None,
        kind: Kind | str,
    ) -> G:
        """An estimator in a given state, for loading: the prior is taken as it is, already transformed.

        Args:
            prior: What `prior` returned.
            stats: What `statistics` returned.
            alpha: Width of the bounds.
            delta: The failure probability alpha was derived from, if it was.
            kind: What delta means.

        Returns:
            The estimator.

        Raises:
            ValueError: If sizes disagree or an option is out of range.
        """
        estimator = cls.__new__(cls)
        GaussianOPO.__init__(estimator, prior, alpha, None, "simultaneous")
        return estimator.derived_from(delta, kind).fit_statistics(stats)

    @property
    def prior(self) -> GaussianHierarchy:
        """The prior that is used, after the class's transformation."""
        return self._prior

    @property
    def hyper_posterior(self) -> HyperPosterior:
        """The posterior of the task mean μ."""
        return self.joint.hyper

    def log_marginal_likelihood(self) -> float:
        """Log p(Y) of all rewards under the prior, exact.

        Returns:
            The log density, natural logarithm.
        """
        knowledge = self._knowledge
        return evidence_of(knowledge.stats, knowledge.posterior)

    def sample(
        self, rng: np.random.Generator, size: int = 1, tasks: npt.ArrayLike | None = None
    ) -> tuple[Float[np.ndarray, "{size} d"], Float[np.ndarray, "{size} k d"]]:
        """Joint posterior draws of μ and of task parameters.

        Args:
            rng: Source of randomness.
            size: Number of draws.
            tasks: Labels; all tasks if not given.

        Returns:
            μ [size, d] and θ [size, k, d].

        Raises:
            KeyError: If a task is unknown.
            ValueError: If size < 1.
            TypeError: If rng is not a generator.
        """
        rng, size = as_generator(rng), as_size(size, "size")
        knowledge = self._knowledge
        if tasks is None:
            return knowledge.posterior.sample(rng, size)
        labels = as_labels(tasks, "tasks")
        which = knowledge.stats.positions(labels)
        if np.any(which < 0):
            raise KeyError(unknown_message(knowledge.stats.tasks, labels[which < 0][0].item()))
        return knowledge.posterior.sample(rng, size, which)

    def certificate(
        self,
        action_features: npt.ArrayLike,
        task: Task,
        *,
        rng: np.random.Generator,
        delta: float = 0.05,
        draws: int = 1000,
        mask: npt.ArrayLike | None = None,
    ) -> Certificate:
        """What this policy loses on these contexts against the best one, at most and in expectation.

        Args:
            action_features: φ(x, a) of contexts that stand for the task's distribution, shape [B, K, d].
            task: One label; a label never seen is answered by the posterior of a new task.
            rng: Source of randomness.
            delta: Failure probability.
            draws: Draws of θ from the posterior, at least 2.
            mask: True where an action is available, shape [B, K] or [K].

        Returns:
            The certificate.

        Raises:
            ValueError: If a shape is wrong, there is no context, or an option is out of range.
            TypeError: If several labels are given, a label of another kind, or rng is not a generator.
        """
        label, rng, draws = as_label(task), as_generator(rng), as_size(draws, "draws")
        rows = np.shape(action_features)[0] if np.ndim(action_features) == 3 else 1
        features, labels, available = self._arguments(action_features, np.repeat(label, rows), mask)
        if draws < 2 or len(features) == 0 or not available.any(axis=1).all():
            raise ValueError("give draws >= 2, at least one context, and an available action in each")
        knowledge = self._knowledge
        scores = _gaussian_scores(knowledge, features, labels)
        theta = knowledge.posterior.sample(rng, draws, knowledge.stats.positions(label))[1][:, 0]
        return certify(features, available, scores, theta, self.alpha, delta)

    def _infer(self, stats: TaskStatistics) -> HierarchicalPosterior:
        return infer(stats, self._prior)

    def _score(self, features: Float[np.ndarray, "B K d"], labels: np.ndarray) -> ActionScores:
        return _gaussian_scores(self._knowledge, features, labels)


@final
class HierOPO(GaussianOPO):
    """Hierarchical off-policy optimisation: every task informs the others through the unknown task mean μ.

    Args:
        prior: μ ~ N(μ_q, Σ_q), θ_s | μ ~ N(μ, Σ_0), noise σ.
        alpha: Width of the bounds, >= 0; 0 is greedy. The paper's 0.1 if neither alpha nor delta is given.
        delta: Failure probability from which alpha is derived instead.
        kind: "simultaneous", "pointwise" or "paper": what delta means.

    Raises:
        ValueError: If alpha or delta is out of range, or both are given.

    Reference:
        Hong et al., "Multi-Task Off-Policy Learning from Bandit Feedback", ICML 2023, Algorithm 1.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> prior = GaussianHierarchy.isotropic(2, sigma_q=1.0, sigma_0=0.5, sigma=0.5)
        >>> features, tasks = rng.uniform(-1, 1, (200, 2)), rng.choice(["ann", "bob", "eve"], 200)
        >>> rewards = features @ [1.0, -1.0] + 0.5 * rng.standard_normal(200)
        >>> policy = HierOPO(prior, delta=0.05).fit(features, rewards, tasks)
        >>> policy.predict([[[1.0, 0.0], [0.0, 1.0], [1.0, -1.0]]], ["bob"]).tolist()
        [2]
        >>> policy.forget(task="eve")
        HierOPO(d=2, alpha=2.448, tasks=2, rows=135)
    """

    def __init__(
        self,
        prior: GaussianHierarchy,
        alpha: float | None = None,
        *,
        delta: float | None = None,
        kind: Kind | str = "simultaneous",
    ) -> None:
        super().__init__(prior, alpha, delta, kind)


@final
class FlatOPO(GaussianOPO):
    """Each task on its own, under its marginal prior N(μ_q, Σ_q + Σ_0): Σ_q → 0 and Σ_0 → Σ_q + Σ_0.

    Args:
        prior: The hierarchical prior; its marginal is used.
        alpha: See `HierOPO`.
        delta: See `HierOPO`.
        kind: See `HierOPO`.
    """

    def __init__(
        self,
        prior: GaussianHierarchy,
        alpha: float | None = None,
        *,
        delta: float | None = None,
        kind: Kind | str = "simultaneous",
    ) -> None:
        super().__init__(prior.marginal, alpha, delta, kind)


@final
class OracleOPO(GaussianOPO):
    """Knows the task mean: μ_q → μ and Σ_q → 0. What HierOPO would be with infinitely many tasks.

    Args:
        prior: The hierarchical prior.
        mu: The true task mean, shape [d].
        alpha: See `HierOPO`.
        delta: See `HierOPO`.
        kind: See `HierOPO`.
    """

    def __init__(
        self,
        prior: GaussianHierarchy,
        mu: npt.ArrayLike,
        alpha: float | None = None,
        *,
        delta: float | None = None,
        kind: Kind | str = "simultaneous",
    ) -> None:
        super().__init__(prior.given_mean(mu), alpha, delta, kind)


@final
class GlobalOPO(GaussianOPO):
    """One parameter for all tasks, under N(μ_q, Σ_q): Σ_0 → 0.

    Args:
        prior: The hierarchical prior.
        alpha: See `HierOPO`.
        delta: See `HierOPO`.
        kind: See `HierOPO`.
    """

    def __init__(
        self,
        prior: GaussianHierarchy,
        alpha: float | None = None,
        *,
        delta: float | None = None,
        kind: Kind | str = "simultaneous",
    ) -> None:
        super().__init__(prior.pooled, alpha, delta, kind)


def _gaussian_scores(
    knowledge: Knowledge[HierarchicalPosterior], features: Float[np.ndarray, "B K d"], labels: np.ndarray
) -> ActionScores:
    """φᵀθ̂, φᵀΣ̃φ and |R_sᵀφ|², block by block; each task's matrices are made once a block."""
    posterior, where = knowledge.posterior, knowledge.stats.positions(labels)
    shape = features.shape[:2]
    mean, task_var, hyper_var = np.empty(shape), np.empty(shape), np.empty(shape)
    for block in blocks(len(features), features.shape[2]):
        phi = features[block]
        seen, row = np.unique(where[block], return_inverse=True)
        centre, cov, spread = _matrices(posterior, seen)
        row = row.reshape(-1)
        mean[block] = (phi @ centre[row][:, :, None])[:, :, 0]
        task_var[block] = np.maximum(np.sum((phi @ cov[row]) * phi, axis=2), 0.0)
        hyper_var[block] = np.sum((phi @ spread[row]) ** 2, axis=2)
    return ActionScores(mean, task_var, hyper_var)


def _matrices(posterior: HierarchicalPosterior, which: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """θ̂_s, Σ̃_s and R_s of tasks; the first position may be -1 for a task without data."""
    known = which[which >= 0]
    centre, cov, spread = posterior.means[known], posterior.tasks.cov[known], posterior.spread(known)
    if len(known) < len(which):
        centre = np.concatenate([posterior.hyper.mean[None], centre])
        cov = np.concatenate([posterior.prior.Sigma_0[None], cov])
        spread = np.concatenate([posterior.hyper.factor[None], spread])
    return centre, cov, spread

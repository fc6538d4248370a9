"""Pessimistic off-policy learning with binary rewards."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
import numpy.typing as npt
from jaxtyping import Float
from scipy.special import expit

from hieropo.confidence import Kind, chosen_width
from hieropo.labels import Task, TaskIds, as_label, positions, same_kind, unknown_message
from hieropo.logistic import LogisticHierarchy, LogisticRows
from hieropo.logistic_laplace import LaplacePosterior, laplace_posterior, mean_probability
from hieropo.policy import ActionScores, PessimisticPolicy
from hieropo.posterior import GaussianPosterior
from hieropo.scoring import score_by_position

__all__ = ["LogisticHierOPO"]


@dataclass(frozen=True, eq=False)
class _Knowledge:
    """Rows and, once asked for, the posterior they lead to."""

    rows: LogisticRows
    prior: LogisticHierarchy

    @cached_property
    def posterior(self) -> LaplacePosterior:
        return laplace_posterior(self.rows, self.prior)


@final
class LogisticHierOPO(PessimisticPolicy):
    """HierOPO for rewards 0 and 1: P(Y = 1) = 1/(1 + exp(−φᵀθ_s)), with Laplace's approximation of the posterior.

    Bounds, scores and posteriors are those of the linear predictor φᵀθ_s; the logistic function is increasing, so the
    action with the best bound is the same on the scale of probabilities (`lower_probability`). The rows are kept, for
    they have no smaller sufficient statistics. Every change builds a new frozen state and installs it in one
    assignment: after an error nothing has changed.

    Args:
        prior: The hierarchy.
        alpha: Width of the bounds, >= 0; 0 is greedy. 0.1 if neither alpha nor delta is given.
        delta: Failure probability from which alpha is derived instead; nominal, as the posterior is an approximation.
        kind: "simultaneous", "pointwise" or "paper": what delta means.

    Raises:
        ValueError: If alpha or delta is out of range, or both are given.

    Reference:
        Hong et al., ICML 2023, Algorithm 1, with the reward model replaced.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> features, tasks = rng.uniform(-1, 1, (300, 2)), rng.choice(["ann", "bob"], 300)
        >>> rewards = rng.random(300) < 1 / (1 + np.exp(-3 * features @ [1.0, -1.0]))
        >>> policy = LogisticHierOPO(LogisticHierarchy.isotropic(2, sigma_q=2.0, sigma_0=1.0), delta=0.05)
        >>> policy.fit(features, rewards, tasks).predict([[[1.0, 0.0], [0.0, 1.0], [1.0, -1.0]]], ["bob"]).tolist()
        [2]
    """

    def __init__(
        self,
        prior: LogisticHierarchy,
        alpha: float | None = None,
        *,
        delta: float | None = None,
        kind: Kind = "simultaneous",
    ) -> None:
        if not isinstance(prior, LogisticHierarchy):
            raise TypeError(f"prior is a {type(prior).__name__}; give a LogisticHierarchy")
        self._alpha = chosen_width(alpha, delta, kind, prior.d)
        self._knowledge = _Knowledge(LogisticRows.empty(prior.d), prior)

    @property
    def d(self) -> int:
        """Number of features."""
        return self.prior.d

    @property
    def alpha(self) -> float:
        """Width of the bounds in posterior standard deviations."""
        return self._alpha

    @property
    def prior(self) -> LogisticHierarchy:
        """The prior."""
        return self._knowledge.prior

    @property
    def rows(self) -> LogisticRows:
        """Everything learned so far."""
        return self._knowledge.rows

    @property
    def tasks(self) -> list[Task]:
        """Labels of the tasks seen so far, sorted."""
        return self.rows.tasks.tolist()

    @property
    def joint(self) -> LaplacePosterior:
        """The joint posterior, with its convergence status."""
        return self._knowledge.posterior

    def fit(self, features: npt.ArrayLike, rewards: npt.ArrayLike, task_ids: npt.ArrayLike) -> LogisticHierOPO:
        """Learn from a log, forgetting anything learned before.

        Args:
            features: φ(x, a) of the logged actions, shape `[n, d]`.
            rewards: 0 or 1, shape `[n]`.
            task_ids: Integers or strings, shape `[n]`.

        Returns:
            The estimator.

        Raises:
            ValueError: If shapes disagree or a reward is neither 0 nor 1; nothing has changed then.
            TypeError: If labels or numbers are of the wrong kind.
        """
        return self._learn(LogisticRows.from_rows(features, rewards, task_ids))

    def partial_fit(self, features: npt.ArrayLike, rewards: npt.ArrayLike, task_ids: npt.ArrayLike) -> LogisticHierOPO:
        """Learn from more rows, of known tasks or new ones; see `fit`.

        Args:
            features: φ(x, a) of the logged actions, shape `[n, d]`.
            rewards: 0 or 1, shape `[n]`.
            task_ids: Integers or strings, shape `[n]`.

        Returns:
            The estimator.
        """
        return self._learn(self.rows.merge(LogisticRows.from_rows(features, rewards, task_ids)))

    def merge(self, other: LogisticHierOPO | LogisticRows) -> LogisticHierOPO:
        """Learn what another estimator has seen. The rows must not overlap.

        Args:
            other: An estimator of this class, or rows.

        Returns:
            The estimator.

        Raises:
            TypeError: If the other is of another class, or labels are of another kind.
            ValueError: If the numbers of features differ.
        """
        if not isinstance(other, (LogisticHierOPO, LogisticRows)):
            raise TypeError(f"cannot merge {type(other).__name__} into LogisticHierOPO")
        return self._learn(self.rows.merge(other if isinstance(other, LogisticRows) else other.rows))

    def forget(
        self,
        *,
        task: Task | None = None,
        rows: tuple[npt.ArrayLike, npt.ArrayLike, npt.ArrayLike] | None = None,
    ) -> LogisticHierOPO:
        """Unlearn a task, or rows, as if they had never been seen.

        Args:
            task: The task to forget, with all its rows.
            rows: (features, rewards, task_ids) exactly as they were given to `fit` or `partial_fit`.

        Returns:
            The estimator.

        Raises:
            KeyError: If a task is unknown.
            ValueError: If a row has not been seen, or not exactly one of `task` and `rows` is given.
        """
        if rows is not None and task is None:
            return self._learn(self.rows.subtract(LogisticRows.from_rows(*rows)))
        if task is not None and rows is None:
            return self._learn(self.rows.drop(task))
        raise ValueError("give either task=... or rows=(features, rewards, task_ids)")

    def posterior(self, task: Task) -> GaussianPosterior:
        """The approximate posterior of a task's parameter.

        Args:
            task: A label that has been seen.

        Returns:
            Mode and covariance, the latter split in two.

        Raises:
            KeyError: If the task is unknown (near matches are named); see `new_task_posterior`.
        """
        knowledge = self._knowledge
        index = int(positions(knowledge.rows.tasks, as_label(task))[0])
        if index < 0:
            raise KeyError(unknown_message(knowledge.rows.tasks, task))
        return knowledge.posterior.gaussian.marginal(index)

    def new_task_posterior(self) -> GaussianPosterior:
        """The approximate posterior of the parameter of a task without data.

        Returns:
            Mean and covariance.
        """
        return self.joint.gaussian.new_task()

    def lower_probability(
        self, action_features: npt.ArrayLike, task_ids: TaskIds, mask: npt.ArrayLike | None = None
    ) -> Float[np.ndarray, "B K"]:
        """Lower bounds of P(Y = 1), the logistic function of `lower_bound`.

        Args:
            action_features: φ(x, a), shape `[B, K, d]` or `[K, d]`.
            task_ids: One label a row, shape `[B]`; or one label for all.
            mask: True where an action is available, shape `[B, K]` or `[K]`; the others give NaN.

        Returns:
            Probabilities, shape `[B, K]`.
        """
        return expit(self.lower_bound(action_features, task_ids, mask))

    def upper_probability(
        self, action_features: npt.ArrayLike, task_ids: TaskIds, mask: npt.ArrayLike | None = None
    ) -> Float[np.ndarray, "B K"]:
        """Upper bounds of P(Y = 1), the logistic function of `upper_bound`.

        Args:
            action_features: φ(x, a), shape `[B, K, d]` or `[K, d]`.
            task_ids: One label a row, shape `[B]`; or one label for all.
            mask: True where an action is available, shape `[B, K]` or `[K]`; the others give NaN.

        Returns:
            Probabilities, shape `[B, K]`.
        """
        return expit(self.upper_bound(action_features, task_ids, mask))

    def mean_reward(
        self,
        action_features: npt.ArrayLike,
        task_ids: TaskIds,
        mask: npt.ArrayLike | None = None,
        *,
        method: str = "quadrature",
    ) -> Float[np.ndarray, "B K"]:
        """Posterior mean of P(Y = 1), the uncertainty of φᵀθ integrated out.

        Args:
            action_features: φ(x, a), shape `[B, K, d]` or `[K, d]`.
            task_ids: One label a row, shape `[B]`; or one label for all.
            mask: True where an action is available, shape `[B, K]` or `[K]`; the others give NaN.
            method: "quadrature" or "probit", see `mean_probability`.

        Returns:
            Probabilities, shape `[B, K]`.
        """
        scores = self.uncertainty(action_features, task_ids, mask)
        return mean_probability(scores.mean, scores.var, method=method)

    def log_marginal_likelihood(self) -> float:
        """Laplace's approximation of log p(Y) of all rewards.

        Returns:
            Natural logarithm.
        """
        return self.joint.log_evidence

    def __repr__(self) -> str:
        rows = self.rows
        return f"LogisticHierOPO(d={self.d}, alpha={self.alpha:.4g}, tasks={rows.m}, rows={rows.n})"

    def _learn(self, rows: LogisticRows) -> LogisticHierOPO:
        if rows.d != self.d:
            raise ValueError(f"{rows.d} features given, the prior has {self.d}")
        self._knowledge = _Knowledge(rows, self.prior)
        return self

    def _score(self, features: Float[np.ndarray, "B K d"], labels: np.ndarray) -> ActionScores:
        knowledge = self._knowledge
        same_kind(knowledge.rows.tasks, labels, "look up these tasks")
        return score_by_position(features, positions(knowledge.rows.tasks, labels), knowledge.posterior.gaussian)

"""Estimators over sufficient statistics: small mutable shells around frozen state."""

# ruff: noqa: PYI019 (typing.Self cannot be checked at run time function by function, as the tests do)

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy.typing as npt

from hieropo.confidence import KINDS, Kind, alpha_from_delta, chosen_width
from hieropo.labels import Task
from hieropo.policy import PessimisticPolicy
from hieropo.posterior import GaussianPosterior
from hieropo.statistics import TaskStatistics


@runtime_checkable
class TaskPosteriors(Protocol):
    """What a learner needs of a joint posterior."""

    def marginal(self, index: int) -> GaussianPosterior:
        """The posterior of a task."""
        ...

    def new_task(self) -> GaussianPosterior:
        """The posterior of a task without data."""
        ...


P = TypeVar("P", bound=TaskPosteriors)
L = TypeVar("L", bound="StatisticsLearner[Any]")


@dataclass(frozen=True, eq=False)
class Knowledge(Generic[P]):
    """Statistics and, once asked for, the posterior they lead to.

    Args:
        stats: The statistics.
        infer: From statistics to the posterior.
    """

    stats: TaskStatistics
    infer: Callable[[TaskStatistics], P]

    @cached_property
    def posterior(self) -> P:
        """The joint posterior, found on first use."""
        return self.infer(self.stats)


class StatisticsLearner(PessimisticPolicy, Generic[P]):
    """Fitting, updating, merging and forgetting; a subclass says how statistics become a posterior.

    A subclass also defines `_score(features, labels)`; it should read `self._knowledge` once, so that labels and
    posterior come from the same state. Before any data the estimator acts on its prior. Every change builds a new
    frozen state and installs it in one assignment: after an error nothing has changed, and a reader in another thread
    sees the old state or the new one. Changing one estimator from several threads at once needs a lock of the caller's.

    Args:
        d: Number of features.
        alpha: Width of the bounds, >= 0; 0 is greedy. The paper's 0.1 if neither alpha nor delta is given.
        delta: Failure probability from which alpha is derived instead.
        kind: What delta means, see `hieropo.confidence.alpha_from_delta`.

    Raises:
        ValueError: If both alpha and delta are given, one is out of range, or a kind is given without delta.
    """

    def __init__(self, d: int, alpha: float | None, delta: float | None, kind: Kind | str) -> None:
        self._alpha = chosen_width(alpha, delta, kind, d)
        self._delta, self._kind = delta, kind
        self._knowledge = Knowledge(TaskStatistics.empty(d), self._infer)

    @abstractmethod
    def _infer(self, stats: TaskStatistics) -> P:
        """The posterior these statistics lead to."""

    @property
    def d(self) -> int:
        """Number of features."""
        return self._knowledge.stats.d

    @property
    def alpha(self) -> float:
        """Width of the bounds in posterior standard deviations."""
        return self._alpha

    @property
    def width(self) -> float:
        """The width that was given, or derived from delta when the estimator was made."""
        return self._alpha

    @property
    def delta(self) -> float | None:
        """The failure probability alpha was derived from, None if alpha was given."""
        return self._delta

    @property
    def kind(self) -> str:
        """What delta means."""
        return self._kind

    @property
    def statistics(self) -> TaskStatistics:
        """The sufficient statistics of everything learned so far."""
        return self._knowledge.stats

    @property
    def tasks(self) -> list[Task]:
        """Labels of the tasks seen so far, sorted."""
        return self.statistics.tasks.tolist()

    @property
    def joint(self) -> P:
        """The joint posterior of all parameters."""
        return self._knowledge.posterior

    def fit(self: L, features: npt.ArrayLike, rewards: npt.ArrayLike, task_ids: npt.ArrayLike) -> L:
        """Learn from a log, forgetting anything learned before.

        Args:
            features: φ(x, a) of the logged actions, shape [n, d].
            rewards: Shape [n].
            task_ids: Integers or strings, shape [n].

        Returns:
            The estimator.

        Raises:
            ValueError: If shapes disagree or a number is not finite; nothing has changed then.
            TypeError: If labels or numbers are of the wrong kind.
        """
        return self.fit_statistics(TaskStatistics.from_rows(features, rewards, task_ids))

    def fit_statistics(self: L, stats: TaskStatistics) -> L:
        """Learn from sufficient statistics, forgetting anything learned before.

        Args:
            stats: Statistics with d features.

        Returns:
            The estimator.

        Raises:
            ValueError: If the number of features differs.
        """
        return self._learn(stats)

    def partial_fit(self: L, features: npt.ArrayLike, rewards: npt.ArrayLike, task_ids: npt.ArrayLike) -> L:
        """Learn from more rows, of known tasks or new ones.

        Args:
            features: φ(x, a) of the logged actions, shape [n, d].
            rewards: Shape [n].
            task_ids: Integers or strings, shape [n].

        Returns:
            The estimator.

        Raises:
            ValueError: If shapes disagree or a number is not finite; nothing has changed then.
            TypeError: If labels or numbers are of the wrong kind.
        """
        return self._learn(self.statistics.merge(TaskStatistics.from_rows(features, rewards, task_ids)))

    def merge(self: L, other: L | TaskStatistics) -> L:
        """Learn what another estimator, or other statistics, have seen. The rows must not overlap.

        Args:
            other: An estimator of the same class, or statistics.

        Returns:
            The estimator.

        Raises:
            TypeError: If the other is of another class, or labels are of another kind.
            ValueError: If the numbers of features differ.
        """
        if not isinstance(other, (type(self), TaskStatistics)):
            raise TypeError(f"cannot merge {type(other).__name__} into {type(self).__name__}")
        return self._learn(self.statistics.merge(other if isinstance(other, TaskStatistics) else other.statistics))

    def forget(
        self: L,
        *,
        task: Task | None = None,
        rows: tuple[npt.ArrayLike, npt.ArrayLike, npt.ArrayLike] | None = None,
    ) -> L:
        """Unlearn a task, or rows, as if they had never been seen.

        Args:
            task: The task to forget, with all its rows.
            rows: (features, rewards, task_ids) exactly as they were given to `fit` or `partial_fit`.

        Returns:
            The estimator.

        Raises:
            KeyError: If a task is unknown.
            ValueError: If the rows cannot have been seen, or not exactly one of `task` and `rows` is given.
        """
        if (task is None) == (rows is None):
            raise ValueError("give either task=... or rows=(features, rewards, task_ids)")
        if task is not None:
            return self._learn(self.statistics.drop([task]))
        assert rows is not None
        return self._learn(self.statistics.subtract(TaskStatistics.from_rows(*rows)))

    def derived_from(self: L, delta: float | None, kind: Kind | str = "simultaneous") -> L:
        """Take up the failure probability that the given width was derived from, for loading.

        Args:
            delta: In (0, 1), or None for a width given by hand.
            kind: What delta means.

        Returns:
            The estimator.

        Raises:
            ValueError: If δ is out of range, or the kind unknown.
        """
        if kind not in KINDS:
            raise ValueError(f"kind is {kind!r}; give one of {', '.join(KINDS)}")
        if delta is not None:
            alpha_from_delta(delta, self.d, kind)  # refuses what could not have been given
        self._delta, self._kind = delta, kind
        return self

    def posterior(self, task: Task) -> GaussianPosterior:
        """The posterior of a task's parameter.

        Args:
            task: A label that has been seen.

        Returns:
            Mean and covariance, the latter split in two.

        Raises:
            KeyError: If the task is unknown (near matches are named); see `new_task_posterior`.
        """
        knowledge = self._knowledge
        return knowledge.posterior.marginal(knowledge.stats.index(task))

    def new_task_posterior(self) -> GaussianPosterior:
        """The posterior of the parameter of a task without data.

        Returns:
            Mean and covariance.
        """
        return self.joint.new_task()

    def __repr__(self) -> str:
        stats = self.statistics
        return f"{type(self).__name__}(d={stats.d}, alpha={self.alpha:.4g}, tasks={stats.m}, rows={stats.n})"

    def _learn(self: L, stats: TaskStatistics) -> L:
        if stats.d != self.d:
            raise ValueError(f"{stats.d} features given, the prior has {self.d}")
        self._knowledge = Knowledge(stats, self._infer)
        return self

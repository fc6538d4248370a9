"""Bernoulli rewards: the hierarchy with a logit link, and its rows.

θ_s | μ ~ N(μ, Σ_0), μ ~ N(μ_q, Σ_q), P(Y = 1 | x, a) = 1 / (1 + exp(−φᵀθ_s)). The likelihood has no sufficient
statistics smaller than the rows themselves, so the rows are kept, sorted by task.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Integer

from hieropo.briefly import briefly
from hieropo.checks import as_spread
from hieropo.labels import as_label, as_labels, positions, same_kind, unknown_message
from hieropo.linalg import as_covariance, as_real
from hieropo.prior import GaussianHierarchy
from hieropo.statistics import TaskStatistics

__all__ = ["LogisticHierarchy", "LogisticRows"]


@final
@dataclass(frozen=True, eq=False)
class LogisticHierarchy:
    """Two-level Gaussian prior of a logistic model; covariances may be singular.

    Args:
        mu_q: Mean of μ, shape `[d]`.
        Sigma_q: Covariance of μ, shape `[d, d]`.
        Sigma_0: Covariance of the tasks around μ, shape `[d, d]`.

    Raises:
        ValueError: A shape that does not fit, or a matrix that is not symmetric positive semi-definite.

    Example:
        >>> LogisticHierarchy.isotropic(2, sigma_q=1.0, sigma_0=0.5).Sigma_0.tolist()
        [[0.25, 0.0], [0.0, 0.25]]
    """

    mu_q: Float[np.ndarray, " d"]
    Sigma_q: Float[np.ndarray, "d d"]
    Sigma_0: Float[np.ndarray, "d d"]

    __repr__ = briefly("d")

    def __post_init__(self) -> None:
        mean = np.array(as_real(self.mu_q, "mu_q"))
        if mean.ndim != 1 or mean.size == 0 or not np.isfinite(mean).all():
            raise ValueError(f"mu_q must be one finite vector, got shape {mean.shape}")
        fields = {name: as_covariance(getattr(self, name), mean.size, name) for name in ("Sigma_q", "Sigma_0")}
        for name, array in (("mu_q", mean), *fields.items()):
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    @classmethod
    def isotropic(cls, d: int, *, sigma_q: float, sigma_0: float, mu_q: float = 0.0) -> LogisticHierarchy:
        """A prior with covariances `sigma_q² I` and `sigma_0² I`.

        Raises:
            ValueError: A standard deviation that is negative or not finite.
        """
        sigma_q, sigma_0 = as_spread(sigma_q, "sigma_q"), as_spread(sigma_0, "sigma_0")
        return cls(np.full(d, float(mu_q)), sigma_q**2 * np.eye(d), sigma_0**2 * np.eye(d))

    @property
    def d(self) -> int:
        """Dimension of the features."""
        return self.mu_q.size

    @property
    def gaussian(self) -> GaussianHierarchy:
        """The same hierarchy for rewards with Gaussian noise of variance one."""
        return GaussianHierarchy(self.mu_q, self.Sigma_q, self.Sigma_0, 1.0)


@final
@dataclass(frozen=True, eq=False)
class LogisticRows:
    """A log of binary rewards, sorted by task. Build it with `LogisticRows.from_rows`.

    Args:
        tasks: Distinct labels, strictly increasing, shape `[m]`.
        features: φ(x, a) of the logged actions, task by task, shape `[n, d]`.
        rewards: 0.0 or 1.0, shape `[n]`.
        codes: Position of each row's task, not decreasing, shape `[n]`.
    """

    tasks: np.ndarray
    features: Float[np.ndarray, "n d"]
    rewards: Float[np.ndarray, " n"]
    codes: Integer[np.ndarray, " n"]

    __repr__ = briefly("d", tasks="m", rows="n")

    @property
    def d(self) -> int:
        """Number of features."""
        return self.features.shape[1]

    @property
    def m(self) -> int:
        """Number of tasks."""
        return self.tasks.size

    @property
    def n(self) -> int:
        """Number of rows."""
        return self.rewards.size

    @classmethod
    def empty(cls, d: int) -> LogisticRows:
        """The log without rows."""
        return cls(np.empty(0, np.int64), np.empty((0, d)), np.empty(0), np.empty(0, np.int64))

    @classmethod
    def from_rows(
        cls,
        features: npt.ArrayLike,
        rewards: npt.ArrayLike,
        task_ids: npt.ArrayLike,
        tasks: npt.ArrayLike | None = None,
    ) -> LogisticRows:
        """Rows as they were logged, in any order.

        Args:
            features: φ(x, a) of the logged action, shape `[n, d]`.
            rewards: 0 or 1, shape `[n]`; booleans are allowed.
            task_ids: Integers or strings, shape `[n]`.
            tasks: Further tasks to list even if they have no row.

        Raises:
            ValueError: Shapes that disagree, a number that is not finite, a reward other than 0 and 1.
            TypeError: Labels that are neither integers nor strings.

        Example:
            >>> rows = LogisticRows.from_rows([[1.0], [2.0], [3.0]], [1, 0, 1], ["b", "a", "b"])
            >>> rows.tasks.tolist(), rows.features.ravel().tolist()
            (['a', 'b'], [2.0, 1.0, 3.0])
        """
        checked = TaskStatistics.from_rows(features, rewards, task_ids, tasks)
        labels = as_labels(task_ids)
        values = as_real(rewards, "rewards")
        bad = np.flatnonzero((values != 0) & (values != 1))
        if bad.size:
            raise ValueError(f"rewards[{bad[0]}] is {values[bad[0]]}; logistic rewards are 0 or 1")
        codes = positions(checked.tasks, labels)
        order = np.argsort(codes, kind="stable")
        phi = as_real(features, "features")
        return cls(checked.tasks, phi[order], values[order], codes[order])

    def merge(self, other: LogisticRows) -> LogisticRows:
        """The rows of two logs together.

        Raises:
            ValueError: Another number of features.
            TypeError: One log has integer labels and the other strings.
        """
        if self.d != other.d:
            raise ValueError(f"{other.d} features given, but the log holds {self.d}")
        same_kind(self.tasks, other.tasks, "merge")
        if self.m == 0 or other.m == 0:
            return other if self.m == 0 else self
        tasks = np.union1d(self.tasks, other.tasks)
        codes = np.concatenate([positions(tasks, side.tasks)[side.codes] for side in (self, other)])
        order = np.argsort(codes, kind="stable")
        features = np.concatenate([self.features, other.features])[order]
        return LogisticRows(tasks, features, np.concatenate([self.rewards, other.rewards])[order], codes[order])

    def drop(self, task: int | str) -> LogisticRows:
        """The log without one task.

        Raises:
            KeyError: The task is unknown.
        """
        position = positions(self.tasks, as_label(task))[0]
        if position < 0:
            raise KeyError(unknown_message(self.tasks, task))
        keep = self.codes != position
        tasks, codes = np.delete(self.tasks, position), self.codes[keep]
        codes = codes - (codes > position)
        return LogisticRows(tasks, self.features[keep], self.rewards[keep], codes)

    def subtract(self, other: LogisticRows) -> LogisticRows:
        """The log without some of its rows; tasks left without rows stay listed.

        Args:
            other: Rows to forget; each must be in the log with exactly these numbers, as often as it is given.

        Raises:
            KeyError: A task is unknown.
            ValueError: A row that is not in the log.
        """
        same_kind(self.tasks, other.tasks, "forget")
        codes = positions(self.tasks, other.tasks)
        if np.any(codes < 0):
            raise KeyError(unknown_message(self.tasks, other.tasks[codes < 0][0].item()))
        where: dict[bytes, list[int]] = {}
        for i in np.flatnonzero(np.isin(self.codes, codes)):
            where.setdefault(_key(int(self.codes[i]), self.features[i], self.rewards[i]), []).append(int(i))
        gone = []
        for code, phi, reward in zip(codes[other.codes], other.features, other.rewards, strict=True):
            found = where.get(_key(int(code), phi, reward))
            if not found:
                task = self.tasks[code].item()
                raise ValueError(
                    f"cannot forget a row of task {task!r} that is not in the log: {phi}, reward {reward:g}"
                )
            gone.append(found.pop())
        keep = np.delete(np.arange(self.n), gone)
        return LogisticRows(self.tasks, self.features[keep], self.rewards[keep], self.codes[keep])


def _key(code: int, features: np.ndarray, reward: float) -> bytes:
    # Adding zero turns -0.0 into 0.0, which is the same number with another pattern.
    return np.concatenate([[float(code), reward], features + 0.0]).tobytes()

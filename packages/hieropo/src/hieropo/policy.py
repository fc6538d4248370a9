"""The pessimistic policy on top of any posterior: π(x) = argmax_a φᵀθ̂ − α √(φᵀΣ̂φ)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float, Integer

from hieropo.checks import as_size
from hieropo.labels import TaskIds, as_labels
from hieropo.linalg import as_real

_TIE = 1e-12  # relative; bounds of duplicated actions may differ by rounding, and must not decide


@final
@dataclass(frozen=True, eq=False)
class ActionScores:
    """What is believed about the mean reward of every action, and why it is uncertain.

    Args:
        mean: φᵀθ̂_s, shape [B, K].
        task_var: φᵀΣ̃_sφ, the variance that would remain if μ were known: more rows of this task reduce it, [B, K].
        hyper_var: φᵀC_sΣ̄C_sᵀφ, the variance from not knowing μ: rows of any task reduce it, shape [B, K].
    """

    mean: Float[np.ndarray, "B K"]
    task_var: Float[np.ndarray, "B K"]
    hyper_var: Float[np.ndarray, "B K"]

    @property
    def var(self) -> Float[np.ndarray, "B K"]:
        """Posterior variance of the mean reward."""
        return self.task_var + self.hyper_var

    @property
    def std(self) -> Float[np.ndarray, "B K"]:
        """Posterior standard deviation of the mean reward."""
        return np.sqrt(self.var)


class PessimisticPolicy(ABC):
    """Bounds, actions and action distributions from the posterior means and variances of linear scores.

    A subclass says what actions are worth (`_score`, which answers for tasks never seen by the posterior of a new task)
    and how wide the bounds are (`alpha`).
    """

    @property
    @abstractmethod
    def d(self) -> int:
        """Number of features."""

    @property
    @abstractmethod
    def alpha(self) -> float:
        """Width of the bounds in standard deviations."""

    @abstractmethod
    def _score(self, features: Float[np.ndarray, "B K d"], labels: np.ndarray) -> ActionScores:
        """Means and variances of φᵀθ for checked features and labels [B], from one state of the estimator."""

    def uncertainty(
        self, action_features: npt.ArrayLike, task_ids: TaskIds, mask: npt.ArrayLike | None = None
    ) -> ActionScores:
        """Mean reward of every action and its variance, split in the task's part and the hyper-prior's part.

        Args:
            action_features: φ(x, a), shape [B, K, d]; or [K, d], the same actions for every row.
            task_ids: One label a row, shape [B]; or one label for all.
            mask: True where an action is available, shape [B, K] or [K]; the others may hold anything, and give NaN.

        Returns:
            The scores, each of shape [B, K].

        Raises:
            ValueError: If a shape is wrong or a feature is not finite.
        """
        features, labels, available = self._arguments(action_features, task_ids, mask)
        scores = self._score(features, labels)
        if mask is None:
            return scores
        parts = (scores.mean, scores.task_var, scores.hyper_var)
        return ActionScores(*(np.where(available, part, np.nan) for part in parts))

    def lower_bound(
        self, action_features: npt.ArrayLike, task_ids: TaskIds, mask: npt.ArrayLike | None = None
    ) -> Float[np.ndarray, "B K"]:
        """L(x, a) = φᵀθ̂ − α √(φᵀΣ̂φ).

        Args:
            action_features: φ(x, a), shape [B, K, d] or [K, d].
            task_ids: One label a row, shape [B]; or one label for all.
            mask: True where an action is available, shape [B, K] or [K]; the others may hold anything, and give NaN.

        Returns:
            Lower bounds, shape [B, K], in units of the reward.
        """
        scores = self.uncertainty(action_features, task_ids, mask)
        return scores.mean - self.alpha * scores.std

    def upper_bound(
        self, action_features: npt.ArrayLike, task_ids: TaskIds, mask: npt.ArrayLike | None = None
    ) -> Float[np.ndarray, "B K"]:
        """U(x, a) = φᵀθ̂ + α √(φᵀΣ̂φ).

        Args:
            action_features: φ(x, a), shape [B, K, d] or [K, d].
            task_ids: One label a row, shape [B]; or one label for all.
            mask: True where an action is available, shape [B, K] or [K]; the others may hold anything, and give NaN.

        Returns:
            Upper bounds, shape [B, K], in units of the reward.
        """
        scores = self.uncertainty(action_features, task_ids, mask)
        return scores.mean + self.alpha * scores.std

    def predict(
        self, action_features: npt.ArrayLike, task_ids: TaskIds, mask: npt.ArrayLike | None = None
    ) -> Integer[np.ndarray, " B"]:
        """The action with the largest lower bound; the lowest index among ties.

        Tasks that were never seen are answered by the posterior of a new task.

        Args:
            action_features: φ(x, a), shape [B, K, d] or [K, d].
            task_ids: One label a row, shape [B]; or one label for all.
            mask: True where an action is available, shape [B, K] or [K]; features elsewhere are not looked at.

        Returns:
            Actions, shape [B].

        Raises:
            ValueError: If a shape is wrong, an available feature is not finite, or a row has no available action.
        """
        return self.rank(action_features, task_ids, 1, mask)[:, 0]

    def rank(
        self,
        action_features: npt.ArrayLike,
        task_ids: TaskIds,
        length: int,
        mask: npt.ArrayLike | None = None,
    ) -> Integer[np.ndarray, "B length"]:
        """The best actions in order of their lower bounds.

        Args:
            action_features: φ(x, a), shape [B, K, d] or [K, d].
            task_ids: One label a row, shape [B]; or one label for all.
            length: How many, at most the number of available actions.
            mask: True where an action is available, shape [B, K] or [K].

        Returns:
            Actions, best first, shape [B, length].

        Raises:
            ValueError: If a shape is wrong or a row has fewer available actions than `length`.
        """
        features, labels, available = self._arguments(action_features, task_ids, mask)
        length, number = as_size(length, "length"), available.sum(axis=1)
        if number.min(initial=available.shape[1]) < length:
            row = int(np.argmax(number < length))
            what = "no available action" if number[row] == 0 else f"{number[row]} available actions"
            raise ValueError(f"row {row} has {what}, {length} wanted; mask fewer, drop such rows or ask for less")
        scores = self._score(features, labels)
        return ranked(scores.mean, self.alpha * scores.std, length, available)

    def to_action_dist(
        self,
        action_features: npt.ArrayLike,
        task_ids: TaskIds,
        len_list: int = 1,
        mask: npt.ArrayLike | None = None,
    ) -> Float[np.ndarray, "B K {len_list}"]:
        """The policy as probabilities in the shape that the Open Bandit Pipeline uses.

        Args:
            action_features: φ(x, a), shape [B, K, d] or [K, d].
            task_ids: One label a row, shape [B]; or one label for all.
            len_list: Length of the recommended list; position i shows the i-th best action.
            mask: True where an action is available, shape [B, K] or [K].

        Returns:
            One-hot probabilities, shape [n_rounds, n_actions, len_list].
        """
        chosen = self.rank(action_features, task_ids, len_list, mask)
        dist = np.zeros((len(chosen), np.shape(action_features)[-2], len_list))
        dist[np.arange(len(chosen))[:, None], chosen, np.arange(len_list)] = 1.0
        return dist

    def _arguments(
        self, action_features: npt.ArrayLike, task_ids: TaskIds, mask: npt.ArrayLike | None
    ) -> tuple[np.ndarray, np.ndarray, Bool[np.ndarray, "B K"]]:
        """Checked features [B, K, d] (zero where masked), labels [B] and mask [B, K]."""
        try:
            features = as_real(action_features, "action_features")
        except ValueError:
            raise ValueError(
                "the rows of action_features have different numbers of actions or features; pad to one number of "
                "actions and pass mask"
            ) from None
        if features.ndim not in (2, 3) or features.shape[-1] != self.d or features.shape[-2] == 0:
            raise ValueError(
                f"action_features has shape {features.shape}; give [B, K, {self.d}] or [K, {self.d}], K >= 1"
            )
        one_task = np.ndim(task_ids) == 0
        one = task_ids[()] if isinstance(task_ids, np.ndarray) else task_ids
        labels = as_labels(np.array([one], dtype=object) if one_task else task_ids)
        rows = len(features) if features.ndim == 3 else len(labels)
        if one_task:
            labels = np.repeat(labels, rows)
        if labels.shape != (rows,):
            raise ValueError(f"task_ids has shape {labels.shape}; action_features has {rows} rows, give one label each")
        features = np.broadcast_to(features, (rows, *features.shape[-2:]))
        available = _mask(mask, features.shape[:2])
        if mask is not None:
            features = np.where(available[:, :, None], features, 0.0)
        if not np.isfinite(features).all():
            row = int(np.flatnonzero(~np.isfinite(features).all(axis=(1, 2)))[0])
            raise ValueError(f"action_features[{row}] is not finite; mask actions that do not exist")
        return features, labels, available


def ranked(
    mean: Float[np.ndarray, "B K"], width: Float[np.ndarray, "B K"], length: int, available: Bool[np.ndarray, "B K"]
) -> Integer[np.ndarray, "B {length}"]:
    """Indices of the largest bounds in order; those that differ by rounding only are tied, the lowest index wins.

    A bound is tied with the best one if it is below it by at most 10⁻¹² of its own |mean| + width.

    Args:
        mean: Shape [B, K].
        width: What is subtracted from the mean, shape [B, K].
        length: How many.
        available: Which may be chosen, shape [B, K]; at least `length` in each row.

    Returns:
        Indices, shape [B, length].
    """
    left = np.where(available, mean - width, -np.inf)
    slack = _TIE * (np.abs(mean) + width)
    out = np.empty((len(mean), length), dtype=np.int64)
    for position in range(length):
        best = left.max(axis=1)
        out[:, position] = np.argmax(left >= best[:, None] - slack, axis=1)
        left[np.arange(len(left)), out[:, position]] = -np.inf
    return out


def _mask(mask: npt.ArrayLike | None, shape: tuple[int, ...]) -> np.ndarray:
    if mask is None:
        return np.ones(shape, dtype=bool)
    available = np.asarray(mask)
    if available.dtype != np.bool_ or available.shape not in (shape, shape[1:]):
        given = f"mask has dtype {available.dtype} and shape {available.shape}"
        raise ValueError(f"{given}; give booleans of shape {shape} or {shape[1:]}")
    return np.broadcast_to(available, shape)

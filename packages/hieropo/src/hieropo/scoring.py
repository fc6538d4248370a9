"""Means and variances of linear scores, task by task, from any posterior that can name a task's moments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Integer

from hieropo.learner import TaskPosteriors
from hieropo.policy import ActionScores
from hieropo.posterior import GaussianPosterior

__all__ = ["score_by_position", "score_by_task"]


def score_by_task(
    features: Float[np.ndarray, "B K d"],
    keys: np.ndarray,
    moments: Callable[[Any], GaussianPosterior],
) -> ActionScores:
    """φᵀθ̂, φᵀΣ̃φ and the rest of φᵀΣ̂φ; the moments of each task are asked for once.

    Args:
        features: φ(x, a), shape `[B, K, d]`.
        keys: What stands for the task of each row, shape `[B]`.
        moments: From a key to mean and covariances.

    Returns:
        The scores.
    """
    mean, task_var, hyper_var = (np.empty(features.shape[:2]) for _ in range(3))
    names, codes = np.unique(keys, return_inverse=True)
    order = np.argsort(codes.reshape(-1), kind="stable")
    edges = np.searchsorted(codes.reshape(-1)[order], np.arange(len(names) + 1))
    for name, lo, hi in zip(names.tolist(), edges[:-1], edges[1:], strict=True):
        rows = order[lo:hi]
        phi, posterior = features[rows], moments(name)
        mean[rows] = phi @ posterior.mean
        task_var[rows] = np.maximum(np.sum((phi @ posterior.task_cov) * phi, axis=2), 0.0)
        hyper_var[rows] = np.maximum(np.sum((phi @ posterior.hyper_cov) * phi, axis=2), 0.0)
    return ActionScores(mean, task_var, hyper_var)


def score_by_position(
    features: Float[np.ndarray, "B K d"], where: Integer[np.ndarray, " B"], posterior: TaskPosteriors
) -> ActionScores:
    """The scores from a joint posterior and the position of each row's task in it.

    Args:
        features: φ(x, a), shape `[B, K, d]`.
        where: Positions; -1 stands for a task without data.
        posterior: The joint posterior.

    Returns:
        The scores.
    """
    return score_by_task(features, where, lambda i: posterior.marginal(i) if i >= 0 else posterior.new_task())

"""Pessimistic off-policy learning with unknown noise."""

from __future__ import annotations

from typing import final

import numpy as np
from jaxtyping import Float

from hieropo.checks import as_number
from hieropo.confidence import Kind, check_alpha
from hieropo.learner import StatisticsLearner
from hieropo.policy import ActionScores
from hieropo.scoring import score_by_position
from hieropo.statistics import TaskStatistics
from hieropo.unknown_noise import NoisePosterior, NoisePrior, infer_with_noise, student_alpha

__all__ = ["NoiseHierOPO"]


@final
class NoiseHierOPO(StatisticsLearner[NoisePosterior]):
    """HierOPO with a normal-inverse-gamma prior: the noise is learned with the tasks, and the bounds are Student-t.

    `posterior(task)` holds the centre of the task's Student-t and, in place of covariances, its scale matrices; the
    covariance is ν/(ν − 2) times the scale matrix, with ν = `degrees_of_freedom`. Bounds from `delta` use Student
    quantiles and are exact; they follow ν as rows come in.

    Args:
        prior: Normal-inverse-gamma hierarchy.
        alpha: Width of the bounds in scales, >= 0; 0 is greedy. 0.1 if neither alpha nor delta is given.
        delta: Failure probability from which the width is derived instead.
        kind: "simultaneous" or "pointwise".

    Raises:
        ValueError: If alpha or delta is out of range, both are given, or the kind is "paper", which needs known noise.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> prior = NoisePrior.isotropic(2, sigma_q=2.0, sigma_0=1.0, shape=1.0, scale=1.0)
        >>> features, tasks = rng.uniform(-1, 1, (400, 2)), rng.choice(["ann", "bob"], 400)
        >>> rewards = features @ [1.0, -1.0] + 0.5 * rng.standard_normal(400)
        >>> policy = NoiseHierOPO(prior, delta=0.05).fit(features, rewards, tasks)
        >>> policy.predict([[[1.0, 0.0], [0.0, 1.0], [1.0, -1.0]]], ["bob"]).tolist(), round(policy.noise, 1)
        ([2], 0.5)
    """

    def __init__(
        self, prior: NoisePrior, alpha: float | None = None, *, delta: float | None = None, kind: Kind = "simultaneous"
    ) -> None:
        if not isinstance(prior, NoisePrior):
            raise TypeError(f"prior is a {type(prior).__name__}; give a NoisePrior")
        if delta is not None:
            student_alpha(as_number(delta, "delta"), kind=kind, d=prior.d, degrees_of_freedom=2.0 * prior.shape)
        self._prior = prior
        super().__init__(prior.d, alpha, delta, kind)

    @property
    def prior(self) -> NoisePrior:
        """The prior."""
        return self._prior

    @property
    def alpha(self) -> float:
        """Width of the bounds in scales of the Student-t; with delta it shrinks as rows come in."""
        if self.delta is None:
            return self._alpha
        return check_alpha(
            student_alpha(self.delta, kind=self.kind, d=self.d, degrees_of_freedom=self.joint.degrees_of_freedom)
        )

    @property
    def noise(self) -> float:
        """The noise level √(b'/a') of the Student-t scales, in units of the reward."""
        return self.joint.noise_scale

    def log_marginal_likelihood(self) -> float:
        """Log p(Y) of all rewards, the noise integrated out, exact.

        Returns:
            The log density, natural logarithm.
        """
        return self.joint.log_evidence

    def _infer(self, stats: TaskStatistics) -> NoisePosterior:
        return infer_with_noise(stats, self._prior)

    def _score(self, features: Float[np.ndarray, "B K d"], labels: np.ndarray) -> ActionScores:
        knowledge = self._knowledge
        return score_by_position(features, knowledge.stats.positions(labels), knowledge.posterior)

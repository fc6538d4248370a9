"""Pessimistic off-policy learning when tasks fall into clusters."""

from __future__ import annotations

from typing import final

import numpy as np
from jaxtyping import Float

from hieropo.confidence import Kind
from hieropo.labels import Task
from hieropo.learner import StatisticsLearner
from hieropo.linalg import as_real
from hieropo.mixture import MixtureHierarchy, MixturePosterior, infer_mixture
from hieropo.policy import ActionScores
from hieropo.scoring import score_by_position
from hieropo.statistics import TaskStatistics

__all__ = ["MixtureOPO"]


@final
class MixtureOPO(StatisticsLearner[MixturePosterior]):
    """Off-policy optimisation under a mixture of hierarchies.

    The posterior of a task is a mixture of k Gaussians. Means, covariances and bounds are those of the Gaussian with
    the same two moments; between well separated clusters the true tails are lighter, and its level 1 − δ is nominal.

    Args:
        prior: The mixture.
        alpha: Width of the bounds, >= 0; 0 is greedy. The paper's 0.1 if neither alpha nor delta is given.
        delta: Failure probability from which alpha is derived instead.
        kind: "simultaneous", "pointwise" or "paper": what delta means.
        start: Centres from which unknown centres are sought, shape `[k, d]`; give `MixtureFit.centres` when the
            clusters' priors are alike.

    Raises:
        ValueError: If alpha or delta is out of range, or both are given, or the start has another shape.

    Example:
        >>> prior = MixtureHierarchy.known_centres([0.5, 0.5], [[0.0], [4.0]], [[[1.0]], [[1.0]]], sigma=1.0)
        >>> policy = MixtureOPO(prior, delta=0.05).fit([[1.0], [1.0]], [0.0, 5.0], ["ann", "bob"])
        >>> [policy.cluster_probabilities(task).round(2).tolist() for task in ("ann", "bob")]
        [[0.98, 0.02], [0.0, 1.0]]
    """

    def __init__(
        self,
        prior: MixtureHierarchy,
        alpha: float | None = None,
        *,
        delta: float | None = None,
        kind: Kind = "simultaneous",
        start: Float[np.ndarray, "k d"] | None = None,
    ) -> None:
        if not isinstance(prior, MixtureHierarchy):
            raise TypeError(f"prior is a {type(prior).__name__}; give a MixtureHierarchy")
        if start is not None:
            start = np.array(as_real(start, "start"))
            if start.shape != prior.mu_q.shape or not np.isfinite(start).all():
                raise ValueError(f"start has shape {start.shape}; give finite centres of shape {prior.mu_q.shape}")
        self._prior, self._start = prior, start
        super().__init__(prior.d, alpha, delta, kind)

    @property
    def prior(self) -> MixtureHierarchy:
        """The prior."""
        return self._prior

    @property
    def start(self) -> Float[np.ndarray, "k d"] | None:
        """Centres from which unknown centres are sought, if given."""
        return self._start

    def cluster_probabilities(self, task: Task) -> Float[np.ndarray, " k"]:
        """P(z_s = j | D).

        Args:
            task: A label that has been seen.

        Returns:
            Probabilities, shape `[k]`.

        Raises:
            KeyError: If the task is unknown (near matches are named).
        """
        knowledge = self._knowledge
        return knowledge.posterior.responsibilities[knowledge.stats.index(task)]

    def log_marginal_likelihood(self) -> float:
        """Log p(Y) of all rewards under the prior; a lower bound of it unless `joint.exact`.

        Returns:
            Natural logarithm.
        """
        return self.joint.log_evidence

    def _infer(self, stats: TaskStatistics) -> MixturePosterior:
        return infer_mixture(stats, self._prior, start=self._start)

    def _score(self, features: Float[np.ndarray, "B K d"], labels: np.ndarray) -> ActionScores:
        knowledge = self._knowledge
        return score_by_position(features, knowledge.stats.positions(labels), knowledge.posterior)

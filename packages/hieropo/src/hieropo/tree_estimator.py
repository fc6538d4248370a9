"""Pessimistic off-policy learning on a tree of tasks."""

from __future__ import annotations

from collections.abc import Hashable
from typing import final

import numpy as np
from jaxtyping import Float

from hieropo.checks import as_generator, as_size
from hieropo.confidence import Kind
from hieropo.labels import Task, same_kind
from hieropo.learner import StatisticsLearner
from hieropo.policy import ActionScores
from hieropo.posterior import GaussianPosterior
from hieropo.scoring import score_by_task
from hieropo.statistics import TaskStatistics
from hieropo.tree import TreePrior
from hieropo.tree_messages import TreePosterior, leaf_positions, tree_posterior

__all__ = ["TreeOPO"]


@final
class TreeOPO(StatisticsLearner[TreePosterior]):
    """Hierarchical off-policy optimisation with tasks in groups in groups; HierOPO is the tree of depth one.

    Every leaf of the tree is a known task, with rows or without. In `predict` and the bounds, the label of a group
    stands for a new task directly below that group (a group of `Tree.from_paths` by its names joined, "north/a"), and a
    label that is not in the tree for a new task in new groups.

    Args:
        prior: The tree and its covariances.
        alpha: Width of the bounds, >= 0; 0 is greedy. The paper's 0.1 if neither alpha nor delta is given.
        delta: Failure probability from which alpha is derived instead.
        kind: "simultaneous", "pointwise" or "paper": what delta means.

    Raises:
        ValueError: If alpha or delta is out of range, or both are given.

    Reference:
        Hong et al., ICML 2023: the algorithm for two levels; deeper hierarchies are named as future work.

    Example:
        >>> from hieropo.tree import Tree
        >>> rng = np.random.default_rng(0)
        >>> tree = Tree.from_parents({"ann": "day", "bob": "day", "eve": "night", "day": "all", "night": "all"})
        >>> prior = TreePrior.isotropic(tree, 2, sigma_root=1.0, sigma_levels=[0.5, 0.2], sigma=0.5)
        >>> features, tasks = rng.uniform(-1, 1, (200, 2)), rng.choice(["ann", "eve"], 200)
        >>> policy = TreeOPO(prior, delta=0.05).fit(features, features @ [1.0, -1.0], tasks)
        >>> actions = [[1.0, 0.0], [0.0, 1.0], [1.0, -1.0]]
        >>> policy.predict([actions] * 3, ["bob", "day", "somebody"]).tolist()  # no rows; new in a group; unknown
        [2, 2, 2]
    """

    def __init__(
        self, prior: TreePrior, alpha: float | None = None, *, delta: float | None = None, kind: Kind = "simultaneous"
    ) -> None:
        if not isinstance(prior, TreePrior):
            raise TypeError(f"prior is a {type(prior).__name__}; give a TreePrior")
        self._prior = prior
        super().__init__(prior.d, alpha, delta, kind)

    @property
    def prior(self) -> TreePrior:
        """The prior."""
        return self._prior

    def posterior(self, task: Task) -> GaussianPosterior:
        """The posterior of a task of the tree, with rows or without.

        Args:
            task: The label of a leaf.

        Returns:
            Mean and covariance; task_cov is what would remain if the group were known.

        Raises:
            KeyError: If the tree has no such node (near matches are named).
        """
        return self.node_posterior(task)

    def node_posterior(self, label: Hashable) -> GaussianPosterior:
        """The posterior of any node: a task, a group or the root.

        Args:
            label: The node.

        Returns:
            Mean and covariance.

        Raises:
            KeyError: If the tree has no such node.
        """
        return self.joint.marginal(self._prior.tree.position(label))

    def new_task_posterior(self, group: Hashable | None = None) -> GaussianPosterior:
        """The posterior of a task without data.

        Args:
            group: The known group it belongs to; if not given, its groups are new too.

        Returns:
            Mean and covariance.

        Raises:
            KeyError: If the tree has no such group.
            ValueError: If the prior has no covariance for a node below it.
        """
        return self.joint.new_task() if group is None else self.joint.new_node(group)

    def sample(self, rng: np.random.Generator, size: int = 1) -> Float[np.ndarray, "{size} nodes d"]:
        """Joint posterior draws of all nodes, in the order of `prior.tree.labels`.

        Args:
            rng: Source of randomness.
            size: Number of draws.

        Returns:
            Draws, shape `[size, nodes, d]`.

        Raises:
            ValueError: If size < 1.
        """
        return self.joint.sample(as_generator(rng), as_size(size, "size"))

    def log_marginal_likelihood(self) -> float:
        """Log p(Y) of all rewards under the prior, exact.

        Returns:
            The log density, natural logarithm.
        """
        return self.joint.log_evidence

    def _infer(self, stats: TaskStatistics) -> TreePosterior:
        return tree_posterior(stats, self._prior)

    def _learn(self, stats: TaskStatistics) -> TreeOPO:
        leaf_positions(stats, self._prior.tree)  # refuse tasks that are not leaves before anything changes
        return super()._learn(stats)

    def _score(self, features: Float[np.ndarray, "B K d"], labels: np.ndarray) -> ActionScores:
        posterior, tree = self._knowledge.posterior, self._prior.tree

        kinds = tree.leaf_kinds
        if labels.size and (str if labels.dtype.kind == "U" else int) not in kinds and kinds <= {str, int}:
            strangers = labels[[label not in tree for label in labels.tolist()]]  # groups may be named otherwise
            same_kind(np.empty(1, np.int64 if int in kinds else np.str_), strangers, "look up these tasks")

        def moments(label: Hashable) -> GaussianPosterior:
            if label not in tree:
                return posterior.new_task()
            position = tree.position(label)
            return posterior.marginal(position) if tree.is_leaf[position] else posterior.new_node(label)

        return score_by_task(features, labels, moments)

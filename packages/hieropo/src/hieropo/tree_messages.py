"""Exact Gaussian message passing on a tree: posterior of every node and log evidence, O(nodes d³).

Upwards every node sends its parent one message (W, b), what its subtree says about the parent: the factor
exp(−½ θᵀWθ + bᵀθ) with W = (I + GΛ)⁻¹G and b = (I + GΛ)⁻¹B, where (G, B) is the node's own data plus its children's
messages. Downwards θ_v | θ_parent, D ~ N(C θ_parent + Σ̃B, Σ̃) with C = (I + ΛG)⁻¹ and Σ̃ = CΛ. Neither G nor Λ is
ever inverted, so empty subtrees, fewer rows than dimensions and singular covariances need no special case.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float, Int

from hieropo.briefly import briefly
from hieropo.evidence import refuse_lost_residual
from hieropo.linalg import symmetric
from hieropo.messages import Message, absorb, transposed
from hieropo.posterior import GaussianPosterior
from hieropo.statistics import TaskStatistics
from hieropo.tree import Tree, TreePrior

__all__ = ["TreePosterior", "tree_log_evidence", "tree_posterior"]


@final
@dataclass(frozen=True, eq=False)
class TreePosterior:
    """Posterior of every node of a tree, in the tree's order.

    Args:
        prior: The prior it came from.
        mean: Posterior means, shape `[nodes, d]`.
        cov: Posterior covariances, shape `[nodes, d, d]`.
        gain: C_v of θ_v = C_v θ_parent + ..., shape `[nodes, d, d]`; zero at the root.
        own_cov: Σ̃_v, the covariance of θ_v given its parent and the data, shape `[nodes, d, d]`.
        log_evidence: Exact log p(rewards).
    """

    prior: TreePrior
    mean: Float[np.ndarray, "nodes d"]
    cov: Float[np.ndarray, "nodes d d"]
    gain: Float[np.ndarray, "nodes d d"]
    own_cov: Float[np.ndarray, "nodes d d"]
    log_evidence: float

    __repr__ = briefly("prior", "log_evidence")

    def marginal(self, index: int) -> GaussianPosterior:
        """Posterior of the node at a position; task_cov is what would remain if its parent were known.

        Args:
            index: Position in the tree.

        Returns:
            Mean and covariance.
        """
        task = self.own_cov[index]
        if index == 0:
            return GaussianPosterior(self.mean[0], self.cov[0], task, np.zeros_like(task))
        above = self.cov[self.prior.tree.parent[index]]
        hyper = symmetric(self.gain[index] @ above @ self.gain[index].T)
        return GaussianPosterior(self.mean[index], self.cov[index], task, hyper)

    def new_task(self) -> GaussianPosterior:
        """Posterior of a task without data in groups without data, as deep as the deepest task."""
        return self.new_node(self.prior.tree.labels[0], max(1, self.prior.tree.height))

    def new_node(self, below: Hashable, levels: int = 1) -> GaussianPosterior:
        """Posterior of a node without data: N(mean_g, P_g + Λ of every level in between).

        Args:
            below: The known node g it hangs below.
            levels: How many levels below; the nodes in between are new too.

        Returns:
            Mean and covariance; hyper_cov is that of g.

        Raises:
            KeyError: The tree has no such node.
            ValueError: levels < 1, or the prior has no covariance for a node that deep.
        """
        tree, covs = self.prior.tree, self.prior.level_covs
        position = tree.position(below)
        depth = int(tree.depth[position])
        if levels < 1 or depth + levels > len(covs):
            raise ValueError(
                f"{levels} levels below {below!r} is depth {depth + levels}; the prior has covariances for depths 1 to "
                f"{len(covs)}, give level_covs for more"
            )
        task, hyper = covs[depth : depth + levels].sum(axis=0), self.cov[position]
        return GaussianPosterior(self.mean[position], task + hyper, task, hyper)

    def cross_cov(self, left: Hashable, right: Hashable) -> Float[np.ndarray, "d d"]:
        """Posterior covariance of two nodes through their lowest common ancestor a.

        cov(θ_u, θ_v | D) = (C_u ⋯ C_below_a) cov(θ_a | D) (C_v ⋯ C_below_a)ᵀ.

        Args:
            left: Label of node u.
            right: Label of node v.

        Returns:
            cov(θ_u, θ_v | D), shape `[d, d]`; of a node with itself its covariance.

        Raises:
            KeyError: The tree has no such node.
        """
        tree = self.prior.tree
        up_left, up_right = tree.ancestors(tree.position(left)), tree.ancestors(tree.position(right))
        above_right = set(up_right)
        common = next(node for node in up_left if node in above_right)
        chains = [self._chain(up, common) for up in (up_left, up_right)]
        return chains[0] @ self.cov[common] @ chains[1].T

    def sample(self, rng: np.random.Generator, size: int) -> Float[np.ndarray, "{size} nodes d"]:
        """Joint draws of all nodes, from the root down: θ_v = E[θ_v] + C_v(θ_parent − E[θ_parent]) + N(0, Σ̃_v).

        Args:
            rng: Source of randomness.
            size: Number of draws.

        Returns:
            Draws in the tree's order, shape `[size, nodes, d]`.
        """
        tree = self.prior.tree
        values, vectors = np.linalg.eigh(self.own_cov)
        roots = vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :]
        apart = (roots @ rng.standard_normal((size, *self.mean.shape, 1)))[..., 0]
        for nodes in tree.levels[1:]:
            apart[:, nodes] += (self.gain[nodes] @ apart[:, tree.parent[nodes], :, None])[..., 0]
        return self.mean + apart

    def cov_by_node(self, label: Hashable) -> dict[Hashable, Float[np.ndarray, "d d"]]:
        """How much of a node's posterior covariance stems from itself and from each of its ancestors.

        The parts K Σ̃_a Kᵀ, with K the product of the gains from the node up to below a, sum to the covariance.

        Args:
            label: The node.

        Returns:
            One covariance for the node and for each of its ancestors, the node first and the root last.

        Raises:
            KeyError: The tree has no such node.
        """
        tree = self.prior.tree
        up = tree.ancestors(tree.position(label))
        parts: dict[Hashable, Float[np.ndarray, "d d"]] = {}
        chain = np.eye(self.prior.d)
        for node in up:
            parts[tree.labels[node]] = chain @ self.own_cov[node] @ chain.T
            chain = chain @ self.gain[node]
        return parts

    def _chain(self, up: list[int], end: int) -> Float[np.ndarray, "d d"]:
        chain = np.eye(self.prior.d)
        for node in up[: up.index(end)]:
            chain = chain @ self.gain[node]
        return chain


@final
@dataclass(frozen=True, eq=False)
class _Upward:
    """What the upward pass leaves at every node: its message, the root's with the prior mean taken out of B."""

    W: Float[np.ndarray, "nodes d d"]
    b: Float[np.ndarray, "nodes d"]
    gain: Float[np.ndarray, "nodes d d"]
    own_cov: Float[np.ndarray, "nodes d d"]
    pull: Float[np.ndarray, "nodes d"]
    log_det: float


def tree_posterior(stats: TaskStatistics, prior: TreePrior) -> TreePosterior:
    """Exact posterior of every node of the tree.

    θ_root ~ N(μ + Σ̄(B − Gμ), Σ̄), Σ̄ = (I + Σ_q G)⁻¹ Σ_q; below, mean C m_parent + Σ̃B and covariance
    Σ̃ + C P_parent Cᵀ.

    Args:
        stats: Sufficient statistics of tasks that are leaves of the tree; leaves without rows may be missing.
        prior: The tree prior.

    Returns:
        Means, covariances and log evidence.

    Raises:
        ValueError: A task that is not a leaf of the tree, or features of another dimension.

    Reference:
        HierOPO names deeper hierarchies as future work (Hong et al., ICML 2023); two levels give its Section 4.

    Example:
        >>> tree = Tree.from_parents({"ann": "day", "bob": "day", "day": "all"})
        >>> prior = TreePrior.isotropic(tree, 1, sigma_root=1.0, sigma_levels=[1.0, 1.0], sigma=1.0)
        >>> stats = TaskStatistics.from_rows(np.ones((1, 1)), np.array([4.0]), ["ann"])
        >>> tree_posterior(stats, prior).mean.ravel().round(6).tolist()  # all, day, ann, bob
        [1.0, 2.0, 3.0, 2.0]
    """
    up = _upward(stats, prior)
    tree = prior.tree
    mean = np.empty_like(up.pull)
    cov = np.empty_like(up.gain)
    mean[0], cov[0] = prior.mean + up.pull[0], up.own_cov[0]
    quadratic = float(up.pull[0] @ up.b[0])
    for nodes in tree.levels[1:]:
        above, gain = tree.parent[nodes], up.gain[nodes]
        mean[nodes] = _matvec(gain, mean[above]) + up.pull[nodes]
        cov[nodes] = symmetric(up.own_cov[nodes] + gain @ cov[above] @ transposed(gain))
        score = up.b[nodes] - _matvec(up.W[nodes], mean[above])  # Λ⁻¹(θ̂_v − θ̂_parent)
        quadratic += float(np.sum((mean[nodes] - mean[above]) * score))
    quadratic += _residual(stats, mean[leaf_positions(stats, tree)]) / prior.sigma**2
    refuse_lost_residual(stats, prior.sigma**2, quadratic)
    log_evidence = -0.5 * (stats.n * math.log(2 * math.pi * prior.sigma**2) + up.log_det + quadratic)
    return TreePosterior(prior, mean, cov, up.gain, up.own_cov, log_evidence)


def tree_log_evidence(stats: TaskStatistics, prior: TreePrior) -> float:
    """Exact log marginal likelihood of all rewards.

    −2 log p(Y) = n log 2πσ² + Σ_v log|I + Λ_vG_v| + Σ(y − φᵀθ̂)²/σ² + Σ_v (θ̂_v − θ̂_parent)ᵀ(b_v − W_vθ̂_parent), the root
    taken around its prior mean: residuals, which do not cancel digits when the data are many.

    Args:
        stats: Sufficient statistics of tasks that are leaves of the tree.
        prior: The tree prior.

    Returns:
        log p(Y).

    Raises:
        ValueError: A task that is not a leaf of the tree, or features of another dimension.
    """
    return tree_posterior(stats, prior).log_evidence


def leaf_positions(stats: TaskStatistics, tree: Tree) -> Int[np.ndarray, " tasks"]:
    """Positions in the tree of the tasks of the statistics.

    Raises:
        ValueError: A task that is not in the tree, or not a leaf of it.
    """
    try:
        positions = np.array([tree.position(task) for task in stats.tasks.tolist()], dtype=int)
    except KeyError as error:
        raise ValueError(f"{error.args[0]}; every task with rows must be a leaf of the prior's tree") from None
    inner = positions[~tree.is_leaf[positions]]
    if inner.size:
        raise ValueError(f"{tree.labels[inner[0]]!r} has rows but is a group of the tree; hang a task below it")
    return positions


def _upward(stats: TaskStatistics, prior: TreePrior) -> _Upward:
    tree, d = prior.tree, prior.d
    if stats.d != d:
        raise ValueError(f"the features have dimension {stats.d}, the prior has dimension {d}")
    leaves = leaf_positions(stats, tree)
    G, B = np.zeros((len(tree), d, d)), np.zeros((len(tree), d))
    G[leaves], B[leaves] = stats.gram / prior.sigma**2, stats.moment / prior.sigma**2
    parts = [np.empty_like(x) for x in (G, B, G, G, B)]
    log_det = 0.0
    for depth in range(tree.height, 0, -1):
        nodes = tree.levels[depth]
        message = absorb(prior.level_cov(depth), G[nodes], B[nodes])
        _store(parts, nodes, message)
        log_det += float(message.log_det.sum())
        # Siblings are neighbours, so the sum over the children of each parent is one segmented sum.
        above, first = np.unique(tree.parent[nodes], return_index=True)
        G[above] += np.add.reduceat(message.W, first)
        B[above] += np.add.reduceat(message.b, first)
    root = absorb(prior.root_cov[None], G[:1], B[:1] - G[0] @ prior.mean)
    _store(parts, slice(0, 1), root)
    parts[2][0] = 0.0  # the root has no parent to draw on
    W, b, gain, own_cov, pull = parts
    return _Upward(W, b, gain, own_cov, pull, log_det + float(root.log_det[0]))


def _store(parts: list[np.ndarray], nodes: slice, message: Message) -> None:
    for part, value in zip(parts, message[:5], strict=True):
        part[nodes] = value


def _residual(stats: TaskStatistics, means: Float[np.ndarray, "m d"]) -> float:
    """Σ (y − φᵀθ̂)² from the sums; rounding may leave a tiny negative number where the fit is exact."""
    fitted = _matvec(stats.gram, means)
    return max(0.0, float(stats.square.sum() + np.sum(means * (fitted - 2.0 * stats.moment))))


def _matvec(matrices: Float[np.ndarray, "n d d"], vectors: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    return (matrices @ vectors[..., None])[..., 0]

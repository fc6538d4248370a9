"""Empirical Bayes on a tree: the covariance of every level and the noise, by exact EM."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float

from hieropo.ascent import HyperparameterFit, accelerated, climb
from hieropo.checks import as_instance
from hieropo.linalg import symmetric
from hieropo.messages import transposed
from hieropo.statistics import TaskStatistics
from hieropo.structure import STRUCTURES, Structure, pack, project, size, unpack
from hieropo.tree import TreePrior
from hieropo.tree_messages import TreePosterior, leaf_positions, tree_posterior

__all__ = ["fit_tree_hyperparameters"]

_SIGMA_FLOOR = 1e-6  # of the root mean square reward: without noise the likelihood has no maximum


def fit_tree_hyperparameters(
    stats: TaskStatistics,
    prior: TreePrior,
    *,
    structure: Structure = "full",
    learn_sigma: bool = True,
    tolerance: float = 1e-7,
    max_iter: int = 1500,
) -> HyperparameterFit[TreePrior]:
    """Fit the covariance of every level, and the noise, by EM on the exact evidence.

    With A_v = C_v − I and δ_v = E[θ_v] − E[θ_parent], one step sets
    Λ_k ← mean over the nodes v of depth k of δ_vδ_vᵀ + Σ̃_v + A_v P_parent A_vᵀ and
    σ² ← mean over the rows of (y − φᵀE[θ])² + φᵀP_taskφ.

    Nodes without any row below them say nothing and are left out; a level without rows and the `node_covs` keep their
    values. The root's mean and covariance stay as given: one tree holds one draw of the root, so they cannot be
    learnt from it. Likewise a level with a handful of nodes is fitted, but poorly determined.

    Args:
        stats: Sufficient statistics of the tasks.
        prior: Where to start. A covariance that starts singular stays singular in the same directions.
        structure: "full", "diagonal" or "isotropic" level covariances.
        learn_sigma: Whether to fit the noise too.
        tolerance: The climb ends when a cycle of steps gains less than tolerance · (1 + |log evidence|) nats.
        max_iter: Largest number of EM steps; two or three make a cycle, of which the second is extrapolated (SQUAREM).

    Returns:
        The fitted prior with the trace of the evidence; "not_identified" where the rows tell only the sum of two
        levels' covariances.

    Raises:
        ValueError: No rows, an unknown structure, or statistics that do not fit the tree.

    Reference:
        Dempster, Laird and Rubin (1977); the step for two levels is HierOPO's model with Σ_0 and σ unknown.
    """
    how = "give first the statistics, then the prior to start from"
    as_instance(stats, TaskStatistics, "stats", f"{how}; TaskStatistics.from_rows(features, rewards, task_ids)")
    as_instance(prior, TreePrior, "prior", how)
    if stats.n == 0:
        raise ValueError("the statistics hold no rows; there is nothing to fit the covariances to")
    if structure not in STRUCTURES:
        raise ValueError(f"structure is {structure!r}; give one of {', '.join(STRUCTURES)}")
    informed = _nodes_with_rows(stats, prior)

    def step(current: TreePrior) -> tuple[TreePrior, float]:
        posterior = tree_posterior(stats, current)
        level_covs = current.level_covs.copy()
        for depth in range(1, current.tree.height + 1):
            nodes = current.tree.levels[depth]
            used = np.arange(nodes.start, nodes.stop)[informed[nodes]]
            if used.size:
                level_covs[depth - 1] = project(_scatter(posterior, used), structure)
        sigma = _noise(stats, posterior) if learn_sigma else current.sigma
        return replace(current, level_covs=level_covs, sigma=sigma), posterior.log_evidence

    learned = [k for k, nodes in enumerate(prior.tree.levels[1:]) if informed[nodes].any()]
    per_level = size(prior.d, structure)

    def packed(current: TreePrior) -> Float[np.ndarray, " p"]:
        levels = [pack(current.level_covs[k], structure) for k in learned]
        return np.concatenate([*levels, [math.log(current.sigma)] if learn_sigma else []])

    def unpacked(current: TreePrior, x: Float[np.ndarray, " p"]) -> TreePrior:
        level_covs = current.level_covs.copy()
        for position, k in enumerate(learned):
            level_covs[k] = unpack(x[position * per_level : (position + 1) * per_level], current.d, structure)
        return replace(current, level_covs=level_covs, sigma=math.exp(x[-1]) if learn_sigma else current.sigma)

    start = replace(prior, level_covs=_structured(prior.level_covs, learned, structure))
    end = climb(accelerated(step, packed, unpacked), start, tolerance=tolerance, max_iter=max(1, max_iter // 3))
    status, message = ("converged" if end.converged else "max_iter"), end.message
    confounded = _confounded_levels(stats, prior, informed)
    if confounded:
        status, message = "not_identified", confounded
    return HyperparameterFit(end.state, end.trace[-1], end.trace, status, message)


def _structured(
    level_covs: Float[np.ndarray, "levels d d"], learned: list[int], structure: Structure
) -> Float[np.ndarray, "levels d d"]:
    covs = level_covs.copy()
    for k in learned:
        covs[k] = project(covs[k], structure)
    return covs


def _confounded_levels(stats: TaskStatistics, prior: TreePrior, informed: Bool[np.ndarray, " nodes"]) -> str | None:
    """Which two levels the rows see only through their sum: no group tells its own spread from its one child's."""
    tree = prior.tree
    for depth in range(1, tree.height):
        nodes = np.arange(tree.levels[depth].start, tree.levels[depth].stop)[informed[tree.levels[depth]]]
        below = np.arange(tree.levels[depth + 1].start, tree.levels[depth + 1].stop)[informed[tree.levels[depth + 1]]]
        children = np.bincount(tree.parent[below], minlength=len(tree))[nodes]
        if nodes.size and below.size and not prior.node_covs and np.all(children == 1):
            return (
                f"the rows tell only the sum of the covariances of depth {depth} and {depth + 1}: no group of depth "
                f"{depth} has two children with rows, and no task stands there; leave out a level"
            )
    return None


def _nodes_with_rows(stats: TaskStatistics, prior: TreePrior) -> Bool[np.ndarray, " nodes"]:
    """Nodes that have rows below them and whose covariance is their level's."""
    tree = prior.tree
    rows = np.zeros(len(tree), dtype=np.int64)
    rows[leaf_positions(stats, tree)] = stats.count
    for nodes in reversed(tree.levels[1:]):
        np.add.at(rows, tree.parent[nodes], rows[nodes])
    informed = rows > 0
    informed[[tree.position(label) for label in prior.node_covs]] = False
    return informed


def _scatter(posterior: TreePosterior, nodes: np.ndarray) -> np.ndarray:
    """Mean of E[(θ_v − θ_parent)(θ_v − θ_parent)ᵀ | D] over some nodes."""
    above = posterior.prior.tree.parent[nodes]
    shift = posterior.mean[nodes] - posterior.mean[above]
    pull = posterior.gain[nodes] - np.eye(shift.shape[1])
    spread = posterior.own_cov[nodes] + pull @ posterior.cov[above] @ transposed(pull)
    return symmetric((shift.T @ shift + spread.sum(axis=0)) / len(nodes))


def _noise(stats: TaskStatistics, posterior: TreePosterior) -> float:
    """Root of the posterior mean squared residual."""
    leaves = leaf_positions(stats, posterior.prior.tree)
    mean, cov = posterior.mean[leaves], posterior.cov[leaves]
    second = cov + mean[:, :, None] * mean[:, None, :]
    squares = float(stats.square.sum() - 2.0 * np.sum(mean * stats.moment) + np.sum(stats.gram * second))
    floor = max(_SIGMA_FLOOR**2 * float(stats.square.sum()), 1e-300)
    return math.sqrt(max(squares, floor) / stats.n)

"""Trees by brute force: the joint Gaussian of all nodes and all rewards, built whole and conditioned once.

An independent derivation for checks, O((nodes·d)² n + n³); no other module uses it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

__all__ = ["TreeByBruteForce", "tree_by_brute_force"]


class TreeByBruteForce(NamedTuple):
    """The joint posterior of all nodes.

    Args:
        nodes: Node labels in the order of the blocks.
        mean: Posterior means, shape `[nodes, d]`.
        cov: Joint posterior covariance, shape `[nodes, d, nodes, d]`.
        log_evidence: log p(rewards).
    """

    nodes: tuple[Hashable, ...]
    mean: Float[np.ndarray, "nodes d"]
    cov: Float[np.ndarray, "nodes d nodes d"]
    log_evidence: float


def tree_by_brute_force(
    parents: Mapping[Hashable, Hashable],
    root: Hashable,
    mean: Float[np.ndarray, " d"],
    covs: Mapping[Hashable, Float[np.ndarray, "d d"]],
    sigma: float,
    rows: Sequence[tuple[Hashable, Float[np.ndarray, " d"], float]],
) -> TreeByBruteForce:
    """Posterior and evidence from the definition: cov(θ_u, θ_v) is the sum of the covariances of all shared ancestors.

    Args:
        parents: For every node but the root, its parent.
        root: Label of the root.
        mean: Prior mean of the root, shape `[d]`.
        covs: For every node, the root included, its covariance around its parent.
        sigma: Standard deviation of the reward noise.
        rows: One (node, feature vector, reward) for each observation.

    Returns:
        The joint posterior of all nodes and log p(rewards).
    """
    nodes = (root, *parents)
    d = len(mean)
    lineage = {}
    for node in nodes:
        line = {node}
        above = node
        while above != root:
            above = parents[above]
            line.add(above)
        lineage[node] = line
    blocks = [[sum((covs[a] for a in lineage[u] & lineage[v]), np.zeros((d, d))) for v in nodes] for u in nodes]
    prior = np.block(blocks)
    design = np.zeros((len(rows), len(nodes) * d))
    for t, (node, features, _) in enumerate(rows):
        start = nodes.index(node) * d
        design[t, start : start + d] = features
    rewards = np.array([reward for _, _, reward in rows])
    centre = np.tile(mean, len(nodes))
    marginal = design @ prior @ design.T + sigma**2 * np.eye(len(rows))
    gain = np.linalg.solve(marginal, design @ prior).T
    residual = rewards - design @ centre
    log_evidence = -0.5 * (
        residual @ np.linalg.solve(marginal, residual) + np.linalg.slogdet(marginal)[1] + len(rows) * np.log(2 * np.pi)
    )
    posterior = prior - gain @ design @ prior
    shape = (len(nodes), d)
    return TreeByBruteForce(
        nodes, (centre + gain @ residual).reshape(shape), posterior.reshape(shape * 2), float(log_evidence)
    )

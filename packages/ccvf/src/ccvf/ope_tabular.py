"""The exact values of policies in the process that a tabular log describes."""

from collections.abc import Iterable
from typing import SupportsFloat

import numpy as np
from jaxtyping import Float
from scipy import sparse
from scipy.sparse.linalg import spsolve

from ccvf.confidence import check_deltas
from ccvf.counts import Counts
from ccvf.ope_estimates import ReturnEstimates
from ccvf.values import ConfidenceValues

__all__ = ["empirical_returns", "empirical_values"]


def empirical_values(
    counts: Counts,
    policy: Float[np.ndarray, "states actions"],
    gamma: SupportsFloat,
    unseen: SupportsFloat | None = None,
) -> Float[np.ndarray, " states"]:
    r"""Values of a policy in the empirical process: $V = \pi \cdot (\hat r + \gamma \hat P V)$, one linear system.

    Args:
        counts: The log.
        policy: Probabilities of actions.
        gamma: Discount of a step, in [0, 1).
        unseen: Value of a pair that the log does not hold; None: what it is at least worth if the smallest reward seen
            were received for ever, or the episode ended there.

    Returns:
        V(s).

    Raises:
        ValueError: If gamma is out of range.
    """
    discount = float(gamma)
    if not 0 <= discount < 1:
        raise ValueError(f"gamma is a discount in [0, 1), {discount:g} given")
    states, actions = counts.visits.shape
    low = min(float(counts.reward_range[0]), 0.0) / (1 - discount) if unseen is None else float(unseen)
    visits = counts.visits.ravel()
    share = np.divide(1.0, visits, out=np.zeros_like(visits), where=visits > 0)
    gain = np.where(visits > 0, counts.reward_sum.ravel() * share, low)
    weights = sparse.csr_array(
        (policy.ravel(), np.arange(states * actions), np.arange(0, states * actions + 1, actions)),
        shape=(states, states * actions),
    )
    moves = sparse.csr_array(sparse.diags_array(share) @ counts.transitions)
    system = sparse.csc_array(sparse.eye_array(states) - discount * (weights @ moves))
    return np.asarray(spsolve(system, weights @ gain)).reshape(states)


def empirical_returns(
    counts: Counts,
    values: ConfidenceValues,
    deltas: Iterable[SupportsFloat],
    gamma: SupportsFloat,
    initial: Float[np.ndarray, " states"],
    unseen: SupportsFloat | None = None,
) -> ReturnEstimates:
    """Returns of the greedy policies of several confidences in the empirical process.

    They are as good as the log: of pairs seen once, the one outcome is taken for sure. Use another log than the one the
    values were learnt from where there is one, else the least conservative policy looks best by construction.

    Args:
        counts: The log.
        values: The learnt values.
        deltas: Confidences.
        gamma: Discount of a step, in [0, 1).
        initial: Probabilities of first states.
        unseen: Value of a pair that the log does not hold (see `empirical_values`).

    Returns:
        The estimates, without intervals.

    Raises:
        ValueError: If a number is out of range.
    """
    grid = check_deltas(deltas)
    if initial.shape != (counts.n_states,) or (initial < 0).any() or abs(initial.sum() - 1) > 1e-9:
        raise ValueError(f"initial holds probabilities of {counts.n_states} states that add up to 1")
    best = values.q_values(np.arange(counts.n_states), grid).argmax(-1)
    found = np.array([initial @ empirical_values(counts, np.eye(counts.n_actions)[a], gamma, unseen) for a in best.T])
    nothing = np.full(len(grid), np.nan)
    return ReturnEstimates(grid, found, nothing, nothing, 0, "empirical process")

"""The one step of Gaussian elimination that trees, mixtures and the logistic model share: integrate out a child.

A child θ ~ N(θ_parent, Λ) whose data enter as exp(−½ θᵀGθ + Bᵀθ) leaves its parent the factor
exp(−½ θ_pᵀWθ_p + bᵀθ_p), up to a constant. Neither G nor Λ is inverted: both may be singular or zero.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from hieropo.linalg import symmetric

__all__ = ["Message", "absorb", "transposed"]


class Message(NamedTuple):
    """What `absorb` returns, for n children at once.

    Args:
        W: (I + GΛ)⁻¹G, shape `[n, d, d]`.
        b: (I + GΛ)⁻¹B, shape `[n, d]`.
        gain: C = (I + ΛG)⁻¹, shape `[n, d, d]`.
        own_cov: Σ̃ = CΛ = cov[θ | θ_p, data], shape `[n, d, d]`.
        pull: Σ̃B, so that E[θ | θ_p, data] = C θ_p + pull, shape `[n, d]`.
        log_det: log|I + ΛG|, shape `[n]`.
    """

    W: Float[np.ndarray, "n d d"]
    b: Float[np.ndarray, "n d"]
    gain: Float[np.ndarray, "n d d"]
    own_cov: Float[np.ndarray, "n d d"]
    pull: Float[np.ndarray, "n d"]
    log_det: Float[np.ndarray, " n"]


def absorb(cov: Float[np.ndarray, "#n d d"], G: Float[np.ndarray, "n d d"], B: Float[np.ndarray, "n d"]) -> Message:
    """Integrate out n children with covariance Λ around their parent and data (G, B).

    Args:
        cov: Λ, one for all children `[1, d, d]` or one each `[n, d, d]`; positive semi-definite.
        G: Precision of the data, shape `[n, d, d]`; positive semi-definite.
        B: Precision-weighted data, shape `[n, d]`.

    Returns:
        The messages.
    """
    n, d = B.shape
    eye = np.eye(d)
    system = eye + G @ cov
    solved = np.linalg.solve(system, np.concatenate([G, B[..., None], np.broadcast_to(eye, (n, d, d))], axis=-1))
    W, b, gain = symmetric(solved[..., :d]), solved[..., d], transposed(solved[..., d + 1 :])
    own_cov = symmetric(gain @ cov)
    # |I + GΛ| >= 1: its eigenvalues are those of I + Λ^½ G Λ^½.
    log_det = np.linalg.slogdet(system)[1]
    pull = (own_cov @ B[..., None])[..., 0]
    return Message(W, b, gain, own_cov, pull, log_det)


def transposed(matrix: Float[np.ndarray, "*batch n d"]) -> Float[np.ndarray, "*batch d n"]:
    """The transposes of a stack of matrices."""
    return np.swapaxes(matrix, -1, -2)

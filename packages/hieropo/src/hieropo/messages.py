"""The one step of Gaussian elimination that trees, mixtures and the logistic model share: integrate out a child.

A child θ ~ N(θ_parent, Λ) whose data enter as exp(−½ θᵀGθ + Bᵀθ) leaves its parent the factor
exp(−½ θ_pᵀWθ_p + bᵀθ_p), up to a constant. Neither G nor Λ is inverted: both may be singular or zero. `absorb` does so
for children of any covariances; `TaskConditionals` are the children of the two-level model, many and with one Λ.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, final

import numpy as np
from jaxtyping import Float

from hieropo.linalg import blocks, psd_factor, smallest_scaled, sum_products, symmetric

__all__ = ["Message", "TaskConditionals", "absorb", "transposed"]

_EXTREME = 1e10  # tr(ΛG) above which `absorb` looks whether rounding may leave nothing
_LOPSIDED = 1e-11  # smallest eigenvalue of I + LᵀGL, scaled to a unit diagonal, that `absorb` accepts, Λ = LLᵀ
_DOMINANT = 1e6  # tr(Σ_0 G) above which rounding is attended to


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

    Raises:
        numpy.linalg.LinAlgError: If rounding of the data decides more than Λ.
    """
    n, d = B.shape
    eye = np.eye(d)
    _refuse_lopsided(np.broadcast_to(cov, G.shape), G)
    system = eye + G @ cov
    solved = np.linalg.solve(system, np.concatenate([G, B[..., None], np.broadcast_to(eye, (n, d, d))], axis=-1))
    W, b, gain = symmetric(solved[..., :d]), solved[..., d], transposed(solved[..., d + 1 :])
    own_cov = symmetric(gain @ cov)
    # |I + GΛ| >= 1: its eigenvalues are those of I + Λ^½ G Λ^½.
    log_det = np.linalg.slogdet(system)[1]
    pull = (own_cov @ B[..., None])[..., 0]
    return Message(W, b, gain, own_cov, pull, log_det)


def _refuse_lopsided(cov: np.ndarray, G: np.ndarray) -> None:
    """Data that are large in one direction carry rounding into all others; it must not outweigh Λ."""
    for index in np.flatnonzero(np.einsum("nij,nij->n", G, cov) > _EXTREME):
        factor = psd_factor(cov[index])
        if smallest_scaled(np.eye(len(factor)) + factor.T @ G[index] @ factor) < _LOPSIDED:
            raise np.linalg.LinAlgError(
                "the rows of a task or group say so much more in some directions than in others that rounding decides "
                "the latter: raise sigma, narrow the covariances or rescale the features"
            )


def transposed(matrix: Float[np.ndarray, "*batch n d"]) -> Float[np.ndarray, "*batch d n"]:
    """The transposes of a stack of matrices."""
    return np.swapaxes(matrix, -1, -2)


@final
@dataclass(frozen=True, eq=False)
class TaskConditionals:
    """All tasks given μ: θ_s | μ, D ~ N(C_s μ + Σ̃_s B_s, Σ̃_s).

    Args:
        sums: Σφφᵀ, as in the statistics, shape [m, d, d].
        scale: 1/σ².
        moment: B_s = Σφy/σ², shape [m, d].
        cov: Σ̃_s, shape [m, d, d].
        precision: Σ_0⁻¹ where it exists and is well conditioned, otherwise None.
        prior_cov: Σ_0, shape [d, d].
        dominance: The largest tr(Σ_0 G_s), how far the data outweigh the prior.
    """

    sums: Float[np.ndarray, "m d d"]
    scale: float
    moment: Float[np.ndarray, "m d"]
    cov: Float[np.ndarray, "m d d"]
    precision: Float[np.ndarray, "d d"] | None
    prior_cov: Float[np.ndarray, "d d"]
    dominance: float

    @cached_property
    def gram(self) -> Float[np.ndarray, "m d d"]:
        """G_s = Σφφᵀ/σ², shape [m, d, d], made when first asked for."""
        return self.sums if self.scale == 1.0 else self.sums * self.scale

    def residual(self, mu: Float[np.ndarray, " d"]) -> Float[np.ndarray, "m d"]:
        """B_s − G_s μ, the rewards that one shared μ leaves unexplained.

        Args:
            mu: Shape [d].

        Returns:
            Shape [m, d].
        """
        return self.moment - self.sums @ (self.scale * mu)

    def shrink(self, columns: Float[np.ndarray, "d k"]) -> Float[np.ndarray, "m d k"]:
        """C_s X for every task and one shared X.

        Args:
            columns: X, shape [d, k].

        Returns:
            C_s X, shape [m, d, k].
        """
        if self.precision is not None:  # C = Σ̃ Σ_0⁻¹
            return self.cov @ (self.precision @ columns)
        if self.dominance < _DOMINANT:
            return columns - self.cov @ (self.gram @ columns)  # C = I − Σ̃ G
        return np.linalg.solve(np.eye(len(columns)) + self.prior_cov @ self.gram, columns)

    def weigh(self, vectors: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m d"]:
        """C_sᵀ v_s, the part of v_s (in units of B_s) that speaks about μ.

        Args:
            vectors: v_s, shape [m, d].

        Returns:
            C_sᵀ v_s, shape [m, d].
        """
        inner = self.solve(vectors)
        return inner @ self.precision if self.precision is not None else vectors - _matvec(self.gram, inner)

    def solve(self, vectors: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m d"]:
        """Σ̃_s v_s; where the data outweigh the prior by far, by L (I + LᵀG_sL)⁻¹Lᵀv_s, Σ_0 = LLᵀ.

        An inverse times a vector is off by rounding times the widest direction, also along the narrowest.

        Args:
            vectors: v_s, shape [m, d].

        Returns:
            Σ̃_s v_s, shape [m, d].
        """
        if self.dominance < _DOMINANT:
            return _matvec(self.cov, vectors)
        d, factor = self.cov.shape[1], psd_factor(self.prior_cov)
        out = np.empty_like(vectors)
        for block in blocks(len(self.cov), d):
            inner = np.eye(d) + factor.T @ (self.scale * self.sums[block]) @ factor
            unit = 1.0 / np.sqrt(np.diagonal(inner, axis1=1, axis2=2))  # features may differ in scale by far
            inner *= unit[:, :, None] * unit[:, None, :]
            x = np.linalg.solve(inner, (unit * (vectors[block] @ factor))[:, :, None])[:, :, 0]
            out[block] = (unit * x) @ factor.T
        return out

    def information(self, *, careful: bool = False) -> Float[np.ndarray, "d d"]:
        """W = Σ_s C_sᵀ G_s, the precision with which the data determine μ.

        Args:
            careful: Find W = Σ (C_sᵀG_sC_s + N_sᵀN_s), N = (I + LᵀGL)⁻¹LᵀG, Σ_0 = LLᵀ: a sum without differences, as
                accurate in weak directions as in strong ones, at several times the cost.

        Returns:
            W, symmetric, shape [d, d].
        """
        d = self.cov.shape[1]
        if careful:
            return self._careful_information()
        if self.precision is None:  # Σ (G − G Σ̃ G), the sum over tasks inside one product as G is symmetric
            total = self.gram.sum(axis=0)
            for block in blocks(len(self.gram), d):
                gram = self.gram[block]
                total -= gram.reshape(-1, d).T @ (self.cov[block] @ gram).reshape(-1, d)
            return symmetric(total)
        m, largest = len(self.cov), self.scale * np.trace(self.sums, axis1=1, axis2=2).max(initial=0.0)
        if np.trace(self.precision) < largest:  # Σ (Σ_0⁻¹ − Σ_0⁻¹ Σ̃ Σ_0⁻¹): rounding is relative to Σ_0⁻¹
            return symmetric(m * self.precision - self.precision @ self.cov.sum(axis=0) @ self.precision)
        # Σ_0⁻¹ Σ Σ̃ G as one product: rounding is relative to G
        return symmetric(self.scale * self.precision @ (self.cov.reshape(-1, d).T @ self.sums.reshape(-1, d)))

    def information_rounding(self) -> float:
        """A bound of what rounding may have added to an entry of the quick form of W.

        Rounding of Σ̃ is relative to the condition of I + Σ_0 G, at most 1 + tr(Σ_0 G).

        Returns:
            Of the dimension of W.
        """
        if self.precision is None or self.dominance < self.cov.shape[1]:
            total = self.scale * np.trace(self.sums, axis1=1, axis2=2).sum()
        else:
            total = len(self.cov) * np.trace(self.precision)
        return float(np.finfo(float).eps * (1.0 + self.dominance) * total)

    def _careful_information(self) -> Float[np.ndarray, "d d"]:
        d, factor = self.cov.shape[1], psd_factor(self.prior_cov)
        total, eye = np.zeros((d, d)), np.eye(d)
        for block in blocks(len(self.cov), d):
            gram = self.scale * self.sums[block]
            across = factor.T @ gram
            inner = np.linalg.solve(eye + across @ factor, across)
            gain = eye - factor @ inner
            total += sum_products(np.swapaxes(gain, 1, 2) @ gram, np.swapaxes(gain, 1, 2))
            total += sum_products(np.swapaxes(inner, 1, 2), np.swapaxes(inner, 1, 2))
        return symmetric(total)


def _matvec(matrices: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    return (matrices @ vectors[..., None])[..., 0]

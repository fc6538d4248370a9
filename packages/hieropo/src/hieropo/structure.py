"""Covariances in unconstrained coordinates: full, diagonal or isotropic."""

from typing import Literal

import numpy as np
from jaxtyping import Float

Structure = Literal["full", "diagonal", "isotropic"]
STRUCTURES: tuple[Structure, ...] = ("full", "diagonal", "isotropic")


def project(moments: Float[np.ndarray, "d d"], structure: Structure) -> Float[np.ndarray, "d d"]:
    """The covariance of a structure that maximises −log|Σ| − tr(Σ⁻¹ moments): the M-step of a Gaussian.

    Args:
        moments: Mean second moments, shape [d, d].
        structure: The structure.

    Returns:
        The covariance, shape [d, d].
    """
    if structure == "full":
        return moments
    if structure == "diagonal":
        return np.diag(np.diagonal(moments))
    return np.eye(len(moments)) * (np.trace(moments) / len(moments))


def pack(cov: Float[np.ndarray, "d d"], structure: Structure) -> Float[np.ndarray, " p"]:
    """Unconstrained coordinates: the Cholesky factor with logarithms on its diagonal, or log standard deviations.

    Args:
        cov: A positive definite covariance of the structure.
        structure: The structure.

    Returns:
        Coordinates; d(d+1)/2, d or 1 of them.

    Raises:
        numpy.linalg.LinAlgError: If the covariance is singular.
    """
    if structure == "full":
        factor = np.linalg.cholesky(cov)
        np.fill_diagonal(factor, np.log(np.diagonal(factor)))
        return factor[np.tril_indices(len(cov))]
    variances = np.diagonal(cov) if structure == "diagonal" else np.diagonal(cov)[:1]
    if variances.min() <= 0:
        raise np.linalg.LinAlgError("the covariance is singular")
    return 0.5 * np.log(variances)


def unpack(coordinates: Float[np.ndarray, " p"], d: int, structure: Structure) -> Float[np.ndarray, "d d"]:
    """The covariance with these coordinates.

    Args:
        coordinates: From `pack`.
        d: Number of features.
        structure: The structure.

    Returns:
        The covariance, shape [d, d].
    """
    if structure == "full":
        factor = _factor(coordinates, d)
        return factor @ factor.T
    return np.diag(np.exp(2.0 * np.broadcast_to(coordinates, (d,))))


def pull_back(
    gradient: Float[np.ndarray, "d d"], coordinates: Float[np.ndarray, " p"], structure: Structure
) -> Float[np.ndarray, " p"]:
    """The gradient in coordinates, from the symmetric gradient with respect to the covariance.

    Args:
        gradient: G with df = ⟨G, dΣ⟩, symmetric, shape [d, d].
        coordinates: Where it was taken.
        structure: The structure.

    Returns:
        The gradient with respect to the coordinates.
    """
    d = len(gradient)
    if structure == "full":
        factor = _factor(coordinates, d)
        inner = 2.0 * gradient @ factor  # dΣ = dL Lᵀ + L dLᵀ
        np.fill_diagonal(inner, np.diagonal(inner) * np.diagonal(factor))
        return inner[np.tril_indices(d)]
    by_variance = 2.0 * np.diagonal(gradient) * np.exp(2.0 * np.broadcast_to(coordinates, (d,)))
    return by_variance if structure == "diagonal" else np.array([by_variance.sum()])


def size(d: int, structure: Structure) -> int:
    """Number of coordinates.

    Args:
        d: Number of features.
        structure: The structure.

    Returns:
        d(d+1)/2, d or 1.
    """
    return {"full": d * (d + 1) // 2, "diagonal": d, "isotropic": 1}[structure]


def log_scales(d: int, structure: Structure) -> list[bool]:
    """Which coordinates are logarithms of scales (and may need bounds).

    Args:
        d: Number of features.
        structure: The structure.

    Returns:
        One flag a coordinate.
    """
    if structure != "full":
        return [True] * size(d, structure)
    rows, columns = np.tril_indices(d)
    return (rows == columns).tolist()


def _factor(coordinates: np.ndarray, d: int) -> np.ndarray:
    factor = np.zeros((d, d))
    factor[np.tril_indices(d)] = coordinates
    np.fill_diagonal(factor, np.exp(np.diagonal(factor)))
    return factor

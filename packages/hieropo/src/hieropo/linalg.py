"""Small dense linear algebra that accepts singular covariances."""

import numpy as np
import numpy.typing as npt
from jaxtyping import Float

_ASYMMETRY = 1e-8  # relative; more than rounding is a mistake of the caller
_NEGATIVE = 1e-10  # relative; eigenvalues above minus this are taken as zero
_TINY = 1e-140  # standard deviations whose inverse squares are not computed
_BLOCK_ENTRIES = 1 << 18  # entries of a block of matrices (2 MiB): temporaries stay in cache


def as_real(values: npt.ArrayLike, name: str) -> np.ndarray:
    """Real numbers as an array of doubles; what would be lost silently is refused.

    Args:
        values: Numbers or booleans, any shape.
        name: Their name, for the message.

    Returns:
        An array of dtype float64; the values themselves if they already are one.

    Raises:
        TypeError: If they are not real numbers, or a masked array, whose mask would be lost.
        ValueError: If they are nested lists of different lengths.
    """
    if isinstance(values, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, whose mask would be lost; select the valid entries first")
    try:
        array = np.asarray(values)
    except ValueError:  # numpy's own sentence does not say what to do
        raise ValueError(f"{name} is ragged; pad to one shape (where it holds actions, mask the padding)") from None
    if array.dtype.kind not in "fiub" and array.size:
        hint = "; of a table of mixed columns, .to_numpy(float)" if array.dtype.kind == "O" else ""
        raise TypeError(f"{name} has dtype {array.dtype}; give real numbers{hint}")
    return array.astype(np.float64, copy=False)


def as_noise(sigma: float) -> float:
    """A standard deviation of noise, neither zero nor infinite when squared.

    Args:
        sigma: The standard deviation.

    Returns:
        It, as a float.

    Raises:
        ValueError: If it is outside [1e-150, 1e150].
    """
    sigma = float(sigma)
    if not 1e-150 <= sigma <= 1e150:
        raise ValueError(
            f"sigma is {sigma}; the standard deviation of the noise must be positive and finite, and so must its square"
        )
    return sigma


def symmetric(matrix: Float[np.ndarray, "*batch d d"]) -> Float[np.ndarray, "*batch d d"]:
    """The symmetric part (A + Aᵀ) / 2.

    Args:
        matrix: One or many square matrices.

    Returns:
        Matrices that are symmetric to the last bit.
    """
    return 0.5 * (matrix + np.swapaxes(matrix, -1, -2))


def as_covariance(matrix: npt.ArrayLike, d: int, name: str) -> Float[np.ndarray, "{d} {d}"]:
    """A finite, symmetric, positive semi-definite matrix; singular ones, zero included, are allowed.

    Args:
        matrix: Shape [d, d].
        d: Its size.
        name: Its name, for the message.

    Returns:
        The symmetrised matrix.

    Raises:
        ValueError: If it is not such a matrix.
        TypeError: If its entries are not real numbers.
    """
    array = as_real(matrix, name)
    if array.shape != (d, d):
        raise ValueError(f"{name} has shape {array.shape}; it must be {(d, d)}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds a number that is not finite; give a finite covariance")
    scale = float(np.abs(array).max(initial=0.0))
    if np.abs(array - array.T).max(initial=0.0) > _ASYMMETRY * scale:
        raise ValueError(f"{name} is not symmetric; pass (A + A.T) / 2 if the difference is rounding")
    array = symmetric(array)
    lowest = float(np.linalg.eigvalsh(array)[0])
    if lowest < -_NEGATIVE * scale:
        raise ValueError(f"{name} is not positive semi-definite: its smallest eigenvalue is {lowest:.3g}")
    return array


def psd_factor(cov: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
    """A square root L of a positive semi-definite matrix, L Lᵀ = cov, singular or not.

    Args:
        cov: Positive semi-definite up to rounding.

    Returns:
        L = D Q diag(√λ) with D⁻¹ cov D⁻¹ = Q diag(λ) Qᵀ of unit diagonal, so that coordinates in other units keep their
        digits; negative rounding of λ is set to zero.
    """
    scale = _scales(cov)
    values, vectors = np.linalg.eigh(cov / np.outer(scale, scale))
    return scale[:, None] * vectors * np.sqrt(np.maximum(values, 0.0))


def inverse_if_regular(cov: Float[np.ndarray, "d d"], max_condition: float = 1e6) -> Float[np.ndarray, "d d"] | None:
    """The inverse of a covariance, or None where it is singular or too ill-conditioned to be inverted safely.

    Args:
        cov: Positive semi-definite.
        max_condition: Largest ratio of eigenvalues, after scaling to a unit diagonal, that is still inverted.

    Returns:
        The symmetric inverse, or None.
    """
    scale = _scales(cov)
    values, vectors = np.linalg.eigh(cov / np.outer(scale, scale))
    if values[-1] <= 0 or values[0] * max_condition < values[-1] or scale.min() < _TINY:
        return None
    return symmetric((vectors / values) @ vectors.T) / np.outer(scale, scale)


def _scales(cov: Float[np.ndarray, "d d"]) -> Float[np.ndarray, " d"]:
    """Standard deviations, or what rounding left in the row of a coordinate without variance; one where it is zero."""
    variance = np.maximum(np.diagonal(cov), 0.0)
    largest = float(variance.max())
    if largest == 0.0:
        return np.ones(len(cov))
    scale = np.maximum(np.sqrt(variance), np.abs(cov).max(axis=1) / np.sqrt(largest))
    return np.where(scale > max(1e-150, _TINY * np.sqrt(largest)), scale, 1.0)  # products of two must not vanish


def sum_products(a: Float[np.ndarray, "m d k"], b: Float[np.ndarray, "m d k"]) -> Float[np.ndarray, "d d"]:
    """Σ_s a_s b_sᵀ as one matrix product.

    Args:
        a: Matrices [m, d, k].
        b: Matrices [m, d, k].

    Returns:
        The sum [d, d].
    """
    return np.tensordot(a, b, axes=((0, 2), (0, 2)))


def smallest_scaled(matrix: Float[np.ndarray, "d d"]) -> float:
    """The smallest eigenvalue of a symmetric matrix scaled to a unit diagonal: near rounding, it cannot be inverted.

    Args:
        matrix: Symmetric.

    Returns:
        At most one; zero where the diagonal is not positive.
    """
    diagonal = np.diagonal(matrix)
    if not diagonal.min() > 0:
        return 0.0
    scale = np.sqrt(diagonal)
    return float(np.linalg.eigvalsh(matrix / np.outer(scale, scale))[0])


def blocks(m: int, d: int) -> list[slice]:
    """Slices of the tasks whose d x d matrices fit in cache together.

    Args:
        m: Number of tasks.
        d: Number of features.

    Returns:
        Slices covering 0..m-1 in order.
    """
    step = max(1, _BLOCK_ENTRIES // (d * d))
    return [slice(lo, min(lo + step, m)) for lo in range(0, m, step)]

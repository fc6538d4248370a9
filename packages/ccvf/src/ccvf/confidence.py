"""Confidences: what they cost, and grids of them.

A value at confidence delta is meant as a lower bound that fails with probability at most delta: delta near 0 is very
conservative, delta = 1 asks for no guarantee. Sampling error enters through ``u = sqrt(log(1 / delta))``, so grids are
spaced in log(delta) or in u, never in delta, of which nearly the whole range is spent above 0.1.
"""

from collections.abc import Iterable
from typing import SupportsFloat

import numpy as np
from jaxtyping import Float

__all__ = ["check_deltas", "conservatism", "delta_grid", "delta_of", "u_grid"]

_MEANING = "small is conservative, 1 asks for no guarantee"


def check_deltas(deltas: SupportsFloat | Iterable[SupportsFloat]) -> Float[np.ndarray, " confidences"]:
    """Confidences in (0, 1] as float64.

    Args:
        deltas: One or several confidences.

    Returns:
        The confidences.

    Raises:
        TypeError: If they are not numbers.
        ValueError: If there is none, or one is not in (0, 1].
    """
    try:
        found = np.atleast_1d(np.asarray(deltas, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise TypeError(f"confidences are numbers in (0, 1], {deltas!r} given") from error
    if found.ndim != 1 or found.size == 0:
        raise ValueError(f"confidences have shape {found.shape}; give one number or a list of at least one")
    bad = found[~((found > 0) & (found <= 1))]
    if bad.size:
        raise ValueError(f"confidence {bad[0]:g} is outside (0, 1]: {_MEANING}")
    return found


def conservatism(deltas: SupportsFloat | Iterable[SupportsFloat]) -> Float[np.ndarray, " confidences"]:
    r"""What a confidence costs: $u = \sqrt{\log(1/\delta)}$, 0 at delta = 1 and growing as delta falls.

    Args:
        deltas: Confidences in (0, 1].

    Returns:
        The factors u >= 0 of the sampling error.

    Raises:
        TypeError: If they are not numbers.
        ValueError: If one is outside (0, 1].

    Example:
        >>> conservatism([1.0, 0.01]).round(3).tolist()
        [0.0, 2.146]
    """
    return np.sqrt(-np.log(check_deltas(deltas))) + 0.0  # no negative zero at delta = 1


def delta_of(u: SupportsFloat | Iterable[SupportsFloat]) -> Float[np.ndarray, " confidences"]:
    r"""The confidence of a factor: $\delta = e^{-u^2}$, the inverse of `conservatism`.

    Args:
        u: Factors, at least 0.

    Returns:
        Confidences in (0, 1].
    """
    return np.exp(-np.square(np.atleast_1d(np.asarray(u, dtype=np.float64))))


def delta_grid(
    size: int = 60, smallest: SupportsFloat = 1e-6, largest: SupportsFloat = 1.0
) -> Float[np.ndarray, " confidences"]:
    """Ascending confidences, evenly spaced in log(delta): the grid of the tabular solver.

    Args:
        size: How many, at least 2 (25 to 60 are enough for control).
        smallest: The most conservative.
        largest: The least conservative, at most 1.

    Returns:
        The confidences.

    Raises:
        ValueError: If the size or the ends are not as said.

    Example:
        >>> delta_grid(3, smallest=1e-2).tolist()
        [0.01, 0.1, 1.0]
    """
    low, high = check_deltas([smallest, largest])
    if size < 2 or low >= high:
        raise ValueError(f"a grid of {size} confidences from {low:g} to {high:g}: give at least 2, ascending")
    found = np.geomspace(low, high, size)
    found[[0, -1]] = low, high
    return found


def u_grid(size: int = 21, smallest: SupportsFloat = 1e-4) -> Float[np.ndarray, " confidences"]:
    """Ascending confidences from ``smallest`` to 1, evenly spaced in u: the grid of beliefs and of deep values.

    Args:
        size: How many, at least 2.
        smallest: The most conservative.

    Returns:
        The confidences.

    Raises:
        ValueError: If the size is below 2 or the end is not in (0, 1).
    """
    (low,) = check_deltas(smallest)
    if size < 2 or low >= 1:
        raise ValueError(f"a grid of {size} confidences from {low:g} to 1: give at least 2 and an end below 1")
    found = delta_of(np.linspace(float(conservatism(low)[0]), 0.0, size))
    found[[0, -1]] = low, 1.0
    return found

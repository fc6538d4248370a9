"""Weighted edge colouring: the preemptive open shop, which ends exactly when the busiest port does."""

import numpy as np
from jaxtyping import Float
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching


def decompose(load: Float[np.ndarray, "s r"], max_rounds: int = 1_000_000) -> list[tuple[float, list[tuple[int, int]]]]:
    """Split a load matrix into rounds in which every port serves at most one partner.

    With D the largest row or column sum, the matrix is completed to one whose rows and columns all sum to D; such a
    matrix is a combination of permutations (Birkhoff), found one after the other by bipartite matchings. The lengths of
    the rounds add up to D, so the schedule meets the bound of the busiest port.

    Args:
        load: Seconds of work from each sending to each receiving port.
        max_rounds: Stop after so many rounds, the longest first; some work is then left.

    Returns:
        Rounds of a length in seconds and the pairs that work in it; some of a round's length may be idle for a pair of
        which less work is left.

    Reference:
        König (1916); Birkhoff (1946); Gonzalez and Sahni (1976), Open shop scheduling to minimize finish time.

    Example:
        >>> rounds = decompose(np.array([[1.0, 1.0], [1.0, 1.0]]))
        >>> sum(length for length, _ in rounds)
        2.0
    """
    s, r = load.shape
    longest = float(max(load.sum(axis=1).max(initial=0.0), load.sum(axis=0).max(initial=0.0)))
    if longest == 0:
        return []
    square = np.zeros((s + r, s + r))
    square[:s, :r] = load
    square[:s, r:] = np.diag(longest - load.sum(axis=1))
    square[s:, :r] = np.diag(longest - load.sum(axis=0))
    square[s:, r:] = load.T
    tiny = longest * 1e-12 * (s + r)
    square[square <= tiny] = 0
    rounds = []
    rows = np.arange(s + r)
    while square.any() and len(rounds) < max_rounds:
        columns = _matching(square)
        if (columns < 0).any():
            break  # only rounding errors are left
        length = float(square[rows, columns].min())
        pairs = [(i, int(j)) for i, j in enumerate(columns[:s].tolist()) if j < r]
        if pairs:
            rounds.append((length, pairs))
        square[rows, columns] -= length
        square[square <= tiny] = 0
    return rounds


def _matching(square: np.ndarray) -> np.ndarray:
    """A perfect matching whose smallest entry is as large as cheaply found: few, long rounds."""
    values = np.unique(square[square > 0])
    best = maximum_bipartite_matching(csr_array(square > 0), perm_type="column")
    low, high = 0, len(values) - 1
    while low < high:  # the largest threshold that still has a perfect matching
        middle = (low + high + 1) // 2
        found = maximum_bipartite_matching(csr_array(square >= values[middle]), perm_type="column")
        if (found >= 0).all():
            low, best = middle, found
        else:
            high = middle - 1
    return best

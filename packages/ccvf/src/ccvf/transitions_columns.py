"""Parallel columns as people hand them over, checked and put into one form before they become transitions."""

from collections.abc import Iterator
from typing import Any, SupportsInt

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

__all__ = [
    "as_actions",
    "as_episodes",
    "as_flags",
    "as_observations",
    "as_rewards",
    "chunks",
    "rows_equal",
]

_CHUNK = 1 << 25  # bytes of observations looked at in one go
_MOST = 2**53  # up to which floating point holds all whole numbers


def chunks(length: int, row_bytes: int) -> Iterator[slice]:
    """Slices that cover `length` rows, each of some 32 MiB: passes over frames need no second copy of them.

    Args:
        length: How many rows.
        row_bytes: Bytes of one.

    Yields:
        The slices, in order.
    """
    size = max(1, _CHUNK // max(1, row_bytes))
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


def as_observations(name: str, given: Any) -> Shaped[np.ndarray, "transitions ..."]:
    """Observations of a dtype that can be kept: bool, whole numbers or floating point, in the machine's byte order.

    Args:
        name: What the column is called, for messages.
        given: The column.

    Returns:
        The observations; not copied unless the byte order is foreign or numbers are longer than 64 bits.

    Raises:
        TypeError: If the dtype is another.
        ValueError: If there is no transition, or a number is not finite.
    """
    found = np.asarray(given)
    if found.dtype.kind not in "biuf":
        raise TypeError(
            f"{name} have dtype {found.dtype}; give one array of bool, whole numbers or floating point "
            "(flatten dictionaries and tuples first)"
        )
    if found.ndim == 0 or not len(found):
        raise ValueError(f"{name} have shape {found.shape}: there is no transition; the first axis counts them")
    if not found.dtype.isnative:
        found = found.astype(found.dtype.newbyteorder("="))
    if found.dtype.kind == "f":
        if found.dtype.itemsize > np.dtype(np.float64).itemsize:  # no file and no tensor holds more alike everywhere
            found = found.astype(np.float64)
        for part in chunks(len(found), found[0].nbytes):
            bad = ~np.isfinite(found[part]).reshape(part.stop - part.start, -1).all(1)
            if bad.any():
                raise ValueError(f"{name} of transition {part.start + int(bad.argmax())} are not finite")
    return found


def as_actions(given: Any, length: int, n_actions: SupportsInt | None) -> tuple[Int[np.ndarray, " transitions"], int]:
    """Actions as int64 and how many there are.

    Args:
        given: The column, (transitions,) or (transitions, 1).
        length: Number of transitions.
        n_actions: Number of actions; None: one more than the largest seen.

    Returns:
        Actions and their number.

    Raises:
        TypeError: If they are not whole numbers.
        ValueError: If the length differs or one is out of range.
    """
    found = _column("actions", given, length)
    whole = found.dtype.kind in "iu" or (found.dtype.kind == "f" and bool((found == np.round(found)).all()))
    if not whole or max(found.max(), -found.min().astype(np.float64)) > _MOST:
        raise TypeError(f"actions have dtype {found.dtype}; discrete actions are whole numbers from 0")
    found = found.astype(np.int64)
    low, high = int(found.min()), int(found.max())
    count = high + 1 if n_actions is None else int(n_actions)
    if low < 0 or high >= count:
        row = int(((found < 0) | (found >= count)).argmax())
        raise ValueError(f"action {int(found[row])} of transition {row} is not one of 0 to {count - 1}")
    return found, count


def as_rewards(given: Any, length: int) -> Float[np.ndarray, " transitions"]:
    """Finite rewards as float64.

    Args:
        given: The column, (transitions,) or (transitions, 1).
        length: Number of transitions.

    Returns:
        The rewards.

    Raises:
        TypeError: If they are not numbers.
        ValueError: If the length differs or one is not finite.
    """
    found = _column("rewards", given, length)
    if found.dtype.kind not in "biuf":
        raise TypeError(f"rewards have dtype {found.dtype}; give numbers")
    found = found.astype(np.float64)
    bad = ~np.isfinite(found)
    if bad.any():
        raise ValueError(f"the reward of transition {int(bad.argmax())} is {found[bad][0]}; rewards must be finite")
    return found


def as_flags(name: str, given: Any, length: int) -> Bool[np.ndarray, " transitions"]:
    """Flags as bool; zeros and ones of any number type are taken too.

    Args:
        name: What the column is called, for messages.
        given: The column, (transitions,) or (transitions, 1); None: never.
        length: Number of transitions.

    Returns:
        The flags.

    Raises:
        TypeError: If something else than true and false, 1 and 0, is in it.
        ValueError: If the length differs.
    """
    if given is None:
        return np.zeros(length, dtype=bool)
    found = _column(name, given, length)
    if found.dtype.kind not in "biuf" or not np.isin(found, (0, 1)).all():
        raise TypeError(f"{name} must be true or false for each transition; found dtype {found.dtype}")
    return found.astype(bool)


def as_episodes(
    given: Any, terminated: Bool[np.ndarray, " transitions"], truncated: Bool[np.ndarray, " transitions"]
) -> Int[np.ndarray, " transitions"]:
    """Episode numbers as int64.

    Args:
        given: The column; None: a new episode starts after each ended one.
        terminated: Where the environment ended an episode.
        truncated: Where a time limit cut one.

    Returns:
        Episode numbers.

    Raises:
        TypeError: If they are not whole numbers.
        ValueError: If the transitions of one are not together, or it goes on after it ended.
    """
    ended = terminated | truncated
    if given is None:
        return np.append(0, np.cumsum(ended[:-1])).astype(np.int64)
    found = _column("episodes", given, len(ended))
    if found.dtype.kind not in "iu":
        raise TypeError(f"episodes have dtype {found.dtype}; give whole numbers")
    found = found.astype(np.int64)
    same = found[1:] == found[:-1]
    starts = np.append(True, ~same)
    numbers, counts = np.unique(found[starts], return_counts=True)
    if (counts > 1).any():
        raise ValueError(
            f"the transitions of episode {int(numbers[counts > 1][0])} are not together; sort them by episode and time"
        )
    beyond = same & ended[:-1]
    if beyond.any():
        row = int(beyond.argmax())
        raise ValueError(f"episode {int(found[row])} goes on after it ended at transition {row}; number the next anew")
    return found


def rows_equal(
    left: Shaped[np.ndarray, "rows ..."], right: Shaped[np.ndarray, "rows ..."]
) -> Bool[np.ndarray, " rows"]:
    """Whether rows are equal, compared piece by piece.

    Args:
        left: Rows.
        right: As many rows.

    Returns:
        One answer a row.
    """
    equal = np.empty(len(left), dtype=bool)
    if len(left):
        for part in chunks(len(left), left[0].nbytes):
            equal[part] = (left[part] == right[part]).reshape(part.stop - part.start, -1).all(1)
    return equal


def _column(name: str, given: Any, length: int) -> np.ndarray:
    """A column of one number a transition."""
    found = np.asarray(given)
    if found.shape == (length, 1):
        found = found[:, 0]
    if found.shape != (length,):
        raise ValueError(f"{name} have shape {found.shape}; there are {length} observations, so give ({length},)")
    return found

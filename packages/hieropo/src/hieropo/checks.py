"""What every public function asks of its small arguments: scalars, generators, and the kind of object."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np

__all__ = ["as_generator", "as_instance", "as_number", "as_size", "as_spread"]


def as_number(value: Any, name: str) -> float:
    """A real scalar as a float.

    Args:
        value: A number; an array of no dimension is one.
        name: Its name, for the message.

    Returns:
        It.

    Raises:
        TypeError: If it is something else, such as a list or a string.
    """
    array = np.asarray(value)
    if array.ndim != 0 or array.dtype.kind not in "fiu":
        raise TypeError(f"{name} is {value!r}; give one number")
    return float(array)


def as_spread(value: Any, name: str) -> float:
    """A standard deviation of parameters: zero is allowed, minus is not, although only its square is used.

    Args:
        value: A number.
        name: Its name, for the message.

    Returns:
        It, as a float.

    Raises:
        ValueError: If it is negative or not finite.
        TypeError: If it is not a number.
    """
    number = as_number(value, name)
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"{name} is {value}; a standard deviation must be >= 0 and finite")
    return number


def as_size(value: Any, name: str) -> int:
    """A whole number of at least one.

    Args:
        value: An integer.
        name: Its name, for the message.

    Returns:
        It, as an int.

    Raises:
        ValueError: If it is below one.
        TypeError: If it is not an integer.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}; give a whole number") from None
    if number < 1:
        raise ValueError(f"{name} is {number}; give at least 1")
    return number


def as_generator(rng: Any) -> np.random.Generator:
    """A source of randomness; a bare seed is refused, as it would repeat the same draws at every call.

    Args:
        rng: What was given.

    Returns:
        It.

    Raises:
        TypeError: If it is not a `numpy.random.Generator`.
    """
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng is a {type(rng).__name__}; give a generator, np.random.default_rng(seed)")
    return rng


def as_instance(value: Any, wanted: type, name: str, advice: str) -> Any:
    """An object of a class.

    Args:
        value: What was given.
        wanted: The class.
        name: The argument's name, for the message.
        advice: How to get such an object, for the message.

    Returns:
        It.

    Raises:
        TypeError: If it is of another class.
    """
    if not isinstance(value, wanted):
        raise TypeError(f"{name} is a {type(value).__name__}, not a {wanted.__name__}; {advice}")
    return value

"""Bytes and deadlines as people write them."""

import re
from fractions import Fraction
from math import inf, isfinite
from typing import SupportsFloat

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_bytes(text: int | str, *, whole: int | None = None) -> int:
    """Bytes of `262144`, `"256KiB"`, `"1.5 MB"` or `"40%"`.

    Args:
        text: A number of bytes, or a number with a unit.
        whole: What a percentage refers to; without it a percentage is refused.

    Returns:
        Bytes, rounded down.

    Raises:
        ValueError: If it is not such a number, or negative.

    Example:
        >>> parse_bytes("256KiB"), parse_bytes("40%", whole=1000)
        (262144, 400)
    """
    if isinstance(text, int) and not isinstance(text, bool):
        if text < 0:
            raise ValueError(f"bytes must not be negative, got {text}")
        return text
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*(%|[A-Za-z]*)\s*", text) if isinstance(text, str) else None
    unit = match[2].upper() if match else None
    if match and unit == "%" and whole is not None:
        return int(Fraction(match[1]) * whole / 100)
    if not match or unit not in _UNITS:
        percent = " or '40%'" if whole is not None else ""
        raise ValueError(f"expected bytes such as 262144, '256KiB', '1.5MB'{percent}, got {text!r}")
    return int(Fraction(match[1]) * _UNITS[unit])


def parse_deadline(deadline: float | str | None, baseline: float) -> float:
    """Seconds of a deadline.

    Args:
        deadline: A factor of the baseline (`1.5` or `"1.5x"`), seconds (`"90s"`, `"200ms"`), or None for no deadline.
        baseline: Seconds of the step when nothing is recomputed or paged.

    Raises:
        ValueError: If it is not a deadline, or not positive.

    Example:
        >>> parse_deadline("1.5x", 2.0), parse_deadline("90s", 2.0)
        (3.0, 90.0)
    """
    if deadline is None:
        return inf
    if baseline == 0 and not isinstance(deadline, str) and deadline > 0:
        return inf  # nothing takes time
    seconds = None
    if isinstance(deadline, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(x|s|ms)\s*", deadline)
        if match:
            seconds = float(match[1]) * {"x": baseline, "s": 1.0, "ms": 1e-3}[match[2]]
    elif not isinstance(deadline, bool):
        seconds = deadline * baseline
    if seconds is None or not seconds > 0 or not isfinite(seconds):
        raise ValueError(f"expected a deadline such as 1.5, '1.5x', '90s', '200ms' or None, got {deadline!r}")
    return seconds


def show_bytes(size: SupportsFloat) -> str:
    """Bytes for people.

    Example:
        >>> show_bytes(262144), show_bytes(999)
        ('256.0 KiB', '999 B')
    """
    size = float(size)
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(size) >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size:.0f} B"

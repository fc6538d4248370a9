"""Read rates, sizes and times as people write them."""

import re
from typing import SupportsFloat

_PREFIX = {"": 1, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_TIMES = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ns": 1e-9}
_NUMBER = r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*"


def _plain(value: str | SupportsFloat) -> str | SupportsFloat:
    """A number in scientific notation without a point is a text to YAML 1.1: ``1e-5``."""
    return float(value) if isinstance(value, str) and re.fullmatch(r"[0-9]+[eE][+-]?[0-9]+", value) else value


def rate(value: str | SupportsFloat) -> float:
    """Bytes per second from a number or a text such as ``10Gbit``, ``400 Gbit/s`` or ``100GB/s``.

    Raises:
        ValueError: The text has no known unit, or the rate is not above zero.

    Example:
        >>> rate("10Gbit"), rate("2GiB/s")
        (1250000000.0, 2147483648.0)
    """
    value = _plain(value)
    if isinstance(value, str):
        found = re.fullmatch(_NUMBER + r"(|[kKMGT]i?)(bit|bits|b|B|bytes)(?:/s|ps)?", value)
        if value in ("inf", "unlimited"):
            return float("inf")
        if not found or found[2] not in _PREFIX:
            raise ValueError(f"cannot read the rate {value!r}: write for example '10Gbit' or '100GB/s'")
        number = float(found[1]) * _PREFIX[found[2]] / (1 if found[3] in ("B", "bytes") else 8)
    else:
        number = float(value)
    if not number > 0:
        raise ValueError(f"a rate is above zero; got {value!r}")
    return number


def size(value: str | SupportsFloat) -> int:
    """Bytes from a number or a text such as ``64KiB`` or ``1.5GB``.

    Raises:
        ValueError: The text has no known unit, or the size is negative.

    Example:
        >>> size("64KiB"), size(10)
        (65536, 10)
    """
    number = float(value) if not isinstance(value, str) else -1.0
    if isinstance(value, str):
        found = re.fullmatch(_NUMBER + r"(|[kKMGT]i?)B?", value)
        if not found:
            raise ValueError(f"cannot read the size {value!r}: write for example '64KiB' or '2GB'")
        number = float(found[1]) * _PREFIX[found[2]]
    if not 0 <= number < 2**63:
        raise ValueError(f"a size is a number of bytes from 0 up; got {value!r}")
    return int(number)


def seconds(value: str | SupportsFloat) -> float:
    """Seconds from a number or a text such as ``20us`` or ``1.5 ms``.

    Raises:
        ValueError: The text has no known unit, or the time is negative or infinite.

    Example:
        >>> seconds("250 ms"), seconds(2)
        (0.25, 2.0)
    """
    value = _plain(value)
    if isinstance(value, str):
        found = re.fullmatch(_NUMBER + r"(s|ms|us|µs|μs|ns)", value)
        if not found:
            raise ValueError(f"cannot read the time {value!r}: write for example '20us' or '1.5ms'")
        return float(found[1]) * _TIMES[found[2]]
    number = float(value)
    if not 0 <= number < float("inf"):
        raise ValueError(f"a time is from 0 up and finite; got {value!r}")
    return number

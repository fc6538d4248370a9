"""What the user asks for: fixed bits, average bits, bytes of saved activations, or a peak to fit in."""

import re
from dataclasses import dataclass
from typing import Literal

from gact.affine import BITS

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}

Kind = Literal["fixed", "average", "bytes", "fit"]


@dataclass(frozen=True, slots=True)
class Target:
    """A goal for the bits.

    Args:
        kind: ``"fixed"``: every tensor at `value` bits. ``"average"``: the bytes of `value` bits, spread by
            sensitivity. ``"bytes"``: at most `value` bytes of saved activations. ``"fit"``: a peak of at most `value`
            bytes.
        value: Bits or bytes.
    """

    kind: Kind
    value: float | int

    @property
    def adaptive(self) -> bool:
        """Whether bits differ from tensor to tensor."""
        return self.kind != "fixed"

    @property
    def first_bits(self) -> int:
        """Bits of every tensor while nothing is known of it: never more than asked for, but 1."""
        if self.kind == "fixed":
            return int(self.value)
        if self.kind == "average":
            return max((b for b in BITS if b <= self.value and b > 1), default=1)
        return 2


def parse_target(bits: "int | str | Target") -> Target:
    """Read the argument `bits` of the compressor.

    Args:
        bits: 1, 2, 4 or 8; ``"auto:B"`` with an average of B bits; ``"bytes:SIZE"``; ``"fit:SIZE"``. Sizes are numbers
            with a unit, such as ``"500MiB"`` or ``"6GB"``.

    Raises:
        ValueError: If it is none of these.

    Example:
        >>> parse_target("auto:2.5")
        Target(kind='average', value=2.5)
        >>> parse_target("fit:6GiB").value / 2**30
        6.0
    """
    if isinstance(bits, Target):
        return bits
    if isinstance(bits, int) and not isinstance(bits, bool) and bits in BITS:
        return Target("fixed", float(bits))
    if isinstance(bits, str):
        kind, colon, text = bits.partition(":")
        if kind == "auto" and colon:
            average = _number(text)
            if average is not None and min(BITS) <= average <= max(BITS):
                return Target("average", average)
        elif kind in ("bytes", "fit") and colon:
            return Target("bytes" if kind == "bytes" else "fit", float(parse_size(text)))
    raise ValueError(
        f"bits={bits!r}: give 1, 2, 4 or 8 for that many everywhere, 'auto:4' (any average from 1 to 8) to spread them "
        "by sensitivity, 'bytes:500MiB' for all saved activations, or 'fit:6GiB' for the peak of the device"
    )


def parse_size(text: str | int) -> int:
    """Read a size in bytes.

    Args:
        text: A whole number of bytes, or a number with B, KB, MB, GB, TB (powers of ten) or KiB, MiB, GiB, TiB.

    Raises:
        ValueError: If it is no such size.

    Example:
        >>> parse_size("1.5 KiB")
        1536
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(text), re.ASCII)
    if match is None or match[2].upper() not in _UNITS:
        raise ValueError(f"{text!r} is no size: give bytes, or a number with a unit such as 500MB, 500MiB or 6GiB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None

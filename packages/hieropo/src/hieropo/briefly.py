"""Representations of one line for objects that hold arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["briefly"]

_SHOWN = 6  # numbers of an array


def briefly(*names: str, **renamed: str) -> Callable[[Any], str]:
    """A `__repr__` that shows some attributes, numbers with four digits and of long arrays the ends.

    Args:
        *names: Attributes shown under their own name.
        **renamed: Attributes shown under another: `tasks="m"` shows m as tasks.

    Returns:
        The method.
    """
    shown = {name: name for name in names} | renamed

    def representation(self: Any) -> str:
        parts = (f"{label}={_short(getattr(self, attribute))}" for label, attribute in shown.items())
        return f"{type(self).__name__}({', '.join(parts)})"

    return representation


def _short(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return np.array2string(value, precision=4, threshold=_SHOWN, edgeitems=2, separator=", ").replace("\n", "")
    return f"{value:.4g}" if isinstance(value, float) else repr(value)

"""The optimisation levels of the original implementation, as arguments of the compressor."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from gact.offload import HostStore
from gact.rules import Rule


@dataclass(frozen=True, slots=True)
class Level:
    """One level.

    Args:
        bits: As the compressor takes them.
        offload: Whether codes go to host memory until they are needed.
        meaning: What it is, in words.
    """

    bits: int | str
    offload: bool
    meaning: str


LEVELS: Mapping[str, Level] = MappingProxyType({
    "L0": Level(8, False, "nothing is compressed"),
    "L1": Level(4, False, "4 bits everywhere"),
    "L1.1": Level(8, False, "8 bits everywhere"),
    "L1.2": Level(2, False, "2 bits everywhere"),
    "L2": Level("auto:4", False, "4 bits on average, spread by sensitivity; the paper's L1"),
    "L2.1": Level("auto:3", False, "3 bits on average"),
    "L2.2": Level("auto:2", False, "2 bits on average"),
    "L3": Level("auto:4", True, "4 bits on average, kept in host memory; the paper's L2"),
})  # fmt: skip


def level(name: str, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return the arguments of `ActivationCompressor` for a level of the original implementation.

    Args:
        name: A key of `LEVELS`. The original's names; the paper counts differently.
        device: Where the model is; for the levels with offload.

    Raises:
        ValueError: If there is no such level.

    Example:
        >>> level("L2.2")
        {'bits': 'auto:2'}

    Reference:
        Liu et al. (2022), Section 6 (levels L1 and L2 of the paper).
    """
    if name not in LEVELS:
        raise ValueError(f"level {name!r}: there are {', '.join(LEVELS)}")
    chosen = LEVELS[name]
    arguments: dict[str, Any] = {"bits": chosen.bits}
    if name == "L0":
        arguments["rules"] = (Rule("exact"),)
    if chosen.offload:
        arguments["offload"] = HostStore(device)
    return arguments

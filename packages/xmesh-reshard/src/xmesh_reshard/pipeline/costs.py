"""How long everything takes: passes of each stage, transfers of each boundary, each way."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import SupportsFloat, TypeAlias, final

import numpy as np

from xmesh_reshard.pipeline.instructions import Instruction, Message, Op

Seconds: TypeAlias = SupportsFloat | Sequence[SupportsFloat] | np.ndarray
"""One number for all, or one for each."""
Transfers: TypeAlias = Seconds | Mapping[tuple[int, int], SupportsFloat]
"""Seconds of every boundary (a number), of each boundary of the chain (a sequence), or by pair of stages."""


@final
@dataclass(frozen=True)
class Costs:
    """Seconds of every pass and every transfer.

    Attributes:
        forward: Of the forward pass, by stage.
        backward: Of B by stage: both gradients, or the input's alone where the schedule has W.
        weight: Of W by stage; zeros where the schedule has none.
        transfers: Of the message from stage i to stage j, by (i, j): activations where i < j, gradients where i > j.
    """

    forward: tuple[float, ...]
    backward: tuple[float, ...]
    weight: tuple[float, ...]
    transfers: Mapping[tuple[int, int], float]

    def compute(self, instruction: Instruction) -> float:
        """Seconds of an instruction."""
        table = {Op.F: self.forward, Op.B: self.backward, Op.W: self.weight}[instruction.op]
        return table[instruction.stage]

    def transfer(self, message: Message) -> float:
        """Seconds of a message."""
        return self.transfers[message.source, message.target]

    @property
    def skips(self) -> tuple[tuple[int, int], ...]:
        """Pairs (i, j) of stages that are connected beside the chain."""
        return tuple(sorted((i, j) for i, j in self.transfers if i + 1 < j))


def costs(
    stages: int, tf: Seconds, tb: Seconds, comm: Transfers = 0.0, *, tw: Seconds | None = None, split: bool = False
) -> Costs:
    """Costs from what a user gives.

    Args:
        stages: Number of stages of the model.
        tf: Seconds of a forward pass, one number or one for each stage.
        tb: Seconds of a whole backward pass, likewise.
        comm: Seconds of a transfer: a number for all boundaries; a number for each boundary between neighbours; or a
            mapping. A mapping's key (i, j) with i < j is the activation from stage i to stage j, (j, i) its gradient,
            which takes as long as the activation unless it is given; neighbours that it does not name take no time.
        tw: Seconds of `tb` that the weight gradient takes where backward passes are split; half if not given.
        split: Whether they are.

    Raises:
        ValueError: If a duration is negative or not finite, a length is wrong, or a key is no pair of stages.

    Example:
        >>> costs(3, 1, 2, {(0, 1): 0.5, (1, 0): 0.25, (0, 2): 1.0}).transfers
        {(0, 1): 0.5, (1, 0): 0.25, (1, 2): 0.0, (2, 1): 0.0, (0, 2): 1.0, (2, 0): 1.0}
    """
    forward, whole = _each("tf", tf, stages), _each("tb", tb, stages)
    weight = tuple(t / 2 for t in whole) if tw is None else _each("tw", tw, stages)
    if split and any(w > t for w, t in zip(weight, whole, strict=True)):
        raise ValueError(f"tw is the part of tb that the weight gradient takes, got tw={tw!r} of tb={tb!r}")
    if not split:
        weight = (0.0,) * stages
    backward = tuple(t - w for t, w in zip(whole, weight, strict=True))
    return Costs(forward, backward, weight, _transfers(comm, stages))


def unet_transfers(stages: int, comm: SupportsFloat, skip: SupportsFloat | None = None) -> dict[tuple[int, int], float]:
    """Transfers of a U-shaped model: the chain, and from every stage i of the first half one to stage p-1-i.

    Where the skip connection joins neighbours (in the middle of an even number of stages) both tensors go over one
    boundary, and their seconds add up.

    Args:
        stages: Number p of stages.
        comm: Seconds of a transfer between neighbours.
        skip: Seconds of a skip connection; as long as `comm` if not given.

    Returns:
        A mapping for `Schedule.simulate`.

    Example:
        >>> unet_transfers(4, 1.0, 0.5)
        {(0, 1): 1.0, (1, 2): 1.5, (2, 3): 1.0, (0, 3): 0.5}
    """
    chain, more = float(comm), float(comm if skip is None else skip)
    seconds = {(i, i + 1): chain for i in range(stages - 1)}
    for i in range(stages // 2):
        pair = (i, stages - 1 - i)
        seconds[pair] = seconds.get(pair, 0.0) + more
    return seconds


def _transfers(comm: Transfers, stages: int) -> dict[tuple[int, int], float]:
    chain = [(s, s + 1) for s in range(stages - 1)]
    if not isinstance(comm, Mapping):
        given = dict(zip(chain, _each("comm", comm, stages - 1), strict=True))
    else:
        given = {}
        for pair, seconds in comm.items():
            if not (len(pair) == 2 and pair[0] != pair[1] and all(0 <= s < stages for s in pair)):
                raise ValueError(f"comm is by pairs of different stages of 0..{stages - 1}, got the key {pair!r}")
            given[pair] = _seconds(f"comm[{pair}]", seconds)
        orphan = next(((i, j) for i, j in given if i > j + 1 and (j, i) not in given), None)
        if orphan is not None:
            raise ValueError(f"comm has the gradient {orphan} but not the activation {orphan[::-1]}; give both")
    found: dict[tuple[int, int], float] = {}
    for i, j in (*chain, *sorted(pair for pair in given if pair[0] < pair[1])):
        found[i, j] = given.get((i, j), 0.0)
        found[j, i] = given.get((j, i), found[i, j])
    return found


def _each(name: str, values: Seconds, count: int) -> tuple[float, ...]:
    given = values.tolist() if isinstance(values, np.ndarray) else values
    if not isinstance(given, Sequence):
        return (_seconds(name, given),) * count
    if len(given) != count:
        raise ValueError(f"{name} must be one number or {count} of them, got {len(given)}")
    return tuple(_seconds(f"{name}[{i}]", value) for i, value in enumerate(given))


def _seconds(name: str, value: SupportsFloat) -> float:
    seconds = float(value)
    if not (isfinite(seconds) and seconds >= 0):
        raise ValueError(f"{name} must be a finite number of seconds, at least 0, got {value!r}")
    return seconds

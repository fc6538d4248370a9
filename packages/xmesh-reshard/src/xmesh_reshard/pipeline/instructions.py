"""What a device of a pipeline does: forward, backward and weight-gradient passes, and the messages between stages."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import final


class Op(StrEnum):
    """Kind of an instruction; B computes both gradients, or the gradient of the input alone where a W follows."""

    F = "F"
    B = "B"
    W = "W"


@final
@dataclass(frozen=True, slots=True, order=True)
class Instruction:
    """One pass of one stage over one microbatch.

    Attributes:
        op: Forward, backward or weight gradient.
        stage: Stage of the model, counted from the input over all devices.
        microbatch: Which microbatch.
    """

    op: Op
    stage: int
    microbatch: int

    def __str__(self) -> str:
        return f"{self.op}{self.microbatch} of stage {self.stage}"


@final
@dataclass(frozen=True, slots=True, order=True)
class Message:
    """What one stage sends another: an activation towards the output, a gradient towards the input.

    Attributes:
        source: Stage that sends.
        target: Stage that receives; beyond `source` for an activation, before it for a gradient.
        microbatch: Which microbatch.
    """

    source: int
    target: int
    microbatch: int

    @property
    def backward(self) -> bool:
        """Whether it is a gradient."""
        return self.target < self.source

    @property
    def consumer(self) -> Instruction:
        """The instruction that needs it."""
        return Instruction(Op.B if self.backward else Op.F, self.target, self.microbatch)

    def __str__(self) -> str:
        what = "gradient" if self.backward else "activation"
        return f"the {what} of microbatch {self.microbatch} from stage {self.source} to stage {self.target}"


@final
@dataclass(frozen=True, slots=True)
class Wiring:
    """Which stages hand tensors to which: the chain, and skip connections over it.

    Neighbours are listed from the nearest on: that is the order in which a stage sends and, where receiving blocks,
    receives.

    Attributes:
        before: For each stage, those whose activations it needs.
        after: For each stage, those that need its activation.
    """

    before: tuple[tuple[int, ...], ...]
    after: tuple[tuple[int, ...], ...]

    def receives(self, instruction: Instruction) -> tuple[Message, ...]:
        """Messages that an instruction needs."""
        op, stage, k = instruction.op, instruction.stage, instruction.microbatch
        others = {Op.F: self.before, Op.B: self.after}.get(op)
        return tuple(Message(other, stage, k) for other in others[stage]) if others else ()

    def sends(self, instruction: Instruction) -> tuple[Message, ...]:
        """Messages that an instruction gives, in the order of sending."""
        op, stage, k = instruction.op, instruction.stage, instruction.microbatch
        others = {Op.F: self.after, Op.B: self.before}.get(op)
        return tuple(Message(stage, other, k) for other in others[stage]) if others else ()


def wiring(stages: int, skips: Iterable[tuple[int, int]] = ()) -> Wiring:
    """The chain of stages with skip connections.

    Args:
        stages: Number of stages of the model.
        skips: Pairs (i, j), i < j: the activation of stage i also goes to stage j, and a gradient back.

    Raises:
        ValueError: If a pair is no pair of stages in ascending order.

    Example:
        >>> wiring(4, [(0, 3)]).before
        ((), (0,), (1,), (2, 0))
    """
    pairs = {(s, s + 1) for s in range(stages - 1)}
    for i, j in skips:
        if not 0 <= i < j < stages:
            raise ValueError(f"a skip connection goes from a stage to a later one of 0..{stages - 1}, got {(i, j)}")
        pairs.add((i, j))
    before = tuple(tuple(sorted((i for i, j in pairs if j == s), reverse=True)) for s in range(stages))
    after = tuple(tuple(sorted(j for i, j in pairs if i == s)) for s in range(stages))
    return Wiring(before, after)

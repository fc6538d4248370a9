"""The code of one operation: operators on a frame of storages, prepared so that nothing is looked up when it runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from poet.trace_layout import Layout, flat, reader


class LayoutError(RuntimeError):
    """An operator gave a tensor that lies otherwise than tracing without data had foretold."""


@final
@dataclass(frozen=True, slots=True)
class Arg:
    """A tensor argument of an instruction.

    Attributes:
        slot: Where the storage is in the operation's frame.
        layout: How it is read.
        base: How it is kept.
    """

    slot: int
    layout: Layout
    base: Layout


@final
@dataclass(frozen=True, slots=True)
class Result:
    """A result of an instruction.

    Attributes:
        position: Where it stands among the results; None if it is the only one.
        slot: Where it goes in the frame.
        layout: How it lies in its storage.
        base: How it is kept.
    """

    position: int | None
    slot: int
    layout: Layout
    base: Layout


@final
@dataclass(frozen=True, slots=True)
class Instruction:
    """An operator, with where its arguments come from and where its results go.

    Attributes:
        func: The operator.
        args: Arguments, with `Arg` for every tensor.
        kwargs: The same by name.
        results: New storages.
        dead: Slots that nothing in the operation needs afterwards.
    """

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    results: tuple[Result, ...]
    dead: tuple[int, ...]


@final
@dataclass(frozen=True)
class Code:
    """What an operation of the graph does.

    Attributes:
        slots: Length of its frame.
        values: Slots of the values it reads, and their indices.
        externals: Slots of what was there before the step, and their indices.
        instructions: What runs, in order.
        stores: Slots of the values it makes, and their indices.
        random: Devices whose random numbers it draws.
        grad: Whether gradients were enabled when it was recorded: some kernels save more then.
    """

    slots: int
    values: tuple[tuple[int, int], ...]
    externals: tuple[tuple[int, int], ...]
    instructions: tuple[Instruction, ...]
    stores: tuple[tuple[int, int], ...]
    random: tuple[torch.device, ...]
    grad: bool
    run: Callable[[list[Any]], None] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Prepare the instructions: nothing is looked up when they run."""
        object.__setattr__(self, "run", _compile(self.instructions))


def copy_storage(tensor: Tensor) -> Tensor:
    """A copy of what is kept of a storage, lying alike."""
    return torch.clone(tensor, memory_format=torch.preserve_format)


def copy_whole(tensor: Tensor) -> Tensor:
    """A copy of the whole storage of a tensor, as one dimension."""
    return flat(tensor).clone()


def _compile(instructions: Sequence[Instruction]) -> Callable[[list[Any]], None]:
    steps = [_step(instruction) for instruction in instructions]
    if len(steps) == 1:
        return steps[0]

    def run(frame: list[Any]) -> None:
        for step in steps:
            step(frame)

    return run


def _step(instruction: Instruction) -> Callable[[list[Any]], None]:
    func, dead = instruction.func, instruction.dead
    template = [_constant(a) for a in instruction.args]
    readers = [(k, _reader(a)) for k, a in enumerate(instruction.args) if _has_tensor(a)]
    named = {name: _constant(a) for name, a in instruction.kwargs.items()}
    named_readers = [(name, _reader(a)) for name, a in instruction.kwargs.items() if _has_tensor(a)]
    keep = _keeper(func, instruction.results)

    def step(frame: list[Any]) -> None:
        args, kwargs = template.copy(), named
        for k, read in readers:
            args[k] = read(frame)
        if named_readers:
            kwargs = {**named, **{name: read(frame) for name, read in named_readers}}
        keep(func(*args, **kwargs), frame)
        for slot in dead:
            frame[slot] = None

    return step


def _keeper(func: Any, results: Sequence[Result]) -> Callable[[Any, list[Any]], None]:
    """Puts the results of an operator into the frame."""
    plan = [(r.position, r.slot, r.layout, r.layout.stride, r.layout.dtype, r.base == r.layout) for r in results]

    def keep(result: Any, frame: list[Any]) -> None:
        for position, slot, layout, stride, dtype, direct in plan:
            tensor = result if position is None else result[position]
            # its shape follows from the arguments
            if tensor is None or tensor.stride() != stride or tensor.dtype is not dtype:
                got = "nothing" if tensor is None else f"{Layout.of(tensor)} on {tensor.device}"
                raise LayoutError(
                    f"{func} gave {got} where tracing without data foretold {layout} on {layout.device}: trace with "
                    "fake=False"
                )
            frame[slot] = tensor if direct else flat(tensor)

    return keep


def _constant(argument: Any) -> Any:
    return None if _has_tensor(argument) else argument


def _has_tensor(argument: Any) -> bool:
    return isinstance(argument, Arg) or (isinstance(argument, list | tuple) and any(_has_tensor(a) for a in argument))


def _reader(argument: Any) -> Callable[[list[Any]], Any]:
    if isinstance(argument, list | tuple):
        parts = [_reader(a) if _has_tensor(a) else (lambda _frame, a=a: a) for a in argument]
        return lambda frame: [part(frame) for part in parts]
    slot, get = argument.slot, reader(argument.layout, argument.base)
    if get is None:
        return lambda frame: frame[slot]
    return lambda frame: get(frame[slot])

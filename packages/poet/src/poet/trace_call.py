"""What is recorded of a training step: operators, storages and their versions, and what was there before."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, final

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from poet.graph import Phase
from poet.trace_layout import Layout


class TraceError(ValueError):
    """A model that cannot be traced; the message names the operator and the module."""


@final
@dataclass(frozen=True, slots=True)
class Ref:
    """A tensor argument: a version of a storage, and how it is read.

    Attributes:
        storage: Index of the storage.
        version: How often it had been written.
        layout: How it is read.
    """

    storage: int
    version: int
    layout: Layout


@final
@dataclass(frozen=True, slots=True)
class Fresh:
    """A tensor result on a new storage.

    Attributes:
        position: Where it stands among the operator's results; None if it is the only one.
        storage: Index of the storage.
        layout: How it lies there.
    """

    position: int | None
    storage: int
    layout: Layout


@final
@dataclass(frozen=True, slots=True)
class Call:
    """An operator that ran.

    Attributes:
        func: The operator.
        args: Arguments, with `Ref` for every tensor.
        kwargs: The same by name.
        reads: Tensors read.
        writes: Storages written in place; version v becomes v + 1.
        versions: Version of each storage in `writes` before.
        fresh: Results on new storages.
        random: Whether it draws random numbers.
        flops: Floating-point operations.
        phase: Part of the step.
        path: Module in which it ran, or whose backward pass it belongs to.
        grad: Whether gradients were enabled.
    """

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    reads: tuple[Ref, ...]
    writes: tuple[int, ...]
    versions: tuple[int, ...]
    fresh: tuple[Fresh, ...]
    random: bool
    flops: float
    phase: Phase
    path: str
    grad: bool


@final
@dataclass(slots=True)
class Storage:
    """A storage met while recording.

    Attributes:
        nbytes: Its size.
        layout: Layout of the first tensor seen on it.
        external: Index of what was there before the step, or None if the step made it.
        version: How often it has been written.
        alive: A reference that keeps its identity from being given to another.
    """

    nbytes: int
    layout: Layout
    external: int | None
    version: int
    alive: Any


@final
@dataclass(frozen=True, slots=True)
class Origin:
    """A tensor that was there before the step.

    Attributes:
        kind: `"parameter"`, `"buffer"`, `"input"`, `"constant"`; or `"literal"`, a constant that every step makes anew.
        name: Its name in the model, or the index of the input.
        layout: How it lies in its storage.
        tensor: The tensor itself, of constants and literals.
    """

    kind: str
    name: str
    layout: Layout
    tensor: Tensor | None = field(default=None, compare=False)


# Operators whose schemas do not say that they write: arguments 3 and 4 are the running statistics, 5 says whether.
_BATCH_NORM = ("aten::native_batch_norm", "aten::cudnn_batch_norm", "aten::miopen_batch_norm")
_PURE_NAMESPACES = ("aten", "prims")


def draws(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether an operator draws random numbers (attention with a dropout of 0 does not)."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return False
    for i, argument in enumerate(func._schema.arguments):
        if argument.name == "dropout_p":
            value = args[i] if i < len(args) else kwargs.get("dropout_p", argument.default_value)
            return value != 0
    return True


def repeats(func: Any) -> bool:
    """Whether running an operator again is known to give the same result: custom operators may hide a state."""
    return func.namespace in _PURE_NAMESPACES


def written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """Tensors whose numbers an operator changes in place."""
    schema = func._schema
    if schema.name in _BATCH_NORM:
        if args[5]:
            yield from (t for t in args[3:5] if t is not None)
        return
    inplace_view = torch.Tag.inplace_view in func.tags  # t_() and its like change the layout alone
    for i, argument in enumerate(schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write or inplace_view:
            continue
        value = args[i] if i < len(args) else kwargs.get(argument.name)
        yield from (t for t in (value if isinstance(value, list | tuple) else [value]) if isinstance(t, Tensor))


def flops_of(func: Any, args: Any, kwargs: Any, result: Any, fresh: Sequence[Layout]) -> float:
    """FLOPs by torch's formula where it has one, else one for each element that is made; 0 for pure allocation."""
    packet = func._overloadpacket
    if packet in flop_registry:
        return float(flop_registry[packet](*args, **kwargs, out_val=result))
    if "empty" in func._schema.name:
        return 0.0
    if fresh:
        return float(sum(prod(layout.shape) for layout in fresh))
    first = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
    return float(first.numel()) if first is not None else 0.0

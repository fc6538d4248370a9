"""The training step as a graph: operations in the order of their first execution, and the values between them.

A *value* is one storage (a tensor and all its views); an *operation* reads values and produces one or several. The
order of `Graph.ops` is the order in which every operation is executed for the first time; a schedule may execute some
again, but never reorders the first executions ("frontier-advancing", Checkmate, MLSys 2020, section 4.1).
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Literal, final

Phase = Literal["forward", "loss", "backward"]
PHASES = ("forward", "loss", "backward")


class GraphError(ValueError):
    """A graph that cannot be a training step: a cycle, a negative size, a value without a producer."""


@final
@dataclass(frozen=True)
class Value:
    """One storage.

    Attributes:
        name: Name, unique in its graph.
        size: Bytes.
        keep: Whether it must be in memory when the step ends (the loss, a gradient).
        compressible: Whether the backward pass may read an inexact copy of it (a tier with `exact=False`).
    """

    name: str
    size: int
    keep: bool = False
    compressible: bool = False


@final
@dataclass(frozen=True)
class Op:
    """One operation.

    Attributes:
        name: Name, unique in its graph.
        inputs: Indices of the values it reads.
        outputs: Indices of the values it produces; every value has one producer.
        flops: Floating-point operations.
        seconds: Measured duration; None where it follows from the device's speed.
        workspace: Bytes that it needs while it runs, beside inputs and outputs.
        phase: `"forward"`, `"loss"` or `"backward"`.
        recomputable: Whether executing it again gives the same values.
        kind: What it does ("conv", "aten.mm.default"); operations with equal kind and sizes are alike.
    """

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    flops: float = 0.0
    seconds: float | None = None
    workspace: int = 0
    phase: Phase = "forward"
    recomputable: bool = True
    kind: str = ""


@final
@dataclass(frozen=True)
class Static:
    """Bytes that stay in memory during the whole step, beside the values of the graph."""

    parameters: int = 0
    gradients: int = 0
    optimizer: int = 0
    buffers: int = 0
    inputs: int = 0

    @property
    def total(self) -> int:
        """Their sum."""
        return self.parameters + self.gradients + self.optimizer + self.buffers + self.inputs


@final
@dataclass(frozen=True)
class Graph:
    """A training step.

    Attributes:
        name: What it is ("resnet18_cifar, batch 1").
        ops: Operations in the order of their first execution.
        values: Values, in any order.
        static: Bytes that are always there.
        notes: What a reader should know about its origin.

    Raises:
        GraphError: If an index is out of range, a value has no producer or two, an operation reads a value that a
            later one produces (a cycle, or a wrong order), or a size, FLOP count or duration is negative.

    Example:
        >>> graph = chain("two layers", sizes=[4, 4, 4])
        >>> graph.working_set(1), graph.forward_bytes
        (8, 12)
    """

    name: str
    ops: tuple[Op, ...]
    values: tuple[Value, ...]
    static: Static = Static()
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        """Check everything that the schedulers take for granted."""
        _check_static(self.static)
        _check_values(self.values)
        _check_ops(self)

    @cached_property
    def producer(self) -> tuple[int, ...]:
        """The operation that produces each value."""
        made = [0] * len(self.values)
        for i, op in enumerate(self.ops):
            for v in op.outputs:
                made[v] = i
        return tuple(made)

    @cached_property
    def users(self) -> tuple[tuple[int, ...], ...]:
        """The operations that read each value, in order."""
        read: list[list[int]] = [[] for _ in self.values]
        for i, op in enumerate(self.ops):
            for v in dict.fromkeys(op.inputs):
                read[v].append(i)
        return tuple(tuple(r) for r in read)

    @cached_property
    def forward_bytes(self) -> int:
        """Bytes of all values that the forward pass and the loss produce."""
        return sum(self.values[v].size for op in self.ops if op.phase != "backward" for v in op.outputs)

    def working_set(self, i: int) -> int:
        """Bytes that operation `i` needs at once: inputs, outputs and workspace."""
        op = self.ops[i]
        return sum(self.values[v].size for v in {*op.inputs, *op.outputs}) + op.workspace

    @cached_property
    def largest_working_set(self) -> int:
        """The largest working set of an operation: no schedule without tiling can need less."""
        return max((self.working_set(i) for i in range(len(self.ops))), default=0)

    @cached_property
    def resident_peak(self) -> int:
        """Peak bytes of values and workspace when nothing is recomputed or paged and every value is freed early."""
        last = [max((*uses, made)) for uses, made in zip(self.users, self.producer, strict=True)]
        now = peak = 0
        for i, op in enumerate(self.ops):
            now += sum(self.values[v].size for v in op.outputs)
            peak = max(peak, now + op.workspace)
            gone = {v for v in (*op.inputs, *op.outputs) if last[v] == i and not self.values[v].keep}
            now -= sum(self.values[v].size for v in gone)
        return peak

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the operations and values: a schedule names the graph that it was made for."""
        ops = [
            {**asdict(op), "flops": float(op.flops), "seconds": None if op.seconds is None else float(op.seconds)}
            for op in self.ops
        ]
        content = [ops, [asdict(value) for value in self.values], asdict(self.static)]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def with_static(self, static: Static) -> "Graph":
        """The same step with other bytes that are always there."""
        return replace(self, static=static)


def chain(name: str, sizes: Sequence[int], flops: Sequence[float] | None = None) -> Graph:
    """A forward chain without a backward pass: operation i reads value i − 1 and produces value i.

    Args:
        name: Name of the graph.
        sizes: Bytes of each value.
        flops: FLOPs of each operation; 1 each unless given.
    """
    work = [1.0] * len(sizes) if flops is None else list(flops)
    if len(work) != len(sizes):
        raise GraphError(f"sizes and flops must be equally long, got {len(sizes)} and {len(work)}")
    ops = tuple(Op(f"op{i}", (i - 1,) if i else (), (i,), flops=float(f)) for i, f in enumerate(work))
    return Graph(name, ops, tuple(Value(f"v{i}", size) for i, size in enumerate(sizes)))


def _check_static(static: Static) -> None:
    for name, size in asdict(static).items():
        if size < 0:
            raise GraphError(f"bytes of static {name} must not be negative, got {size}")


def _check_values(values: tuple[Value, ...]) -> None:
    for value in values:
        if not isinstance(value.size, int):
            raise GraphError(f"size of value {value.name!r} must be an int of bytes, got {value.size!r}")
        if value.size < 0:
            raise GraphError(f"value {value.name!r} has {value.size} bytes; a size must not be negative")
    _check_names("value", [value.name for value in values])


def _check_names(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise GraphError(f"two {what}s are called {name!r}; names must be unique")
        seen.add(name)


def _check_ops(graph: Graph) -> None:
    _check_names("operation", [op.name for op in graph.ops])
    made: dict[int, str] = {}
    for op in graph.ops:
        _check_numbers(op)
        for v in (*op.inputs, *op.outputs):
            if not 0 <= v < len(graph.values):
                raise GraphError(f"operation {op.name!r} names value {v}, but there are {len(graph.values)} values")
        for v in op.inputs:
            if v not in made:
                raise GraphError(
                    f"operation {op.name!r} reads {graph.values[v].name!r} before it is produced: the graph has a "
                    "cycle or its operations are not in a topological order"
                )
        for v in op.outputs:
            if v in made:
                raise GraphError(f"value {graph.values[v].name!r} is produced by {made[v]!r} and by {op.name!r}")
            made[v] = op.name
    orphans = [value.name for v, value in enumerate(graph.values) if v not in made]
    if orphans:
        raise GraphError(
            f"no operation produces {orphans[0]!r}" + (f" and {len(orphans) - 1} others" if len(orphans) > 1 else "")
        )


def _check_numbers(op: Op) -> None:
    for name in ("flops", "seconds", "workspace"):
        number = getattr(op, name)
        if number is not None and not 0 <= number < float("inf"):
            raise GraphError(f"{name} of operation {op.name!r} must be finite and not negative, got {number}")
    if op.phase not in PHASES:
        raise GraphError(f"phase of operation {op.name!r} must be one of {', '.join(PHASES)}, got {op.phase!r}")
    if not op.outputs:
        raise GraphError(f"operation {op.name!r} produces nothing; drop it or give it an output of 0 bytes")

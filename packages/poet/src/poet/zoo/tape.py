"""A tape of analytic layers: it records a forward pass and derives the backward pass from it.

Every layer adds its operation with what its backward needs, and a rule. The rules run in the opposite order, so each
finds the whole gradient of its output: where a value has several users, their gradients have been summed by then.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Literal, final

from poet.graph import Graph, Op, Phase, Static, Value

Gradients = Literal["keep", "apply", "static"]
GRADIENTS = ("keep", "apply", "static")
Optimizer = Literal["sgd", "momentum", "adam"]
STATES = {"sgd": 0, "momentum": 1, "adam": 2}
"""Numbers that each optimizer remembers per parameter."""

STATISTIC_BYTES = 4
INDEX_BYTES = 8
MASK_BYTES = 1

Rule = Callable[[int], None]


@final
@dataclass(frozen=True)
class Training:
    """How a network is trained, as far as memory is concerned.

    Attributes:
        gradients: What becomes of a parameter's gradient. `"keep"`: it stays in memory until the step ends. `"apply"`:
            the optimizer uses it at once, and it is freed (an operation that reads or changes a weight is then not
            recomputable in the backward pass). `"static"`: it is added in place to storage that is always there (and
            the operation that adds it is not recomputable).
        optimizer: What is remembered per parameter: `"sgd"` nothing, `"momentum"` one number, `"adam"` two.
        itemsize: Bytes of a number; saved statistics have 4, masks 1, indices 8 whatever it is.
    """

    gradients: Gradients = "keep"
    optimizer: Optimizer = "sgd"
    itemsize: int = 4

    def __post_init__(self) -> None:
        """Check the choices."""
        if self.gradients not in GRADIENTS:
            raise ValueError(f"gradients must be one of {', '.join(GRADIENTS)}, got {self.gradients!r}")
        if self.optimizer not in STATES:
            raise ValueError(f"optimizer must be one of {', '.join(STATES)}, got {self.optimizer!r}")
        if self.itemsize not in (1, 2, 4, 8):
            raise ValueError(f"itemsize must be 1, 2, 4 or 8 bytes, got {self.itemsize!r}")


@final
@dataclass(frozen=True)
class Tensor:
    """What a layer gives to the next.

    Attributes:
        slot: Its identity where gradients are summed; views of one storage have slots of their own.
        value: Index of its storage in the graph; None for the network's input, which is always in memory.
        shape: Its shape.
    """

    slot: int
    value: int | None
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many numbers it has."""
        return prod(self.shape)


@final
class Parameter:
    """The parameters of a layer, whose gradients are one value."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.uses = 0
        self.partial: int | None = None  # the sum of its gradients so far, when more are to come


@final
class Tape:
    """Records a forward pass; `finish` derives the backward pass.

    Args:
        training: How the network is trained.
    """

    def __init__(self, training: Training) -> None:
        self.training = training
        self._ops: list[Op] = []
        self._values: list[Value] = []
        self._static = Static()
        self._slots = 0
        self._rules: list[tuple[int, Rule]] = []
        self._sums: dict[str, int] = {}
        self._gradients: dict[int, int] = {}  # slot -> value that holds its gradient so far

    def input(self, shape: tuple[int, ...], itemsize: int | None = None, labels: int = 0) -> Tensor:
        """The network's input, always in memory.

        Args:
            shape: Its shape.
            itemsize: Bytes of a number of it; the training's unless given.
            labels: Number of labels that lie beside it, as indices.
        """
        size = prod(shape) * (itemsize or self.training.itemsize) + labels * INDEX_BYTES
        self._static = replace(self._static, inputs=self._static.inputs + size)
        return self.view(None, shape)

    def parameter(self, count: int, buffers: int = 0) -> Parameter:
        """Parameters of a layer.

        Args:
            count: How many numbers.
            buffers: Bytes of what the layer remembers beside them (running statistics).
        """
        size = count * self.training.itemsize
        static = self._static
        self._static = Static(
            parameters=static.parameters + size,
            gradients=static.gradients + (size if self.training.gradients == "static" else 0),
            optimizer=static.optimizer + size * STATES[self.training.optimizer],
            buffers=static.buffers + buffers,
            inputs=static.inputs,
        )
        return Parameter(count)

    def view(self, value: int | None, shape: tuple[int, ...]) -> Tensor:
        """A tensor with a slot of its own on a storage that exists."""
        self._slots += 1
        return Tensor(self._slots, value, shape)

    def forward(
        self,
        name: str,
        kind: str,
        inputs: Sequence[Tensor],
        shape: tuple[int, ...],
        flops: int,
        *,
        parameters: Sequence[Parameter] = (),
        saved: tuple[str, int] | None = None,
        phase: Phase = "forward",
    ) -> tuple[Tensor, int | None]:
        """Add an operation of the forward pass.

        Args:
            name: Its name and that of its output.
            kind: What it does.
            inputs: What it reads.
            shape: Shape of its output.
            flops: Floating-point operations.
            parameters: What it reads beside; their gradients will come from its backward.
            saved: Name and bytes of a by-product that only the backward pass reads.
            phase: `"forward"` or `"loss"`; the output of a loss is kept.

        Returns:
            Its output, and the by-product's index.
        """
        for parameter in parameters:
            parameter.uses += 1
        out = self._value(name, prod(shape) * self.training.itemsize, keep=phase == "loss")
        by_product = self._value(f"{name}:{saved[0]}", saved[1]) if saved else None
        self._emit(name, kind, [x.value for x in inputs], [out, by_product], flops, phase)
        return self.view(out, shape), by_product

    def rule(self, output: Tensor, rule: Rule) -> None:
        """Say what the backward of the last operation does with the gradient of its output."""
        self._rules.append((output.slot, rule))

    def backward(
        self,
        name: str,
        kind: str,
        reads: Sequence[int | None],
        flops: int,
        *,
        to: Tensor | None = None,
        parameters: Sequence[Parameter] = (),
        weights: bool = False,
    ) -> None:
        """Add an operation of the backward pass, unless nobody wants what it gives.

        Args:
            name: Its name.
            kind: What it does.
            reads: Values that it reads.
            flops: Floating-point operations.
            to: Tensor to whose gradient it contributes; the network's input wants none.
            parameters: Parameters to whose gradients it contributes.
            weights: Whether it reads weights.
        """
        mode = self.training.gradients
        if (to is None or to.value is None) and not parameters:
            return
        partial = [p.partial for p in parameters]
        flops += sum(p.count for p in parameters if p.partial is not None)
        given = None if to is None or to.value is None else self._value(name, to.count * self.training.itemsize)
        first = given is None
        made = [
            self._parameter_gradient(name if first and not i else f"{name}:parameters{i or ''}", p)
            for i, p in enumerate(parameters)
        ]
        outputs = [v for v in (given, *made) if v is not None] or [self._value(name, 0)]
        once = (mode == "static" and bool(parameters)) or (mode == "apply" and (weights or bool(parameters)))
        self._emit(name, kind, [*reads, *partial], outputs, flops, "backward", recomputable=not once)
        if to is not None and given is not None:
            self.contribute(to, given)

    def contribute(self, tensor: Tensor, gradient: int) -> None:
        """Add a gradient to those that a tensor has got so far."""
        before = self._gradients.get(tensor.slot)
        if before is not None and tensor.value is not None:
            name = self._sum_name(self._values[gradient].name)
            total = self._value(name, self._values[gradient].size)
            self._emit(name, "sum", [before, gradient], [total], tensor.count, "backward")
            gradient = total
        self._gradients[tensor.slot] = gradient

    def finish(self, name: str, loss: Tensor, notes: tuple[str, ...] = ()) -> Graph:
        """Derive the backward pass, and give the graph of the whole step."""
        if loss.value is None:
            raise ValueError("the loss must be the output of a layer")
        self._gradients[loss.slot] = loss.value  # the gradient of the loss is 1: its rule does not read it
        for slot, rule in reversed(self._rules):
            if slot in self._gradients:
                rule(self._gradients.pop(slot))
        return Graph(name, tuple(self._ops), tuple(self._values), self._static, notes)

    def _sum_name(self, gradient: str) -> str:
        """A new name: a gradient that several tensors share can be part of several sums."""
        self._sums[gradient] = count = self._sums.get(gradient, 0) + 1
        return f"{gradient}.sum{count if count > 1 else ''}"

    def _parameter_gradient(self, name: str, parameter: Parameter) -> int | None:
        """The value of a gradient of parameters; a layer used twice adds to what its other use gave."""
        parameter.uses -= 1
        if self.training.gradients == "static":
            return None
        last = not parameter.uses
        value = self._value(name, parameter.count * self.training.itemsize, last and self.training.gradients == "keep")
        parameter.partial = None if last else value
        return value

    def _value(self, name: str, size: int, keep: bool = False) -> int:
        self._values.append(Value(name, size, keep))
        return len(self._values) - 1

    def _emit(
        self,
        name: str,
        kind: str,
        inputs: Sequence[int | None],
        outputs: Sequence[int | None],
        flops: int,
        phase: Phase,
        recomputable: bool = True,
    ) -> None:
        reads = tuple(dict.fromkeys(v for v in inputs if v is not None))
        makes = tuple(v for v in outputs if v is not None)
        self._ops.append(Op(name, reads, makes, float(flops), phase=phase, recomputable=recomputable, kind=kind))

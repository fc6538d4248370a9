"""A training step as operators on storages: what `poet.Graph` describes, ready to run."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten

from poet.graph import Graph
from poet.trace_code import Code
from poet.trace_layout import Layout, reader

Gradients = Literal["keep", "static", "apply"]
Memory = dict[int, Tensor]
"""The values in RAM: each is a tensor on the value's storage."""


class SignatureError(ValueError):
    """Inputs that differ from those that the program was traced with."""


@final
@dataclass(frozen=True)
class External:
    """A tensor that is there before the step.

    Attributes:
        kind: `"parameter"`, `"buffer"`, `"input"`, `"constant"`, or `"literal"` (a constant made anew in each step).
        name: Its name in the model; the index of an input.
        layout: How it lies in its storage.
        tensor: The tensor itself, of constants and literals.
    """

    kind: str
    name: str
    layout: Layout
    tensor: Tensor | None = field(default=None, compare=False, repr=False)


@final
@dataclass(frozen=True)
class Output:
    """A tensor on a value, or on what was there before.

    Attributes:
        value: Index of the value; None if it is external.
        external: Index of the external tensor; None if it is a value.
        layout: How the storage is read.
        base: How it is kept.
    """

    value: int | None
    external: int | None
    layout: Layout
    base: Layout

    def read(self, memory: Memory, externals: Sequence[Tensor]) -> Tensor:
        """The tensor, sharing the storage."""
        base = memory[self.value] if self.value is not None else externals[self.external or 0]
        get = reader(self.layout, self.base)
        return base if get is None else get(base)


@final
@dataclass(frozen=True)
class Gradient:
    """Where the gradient of a parameter comes from.

    Attributes:
        name: The parameter's name.
        output: The gradient; None if the loss does not depend on the parameter.
        consumer: The operation after whose first execution the gradient is used up, unless gradients are kept.
    """

    name: str
    output: Output | None
    consumer: int | None = None


@final
@dataclass(frozen=True)
class Mutation:
    """A tensor that the step changes: written once, when the step has ended.

    Attributes:
        external: Index of the tensor.
        output: Its new content.
        whole: Whether that is the content of the tensor's whole storage.
    """

    external: int
    output: Output
    whole: bool


@final
@dataclass(frozen=True)
class Program:
    """A traced training step.

    Attributes:
        graph: What the schedulers see.
        model: The model, from which parameters and buffers are read at every step.
        codes: What each operation of the graph does.
        bases: Layout by which each value is kept.
        externals: What is there before the step.
        inputs: Layouts of the input tensors.
        structure: How the inputs are nested.
        plain: Inputs that are not tensors, by position; they were baked in.
        loss: The loss.
        gradients: The gradient of each parameter that requires one.
        mutations: Tensors that the step changes.
        mode: What happens to gradients.
        flags: From `flags`, while the model was traced.
    """

    graph: Graph
    model: nn.Module = field(compare=False, repr=False)
    codes: tuple[Code, ...] = field(repr=False)
    bases: tuple[Layout, ...] = field(repr=False)
    externals: tuple[External, ...] = field(repr=False)
    inputs: tuple[Layout, ...]
    structure: TreeSpec = field(repr=False)
    plain: Mapping[int, Any]
    loss: Output = field(repr=False)
    gradients: tuple[Gradient, ...] = field(repr=False)
    mutations: tuple[Mutation, ...] = field(repr=False)
    mode: Gradients = "keep"
    flags: tuple[bool, ...] = field(default=(), repr=False)

    @cached_property
    def _lookup(self) -> "_Lookup":
        return _Lookup(self.model)

    def with_graph(self, graph: Graph) -> "Program":
        """The same program with other sizes and durations.

        Raises:
            ValueError: If the graph has other operations or values.
        """
        shape = [(op.inputs, op.outputs) for op in graph.ops]
        if shape != [(op.inputs, op.outputs) for op in self.graph.ops] or len(graph.values) != len(self.graph.values):
            raise ValueError("the graph must have the same operations and values as the program's")
        return replace(self, graph=graph)

    def with_model(self, model: nn.Module) -> "Program":
        """The same program on another model of the same class and shapes."""
        return replace(self, model=model)

    def bind(self, *sample: Any) -> list[Tensor]:
        """What is there before the step, for these inputs.

        Args:
            sample: Inputs and targets as given to `trace`.

        Returns:
            One tensor for each of `externals`, detached.

        Raises:
            SignatureError: If the inputs differ from those traced in nesting, shape, type, strides or device; or the
                model is no longer as it was traced.
        """
        if flags(self._lookup.all) != self.flags:
            raise SignatureError(
                "train() or eval() was called, or requires_grad changed, since the model was traced: trace it again"
            )
        tensors = self._inputs(sample)
        lookup = self._lookup
        bound = []
        for external in self.externals:
            if external.kind == "input":
                bound.append(tensors[int(external.name)])
            elif external.tensor is not None:
                bound.append(external.tensor.detach())
            else:
                bound.append(_same(lookup(external.kind, external.name), external))
        return bound

    def run_op(self, i: int, memory: Memory, externals: Sequence[Tensor]) -> None:
        """Execute operation `i`: read its inputs from the memory, and put its outputs there.

        Args:
            i: Index of the operation.
            memory: The values in RAM; outputs still there are replaced.
            externals: From `bind`.
        """
        code = self.codes[i]
        frame: list[Any] = [None] * code.slots
        for slot, v in code.values:
            frame[slot] = memory[v]
        for slot, e in code.externals:
            frame[slot] = externals[e]
        before = torch.is_grad_enabled()
        torch._C._set_grad_enabled(code.grad)
        try:
            with torch._C._AutoDispatchBelowAutograd():  # where the operators were recorded
                code.run(frame)
        finally:
            torch._C._set_grad_enabled(before)
        for slot, v in code.stores:
            memory[v] = frame[slot]

    def parameter(self, name: str) -> nn.Parameter:
        """The parameter of that name."""
        return self._lookup("parameter", name)

    def _inputs(self, sample: tuple[Any, ...]) -> list[Tensor]:
        leaves, structure = tree_flatten(sample)
        if structure != self.structure:
            raise SignatureError(
                f"the inputs are nested as {structure}, the program was traced with {self.structure}: trace it again "
                "for other inputs"
            )
        tensors = []
        for position, leaf in enumerate(leaves):
            if position in self.plain:
                if leaf is not self.plain[position] and leaf != self.plain[position]:
                    raise SignatureError(
                        f"input {position} is {leaf!r}; the program was traced with {self.plain[position]!r}, which "
                        "is baked in: trace it again for another value"
                    )
                continue
            tensors.append(_checked(leaf, self.inputs[len(tensors)], position))
        return tensors


def flags(modules: Iterable[nn.Module]) -> tuple[bool, ...]:
    """Which modules are in training mode, and which parameters require gradients."""
    found = []
    for module in modules:
        found.append(module.training)
        found.extend(p.requires_grad for p in module._parameters.values() if p is not None)
    return tuple(found)


def _checked(leaf: Any, layout: Layout, position: int) -> Tensor:
    if not isinstance(leaf, Tensor):
        raise SignatureError(f"input {position} must be a tensor as it was while tracing, got {type(leaf).__name__}")
    leaf = leaf.detach()
    got = Layout.of(leaf)
    same = (got.shape, got.stride, got.dtype) == (layout.shape, layout.stride, layout.dtype)
    if not same or got.device.type != layout.device.type:
        raise SignatureError(
            f"input {position} is {got} on {got.device}; the program was traced with {layout} on {layout.device}: "
            "trace it again for other inputs"
        )
    return leaf


def _same(tensor: Tensor, external: External) -> Tensor:
    if not external.layout.fits(tensor):
        raise SignatureError(
            f"{external.kind} {external.name!r} is now {Layout.of(tensor)} on {tensor.device}, and was "
            f"{external.layout} on {external.layout.device} while tracing: trace the model again"
        )
    return tensor.detach()


class _Lookup:
    """Parameters and buffers by name; modules are found once."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.all = list(model.modules())
        self.modules: dict[str, tuple[nn.Module, str]] = {}

    def __call__(self, kind: str, name: str) -> Any:
        if name not in self.modules:
            path, _, leaf = name.rpartition(".")
            self.modules[name] = self.model.get_submodule(path), leaf
        module, leaf = self.modules[name]
        return module._parameters[leaf] if kind == "parameter" else module._buffers[leaf]

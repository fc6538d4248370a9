"""What a frame is told, what it holds of each saved tensor, and what it says became of it."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, final

import torch
from torch import Tensor

from gact.forms import Coded, Form, version_of
from gact.nodes import views_parameter
from gact.rules import Rules, Treatment


@dataclass(frozen=True)
class Plan:
    """What a frame needs to know; fixed while it runs.

    Args:
        rules: Treatment of each operation.
        bits: Bit width of a saved tensor, by key and the fewest that its operation allows; `RAW` keeps it.
        min_bytes: Tensors of fewer bytes stay as they are.
        group_size: Numbers a group of the quantiser.
        seed: Of the rounding noise, this process's own.
        exempt: Addresses of the storages of parameters and buffers.
        is_exempt: Further test for storages that are not activations (sharded parameters).
        keep: Takes a buffer of codes elsewhere; None keeps it.
        take: Gives the memory for a buffer of codes; None lets torch allocate it.
        nonfinite: ``"propagate"``, ``"raise"`` or ``"exact"``.
        collector: Watches what is settled.
        probe: Wraps an affine form (calibration).
    """

    rules: Rules
    bits: Callable[[str, int], int]
    min_bytes: int
    group_size: int
    seed: int
    exempt: frozenset[int] = frozenset()
    is_exempt: Callable[[Tensor], bool] | None = None
    keep: Callable[[Tensor], Any] | None = None
    take: Callable[[int, torch.device], Tensor] | None = None
    nonfinite: str = "propagate"
    collector: "Watcher | None" = None
    probe: Callable[[str, Coded], Coded] | None = None


class Watcher(Protocol):
    """Sees what a frame does."""

    def inspect(self, key: str, flat: Tensor) -> None:
        """A tensor is about to be quantised."""

    def observe(self, settled: "Settled", form: Form, node: Any) -> None:
        """A tensor has got its form."""


@dataclass(frozen=True, slots=True)
class Settled:
    """One saved tensor and what became of it.

    Args:
        key: Its name, the same in every pass over the same structure.
        item: Name of the form's first user; tensors that share codes have it in common.
        module: Path of the module whose forward saved it.
        operation: Name of the operation.
        saved: Name of the tensor within the operation.
        treatment: What the rules say.
        reason: Why it is exact although it could have been otherwise, or "".
        shape: Shape.
        dtype: Data type.
        storage: Address that identifies the plain tensor's storage within the pass.
        storage_bytes: Bytes of that storage.
        outside: Whether the storage is a parameter, a buffer, or a constant that somebody else holds too, and so lives
            without the graph.
        form: Name of the form.
        bits: Nominal bits a number in this form.
        nbytes: Bytes of the form; several tensors of one `item` share them.
        result: Whether it is the operation's own result.
    """

    key: str
    item: str
    module: str
    operation: str
    saved: str
    treatment: Treatment
    reason: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    storage: int
    storage_bytes: int
    outside: bool
    form: str
    bits: float
    nbytes: int
    result: bool


@final
class Saved:
    """What the graph holds for one saved tensor: first the tensor itself, detached, then its form."""

    __slots__ = ("__weakref__", "constant", "form", "leaf", "node_name", "parameter", "tensor", "version")

    def __init__(self, tensor: Tensor) -> None:
        node = tensor.grad_fn
        self.tensor: Tensor | None = tensor.detach()  # the tensor itself may be the node's result: a cycle
        self.form: Form | None = None
        self.version = version_of(tensor)
        self.leaf = tensor.is_leaf and tensor.requires_grad
        self.constant = not tensor.requires_grad
        self.parameter = self.leaf or views_parameter(node)
        self.node_name = "" if node is None else node.name()

    def decode(self) -> Tensor:
        """Return what the backward pass shall see."""
        if self.form is not None:
            return self.form.decode()
        assert self.tensor is not None
        return self.tensor


@final
@dataclass(frozen=True, slots=True)
class Constant:
    """A tensor that needs no gradient, kept exact until it is clear who else holds it.

    Args:
        index: Place of its record.
        saved: Weak reference to what the graph holds.
        node: Its node, if it will be asked.
    """

    index: int
    saved: weakref.ReferenceType[Saved]
    node: Any

"""One forward pass under compression: every tensor that autograd saves, from the pack hook to its final form.

A saved tensor is held as it is until its autograd node is known, which is the next moment; then the operation decides
its form. Tensors that are the same numbers in the same memory share one form.
"""

import threading
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, final

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from gact import kernels
from gact.allocation import RAW
from gact.counter_rng import stream_key
from gact.forms import Affine, Coded, Form, Levels, Raw, Shape, Through, View, two_values, version_of
from gact.geometry import flatten
from gact.ledger import affine_bytes
from gact.nodes import is_custom, read_saved, saved_names, variant, views_parameter
from gact.rules import AFFINE, BRANCH, COS, EXACT, EXP, INDICES, SHAPE, SIN, STEP, UNKNOWN, Rules, Treatment, operation
from gact.steps import encode_branch, encode_indices, encode_step

THROUGH = {EXP: (torch.exp, torch.log), COS: (torch.cos, torch.acos), SIN: (torch.sin, torch.asin)}  # and back
STATISTIC_SHARE = 16  # a custom function's constant this many times smaller than its largest tensor is a statistic


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
        outside: Whether the storage is a parameter, a buffer or a constant, which lives without the graph.
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


class Saved:
    """What the graph holds for one saved tensor: first the tensor itself, detached, then its form."""

    __slots__ = ("constant", "form", "leaf", "node_name", "parameter", "tensor", "version")

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
@dataclass
class Frame:
    """State of one forward pass of one thread.

    Args:
        plan: Settings.
        invocation: Number of this pass; with the tensor's number it selects the rounding noise.
        stops_at_node: Whether nodes are seen at once, so that what is pending belongs to the node just seen.
    """

    plan: Plan
    invocation: int
    stops_at_node: bool
    modules: list[str] = field(default_factory=list)
    settled: list[Settled] = field(default_factory=list)
    _pending: list[Saved] = field(default_factory=list)
    _names: Counter[str] = field(default_factory=Counter)
    _shared: dict[Any, tuple[Any, str]] = field(default_factory=dict)
    _raw: dict[int, Any] = field(default_factory=dict)
    _storages: dict[int, StorageWeakRef] = field(default_factory=dict)
    _identifying: list[Any] | None = None
    _tensors: int = 0
    _thread: int = field(default_factory=threading.get_ident)

    def pack(self, tensor: Tensor) -> Saved:
        """Hold a tensor until its node is known."""
        saved = Saved(tensor)
        if (
            type(tensor) not in (Tensor, torch.nn.Parameter)
            or tensor.layout != torch.strided
            or tensor.is_nested
            or tensor.is_meta
        ):
            saved.form, saved.tensor = Raw(tensor.detach()), None  # subclasses know best themselves
        else:
            self._pending.append(saved)
        return saved

    def unpack(self, saved: Saved) -> Tensor:
        """Return what the backward pass shall see; while nodes are being identified, note who was asked for."""
        if self._identifying is None or threading.get_ident() != self._thread:
            return saved.decode()
        self._identifying.append(saved)
        return saved.tensor if saved.tensor is not None else saved.decode()

    def observe(self, node: Any) -> None:
        """Give the tensors that a new node saved their final form."""
        if not self._pending:
            return
        with torch.no_grad(), torch._C.DisableTorchFunction(), torch.autocast(self._device(), enabled=False):
            if is_custom(node):
                mine = [("tensors", saved) for saved in self._asked(node, "tensors")]
            elif self.stops_at_node and len(self._pending) == 1 and len(names := saved_names(node)) == 1:
                mine = [(names[0], self._pending[0])]
            else:
                mine = [(name, saved) for name in saved_names(node) for saved in self._asked(node, name)]
            if self.stops_at_node and len(mine) < len(self._pending):  # written in C++, without names
                known = {id(saved) for _, saved in mine}
                mine += [("tensors", saved) for saved in self._pending if id(saved) not in known]
            self._settle_all(node, mine)

    def close(self) -> None:
        """Settle what no node was seen for: exact."""
        for saved in self._pending:
            assert saved.tensor is not None
            saved.form, saved.tensor = Raw(saved.tensor, saved.version), None
        self._pending.clear()
        self._shared.clear()
        self._raw.clear()

    def _device(self) -> str:
        tensor = self._pending[0].tensor
        return "cpu" if tensor is None or tensor.device.type == "meta" else tensor.device.type

    def _asked(self, node: Any, name: str) -> list[Saved]:
        """The pending tensors that unpacking one attribute of a node asks for."""
        self._identifying = asked = []
        try:
            read_saved(node, name)
        finally:
            self._identifying = None
        pending = {id(saved) for saved in self._pending}
        return [saved for saved in asked if id(saved) in pending]

    def _settle_all(self, node: Any, mine: list[tuple[str, Saved]]) -> None:
        done = {id(saved) for _, saved in mine}
        self._pending = [saved for saved in self._pending if id(saved) not in done]
        largest = max((saved.tensor.numel() for _, saved in mine if saved.tensor is not None), default=0)
        shapes = {name: saved.tensor.shape for name, saved in mine if saved.tensor is not None}
        for name, saved in mine:
            self._settle(node, name, saved, largest, shapes)

    def _settle(self, node: Any, name: str, saved: Saved, largest: int, shapes: dict[str, torch.Size]) -> None:
        tensor = saved.tensor
        if tensor is None:  # one tensor in two places of a custom function
            return
        node_name, module = node.name(), self.modules[-1] if self.modules else ""
        base = f"{module}/{operation(node_name)}.{name}"
        key = f"{base}#{self._names[base]}"
        self._names[base] += 1
        treatment = self.plan.rules.treatment(node_name, name, module, variant(node))
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address not in self._storages:
            self._storages[address] = StorageWeakRef(storage)  # keeps the address from being given to another
        outside = self._outside(saved, tensor, address)
        reason, form = "", None
        if outside:
            reason = "parameter" if saved.parameter or address in self.plan.exempt else "constant"
        elif tensor.numel() * tensor.element_size() < self.plan.min_bytes:
            reason = "small"
        elif version_of(tensor) != saved.version:
            reason = "changed in place"
        else:
            form, reason = self._form(node, saved, tensor, treatment, key, largest, shapes)
        if form is None:
            form = Raw(tensor, saved.version)
            self._raw[address] = weakref.ref(form)
            outside = outside or reason == "constant"
        saved.form, saved.tensor = form, None
        item = (form.item or key) if isinstance(form, View) else key
        settled = Settled(
            key, item, module, operation(node_name), name, treatment, reason,
            tuple(tensor.shape), tensor.dtype, address, storage.nbytes(), outside, form.name, form.bits, form.nbytes,
            saved.node_name == node_name and not saved.leaf,
        )  # fmt: skip
        self.settled.append(settled)
        if self.plan.collector is not None:
            self.plan.collector.observe(settled, form, node)

    def _outside(self, saved: Saved, tensor: Tensor, address: int) -> bool:
        if saved.parameter or address in self.plan.exempt:
            return True
        return self.plan.is_exempt is not None and self.plan.is_exempt(tensor)

    def _form(
        self,
        node: Any,
        saved: Saved,
        tensor: Tensor,
        treatment: Treatment,
        key: str,
        largest: int,
        shapes: dict[str, torch.Size],
    ) -> tuple[Form | None, str]:
        """The small form, or None and the reason why the tensor stays exact."""
        if treatment.form == EXACT:
            return None, treatment.kind
        if treatment.form == SHAPE:
            return Shape(tensor), ""
        if tensor.dtype == torch.bool:
            return self._once(tensor, "mask", key, lambda flat: Levels("mask", flat, (0.0, 1.0), torch.bool)), ""
        if treatment.form == INDICES:
            form = encode_indices(node, tensor, shapes.get("self"))
            return (form, "") if form is not None else (None, "window unknown")
        if not tensor.is_floating_point():
            return None, "integer" if not tensor.is_complex() else "complex"
        if treatment.form == STEP:
            form = encode_step(node, tensor)
            return (form, "") if form is not None else (None, treatment.kind)
        if saved.constant:
            if not is_custom(node) and not (treatment.kind == UNKNOWN and not saved_names(node)):
                form = two_values(tensor) if tensor.device.type == "cpu" else None
                return (form, "") if form is not None else (None, "constant")
            if tensor.numel() * STATISTIC_SHARE <= largest:
                return None, "statistic"
        return self._affine(node, tensor, key, treatment)

    def _affine(self, node: Any, tensor: Tensor, key: str, treatment: Treatment) -> tuple[Form | None, str]:
        alive = self._raw.get(tensor.untyped_storage()._cdata)
        if alive is not None and alive() is not None:
            return None, "kept exact by another operation"
        bits = self.plan.bits(key, treatment.least_bits)
        if bits == RAW:
            return None, "bits"
        if self.plan.nonfinite != "propagate" and not bool(torch.isfinite(tensor).all()):
            if self.plan.nonfinite == "raise":
                raise FloatingPointError(
                    f"{key} holds NaN or infinite numbers; find their source, or set nonfinite='propagate' (they then "
                    "reach the gradient, as without compression) or 'exact'"
                )
            return None, "non-finite"
        if treatment.form == BRANCH:
            form = encode_branch(node, tensor, lambda flat: self._quantise(flat, bits, key), key)
            return form, "" if form is not None else treatment.kind
        if treatment.form in THROUGH:
            to, back = THROUGH[treatment.form]
            return self._once(
                tensor, treatment.form, key, lambda flat: Through(self._quantise(to(flat), bits, key), back)
            ), ""
        return self._once(tensor, AFFINE, key, lambda flat: self._quantise(flat, bits, key)), ""

    def _quantise(self, flat: Tensor, bits: int, key: str) -> Coded:
        self._tensors += 1
        if self.plan.collector is not None:
            self.plan.collector.inspect(key, flat)
        noise = stream_key(self.plan.seed, self.invocation, self._tensors)
        out = None
        if self.plan.take is not None:
            out = self.plan.take(affine_bytes(flat.numel(), bits, self.plan.group_size, flat.dtype), flat.device)
        codes = kernels.quantise(flat, bits, key=noise, group_size=self.plan.group_size, out=out)
        form = Affine(codes, self.plan.keep)
        return form if self.plan.probe is None else self.plan.probe(key, form)

    def _once(self, tensor: Tensor, kind: str, key: str, encode: Callable[[Tensor], Form]) -> View:
        """Encode the numbers of a tensor, or share the form that they already have."""
        flat, geometry = flatten(tensor)
        address = tensor.untyped_storage()._cdata
        if flat.untyped_storage()._cdata == address:
            place: tuple[int, ...] = (flat.storage_offset(), flat.numel())
        else:  # copied because of its gaps
            place = (tensor.storage_offset(), *tensor.size(), *tensor.stride())
        index = address, place, tensor.dtype, tensor._version, kind
        reference, item = self._shared.get(index, (None, key))
        form = reference() if reference is not None else None
        if form is None:
            form, item = encode(flat), key
            self._shared[index] = weakref.ref(form), item
        return View(form, geometry, item)

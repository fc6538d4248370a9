"""One forward pass under compression: every tensor that autograd saves, from the pack hook to its final form.

A saved tensor is held as it is until its autograd node is known, which is the next moment; then the operation decides
its form. Tensors that are the same numbers in the same memory share one form.
"""

import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from gact import kernels
from gact.allocation import RAW
from gact.counter_rng import stream_key
from gact.forms import Affine, Coded, Copy, Form, Levels, Raw, Shape, Through, View, two_values, version_of
from gact.geometry import flatten, owners
from gact.ledger import affine_bytes
from gact.nodes import FOREIGN, is_custom, is_known, packs_with, read_saved, saved_names, variant
from gact.rules import AFFINE, BRANCH, COS, EXACT, EXP, INDICES, SHAPE, SIN, STEP, UNKNOWN, Treatment, operation
from gact.saved import Constant, Saved
from gact.saved import Plan as Plan
from gact.saved import Settled as Settled
from gact.steps import encode_branch, encode_indices, encode_step

# and back, in place
THROUGH = {EXP: (torch.exp, Tensor.log_), COS: (torch.cos, Tensor.acos_), SIN: (torch.sin, Tensor.asin_)}
CHECKPOINT, INPUT_FORM = "Checkpoint", "affine input"
STATISTIC_SHARE = 16  # a custom function's constant this many times smaller than its largest tensor is a statistic


@final
@dataclass
class Frame:
    """State of one forward pass of one thread.

    Args:
        plan: Settings.
        invocation: Number of this pass; with the tensor's number it selects the rounding noise.
        hook: Pack hook under which autograd knows this frame; its own `pack` if None.
        stops_at_node: Whether nodes are seen at once, so that what is pending belongs to the node just seen.
    """

    plan: Plan
    invocation: int
    stops_at_node: bool
    hook: Any = None
    modules: list[str] = field(default_factory=list)
    settled: list[Settled] = field(default_factory=list)
    _pending: list[Saved] = field(default_factory=list)
    _names: Counter[str] = field(default_factory=Counter)
    _shared: dict[Any, tuple[Any, str]] = field(default_factory=dict)
    _raw: dict[int, Any] = field(default_factory=dict)
    _storages: dict[int, StorageWeakRef] = field(default_factory=dict)
    _constants: dict[int, list[Constant]] = field(default_factory=dict)
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
        if not self._pending and self.plan.collector is None:
            return
        if not packs_with(self.hook or self.pack):  # a region that torch checkpoints: these are its inputs
            node.metadata[FOREIGN] = True
            self._keep_pending("a checkpointed region")
            return
        if not self._pending:
            return
        if node.name().endswith("CopySlices"):  # a view changed in place: its operation's own node is inside, unseen
            self._keep_pending("a view changed in place")
            return
        if self.stops_at_node and not is_known(node):  # written in C++ by somebody else, without names
            mine = [("tensors", saved) for saved in self._pending]
        else:
            mine = [(name, saved) for name in saved_names(node) for saved in self._asked(node, name)]
        self._settle_all(node, mine)

    def record_input(self, tensor: Tensor, bits: int, nbytes: int) -> None:
        """Put on record that a checkpointed block keeps an input at few bits.

        Args:
            tensor: The input.
            bits: Of its codes.
            nbytes: That they take.
        """
        module, storage = self.modules[-1] if self.modules else "", tensor.untyped_storage()
        key = self._key(module, CHECKPOINT, "input")
        self._storages.setdefault(storage._cdata, StorageWeakRef(storage))
        settled = Settled(
            key, key, module, CHECKPOINT, "input", Treatment(AFFINE, UNKNOWN), "", tuple(tensor.shape), tensor.dtype,
            storage._cdata, storage.nbytes(), False, INPUT_FORM, float(bits), nbytes, False,
        )  # fmt: skip
        self.settled.append(settled)

    def close(self) -> None:
        """Settle what no node was seen for: exact."""
        self._keep_pending("node not seen")
        for address, constants in self._constants.items():
            self._settle_constants(address, constants)
        self._constants.clear()
        self._shared.clear()
        self._raw.clear()

    def _keep_pending(self, why: str) -> None:
        """Keep exact what no node is known of."""
        module = self.modules[-1] if self.modules else ""
        for saved in self._pending:
            assert saved.tensor is not None
            reason = "parameter" if self._why_exact(saved, saved.tensor) == "parameter" else why
            key = self._key(module, "Unknown", "tensors")
            if saved.constant and reason != "parameter":
                place = saved.tensor.untyped_storage()._cdata
                self._constants.setdefault(place, []).append(Constant(len(self.settled), weakref.ref(saved), None))
            self._record(key, saved, None, Treatment(EXACT, UNKNOWN), reason)
        self._pending.clear()

    def _settle_constants(self, address: int, constants: list[Constant]) -> None:
        """Store constants that only the graph holds; say of inputs and targets that they live without it."""
        held = [(c, saved) for c in constants if (saved := c.saved()) is not None and isinstance(saved.form, Raw)]
        if owners(address) > len(held):
            for constant in constants:
                self.settled[constant.index] = replace(self.settled[constant.index], outside=True)
        elif all(self.settled[constant.index].reason == "constant" for constant, _ in held):
            self._raw.pop(address, None)
            for constant, saved in held:
                self._settle_constant(constant, saved)

    def _settle_constant(self, constant: Constant, saved: Saved) -> None:
        before = self.settled[constant.index]
        assert isinstance(saved.form, Raw)
        if saved.form.changed:  # in place; the backward pass shall say so
            return
        tensor = saved.form.decode()
        with _quiet(tensor):
            form, reason = self._affine(constant.node, tensor, before.key, before.treatment)
        if form is None:
            self.settled[constant.index] = replace(before, reason=reason)
            return
        saved.form = form
        item = form.item if isinstance(form, View) else before.key
        settled = replace(before, item=item, reason="", form=form.name, bits=form.bits, nbytes=form.nbytes)
        self.settled[constant.index] = settled
        if self.plan.collector is not None:
            self.plan.collector.observe(settled, form, constant.node)

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
        key = self._key(module, operation(node_name), name)
        treatment = self.plan.rules.treatment(node_name, name, module, variant(node))
        reason, form = self._why_exact(saved, tensor), None
        if not reason:
            with _quiet(tensor):
                form, reason = self._form(node, saved, tensor, treatment, key, largest, shapes)
        if form is None and saved.constant and reason != "parameter":
            kept = node if self.plan.collector is not None or treatment.form == BRANCH else None
            place = tensor.untyped_storage()._cdata
            self._constants.setdefault(place, []).append(Constant(len(self.settled), weakref.ref(saved), kept))
        settled = self._record(key, saved, form, treatment, reason, result=saved.node_name == node_name)
        if self.plan.collector is not None and form is not None:
            self.plan.collector.observe(settled, form, node)

    def _key(self, module: str, name: str, saved: str) -> str:
        base = f"{module}/{name}.{saved}"
        self._names[base] += 1
        return f"{base}#{self._names[base] - 1}"

    def _why_exact(self, saved: Saved, tensor: Tensor) -> str:
        """A reason that has nothing to do with the operation, or ""."""
        if saved.parameter or tensor.untyped_storage()._cdata in self.plan.exempt:
            return "parameter"
        if self.plan.is_exempt is not None and self.plan.is_exempt(tensor):
            return "parameter"
        if tensor.numel() * tensor.element_size() < self.plan.min_bytes:
            return "small"
        return "changed in place" if version_of(tensor) != saved.version else ""

    def _record(
        self, key: str, saved: Saved, form: Form | None, treatment: Treatment, reason: str, *, result: bool = False
    ) -> Settled:
        """Replace a tensor by its form, or by itself, and take note of it."""
        tensor = saved.tensor
        assert tensor is not None
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address not in self._storages:
            self._storages[address] = StorageWeakRef(storage)  # keeps the address from being given to another
        if form is None and reason == "small" and self._pins(saved, tensor, address):
            form = self._once(tensor, "copy", key, Copy)
        if form is None:
            form = Raw(tensor, saved.version)
            self._raw[address] = weakref.ref(form)
        saved.form, saved.tensor = form, None
        item = (form.item or key) if isinstance(form, View) else key
        module, _, rest = key.rpartition("/")
        name, _, name_of_tensor = rest.partition("#")[0].rpartition(".")
        settled = Settled(
            key, item, module, name, name_of_tensor, treatment, reason, tuple(tensor.shape), tensor.dtype, address,
            storage.nbytes(), reason == "parameter", form.name, form.bits, form.nbytes, result and not saved.leaf,
        )  # fmt: skip
        self.settled.append(settled)
        return settled

    def _pins(self, saved: Saved, tensor: Tensor, address: int) -> bool:
        """Whether keeping a small view would keep a storage that could go: one row of a large activation."""
        alive = self._raw.get(address)
        if saved.constant or version_of(tensor) != saved.version or (alive is not None and alive() is not None):
            return False
        whole = tensor.untyped_storage().nbytes()
        return whole >= self.plan.min_bytes and 2 * tensor.numel() * tensor.element_size() < whole

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
                tensor, treatment.form, key, lambda flat: Through(self._quantise(flat, bits, key, to), back)
            ), ""
        return self._once(tensor, AFFINE, key, lambda flat: self._quantise(flat, bits, key)), ""

    def _quantise(self, flat: Tensor, bits: int, key: str, of: Callable[[Tensor], Tensor] | None = None) -> Coded:
        self._tensors += 1
        if self.plan.collector is not None:
            self.plan.collector.inspect(key, flat if of is None else of(flat))
        noise = stream_key(self.plan.seed, self.invocation, self._tensors)
        out = None
        if self.plan.take is not None:
            out = self.plan.take(affine_bytes(flat.numel(), bits, self.plan.group_size, flat.dtype), flat.device)
        codes = kernels.quantise(flat, bits, key=noise, group_size=self.plan.group_size, out=out, of=of)
        form = Affine(codes, self.plan.keep)
        return form if self.plan.probe is None else self.plan.probe(key, form)

    def _once(self, tensor: Tensor, kind: str, key: str, encode: Callable[[Tensor], Form]) -> View:
        """Encode the numbers of a tensor, or share the form that they already have."""
        flat, geometry = flatten(tensor)
        address = tensor.untyped_storage()._cdata
        if flat.untyped_storage()._cdata == address:
            place: tuple[Any, ...] = (flat.storage_offset(), flat.numel())
        else:  # copied because of its gaps
            place = (tensor.storage_offset(), *tensor.size(), *tensor.stride())
        index = address, place, tensor.dtype, tensor._version, kind
        reference, item = self._shared.get(index, (None, key))
        form = reference() if reference is not None else None
        if form is None:
            form, item = encode(flat), key
            self._shared[index] = weakref.ref(form), item
        return View(form, geometry, item)


@contextmanager
def _quiet(tensor: Tensor) -> Iterator[None]:
    """Arithmetic that leaves no trace and is done as written."""
    device = tensor.device.type
    with torch.no_grad(), torch._C.DisableTorchFunction():
        if not torch.is_autocast_enabled(device):
            yield
            return
        with torch.autocast(device, enabled=False):
            yield

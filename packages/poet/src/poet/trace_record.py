"""Recording a training step: every operator that runs below autograd, and the storages that it reads and writes.

Nothing is rewritten: views disappear because a tensor is known as a storage and a layout, and operators that write in
place stay what they are, each write starting a new *version* of its storage.
"""

from collections.abc import Callable, Iterator
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from poet.graph import Phase
from poet.trace_call import Call, Fresh, Origin, Ref, Storage, TraceError, draws, flops_of, written
from poet.trace_layout import Layout
from poet.trace_probe import Probe, stand_in

_RESHAPING = ("aten::set_", "aten::resize_", "aten::_resize_output_", "aten::resize_as_", "aten::set_data")
_DATA_TAGS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)


@final
class Recorder(TorchDispatchMode):
    """Records every operator while it is active.

    Attributes:
        calls: What ran, in order.
        storages: Storages met.
        origins: What was there before.
        phase: Part of the step that is running; the user of the recorder sets it.
        modules: Names of the modules that are running, the innermost last; the user of the recorder sets it.
        failed: The module in which an operator failed.
    """

    def __init__(self, convert: Callable[[Tensor], Tensor] | None) -> None:
        """Record.

        Args:
            convert: Turns a tensor of the program into its stand-in without data; None if the step runs for real.
        """
        super().__init__()
        self.calls: list[Call] = []
        self.storages: list[Storage] = []
        self.origins: list[Origin] = []
        self.phase: Phase = "forward"
        self._known: dict[int, int] = {}
        self.failed: str | None = None
        self._convert = convert
        self._probe = Probe() if convert is not None else None
        self.modules: list[str] = []
        self._paths: dict[int, str] = {}  # autograd's number of a node -> module that ran when it was made

    @property
    def path(self) -> str:
        """The module that is running, or whose backward pass is."""
        node = torch._C._current_autograd_node() if self.phase == "backward" else None
        if node is None:
            return self.modules[-1] if self.modules else ""
        return self._paths.get(node._sequence_nr(), "")

    def place(self) -> str:
        """For messages: the module that is running, or in which an operator failed."""
        path = self.path if self.failed is None else self.failed
        return f"in module {path!r}" if path else "outside of the model's submodules"

    def adopt(self, tensor: Tensor, origin: Origin) -> None:
        """Take note of a tensor that was there before the step."""
        key = tensor.untyped_storage()._cdata
        if key not in self._known:
            self._add(tensor, len(self.origins))
            self.origins.append(origin)

    def ref(self, tensor: Tensor) -> Ref:
        """The storage, its present version, and the layout of a tensor met before."""
        storage = self._known[tensor.untyped_storage()._cdata]
        return Ref(storage, self.storages[storage].version, Layout.of(tensor))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and record it."""
        kwargs = kwargs or {}
        if func.namespace == "prim":
            return func(*args, **kwargs)
        _refuse_types(func, types, self)
        if func._schema.name in _RESHAPING:
            raise TraceError(f"{func} {self.place()} replaces the memory of a tensor, which a schedule cannot repeat")
        if self._convert is None and any(tag in func.tags for tag in _DATA_TAGS):
            raise TraceError(_data_message(func, self))
        if func is torch.ops.aten.lift_fresh.default:
            return self._literal(func, args[0])
        if self._convert is not None:
            args, kwargs = self._stand_in(args), {name: self._stand_in(a) for name, a in kwargs.items()}
        refs: list[Ref] = []
        recorded_args = tuple(self._encode(func, a, refs) for a in args)
        recorded_kwargs = {name: self._encode(func, a, refs) for name, a in kwargs.items()}
        overwritten = [self.ref(t).storage for t in written(func, args, kwargs)]
        try:
            result = func(*args, **kwargs)
        except Exception:
            self.failed = self.path
            raise
        if self._probe is not None and not draws(func, args, kwargs):
            result = self._corrected(func, args, kwargs, result)
        self._record(func, (recorded_args, recorded_kwargs), refs, overwritten, (args, kwargs, result))
        return result

    def _corrected(self, func: Any, args: Any, kwargs: Any, result: Any) -> Any:
        """The results, with those replaced that the operator's own formula gets wrong."""
        fresh = [
            (k, t) for k, t in _results(func, result, self) if t.untyped_storage()._cdata not in self._known
        ]  # fmt: skip
        found = self._probe(func, args, kwargs) if fresh and self._probe is not None else None
        if found is None or [k for k, *_ in found] != [k for k, _ in _results(func, result, self)]:
            return result
        real = {k: (layout, nbytes) for k, layout, nbytes in found}
        parts = [result] if not isinstance(result, list | tuple) else list(result)
        for k, tensor in fresh:
            layout, nbytes = real[k]
            if Layout.of(tensor) != layout or tensor.untyped_storage().nbytes() != nbytes:
                parts[k or 0] = stand_in(layout, nbytes)
        return parts[0] if not isinstance(result, list | tuple) else type(result)(parts)

    def _record(self, func: Any, encoded: Any, refs: list[Ref], overwritten: list[int], ran: Any) -> None:
        args, kwargs, result = ran
        tensors = list(_results(func, result, self))
        if not tensors and not overwritten:
            return  # a question about metadata
        fresh = []
        for position, tensor in tensors:
            if tensor.untyped_storage()._cdata not in self._known:
                fresh.append(Fresh(position, self._add(tensor, None), Layout.of(tensor)))
        if not fresh and not overwritten:
            return  # a view
        writes = tuple(dict.fromkeys(overwritten))
        versions = tuple(self.storages[s].version for s in writes)
        for s in writes:
            self.storages[s].version += 1
        path = self.path
        if self.phase != "backward":
            self._paths.setdefault(_sequence_number(), path)
        self.calls.append(
            Call(
                func,
                args=encoded[0],
                kwargs=encoded[1],
                reads=tuple(refs),
                writes=writes,
                versions=versions,
                fresh=tuple(fresh),
                random=draws(func, args, kwargs),
                flops=flops_of(func, args, kwargs, result, [f.layout for f in fresh]),
                phase=self.phase,
                path=path,
                grad=torch.is_grad_enabled(),
            )
        )

    def _literal(self, func: Any, source: Tensor) -> Tensor:
        result = func(source)
        key = result.untyped_storage()._cdata
        if key not in self._known:
            self._add(result, len(self.origins))
            self.origins.append(Origin("literal", f"literal {len(self.origins)}", Layout.of(result), source))
        return result

    def _stand_in(self, value: Any) -> Any:
        """The arguments of an operator, with stand-ins for tensors that hold data."""
        if isinstance(value, list | tuple):
            return type(value)([self._stand_in(v) for v in value])
        if type(value) not in (Tensor, nn.Parameter, nn.Buffer) or self._convert is None:
            return value
        fake = self._convert(value)
        if fake.untyped_storage()._cdata not in self._known:
            self._adopt_constant(fake, value)
        return fake

    def _encode(self, func: Any, value: Any, refs: list[Ref]) -> Any:
        if isinstance(value, Tensor):
            return self._encode_tensor(func, value, refs)
        if isinstance(value, list | tuple):
            return [self._encode(func, v, refs) for v in value]
        if isinstance(value, torch.Generator):
            raise TraceError(
                f"{func} {self.place()} draws from a generator of its own: schedules repeat draws of the default "
                "generators only; leave generator= out"
            )
        if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
            raise TraceError(f"{func} {self.place()} has a size that is not known while tracing: {value}")
        return value

    def _encode_tensor(self, func: Any, tensor: Tensor, refs: list[Ref]) -> Ref:
        if tensor.layout is not torch.strided:
            raise TraceError(_layout_message(func, tensor, self))
        if tensor.untyped_storage()._cdata not in self._known:
            self._adopt_constant(tensor, tensor)
        ref = self.ref(tensor)
        refs.append(ref)
        return ref

    def _adopt_constant(self, tensor: Tensor, source: Tensor) -> None:
        if source.requires_grad:
            raise TraceError(
                f"a tensor of shape {list(source.shape)} used {self.place()} requires grad and is not a parameter of "
                "the model: register it as nn.Parameter, or detach it"
            )
        self.adopt(tensor, Origin("constant", f"constant {len(self.origins)}", Layout.of(tensor), source))

    def _add(self, tensor: Tensor, external: int | None) -> int:
        storage = tensor.untyped_storage()
        index = self._known[storage._cdata] = len(self.storages)
        weak = StorageWeakRef(storage)
        self.storages.append(Storage(storage.nbytes(), Layout.of(tensor), external, 0, weak))
        return index


def data_error(func: Any, recorder: Recorder) -> TraceError:
    """The error for an operator whose result's shape or value depends on the data."""
    return TraceError(_data_message(func, recorder))


def _results(func: Any, result: Any, recorder: Recorder) -> Iterator[tuple[int | None, Tensor]]:
    """The tensors among the results, with their positions."""
    single = not isinstance(result, list | tuple)
    for position, tensor in enumerate([result] if single else result):
        if not isinstance(tensor, Tensor):
            continue
        if tensor.layout is not torch.strided:
            raise TraceError(_layout_message(func, tensor, recorder))
        yield (None if single else position), tensor


def _refuse_types(func: Any, types: Any, recorder: Recorder) -> None:
    for kind in types:
        if kind not in (Tensor, nn.Parameter, nn.Buffer) and kind.__name__ != "FakeTensor":
            raise TraceError(
                f"{func} {recorder.place()} takes a {kind.__name__}: subclasses of torch.Tensor cannot be traced"
            )


def _layout_message(func: Any, tensor: Tensor, recorder: Recorder) -> str:
    layout = str(tensor.layout).removeprefix("torch.")
    return f"{func} {recorder.place()} handles a tensor of layout {layout}: only dense (strided) tensors can be traced"


def _data_message(func: Any, recorder: Recorder) -> str:
    return (
        f"{func} {recorder.place()} looks at the data (.item(), nonzero, a mask as an index, an `if` on a tensor): "
        "what runs must not depend on the numbers"
    )


def _sequence_number() -> int:
    """The number that autograd gave to the node of the operator that is running."""
    return torch.autograd._get_sequence_nr() - 1

"""The model while it is traced: stand-ins for its parameters and buffers, and everything as before afterwards."""

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn

from poet.trace_call import Origin, Ref, TraceError
from poet.trace_layout import Layout
from poet.trace_record import Recorder


@final
class SwappedState:
    """A context in which a model holds stand-ins for its parameters and buffers.

    Attributes:
        parameters: Stand-ins of the parameters that require gradients, by name; tied ones once.
    """

    def __init__(self, model: nn.Module, recorder: Recorder, convert: Callable[[Tensor], Tensor] | None) -> None:
        """Make the stand-ins and show them to the recorder.

        Args:
            model: The model; nothing of it is changed before the context is entered.
            recorder: Told of every stand-in.
            convert: Makes a stand-in without data; None for copies.
        """
        self.parameters: dict[str, Tensor] = {}
        self._recorder = recorder
        self._before = [(module, _snapshot(module)) for module in model.modules()]
        self._entries: list[tuple[nn.Module, str, str, str, Tensor]] = []  # module, kind, entry, name, stand-in
        made: dict[int, Tensor] = {}
        for path, module in model.named_modules():
            for kind, entries in (("parameter", module._parameters), ("buffer", module._buffers)):
                for entry, tensor in entries.items():
                    if tensor is None:
                        continue
                    name = f"{path}.{entry}" if path else entry
                    if id(tensor) not in made:
                        made[id(tensor)] = _copied(tensor) if convert is None else convert(tensor)
                        recorder.adopt(made[id(tensor)], Origin(kind, name, Layout.of(tensor)))
                        if kind == "parameter" and tensor.requires_grad:
                            self.parameters[name] = made[id(tensor)]
                    self._entries.append((module, kind, entry, name, made[id(tensor)]))
        self._places = {name: recorder.ref(tensor) for *_, name, tensor in self._entries}

    def __enter__(self) -> None:
        for module, kind, entry, _, stand_in in self._entries:
            entries: dict[str, Any] = module._parameters if kind == "parameter" else module._buffers
            entries[entry] = stand_in

    def __exit__(self, *error: object) -> None:
        for module, (attributes, modules, parameters, buffers) in self._before:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            _refill(module._modules, modules)
            _refill(module._parameters, parameters)
            _refill(module._buffers, buffers)

    def replaced(self) -> dict[int, Tensor]:
        """Parameters and buffers that the model has given another tensor: external -> the tensor.

        Raises:
            TraceError: If the other tensor has another shape or type, or a parameter has become another object.
        """
        found: dict[int, Tensor] = {}
        for module, kind, entry, name, stand_in in self._entries:
            now = (module._parameters if kind == "parameter" else module._buffers).get(entry)
            if now is None or (kind == "parameter" and now is not stand_in):
                raise TraceError(
                    f"the model replaces {kind} {name!r} by {type(now).__name__}, which cannot be scheduled"
                )
            place, before = self._place(now, name), self._places[name]
            if (place.storage, place.layout) == (before.storage, before.layout):
                continue
            external = self._recorder.storages[before.storage].external
            if external is None or (now.shape, now.dtype) != (before.layout.shape, before.layout.dtype):
                raise TraceError(f"the model replaces {kind} {name!r} by a {place.layout}; it was a {before.layout}")
            found[external] = now
        return found

    def _place(self, tensor: Tensor, name: str) -> Ref:
        try:
            return self._recorder.ref(tensor)
        except KeyError:
            raise TraceError(f"the model replaces {name!r} by a tensor that no recorded operator has made") from None


def _snapshot(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]:
    return dict(module.__dict__), dict(module._modules), dict(module._parameters), dict(module._buffers)


def _refill(entries: dict[str, Any], before: dict[str, Any]) -> None:
    entries.clear()
    entries.update(before)


def _copied(tensor: Tensor) -> Tensor:
    """A copy that lies exactly as the original."""
    storage = tensor.detach().untyped_storage().clone()
    copy = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    copy.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())
    return copy.requires_grad_(tensor.requires_grad)

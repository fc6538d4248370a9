"""Trying operators for real while a step is traced without data.

What an operator's result looks like is foretold by a formula that torch keeps beside the kernel, and the two do not
always agree (on types of saved statistics, on strides). So each operator runs once for itself, on zeros: memory is
needed for one operator at a time, never for the step.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from poet.trace_layout import Layout

# Operators that check what they are given. Others are not tried: one that trusts an opaque workspace (a recurrent
# layer's backward pass) crashes on zeros.
_SAFE_TAGS = tuple(getattr(torch.Tag, name) for name in ("core", "pointwise", "reduction") if hasattr(torch.Tag, name))
_SAFE_NAMES = ("aten::native_batch_norm", "aten::native_layer_norm", "aten::native_group_norm")

Found = tuple[tuple[int | None, Layout, int], ...]
"""Position, layout and bytes of the storage of each tensor that an operator gave."""


@final
class Probe:
    """Runs operators on zeros, and remembers those that it has seen."""

    def __init__(self) -> None:
        self._seen: dict[Any, Found | None] = {}

    def __call__(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Found | None:
        """What an operator gives, for arguments that are stand-ins.

        Returns:
            None if it cannot be tried: it is not known to be safe, refuses zeros, memory is short, or a result lies in
            an argument's memory.
        """
        if not (any(tag in func.tags for tag in _SAFE_TAGS) or func._schema.name.startswith(_SAFE_NAMES)):
            return None
        key = func, _key(args), _key(list(kwargs.items()))
        try:
            known = key in self._seen
        except TypeError:
            return None  # an argument that cannot be a key
        if not known:
            self._seen[key] = _run(func, args, kwargs)
        return self._seen[key]


def _run(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Found | None:
    taken: set[int] = set()
    with _disable_current_modes(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            result = func(*(_zeros(a, taken) for a in args), **{k: _zeros(a, taken) for k, a in kwargs.items()})
        except Exception:
            return None
        single = not isinstance(result, list | tuple)
        tensors = [
            (None if single else k, t) for k, t in enumerate([result] if single else result) if isinstance(t, Tensor)
        ]
        if any(t.untyped_storage()._cdata in taken for _, t in tensors):
            return None
        return tuple((k, Layout.of(t), t.untyped_storage().nbytes()) for k, t in tensors)


def stand_in(layout: Layout, nbytes: int) -> Tensor:
    """A tensor that lies as told in a storage of `nbytes` bytes; inside a mode without data, one without data."""
    if layout.whole(nbytes):
        return torch.empty_strided(layout.shape, layout.stride, dtype=layout.dtype, device=layout.device)
    base = torch.empty(nbytes // layout.dtype.itemsize, dtype=layout.dtype, device=layout.device)
    return base.as_strided(layout.shape, layout.stride, layout.offset)


def _zeros(argument: Any, taken: set[int]) -> Any:
    if isinstance(argument, list | tuple):
        return [_zeros(a, taken) for a in argument]
    if not isinstance(argument, Tensor):
        return argument
    layout = Layout.of(argument)
    ends = [(n - 1) * s for n, s in zip(layout.shape, layout.stride, strict=True)]
    length = layout.offset + (1 + sum(ends) if layout.numel else 0)
    base = torch.zeros(length, dtype=layout.dtype, device=layout.device)
    taken.add(base.untyped_storage()._cdata)
    tensor = base.as_strided(layout.shape, layout.stride, layout.offset)
    tensor = tensor.conj() if layout.conj else tensor
    return torch._neg_view(tensor) if layout.neg else tensor


def _key(argument: Any) -> Any:
    if isinstance(argument, list | tuple):
        return tuple(_key(a) for a in argument)
    return Layout.of(argument) if isinstance(argument, Tensor) else (type(argument), argument)

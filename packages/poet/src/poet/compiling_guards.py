"""What a compiled step refuses, and what makes a call need a schedule of its own."""

from collections.abc import Hashable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils._pytree import tree_flatten

from poet.trace_call import TraceError

_WRAPPERS = ("torch.nn.parallel.", "torch.distributed.")
_HOOKS = {
    "_forward_hooks": "a forward hook",
    "_forward_pre_hooks": "a forward pre-hook",
    "_backward_hooks": "a backward hook",
    "_backward_pre_hooks": "a backward pre-hook",
}
_GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks",
                 "_global_backward_pre_hooks")  # fmt: skip
_PLAIN = (bool, int, float, str, type(None))


def refuse(model: nn.Module) -> None:
    """Refuse what runs code of its own beside the operators of the step: a schedule could not repeat it.

    Raises:
        TraceError: For hooks on modules and parameters (those of torch.nn.utils, which only compute, are traced),
            models wrapped for several devices, and modules compiled by torch.compile.
    """
    for name, module in model.named_modules():
        where = f"module {name!r}" if name else "the model"
        kind = type(module)
        if kind.__module__.startswith(_WRAPPERS):
            raise TraceError(
                f"{where} is a {kind.__name__}, which exchanges gradients on its own: compile the module inside it and "
                "reduce `.grad` after the step"
            )
        if hasattr(module, "_orig_mod"):
            raise TraceError(f"{where} is compiled by torch.compile: give the plain module, ._orig_mod")
        for entry, what in _HOOKS.items():
            for hook in getattr(module, entry, {}).values():
                if not _of_torch(hook):
                    raise TraceError(f"{where} has {what} ({_name(hook)}), which a schedule cannot call: remove it")
    for name, parameter in model.named_parameters():
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            raise TraceError(f"parameter {name!r} has a hook, which a schedule cannot call: remove it")
    for entry in _GLOBAL_HOOKS:
        if getattr(torch_module, entry, None):
            raise TraceError("there are hooks on all modules, which a schedule cannot call: remove them")


def signature(model: nn.Module, args: tuple[Any, ...]) -> Hashable:
    """What a schedule depends on: if two calls differ in nothing of it, they run the same operators.

    It holds the inputs' nesting, shapes, types, strides and devices; values that are not tensors; for every module its
    class and its attributes that are numbers, flags or texts (`training`, the rate of a dropout); for every parameter
    and buffer its type, shape, device, sharing and whether it requires grad; autocast and determinism.

    Args:
        model: The model.
        args: Inputs and targets.
    """
    leaves, structure = tree_flatten(args)
    return (
        repr(structure),
        tuple(_leaf(leaf) for leaf in leaves),
        tuple(_modules(model)),
        tuple(_switches()),
    )


def plain(tree: Any) -> Any:
    """Mappings as dicts, as tracing takes them."""
    return dict(tree) if hasattr(tree, "keys") and not isinstance(tree, dict) else tree


def _leaf(leaf: Any) -> Hashable:
    if isinstance(leaf, Tensor):
        return leaf.shape, leaf.dtype, leaf.stride() if leaf.layout is torch.strided else leaf.layout, leaf.device
    try:
        hash(leaf)
    except TypeError:
        raise TypeError(
            f"an input is a {type(leaf).__name__}: give tensors, and plain values such as numbers, flags or texts"
        ) from None
    return type(leaf), leaf


def _modules(model: nn.Module) -> Iterator[Hashable]:
    seen: dict[int, int] = {}
    for module in model.modules():
        yield type(module)
        yield tuple((k, v) for k, v in vars(module).items() if type(v) in _PLAIN or (type(v) is tuple and _flat(v)))
        for entries in (module._parameters, module._buffers):
            for name, tensor in entries.items():
                if tensor is None:
                    yield name
                    continue
                shared = seen.setdefault(id(tensor), len(seen))
                yield name, shared, tensor.shape, tensor.dtype, tensor.device, tensor.requires_grad


def _flat(values: tuple[Any, ...]) -> bool:
    return all(type(v) in _PLAIN for v in values)


def _switches() -> Iterator[Hashable]:
    yield torch.are_deterministic_algorithms_enabled()
    for kind in ("cpu", "cuda"):
        yield torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)
    yield torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()
    yield torch.backends.cuda.math_sdp_enabled()


def _of_torch(hook: Any) -> bool:
    return getattr(type(hook), "__module__", "").startswith("torch.nn.utils.")


def _name(hook: Any) -> str:
    return getattr(hook, "__qualname__", type(hook).__name__)

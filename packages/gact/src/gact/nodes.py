"""Being told of each autograd node, with the tensors that it saved, right after it was made.

torch 2.14 and later call a hook at each node's creation. Before that, a mode around torch's functions walks the new
part of the graph after each call. Either way the observer gets the node and the names of what it saved.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gact.rules import operation

FOREIGN = "gact.foreign"  # marks nodes whose saved tensors belong to others' hooks and must not be read
HAS_CREATION_HOOK = hasattr(torch.autograd.graph, "node_creation_hook")
_OWN = frozenset(vars(torch._C._functions))
_OF_LEAVES = (1 << 64) - 1  # number of all nodes that take gradients to leaves
_PARAMETER_VIEWS = frozenset((
    "T", "Transpose", "Permute", "View", "UnsafeView", "ReshapeAlias", "Expand", "ToCopy", "Slice", "Select",
    "Split", "SplitWithSizes", "Alias", "AsStrided", "Unsqueeze", "Squeeze", "Clone", "Narrow", "Chunk", "Unbind",
    "NumpyT", "MatrixH", "Detach",
))  # fmt: skip


def watch(observe: Callable[[Any], None], *, walk: bool | None = None) -> AbstractContextManager[Any]:
    """Return a context in which `observe` is called with every new autograd node of this thread.

    Args:
        observe: Must not build graph.
        walk: True to walk the graph after each function even where torch has the hook.
    """
    if HAS_CREATION_HOOK and not walk:
        return torch.autograd.graph.node_creation_hook(observe)
    return _Walk(observe)


class _Walk(TorchFunctionMode):
    """After each function of torch, shows the nodes that were not there before.

    Nodes of custom functions, which do not pass through here, are found behind the next function's result. Nodes from
    before the walk's beginning are known by their smaller numbers; they may have been freed, and are left alone.
    """

    def __init__(self, observe: Callable[[Any], None]) -> None:
        super().__init__()
        self._observe = observe
        self._first = torch.autograd._get_sequence_nr()
        self._seen: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and tensor.grad_fn is not None:
                self._show(tensor.grad_fn)
        return result

    def _show(self, newest: Any) -> None:
        stack, found = [newest], []
        while stack:
            node = stack.pop()
            number = node._sequence_nr()
            if number in self._seen or not self._first <= number < _OF_LEAVES:
                continue
            self._seen.add(number)
            found.append((number, node))
            stack.extend(parent for parent, _ in node.next_functions if parent is not None)
        for _, node in sorted(found, key=itemgetter(0)):  # as they were made
            self._observe(node)


def saved_names(node: Any) -> tuple[str, ...]:
    """Names of the tensors that a node may have saved, in the order in which they were packed.

    A node of a custom function has only ``tensors``.
    """
    if is_custom(node):
        return ("tensors",)
    return _saved_names(type(node))


@cache
def _saved_names(node_type: type) -> tuple[str, ...]:
    return tuple(sorted(name.removeprefix("_raw_saved_") for name in dir(node_type) if name.startswith("_raw_saved_")))


def read_saved(node: Any, name: str) -> Any:
    """Unpack one saved tensor (or list of tensors) of a node, through the hooks that packed it."""
    return node.saved_tensors if name == "tensors" else getattr(node, f"_saved_{name}")


def variant(node: Any) -> str:
    """Which of an operation's formulas a node will use, where the rules tell them apart; "" elsewhere."""
    choose = _VARIANTS.get(operation(node.name()))
    return "" if choose is None else choose(node)


def _power(node: Any) -> str:
    if node.name() != "PowBackward0":  # the exponent is a tensor
        return ""
    exponent = node._saved_exponent
    if not isinstance(exponent, int | float) or not float(exponent).is_integer() or exponent < 1:
        return ""
    return "2" if exponent <= 2 else "power"


def _order(name: str) -> Callable[[Any], str]:
    def read(node: Any) -> str:
        order = getattr(node, name, None)
        return f"{order:g}" if isinstance(order, int | float) else ""

    return read


def _elu(node: Any) -> str:
    """Exponential linear units with other slopes on both sides of zero (SELU) jump there."""
    return "" if node._saved_alpha * node._saved_input_scale == 1 else "jump"


_VARIANTS: dict[str, Callable[[Any], str]] = {
    "Pow": _power,
    "LinalgVectorNorm": _order("_saved_ord"),
    "Norm": _order("_saved_p"),
    "ScatterReduce": lambda node: node._saved_reduce,
    "IndexReduce": lambda node: node._saved_reduce,
    "Elu": _elu,
    "LogSigmoid": lambda node: "buffer" if node._saved_buffer.numel() else "",  # then only the sign is asked for
    "Softplus": lambda node: "" if node._saved_threshold >= 10 else "jump",
}


def is_custom(node: Any) -> bool:
    """Whether the node belongs to a ``torch.autograd.Function`` written in Python."""
    return isinstance(node, torch.autograd.function.BackwardCFunction)


def is_known(node: Any) -> bool:
    """Whether a node's saved tensors can be asked for: it is torch's own, or of a function written in Python."""
    return is_custom(node) or type(node).__name__ in _OWN


def views_parameter(node: Any) -> bool:
    """Whether a tensor is a leaf's view, transpose or copy in another dtype (autocast)."""
    for _ in range(8):
        if node is None:
            return False
        if operation(node.name()) not in _PARAMETER_VIEWS:
            return "AccumulateGrad" in node.name()
        parents = [parent for parent, _ in node.next_functions if parent is not None]
        if len(parents) != 1:
            return False
        node = parents[0]
    return False


def packs_with(pack: Callable[[Tensor], Any]) -> bool:
    """Whether what a graph saves on this thread goes to this pack hook now.

    Not so inside of a region that torch checkpoints: its inputs go to the hook around it, without a node of the graph
    that would tell what they are, and its own hook then takes what the nodes inside save.

    Args:
        pack: As it was given to `torch.autograd.graph.saved_tensors_hooks`.

    Returns:
        True if it is the innermost hook.

    Example:
        >>> with torch.autograd.graph.saved_tensors_hooks(torch.clone, torch.clone):
        ...     packs_with(torch.clone), packs_with(torch.sin)
        (True, False)
    """
    innermost = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return innermost is not None and innermost[0] == pack

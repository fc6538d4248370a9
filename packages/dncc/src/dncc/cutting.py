"""A model cut in two at a named part: what runs before it and what runs from it on, by tracing with torch.fx."""

from collections.abc import Callable
from typing import Any, final

from torch import fx, nn

__all__ = ["CutError", "cut_at"]


class CutError(ValueError):
    """A model cannot be cut at the place asked for."""


@final
class _OuterTracer(fx.Tracer):
    """Follows the forward methods of the model and of what contains the cut; every other module stays whole."""

    def __init__(self, at: str) -> None:
        super().__init__()
        self._opened = {at[:i] for i, letter in enumerate(at) if letter == "."}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a call of this module becomes one node."""
        return module_qualified_name not in self._opened

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """One input only: arguments with defaults (masks and the like) keep them."""

        def of_one_input(root: nn.Module, x: Any) -> Any:
            return root_fn(root, x)

        return super().create_args_for_root(of_one_input, is_module, concrete_args)


def cut_at(model: nn.Module, at: str) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Two modules f, g with g(f(x)) = model(x): g starts with the part named `at`.

    Both use the given model's own parts, without copying them. Only the forward methods of the model itself and of
    the parts around the cut are traced; all others may contain anything.

    Args:
        model: Takes one tensor.
        at: Path of a part, as `named_modules` gives it; it must run exactly once.

    Returns:
        What runs before the part, and the rest.

    Raises:
        CutError: If there is no such part, it does not run exactly once, the model cannot be traced, behaves
            differently in training, or more than one value crosses the cut.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
        >>> before, after = cut_at(model, "1")
        >>> x = torch.randn(4, 3)
        >>> before(x).shape, bool((after(before(x)) == model(x)).all())
        (torch.Size([4, 5]), True)
    """
    if at not in dict(model.named_modules()) or not at:
        children = ", ".join(name for name, _ in model.named_children())
        raise CutError(f"{type(model).__name__} has no part {at!r}; give a path such as one of: {children or 'none'}")
    graph = _trace(model, at)
    nodes = list(graph.nodes)
    calls = [i for i, node in enumerate(nodes) if node.op == "call_module" and node.target == at]
    if len(calls) != 1:
        raise CutError(f"part {at!r} runs {len(calls)} times in a forward pass; cut at one that runs exactly once")
    return _split(model, at, nodes, calls[0])


def _trace(model: nn.Module, at: str) -> fx.Graph:
    modes = {module: module.training for module in model.modules()}
    advice = "build the two halves yourself and give them to Branching(trunk, branch, members)"
    graphs = []
    try:
        for training in (True, False):
            model.train(training)
            graphs.append(_OuterTracer(at).trace(model))
    except Exception as error:  # tracing runs the model's own code, which may raise anything
        message = f"{type(model).__name__} cannot be traced by torch.fx ({type(error).__name__}: {error}); {advice}"
        raise CutError(message) from error
    finally:
        for module, training in modes.items():
            module.training = training
    if str(graphs[0]) != str(graphs[1]):
        # a mode read while tracing would be frozen into the halves
        raise CutError(f"{type(model).__name__}.forward runs other operations in training than in evaluation; {advice}")
    return graphs[0]


def _split(model: nn.Module, at: str, nodes: list[fx.Node], index: int) -> tuple[fx.GraphModule, fx.GraphModule]:
    late = set(nodes[index:])
    # getting a parameter or module is no computation: each half gets its own
    crossing = [n for n in nodes[:index] if n.op != "get_attr" and any(user in late for user in n.users)]
    if len(crossing) != 1:
        names = ", ".join(node.name for node in crossing)
        raise CutError(f"{len(crossing)} values cross a cut at {at!r} ({names}); cut where exactly one does")
    before, after = fx.Graph(), fx.Graph()
    copied: dict[fx.Node, Any] = {}
    for node in nodes[:index]:
        if node.op != "placeholder" or node.users:
            copied[node] = before.node_copy(node, copied.__getitem__)
    before.output(copied[crossing[0]])
    copied = {crossing[0]: after.placeholder("x")}
    shared = [n for n in nodes[:index] if n.op == "get_attr" and any(user in late for user in n.users)]
    copied |= {node: after.node_copy(node) for node in shared}
    for node in nodes[index:]:
        copied[node] = after.node_copy(node, copied.__getitem__)
    halves = fx.GraphModule(model, before, "Trunk"), fx.GraphModule(model, after, "Branch")
    for half in halves:
        half.train(model.training)
    return halves

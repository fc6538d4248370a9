"""Updating a parameter as soon as its gradient is there, by the user's optimizer."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from common_core.memory import storage_bytes
from poet.compiling_memory import allocated_peak
from poet.events import Event, computed
from poet.program import Program

Function = Callable[[nn.Parameter, Tensor], None]


@final
@dataclass(frozen=True)
class Appetite:
    """What the updates need.

    Attributes:
        state: Bytes of the optimizer's state.
        scratch: Bytes that the update of each parameter needs while it runs, by name.
    """

    state: int
    scratch: dict[str, int]


@final
class ByOptimizer:
    """Steps an optimizer for one parameter at a time; its state and its groups stay where they are.

    So learning-rate schedulers and `state_dict` work as ever. An update must depend on its own parameter alone.

    Args:
        optimizer: The optimizer; parameters that it does not have are not updated.

    Raises:
        TypeError: If it is not an optimizer.
        ValueError: If it has hooks, or its step needs more than gradients.

    Example:
        >>> parameter = nn.Parameter(torch.ones(2))
        >>> update = ByOptimizer(torch.optim.SGD([parameter], lr=0.5))
        >>> update("weight", parameter, torch.ones(2))
        >>> parameter.tolist(), parameter.grad
        ([0.5, 0.5], None)
    """

    def __init__(self, optimizer: Optimizer) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        if isinstance(optimizer, torch.optim.LBFGS):
            raise ValueError("LBFGS looks at all gradients at once: use gradients='keep' and step it yourself")
        if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
            raise ValueError("the optimizer has hooks, which would run for every parameter: remove them")
        self.optimizer = optimizer

    def __call__(self, _name: str, parameter: nn.Parameter, gradient: Tensor) -> None:
        """Update one parameter."""
        group = self._group(parameter)
        if group is None:
            return
        groups = self.optimizer.param_groups
        parameter.grad = gradient
        try:
            self.optimizer.param_groups = [{**group, "params": [parameter]}]
            self.optimizer.step()
        finally:
            self.optimizer.param_groups = groups
            parameter.grad = None

    def appetite(self, model: nn.Module) -> Appetite:
        """What the updates of a model need, found by updating a stand-in of each kind of parameter.

        Raises:
            ValueError: If an update changes its group: it then does not depend on its own parameter alone.
        """
        known: dict[Any, tuple[int, int]] = {}
        state, scratch = 0, {}
        for name, parameter in model.named_parameters():
            group = self._group(parameter)
            if not parameter.requires_grad or group is None:
                continue
            key = parameter.shape, parameter.stride(), parameter.dtype, parameter.device, id(group)
            if key not in known:
                known[key] = self._try(parameter, group)
            state += known[key][0]
            scratch[name] = known[key][1]
        return Appetite(state, scratch)

    def _try(self, parameter: nn.Parameter, group: dict[str, Any]) -> tuple[int, int]:
        """Bytes of state of a parameter, and of its update's temporaries."""
        stand_in = nn.Parameter(torch.zeros_like(parameter))
        stand_in.grad = torch.zeros_like(stand_in)
        kind = type(self.optimizer)
        other = kind.__new__(kind)
        other.__dict__.update(self.optimizer.__dict__)
        own = {**group, "params": [stand_in]}
        other.state, other.param_groups = defaultdict(dict), [own]
        if parameter in self.optimizer.state:  # some make it before the first step
            other.state[stand_in] = {
                k: v.clone() if isinstance(v, Tensor) else v for k, v in self.optimizer.state[parameter].items()
            }
        step = kind.step  # a scheduler may have put another on the instance
        step(other)
        changed = [k for k, v in own.items() if k != "params" and v is not group[k] and v != group[k]]
        if changed:
            raise ValueError(
                f"a step of {kind.__name__} changes {changed[0]!r} of its group, so that updates depend on one "
                "another: use gradients='keep' and step it yourself"
            )
        scratch = allocated_peak(lambda: step(other), stand_in.device)
        return storage_bytes([v for v in other.state[stand_in].values() if isinstance(v, Tensor)]), scratch

    def _group(self, parameter: nn.Parameter) -> dict[str, Any] | None:
        for group in self.optimizer.param_groups:
            if any(p is parameter for p in group["params"]):
                return group
        return None


def by_function(function: Function) -> Callable[[str, nn.Parameter, Tensor], None]:
    """Updates by a function of a parameter and its gradient."""

    def update(_name: str, parameter: nn.Parameter, gradient: Tensor) -> None:
        function(parameter, gradient)

    return update


def charged(program: Program, appetite: Appetite) -> Program:
    """The program with the optimizer's bytes in its graph."""
    graph = program.graph
    ops = list(graph.ops)
    for gradient in program.gradients:
        i = gradient.consumer
        if i is not None:
            ops[i] = replace(ops[i], workspace=max(ops[i].workspace, appetite.scratch.get(gradient.name, 0)))
    static = replace(graph.static, optimizer=appetite.state)
    return program.with_graph(replace(graph, ops=tuple(ops), static=static))


def stale(program: Program, events: Iterable[Event]) -> frozenset[int]:
    """Operations that a schedule executes again after the update of a parameter that they read."""
    place = {e.name: k for k, e in enumerate(program.externals) if e.kind == "parameter"}
    updates: dict[int, set[int]] = {}
    for gradient in program.gradients:
        if gradient.consumer is not None:
            updates.setdefault(gradient.consumer, set()).add(place[gradient.name])
    updated: set[int] = set()
    done: set[int] = set()
    found: set[int] = set()
    for i in computed(events):
        if any(e in updated for _, e in program.codes[i].externals):
            found.add(i)
        if i not in done:
            done.add(i)
            updated |= updates.get(i, set())
    return frozenset(found)

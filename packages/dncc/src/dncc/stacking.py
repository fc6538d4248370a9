"""Modules of one architecture as one module: parameters stacked along a first axis, run at once or one after another.

The stacked tensors live where the ordinary ones did, in a copy of the architecture, so that optimisers, `state_dict`,
`.to()`, `deepcopy` and pickling work as for any module; a key's tensor only has one axis more.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Literal, final, get_args

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from dncc.surgery import refuse_lazy

__all__ = ["Execution", "StackedModule", "architecture_difference", "checked_execution"]

Execution = Literal["auto", "vmap", "loop"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_RECURRENT = (nn.RNNBase, nn.LSTMCell)


def checked_execution(execution: str) -> Execution:
    """`execution` as it is.

    Args:
        execution: How members are run.

    Returns:
        The same word.

    Raises:
        ValueError: If it is not "auto", "vmap" or "loop".
    """
    if execution not in get_args(Execution):
        raise ValueError(f"execution is {execution!r}; it must be 'auto', 'vmap' or 'loop'")
    return execution  # type: ignore[return-value]


def architecture_difference(modules: Sequence[nn.Module]) -> str | None:
    """Why modules cannot be stacked, or None if they can.

    Compared are the types, what the modules print of themselves (widths, strides, dropout), the names, shapes and
    types of parameters and buffers, and which parameters are trained.

    Args:
        modules: At least one.

    Returns:
        A reason that names the first member that differs from member 0.

    Example:
        >>> architecture_difference([nn.Linear(2, 3), nn.Linear(2, 3)]) is None
        True
        >>> architecture_difference([nn.Linear(2, 3), nn.Linear(2, 4)])
        "member 1 differs from member 0: parameter 'weight' is (4, 2) torch.float32, not (3, 2) torch.float32"
    """
    first = modules[0]
    for index, module in enumerate(modules[1:], 1):
        reason = _difference(first, module)
        if reason:
            return f"member {index} differs from member 0: {reason}"
    return None


def _difference(a: nn.Module, b: nn.Module) -> str | None:
    if isinstance(a, fx.GraphModule) and isinstance(b, fx.GraphModule):  # each has a class of its own
        if a.code != b.code:
            return "its traced operations are others"
    elif type(a) is not type(b):
        return f"it is a {type(b).__name__}, not a {type(a).__name__}"
    for kind in ("parameter", "buffer"):
        ours, theirs = _named(a, kind), _named(b, kind)
        if list(ours) != list(theirs):
            return f"its {kind}s are named differently ({sorted(set(ours) ^ set(theirs))[:4]})"
        for name, tensor in ours.items():
            other = theirs[name]
            if (tensor.shape, tensor.dtype) != (other.shape, other.dtype):
                return (f"{kind} {name!r} is {tuple(other.shape)} {other.dtype}, "
                        f"not {tuple(tensor.shape)} {tensor.dtype}")  # fmt: skip
            if tensor.requires_grad != other.requires_grad:
                return f"{kind} {name!r} is trained in one and not in the other"
    if repr(a) != repr(b):
        lines = zip(repr(a).splitlines(), repr(b).splitlines(), strict=False)
        found = next(((x.strip(), y.strip()) for x, y in lines if x != y), ("", ""))
        return f"its layers are set differently ({found[1]}, not {found[0]})"
    return None


def _named(module: nn.Module, kind: str) -> dict[str, Tensor]:
    """Parameters or buffers under every name that they have."""
    found = module.named_parameters if kind == "parameter" else module.named_buffers
    return dict(found(remove_duplicate=False))


@final
class StackedModule(nn.Module):
    """M modules of one architecture, every parameter and buffer stacked to (members, ...).

    `forward(x)` gives every member the same input and stacks the outputs. Batch-norm statistics are each member's own,
    dropout draws different masks for different members.

    "vmap" runs members at once: linear layers become batched products, convolutions grouped ones. "loop" runs them one
    after another. "auto" takes the loop for architectures with convolutions and vmap for others: on a CPU the loop was
    faster for ResNets, and vmap no slower for perceptrons (`benchmarks/bench_step.py` compares them). Where vmap cannot
    be used, members run in the loop whatever was asked for: under autocast (it does not reach all layers inside of
    vmap), with batch norm of momentum=None (it reads a counter), with recurrent layers (vmap has no rules for them),
    and while exporting (the batch size would be fixed).

    Buffers must be updated in place, as torch's layers do; one that a module assigns anew stays as it was.

    Args:
        modules: Of one architecture; copied, and left as they are.
        execution: "auto", "vmap" or "loop".
        chunk: With vmap, how many members are run at once, which bounds memory; all if None.

    Raises:
        ValueError: If the modules differ in architecture, have lazy parameters, or an option is out of range.
    """

    def __init__(
        self, modules: Sequence[nn.Module], *, execution: Execution = "auto", chunk: int | None = None
    ) -> None:
        super().__init__()
        if not modules:
            raise ValueError("no modules were given; an ensemble has at least 1 member")
        for module in modules:
            refuse_lazy(module, "a member")
        if (reason := architecture_difference(modules)) is not None:
            raise ValueError(f"members cannot be stacked: {reason}")
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk is {chunk}; it must be at least 1 member, or None for all at once")
        self.execution = checked_execution(execution)
        self.chunk = chunk
        self.num_members = len(modules)
        self.template = _stack(modules)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of every member.

        Args:
            x: One input, given to all members.

        Returns:
            Shape (members, ...).
        """
        parameters: dict[str, Tensor] = dict(self.template.named_parameters())
        buffers = dict(self.template.named_buffers())
        if self.uses_vmap():
            # buffers are passed stacked, so that batch norm updates each member's statistics in place
            one = self._one(x, _works_in_place(self.template))
            run = torch.vmap(one, in_dims=(0, 0), randomness="different", chunk_size=self.chunk)
            return run(parameters, buffers)
        # unbind once: its backward is one stack, where M selections would each fill a tensor of all members
        split_p = {name: tensor.unbind(0) for name, tensor in parameters.items()}
        split_b = {name: tensor.unbind(0) for name, tensor in buffers.items()}
        outputs = []
        copies = _works_in_place(self.template)
        for m in range(self.num_members):
            state = ({k: v[m] for k, v in split_p.items()}, {k: v[m] for k, v in split_b.items()})
            given = x.clone() if copies else x
            outputs.append(functional_call(self.template, state, (given,)))
            copies = copies and _written(given)  # most modules that work in place do so further up
        return torch.stack(outputs)

    def _one(self, x: Tensor, copies: bool) -> Callable[[dict[str, Tensor], dict[str, Tensor]], Tensor]:
        def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
            return functional_call(self.template, (parameters, buffers), (x.clone() if copies else x,))

        return one

    def uses_vmap(self) -> bool:
        """Whether a forward pass here and now would run members at once."""
        modules = list(self.template.modules())
        if torch.compiler.is_exporting() or _autocast(self.template) or any(_needs_loop(m) for m in modules):
            return False
        if self.execution != "auto":
            return self.execution == "vmap"
        return not any(isinstance(m, _CONVOLUTIONS) for m in modules)

    def unstack(self) -> list[nn.Module]:
        """The members as ordinary modules: copies, with the current parameters, buffers and mode.

        Returns:
            One module a member.
        """
        members = []
        for m in range(self.num_members):
            memo: dict[int, object] = {}
            for tensor in (*self.template.parameters(), *self.template.buffers()):
                memo[id(tensor)] = _like(tensor, tensor.detach()[m].clone())
            members.append(copy.deepcopy(self.template, memo))
        return members

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"members={self.num_members}, execution={self.execution!r}, chunk={self.chunk}"


def _stack(modules: Sequence[nn.Module]) -> nn.Module:
    """The first module's architecture with stacked tensors; tensors that it uses twice stay one."""
    memo: dict[int, object] = {}
    tensors = [_named(module, "parameter") | _named(module, "buffer") for module in modules]
    for name, tensor in tensors[0].items():
        if id(tensor) not in memo:
            memo[id(tensor)] = _like(tensor, torch.stack([found[name].detach() for found in tensors]))
    template = copy.deepcopy(modules[0], memo)
    template.zero_grad(set_to_none=True)
    return template


def _like(original: Tensor, values: Tensor) -> Tensor:
    return nn.Parameter(values, original.requires_grad) if isinstance(original, nn.Parameter) else values


def _autocast(module: nn.Module) -> bool:
    tensor = next((t for t in module.parameters()), None)
    return torch.is_autocast_enabled("cpu" if tensor is None else tensor.device.type)


def _needs_loop(module: nn.Module) -> bool:
    averages_all = isinstance(module, _BATCH_NORMS) and module.momentum is None and module.track_running_stats
    return averages_all or isinstance(module, _RECURRENT)


def _works_in_place(module: nn.Module) -> bool:
    """Whether a member might overwrite the input that all share."""
    return any(getattr(part, "inplace", False) for part in module.modules())


def _written(fresh: Tensor) -> bool:
    """Whether a fresh copy was written to, or may have been."""
    return torch.compiler.is_compiling() or fresh.is_inference() or fresh._version > 0

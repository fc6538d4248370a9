"""Tracing: from a model, a loss and a sample to a program whose graph the schedulers see.

The step runs once on stand-ins without data, forward and backward, and every operator below autograd is recorded. So
the program consists of the operators that eager execution runs, in its order; that is why its results are equal to
the bit.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from math import prod
from typing import Any, final

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_flatten, tree_unflatten

from common_core.memory import storage_bytes
from poet.graph import Static
from poet.measure import measure as measure_program
from poet.program import External, Gradient, Gradients, Mutation, Program, flags
from poet.trace_call import Origin, Ref, TraceError
from poet.trace_code import LayoutError
from poet.trace_layout import Layout
from poet.trace_lower import RNG_STATE, Lowered, lower
from poet.trace_modules import ModulePaths
from poet.trace_record import Recorder, data_error
from poet.trace_state import SwappedState

GRADIENTS = ("keep", "static", "apply")


def trace(
    model: nn.Module,
    loss_fn: Callable[..., Tensor] | None,
    sample: Any,
    *,
    gradients: Gradients = "keep",
    optimizer_bytes_per_parameter: float = 0.0,
    measure: bool = True,
    repeats: int = 3,
    fake: bool | None = None,
) -> Program:
    """Trace a training step: `loss = loss_fn(model(*inputs), *targets)` and its backward pass.

    Args:
        model: Any module whose operators do not depend on the data.
        loss_fn: Takes the model's output and the targets; None if the model itself returns the loss.
        sample: `(inputs, targets)`, each a tensor, a tuple of arguments, or a dict (of named arguments, for inputs);
            with `loss_fn=None` the inputs alone. Shapes, types and strides are fixed by it; other arguments are
            baked in. Gradients of inputs are not computed.
        gradients: What happens to a parameter's gradient: `"keep"` it to the end of the step; `"static"`, add it to
            `.grad`, which is always there, as soon as it is produced; `"apply"`, hand it to a function that updates
            the parameter as soon as nothing in the step needs the parameter any more.
        optimizer_bytes_per_parameter: State of the optimizer, in bytes per number; 8 for Adam in float32.
        measure: Whether to run the step `repeats` times with the sample for real bytes, durations and workspaces.
        repeats: How many steps are timed.
        fake: Whether to trace on stand-ins without data (each operator is tried by itself, on zeros, where that is
            safe). Otherwise the step runs for real once, on copies of parameters and buffers: for operators that have
            no stand-in, or a wrong one; numbers that leave torch's operators then (`.numpy()`, `.tolist()`) go
            unnoticed and are baked in. None: for real only if measuring shows that a stand-in was wrong.

    Returns:
        The program; `.graph` is the graph.

    Raises:
        TraceError: If the model looks at the data, uses sparse tensors or tensor subclasses, changes its inputs, or
            its loss is not one number that depends on a parameter.
        ValueError: If an argument is out of range.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
        >>> sample = torch.ones(2, 4), torch.zeros(2, 1)
        >>> program = trace(model, torch.nn.functional.mse_loss, sample, measure=False)
        >>> [op.name for op in program.graph.ops][:3]
        ['0.addmm', '1.tanh', '2.addmm']
    """
    _check(model, loss_fn, sample, gradients)
    args = (_plain(sample[0]), _plain(sample[1])) if loss_fn is not None else (_plain(sample),)
    step = _Step(model, loss_fn, args, gradients, float(optimizer_bytes_per_parameter))
    program = _traced(step, fake is not False)
    if not measure:
        return program
    try:
        return program.with_graph(measure_program(program, *args, repeats=repeats))
    except LayoutError:
        if fake:
            raise
        program = _traced(step, False)
        return program.with_graph(measure_program(program, *args, repeats=repeats))


@final
@dataclass(frozen=True)
class _Step:
    """What is to be traced."""

    model: nn.Module
    loss_fn: Callable[..., Any] | None
    args: tuple[Any, ...]
    gradients: Gradients
    optimizer: float


def _traced(step: _Step, fake: bool) -> Program:
    with ExitStack() as stack:
        if fake:
            return _Run(step, stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))).trace()
        devices = {p.device for p in step.model.parameters() if p.device.type == "cuda"}
        stack.enter_context(torch.random.fork_rng(devices=sorted(devices, key=str)))
        return _Run(step, None).trace()


def _check(model: nn.Module, loss_fn: Any, sample: Any, gradients: str) -> None:
    if gradients not in GRADIENTS:
        raise ValueError(f"gradients must be one of {', '.join(GRADIENTS)}, got {gradients!r}")
    if loss_fn is not None and not (isinstance(sample, tuple | list) and len(sample) == 2):
        raise ValueError(
            f"sample must be a pair (inputs, targets), got {type(sample).__name__}; with loss_fn=None give the inputs"
        )
    if hasattr(model, "_orig_mod"):
        raise TraceError("the model is compiled by torch.compile: give the plain model, model._orig_mod")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            raise TraceError(f"{name!r} is not initialised yet: run the model once before tracing it")
        if tensor._backward_hooks or getattr(tensor, "_post_accumulate_grad_hooks", None):
            raise TraceError(f"{name!r} has hooks on its gradient, which a schedule cannot run: remove them")
        if tensor.device.type == "meta":
            raise TraceError(f"{name!r} lies on the meta device and has no data: materialise the model first")


def _plain(tree: Any) -> Any:
    """Mappings as dicts, so that their entries are seen."""
    return dict(tree) if isinstance(tree, Mapping) else tree


@final
@dataclass
class _Run:
    """One traced step."""

    step: _Step
    mode: FakeTensorMode | None

    def __post_init__(self) -> None:
        self.model, self.loss_fn = self.step.model, self.step.loss_fn
        convert = None if self.mode is None else self.mode.from_tensor
        self.recorder = Recorder(convert)
        self.leaves, self.structure = tree_flatten(self.step.args)
        self.state = SwappedState(self.model, self.recorder, convert)
        self.inputs = self._adopt_inputs()

    def trace(self) -> Program:
        """Run and record the step."""
        recorder, names = self.recorder, list(self.state.parameters)
        parameters = list(self.state.parameters.values())
        with self.state, recorder, _explained(recorder), ModulePaths(recorder, self.model):
            loss = self._loss()
            recorder.phase = "backward"
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
            with torch.no_grad():
                taken: set[int] = set()
                loss_ref = self._own(loss.detach(), taken)
                pairs = zip(found, parameters, strict=True)
                refs = [None if g is None else self._own(g, taken, p) for g, p in pairs]
                replaced = {e: self._own(t.detach(), taken) for e, t in self.state.replaced().items()}
        return self._program(loss_ref, dict(zip(names, refs, strict=True)), replaced)

    def _loss(self) -> Tensor:
        tree = tree_unflatten(self.inputs, self.structure)
        positional, named = _arguments(tree[0])
        output = self.model(*positional, **named)
        self.recorder.phase = "loss"
        if self.loss_fn is not None:
            output = self.loss_fn(output, *_targets(tree[1]))
        elif not isinstance(output, Tensor):
            output = output["loss"] if isinstance(output, Mapping) else getattr(output, "loss", None)
        if not isinstance(output, Tensor) or output.numel() != 1:
            what = f"shape {list(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
            raise TraceError(f"the loss must be one number, got {what}: take its mean or sum")
        if not output.requires_grad:
            raise TraceError("the loss does not depend on any parameter that requires grad: nothing can be trained")
        return output

    def _own(self, tensor: Tensor, taken: set[int], parameter: Tensor | None = None) -> Ref:
        """A tensor that the step returns, alone on its storage; gradients lie as autograd would leave them."""
        ref = self.recorder.ref(tensor)
        storage = self.recorder.storages[ref.storage]
        alone = storage.external is None and ref.storage not in taken and storage.nbytes == ref.layout.nbytes
        if not alone or not _lies_like(tensor, parameter):
            like = parameter if parameter is not None and Layout.of(parameter).dense else None
            stride = like.stride() if like is not None else _contiguous(tensor.shape)
            copy = torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype, device=tensor.device)
            ref = self.recorder.ref(copy.copy_(tensor))
        taken.add(ref.storage)
        return ref

    def _adopt_inputs(self) -> list[Any]:
        inputs, count = [], 0
        for leaf in self.leaves:
            if isinstance(leaf, Tensor):
                if leaf.layout is not torch.strided or type(leaf) not in (Tensor, nn.Parameter):
                    kind = type(leaf).__name__ if type(leaf) is not Tensor else str(leaf.layout)
                    raise TraceError(f"input {count} is a {kind}: only plain dense tensors can be traced")
                stand_in = torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device=leaf.device)
                if self.mode is None:
                    stand_in = leaf.detach().as_strided(leaf.shape, leaf.stride())
                self.recorder.adopt(stand_in, Origin("input", str(count), Layout.of(stand_in)))
                leaf, count = stand_in, count + 1
            inputs.append(leaf)
        return inputs

    def _program(self, loss: Ref, gradients: Mapping[str, Ref | None], replaced: Mapping[int, Ref]) -> Program:
        recorder = self.recorder
        changed = self._changed()
        outputs = [loss, *(g for g in gradients.values() if g is not None), *replaced.values()]
        versions = [(ref.storage, ref.version) for ref in outputs]
        versions += [version for e, version in changed.items() if e not in replaced]
        lowered = lower(recorder, versions)
        whole = [Mutation(e, lowered.whole(version), True) for e, version in changed.items() if e not in replaced]
        mutations = (*whole, *(Mutation(e, lowered.output(ref, recorder), False) for e, ref in replaced.items()))
        if self.step.gradients == "apply":
            _pin(lowered, recorder)
        found = tuple(_gradient(n, ref, lowered, recorder, self.step.gradients) for n, ref in gradients.items())
        loss_output = lowered.output(loss, recorder)
        keep = {mutation.output.value for mutation in mutations} | {loss_output.value}
        if self.step.gradients == "keep":
            keep |= {g.output.value for g in found if g.output is not None}
        graph = lowered.graph(
            type(self.model).__name__,
            (v for v in keep if v is not None),
            self._static(lowered),
            ("traced; static buffers include the states of random generators that recomputation may need",),
        )
        tensors = [leaf for leaf in self.inputs if isinstance(leaf, Tensor)]
        return Program(
            graph=graph,
            model=self.model,
            codes=tuple(lowered.codes),
            bases=tuple(lowered.bases),
            externals=tuple(External(o.kind, o.name, o.layout, o.tensor) for o in recorder.origins),
            inputs=tuple(Layout.of(t) for t in tensors),
            structure=self.structure,
            plain={k: leaf for k, leaf in enumerate(self.leaves) if not isinstance(leaf, Tensor)},
            loss=loss_output,
            gradients=found,
            mutations=mutations,
            mode=self.step.gradients,
            flags=flags(self.model.modules()),
        )

    def _changed(self) -> dict[int, tuple[int, int]]:
        """What was there before and has been written: external -> its last version."""
        changed = {}
        for index, storage in enumerate(self.recorder.storages):
            if storage.external is None or storage.version == 0:
                continue
            origin = self.recorder.origins[storage.external]
            if origin.kind == "input":
                raise TraceError(
                    f"the model writes input {origin.name} in place (an in-place first layer?): give it a copy, or use "
                    "the out-of-place operator"
                )
            if origin.kind != "literal":
                changed[storage.external] = (index, storage.version)
        return changed

    def _static(self, lowered: Lowered) -> Static:
        parameters = list(self.model.parameters())
        drawn = [device for code in lowered.codes for device in code.random]
        drawn += 2 * list(dict.fromkeys(drawn))  # the state before the step, and the present one during a repetition
        states = sum(RNG_STATE.get(device.type, 0) for device in drawn)
        constants = [o.tensor for o in self.recorder.origins if o.tensor is not None]
        trained = [p for p in parameters if p.requires_grad]
        return Static(
            parameters=storage_bytes(parameters),
            gradients=sum(p.numel() * p.element_size() for p in trained) if self.step.gradients == "static" else 0,
            optimizer=int(self.step.optimizer * sum(p.numel() for p in trained)),
            buffers=storage_bytes([*self.model.buffers(), *constants]) + states,
            inputs=storage_bytes([leaf for leaf in self.leaves if isinstance(leaf, Tensor)]),
        )


def _pin(lowered: Lowered, recorder: Recorder) -> None:
    """Backward operations that read a parameter may not run again: it may have been updated by then."""
    parameters = {e for e, origin in enumerate(recorder.origins) if origin.kind == "parameter"}
    for i, op in enumerate(lowered.ops):
        if op.phase == "backward" and lowered.reads[i] & parameters:
            lowered.ops[i] = replace(op, recomputable=False)


def _gradient(name: str, ref: Ref | None, lowered: Lowered, recorder: Recorder, mode: Gradients) -> Gradient:
    """Where a gradient comes from; unless it is kept, also where it is used up."""
    if ref is None:
        return Gradient(name, None)
    output = lowered.output(ref, recorder)
    if mode == "keep" or output.value is None:
        return Gradient(name, output)
    consumer = next(i for i, op in enumerate(lowered.ops) if output.value in op.outputs)
    if mode == "apply":
        external = next(e for e, o in enumerate(recorder.origins) if o.kind == "parameter" and o.name == name)
        last = max((i for i, reads in enumerate(lowered.reads) if external in reads), default=consumer)
        if last > consumer:  # the gradient waits for the last operation that reads its parameter
            consumer, op = last, lowered.ops[last]
            lowered.ops[last] = replace(op, inputs=tuple(dict.fromkeys((*op.inputs, output.value))))
    return Gradient(name, output, consumer)


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, dict):
        return (), inputs
    return (tuple(inputs), {}) if isinstance(inputs, tuple | list) else ((inputs,), {})


def _targets(targets: Any) -> tuple[Any, ...]:
    if targets is None:
        return ()
    return tuple(targets) if isinstance(targets, tuple | list) else (targets,)


def _lies_like(gradient: Tensor, parameter: Tensor | None) -> bool:
    """Autograd's contract: a gradient has the strides of a dense parameter, and is contiguous for any other."""
    if parameter is None or not Layout.of(parameter).dense:
        return gradient.is_contiguous()
    strides = zip(gradient.shape, gradient.stride(), parameter.stride(), strict=True)
    return all(mine == its for length, mine, its in strides if length != 1)


def _contiguous(shape: torch.Size) -> tuple[int, ...]:
    return tuple(prod(shape[i + 1 :]) for i in range(len(shape)))


@contextmanager
def _explained(recorder: Recorder) -> Any:
    """Errors of torch as errors of tracing, with the operator and the module."""
    log = logging.getLogger("torch._subclasses.fake_tensor")  # it would print the traceback of what we explain
    silent, log.disabled = log.disabled, True
    try:
        yield
    except TraceError:
        raise
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise data_error(error.func, recorder) from error
    except Exception as error:
        raise TraceError(f"{type(error).__name__} {recorder.place()} while tracing: {error}") from error
    finally:
        log.disabled = silent

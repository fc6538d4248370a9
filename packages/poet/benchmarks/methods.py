"""Ways to train in less memory, the peers' and ours, behind one interface: a step that leaves gradients in `.grad`.

Gradients are there before a step and are added to, for every method alike, so that the meter sees what is not static.
"""

import functools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint, checkpoint_sequential
from workloads import Workload

import poet
from poet.compiling import CompiledStep

Step = Callable[[], Any]
SMALL = 4096  # bytes below which the offloading peers keep what autograd saves


@dataclass(frozen=True)
class Method:
    """A way to train.

    Args:
        name: What it is, in words.
        family: ``plain``, ``recompute``, ``offload`` or ``ours``.
        prepare: Gives the step for a workload.
    """

    name: str
    family: str
    prepare: Callable[[Workload], Step]


def plain() -> Method:
    """Eager torch as it is."""
    return Method("plain", "plain", lambda workload: lambda: _backward(workload.loss()))


def per_block() -> Method:
    """``torch.utils.checkpoint`` around every block."""

    def prepare(workload: Workload) -> Step:
        def step() -> Tensor:
            with _wrapped(workload.model.blocks, functools.partial(checkpoint, use_reentrant=False)):
                return _backward(workload.loss())

        return step

    return Method("checkpoint per block", "recompute", prepare)


def sequential(segments: int) -> Method:
    """``checkpoint_sequential`` over the blocks.

    Args:
        segments: How many; each is recomputed as a whole, but the last.
    """

    def prepare(workload: Workload) -> Step:
        model = workload.model

        def call(x: Tensor) -> Tensor:
            return model.head(checkpoint_sequential(model.blocks, segments, model.stem(x), use_reentrant=False))

        return lambda: _backward(workload.loss(call))

    return Method(f"checkpoint_sequential, {segments} segments", "recompute", prepare)


def budget(share: float, backend: str = "aot_eager") -> Method:
    """``activation_memory_budget`` of torch.compile's partitioner.

    Args:
        share: Of the bytes that it would save.
        backend: ``aot_eager`` runs the partitioned graphs with eager's kernels.
    """

    def compile_within(graph: Any, example: Any) -> Any:
        config: Any = import_module("torch._functorch.config")
        with config.patch({"activation_memory_budget": share}):
            return import_module("torch._dynamo").lookup_backend(backend)(graph, example)

    def prepare(workload: Workload) -> Step:
        dynamo: Any = import_module("torch._dynamo")
        dynamo.config.recompile_limit = 64  # several methods compile one model's code
        call = torch.compile(workload.model, backend=compile_within, dynamic=False)
        return lambda: _backward(workload.loss(call))

    return Method(f"activation_memory_budget {share:g} ({backend})", "recompute", prepare)


def on_disk(folder: Path | None = None) -> Method:
    """All that autograd saves goes to files, as ``save_on_cpu`` sends it to the host; each storage once.

    Args:
        folder: Where; the system's temporary folder unless given.
    """

    def prepare(workload: Workload) -> Step:
        def step() -> Tensor:
            with tempfile.TemporaryDirectory(dir=folder) as pages, paged(workload.model, Path(pages)):
                return _backward(workload.loss())

        return step

    return Method("saved tensors to disk", "offload", prepare)


def on_host() -> Method:
    """``save_on_cpu`` with pinned memory; to tensors of the processor it does nothing."""

    def prepare(workload: Workload) -> Step:
        def step() -> Tensor:
            with save_on_cpu(pin_memory=True) if workload.device == "cuda" else nullcontext():
                return _backward(workload.loss())

        return step

    return Method("save_on_cpu", "offload", prepare)


def ours(workload: Workload, ram: str | int, **settings: Any) -> CompiledStep:
    """`poet.compile` of a workload; the caller closes it."""
    sample = workload.inputs, workload.targets
    return poet.compile(workload.model, workload.loss_fn, sample, ram=ram, gradients="static", **settings)


@contextmanager
def paged(model: nn.Module, folder: Path) -> Iterator[None]:
    """Hooks that write what autograd saves to files and read it back; parameters and small tensors stay."""
    kept = {p.untyped_storage().data_ptr() for p in model.parameters()}
    known: dict[tuple[int, int], tuple[StorageWeakRef, Path]] = {}  # weak references keep identities apart

    def pack(tensor: Tensor) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() in kept or storage.nbytes() < SMALL:
            return tensor
        reference = StorageWeakRef(storage)
        key = reference.cdata, tensor._version
        if key not in known:
            path = folder / str(len(known))
            torch.empty(0, dtype=torch.uint8).set_(storage).numpy().tofile(path)
            known[key] = reference, path
        return known[key][1], tensor.dtype, tensor.shape, tensor.stride(), tensor.storage_offset()

    def unpack(packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        path, dtype, shape, stride, offset = packed
        content = torch.empty(path.stat().st_size, dtype=torch.uint8)  # of torch's allocator, which the meter sees
        with path.open("rb") as file:
            file.readinto(content.numpy())
        return torch.empty(0, dtype=dtype).set_(content.untyped_storage(), offset, shape, stride)

    with saved_tensors_hooks(pack, unpack):
        yield


@contextmanager
def _wrapped(blocks: Any, call: Callable[..., Tensor]) -> Iterator[None]:
    for block in blocks:
        block.forward = functools.partial(call, block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward  # the class's own shows again


def _backward(loss: Tensor) -> Tensor:
    loss.backward()
    return loss.detach()

"""Every way to train with less activation memory, the peers' and ours, behind one interface.

A `Method` prepares a workload; what it gives computes the loss, of which ``backward`` is the rest of the step. It
leaves the model as it found it, so that several methods are set up on one model and timed in turns.
"""

import functools
import importlib.util
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import saved
import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint
from workloads import Workload

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
BUDGETS = (0.5, 0.2)
EAGER_BACKEND, COMPILER_BACKEND = "aot_eager_decomp_partition", "inductor"
FP8_PASS = "activation_quantization_aten_pass"
Forward = Callable[[], Tensor]


@dataclass(frozen=True)
class Prepared:
    """A method on a workload.

    Args:
        forward: Computes the loss.
        after: To be called after ``backward``.
    """

    forward: Forward
    after: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Method:
    """A way to train.

    Args:
        name: What it is, in words.
        family: ``plain``, ``recompute``, ``quantise``, ``offload``, ``compile`` or ``ours``.
        lossless: Whether its gradients are meant to be the plain ones up to rounding.
        prepare: Sets it up on a workload.
        missing: Says for a device why it cannot run there, or None.
    """

    name: str
    family: str
    lossless: bool
    prepare: Callable[[Workload], Prepared]
    missing: Callable[[str], str | None] = lambda device: None


def plain() -> Method:
    """Eager torch as it is."""
    return Method("plain", "plain", True, lambda workload: Prepared(workload.loss))


def checkpointed(every: int = 1) -> Method:
    """``torch.utils.checkpoint`` around every block, or around every second, third, ...

    Args:
        every: A block in so many is checkpointed.
    """

    def prepare(workload: Workload) -> Prepared:
        call = functools.partial(checkpoint, use_reentrant=False)
        return Prepared(_within(lambda: wrapped(workload.blocks[::every], call), workload))

    which = "per block" if every == 1 else f"on one block in {every}"
    return Method(f"checkpoint {which}", "recompute", True, prepare)


def saved_on_host() -> Method:
    """``save_on_cpu`` with pinned memory; to tensors of the CPU it does nothing."""

    def prepare(workload: Workload) -> Prepared:
        pin = workload.device == "cuda"
        return Prepared(_within(lambda: save_on_cpu(pin_memory=pin), workload))

    return Method("save_on_cpu", "offload", True, prepare, lambda device: None if device == "cuda" else "needs CUDA")


def torchtune_offload() -> Method:
    """torchtune's ``OffloadActivations``: two streams, CUDA only."""

    def missing(device: str) -> str | None:
        if device != "cuda":
            return "needs CUDA"
        return None if importlib.util.find_spec("torchtune") else "torchtune is not installed"

    def prepare(workload: Workload) -> Prepared:
        training: Any = import_module("torchtune.training")
        return Prepared(_within(training.OffloadActivations, workload))

    return Method("torchtune offload", "offload", True, prepare, missing)


def coded(make: Callable[[], saved.Codec], name: str, needs: str = "torch") -> Method:
    """Saved-tensor hooks of one of the formats of `saved`.

    Args:
        make: The format.
        name: Its name.
        needs: Module that it imports.
    """

    def prepare(workload: Workload) -> Prepared:
        codec = make()
        return Prepared(_within(lambda: saved.encoded(codec, workload.model), workload))

    missing = None if importlib.util.find_spec(needs) else f"{needs} is not installed"
    return Method(name, "quantise", name == saved.identity().name, prepare, lambda device: missing)


def compiled(budget: float | None = None, backend: str = COMPILER_BACKEND) -> Method:
    """``torch.compile``, with an ``activation_memory_budget``.

    Args:
        budget: Share of the activations that may be kept; None keeps torch's own setting.
        backend: ``inductor``, or ``aot_eager_decomp_partition``, which needs no compiler and fuses nothing.
    """

    def compile_within(graph: Any, example: Any) -> Any:
        config: Any = import_module("torch._functorch.config")
        settings = {} if budget is None else {"activation_memory_budget": budget}
        with config.patch(settings):
            return import_module("torch._dynamo").lookup_backend(backend)(graph, example)

    short = "compiled" if backend == COMPILER_BACKEND else "compiled without fusion"
    name = short if budget is None else f"{short}, budget {budget:g}"
    family = "compile" if budget is None else "recompute"
    missing = None if backend != COMPILER_BACKEND else _no_compiler
    return Method(name, family, True, _compiling(compile_within), missing or (lambda device: None))


def fp8_pass(dtype: torch.dtype = E5M2) -> Method:
    """Inductor's own pass that keeps activations as fp8; any size of at least 0.1 MiB, where its default is 100.

    Args:
        dtype: One of the two fp8 types.
    """
    options = {
        "quant_type": str(dtype),
        "allowed_dtypes": "torch.bfloat16;torch.float16;torch.float32",
        "size_in_mb": 0.1,
        "use_scaling": True,
        "exclude_primals": True,
    }

    def compile_within(graph: Any, example: Any) -> Any:
        config: Any = import_module("torch._inductor.config")
        with config.patch({"post_grad_fusion_options": {FP8_PASS: options}}):
            return import_module("torch._dynamo").lookup_backend(COMPILER_BACKEND)(graph, example)

    return Method("Inductor's fp8 pass", "quantise", False, _compiling(compile_within), _no_compiler)


def ours(bits: int | str, checkpointing: bool = False, calibration: int = 8, **settings: Any) -> Method:
    """`gact.ActivationCompressor`.

    Args:
        bits: As it takes them; the adaptive ones are calibrated once, beforehand.
        checkpointing: Also a checkpoint around every block, whose kept input has as many bits.
        calibration: Samples of the batch, at most, on which that is done.
        **settings: Further settings of the compressor.
    """

    def prepare(workload: Workload) -> Prepared:
        compressor = import_module("gact").ActivationCompressor(workload.model, bits=bits, **settings)
        checkpoints: Any = import_module("gact.checkpointing")
        call = (
            functools.partial(checkpoints.checkpoint, compress=checkpoints.FixedBits(bits)) if checkpointing else None
        )

        def forward() -> Tensor:
            with wrapped(workload.blocks, call) if call else nullcontext(), compressor:
                return workload.loss()

        if isinstance(bits, str):
            compressor.calibrate(workload.batch(min(calibration, len(workload.inputs))).loss)
        return Prepared(forward, compressor.step)

    name = f"ours, {bits} bit{'' if bits == 1 else 's'}" if isinstance(bits, int) else f"ours, {bits}"
    return Method(name + (" + checkpoint" if checkpointing else ""), "ours", False, prepare)


def all_peers(device: str, backend: str | None = None) -> list[Method]:
    """The peers that can run on a device, `plain` not among them.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
        backend: For `compiled`; the compiler where there is one by default.
    """
    backend = backend or (EAGER_BACKEND if _no_compiler(device) else COMPILER_BACKEND)
    methods = [
        checkpointed(),
        checkpointed(2),
        compiled(backend=backend),
        *(compiled(budget, backend) for budget in BUDGETS),
        saved_on_host(),
        torchtune_offload(),
        coded(lambda: saved.fp8(E4M3, rows=False), "fp8 e4m3, a scale per tensor"),
        coded(lambda: saved.fp8(E5M2, rows=True), "fp8 e5m2, a scale per row"),
        fp8_pass(),
        coded(lambda: saved.bitsandbytes("int8"), "bitsandbytes 8-bit", "bitsandbytes"),
        coded(lambda: saved.bitsandbytes("nf4"), "bitsandbytes NF4", "bitsandbytes"),
    ]
    return [method for method in methods if method.missing(device) is None]


def all_ours() -> list[Method]:
    """Ours at fixed and adaptive bits, with and without checkpoints."""
    choices: Sequence[int | str] = (8, 4, 2, "auto:4", "auto:2")
    return [*(ours(bits) for bits in choices), ours(8, checkpointing=True), ours(4, checkpointing=True)]


@contextmanager
def wrapped(blocks: Sequence[nn.Module], call: Callable[..., Tensor]) -> Iterator[None]:
    """Run the forward of every block as ``call(forward, x)`` inside this block of code."""
    for block in blocks:
        block.forward = functools.partial(call, block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward  # the class's own shows again


def _within(context: Callable[[], AbstractContextManager[Any]], workload: Workload) -> Forward:
    def forward() -> Tensor:
        with context():
            return workload.loss()

    return forward


def _compiling(backend: Callable[..., Any]) -> Callable[[Workload], Prepared]:
    """Prepare by ``torch.compile`` with a backend of its own, so that dynamo keeps the methods apart."""

    def prepare(workload: Workload) -> Prepared:
        dynamo: Any = import_module("torch._dynamo")
        dynamo.config.recompile_limit = 64  # several methods compile one model's code
        call = torch.compile(workload.model, backend=backend, dynamic=False)
        return Prepared(lambda: workload.loss(call))

    return prepare


def _no_compiler(device: str) -> str | None:
    if device == "cuda":
        return None if importlib.util.find_spec("triton") else "triton is not installed"
    return None if any(map(shutil.which, ("g++", "clang++", "c++"))) else "no C++ compiler"

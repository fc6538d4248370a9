"""Measuring a program on the machine at hand: durations, real bytes, and the workspace of every operation."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.autograd.profiler import profile, record_function

from poet.graph import Graph
from poet.program import Memory, Program
from poet.trace_drills import last_uses

CUDA_BLOCK = 512
"""Bytes to whose multiple torch's CUDA allocator rounds up."""


def measure(program: Program, *sample: Any, repeats: int = 3) -> Graph:
    """Run the step several times, and note what every operation takes.

    Durations are medians over whole steps (with caches and pages as a step finds them), and include the executor's own
    time for an operation. Workspace is what torch's allocator hands out while an operation runs, at most, less its
    results; libraries that allocate for themselves (oneDNN's scratch pads, for example) are not seen. Parameters,
    buffers, gradients and random generators stay as they are.

    Args:
        program: The traced step.
        sample: Inputs and targets, as they were given to `trace`.
        repeats: How many steps are timed, after one that is not.

    Returns:
        The program's graph with measured seconds, sizes and workspaces.

    Raises:
        ValueError: If `repeats` is below 1, or the inputs differ from those traced.
        LayoutError: If an operator's result lies otherwise than foretold.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    externals = program.bind(*sample)
    device = _device(program)
    seconds: list[list[float]] = [[] for _ in program.graph.ops]
    sizes = [value.size for value in program.graph.values]
    workspaces = [op.workspace for op in program.graph.ops]

    def timed(i: int, memory: Memory) -> None:
        _synchronise(device)
        start = perf_counter()
        program.run_op(i, memory, externals)
        _synchronise(device)
        seconds[i].append(perf_counter() - start)
        for v in program.graph.ops[i].outputs:
            sizes[v] = memory[v].untyped_storage().nbytes()

    with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for _ in range(repeats + 1):
            _walk(program, timed)
        if device.type == "cuda":
            _cuda_workspaces(program, externals, device, workspaces)
            sizes = [-(-size // CUDA_BLOCK) * CUDA_BLOCK for size in sizes]
        else:
            _cpu_workspaces(program, externals, sizes, workspaces)
    return _with(program.graph, [median(times[1:]) for times in seconds], sizes, workspaces)


def _with(graph: Graph, seconds: Sequence[float], sizes: Sequence[int], workspaces: Sequence[int]) -> Graph:
    ops = zip(graph.ops, seconds, workspaces, strict=True)
    return replace(
        graph,
        ops=tuple(replace(op, seconds=s, workspace=w) for op, s, w in ops),
        values=tuple(replace(value, size=size) for value, size in zip(graph.values, sizes, strict=True)),
        notes=(*graph.notes, f"seconds and bytes measured with torch {torch.__version__}"),
    )


def _walk(program: Program, run: Callable[[int, Memory], None]) -> None:
    """Run every operation once in order, freeing every value after its last use."""
    graph, memory = program.graph, {}
    last = last_uses(graph)
    for i, op in enumerate(graph.ops):
        run(i, memory)
        for v in {*op.inputs, *op.outputs}:
            if last[v] == i:
                del memory[v]


def _cuda_workspaces(
    program: Program, externals: Sequence[Tensor], device: torch.device, workspaces: list[int]
) -> None:
    def run(i: int, memory: Memory) -> None:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        program.run_op(i, memory, externals)
        added = torch.cuda.max_memory_allocated(device) - before
        left = torch.cuda.memory_allocated(device) - before
        workspaces[i] = max(0, added - left)

    _walk(program, run)


def _cpu_workspaces(program: Program, externals: Sequence[Tensor], sizes: list[int], workspaces: list[int]) -> None:
    def run(i: int, memory: Memory) -> None:
        with record_function(f"poet:{i}"):
            program.run_op(i, memory, externals)

    try:
        profiled: Any = profile(profile_memory=True, use_kineto=True)
        with quiet(), profiled:
            _walk(program, run)
    except RuntimeError:  # somebody else is profiling: the estimates stay
        return
    for i, added in _peaks(profiled.kineto_results.events()):
        workspaces[i] = max(0, added - sum(sizes[v] for v in program.graph.ops[i].outputs))


def _peaks(events: Any) -> Iterator[tuple[int, int]]:
    """For each operation the most bytes in use at once while it ran, above those in use before it."""
    ops = sorted((e for e in events if e.name().startswith("poet:")), key=lambda e: e.start_ns())
    allocations = sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns())
    k = 0
    for op in ops:
        end = op.start_ns() + op.duration_ns()
        now = peak = 0
        while k < len(allocations) and allocations[k].start_ns() < op.start_ns():
            k += 1
        while k < len(allocations) and allocations[k].start_ns() <= end:
            now += allocations[k].nbytes()
            peak = max(peak, now)
            k += 1
        yield int(op.name().removeprefix("poet:")), peak


@contextmanager
def quiet() -> Iterator[None]:
    """The profiler's library writes to standard error unless this variable is set when it starts."""
    before = os.environ.get("KINETO_LOG_LEVEL")
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    try:
        yield
    finally:
        if before is None:
            del os.environ["KINETO_LOG_LEVEL"]


def _device(program: Program) -> torch.device:
    """Where the program runs: a GPU if any value is there."""
    devices = [layout.device for layout in program.bases]
    return next((device for device in devices if device.type == "cuda"), devices[0])


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

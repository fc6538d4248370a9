"""A traced transformer of some 700 operations, solved to a small gap; runs on cpu.

Needs the extra ``torch``.
"""

import harness  # isort: skip  (one thread: before numpy)

import time
from collections.abc import Sequence
from typing import Any, Literal

import torch
from harness import Row
from workloads import encoder

from poet import Device, Graph, Tier, trace
from poet.compiling_plan import limit_of
from poet.problem import formulate

NAME = "bench_transformer"
SHARES = ("40%", "20%")
DISK = Tier("disk", 1e-4, 5e8, 1e-4, 5e8)
GAP, WITHIN = 1.0, 180.0  # percent, seconds
MODES: dict[str, tuple[tuple[Tier, ...], Literal["overlap", "serial"]]] = {
    "a disk of 0.5 GB/s, serial": ((DISK,), "serial"),
    "recomputation alone": ((), "serial"),
}
NOTES = (
    "12 encoder layers of width 256 with 4 heads on 4 sequences of 128 tokens, gradients kept; recorded below "
    "autograd, durations measured. RAM: what is always there or must be left at the end, and a share of what the plain "
    "step needs beyond it. Objective: modelled time; overhead, bound and gap in percent of the plain step's. 'serial': "
    "transfers stop the computation. A search ends at a gap of 1 % or after 180 s."
)


def traced(quick: bool) -> tuple[str, Graph, float]:
    """The name, the graph, and seconds for tracing and measuring."""
    workload = encoder(2, 2, 16, 32, 2) if quick else encoder(12, 4, 128, 256, 4)
    began = time.perf_counter()
    graph = trace(workload.model, workload.loss_fn, (workload.inputs, workload.targets)).graph
    return workload.name, graph, time.perf_counter() - began


def solved(graph: Graph, name: str, share: str, mode: str, seconds: float, judge: bool) -> list[Row]:
    """Rows of one limit and one mode."""
    tiers, paging = MODES[mode]
    machine = Device("this machine", tiers=tiers)
    problem = formulate(graph, machine, limit_of(share, graph), objective="time", paging=paging)
    mine = harness.ours(problem, seconds, gap=GAP / 100)
    label = f"{name} at {share}, {mode}"
    near = mine.course.seconds_to(GAP / 100)
    columns: dict[str, Any] = {**mine.columns(), "first_schedule": mine.course.first(), "operations": len(graph.ops)}
    return [
        harness.row(f"{label}: gap", harness.number(mine.gap), None, "proved bound", goal=GAP if judge else None,
                    unit="percentage points", **columns),
        harness.row(f"{label}: until the gap was {GAP:g} %", near, None, "proved bound",
                    goal=WITHIN if judge else None),
    ]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    args = harness.options(NAME, argv)
    torch.set_num_threads(1)
    name, graph, spent = traced(args.quick)
    rows = [harness.row(f"{name}: tracing and measuring", spent, None, "-", operations=len(graph.ops))]
    limit = args.limit or (2.0 if args.quick else WITHIN)
    for share in SHARES[:1] if args.quick else SHARES:
        for mode in MODES:
            some = solved(graph, name, share, mode, limit, not args.quick)
            print(*map(harness.line, some), sep="\n", flush=True)
            rows += some
    harness.save(NAME, args, rows, NOTES)


if __name__ == "__main__":
    main()

"""Bytes that are kept for the backward pass, by unique storage, and whether the ledger knows them to the byte.

Runs on cpu and cuda; needs the dependency group ``peers``.
"""

import harness  # isort: skip  (one thread: before numpy)

from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

import measure
import peers
import torch
import workloads
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from workloads import Workload

from common_core.memory import PeakMeter, storage_bytes

NAME = "bench_saved"
DEVICES = ("cpu", "cuda")
GOAL = 1 / 8  # of plain's bytes, at an average of 2 bits, for the transformer and the CNN
CHOICES = ((8, 256), (4, 256), (2, 256), ("auto:4", 256), ("auto:2", 256), (2, 1024), ("auto:2", 1024))
VIEWS = ("TBackward0", "ToCopyBackward0", "ViewBackward0", "PermuteBackward0", "TransposeBackward0")
NOTES = (
    "Activations: what a forward pass leaves allocated for the backward pass, each storage once, without the batch, "
    "the loss, and the 16-bit copies that autocast makes of the weights (plain keeps those too; no method here touches "
    "them). Measured by following every storage from birth to death. fp32: as it is. bf16: autocast, under which "
    "norms, softmax and loss still save fp32; there 2 bits are 8 times smaller than 16 at the very best, before the "
    "two ends of each group. G: numbers a group. Ledger: bytes of the report minus the closed form of each of its "
    "rows, and measured bytes minus the report's; both should be 0."
)


def suite(scale: str, device: str) -> list[Workload]:
    """Transformer and CNN of the scale, in fp32 and in bf16 autocast, and two more models."""
    pair = [replace(workload, autocast=None) for workload in workloads.suite(scale, device)]
    half = [replace(workload, autocast=torch.bfloat16) for workload in pair]
    if scale == "quick":
        return [*pair, *half]
    more = [workloads.vision_transformer(6, 192, 3, 64, 8, 100, 16, device), workloads.mlp(8, 512, 10, 1024, device)]
    return [*pair, *more, *half]


def copies_of_weights(workload: Workload) -> int:
    """Bytes of the 16-bit copies of parameters that plain's graph keeps."""
    found: list[Tensor] = []

    def pack(x: Tensor) -> Tensor:
        node: Any = x.grad_fn
        while node is not None and node.name() in VIEWS and len(node.next_functions) == 1:
            node = node.next_functions[0][0]
        made = x.grad_fn is not None and node is not None and "AccumulateGrad" in node.name()
        if made and x.dtype != torch.float32:
            found.append(x.detach())
        return x.detach()

    with saved_tensors_hooks(pack, lambda x: x):
        workload.loss()
    return storage_bytes(found)


def kept(workload: Workload, prepared: peers.Prepared) -> int:
    """Bytes that a forward pass leaves allocated, without batch and loss."""
    measure.step(workload, prepared)  # what a method allocates once is there from now on
    workload.model.zero_grad(set_to_none=True)
    with PeakMeter(workload.device, (workload.model, workload.inputs, workload.targets)) as meter:
        loss = prepared.forward()
        total = meter.held_bytes(excluding=(loss,))
    loss.backward()
    prepared.after()
    return total


def closed_form(row: Any, group_size: int) -> int:
    """Bytes of one row of a report from its shape, form and bits alone.

    Raises:
        ValueError: If the form is none that is known here.
    """
    numel = 1
    for size in row.shape:
        numel *= size
    item = getattr(torch, row.dtype).itemsize
    if row.form == "affine":
        groups = -(-numel // group_size)
        return groups * (group_size * int(row.bits) // 8 + 2 * item)
    if row.form in ("sign", "inside", "outside", "mask", "window offsets"):
        return -(-numel * int(row.bits) // 8)
    if row.form == "two values":
        return -(-numel // 8) + item
    if row.form == "exact":
        return row.plain_bytes  # of its storage
    if row.form == "shape only":
        return 0
    raise ValueError(f"a form called {row.form!r}")


def rows_of(workload: Workload, judge: bool) -> list[harness.Row]:
    """Rows of one workload; `judge` if its sizes are those that the goal is meant for."""
    label = f"{workload.name}, {'fp32' if workload.autocast is None else 'bf16'}"
    copies = copies_of_weights(workload)
    plain = kept(workload, peers.plain().prepare(workload)) - copies
    judge = judge and workload.name in ("GPT decoder", "ResNet-18", "ResNet")
    rows = []
    hooks = [m for m in peers.all_peers(workload.device) if m.family == "quantise" and "Inductor" not in m.name]
    for method in hooks:
        found = kept(workload, method.prepare(workload)) - copies
        rows.append(harness.row(f"{label}: {method.name}", found, plain, "plain", found / plain, unit="B"))
    for bits, group_size in CHOICES:
        compressor, prepared = build(workload, bits, group_size)
        found = kept(workload, prepared) - copies
        report = compressor.report()
        goal = GOAL if judge and bits in (2, "auto:2") else None
        name = f"{label}: ours, {bits if isinstance(bits, str) else f'{bits} bits'}, G {group_size}"
        rows.append(harness.row(name, found, plain, "plain", found / plain, goal, "B", smaller=plain / found))
        exact = sum(closed_form(row, group_size) for row in report.rows if row.nbytes)
        errors = {"form": report.saved_bytes - exact, "measured": found - report.saved_bytes}
        worst = max(map(abs, errors.values()))
        rows.append(harness.row(f"{name}: ledger", worst, None, "-", goal=0, unit="B off", **errors))
    return rows


def build(workload: Workload, bits: int | str, group_size: int) -> tuple[Any, peers.Prepared]:
    """A compressor that has seen the workload, and the method around it."""
    compressor = import_module("gact").ActivationCompressor(workload.model, bits=bits, group_size=group_size)
    if isinstance(bits, str):
        compressor.calibrate(workload.loss)

    def forward() -> Tensor:
        with compressor:
            return workload.loss()

    return compressor, peers.Prepared(forward)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    args = harness.options(NAME, argv)
    rows = []
    for workload in suite(args.scale, args.device):
        some = rows_of(workload, not args.quick)
        print(*map(harness.line, some), sep="\n", flush=True)
        rows += some
    harness.save(NAME, args, rows, NOTES, ["bitsandbytes"])


if __name__ == "__main__":
    main()

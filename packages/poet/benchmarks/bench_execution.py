"""Steps that run under a limit of memory, against what torch offers at equal peaks; runs on cpu.

Needs the extra ``torch``.
"""

import harness  # isort: skip  (one thread: before numpy)

from collections.abc import Sequence

import execution
import torch
from methods import budget, on_disk, per_block, sequential
from workloads import Workload, encoder, resnet

NAME = "bench_execution"
SHARES = (0.6, 0.4, 0.35)
MORE = (0.5, 0.45)  # for ResNet-18, of which one operation needs more than 40 %
BUDGETS = (0.8, 0.5, 0.3, 0.1, 0.0)
NOTES = (
    "Random data and weights, float32, one thread. Gradients lie in .grad beforehand and are added to, for every "
    "method (gradients='static'). Peak: bytes above parameters, gradients, buffers and batch at their most, from the "
    "events of torch's allocator, the same meter for all. Limits are shares of the plain step's peak by that meter. "
    "ResNet-18 has 32 images, as with 8 the gradient of one weight and its workspace alone are 58 % of the plain "
    "step's peak; with 32 a batch norm's backward, workspace included, still takes 44 % of it, so that no schedule of "
    "whole operations keeps 40 %: its limits are also 50 % and 45 %. Times by the clock, all methods in turns, "
    "medians of the ratios within rounds. activation_memory_budget runs eager's kernels (backend aot_eager); 'saved "
    "tensors to disk' writes every storage that autograd saves to a file and reads it back, without overlap. Ours "
    "pages to the system's temporary folder, with a profile measured on this machine at the start, and recomputes; "
    "disks of virtual machines have caches, so times of paging are those of this machine alone."
)


def suite(quick: bool) -> list[tuple[Workload, tuple[float, ...]]]:
    """ResNet-18 and an encoder, with their limits."""
    if quick:
        return [(encoder(2, 2, 16, 32, 2), SHARES[:1])]
    return [(resnet(32, 64), tuple(sorted({*SHARES, *MORE}, reverse=True))), (encoder(4, 4, 128, 256, 4), SHARES)]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    args = harness.options(NAME, argv)
    torch.set_num_threads(1)
    peers = [per_block(), sequential(2), on_disk()]
    peers += [budget(share) for share in ((0.5,) if args.quick else BUDGETS)]
    rows = []
    for workload, shares in suite(args.quick):
        limit = args.limit or (2.0 if args.quick else 20.0)
        some = execution.compare(workload, shares, peers, 2 if args.quick else 15, time_limit=limit, gap=2e-3)
        print(*map(harness.line, some), sep="\n", flush=True)
        rows += some
    harness.save(NAME, args, rows, NOTES)


if __name__ == "__main__":
    main()

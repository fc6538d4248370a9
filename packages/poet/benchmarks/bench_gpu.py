"""GPT-2 medium under limits of GPU memory, against what torch offers at equal peaks; needs a CUDA device.

Needs the extra ``torch``.
"""

import harness  # isort: skip  (one thread: before numpy)

from collections.abc import Sequence

import execution
import torch
from methods import budget, on_host, per_block, sequential
from workloads import decoder

NAME = "bench_gpu"
SHARES = (0.8, 0.6, 0.5, 0.4, 0.3)
BUDGETS = (0.8, 0.5, 0.3, 0.1, 0.0)
NOTES = (
    "GPT-2 medium's shape (24 layers of width 1024, 16 heads, 50257 tokens) on random tokens, bfloat16, batches of 8 "
    "sequences of 1024 tokens. Gradients lie in .grad beforehand and are added to, for every method. Peak: the "
    "allocator's counter above what is static. Limits are shares of the plain step's peak by that counter. Times by "
    "the clock, synchronised, all methods in turns. Ours pages to pinned memory of the host and recomputes, with a "
    "profile measured on this machine; activation_memory_budget runs by inductor, whose fused kernels save time by "
    "themselves, and by aot_eager."
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    args = harness.options(NAME, argv, devices=("cuda",))
    if not torch.cuda.is_available():
        raise SystemExit(f"{NAME} needs a CUDA device; bench_execution.py runs the same comparison on the processor")
    if args.quick:
        workload = decoder(2, 64, 2, 256, 64, 2, "cuda")
    else:
        workload = decoder(24, 1024, 16, 50257, 1024, 8, "cuda", torch.bfloat16)
    peers = [per_block(), sequential(2), sequential(5), on_host()]
    backends = ("aot_eager",) if args.quick else ("aot_eager", "inductor")
    peers += [budget(share, backend) for backend in backends for share in ((0.5,) if args.quick else BUDGETS)]
    shares = SHARES[:1] if args.quick else SHARES
    limit = args.limit or (2.0 if args.quick else 60.0)
    rows = execution.compare(workload, shares, peers, 3 if args.quick else 20, time_limit=limit, gap=2e-3)
    harness.save(NAME, args, rows, NOTES, ["triton"])


if __name__ == "__main__":
    main()

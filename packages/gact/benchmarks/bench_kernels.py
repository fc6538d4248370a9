"""The quantiser against a copy of the tensor: in PyTorch on a processor; in Triton, and against PyTorch, on a GPU."""

import harness  # isort: skip  (one thread: before numpy and torch)

import time
from collections.abc import Callable, Sequence

import torch

from common_core.stats import Estimate
from common_core.timing import PairedTiming, paired_timing
from gact import affine, counter_rng, kernels, ledger

NAME = "bench_kernels"
KEY = counter_rng.stream_key(0, 0, 0)
CPU_GOAL = 6.0  # quantise + dequantise over one copy
COPY_GOAL = 1 / 0.8  # seconds for the bytes moved, over those of a device copy: 80 % of its bandwidth
EAGER_GOAL = 1 / 5  # Triton over PyTorch on the device
NOTES = (
    "CPU: one thread, processor time, tensor of 256 MiB, normal numbers, groups of 256. 'Fresh' is what training does: "
    "quantise allocates the codes and dequantise the result, against x.clone(), which allocates too; most of a clone's "
    "time, and of ours, is then the system's work of handing out pages. 'Kept' writes into memory that exists already, "
    "against out.copy_(x): the arithmetic alone. Both have the same goal; other processes ran on the machine. "
    "GPU: the tensor in bf16, into kept memory. 'Bandwidth' rows divide seconds per byte moved (numbers read or "
    "written, codes, two numbers a group) by those of out.copy_(x), which moves each number twice. No row of a GPU is "
    "made without one."
)


def turns(ours: Callable[[], object], peer: Callable[[], object], device: str, repeats: int) -> PairedTiming:
    """Time two calls in turns: processor time on a CPU, elapsed time on a GPU."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    return paired_timing(ours, peer, repeats=repeats, warmup=1, clock=clock)


def on_cpu(numel: int, dtype: torch.dtype, bits: int, repeats: int) -> list[harness.Row]:
    """Both directions against one copy, with fresh and with kept memory."""
    x = torch.randn(numel, generator=torch.Generator().manual_seed(0)).to(dtype)
    out, codes = torch.empty_like(x), affine.quantise(x, bits, key=KEY)

    def fresh() -> torch.Tensor:
        return affine.dequantise(affine.quantise(x, bits, key=KEY))

    def kept() -> torch.Tensor:
        return affine.dequantise(affine.quantise(x, bits, key=KEY, out=codes.buffer), out=out)

    rows = []
    for what, ours, peer, peer_name in (
        ("fresh memory", fresh, x.clone, "x.clone()"),
        ("kept memory", kept, lambda: out.copy_(x), "out.copy_(x)"),
    ):
        timing = turns(ours, peer, "cpu", repeats)
        name = f"quantise + dequantise, {str(dtype)[6:]}, {bits} bits, {what}"
        rows.append(harness.row(name, timing.ours_s, timing.peer_s, peer_name, timing.ratio, CPU_GOAL, backend="torch"))
    return rows


def on_gpu(numel: int, bits: int, repeats: int) -> list[harness.Row]:
    """Each direction against a device copy by bytes moved, and against PyTorch's kernels by time."""
    x = torch.randn(numel, device="cuda", dtype=torch.bfloat16)
    out, codes = torch.empty_like(x), affine.quantise(x, bits, key=KEY)
    moved = numel * x.itemsize + ledger.affine_bytes(numel, bits, 256, x.dtype)
    per_byte = 2 * numel * x.itemsize / moved  # a copy reads and writes

    def quantise(backend: kernels.Backend) -> Callable[[], object]:
        def call() -> object:
            with kernels.use(backend):
                kernels.quantise(x, bits, key=KEY, out=codes.buffer)
                return x

        return call

    def dequantise(backend: kernels.Backend) -> Callable[[], object]:
        def call() -> object:
            with kernels.use(backend):
                return kernels.dequantise(codes, out=out)

        return call

    rows = []
    for what, call in (("quantise", quantise), ("dequantise", dequantise)):
        name = f"{what}, bfloat16, {bits} bits"
        timing = turns(call("triton"), lambda: out.copy_(x), "cuda", repeats)
        ratio = scaled(timing.ratio, per_byte)
        mine, theirs = (seconds * 1e12 for seconds in (timing.ours_s / moved, timing.peer_s / (2 * numel * x.itemsize)))
        extra = {"backend": "triton", "ours_s": timing.ours_s}
        rows.append(harness.row(f"bandwidth: {name}", mine, theirs, "out.copy_(x)", ratio, COPY_GOAL, "s/TB", **extra))
        timing = turns(call("triton"), call("torch"), "cuda", max(5, repeats // 4))
        rows.append(
            harness.row(name, timing.ours_s, timing.peer_s, "PyTorch, eager", timing.ratio, EAGER_GOAL, **extra)
        )
    return rows


def scaled(estimate: Estimate, factor: float) -> Estimate:
    """An estimate in another unit."""
    low, high = (None if end is None else end * factor for end in (estimate.low, estimate.high))
    return Estimate(estimate.value * factor, low, high, estimate.n)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    args = harness.options(NAME, argv)
    if args.device == "cuda":
        numel, repeats = (1 << 16, 4) if args.quick else (1 << 29, 40)  # 1 GiB of bf16
        rows = [row for bits in affine.BITS for row in on_gpu(numel, bits, repeats)]
    else:
        nbytes, repeats = (1 << 20, 4) if args.quick else (256 << 20, 12)
        rows = [
            row
            for dtype in (torch.float32, torch.bfloat16)
            for bits in affine.BITS
            for row in on_cpu(nbytes // dtype.itemsize, dtype, bits, repeats)
        ]
    if args.quick:  # toy sizes judge nothing
        rows = [row | {"goal": None, "met": None} for row in rows]
    harness.save(NAME, args, rows, NOTES, ["triton"])


if __name__ == "__main__":
    main()

"""Packing and unpacking pieces of sharded tensors on a GPU, against a plain copy and slicing; needs a CUDA device.

Needs the extra ``torch``. With ``--device cpu --quick`` it only shows that it runs.
"""

import harness  # isort: skip  (one thread: before numpy)

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from harness import Row

from xmesh_reshard.layout import Layout
from xmesh_reshard.plans import Piece, Transfer
from xmesh_reshard.transports.torch_packing import TorchPacker

NAME = "bench_gpu"
GOAL = 0.8
# Shape of a device's part, and the box of it that is sent, in bfloat16
BOXES = {
    "rows": ((8192, 8192), ((0, 4096), (0, 8192))),
    "columns, wide": ((8192, 8192), ((0, 8192), (0, 4096))),
    "columns, 256 elements": ((65536, 1024), ((0, 65536), (256, 512))),
    "columns, odd": ((8191, 8193), ((1, 8191), (3, 4102))),
    "heads": ((64, 128, 8192), ((0, 64), (32, 96), (0, 8192))),
}
MANY = 64
LOOPS = 10
NOTES = (
    "bfloat16 on one GPU. A box of a device's part goes into a buffer of bytes (pack) and out of one (unpack) by the "
    "transports' packer; 'plain copy' is one of as many contiguous bytes within the GPU's memory, 'slicing' is "
    "x[box].contiguous(). The goal is the share of the plain copy's rate. Times by CUDA events around ten "
    "calls, in turns; medians. Rows of a part lie together: they are sent from where they are, "
    "without a copy, which 'views' says."
)


def timed(works: Sequence[Callable[[], Any]], device: str, repeats: int) -> list[list[float]]:
    """Seconds of each call, in turns; two turns come before."""
    times: list[list[float]] = [[] for _ in works]
    for turn in range(repeats + 2):
        for k, work in enumerate(works):
            if device == "cuda":
                ends = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
                ends[0].record()
                for _ in range(LOOPS):  # so that starting a kernel hides behind the one before, as it does in use
                    work()
                ends[1].record()
                torch.cuda.synchronize()
                seconds = ends[0].elapsed_time(ends[1]) / 1e3 / LOOPS
            else:
                _, seconds, _ = harness.spent(work)
            if turn >= 2:
                times[k].append(seconds)
    return times


def packer(shape: tuple[int, ...], boxes: Sequence[tuple[tuple[int, int], ...]], device: str) -> Any:
    """A packer whose device keeps boxes of its part, and the pieces."""
    layout = Layout.from_boxes(shape, "bfloat16", {0: [(0, n) for n in shape]})
    x = torch.randn(shape, device=device).to(torch.bfloat16)
    tensors = {"x": Transfer(layout, layout)}
    pieces = []
    for box in boxes:
        size = 2
        for a, b in box:
            size *= b - a
        pieces.append(Piece("x", tuple(a for a, _ in box), tuple(b for _, b in box), size))
    return TorchPacker(tensors, 0, {"x": x}), pieces, x


def rows_of(label: str, shape: tuple[int, ...], boxes: Any, device: str, repeats: int) -> list[Row]:
    """Pack and unpack of some boxes."""
    made, pieces, x = packer(shape, boxes, device)
    nbytes = sum(piece.nbytes for piece in pieces)
    given = torch.empty(nbytes, dtype=torch.uint8, device=device)
    flat = torch.empty_like(given)
    cuts = [x[tuple(slice(a, b) for a, b in box)] for box in boxes]
    views = made.outgoing(pieces, lambda n: given)[1]
    works = [
        lambda: made.outgoing(pieces, lambda n: given),
        lambda: made.unpack(pieces, given),
        lambda: flat.copy_(given),
        lambda: [cut.contiguous() for cut in cuts],
    ]
    pack, unpack, plain, slicing = timed(works, device, repeats)
    rate = 2 * nbytes / statistics.median(plain)
    rows = []
    for name, times in (("pack", pack), ("unpack", unpack)):
        both, goal = (harness.median(times), harness.median(plain)), None if device == "cpu" or views else 1 / GOAL
        columns = harness.extra(
            {"bytes": nbytes, "copy_bytes_per_second": rate, "views": int(views and name == "pack")}
        )
        rows.append(harness.row(f"{label}: {name}", *both, "plain copy", harness.ratio(times, plain), goal, **columns))
    both = harness.median(pack), harness.median(slicing)
    return [*rows, harness.row(f"{label}: pack", *both, "slicing", harness.ratio(pack, slicing))]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    args = harness.options(NAME, argv, devices=("cuda", "cpu"))
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"{NAME} needs a CUDA device; --device cpu --quick shows that it runs")
    if args.device == "cpu" and not args.quick:
        raise SystemExit("on the CPU only --quick: its figures say nothing of a GPU")
    repeats = args.repeats or (2 if args.quick else 30)
    rows: list[Row] = []
    for label, (shape, box) in BOXES.items():
        if args.quick:
            shape, box = tuple(n // 64 for n in shape), tuple((a // 64, b // 64) for a, b in box)
        rows += rows_of(label, shape, [box], args.device, repeats)
    edge = 64 if args.quick else 1024
    strips = [((k * edge // MANY, (k + 1) * edge // MANY), (0, edge // 2)) for k in range(MANY)]
    rows += rows_of(f"{MANY} small boxes", (edge, edge), strips, args.device, repeats)
    harness.save(NAME, args, rows, NOTES, ["torch"])


if __name__ == "__main__":
    main()

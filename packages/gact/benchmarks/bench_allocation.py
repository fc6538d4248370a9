"""Exact allocation of bits in bytes: its time, and what it saves against the paper's greedy."""

import harness  # isort: skip  (one thread: before numpy and torch)

import time
from collections.abc import Sequence

import numpy as np

from common_core.seeding import numpy_rng
from common_core.stats import Estimate
from common_core.timing import paired_timing
from gact.allocation import RAW, Item, allocate
from gact.ledger import affine_bytes
from gact.theory_gradients import greedy_from_top

import torch  # isort: skip

NAME = "bench_allocation"
WIDTHS = (1, 2, 4, 8)
NOTES = (
    "Items as a large model has them: sizes from 2^14 to 2^24 numbers, sensitivities over eight decades, five choices "
    "each (1, 2, 4, 8 bits with group ends, or fp32 as it is); budgets of 1.5 to 6 bits on average. 'Distinct': no two "
    "items alike; 'layers': 40 kinds, each many times over. Ours: exact, with its bound, at the default limit of one "
    "second; peer: the paper's greedy from the top, in plain Python. Variance: total predicted variance, ours / "
    "greedy, median, smallest and largest of the budgets. Gap: proven distance to the optimum, largest of the budgets."
)


def items_of(count: int, kinds: int | None) -> list[Item]:
    """Tensors of a model with `count` of them, of so many kinds."""
    rng = numpy_rng(0, NAME, f"{count}", f"{kinds}")
    number = kinds or count
    sizes = (2 ** rng.uniform(14, 24, number)).astype(int)
    sensitivities = 10 ** rng.uniform(-6, 2, number)
    items = []
    for index in range(count):
        numel, c = int(sizes[index % number]), float(sensitivities[index % number])
        nbytes = {bits: affine_bytes(numel, bits, 256, torch.float32) for bits in WIDTHS} | {RAW: 4 * numel}
        items.append(Item.from_law(str(index), c, nbytes))
    return items


def rows_of(count: int, kinds: int | None, repeats: int) -> list[harness.Row]:
    """Time, variance and gap for one model."""
    items = items_of(count, kinds)
    nbytes, costs = [item.nbytes for item in items], [item.costs for item in items]
    budgets = [int(sum(4 * n[-1] for n in nbytes) / 4 * average / 32) for average in (1.5, 2, 3, 4, 6)]
    found = [allocate(items, budget) for budget in budgets]
    old = [greedy_from_top(nbytes, costs, budget) for budget in budgets]
    shares = sorted(ours.cost / peer[1] for ours, peer in zip(found, old, strict=True) if peer is not None)
    label = f"{count} items, {'distinct' if kinds is None else f'{kinds} kinds'}"
    timed = paired_timing(
        lambda: allocate(items, budgets[1]),
        lambda: greedy_from_top(nbytes, costs, budgets[1]),
        repeats=repeats,
        clock=time.process_time,
    )
    peer_name, gap = "greedy from the top", max(one.gap for one in found)
    spread = Estimate(float(np.median(shares)), low=shares[0], high=shares[-1], n=len(shares))
    status = {"status": sorted({one.status for one in found})}
    return [
        harness.row(f"{label}: time", timed.ours_s, timed.peer_s, peer_name, timed.ratio),
        harness.row(f"{label}: seconds", timed.ours_s, None, "none", None, 1.0 if count == 2000 else None),
        harness.row(f"{label}: variance", None, None, peer_name, spread, 1.0, "ours / greedy", **status),
        harness.row(f"{label}: proven gap", gap, None, "none", unit="relative", **status),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    args = harness.options(NAME, argv)
    cases = [(50, None)] if args.quick else [(50, None), (400, None), (2000, None), (2000, 40)]
    rows = [row for count, kinds in cases for row in rows_of(count, kinds, 3 if args.quick else 9)]
    harness.save(NAME, args, rows, NOTES)


if __name__ == "__main__":
    main()

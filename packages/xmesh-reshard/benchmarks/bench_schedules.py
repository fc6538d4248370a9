"""Pipeline schedules: closed forms, the known table, a U-Net's skips, and threads with injected delays; runs on cpu."""

import harness  # isort: skip  (one thread: before numpy)

import time
from collections.abc import Sequence
from typing import Any

from harness import Row

from xmesh_reshard.pipeline import run_schedule, schedule, unet_transfers
from xmesh_reshard.pipeline.theory import (
    eager_overlap,
    gpipe_overlap,
    ideal,
    one_f_one_b_blocking,
    one_f_one_b_overlap,
)

NAME = "bench_schedules"
TF, TB = 1.0, 2.0
# (stages, microbatches): without transfers; then for c = 1/2 and 1: 1F1B blocking, overlapped, eager, GPipe overlapped
TABLE = {
    (2, 8): (27, ((31.5, 31, 28, 28), (36, 35, 29, 29))),
    (4, 16): (57, ((74.5, 71, 60, 60), (92, 85, 63, 63))),
    (8, 32): (117, ((154.5, 151, 124, 124), (192, 185, 131, 131))),
}
KINDS: tuple[tuple[str, Any, bool, Any], ...] = (
    ("1F1B, blocking", "1f1b", False, one_f_one_b_blocking),
    ("1F1B, overlapped", "1f1b", True, one_f_one_b_overlap),
    ("eager-1F1B, overlapped", "eager-1f1b", True, eager_overlap),
    ("GPipe, overlapped", "gpipe", True, gpipe_overlap),
)
TICK = 0.02  # seconds of a forward pass of the measured pipelines
GAIN = 1.3
NOTES = (
    "Equal stages, a forward pass of 1 and a backward pass of 2, c a transfer each way. 'known' is the table that was "
    "calculated before, by another event model; the ratio is to the closed form. U-Net: 4 stages, 16 microbatches, "
    "transfers of boundaries and of each skip connection of 1. Threads: stages that sleep (20 ms a forward pass) "
    "beside links that sleep, one thread a stage, all schedules in turns; measured over simulated."
)


def table(sizes: Sequence[tuple[int, int]]) -> list[Row]:
    """Simulated makespans against closed forms, and eager-1F1B against the others."""
    rows = []
    for p, m in sizes:
        least, columns = TABLE[p, m]
        plain = schedule("eager-1f1b", p, m).simulate(TF, TB, 0.0).makespan
        form = float(ideal(p, m, TF, TB))
        rows.append(
            harness.row(
                f"({p}, {m}), c = 0: eager-1F1B", plain, form, "closed form", plain / form, 1.0, "tf", known=least
            )
        )
        for c, known in zip((0.5, 1.0), columns, strict=True):
            found = {}
            for (name, kind, overlap, closed), value in zip(KINDS, known, strict=True):
                found[name] = schedule(kind, p, m).simulate(TF, TB, c, overlap=overlap).makespan
                form = float(closed(p, m, TF, TB, c))
                label = f"({p}, {m}), c = {c:g}: {name}"
                ratio = found[name] / form
                rows.append(harness.row(label, found[name], form, "closed form", ratio, 1.0, "tf", known=value))
            eager = found.pop("eager-1F1B, overlapped")
            rows += [
                harness.row(f"({p}, {m}), c = {c:g}: eager-1F1B", eager, other, name, eager / other, unit="tf")
                for name, other in found.items()
            ]
    return rows


def unet(p: int, m: int) -> list[Row]:
    """A U-Net's skip connections: every other schedule over eager-1F1B."""
    comm = unet_transfers(p, 1.0, 1.0)
    eager = schedule("eager-1f1b", p, m).simulate(TF, TB, comm).makespan
    rows = []
    for name, kind, overlap, _ in KINDS[:2]:
        other = schedule(kind, p, m).simulate(TF, TB, comm, overlap=overlap).makespan
        goal = None if overlap else 1 / GAIN
        rows.append(harness.row(f"U-Net ({p}, {m}): eager-1F1B", eager, other, name, eager / other, goal, "tf"))
    return rows


def threads(p: int, m: int, tick: float, repeats: int) -> list[Row]:
    """Sleeping stages and links: measured over simulated, and eager-1F1B over 1F1B."""
    tf, tb, c = tick * TF, tick * TB, tick
    times: dict[str, list[float]] = {name: [] for name, *_ in KINDS[:3]}
    for _ in range(repeats):
        for name, kind, overlap, _ in KINDS[:3]:
            run = run_schedule(
                schedule(kind, p, m),
                forward=lambda stage, k, x: (time.sleep(tf), None),
                backward=lambda stage, k, saved, dy: time.sleep(tb),
                delay=c,
                overlap=overlap,
            )
            times[name].append(run.timeline.makespan)
    rows = []
    for name, kind, overlap, _ in KINDS[:3]:
        simulated = schedule(kind, p, m).simulate(tf, tb, c, overlap=overlap).makespan
        mine, ratio = harness.median(times[name]), harness.ratio(times[name], [simulated] * repeats)
        rows.append(harness.row(f"threads ({p}, {m}), {name}: measured", mine, simulated, "simulated", ratio, 1.1))
    eager = times["eager-1F1B, overlapped"]
    for name in list(times)[:2]:
        both = harness.median(eager), harness.median(times[name])
        rows.append(harness.row(f"threads ({p}, {m}): eager-1F1B", *both, name, harness.ratio(eager, times[name])))
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    args = harness.options(NAME, argv)
    if args.quick:
        rows = [*table([(2, 8)]), *unet(4, 4), *threads(2, 2, 0.002, 2)]
    else:
        rows = [*table(list(TABLE)), *unet(4, 16), *threads(4, 8, TICK, args.repeats or 7)]
    harness.save(NAME, args, rows, NOTES)


if __name__ == "__main__":
    main()

"""Peak memory and time of a training step by every method, as points on a plane; runs on cpu and cuda.

Needs the dependency group ``peers``, and the extra ``plot`` for the figure.
"""

import harness  # isort: skip  (one thread: before numpy)

from collections.abc import Sequence

import measure
import numpy as np
import peers
import workloads
from measure import Point

from common_core import plotting, records
from common_core.stats import Estimate

NAME = "bench_frontier"
DEVICES = ("cpu", "cuda")
ROUNDS = {"quick": 3, "cpu": 7, "gpu": 15}
MARKS = {
    "plain": ("*", 5), "recompute": ("s", 1), "compile": ("P", 2), "quantise": ("^", 3), "offload": ("D", 4),
    "ours": ("o", 0),
}  # fmt: skip
RIVALS = ("fp8", "Inductor's fp8", "bitsandbytes")
NOTES = (
    "Random data, random weights. Peak: bytes above parameters and batch, gradients included, from absent gradients; "
    "on the CPU from the allocator's events, on CUDA by max_memory_allocated. Held: what a forward pass leaves "
    "allocated. Time: forward, backward and what the method does after it, without optimiser, all methods in turns, "
    "medians of the ratios within a round; seconds of the processor on the CPU, of the clock on CUDA. Error: relative "
    "to plain's gradient of the same batch, one draw where rounding is random. Compiled methods fuse kernels, which "
    "pays by itself: 'compiled' without a budget shows how much. Peers' hooks encode shared memory once and leave "
    "parameters and tensors below 16 KiB alone, so that formats are compared. fp8 per row is the form of Inductor's "
    "pass; the pass itself runs with its threshold lowered from 100 to 0.1 MiB. bitsandbytes 8-bit on the CPU gives "
    "back small positive numbers for zeros, which opens every ReLU's gate: hence its error on the ResNet. save_on_cpu "
    "and torchtune's offload need CUDA."
)


def points_of(workload: workloads.Workload, methods: Sequence[peers.Method], rounds: int) -> tuple[list, list[Point]]:
    """Rows and points of one workload; a method that fails is a row that says so."""
    rows, ready = [], {}
    baseline = peers.plain()
    reference = baseline.prepare(workload)
    exact = measure.gradient(workload, reference)
    figures = {}
    for method in (baseline, *methods):
        try:
            prepared = method.prepare(workload)
            error = measure.relative_error(measure.gradient(workload, prepared), exact)
            figures[method.name] = measure.peak(workload, prepared), measure.held(workload, prepared), error
            ready[method.name] = prepared
        except Exception as fault:  # a peer that breaks must not hide the others
            reason = f"{type(fault).__name__}: {str(fault).splitlines()[0] if str(fault) else ''}"[:200]
            rows.append(harness.row(f"{workload.name}: {method.name} failed", None, None, "plain", failed=reason))
            print(rows[-1]["name"], reason, flush=True)
    calls = {name: lambda p=prepared: measure.step(workload, p) for name, prepared in ready.items()}
    seconds = measure.in_turns(calls, rounds)
    points = []
    for method in (m for m in (baseline, *methods) if m.name in ready):
        peak, held, error = figures[method.name]
        ratio = measure.median_ratio(seconds[method.name], seconds["plain"])
        ratio = Estimate(1.0) if method is baseline else ratio
        points.append(Point(method.name, method.family, peak, ratio))
        columns = {"family": method.family, "gradient_error": error, "held_bytes": held}
        label = f"{workload.name}: {method.name}"
        base = figures["plain"]
        rows.append(harness.row(f"{label}: peak", peak, base[0], "plain", peak / base[0], unit="B", **columns))
        middle = float(np.median(seconds[method.name])), float(np.median(seconds["plain"]))
        rows.append(harness.row(f"{label}: time", *middle, "plain", ratio))
    return rows, points


def verdicts(name: str, points: Sequence[Point]) -> list[harness.Row]:
    """Who dominates whom."""
    ours = [p for p in points if p.family == "ours"]
    others = [p for p in points if p.family not in ("ours", "plain")]
    eager = [p for p in others if not p.name.startswith(("compiled", "Inductor"))]
    rivals = [p for p in others if p.name.startswith(RIVALS)]
    rows = []
    for text, against in (("a peer", others), ("an eager peer", eager)):
        beaten = {p.name: [q.name for q in against if measure.dominates(q, p)] for p in ours}
        beaten = {key: value for key, value in beaten.items() if value}
        label = f"{name}: our points that {text} dominates"
        rows.append(harness.row(label, len(beaten), None, text, goal=0, unit="points", dominated=beaten))
    won = {p.name: [q.name for q in ours if measure.dominates(q, p)] for p in rivals}
    share = sum(map(bool, won.values())) / max(len(won), 1)
    label = f"{name}: points of fp8 and bitsandbytes that ours dominates"
    count = sum(map(bool, won.values()))
    rows.append(
        harness.row(label, count, len(won), "all such", share, 1.0, "points", True, dominated_by=won) if won else
        harness.row(label, None, None, "all such", unit="points")
    )  # fmt: skip
    best = [p.name for p in measure.front(points)]
    rows.append(harness.row(f"{name}: points of the front", len(best), None, "-", unit="points", front=best))
    return rows


def figure(planes: dict[str, list[Point]]) -> str:
    """The planes side by side, as SVG; methods are numbered, with one key for all planes."""
    names = list(dict.fromkeys(point.name for points in planes.values() for point in points))
    picture, axes = plotting.new_figure(4.2 * len(planes) + 2.6, 4.2, cols=len(planes))
    for axis, (name, points) in zip(np.atleast_1d(axes), planes.items(), strict=True):
        best = measure.front(points)
        axis.plot([p.peak / 2**20 for p in best], [p.time.value for p in best], color="#808080", linewidth=0.8)
        for point in points:
            at, number = (point.peak / 2**20, point.time.value), names.index(point.name) + 1
            marker, color = MARKS[point.family]
            label = f"{number}  {point.name}"
            axis.plot(*at, linestyle="none", marker=marker, color=plotting.COLORS[color], markersize=5, label=label)
            axis.annotate(str(number), at, xytext=(4, 3), textcoords="offset points", fontsize=6.5)
        axis.set(title=name, xlabel="peak above parameters (MiB)", ylabel="time of a step / plain")
    handles, labels = np.atleast_1d(axes)[0].get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside right upper", fontsize=7, handlelength=1)
    return plotting.svg(picture)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    args = harness.options(NAME, argv)
    backend = peers.EAGER_BACKEND if args.quick else None
    methods = [*peers.all_peers(args.device, backend), *peers.all_ours()]
    rows, planes = [], {}
    for workload in workloads.suite(args.scale, args.device):
        some, points = points_of(workload, methods, ROUNDS[args.scale])
        some += verdicts(workload.name, points)
        print(*map(harness.line, some), sep="\n", flush=True)
        rows += some
        planes[workload.name] = points
    harness.save(NAME, args, rows, NOTES, ["bitsandbytes", "torchtune", "triton"])
    records.write_bytes_atomic(args.out.with_suffix(".svg"), figure(planes).encode())


if __name__ == "__main__":
    main()

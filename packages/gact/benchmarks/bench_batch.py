"""The largest batch that fits, by bisection: on cuda until memory runs out, on the cpu within a budget in bytes."""

import harness  # isort: skip  (one thread: before numpy)

import gc
from collections.abc import Callable, Sequence

import measure
import peers
import torch
import workloads

from common_core.memory import storage_bytes

NAME = "bench_batch"
DEVICES = ("cpu", "cuda")
START = {"quick": (2, 2), "cpu": (2, 16), "gpu": (4, 16)}  # transformer, CNN
MOST = {"quick": 16, "cpu": 128, "gpu": 4096}
GOAL = 4.0  # times plain's batch, for the decoder at GPT-2 small's size
NOTES = (
    "CPU: the budget is what plain takes for a batch of 2 (transformer) or 16 (CNN), parameters, gradients, batch and "
    "temporaries included; a batch fits if the allocator's peak of one step stays within it. CUDA: a batch fits if "
    "two steps run without an out-of-memory error on the whole device. Largest fitting batch by doubling and "
    "bisection. Adaptive methods are calibrated beforehand on at most 8 samples. Compiled methods are left out: each "
    "batch would be compiled anew."
)


def within(workload: workloads.Workload, method: peers.Method, budget: int) -> Callable[[int], bool]:
    """Whether a batch stays within a budget of bytes on the CPU."""
    one = workload.batch(1)
    measure.step(one, method.prepare(one))  # what is allocated once and for all is there from now on

    def fits(size: int) -> bool:
        return total(workload.batch(size), method) <= budget

    return fits


def total(workload: workloads.Workload, method: peers.Method) -> int:
    """Bytes of a step at its peak, parameters and batch included."""
    static = storage_bytes([workload.model, workload.inputs, workload.targets])
    return static + measure.peak(workload, method.prepare(workload))


def without_error(workload: workloads.Workload, method: peers.Method) -> Callable[[int], bool]:
    """Whether two steps run on the device without running out of memory."""

    def fits(size: int) -> bool:
        try:
            larger = workload.batch(size)
            prepared = method.prepare(larger)
            for _ in range(2):
                measure.step(larger, prepared)
        except torch.OutOfMemoryError:
            return False
        finally:
            workload.model.zero_grad(set_to_none=True)
            prepared = larger = None
            gc.collect()
            torch.cuda.empty_cache()
        return True

    return fits


def verdict(name: str, found: dict[str, int], judge: bool) -> harness.Row:
    """The best of ours; the goal is for the decoder at GPT-2 small's size."""
    best = max((key for key in found if key.startswith("ours")), key=lambda key: found[key])
    goal = GOAL if judge and name == "GPT decoder" else None
    ratio = found[best] / found["plain"]
    label = f"{name}: the best of ours"
    return harness.row(label, found[best], found["plain"], "plain", ratio, goal, "samples", True, method=best)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    args = harness.options(NAME, argv)
    methods = [m for m in peers.all_peers(args.device) if not m.name.startswith(("compiled", "Inductor"))]
    rows = []
    for workload, start in zip(workloads.suite(args.scale, args.device), START[args.scale], strict=True):
        most = MOST[args.scale]
        budget = total(workload.batch(start), peers.plain()) if args.device == "cpu" else None
        found: dict[str, int] = {}
        for method in (peers.plain(), *methods, *peers.all_ours()):
            fits = without_error(workload, method) if budget is None else within(workload, method, budget)
            found[method.name] = best = measure.largest(fits, start, most)
            columns = {"family": method.family, "budget_bytes": budget, "capped": best == most}
            label = f"{workload.name}: {method.name}"
            ratio = best / found["plain"]
            rows.append(harness.row(label, best, found["plain"], "plain", ratio, unit="samples", **columns))
            print(harness.line(rows[-1]), flush=True)
        rows.append(verdict(workload.name, found, args.scale == "gpu"))
    harness.save(NAME, args, rows, NOTES, ["bitsandbytes", "torchtune", "triton"])


if __name__ == "__main__":
    main()

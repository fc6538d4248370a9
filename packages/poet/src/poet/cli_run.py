"""A compiled step beside eager execution: bits, peaks, and times in turns."""

import copy
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

from common_core.memory import storage_bytes
from poet.compiling import compile as compile_step
from poet.compiling_memory import allocated_peak


def compare(make: Callable[[], tuple[Any, Any, Any]], steps: int, seed: int, **options: Any) -> dict[str, Any]:
    """Run both for some steps, in turns, from the same start and with the same random numbers.

    Args:
        make: Returns model, loss function, and inputs with targets.
        steps: Steps of each.
        seed: Seed of the model, the data, each step and the search.
        options: Further arguments of `poet.compile`.

    Returns:
        Peaks in bytes with everything that torch holds for the step, median seconds, whether losses and gradients are
        equal to the bit, whether the limit was kept, and the step's own report.

    Raises:
        MemoryLimitError: If no schedule keeps the limit.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, loss_fn, sample = make()
        twin = copy.deepcopy(model)
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        static = storage_bytes([model, list(sample)])

        def eager() -> Tensor:
            loss = loss_fn(twin(sample[0]), sample[1])
            loss.backward()
            return loss.detach()

        with compile_step(model, loss_fn, sample, seed=seed, **options) as step:
            equal, times = True, {"eager": [], "ours": []}
            for k in range(steps):
                results = []
                for name, run, net in (("eager", eager, twin), ("ours", lambda: step(*sample), model)):
                    net.zero_grad()
                    torch.manual_seed(seed + k)
                    seconds, loss = _timed(run, device)
                    times[name].append(seconds)
                    results.append([loss, *(p.grad for p in net.parameters())])
                equal = equal and all(_same(a, b) for a, b in zip(*results, strict=True))
            peaks = {}
            for name, run, net in (("eager", eager, twin), ("ours", lambda: step(*sample), model)):
                net.zero_grad()
                peaks[name] = static + allocated_peak(run, device)
            report = step.report()
    middle = {name: median(seconds) for name, seconds in times.items()}
    return {
        "steps": steps, "limit": report.limit, "planned": report.planned, "plain_planned": report.plain,
        "eager_peak": peaks["eager"], "ours_peak": peaks["ours"], "peak_ratio": peaks["ours"] / peaks["eager"],
        "eager_seconds": middle["eager"], "ours_seconds": middle["ours"],
        "time_ratio": middle["ours"] / middle["eager"], "recomputed": report.recomputed, "paged_out": report.paged_out,
        "gap": report.gap, "equal": equal, "kept": peaks["ours"] <= report.limit, "report": str(report),
    }  # fmt: skip


def _timed(run: Callable[[], Tensor], device: torch.device) -> tuple[float, Tensor]:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    loss = run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began, loss


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b if a is None or b is None else torch.equal(a, b)

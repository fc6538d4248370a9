"""Steps as they run: peaks by one meter, times in turns, ours beside the fastest peer that needs no more memory."""

import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import harness
import numpy as np
import torch
from harness import Row
from methods import Method, Step, ours, plain
from workloads import Workload

from common_core.devices import synchronise
from common_core.stats import Estimate, bootstrap
from poet.compiling import CompiledStep, MemoryLimitError
from poet.compiling_memory import allocated_peak

MARGIN = 1.02  # of what was asked for: the goal for what is measured


@dataclass(frozen=True)
class Ready:
    """A step that can be measured.

    Args:
        name: The method.
        family: Its family.
        step: The step.
        peak: Bytes of a step above what is static.
        error: Of the gradient, relative to plain's.
    """

    name: str
    family: str
    step: Step
    peak: int
    error: float


def measured(workload: Workload, name: str, family: str, step: Step, exact: torch.Tensor | None) -> Ready:
    """Peak and gradient of a step that has run before."""
    step()  # compiles, fills caches
    zero(workload)
    peak = allocated_peak(step, torch.device(workload.device))
    found = gradient(workload)
    error = 0.0 if exact is None else float((found - exact).norm() / exact.norm())
    return Ready(name, family, step, peak, error)


def gradient(workload: Workload) -> torch.Tensor:
    """Gradients of all parameters in one vector."""
    return torch.cat([p.grad.detach().flatten().double() for p in workload.model.parameters() if p.grad is not None])


def zero(workload: Workload) -> None:
    """Gradients that are there, and zero."""
    gc.collect()
    for p in workload.model.parameters():
        p.grad = torch.zeros_like(p)


def in_turns(steps: Mapping[str, Step], rounds: int) -> dict[str, np.ndarray]:
    """Seconds by the clock of every step in every round; each round in another order."""
    rng, seconds = np.random.default_rng(0), {name: [] for name in steps}
    for _ in range(rounds):
        gc.collect()
        for name in rng.permutation(list(steps)):
            start = time.perf_counter()
            synchronise(steps[name]())
            seconds[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def median_ratio(a: np.ndarray, b: np.ndarray) -> Estimate:
    """Median of the ratios within rounds, with its interval."""
    return bootstrap(a / b, np.median, rng=np.random.default_rng(0))


def compare(
    workload: Workload, shares: Sequence[float], peers: Sequence[Method], rounds: int, **settings: Any
) -> list[Row]:
    """Rows of a workload: ours at some limits, beside peers.

    Args:
        workload: Model and batch.
        shares: Limits, as shares of what the plain step needs beyond what is static.
        peers: Other methods.
        rounds: Of timing.
        **settings: For `poet.compile`.
    """
    zero(workload)
    base = measured(workload, "plain", "plain", plain().prepare(workload), None)
    exact = gradient(workload)
    rows, ready, steps = [], [base], []
    for method in peers:
        try:
            ready.append(measured(workload, method.name, method.family, method.prepare(workload), exact))
        except Exception as fault:  # a peer that breaks must not hide the others
            rows.append(_failed(workload, method.name, fault))
    limits: dict[str, int] = {}
    for share in shares:
        name, limit = f"ours at {share:.0%}", int(share * base.peak)
        try:
            step, made = made_for(workload, limit, exact, name, **settings)
        except MemoryLimitError as fault:
            rows.append(_failed(workload, name, fault))
            continue
        steps.append(step)
        ready.append(made)
        limits[name] = limit
        rows.append(_kept(workload, made, limit, step))
    seconds = in_turns({r.name: r.step for r in ready}, rounds)
    rows += judged(workload.name, ready, seconds, limits)
    for step in steps:
        step.close()
    return rows


def made_for(
    workload: Workload, limit: int, exact: torch.Tensor, name: str, **settings: Any
) -> tuple[CompiledStep, Ready]:
    """Our step for a limit of bytes above what is static.

    Raises:
        MemoryLimitError: If no schedule keeps it.
    """
    zero(workload)
    static = sum(p.untyped_storage().nbytes() * (2 if p.requires_grad else 1) for p in workload.model.parameters())
    static += sum(b.untyped_storage().nbytes() for b in workload.model.buffers())
    static += workload.inputs.untyped_storage().nbytes() + workload.targets.untyped_storage().nbytes()
    step = ours(workload, limit + static, **settings)
    call = lambda: step(workload.inputs, workload.targets)  # noqa: E731
    return step, measured(workload, name, "ours", call, exact)


def judged(
    name: str, ready: Sequence[Ready], seconds: Mapping[str, np.ndarray], limits: Mapping[str, int]
) -> list[Row]:
    """Rows of all methods, and of ours against the fastest peer that needs no more than the limit."""
    rows, base = [], ready[0]
    for r in ready:
        label, middle = f"{name}: {r.name}", float(np.median(seconds[r.name]))
        times = median_ratio(seconds[r.name], seconds[base.name]) if r is not base else Estimate(1.0)
        rows += [
            harness.row(f"{label}: peak", r.peak, base.peak, "plain", r.peak / base.peak, unit="B", family=r.family,
                        gradient_error=r.error),
            harness.row(f"{label}: time", middle, float(np.median(seconds[base.name])), "plain", times),
        ]  # fmt: skip
    mine = [r for r in ready if r.name in limits]
    for r in mine:
        others = [p for p in ready if p.family != "ours" and p.peak <= MARGIN * limits[r.name]]
        label = f"{name}: {r.name} against the fastest peer within its limit"
        if not others:
            rows.append(harness.row(label, float(np.median(seconds[r.name])), None, "none fits"))
            continue
        best = min(others, key=lambda p: float(np.median(seconds[p.name])))
        middle = float(np.median(seconds[r.name])), float(np.median(seconds[best.name]))
        relative = median_ratio(seconds[r.name], seconds[best.name])
        rows.append(harness.row(label, *middle, best.name, relative, goal=1.0, peer_peak=best.peak, our_peak=r.peak))
    peaks = [r.peak for r in sorted(mine, key=lambda r: limits[r.name])]
    rises = sum(a > b for a, b in pairwise(peaks))
    rows.append(harness.row(f"{name}: peaks that rise where the limit falls", rises, None, "-", goal=0, unit="peaks"))
    return rows


def _kept(workload: Workload, made: Ready, limit: int, step: CompiledStep) -> Row:
    report = step.report()
    return harness.row(
        f"{workload.name}: {made.name}: measured peak within the limit", made.peak, limit, "the limit",
        made.peak / limit, goal=MARGIN, unit="B", gradient_error=made.error, recomputed=report.recomputed,
        paged_in=report.paged_in, paged_out=report.paged_out, modelled_overhead=report.overhead, gap=report.gap,
        tries=report.tries,
    )  # fmt: skip


def _failed(workload: Workload, name: str, fault: Exception) -> Row:
    reason = f"{type(fault).__name__}: {str(fault).splitlines()[0] if str(fault) else ''}"[:300]
    print(name, reason, flush=True)
    return harness.row(f"{workload.name}: {name} failed", None, None, "plain", failed=reason)

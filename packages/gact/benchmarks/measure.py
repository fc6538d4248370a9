"""One training step of a method on a workload: its gradients, its memory, and points on the plane of both costs."""

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import harness
import numpy as np
import torch
from peers import Prepared
from torch import Tensor
from workloads import Workload

from common_core.devices import synchronise
from common_core.stats import Estimate, bootstrap


def step(workload: Workload, prepared: Prepared) -> Tensor:
    """Forward, backward and what the method does afterwards, from absent gradients."""
    workload.model.zero_grad(set_to_none=True)
    loss = prepared.forward()
    loss.backward()
    prepared.after()
    return loss.detach()


def gradient(workload: Workload, prepared: Prepared, seed: int = 0) -> Tensor:
    """Gradient of all parameters in one vector; `seed` decides dropout."""
    devices = [] if workload.device == "cpu" else None
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        step(workload, prepared)
    parts = [p.grad.detach().flatten().double() for p in workload.model.parameters() if p.grad is not None]
    return torch.cat(parts)


def relative_error(approximate: Tensor, exact: Tensor) -> float:
    """‖a − b‖ / ‖b‖."""
    return float((approximate - exact).norm() / exact.norm())


def peak(workload: Workload, prepared: Prepared) -> int:
    """Bytes of the peak of one step above the parameters and the batch; gradients are among them."""
    workload.model.zero_grad(set_to_none=True)
    gc.collect()
    return harness.peak_bytes(lambda: step(workload, prepared), workload.device)


def held(workload: Workload, prepared: Prepared) -> int:
    """Bytes that a forward pass leaves allocated: what is kept for the backward, by storage, and the loss."""
    workload.model.zero_grad(set_to_none=True)
    gc.collect()
    kept: list[Tensor] = []
    total = harness.net_bytes(lambda: kept.append(prepared.forward()), workload.device)
    kept.pop().backward()
    prepared.after()
    return total


def in_turns(calls: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 1) -> dict[str, np.ndarray]:
    """Seconds of every call in every round; a round makes each once, and each round in another order.

    On the CPU, where all runs on one thread, seconds of the processor: other work on the machine then counts little.

    Args:
        calls: By name.
        rounds: Measured rounds.
        warmup: Rounds before those.

    Returns:
        By name, shape ``[rounds]``.
    """
    rng, names = np.random.default_rng(0), list(calls)
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(warmup + rounds):
        gc.collect()
        gc.disable()
        for name in rng.permutation(names):
            start = clock()
            synchronise(calls[name]())
            if turn >= warmup:
                seconds[name].append(clock() - start)
        gc.enable()
    return {name: np.array(values) for name, values in seconds.items()}


def median_ratio(ours: np.ndarray, peer: np.ndarray) -> Estimate:
    """Median of the ratios within rounds, with its interval."""
    return bootstrap(ours / peer, np.median, rng=np.random.default_rng(0))


@dataclass(frozen=True)
class Point:
    """A method on the plane.

    Args:
        name: The method.
        family: Its family.
        peak: Peak bytes of a step.
        time: Seconds of a step as a ratio to plain, with an interval where there is one.
    """

    name: str
    family: str
    peak: float
    time: Estimate


def dominates(a: Point, b: Point, clearly: bool = False) -> bool:
    """Whether `a` costs no more than `b` in both respects and less in one.

    Args:
        a: A method.
        b: Another.
        clearly: Ask also that the intervals of the two times do not decide otherwise: the slower end of `a` against
            the faster end of `b`.
    """
    first = a.time.upper if clearly and a.time.high is not None else a.time.value
    second = b.time.lower if clearly and b.time.low is not None else b.time.value
    return a.peak <= b.peak and first <= second and (a.peak < b.peak or first < second)


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other dominates, from the smallest peak to the largest."""
    kept = [p for p in points if not any(dominates(other, p) for other in points)]
    return sorted(kept, key=lambda p: (p.peak, p.time.value))


def largest(fits: Callable[[int], bool], first: int = 1, most: int = 1 << 16) -> int:
    """The largest n that fits, for a property that small n have and large n lack: doubling, then bisection.

    Args:
        fits: Asked for about 2 log2(n) values.
        first: Where the doubling starts.
        most: No larger n is asked for.

    Returns:
        The largest n of at most `most` that fits; 0 if not even 1 does.
    """
    low, high = 0, first
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low

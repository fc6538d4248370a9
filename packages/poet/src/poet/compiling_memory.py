"""The memory that a call really takes."""

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.profiler import profile

from common_core.memory import CudaPeakMeter, PeakMeter
from poet.measure import quiet


def allocated_peak(run: Callable[[], Any], device: torch.device) -> int:
    """Most bytes in use at once during a call, above those in use before it.

    On CUDA by the allocator's counter. On the processor by the events of torch's allocator, which show what operators
    use inside themselves too; where a profiler is running already, by tensors alone.

    Args:
        run: Called once.
        device: Where it computes.

    Example:
        >>> allocated_peak(lambda: torch.zeros(1000), torch.device("cpu"))
        4000
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        with CudaPeakMeter(device) as cuda:
            run()
            torch.cuda.synchronize(device)
        return cuda.reading().peak_added
    if torch.autograd._profiler_enabled():  # a second profiler would end the first
        with PeakMeter() as meter:
            run()
        return meter.reading().peak_added
    profiler: Any = profile(profile_memory=True, use_kineto=True)
    with quiet(), profiler:
        run()
    events = [e for e in profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak

"""Interleaved timings of two callables: medians, and their ratio with an interval."""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from common_core import devices, stats

_MOST_LOOPS = 1 << 24


@dataclass(frozen=True, slots=True)
class PairedTiming:
    """Result of `paired_timing`.

    Args:
        ours_s: Median seconds of one call of ours.
        peer_s: Median seconds of one call of the peer.
        ratio: Median of ours / peer over the pairs, with its interval; below 1 ours is faster.
        loops: Calls in one measurement, of ours and of the peer.
    """

    ours_s: float
    peer_s: float
    ratio: stats.Estimate
    loops: tuple[int, int]


def paired_timing(
    ours: Callable[[], object],
    peer: Callable[[], object],
    *,
    repeats: int = 20,
    warmup: int = 2,
    min_time_s: float = 0.005,
    synchronise: Callable[[object], object] = devices.synchronise,
    clock: Callable[[], float] = time.perf_counter,
    rng: np.random.Generator | None = None,
) -> PairedTiming:
    """Time two callables in turns, so that the machine's drift meets both.

    Each pair measures both, in alternating order; one measurement makes as many calls as fill `min_time_s` and then
    waits for the device. Ratios are taken within pairs. The garbage collector is off meanwhile.

    Args:
        ours: Called without arguments.
        peer: Likewise.
        repeats: Pairs, at least 2.
        warmup: Calls of each beforehand, not measured (compilation, caches); at least 0.
        min_time_s: Seconds that a measurement lasts at least, if need be by several calls.
        synchronise: Called with the last result at the end of each measurement; waits for asynchronous devices.
        clock: Monotonic clock in seconds.
        rng: Source of the interval's resamples; a fixed stream by default.

    Returns:
        Medians, ratio and numbers of calls.

    Raises:
        ValueError: If a setting is out of range, or the clock stands still during 2**24 calls.

    Example:
        >>> timing = paired_timing(lambda: sum(range(100)), lambda: sum(range(1000)), repeats=3, min_time_s=1e-4)
        >>> timing.ratio.n
        3
    """
    if repeats < 2 or warmup < 0 or min_time_s < 0:
        raise ValueError(
            f"repeats={repeats}, warmup={warmup}, min_time_s={min_time_s}: need repeats >= 2, the others >= 0"
        )

    def measure(function: Callable[[], object], loops: int) -> float:
        result = None
        start = clock()
        for _ in range(loops):
            result = function()
        synchronise(result)
        return clock() - start

    def calibrate(function: Callable[[], object]) -> int:
        for _ in range(warmup):
            synchronise(function())
        loops = 1
        while (spent := measure(function, loops)) < min_time_s or spent <= 0:
            if loops >= _MOST_LOOPS:
                raise ValueError(f"{loops} calls took {spent} s: nothing to time; check the callable and the clock")
            # towards 1.2 times the goal, yet never more than tenfold on the word of one short measurement
            wanted = 1.2 * min_time_s / spent if spent > 0 else 10.0
            loops = min(_MOST_LOOPS, int(np.ceil(loops * min(max(wanted, 2.0), 10.0))))
        return loops

    collecting = gc.isenabled()
    gc.disable()
    try:
        loops = calibrate(ours), calibrate(peer)
        seconds = np.empty((repeats, 2))
        for pair in range(repeats):
            for which in (0, 1) if pair % 2 == 0 else (1, 0):
                seconds[pair, which] = measure((ours, peer)[which], loops[which]) / loops[which]
    finally:
        if collecting:
            gc.enable()
    if not np.all(seconds > 0):
        raise ValueError("a measurement took no time by the clock; raise min_time_s")
    ratio = stats.bootstrap(seconds[:, 0] / seconds[:, 1], np.median, rng=rng or np.random.default_rng(0))
    ours_s, peer_s = np.median(seconds, axis=0)
    return PairedTiming(float(ours_s), float(peer_s), ratio, loops)

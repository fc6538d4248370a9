import gc

import numpy as np
import pytest

from common_core.timing import paired_timing


class Clock:
    """Time passes only when a task is called; `drift` makes every call slower than the last."""

    def __init__(self, drift: float = 0.0, tick: float = 0.0):
        self.now, self.drift, self.tick, self.calls = 0.0, drift, tick, []

    def __call__(self) -> float:
        return round(self.now / self.tick) * self.tick if self.tick else self.now

    def task(self, name: str, seconds: float):
        def run():
            self.calls.append(name)
            self.now += seconds * (1 + self.drift * len(self.calls))
            return name

        return run


def test_medians_and_ratio_are_exact_on_a_perfect_clock():
    clock = Clock()
    timing = paired_timing(clock.task("ours", 0.01), clock.task("peer", 0.04), clock=clock, repeats=5)
    assert (timing.ours_s, timing.peer_s) == pytest.approx((0.01, 0.04))
    assert (timing.ratio.value, timing.ratio.low, timing.ratio.high) == pytest.approx((0.25, 0.25, 0.25))
    assert timing.loops == (1, 1)
    assert timing.ratio.n == 5


def test_pairs_alternate():
    clock = Clock()
    paired_timing(clock.task("a", 0.01), clock.task("b", 0.01), clock=clock, repeats=4, warmup=0)
    assert "".join(clock.calls) == "ab" + "abbaabba"  # calibration, then the pairs


def test_drift_cancels():
    clock = Clock(drift=0.01)
    timing = paired_timing(clock.task("a", 0.01), clock.task("b", 0.01), clock=clock, repeats=20)
    assert timing.ratio.value == pytest.approx(1.0, abs=0.002)  # timed one after the other: about 0.83


def test_short_calls_are_repeated_until_the_clock_can_tell():
    clock = Clock(tick=0.001)  # a hundred times coarser than the call
    timing = paired_timing(clock.task("a", 1e-5), clock.task("b", 2e-5), clock=clock, min_time_s=0.1, repeats=4)
    assert min(timing.loops[0] * 1e-5, timing.loops[1] * 2e-5) >= 0.099
    assert max(timing.loops[0] * 1e-5, timing.loops[1] * 2e-5) < 1.0
    assert timing.ratio.value == pytest.approx(0.5, rel=0.02)


def test_synchronise_gets_the_last_result_and_is_timed():
    clock = Clock()

    def wait(result):
        assert result == "a"
        clock.now += 0.09

    timing = paired_timing(clock.task("a", 0.01), clock.task("a", 0.01), clock=clock, synchronise=wait, repeats=2)
    assert timing.ours_s == pytest.approx(0.1)


def test_real_callables():
    x = np.ones(1000)
    timing = paired_timing(lambda: x.sum(), lambda: x.sum(), repeats=5, min_time_s=1e-4)
    assert timing.ours_s > 0
    assert timing.ratio.low <= timing.ratio.value <= timing.ratio.high


def test_the_collector_is_off_meanwhile_and_on_after_an_error():
    def fail():
        assert not gc.isenabled()
        raise KeyError("ours")

    with pytest.raises(KeyError, match="ours"):
        paired_timing(fail, fail, warmup=0)
    assert gc.isenabled()


def test_a_clock_that_stands_still_is_refused(monkeypatch):
    monkeypatch.setattr("common_core.timing._MOST_LOOPS", 100)
    with pytest.raises(ValueError, match="nothing to time"):
        paired_timing(lambda: None, lambda: None, clock=lambda: 0.0)


@pytest.mark.parametrize("setting", [{"repeats": 1}, {"warmup": -1}, {"min_time_s": -1.0}])
def test_bad_settings_are_refused(setting):
    with pytest.raises(ValueError, match="need repeats >= 2"):
        paired_timing(lambda: None, lambda: None, **setting)

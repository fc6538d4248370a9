"""The benchmarks' own parts: gradients of the peers, the order of points, bisection, the meter, the closed form."""

import importlib
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common_core.memory import PeakMeter
from common_core.stats import Estimate

FOLDER = Path(__file__).parents[1] / "benchmarks"
if not FOLDER.is_dir():
    pytest.skip("the benchmarks are not part of this distribution", allow_module_level=True)


@pytest.fixture(scope="module")
def bench():
    """Imports a module of the benchmarks by name."""
    before, modules = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module
    sys.path[:] = before
    for name in set(sys.modules) - modules:
        if str(FOLDER) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


Load = Callable[[str], Any]


@pytest.fixture(params=["decoder", "resnet"])
def workload(request, bench: Load) -> Any:
    workloads = bench("workloads")
    if request.param == "decoder":
        return workloads.decoder(2, 32, 2, 64, 32, 4, dropout=0.1)
    return workloads.resnet(8, 1, 2, 32, 10, 4)


def gradients(bench: Load, workload: Any, method: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Of plain and of a method."""
    peers, measure = bench("peers"), bench("measure")
    found = [measure.gradient(workload, m.prepare(workload)) for m in (peers.plain(), method)]
    return found[0], found[1]


@pytest.mark.parametrize("every", [1, 2])
def test_checkpointing_gives_the_same_gradient(bench, workload, every):
    plain, other = gradients(bench, workload, bench("peers").checkpointed(every))
    assert torch.equal(plain, other)


def test_offload_gives_the_same_gradient(bench, workload):
    plain, other = gradients(bench, workload, bench("peers").saved_on_host())
    assert torch.equal(plain, other)


def test_a_lossless_codec_gives_the_same_gradient(bench, workload):
    peers, saved = bench("peers"), bench("saved")
    seen = []

    def copy() -> Any:
        codec = saved.identity()
        return saved.Codec(codec.name, lambda x: (seen.append(x.shape), codec.encode(x))[1], codec.decode)

    plain, other = gradients(bench, workload, peers.coded(copy, saved.identity().name))
    assert torch.equal(plain, other)
    assert seen  # the hook did encode something


@pytest.mark.peer  # torch's own partitioner; compiling takes seconds
def test_compiled_without_fusion_gives_the_same_gradient(bench):
    peers = bench("peers")
    workload = bench("workloads").mlp(2, 64, 10, 64)
    for budget in (1.0, 0.0):
        plain, other = gradients(bench, workload, peers.compiled(budget, peers.EAGER_BACKEND))
        # the same operations on the same numbers; decomposed GELU rounds differently in the last digits
        torch.testing.assert_close(other, plain, rtol=1e-5, atol=1e-7)


@pytest.mark.peer  # torch's own partitioner; compiling takes seconds
def test_a_smaller_budget_keeps_less(bench):
    peers, measure = bench("peers"), bench("measure")
    workload = bench("workloads").mlp(6, 64, 10, 512)
    kept = []
    for budget in (1.0, 0.3):
        prepared = peers.compiled(budget, peers.EAGER_BACKEND).prepare(workload)
        measure.step(workload, prepared)
        kept.append(measure.held(workload, prepared))
    assert kept[1] < 0.6 * kept[0]


def test_a_method_leaves_the_model_as_it_was(bench, workload):
    peers = bench("peers")
    peers.checkpointed().prepare(workload).forward()
    assert all("forward" not in vars(block) for block in workload.blocks)


@pytest.mark.parametrize(("dtype", "largest", "digits"), [("float8_e4m3fn", 448.0, 3), ("float8_e5m2", 57344.0, 2)])
@pytest.mark.parametrize("rows", [False, True])
def test_fp8_rounds_within_half_a_unit(bench, dtype, largest, digits, rows):
    codec = bench("saved").fp8(getattr(torch, dtype), rows)
    x = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    back = codec.decode(codec.encode(x))
    amax = x.abs().amax(-1, keepdim=True) if rows else x.abs().amax()
    step = amax / largest  # of the scale; normal numbers keep `digits` bits after the leading one
    smallest = 2.0 ** (-6 if digits == 3 else -14)
    bound = torch.maximum(x.abs(), smallest * step) * 2.0 ** (-digits - 1)
    assert bool(((back - x).abs() <= 1.001 * bound).all())
    assert torch.allclose(back.abs().amax(), x.abs().amax(), rtol=1e-6)


def test_fp8_per_row_keeps_rows_apart(bench):
    saved = bench("saved")
    x = torch.tensor([[1e-6, 2e-6, 4e-6], [1e6, 2e6, 4e6]])
    per_row, per_tensor = (saved.fp8(torch.float8_e5m2, rows) for rows in (True, False))
    torch.testing.assert_close(per_row.decode(per_row.encode(x)), x, rtol=1e-6, atol=0)
    assert bool((per_tensor.decode(per_tensor.encode(x))[0] == 0).all())


def test_codecs_encode_shared_memory_once_and_leave_parameters(bench):
    saved = bench("saved")
    model = torch.nn.Linear(256, 256, bias=False)
    x = torch.randn(256, 256)
    seen = []
    codec = saved.Codec("count", lambda t: (seen.append(t), t.clone())[1], lambda t: t)
    with saved.encoded(codec, model):
        y = model(x).exp()  # saves its result
        y.square().sum()  # and this saves it once more
    assert len(seen) == 2  # x and y; not the weight


@pytest.mark.peer
@pytest.mark.parametrize(("form", "bound"), [("int8", 0.02), ("nf4", 0.12)])
def test_bitsandbytes_hooks_decode_what_they_encode(bench, form, bound):
    pytest.importorskip("bitsandbytes")
    codec = bench("saved").bitsandbytes(form)
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    back = codec.decode(codec.encode(x)).view(x.shape)
    error = float((back - x).norm() / x.norm())
    assert 0 < error < bound  # of a normal distribution: about 0.01 for 8-bit codes, 0.1 for NF4


@pytest.mark.peer
def test_bitsandbytes_gradient_is_near(bench):
    pytest.importorskip("bitsandbytes")
    peers, saved = bench("peers"), bench("saved")
    workload = bench("workloads").decoder(2, 64, 2, 64, 64, 4)
    plain, other = gradients(bench, workload, peers.coded(lambda: saved.bitsandbytes("int8"), "8-bit"))
    error = bench("measure").relative_error(other, plain)
    assert 0 < error < 0.05


@pytest.mark.parametrize(("bits", "bound"), [(8, 0.02), (4, 0.4)])
def test_ours_is_near_and_smaller(bench, bits, bound):
    peers, measure = bench("peers"), bench("measure")
    workload = bench("workloads").decoder(2, 64, 2, 64, 64, 4)
    prepared = peers.ours(bits).prepare(workload)
    plain, other = gradients(bench, workload, peers.ours(bits))
    assert 0 < measure.relative_error(other, plain) < bound
    measure.step(workload, prepared)
    kept = [measure.held(workload, p) for p in (peers.plain().prepare(workload), prepared)]
    assert kept[1] < kept[0] * (bits + 2) / 32


def point(peak: float, time: float, low: float | None = None, high: float | None = None) -> Any:
    measure = importlib.import_module("measure")
    return measure.Point(f"{peak}/{time}", "ours", peak, Estimate(time, low, high))


def test_dominance(bench):
    dominates = bench("measure").dominates
    assert dominates(point(1, 1), point(2, 2))
    assert dominates(point(1, 1), point(1, 2))
    assert dominates(point(1, 1), point(2, 1))
    assert not dominates(point(1, 1), point(1, 1))
    assert not dominates(point(1, 2), point(2, 1))
    assert not dominates(point(2, 1), point(1, 2))


def test_dominance_within_the_noise_is_not_clear(bench):
    dominates = bench("measure").dominates
    fast, slow = point(1, 1.0, 0.9, 1.1), point(2, 1.05, 0.95, 1.15)
    assert dominates(fast, slow)
    assert not dominates(fast, slow, clearly=True)
    assert dominates(fast, point(2, 1.3, 1.2, 1.4), clearly=True)


def test_front_is_what_nothing_dominates(bench):
    measure = bench("measure")
    rng = np.random.default_rng(0)
    points = [point(*pair) for pair in rng.integers(0, 12, (40, 2)).tolist()]
    kept = measure.front(points)
    for p in points:
        assert (p in kept) != any(measure.dominates(q, p) for q in points)
    assert [p.peak for p in kept] == sorted(p.peak for p in kept)


@pytest.mark.parametrize("first", [1, 2, 7])
def test_bisection_finds_the_last_that_fits(bench, first):
    largest = bench("measure").largest
    for true in range(40):
        asked = []
        found = largest(lambda n, true=true, asked=asked: (asked.append(n), n <= true)[1], first, 32)
        assert found == min(true, 32)
        assert max(asked) <= 32
        assert len(asked) == len(set(asked)) <= 2 * math.ceil(math.log2(64)) + 1


def test_the_meter_of_the_allocator_agrees_with_following_storages(bench, workload):
    harness, measure, peers = bench("harness"), bench("measure"), bench("peers")
    prepared = peers.plain().prepare(workload)
    measure.step(workload, prepared)
    kept = measure.held(workload, prepared)
    with PeakMeter("cpu", (workload.model, workload.inputs, workload.targets)) as meter:
        loss = prepared.forward()
        followed = meter.held_bytes()
    assert loss.numel() == 1
    assert kept == followed
    assert harness.net_bytes(lambda: None, "cpu") == 0


def test_peak_sees_what_is_freed(bench):
    harness = bench("harness")
    kept = []

    def call() -> None:
        large = torch.empty(1 << 20, dtype=torch.uint8)
        del large
        kept.append(torch.empty(1 << 10, dtype=torch.uint8))

    assert harness.peak_bytes(call, "cpu") == 1 << 20
    assert harness.net_bytes(call, "cpu") == 1 << 10


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_the_report_equals_the_closed_form_and_the_memory(bench, autocast):
    saved_bytes, workloads = bench("bench_saved"), bench("workloads")
    workload = workloads.decoder(2, 64, 2, 512, 64, 8, autocast=autocast)
    compressor, prepared = saved_bytes.build(workload, 4, 256)
    kept = saved_bytes.kept(workload, prepared) - saved_bytes.copies_of_weights(workload)
    report = compressor.report()
    assert {row.form for row in report.rows} >= {"affine", "exact"}
    assert report.saved_bytes == sum(saved_bytes.closed_form(row, 256) for row in report.rows if row.nbytes)
    assert kept == report.saved_bytes


def test_rounds_time_every_call_in_every_round(bench):
    measure = bench("measure")
    calls: list[str] = []
    seconds = measure.in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3, warmup=1)
    assert sorted(calls) == ["a"] * 4 + ["b"] * 4
    assert {name: values.shape for name, values in seconds.items()} == {"a": (3,), "b": (3,)}


def test_a_goal_is_judged_in_its_direction(bench):
    row = bench("harness").row
    assert row("x", 1, 4, "p", 0.25, goal=0.5)["met"]
    assert not row("x", 1, 4, "p", 0.25, goal=0.5, at_least=True)["met"]
    assert row("x", 3, None, "p", goal=2)["met"] is False
    assert row("x", 3, 4, "p", 0.75)["met"] is None

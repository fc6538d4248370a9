import gc
import subprocess
import sys
import types
from dataclasses import dataclass

import numpy as np
import pytest

from common_core.memory import CudaPeakMeter, PeakMeter, PeakReading, ProcessPeakMeter, storage_bytes

peer = pytest.mark.peer  # everything below so marked needs torch


@dataclass
class Pair:
    a: object
    b: object


def test_numpy_views_count_once_and_whole():
    a = np.zeros((10, 10))
    assert storage_bytes(a[3]) == 800
    assert storage_bytes([a, a.T, a[2:4, ::2], a.reshape(-1)]) == 800
    assert storage_bytes({"x": a, "y": Pair(a.copy(), [None, 1, "text", np.float64(2)])}) == 1600
    assert storage_bytes([]) == storage_bytes(np.empty(0)) == 0


def test_overlapping_memory_counts_once():
    memory = bytearray(100)
    left, right = np.frombuffer(memory, np.uint8, 60), np.frombuffer(memory, np.uint8, 60, offset=40)
    assert storage_bytes((left, right)) == 100
    assert storage_bytes((left, right[30:])) == 100


def test_unknown_leaves_are_refused():
    with pytest.raises(TypeError, match="a set_iterator in the tree"):
        storage_bytes([iter(set())])


def test_jax_arrays_count_by_buffer(monkeypatch):
    class Shard:
        def __init__(self, device, start, size):
            self.device = device
            self.data = types.SimpleNamespace(unsafe_buffer_pointer=lambda: start, nbytes=size)

    class Array:
        def __init__(self, *shards):
            self.addressable_shards = shards

    stub = types.ModuleType("jax")
    stub.Array, stub.core = Array, types.SimpleNamespace(Tracer=type("Tracer", (Array,), {}))
    monkeypatch.setitem(sys.modules, "jax", stub)
    a = Array(Shard("TPU_0", 1000, 64), Shard("TPU_1", 1000, 64))
    assert storage_bytes([a, Array(Shard("TPU_0", 1000, 64))]) == 128
    with pytest.raises(TypeError, match="Tracer"):
        storage_bytes(stub.core.Tracer())


def test_the_process_meter_sees_a_large_array():
    size = 1 << 25
    with ProcessPeakMeter() as meter:
        block = np.ones(size, dtype=np.uint8)
        inside = meter.reading()
        del block
    reading = meter.reading()
    if not reading.source.startswith("VmHWM"):
        pytest.skip("this system lets no process reset its peak")
    assert inside.current_added >= 0.9 * size
    assert reading.peak_added >= 0.9 * size
    assert reading.current_added <= 0.1 * size


def test_the_process_meter_says_when_the_peak_could_not_be_reset(monkeypatch):
    from common_core import memory

    class Denied(type(memory.Path())):
        def write_text(self, *_, **__):
            raise PermissionError

    monkeypatch.setattr(memory, "Path", Denied)
    with ProcessPeakMeter() as meter:
        pass
    assert meter.reading().source == "peak since the process started"


def test_without_proc_the_peak_comes_from_getrusage(monkeypatch):
    from common_core import memory

    def unreadable(*_, **__):
        raise FileNotFoundError

    before = memory.resident_bytes()[0]
    absent = types.SimpleNamespace(read_text=unreadable, write_text=unreadable)
    monkeypatch.setattr(memory, "Path", lambda _: absent)
    now, peak = memory.resident_bytes()
    assert now == peak >= 0.9 * before  # one number for both: there is no current one to be had


def test_a_meter_that_was_not_entered_or_is_running_says_so():
    meter = ProcessPeakMeter()
    with pytest.raises(RuntimeError, match=r"use `with ProcessPeakMeter"):
        meter.reading()
    with meter, pytest.raises(RuntimeError, match="is running"):
        meter.__enter__()


def test_readings_add_up():
    reading = PeakReading(baseline=10, peak=50, current=5, source="")
    assert (reading.peak_added, reading.current_added) == (40, -5)


def test_torch_is_not_imported_to_count_numpy():
    program = "import sys, numpy; from common_core.memory import *; storage_bytes(numpy.ones(3));"
    program += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@peer
def test_torch_views_parameters_and_shared_memory():
    import torch

    x = torch.zeros(10, 10)
    assert storage_bytes([x, x.t(), x[2], x.detach()]) == 400
    assert storage_bytes(x[0, 0]) == 400
    array = np.zeros(100)
    assert storage_bytes([array, torch.from_numpy(array), torch.from_numpy(array[50:])]) == 800
    tied = torch.nn.Sequential(torch.nn.Linear(5, 5, bias=False), torch.nn.Linear(5, 5))
    tied[1].weight = tied[0].weight
    assert storage_bytes(tied) == storage_bytes(tied.state_dict()) == 4 * (25 + 5)
    assert storage_bytes([torch.empty(3, device="meta"), torch.empty(4, device="meta")]) == 28
    assert storage_bytes(torch.empty(0)) == 0


@peer
@pytest.mark.parametrize("layout", ["coo", "csr", "csc", "bsr", "bsc"])
@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")  # torch announces that these layouts are in beta
def test_sparse_tensors_count_indices_and_values(layout):
    import torch

    if layout == "coo":
        parts = torch.tensor([[0, 1, 1], [0, 0, 1]]), torch.ones(3)
    else:
        blocks = (3, 2, 2) if layout in ("bsr", "bsc") else (3,)
        parts = torch.tensor([0, 1, 3]), torch.tensor([0, 0, 1]), torch.ones(blocks)
    size = (4, 4) if layout in ("bsr", "bsc") else (2, 2)
    x = getattr(torch, f"sparse_{layout}_tensor")(*parts, size)
    assert storage_bytes([x, x]) == sum(part.nbytes for part in parts)


@peer
def test_wrapper_subclasses_count_what_they_wrap_or_are_refused():
    import torch

    class Opaque(torch.Tensor):
        @staticmethod
        def __new__(cls, inner):
            return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

        def __init__(self, inner):
            self.inner = inner

        @classmethod
        def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
            return func(*(a.inner if isinstance(a, Opaque) else a for a in args), **(kwargs or {}))

    class Open(Opaque):
        def __tensor_flatten__(self):
            return ["inner"], None

    inner = torch.zeros(7)
    assert storage_bytes([Open(inner), inner]) == 28
    with pytest.raises(TypeError, match=r"Opaque .* must define __tensor_flatten__"):
        storage_bytes(Opaque(inner))
    with PeakMeter() as meter:
        assert torch.equal(Open(inner) * 2, inner)
    assert meter.reading().baseline == 28


@peer
def test_the_meter_follows_allocations_views_and_frees():
    import torch

    with PeakMeter() as meter:
        a = torch.zeros(1000)
        b = a * 2
        assert meter.reading().current == 8000
        del b
        assert meter.reading().current == 4000
        part = a.view(10, 100)[2]
        a.add_(1)
        del a
        assert meter.reading().current == 4000  # the view keeps the whole storage
        del part
    assert meter.reading() == PeakReading(0, 8000, 0, "torch tensors on cpu, by storage")


@peer
def test_operands_from_before_are_the_baseline():
    import torch

    x, unused = torch.ones(1000), torch.ones(10)
    with PeakMeter(alive=unused) as meter:
        y = x + 1
        y.mul_(3)
        assert meter.held_bytes() == 4000  # y, and not x
    reading = meter.reading()
    assert (reading.baseline, reading.peak_added, reading.current_added) == (4040, 4000, 4000)
    with PeakMeter() as meter:
        x += y
        del x
    assert meter.reading().current_added == -4000


@peer
def test_late_operands_raise_the_peak_that_they_were_part_of():
    import torch

    x = torch.ones(1000)
    with PeakMeter() as meter:
        torch.zeros(500).mul_(2)  # the peak, while x was alive and not yet seen
        x.mul_(1)
    assert meter.reading() == PeakReading(4000, 6000, 4000, meter.reading().source)


@peer
def test_saved_tensors_live_until_backward():
    import torch

    x = torch.ones(1000, requires_grad=True)
    with PeakMeter() as meter:
        loss = x.exp().exp().sum()  # each exp saves its result
        assert meter.held_bytes(excluding=(x, loss)) == 8000
        loss.backward()
        assert meter.held_bytes(excluding=(x, loss)) == 4000  # the gradient
        assert meter.held_bytes(excluding=(x, x.grad, loss)) == 0


@peer
def test_checkpointing_lowers_the_held_bytes_to_the_checkpoints():
    import torch
    from torch.utils.checkpoint import checkpoint

    def layer(x):
        return x.exp().sin().exp().sin()

    x = torch.zeros(1000, requires_grad=True)
    with PeakMeter() as plain:
        y = layer(layer(x))
        held = plain.held_bytes(excluding=(x, y))
        y.sum().backward()
    del y
    with PeakMeter() as saving:
        y = checkpoint(layer, checkpoint(layer, x, use_reentrant=False), use_reentrant=False)
        held_saving = saving.held_bytes(excluding=(x, y))
    # exp saves its result, sin its argument, which is that same tensor: 2 in each layer. The checkpoint is the
    # argument of the second layer.
    assert held == 4 * 4000
    assert held_saving == 4000


@peer
def test_resizing_a_storage_is_noticed():
    import torch

    with PeakMeter() as meter:
        x = torch.ones(1000)
        x.untyped_storage().resize_(0)
        assert meter.reading().current == 0
        y = torch.ones(600)
        out = torch.empty(0)
        torch.add(y, y, out=out)
    assert meter.reading().peak == 4800
    assert meter.reading().current == 4800


@peer
def test_fresh_tensors_from_python_and_numpy_are_allocations():
    import torch

    with PeakMeter() as meter:
        _kept = torch.tensor([1.0, 2.0]), torch.from_numpy(np.zeros(3))
    assert meter.reading().current_added == 8 + 24


@peer
def test_cycles_and_errors_leave_a_correct_count():
    import torch

    cycle: list = []

    def fail():
        cycle.extend([torch.zeros(100), cycle])
        raise KeyError

    meter = PeakMeter()
    with pytest.raises(KeyError), meter:
        fail()
    assert meter.reading().current == 400
    with meter:  # again: the count starts anew
        torch.zeros(1)
    assert meter.reading().peak == 4
    del cycle
    gc.collect()


@peer
def test_other_devices_are_not_counted():
    import torch

    with PeakMeter() as cpu, PeakMeter(device="meta") as meta:
        _kept = torch.zeros(10), torch.zeros(100, device="meta")
    assert (cpu.reading().current, meta.reading().current) == (40, 400)


@peer
def test_held_bytes_needs_a_running_meter():
    with pytest.raises(RuntimeError, match="inside the `with` block"):
        PeakMeter().held_bytes()


def allocator_peak(step) -> int:
    """The CPU allocator's own events, as torch's profiler records them."""
    from torch.autograd.profiler import profile

    with profile(profile_memory=True) as recorded:
        kept = step()
    del kept
    total = peak = 0
    for event in recorded.kineto_results.events():
        if event.name() == "[memory]":
            total += event.nbytes()
            peak = max(peak, total)
    return peak


@peer
@pytest.mark.parametrize("depth", [1, 2, 5])
def test_the_peak_agrees_with_the_allocator_of_torch(depth):
    # Elementwise operators have no workspace, so their results are all there is to allocate.
    import torch

    weights = [torch.full((5000,), 1.1, requires_grad=True) for _ in range(depth)]

    def step():
        x = torch.ones(5000)
        for weight in weights:
            x = (x * weight).tanh()
        return torch.autograd.grad(x.exp().sum(), weights)

    step()
    with PeakMeter() as meter:
        step()
    expected = allocator_peak(step)
    assert expected > 40_000
    assert meter.reading().peak_added == expected


@peer
def test_summed_gradients_cost_at_most_one_more_while_observed():
    # Autograd adds up gradients in place, except under a dispatch mode, such as the meter.
    import torch

    x = torch.ones(5000, requires_grad=True)

    def step():
        y = x.tanh()
        return torch.autograd.grad((y * y).sum(), x)

    step()
    with PeakMeter() as meter:
        step()
    assert 0 <= meter.reading().peak_added - allocator_peak(step) <= 20_000


@peer
def test_the_cuda_meter_needs_a_device(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="no CUDA device"), CudaPeakMeter():
        pass


@pytest.mark.gpu
def test_the_cuda_meters_agree_with_each_other():
    import torch

    x = torch.ones(1 << 20, device="cuda")
    with CudaPeakMeter() as allocator, PeakMeter("cuda", alive=x) as tensors:
        y = (x * 2).exp()
        del y
        torch.cuda.synchronize()
    assert allocator.reading().peak_added == tensors.reading().peak_added == 2 << 22
    assert allocator.reading().current_added == tensors.reading().current_added == 0
    assert storage_bytes([x, x[3:]]) == 4 << 20

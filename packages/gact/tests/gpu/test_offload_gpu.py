"""The host store on a device: streams, pinned memory, and a pass through a compressor."""

import gc

import pytest
import torch
from torch import nn

from gact.compressor import ActivationCompressor
from gact.offload import HostStore

pytestmark = pytest.mark.gpu


def numbers(seed: int, nbytes: int = 1 << 22) -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randint(0, 256, (nbytes,), dtype=torch.uint8, device="cuda", generator=generator)


@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize("in_flight", [0, 1 << 23, 1 << 28])
def test_bytes_come_back_while_the_device_is_busy(pinned: bool, in_flight: int) -> None:
    store = HostStore("cuda", pinned=pinned, prefetch_bytes=1 << 24, in_flight_bytes=in_flight)
    square, handles = torch.randn(2048, 2048, device="cuda"), []
    for seed in range(24):
        handles.append(store.put(numbers(seed)))  # the buffer goes; its memory may be used again at once
        square = (square @ square).clamp_(-1, 1)
    for seed in [*reversed(range(24)), 3, 17, 0]:
        assert torch.equal(handles[seed].get(), numbers(seed))
        square = (square @ square).clamp_(-1, 1)
    assert store.stats().hits > 0
    del handles
    assert store.stats().stored_bytes == 0


def test_memory_of_the_device_is_given_back() -> None:
    store = HostStore("cuda", in_flight_bytes=1 << 24, prefetch_bytes=1 << 24)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    handles = [store.put(numbers(seed, 1 << 24)) for seed in range(16)]
    torch.cuda.synchronize()
    store.stats()
    assert torch.cuda.memory_allocated() - before <= 1 << 24
    assert torch.cuda.max_memory_allocated() - before <= 4 << 24  # one on its way, one made, and what randint needs
    for handle in reversed(handles):
        handle.get()
    del handles, handle
    store.stats()
    gc.collect()
    assert torch.cuda.memory_allocated() - before == 0


def test_fetched_on_another_stream() -> None:
    store = HostStore("cuda")
    handles = [store.put(numbers(seed)) for seed in range(4)]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for seed in reversed(range(4)):
            assert torch.equal(handles[seed].get(), numbers(seed))


def test_in_a_compressor_nothing_changes_but_the_place() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(512, 512), nn.GELU()) for _ in range(6))).cuda()
    x, found, store = torch.randn(4096, 512, device="cuda"), [], HostStore("cuda")
    for offload in (None, store):
        for _ in range(3):
            model.zero_grad()
            with ActivationCompressor(model, bits=4, offload=offload):
                loss = model(x).square().mean()
            loss.backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        del loss
    assert torch.equal(*found)
    assert store.stats().sent_bytes > 0
    assert store.stats().stored_bytes == 0


def test_a_buffer_of_another_device() -> None:
    with pytest.raises(ValueError, match="on cuda:0"):
        HostStore("cuda").put(torch.zeros(4, dtype=torch.uint8))

"""The host store: right bytes in any order, forecasts that only save time, bounded copies, nothing left over."""

import gc
import itertools
import threading
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gact.compressor import ActivationCompressor
from gact.offload import CopyLane, CpuLane, HostStore


def buffer(number: int, nbytes: int = 100) -> Tensor:
    return torch.full((nbytes,), number, dtype=torch.uint8)


class SlowLane(CopyLane):
    """Copies that are over only when somebody waits for them, or when told; what arrives too early is garbage."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []
        self.pending: dict[int, Any] = {}
        self._count = itertools.count()

    def block(self, nbytes: int) -> Tensor:
        return torch.full((nbytes,), 255, dtype=torch.uint8)

    def send(self, buffer: Tensor, block: Tensor) -> int:
        return self._begin("send", lambda: block[: len(buffer)].copy_(buffer))

    def fetch(self, block: Tensor) -> tuple[Tensor, int]:
        result = torch.full_like(block, 254)
        return result, self._begin("fetch", lambda: result.copy_(block))

    def done(self, ticket: int) -> bool:
        return ticket not in self.pending

    def arrive(self, ticket: int) -> None:
        self.events.append(("arrive", ticket))
        for earlier in [t for t in self.pending if t <= ticket]:  # one after the other, as on a stream
            self.pending.pop(earlier)()

    def lend(self, buffer: Tensor) -> Tensor:
        return buffer

    def _begin(self, what: str, copy: Any) -> int:
        ticket = next(self._count)
        self.pending[ticket] = copy
        self.events.append((what, ticket))
        return ticket


@pytest.mark.property
@given(
    sizes=st.lists(st.integers(0, 9000), min_size=1, max_size=12),
    order=st.lists(st.integers(0, 11), max_size=30),
    prefetch=st.sampled_from([0, 3000, 1 << 20]),
    in_flight=st.sampled_from([0, 5000, 1 << 20]),
    slow=st.booleans(),
)
def test_any_order_any_number_of_times(sizes, order, prefetch, in_flight, slow) -> None:
    lane = SlowLane() if slow else CpuLane()
    store = HostStore("cpu", prefetch_bytes=prefetch, in_flight_bytes=in_flight, lane=lane)
    handles = [store.put(buffer(i + 1, n), sequence=i // 2) for i, n in enumerate(sizes)]
    for i in order:
        i %= len(handles)
        got = handles[i].get()
        if slow:  # a computation on the same stream would see it; let the copies that were waited for be over
            assert all(t > max((e[1] for e in lane.events if e[0] == "arrive"), default=-1) for t in lane.pending)
        assert torch.equal(got, buffer(i + 1, sizes[i]))
    assert store.stats().hits + store.stats().misses == len(order)
    assert store.stats().stored_bytes == sum(sizes)
    del handles
    assert store.stats().stored_bytes == 0


def test_backward_order_hits() -> None:
    store = HostStore("cpu", prefetch_bytes=200)
    handles = [store.put(buffer(i), sequence=i) for i in range(10)]
    for i in reversed(range(10)):
        assert int(handles[i].get()[0]) == i
    stats = store.stats()
    assert (stats.misses, stats.hits, stats.discarded) == (1, 9, 0)
    assert stats.sent_bytes == stats.fetched_bytes == 1000  # each copied once each way


def test_a_wrong_guess_is_only_a_miss() -> None:
    store = HostStore("cpu", prefetch_bytes=200)
    handles = [store.put(buffer(i), sequence=i) for i in range(10)]
    for i in range(10):  # forward order: everything below is already over
        assert int(handles[i].get()[0]) == i
    assert store.stats().misses == 10
    before = store.stats().discarded
    assert int(handles[2].get()[0]) == 2  # 8 and 7 were brought back in vain
    assert store.stats().discarded == before + 2
    assert int(handles[1].get()[0]) == 1
    assert store.stats().hits == 1


def test_no_more_is_brought_back_than_allowed() -> None:
    lane = SlowLane()
    store = HostStore("cpu", prefetch_bytes=250, in_flight_bytes=0, lane=lane)
    handles = [store.put(buffer(i), sequence=i) for i in range(10)]
    handles[9].get()
    assert sum(e[0] == "fetch" for e in lane.events) == 1 + 2  # what was asked for, and what fits into 250 bytes
    handles[8].get()
    assert sum(e[0] == "fetch" for e in lane.events) == 1 + 3


def test_what_is_still_here_is_not_fetched() -> None:
    lane = SlowLane()
    store = HostStore("cpu", lane=lane)
    first = store.put(buffer(1))
    assert int(first.get()[0]) == 1
    assert [e[0] for e in lane.events] == ["send"]


def test_computation_waits_when_too_much_is_on_its_way() -> None:
    lane = SlowLane()
    store = HostStore("cpu", in_flight_bytes=250, lane=lane)
    handles = [store.put(buffer(i)) for i in range(4)]
    assert [e for e in lane.events if e[0] == "arrive"] == [("arrive", 0), ("arrive", 1)]
    lane.arrive(3)
    store.stats()
    assert int(handles[3].get()[0]) == 3
    assert sum(e[0] == "fetch" for e in lane.events) > 0


def test_buffers_are_let_go_when_their_copy_is_over() -> None:
    lane = SlowLane()
    store = HostStore("cpu", lane=lane)
    source = buffer(1)
    storage = weakref.ref(source.untyped_storage())
    alive = torch.multiprocessing.reductions.StorageWeakRef(source.untyped_storage())
    handle = store.put(source)
    del source, storage
    assert not alive.expired()
    lane.arrive(0)
    store.stats()
    assert alive.expired()
    assert int(handle.get()[0]) == 1


def test_what_is_never_fetched_goes_with_its_handle() -> None:
    store = HostStore("cpu")
    gc.disable()  # reference counts must do
    try:
        for i in range(50):
            handles = [store.put(buffer(i, 5000)) for _ in range(4)]
            handles[3].get()  # some come back early and are never asked for
            del handles
        stats = store.stats()
    finally:
        gc.enable()
    assert stats.stored_bytes == 0
    assert stats.pooled_bytes == 4 * 5120  # the same four blocks all the time
    store.trim()
    assert store.stats().pooled_bytes == 0


def test_a_store_goes_with_its_last_handle() -> None:
    store = HostStore("cpu")
    handle, alive = store.put(buffer(7)), weakref.ref(store)
    del store
    assert int(handle.get()[0]) == 7
    del handle
    assert alive() is None


def test_a_result_is_no_view_of_the_host_copy() -> None:
    store = HostStore("cpu", prefetch_bytes=0)
    handle = store.put(buffer(3))
    handle.get().zero_()
    assert int(handle.get()[0]) == 3


def test_threads() -> None:
    store, wrong = HostStore("cpu", prefetch_bytes=3000), threading.Event()

    def work(number: int) -> None:
        for step in range(20):
            handles = [store.put(buffer((number * 16 + i + step) % 251, 500 + i)) for i in range(16)]
            for i in torch.randperm(16, generator=torch.Generator().manual_seed(step)).tolist():
                if not torch.equal(handles[i].get(), buffer((number * 16 + i + step) % 251, 500 + i)):
                    wrong.set()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong.is_set()
    assert store.stats().stored_bytes == 0
    assert store.stats().hits + store.stats().misses == 4 * 20 * 16


def test_with_autograd_most_fetches_are_foreseen() -> None:
    # A chain: the order of sequence numbers is the order of the backward pass.
    store, x = HostStore("cpu"), torch.randn(64, requires_grad=True)

    def pack(t: Tensor) -> Any:
        return store.put(t.detach().view(torch.uint8))

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda h: h.get().view(torch.float32)):
        y = x
        for _ in range(20):
            y = y.sin()
    (grad,) = torch.autograd.grad(y.sum(), x)
    z = x
    for _ in range(20):
        z = z.sin()
    assert torch.equal(grad, torch.autograd.grad(z.sum(), x)[0])
    assert (store.stats().misses, store.stats().hits) == (1, 19)


@pytest.mark.parametrize("retain", [False, True])
def test_in_a_compressor_nothing_changes_but_the_place(retain: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 8))
    x, found = torch.randn(128, 32), []
    store = HostStore("cpu", prefetch_bytes=10_000)
    for offload in (None, store):
        model.zero_grad()
        with ActivationCompressor(model, bits=4, min_bytes=1024, offload=offload):
            loss = model(x).square().mean()
        if retain:
            loss.backward(retain_graph=True)
        loss.backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        del loss
    assert torch.equal(*found)
    assert store.stats().sent_bytes > 0
    assert store.stats().stored_bytes == 0


@pytest.mark.parametrize(
    "wrong", [torch.zeros(4), torch.zeros((2, 2), dtype=torch.uint8), torch.zeros(8, dtype=torch.uint8)[::2]]
)
def test_bad_buffers(wrong: Tensor) -> None:
    with pytest.raises(ValueError, match="contiguous bytes"):
        HostStore("cpu").put(wrong)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="prefetch_bytes=-1"):
        HostStore("cpu", prefetch_bytes=-1)
    with pytest.raises(ValueError, match="device='meta'"):
        HostStore("meta")

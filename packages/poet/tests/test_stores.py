"""Stores of pages: every byte of every kind of tensor, failures that are told, nothing left behind."""

import errno
import itertools
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from poet.stores import Form, PageError, default_page_dir, lies_in_memory, raw
from poet.stores_disk import DiskStore, Space
from poet.stores_host import HostStore, size_class
from poet.trace_layout import Layout
from poet.trace_store import PageStore

DTYPES = [
    torch.bool, torch.uint8, torch.int16, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip
VIEWS = {
    "contiguous": lambda t: t,
    "transposed": lambda t: t.transpose(0, 3),
    "channels last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "every other": lambda t: t[:, ::2],
    "offset": lambda t: t[1:, 2:],
    "expanded": lambda t: t[:1].expand(5, -1, -1, -1),
    "scalar": lambda t: t[0, 0, 0, 0],
    "nothing": lambda t: t[:0],
}


def bytes_as(dtype: torch.dtype, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Arbitrary bytes as numbers of a type, NaNs of all kinds included."""
    count = int(np.prod(shape)) * dtype.itemsize
    data = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, count, dtype=np.uint8))
    if dtype is torch.bool:
        return (data > 127).view(shape)
    return data.view(dtype).view(shape)


@pytest.fixture(params=["disk", "host"])
def store(request, tmp_path):
    made = DiskStore(tmp_path) if request.param == "disk" else HostStore()
    yield made
    made.close()


def back(store: DiskStore | HostStore, tensor: Tensor) -> Tensor:
    handle = store.write(3, tensor)
    store.wait(handle)
    copy = store.read(handle)
    store.wait(handle)
    store.drop(handle)
    return copy


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_bytes_come_back(store, dtype, view):
    tensor = VIEWS[view](bytes_as(dtype, (3, 4, 5, 6)))
    copy = back(store, tensor)
    assert Layout.of(copy) == Layout.of(tensor)
    assert raw(copy).data_ptr() != raw(tensor).data_ptr() or not raw(tensor).numel()
    assert torch.equal(raw(copy), raw(tensor))


@pytest.mark.parametrize("lazy", [Tensor.conj, torch._neg_view])
def test_lazy_conjugates_and_negatives(store, lazy):
    tensor = lazy(torch.complex(torch.randn(4), torch.randn(4)))
    copy = back(store, tensor)
    assert (copy.is_conj(), copy.is_neg()) == (tensor.is_conj(), tensor.is_neg())
    assert torch.equal(copy, tensor)


def test_parameters_and_empty_storages(store):
    parameter = torch.nn.Parameter(torch.randn(3, 2))
    assert torch.equal(back(store, parameter), parameter.detach())
    assert back(store, torch.empty(0, 7)).shape == (0, 7)


def test_sparse_tensors_are_refused(store):
    with pytest.raises(TypeError, match="sparse_coo"):
        store.write(0, torch.eye(2).to_sparse())


def test_stores_follow_the_protocol(store):
    assert isinstance(store, PageStore)


def test_a_copy_is_read_any_number_of_times_and_outlives_its_tensor(store):
    tensor = torch.arange(1000.0)
    handle = store.write(0, tensor)
    store.wait(handle)
    tensor.zero_()
    first, second = store.read(handle), store.read(handle)
    store.wait(handle)
    assert torch.equal(first, torch.arange(1000.0))
    assert torch.equal(second, first)
    first.zero_()
    third = store.read(handle)
    store.wait(handle)
    assert torch.equal(third, second)


@pytest.mark.property
@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["write", "read", "drop"]), st.integers(0, 9), st.integers(0, 5000))))
def test_copies_do_not_meet(moves):
    with DiskStore() as disk:
        held: dict[int, tuple[object, Tensor]] = {}
        for k, (move, v, size) in enumerate(moves):
            if move == "write" and v not in held:
                tensor = bytes_as(torch.uint8, (size,), seed=k)
                held[v] = disk.write(v, tensor), tensor
            elif move == "drop" and v in held:
                disk.drop(held.pop(v)[0])
            elif move == "read" and v in held:
                handle, tensor = held[v]
                copy = disk.read(handle)
                disk.wait(handle)
                assert torch.equal(copy, tensor)


@pytest.mark.property
@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_places_in_a_file_never_overlap_and_gaps_are_used(lengths, random):
    space, taken = Space(), {}
    for k, length in enumerate(lengths):
        taken[k] = space.take(length), length
        spans = sorted(taken.values())
        assert all(a + n <= b for (a, n), (b, _) in itertools.pairwise(spans))
        assert spans[-1][0] + spans[-1][1] <= space.end <= sum(lengths[: k + 1])
        if random.random() < 0.5:
            space.give(*taken.pop(random.choice(list(taken))))
    for place in taken.values():
        space.give(*place)
    assert space.end == 0


def test_transfers_run_beside_the_caller(tmp_path, monkeypatch):
    gate, write = threading.Event(), os.pwritev

    def slow(*args):
        gate.wait(10)
        return write(*args)

    monkeypatch.setattr(os, "pwritev", slow)
    with DiskStore(tmp_path) as disk:
        tensor = torch.arange(100)
        handle = disk.write(0, tensor)  # returns while the write is held up
        copy = disk.read(handle)
        assert not gate.is_set()
        gate.set()
        disk.wait(handle)
        assert torch.equal(copy, tensor)


def test_short_transfers_are_continued(tmp_path, monkeypatch):
    write, read = os.pwritev, os.preadv
    monkeypatch.setattr(os, "pwritev", lambda handle, views, place: write(handle, [views[0][:7]], place))
    monkeypatch.setattr(os, "preadv", lambda handle, views, place: read(handle, [views[0][:5]], place))
    with DiskStore(tmp_path) as disk:
        assert torch.equal(back(disk, torch.arange(50)), torch.arange(50))


def test_the_thread_keeps_no_tensor(tmp_path):
    with DiskStore(tmp_path) as disk:
        tensor = torch.arange(100)
        storage = StorageWeakRef(tensor.untyped_storage())
        handle = disk.write(0, tensor)
        disk.wait(handle)
        assert not storage.expired()
        del tensor
        assert storage.expired()


def failing(code: int):
    def fail(*_args):
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failed_write_is_told_once_and_the_store_serves_again(tmp_path, monkeypatch, code):
    with DiskStore(tmp_path) as disk:
        good = disk.write(0, torch.arange(9))
        disk.wait(good)
        with monkeypatch.context() as broken:
            broken.setattr(os, "pwritev", failing(code))
            first, second = disk.write(1, torch.ones(3)), disk.write(2, torch.ones(4))
            with pytest.raises(PageError, match=f"value 1.*{tmp_path}.*{os.strerror(code)}.*page_dir") as caught:
                disk.wait(first)
        assert caught.value.errno == code
        disk.wait(second)  # clearing up is not interrupted
        with pytest.raises(PageError, match="drop all"):
            disk.read(good)
        for handle in (good, first, second):
            disk.drop(handle)
        assert torch.equal(back(disk, torch.arange(4)), torch.arange(4))


def test_reading_what_was_not_written_fails(tmp_path, monkeypatch):
    with DiskStore(tmp_path) as disk, monkeypatch.context() as broken:
        broken.setattr(os, "pwritev", failing(errno.ENOSPC))
        handle = disk.write(0, torch.ones(3))
        disk.read(handle)
        with pytest.raises(PageError, match="No space left"):
            disk.wait(handle)


@pytest.mark.parametrize("harm", ["flip", "cut"])
def test_changed_bytes_are_noticed(tmp_path, harm):
    with DiskStore(tmp_path) as disk:
        handle = disk.write(5, torch.arange(1000))
        disk.wait(handle)
        fd = disk._worker.handle
        if harm == "flip":
            byte = os.pread(fd, 1, 4321)
            os.pwrite(fd, bytes([byte[0] ^ 1]), 4321)
        else:
            os.ftruncate(fd, 4321)
        disk.read(handle)
        with pytest.raises(PageError, match="value 5.*" + ("have changed" if harm == "flip" else "ends after 4321")):
            disk.wait(handle)


LIMITED = """
import errno, resource, sys, torch
from poet.stores import PageError
from poet.stores_disk import DiskStore
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
with DiskStore(sys.argv[1]) as store:
    handle = store.write(0, torch.zeros(1 << 17, dtype=torch.uint8))
    try:
        store.wait(handle)
    except PageError as error:
        assert error.errno == errno.EFBIG, error
        print("told")
"""


def test_a_file_that_may_not_grow(tmp_path):
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("told\n", 0), done.stderr
    assert list(tmp_path.iterdir()) == []


KILLED = """
import sys, time, torch
from poet.stores_disk import DiskStore
store = DiskStore(sys.argv[1])
handle = store.write(0, torch.ones(1 << 20))
store.wait(handle)
print("written", flush=True)
time.sleep(60)
"""


def held_bytes(pid: int) -> int:
    """Bytes of the files without a name that a process holds."""
    found = 0
    for link in Path(f"/proc/{pid}/fd").iterdir():
        if link.readlink().name.endswith("(deleted)"):
            found += link.stat().st_size
    return found


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_nothing_is_left_after_a_kill(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "written\n"
        assert list(tmp_path.iterdir()) == []  # the file has no name, so the system removes it with the process
        assert held_bytes(child.pid) >= 4 << 20
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert child.stdout is not None
        child.stdout.close()
    assert list(tmp_path.iterdir()) == []


def test_stores_side_by_side(tmp_path):
    errors: list[BaseException] = []

    def use(seed: int) -> None:
        try:
            with DiskStore(tmp_path) as disk:
                tensors = [bytes_as(torch.uint8, (1000 + k,), seed=100 * seed + k) for k in range(20)]
                handles = [disk.write(k, t) for k, t in enumerate(tensors)]
                copies = [disk.read(handle) for handle in handles]
                for handle in handles:
                    disk.wait(handle)
                assert all(torch.equal(a, b) for a, b in zip(tensors, copies, strict=True))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_space_is_given_back_when_no_copy_is_left(tmp_path):
    with DiskStore(tmp_path) as disk:
        handles = [disk.write(k, torch.ones(1000)) for k in range(3)]
        for handle in handles:
            disk.wait(handle)
        assert os.fstat(disk._worker.handle).st_size == 12000
        for handle in handles:
            disk.drop(handle)
            disk.wait(handle)
        assert os.fstat(disk._worker.handle).st_size == 0


def test_a_closed_store_says_so(tmp_path):
    disk = DiskStore(tmp_path)
    handle = disk.write(0, torch.ones(3))
    disk.close()
    disk.close()
    with pytest.raises(PageError, match="closed"):
        disk.read(handle)
    disk.drop(handle)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # forking with threads is what is tried here
def test_a_forked_process_leaves_the_store_alone(tmp_path):
    with DiskStore(tmp_path) as disk:
        handle = disk.write(0, torch.arange(5))
        disk.wait(handle)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                disk.write(1, torch.ones(2))
            except PageError:
                disk.close()
                code = 0
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        copy = disk.read(handle)
        disk.wait(handle)
        assert torch.equal(copy, torch.arange(5))


def test_folders(tmp_path):
    with pytest.raises(ValueError, match="existing folder"):
        DiskStore(tmp_path / "none")
    assert default_page_dir().is_dir()
    if Path("/dev/shm").is_dir() and os.path.ismount("/dev/shm"):
        assert lies_in_memory(Path("/dev/shm"))
    assert not lies_in_memory(Path("/proc/self"))


def test_host_memory_is_used_again():
    host = HostStore()
    first = host.write(0, torch.ones(1000))
    block = first.block
    assert (host.held, host.pooled) == (4000, 0)
    host.drop(first)
    assert (host.held, host.pooled) == (0, size_class(4000))
    second = host.write(1, torch.zeros(900))  # of the same class
    assert second.block is block
    assert torch.equal(host.read(second), torch.zeros(900))
    host.drop(second)
    host.trim()
    assert host.pooled == 0


def test_a_host_store_is_for_one_device():
    with pytest.raises(ValueError, match="'meta'"):
        HostStore("meta")
    with pytest.raises(ValueError, match="is on meta"):
        HostStore().write(0, torch.empty(2, device="meta"))


@pytest.mark.property
@given(st.integers(1, 1 << 40))
def test_size_classes_waste_little(nbytes):
    size = size_class(nbytes)
    assert nbytes <= size <= max(512, 1.25 * nbytes)
    assert size_class(size) == size


def test_a_form_keeps_the_whole_storage():
    base = torch.arange(12)
    form = Form.of(base[3:5])
    assert (form.nbytes, form.layout.offset) == (96, 3)

"""Bytes that tensors really occupy, and peak meters for tensors, for CUDA's allocator and for the process.

Memory is counted by storage: views, in-place results and tied parameters add nothing. torch and jax are never imported
here unless a tensor or a meter already needs them.
"""

import dataclasses
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Self, final

import numpy as np

_PLAIN = (type(None), bool, int, float, complex, str, bytes, np.generic)
_ROWS, _COLUMNS = ("crow_indices", "col_indices", "values"), ("ccol_indices", "row_indices", "values")
_SPARSE = {
    "torch.sparse_coo": ("_indices", "_values"),  # these need no coalescing
    "torch.sparse_csr": _ROWS,
    "torch.sparse_bsr": _ROWS,
    "torch.sparse_csc": _COLUMNS,
    "torch.sparse_bsc": _COLUMNS,
}


def storage_bytes(tree: Any) -> int:
    """Bytes of the distinct memory behind every array of a tree.

    Overlapping memory counts once, also between torch and numpy. A storage counts whole, however small the view of it:
    it is what stays allocated. Sparse tensors count indices and values, wrapper subclasses the tensors they wrap (found
    through ``__tensor_flatten__``), jax arrays the shards of this process.

    Args:
        tree: torch tensors, numpy or jax arrays, ``torch.nn.Module`` (its parameters and buffers), and mappings, sets,
            sequences or dataclasses of such; numbers, text and None count nothing.

    Returns:
        The number of bytes.

    Raises:
        TypeError: If a leaf is something else, or a tensor whose memory cannot be found.

    Example:
        >>> a = np.zeros(100)
        >>> storage_bytes({"whole": a, "half": a[50:]})
        800
    """
    spans: dict[str, list[tuple[int, int]]] = {}
    unplaced: dict[int, int] = {}  # meta tensors have a size and no address
    for leaf in _leaves(tree):
        if isinstance(leaf, _PLAIN):
            continue
        if _is_torch(leaf):
            for storage in _torch_storages(leaf):
                if start := storage.data_ptr():
                    spans.setdefault(str(storage.device), []).append((start, start + storage.nbytes()))
                else:
                    unplaced[storage._cdata] = storage.nbytes()
        elif isinstance(leaf, np.ndarray):
            while isinstance(leaf.base, np.ndarray):
                leaf = leaf.base
            start = leaf.__array_interface__["data"][0]
            spans.setdefault("cpu", []).append((start, start + leaf.nbytes))
        elif _is_jax(leaf):
            for shard in leaf.addressable_shards:
                start = shard.data.unsafe_buffer_pointer()
                spans.setdefault(str(shard.device), []).append((start, start + shard.data.nbytes))
        else:
            raise TypeError(f"a {type(leaf).__name__} in the tree: give torch, numpy or jax arrays, or containers")
    return sum(unplaced.values()) + sum(_covered(device) for device in spans.values())


@dataclass(frozen=True, slots=True)
class PeakReading:
    """What a meter has seen, in bytes.

    Args:
        baseline: In use when the meter was entered.
        peak: The most in use at once since then, the baseline included.
        current: In use now, or when the meter was left.
        source: Where the numbers come from.
    """

    baseline: int
    peak: int
    current: int
    source: str

    @property
    def peak_added(self) -> int:
        """Bytes of the peak above the baseline."""
        return self.peak - self.baseline

    @property
    def current_added(self) -> int:
        """Bytes in use above the baseline; negative if more was freed than allocated."""
        return self.current - self.baseline


class Meter(ABC):
    """A context manager that measures between entry and exit; read it inside or afterwards with `reading`."""

    _last: PeakReading | None = None
    _running: bool = False

    def __enter__(self) -> Self:
        if self._running:
            raise RuntimeError(f"this {type(self).__name__} is running; use a second one to nest measurements")
        self._start()
        self._running = True
        return self

    def __exit__(self, *error: object) -> None:
        self._last, self._running = self._read(), False
        self._stop()

    def reading(self) -> PeakReading:
        """Return the numbers up to now, or up to the exit.

        Raises:
            RuntimeError: If the meter was never entered.
        """
        if self._running:
            return self._read()
        if self._last is None:
            raise RuntimeError(f"nothing measured yet: use `with {type(self).__name__}() as meter:`")
        return self._last

    @abstractmethod
    def _start(self) -> None: ...

    @abstractmethod
    def _read(self) -> PeakReading: ...

    def _stop(self) -> None:
        return None


@final
class PeakMeter(Meter):
    """Exact bytes of the torch tensors of one device type, by following every storage from its operator to its death.

    Storages are held by weak references, so what autograd saves is followed for as long as the graph keeps it.
    A storage first met as an operand was there before and belongs to the baseline; numpy's memory counts as allocated
    when torch wraps it. Not seen: what an operator allocates and frees inside itself, other threads, and storages that
    no operator of this thread touches; pass those as `alive` to have them in the baseline. While it is observed,
    autograd adds up the gradients of a tensor that was used twice out of place, which can cost one more gradient.

    Args:
        device: Device type to count, ``"cpu"`` by default; ``"cuda"`` counts tensors, not the allocator's blocks.
        alive: A tree of tensors to put into the baseline at entry.

    Example:
        ::

            with PeakMeter(alive=model) as meter:
                loss = model(x).sum()
                saved = meter.held_bytes(excluding=(x, loss))  # what the graph keeps for the backward pass
                loss.backward()
            meter.reading().peak_added
    """

    def __init__(self, device: str = "cpu", alive: Any = ()) -> None:
        self._device, self._given = device, alive

    def held_bytes(self, excluding: Any = ()) -> int:
        """Return the bytes alive now that were allocated since entry, without those of a tree of tensors.

        Raises:
            RuntimeError: If the meter is not running.
        """
        if not self._running:
            raise RuntimeError("held_bytes reads living tensors: call it inside the `with` block")
        self._sweep()
        known = {storage._cdata for storage in self._storages(excluding)}
        return sum(size for key, (_, size, created) in self._alive.items() if created and key not in known)

    def _start(self) -> None:
        self._alive: dict[int, tuple[Any, int, bool]] = {}  # weak reference, bytes, allocated since entry
        self._baseline = self._peak = self._total = 0
        self._weak = import_module("torch.multiprocessing.reductions").StorageWeakRef
        self._untyped = import_module("torch").UntypedStorage
        self._touch(self._given, created=False)
        self._mode = _follow(self._touch)
        self._mode.__enter__()

    def _stop(self) -> None:
        self._mode.__exit__(None, None, None)
        del self._mode
        self._alive.clear()

    def _read(self) -> PeakReading:
        self._sweep()
        return PeakReading(self._baseline, self._peak, self._total, f"torch tensors on {self._device}, by storage")

    def _storages(self, tree: Any) -> Iterator[Any]:
        for leaf in _leaves(tree):
            if _is_torch(leaf):
                yield from (s for s in _torch_storages(leaf) if s.device.type == self._device)

    def _touch(self, tree: Any, created: bool) -> None:
        for storage in self._storages(tree):
            key, size = storage._cdata, storage.nbytes()
            if key not in self._alive:
                self._alive[key] = self._weak(storage), size, created
                self._total += size
                if not created:  # it was alive all the time, at the peak too
                    self._baseline += size
                    self._peak += size
            else:
                self._resize(key, size)
        if self._total > self._peak:  # the total may hold the dead until they are swept out
            self._sweep()
            self._peak = max(self._peak, self._total)

    def _resize(self, key: int, size: int) -> None:
        reference, before, created = self._alive[key]
        if size != before:
            self._alive[key] = reference, size, created
            self._total += size - before

    def _sweep(self) -> None:
        """Forget the storages that died, and take note of those resized outside of an operator."""
        for key, (reference, size, _) in list(self._alive.items()):
            storage = self._untyped._new_with_weak_ptr(reference.cdata)
            if storage is None:
                self._total -= size
                del self._alive[key]
            else:
                self._resize(key, storage.nbytes())


@final
class CudaPeakMeter(Meter):
    """Bytes that torch's CUDA allocator has handed out on one device.

    Resets the allocator's peak at entry, so such meters must not be nested.

    Args:
        device: Device index or name; the current device by default.

    Raises:
        RuntimeError: At entry, if torch sees no CUDA device.
    """

    def __init__(self, device: Any = None) -> None:
        self._device = device

    def _start(self) -> None:
        self._cuda = import_module("torch").cuda
        if not self._cuda.is_available():
            raise RuntimeError("torch sees no CUDA device; measure CPU tensors with PeakMeter")
        self._cuda.init()
        self._cuda.reset_peak_memory_stats(self._device)
        self._baseline = self._cuda.memory_allocated(self._device)

    def _read(self) -> PeakReading:
        peak, now = self._cuda.max_memory_allocated(self._device), self._cuda.memory_allocated(self._device)
        return PeakReading(self._baseline, peak, now, "torch's CUDA allocator")


@final
class ProcessPeakMeter(Meter):
    """Resident memory of the whole process; its peak is the operating system's.

    On Linux the kernel's peak is reset at entry; where that is not permitted, and elsewhere, the peak is the process's
    since it started, and the reading's source says so.
    """

    def _start(self) -> None:
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            self._reset = True
        except OSError:
            self._reset = False
        self._baseline = resident_bytes()[0]

    def _read(self) -> PeakReading:
        now, peak = resident_bytes()
        source = "VmHWM, reset at entry" if self._reset else "peak since the process started"
        return PeakReading(self._baseline, max(peak, now), now, source)


def resident_bytes() -> tuple[int, int]:
    """Resident set of this process, now and at most, in bytes.

    Linux keeps ``ru_maxrss`` over exec, so that a small child would report its large parent: the high-water mark of
    the present address space is read instead where there is one.

    Returns:
        Bytes now, and at most so far; elsewhere than on Linux the latter twice.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines()
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        return int(fields["VmRSS"].split()[0]) * 1024, int(fields["VmHWM"].split()[0]) * 1024
    except (OSError, KeyError):  # not Linux: only the peak is to be had
        peak = import_module("resource").getrusage(0).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return peak, peak


def _follow(touch: Any) -> Any:
    """A dispatch mode that shows `touch` the operands and the results of every operator."""
    fresh = import_module("torch").ops.aten.lift_fresh.default  # torch.tensor(...): its operand is new

    mode: Any = import_module("torch.utils._python_dispatch").TorchDispatchMode

    class Follow(mode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            touch((args, kwargs), created=func is fresh)
            result = func(*args, **kwargs)
            touch(result, created=True)
            return result

    return Follow()


def _leaves(tree: Any) -> Iterator[Any]:
    if isinstance(tree, Mapping):
        for value in tree.values():
            yield from _leaves(value)
    elif isinstance(tree, list | tuple | AbstractSet):
        for value in tree:
            yield from _leaves(value)
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        for field in dataclasses.fields(tree):
            yield from _leaves(getattr(tree, field.name))
    elif "torch" in sys.modules and isinstance(tree, sys.modules["torch"].nn.Module):
        yield from tree.parameters()
        yield from tree.buffers()
    else:
        yield tree


def _torch_storages(tensor: Any) -> Iterator[Any]:
    """The storages of one tensor; several for sparse tensors and wrapper subclasses.

    Raises:
        TypeError: If the tensor's memory cannot be found.
    """
    if hasattr(tensor, "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            yield from _torch_storages(getattr(tensor, name))
        return
    if str(tensor.layout) in _SPARSE:
        for name in _SPARSE[str(tensor.layout)]:
            yield from _torch_storages(getattr(tensor, name)())
        return
    try:
        storage = tensor.untyped_storage()
        if storage.device.type != "meta" and storage.nbytes() > 0 and storage.data_ptr() == 0:
            raise RuntimeError("no address")
    except RuntimeError as error:
        raise TypeError(
            f"the memory of a {type(tensor).__name__} with layout {tensor.layout} cannot be found; "
            "a wrapper subclass must define __tensor_flatten__"
        ) from error
    yield storage


def _covered(spans: list[tuple[int, int]]) -> int:
    """Length of the union of half-open intervals."""
    total = reached = 0
    for start, end in sorted(spans):
        total += max(0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _is_torch(leaf: Any) -> bool:
    return "torch" in sys.modules and isinstance(leaf, sys.modules["torch"].Tensor)


def _is_jax(leaf: Any) -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)

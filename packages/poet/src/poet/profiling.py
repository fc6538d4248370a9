"""A device profile of the machine at hand: speed of a matrix product, and transfers to the host and to disk.

A transfer of b bytes takes latency + b / throughput; both are fitted to medians over several sizes. Energy is not
measured: the profile says so in `missing`, and then serves the objective `"time"`.
"""

import importlib.util
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Literal, final

import numpy as np

from poet.device import Device, Tier
from poet.paging_file import PagingFile

Clock = Callable[[], float]
SIZES = tuple(2**power for power in (12, 15, 18, 20, 22, 24))
"""Bytes of the transfers that are timed."""

_REPEATS = (3, 200)  # fewest and most of each measurement
_LONG_ENOUGH = 0.02  # seconds of a matrix product, beside which the timer and the call vanish
_SIDES = (64, 4096)


@final
@dataclass(frozen=True)
class Transfer:
    """Duration of transfers as a straight line.

    Attributes:
        latency: Seconds before the first byte.
        throughput: Bytes per second after it.
    """

    latency: float
    throughput: float

    def seconds(self, size: int) -> float:
        """Duration of `size` bytes."""
        return self.latency + size / self.throughput

    def after(self, first: "Transfer") -> "Transfer":
        """Both in turn: latencies add, and so do the times per byte."""
        return Transfer(self.latency + first.latency, 1 / (1 / self.throughput + 1 / first.throughput))


def fit_transfer(sizes: Sequence[int], seconds: Sequence[float]) -> Transfer:
    r"""Latency and throughput of timed transfers, with the least relative error.

    $$\min_{l, s \ge 0} \sum_i \Big(\frac{l + s b_i}{t_i} - 1\Big)^2, \qquad \text{throughput} = 1 / s$$

    Args:
        sizes: Bytes b of each transfer, at least two different ones.
        seconds: Duration t of each.

    Raises:
        ValueError: If there are not two different sizes, or a duration is not positive.

    Example:
        >>> line = fit_transfer([1000, 2000], [0.5 + 0.001, 0.5 + 0.002])
        >>> round(line.latency, 9), round(line.throughput, 3)
        (0.5, 1000000.0)
    """
    from scipy.optimize import nnls

    if len(sizes) != len(seconds) or len(set(sizes)) < 2 or not min(seconds) > 0:
        raise ValueError(f"give positive durations of two sizes or more, got {list(sizes)} and {list(seconds)}")
    t, b = np.array(seconds), np.array(sizes, dtype=float)
    scale = float(b.max())
    (latency, slope), _ = nnls(np.stack([1 / t, b / scale / t], axis=1), np.ones(len(t)))
    if not slope > 0:  # no slower for more bytes: too fast for these sizes
        return Transfer(0.0, float((b / t).max()))
    return Transfer(float(latency), float(scale / slope))


def time_median(run: Callable[[], Any], seconds: float, clock: Clock = perf_counter) -> float:
    """Median duration of a call, after one that does not count.

    Args:
        run: What is timed.
        seconds: How long to repeat; never fewer than 3 times.
        clock: Seconds now.
    """
    run()
    least, most = _REPEATS
    durations: list[float] = []
    began = clock()
    while len(durations) < least or (clock() - began < seconds and len(durations) < most):
        start = clock()
        run()
        durations.append(clock() - start)
    return median(durations)


def time_transfers(
    run: Callable[[int], Any],
    seconds: float,
    clock: Clock = perf_counter,
    sizes: Sequence[int] = SIZES,
) -> Transfer:
    """Time transfers of several sizes and fit a line to the medians.

    Args:
        run: Transfers so many bytes.
        seconds: How long to measure in all; once it is over, larger sizes are left out as long as two remain.
        clock: Seconds now.
        sizes: Bytes, ascending.
    """
    began = clock()
    medians: list[float] = []
    for size in sizes:
        if len(medians) >= 2 and clock() - began > seconds:
            break
        medians.append(time_median(partial(run, size), seconds / len(sizes), clock))
    return fit_transfer(list(sizes)[: len(medians)], medians)


def time_flops(product: Callable[[int], Callable[[], Any]], seconds: float, clock: Clock = perf_counter) -> float:
    """FLOP/s of a product of two square matrices, 2 n³ FLOPs, large enough to be timed.

    Args:
        product: Makes two matrices of so many rows, and gives what multiplies them.
        seconds: How long to measure.
        clock: Seconds now.
    """
    side, largest = _SIDES
    while True:
        run = product(side)
        run()
        start = clock()
        run()
        if clock() - start >= _LONG_ENOUGH or side >= largest:
            return 2 * side**3 / time_median(run, seconds, clock)
        side *= 2


def profile_device(
    page_dir: str | os.PathLike[str] | None = None,
    seconds: float = 2.0,
    *,
    device: Literal["cpu", "cuda"] = "cpu",
    tiers: tuple[str, ...] | None = None,
    clock: Clock = perf_counter,
) -> Device:
    """Measure the machine at hand.

    The product is torch's where torch is installed and NumPy's elsewhere, in single precision. Transfers to disk go
    around the page cache where the system allows it (`provenance` says whether it did), in a temporary folder of
    `page_dir` that is removed afterwards; on CUDA they pass through the host.

    Args:
        page_dir: Existing folder on the disk that is meant; the folder for temporary files unless given.
        seconds: About how long to measure.
        device: `"cpu"` or `"cuda"`.
        tiers: `"host"` and `"disk"`; all on CUDA, and the disk alone on the CPU, where a copy in the same memory
            relieves nothing (it can be asked for to stand for the host of an accelerator).
        clock: Seconds now.

    Returns:
        A profile without energy: its `missing` names those entries.

    Raises:
        ValueError: If an argument is out of range, or torch sees no CUDA device.
        OSError: If the folder cannot be written.
    """
    wanted = _check(page_dir, seconds, device, tiers)
    torch: Any = import_module("torch") if device == "cuda" or importlib.util.find_spec("torch") else None
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("torch sees no CUDA device: use device='cpu'")
    share = seconds / (1 + 2 * len(wanted))
    provenance = {"ram": "operating system" if device == "cpu" else "CUDA driver"}
    speed = time_flops(partial(_product, torch, device), share, clock)
    provenance["flops_per_second"] = f"measured: float32 matrix product of {'torch' if torch else 'NumPy'}, median"
    found: list[Tier] = []
    bus: tuple[Transfer, Transfer] | None = None
    if "host" in wanted or device == "cuda":
        bus = _time_host(torch, device, share, clock)
    for name in wanted:
        place = f"tiers[{len(found)}]"
        if name == "host" and bus is not None:
            found.append(_tier("host", *bus, duplex=device == "cuda"))
            provenance[place] = f"measured: copies {'to pinned memory' if device == 'cuda' else 'within memory'}"
        else:
            tier, method = _time_disk(page_dir, share, clock, bus if device == "cuda" else None)
            found.append(tier)
            provenance[place] = f"measured: a file, {method}; capacity is the space that was free"
    absent = ("flops_per_joule", "compute_power", *(f"tiers[{i}].power" for i in range(len(found))))
    provenance |= dict.fromkeys(absent, "not measured: there is no power meter here; energy is left out")
    return Device(
        f"this-{device}",
        title=torch.cuda.get_device_name() if device == "cuda" else f"this machine ({platform.machine()})",
        ram=torch.cuda.mem_get_info()[1] if device == "cuda" else _ram(),
        flops_per_second=speed,
        tiers=tuple(found),
        provenance=provenance,
        missing=absent,
    )


def _check(page_dir: Any, seconds: float, device: str, tiers: tuple[str, ...] | None) -> tuple[str, ...]:
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'cpu' or 'cuda', got {device!r}")
    if not 0 < seconds < float("inf"):
        raise ValueError(f"seconds must be positive and finite, got {seconds}")
    wanted = tuple(dict.fromkeys(tiers if tiers is not None else (("disk",) if device == "cpu" else ("host", "disk"))))
    if not set(wanted) <= {"host", "disk"}:
        raise ValueError(f"tiers that can be measured are 'host' and 'disk', got {wanted}")
    if page_dir is not None and not Path(page_dir).is_dir():
        raise ValueError(f"page_dir must be an existing folder, got {os.fspath(page_dir)!r}: make it first")
    return wanted


def _product(torch: Any, device: str, side: int) -> Callable[[], Any]:
    if torch is None:
        a = np.full((side, side), 0.5, dtype=np.float32)
        return lambda: a @ a
    x = torch.full((side, side), 0.5, device=device)

    def run() -> None:
        torch.mm(x, x)
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def _time_host(torch: Any, device: str, seconds: float, clock: Clock) -> tuple[Transfer, Transfer]:
    """Transfers from the host and to it."""
    if device == "cpu":
        source, target = np.ones(SIZES[-1], dtype=np.uint8), np.zeros(SIZES[-1], dtype=np.uint8)
        both = time_transfers(lambda size: np.copyto(target[:size], source[:size]), 2 * seconds, clock)
        return both, both
    there = torch.empty(SIZES[-1], dtype=torch.uint8, device=device)
    here = torch.empty(SIZES[-1], dtype=torch.uint8, pin_memory=True)

    def copy(target: Any, source: Any, size: int) -> None:
        target[:size].copy_(source[:size], non_blocking=True)
        torch.cuda.synchronize()

    read = time_transfers(partial(copy, there, here), seconds, clock)
    return read, time_transfers(partial(copy, here, there), seconds, clock)


def _time_disk(
    page_dir: str | os.PathLike[str] | None,
    seconds: float,
    clock: Clock,
    bus: tuple[Transfer, Transfer] | None,
) -> tuple[Tier, str]:
    """The disk behind a folder, behind the bus on an accelerator, and how the page cache was avoided."""
    with tempfile.TemporaryDirectory(dir=page_dir, prefix="poet-profile-") as folder:
        free = shutil.disk_usage(folder).free
        sizes = [size for size in SIZES if 2 * size <= free] or [*SIZES[:2]]
        with PagingFile(Path(folder) / "pages", sizes[-1]) as file:
            write = time_transfers(file.write, seconds, clock, sizes)
            file.write(sizes[-1])
            read = time_transfers(file.read, seconds, clock, sizes)
            method, block = file.method, file.block
    if bus is not None:
        read, write = bus[0].after(read), write.after(bus[1])
    return _tier("disk", read, write, capacity=free, block=block), method


def _tier(name: str, read: Transfer, write: Transfer, **options: Any) -> Tier:
    return Tier(name, read.latency, read.throughput, write.latency, write.throughput, **options)


def _ram() -> int | None:
    """Bytes of memory that this process may use: the machine's, or its control group's if that has less."""
    try:
        installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    try:
        return min(installed, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    except (OSError, ValueError):  # no control group, or "max"
        return installed

"""Run a plan, or any function, on real processes of this machine, one a device, over links of given rates."""

import atexit
import contextlib
import importlib.util
import os
import pickle
import signal
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, SupportsFloat, final

import numpy as np

from xmesh_reshard.plans import Plan
from xmesh_reshard.topology import Topology
from xmesh_reshard.transports.errors import PeerLostError, TransportError
from xmesh_reshard.transports.executor import Report
from xmesh_reshard.transports.nursery import Order, Rank, RankResult, read_frame, write_frame
from xmesh_reshard.transports.shaping import why_no_namespaces


class LaunchError(TransportError):
    """A rank has failed; the message ends with its traceback."""


@final
@dataclass(frozen=True, eq=False)
class LocalRun:
    """What came of a plan on processes of this machine.

    Attributes:
        parts: For each device its new parts; empty for ``keep=False``.
        reports: Of each device, ascending, for the last repetition.
        seconds: Of each repetition, from the first byte to the last at the slowest device.
    """

    parts: dict[int, dict[str, np.ndarray]]
    reports: tuple[Report, ...]
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median time of the repetitions, seconds."""
        return statistics.median(self.seconds)


def run_local(
    plan: Plan,
    parts: Mapping[int, Mapping[str, np.ndarray]] | Callable[[int], Mapping[str, np.ndarray]],
    *,
    links: str | None = None,
    repeats: int = 1,
    keep: bool = True,
    timeout: SupportsFloat = 120.0,
    **options: Any,
) -> LocalRun:
    """Execute a plan on real processes, one for each of its devices, over torch.distributed (gloo).

    Args:
        plan: What to do; its topology gives the rates of the links.
        parts: For each device its part of each tensor; or a function of a module that makes them, called on the ranks.
        links: ``netns``: each host is a network namespace whose link the kernel limits (needs root on Linux);
            ``bucket``: senders wait as long as the link would take; None: as fast as the machine is.
        repeats: How often to execute the plan.
        keep: Whether to bring the new parts back.
        timeout: Seconds until everything is ended.
        options: For :class:`~xmesh_reshard.transports.torch_transport.TorchTransport`: ``checksum``, ``window``,
            ``schedule``.

    Raises:
        LaunchError: A rank failed.
    """
    if repeats < 1:
        raise ValueError(f"repeats is at least 1; got {repeats}")
    given = [parts if callable(parts) else dict(parts.get(device, {})) for device in plan.devices]
    each = [(plan, one, repeats, keep, {"timeout": float(timeout), **options}) for one in given]
    found = run_ranks(execute_on_rank, plan.topology, each=each, devices=plan.devices, links=links, timeout=timeout)
    seconds = tuple(max(reports[k].seconds for _, reports in found) for k in range(repeats))
    new = {device: value for device, (value, _) in zip(plan.devices, found, strict=True)} if keep else {}
    return LocalRun(new, tuple(reports[-1] for _, reports in found), seconds)


def execute_on_rank(
    rank: Rank, plan: Plan, parts: Any, repeats: int, keep: bool, options: dict[str, Any]
) -> tuple[dict[str, np.ndarray], list[Report]]:
    """What each rank of :func:`run_local` does."""
    from xmesh_reshard.transports.torch_packing import to_numpy, to_torch
    from xmesh_reshard.transports.torch_transport import TorchTransport

    given = parts(rank.device) if callable(parts) else parts
    tensors = {name: to_torch(np.asarray(part)) for name, part in given.items()}
    reports, new = [], {}
    with TorchTransport(devices=plan.devices, wrap=rank.wrap, **options) as transport:
        for _ in range(repeats):
            new = transport.execute(plan, tensors)
            reports.append(transport.report)
    return ({name: to_numpy(tensor) for name, tensor in new.items()} if keep else {}), reports


def run_ranks(
    function: Callable[..., Any],
    topology: Topology,
    *common: Any,
    each: Sequence[tuple[Any, ...]] | None = None,
    devices: Sequence[int] | None = None,
    links: str | None = None,
    timeout: SupportsFloat = 120.0,
    strict: bool = True,
) -> list[Any]:
    """Call a function on real processes, one for each device, with torch.distributed (gloo) ready between them.

    Args:
        function: ``function(rank, *each[r], *common)``, defined in a module or script; ``rank`` is a
            :class:`~xmesh_reshard.transports.nursery.Rank`.
        topology: Hosts, devices and rates.
        common: Arguments of all ranks.
        each: Further arguments for each rank.
        devices: The device of each rank; all of the topology if None.
        links: As in :func:`run_local`. With ``bucket``, what the function sends through ``rank.wrap(channel)`` is
            slowed; nothing else is.
        timeout: Seconds until all ranks are ended.
        strict: Raise if a rank fails.

    Returns:
        What the function returned on each rank; for ``strict=False`` a
        :class:`~xmesh_reshard.transports.nursery.RankResult` for each.

    Raises:
        LaunchError: A rank failed; of several the first that did not fail because of another.
        TypeError: The function is no function of a module.
    """
    if importlib.util.find_spec("torch") is None:
        raise ImportError("real processes need torch: pip install 'xmesh-reshard[torch]'")
    if links not in (None, "netns", "bucket"):
        raise ValueError(f"links is None, 'netns' or 'bucket'; got {links!r}")
    if links == "netns" and (reason := why_no_namespaces()) is not None:
        raise TransportError(f"links='netns' is not possible here: {reason}; use links='bucket'")
    ranks = tuple(sorted(topology.host_of)) if devices is None else tuple(int(d) for d in devices)
    if unknown := [device for device in ranks if device not in topology.host_of]:
        raise ValueError(f"no host of the topology holds the devices {unknown[:8]}")
    own = [()] * len(ranks) if each is None else list(each)
    if len(own) != len(ranks):
        raise ValueError(f"each has arguments for {len(own)} ranks; there are {len(ranks)}")
    order = _order(
        function, tuple(pickle.dumps((*one, *common)) for one in own), ranks, topology, links, float(timeout)
    )
    results = _nursery().launch(order)
    if strict:
        _raise_first(results)
        return [result.value for result in results]
    if results[0].rank < 0:
        _raise_first(results)
    return list(results)


def _order(
    function: Callable[..., Any],
    each: tuple[bytes, ...],
    devices: tuple[int, ...],
    topology: Topology,
    links: str | None,
    timeout: float,
) -> Order:
    name, module = getattr(function, "__qualname__", ""), getattr(function, "__module__", None)
    if module is None or not name or "<" in name:
        raise TypeError(f"ranks run a function that is defined in a module; got {function!r}")
    file = getattr(sys.modules.get(module), "__file__", None)
    where = None if file is None else os.path.abspath(file)  # noqa: PTH100 (a link stays the link it is)
    return Order(module, where, name, each, devices, topology, links, timeout, tuple(sys.path))


def _raise_first(results: Sequence[RankResult]) -> None:
    failed = [result for result in results if result.error is not None]
    if not failed:
        return
    first = min(failed, key=lambda result: (isinstance(result.error, PeerLostError | TimeoutError), result.when))
    where = "the ranks could not be started" if first.rank < 0 else f"rank {first.rank} failed"
    text = f"{where}: {type(first.error).__name__}: {first.error}"
    raise LaunchError(f"{text}\n{first.trace}" if first.trace else text) from first.error


@final
class _Nursery:
    """The process that forks the ranks, kept for the next launch; it ends when this process does."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        environment = {"TORCH_CPP_LOG_LEVEL": "ERROR", **os.environ, **threads}
        environment["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
        command = [sys.executable, "-c", "from xmesh_reshard.transports.nursery import main; main()"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
        )
        self._lock = threading.Lock()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None and self.owner == os.getpid()

    def launch(self, order: Order) -> list[RankResult]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            try:
                write_frame(self._process.stdin.fileno(), pickle.dumps(order))
                frame = read_frame(self._process.stdout.fileno())
            except BrokenPipeError:
                frame = None
            except BaseException:  # Ctrl-C: end all ranks
                self.close()
                raise
            if frame is None:
                self.close()
                raise LaunchError("the process that starts the ranks has died; see what it wrote to standard error")
            return pickle.loads(frame)

    def close(self) -> None:
        if self.owner != os.getpid():
            return
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


_kept: list[_Nursery] = []


def _nursery() -> _Nursery:
    if not _kept or not _kept[0].alive:
        _kept[:] = [_Nursery()]
    return _kept[0]


@atexit.register
def close_nursery() -> None:
    """End the process that is kept for further launches, if there is one."""
    for nursery in _kept:
        nursery.close()
    _kept.clear()

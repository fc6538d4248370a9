"""Execute plans with torch.distributed: gloo between processes on CPUs, NCCL between GPUs."""

import dataclasses
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, SupportsFloat, final

import torch
import torch.distributed as dist

from xmesh_reshard.plans import Plan, Program
from xmesh_reshard.transports.channels import Pending
from xmesh_reshard.transports.consensus import Ballot
from xmesh_reshard.transports.errors import PeerLostError, TransportError
from xmesh_reshard.transports.executor import Report, execute, program_of
from xmesh_reshard.transports.rounds import depths, execute_rounds
from xmesh_reshard.transports.torch_packing import TorchPacker

_TAGS = 2**24  # tags of messages; one more is for closing


@final
class TorchTransport:
    """Executes plans between the processes of a process group, one device a process.

    It makes a group of its own (and so connections or a communicator of its own), and thus leaves the traffic of the
    group that it is given alone. Making one is collective: all processes of the group do it in the same order.

    Before the first byte of each execution all processes compare their plans' hashes; at the end they learn whether all
    succeeded. So an error in one process, its death included, is an error in all, within the timeout (at most a quarter
    more, as signs of progress are given in steps of a quarter). After a failure on the way the transport cannot be used
    again: make another. An error in what is given, found before the first byte, leaves it usable.

    With gloo a message's chunks are received ahead and passed on as they arrive. With NCCL the plan runs in rounds of
    grouped sends and receives on one communicator and a stream of its own, so that the order of its kernels is the
    plan's order on every GPU; the results are ready in the caller's current stream. NCCL needs one GPU a process. The
    path has run over gloo between processes, but not yet on GPUs.

    Args:
        group: The process group; the default group if None.
        devices: The device that each rank of the group stands for, by rank; rank r is device r if None.
        timeout: Seconds without progress after which a peer is given up.
        checksum: Send CRC-32 sums of all chunks and compare them.
        window: Messages under way at a device at a time (gloo); the plan's own number if None.
        schedule: ``free`` receives ahead, ``rounds`` works in a strict order; ``auto`` is rounds for NCCL only.
        store: Shared by the processes; the default group's store if None.
        wrap: Puts something around the channel, such as a limit to its rate.

    Attributes:
        device: The device of this process.
        report: What the last execution did.
    """

    def __init__(
        self,
        group: Any = None,
        *,
        devices: Sequence[int] | None = None,
        timeout: SupportsFloat = 300.0,
        checksum: bool = False,
        window: int | None = None,
        schedule: str = "auto",
        store: Any = None,
        wrap: Any = None,
    ) -> None:
        if not dist.is_available() or not dist.is_initialized():
            raise TransportError("call torch.distributed.init_process_group(...) in every process first")
        self._timeout = float(timeout)
        if not self._timeout > 0:
            raise ValueError(f"timeout is a number of seconds above zero; got {timeout!r}")
        if schedule not in ("auto", "free", "rounds"):
            raise ValueError(f"schedule is 'auto', 'free' or 'rounds'; got {schedule!r}")
        ranks = list(range(dist.get_world_size())) if group is None else dist.get_process_group_ranks(group)
        numbers = _numbers(devices, len(ranks))
        backend = _backend(group)
        limit = timedelta(seconds=self._timeout)
        own: Any = dist.new_group(ranks, limit, backend, use_local_synchronization=group is not None)
        self._group: Any = own
        self._rank, self._world = dist.get_rank(own), len(ranks)
        of_rank = {dist.get_group_rank(own, ranks[k]): numbers[k] for k in range(len(ranks))}
        self.device = of_rank[self._rank]
        self._store = _store(self._group) if store is None else store
        self._nccl = backend == "nccl"
        self._rounds = schedule == "rounds" or (schedule == "auto" and self._nccl)
        self._place = torch.device("cuda", torch.cuda.current_device()) if self._nccl else torch.device("cpu")
        self._links = TorchLinks(self._group, {device: rank for rank, device in of_rank.items()}, self._timeout)
        self._channel: Any = self._links if wrap is None else wrap(self._links)
        self._checksum, self._window = checksum, window
        self._devices = frozenset(of_rank.values())
        self._executions = 0
        self._known: weakref.WeakKeyDictionary[Plan, tuple[str, Program, dict[int, int]]] = weakref.WeakKeyDictionary()
        self._broken: str | None = None
        self.report = Report(self.device)
        if self._nccl:  # all ranks have to take part in the first use of a communicator
            dist.all_reduce(torch.zeros(1, device=self._place), group=own)

    def execute(self, plan: Plan, parts: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Move the tensors; to be called in every process of the group with an equal plan.

        Args:
            plan: What to do.
            parts: This device's part of each tensor by the source layouts: tensors or DTensors.

        Returns:
            This device's part of each tensor by the target layouts: new tensors.

        Raises:
            PartError: A part of this process is missing or does not fit; no process has sent anything.
            PlanMismatchError: The processes have different plans; no process has sent anything.
            CorruptedError: A chunk arrived changed.
            PeerLostError: Another process failed, says why, or died.
        """
        if self._broken is not None:
            raise TransportError(f"this transport has failed ({self._broken}); make a new one in every process")
        number, self._executions = self._executions, self._executions + 1
        ballot = Ballot(self._store, self._rank, self._world, number, self._timeout, self._links.abort)
        try:
            with ballot:
                if missing := sorted({*plan.devices} - self._devices):
                    raise TransportError(f"no rank of the group stands for the devices {missing[:8]} of the plan")
                packer = TorchPacker(plan.tensors, self.device, parts, self._place)
                if plan not in self._known:
                    self._known[plan] = plan.hash(), program_of(plan, self.device), depths(plan, self.device)
                fingerprint, program, hops = self._known[plan]
                ballot.agree(fingerprint)
                new, self.report = self._run(program, hops, self._window or plan.window, packer, ballot.tick)
        except BaseException as error:
            if ballot.begun:
                self._broken = f"{type(error).__name__}: {error}"
            raise
        return new

    def close(self) -> None:
        """Give up the group and its connections; the transport cannot be used any more."""
        if self._group is not None:
            self._broken = "it is closed"
            if dist.is_initialized():
                dist.destroy_process_group(self._group)
            self._group = None

    def __enter__(self) -> "TorchTransport":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _run(
        self, program: Program, hops: Mapping[int, int], window: int, packer: TorchPacker, tick: Any
    ) -> tuple[dict[str, Any], Report]:
        if not self._rounds:
            return execute(program, packer, self._channel, tick=tick, checksum=self._checksum, window=window)
        if not self._nccl:
            return execute_rounds(program, hops, packer, self._channel, tick=tick, checksum=self._checksum)
        began = time.perf_counter()
        caller = torch.cuda.current_stream()
        own = torch.cuda.Stream()
        own.wait_stream(caller)
        with torch.cuda.stream(own):
            new, report = execute_rounds(program, hops, packer, self._channel, tick=tick, checksum=self._checksum)
            ended = own.record_event()
        for tensor in new.values():
            tensor.record_stream(caller)  # made in one stream, used in another
        while not ended.query():  # a peer's end must not be announced before the bytes are there
            if time.perf_counter() - began > self._timeout:
                raise PeerLostError(f"device {self.device} has not received everything within {self._timeout:g} s")
            time.sleep(1e-4)
        return new, dataclasses.replace(report, seconds=time.perf_counter() - began)


@final
class TorchLinks:
    """Sends and receives of one rank in a process group, addressed by devices.

    Args:
        group: The group, used by nobody else.
        ranks: Rank in the group of each device.
        timeout: Seconds that a send or receive may take.
    """

    def __init__(self, group: Any, ranks: Mapping[int, int], timeout: float) -> None:
        self._group, self._ranks, self._timeout = group, ranks, timeout

    def isend(self, target: int, buffer: torch.Tensor, tag: int) -> Pending:
        """Start to send."""
        rank = self._ranks[target]
        return self._begin(
            lambda: dist.isend(buffer, group=self._group, tag=tag % _TAGS, group_dst=rank), buffer, target
        )

    def irecv(self, source: int, buffer: torch.Tensor, tag: int) -> Pending:
        """Start to receive."""
        rank = self._ranks[source]
        return self._begin(
            lambda: dist.irecv(buffer, group=self._group, tag=tag % _TAGS, group_src=rank), buffer, source
        )

    def exchange(
        self, sends: Sequence[tuple[int, torch.Tensor]], receives: Sequence[tuple[int, torch.Tensor]]
    ) -> Pending:
        """Start sends and receives as one operation of the network, where it knows such."""
        operations = [
            dist.P2POp(call, buffer, group=self._group, group_peer=self._ranks[peer])
            for call, pairs in ((dist.irecv, receives), (dist.isend, sends))
            for peer, buffer in pairs
        ]
        peers = [peer for peer, _ in (*receives, *sends)]
        try:
            works = dist.batch_isend_irecv(operations)
        except RuntimeError as error:
            raise _lost(peers, error) from error
        return _Together([_TorchPending(work, operations, peers, self._timeout) for work in works])

    def abort(self) -> None:
        """Close the connections, so that peers that wait for this process fail at once."""
        others = [rank for rank in self._ranks.values() if rank != dist.get_rank(self._group)]
        if not others or dist.get_backend(self._group) != "gloo":
            return
        try:  # gloo closes all connections of a group in which a receive has timed out, and offers no other way
            spare = torch.empty(1, dtype=torch.uint8)
            work: Any = dist.irecv(spare, group=self._group, tag=_TAGS, group_src=others[0])
            work.wait(timedelta(milliseconds=1))
        except RuntimeError:
            pass

    def _begin(self, start: Callable[[], Any], buffer: torch.Tensor, peer: int) -> Pending:
        try:
            return _TorchPending(start(), buffer, [peer], self._timeout)
        except RuntimeError as error:
            raise _lost([peer], error) from error


@final
class _TorchPending:
    """An operation under way; keeps its buffer alive."""

    def __init__(self, work: Any, buffer: Any, peers: list[int], timeout: float) -> None:
        self._work, self._buffer, self._peers, self._timeout = work, buffer, peers, timeout

    def wait(self) -> None:
        try:
            self._work.wait(timedelta(seconds=self._timeout))
        except RuntimeError as error:
            raise _lost(self._peers, error) from error


@final
class _Together:
    """Several operations."""

    def __init__(self, pending: Sequence[Pending]) -> None:
        self._pending = pending

    def wait(self) -> None:
        for one in self._pending:
            one.wait()


def _lost(peers: Sequence[int], error: Exception) -> PeerLostError:
    words = str(error).split(". This is typically", 1)[0].rsplit("] ", 1)[-1]
    return PeerLostError(f"lost the connection with device {', '.join(map(str, peers))}: {words}")


def _numbers(devices: Sequence[int] | None, world: int) -> list[int]:
    """The device of each rank."""
    numbers = list(range(world)) if devices is None else [int(d) for d in devices]
    if len(numbers) != world or len({*numbers}) != world:
        raise ValueError(f"give one device for each of the {world} ranks, none twice; got {numbers}")
    return numbers


def _backend(group: Any) -> str:
    """The backend to use in a group that may have one for each kind of tensor."""
    found = str(dist.get_backend(group)).lower()
    if found == "undefined" or "," in found:
        return "nccl" if "nccl" in found and torch.cuda.is_available() else "gloo"
    return found


def _store(group: Any) -> Any:
    """The store of a group, in which other groups' keys are not seen."""
    if hasattr(group, "get_group_store"):
        return group.get_group_store()
    default = dist.distributed_c10d._get_default_store()  # before the method existed
    return dist.PrefixStore(f"xmesh-reshard/{group.group_name}", default)

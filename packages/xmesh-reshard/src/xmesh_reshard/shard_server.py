"""A device's parts in a process of its own, ready to take part in plans: for Ray actors and other workers."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, SupportsFloat, final

import numpy as np
import torch
import torch.distributed as dist

from xmesh_reshard.layout import Layout
from xmesh_reshard.plans import Plan, Program
from xmesh_reshard.transports.channels import Pending
from xmesh_reshard.transports.consensus import Ballot
from xmesh_reshard.transports.errors import PeerLostError, TransportError
from xmesh_reshard.transports.executor import Report, execute, program_of
from xmesh_reshard.transports.packing import NumpyPacker
from xmesh_reshard.transports.torch_packing import TorchPacker

_CLOSING = 2**24  # a tag that no message has
EXECUTION = "execution"  # under this key of the store is the number of the last execution

Part = np.ndarray | torch.Tensor


class ShardServer:
    """Holds one device's parts of tensors, and moves them by plans together with the servers of other devices.

    Servers link up over gloo with a group and a store of their own, so the process may have any other process groups,
    or none. Parts are NumPy arrays, or tensors in the host's memory.

    A class of yours can inherit it, or keep one as an attribute, so that the actors that you have serve their own
    weights; see :class:`~xmesh_reshard.ray_transport.RayHosts` for how they are linked up.

    Args:
        device: The device that this server stands for.
        tensors: Whether its parts are PyTorch tensors rather than NumPy arrays.

    Example:
        >>> from xmesh_reshard import Layout, Mesh, Topology, plan
        >>> server = ShardServer(0)
        >>> server.put_part("w", np.ones(4, np.float32))
        >>> server.join(*server.found("127.0.0.1"), [0])
        >>> layout = Layout.sharded((4,), "float32", Mesh.grid((1,)), "R")
        >>> server.execute_plan(plan({"w": (layout, layout)}, Topology.uniform(1, 1)), {"w": "v"}).bytes_sent
        0
        >>> server.get_part("v").shape
        (4,)
    """

    def __init__(self, device: int, *, tensors: bool = False) -> None:
        self.device = int(device)
        self._tensors = tensors
        self._parts: dict[str, Part] = {}
        self._store: Any = None
        self._links: GlooLinks | None = None
        self._executions = 0
        self._broken = "it has not joined a group"
        self._known = "", Program(self.device, (), ())

    def found(self, host: str, port: int = 0) -> tuple[str, int]:
        """Open the place where the servers of a group meet; done by one of them, before any joins.

        Args:
            host: This machine's name or address, as the others can reach it.
            port: A free port; 0 to have one chosen.

        Returns:
            The address, for :meth:`join`.
        """
        self._store = dist.TCPStore(host, port, is_master=True, wait_for_workers=False)
        return host, self._store.port

    def join(
        self,
        host: str,
        port: int,
        devices: Sequence[int],
        *,
        timeout: SupportsFloat = 300.0,
        checksum: bool = False,
        window: int | None = None,
    ) -> None:
        """Link up with the other servers; all do it at the same time.

        Args:
            host: Where the group meets.
            port: The port there.
            devices: The devices of all servers of the group, in the same order everywhere.
            timeout: Seconds without progress after which a peer is given up.
            checksum: Send CRC-32 sums of all chunks and compare them.
            window: Messages under way at a time; the plan's own number if None.

        Raises:
            PeerLostError: Not all servers came within the timeout.
        """
        self._timeout, self._options = float(timeout), {"checksum": checksum, "window": window}
        limit = timedelta(seconds=self._timeout)
        self._devices = [int(d) for d in devices]
        rank = self._devices.index(self.device)
        try:
            client = self._store or dist.TCPStore(host, port, is_master=False, timeout=limit)
            client.set_timeout(limit)
            group = dist.ProcessGroupGloo(dist.PrefixStore("gloo", client), rank, len(self._devices), limit)
        except RuntimeError as error:
            raise PeerLostError(f"the {len(self._devices)} servers did not meet at {host}:{port}: {error}") from error
        self._store, self._links = client, GlooLinks(group, self._devices, self._timeout)
        self._executions, self._broken = 0, ""

    def put_part(self, name: str, part: Part) -> None:
        """Hold a part; it is not copied."""
        self._parts[name] = torch.as_tensor(part) if self._tensors else np.asarray(part)

    def make_part(self, name: str, layout: Layout, make: Callable[[int, tuple[slice, ...]], Part]) -> None:
        """Hold the part that a function makes from the device and its box."""
        self.put_part(name, make(self.device, layout.slices(self.device)))

    def get_part(self, name: str) -> Part:
        """The part of a tensor.

        Raises:
            KeyError: There is none.
        """
        if name not in self._parts:
            raise KeyError(f"device {self.device} holds no part of {name!r}; it holds {sorted(self._parts)[:8]}")
        return self._parts[name]

    def drop_part(self, name: str) -> None:
        """Forget a part, if there is one."""
        self._parts.pop(name, None)

    def execute_plan(self, plan: Plan, names: Mapping[str, str] | None = None) -> Report:
        """Take part in a plan; all servers of the group do so with equal plans.

        Args:
            plan: What to do.
            names: For tensors of the plan the name under which the new parts are held; the old parts then stay. Without
                one, new parts take the place of the old, and a device that gets none drops its old part.

        Returns:
            What this device did.

        Raises:
            PartError: A part of this device is missing or does not fit; nothing was sent by anyone.
            PlanMismatchError: The servers have different plans; nothing was sent.
            CorruptedError: A chunk arrived changed.
            PeerLostError: Another server failed, says why, or died.
        """
        if self._broken or self._links is None:
            raise TransportError(f"the server of device {self.device} cannot execute: {self._broken}; join again")
        number, self._executions = self._executions, self._executions + 1
        self._busy = True
        parts = {
            name: self._parts[name]
            for name, transfer in plan.tensors.items()
            if self.device in transfer.source.position and name in self._parts
        }
        ballot = self._ballot(number)
        try:
            with ballot:
                self._store.set(EXECUTION, str(number))
                if missing := sorted({*plan.devices} - {*self._devices}):
                    raise TransportError(f"no server of the group stands for the devices {missing[:8]} of the plan")
                kind = TorchPacker if self._tensors else NumpyPacker
                packer = kind(plan.tensors, self.device, parts)
                if (fingerprint := plan.hash()) != self._known[0]:
                    self._known = fingerprint, program_of(plan, self.device)
                ballot.agree(fingerprint)
                new, report = execute(
                    self._known[1],
                    packer,
                    self._links,
                    tick=ballot.tick,
                    **{**self._options, "window": self._options["window"] or plan.window},
                )
        except BaseException as error:
            if ballot.begun:
                self._broken = f"{type(error).__name__}: {error}"
            raise
        self._keep(plan, new, names or {})
        return report

    def leave(self) -> None:
        """Leave the group; the parts stay."""
        self._links = self._store = None
        self._broken = "it has not joined a group"

    def _ballot(self, number: int) -> Ballot:
        links = self._links
        if links is None:
            raise TransportError(f"the server of device {self.device} has left its group")
        rank = self._devices.index(self.device)
        return Ballot(self._store, rank, len(self._devices), number, self._timeout, links.abort)

    def _keep(self, plan: Plan, new: Mapping[str, Part], names: Mapping[str, str]) -> None:
        """Hold the new parts, and let go of old ones that they replace."""
        for name in plan.tensors:
            if name in new:
                self._parts[names.get(name, name)] = new[name]
            elif name not in names:
                self._parts.pop(name, None)


def give_up(host: str, port: int, rank: int, world: int, reason: Exception) -> None:
    """Tell the servers of a group that one of them is gone, so that an execution under way ends at once.

    Args:
        host: Where the group met.
        port: The port there.
        rank: Place in the group of the server that is gone.
        world: Number of servers.
        reason: What happened to it.
    """
    with suppress(RuntimeError):  # it may have been the one with the store: then all know already
        store: Any = dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=5))
        if store.check([EXECUTION]):
            with Ballot(store, rank, world, int(store.get(EXECUTION)), 5.0, lambda: None):
                raise reason


@final
class GlooLinks:
    """Sends and receives of a gloo group that is nobody else's; buffers are NumPy arrays or tensors.

    Args:
        group: A ``ProcessGroupGloo``.
        devices: The device of each rank.
        timeout: Seconds that a send or receive may take.
    """

    def __init__(self, group: Any, devices: Sequence[int], timeout: float) -> None:
        self._group = group
        self._ranks = {device: rank for rank, device in enumerate(devices)}
        self._timeout = timeout

    def isend(self, target: int, buffer: Any, tag: int) -> Pending:
        """Start to send."""
        return self._begin(self._group.send, buffer, target, tag)

    def irecv(self, source: int, buffer: Any, tag: int) -> Pending:
        """Start to receive."""
        return self._begin(self._group.recv, buffer, source, tag)

    def abort(self) -> None:
        """Close the connections, so that peers that wait for this process fail at once."""
        others = [rank for rank in self._ranks.values() if rank != self._group.rank()]
        with suppress(RuntimeError):  # gloo closes all connections of a group in which a receive has timed out
            if others:
                self._group.recv([torch.empty(1, dtype=torch.uint8)], others[0], _CLOSING).wait(
                    timedelta(milliseconds=1)
                )

    def _begin(self, call: Callable[..., Any], buffer: Any, peer: int, tag: int) -> Pending:
        tensor = buffer if isinstance(buffer, torch.Tensor) else _shared(buffer)
        try:
            return _Operation(call([tensor], self._ranks[peer], tag % _CLOSING), tensor, peer, self._timeout)
        except RuntimeError as error:
            raise PeerLostError(f"lost the connection with device {peer}: {error}") from error


@final
class _Operation:
    """An operation under way; keeps its buffer alive."""

    def __init__(self, work: Any, buffer: torch.Tensor, peer: int, timeout: float) -> None:
        self._work, self._buffer, self._peer, self._timeout = work, buffer, peer, timeout

    def wait(self) -> None:
        try:
            self._work.wait(timedelta(seconds=self._timeout))
        except RuntimeError as error:
            raise PeerLostError(f"lost the connection with device {self._peer}: {error}") from error


def _shared(buffer: np.ndarray) -> torch.Tensor:
    """A tensor on the same bytes; what is sent may be an array that cannot be written."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(buffer)

"""Execute plans on a Ray cluster: an actor for every device, driven from one place; extra ``[ray]``."""

import math
import os
import sys
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, SupportsFloat, final

import numpy as np
import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from xmesh_reshard.layout import Layout, LayoutError
from xmesh_reshard.plans import Plan
from xmesh_reshard.shard_server import Part, ShardServer, give_up
from xmesh_reshard.topology import Topology
from xmesh_reshard.transports.errors import PartError, PeerLostError, TransportError
from xmesh_reshard.transports.executor import Report

Strategy = Literal["SPREAD", "STRICT_SPREAD", "PACK", "STRICT_PACK"]
Source = np.ndarray | Mapping[int, Part] | Callable[[int, tuple[slice, ...]], Part]


class ActorDiedError(PeerLostError):
    """The actor of a device has died.

    Attributes:
        device: The device.
    """

    def __init__(self, device: int, reason: str) -> None:
        super().__init__(f"the actor of device {device} died: {reason}")
        self.device = device


@final
@dataclass(frozen=True)
class RayReport:
    """What an execution did.

    Attributes:
        seconds: From the call until the last device was done, as the driver saw it.
        devices: What each device did.
    """

    seconds: float
    devices: tuple[Report, ...]

    @property
    def bytes_sent(self) -> int:
        """Bytes that all devices sent."""
        return sum(report.bytes_sent for report in self.devices)


@final
class RayHosts:
    """The devices of a topology as Ray actors that hold parts of tensors and move them by plans; a context manager.

    Every device is an actor; the actors of a host share a bundle of a placement group, so they are on one node, and
    hosts are spread over the nodes where there are several. Parts go from actor to actor over gloo; nothing passes
    through this process but what :meth:`put` is given and :meth:`get` asks for. Plans are compared before the first
    byte.

    When an actor dies or fails during an execution, the others are stopped and the execution raises, within the
    timeout. What they hold can still be had; to execute again, make new hosts.

    To refresh the weights of rollout actors from trainer actors in reinforcement learning, let the actors that there
    are inherit :class:`~xmesh_reshard.shard_server.ShardServer`, one device each, and give them here::

        @ray.remote
        class Trainer(ShardServer):
            def publish(self):
                self.put_part("w", self.model.weight.detach())  # not copied

        hosts = RayHosts(topology, actors={0: trainer0, 1: trainer1, 2: rollout0, 3: rollout1})
        ray.get([trainer0.publish.remote(), trainer1.publish.remote()])
        hosts.execute(refresh, names={"w": "fresh"})  # the same plan every time; rollouts hold "fresh", trainers "w"

    Args:
        topology: The hosts and their devices, which need not be those of the machines at hand.
        actors: For each device an actor of yours; they are not ended with the hosts.
        address: A cluster as ``ray.init`` takes it, such as ``"auto"``; if None, the one that this process is connected
            to, or else one that is started here and stopped at the end.
        cpus_per_device: CPUs to reserve for each device.
        strategy: How hosts are placed: ``SPREAD``, ``STRICT_SPREAD`` (a node each), ``PACK`` or ``STRICT_PACK``.
        tensors: Whether parts are PyTorch tensors (in the host's memory) rather than NumPy arrays.
        timeout: Seconds without progress after which a peer is given up; also to wait for the cluster's resources.
        checksum: Send CRC-32 sums of all chunks and compare them.
        runtime_env: Environment of the actors, as Ray takes it.

    Raises:
        TransportError: The cluster has not the resources, or an actor does not start.
    """

    def __init__(
        self,
        topology: Topology,
        *,
        actors: Mapping[int, Any] | None = None,
        address: str | None = None,
        cpus_per_device: SupportsFloat = 1.0,
        strategy: Strategy = "SPREAD",
        tensors: bool = False,
        timeout: SupportsFloat = 120.0,
        checksum: bool = False,
        runtime_env: Mapping[str, Any] | None = None,
    ) -> None:
        cpus, self._timeout = float(cpus_per_device), float(timeout)
        if not cpus > 0 or not self._timeout > 0:
            raise ValueError(f"cpus_per_device and timeout are above zero; got {cpus_per_device!r} and {timeout!r}")
        if strangers := sorted({*(actors or ())} - topology.host_of.keys()):
            raise TransportError(f"no host of the topology holds the devices {strangers[:8]}")
        self._shared: weakref.WeakKeyDictionary[Plan, Any] = weakref.WeakKeyDictionary()
        self._layouts: dict[str, Layout] = {}
        self._actors: dict[int, Any] = {int(d): actor for d, actor in (actors or {}).items()}
        self._owned = actors is None
        self._group: PlacementGroup | None = None
        self._broken: str | None = None
        self._place: tuple[str, int] | None = None
        devices = [host.devices for host in topology.hosts if host.devices]
        self._started = _connect(address, math.ceil(len(topology.host_of) * cpus))
        try:
            if self._owned:
                self._group = _bundles([len(some) * cpus for some in devices], strategy, self._timeout)
                for k, some in enumerate(devices):
                    options = _options(self._group, k, cpus, runtime_env)
                    self._actors.update({d: _Server.options(**options).remote(d, tensors=tensors) for d in some})
            self._join(checksum)
        except BaseException:
            self.close()
            raise

    @property
    def actors(self) -> Mapping[int, Any]:
        """The handle of each device's actor."""
        return dict(self._actors)

    def put(self, name: str, layout: Layout, value: Source) -> None:
        """Have the devices hold a tensor.

        Args:
            name: Its name.
            layout: Where its parts are.
            value: The whole array, the part of each device, or a function that each actor calls with its device and its
                box (a slice for each dimension) to make or load its part itself.

        Raises:
            LayoutError: The array does not fit the layout, or a device has no part or no actor.
        """
        devices = layout.devices.tolist()
        if missing := [d for d in devices if d not in self._actors]:
            raise LayoutError(f"no actor stands for the devices {missing[:8]} of {name!r}")
        if callable(value):
            self._all({d: self._actors[d].make_part.remote(name, layout, value) for d in devices})
        else:
            parts = value if isinstance(value, Mapping) else layout.split(np.asarray(value))
            if {*parts} != {*devices}:
                raise LayoutError(f"{name!r} needs a part for each of the devices {devices}; got {sorted(parts)}")
            self._all({d: self._actors[d].put_part.remote(name, parts[d]) for d in devices})
        self._layouts[name] = layout

    def execute(self, plan: Plan, names: Mapping[str, str] | None = None) -> RayReport:
        """Move the tensors of a plan.

        Args:
            plan: What to do; its tensors are held under their names.
            names: For tensors of the plan the name under which the new parts are held; the old parts then stay.
                Without one, the tensor is moved: new parts take the place of old ones.

        Returns:
            What was done.

        Raises:
            PartError: A device does not hold its part, or one that does not fit; nothing was sent.
            ActorDiedError: An actor died.
            PeerLostError: An actor failed, or made no progress within the timeout.
            TransportError: Another failure, now or before.
        """
        if self._broken is not None:
            raise TransportError(f"these hosts have failed ({self._broken}); make new ones")
        began = time.perf_counter()
        if plan not in self._shared:
            self._shared[plan] = ray.put(plan)
        try:
            found = self._all(
                {d: actor.execute_plan.remote(self._shared[plan], names) for d, actor in self._actors.items()}
            )
        except PartError:
            raise  # before the first byte: the actors are as they were
        except BaseException as error:
            self._broken = f"{type(error).__name__}: {error}"
            raise
        seconds = time.perf_counter() - began
        for name, transfer in plan.tensors.items():
            self._layouts[(names or {}).get(name, name)] = transfer.target
        return RayReport(seconds, tuple(found[d] for d in sorted(found)))

    def get(self, name: str) -> Any:
        """The whole tensor, brought here and put together.

        Raises:
            KeyError: No such tensor has been put or moved.
            ActorDiedError: An actor that holds a part has died.
        """
        layout = self._layout(name)
        parts = self.parts(name)
        if all(isinstance(part, np.ndarray) for part in parts.values()):
            return layout.assemble(parts)
        whole = parts[int(layout.devices[0])].new_empty(layout.shape)
        for d, part in parts.items():
            whole[(*layout.slices(d), ...)] = part
        return whole

    def parts(self, name: str) -> dict[int, Any]:
        """The part of each device, brought here.

        Raises:
            KeyError: No such tensor has been put or moved.
            ActorDiedError: An actor that holds a part has died.
        """
        devices = self._layout(name).devices.tolist()
        return self._all({d: self._actors[d].get_part.remote(name) for d in devices})

    def drop(self, name: str) -> None:
        """Forget a tensor on all devices."""
        self._layouts.pop(name, None)
        self._all({d: actor.drop_part.remote(name) for d, actor in self._actors.items()})

    def close(self) -> None:
        """End the actors that were started here and give their resources back; others leave the group."""
        actors, self._actors = self._actors, {}
        self._broken = self._broken or "they are closed"
        for actor in actors.values():
            if self._owned:
                ray.kill(actor)
            else:
                actor.leave.remote()
        if self._group is not None:
            remove_placement_group(self._group)
            self._group = None
        if self._started:
            ray.shutdown()
            self._started = False

    def __enter__(self) -> "RayHosts":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _layout(self, name: str) -> Layout:
        if name not in self._layouts:
            raise KeyError(f"no tensor {name!r} has been put here; there are {sorted(self._layouts)[:8]}")
        return self._layouts[name]

    def _join(self, checksum: bool) -> None:
        """Have the first actor open a place to meet, and all link up there."""
        devices = list(self._actors)
        first = self._actors[devices[0]]
        host = self._all({devices[0]: first.__ray_call__.remote(_own_address)})[devices[0]]
        place = self._all({devices[0]: first.found.remote(host)})[devices[0]]
        options = {"timeout": self._timeout, "checksum": checksum}
        self._all({d: actor.join.remote(*place, devices, **options) for d, actor in self._actors.items()})
        self._place = place

    def _all(self, calls: Mapping[int, Any]) -> dict[int, Any]:
        """The results of calls by device; at the first failure the others are stopped."""
        device_of = {call: d for d, call in calls.items()}
        found: dict[int, Any] = {}
        failed: list[Exception] = []
        waiting, limit = list(calls.values()), math.inf
        while waiting and time.monotonic() < limit:
            done, waiting = ray.wait(waiting, timeout=None if limit == math.inf else 1.0)
            for call in done:
                try:
                    found[device_of[call]] = ray.get(call)
                except ray.exceptions.RayError as error:
                    failed.append(_reason(device_of[call], error))
            if failed:
                limit = min(limit, time.monotonic() + self._timeout)
                if waiting and self._place and isinstance(gone := failed[0], ActorDiedError):
                    give_up(*self._place, [*self._actors].index(gone.device), len(self._actors), gone)
        if failed:
            raise min(
                failed, key=lambda error: isinstance(error, PeerLostError) and not isinstance(error, ActorDiedError)
            )
        return found


_Server: Any = ray.remote(ShardServer)


def _own_address(actor: Any) -> str:
    return ray.util.get_node_ip_address()


def _connect(address: str | None, cpus: int) -> bool:
    """Connect to a cluster, or start one that finds the same modules as this process; whether it was started here."""
    if ray.is_initialized():
        return False
    if address is not None:
        ray.init(address=address, log_to_driver=False)
        return True
    modules = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    ray.init(
        num_cpus=cpus,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        runtime_env={"env_vars": {"PYTHONPATH": modules}},
    )
    return True


def _bundles(cpus: list[float], strategy: Strategy, timeout: float) -> PlacementGroup:
    """A bundle for each host, once the cluster has them."""
    group = placement_group([{"CPU": n} for n in cpus], strategy=strategy)
    if not group.wait(timeout_seconds=max(1, math.ceil(timeout))):
        remove_placement_group(group)
        has = ray.cluster_resources().get("CPU", 0)
        raise TransportError(
            f"the cluster did not give {len(cpus)} hosts {sum(cpus):g} CPUs with strategy {strategy} within"
            f" {timeout:g} s; it has {has:g} in {len(ray.nodes())} nodes: lower cpus_per_device, or add nodes"
        )
    return group


def _options(group: PlacementGroup, bundle: int, cpus: float, runtime_env: Mapping[str, Any] | None) -> dict[str, Any]:
    place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)
    options: dict[str, Any] = {"num_cpus": cpus, "scheduling_strategy": place, "max_restarts": 0}
    return options if runtime_env is None else {**options, "runtime_env": dict(runtime_env)}


def _reason(device: int, error: Exception) -> Exception:
    """What went wrong at a device, without Ray's frames."""
    if isinstance(cause := getattr(error, "cause", None), Exception):
        return cause
    return ActorDiedError(device, " ".join(str(error).split())[:300])

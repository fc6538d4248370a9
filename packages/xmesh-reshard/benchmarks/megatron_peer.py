"""Megatron-core's refit of weights: its planner on any number of ranks, and its gloo copy service on real processes."""

import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any, final
from unittest import mock

import numpy as np
from rig import Job, Ready, whole

from xmesh_reshard.assembling import assemble
from xmesh_reshard.baseline_tasks import legs_of
from xmesh_reshard.layout import Layout, Mesh
from xmesh_reshard.plans import Hop, Message, Piece, Plan, Transfer
from xmesh_reshard.topology import Topology

Weights = Mapping[str, tuple[tuple[int, ...], int | None]]  # shape, and the axis that tensor parallelism cuts


@final
@dataclass(frozen=True)
class Grid:
    """Replicas of a model, each cut over tensor-parallel devices.

    Attributes:
        first: First device.
        replicas: Data-parallel replicas.
        cut: Tensor-parallel devices of each.
    """

    first: int
    replicas: int
    cut: int

    @property
    def devices(self) -> range:
        """All devices."""
        return range(self.first, self.first + self.replicas * self.cut)

    def layout(self, shape: Sequence[int], dtype: str, axis: int | None) -> Layout:
        """The layout of a weight."""
        mesh = Mesh.grid((self.replicas, self.cut), ("replica", "tensor"), first=self.first)
        return Layout.sharded(shape, dtype, mesh, tuple("tensor" if d == axis else None for d in range(len(shape))))

    def groups(self) -> tuple[list[list[int]], list[list[int]]]:
        """Devices of each tensor-parallel and of each data-parallel group."""
        table = np.array(self.devices).reshape(self.replicas, self.cut)
        return table.tolist(), table.T.tolist()


def transfers_of(weights: Weights, dtype: str, old: Grid, new: Grid) -> dict[str, Transfer]:
    """Layouts of all weights."""
    return {
        name: Transfer(old.layout(shape, dtype, axis), new.layout(shape, dtype, axis))
        for name, (shape, axis) in weights.items()
    }


def resharding() -> ModuleType:
    """``megatron.core.resharding``, without the warnings of its import."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import megatron.core.resharding as found
        import megatron.core.resharding.planner  # noqa: F401
    return found


def metadata(weights: Weights, dtype: str, grid: Grid, world: int) -> list[list[Any]]:
    """What each of the ranks tells the planner about its parameters."""
    import torch

    make, kind = resharding().ParameterMetadata, getattr(torch, dtype)
    cut, copies = grid.groups()
    found: list[list[Any]] = [[] for _ in range(world)]
    for rank in grid.devices:
        tensor = next(group for group in cut if rank in group)
        data = next(group for group in copies if rank in group)
        for name, (shape, axis) in weights.items():
            part = tuple(n // grid.cut if d == axis else n for d, n in enumerate(shape))
            tp = {} if axis is None else {"is_tp": True, "partition_dim": axis, "tensor_parallel_group_ranks": tensor}
            found[rank].append(
                make(
                    name, part, kind, kind.itemsize, owner_rank=rank, data_parallel_group_ranks=data,
                    pipeline_parallel_group_ranks=[rank], resolved_name=name, **tp,
                )
            )  # fmt: skip
    return found


def planned(old: Sequence[Sequence[Any]], new: Sequence[Sequence[Any]], ranks: Sequence[int]) -> dict[int, Any]:
    """Megatron's plan for some ranks, by its planner in this process.

    Newer versions have a function of everybody's metadata, which every rank calls for itself. In older ones rank 0
    plans for all: that function is called with the collectives replaced.

    Args:
        old: Metadata of each rank's parameters in the source.
        new: In the target.
        ranks: Whose plans to make.
    """
    peer = resharding()
    if not centralised():
        rosters = peer.index_metadata_rosters(list(zip(old, new, strict=True)))
        return {rank: peer.build_plan_from_rosters(*rosters, rank) for rank in ranks}
    import torch

    made: list[Any] = []
    given = iter((old, new))

    def gather(into: list[Any], _: Any, **options: Any) -> None:
        into[:] = next(given)

    module: Any = torch.nn.Module()
    module.pg_collection = SimpleNamespace()
    with (
        mock.patch.object(torch.distributed, "get_rank", return_value=0),
        mock.patch.object(torch.distributed, "get_world_size", return_value=len(old)),
        mock.patch.object(torch.distributed, "all_gather_object", gather),
        mock.patch.object(torch.distributed, "broadcast_object_list", lambda plans, **options: made.extend(plans)),
    ):
        peer.build_centralized_reshard_plan(module, module)
    return {rank: made[rank] for rank in ranks}


def centralised() -> bool:
    """Whether rank 0 plans for all; then the gloo copy service also works on tensors in the host's memory."""
    return not hasattr(resharding(), "build_plan_from_rosters")


def as_plan(transfers: Mapping[str, Transfer], topology: Topology, plans: Mapping[int, Any]) -> Plan:
    """Megatron's plan in ours, from the plans of the receiving ranks: all from one device to another is one message."""
    packed: dict[tuple[int, int], list[Piece]] = {}
    for rank, made in plans.items():
        for op in made.recv_ops:
            packed.setdefault((op.peer_rank, rank), []).append(_piece(op, transfers[op.param_name], rank))
    messages = []
    for k, ((source, target), pieces) in enumerate(packed.items()):
        nbytes, leg = sum(piece.nbytes for piece in pieces), legs_of([(source, target)], topology)[0]
        messages.append(Message(k, "chain", (Hop(*leg),), tuple(pieces), nbytes, nbytes, 0.0, 0.0))
    return assemble(transfers, topology, messages, notes=["as Megatron-core plans it"])


def _piece(op: Any, transfer: Transfer, rank: int) -> Piece:
    corner = [s.start for s in transfer.target.slices(rank)]
    spans = [s.indices(n)[:2] for s, n in zip(op.my_slice, transfer.target.shard_shape(rank), strict=True)]
    lower = tuple(a + corner[d] for d, (a, _) in enumerate(spans))
    upper = tuple(b + corner[d] for d, (_, b) in enumerate(spans))
    size = transfer.source.itemsize
    for a, b in spans:
        size *= b - a
    return Piece(op.param_name, lower, upper, size)


def refit(rank: Any, job: Job) -> Ready:
    """Megatron's plan executed by its gloo copy service; facts: ``weights``, ``dtype``, ``old``, ``new``.

    Planning is done once, before, as Megatron keeps plans.
    """
    import torch

    peer, facts = resharding(), job.facts
    weights, old, new = facts["weights"], facts["old"], facts["new"]
    transfers = transfers_of(weights, facts["dtype"], old, new)
    full = whole(transfers, job.seed)
    source, target = _module(rank, old, weights), _module(rank, new, weights)
    for name, parameter in source.named_parameters():
        parameter.data = torch.from_numpy(full[name][transfers[name].source.slices(rank.device)].copy())
    for name, parameter in target.named_parameters():
        parameter.data = torch.zeros(transfers[name].target.shard_shape(rank.device))
    made = peer.build_centralized_reshard_plan(source, target)
    with _no_stream():
        service = peer.get_or_create_service("gloo")

    def work() -> None:
        peer.execute_reshard_plan(made, source, target, service)

    def check() -> bool:
        wants = {name: full[name][transfers[name].target.slices(rank.device)] for name, _ in target.named_parameters()}
        right = all(np.array_equal(p.detach().numpy(), wants[name]) for name, p in target.named_parameters())
        for parameter in target.parameters():
            parameter.data.zero_()
        return right

    return work, check


@contextmanager
def _no_stream() -> Iterator[None]:
    """The service's constructor asks for a CUDA stream, which copies between CPUs do not use."""
    import torch

    with mock.patch.object(torch.cuda, "Stream", return_value=None):
        yield


def _module(rank: Any, grid: Grid, weights: Weights) -> Any:
    """This rank's parameters in a grid (none if it is not in it), with the process groups that Megatron asks for."""
    import torch
    import torch.distributed as dist

    module: Any = torch.nn.Module()
    # All ranks take part in making each group.
    cut, copies = ([(ranks, dist.new_group(ranks)) for ranks in found] for found in grid.groups())
    mine = {
        name: next((group for ranks, group in found if rank.rank in ranks), None)
        for name, found in (("tp", cut), ("dp", copies))
    }
    module.pg_collection = SimpleNamespace(**mine)
    if rank.rank in grid.devices:
        for name, (_, axis) in weights.items():
            parameter: Any = torch.nn.Parameter(torch.zeros(0), requires_grad=False)
            module.register_parameter(name, parameter)
            if axis is not None:
                parameter.tensor_model_parallel, parameter.partition_dim = True, axis
    return module


def decoder_weights(layers: int, width: int, inner: int) -> dict[str, tuple[tuple[int, ...], int | None]]:
    """Five weights a layer, named without dots: as modules want them."""
    block = {
        "qkv": ((3 * width, width), 0), "proj": ((width, width), 1), "fc1": ((inner, width), 0),
        "fc2": ((width, inner), 1), "norm": ((width,), None),
    }  # fmt: skip
    return {f"{name}_{k}": entry for k, (name, entry) in itertools.product(range(layers), block.items())}

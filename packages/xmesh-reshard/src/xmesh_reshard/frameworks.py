"""Read the boxes that devices hold from JAX shardings and from DTensor placements."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from xmesh_reshard.layout import LayoutError, Mesh

Box = list[tuple[int, int]]


def boxes_of_sharding(sharding: Any, shape: Sequence[int]) -> dict[int, Box]:
    """The box of every device of a JAX sharding, also of devices that other processes address.

    Args:
        sharding: Any ``jax.sharding.Sharding`` over concrete devices.
        shape: The global shape.

    Returns:
        For each device's ``id`` a pair (first, end) for each dimension.

    Raises:
        LayoutError: The sharding does not fit the shape (JAX holds no uneven shards), its mesh has no devices
            (``AbstractMesh``), or it holds sums that are still to be reduced.
        TypeError: Not a sharding.

    Example:
        >>> import jax
        >>> boxes_of_sharding(jax.sharding.SingleDeviceSharding(jax.devices()[0]), (3, 2))
        {0: [(0, 3), (0, 2)]}
    """
    shape = tuple(int(n) for n in shape)
    if not callable(getattr(sharding, "devices_indices_map", None)):
        raise TypeError(f"expected a jax.sharding.Sharding, such as a NamedSharding; got {type(sharding).__name__}")
    if getattr(getattr(sharding, "spec", None), "unreduced", None):
        raise LayoutError(f"{sharding} holds sums that are still to be reduced; reduce the array first")
    try:
        found = sharding.devices_indices_map(shape)
    except IndexError:
        raise LayoutError(f"{sharding} cuts more dimensions than the shape {shape} has") from None
    except ValueError as error:
        raise LayoutError(
            f"the shape {shape} cannot be held so: {error}. JAX holds equal parts on real devices only;"
            " pad the array, or take a mesh of devices"
        ) from None
    lengths = {len({device.platform for device in found}), len({device.id for device in found}) // max(len(found), 1)}
    if lengths != {1}:
        raise LayoutError(f"{sharding} has devices of several platforms; their numbers are not unique")
    return {
        int(device.id): [_ends(entry, n) for entry, n in zip(index, shape, strict=True)]
        for device, index in found.items()
    }


def boxes_of_placements(mesh: Any, placements: Sequence[Any], shape: Sequence[int]) -> dict[int, Box]:
    """The box of every rank of a DTensor.

    Placements are applied from left to right. ``Shard(d)`` cuts what a rank has left of dimension d like
    ``torch.chunk``: n elements over k ranks in parts of ⌈n / k⌉, the last of which may be shorter or empty. A strided
    shard with split factor f cuts in f parts first and each of these in k, and takes one of each: with the shard that
    follows it, this is FSDP over tensor parallelism.

    Args:
        mesh: A ``torch.distributed.DeviceMesh``, a :class:`Mesh` or an array of global ranks.
        placements: One for each mesh axis.
        shape: The global shape.

    Returns:
        For each rank a pair (first, end) for each dimension.

    Raises:
        LayoutError: Another number of placements than mesh axes, a dimension that is not there, a partial sum, an
            unknown placement, or a rank whose part is not one box.

    Example:
        >>> from torch.distributed.tensor import Replicate, Shard
        >>> boxes_of_placements([[0, 1], [2, 3]], [Shard(0), Replicate()], (5,))
        {0: [(0, 3)], 1: [(0, 3)], 2: [(3, 5)], 3: [(3, 5)]}
    """
    shape = tuple(int(n) for n in shape)
    devices = _ranks(mesh)
    if len(placements) != devices.ndim:
        raise LayoutError(f"a mesh of {devices.ndim} axes needs as many placements; got {list(placements)}")
    cuts = [_cut(placement, shape) for placement in placements]
    boxes: dict[int, Box] = {}
    for where in np.ndindex(*devices.shape):
        runs = [[(0, n)] for n in shape]
        for part, parts, cut in zip(where, devices.shape, cuts, strict=True):
            if cut is not None:
                runs[cut[0]] = _take(runs[cut[0]], part, parts, cut[1])
        for d, found in enumerate(runs):
            if len(found) > 1:
                raise LayoutError(
                    f"rank {devices[where]} holds the separate parts {found} of dimension {d}: not one box."
                    " A strided shard must be followed by the shard that it strides over;"
                    " redistribute to plain shards first"
                )
        boxes[int(devices[where])] = [found[0] if found else (n, n) for found, n in zip(runs, shape, strict=True)]
    return boxes


def _ends(entry: slice, n: int) -> tuple[int, int]:
    first, end, _ = entry.indices(n)
    return first, max(first, end)


def _ranks(mesh: Any) -> np.ndarray:
    """The global ranks of a mesh in its grid."""
    if isinstance(mesh, Mesh):
        return mesh.devices
    grid = mesh.mesh if hasattr(mesh, "mesh") else mesh
    try:
        return Mesh(np.asarray(grid)).devices
    except (TypeError, RuntimeError):
        raise LayoutError(f"expected a DeviceMesh, a Mesh or an array of ranks; got {type(mesh).__name__}") from None


def _cut(placement: Any, shape: tuple[int, ...]) -> tuple[int, int] | None:
    """The dimension and the split factor of a placement; None where every rank holds all."""
    partial, replicate = (getattr(placement, name, None) for name in ("is_partial", "is_replicate"))
    if callable(partial) and partial():
        raise LayoutError(
            f"{placement} holds sums that are still to be reduced:"
            " redistribute the DTensor to Replicate() or Shard(d) on its own mesh first"
        )
    if callable(replicate) and replicate():
        return None
    dim = getattr(placement, "dim", None)
    if not isinstance(dim, int):
        raise LayoutError(f"unknown placement {placement!r}: use Replicate(), Shard(d) or FSDP's strided shards")
    if not -len(shape) <= dim < len(shape):
        raise LayoutError(f"{placement} names dimension {dim}; the shape {shape} has {len(shape)}")
    return dim % len(shape), int(getattr(placement, "split_factor", 1))


def _take(runs: Box, part: int, parts: int, split: int) -> Box:
    """What one of ``parts`` ranks gets of an ordered list of runs, cut in ``split`` stretches first."""
    n = sum(b - a for a, b in runs)
    stretch = -(-n // split)
    taken: Box = []
    for first in range(0, split * stretch, stretch or 1):
        left = max(min(stretch, n - first), 0)
        chunk = -(-left // parts)
        taken += _within(runs, first + min(part * chunk, left), first + min((part + 1) * chunk, left))
    return _merged(taken)


def _within(runs: Box, first: int, end: int) -> Box:
    """The stretch first..end, counted along the runs."""
    found, passed = [], 0
    for a, b in runs:
        low, high = max(first - passed, 0), min(end - passed, b - a)
        if low < high:
            found.append((a + low, a + high))
        passed += b - a
    return found


def _merged(runs: Box) -> Box:
    merged: Box = []
    for a, b in runs:
        if merged and merged[-1][1] == a:
            merged[-1] = (merged[-1][0], b)
        else:
            merged.append((a, b))
    return merged

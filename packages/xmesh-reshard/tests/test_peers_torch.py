"""DTensor's redistribute within one mesh, on real processes: the local parts that our plans give between layouts."""

import itertools

import numpy as np
import pytest

from xmesh_reshard import Layout, Topology, plan
from xmesh_reshard.transports.launcher import run_ranks

pytestmark = pytest.mark.peer
SHAPE = (12, 8)
# One letter for each axis of a mesh of 2 × 2: replicated, or cut along a dimension
WAYS = ["RR", "0R", "R1", "01", "10", "00"]


def placements(word):
    from torch.distributed.tensor import Replicate, Shard

    return [Replicate() if letter == "R" else Shard(int(letter)) for letter in word]


def redistributed(rank, shape, words):
    """For each pair of placements: whether our part is DTensor's, bit by bit."""
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor

    from xmesh_reshard.transports.torch_transport import TorchTransport

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
    full = torch.arange(int(np.prod(shape)), dtype=torch.float32).reshape(shape)
    found = {}
    with TorchTransport(timeout=60.0) as transport:
        for old, new in words:
            before, after = placements(old), placements(new)
            given = distribute_tensor(full, mesh, before)
            want = given.redistribute(mesh, after).to_local()
            source, target = (Layout.from_placements(mesh, p, shape, torch.float32) for p in (before, after))
            made = plan({"x": (source, target)}, rank.topology)
            mine = transport.execute(made, {"x": given})["x"]
            found[old, new] = mine.shape == want.shape and torch.equal(mine, want)
    return found


def test_every_redistribution_in_one_mesh():
    pytest.importorskip("torch")
    words = list(itertools.product(WAYS, WAYS))
    for found in run_ranks(redistributed, Topology.uniform(2, 2), SHAPE, words):
        assert found == dict.fromkeys(words, True)

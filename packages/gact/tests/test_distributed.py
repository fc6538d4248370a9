"""Two processes over gloo: equal bits, noise of their own, DDP, and the parameters that FSDP gathers and frees."""

import contextlib
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from gact.distributed import agree, any_rank, is_parameter_storage, rank_seed, ready, world

RANKS = 2

# Run as a program of its own: what a process group leaves behind must not stay in the process of the tests.
SCENARIOS = """
import sys
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from gact import affine, distributed
from gact.compressor import ActivationCompressor
from gact.geometry import flatten

folder, rank, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
found = {}


def network(frozen=False):
    torch.manual_seed(0)
    layers = (nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64), nn.LayerNorm(64), nn.ReLU(), nn.Linear(64, 8))
    model = nn.Sequential(*layers)
    model[2].requires_grad_(not frozen)
    return model


def batch(seed):
    return torch.randn(64, 64, generator=torch.Generator().manual_seed(seed))


def gradient(model):
    parts = [p.grad for p in model.parameters() if p.grad is not None]
    return torch.cat([(p.full_tensor() if hasattr(p, "full_tensor") else p).flatten() for p in parts])


found["world"] = distributed.world()
found["ready"] = distributed.ready()
found["seed"] = distributed.rank_seed(7)
found["agree"] = distributed.agree({"a": 2 + 2 * rank, "b": 8 >> rank})
found["union"] = distributed.agree({"a": 2 + 2 * rank, ("x", "y")[rank]: 8})
found["any"] = (distributed.any_rank(rank == 1), distributed.any_rank(False))
alone = [dist.new_group([r]) for r in range(size)][rank]
found["alone"] = (distributed.agree({"a": rank}, alone), distributed.rank_seed(7, alone), distributed.ready(alone))

# DDP
plain = DistributedDataParallel(network())
plain(batch(rank)).square().mean().backward()
found["ddp plain"] = gradient(plain)
model = DistributedDataParallel(network())
comp = ActivationCompressor(model, bits="auto:4", min_bytes=1024)
for step in range(3):
    model.zero_grad()
    with comp:
        loss = model(batch(rank)).square().mean()
    loss.backward()
    comp.step()
found["ddp"], found["ddp bits"] = gradient(model), dict(comp.bits)
local = network()
comp = ActivationCompressor(local, bits=4, min_bytes=1024)
with comp:
    loss = local(batch(0)).square().mean()
loss.backward()
found["same batch"] = gradient(local)


# FSDP: a hook of our own, and the compressor
def shard(special):
    model = network(frozen=special)
    policy = {"mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16)} if special else {}
    mesh = init_device_mesh("cpu", (size,))
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh, **policy)
    return fully_shard(model, mesh=mesh, **policy)


def step(model, context):
    with context:
        loss = model(batch(rank)).float().square().mean()
    between = [s.nbytes() for s in kept]
    loss.backward()
    return gradient(model), between


for special in (False, True):  # frozen layers and 16-bit parameters at once
    kept, refused, known = [], [], []

    def pack(tensor):
        if distributed.is_parameter_storage(tensor):
            kept.append(tensor.untyped_storage())
            known.append(tuple(tensor.shape))
            return tensor.detach()
        if not tensor.is_floating_point() or tensor.numel() < 1024:
            return tensor.detach()
        refused.append(tuple(tensor.shape))
        flat, geometry = flatten(tensor.detach())
        return affine.quantise(flat, 8, key=len(refused)), geometry

    def unpack(value):
        return value if torch.is_tensor(value) else value[1].restore(affine.dequantise(value[0]))

    name = f"fsdp {special}"
    kept = []
    exact, _ = step(shard(special), torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach(), lambda t: t))
    hooked = torch.autograd.graph.saved_tensors_hooks(pack, unpack)
    noisy, between = step(shard(special), hooked)
    found[name] = {"exact": exact, "noisy": noisy, "between": between, "known": known, "refused": refused}
    kept, model = [], shard(special)
    comp = ActivationCompressor(model, bits=8, min_bytes=1024)
    found[name]["compressor"], _ = step(model, comp)
    found[name]["rows"] = [(row.key, row.shape, row.form) for row in comp._last]

torch.save(found, f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    program = folder / "scenarios.py"
    program.write_text(SCENARIOS, encoding="utf-8")
    with contextlib.ExitStack() as stack:
        logs = [stack.enter_context((folder / f"{r}.txt").open("w", encoding="utf-8")) for r in range(RANKS)]
        command = [sys.executable, "-W", "ignore", str(program), str(folder)]
        processes = [
            subprocess.Popen([*command, str(r), str(RANKS)], stdout=log, stderr=log) for r, log in enumerate(logs)
        ]
        try:
            for process in processes:
                process.wait(timeout=100)
        finally:
            for process in processes:
                process.kill()
                process.wait()
    for r, process in enumerate(processes):
        assert process.returncode == 0, (folder / f"{r}.txt").read_text(encoding="utf-8")[-3000:]
    return [torch.load(folder / f"{r}.pt", weights_only=True) for r in range(RANKS)]


def test_ranks_know_each_other(ranks: list[dict[str, Any]]) -> None:
    assert [found["world"] for found in ranks] == [(0, 2), (1, 2)]
    assert all(found["ready"] for found in ranks)
    assert [found["any"] for found in ranks] == [(True, False)] * 2


def test_seeds_differ(ranks: list[dict[str, Any]]) -> None:
    assert len({7, *(found["seed"] for found in ranks)}) == 3


def test_bits_of_the_first_rank_or_the_most_of_all(ranks: list[dict[str, Any]]) -> None:
    assert [found["agree"] for found in ranks] == [{"a": 2, "b": 8}] * 2
    assert [found["union"] for found in ranks] == [{"a": 4, "x": 8, "y": 8}] * 2


def test_a_group_of_one_agrees_with_itself(ranks: list[dict[str, Any]]) -> None:
    assert [found["alone"] for found in ranks] == [({"a": rank}, 7, False) for rank in range(2)]


def test_ddp(ranks: list[dict[str, Any]]) -> None:
    first, second = (found["ddp"] for found in ranks)
    assert torch.equal(first, second)
    plain = ranks[0]["ddp plain"]
    assert 0 < (first - plain).norm() < 0.2 * plain.norm()
    assert ranks[0]["ddp bits"] == ranks[1]["ddp bits"] != {}


def test_noise_of_ranks_is_independent(ranks: list[dict[str, Any]]) -> None:
    # One batch, one model, 4 bits: with one seed the gradients would be equal to the bit.
    first, second = (found["same batch"] for found in ranks)
    assert not torch.equal(first, second)
    assert (first - second).norm() < 0.3 * first.norm()


@pytest.mark.parametrize("frozen_and_low", [False, True])
def test_fsdp(ranks: list[dict[str, Any]], frozen_and_low: bool) -> None:
    results = [found[f"fsdp {frozen_and_low}"] for found in ranks]
    for result in results:
        assert (128, 64) in result["known"]  # gathered, transposed
        assert (128, 64) not in result["refused"]
        assert 0 in result["between"]  # freed although the graph holds it
        for noisy in ("noisy", "compressor"):
            error = (result[noisy] - result["exact"]).norm() / result["exact"].norm()
            assert 0 < error < 0.05
        assert torch.equal(result["exact"], results[0]["exact"])
        assert torch.equal(result["noisy"], results[0]["noisy"])
        assert torch.equal(result["compressor"], results[0]["compressor"])
        compressed = [shape for _, shape, form in result["rows"] if form not in ("exact", "shape only")]
        assert (128, 64) not in compressed
        assert (64, 128) in compressed  # an activation of that shape


def test_without_a_process_group() -> None:
    assert world() == (0, 1)
    assert not ready()
    assert rank_seed(3) == 3
    assert agree({"a": 2}) == {"a": 2}
    assert any_rank(True)
    assert not any_rank(False)


def test_parameters_and_their_views() -> None:
    for trained in (True, False):
        weight = nn.Parameter(torch.randn(6, 4), requires_grad=trained)
        for saved in (weight, weight.t(), weight[1:3].t(), weight.view(-1)[3:].view(3, 7)):
            assert is_parameter_storage(saved)
        assert is_parameter_storage(weight.detach(), {weight.untyped_storage()._cdata})
        assert not is_parameter_storage(weight * 1)
        assert not is_parameter_storage(weight.to(torch.bfloat16))
    buffer = torch.randn(4)
    assert not is_parameter_storage(buffer)
    assert is_parameter_storage(buffer[1:], {buffer.untyped_storage()._cdata})
    assert not is_parameter_storage(torch.eye(3).to_sparse(), {buffer.untyped_storage()._cdata})

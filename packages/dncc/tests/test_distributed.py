"""Two processes over gloo: DistributedDataParallel's step is the single process's step on the joint batch."""

import contextlib
import subprocess
import sys
from typing import Any

import pytest
import torch

RANKS = 2

# Run as a program of its own: what a process group leaves behind must not stay in the process of the tests.
SCENARIOS = """
import sys
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from dncc.batch_ensemble import batch_ensemble
from dncc.branching import Branching
from dncc.losses import DNCCLoss
from dncc.multihead import MultiHead
from dncc.separate import LoopNetworks, SeparateNetworks

folder, rank, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
generator = torch.Generator().manual_seed(1)
x, y = torch.randn(8, 6, generator=generator), torch.randint(3, (8,), generator=generator)


def trunk():
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU())


def network():
    return nn.Sequential(*trunk(), nn.Linear(8, 3))


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = trunk(), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.body(x))


models = {
    "partition": lambda: MultiHead(trunk(), 3, 4),
    "full": lambda: MultiHead(trunk(), 3, 4, "full", hidden=(5,), norm="layer"),
    "stripped": lambda: MultiHead(Named(), 3, 4, classifier="head"),
    "frozen": lambda: MultiHead(trunk(), 3, 4, freeze_backbone=True),
    "branching": lambda: Branching(trunk(), nn.Linear(8, 3), 3),
    "separate": lambda: SeparateNetworks(network, 3),
    "loop": lambda: LoopNetworks([network(), nn.Linear(6, 3)]),
    "rank one": lambda: batch_ensemble(network(), 3),
}


def trained(model, inputs, targets, reduction):
    optimiser = torch.optim.SGD(model.parameters(), 0.5, momentum=0.9)
    for _ in range(2):
        optimiser.zero_grad()
        DNCCLoss(lam=0.7, reduction=reduction)(model(inputs), targets).loss.backward()
        optimiser.step()
    return {name.removeprefix("module."): value.detach().clone() for name, value in model.state_dict().items()}


found = {}
for name, build in models.items():
    reduction = "sum" if name.startswith("separate") else "mean"
    torch.manual_seed(0)
    start = build()
    before = {key: value.clone() for key, value in start.state_dict().items()}
    torch.manual_seed(0)
    alone = trained(build(), x, y, reduction)
    mine = slice(4 * rank, 4 * rank + 4)
    parallel = trained(DistributedDataParallel(start), x[mine], y[mine], reduction)
    found[name] = {"before": before, "alone": alone, "parallel": parallel}
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


def test_two_processes_step_as_one_does_on_the_joint_batch(ranks: list[dict[str, Any]]) -> None:
    assert len(ranks[0]) == 8
    for scenario, first in ranks[0].items():
        for name, alone in first["alone"].items():
            parallel = first["parallel"][name]
            assert torch.equal(parallel, ranks[1][scenario]["parallel"][name]), (scenario, name)
            torch.testing.assert_close(parallel, alone, rtol=0, atol=1e-6, msg=lambda m, s=scenario: f"{s}: {m}")


def test_every_trained_parameter_moved(ranks: list[dict[str, Any]]) -> None:
    for scenario, found in ranks[0].items():
        for name, before in found["before"].items():
            kept = scenario == "frozen" and name.startswith("backbone")
            assert torch.equal(found["parallel"][name], before) == kept, (scenario, name)

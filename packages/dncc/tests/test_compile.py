"""torch.compile takes every ensemble whole: the same logits, gradients and statistics as without it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

# Run as a program of its own: torch.compile cannot trace the checks of shapes that the tests put around functions.
SCENARIOS = """
import copy
import sys
import torch
from torch import nn
from dncc.batch_ensemble import batch_ensemble
from dncc.branching import Branching, branch_at
from dncc.exporting import EnsembleInference
from dncc.multihead import MultiHead
from dncc.separate import SeparateNetworks


def trunk():
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())


def tail():
    return nn.Sequential(nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(4, 5))  # fmt: skip


def perceptron():
    return nn.Sequential(nn.Flatten(), nn.Linear(108, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5))


models = {
    "heads on maps": lambda: MultiHead(trunk(), 5, 4, "full", pool="none", hidden=(3,), kernel_size=3, norm="layer"),
    "branching, vmap": lambda: Branching(trunk(), tail(), 3, execution="vmap"),
    "cut, loop": lambda: branch_at(nn.Sequential(*trunk(), *tail()), "3", 3),
    "separate": lambda: SeparateNetworks(perceptron, 3),
    "rank one": lambda: batch_ensemble(nn.Sequential(*trunk(), *tail()), 3),
}
torch.set_num_threads(1)
x = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def state(model):
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return {"gradients": gradients, "buffers": {name: b.clone() for name, b in model.named_buffers()}}


found = {}
for name, build in models.items():
    torch.compiler.reset()
    torch.manual_seed(0)
    model = build()
    plain, whole = copy.deepcopy(model), torch.compile(model, fullgraph=True, backend="aot_eager")
    entry = {}
    for key, call, of in (("eager", plain, plain), ("compiled", whole, model)):
        logits = [call(x) for _ in range(2)]
        sum(z.square().sum() for z in logits).backward()
        entry[key] = {"logits": [z.detach() for z in logits], **state(of)}
    if name in ("heads on maps", "branching, vmap"):
        inference = torch.compile(EnsembleInference(model).eval(), fullgraph=True, backend="aot_eager")
        with torch.no_grad():
            entry["compiled"]["inference"] = inference(x)
            entry["eager"]["inference"] = plain.eval().predict_proba(x)
    found[name] = entry
torch.save(found, sys.argv[1])
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder: Path = tmp_path_factory.mktemp("compiled")
    program, answer = folder / "scenarios.py", folder / "found.pt"
    program.write_text(SCENARIOS, encoding="utf-8")
    command = [sys.executable, "-W", "ignore", str(program), str(answer)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    return torch.load(answer, weights_only=True)


NAMES = ("heads on maps", "branching, vmap", "cut, loop", "separate", "rank one")


@pytest.mark.parametrize("name", NAMES)
def test_compiled_training_and_inference(found: dict[str, Any], name: str) -> None:
    eager, compiled = found[name]["eager"], found[name]["compiled"]
    assert all(gradient is not None for gradient in compiled["gradients"].values())
    assert any(key.endswith("running_mean") and buffer.any() for key, buffer in compiled["buffers"].items())
    for key in compiled.keys() - {"gradients"}:
        torch.testing.assert_close(compiled[key], eager[key], rtol=0, atol=1e-6)
    torch.testing.assert_close(compiled["gradients"], eager["gradients"], rtol=1e-5, atol=1e-5)

"""Recompute, page and compress in one plan: poet's schedules with gact's quantiser."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from gact.codec import CODEC
from poet import codecs, compiling, solving
from poet.codecs import codec_tier, compressible, find_codec
from poet.device import Device, Tier
from poet.events import Kind
from poet.graph import Graph
from poet.plan import Schedule
from poet.profiling import Transfer
from poet.tracing import trace

DISK = Tier("disk", 1e-5, 2e9, 1e-5, 2e9)
BARE = Device("bare", flops_per_second=5e9)
CODEC_SPEED = Transfer(1e-6, 3e9), Transfer(1e-6, 2e9)


def straight(depth: int = 5) -> nn.Module:
    """Without anything between its layers: every weight's gradient is linear in what its layer read."""
    return nn.Sequential(*(nn.Linear(96, 96) for _ in range(depth)))


def curved() -> nn.Module:
    return nn.Sequential(*itertools.chain(*((nn.Linear(64, 64), nn.GELU()) for _ in range(4))), nn.Linear(64, 1))


@pytest.fixture(scope="module")
def case() -> tuple[Graph, Tier]:
    torch.manual_seed(0)
    sample = torch.randn(512, 64), torch.randn(512, 1)
    program = trace(curved(), mse_loss, sample, measure=False)
    chosen = compressible(program, CODEC)
    bases = [program.bases[v] for v in chosen]
    tier = codec_tier(CODEC, 4, [(base.numel, base.dtype) for base in bases], speed=CODEC_SPEED)
    graph = program.graph
    values = tuple(replace(value, compressible=v in chosen) for v, value in enumerate(graph.values))
    return replace(graph, values=values), tier


def cost(schedule: Schedule) -> float:
    return schedule.certificate.objective if schedule.certificate is not None else float("inf")


@pytest.mark.parametrize("share", [0.85, 0.65])
def test_the_joint_plan_costs_no_more_than_any_alone(case, share):
    graph, tier = case
    ram = graph.static.total + int(share * graph.resident_peak)
    common = {"objective": "time", "time_limit": 4.0, "paging": "serial"}
    joint_machine = BARE.with_tiers(DISK, tier)
    alone = [
        solving.solve(graph, BARE.with_tiers(), ram, **common),
        solving.solve(graph, BARE.with_tiers(DISK), ram, recompute=False, **common),
        solving.solve(graph, BARE.with_tiers(tier), ram, recompute=False, **common),
    ]
    # in the joint problem the codec's tier is the second one
    starts = [s.events for s in alone[:2] if s.events is not None]
    shifted = [replace(e, tier=1) if e.tier == 0 else e for e in alone[2].events or ()]
    joint = solving.solve(graph, joint_machine, ram, starts=[*starts, shifted], **common)
    assert joint.verify().ok
    assert any(cost(s) < float("inf") for s in alone)
    assert all(cost(joint) <= cost(s) * (1 + 1e-9) for s in alone)


def run(model: nn.Module, sample: tuple[Tensor, Tensor], **options: object) -> compiling.CompiledStep:
    return compiling.compile(model, mse_loss, sample, device=BARE, time_limit=2.0, **options)


def test_a_plan_with_codes_executes_within_its_limit():
    torch.manual_seed(1)
    model, sample = curved(), (torch.randn(512, 64), torch.randn(512, 1))
    exact = mse_loss(model(sample[0]), sample[1])
    expected = torch.autograd.grad(exact, list(model.parameters()))
    with run(model, sample, ram="70%", codec=CODEC, bits=8, recompute=False) as step:
        loss, report, schedule = step(*sample), step.report(), step.schedule
    assert torch.equal(loss, exact.detach())
    assert report.paged_out > 0
    assert report.measured <= report.limit < report.plain
    assert any(e.kind is Kind.PAGE_OUT for e in schedule.events or ())
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert parameter.grad is not None
        assert float((parameter.grad - gradient).norm()) <= 0.05 * float(gradient.norm())
    model.zero_grad()
    with run(model, sample, ram="70%") as step:  # and without codes it is exact
        assert torch.equal(step(*sample), exact.detach())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), expected, strict=True) if p.grad is not None)


def test_gradients_are_unbiased():
    torch.manual_seed(2)
    model, sample = straight(), (torch.randn(256, 96), torch.randn(256, 96))
    expected = torch.autograd.grad(mse_loss(model(sample[0]), sample[1]), list(model.parameters()))
    sides = [torch.randint(0, 2, p.shape) * 2.0 - 1 for p in model.parameters()]  # one projection a parameter
    found: list[list[float]] = []
    with run(model, sample, ram="60%", codec=CODEC, bits=2, recompute=False) as step:
        assert step.report().paged_out >= 2
        for _ in range(100):
            step(*sample)
            found.append([float((p.grad * s).sum()) for p, s in zip(model.parameters(), sides, strict=True)])  # type: ignore[operator]
            model.zero_grad()
    draws = torch.tensor(found, dtype=torch.float64)
    centre = torch.tensor([float((g * s).sum()) for g, s in zip(expected, sides, strict=True)], dtype=torch.float64)
    spread = draws.std(0)
    noisy = spread > 1e-6 * centre.abs().max()
    assert int(noisy.sum()) >= 2
    # |t| of 100 draws exceeds 6 with probability 3e-8, for at most 10 projections 3e-7
    t = (draws.mean(0) - centre) / spread * 100**0.5
    assert float(t[noisy].abs().max()) < 6
    assert torch.allclose(draws.mean(0)[~noisy], centre[~noisy], rtol=1e-4, atol=1e-5)


def test_the_codec_is_found_by_name():
    assert find_codec("gact") is CODEC
    with pytest.raises(codecs.CodecError, match="gact"):
        find_codec("zip")

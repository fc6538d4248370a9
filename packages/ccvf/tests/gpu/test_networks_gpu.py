"""Networks and estimates of sampling error on a device against the CPU."""

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch

from ccvf.bonuses import make_bonus, restore_bonus
from ccvf.networks import NetworkOptions, make_network, soft_update, target_copy
from ccvf.transitions import Transitions

pytestmark = pytest.mark.gpu
DELTAS = torch.tensor([1e-8, 1e-4, 0.1, 1.0])
COMPILED = """
import torch
from ccvf.networks import make_network

x = torch.randint(256, (16, 4, 84, 84), generator=torch.Generator().manual_seed(1), dtype=torch.uint8).cuda()
deltas = torch.rand(16, 8, generator=torch.Generator().manual_seed(2)).cuda()
plain, whole = (make_network((4, 84, 84), 6, generator=torch.Generator().manual_seed(0)).cuda() for _ in "12")
compiled = torch.compile(whole.to(memory_format=torch.channels_last), fullgraph=True)
torch.backends.cudnn.allow_tf32 = False
for model, call in ((plain, plain), (whole, compiled)):
    call(x, deltas).square().mean().backward()
for ours, theirs in zip(plain.parameters(), whole.parameters(), strict=True):
    torch.testing.assert_close(theirs.grad, ours.grad, rtol=1e-3, atol=1e-4)
print("same")
"""


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def observations(shape, rows=32):
    if len(shape) == 1:
        return torch.randn(rows, *shape, generator=generator(1))
    return torch.randint(256, (rows, *shape), generator=generator(1), dtype=torch.uint8)


def log(shape):
    rng = np.random.default_rng(0)
    x = rng.integers(2, size=(400, *shape)).astype(np.float32 if len(shape) == 1 else np.uint8)
    never = np.zeros(400, bool)
    return Transitions.from_arrays(x, rng.integers(3, size=400), np.zeros(400), np.roll(x, -1, 0), never, n_actions=4)


@pytest.mark.parametrize("head", ["monotone", "cosine", "plain"])
@pytest.mark.parametrize("shape", [(7,), (10, 10, 4), (4, 84, 84)])
def test_values_and_gradients(head, shape):
    here = make_network(shape, 5, NetworkOptions(head=head), generator=generator())
    there = copy.deepcopy(here).cuda()
    x = observations(shape)
    with torch.backends.cudnn.flags(allow_tf32=False):
        ours, theirs = here(x, DELTAS), there(x.cuda(), DELTAS.cuda())
        ours.square().mean().backward()
        theirs.square().mean().backward()
    torch.testing.assert_close(theirs.cpu(), ours, rtol=1e-4, atol=1e-5)
    for a, b in zip(there.parameters(), here.parameters(), strict=True):
        torch.testing.assert_close(a.grad.cpu(), b.grad, rtol=1e-3, atol=1e-5)


def test_heads_keep_their_precision_and_order_under_autocast():
    network = make_network((4, 84, 84), 5, generator=generator()).cuda().to(memory_format=torch.channels_last)
    x = observations((4, 84, 84)).cuda()
    deltas = torch.rand(32, 64, generator=generator(3)).sort(dim=1).values.cuda()
    with torch.autocast("cuda", torch.bfloat16):
        values = network(x, deltas)
    assert values.dtype == torch.float32
    rounding = 1e-6 * values.abs().amax()
    assert bool((values.diff(dim=1) >= -rounding).all())
    torch.testing.assert_close(values, network(x, deltas), rtol=0.05, atol=0.02)


def test_compiled_whole():
    found = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=False)
    assert found.stdout.split() == ["same"], found.stderr


def test_targets_follow_on_the_device():
    online = make_network((7,), 5, generator=generator(1)).cuda()
    target = target_copy(make_network((7,), 5, generator=generator(2)).cuda())
    soft_update(target, online)
    assert all(torch.equal(a, b) for a, b in zip(target.parameters(), online.parameters(), strict=True))


@pytest.mark.parametrize("shape", [(5,), (6, 6, 2)])
@pytest.mark.parametrize("name", ["exact", "hash"])
def test_counts_on_the_device_are_the_same(name, shape):
    data = log(shape)
    here, there = (make_bonus(name, device=device).fit(data, generator()) for device in ("cpu", "cuda"))
    x = torch.as_tensor(data.observations())
    assert torch.equal(there(x.cuda()).cpu(), here(x))


@pytest.mark.parametrize("name", ["elliptical", "rnd", "ensemble"])
def test_estimates_carried_to_the_device(name):
    data = log((5,))
    quick = {} if name == "elliptical" else {"steps": 20}
    here = make_bonus(name, **quick).fit(data, generator())
    there = restore_bonus(*here.state(), device="cuda")
    x = torch.as_tensor(data.observations())
    torch.testing.assert_close(there(x.cuda()).cpu(), here(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["elliptical", "rnd", "ensemble"])
def test_estimates_fitted_on_the_device(name):
    data = log((6, 6, 2))
    quick = {} if name == "elliptical" else {"steps": 50}
    bonus = make_bonus(name, device="cuda", **quick).fit(data, generator())
    values = bonus(torch.as_tensor(data.observations()).cuda())
    assert values.is_cuda
    assert bool(torch.isfinite(values).all())
    assert bool((values > 0).all())

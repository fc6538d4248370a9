"""Networks of a body and a head, and the targets that follow them."""

import copy
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch

from ccvf.heads import PlainHead
from ccvf.networks import (
    ConfidenceNetwork,
    NetworkOptions,
    make_ensemble_network,
    make_network,
    n_parameters,
    soft_update,
    target_copy,
)

# Run as a program of its own: torch.compile cannot trace the checks of shapes that the tests put around functions.
COMPILED = """
import torch
from ccvf.networks import NetworkOptions, make_network

torch.set_num_threads(1)
x = torch.rand(4, 10, 10, 4, generator=torch.Generator().manual_seed(1)) > 0.5
deltas = torch.rand(4, 2, generator=torch.Generator().manual_seed(2))
for option in (NetworkOptions(), NetworkOptions(embedding="learned"), NetworkOptions(head="cosine")):
    torch.compiler.reset()
    plain, whole = (make_network((10, 10, 4), 3, option, generator=torch.Generator().manual_seed(0)) for _ in "12")
    compiled = torch.compile(whole, fullgraph=True, backend="aot_eager")
    for call in (plain, compiled):
        call(x, deltas).square().mean().backward()
    for ours, theirs in zip(plain.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    print("same")
"""
DELTAS = torch.tensor([1e-4, 0.1, 1.0])


def network(seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return make_network((6,), 3, NetworkOptions(hidden=(8, 5), **options), generator=generator)


def observations():
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("head", ["monotone", "cosine", "plain"])
def test_values_by_way_of_features(head):
    model = network(head=head)
    features = model.encode(observations())
    assert features.shape == (4, 5)
    assert torch.equal(model.decode(features, DELTAS), model(observations(), DELTAS))


def test_number_of_parameters():
    base = 6 * 8 + 8 + 8 * 5 + 5
    assert n_parameters(network(head="plain")) == base + 6 * 3
    assert n_parameters(network(head="plain", dueling=True)) == base + 6 * 4
    assert n_parameters(network(knots=4)) == base + 6 * 3 * 5
    assert n_parameters(network(head="cosine")) == base + 6 * 3 + 65 * 5
    assert n_parameters(target_copy(network())) == 0


def test_the_same_seed_gives_the_same_network_and_a_state_carries_it_over():
    first, again, other = network(0), network(0), network(1)
    assert torch.equal(first(observations(), DELTAS), again(observations(), DELTAS))
    assert not torch.equal(first(observations(), DELTAS), other(observations(), DELTAS))
    other.load_state_dict(first.state_dict())
    assert torch.equal(first(observations(), DELTAS), other(observations(), DELTAS))
    assert all(torch.is_floating_point(t) for t in first.state_dict().values())


def test_targets_follow():
    online, target = network(0), target_copy(network(1))
    before = copy.deepcopy(target)
    soft_update(target, online, 0.25)
    for moved, old, new in zip(target.parameters(), before.parameters(), online.parameters(), strict=True):
        torch.testing.assert_close(moved, 0.75 * old + 0.25 * new)
        assert not moved.requires_grad
    soft_update(target, online)
    assert all(torch.equal(a, b) for a, b in zip(target.parameters(), online.parameters(), strict=True))
    for tau in (0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="tau"):
            soft_update(target, online, tau)


def test_options_are_plain_values():
    options = NetworkOptions(hidden=(4,), head="cosine", variable="u")
    assert NetworkOptions(**asdict(options)) == options


def test_one_hot_states_and_a_plain_head_are_a_table():
    table = make_network((), 2, NetworkOptions(n_states=5, head="plain"), generator=torch.Generator().manual_seed(0))
    states = torch.arange(5)
    before = table(states, torch.ones(1)).detach()
    table(states[:1], torch.ones(1)).sum().backward()
    with torch.no_grad():
        table.head.dense.weight -= table.head.dense.weight.grad
    changed = (table(states, torch.ones(1)) != before).any(-1)[:, 0]
    assert changed.tolist() == [True, False, False, False, False]


def test_an_ensemble_on_one_body():
    model = make_ensemble_network((6,), 3, 7, generator=torch.Generator().manual_seed(0))
    assert model(observations()).shape == (4, 7, 3)


def test_what_does_not_fit_is_refused():
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="5 features and the head takes 6"):
        ConfidenceNetwork(network().body, PlainHead(6, 3, generator=generator))
    with pytest.raises(ValueError, match="rainbow"):
        make_network((6,), 3, NetworkOptions(head="rainbow"), generator=generator)  # pyrefly: ignore
    with pytest.raises(ValueError, match="at least 1 action"):
        make_network((6,), 0, generator=generator)


def test_compiled_whole():
    found = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=False)
    assert found.stdout.split() == ["same"] * 3, found.stderr

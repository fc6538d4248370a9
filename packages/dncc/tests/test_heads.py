"""Heads equal small networks built one by one; counts, symmetry, masks, and what is refused."""

import copy
import inspect
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dncc.heads import Heads, HeadSymmetryWarning, identical_heads

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def alone(heads: Heads, m: int, maps: bool, norm: str | None) -> nn.Sequential:
    """Head m from torch's own layers, with a copy of its weights."""
    layers: list[nn.Module] = []
    for grouped in heads.hidden:
        size = grouped.kernel_size
        layer: Any
        if maps:
            layer = nn.Conv2d(grouped.in_features, grouped.out_features, size, padding=size // 2)
        else:
            layer = nn.Linear(grouped.in_features, grouped.out_features)
        with torch.no_grad():
            layer.weight.copy_(grouped.weight[m].reshape(layer.weight.shape))
            layer.bias.copy_(grouped.bias[m])
        layers.append(layer)
        width = grouped.out_features
        if norm == "batch":
            layers.append(nn.BatchNorm2d(width) if maps else nn.BatchNorm1d(width))
        elif norm == "layer":
            layers.append(nn.GroupNorm(1, width) if maps else nn.LayerNorm(width))
        layers.append(ACTIVATIONS[heads.activation]())
    if maps:
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    last = nn.Linear(heads.last.in_features, heads.num_classes)
    with torch.no_grad():
        last.weight.copy_(heads.last.weight[m])
        last.bias.copy_(heads.last.bias[m])
    return nn.Sequential(*layers, last).double()


def slice_of(features: Tensor, heads: Heads, m: int) -> Tensor:
    return features if heads.mode == "full" else features.chunk(heads.members, 1)[m]


@pytest.mark.parametrize("mode", ["partition", "full"])
@pytest.mark.parametrize("maps", [False, True])
@pytest.mark.parametrize(
    ("hidden", "activation", "norm", "kernel_size"),
    [((), "relu", None, 1), ((5,), "relu", None, 1), ((5, 3), "gelu", "batch", 1), ((4, 6), "tanh", "layer", 1),
     ((5, 3), "silu", "batch", 3)],
)  # fmt: skip
def test_heads_equal_networks_built_one_by_one(
    mode: Any, maps: bool, hidden: tuple[int, ...], activation: Any, norm: Any, kernel_size: int
) -> None:
    kernel_size = kernel_size if maps else 1  # vectors have no neighbours
    options = {"hidden": hidden, "activation": activation, "norm": norm, "kernel_size": kernel_size}
    heads = Heads(12, 4, 3, mode, generator=seeded(), **options).double()
    shape = (7, 12, 4, 5) if maps else (7, 12)
    features = torch.randn(shape, generator=seeded(1), dtype=torch.float64, requires_grad=True)
    others = features.detach().clone().requires_grad_()
    networks = [alone(heads, m, maps, norm) for m in range(3)]
    ours = heads(features)
    theirs = torch.stack([network(slice_of(others, heads, m)) for m, network in enumerate(networks)])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    weights = torch.randn(ours.shape, generator=seeded(2), dtype=torch.float64)
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    torch.testing.assert_close(features.grad, others.grad, rtol=0, atol=1e-12)
    for m, network in enumerate(networks):
        theirs_last, theirs_first = network[-1], network[0]
        torch.testing.assert_close(heads.last.weight.grad[m], theirs_last.weight.grad, rtol=0, atol=1e-12)
        torch.testing.assert_close(heads.last.bias.grad[m], theirs_last.bias.grad, rtol=0, atol=1e-12)
        if hidden:
            first = heads.hidden[0].weight.grad[m].reshape(theirs_first.weight.shape)
            torch.testing.assert_close(first, theirs_first.weight.grad, rtol=0, atol=1e-12)
    if norm == "batch":  # private statistics
        for network_norm, m in ((networks[m][1], m) for m in range(3)):
            running = heads.norms[0].running_mean.reshape(3, -1)[m]
            torch.testing.assert_close(running, network_norm.running_mean, rtol=0, atol=1e-12)
        heads.eval()
        expected = torch.stack([n.eval()(slice_of(others, heads, m)) for m, n in enumerate(networks)])
        torch.testing.assert_close(heads(features), expected, rtol=0, atol=1e-12)


@pytest.mark.property
@given(members=st.integers(1, 6), width=st.integers(1, 4), classes=st.integers(1, 5), hidden=st.integers(0, 4),
       mode=st.sampled_from(["partition", "full"]))  # fmt: skip
def test_counts_are_the_stated_ones(members: int, width: int, classes: int, hidden: int, mode: Any) -> None:
    features = members * width
    heads = Heads(features, classes, members, mode, hidden=(hidden,) if hidden else ())
    read = features if mode == "partition" else members * features
    if hidden:
        expected = read * hidden + members * hidden + members * hidden * classes + members * classes
    else:
        expected = read * classes + members * classes
    assert sum(p.numel() for p in heads.parameters()) == expected
    assert heads(torch.zeros(2, features)).shape == (members, 2, classes)


def test_partition_has_the_weights_of_one_head() -> None:
    for members in (1, 2, 8, 32):
        heads = Heads(64, 10, members)
        assert heads.last.weight.numel() == nn.Linear(64, 10).weight.numel()


def test_one_member_is_a_linear_layer() -> None:
    heads, x = Heads(6, 3, 1, generator=seeded()), torch.randn(4, 6, generator=seeded(1))
    expected = nn.functional.linear(x, heads.last.weight[0], heads.last.bias[0])
    torch.testing.assert_close(heads(x)[0], expected)


def test_initial_weights_are_those_of_linear_layers() -> None:
    heads = Heads(400, 50, 4, "full", hidden=(100,), generator=seeded())
    for layer, inputs in ((heads.hidden[0], 400), (heads.last, 100)):
        bound = inputs**-0.5
        assert layer.weight.abs().max() <= bound
        # The standard deviation of U(-b, b) is b / sqrt(3); 20,000 draws or more leave an error of 0.4 % (one sigma),
        # so that 3 % are exceeded with probability below 1e-10.
        assert abs(layer.weight.std() / (bound / 3**0.5) - 1) < 0.03


def test_a_generator_decides_the_weights_and_the_global_one_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    first, second, third = (Heads(8, 3, 2, hidden=(4,), generator=seeded(s)) for s in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    for a, b, c in zip(first.parameters(), second.parameters(), third.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_init_scale_multiplies_the_last_layer() -> None:
    plain = Heads(8, 3, 2, hidden=(4,), generator=seeded())
    scaled = Heads(8, 3, 2, hidden=(4,), init_scale=[1, 0.5], generator=seeded())
    assert torch.equal(plain.hidden[0].weight, scaled.hidden[0].weight)
    x = torch.randn(5, 8, generator=seeded(1))
    torch.testing.assert_close(scaled(x), plain(x) * torch.tensor([1, 0.5]).reshape(2, 1, 1))
    assert torch.equal(Heads(8, 3, 2, init_scale=2, generator=seeded()).last.weight,
                       2 * Heads(8, 3, 2, generator=seeded()).last.weight)  # fmt: skip


def test_equal_heads_stay_equal_for_ever_and_loading_them_warns() -> None:
    heads = Heads(6, 3, 3, "full", hidden=(4,), generator=seeded())
    assert identical_heads(heads) == []
    state = {name: tensor[:1].expand_as(tensor).clone() for name, tensor in heads.state_dict().items()}
    with pytest.warns(HeadSymmetryWarning, match="heads 0 and 1"):
        heads.load_state_dict(state)
    assert identical_heads(heads) == [(0, 1), (0, 2), (1, 2)]
    x, y = torch.randn(8, 6, generator=seeded(1)), torch.randint(3, (8,), generator=seeded(2))
    optimiser = torch.optim.SGD(heads.parameters(), 0.5)
    for _ in range(3):
        log_p = heads(x).log_softmax(-1)
        optimiser.zero_grad()
        torch.logsumexp(log_p[:, torch.arange(8), y], 0).mean().neg().backward()  # lambda = 1: all that could help
        optimiser.step()
    assert identical_heads(heads) == [(0, 1), (0, 2), (1, 2)]


@pytest.mark.parametrize("options", [{"mode": "partition"}, {"mode": "full", "dropout": 0.5}])
def test_slices_or_masks_break_the_symmetry(options: dict[str, Any]) -> None:
    heads = Heads(6, 3, 3, **options)
    state = {name: tensor[:1].expand_as(tensor).clone() for name, tensor in heads.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        heads.load_state_dict(state)
    x = torch.randn(8, 6, generator=seeded(1))
    assert not torch.equal(heads(x)[0], heads(x)[1])


@pytest.mark.parametrize("maps", [False, True])
@pytest.mark.parametrize("hidden", [(), (16,)])
@pytest.mark.parametrize("mode", ["partition", "full"])
def test_dropout_has_masks_of_each_heads_own(mode: Any, hidden: tuple[int, ...], maps: bool) -> None:
    heads = Heads(32, 1, 2, mode, hidden=hidden, dropout=0.5)
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.zero_()
        for layer in heads.hidden:
            layer.bias.fill_(1)
        heads.last.weight.fill_(1)
    x = torch.ones((64, 32, 1, 1) if maps else (64, 32))
    torch.manual_seed(0)
    counts = heads(x)[..., 0] / 2  # the number of entries that were kept: dropout doubles them
    width = heads.last.in_features
    # Binomial(width, 1/2), 64 draws for each head; two heads with one mask would agree everywhere. Agreement of all
    # 64 independent pairs has probability below 0.3**64; a mean off by 5 standard errors has one below 1e-6.
    assert not torch.equal(counts[0], counts[1])
    assert abs(counts.mean() - width / 2) < 5 * (width / 4 / 128) ** 0.5
    heads.eval()
    assert torch.equal(heads(x), torch.full((2, 64, 1), float(width)))


def test_no_copies_of_the_features_are_made() -> None:
    features = torch.randn(256, 512)
    for mode in ("partition", "full"):
        heads = Heads(512, 2, 8, mode)  # type: ignore[arg-type]
        with torch.autograd.profiler.profile(profile_memory=True, use_kineto=True) as profile, torch.no_grad():
            heads(features)
        events = [e for e in profile.kineto_results.events() if e.name() == "[memory]"]
        allocated = sum(max(e.nbytes(), 0) for e in events)
        assert 0 < allocated < features.numel() * 4  # the logits, far below one copy of the features


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"members": 6}, "512 features cannot be split evenly among 6 members: take members=4 or 8"),
        ({"members": 1024}, "take members=512, or mode='full'"),
        ({"members": 0}, "members is 0"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"mode": "half"}, "mode is 'half'.*'partition', 'full'"),
        ({"hidden": (0,)}, "every width"),
        ({"hidden": (3,), "activation": "sin"}, "activation is 'sin'"),
        ({"hidden": (3,), "norm": "group"}, "norm is 'group'"),
        ({"dropout": 1}, "dropout is 1"),
        ({"init_scale": 0}, "start equal"),
        ({"init_scale": [1, 2]}, "one positive number, or 8"),
        ({"kernel_size": 2}, "odd"),
        ({"kernel_size": 3}, "no hidden layers"),
    ],
)  # fmt: skip
def test_what_is_refused(arguments: dict[str, Any], message: str) -> None:
    # without the checks of the tests' types, which would refuse a wrong word first
    build = inspect.unwrap(Heads.__init__)
    with pytest.raises(ValueError, match=message):
        build(Heads.__new__(Heads), **({"in_features": 512, "num_classes": 10, "members": 8} | arguments))


def test_features_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 5\); the heads take \(batch, 6\)"):
        Heads(6, 3, 2)(torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"features have shape \(2, 6, 4\)"):
        Heads(6, 3, 2)(torch.zeros(2, 6, 4))
    with pytest.raises(ValueError, match="vectors, not maps"):
        Heads(6, 3, 2, hidden=(2,), kernel_size=3)(torch.zeros(2, 6))


def test_copies_pickles_and_states_give_the_same_logits() -> None:
    heads, x = Heads(6, 3, 2, "full", hidden=(4,), norm="layer"), torch.randn(5, 6)
    expected = heads(x)
    other = Heads(6, 3, 2, "full", hidden=(4,), norm="layer")
    assert not torch.equal(other(x), expected)
    other.load_state_dict(heads.state_dict())
    for found in (other, copy.deepcopy(heads), pickle.loads(pickle.dumps(heads))):
        assert torch.equal(found(x), expected)

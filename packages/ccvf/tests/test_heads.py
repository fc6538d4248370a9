"""Heads: what they compute, that the monotone one cannot fall, and their precision."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ccvf.confidence import conservatism, delta_of
from ccvf.heads import CosineHead, EnsembleHead, MonotoneHead, PlainHead, monotonicity_hinge

DELTAS = torch.tensor([1e-30, 1e-8, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 0.3, 0.7, 0.99, 1 - 2**-24, 1.0])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def features(batch=5, width=7, seed=1):
    return torch.randn(batch, width, generator=generator(seed))


def heads(**options):
    return {
        "ramps": MonotoneHead(7, 3, generator=generator(), **options),
        "learned": MonotoneHead(7, 3, generator=generator(), embedding="learned", **options),
        "cosine": CosineHead(7, 3, generator=generator(), **options),
        "cosine in u": CosineHead(7, 3, generator=generator(), variable="u", **options),
        "plain": PlainHead(7, 3, generator=generator(), **options),
    }


NAMES = list(heads())


@pytest.mark.property
@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["ramps", "learned"]),
    st.sampled_from(["linear", "constant"]),
    st.booleans(),
    st.integers(0, 2**31),
    st.floats(1e-2, 100.0),
)
def test_no_weights_make_the_values_fall(embedding, beyond, dueling, seed, scale):
    head = MonotoneHead(7, 3, generator=generator(), embedding=embedding, beyond=beyond, dueling=dueling)
    with torch.no_grad():
        for values in head.parameters():
            values.copy_(scale * torch.randn(values.shape, generator=generator(seed)))
    values = head(features(seed=seed), DELTAS)
    rounding = 1e-6 * values.abs().amax()  # of one float32 sum of 16 terms
    assert bool((values.diff(dim=1) >= -rounding).all())
    assert bool((values[:, -1] > values[:, 0] + rounding).any())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dueling", [False, True])
def test_confidences_of_the_batch_or_of_each(name, dueling):
    head = heads(dueling=dueling)[name]
    x, deltas = features(), torch.rand(5, 4, generator=generator(2))
    each = head(x, deltas)
    assert each.shape == (5, 4, 3)
    for row in range(5):
        torch.testing.assert_close(head(x[row : row + 1], deltas[row]), each[row : row + 1])
    for column in range(4):
        torch.testing.assert_close(head(x, deltas[:, column : column + 1])[:, 0], each[:, column])


def test_any_falling_curve_through_the_knots_can_be_had():
    head = MonotoneHead(1, 1, generator=generator(), knots=8, smallest=1e-3)
    knots = np.linspace(0, float(conservatism(1e-3)[0]), 9)
    wanted = 2.0 - knots**1.5
    slopes = -np.diff(wanted) / np.diff(knots)
    with torch.no_grad():
        head.dense.weight.zero_()
        head.dense.bias.copy_(torch.tensor([wanted[0], *np.log(np.expm1(slopes))]))
    found = head(torch.zeros(1, 1), torch.tensor(delta_of(knots)))[0, :, 0].detach().numpy()
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    # Below the smallest confidence it goes on with the slope of the last ramp.
    (beyond,) = head(torch.zeros(1, 1), torch.tensor([1e-8]))[0, :, 0].tolist()
    assert beyond == pytest.approx(wanted[-1] - slopes[-1] * float(conservatism(1e-8)[0] - knots[-1]), abs=2e-6)


@pytest.mark.parametrize("embedding", ["ramps", "learned"])
def test_constant_below_the_smallest_on_request(embedding):
    head = MonotoneHead(7, 3, generator=generator(), beyond="constant", embedding=embedding)
    at, below = head(features(), torch.tensor([1e-4, 1e-8])).unbind(1)
    torch.testing.assert_close(below, at, rtol=1e-6, atol=1e-6)


def test_at_the_start_a_unit_of_u_costs_what_was_asked():
    head = MonotoneHead(7, 3, generator=generator(), initial_slope=0.2)
    with torch.no_grad():
        head.dense.bias[3:] = math.log(math.expm1(0.2))  # without the spread of the biases
    values = head(torch.zeros(1, 7), torch.tensor([math.exp(-1), 1.0]))
    torch.testing.assert_close(values[:, 1] - values[:, 0], torch.full((1, 3), 0.2))


def test_full_confidence_is_the_first_layer_alone():
    head = MonotoneHead(7, 3, generator=generator())
    x = features()
    expected = x @ head.dense.weight[:3].T + head.dense.bias[:3]
    torch.testing.assert_close(head(x, torch.ones(1))[:, 0], expected)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_gets_a_gradient(name):
    head = heads()[name]
    head(features(batch=64), DELTAS).square().sum().backward()
    for parameter in head.parameters():
        assert parameter.grad is not None
        assert bool((parameter.grad != 0).flatten().float().mean() > 0.9)


@pytest.mark.parametrize("name", NAMES)
def test_full_precision_under_autocast(name):
    head = heads()[name]
    x = features().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = head(x, DELTAS)
    assert low.dtype == torch.float32
    assert torch.equal(low, head(x.float(), DELTAS))


@pytest.mark.parametrize("name", NAMES)
def test_values_without_conservatism_come_along(name):
    head, x = heads()[name], features()
    values, free = head.with_free(x, DELTAS)
    assert torch.equal(values, head(x, DELTAS))
    torch.testing.assert_close(free, head(x, torch.ones(1)))


def test_dueling_centres_the_advantages():
    head = PlainHead(7, 3, generator=generator(), dueling=True)
    x = features()
    state_value = (x @ head.dense.weight[0] + head.dense.bias[0]).unsqueeze(1)
    torch.testing.assert_close(head(x, torch.ones(1)).mean(-1), state_value)


def test_cosine_head_is_a_product_of_features():
    for variable, x in (("delta", np.array([0.2, 0.9])), ("u", conservatism([0.2, 0.9]) / conservatism(1e-4))):
        head = CosineHead(7, 3, generator=generator(), variable=variable)
        embedded = head.embedding(torch.tensor(x, dtype=torch.float32))
        expected = torch.einsum("bf,df,af->bda", features(), embedded, head.dense.weight) + head.dense.bias
        torch.testing.assert_close(head(features(), torch.tensor([0.2, 0.9])), expected)


def test_the_cosine_head_is_not_monotone_and_its_hinge_says_so():
    head = CosineHead(7, 3, generator=generator())
    values = head(features(), DELTAS)
    assert bool((values.diff(dim=1) < 0).any())
    assert head.hinge(values, DELTAS).item() == pytest.approx((-values.diff(dim=1)).relu().mean().item())


def test_plain_head_ignores_the_confidence_and_computes_once():
    values = PlainHead(7, 3, generator=generator())(features(), DELTAS)
    assert values.stride(1) == 0
    assert bool((values == values[:, :1]).all())


def test_ensemble_heads_are_separate_layers():
    head = EnsembleHead(7, 3, 4, generator=generator())
    values = head(features())
    for k in range(4):
        rows = slice(3 * k, 3 * k + 3)
        torch.testing.assert_close(values[:, k], features() @ head.dense.weight[rows].T + head.dense.bias[rows])


def test_hinge_in_any_order_and_for_one_confidence():
    deltas = torch.tensor([[0.5, 0.1, 1.0], [0.1, 0.5, 1.0]])
    values = torch.tensor([[[1.0], [3.0], [2.0]], [[0.0], [1.0], [1.0]]])
    assert float(monotonicity_hinge(values, deltas)) == pytest.approx(2.0 / 4)  # one fall of 2 among four pairs
    assert float(monotonicity_hinge(values[:, :1], deltas[:, :1])) == 0


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: MonotoneHead(4, 2, generator=generator(), smallest=1.0), "smallest"),
        (lambda: MonotoneHead(4, 2, generator=generator(), smallest=0.0), "outside"),
        (lambda: MonotoneHead(4, 2, generator=generator(), knots=0), "knots"),
        (lambda: MonotoneHead(4, 2, generator=generator(), initial_slope=0), "initial_slope"),
        (lambda: EnsembleHead(4, 2, 0, generator=generator()), "at least 1"),
        (lambda: CosineHead(4, 2, generator=generator(), frequencies=0), "frequencies"),
    ],
)
def test_options_out_of_range_are_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()

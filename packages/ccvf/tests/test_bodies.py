"""Network bodies against the layers written out, and their seeding."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from ccvf.bodies import MinAtarBody, MlpBody, NatureBody, TabularBody, body_kind, make_body
from ccvf.layers import convolution, fill_uniform, linear


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def n_weights(module):
    return sum(p.numel() for p in module.parameters())


def test_layers_hold_the_law_of_torch():
    layer = linear(400, 300, generator())
    bound = 1 / 20
    for values in (layer.weight, layer.bias):
        assert values.abs().max() <= bound
    # Mean square of a uniform law is bound**2 / 3; 120 000 draws: 6 standard errors are 1.6 %, false alarm 2e-9.
    assert float(layer.weight.detach().square().mean()) == pytest.approx(bound**2 / 3, rel=0.016)
    assert convolution(4, 8, 3, 1, generator()).weight.abs().max() <= 1 / 6


def test_weights_come_from_the_generator_and_leave_the_global_one_alone():
    before = torch.random.get_rng_state()
    first, again, other = (make_body("minatar", (10, 10, 4), generator=generator(s)) for s in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_fill_uniform_draws_the_same_for_every_dtype():
    single, double = torch.empty(50), torch.empty(50, dtype=torch.float64)
    fill_uniform(single, 0.3, generator())
    fill_uniform(double, 0.3, generator())
    assert torch.equal(single.double(), double.float().double())


def test_mlp_is_dense_layers_with_relu():
    body = MlpBody(6, (5, 3), generator())
    x = torch.randn(4, 2, 3, generator=generator(1))
    flat = x.reshape(4, 6)
    for layer in body.layers:
        flat = torch.relu(flat @ layer.weight.T + layer.bias)
    torch.testing.assert_close(body(x), flat)
    assert body.features == 3


def test_mlp_takes_integers_as_they_are():
    body = MlpBody(3, (4,), generator())
    numbers = torch.tensor([[1, 200, 3]])
    for dtype in (torch.uint8, torch.int32, torch.float64):
        torch.testing.assert_close(body(numbers.to(dtype)), body(numbers.float()), rtol=0, atol=0)


@pytest.mark.parametrize("channels", [4, 7])
def test_minatar_is_its_layers_written_out(channels):
    body = MinAtarBody((10, 10, channels), 128, generator())
    x = torch.rand(5, 10, 10, channels, generator=generator(1)) > 0.7
    maps = torch.relu(F.conv2d(x.float().permute(0, 3, 1, 2).contiguous(), body.conv.weight, body.conv.bias))
    flat = torch.stack([maps[:, :, i, j] for i in range(8) for j in range(8)], 1).reshape(5, -1)
    torch.testing.assert_close(body(x), torch.relu(flat @ body.dense.weight.T + body.dense.bias))
    assert n_weights(body) == 16 * (9 * channels + 1) + 128 * (1024 + 1)


def test_dtypes_of_pictures_agree():
    body = MinAtarBody((10, 10, 4), 32, generator())
    on = torch.rand(3, 10, 10, 4, generator=generator(1)) > 0.5
    torch.testing.assert_close(body(on), body(on.float()), rtol=0, atol=0)
    torch.testing.assert_close(body(on), body(on.to(torch.uint8) * 255))


def test_nature_is_its_layers_written_out_and_of_the_known_size():
    body = NatureBody((4, 84, 84), 512, generator())
    x = torch.randint(256, (2, 4, 84, 84), generator=generator(1), dtype=torch.uint8)
    maps = x.float() / 255
    for layer, stride in zip(body.convolutions, (4, 2, 1), strict=True):
        maps = torch.relu(F.conv2d(maps, layer.weight, layer.bias, stride=stride))
    assert maps.shape == (2, 64, 7, 7)
    torch.testing.assert_close(body(x), torch.relu(maps.flatten(1) @ body.dense.weight.T + body.dense.bias))
    assert n_weights(body) == 8224 + 32832 + 36928 + 1606144


def test_memory_format_changes_nothing():
    body = NatureBody((4, 84, 84), 64, generator())
    x = torch.randint(256, (2, 4, 84, 84), generator=generator(1), dtype=torch.uint8)
    plain = body(x)
    body.to(memory_format=torch.channels_last)
    torch.testing.assert_close(body(x.contiguous(memory_format=torch.channels_last)), plain)


def test_a_single_frame_has_one_channel():
    body = make_body("auto", (84, 84), generator=generator(), width=16)
    x = torch.randint(256, (2, 84, 84), generator=generator(1), dtype=torch.uint8)
    torch.testing.assert_close(body(x), body(x.unsqueeze(1)))


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.int32])
def test_tabular_keeps_states_apart(dtype):
    states = torch.tensor([3, 0, 3], dtype=dtype)
    np.testing.assert_array_equal(TabularBody(4, None, generator())(states).numpy(), np.eye(4)[[3, 0, 3]])
    learnt = TabularBody(4, 2, generator())
    assert learnt.rows is not None
    assert torch.equal(learnt(states.unsqueeze(1)), learnt.rows[[3, 0, 3]])


def test_lower_precision_under_autocast():
    body = make_body("minatar", (10, 10, 4), generator=generator())
    x = torch.rand(3, 10, 10, 4, generator=generator(1)) > 0.5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = body(x)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), body(x), rtol=0.03, atol=0.01)  # bfloat16 holds 8 bits


@pytest.mark.parametrize(
    ("shape", "n_states", "kind"),
    [
        ((7,), None, "mlp"),
        ((1,), 5, "tabular"),
        ((), 5, "tabular"),
        ((10, 10, 6), None, "minatar"),
        ((1, 84, 84), None, "nature"),
        ((84, 84), None, "nature"),
        ((3, 64, 64), None, "nature"),
    ],
)
def test_kind_by_shape(shape, n_states, kind):
    assert body_kind(shape, n_states) == kind
    body = make_body("auto", shape, n_states=n_states, generator=generator())
    features = body(torch.zeros(2, *shape, dtype=torch.uint8))
    assert features.shape == (2, body.features)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"kind": "resnet", "observation_shape": (3,)}, "resnet"),
        ({"kind": "auto", "observation_shape": ()}, "n_states"),
        ({"kind": "auto", "observation_shape": (10, 10)}, "mlp"),
        ({"kind": "minatar", "observation_shape": (10, 10)}, "height"),
        ({"kind": "nature", "observation_shape": (4, 20, 20)}, "36"),
        ({"kind": "tabular", "observation_shape": (3,), "n_states": 5}, "state number"),
        ({"kind": "mlp", "observation_shape": (3,), "hidden": ()}, "hidden"),
        ({"kind": "mlp", "observation_shape": (3,), "hidden": (8, 0)}, "at least 1"),
        ({"kind": "mlp", "observation_shape": (3,), "width": 8}, "last hidden layer"),
        ({"kind": "minatar", "observation_shape": (10, 10, 4), "width": 0}, "at least 1"),
    ],
)
def test_what_does_not_suit_is_refused(options, says):
    with pytest.raises(ValueError, match=says):
        make_body(generator=generator(), **options)


def test_the_mlp_flattens_pictures_on_request():
    body = make_body("mlp", (10, 10, 4), generator=generator())
    assert isinstance(body, nn.Module)
    assert body(torch.zeros(2, 10, 10, 4, dtype=torch.bool)).shape == (2, 256)

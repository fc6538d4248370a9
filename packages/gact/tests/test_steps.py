"""Exact small forms: gradients equal plain training's to the bit, at the thresholds, at zeros, NaN and infinities."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from common_core.testing import assert_unbiased
from gact import ActivationCompressor
from gact.forms import Shape

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
MODEL = nn.Identity()  # a compressor does not keep its model alive
THRESHOLDS = (-6.0, -3.0, -1.0, -0.5, -0.25, -0.1, 0.0, 0.1, 0.25, 0.5, 1.0, 3.0, 6.0)


def awkward(dtype, *, with_nan=True, numel=1013):
    """Thresholds, their neighbours, both zeros, infinities, NaN, and random numbers; odd in number and shuffled."""
    at = torch.tensor(THRESHOLDS, dtype=dtype)
    infinity = torch.tensor(math.inf, dtype=dtype)
    special = [at, torch.nextafter(at, infinity), torch.nextafter(at, -infinity), -torch.zeros(1, dtype=dtype)]
    special += [infinity[None], -infinity[None]] + ([infinity[None] * 0] if with_nan else [])
    generator = torch.Generator().manual_seed(0)
    rest = torch.randn(numel - sum(map(len, special)), generator=generator).to(dtype) * 3
    x = torch.cat([*special, rest])
    return x[torch.randperm(numel, generator=generator)]


def gradient(function, x, compressor=None):
    """The gradient of <function(x), fixed numbers> in x, which the function meets as no leaf."""
    x = x.clone().requires_grad_()
    if compressor is None:
        y = function(x.neg().neg())
    else:
        with compressor:
            y = function(x.neg().neg())
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return torch.autograd.grad(y, x, weight)[0]


def same(a, b):
    """Equal to the bit."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.contiguous().view(integer), b.contiguous().view(integer))


def compressor(bits=2, **settings):
    return ActivationCompressor(MODEL, bits=bits, min_bytes=0, **settings)


def projected(gradients):
    """Gradients in eight random directions: sums of many roundings, which are all but normal."""
    gradients = torch.atleast_2d(torch.stack(gradients) if isinstance(gradients, list) else gradients).double()
    directions = torch.randn(gradients.shape[1], 8, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return (gradients @ directions).numpy()


def row(comp, operation, saved=None):
    found = [r for r in comp.report().rows if r.operation == operation and saved in (None, r.saved)]
    assert len(found) == 1, comp.report().text()
    return found[0]


def through_clone(function):
    """In-place functions need a tensor of their own."""
    return lambda x: function(x.clone())


STEPS = {
    "relu": (functional.relu, "Relu", 1),
    "relu_": (through_clone(functional.relu_), "Relu", 1),
    "leaky_relu": (lambda x: functional.leaky_relu(x, 0.1), "LeakyRelu", 1),
    "leaky_relu_": (through_clone(lambda x: functional.leaky_relu_(x, 0.1)), "LeakyRelu", 1),
    "threshold": (lambda x: functional.threshold(x, 0.5, 9.0), "Threshold", 1),
    "threshold_": (through_clone(lambda x: functional.threshold_(x, 0.5, 0.25)), "Threshold", 1),
    "hardtanh": (functional.hardtanh, "Hardtanh", 1),
    "hardtanh_": (through_clone(functional.hardtanh_), "Hardtanh", 1),
    "relu6": (functional.relu6, "Hardtanh", 1),
    "hardsigmoid": (functional.hardsigmoid, "Hardsigmoid", 1),
    "hardshrink": (functional.hardshrink, "Hardshrink", 1),
    "softshrink": (functional.softshrink, "Softshrink", 1),
    "abs": (torch.abs, "Abs", 2),
    "clamp": (lambda x: x.clamp(-1, 3), "Clamp", 1),
    "clamp odd": (lambda x: x.clamp(-0.1, 0.3), "Clamp", 1),
    "clamp from": (lambda x: x.clamp(min=0.1), "Clamp", 1),
    "clamp to": (lambda x: x.clamp(max=-0.5), "Clamp", 1),
    "clamp_": (through_clone(lambda x: x.clamp_(-1, 1)), "Clamp", 1),
    "clamp_min": (lambda x: x.clamp_min(0.5), "ClampMin", 1),
    "clamp_max": (lambda x: x.clamp_max(0.0), "ClampMax", 1),
    "clamp_max_": (through_clone(lambda x: x.clamp_max_(0.1)), "ClampMax", 1),
    "nansum": (lambda x: x.nansum(), "Nansum", 1),
    "nan_to_num": (torch.nan_to_num, "NanToNum", 1),
    "norm 1": (lambda x: torch.linalg.vector_norm(x, 1), "LinalgVectorNorm", 2),
}
TORCH_IS_UNSURE_OF_NAN = ("hardtanh", "hardtanh_", "relu6", "hardshrink", "softshrink")  # differs from lane to tail


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", STEPS)
def test_steps_are_exact(name, dtype):
    function, operation, bits = STEPS[name]
    x = awkward(dtype, with_nan=name not in TORCH_IS_UNSURE_OF_NAN)
    comp = compressor()
    compressed, plain = gradient(function, x, comp), gradient(function, x)
    assert same(compressed, plain), x[(compressed != plain)].unique()
    stored = row(comp, operation, "self" if operation == "LinalgVectorNorm" else None)
    assert (stored.bits, stored.nbytes, stored.guarantee) == (bits, -(-x.numel() * bits // 8), "exact")


@pytest.mark.parametrize("name", TORCH_IS_UNSURE_OF_NAN)
def test_nan_takes_one_of_the_values_that_torch_gives_it(name):
    function = STEPS[name][0]
    x = torch.full((1013,), math.nan)
    x.requires_grad_()
    with compressor():
        y = function(x.neg())
    (found,) = torch.autograd.grad(y, x, torch.full_like(y, 2.0))
    assert set(found.tolist()) <= {0.0, -2.0}


@pytest.mark.parametrize(
    ("function", "operation"),
    [
        (lambda x: functional.hardtanh(x, -0.1, 0.1), "Hardtanh"),
        (lambda x: functional.threshold(x, 0.1, 0.0), "Threshold"),
        (lambda x: functional.hardshrink(x, 0.1), "Hardshrink"),
        (lambda x: torch.clamp(x, torch.tensor(-1.0).to(x), torch.tensor(1.0).to(x)), "Clamp"),
        (lambda x: torch.clamp(x, min=math.inf), "Clamp"),
        (lambda x: torch.clamp(x, 1.0, -1.0), "Clamp"),
        (lambda x: torch.clamp(x, -math.inf, math.inf), "Clamp"),
        (lambda x: torch.linalg.vector_norm(x.nan_to_num(), math.inf), "LinalgVectorNorm"),
    ],
)
def test_bounds_that_the_type_does_not_hold_or_tensors_keep_the_tensor_exact(function, operation):
    x = awkward(torch.bfloat16, with_nan=False)
    comp = compressor()
    assert same(gradient(function, x, comp), gradient(function, x))
    assert any(r.operation == operation for r in comp.report().rows)


def test_steps_keep_transposed_and_strided_tensors_in_place():
    x = awkward(torch.float32, numel=1024).view(8, 16, 8)
    for view in (lambda t: t.transpose(0, 2), lambda t: t[:, ::2], lambda t: t[:, :, :1].expand(8, 16, 8)):
        for function in (functional.relu, lambda t: functional.hardtanh(t.nan_to_num()), torch.abs):
            assert same(
                gradient(lambda t, f=function, v=view: f(v(t)), x, compressor()),
                gradient(lambda t, f=function, v=view: f(v(t)), x),
            )


POOLS_2D = [
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 3, "stride": 1, "padding": 1},
    {"kernel_size": (3, 2), "stride": (1, 3), "padding": (1, 0), "dilation": (2, 1)},
    {"kernel_size": 3, "stride": 2, "ceil_mode": True},
    {"kernel_size": 2, "stride": 2, "padding": 1, "ceil_mode": True},
    {"kernel_size": 5, "stride": 3, "dilation": 2},
    {"kernel_size": (1, 4)},
    {"kernel_size": 1},
]
POOLS_3D = [
    {"kernel_size": 2},
    {"kernel_size": (3, 2, 2), "stride": (2, 1, 2), "padding": (1, 0, 1)},
    {"kernel_size": 2, "dilation": 2, "ceil_mode": True},
]


@pytest.mark.parametrize("values", ["random", "ties", "awkward"])
@pytest.mark.parametrize("rank", [2, 3])
def test_pooling_windows_are_exact(rank, values):
    shape = (2, 3, 13, 11) if rank == 2 else (2, 2, 7, 8, 6)
    numel = math.prod(shape)
    x = {
        "random": lambda: torch.randn(numel, generator=torch.Generator().manual_seed(0)),
        "ties": lambda: torch.randint(0, 2, (numel,), generator=torch.Generator().manual_seed(0)).float(),
        "awkward": lambda: awkward(torch.float32, numel=numel),
    }[values]().view(shape)
    pool = functional.max_pool2d if rank == 2 else functional.max_pool3d
    for settings in POOLS_2D if rank == 2 else POOLS_3D:
        comp = compressor()
        assert same(
            gradient(lambda t, s=settings: pool(t, **s), x, comp), gradient(lambda t, s=settings: pool(t, **s), x)
        )
        kernel = settings["kernel_size"]
        cells = math.prod(kernel) if isinstance(kernel, tuple) else kernel**rank
        width = next(w for w in (1, 2, 4, 8) if cells <= 2**w)
        stored = row(comp, f"MaxPool{rank}DWithIndices", "result1")
        assert (stored.form, stored.bits) == ("window offsets", width)
        assert stored.nbytes == -(-math.prod(stored.shape) * width // 8)
        assert row(comp, f"MaxPool{rank}DWithIndices", "self").nbytes == 0


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_pooling_in_every_type_without_batch_and_channels_last(dtype):
    x = awkward(dtype, numel=3 * 8 * 10)
    for shape in (lambda t: t.view(3, 8, 10), lambda t: t.view(1, 3, 8, 10).to(memory_format=torch.channels_last)):
        function = lambda t, s=shape: functional.max_pool2d(s(t), 3, 2, 1)  # noqa: E731
        assert same(gradient(function, x, compressor()), gradient(function, x))
    function = lambda t: functional.max_pool1d(t.view(3, 80), 4)  # noqa: E731
    assert same(gradient(function, x, compressor()), gradient(function, x))


def test_windows_too_large_for_a_byte_keep_their_indices():
    x = torch.randn(1, 1, 40, 40)
    comp = compressor()
    assert same(
        gradient(lambda t: functional.max_pool2d(t, 17), x, comp), gradient(lambda t: functional.max_pool2d(t, 17), x)
    )
    assert row(comp, "MaxPool2DWithIndices", "result1").reason == "window unknown"


SHAPE_ONLY = {
    "max_pool2d": lambda x: functional.max_pool2d(x, 2),
    "max_pool3d": lambda x: functional.max_pool3d(x.view(1, 2, 4, 8, 8), 2),
    "avg_pool2d": lambda x: functional.avg_pool2d(x, 3, 2, 1),
    "avg_pool3d": lambda x: functional.avg_pool3d(x.view(1, 2, 4, 8, 8), 2),
    "adaptive_avg_pool2d": lambda x: functional.adaptive_avg_pool2d(x, 3),
    "adaptive_avg_pool3d": lambda x: functional.adaptive_avg_pool3d(x.view(1, 2, 4, 8, 8), 3),
    "adaptive_max_pool2d": lambda x: functional.adaptive_max_pool2d(x, 3),
    "adaptive_max_pool3d": lambda x: functional.adaptive_max_pool3d(x.view(1, 2, 4, 8, 8), 3),
    "nll_loss": lambda x: functional.nll_loss(x.view(64, 8), torch.arange(64) % 8),
    "nll_loss2d": lambda x: functional.nll_loss(x, torch.zeros(2, 8, 8, dtype=torch.long)),
    "gather": lambda x: x.view(64, 8).gather(1, torch.arange(64).view(64, 1) % 8),
    "take": lambda x: x.take(torch.arange(0, 512, 5)),
    "masked_select": lambda x: x.masked_select(torch.arange(8) % 3 == 0),
    "cummax": lambda x: x.cummax(1).values,
    "cummin": lambda x: x.cummin(2).values,
    "index_add": lambda x: torch.zeros(4, 4, 8, 8).index_add(0, torch.tensor([1, 3]), x),
    "index_copy": lambda x: torch.zeros(4, 4, 8, 8).index_copy(0, torch.tensor([1, 3]), x),
    "put": lambda x: torch.zeros(600).put(torch.arange(512), x.view(-1)),
    "reflection_pad1d": lambda x: functional.pad(x[0], (2, 1), "reflect"),
    "reflection_pad2d": lambda x: functional.pad(x, (1, 2, 3, 1), "reflect"),
    "reflection_pad3d": lambda x: functional.pad(x.view(1, 2, 4, 8, 8), (1, 2, 3, 1, 1, 1), "reflect"),
    "replication_pad1d": lambda x: functional.pad(x[0], (2, 1), "replicate"),
    "replication_pad2d": lambda x: functional.pad(x, (1, 2, 3, 1), "replicate"),
    "replication_pad3d": lambda x: functional.pad(x.view(1, 2, 4, 8, 8), (1, 2, 3, 1, 1, 1), "replicate"),
    "rfft": lambda x: torch.view_as_real(torch.fft.rfft(x, dim=1)),
    "complex": lambda x: torch.view_as_real(torch.complex(x, 2 * x)),
    "scatter_reduce sum": lambda x: torch.zeros(512).scatter_reduce(0, torch.arange(512) // 2, x.view(-1), "sum"),
    "scatter_reduce mean": lambda x: torch.zeros(512).scatter_reduce(0, torch.arange(512) // 2, x.view(-1), "mean"),
}


@pytest.mark.parametrize("name", SHAPE_ONLY)
def test_shape_only_tensors_may_hold_anything(name, monkeypatch):
    function = SHAPE_ONLY[name]
    x = torch.randn(2, 4, 8, 8)
    plain = gradient(function, x)
    decode, decoded = Shape.decode, []

    def garbage(form):
        tensor = decode(form)
        decoded.append(tensor)
        return tensor.fill_(math.nan)

    monkeypatch.setattr(Shape, "decode", garbage)
    comp = compressor()
    assert same(gradient(function, x, comp), plain)
    assert [r.form for r in comp.report().rows].count("shape only") == len(decoded) > 0


def test_fractional_pooling_drops_its_input(monkeypatch):
    samples = torch.rand(2, 4, 2, generator=torch.Generator().manual_seed(2))
    decode = Shape.decode
    monkeypatch.setattr(Shape, "decode", lambda form: decode(form).fill_(math.nan))
    x = torch.randn(2, 4, 8, 8)
    function = lambda t: functional.fractional_max_pool2d(t, 2, 5, _random_samples=samples)  # noqa: E731
    assert same(gradient(function, x, compressor()), gradient(function, x))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 1.0])
def test_dropout_is_exact(p, dtype):
    x = awkward(dtype, numel=4096)

    def function(t):
        torch.manual_seed(5)
        return functional.dropout(t, p)

    comp = compressor()
    assert same(gradient(function, x, comp), gradient(function, x))
    noise = [r for r in comp.report().rows if r.dtype != "bool" and r.operation == "Mul"]
    if noise:  # torch multiplies by floating noise on the CPU
        assert [(r.form, r.bits) for r in noise] == [("two values", 1.0)]
        assert noise[0].nbytes == -(-math.prod(noise[0].shape) // 8) + x.element_size()


def test_boolean_masks_are_exact():
    x, mask = awkward(torch.float32), torch.rand(1013) > 0.3
    for function in (
        lambda t: t.masked_fill(mask, 2.0),
        lambda t: torch.where(mask, t, 2 * t),
        lambda t: torch.ops.aten.native_dropout(t, 0.5, True)[0],
    ):
        torch.manual_seed(5)
        comp = compressor()
        compressed = gradient(function, x, comp)
        torch.manual_seed(5)
        assert same(compressed, gradient(function, x))
        masks = [r for r in comp.report().rows if r.dtype == "bool"]
        assert masks
        assert {(r.form, r.nbytes) for r in masks} <= {("mask", 127), ("mask", 0)}


@pytest.mark.parametrize(
    ("function", "jumps"),
    [
        (functional.selu, (0.0,)),
        (through_clone(lambda x: functional.elu_(x, 2.0)), (0.0,)),
        (lambda x: functional.elu(x, 0.5), (0.0,)),
        (lambda x: functional.prelu(x, torch.tensor([0.25]).to(x)), (0.0,)),
        (functional.hardswish, (-3.0, 3.0)),
    ],
)
def test_noise_crosses_no_jump(function, jumps):
    # On the side where the derivative is constant the gradient is exact; on the other it stays within what the
    # derivative does over one step of the 8-bit grid, which a jump across would exceed.
    x = awkward(torch.float32, with_nan=False).clamp(-8, 8)
    comp = compressor(8)
    difference = (gradient(function, x, comp) - gradient(function, x)).abs()
    constant = x > 0 if len(jumps) == 1 else (x <= -3) | (x >= 3)
    assert bool((difference[constant] == 0).all())
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).abs()
    assert bool((difference <= weight * 2.0 * 8 / 255 + 1e-6).all())
    assert any(r.form == "affine" for r in comp.report().rows)


def test_the_same_jumps_left_to_plain_codes_would_fail():
    x = torch.linspace(-0.5, 4, 1024)
    exact = gradient(functional.selu, x)
    noisy = x + (torch.rand(1024, generator=torch.Generator().manual_seed(0)) - 0.5) * 4.5 / 255
    assert (gradient(functional.selu, noisy) - exact).abs().max() > 0.3


def test_parametric_rectifier_gives_unbiased_gradients():
    # Student's t at a family-wise false-alarm probability of 1e-6; fixed seeds.
    model = nn.PReLU(init=0.3)
    x = torch.randn(512, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(512, generator=torch.Generator().manual_seed(1))

    def gradients(comp=None):
        model.weight.grad = None
        t = x.clone().requires_grad_()
        if comp is None:
            model(t).backward(weight)
        else:
            with comp:
                y = model(t.neg().neg())
            y.backward(weight)
        return torch.cat([t.grad, model.weight.grad]).double()

    exact = gradients()
    draws = [gradients(ActivationCompressor(model, bits=2, min_bytes=0, seed=s)) for s in range(100)]
    assert torch.stack(draws)[:, -1].std() > 0  # the slope's gradient, which takes the values
    assert_unbiased(projected(draws), projected(exact)[0])


@pytest.mark.parametrize(
    ("function", "name"),
    [(torch.sin, "Sin"), (torch.cos, "Cos"), (lambda x: x.view(16, 32).log_softmax(1), "LogSoftmax")],
)
def test_functions_of_the_numbers_are_kept_and_the_gradient_is_unbiased(function, name):
    # Student's t at a family-wise false-alarm probability of 1e-6; fixed seeds. Arguments span many periods, where
    # codes of the numbers themselves would mean nothing.
    x = 20 * torch.randn(512, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = gradient(function, x)
    draws = []
    for s in range(100):
        comp = compressor(2, seed=s, group_size=64)
        draws.append(gradient(function, x, comp))
    assert row(comp, name).guarantee == "unbiased"
    assert (draws[0] - exact).abs().max() > 0.01
    assert_unbiased(projected(draws), projected(exact)[0])


def test_softmax_logarithms_of_impossible_classes_stay_impossible():
    x = torch.randn(64, 128)
    x[:, ::3] = -math.inf
    compressed = gradient(lambda t: t.log_softmax(1)[:, 1::3], x, compressor(4))
    assert bool((compressed[:, ::3] == 0).all())
    assert bool(torch.isfinite(compressed).all())


def test_steps_of_every_pair_of_functions_share_nothing_wrongly():
    x = awkward(torch.float32, with_nan=False)
    functions = [
        functional.relu,
        torch.abs,
        functional.hardsigmoid,
        lambda t: t.clamp(-1, 1),
        lambda t: functional.leaky_relu(t, 0.2),
    ]
    for f, g in itertools.product(functions, functions):
        function = lambda t, f=f, g=g: f(t) + g(t) + g(f(t))  # noqa: E731
        assert same(gradient(function, x, compressor()), gradient(function, x))

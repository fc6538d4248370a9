"""The table of operations: complete for this torch, true to the backward formulas, and open to a user's changes."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from gact import ActivationCompressor, Rule, Rules
from gact.nodes import HAS_CREATION_HOOK, saved_names, variant
from gact.rules import QUANTISED, operation, table

# Saved tensors that are never of a floating type, and those of nested tensors, which are kept by their class.
NEVER_FLOATING = """
    AdaptiveMaxPool2D.result1 AdaptiveMaxPool3D.result1 Cummax.indices Cummin.indices Embedding.indices
    FakeQuantizePerChannelAffineCachemask.mask FakeQuantizePerTensorAffineCachemask.mask
    FakeQuantizePerTensorAffineCachemaskTensorQparams.mask FractionalMaxPool2D.result1 FractionalMaxPool3D.result1
    Frexp.exponent FusedDropout.result1 FusedMovingAvgObsFqHelper.mask Gather.index Index.indices IndexAdd.index
    IndexCopy.index IndexFill.index IndexPut.indices IndexPutImpl.indices IndexSelect.index Kthvalue.indices
    MaskedFill.mask MaskedScatter.mask MaskedSelect.mask MaxUnpool2D.indices MaxUnpool3D.indices Mode.indices
    NativeDropout.result1 PackPaddedSequence.result1 Put.index Scatter.index ScatterAdd.index Sort.indices Take.index
    Topk.indices UnsafeIndex.indices UnsafeIndexPut.indices UnsafeMaskedIndex.indices UnsafeMaskedIndex.mask
    UnsafeMaskedIndexPutAccumulate.indices UnsafeMaskedIndexPutAccumulate.mask Where.condition
""".split()  # noqa: SIM905
NESTED = ("Chunk.self", "Mean.self", "Select.self", "SplitWithSizes.self", "Sum.self", "Unbind.self", "View.self")
OF_TESTS = ("TestAutogradMultipleDispatchView.self",)
OLDER = ("Cholesky",)  # gone from the newest
NEWER = ("LinalgPolar", "LinalgMatrixSqrth", "Aminmax")  # than the oldest torch that is supported
PYTHON_FUNCTIONS = ("_Dirichlet", "CompiledFunction")


def saved_by_torch():
    found = {}
    for name, kind in vars(torch._C._functions).items():
        if isinstance(kind, type):
            found.setdefault(operation(name), set()).update(saved_names_of(kind))
    return found


def saved_names_of(kind):
    return {name.removeprefix("_raw_saved_") for name in dir(kind) if name.startswith("_raw_saved_")}


def test_every_operation_in_the_table_exists():
    exist = saved_by_torch()
    missing = {name.partition(":")[0] for name in table()} - set(exist) - {*PYTHON_FUNCTIONS, *OLDER}
    if not HAS_CREATION_HOOK:
        missing = {m for m in missing if m not in NEWER and "Bessel" not in m}
    assert not missing


def test_every_saved_tensor_in_the_table_exists():
    exist = saved_by_torch()
    wrong = [
        f"{name}.{saved}"
        for name, entries in table().items()
        for saved in entries
        if saved != "*" and name.partition(":")[0] in exist and saved not in exist[name.partition(":")[0]]
    ]
    assert not wrong


def test_nothing_that_torch_saves_is_unknown():
    known = table()
    unknown = {
        f"{name}.{saved}"
        for name, names in saved_by_torch().items()
        for saved in names
        if not {saved, "*"} & set(known.get(name, {})) and not name.startswith("Foreach") and "Backward" not in name
    }
    assert unknown <= {*NEVER_FLOATING, *NESTED, *OF_TESTS}


@pytest.mark.parametrize(
    ("node", "name"),
    [
        ("AddmmBackward0", "Addmm"),
        ("GeluBackwardBackward0", "GeluBackward"),
        ("torch::autograd::AccumulateGrad", "AccumulateGrad"),
        ("ForeachAddBackward0List", "ForeachAdd"),
        ("MyFunctionBackward", "MyFunction"),
        ("ChunkBackwardAutogradNestedTensor0", "Chunk"),
        ("torch::autograd::CppNode<Plus>", "CppNode<Plus>"),
    ],
)
def test_names_of_operations(node, name):
    assert operation(node) == name


@pytest.mark.parametrize(
    "node", ["HardtanhBackwardBackward0", "EluBackwardBackward0", "ForeachAbsBackward0", "SoftmaxBackwardDataBackward0"]
)
def test_backward_passes_of_backward_passes_stay_exact(node):
    assert Rules().treatment(node, "self", "").form == "exact"


# -- the kinds: what the backward formulas do with noise ------------------------------------------------------------

N = 4096
X = 4 * torch.rand(N, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 2
Y = 4 * torch.rand(N, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) - 2
INDEX = torch.arange(N) // 2


def grids(x):
    return x.view(1, 4, 32, 32), 0.4 * torch.sin(torch.arange(2048, dtype=x.dtype)).view(1, 32, 32, 2)


SAMPLES = {
    "mm": lambda x, y: x.view(64, 64) @ y.view(64, 64),
    "addmm": lambda x, y: torch.addmm(x.view(64, 64), x.view(64, 64), y.view(64, 64)),
    "bmm": lambda x, y: x.view(4, 32, 32) @ y.view(4, 32, 32),
    "baddbmm": lambda x, y: torch.baddbmm(x.view(4, 32, 32), x.view(4, 32, 32), y.view(4, 32, 32)),
    "addbmm": lambda x, y: torch.addbmm(x.view(4, 32, 32)[0], x.view(4, 32, 32), y.view(4, 32, 32)),
    "mv": lambda x, y: x.view(64, 64) @ y[:64],
    "addmv": lambda x, y: torch.addmv(y[:64], x.view(64, 64), y[:64]),
    "dot": lambda x, y: x @ y,
    "vdot": lambda x, y: torch.vdot(x, y),
    "addr": lambda x, y: torch.addr(x.view(64, 64), x[:64], y[:64]),
    "linear": lambda x, y: functional.linear(x.view(64, 64), y.view(64, 64)),
    "bilinear": lambda x, y: functional.bilinear(x.view(256, 16), y.view(256, 16), y[:1024].view(4, 16, 16)),
    "cross": lambda x, y: torch.linalg.cross(x[:4095].view(-1, 3), y[:4095].view(-1, 3)),
    "mul": lambda x, y: x * y,
    "square": lambda x, y: x * x,
    "pow 2": lambda x, y: x**2,
    "pow 3": lambda x, y: x**3,
    "addcmul": lambda x, y: torch.addcmul(x, x.sin(), y),
    "addcdiv": lambda x, y: torch.addcdiv(x, x.sin(), y + 9),
    "lerp": lambda x, y: torch.lerp(x, y, x.sin()),
    "div": lambda x, y: x / (y + 9),
    "exp": lambda x, y: x.exp(),
    "exp2": lambda x, y: x.exp2(),
    "expm1": lambda x, y: x.expm1(),
    "conv2d": lambda x, y: functional.conv2d(x.view(4, 4, 16, 16), y[:144].view(4, 4, 3, 3), padding=1),
    "conv_transpose1d": lambda x, y: functional.conv_transpose1d(x.view(4, 4, 256), y[:48].view(4, 4, 3), stride=2),
    "conv_tbc": lambda x, y: torch.conv_tbc(x.view(64, 8, 8), y[:192].view(3, 8, 8), y[:8]),
    "mse_loss": lambda x, y: functional.mse_loss(x, y),
    "var": lambda x, y: x.view(64, 64).var(1),
    "var_mean": lambda x, y: torch.stack(torch.var_mean(x.view(64, 64), 1)),
    "std": lambda x, y: x.view(64, 64).std(1),
    "std_mean": lambda x, y: torch.stack(torch.std_mean(x.view(64, 64), 1)),
    "norm": lambda x, y: torch.linalg.vector_norm(x.view(64, 64), dim=1),
    "frobenius": lambda x, y: torch.norm(x.view(64, 64)),
    "ldexp": lambda x, y: torch.ldexp(x, torch.ones(N, dtype=torch.int32)),
    "grid_sample": lambda x, y: functional.grid_sample(*grids(x), align_corners=False),
    "sin": lambda x, y: (20 * x).sin(),
    "cos": lambda x, y: (20 * x).cos(),
    "log_softmax": lambda x, y: x.view(64, 64).log_softmax(1),
    "prelu": lambda x, y: functional.prelu(x, y[:1]),
    "gelu": lambda x, y: functional.gelu(x),
    "gelu tanh": lambda x, y: functional.gelu(x, approximate="tanh"),
    "silu": lambda x, y: functional.silu(x),
    "mish": lambda x, y: functional.mish(x),
    "tanh": lambda x, y: x.tanh(),
    "sigmoid": lambda x, y: x.sigmoid(),
    "logsigmoid": lambda x, y: functional.logsigmoid(x),
    "softplus": lambda x, y: functional.softplus(x),
    "elu": lambda x, y: functional.elu(x),
    "celu": lambda x, y: functional.celu(x, 0.5),
    "selu": lambda x, y: functional.selu(x),
    "hardswish": lambda x, y: functional.hardswish(2 * x),
    "glu": lambda x, y: functional.glu(x.view(64, 64)),
    "erf": lambda x, y: x.erf(),
    "erfc": lambda x, y: x.erfc(),
    "sinc": lambda x, y: x.sinc(),
    "softmax": lambda x, y: x.view(64, 64).softmax(1),
    "asinh": lambda x, y: x.asinh(),
    "atan": lambda x, y: x.atan(),
    "sinh": lambda x, y: x.sinh(),
    "cosh": lambda x, y: x.cosh(),
    "logsumexp": lambda x, y: x.view(64, 64).logsumexp(1),
    "logcumsumexp": lambda x, y: x.view(64, 64).logcumsumexp(1),
    "logaddexp": lambda x, y: torch.logaddexp(x, y),
    "logaddexp2": lambda x, y: torch.logaddexp2(x, y),
    "layer_norm": lambda x, y: functional.layer_norm(x.view(64, 64), (64,), y[:64], y[64:128]),
    "group_norm": lambda x, y: functional.group_norm(x.view(4, 8, 128), 4, y[:8], y[8:16]),
    "batch_norm": lambda x, y: functional.batch_norm(x.view(512, 8), None, None, y[:8], y[8:16], training=True),
    "attention": lambda x, y: functional.scaled_dot_product_attention(
        x.view(1, 4, 64, 16), y.view(1, 4, 64, 16), (x * y).view(1, 4, 64, 16)
    ),
    "bce_with_logits": lambda x, y: functional.binary_cross_entropy_with_logits(x, y.sigmoid()),
    "soft_margin": lambda x, y: functional.soft_margin_loss(x, y.detach()),
}
# Where nothing but these is stored, noise cannot be put in by this test's means.
BRANCHES = ("Elu:jump", "Hardswish", "PreluKernel")


class Noisy:
    """Hooks that add noise to one of the saved tensors, and names for all."""

    def __init__(self):
        self.tensors, self.active, self.noise, self.asked = [], -1, 0.0, []

    def pack(self, tensor):
        self.tensors.append(tensor.detach())
        return len(self.tensors) - 1

    def unpack(self, number):
        self.asked.append(number)
        return self.tensors[number] + self.noise if number == self.active else self.tensors[number]

    def named(self, root):
        """(node, name) of each saved tensor's number."""
        names, stack, seen = {}, [root], set()
        while stack:
            node = stack.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            stack.extend(parent for parent, _ in node.next_functions)
            for name in saved_names(node):
                self.asked = []
                getattr(node, f"_saved_{name}", None)
                names.update(dict.fromkeys(self.asked, (node, name)))
        return names


def second_difference(hooks, out, leaves, number, up, down):
    """‖g(s + up) + g(s + down) − 2g(s)‖₁ and ‖g(s + up) − g(s)‖₁, s the numbered saved tensor."""

    def gradient(noise):
        hooks.active, hooks.noise = number, noise
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=out.dtype)
        grads = torch.autograd.grad(out, leaves, weight, retain_graph=True, allow_unused=True)
        hooks.active = -1
        return torch.cat([g.flatten() for g in grads if g is not None])

    middle, above, below = gradient(0.0), gradient(up), gradient(down)
    return float((above + below - 2 * middle).abs().sum()), float((above - middle).abs().sum())


THROUGH = {"exp": (torch.exp, torch.log), "cos": (torch.cos, torch.acos), "sin": (torch.sin, torch.asin)}


def symmetric_noise(tensor, form, step):
    """Noise up and down, symmetric in what is stored: the numbers, or a function of them."""
    direction = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(3), dtype=tensor.dtype)
    if form not in THROUGH:
        return step * tensor.std() * direction, -step * tensor.std() * direction
    to, back = THROUGH[form]
    value = to(tensor)
    room = 10 * step * direction.tanh() * (value if form == "exp" else 1 - value.abs())
    return back(value + room) - tensor, back(value - room) - tensor


def measured_kinds(sample):
    """(operation with variant, saved name, treatment, whether it is linear, whether it is smooth) of what is stored."""
    x, y = X.clone().requires_grad_(), Y.clone().requires_grad_()
    hooks = Noisy()
    with torch.autograd.graph.saved_tensors_hooks(hooks.pack, hooks.unpack):
        out = SAMPLES[sample](x.neg().neg(), y.neg().neg())
    for number, (node, name) in hooks.named(out.grad_fn).items():
        tensor = hooks.tensors[number]
        which = operation(node.name()) + (f":{variant(node)}" if variant(node) else "")
        treatment = Rules().treatment(node.name(), name, "", variant(node))
        if (
            treatment.form not in QUANTISED
            or not tensor.is_floating_point()
            or tensor.numel() < 32
            or which in BRANCHES
        ):
            continue
        big, small = (
            second_difference(hooks, out, (x, y), number, *symmetric_noise(tensor, treatment.form, step))
            for step in (0.02, 0.01)
        )
        linear = big[0] <= 1e-9 * (big[1] + 1e-9)
        smooth = linear or (big[0] / max(small[0], 1e-300) > 3.2 and big[0] <= 0.5 * big[1] + 1e-12)
        yield which, name, treatment, linear, smooth


@pytest.mark.parametrize("sample", SAMPLES)
def test_kinds_in_the_table_are_true(sample):
    # In double precision the second difference of a linear formula vanishes, that of a smooth one falls by four when
    # the noise is halved, and that of one with jumps by two only, because half as many numbers cross them.
    for which, name, treatment, linear, smooth in measured_kinds(sample):
        if treatment.kind == "linear":
            assert linear, (which, name)
        elif treatment.kind in ("smooth", "steep"):
            assert smooth, (which, name)


@pytest.mark.parametrize(
    ("function", "operation_"),
    [(torch.abs, "Abs"), (functional.selu, "Elu"), (functional.hardswish, "Hardswish"), (functional.relu6, "Hardtanh")],
)
def test_the_measure_of_smoothness_sees_jumps(function, operation_):
    x = X.clone().requires_grad_()
    hooks = Noisy()
    with torch.autograd.graph.saved_tensors_hooks(hooks.pack, hooks.unpack):
        out = function(4 * x)
    number = next(n for n, (node, _) in hooks.named(out.grad_fn).items() if operation(node.name()) == operation_)
    direction = torch.randn(N, generator=torch.Generator().manual_seed(3), dtype=X.dtype)
    big, small = (second_difference(hooks, out, (x,), number, e * direction, -e * direction)[0] for e in (0.2, 0.1))
    assert big / small < 3.0


def test_every_quantised_operation_of_the_cpu_is_sampled():
    sampled = {which for sample in SAMPLES for which, *_ in measured_kinds(sample)} | set(BRANCHES)
    stored = {name for name, entries in table().items() if any(t.form in QUANTISED for t in entries.values())}
    elsewhere = """
        BatchNormNoUpdate BatchNormWithUpdate ConvDepthwise2D ConvDepthwise3D ConvolutionOverrideable CudnnAttention
        CudnnBatchNorm CudnnConvolution CudnnConvolutionTranspose CudnnGridSampler EfficientAttention FlashAttention
        FusedRmsNorm GridSampler2DCpuFallback GridSampler3D GroupedMm LogSigmoid MaskedSoftmax Matmul MiopenBatchNorm
        MiopenConvolution MiopenConvolutionTranspose MiopenDepthwiseConvolution MkldnnConvolution MkldnnLinear
        MpsConvolution MpsConvolutionTranspose NativeBatchNormLegit NativeBatchNormLegitNoTraining
        NnpackSpatialConvolution Norm:2 SafeSoftmax ScaledDotProductCudnnAttention ScaledDotProductEfficientAttention
        ScaledDotProductFlashAttention ScaledDotProductFusedAttentionOverrideable SlowConv2D SlowConv3D
        SlowConvDilated2D SlowConvDilated3D SlowConvTranspose2D SlowConvTranspose3D
    """.split()  # noqa: SIM905
    assert stored - sampled - set(elsewhere) == {"Linear"} - sampled  # a node of some builds only


SINGULAR = {
    "div": lambda x, y: 1 / (y + 9),
    "log": lambda x, y: (x + 9).log(),
    "log1p": lambda x, y: (x + 9).log1p(),
    "pow": lambda x, y: (x + 9) ** 0.5,
    "pow of tensors": lambda x, y: (x + 9) ** y,
    "sqrt": lambda x, y: (x + 9).sqrt(),
    "rsqrt": lambda x, y: (x + 9).rsqrt(),
    "reciprocal": lambda x, y: (x + 9).reciprocal(),
    "acos": lambda x, y: (x / 3).acos(),
    "tan": lambda x, y: x.tan(),
    "atan2": lambda x, y: torch.atan2(x, y),
    "prod": lambda x, y: x.view(1024, 4).prod(1),
    "cumprod": lambda x, y: x.view(1024, 4).cumprod(1),
    "norm 3": lambda x, y: torch.linalg.vector_norm(x, 3),
    "norm inf": lambda x, y: torch.linalg.vector_norm(x, math.inf),
    "cdist": lambda x, y: torch.cdist(x.view(64, 64), y.view(64, 64)),
    "bce": lambda x, y: functional.binary_cross_entropy(x.sigmoid(), y.sigmoid()),
    "max": lambda x, y: x.max(),
    "amax": lambda x, y: x.view(64, 64).amax(1),
    "maximum": lambda x, y: torch.maximum(x, y),
    "median": lambda x, y: x.median(),
    "scatter max": lambda x, y: x.scatter_reduce(0, INDEX, y, "amax"),
    "smooth_l1": lambda x, y: functional.smooth_l1_loss(x, y),
    "huber": lambda x, y: functional.huber_loss(x, y),
    "rrelu": lambda x, y: functional.rrelu(x, training=True),
    "softplus with a low threshold": lambda x, y: functional.softplus(x, 1.0, 1.0),
    "inverse": lambda x, y: torch.linalg.inv(x.view(64, 64)),
    "grid": lambda x, y: functional.grid_sample(x.view(1, 4, 32, 32), y[:2048].view(1, 32, 32, 2), align_corners=True),
}


@pytest.mark.parametrize("name", SINGULAR)
def test_what_noise_would_ruin_stays_exact(name):
    model = nn.Identity()

    def gradients(comp):
        x, y = X.clone().requires_grad_(), Y.clone().requires_grad_()
        torch.manual_seed(0)
        if comp is None:
            out = SINGULAR[name](x.neg().neg(), y.neg().neg())
        else:
            with comp:
                out = SINGULAR[name](x.neg().neg(), y.neg().neg())
        return torch.autograd.grad(out.sum(), (x, y), allow_unused=True)

    exact = Rules([Rule("exact", operation="Sigmoid"), Rule("exact", "GridSampler*", "input")])
    comp = ActivationCompressor(model, bits=2, min_bytes=0, rules=exact)
    for a, b in zip(gradients(comp), gradients(None), strict=True):
        assert (a is None and b is None) or torch.equal(a.nan_to_num(), b.nan_to_num())


# -- a user's changes -----------------------------------------------------------------------------------------------


def test_later_rules_win_and_patterns_are_those_of_file_names():
    rules = Rules(
        [Rule("exact", module="head*"), Rule("affine", operation="Gelu", module="head.1"), Rule("exact", saved="mat?")]
    )
    assert rules.treatment("GeluBackward0", "self", "head.0").form == "exact"
    assert rules.treatment("GeluBackward0", "self", "head.1").form == "affine"
    assert rules.treatment("GeluBackward0", "self", "body").form == "affine"
    assert rules.treatment("MmBackward0", "mat2", "body").form == "exact"
    assert rules.treatment("MmBackward0", "self", "body").form == "affine"
    assert Rules([Rule("exact", operation="GeluBackward0")]).treatment("GeluBackward0", "self", "").form == "exact"


def test_a_rule_may_not_ask_for_what_follows_from_the_operation():
    with pytest.raises(ValueError, match=r"treatment='step' of a rule: allowed are 'affine', 'exact'"):
        Rule("step")


def test_rules_are_of_their_class():
    with pytest.raises(TypeError, match=r"gact\.(rules\.)?Rule"):
        Rules(["exact"])


def test_forcing_a_piecewise_operation_into_codes_says_what_is_lost():
    treatment = Rules([Rule("affine", operation="Relu")]).treatment("ReluBackward0", "result", "")
    assert treatment.form == "affine"
    assert "first order" in treatment.guarantee


@pytest.mark.parametrize(
    ("node", "saved", "least"),
    [("AddmmBackward0", "mat1", 1), ("GeluBackward0", "self", 2), ("LogsumexpBackward0", "self", 4), ("New", "x", 2)],
)
def test_fewest_bits(node, saved, least):
    assert Rules().treatment(node, saved, "").least_bits == least

"""What becomes of each tensor that each autograd operation saves: the table, and the user's changes to it."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import final

AFFINE, EXACT, STEP, INDICES, SHAPE, EXP = "affine", "exact", "step", "indices", "shape", "exp"
USER_TREATMENTS = (AFFINE, EXACT)

# Kinds of dependence of the backward formula on the saved number.
LINEAR, SMOOTH, STEEP, PIECEWISE, SINGULAR, UNUSED, STATISTIC, UNKNOWN = (
    "linear", "smooth", "steep", "piecewise", "singular", "unused", "statistic", "unknown",
)  # fmt: skip

_GUARANTEE = {
    LINEAR: "unbiased",
    SMOOTH: "bias of second order in the noise",
    STEEP: "bias of second order in the noise, and heavy tails",
    PIECEWISE: "exact",
    SINGULAR: "exact",
    UNUSED: "exact",
    STATISTIC: "exact",
    UNKNOWN: "unbiased if the formula is linear in it; else bias of second order, or of first order at jumps",
}
_LEAST = {LINEAR: 1, STEEP: 4}  # bits; below, noise is no small disturbance of the formula


@dataclass(frozen=True, slots=True)
class Treatment:
    """How one saved tensor is kept.

    Args:
        form: ``"affine"`` (quantised), ``"exact"``, ``"step"`` (classes that the formula distinguishes),
            ``"indices"`` (offsets in pooling windows), ``"shape"`` (numbers dropped) or ``"exp"`` (the formula uses
            the exponentials, which are quantised in place of the numbers).
        kind: How the backward formula depends on what is stored: linear, smooth, steep (exponential), piecewise,
            singular, unused, statistic, unknown.
    """

    form: str
    kind: str

    @property
    def guarantee(self) -> str:
        """What is known of the gradient's expectation when this tensor is stored in this form."""
        return _GUARANTEE[self.kind] if self.form in (AFFINE, EXP) else "exact"

    @property
    def least_bits(self) -> int:
        """Fewest bits at which the tensor may be stored."""
        return _LEAST.get(self.kind, 2)


_TABLE: dict[str, dict[str, Treatment]] = {}


def _enter(form: str, kind: str, entries: str) -> None:
    """Each entry is Operation.saved,saved or Operation for all that it saves."""
    for entry in entries.split():
        operation, _, names = entry.partition(".")
        for name in names.split(",") if names else ["*"]:
            _TABLE.setdefault(operation, {})[name] = Treatment(form, kind)


# The gradient is linear in each saved operand: rounding noise leaves its expectation as it is.
_enter(AFFINE, LINEAR, """
    Mm Addmm Bmm Baddbmm Addbmm Addmv Mv Dot Vdot Addr Ger Linear Mul Convolution ConvolutionOverrideable
    CudnnConvolution MiopenConvolution MkldnnConvolution SlowConv2D ConvDepthwise2D SlowConv3D Bilinear Trilinear
    MseLoss Addcmul Var VarMean Lerp Cross LinalgCross Square ScatterReduce.src MkldnnLinear
""")  # fmt: skip
# Smooth in the saved numbers.
_enter(AFFINE, SMOOTH, """
    Gelu Silu Mish Tanh Sigmoid LogSigmoid Softplus Elu Celu Selu Glu Erf Erfc Exp Exp2 Expm1 Sin Cos Sinh Cosh Sinc
    Hardswish Softmax SparseSoftmax
    NativeLayerNorm.input NativeGroupNorm.input NativeBatchNorm.input CudnnBatchNorm.input MiopenBatchNorm.input
    FusedRmsNorm.input RmsNorm.input Std.self StdMean.self LinalgVectorNorm.self Norm.self Asinh Atan
    ScaledDotProductFlashAttention.value,output ScaledDotProductFlashAttentionForCpu.value,output
    ScaledDotProductEfficientAttention.value,output ScaledDotProductCudnnAttention.value,output
    ScaledDotProductFusedAttentionOverrideable.value,output
    FlashAttention.value,output EfficientAttention.value,output
    BinaryCrossEntropyWithLogits SoftMarginLoss GridSampler2D.input GridSampler3D.input
""")  # fmt: skip
# The probabilities are exponentials of these against an exact normaliser.
_enter(AFFINE, STEEP, """
    ScaledDotProductFlashAttention.query,key ScaledDotProductFlashAttentionForCpu.query,key
    ScaledDotProductEfficientAttention.query,key ScaledDotProductCudnnAttention.query,key
    ScaledDotProductFusedAttentionOverrideable.query,key FlashAttention.query,key EfficientAttention.query,key
    Logsumexp.self Logcumsumexp.self
""")
# The formula is linear in the probabilities, whose logarithms are saved.
_enter(EXP, LINEAR, "LogSoftmax.result")
# Statistics: few numbers that everything depends on.
_enter(EXACT, STATISTIC, """
    NativeLayerNorm NativeGroupNorm NativeBatchNorm CudnnBatchNorm MiopenBatchNorm FusedRmsNorm RmsNorm
    ScaledDotProductFlashAttention ScaledDotProductFlashAttentionForCpu ScaledDotProductEfficientAttention
    ScaledDotProductCudnnAttention ScaledDotProductFusedAttentionOverrideable FlashAttention EfficientAttention
    Logsumexp.result Logcumsumexp.result Std.result StdMean LinalgVectorNorm.result Norm.norm Norm.result
    WeightNormInterface CudnnRnn MiopenRnn MkldnnRnnLayer ThnnFusedLstmCell ThnnFusedGruCell CtcLoss CudnnCtcLoss
""")  # fmt: skip
# A small number may stand in a denominator, under a root or in a logarithm: noise there has no finite bound.
_enter(EXACT, SINGULAR, """
    Div.other Log Log2 Log10 Log1P Pow Rsqrt Sqrt Reciprocal Acos Asin Acosh Atanh Atan2 Tan Lgamma Digamma Polygamma
    Logit Erfinv SpecialNdtri SpecialEntr SpecialXlog1Py Xlogy Prod Cumprod Addcdiv.tensor2 BinaryCrossEntropy
    LinalgDet LinalgSlogdet LinalgInvEx LinalgSolveEx LinalgEigh LinalgEig LinalgSvd LinalgQr LinalgCholeskyEx
    LinalgLuFactorEx LinalgPinv LinalgLstsq CholeskySolve CholeskyInverse TriangularSolve LinalgSolveTriangular
    LinalgMatrixExp LinalgHouseholderProduct Igamma Igammac Hypot Renorm StandardGamma Dirichlet Cdist Pdist
""")  # fmt: skip
_enter(AFFINE, LINEAR, "Div.self Addcdiv.self,tensor1")
# Jumps: the formula asks only where the number lies.
_enter(STEP, PIECEWISE, """
    Relu LeakyRelu Threshold Hardtanh Hardsigmoid Hardshrink Softshrink Abs Clamp ClampMin ClampMax
""")
# Jumps that depend on two tensors, or jumps and values both: kept as they are.
_enter(EXACT, PIECEWISE, """
    Maximum Minimum Fmax Fmin Max Min Amax Amin Aminmax Prelu PreluKernel Rrelu RreluWithNoise L1Loss SmoothL1Loss
    HuberLoss MultiMarginLoss MultilabelMarginLoss GridSampler2D.grid GridSampler3D.grid Fmod Remainder Heaviside
    Copysign ScatterReduce IndexReduce SegmentReduce LinalgVectorNormInf EmbeddingBag
""")
_enter(INDICES, PIECEWISE, "MaxPool2DWithIndices.result1 MaxPool3DWithIndices.result1")
# Only shape and strides are read.
_enter(SHAPE, UNUSED, """
    MaxPool2DWithIndices.self MaxPool3DWithIndices.self AvgPool2D.self AvgPool3D.self AdaptiveAvgPool2D.self
    AdaptiveAvgPool3D.self AdaptiveMaxPool2D.self AdaptiveMaxPool3D.self FractionalMaxPool2D.self
    FractionalMaxPool3D.self NllLoss.self NllLoss2D.self Gather.self
""")


def operation(node_name: str) -> str:
    """Name of the operation in the name of its backward node: ``AddmmBackward0`` gives ``Addmm``."""
    return re.sub(r"Backward\d*(_[A-Za-z]+)?$", "", node_name.rpartition("::")[2])


@dataclass(frozen=True, slots=True)
class Rule:
    """A change to the table, for the saved tensors that match all three patterns (as in file names, ``*`` and ``?``).

    Args:
        treatment: ``"exact"`` or ``"affine"``; other forms follow from the operation and cannot be asked for.
        operation: Pattern for the operation, such as ``"Gelu"``, ``"MyFunction"``.
        saved: Pattern for the saved tensor's name in the operation, such as ``"self"``, ``"mat1"``.
        module: Pattern for the module's path in the model, such as ``"head.*"``.

    Raises:
        ValueError: If the treatment is another one.
    """

    treatment: str
    operation: str = "*"
    saved: str = "*"
    module: str = "*"

    def __post_init__(self) -> None:
        if self.treatment not in USER_TREATMENTS:
            raise ValueError(
                f"treatment={self.treatment!r} of a rule: allowed are {', '.join(map(repr, USER_TREATMENTS))}; sign "
                "masks, window offsets and shapes follow from the operation itself"
            )


@final
class Rules:
    """The table with a user's rules on top; later rules win.

    Args:
        rules: Changes to the table.

    Example:
        >>> rules = Rules([Rule("exact", module="head*")])
        >>> rules.treatment("AddmmBackward0", "mat1", "head").form
        'exact'
        >>> rules.treatment("AddmmBackward0", "mat1", "body.0").form
        'affine'
    """

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        self.rules = tuple(rules)
        for rule in self.rules:
            if not isinstance(rule, Rule):
                raise TypeError(f"{rule!r} among the rules is a {type(rule).__name__}; give gact.Rule objects")
        self._cached = lru_cache(maxsize=None)(self._find)

    def treatment(self, node_name: str, saved: str, module: str) -> Treatment:
        """Return what becomes of one saved tensor."""
        return self._cached(node_name, saved, module)

    def _find(self, node_name: str, saved: str, module: str) -> Treatment:
        name = operation(node_name)
        entries = _TABLE.get(name, {})
        found = entries.get(saved) or entries.get("*") or Treatment(AFFINE, UNKNOWN)
        for rule in reversed(self.rules):
            matches = (
                (fnmatchcase(name, rule.operation) or fnmatchcase(node_name, rule.operation))
                and fnmatchcase(saved, rule.saved)
                and fnmatchcase(module, rule.module)
            )
            if matches:
                return Treatment(rule.treatment, found.kind)
        return found


def known_operations() -> tuple[str, ...]:
    """Operations that the table names."""
    return tuple(sorted(_TABLE))

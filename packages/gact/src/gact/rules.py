"""What becomes of each tensor that each autograd operation saves: the table, and the user's changes to it."""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache, lru_cache
from typing import Any, final

AFFINE, EXACT, STEP, INDICES, SHAPE, BRANCH = "affine", "exact", "step", "indices", "shape", "branch"
EXP, COS, SIN = "exp", "cos", "sin"
USER_TREATMENTS = (AFFINE, EXACT)
QUANTISED = (AFFINE, BRANCH, EXP, COS, SIN)

# Kinds of dependence of the backward formula on the saved number.
LINEAR, SMOOTH, STEEP, PIECEWISE, SINGULAR, UNUSED, STATISTIC, UNKNOWN = (
    "linear", "smooth", "steep", "piecewise", "singular", "unused", "statistic", "unknown",
)  # fmt: skip

_GUARANTEE = {
    LINEAR: "unbiased",
    SMOOTH: "bias of second order in the noise",
    STEEP: "bias of second order in the noise, and heavy tails",
    PIECEWISE: "bias of first order in the noise, at jumps",
    SINGULAR: "no finite bound where the number is small",
    UNUSED: "exact",
    STATISTIC: "bias of second order in the noise, common to all that the statistic scales",
    UNKNOWN: "unbiased if the formula is linear in it; else bias of second order, or of first order at jumps",
}
_LEAST = {LINEAR: 1, STEEP: 4}  # bits; below, noise is no small disturbance of the formula


@dataclass(frozen=True, slots=True)
class Treatment:
    """How one saved tensor is kept.

    Args:
        form: ``"affine"`` (quantised), ``"exact"``, ``"step"`` (classes that the formula distinguishes),
            ``"indices"`` (offsets in pooling windows), ``"shape"`` (numbers dropped), ``"branch"`` (classes, and
            quantised values where the formula takes them), or ``"exp"``, ``"cos"``, ``"sin"`` (the formula uses this
            function of the numbers, which is quantised in their place).
        kind: How the backward formula depends on what is stored: linear, smooth, steep (exponential), piecewise,
            singular, unused, statistic, unknown.
    """

    form: str
    kind: str

    @property
    def guarantee(self) -> str:
        """What is known of the gradient's expectation when this tensor is stored in this form."""
        return _GUARANTEE[self.kind] if self.form in QUANTISED else "exact"

    @property
    def least_bits(self) -> int:
        """Fewest bits at which the tensor may be stored."""
        return _LEAST.get(self.kind, 2)


# Entries are Operation.saved,saved, or Operation for all that it saves besides; Operation:variant (see nodes.variant)
# goes before Operation. Where a formula mixes kinds, the worst counts.
_ENTRIES = (
    # The gradient is linear in each saved operand: rounding noise leaves its expectation as it is.
    (AFFINE, LINEAR, """
        Mm Addmm Bmm Baddbmm Addbmm Addmv Mv Dot Vdot Addr Linear Matmul GroupedMm Trilinear LinalgCross Mul Convolution
        ConvolutionOverrideable ConvTbc ConvDepthwise2D ConvDepthwise3D CudnnConvolution CudnnConvolutionTranspose
        MiopenConvolution MiopenConvolutionTranspose MiopenDepthwiseConvolution MkldnnConvolution MkldnnLinear
        MpsConvolution MpsConvolutionTranspose NnpackSpatialConvolution SlowConv2D SlowConv3D SlowConvDilated2D
        SlowConvDilated3D SlowConvTranspose2D SlowConvTranspose3D Addcmul Lerp Var VarMean Std.self
        StdMean.self LinalgVectorNorm:2.self Norm:2.self Pow:2 Exp Exp2 Expm1 Div.self Addcdiv.tensor1 Ldexp.result
        GridSampler2D.input GridSampler2DCpuFallback.input GridSampler3D.input CudnnGridSampler.self
    """),
    (AFFINE, SMOOTH, """
        Gelu Silu Mish Tanh Sigmoid LogSigmoid Softplus Elu Celu Glu Erf Erfc Sinc Softmax SafeSoftmax MaskedSoftmax
        Asinh Atan Pow:power NativeLayerNorm.input NativeGroupNorm.input NativeBatchNorm.input
        NativeBatchNormLegit.input NativeBatchNormLegitNoTraining.input BatchNormWithUpdate.input
        BatchNormNoUpdate.input CudnnBatchNorm.input MiopenBatchNorm.input FusedRmsNorm.input
        ScaledDotProductFlashAttention.value,output ScaledDotProductFlashAttentionForCpu.value,output
        ScaledDotProductEfficientAttention.value,output ScaledDotProductCudnnAttention.value,output
        ScaledDotProductFusedAttentionOverrideable.value,output FlashAttention.value,output
        EfficientAttention.value,output CudnnAttention.value,output BinaryCrossEntropyWithLogits SoftMarginLoss
        Logaddexp Logaddexp2
    """),
    # Exponentials of the noise; in attention, probabilities against an exact normaliser.
    (AFFINE, STEEP, """
        ScaledDotProductFlashAttention.query,key ScaledDotProductFlashAttentionForCpu.query,key
        ScaledDotProductEfficientAttention.query,key ScaledDotProductCudnnAttention.query,key
        ScaledDotProductFusedAttentionOverrideable.query,key FlashAttention.query,key EfficientAttention.query,key
        CudnnAttention.query,key Logsumexp.self Logcumsumexp.self Sinh Cosh
    """),
    # The formula takes only this function of what is saved, and is linear in it.
    (EXP, LINEAR, "LogSoftmax.result"),
    (COS, LINEAR, "Sin"),
    (SIN, LINEAR, "Cos"),
    # Graphs of torch.compile, run without its own hooks: nothing is known of what they save.
    (EXACT, UNKNOWN, "CompiledFunction"),
    # The error itself: all of the gradient is proportional to it, and it goes to zero while noise does not. Where the
    # output is stored for its own operation too, one rounding would enter the gradient twice.
    (EXACT, STATISTIC, "MseLoss"),
    # Statistics: few numbers that everything depends on.
    (EXACT, STATISTIC, """
        NativeLayerNorm NativeGroupNorm NativeBatchNorm NativeBatchNormLegit NativeBatchNormLegitNoTraining
        BatchNormWithUpdate BatchNormNoUpdate CudnnBatchNorm MiopenBatchNorm FusedRmsNorm
        ScaledDotProductFlashAttention ScaledDotProductFlashAttentionForCpu ScaledDotProductEfficientAttention
        ScaledDotProductCudnnAttention ScaledDotProductFusedAttentionOverrideable FlashAttention EfficientAttention
        CudnnAttention Logsumexp.result Logcumsumexp.result Std.result StdMean LinalgVectorNorm.result Norm.result
        WeightNormInterface CudnnRnn MiopenRnn MkldnnRnnLayer LstmMps ThnnFusedLstmCell ThnnFusedGruCell CtcLoss
        CudnnCtcLoss MiopenCtcLoss NllLoss NllLoss2D
    """),
    # A small number may stand in a denominator, under a root or in a logarithm, or the formula is steep without bound.
    (EXACT, SINGULAR, """
        Div.other Addcdiv.tensor2 Log Log2 Log10 Log1P Pow Rsqrt Sqrt Reciprocal Acos Asin Acosh Atanh Atan2 Tan Lgamma
        Digamma Polygamma Mvlgamma Logit Erfinv Xlogy Prod Cumprod BinaryCrossEntropy Igamma Igammac Hypot Renorm Dist
        EuclideanDist Cdist Pdist LinalgVectorNorm.self Norm.self Ldexp.other I0 StandardGamma _Dirichlet SpecialNdtri
        SpecialEntr SpecialXlog1Py SpecialErfcx SpecialLogNdtr SpecialZeta SpecialI0E SpecialI1 SpecialI1E
        SpecialBesselJ0 SpecialBesselJ1 SpecialBesselY0 SpecialBesselY1 SpecialModifiedBesselI0
        SpecialModifiedBesselI1 SpecialModifiedBesselK0 SpecialModifiedBesselK1 LinalgDet LinalgSlogdet LinalgInvEx
        LinalgSolveEx LinalgEigh LinalgEig LinalgSvd LinalgQr LinalgCholeskyEx LinalgLu LinalgLuFactorEx LinalgLuSolve
        LinalgPinv LinalgLstsq LinalgPolar LinalgMatrixSqrth LinalgMatrixExp LinalgHouseholderProduct
        LinalgSolveTriangular Cholesky CholeskySolve CholeskyInverse TriangularSolve Ormqr
    """),
    # Jumps: the formula asks only where the number lies.
    (STEP, PIECEWISE, """
        Relu LeakyRelu Threshold Hardtanh Hardsigmoid Hardshrink Softshrink Abs Clamp ClampMin ClampMax Nansum NanToNum
        LinalgVectorNorm:1.self Norm:1.self LogSigmoid:buffer.self
    """),
    # A jump, and values on one side of it.
    (BRANCH, SMOOTH, "Elu:jump Hardswish"),
    (BRANCH, LINEAR, "PreluKernel.self"),
    # Jumps that depend on two tensors, equality with another tensor, or codes of something else.
    (EXACT, PIECEWISE, """
        Maximum Minimum Fmax Fmin Max Min Amax Amin Aminmax Median Nanmedian PreluKernel RreluWithNoise
        RreluWithNoiseFunctional SmoothL1Loss HuberLoss MultiMarginLoss MultilabelMarginLoss GridSampler2D.grid
        GridSampler2DCpuFallback.grid GridSampler3D.grid CudnnGridSampler.grid Fmod Remainder Copysign Nextafter Angle
        Sgn Polar MaxPool2D Softplus:jump ScatterReduce IndexReduce SegmentReduce SparseMmReduceImpl EmbeddingBag
        FakeQuantizeLearnablePerTensorAffine FakeQuantizeLearnablePerChannelAffine
    """),
    # Sparse, nested and foreign memory.
    (EXACT, UNKNOWN, """
        SparseAddmm SparseSoftmax SparseLogSoftmax SparseMask SparseSampledAddmm SparseSparseMatmul SparseSum
        SparseCompressedTensor SparseCooTensorWithDimsAndTensors ToDense ToMkldnn ToPaddedTensor Values
        MkldnnMaxPool2D MkldnnMaxPool3D MkldnnAdaptiveAvgPool2D NestedFromPadded NestedGetValues
        NestedTensorFromTensorList
    """),
    (INDICES, PIECEWISE, "MaxPool2DWithIndices.result1 MaxPool3DWithIndices.result1"),
    # Only shape and strides are read.
    (SHAPE, UNUSED, """
        MaxPool2DWithIndices.self MaxPool3DWithIndices.self AvgPool2D.self AvgPool3D.self AdaptiveAvgPool2D.self
        AdaptiveAvgPool3D.self AdaptiveMaxPool2D.self AdaptiveMaxPool3D.self FractionalMaxPool2D.self
        FractionalMaxPool3D.self NllLoss.self NllLoss2D.self Gather.self Take.self MaskedSelect.self Cummax.self
        Cummin.self IndexAdd.source IndexCopy.source Put.source ReflectionPad1D.self ReflectionPad2D.self
        ReflectionPad3D.self ReplicationPad1D.self ReplicationPad2D.self ReplicationPad3D.self FftR2C.self
        ScatterReduce:sum.self,src,result ScatterReduce:mean.self,src,result IndexReduce:mean.self,source,result
        Complex.real,imag
    """),
)  # fmt: skip


def _build() -> dict[str, dict[str, Any]]:
    table: dict[str, dict[str, Any]] = {}
    for form, kind, entries in _ENTRIES:
        for entry in entries.split():
            name, _, saved = entry.partition(".")
            for one in saved.split(",") if saved else ["*"]:
                known = table.setdefault(name, {})
                assert one not in known, f"{name}.{one} is in the table twice"
                known[one] = Treatment(form, kind)
    return table


_TABLE = _build()


@cache
def operation(node_name: str) -> str:
    """Name of the operation in the name of its backward node: ``AddmmBackward0`` gives ``Addmm``."""
    name = node_name.rpartition("::")[2]
    return name.rpartition("Backward")[0] or name


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

    def treatment(self, node_name: str, saved: str, module: str, variant: str = "") -> Treatment:
        """Return what becomes of one saved tensor.

        Args:
            node_name: Name of the autograd node.
            saved: Name of the tensor in it.
            module: Path of the module.
            variant: Which of the operation's formulas, where they differ.
        """
        return self._cached(node_name, saved, module, variant)

    def _find(self, node_name: str, saved: str, module: str, variant: str) -> Treatment:
        name = operation(node_name)
        found = _look_up(name, saved, variant)
        for rule in reversed(self.rules):
            matches = (
                (fnmatchcase(name, rule.operation) or fnmatchcase(node_name, rule.operation))
                and fnmatchcase(saved, rule.saved)
                and fnmatchcase(module, rule.module)
            )
            if matches:
                return Treatment(rule.treatment, found.kind)
        return found


def _look_up(name: str, saved: str, variant: str) -> Treatment:
    for entries in (_TABLE.get(f"{name}:{variant}", {}) if variant else {}, _TABLE.get(name, {})):
        for entry in (saved, "*"):
            if entry in entries:
                return entries[entry]
    # Backward passes of backward passes, and of lists of tensors, have the jumps of the operations that they belong to.
    if name.startswith("Foreach") or "Backward" in name:
        return Treatment(EXACT, UNKNOWN)
    return Treatment(AFFINE, UNKNOWN)


def table() -> dict[str, dict[str, Treatment]]:
    """Return the table without a user's changes: by operation, or operation and variant, and by saved tensor."""
    return {name: dict(entries) for name, entries in _TABLE.items()}

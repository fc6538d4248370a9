"""What all losses of an ensemble share: arguments, checks, the choice of the kernel, and reductions."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, SupportsFloat, final, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dncc.aggregation import Aggregate, checked_aggregate, log_softmax
from dncc.checks import check_logits, check_target, checked_fraction, checked_lambda, values_are_checked
from dncc.controllers import LambdaController
from dncc.fused import fused_backend, fused_dncc
from dncc.labels import Labels, prepared
from dncc.objectives import Terms, decompose
from dncc.outputs import EnsembleOutput

__all__ = ["Batch", "EnsembleLoss", "Lambda", "Reduction", "checked_reduction"]

Reduction = Literal["mean", "sum", "none"]
Lambda = float | Float[Tensor, ""]


@final
@dataclass(frozen=True, eq=False)
class Batch:
    """What an objective sees: normalised log-probabilities, labels and the decomposition, samples in one axis."""

    log_p: Float[Tensor, "members samples classes"]
    labels: Labels
    terms: Terms


class EnsembleLoss(nn.Module, ABC):
    """Abstract loss of an ensemble; call it with member-first logits and labels.

    Attributes:
        aggregate: How members are averaged: "arithmetic" or "geometric".
        reduction: Over members. "mean" divides every private head's gradient by the number of members; "sum" is
            `members` times that, which at lambda = 0 trains separate networks as if each were alone; "none" gives a
            value a sample. The batch is always averaged.
        ignore_index: Samples with this label are left out.
        label_smoothing: s: the label becomes (1 - s) t + s / classes.
        validate: Whether values (NaN, range of labels) are checked; None: on the CPU only, where it costs little.
        fused: Whether the fused kernel is used: "auto" takes it on a GPU when Triton is there, labels are hard and
            not smoothed, and the reduction is not "none". Then only `loss` of the result carries a gradient.
    """

    fusable: bool = False  # whether the objective is the decomposition, which the kernel computes
    fixed_lambda: float | None = None  # for objectives without a lambda to choose

    def __init__(
        self,
        lam: SupportsFloat | LambdaController,
        *,
        aggregate: Aggregate,
        reduction: Reduction,
        weight: Float[Tensor, " classes"] | None = None,
        ignore_index: int = -100,
        label_smoothing: SupportsFloat = 0.0,
        validate: bool | None = None,
        fused: bool | Literal["auto"] = "auto",
    ) -> None:
        super().__init__()
        self.aggregate: Aggregate = checked_aggregate(aggregate)
        if fused not in (True, False, "auto"):
            raise ValueError(f"fused is {fused!r}; it must be True, False or 'auto'")
        self.reduction: Reduction = checked_reduction(reduction)
        self.ignore_index = ignore_index
        self.label_smoothing = checked_fraction(label_smoothing, "label_smoothing")
        self.validate = validate
        self.fused = fused
        self.weight: Tensor | None
        self.register_buffer("weight", _checked_weight(weight))
        self.set_lambda(lam)

    @abstractmethod
    def values(self, batch: Batch, lam: Lambda) -> Float[Tensor, " samples"]:
        """The objective, sample by sample, with the mean over members.

        Args:
            batch: Log-probabilities, labels and decomposition.
            lam: lambda in force.

        Returns:
            Nats a sample.
        """

    @property
    def lam(self) -> Any:
        """Lambda as it was given: a float, a tensor without axes, or a controller. May be set while training."""
        return self._lam

    @lam.setter
    def lam(self, value: Any) -> None:
        self.set_lambda(value)

    def set_lambda(self, value: Any) -> None:
        """Puts another lambda in force; the same as assigning `lam`, and the way to give it an `nn.Parameter`.

        Args:
            value: A number, a tensor without axes, or a controller.

        Raises:
            ValueError: If it is outside [0, 1], has axes, or this objective has no lambda.
            TypeError: If it is none of these.
        """
        if self.fixed_lambda is not None and value != self.fixed_lambda:
            raise ValueError(f"{type(self).__name__} has no lambda to set; take DNCCLoss(lam={value!r})")
        if isinstance(value, Tensor):
            if value.ndim or not value.is_floating_point():
                raise ValueError(
                    f"lam is a tensor of shape {tuple(value.shape)} and dtype {value.dtype}; it must be one real "
                    "number without axes. One lambda a member breaks the decomposition (the ambiguity is exact for the "
                    "mean over all members only); for several ensembles in one model use dncc.FrontierLoss"
                )
            checked_lambda(float(value.detach()))
        elif not isinstance(value, LambdaController):
            value = checked_lambda(value)
        if "_lam" in self._parameters:
            del self._lam
        self._lam = value

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        sample_weight: Tensor | None = None,
    ) -> EnsembleOutput:
        """Loss and terms of a batch.

        Args:
            logits: Scores (members, batch, ..., classes) of any floating type; computed in at least float32, under
                autocast too.
            target: Class indices (batch, ...), or soft labels (batch, ..., classes).
            sample_weight: What a sample counts in the mean over the batch, of shape (batch, ...); not negative.

        Returns:
            The loss and the decomposition.

        Raises:
            TypeError: For what is no tensor of the right kind.
            ValueError: For wrong shapes, NaN, labels out of range; the message names what and where.
        """
        values = values_are_checked(logits, self.validate) if isinstance(logits, Tensor) else False
        check_logits(logits, values)
        check_target(target, logits, self.ignore_index, values)
        _check_weights(self.weight, sample_weight, logits, values)
        members, classes = logits.shape[0], logits.shape[-1]
        scores = logits.flatten(1, -2)
        soft = target.is_floating_point()
        labels = prepared(
            target.flatten(0, -2) if soft else target.flatten(),
            classes,
            torch.promote_types(logits.dtype, torch.float32),
            self.weight,
            None if sample_weight is None else sample_weight.flatten(),
            self.ignore_index,
            self.label_smoothing,
        )
        lam = self._lam.tensor if isinstance(self._lam, LambdaController) else self._lam
        if values and isinstance(lam, Tensor):
            checked_lambda(float(lam.detach()))  # an optimiser may have moved it
        if isinstance(lam, Tensor) and lam.requires_grad:
            lam = lam.to(logits.device)  # one that does not, stays: a CPU scalar goes along without a copy
        if self._takes_kernel(logits, labels):
            return self._from_kernel(scores, labels, lam)
        log_p = log_softmax(scores)
        terms = decompose(log_p, labels, self.aggregate)
        value = self.values(Batch(log_p, labels, terms), lam)
        return self._reduced(value, terms, labels, lam, members, tuple(logits.shape[1:-1]))

    def extra_repr(self) -> str:
        """What `print(loss)` shows."""
        return f"lam={self._lam!r}, aggregate={self.aggregate!r}, reduction={self.reduction!r}"

    def get_extra_state(self) -> dict[str, Any]:
        """Lambda, or the state of its controller, for `state_dict`."""
        if isinstance(self._lam, LambdaController):
            return {"controller": self._lam.state_dict()}
        return {"lam": float(self._lam.detach() if isinstance(self._lam, Tensor) else self._lam)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Puts back what `get_extra_state` gave.

        Args:
            state: From `state_dict`.
        """
        if isinstance(self._lam, LambdaController):
            if "controller" not in state:
                raise ValueError("the saved loss had a fixed lambda and this one has a controller; build it alike")
            self._lam.load_state_dict(state["controller"])
        elif "lam" not in state:
            raise ValueError("the saved loss had a lambda controller and this one has none; build it alike")
        elif not isinstance(self._lam, Tensor):
            self._lam = checked_lambda(state["lam"])
        elif not isinstance(self._lam, nn.Parameter):
            self._lam.data.fill_(state["lam"])

    def _takes_kernel(self, logits: Tensor, labels: Labels) -> bool:
        possible = self.fusable and labels.index is not None and self.reduction != "none"
        possible = possible and not (labels.weight is not None and labels.weight.requires_grad)
        if self.fused == "auto":
            return possible and fused_backend(logits) == "triton"
        if self.fused and not possible:
            raise ValueError(
                "fused=True, but the kernel takes hard labels without smoothing, weights without a gradient, reduction "
                f"'mean' or 'sum', and not {type(self).__name__} of this setting; use fused='auto'"
            )
        return bool(self.fused)

    def _from_kernel(self, scores: Tensor, labels: Labels, lam: Lambda) -> EnsembleOutput:
        assert labels.index is not None
        members_as: Literal["mean", "sum"] = "sum" if self.reduction == "sum" else "mean"
        terms = fused_dncc(
            scores, labels.index, lam, weight=labels.weight, aggregate=self.aggregate, reduction=members_as
        )
        ensemble, ambiguity = labels.mean(terms.ensemble_ce), labels.mean(terms.ambiguity)
        member_ce = labels.mean(terms.member_ce)
        return EnsembleOutput(terms.loss, member_ce.mean(), ensemble, ambiguity, member_ce, lam)

    def _reduced(
        self, value: Tensor, terms: Terms, labels: Labels, lam: Lambda, members: int, batch: tuple[int, ...]
    ) -> EnsembleOutput:
        if self.reduction == "none":
            weighted = labels.spared(value) * (1 if labels.weight is None else labels.weight)
            shown = (
                weighted,
                *(labels.spared(v) for v in (terms.ce, terms.ensemble_ce, terms.ambiguity, terms.member_ce)),
            )
            loss, ce, ensemble, ambiguity, member_ce = (v.unflatten(-1, batch) for v in shown)
            return EnsembleOutput(loss, ce, ensemble, ambiguity, member_ce, lam)
        loss = labels.mean(value) * (members if self.reduction == "sum" else 1)
        ensemble, ambiguity = labels.mean(terms.ensemble_ce), labels.mean(terms.ambiguity)
        return EnsembleOutput(loss, labels.mean(terms.ce), ensemble, ambiguity, labels.mean(terms.member_ce), lam)


def checked_reduction(reduction: str) -> Reduction:
    """`reduction` as it is.

    Args:
        reduction: What was given.

    Returns:
        It.

    Raises:
        ValueError: If it is not "mean", "sum" or "none".
    """
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction is {reduction!r}; it must be one of {', '.join(get_args(Reduction))}")
    return reduction  # type: ignore[return-value]


def _checked_weight(weight: Any) -> Tensor | None:
    if weight is None:
        return None
    if not isinstance(weight, Tensor) or weight.ndim != 1 or not weight.is_floating_point():
        raise ValueError("weight holds what each class counts: a floating-point tensor of shape (classes,)")
    if not bool((weight >= 0).all()) or not bool(torch.isfinite(weight).all()):
        raise ValueError(f"class weights must be finite and not negative; the given ones go from {float(weight.min())} "
                         f"to {float(weight.max())}")  # fmt: skip
    return weight


def _check_weights(weight: Tensor | None, sample_weight: Tensor | None, logits: Tensor, values: bool) -> None:
    if weight is not None and weight.shape[0] != logits.shape[-1]:
        raise ValueError(f"weight holds {weight.shape[0]} class weights and logits have {logits.shape[-1]} classes")
    if sample_weight is None:
        return
    if sample_weight.shape != logits.shape[1:-1]:
        raise ValueError(f"sample_weight has shape {tuple(sample_weight.shape)}; for logits of shape "
                         f"{tuple(logits.shape)} it must be {tuple(logits.shape[1:-1])}")  # fmt: skip
    if values and not bool(((sample_weight >= 0) & torch.isfinite(sample_weight)).all()):
        raise ValueError("sample_weight must be finite and not negative")

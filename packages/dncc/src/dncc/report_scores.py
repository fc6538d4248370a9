"""The figures of one predictor, of all members, and of their averages, computed from logits in pieces.

No float64 array of the size of the logits is made: one pass over blocks of samples gives all that is needed of members.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from dncc import diversity, metrics, selective
from dncc.aggregation import Aggregate, aggregate_log_proba, log_softmax
from dncc.outputs import Measured

__all__ = ["AGGREGATES", "MemberScores", "Predicted", "Scores", "predicted", "scores", "scores_of_members"]

AGGREGATES: tuple[Aggregate, ...] = ("arithmetic", "geometric")
_BLOCK = 1 << 20  # numbers in float64 at a time: 8 MiB, about what a processor's cache holds


@final
@dataclass(frozen=True)
class MemberScores:
    """A member on its own.

    Attributes:
        accuracy: Share of right predictions.
        nll: Negative log-likelihood, in nats.
        ece: Expected calibration error.
        brier: Brier score, summed over classes.
    """

    accuracy: float
    nll: float
    ece: float
    brier: float


@final
@dataclass(frozen=True)
class Scores:
    """An ensemble's prediction.

    Attributes:
        accuracy: Share of right predictions.
        nll: Negative log-likelihood, in nats.
        ece: Expected calibration error, bins of equal width.
        adaptive_ece: The same with bins of equal mass.
        classwise_ece: Mean over classes of the calibration error of p_c.
        brier: Brier score, summed over classes.
        aurc: Area under the risk-coverage curve.
        augrc: Area under the generalised risk-coverage curve.
    """

    accuracy: float
    nll: float
    ece: float
    adaptive_ece: float
    classwise_ece: float
    brier: float
    aurc: float
    augrc: float


@final
@dataclass(frozen=True, eq=False)
class Predicted:
    """What members and ensemble say about every sample; float64 on the CPU.

    Attributes:
        votes: Predicted class of every member.
        confidence: Probability of that class.
        log_likelihood: log p_m,y; None without labels.
        brier: sum_c (p_m,c - 1[c = y])^2; None without labels.
        log_proba: Log-probabilities of the ensemble by how it is averaged.
        ensemble_log_likelihood: log q_y, by how it is averaged; empty without labels.
        ambiguity: Mean cross-entropy of members minus that of the ensemble, by how it is averaged, in nats; the
            geometric one only without labels.
        mutual_information: Between member and prediction, in nats.
    """

    votes: Integer[Tensor, "members batch"]
    confidence: Float[Tensor, "members batch"]
    log_likelihood: Float[Tensor, "members batch"] | None
    brier: Float[Tensor, "members batch"] | None
    log_proba: dict[Aggregate, Float[Tensor, "batch classes"]]
    ensemble_log_likelihood: dict[Aggregate, Float[Tensor, " batch"]]
    ambiguity: dict[Aggregate, Float[Tensor, " batch"]]
    mutual_information: Float[Tensor, " batch"]

    def measured(self, aggregate: Aggregate) -> Measured:
        """The decomposition's means over the samples; needs labels.

        Args:
            aggregate: How members are averaged.

        Returns:
            ce, ensemble_ce and ambiguity, in nats.
        """
        assert self.log_likelihood is not None
        ensemble = -self.ensemble_log_likelihood[aggregate].mean()
        return Measured(float(-self.log_likelihood.mean()), float(ensemble), float(self.ambiguity[aggregate].mean()))


@torch.no_grad()
def predicted(logits: Float[Tensor, "members batch classes"], target: Integer[Tensor, " batch"] | None) -> Predicted:
    """Votes, likelihoods, averages and ambiguities, block by block.

    Args:
        logits: Checked logits of the members, on any device.
        target: Checked class indices, or None.

    Returns:
        A value a sample.
    """
    found = _empty(*logits.shape, labelled=target is not None)
    rows = max(1, _BLOCK // (logits.shape[0] * logits.shape[2]))
    for start in range(0, logits.shape[1], rows):
        part = slice(start, start + rows)
        log_p = log_softmax(logits[:, part].to("cpu", torch.float64))
        label = None if target is None else target[part].to("cpu").long()
        best = log_p.max(-1)
        found.votes[:, part], found.confidence[:, part] = best.indices, best.values.exp()
        for aggregate in AGGREGATES:
            found.log_proba[aggregate][part] = aggregate_log_proba(log_p, aggregate)
            if aggregate in found.ambiguity:
                found.ambiguity[aggregate][part] = diversity.ambiguity(log_p, label, aggregate)
            if label is not None:
                log_q = found.log_proba[aggregate][part].gather(1, label[:, None])[:, 0]
                found.ensemble_log_likelihood[aggregate][part] = log_q
        found.mutual_information[part] = diversity.mutual_information(log_p, found.log_proba["arithmetic"][part])
        if label is not None:
            _fill_labelled(found, part, log_p, label)
    return found


def _empty(members: int, batch: int, classes: int, *, labelled: bool) -> Predicted:
    """Room for everything, made before the blocks: small results between large blocks would scatter the memory."""

    def room(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float64)

    own = [room(members, batch) if labelled else None for _ in range(2)]
    known: tuple[Aggregate, ...] = AGGREGATES if labelled else ("geometric",)
    return Predicted(
        votes=torch.empty((members, batch), dtype=torch.int64),
        confidence=room(members, batch),
        log_likelihood=own[0],
        brier=own[1],
        log_proba={aggregate: room(batch, classes) for aggregate in AGGREGATES},
        ensemble_log_likelihood={aggregate: room(batch) for aggregate in AGGREGATES if labelled},
        ambiguity={aggregate: room(batch) for aggregate in known},
        mutual_information=room(batch),
    )


def _fill_labelled(found: Predicted, part: slice, log_p: Tensor, label: Tensor) -> None:
    """What members say of the labels; overwrites log_p."""
    assert found.log_likelihood is not None
    assert found.brier is not None
    places = label.expand(len(log_p), -1).unsqueeze(-1)
    own = log_p.gather(-1, places)
    found.log_likelihood[:, part] = own.squeeze(-1)
    off = log_p.exp_().scatter_(-1, places, own.expm1())
    found.brier[:, part] = off.square_().sum(-1)


def scores(log_p: Float[Tensor, "batch classes"], target: Integer[Tensor, " batch"], bins: int = 15) -> Scores:
    """All figures of one predictor.

    Args:
        log_p: Normalised log-probabilities.
        target: Class indices.
        bins: Bins of the calibration errors.

    Returns:
        The figures.

    Raises:
        TypeError: If an argument is no tensor of its kind.
        ValueError: If shapes, labels or bins do not fit, or the rows are no log-probabilities.
    """
    return Scores(
        accuracy=metrics.accuracy(log_p, target),
        nll=metrics.nll(log_p, target),
        ece=metrics.calibration_error(log_p, target, bins),
        adaptive_ece=metrics.adaptive_calibration_error(log_p, target, bins),
        classwise_ece=metrics.classwise_calibration_error(log_p, target, bins),
        brier=metrics.brier_score(log_p, target),
        aurc=selective.aurc(log_p, target),
        augrc=selective.augrc(log_p, target),
    )


def scores_of_members(found: Predicted, target: Integer[Tensor, " batch"], bins: int = 15) -> tuple[MemberScores, ...]:
    """The figures of every member.

    Args:
        found: What members say, made with labels.
        target: The labels.
        bins: Bins of the calibration error.

    Returns:
        A row a member.
    """
    assert found.log_likelihood is not None
    assert found.brier is not None
    right = found.votes == target
    return tuple(
        MemberScores(
            accuracy=float(right[m].double().mean()),
            nll=float(-found.log_likelihood[m].mean()),
            ece=metrics.top_label_error(found.confidence[m], right[m], bins),
            brier=float(found.brier[m].mean()),
        )
        for m in range(len(right))
    )

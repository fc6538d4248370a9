"""The figures of one predictor, of all members, and of their averages, computed from logits in pieces.

No float64 array of the size of the logits is made: the ensemble is averaged over blocks of samples, and members are
scored one by one.
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
_BLOCK = 1 << 22  # numbers in float64 at a time


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
        log_likelihood: log p_m,y; None without labels.
        log_proba: Log-probabilities of the ensemble by how it is averaged.
        ambiguity: Mean cross-entropy of members minus that of the ensemble, by how it is averaged, in nats; the
            geometric one only without labels.
        mutual_information: Between member and prediction, in nats.
    """

    votes: Integer[Tensor, "members batch"]
    log_likelihood: Float[Tensor, "members batch"] | None
    log_proba: dict[Aggregate, Float[Tensor, "batch classes"]]
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
        ce, ambiguity = float(-self.log_likelihood.mean()), float(self.ambiguity[aggregate].mean())
        return Measured(ce, ce - ambiguity, ambiguity)


@torch.no_grad()
def predicted(logits: Float[Tensor, "members batch classes"], target: Integer[Tensor, " batch"] | None) -> Predicted:
    """Votes, likelihoods, averages and ambiguities, block by block.

    Args:
        logits: Checked logits of the members, on any device.
        target: Checked class indices, or None.

    Returns:
        A value a sample.
    """
    rows = max(1, _BLOCK // (logits.shape[0] * logits.shape[2]))
    labels = [None] * len(logits[0].split(rows)) if target is None else [t.to("cpu").long() for t in target.split(rows)]
    votes, own, information = [], [], []
    log_q: dict[Aggregate, list[Tensor]] = {aggregate: [] for aggregate in AGGREGATES}
    ambiguity: dict[Aggregate, list[Tensor]] = {aggregate: [] for aggregate in AGGREGATES}
    for block, label in zip(logits.split(rows, 1), labels, strict=True):
        log_p = log_softmax(block.to("cpu", torch.float64))
        votes.append(log_p.argmax(-1))
        information.append(diversity.mutual_information(log_p))
        if label is not None:
            own.append(log_p.gather(-1, label.expand(len(log_p), -1).unsqueeze(-1)).squeeze(-1))
        for aggregate in AGGREGATES:
            log_q[aggregate].append(aggregate_log_proba(log_p, aggregate))
            if label is not None or aggregate == "geometric":
                ambiguity[aggregate].append(diversity.ambiguity(log_p, label, aggregate))
    return Predicted(
        votes=torch.cat(votes, 1),
        log_likelihood=torch.cat(own, 1) if own else None,
        log_proba={aggregate: torch.cat(parts) for aggregate, parts in log_q.items()},
        ambiguity={aggregate: torch.cat(parts) for aggregate, parts in ambiguity.items() if parts},
        mutual_information=torch.cat(information),
    )


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


def scores_of_members(
    logits: Float[Tensor, "members batch classes"], target: Integer[Tensor, " batch"], bins: int = 15
) -> tuple[MemberScores, ...]:
    """The figures of every member.

    Args:
        logits: Logits of the members, on any device.
        target: Class indices.
        bins: Bins of the calibration error.

    Returns:
        A row a member.
    """
    rows = []
    for own in logits:
        log_p = log_softmax(own.detach().to("cpu", torch.float64))
        rows.append(
            MemberScores(
                accuracy=metrics.accuracy(log_p, target),
                nll=metrics.nll(log_p, target),
                ece=metrics.calibration_error(log_p, target, bins),
                brier=metrics.brier_score(log_p, target),
            )
        )
    return tuple(rows)

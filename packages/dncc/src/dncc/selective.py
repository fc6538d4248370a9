"""Knowing what one does not know: which predictions to trust, and which samples are of another kind.

Confidences rank samples; only their order counts. Areas under risk-coverage curves are written here and average over
the orders of tied samples, so that no figure depends on the order of the data; detection is scikit-learn's.
"""

from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from dncc.predictions import averaged_over_ties, checked_predictions

__all__ = ["Detection", "augrc", "aurc", "detection", "max_log_proba", "negative_entropy", "risk_coverage"]


def max_log_proba(log_p: Float[Tensor, "*batch classes"]) -> Float[Tensor, "*batch"]:
    """Log-probability of the predicted class: the usual confidence. It keeps apart what rounds to probability 1.

    Args:
        log_p: Normalised log-probabilities.

    Returns:
        A confidence a sample, at most 0.
    """
    return log_p.max(-1).values


def negative_entropy(log_p: Float[Tensor, "*batch classes"]) -> Float[Tensor, "*batch"]:
    """sum_c p_c log p_c in nats: a confidence that looks at all classes.

    Args:
        log_p: Normalised log-probabilities.

    Returns:
        A confidence a sample, from -log(classes) to 0.
    """
    p = log_p.exp()
    return torch.where(p > 0, p * log_p, 0.0).sum(-1)


def risk_coverage(
    log_p: Float[Tensor, "batch classes"],
    target: Integer[Tensor, " batch"],
    confidence: Float[Tensor, " batch"] | None = None,
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Error rate among the k most confident samples, for every k: the expectation over orders of tied samples.

    Args:
        log_p: Normalised log-probabilities.
        target: Class indices.
        confidence: What samples are ranked by; the probability of the predicted class if not given.

    Returns:
        Coverages k / n and the error rates (selective risks) at them.

    Raises:
        TypeError: If an argument is no tensor of its kind.
        ValueError: If shapes or labels do not fit, a confidence is NaN, or the rows are no log-probabilities.

    Reference:
        Geifman and El-Yaniv (2017), arXiv:1705.08500, section 2.
    """
    error = _ranked_errors(log_p, target, confidence)
    kept = torch.arange(1, len(error) + 1, dtype=torch.float64)
    return kept / len(error), error.cumsum(0) / kept


def aurc(
    log_p: Float[Tensor, "batch classes"],
    target: Integer[Tensor, " batch"],
    confidence: Float[Tensor, " batch"] | None = None,
) -> float:
    """Area under the risk-coverage curve: (1/n) sum_k (error rate among the k most confident); lower is better.

    Args:
        log_p: Normalised log-probabilities.
        target: Class indices.
        confidence: What samples are ranked by; the probability of the predicted class if not given.

    Returns:
        The area in [0, 1]: the mean over all orders of tied samples.

    Raises:
        TypeError: If an argument is no tensor of its kind.
        ValueError: If shapes or labels do not fit, a confidence is NaN, or the rows are no log-probabilities.

    Reference:
        Geifman et al. (2019), arXiv:1805.08206, section 2.

    Example:
        >>> import torch
        >>> log_p = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]).log()
        >>> round(aurc(log_p, torch.tensor([0, 0, 0])), 3)  # risks 0, 0, 1/3
        0.111
    """
    return float(risk_coverage(log_p, target, confidence)[1].mean())


def augrc(
    log_p: Float[Tensor, "batch classes"],
    target: Integer[Tensor, " batch"],
    confidence: Float[Tensor, " batch"] | None = None,
) -> float:
    """Area under the generalised risk-coverage curve: the mean risk of a wrong prediction that is not sent back.

    The curve joins (k/n, errors among the k most confident / n) from (0, 0) by straight lines; its area is
    (1 - AUROC) a (1 - a) + (1 - a)^2 / 2 for accuracy a and the AUROC of telling right from wrong by confidence.

    Args:
        log_p: Normalised log-probabilities.
        target: Class indices.
        confidence: What samples are ranked by; the probability of the predicted class if not given.

    Returns:
        The area in [0, 1/2]: the mean over all orders of tied samples.

    Raises:
        TypeError: If an argument is no tensor of its kind.
        ValueError: If shapes or labels do not fit, a confidence is NaN, or the rows are no log-probabilities.

    Reference:
        Traub et al. (2024), arXiv:2407.01032, section 3.
    """
    error = _ranked_errors(log_p, target, confidence)
    n = len(error)
    after = torch.arange(n, 0, -1, dtype=torch.float64) - 0.5  # how many trapezia of the curve an error lifts
    return float((error * after).sum() / n**2)


@final
@dataclass(frozen=True)
class Detection:
    """How well an uncertainty tells out-of-distribution samples (positives) from the others.

    Attributes:
        auroc: Probability that a random outside sample is less sure than a random inside one, ties counted half.
        aupr: Average precision with outside samples as positives; its chance level is their share.
        fpr95: Share of inside samples flagged by the strictest threshold that flags at least 95 % of the outside ones.
    """

    auroc: float
    aupr: float
    fpr95: float


def detection(inside: Float[Tensor, " inside"], outside: Float[Tensor, " outside"]) -> Detection:
    """Detection of out-of-distribution samples by their confidence, by scikit-learn.

    Args:
        inside: Confidence of every in-distribution sample, such as `max_log_proba`, `negative_entropy`, or minus the
            mutual information between members and prediction (`dncc.diversity.mutual_information`).
        outside: Confidence of every other sample.

    Returns:
        AUROC, AUPR and FPR95, with outside samples as the positives.

    Raises:
        ValueError: If one of them is empty, has another shape than (samples,), or holds NaN.

    Reference:
        Hendrycks and Gimpel (2017), arXiv:1610.02136, section 2.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

    parts = [_checked_confidence(part, name) for part, name in ((inside, "inside"), (outside, "outside"))]
    score = -torch.cat(parts).numpy()
    is_outside = torch.cat([torch.zeros(len(parts[0])), torch.ones(len(parts[1]))]).numpy()
    false_alarms, hits, _ = roc_curve(is_outside, score, drop_intermediate=False)
    return Detection(
        auroc=float(roc_auc_score(is_outside, score)),
        aupr=float(average_precision_score(is_outside, score)),
        fpr95=float(false_alarms[hits >= 0.95].min()),
    )


def _ranked_errors(log_p: Tensor, target: Tensor, confidence: Tensor | None) -> Tensor:
    """Expected errors from the most to the least confident sample."""
    log_p, target = checked_predictions(log_p, target)
    sure = max_log_proba(log_p) if confidence is None else _checked_confidence(confidence, "confidence")
    if sure.shape != target.shape:
        raise ValueError(f"confidence has shape {tuple(sure.shape)}; {len(target)} samples need ({len(target)},)")
    wrong = (log_p.argmax(-1) != target).double()
    return averaged_over_ties(-sure, wrong)[1]


def _checked_confidence(confidence: Any, name: str) -> Tensor:
    values = torch.as_tensor(confidence).detach().to("cpu", torch.float64)
    if values.ndim != 1 or not len(values) or bool(values.isnan().any()):
        raise ValueError(f"{name} has shape {tuple(values.shape)} and {int(values.isnan().sum())} NaN; give one number "
                         "for each of at least one sample")  # fmt: skip
    return values

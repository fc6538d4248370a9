"""How good one set of predicted probabilities is: accurate, likely, calibrated.

Every function takes normalised log-probabilities of one predictor, a member or the whole ensemble
(`dncc.aggregation.log_softmax`, `aggregate_log_proba`), and class indices. All computation is in float64 on the CPU.
Calibration with bins of equal width is torchmetrics'; bins of equal mass are written here.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from dncc.predictions import averaged_over_ties, checked_predictions

__all__ = [
    "Reliability",
    "accuracy",
    "adaptive_calibration_error",
    "brier_score",
    "calibration_error",
    "classwise_calibration_error",
    "nll",
    "reliability",
    "top_label_error",
]


def accuracy(log_p: Float[Tensor, "batch classes"], target: Integer[Tensor, " batch"]) -> float:
    """Share of samples whose most probable class is the label.

    Args:
        log_p: Normalised log-probabilities.
        target: Class indices.

    Returns:
        Accuracy in [0, 1].

    Raises:
        TypeError: If an argument is no tensor of its kind.
        ValueError: If shapes or labels do not fit, or the rows are no log-probabilities.
    """
    log_p, target = checked_predictions(log_p, target)
    return float((log_p.argmax(-1) == target).double().mean())


def nll(log_p: Float[Tensor, "batch classes"], target: Integer[Tensor, " batch"]) -> float:
    """Mean of -log p_y, in nats.

    Args:
        log_p: Normalised log-probabilities.
        target: Class indices.

    Returns:
        The negative log-likelihood of a sample, infinite where a label has probability 0.

    Raises:
        TypeError: If an argument is no tensor of its kind.
        ValueError: If shapes or labels do not fit, or the rows are no log-probabilities.

    Example:
        >>> import torch
        >>> log_p = torch.tensor([[0.5, 0.5], [0.25, 0.75]]).log()
        >>> round(nll(log_p, torch.tensor([0, 1])), 3)  # (log 2 + log 4/3) / 2
        0.49
    """
    log_p, target = checked_predictions(log_p, target)
    return float(-log_p.gather(1, target[:, None]).mean())


def brier_score(log_p: Float[Tensor, "batch classes"], target: Integer[Tensor, " batch"]) -> float:
    """Mean of sum_c (p_c - 1[c = y])^2, summed over all classes: between 0 and 2.

    Twice what the two-class convention with one probability gives.

    Args:
        log_p: Normalised log-probabilities.
        target: Class indices.

    Returns:
        The Brier score.

    Raises:
        TypeError: If an argument is no tensor of its kind.
        ValueError: If shapes or labels do not fit, or the rows are no log-probabilities.

    Reference:
        Brier (1950), Monthly Weather Review 78, equation 2.
    """
    log_p, target = checked_predictions(log_p, target)
    off = log_p.exp()
    off[torch.arange(len(off)), target] -= 1
    return float(off.square().sum(-1).mean())


def calibration_error(
    log_p: Float[Tensor, "batch classes"], target: Integer[Tensor, " batch"], bins: int = 15
) -> float:
    """Expected calibration error: sum over bins of (share of samples) |accuracy - mean confidence|, by torchmetrics.

    The confidence is the probability of the predicted class; bins [a, b) have equal width, and torchmetrics gives
    confidences of exactly 1 a bin of their own.

    Args:
        log_p: Normalised log-probabilities.
        target: Class indices.
        bins: Bins between 0 and 1.

    Returns:
        The error in [0, 1].

    Raises:
        TypeError: If an argument is no tensor of its kind.
        ValueError: If shapes, labels or bins do not fit, or the rows are no log-probabilities.

    Reference:
        Guo et al. (2017), arXiv:1706.04599, equation 3.
    """
    confidence, correct = _top(*checked_predictions(log_p, target))
    return top_label_error(confidence, correct.bool(), bins)


def top_label_error(confidence: Float[Tensor, " batch"], correct: Bool[Tensor, " batch"], bins: int = 15) -> float:
    """`calibration_error` from the predicted classes' probabilities.

    Args:
        confidence: Probability of the predicted class, float64.
        correct: Whether that class is the label.
        bins: Bins between 0 and 1.

    Returns:
        The error in [0, 1].

    Raises:
        ValueError: If bins is no positive integer.
    """
    from torchmetrics.functional.classification import binary_calibration_error

    # Whether the top label is right is a binary event; torchmetrics' multi-class form would round to float32 first.
    return float(binary_calibration_error(confidence, correct.long(), _checked_bins(bins), validate_args=False))


def classwise_calibration_error(
    log_p: Float[Tensor, "batch classes"], target: Integer[Tensor, " batch"], bins: int = 15
) -> float:
    """Mean over classes of the calibration error of p_c as the probability of the event y = c, by torchmetrics.

    Args:
        log_p: Normalised log-probabilities.
        target: Class indices.
        bins: Bins of equal width between 0 and 1.

    Returns:
        The error in [0, 1].

    Raises:
        TypeError: If an argument is no tensor of its kind.
        ValueError: If shapes, labels or bins do not fit, or the rows are no log-probabilities.

    Reference:
        Kull et al. (2019), arXiv:1910.12656, section 2; Nixon et al. (2019), arXiv:1904.01685, "static" error.
    """
    from torchmetrics.functional.classification import binary_calibration_error

    log_p, target = checked_predictions(log_p, target)
    bins, p = _checked_bins(bins), log_p.exp()
    errors = [
        binary_calibration_error(p[:, c].contiguous(), (target == c).long(), bins, validate_args=False)
        for c in range(p.shape[1])
    ]
    return float(torch.stack(errors).mean())


def adaptive_calibration_error(
    log_p: Float[Tensor, "batch classes"], target: Integer[Tensor, " batch"], bins: int = 15
) -> float:
    """Calibration error of the predicted class with bins of equal mass: sum_b (n_b / n) |accuracy_b - confidence_b|.

    The samples in order of confidence are cut into `bins` parts whose sizes differ by at most one. Samples of one
    confidence count as that group's mean accuracy, wherever the cut falls.

    Args:
        log_p: Normalised log-probabilities.
        target: Class indices.
        bins: Bins; with fewer samples than bins every sample is a bin.

    Returns:
        The error in [0, 1].

    Raises:
        TypeError: If an argument is no tensor of its kind.
        ValueError: If shapes, labels or bins do not fit, or the rows are no log-probabilities.

    Reference:
        Nixon et al. (2019), arXiv:1904.01685, section 3.2, here of the top label only.
    """
    confidence, correct = _top(*checked_predictions(log_p, target))
    confidence, correct = averaged_over_ties(confidence, correct)
    gaps = (correct - confidence).tensor_split(min(_checked_bins(bins), len(confidence)))
    return float(sum(gap.sum().abs() for gap in gaps) / len(confidence))


@final
@dataclass(frozen=True, eq=False)
class Reliability:
    """What is right among the samples of each confidence.

    Attributes:
        confidence: Mean probability of the predicted class in each bin that is not empty.
        accuracy: Share of right predictions in it.
        weight: Share of all samples in it.
    """

    confidence: Float[Tensor, " bins"]
    accuracy: Float[Tensor, " bins"]
    weight: Float[Tensor, " bins"]


def reliability(
    log_p: Float[Tensor, "batch classes"], target: Integer[Tensor, " batch"], bins: int = 15
) -> Reliability:
    """The reliability diagram's points: bins [a, b) of equal width, the last one closed, empty ones left out.

    Args:
        log_p: Normalised log-probabilities.
        target: Class indices.
        bins: Bins between 0 and 1.

    Returns:
        A point a bin; sum of weight |accuracy - confidence| is the calibration error.

    Raises:
        TypeError: If an argument is no tensor of its kind.
        ValueError: If shapes, labels or bins do not fit, or the rows are no log-probabilities.
    """
    confidence, correct = _top(*checked_predictions(log_p, target))
    bins = _checked_bins(bins)
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    index = (torch.bucketize(confidence, edges, right=True) - 1).clamp(max=bins - 1)
    count, right, sure = (
        torch.bincount(index, weights, minlength=bins) for weights in (torch.ones_like(correct), correct, confidence)
    )
    used = count > 0
    return Reliability(sure[used] / count[used], right[used] / count[used], count[used] / len(index))


def _top(log_p: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Confidence of the predicted class, and 1 where it is right."""
    best = log_p.max(-1)
    return best.values.exp(), (best.indices == target).double()


def _checked_bins(bins: int) -> int:
    if isinstance(bins, bool) or not isinstance(bins, int) or bins < 1:
        raise ValueError(f"bins is {bins!r}; give a positive integer")
    return bins

"""One temperature for the ensemble's prediction, fitted on data that is not judged."""

import math

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from dncc.predictions import checked_predictions

__all__ = ["MAX_TEMPERATURE", "MIN_TEMPERATURE", "fit_temperature", "tempered"]

MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-2, 1e2
_STEPS = 60  # halvings of log(10^4): to the last bit


def tempered(log_p: Float[Tensor, "batch classes"], temperature: float) -> Float[Tensor, "batch classes"]:
    """log_softmax(log_p / T): members are pooled first and their average is tempered.

    Args:
        log_p: Normalised log-probabilities of the ensemble.
        temperature: T, positive; above 1 it flattens.

    Returns:
        Normalised log-probabilities.

    Reference:
        Rahaman and Thiery (2021), arXiv:2007.08792: averaging members that are calibrated each leaves the average
        under-confident, so the average is what is calibrated.
    """
    return torch.log_softmax(log_p / temperature, -1)


def fit_temperature(log_p: Float[Tensor, "batch classes"], target: Integer[Tensor, " batch"]) -> float:
    """The T that minimises the negative log-likelihood of softmax(log_p / T).

    The likelihood is concave in 1 / T; the zero of its derivative, mean of sum_c p_c(T) log p_c - log p_y, is bisected.

    Args:
        log_p: Normalised log-probabilities of the ensemble, on validation data.
        target: Class indices.

    Returns:
        T between MIN_TEMPERATURE and MAX_TEMPERATURE; an end where the optimum lies beyond, as for samples that are
        all right.

    Raises:
        TypeError: If an argument is no tensor of its kind.
        ValueError: If shapes or labels do not fit, or the rows are no log-probabilities.

    Reference:
        Guo et al. (2017), arXiv:1706.04599, section 4.2.

    Example:
        >>> import torch
        >>> log_p = torch.tensor([[0.9, 0.1]] * 4).log()  # right three times of four
        >>> sharp = fit_temperature(log_p, torch.tensor([0, 0, 0, 1]))
        >>> round(float(tempered(log_p, sharp).exp()[0, 0]), 3)
        0.75
    """
    log_p, target = checked_predictions(log_p, target)
    floored = log_p.clamp(min=-1e6)  # a class of probability 0 stays impossible, and 0 times infinity is no number
    label = floored.gather(1, target[:, None])[:, 0].mean()

    def flatter(inverse: float) -> bool:
        """Whether a smaller 1 / T is likelier."""
        p = torch.softmax(inverse * floored, -1)
        return bool((p * floored).sum(-1).mean() > label)

    low, high = -math.log(MAX_TEMPERATURE), -math.log(MIN_TEMPERATURE)
    if flatter(math.exp(low)):
        return MAX_TEMPERATURE
    if not flatter(math.exp(high)):
        return MIN_TEMPERATURE
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if flatter(math.exp(middle)) else (middle, high)
    return math.exp(-(low + high) / 2)

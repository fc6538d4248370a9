"""Losses of the learners: tensors in, tensors out."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

__all__ = [
    "best_next",
    "conservative_gap",
    "expectile_loss",
    "split_confidences",
    "stratified_u",
    "take",
    "td_loss",
]

_LOGIT_LOW, _LOGIT_HIGH = -7.0, 3.0  # shares of a budget that are worth a candidate: 0.1 % to 95 %


def take(q: Float[Tensor, "batch k actions"], actions: Int[Tensor, " batch"]) -> Float[Tensor, "batch k"]:
    """Values of the logged actions.

    Args:
        q: Values (confidences or heads in the middle).
        actions: One action per sample.

    Returns:
        q[b, :, actions[b]].
    """
    return q.gather(-1, actions[:, None, None].expand(-1, q.shape[1], 1)).squeeze(-1)


def best_next(
    chooser: Float[Tensor, "batch k choices"], judge: Float[Tensor, "batch k choices"]
) -> Float[Tensor, "batch k"]:
    """Value by `judge` of what `chooser` prefers: the maximum if they are the same, double Q-learning if not.

    Args:
        chooser: Scores to choose by.
        judge: Values to take.

    Returns:
        judge at the arg max of chooser.
    """
    return judge.gather(-1, chooser.argmax(-1, keepdim=True)).squeeze(-1)


def td_loss(predicted: Tensor, target: Tensor, huber: float | None) -> Float[Tensor, ""]:
    r"""Mean of $e^2/2$, or of Huber's loss $\min(e^2/2,\ \kappa(|e| - \kappa/2))$, of the temporal-difference error e.

    Args:
        predicted: Values.
        target: Of the same shape, without gradient.
        huber: The threshold kappa; None: squared.

    Returns:
        The mean.
    """
    if huber is None:
        return 0.5 * functional.mse_loss(predicted, target)
    return functional.huber_loss(predicted, target, delta=huber)


def conservative_gap(q: Float[Tensor, "batch k actions"], actions: Int[Tensor, " batch"]) -> Float[Tensor, "batch k"]:
    r"""CQL's regulariser per sample: $\log\sum_a e^{Q(s,a)} - Q(s, a_{\mathrm{log}})$, at least 0.

    Its gradient lowers the actions that were not logged and lifts the logged one by as much in all.

    Args:
        q: Values.
        actions: The logged actions.

    Returns:
        The gap.

    Reference:
        Kumar et al. (2020), Conservative Q-Learning, equation 4 (CQL(H)).
    """
    return torch.logsumexp(q, -1) - take(q, actions)


def expectile_loss(error: Tensor, expectile: float) -> Float[Tensor, ""]:
    r"""Mean of $|\tau - 1[e < 0]|\, e^2$: its minimiser is an expectile.

    Args:
        error: Sample less estimate.
        expectile: tau in (0, 1); 1/2 gives the mean.

    Returns:
        The mean.
    """
    return (torch.where(error < 0, 1 - expectile, expectile) * error.square()).mean()


def stratified_u(
    batch: int, confidences: int, largest: float, generator: torch.Generator
) -> Float[Tensor, "batch confidences"]:
    r"""Random $u = \sqrt{\log(1/\delta)}$ for every sample, one in each of equal strata of [0, largest].

    Args:
        batch: Samples.
        confidences: Draws per sample.
        largest: u of the smallest confidence.
        generator: Source of randomness, on the device wanted.

    Returns:
        Ascending per sample; the marginal distribution of all together is uniform.
    """
    noise = torch.rand(batch, confidences, generator=generator, device=generator.device)
    return (noise + torch.arange(confidences, device=noise.device)) * (largest / confidences)


def split_confidences(
    deltas: Float[Tensor, "batch confidences"],
    noise: Float[Tensor, " splits"],
    budget: Literal["box", "sum", "product"],
    smallest: float,
) -> tuple[Float[Tensor, "batch confidences choices"], Float[Tensor, "batch confidences choices"]]:
    r"""Candidate splits of a confidence into what this step spends and what is left for the rest.

    The share w of this step is stratified in its logit between 0.1 % and 95 %. "sum": $\delta_1 = w\delta$,
    $\delta_2 = \delta - \delta_1$; "product": $1 - \delta_1 = (1 - \delta)^w$, $1 - \delta_2 = (1 - \delta)^{1-w}$,
    both 1 at $\delta = 1$; "box": no choice, both are delta, since both terms grow with their confidence.

    Args:
        deltas: The confidences.
        noise: In [0, 1): where in its stratum each share lies; 1/2 for the same splits every time.
        budget: Which splits are allowed.
        smallest: The rest is kept at this or above, where networks are trained.

    Returns:
        delta1 and delta2; for "box" one candidate.
    """
    if budget == "box":
        return deltas[..., None], deltas[..., None]
    strata = (torch.arange(len(noise), device=noise.device) + noise) / len(noise)
    share = torch.sigmoid(_LOGIT_LOW + (_LOGIT_HIGH - _LOGIT_LOW) * strata)
    whole = deltas[..., None]
    if budget == "sum":
        first = whole * share
        return first, (whole - first).clamp(min=smallest)
    log_left = torch.log1p(-whole)  # -infinity at delta = 1, of which any share leaves everything
    return -torch.expm1(share * log_left), (-torch.expm1((1 - share) * log_left)).clamp(min=smallest)

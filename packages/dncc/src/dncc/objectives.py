"""The objectives sample by sample: log-probabilities of the members and labels in, nats out.

Exact decompositions, with t the label's distribution, d(p, q) = p/q - log(p/q) - 1 the Itakura-Saito divergence:
    arithmetic   CE(q) = mean_m CE(p_m) - mean_m sum_c t_c d(p_m,c, q_c)        q = mean_m p_m
    geometric    CE(g) = mean_m CE(p_m) - mean_m KL(g || p_m)                   g = softmax(mean_m log p_m)
so that mean_m [CE(p_m) - lambda (divergence from the aggregate)] = (1 - lambda) mean_m CE(p_m) + lambda CE(aggregate),
which is how it is computed: nothing is divided by a probability and nothing is clamped.
"""

import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from dncc.aggregation import Aggregate, aggregate_log_proba
from dncc.labels import Labels

__all__ = ["Terms", "adp", "decompose", "interpolate", "kl_to_mean", "mse_ncl"]


@final
@dataclass(frozen=True, eq=False)
class Terms:
    """The decomposition, sample by sample.

    Attributes:
        member_ce: CE(p_m), in nats.
        ce: Its mean over the members.
        ensemble_ce: CE of the aggregate.
        ambiguity: Mean divergence of the members from the aggregate.
    """

    member_ce: Float[Tensor, "members samples"]
    ce: Float[Tensor, " samples"]
    ensemble_ce: Float[Tensor, " samples"]
    ambiguity: Float[Tensor, " samples"]


def decompose(log_p: Float[Tensor, "members samples classes"], labels: Labels, aggregate: Aggregate) -> Terms:
    """Accuracy of the members, accuracy of the ensemble, and what lies between them.

    Args:
        log_p: Normalised log-probabilities of the members.
        labels: Labels.
        aggregate: How the members are averaged.

    Returns:
        Terms with ensemble_ce = ce - ambiguity.
    """
    if aggregate == "geometric":
        member_ce = -labels.expected(log_p)
        mean_log = log_p.mean(0)
        log_z = torch.logsumexp(mean_log, -1)  # log of the normaliser of the geometric mean, at most 0
        ensemble_ce = -labels.expected(mean_log) + log_z
        return Terms(member_ce, member_ce.mean(0), ensemble_ce, (-log_z).clamp_min(0))
    if labels.soft is None:
        likelihood = labels.expected(log_p)
        log_q = _log_mean(likelihood)
        return Terms(-likelihood, -likelihood.mean(0), -log_q, itakura_saito(likelihood - log_q).mean(0))
    # A class that the label excludes may have probability 0 in every member, and 0 / 0 would reach the gradient.
    masked = torch.where(labels.soft > 0, log_p, log_p.new_zeros(()))
    log_q = _log_mean(masked)
    member_ce = -labels.expected(masked)
    divergence = labels.expected(itakura_saito(masked - log_q)).mean(0)
    return Terms(member_ce, member_ce.mean(0), -labels.expected(log_q), divergence)


def itakura_saito(log_ratio: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Itakura-Saito divergence e^u - u - 1 of u = log(p/q): never negative, and accurate when p is close to q.

    Args:
        log_ratio: u.

    Returns:
        The divergence.
    """
    return (torch.expm1(log_ratio) - log_ratio).clamp_min(0)


def interpolate(terms: Terms, lam: float | Float[Tensor, ""]) -> Float[Tensor, " samples"]:
    """(1 - lambda) CE of the members + lambda CE of the ensemble: the DNCC loss.

    Args:
        terms: The decomposition.
        lam: lambda in [0, 1].

    Returns:
        Nats a sample.

    Reference:
        Zhang et al. (2022), arXiv:2212.07070, the loss of a member; the closed form of its mean is ours.
    """
    # The ends leave out a term that may be infinite: a member that excludes the label does not spoil the other side.
    if isinstance(lam, float) and lam == 0:
        return terms.ce
    if isinstance(lam, float) and lam == 1:
        return terms.ensemble_ce
    value = (1 - lam) * terms.ce + lam * terms.ensemble_ce
    if not isinstance(lam, Tensor):
        return value
    excluded = terms.ce.isinf()  # only there: elsewhere the derivative by lambda is wanted at the ends too
    return torch.where(excluded & (lam == 1), terms.ensemble_ce, torch.where(excluded & (lam == 0), terms.ce, value))


def mse_ncl(
    log_p: Float[Tensor, "members samples classes"], labels: Labels, lam: float | Float[Tensor, ""]
) -> Float[Tensor, " samples"]:
    """Negative correlation learning with squared errors of probabilities: the classical ancestor.

    mean_m [|p_m - t|^2 / 2 - lambda |p_m - q|^2 / 2] = (1 - lambda) mean_m |p_m - t|^2 / 2 + lambda |q - t|^2 / 2.

    Args:
        log_p: Normalised log-probabilities of the members.
        labels: Labels.
        lam: lambda in [0, 1].

    Returns:
        Half squared errors a sample (no nats).

    Reference:
        Liu and Yao (1999), Neural Networks 12; for deep members Zhang et al. (2019), TPAMI.
    """
    p = log_p.exp()
    t = labels.distribution(p.shape[-1], p.dtype)
    members = (p - t).square().sum(-1).mean(0) / 2
    ensemble = (p.mean(0) - t).square().sum(-1) / 2
    return (1 - lam) * members + lam * ensemble


def kl_to_mean(
    log_p: Float[Tensor, "members samples classes"], terms: Terms, lam: float | Float[Tensor, ""]
) -> Float[Tensor, " samples"]:
    """mean_m [CE(p_m) - lambda KL(q || p_m)] with q = mean_m p_m held constant: a common stand-in that is not exact.

    KL and the arithmetic mean do not match: at lambda = 1 this is not CE(q), its gradient is not that of any loss of
    the ensemble, and it has no lower bound (a member may give 0 to a wrong class that others believe in).

    Args:
        log_p: Normalised log-probabilities of the members.
        terms: Their decomposition.
        lam: lambda in [0, 1].

    Returns:
        Nats a sample.
    """
    log_q = aggregate_log_proba(log_p.detach(), "arithmetic")
    q = log_q.exp()
    divergence = torch.where(q > 0, q * (log_q - log_p), log_p.new_zeros(())).sum(-1).mean(0)
    return terms.ce - lam * divergence


def adp(
    log_p: Float[Tensor, "members samples classes"],
    labels: Labels,
    terms: Terms,
    alpha: float,
    beta: float,
    jitter: float = 1e-6,
) -> Float[Tensor, " samples"]:
    """Adaptive diversity promoting: mean CE - [alpha H(q) + beta log det(G)] / M.

    G is the Gram matrix of the members' predictions with the label's class left out, each scaled to length 1: its
    determinant is the squared volume that they span. M times this value is the published sum.

    Args:
        log_p: Normalised log-probabilities of the members.
        labels: Hard labels.
        terms: Their decomposition.
        alpha: Weight of the entropy H of the mean prediction.
        beta: Weight of the log-determinant.
        jitter: Added to the diagonal of G, which is singular when members agree.

    Returns:
        Nats a sample.

    Reference:
        Pang et al. (2019), Improving Adversarial Robustness via Promoting Ensemble Diversity, ICML, Eq. 4 and 5.
    """
    assert labels.index is not None
    members, _, classes = log_p.shape
    log_q = aggregate_log_proba(log_p, "arithmetic")
    q = log_q.exp()
    entropy = -torch.where(q > 0, q * log_q, q.new_zeros(())).sum(-1)
    label = torch.nn.functional.one_hot(labels.index, classes).bool()
    # Normalised in log space: non-maximal probabilities may all underflow when a member is certain.
    others = log_p.masked_fill(label, -math.inf)
    others = others - torch.logsumexp(2 * others, -1, keepdim=True) / 2
    # In float64, which autocast leaves alone: rounding of many members that agree would exceed the jitter.
    unit = others.exp().transpose(0, 1).double()
    gram = unit @ unit.transpose(1, 2) + jitter * torch.eye(members, dtype=unit.dtype, device=unit.device)
    log_det = 2 * torch.linalg.cholesky_ex(gram).L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return terms.ce - (alpha * entropy + beta * log_det.to(entropy.dtype)) / members


def _log_mean(log_p: Float[Tensor, "members *shape"]) -> Float[Tensor, "*shape"]:
    return torch.logsumexp(log_p, 0) - math.log(log_p.shape[0])

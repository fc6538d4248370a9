"""How differently members predict: pair by pair from their votes, and for the ensemble as a whole.

Pairs are compared through 2 x 2 tables of right and wrong (n11 both right, n10, n01, n00 both wrong), all pairs in one
product; votes are compared member by member, so that no array grows with the number of classes.

Where a ratio is 0/0 it is defined as 0, no association: it happens exactly when one of the two is constant (a member
that is always right or always wrong; for kappa, two members that both always say one class), and a constant is
independent of everything. This holds on the diagonal too.

Reference:
    Kuncheva and Whitaker (2003), Machine Learning 51, 181-207, for the measures of pairs and of votes.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from dncc.aggregation import Aggregate, aggregate_log_proba, checked_aggregate
from dncc.predictions import checked_votes

__all__ = [
    "PairCounts",
    "PairwiseDiversity",
    "ambiguity",
    "cohen_kappa",
    "disagreement",
    "double_fault",
    "error_correlation",
    "kohavi_wolpert_variance",
    "loss_correlation",
    "mean_over_pairs",
    "mutual_information",
    "pair_counts",
    "pairwise_diversity",
    "q_statistic",
    "vote_entropy",
]


@final
@dataclass(frozen=True, eq=False)
class PairCounts:
    """Shares of samples by who of two members is right; each (members, members), together 1.

    Attributes:
        both: Both are right.
        first: Only the first (row) is right.
        second: Only the second (column) is right.
        neither: Both are wrong.
    """

    both: Float[Tensor, "members members"]
    first: Float[Tensor, "members members"]
    second: Float[Tensor, "members members"]
    neither: Float[Tensor, "members members"]


def pair_counts(correct: Bool[Tensor, "members batch"]) -> PairCounts:
    """The 2 x 2 tables of all pairs of members.

    Args:
        correct: Which member is right on which sample.

    Returns:
        Shares of the samples, float64.

    Raises:
        TypeError: If it is no tensor of booleans.
        ValueError: If it has another shape than (members, batch), or no member or sample.
    """
    if not isinstance(correct, Tensor) or correct.dtype != torch.bool:
        kind = correct.dtype if isinstance(correct, Tensor) else type(correct).__name__
        raise TypeError(f"correct is {kind}; give booleans (members, batch), such as predictions == target")
    if correct.ndim != 2 or not correct.numel():
        raise ValueError(f"correct has shape {tuple(correct.shape)}; it must be (members, batch) with at least one of "
                         "each")  # fmt: skip
    right = correct.to("cpu", torch.float64)
    n, hits = right.shape[1], right.sum(1)
    both = right @ right.T
    first = hits[:, None] - both
    neither = n - hits[:, None] - hits[None, :] + both
    return PairCounts(both / n, first / n, first.T / n, neither / n)


def disagreement(predictions: Integer[Tensor, "members batch"]) -> Float[Tensor, "members members"]:
    """Share of samples on which two members predict different classes.

    Args:
        predictions: Predicted classes.

    Returns:
        A symmetric matrix with zeros on the diagonal, float64.

    Raises:
        TypeError: If the predictions are no tensor of integers.
        ValueError: If they have another shape than (members, batch), or no member or sample.

    Example:
        >>> import torch
        >>> disagreement(torch.tensor([[0, 1, 2, 2], [0, 1, 1, 1]]))[0, 1].item()
        0.5
    """
    votes = checked_votes(predictions)
    return torch.stack([(votes != own).double().mean(1) for own in votes])


def q_statistic(correct: Bool[Tensor, "members batch"]) -> Float[Tensor, "members members"]:
    """Yule's Q = (n11 n00 - n01 n10) / (n11 n00 + n01 n10); 0 for independent errors, 0/0 is 0.

    Args:
        correct: Which member is right on which sample.

    Returns:
        A symmetric matrix in [-1, 1], float64.

    Raises:
        TypeError: If it is no tensor of booleans.
        ValueError: If it has another shape than (members, batch), or no member or sample.

    Reference:
        Yule (1900), Phil. Trans. R. Soc. A 194, 257-319; Kuncheva and Whitaker (2003), equation 2.
    """
    return _q_statistic(pair_counts(correct))


def error_correlation(correct: Bool[Tensor, "members batch"]) -> Float[Tensor, "members members"]:
    """Correlation of two members' errors, (n11 n00 - n01 n10) / sqrt of the product of the margins; 0/0 is 0.

    Args:
        correct: Which member is right on which sample.

    Returns:
        A symmetric matrix in [-1, 1], float64.

    Raises:
        TypeError: If it is no tensor of booleans.
        ValueError: If it has another shape than (members, batch), or no member or sample.

    Reference:
        Kuncheva and Whitaker (2003), equation 3.
    """
    return _error_correlation(pair_counts(correct))


def double_fault(correct: Bool[Tensor, "members batch"]) -> Float[Tensor, "members members"]:
    """Share of samples on which both members are wrong; on the diagonal the error rates.

    Args:
        correct: Which member is right on which sample.

    Returns:
        A symmetric matrix in [0, 1], float64.

    Raises:
        TypeError: If it is no tensor of booleans.
        ValueError: If it has another shape than (members, batch), or no member or sample.

    Reference:
        Giacinto and Roli (2001), Image and Vision Computing 19, 699-707.
    """
    return pair_counts(correct).neither


def cohen_kappa(predictions: Integer[Tensor, "members batch"]) -> Float[Tensor, "members members"]:
    """Agreement beyond chance, (p_o - p_e) / (1 - p_e), of the classes two members predict; 0/0 is 0.

    p_o is the share of equal predictions and p_e what members with these frequencies of classes would share if they
    were independent. scikit-learn has it for one pair; here all pairs share one pass.

    Args:
        predictions: Predicted classes.

    Returns:
        A symmetric matrix in [-1, 1], float64.

    Raises:
        TypeError: If the predictions are no tensor of integers.
        ValueError: If they have another shape than (members, batch), or no member or sample.

    Reference:
        Cohen (1960), Educational and Psychological Measurement 20, 37-46.
    """
    votes = checked_votes(predictions)
    return _cohen_kappa(votes, disagreement(votes))


def loss_correlation(log_likelihood: Float[Tensor, "members batch"]) -> Float[Tensor, "members members"]:
    """Pearson correlation over samples of two members' log-losses -log p_m,y; 0/0 is 0.

    Args:
        log_likelihood: log p_m,y.

    Returns:
        A symmetric matrix in [-1, 1], float64; NaN where a loss is infinite.

    Raises:
        ValueError: If it has another shape than (members, batch), or no member or sample.
    """
    if log_likelihood.ndim != 2 or not log_likelihood.numel():
        raise ValueError(f"log_likelihood has shape {tuple(log_likelihood.shape)}; it must be (members, batch) with at "
                         "least one of each")  # fmt: skip
    values = log_likelihood.detach().to("cpu", torch.float64)
    centred = values - values.mean(1, keepdim=True)
    constant = centred.abs().amax(1) <= 1e-12 * values.abs().amax(1)
    centred[constant] = 0.0  # a mean is not exact, not even that of equal numbers
    covariance = centred @ centred.T
    spread = covariance.diagonal().sqrt()
    return _ratio(covariance, spread[:, None] * spread[None, :]).clamp(-1, 1)


def kohavi_wolpert_variance(correct: Bool[Tensor, "members batch"]) -> float:
    """Mean over samples of r (1 - r), r the share of members that are right.

    It equals (M - 1) / (2 M) times the mean over pairs of the share of samples on which exactly one of them is right.

    Args:
        correct: Which member is right on which sample.

    Returns:
        The variance in [0, 1/4].

    Reference:
        Kohavi and Wolpert (1996); Kuncheva and Whitaker (2003), equations 8 and 9.
    """
    rate = correct.double().mean(0)
    return float((rate * (1 - rate)).mean())


def vote_entropy(predictions: Integer[Tensor, "members batch"]) -> Float[Tensor, " batch"]:
    """Entropy of the members' votes, -sum_c (n_c / M) log(n_c / M), of every sample, in nats.

    Args:
        predictions: Predicted classes.

    Returns:
        From 0 (all agree) to log(min(members, classes)), float64.

    Raises:
        TypeError: If the predictions are no tensor of integers.
        ValueError: If they have another shape than (members, batch), or no member or sample.
    """
    votes = checked_votes(predictions)
    # A vote for c sees n_c votes like it, so the mean over votes of -log(n_c / M) is the entropy.
    like_it = torch.stack([(votes == own).sum(0) for own in votes]).double()
    return -(like_it / len(votes)).log().mean(0)


def ambiguity(
    log_p: Float[Tensor, "members batch classes"],
    target: Integer[Tensor, " batch"] | None = None,
    aggregate: Aggregate = "arithmetic",
) -> Float[Tensor, " batch"]:
    """Mean cross-entropy of the members minus the cross-entropy of their aggregate, of every sample, in nats.

    Arithmetic: log q_y - (1/M) sum_m log p_m,y, which depends on the label. Geometric: (1/M) sum_m KL(g || p_m), which
    does not: it is known of unlabelled samples too.

    Args:
        log_p: Normalised log-probabilities of the members.
        target: Class indices; needed for the arithmetic mean only.
        aggregate: How members are averaged.

    Returns:
        Ambiguities, never negative beyond rounding, float64.

    Raises:
        ValueError: If the labels are missing for the arithmetic mean, or the aggregate is unknown.

    Reference:
        Wood et al. (2023), JMLR 24, sections 4 and 5; Heskes (1998), Neural Computation 10, 1425-1433.
    """
    wide = log_p.detach().to("cpu", torch.float64)
    if checked_aggregate(aggregate) == "arithmetic":
        if target is None:
            raise ValueError("the ambiguity of the arithmetic mean depends on the labels: give target, or take "
                             "aggregate='geometric'")  # fmt: skip
        index = target.to("cpu", torch.int64).expand(len(wide), -1).unsqueeze(-1)
        own = wide.gather(-1, index).squeeze(-1)
        return own.logsumexp(0) - own.new_tensor(len(own)).log() - own.mean(0)
    log_g = aggregate_log_proba(wide, "geometric")
    return _divergence(log_g, log_g - wide.mean(0))


def mutual_information(
    log_p: Float[Tensor, "members batch classes"], log_q: Float[Tensor, "batch classes"] | None = None
) -> Float[Tensor, " batch"]:
    """H(q) - (1/M) sum_m H(p_m) = (1/M) sum_m KL(p_m || q), of every sample, in nats.

    What knowing the member would tell about the label: the part of the uncertainty that comes from members differing
    (BALD), q being the mean of probabilities.

    Args:
        log_p: Normalised log-probabilities of the members.
        log_q: Those of q, where they are at hand.

    Returns:
        From 0 to log(members), float64.

    Reference:
        Houlsby et al. (2011), arXiv:1112.5745, equation 2; Smith and Gal (2018), arXiv:1803.08533.
    """
    wide = log_p.detach().to("cpu", torch.float64)
    log_q = aggregate_log_proba(wide, "arithmetic") if log_q is None else log_q.detach().to("cpu", torch.float64)
    total = torch.zeros(wide.shape[1], dtype=torch.float64)
    for own in wide:  # one member at a time: no second array of the size of log_p
        total += _divergence(own, own - log_q)
    return total / len(wide)


@final
@dataclass(frozen=True, eq=False)
class PairwiseDiversity:
    """Every measure of pairs; each (members, members) and symmetric. See the function of the same name.

    Attributes:
        disagreement: Share of samples with different predicted classes.
        q_statistic: Yule's Q of being right.
        double_fault: Share of samples on which both are wrong.
        kappa: Cohen's kappa of the predicted classes.
        error_correlation: Correlation of errors.
        loss_correlation: Correlation of log-losses.
    """

    disagreement: Float[Tensor, "members members"]
    q_statistic: Float[Tensor, "members members"]
    double_fault: Float[Tensor, "members members"]
    kappa: Float[Tensor, "members members"]
    error_correlation: Float[Tensor, "members members"]
    loss_correlation: Float[Tensor, "members members"]


def pairwise_diversity(
    predictions: Integer[Tensor, "members batch"],
    target: Integer[Tensor, " batch"],
    log_likelihood: Float[Tensor, "members batch"],
) -> PairwiseDiversity:
    """All measures of pairs.

    Args:
        predictions: Predicted classes.
        target: Class indices.
        log_likelihood: log p_m,y.

    Returns:
        A matrix a measure.

    Raises:
        TypeError: If the predictions are no tensor of integers.
        ValueError: If a shape does not fit, or there is no member or sample.
    """
    votes = checked_votes(predictions)
    if target.shape != votes.shape[1:] or log_likelihood.shape != votes.shape:
        raise ValueError(f"target has shape {tuple(target.shape)} and log_likelihood {tuple(log_likelihood.shape)}; "
                         f"predictions {tuple(votes.shape)} need {tuple(votes.shape[1:])} and the same")  # fmt: skip
    table = pair_counts(votes == target.to("cpu"))
    differ = disagreement(votes)
    return PairwiseDiversity(
        disagreement=differ,
        q_statistic=_q_statistic(table),
        double_fault=table.neither,
        kappa=_cohen_kappa(votes, differ),
        error_correlation=_error_correlation(table),
        loss_correlation=loss_correlation(log_likelihood),
    )


def mean_over_pairs(matrix: Float[Tensor, "members members"]) -> float:
    """Mean over the pairs of different members.

    Args:
        matrix: A measure of pairs.

    Returns:
        The mean off the diagonal; NaN for one member.
    """
    rows, columns = torch.triu_indices(*matrix.shape, offset=1)
    return float(matrix[rows, columns].mean())


def _q_statistic(table: PairCounts) -> Tensor:
    with_, against = table.both * table.neither, table.first * table.second
    return _ratio(with_ - against, with_ + against)


def _error_correlation(table: PairCounts) -> Tensor:
    right = table.both.diagonal()
    spread = (right * (1 - right)).sqrt()
    return _ratio(table.both * table.neither - table.first * table.second, spread[:, None] * spread).clamp(-1, 1)


def _cohen_kappa(votes: Tensor, differ: Tensor) -> Tensor:
    classes = int(votes.max()) + 1
    share = torch.stack([torch.bincount(own, minlength=classes) for own in votes]).double() / votes.shape[1]
    chance = share @ share.T
    return _ratio(1 - differ - chance, 1 - chance)


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """Quotient with 0/0 = 0. Shares of counts are exact where it matters: 0 and 1."""
    return torch.where(below == 0, 0.0, above / below)


def _divergence(log_p: Tensor, log_ratio: Tensor) -> Tensor:
    """sum_c p_c log_ratio_c, where a class of probability 0 does not count."""
    p = log_p.exp()
    return torch.where(p > 0, p * log_ratio, 0.0).sum(-1)

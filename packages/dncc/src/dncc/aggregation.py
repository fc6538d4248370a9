"""Members become one prediction: the mean of probabilities or the normalised geometric mean, in log space throughout.

M members, logits z_m, p_m = softmax(z_m). Arithmetic: q = (1/M) sum_m p_m. Geometric: g proportional to
exp((1/M) sum_m log p_m), which is softmax of the mean logits.
"""

import math
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "Aggregate",
    "aggregate_log_proba",
    "checked_aggregate",
    "log_softmax",
    "pack_members",
    "responsibilities",
    "unpack_members",
]

Aggregate = Literal["arithmetic", "geometric"]


def checked_aggregate(aggregate: str) -> Aggregate:
    """`aggregate` as it is.

    Raises:
        ValueError: If it is neither "arithmetic" nor "geometric".
    """
    if aggregate not in get_args(Aggregate):
        raise ValueError(f"aggregate is {aggregate!r}; it must be 'arithmetic' (mean of probabilities) or 'geometric' "
                         "(mean of log-probabilities)")  # fmt: skip
    return aggregate  # type: ignore[return-value]


def log_softmax(logits: Float[Tensor, "*shape classes"]) -> Float[Tensor, "*shape classes"]:
    """Log-probabilities, in at least float32 whatever the logits' type and whatever autocast says.

    Args:
        logits: Scores of any floating type.

    Returns:
        log p, float32 for half-precision logits and of the logits' own type otherwise.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    return torch.log_softmax(logits, -1, dtype=wide)


def aggregate_log_proba(
    log_p: Float[Tensor, "members *batch classes"], aggregate: Aggregate = "arithmetic"
) -> Float[Tensor, "*batch classes"]:
    """Log-probabilities of the ensemble: log q = logsumexp_m log p_m - log M, or log g = log_softmax(mean_m log p_m).

    Args:
        log_p: Normalised log-probabilities of the members.
        aggregate: How members are averaged.

    Returns:
        Normalised log-probabilities.

    Example:
        >>> import torch
        >>> log_p = torch.tensor([[[0.9, 0.1]], [[0.5, 0.5]]]).log()
        >>> [round(p, 3) for p in aggregate_log_proba(log_p).exp()[0].tolist()]
        [0.7, 0.3]
        >>> [round(p, 3) for p in aggregate_log_proba(log_p, "geometric").exp()[0].tolist()]
        [0.75, 0.25]
    """
    if checked_aggregate(aggregate) == "arithmetic":
        return torch.logsumexp(log_p, 0) - math.log(log_p.shape[0])
    return torch.log_softmax(log_p.mean(0), -1)


def responsibilities(log_likelihood: Float[Tensor, "members *batch"]) -> Float[Tensor, "members *batch"]:
    """p_m,y / q_y = M softmax_m(log p_m,y): how much of the ensemble's probability of the label is member m's.

    The members' mean is 1. At lambda = 1 it is the weight of member m's cross-entropy gradient, the responsibility of
    a mixture of experts.

    Args:
        log_likelihood: log p_m,y of every member.

    Returns:
        Weights in [0, members].
    """
    return torch.softmax(log_likelihood, 0) * log_likelihood.shape[0]


def pack_members(x: Float[Tensor, "members batch *shape"]) -> Float[Tensor, "packed *shape"]:
    """(members, batch, ...) to (members * batch, ...): the order in which BatchEnsemble layers and others pack.

    Args:
        x: Member-first values.

    Returns:
        The same values; a view where possible.
    """
    return x.flatten(0, 1)


def unpack_members(x: Float[Tensor, "packed *shape"], members: int) -> Float[Tensor, "members batch *shape"]:
    """(members * batch, ...) to (members, batch, ...), the inverse of `pack_members`.

    Args:
        x: Values packed member by member.
        members: How many members there are.

    Returns:
        The same values; a view where possible.

    Raises:
        ValueError: If the packed length is not a multiple of `members`.
    """
    if members < 1 or x.shape[0] % members:
        raise ValueError(f"{x.shape[0]} packed rows cannot be split among {members} members")
    return x.unflatten(0, (members, -1))

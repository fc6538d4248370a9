"""The mathematics by the slowest way, in plain NumPy and float64, one sample at a time: what the rest is checked by.

M members with probabilities p (M, C), label distribution t (C,). All losses in nats. Nothing here knows the closed form
of the loss: it is built from Bregman divergences, and the gradients from differences.
"""

from collections.abc import Callable
from typing import SupportsFloat

import numpy as np
from jaxtyping import Float

__all__ = [
    "ambiguity",
    "bregman_is",
    "cross_entropy",
    "dncc_loss",
    "ensemble",
    "joint_responsibility",
    "kl",
    "member_weight",
    "numeric_gradient",
    "softmax",
    "unstable_below",
]

Row = Float[np.ndarray, " classes"]
Members = Float[np.ndarray, "members classes"]


def softmax(z: Float[np.ndarray, "*shape classes"]) -> Float[np.ndarray, "*shape classes"]:
    """Probabilities e^z / sum e^z over the last axis.

    Args:
        z: Scores.

    Returns:
        Probabilities.
    """
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def cross_entropy(t: Row, p: Row) -> float:
    """- sum_c t_c log p_c.

    Args:
        t: Label distribution.
        p: Probabilities, positive where t is.

    Returns:
        Nats.
    """
    return float(-sum(a * np.log(b) for a, b in zip(t, p, strict=True) if a > 0))


def kl(p: Row, q: Row) -> float:
    """KL(p || q) = sum_c p_c log(p_c / q_c).

    Args:
        p: Probabilities.
        q: Probabilities, positive where p is.

    Returns:
        Nats.
    """
    return float(sum(a * (np.log(a) - np.log(b)) for a, b in zip(p, q, strict=True) if a > 0))


def bregman_is(p: SupportsFloat, q: SupportsFloat) -> float:
    """Bregman divergence of phi = -log, phi(p) - phi(q) - phi'(q) (p - q): the Itakura-Saito divergence of p from q.

    Args:
        p: A positive number.
        q: A positive number.

    Returns:
        A number at least 0, and 0 for p = q only.
    """
    a, b = float(p), float(q)
    return float(-np.log(a) + np.log(b) + (a - b) / b)


def ensemble(p: Members, aggregate: str = "arithmetic") -> Row:
    """The aggregate: the mean of probabilities, or their normalised geometric mean.

    Args:
        p: Probabilities of the members.
        aggregate: "arithmetic" or "geometric".

    Returns:
        Probabilities.
    """
    if aggregate == "arithmetic":
        return p.mean(axis=0)
    product = np.prod(p ** (1 / len(p)), axis=0)
    return product / product.sum()


def ambiguity(p: Members, t: Row, aggregate: str = "arithmetic") -> float:
    """Mean divergence of the members from their aggregate, by the divergence that belongs to the aggregate.

    Arithmetic: mean_m sum_c t_c d(p_m,c, q_c). Geometric: mean_m KL(g || p_m), which needs no label.

    Args:
        p: Probabilities of the members.
        t: Label distribution.
        aggregate: "arithmetic" or "geometric".

    Returns:
        Nats.
    """
    q = ensemble(p, aggregate)
    if aggregate == "geometric":
        return float(np.mean([kl(q, member) for member in p]))
    weighted = [[w * bregman_is(a, b) for w, a, b in zip(t, member, q, strict=True) if w > 0] for member in p]
    return float(np.mean([sum(row) for row in weighted]))


def dncc_loss(p: Members, t: Row, lam: SupportsFloat, aggregate: str = "arithmetic", fixed: Row | None = None) -> float:
    """mean_m [CE(p_m) - lambda divergence(p_m, aggregate)], as the paper builds it.

    Args:
        p: Probabilities of the members.
        t: Label distribution.
        lam: lambda.
        aggregate: "arithmetic" or "geometric".
        fixed: An aggregate to hold constant (`detach`); None: that of p.

    Returns:
        Nats.

    Reference:
        Zhang et al. (2022), arXiv:2212.07070.
    """
    q = ensemble(p, aggregate) if fixed is None else fixed
    total = 0.0
    for member in p:
        if aggregate == "arithmetic":
            divergence = sum(w * bregman_is(a, b) for w, a, b in zip(t, member, q, strict=True) if w > 0)
        else:
            divergence = kl(q, member)
        total += cross_entropy(t, member) - float(lam) * divergence
    return float(total / len(p))


def member_weight(p_label: SupportsFloat, q_label: SupportsFloat, lam: SupportsFloat) -> float:
    """(1 - lambda) + lambda p / q: what multiplies a member's usual gradient p_m - t by its logits.

    Args:
        p_label: The member's probability of the label.
        q_label: The ensemble's.
        lam: lambda.

    Returns:
        The weight; the members' mean is 1.
    """
    return 1 - float(lam) + float(lam) * float(p_label) / float(q_label)


def joint_responsibility(p_label: Float[np.ndarray, " members"]) -> Float[np.ndarray, " members"]:
    """Posterior probability that a member, drawn uniformly, was the one that gave the label (mixture of experts).

    By Bayes' rule p_m / sum p. At lambda = 1 a member's weight is M times this.

    Args:
        p_label: The members' probabilities of the label.

    Returns:
        Posterior probabilities.
    """
    return p_label / p_label.sum()


def unstable_below(lam: SupportsFloat) -> float:
    """For lambda > 1: the ratio p_m / q below which a member is pushed away from the label, (lambda - 1) / lambda.

    Args:
        lam: lambda.

    Returns:
        The ratio; 0 for lambda <= 1, where it never happens.
    """
    return max(0.0, (float(lam) - 1) / float(lam)) if float(lam) else 0.0


def numeric_gradient(
    function: Callable[[Float[np.ndarray, "members classes"]], float],
    z: Float[np.ndarray, "members classes"],
    h: SupportsFloat = 1e-5,
) -> Float[np.ndarray, "members classes"]:
    """Fourth-order central differences.

    Args:
        function: From logits to a number.
        z: Where.
        h: Step.

    Returns:
        The gradient, with an error of order h^4.
    """
    step, gradient = float(h), np.zeros_like(z)
    for index in np.ndindex(*z.shape):
        unit = np.zeros_like(z)
        unit[index] = step
        near = function(z + unit) - function(z - unit)
        far = function(z + 2 * unit) - function(z - 2 * unit)
        gradient[index] = (8 * near - far) / (12 * step)
    return gradient

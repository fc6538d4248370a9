"""Every estimate of sampling error by name, and from a saved state."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ccvf.behaviour import BehaviourCounts
from ccvf.elliptical import EllipticalBonus
from ccvf.ensemble_variance import EnsembleVariance
from ccvf.exact_counts import ExactCounts
from ccvf.hashing import HashCounts
from ccvf.penalties import Bonus
from ccvf.rnd import RandomDistillation

__all__ = ["BONUSES", "make_bonus", "restore_bonus"]

_ALL = (ExactCounts, HashCounts, RandomDistillation, EllipticalBonus, EnsembleVariance, BehaviourCounts)

BONUSES: dict[str, type[Bonus]] = {found.kind: found for found in _ALL}


def make_bonus(name: str, **options: Any) -> Bonus:
    """An estimate of sampling error, to be fitted on a log.

    | name | what it is | scale |
    |---|---|---|
    | exact | counts of equal observations | counts |
    | hash | counts of observations with equal signs of random projections | counts |
    | rnd | error of a network that learnt to repeat a random one | median of hash counts |
    | elliptical | length of features in the metric of the logged ones | counts, for features of length 1 |
    | ensemble | spread of regressors of coin flips | counts |
    | behaviour | one over the root of the share of the action in the behaviour learnt | median of hash counts |

    Args:
        name: As in the table.
        **options: Of its class.

    Returns:
        The estimate, not fitted yet.

    Raises:
        ValueError: If the name is unknown, or an option out of range.
        TypeError: If an option is unknown.

    Example:
        >>> make_bonus("hash", bits=8).bits
        8
    """
    if name not in BONUSES:
        raise ValueError(f"bonus {name!r} is unknown: give one of {', '.join(map(repr, BONUSES))}")
    return BONUSES[name](**options)


def restore_bonus(tensors: Mapping[str, Tensor], extra: Mapping[str, Any], **options: Any) -> Bonus:
    """The estimate of a saved state.

    Args:
        tensors: Tensors by name, of `Bonus.state`.
        extra: JSON values, of `Bonus.state`.
        **options: Such as device=, and features= of "elliptical".

    Returns:
        The fitted estimate.

    Raises:
        ValueError: If the state is of no known bonus.
    """
    bonus = make_bonus(str(extra.get("bonus")), **options)
    bonus.restore(tensors, extra)
    return bonus

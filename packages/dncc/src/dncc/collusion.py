"""Collusion: diversity that members show on training data and that does not carry over to other data.

With ensemble_ce = ce - ambiguity on each split, the ensemble's generalisation gap has exactly two parts:
    ensemble_ce(val) - ensemble_ce(train) = [ce(val) - ce(train)] + [ambiguity(train) - ambiguity(val)]
The first is what the members lose on new data, the second is diversity that was learnt by heart.
"""

from dataclasses import dataclass, fields
from math import isfinite
from typing import SupportsFloat, final

from dncc.outputs import Measured

__all__ = ["Collusion", "collusion_between"]


@final
@dataclass(frozen=True)
class Collusion:
    """How much diversity does not carry over.

    Attributes:
        nats: ambiguity(train) - ambiguity(validation): what collusion adds to the ensemble's generalisation gap.
            Negative when members disagree more on new data, as members trained on their own do.
        share: `nats` as a share of the ensemble's generalisation gap; 0 if `nats` is negative.
    """

    nats: float
    share: float


def collusion_between(train: Measured, validation: Measured, floor: SupportsFloat = 0.02) -> Collusion:
    """The part of the ensemble's generalisation gap that diversity is to blame for.

    Args:
        train: The decomposition on training data, in evaluation mode or averaged over an epoch.
        validation: The same on data not trained on, with the same aggregate.
        floor: Nats below which a generalisation gap counts as this: a share of almost nothing is noise.

    Returns:
        Nats and share.

    Raises:
        ValueError: If `floor` is not positive or a number is not finite.

    Reference:
        Jeffares et al. (2023), Joint Training of Deep Ensembles Fails Due to Learner Collusion, NeurIPS; the split of
        the gap is the difference of two exact decompositions.

    Example:
        >>> found = collusion_between(Measured(0.69, 0.43, 0.26), Measured(0.93, 0.78, 0.15))
        >>> round(found.share, 3)  # 0.11 nats of a gap of 0.35
        0.314
    """
    least = float(floor)
    if not least > 0:
        raise ValueError(f"floor is {floor}; it must be a positive number of nats")
    for name, split in (("train", train), ("validation", validation)):
        if not all(isfinite(getattr(split, field.name)) for field in fields(split)):
            raise ValueError(
                f"the {name} measurement {split} is not finite: training has diverged, or a split is empty"
            )
    nats = train.ambiguity - validation.ambiguity
    gap = validation.ensemble_ce - train.ensemble_ce
    return Collusion(nats, max(0.0, nats) / max(gap, least))

"""What moved between two runs."""

import math
from dataclasses import dataclass

from common_core.claims._results import ClaimResult, Results
from common_core.stats import Estimate


@dataclass(frozen=True)
class Move:
    """One figure in two runs.

    Attributes:
        claim: The claim's id.
        metric: The metric's name.
        before: Its value in the first run; None where it was absent.
        after: Its value in the second run; None where it is absent.
    """

    claim: str
    metric: str
    before: Estimate | None
    after: Estimate | None

    @property
    def moved(self) -> bool:
        """Whether the two differ: by disjoint intervals where both have one, else by more than rounding."""
        if self.before is None or self.after is None:
            return True
        if None not in (self.before.low, self.before.high, self.after.low, self.after.high):
            return not self.before.overlaps(self.after)
        return not math.isclose(float(self.before), float(self.after), rel_tol=1e-9, abs_tol=1e-12)


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side.

    Attributes:
        verdicts: Claim id to verdict before and after; None where a run lacks the claim.
        moves: Every figure of every claim that is in both.
        settings: Names of settings that differ: figures are then not like for like.
    """

    verdicts: dict[str, tuple[str | None, str | None]]
    moves: tuple[Move, ...]
    settings: tuple[str, ...]

    @property
    def worse(self) -> tuple[str, ...]:
        """Claims of both runs that held before and do not now."""
        return tuple(
            key for key, pair in self.verdicts.items() if pair[0] == "holds" and pair[1] not in ("holds", None)
        )

    @property
    def alone(self) -> tuple[str, ...]:
        """Claims that only one of the runs has."""
        return tuple(key for key, pair in self.verdicts.items() if None in pair)


def compare(before: Results, after: Results) -> Comparison:
    """Set two runs side by side.

    Args:
        before: The earlier run.
        after: The later run.

    Returns:
        Verdicts and figures of both.
    """
    first = {result.id: result for result in before.claims}
    second = {result.id: result for result in after.claims}
    ids = sorted(first.keys() | second.keys())
    verdicts = {key: (_verdict(first.get(key)), _verdict(second.get(key))) for key in ids}
    moves = tuple(
        Move(key, name, first[key].metrics.get(name), second[key].metrics.get(name))
        for key in ids
        if key in first and key in second
        for name in dict.fromkeys((*first[key].metrics, *second[key].metrics))
    )
    names = ("scale", "seed", "device")
    changed = tuple(name for name in names if before.settings.get(name) != after.settings.get(name))
    return Comparison(verdicts, moves, changed)


def _verdict(result: ClaimResult | None) -> str | None:
    return None if result is None else result.verdict

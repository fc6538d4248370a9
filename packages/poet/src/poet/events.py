"""What a schedule consists of: a sequence of events.

- `compute i`: execute operation i. All its inputs are in RAM; its outputs are then in RAM too. Any output that was
  still there is replaced by its equal copy; both take space while the operation runs.
- `page_out v`: copy value v, which is in RAM, to a tier. The RAM copy stays until `free v`.
- `page_in v`: allocate value v in RAM and fill it from the copy in a tier. Space is taken when the event is issued.
- `free v`: give the RAM copy of v back. If a transfer still reads it, the event waits for the end of that transfer.
- `drop v`: give the copy of v in a tier back.

Transfers run beside the computation, one at a time in each direction of a tier, in the order of the events; an
operation waits for the transfers of its inputs. So RAM depends on the order of the events alone, never on speeds.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import final


class Kind(StrEnum):
    """The kind of an event."""

    COMPUTE = "compute"
    PAGE_OUT = "page_out"
    PAGE_IN = "page_in"
    FREE = "free"
    DROP = "drop"


@final
@dataclass(frozen=True, slots=True)
class Event:
    """One step of a schedule.

    Attributes:
        kind: What happens.
        target: Index of the operation (`compute`) or value (all others).
        tier: Index of the tier, in the order of the problem's tiers; -1 for `compute` and `free`.
    """

    kind: Kind
    target: int
    tier: int = -1


def compute(op: int) -> Event:
    """Execute operation `op`."""
    return Event(Kind.COMPUTE, op)


def page_out(value: int, tier: int = 0) -> Event:
    """Copy `value` to `tier`."""
    return Event(Kind.PAGE_OUT, value, tier)


def page_in(value: int, tier: int = 0) -> Event:
    """Bring `value` back from `tier`."""
    return Event(Kind.PAGE_IN, value, tier)


def free(value: int) -> Event:
    """Give the RAM of `value` back."""
    return Event(Kind.FREE, value)


def drop(value: int, tier: int = 0) -> Event:
    """Give the copy of `value` in `tier` back."""
    return Event(Kind.DROP, value, tier)


def computed(events: Iterable[Event]) -> list[int]:
    """The operations executed, in order, recomputations included."""
    return [event.target for event in events if event.kind is Kind.COMPUTE]

"""What engines are given and return: limits, status, events, bounds, certificates."""

from dataclasses import dataclass
from enum import StrEnum
from math import inf
from typing import final

from poet.events import Event


class Status(StrEnum):
    """How a search ended; the value is the sentence shown to the user."""

    OPTIMAL = "the schedule is optimal within its class"
    FEASIBLE = "the schedule is feasible; the gap says how far from optimal it can be at most"
    INFEASIBLE = "no schedule fits; see the explanation"
    UNKNOWN = "no schedule was found in the time given; raise time_limit or ram"


class ScheduleError(ValueError):
    """A schedule was asked for what it does not have."""


@final
@dataclass(frozen=True)
class Certificate:
    """What is proved about a schedule.

    Attributes:
        objective: Cost of the schedule, in the objective's units.
        lower_bound: Proved: no schedule of the class costs less.
        baseline: Cost of executing every operation once, with all the RAM in the world.
        solver: Which engine found the schedule.
        bound_by: Which relaxation proved the bound.
        optimality: The class in which the bound holds.
        seconds: Duration of the search.
    """

    objective: float
    lower_bound: float
    baseline: float
    solver: str
    bound_by: str
    optimality: str
    seconds: float

    @property
    def gap(self) -> float:
        """(objective − lower bound) / baseline: percentage points of the plain step, as a fraction."""
        if self.objective == self.lower_bound:
            return 0.0
        return (self.objective - self.lower_bound) / self.baseline if self.baseline else inf

    @property
    def overhead(self) -> float:
        """(objective − baseline) / baseline."""
        return (self.objective - self.baseline) / self.baseline if self.baseline else 0.0


@final
@dataclass(frozen=True)
class Found:
    """What an engine returns.

    Attributes:
        status: How the search ended.
        events: The schedule, if one was found.
        lower_bound: Best bound proved by this engine on the cost of any schedule of its class.
        engine: Name of the engine.
        seconds: Duration of the search.
    """

    status: Status
    events: tuple[Event, ...] | None
    lower_bound: float
    engine: str
    seconds: float


FRONTIER = (
    "schedules that execute operations for the first time, and again between two first times, in the graph's order"
)
"""The class of the paper's program (frontier-advancing), in which bounds hold and schedules are called optimal."""


@final
@dataclass(frozen=True)
class Limits:
    """How long an engine may search.

    Attributes:
        seconds: Wall-clock seconds.
        gap: Stop when (objective − bound) / baseline is at most this.
        workers: Threads.
        seed: Seed of the search.
    """

    seconds: float = 60.0
    gap: float = 1e-4
    workers: int = 1
    seed: int = 0

"""What a compiled step takes, for people."""

from dataclasses import dataclass
from typing import final

from poet.compiling_plan import Plan
from poet.units import show_bytes


@final
@dataclass(frozen=True)
class StepReport:
    """What a compiled step takes; bytes count everything torch holds for the step, static bytes included.

    Attributes:
        limit: Bytes allowed.
        planned: Bytes of the schedule at its peak.
        measured: Bytes that a trial run took at its peak.
        plain: Bytes of the plain step at its peak, as planned.
        static: Bytes that are always there: parameters, buffers, inputs, optimizer state.
        overhead: Modelled time (or cost) beyond the plain step's, as a fraction of it.
        gap: How far from the least possible cost the schedule is at most, as a fraction of the plain step's.
        recomputed: Operations executed again.
        paged_out: Transfers to tiers.
        paged_in: Transfers from tiers.
        tiers: Names of the tiers.
        tries: Schedules that were tried until one kept the limit.
    """

    limit: int
    planned: int
    measured: int
    plain: int
    static: int
    overhead: float
    gap: float
    recomputed: int
    paged_out: int
    paged_in: int
    tiers: tuple[str, ...]
    tries: int

    def __str__(self) -> str:
        """A few lines for people."""
        limit, planned, measured, plain, static = (
            show_bytes(b) for b in (self.limit, self.planned, self.measured, self.plain, self.static)
        )
        return (
            f"limit {limit}, planned {planned}, measured {measured}; the plain step: {plain} ({static} of it static)\n"
            f"{self.recomputed} recomputations, {self.paged_out} page-outs, {self.paged_in} page-ins; "
            f"modelled overhead {self.overhead:.2%}, within {self.gap:.2%} of the least possible"
        )


def report_of(plan: Plan) -> StepReport:
    """The report of a schedule that was tried."""
    schedule = plan.schedule
    proof, seen = schedule.certificate, schedule.replay
    assert proof is not None
    return StepReport(
        limit=plan.limit,
        planned=schedule.peak,
        measured=plan.measured,
        plain=plan.plain,
        static=schedule.problem.graph.static.total,
        overhead=proof.overhead,
        gap=proof.gap,
        recomputed=seen.recomputed,
        paged_out=seen.paged_out,
        paged_in=seen.paged_in,
        tiers=tuple(tier.name for tier in schedule.problem.tiers),
        tries=plan.tries,
    )

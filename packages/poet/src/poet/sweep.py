"""The trade between memory, time and energy: many schedules, each started from its neighbours."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

from poet.device import Device
from poet.explain import floor_ram
from poet.graph import Graph
from poet.plan import Schedule, rebound
from poet.problem import formulate
from poet.solving import solve


@final
@dataclass(frozen=True)
class Surface:
    """Schedules over limits of RAM and deadlines.

    Attributes:
        limits: Bytes, increasing.
        deadlines: As given, in the order given.
        schedules: `schedules[d][r]` for deadline d and limit r.
    """

    limits: tuple[int, ...]
    deadlines: tuple[float | str | None, ...]
    schedules: tuple[tuple[Schedule, ...], ...]

    def rows(self) -> list[dict[str, Any]]:
        """One row a schedule: limit, deadline, overhead, gap, seconds, modelled joules, peak, counts."""
        rows = []
        for deadline, line in zip(self.deadlines, self.schedules, strict=True):
            for limit, schedule in zip(self.limits, line, strict=True):
                row: dict[str, Any] = {"limit": limit, "deadline": deadline, "status": schedule.status.name}
                if schedule.certificate is not None:
                    seen = schedule.replay
                    row |= {
                        "overhead": schedule.certificate.overhead,
                        "gap": schedule.certificate.gap,
                        "seconds": seen.makespan,
                        "joules": seen.joules,
                        "peak": schedule.peak,
                        "recomputed": seen.recomputed,
                        "paged_out": seen.paged_out,
                    }
                rows.append(row)
        return rows

    def front(self) -> list[Schedule]:
        """The schedules that no other beats in limit, seconds and cost at once."""
        made = [s for line in self.schedules for s in line if s.certificate is not None]
        points = [(float(s.problem.limit), s.seconds, s.certificate.objective if s.certificate else 0.0) for s in made]

        def beaten(p: tuple[float, ...]) -> bool:
            return any(q != p and all(a <= b for a, b in zip(q, p, strict=True)) for q in points)

        return [s for s, p in zip(made, points, strict=True) if not beaten(p)]


def pareto(
    graph: Graph,
    device: Device,
    rams: Sequence[int | str] | int = 8,
    deadlines: Sequence[float | str | None] = (None,),
    *,
    on_schedule: Callable[[Schedule], None] | None = None,
    **options: Any,
) -> Surface:
    """Schedules over many limits of RAM and deadlines.

    Limits are taken in increasing order and each search starts from the schedules before it, which fit too: so the cost
    never grows with RAM or with the deadline. A bound proved under more RAM holds under less.

    Ctrl-C passes on: what `on_schedule` was given is what there is.

    Args:
        graph: The training step.
        device: The machine.
        rams: Limits as `solve` takes them; a number spreads that many evenly from the smallest that an operation allows
            to what the plain step needs.
        deadlines: Deadlines as `solve` takes them, shortest first.
        on_schedule: Called with each schedule when it is found.
        **options: Further options of `solve`; `time_limit` is for each schedule.

    Raises:
        ValueError: If `rams` is empty or an option is out of range.
    """
    limits = _limits(graph, device, rams)
    if not limits or not deadlines:
        raise ValueError("give at least one limit of RAM and one deadline")
    lines: list[tuple[Schedule, ...]] = []
    for deadline in deadlines:
        line: list[Schedule] = []
        for r, limit in enumerate(limits):
            near = [*line[-1:], *(above[r] for above in lines[-1:])]
            starts = [s.events for s in near if s.events is not None]
            line.append(solve(graph, device, limit, deadline, starts=starts, keep_interrupted=False, **options))
            if on_schedule is not None:
                on_schedule(line[-1])
        lines.append(_share_bounds(line))
    return Surface(tuple(limits), tuple(deadlines), tuple(lines))


def _limits(graph: Graph, device: Device, rams: Sequence[int | str] | int) -> list[int]:
    if not isinstance(rams, int):
        return sorted({formulate(graph, device, ram, objective="time", tiers=()).limit for ram in rams})
    if rams < 2:
        raise ValueError(f"give at least 2 limits, got {rams}")
    low = floor_ram(formulate(graph, device, 1, objective="time", tiers=()))
    high = graph.static.total + graph.resident_peak
    return sorted({low + (high - low) * k // (rams - 1) for k in range(rams)})


def _share_bounds(line: list[Schedule]) -> tuple[Schedule, ...]:
    """Under less RAM everything costs at least as much."""
    shared: list[Schedule] = []
    best, by = 0.0, ""
    for schedule in reversed(line):
        made = rebound(schedule, best, by)
        if made.certificate is not None and made.certificate.lower_bound > best:
            best, by = made.certificate.lower_bound, made.certificate.bound_by
        shared.append(made)
    return tuple(reversed(shared))

"""A schedule with its problem and its certificate: what `poet.solve` returns."""

import os
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any, final

from common_core.records import write_json_atomic
from poet.device import Device
from poet.events import Event
from poet.explain import Explanation
from poet.graph import Graph
from poet.io import events_from_json, events_to_json, load_json
from poet.problem import Objective, Problem
from poet.replay import Replay, replay
from poet.schedule import Certificate, ScheduleError, Status
from poet.units import show_bytes
from poet.verifier import Verdict, verify

SCHEMA = "repertory.poet.schedule/1"


@final
@dataclass(frozen=True, repr=False)
class Schedule:
    """A schedule of a training step, or the reason why there is none.

    Attributes:
        problem: What was asked.
        status: How the search ended.
        events: The schedule; None if none was found.
        certificate: What is proved about it; None without a schedule.
        explanation: Why nothing fits; None with a schedule.
    """

    problem: Problem
    status: Status
    events: tuple[Event, ...] | None
    certificate: Certificate | None
    explanation: Explanation | None = None

    def __repr__(self) -> str:
        made = f"{len(self.events)} events" if self.events is not None else "no events"
        return f"<Schedule of {self.problem.graph.name} on {self.problem.device.name}: {self.status.name}, {made}>"

    def __str__(self) -> str:
        return self.summary()

    def unwrap(self) -> "Schedule":
        """This schedule, if there is one.

        Raises:
            ScheduleError: Otherwise, with the explanation.
        """
        if self.events is None:
            raise ScheduleError(self.explanation.sentence if self.explanation else self.status.value)
        return self

    @cached_property
    def replay(self) -> Replay:
        """Memory, energy and time of the events.

        Raises:
            ScheduleError: If there is no schedule.
        """
        events = self.unwrap().events
        return replay(self.problem, events or ())

    @property
    def peak(self) -> int:
        """Most bytes at any moment, static bytes included."""
        return self.replay.peak + self.problem.graph.static.total

    @property
    def joules(self) -> float:
        """Modelled energy of a step."""
        return self.replay.joules

    @property
    def seconds(self) -> float:
        """Modelled duration of a step, waits for transfers included."""
        return self.replay.makespan

    def verify(self, graph: Graph | None = None) -> Verdict:
        """Judge the schedule independently of everything that made it.

        Args:
            graph: The graph to judge it on; its own unless given.

        Raises:
            ScheduleError: If there is no schedule.
        """
        problem, events = self.problem, self.unwrap().events
        return verify(
            graph or problem.graph, problem.device, events or (), limit=problem.limit, deadline=problem.deadline,
            paging=problem.paging, recompute=problem.recompute,
        )  # fmt: skip

    def summary(self) -> str:
        """A few lines for people; energy is modelled."""
        problem = self.problem
        head = f"{problem.graph.name} on {problem.device.name}, {show_bytes(problem.limit)} of RAM: {self.status.value}"
        if self.certificate is None:
            return head + (f"\n{self.explanation.sentence}" if self.explanation else "")
        proof, seen = self.certificate, self.replay
        lines = [
            head,
            f"overhead {proof.overhead:.3%} of the plain step's cost, at most {proof.gap:.3%} of it above the least",
            f"bound by {proof.bound_by}, {proof.optimality}",
        ]
        counts = f"{seen.recomputed} operations recomputed, {seen.paged_out} page-outs, {seen.paged_in} page-ins"
        lines.append(f"peak {show_bytes(self.peak)}; {seen.makespan:.4g} s; {counts}")
        if isfinite(seen.joules):
            lines.append(
                f"modelled energy {seen.joules:.4g} J: {seen.compute_joules:.4g} J computing, "
                f"{seen.paging_joules:.4g} J paging"
            )
        if problem.device.ram is not None and problem.limit > problem.device.ram:
            lines.append(f"the limit is more than the {show_bytes(problem.device.ram)} of RAM that the device has")
        lines.append(f"found by {proof.solver} in {proof.seconds:.1f} s")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The schedule as JSON holds it; the graph is named by its fingerprint."""
        problem = self.problem
        graph, tiers = problem.graph, [tier.name for tier in problem.tiers]
        return {
            "schema": SCHEMA,
            "graph": {"name": graph.name, "fingerprint": graph.fingerprint},
            "device": problem.device.to_json(),
            "limit": problem.limit,
            "deadline": problem.deadline if isfinite(problem.deadline) else None,
            "objective": asdict(problem.objective),
            "paging": problem.paging,
            "recompute": problem.recompute,
            "status": self.status.name,
            "certificate": asdict(self.certificate) if self.certificate else None,
            "explanation": asdict(self.explanation) if self.explanation else None,
            "events": None if self.events is None else events_to_json(self.events, graph, tiers),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the schedule to a JSON file, atomically."""
        write_json_atomic(Path(path), self.to_json())

    @staticmethod
    def load(path: str | os.PathLike[str], graph: Graph) -> "Schedule":
        """Read a schedule of `graph`.

        Raises:
            FormatError: If the file is not a schedule, or one of another graph.
        """
        return load_json(path, SCHEMA, lambda content: schedule_from_json(content, graph), "Schedule.save")


def schedule_from_json(content: dict[str, Any], graph: Graph) -> Schedule:
    """The schedule of `graph` that `to_json` gave.

    Raises:
        ValueError: If an entry is missing or not what it should be.
    """
    try:
        return _from_json(content, graph)
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a schedule: {error!r} is missing or of the wrong type") from None


def _from_json(content: dict[str, Any], graph: Graph) -> Schedule:
    device = Device.from_json(content["device"])
    deadline = float("inf") if content["deadline"] is None else float(content["deadline"])
    problem = Problem(
        graph, device, int(content["limit"]), deadline, Objective(**content["objective"]), content["paging"],
        bool(content["recompute"]),
    )  # fmt: skip
    events = content["events"]
    return Schedule(
        problem,
        Status[content["status"]],
        None if events is None else events_from_json(events, graph, [tier.name for tier in device.tiers]),
        Certificate(**content["certificate"]) if content["certificate"] else None,
        Explanation(**content["explanation"]) if content["explanation"] else None,
    )


def rebound(schedule: Schedule, lower_bound: float, bound_by: str) -> Schedule:
    """The schedule with a better bound that was proved elsewhere."""
    proof = schedule.certificate
    if proof is None or lower_bound <= proof.lower_bound:
        return schedule
    return replace(schedule, certificate=replace(proof, lower_bound=lower_bound, bound_by=bound_by))

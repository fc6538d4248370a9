"""Replaying a schedule: memory, costs and time of its events.

Fast, and trusting: the engines use it on schedules of their own making. `poet.verify` judges them independently.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Int

from poet.events import Event, Kind
from poet.problem import Problem


class ReplayError(ValueError):
    """An event that cannot happen: an input that is not in RAM, a copy that was never made."""


@final
@dataclass(frozen=True)
class Replay:
    """What the events of a schedule add up to.

    Attributes:
        memory: Bytes of values, copies in RAM and workspace while each event happens.
        cost: In the units of the objective, transfers at their full duration under `"serial"` and as the linear
            engines see them otherwise.
        compute_joules: Modelled energy of all computation.
        paging_joules: Modelled energy of all transfers.
        compute_seconds: Time spent computing.
        linear_seconds: Time as the linear engines see it: computation and what is shown of the transfers.
        makespan: Duration of the step, waits for transfers included.
        recomputed: Operations executed beyond their first time.
        paged_out: Transfers to tiers.
        paged_in: Transfers from tiers.
    """

    memory: Int[np.ndarray, " events"]
    cost: float
    compute_joules: float
    paging_joules: float
    compute_seconds: float
    linear_seconds: float
    makespan: float
    recomputed: int
    paged_out: int
    paged_in: int

    @property
    def peak(self) -> int:
        """Most bytes at any event."""
        return int(self.memory.max(initial=0))

    @property
    def joules(self) -> float:
        """Modelled energy."""
        return self.compute_joules + self.paging_joules


def replay(problem: Problem, events: Sequence[Event]) -> Replay:
    """Execute the events on paper.

    Raises:
        ReplayError: If an event cannot happen, or the step ends without its operations or kept values.
    """
    state = _State(problem)
    memory = np.array([state.step(event) for event in events], dtype=np.int64)
    state.finish()
    counts = state.counts
    op_counts = np.array(state.executed, dtype=float)
    cost = float(problem.op_cost @ op_counts)
    cost += float((problem.out_cost * state.outs).sum() + (problem.in_cost * state.ins).sum())
    transfers = (problem.write_joules * state.outs).sum() + (problem.read_joules * state.ins).sum()
    seconds = float(problem.op_seconds @ op_counts)
    shown = problem.shown[:, None] * (problem.write_seconds * state.outs + problem.read_seconds * state.ins)
    return Replay(
        memory,
        cost,
        float(problem.op_joules @ op_counts),
        float(transfers),
        seconds,
        seconds + float(shown.sum()),
        state.clock.end(),
        counts[Kind.COMPUTE] - len(problem.graph.ops),
        counts[Kind.PAGE_OUT],
        counts[Kind.PAGE_IN],
    )


class _Clock:
    """When everything happens: one processor, and one channel in each direction of a tier."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.now = 0.0
        self.channel: dict[tuple[int, bool], float] = {}
        self.ready: dict[int, float] = {}  # value -> when its RAM copy is complete
        self.read_until: dict[int, float] = {}  # value -> until when a transfer reads its RAM copy
        self.written: dict[tuple[int, int], float] = {}  # (value, tier) -> when its copy there is complete

    def compute(self, inputs: Sequence[int], outputs: Sequence[int], seconds: float) -> None:
        arrivals = [self.ready.get(v, 0.0) for v in inputs]
        for v in outputs:  # a transfer still reads or fills the copy to be replaced
            arrivals += [self.read_until.pop(v, 0.0), self.ready.get(v, 0.0)]
        self.now = max(self.now, 0.0, *arrivals) + seconds
        for v in outputs:
            self.ready[v] = self.now

    def transfer(self, v: int, tier: int, write: bool) -> None:
        problem = self.problem
        seconds = float((problem.write_seconds if write else problem.read_seconds)[tier, v])
        after = self.ready.get(v, 0.0) if write else self.written[v, tier]
        if problem.paging == "free":
            seconds = 0.0
        if problem.paging == "serial" or problem.tiers[tier].in_ram:
            self.now = end = max(self.now, after) + seconds
        else:
            key = (tier, write and problem.tiers[tier].duplex)
            end = max(self.now, after, self.channel.get(key, 0.0)) + seconds
            self.channel[key] = end
        if write:
            self.written[v, tier] = end
            self.read_until[v] = max(end, self.read_until.get(v, 0.0))
        else:
            self.ready[v] = end

    def free(self, v: int) -> None:
        self.now = max(self.now, self.read_until.pop(v, 0.0), self.ready.pop(v, 0.0))

    def end(self) -> float:
        return max(self.now, *self.ready.values(), *self.channel.values(), 0.0)


class _State:
    """What is where."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.resident: set[int] = set()
        self.copies: set[tuple[int, int]] = set()
        self.used = 0
        self.sizes = problem.sizes.tolist()
        self.stored = problem.stored.tolist()
        self.executed = [0] * len(problem.graph.ops)
        self.outs = np.zeros((len(problem.tiers), len(self.sizes)))
        self.ins = np.zeros_like(self.outs)
        self.counts = dict.fromkeys(Kind, 0)
        self.clock = _Clock(problem)

    def step(self, event: Event) -> int:
        self.counts[event.kind] += 1
        if event.kind is Kind.COMPUTE:
            return self._compute(event.target)
        return getattr(self, f"_{event.kind.value}")(event.target, event.tier)

    def finish(self) -> None:
        graph = self.problem.graph
        for i, times in enumerate(self.executed):
            if not times:
                raise ReplayError(f"operation {graph.ops[i].name!r} is never executed")
        for v, value in enumerate(graph.values):
            if value.keep and v not in self.resident:
                raise ReplayError(f"value {value.name!r} must be in RAM at the end and is not")

    def _compute(self, i: int) -> int:
        op = self.problem.graph.ops[i]
        for v in op.inputs:
            self._needs(v, op.name)
        self.executed[i] += 1
        made = sum(self.sizes[v] for v in op.outputs)
        peak = self.used + made + op.workspace
        self.used += made - sum(self.sizes[v] for v in op.outputs if v in self.resident)
        self.resident.update(op.outputs)
        self.clock.compute(op.inputs, op.outputs, float(self.problem.op_seconds[i]))
        return peak

    def _page_out(self, v: int, tier: int) -> int:
        self._needs(v, "page_out")
        if (v, tier) not in self.copies and self.problem.tiers[tier].in_ram:
            self.used += self.stored[tier][v]
        self.copies.add((v, tier))
        self.outs[tier, v] += 1
        self.clock.transfer(v, tier, write=True)
        return self.used

    def _page_in(self, v: int, tier: int) -> int:
        name = self.problem.graph.values[v].name
        if (v, tier) not in self.copies:
            raise ReplayError(f"value {name!r} is paged in from a tier that holds no copy of it")
        if v in self.resident:
            raise ReplayError(f"value {name!r} is paged in while it is in RAM")
        self.resident.add(v)
        self.used += self.sizes[v]
        self.ins[tier, v] += 1
        self.clock.transfer(v, tier, write=False)
        return self.used

    def _free(self, v: int, _tier: int) -> int:
        self._needs(v, "free")
        before = self.used
        self.resident.remove(v)
        self.used -= self.sizes[v]
        self.clock.free(v)
        return before

    def _drop(self, v: int, tier: int) -> int:
        before = self.used
        if (v, tier) not in self.copies:
            raise ReplayError(f"a copy of {self.problem.graph.values[v].name!r} is dropped that is not there")
        self.copies.remove((v, tier))
        if self.problem.tiers[tier].in_ram:
            self.used -= self.stored[tier][v]
        return before

    def _needs(self, v: int, purpose: str) -> None:
        if v not in self.resident:
            raise ReplayError(f"value {self.problem.graph.values[v].name!r} is not in RAM when {purpose!r} needs it")

r"""A lower bound on the makespan of every schedule of the same passes and transfers.

Whatever the order, a device (or a link) works on one thing at a time. A pass cannot start before what leads to it has
been done for its microbatch, and what follows from it still has to be done after it. For every set S of passes of a
device

$$ \text{makespan} \ge \min_{S} r + \sum_{S} p + \min_{S} q, $$

with heads r, durations p and tails q: longest paths through the passes and transfers of one microbatch. The largest of
these bounds (the preemptive one-machine bound of Jackson) is reached by a set of the form {r >= a, q >= b}: enlarging a
set to all passes whose head and tail are no less than its least ones changes neither minimum.

Reference: J. Carlier 1982, The one-machine sequencing problem, European Journal of Operational Research 11.
"""

from collections.abc import Iterable, Sequence
from typing import final

from xmesh_reshard.pipeline.costs import Costs
from xmesh_reshard.pipeline.instructions import Instruction, Message, Op, wiring

_Task = tuple[float, float, float]  # head, duration, tail


def lower_bound(
    placement: Sequence[int],
    microbatches: int,
    costs: Costs,
    *,
    split: bool,
    overlap: bool = True,
    shared_port: bool = False,
) -> float:
    """Seconds that no schedule of these passes on these devices goes below, whatever the orders.

    Args:
        placement: The device of each stage.
        microbatches: m.
        costs: Seconds of passes and transfers.
        split: Whether backward passes are split into B and W.
        overlap: Whether messages travel beside the computation; else a device is taken as long as it sends.
        shared_port: With overlap: whether everything that a device sends shares one outgoing port.
    """
    if microbatches == 0:
        return 0.0
    paths = _Paths(placement, costs, split=split, overlap=overlap)
    machines: dict[tuple[int, ...], list[_Task]] = {}
    for step in paths.steps:
        device = placement[step.stage]
        block = paths.block(step)
        head = paths.head[step]
        machines.setdefault((device,), []).append((head, block, max(0.0, paths.length[step] - block)))
        for message in paths.away(step) if overlap else ():
            link = (device, -1 if shared_port else placement[message.target])
            tail = paths.length[message.consumer]
            task = (head + costs.compute(step), costs.transfer(message), tail)
            machines.setdefault(link, []).append(task)
    return max(one_machine_bound(tasks, microbatches) for tasks in machines.values())


def one_machine_bound(tasks: Iterable[tuple[float, float, float]], copies: int = 1) -> float:
    """The largest of min r + sum p + min q over sets of tasks.

    Args:
        tasks: Head r, duration p and tail q of each.
        copies: How many there are of each task.

    Example:
        >>> one_machine_bound([(0.0, 2.0, 5.0), (3.0, 1.0, 1.0)])
        7.0
        >>> one_machine_bound([(0.0, 2.0, 5.0), (3.0, 1.0, 1.0)], copies=4)
        13.0
    """
    given = list(tasks)
    return max(
        (
            a + copies * sum(p for r, p, q in given if r >= a and q >= b) + b
            for a in {r for r, _, _ in given}
            for b in {q for _, _, q in given}
            if any(r >= a and q >= b for r, _, q in given)
        ),
        default=0.0,
    )


@final
class _Paths:
    """Longest paths through the passes and transfers of one microbatch."""

    def __init__(self, placement: Sequence[int], costs: Costs, *, split: bool, overlap: bool) -> None:
        self.placement, self.costs, self.split, self.overlap = placement, costs, split, overlap
        self.wires = wiring(len(placement), costs.skips)
        stages = range(len(placement))
        self.steps = [Instruction(Op.F, s, 0) for s in stages]  # in an order in which what leads to a pass is before it
        self.steps += [Instruction(Op.B, s, 0) for s in reversed(stages)]
        self.steps += [Instruction(Op.W, s, 0) for s in stages if split]
        following = {step: self._following(step) for step in self.steps}
        self.head = dict.fromkeys(self.steps, 0.0)
        for step in self.steps:
            for follower, lag in following[step]:
                self.head[follower] = max(self.head[follower], self.head[step] + lag)
        self.length: dict[Instruction, float] = {}  # from the start of a pass to the end of all that follows
        for step in reversed(self.steps):
            self.length[step] = max(
                self.block(step), *(lag + self.length[after] for after, lag in following[step]), 0.0
            )

    def away(self, step: Instruction) -> list[Message]:
        """What a pass sends to other devices."""
        return [m for m in self.wires.sends(step) if self.placement[m.source] != self.placement[m.target]]

    def block(self, step: Instruction) -> float:
        """Seconds for which a pass takes its device."""
        sends = 0.0 if self.overlap else sum(self.costs.transfer(m) for m in self.away(step))
        return self.costs.compute(step) + sends

    def _following(self, step: Instruction) -> list[tuple[Instruction, float]]:
        """What follows from a pass, and how long after its start that can start at the earliest."""
        end, sent = self.costs.compute(step), 0.0
        away = self.away(step)
        found = [(m.consumer, end) for m in self.wires.sends(step) if m not in away]
        for message in away:
            seconds = self.costs.transfer(message)
            found.append((message.consumer, end + sent + seconds))
            sent += 0.0 if self.overlap else seconds
        after = {Op.F: Op.B, Op.B: Op.W if self.split else None, Op.W: None}[step.op]
        if after is not None:
            found.append((Instruction(after, step.stage, 0), self.block(step)))
        return found

"""What makes lists of instructions a schedule: complete, each where its stage is, in an order that can be run."""

from collections import Counter
from collections.abc import Sequence

from xmesh_reshard.pipeline.instructions import Instruction, Message, Op, wiring


class ScheduleError(ValueError):
    """Lists of instructions that are no schedule."""


def check(orders: Sequence[Sequence[Instruction]], placement: Sequence[int], microbatches: int) -> None:
    """Raise unless the lists run every pass of every stage once, and in-order devices can run them.

    They can if no cycle of waits arises where a device waits for what it receives but never to send. Skip connections
    add none: they bind the same passes of stages in the same direction as the chain, which binds them already.

    Args:
        orders: The instructions of each device, in order.
        placement: The device of each stage.
        microbatches: How many.

    Raises:
        ScheduleError: If a pass is missing, twice, unknown or on another device than its stage; if a device runs B
            before F, or W before B; or if devices wait for each other.
    """
    if len(orders) != len(set(placement)) or set(placement) != set(range(len(orders))):
        raise ScheduleError(f"placement must name each of {len(orders)} devices, got {tuple(placement)}")
    split = any(step.op is Op.W for order in orders for step in order)
    ops = (Op.F, Op.B, Op.W) if split else (Op.F, Op.B)
    seen = Counter(step for order in orders for step in order)
    wanted = {Instruction(op, s, k) for op in ops for s in range(len(placement)) for k in range(microbatches)}
    for step, times in seen.items():
        if step not in wanted:
            raise ScheduleError(f"{step} is no pass of {len(placement)} stages and {microbatches} microbatches")
        if times > 1:
            raise ScheduleError(f"{step} is run {times} times; each pass is run once")
    if len(seen) < len(wanted):
        raise ScheduleError(f"{min(wanted - set(seen))} is never run; each pass is run once")
    for d, order in enumerate(orders):
        _check_device(d, order, placement)
    _check_waits(orders, len(placement))


def _check_device(device: int, order: Sequence[Instruction], placement: Sequence[int]) -> None:
    before = {Op.B: Op.F, Op.W: Op.B}
    done: set[Instruction] = set()
    for step in order:
        if placement[step.stage] != device:
            raise ScheduleError(f"device {device} runs {step}, which is on device {placement[step.stage]}")
        if step.op in before and Instruction(before[step.op], step.stage, step.microbatch) not in done:
            raise ScheduleError(f"device {device} runs {step} before its {before[step.op]}")
        done.add(step)


def _check_waits(orders: Sequence[Sequence[Instruction]], stages: int) -> None:
    """Let every device run as far as what has arrived allows, until all are done or none gets on."""
    chain = wiring(stages)
    arrived: set[Message] = set()
    at = [0] * len(orders)
    waiting: dict[Message, int] = {}  # device by what it waits for
    awake = list(range(len(orders)))
    while awake:
        d = awake.pop()
        while at[d] < len(orders[d]):
            step = orders[d][at[d]]
            missing = next((message for message in chain.receives(step) if message not in arrived), None)
            if missing is not None:
                waiting[missing] = d
                break
            at[d] += 1
            for message in chain.sends(step):
                arrived.add(message)
                if message in waiting:
                    awake.append(waiting.pop(message))
    if waiting:
        stuck = "; ".join(f"device {d} waits for {message}" for message, d in sorted(waiting.items()))
        raise ScheduleError(f"devices wait for each other: {stuck}")

"""In which order each device runs its instructions: the rules of the known schedules.

Every rule has the same three phases: forward passes until the first backward pass has arrived, then backward and
forward passes in turn, then the backward passes that are left.

Reference:
    Huang et al. 2019, GPipe, arXiv:1811.06965; Narayanan et al. 2021, arXiv:2104.04473 (1F1B, interleaved);
    Zhuang et al. 2023, arXiv:2211.05322, Section 4 (eager-1F1B, weight delaying); Qi et al. 2024, Zero Bubble Pipeline
    Parallelism, arXiv:2401.10241.
"""

from collections.abc import Sequence

from xmesh_reshard.pipeline.instructions import Instruction, Op

Order = tuple[Instruction, ...]


def gpipe(stages: int, microbatches: int) -> tuple[Order, ...]:
    """Every forward pass, then every backward pass, both in ascending order of the microbatches.

    Example:
        >>> [str(step.op) for step in gpipe(2, 3)[0]]
        ['F', 'F', 'F', 'B', 'B', 'B']
    """
    return tuple(_alternating(stage, microbatches, microbatches) for stage in range(stages))


def one_f_one_b(
    stages: int, microbatches: int, *, eager: bool = False, max_inflight: int | None = None
) -> tuple[Order, ...]:
    """One backward and one forward pass in turn, after as many forward passes as there are stages to go.

    Stage i of p runs w_i = p - i forward passes before its first backward pass, or 2(p - i) - 1 if eager: two for every
    stage after it, so that a transfer each way fits between neighbours without a wait.

    Args:
        stages: p.
        microbatches: m; w_i is at most m.
        eager: Which rule.
        max_inflight: The most activations that a device may hold, at least 1: w_i is at most that.

    Example:
        >>> [sum(1 for step in order[:9] if step.op == "F") for order in one_f_one_b(4, 16, eager=True)]
        [8, 7, 6, 5]
    """
    widths = [2 * (stages - i) - 1 if eager else stages - i for i in range(stages)]
    return tuple(_alternating(i, microbatches, min(w, max_inflight or w)) for i, w in enumerate(widths))


def zero_bubble(stages: int, microbatches: int, max_inflight: int) -> tuple[Order, ...]:
    """Backward passes split into B and W; what a device may hold beyond what it needs puts its W off.

    Stage i of p runs w_i = min(p - i + e, L) forward passes before its first B, where L is `max_inflight` and
    e = min(p - i - 1, L - p) if that is positive: 1F1B for L = p (ZB-H1), eager-1F1B for L = 2p - 1 (ZB-H2). Its W are
    L - w_i microbatches behind its B: gradients of inputs go out first, and W fills the end.

    Args:
        stages: p.
        microbatches: m.
        max_inflight: L, at least 1: activations that a device may hold, from F to W.

    Example:
        >>> [" ".join(f"{s.op}{s.microbatch}" for s in order) for order in zero_bubble(2, 3, 2)]
        ['F0 F1 B0 W0 F2 B1 W1 B2 W2', 'F0 B0 F1 B1 W0 F2 B2 W1 W2']
    """
    orders: list[Order] = []
    for i in range(stages):
        width = min(stages - i + max(0, min(stages - i - 1, max_inflight - stages)), max_inflight)
        orders.append(_delayed(i, microbatches, width, max_inflight - width))
    return tuple(orders)


def interleaved(stages: int, microbatches: int, chunks: int) -> tuple[Order, ...]:
    """Megatron's interleaved 1F1B: device d holds the stages d, d + p, d + 2p, ... of a model of p v stages.

    The microbatches form ⌊m/p⌋ groups (one if m < p) whose sizes differ by at most one. A device takes a group through
    its first chunk, then through the next; backward passes take the chunks the other way round. With N the size of the
    largest group, it runs 2(p - 1 - d) + (v - 1) N + 1 forward passes before its first backward pass.
    Megatron's own order is the case of m = multiple of p, N = p; with one chunk the order is that of eager-1F1B.

    Args:
        stages: Number p of devices.
        microbatches: m.
        chunks: Stages v that each device holds.
    """
    count = max(1, microbatches // stages)
    groups = [range(microbatches * g // count, microbatches * (g + 1) // count) for g in range(count)]
    largest = max(len(group) for group in groups)
    ups = [(chunk, k) for group in groups for chunk in range(chunks) for k in group]
    downs = [(chunk, k) for group in groups for chunk in reversed(range(chunks)) for k in group]
    orders: list[Order] = []
    for d in range(stages):
        forward = [Instruction(Op.F, chunk * stages + d, k) for chunk, k in ups]
        backward = [Instruction(Op.B, chunk * stages + d, k) for chunk, k in downs]
        orders.append(_merged(forward, backward, 2 * (stages - 1 - d) + (chunks - 1) * largest + 1))
    return tuple(orders)


def with_weight_delaying(orders: Sequence[Order]) -> tuple[Order, ...]:
    """Every B split into B and W: the gradient of the input leaves at once, and W runs while it is under way.

    Reference: Zhuang et al. 2023, Section 4 (backward weight delaying).

    Example:
        >>> [" ".join(f"{s.op}{s.microbatch}" for s in order) for order in with_weight_delaying(gpipe(1, 2))]
        ['F0 F1 B0 W0 B1 W1']
    """
    return tuple(
        tuple(
            step
            for instruction in order
            for step in (
                (instruction, Instruction(Op.W, instruction.stage, instruction.microbatch))
                if instruction.op is Op.B
                else (instruction,)
            )
        )
        for order in orders
    )


def _alternating(stage: int, microbatches: int, width: int) -> Order:
    forward = [Instruction(Op.F, stage, k) for k in range(microbatches)]
    backward = [Instruction(Op.B, stage, k) for k in range(microbatches)]
    return _merged(forward, backward, width)


def _merged(forward: Sequence[Instruction], backward: Sequence[Instruction], width: int) -> Order:
    """`width` forward passes, then a backward and a forward pass in turn, then the backward passes left."""
    ahead = min(width, len(forward))
    order = list(forward[:ahead])
    for at, step in enumerate(backward):
        order.append(step)
        order += forward[ahead + at : ahead + at + 1]
    return tuple(order)


def _delayed(stage: int, microbatches: int, width: int, delay: int) -> Order:
    """`_alternating` with W of the microbatch `delay` before after each B, and what is left of them at the end."""
    order: list[Instruction] = []
    for step in _alternating(stage, microbatches, width):
        order.append(step)
        if step.op is Op.B and step.microbatch >= delay:
            order.append(Instruction(Op.W, stage, step.microbatch - delay))
    order += [Instruction(Op.W, stage, k) for k in range(max(0, microbatches - delay), microbatches)]
    return tuple(order)

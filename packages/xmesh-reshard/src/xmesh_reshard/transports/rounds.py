"""The plan in rounds, for networks that work through what they are told in one order, as a CUDA stream does."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from xmesh_reshard.plans import Plan, Program, Step
from xmesh_reshard.transports.buffers import Pool
from xmesh_reshard.transports.channels import Pending
from xmesh_reshard.transports.executor import Report, spans_of, sums, verify
from xmesh_reshard.transports.packing import Packer


@runtime_checkable
class RoundChannel(Protocol):
    """Links that take several sends and receives together and complete them together."""

    def exchange(self, sends: Sequence[tuple[int, Any]], receives: Sequence[tuple[int, Any]]) -> Pending:
        """Start sends (target, bytes) and receives (source, bytes) as one."""
        ...


def depths(plan: Plan, device: int) -> dict[int, int]:
    """How many hops a device is from the first sender, for each of its messages."""
    t, found = plan.tables, {}
    of_hop = np.repeat(np.arange(len(t.nbytes)), np.diff(t.hop_ptr))
    for m in np.unique(of_hop[(t.hop_source == device) | (t.hop_target == device)]).tolist():
        legs = slice(int(t.hop_ptr[m]), int(t.hop_ptr[m + 1]))
        depth = {int(t.hop_source[legs][0]): 0}
        for source, target in zip(t.hop_source[legs].tolist(), t.hop_target[legs].tolist(), strict=True):
            depth[target] = depth[source] + 1
        found[m] = depth[device]
    return found


def execute_rounds(
    program: Program,
    hops: Mapping[int, int],
    packer: Packer,
    channel: RoundChannel,
    *,
    checksum: bool = False,
    tick: Callable[[], None] = lambda: None,
) -> tuple[dict[str, Any], Report]:
    """Do what the plan says for one device, in rounds that each complete before the next begins.

    In round t of a message a device d hops from the sender receives chunk t - d + 1 from its parent while it sends
    chunk t - d to its children. Both ends of a hop do a chunk in the same round: d + 1 - 1 = d. Rounds are ordered by
    message and t alike on all devices, so the first round that is not complete has all its devices waiting in it: no
    deadlock, though every device works through one strict order. Nothing here waits for the network unless the
    channel's ``wait`` does, so on a GPU the whole plan is handed to a stream.

    Args:
        program: What to do.
        hops: From :func:`depths`.
        packer: This device's parts.
        channel: Its links.
        checksum: Compare checksums; waits for each message.
        tick: Called after each message.

    Returns:
        Its new parts, and a report.
    """
    pool = Pool(packer.buffer)
    counts = dict.fromkeys(("bytes_sent", "bytes_received", "sends", "receives", "checked"), 0)
    began = time.perf_counter()
    packer.copy(program.copies)
    for step in program.steps:
        taken: list[Any] = []

        def take(nbytes: int, taken: list[Any] = taken) -> Any:
            taken.append(pool.take(nbytes))
            return taken[-1]

        _message(step, hops[step.message], packer, channel, take, checksum, counts)
        for block in taken:
            pool.give(block)
        tick()
    seconds = time.perf_counter() - began
    return packer.new, Report(packer.device, len(program.steps), buffer_peak=pool.peak, seconds=seconds, **counts)


def _message(
    step: Step,
    depth: int,
    packer: Packer,
    channel: RoundChannel,
    take: Callable[[int], Any],
    checksum: bool,
    counts: dict[str, int],
) -> None:
    ready = (packer.outgoing if step.parent is None else packer.incoming)(step.pieces, take)
    buffer, direct = ready
    chunks = [buffer[first:end] for first, end in spans_of(step)]
    if checksum:
        trailer = packer.buffer(4 * len(chunks))
        if step.parent is None:
            packer.fill(trailer, sums(step, packer, buffer))
        chunks.append(trailer)
    for receive, send in _turns(depth, len(chunks)):
        receives = [] if receive is None or step.parent is None else [(step.parent, chunks[receive])]
        sends = [] if send is None else [(child, chunks[send]) for child in step.children]
        if sends or receives:
            channel.exchange(sends, receives).wait()
    n = len(spans_of(step))
    counts["sends"] += n * len(step.children)
    counts["bytes_sent"] += step.nbytes * len(step.children)
    if step.parent is not None:
        counts["receives"] += n
        counts["bytes_received"] += step.nbytes
        if checksum:
            counts["checked"] += verify(step, packer, buffer, chunks[-1])
        if not direct:
            packer.unpack(step.pieces, buffer)


def _turns(depth: int, chunks: int) -> Iterator[tuple[int | None, int | None]]:
    """Chunk received and chunk sent in each round."""
    for t in range(max(depth - 1, 0), depth + chunks):
        receive, send = t - depth + 1, t - depth
        yield (receive if depth and receive < chunks else None), (send if send >= 0 else None)

"""What one device does with its program: receive, pass on, pack, unpack, in the plan's order."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np

from xmesh_reshard.plans import Plan, Program, Step
from xmesh_reshard.transports.buffers import Pool
from xmesh_reshard.transports.channels import Channel, Pending
from xmesh_reshard.transports.errors import CorruptedError
from xmesh_reshard.transports.packing import Packer

LARGEST = 2**28  # bytes in one send: frameworks count bytes in 32 bits in places
LOOKAHEAD = 2**16  # bytes awaited beyond which no further message is prepared for: only small ones need company


@final
@dataclass(frozen=True)
class Report:
    """What one device did.

    Attributes:
        device: The device.
        messages: Messages it took part in.
        bytes_sent: Bytes it sent, without checksums.
        bytes_received: Bytes it received.
        sends: Chunks it sent, to each child counted.
        receives: Chunks it received.
        buffer_peak: Most bytes its buffers held, besides old and new parts.
        checked: Chunks whose checksums were compared.
        seconds: From the first to the last byte.
    """

    device: int
    messages: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    sends: int = 0
    receives: int = 0
    buffer_peak: int = 0
    checked: int = 0
    seconds: float = 0.0


def program_of(plan: Plan, device: int) -> Program:
    """The program of a device, empty for one that takes no part; messages without bytes are left out."""
    if device not in plan.devices:
        return Program(device, (), ())
    program = plan.program(device)
    return Program(device, program.copies, tuple(step for step in program.steps if step.nbytes))


def spans_of(step: Step) -> list[tuple[int, int]]:
    """First byte and end of each chunk as it is sent; chunks of more than 256 MiB are cut again."""
    size = min(step.chunk, LARGEST)
    return [(first, min(first + size, step.nbytes)) for first in range(0, step.nbytes, size)]


def execute(
    program: Program,
    packer: Packer,
    channel: Channel,
    *,
    checksum: bool = False,
    window: int = 2,
    tick: Callable[[], None] = lambda: None,
) -> tuple[dict[str, Any], Report]:
    """Do what the plan says for one device.

    No deadlock: all devices enter messages in the one order of the plan, and leave the oldest first. Take the first
    message that some device has not left. Each of its devices has left all earlier ones, so it is the oldest there, and
    is being worked on: the sender sends without waiting for anything else, and by induction along the tree each
    receiver gets the next chunk and passes it on. So this message goes on, and with it, one after the other, all.
    Channels that block in ``isend`` need ``window=1``: then nothing of a later message is begun before the older one
    is left.

    A message occupies a buffer while it is under way (none where the bytes lie together in the old or new part), so
    ``window`` bounds the memory.

    Args:
        program: What to do, of the same plan on all devices: :func:`program_of`.
        packer: This device's parts: a :class:`~xmesh_reshard.transports.packing.NumpyPacker` or another. Making it
            checks the parts, so errors in what is given come before the first byte.
        channel: Its links to the other devices.
        checksum: Send CRC-32 sums of all chunks after each message and compare them at each receiver.
        window: Messages under way at this device at a time.
        tick: Called after each message, to show that there is progress.

    Returns:
        Its part of each tensor by the target layouts (new arrays), and a report.

    Raises:
        CorruptedError: A chunk arrived changed.
        TransportError: A peer is lost, or the execution was aborted.
    """
    if window < 1:
        raise ValueError(f"window is the number of messages under way, at least 1; got {window}")
    return _Run(packer, program, channel, checksum, window, tick).all()


def verify(step: Step, packer: Packer, buffer: Any, trailer: Any) -> int:
    """Compare a received message with the checksums that came after it.

    Returns:
        Number of chunks compared.

    Raises:
        CorruptedError: Names the message, its tensors, the devices and the chunk.
    """
    expected = np.frombuffer(packer.raw(trailer).tobytes(), "<u4").tolist()
    for k, ((first, end), want) in enumerate(zip(spans_of(step), expected, strict=True)):
        if packer.checksum(buffer[first:end]) != want:
            names = sorted({piece.tensor for piece in step.pieces})
            shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
            raise CorruptedError(
                f"message {step.message} ({shown}) arrived changed at device {packer.device} from device {step.parent}:"
                f" chunk {k}, bytes {first} to {end}; run it again, and look for bad memory or a bad link if it recurs"
            )
    return len(expected)


def sums(step: Step, packer: Packer, buffer: Any) -> bytes:
    """The checksums of a message's chunks, 4 bytes each."""
    return np.array([packer.checksum(buffer[a:b]) for a, b in spans_of(step)], "<u4").tobytes()


@dataclass
class _Active:
    """A message under way."""

    step: Step
    buffer: Any
    direct: bool
    blocks: list[Any]
    receives: deque[Pending] = field(default_factory=deque)
    sends: list[Pending] = field(default_factory=list)
    pumped: bool = False


@final
class _Run:
    """One device at work; see :func:`execute`."""

    def __init__(
        self,
        packer: Packer,
        program: Program,
        channel: Channel,
        checksum: bool,
        window: int,
        tick: Callable[[], None],
    ) -> None:
        self.packer, self.program, self.channel = packer, program, channel
        self.checksum, self.window, self.tick = checksum, window, tick
        self.pool = Pool(packer.buffer)
        self.ahead = deque(program.steps)
        self.active: deque[_Active] = deque()
        self.awaited = 0
        self.counts = dict.fromkeys(("bytes_sent", "bytes_received", "sends", "receives", "checked"), 0)

    def all(self) -> tuple[dict[str, Any], Report]:
        began = time.perf_counter()
        self.enter()
        self.packer.copy(self.program.copies)  # while the network is at work
        while self.active:
            oldest = self.active[0]
            self.pump(oldest)
            self.retire(oldest)
            self.active.popleft()
            self.enter()
            self.tick()
        seconds = time.perf_counter() - began
        report = Report(
            self.packer.device, len(self.program.steps), buffer_peak=self.pool.peak, seconds=seconds, **self.counts
        )
        return self.packer.new, report

    def enter(self) -> None:
        """Begin further messages as far as the window, and the order on the links, allow."""
        while self.ahead and len(self.active) < self.window and self.may_begin(self.ahead[0]):
            step = self.ahead.popleft()
            made = _Active(step, None, False, [])
            self.active.append(made)
            if step.parent is None:
                self.begin_sending(made)
            else:
                self.begin_receiving(made, step.parent)

    def may_begin(self, step: Step) -> bool:
        """Whether a message would not take the link from an older one."""
        if step.parent is None:
            return not any(a.step.children and not a.pumped for a in self.active)
        return self.awaited <= max([LOOKAHEAD, *(a.step.chunk for a in self.active)])

    def take(self, made: _Active, nbytes: int) -> Any:
        """A buffer that goes back when the message is left."""
        made.blocks.append(self.pool.take(nbytes))
        return made.blocks[-1]

    def begin_sending(self, made: _Active) -> None:
        step = made.step
        made.buffer, _ = self.packer.outgoing(step.pieces, lambda n: self.take(made, n))
        for first, end in spans_of(step):
            self.send(made, made.buffer[first:end])
        if self.checksum:
            made.blocks.append(self.packer.buffer(4 * len(spans_of(step))))
            self.packer.fill(made.blocks[-1], sums(step, self.packer, made.buffer))
            made.sends += [self.channel.isend(c, made.blocks[-1], step.message) for c in step.children]
        made.pumped = True

    def begin_receiving(self, made: _Active, parent: int) -> None:
        step = made.step
        made.buffer, made.direct = self.packer.incoming(step.pieces, lambda n: self.take(made, n))
        for first, end in spans_of(step):
            made.receives.append(self.channel.irecv(parent, made.buffer[first:end], step.message))
        self.awaited += step.nbytes
        if self.checksum:
            made.blocks.append(self.packer.buffer(4 * len(spans_of(step))))
            made.receives.append(self.channel.irecv(parent, made.blocks[-1], step.message))

    def pump(self, made: _Active) -> None:
        """Receive each chunk and pass it on."""
        if made.step.parent is None:
            return
        for first, end in spans_of(made.step):
            if end == made.step.nbytes:
                self.enter()  # the next message's receives stand ready before this one's last chunk is in
            made.receives.popleft().wait()
            self.awaited -= end - first
            self.counts["receives"] += 1
            self.counts["bytes_received"] += end - first
            self.send(made, made.buffer[first:end])
        if self.checksum:
            made.receives.popleft().wait()
            made.sends += [self.channel.isend(c, made.blocks[-1], made.step.message) for c in made.step.children]
        made.pumped = True

    def send(self, made: _Active, chunk: Any) -> None:
        for child in made.step.children:
            made.sends.append(self.channel.isend(child, chunk, made.step.message))
            self.counts["sends"] += 1
            self.counts["bytes_sent"] += len(chunk)

    def retire(self, made: _Active) -> None:
        """Put what was received in its place, and wait until the buffer is free."""
        if made.step.parent is not None:
            if self.checksum:
                self.counts["checked"] += verify(made.step, self.packer, made.buffer, made.blocks[-1])
            if not made.direct:
                self.packer.unpack(made.step.pieces, made.buffer)
        for pending in made.sends:
            pending.wait()
        for block in made.blocks:
            self.pool.give(block)

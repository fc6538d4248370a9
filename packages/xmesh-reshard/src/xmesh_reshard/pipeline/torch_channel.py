"""Messages between processes by torch.distributed: one process a device, the same loop as within a process.

Needs the extra `xmesh-reshard[torch]`.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import final

import torch
import torch.distributed as dist

from xmesh_reshard.pipeline.instructions import Message, wiring
from xmesh_reshard.pipeline.schedules import Schedule


@final
class TorchChannel:
    """A `Channel` over gloo, which matches messages by tag: activations and gradients are tensors.

    Receives are posted ahead in the order in which the device needs them, so that transfers run beside the computation;
    `ahead` bounds the buffers. Sent tensors are kept until they have left.

    Args:
        schedule: The schedule.
        device: Which device this process is; its rank in `group` must be that number, and so for all devices.
        buffer: An empty tensor for a message: of the shape, type and device of what its sender gives.
        skips: Pairs (i, j) of stages with skip connections, as `run_device` takes them.
        ahead: Receives that are posted at a time, at least 1.
        group: Process group; the default one if not given.

    Raises:
        ValueError: If `ahead` is less than 1, the rank is not the device, or the backend is not gloo. (NCCL knows no
            tags and runs the operations of a pair of ranks in order, which the two directions of a pipeline break.)
    """

    def __init__(
        self,
        schedule: Schedule,
        device: int,
        buffer: Callable[[Message], torch.Tensor],
        *,
        skips: Sequence[tuple[int, int]] = (),
        ahead: int = 4,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        if ahead < 1:
            raise ValueError(f"ahead must be at least 1, got {ahead}")
        if dist.get_rank(group) != device:
            raise ValueError(
                f"device {device} must be the process of that rank, this one is rank {dist.get_rank(group)}"
            )
        if dist.get_backend(group) != "gloo":
            raise ValueError(f"the process group must be of the backend gloo, this one is {dist.get_backend(group)!r}")
        self._placement, self._stages, self._device = schedule.placement, schedule.stages, device
        self._buffer, self._ahead, self._group = buffer, ahead, group
        wires = wiring(schedule.stages, skips)
        self._coming = deque(
            message
            for step in schedule.devices[device]
            for message in wires.receives(step)
            if schedule.placement[message.source] != device
        )
        self._posted: dict[Message, tuple[torch.Tensor, dist.Work | None]] = {}
        self._leaving: deque[tuple[torch.Tensor, dist.Work | None]] = deque()
        self._here: dict[Message, torch.Tensor] = {}
        self._post()

    def send(self, message: Message, payload: torch.Tensor) -> None:
        """Start sending a tensor; a message between stages of this device stays here."""
        target = self._placement[message.target]
        if target == self._device:
            self._here[message] = payload
            return
        while self._leaving and (self._leaving[0][1] is None or self._leaving[0][1].is_completed()):
            self._leaving.popleft()
        tensor = payload.detach().contiguous()
        work = dist.isend(tensor, self._rank(target), group=self._group, tag=self._tag(message))
        self._leaving.append((tensor, work))

    def receive(self, message: Message) -> torch.Tensor:
        """Wait for a tensor."""
        if message in self._here:
            return self._here.pop(message)
        tensor, work = self._posted.pop(message)
        if work is not None:
            work.wait()
        self._post()
        return tensor

    def close(self) -> None:
        """Wait until everything that was sent has left."""
        while self._leaving:
            _, work = self._leaving.popleft()
            if work is not None:
                work.wait()

    def _post(self) -> None:
        while self._coming and len(self._posted) < self._ahead:
            message = self._coming.popleft()
            tensor = self._buffer(message)
            source = self._rank(self._placement[message.source])
            work = dist.irecv(tensor, source, group=self._group, tag=self._tag(message))
            self._posted[message] = (tensor, work)

    def _rank(self, device: int) -> int:
        return device if self._group is None else dist.get_global_rank(self._group, device)

    def _tag(self, message: Message) -> int:
        return (message.microbatch * self._stages + message.source) * self._stages + message.target

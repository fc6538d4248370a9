"""A schedule as a value: what each device runs, in which order, and what follows from that."""

import json
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, final, get_args

from xmesh_reshard.pipeline.bounds import lower_bound
from xmesh_reshard.pipeline.costs import Seconds, Transfers, costs
from xmesh_reshard.pipeline.instructions import Instruction, Op
from xmesh_reshard.pipeline.invariants import ScheduleError, check
from xmesh_reshard.pipeline.orders import (
    Order,
    gpipe,
    interleaved,
    one_f_one_b,
    with_weight_delaying,
    zero_bubble,
)
from xmesh_reshard.pipeline.simulator import simulate
from xmesh_reshard.pipeline.timeline import Timeline

Kind = Literal["gpipe", "1f1b", "eager-1f1b", "interleaved", "zero-bubble"]
"""Which rule gives the order."""

_FORMAT = "xmesh-reshard pipeline schedule"
_VERSION = 1


@final
@dataclass(frozen=True)
class Schedule:
    """What each device of a pipeline runs, in which order.

    Every value of this class can be run: `schedule` makes those of the known rules; one's own are checked when they are
    made.

    Attributes:
        kind: The rule, or any name of one's own.
        devices: The instructions of each device, in order.
        placement: The device of each stage of the model.
        microbatches: How many.

    Raises:
        ScheduleError: If a pass is missing, twice or on another device than its stage, or devices wait for each other.
    """

    kind: str
    devices: tuple[Order, ...]
    placement: tuple[int, ...]
    microbatches: int

    def __post_init__(self) -> None:
        check(self.devices, self.placement, self.microbatches)

    @property
    def stages(self) -> int:
        """Stages of the model: devices times chunks where devices hold several."""
        return len(self.placement)

    @cached_property
    def split_backward(self) -> bool:
        """Whether backward passes are split into B (gradient of the input) and W (of the weights)."""
        return any(step.op is Op.W for step in self.devices[0])

    def chunk(self, stage: int) -> int:
        """Which of its device's stages a stage is, counted from the input."""
        return sum(device == self.placement[stage] for device in self.placement[:stage])

    def peak_inflight(self) -> tuple[int, ...]:
        """The most activations that each device holds: from the start of F to the end of B, or of W where it is split.

        Example:
            >>> schedule("1f1b", 4, 8).peak_inflight(), schedule("eager-1f1b", 4, 8).peak_inflight()
            ((4, 3, 2, 1), (7, 5, 3, 1))
        """
        last = Op.W if self.split_backward else Op.B
        peaks: list[int] = []
        for order in self.devices:
            held = peak = 0
            for step in order:
                held += (step.op is Op.F) - (step.op is last)
                peak = max(peak, held)
            peaks.append(peak)
        return tuple(peaks)

    def simulate(
        self,
        tf: Seconds = 1.0,
        tb: Seconds = 2.0,
        comm: Transfers = 0.0,
        *,
        tw: Seconds | None = None,
        overlap: bool = True,
        rendezvous: bool = False,
        shared_port: bool = False,
    ) -> Timeline:
        """When everything happens, by the event model of `xmesh_reshard.pipeline.simulator`; exact and deterministic.

        Args:
            tf: Seconds of a forward pass: a number, or one for each stage.
            tb: Seconds of a whole backward pass, split or not: likewise.
            comm: Seconds of a transfer: a number for every boundary between neighbours; a number for each; or a mapping
                from pairs of stages, (i, j) for the activation from i to j and (j, i) for its gradient, which takes as
                long as the activation where it is not given. Pairs beyond neighbours are skip connections. Transfers
                between stages on one device take no time.
            tw: Seconds of `tb` that W takes where backward passes are split; half if not given.
            overlap: Whether transfers run beside the computation; else the sender stands still.
            rendezvous: Without overlap: a transfer also waits until its receiver stands still for it. Most schedules
                deadlock this way; the timeline says so.
            shared_port: With overlap: everything that a device sends shares one outgoing port. Otherwise each ordered
                pair of devices has a link of its own.

        Returns:
            The timeline, with a lower bound on every schedule of the same passes on the same devices.

        Raises:
            ValueError: If durations are negative or not finite, lengths are wrong, or options contradict each other.

        Example:
            >>> timeline = schedule("eager-1f1b", 4, 16).simulate(tf=1, tb=2, comm=1)
            >>> timeline.makespan, timeline.lower_bound
            (63.0, 63.0)
        """
        if overlap and rendezvous:
            raise ValueError("rendezvous is a way of blocking; give overlap=False with it")
        if shared_port and not overlap:
            raise ValueError(
                "shared_port is about overlapped transfers; a device that blocks sends one at a time anyway"
            )
        split = self.split_backward
        table = costs(self.stages, tf, tb, comm, tw=tw, split=split)
        found = simulate(
            self.devices, self.placement, table, overlap=overlap, rendezvous=rendezvous, shared_port=shared_port
        )
        bound = lower_bound(
            self.placement, self.microbatches, table, split=split, overlap=overlap, shared_port=shared_port
        )
        return replace(found, lower_bound=bound)

    def table(self) -> str:
        """The instructions of each device as text: F3 is the forward pass of microbatch 3, F3.1 that of chunk 1.

        Example:
            >>> print(schedule("1f1b", 2, 3).table())
            device 0: F0 F1 B0 F2 B1 B2
            device 1: F0 B0 F1 B1 F2 B2
        """
        several = self.stages > len(self.devices)
        chunks = [self.chunk(s) for s in range(self.stages)]
        width = len(str(len(self.devices) - 1))
        lines: list[str] = []
        for d, order in enumerate(self.devices):
            names = (f"{s.op}{s.microbatch}" + (f".{chunks[s.stage]}" if several else "") for s in order)
            lines.append(f"device {d:>{width}}: " + " ".join(names))
        return "\n".join(lines)

    def to_json(self) -> str:
        """The schedule as JSON text, which `from_json` reads."""
        devices = [[[str(step.op), step.stage, step.microbatch] for step in order] for order in self.devices]
        return json.dumps(
            {
                "format": _FORMAT,
                "version": _VERSION,
                "kind": self.kind,
                "microbatches": self.microbatches,
                "placement": list(self.placement),
                "devices": devices,
            }
        )

    @staticmethod
    def from_json(text: str) -> "Schedule":
        """The schedule that `to_json` wrote, checked again.

        Raises:
            ScheduleError: If the text is no schedule of a known version.

        Example:
            >>> Schedule.from_json(schedule("gpipe", 2, 2).to_json()) == schedule("gpipe", 2, 2)
            True
        """
        try:
            data: Any = json.loads(text)
            if not isinstance(data, dict) or data.get("format") != _FORMAT:
                raise ScheduleError(f"not a schedule: format must be {_FORMAT!r}")
            if data.get("version") != _VERSION:
                raise ScheduleError(f"schedule of version {data.get('version')!r}, this software reads {_VERSION}")
            devices = tuple(
                tuple(Instruction(Op(op), int(stage), int(k)) for op, stage, k in order) for order in data["devices"]
            )
            placement = tuple(int(device) for device in data["placement"])
            return Schedule(str(data["kind"]), devices, placement, int(data["microbatches"]))
        except ScheduleError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise ScheduleError(f"not a schedule: {error}") from error


def schedule(
    kind: Kind | str,
    stages: int,
    microbatches: int,
    *,
    chunks: int | None = None,
    split_backward: bool = False,
    max_inflight: int | None = None,
) -> Schedule:
    """The schedule of a known rule.

    - "gpipe": every forward pass, then every backward pass.
    - "1f1b": stage i of p runs p - i forward passes before its first backward pass, then one of each in turn.
    - "eager-1f1b": the paper's; 2(p - i) - 1 of them, so that transfers of both directions are hidden.
    - "interleaved": every device holds `chunks` stages of a model of p times chunks; Megatron's order. Any number of
      microbatches will do; where it is no multiple of p, groups are a little larger than p.
    - "zero-bubble": backward passes split into B and W with W put off; `max_inflight` = p is ZB-H1 (the default),
      2p - 1 is ZB-H2.

    Args:
        kind: One of the above.
        stages: Number p of devices in the pipeline.
        microbatches: m.
        chunks: Stages a device, for "interleaved" only; 2 if not given.
        split_backward: Weight delaying: B gives the gradient of the input, which leaves at once, and W that of the
            weights follows while it is under way. "zero-bubble" always splits.
        max_inflight: The most activations that a device may hold, for "1f1b", "eager-1f1b" and "zero-bubble".

    Raises:
        ValueError: If a number is below 1, or an option is not for the kind.

    Reference:
        Zhuang et al. 2023, Section 4, for eager-1F1B and weight delaying.

    Example:
        >>> print(schedule("eager-1f1b", 2, 4, split_backward=True).table())
        device 0: F0 F1 F2 B0 W0 F3 B1 W1 B2 W2 B3 W3
        device 1: F0 B0 W0 F1 B1 W1 F2 B2 W2 F3 B3 W3
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
    numbers = {"stages": stages, "microbatches": microbatches, "chunks": chunks, "max_inflight": max_inflight}
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    if chunks is not None and kind != "interleaved":
        raise ValueError(f"chunks is for kind 'interleaved' only, got kind {kind!r}")
    if max_inflight is not None and kind in ("gpipe", "interleaved"):
        raise ValueError(f"max_inflight is for 1f1b, eager-1f1b and zero-bubble; {kind} has no such limit")
    if kind == "gpipe":
        orders = gpipe(stages, microbatches)
    elif kind == "interleaved":
        orders = interleaved(stages, microbatches, chunks or 2)
    elif kind == "zero-bubble":
        orders = zero_bubble(stages, microbatches, max_inflight or stages)
    else:
        orders = one_f_one_b(stages, microbatches, eager=kind == "eager-1f1b", max_inflight=max_inflight)
    if split_backward and kind != "zero-bubble":
        orders = with_weight_delaying(orders)
    placement = tuple(s % stages for s in range(stages * (chunks or 2 if kind == "interleaved" else 1)))
    return Schedule(kind, orders, placement, microbatches)

"""What `xmesh-reshard schedule` shows: one schedule with its instructions, or all kinds side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

from common_core.cli import Answer
from xmesh_reshard.cli_show import schedule_table
from xmesh_reshard.pipeline import Schedule, Status, Timeline
from xmesh_reshard.pipeline import schedule as make_schedule

Times = Mapping[str, Any]
Pairs = Sequence[tuple[int, int]]
_WIDE = 240  # characters of a device's line of instructions


def one(
    kind: str, stages: int, microbatches: int, times: Times, skips: Pairs, options: Mapping[str, Any], overlap: bool
) -> tuple[Schedule, Timeline, dict[str, Any], list[str]]:
    """A schedule, its timeline, and both as data and in words.

    Args:
        kind: The rule.
        stages: Devices.
        microbatches: How many.
        times: tf, tb, tw, comm: a number, one for each, or None.
        skips: Pairs of stages.
        options: For `xmesh_reshard.pipeline.schedule`.
        overlap: Whether transfers run beside the computation.
    """
    made = make_schedule(kind, stages, microbatches, **options)
    timeline = made.simulate(**durations(made, times, skips), overlap=overlap)
    data = {"kind": kind, "stages": stages, "microbatches": microbatches, **_figures(made, timeline)}
    bound = timeline.lower_bound
    lines = [line if len(line) <= _WIDE else line[:_WIDE] + " …" for line in made.table().splitlines()]
    shown = ["\n".join(lines), ""]
    if timeline.status is not Status.COMPLETE:
        return made, timeline, data, [*shown, f"{timeline.status}: {timeline.reason}"]
    stands = f"devices stand still for communication for at most {max(timeline.exposed_communication):g} s"
    shown += [
        f"{timeline.makespan:g} s; no schedule of the same passes takes less than {bound:g} s",
        f"{stands}, idle {timeline.bubble_fraction:.1%} of the time",
        f"activations held at most, by device: {' '.join(map(str, made.peak_inflight()))}",
    ]
    return made, timeline, data, shown


def comparison(
    kinds: Sequence[str], stages: int, microbatches: int, times: Times, skips: Pairs, split_backward: bool
) -> Answer:
    """All kinds side by side, with overlapped and with blocking transfers.

    Args:
        kinds: Rules.
        stages: Devices.
        microbatches: How many.
        times: As in `one`.
        skips: Pairs of stages; interleaved stages are other stages, so they are left out then.
        split_backward: Whether backward passes are split; else they are for zero-bubble alone.
    """
    rows, bounds = [], []
    for kind in kinds:
        if kind == "interleaved" and (skips or any(isinstance(value, list) for value in times.values())):
            continue
        made = make_schedule(kind, stages, microbatches, split_backward=split_backward)
        given = durations(made, times, skips)
        timeline = made.simulate(**given)
        rows.append(
            {
                "kind": kind,
                "overlap": timeline.makespan,
                "blocking": made.simulate(**given, overlap=False).makespan,
                "exposed": list(timeline.exposed_communication),
                "peak_inflight": list(made.peak_inflight()),
            }
        )
        if kind == "eager-1f1b":
            bounds.append(timeline.lower_bound or 0.0)
    bound = max(bounds) or 1.0
    passes = "split backward passes" if split_backward else "whole backward passes"
    note = f"\nbound: no schedule of whole stages and {passes} takes less than {bound:g} s"
    data = {"stages": stages, "microbatches": microbatches, "lower_bound": bound, "schedules": rows}
    return Answer(data, [schedule_table(rows, bound), note])


def durations(made: Schedule, times: Times, skips: Pairs) -> dict[str, Any]:
    """Arguments of `Schedule.simulate`: passes of chunks take their part of a stage's, skips as long as neighbours."""
    parts = made.stages // len(made.devices)
    given = {name: value for name, value in times.items() if value is not None}
    if parts > 1:
        for name in ("tf", "tb", "tw"):
            if isinstance(given.get(name), list):
                raise ValueError(f"interleaved stages are equal; give one number for --{name}")
            if name in given:
                given[name] = given[name] / parts
        if skips:
            raise ValueError("skip connections are between whole stages; interleaved cuts them")
    if skips:
        comm = given.get("comm", 0.0)
        chain = comm if isinstance(comm, list) else [comm] * (made.stages - 1)
        if len(chain) != made.stages - 1:
            raise ValueError(f"--comm has {len(chain)} numbers; {made.stages} stages have {made.stages - 1} boundaries")
        table = {(s, s + 1): c for s, c in enumerate(chain)}
        given["comm"] = table | {(i, j): max(chain) for i, j in skips}
    return given


def _figures(made: Schedule, timeline: Timeline) -> dict[str, Any]:
    return {
        "makespan": timeline.makespan, "lower_bound": timeline.lower_bound, "gap": timeline.gap,
        "bubble_fraction": timeline.bubble_fraction, "exposed": list(timeline.exposed_communication),
        "peak_inflight": list(made.peak_inflight()), "status": timeline.status.name,
    }  # fmt: skip

"""The paper's cases on real gloo processes over links of 200 Mbit/s, and against the simulator; runs on cpu.

Needs the extra ``torch``. Where network namespaces cannot be made (they take root on Linux), links are token buckets.
"""

import harness  # isort: skip  (one thread: before numpy)

from collections.abc import Mapping, Sequence

import numpy as np
import rig
from harness import Row
from layouts import small_case

from xmesh_reshard import plan
from xmesh_reshard.baselines import naive_broadcast, paper_broadcast, send_recv, send_recv_balanced, size_only
from xmesh_reshard.cases import Case
from xmesh_reshard.network import simulate
from xmesh_reshard.plans import Plan
from xmesh_reshard.transports.shaping import why_no_namespaces

NAME = "bench_real_cases"
RATE, ALPHA, LOCAL = "200Mbit", "1ms", "1GB/s"
CASES = (1, 2, 3, 4, 5, 6, 7, 9)
WAYS = {
    "broadcast, naive order": naive_broadcast,
    "broadcast, balanced by size": size_only,
    "broadcast, the paper's order": paper_broadcast,
    "send/recv, first holder": send_recv,
    "send/recv, balanced": send_recv_balanced,
}
ERROR = 0.2
NOTES = (
    "The paper's cases with two devices a host (4 hosts; 5 in case 6, 3 in case 7, which is also 8) and a float32 cube "
    "of 128^3, 8 MiB ((384, 128, 42) in case 6). Every device is a process (gloo), every host a network namespace of "
    "one machine whose card the kernel limits to 200 Mbit/s of payload each way; told to planner and simulator: 1 ms a "
    "message and 1 GB/s inside a host. All ways are plans executed by the same transport, in turns in one launch, in "
    "another order every time. Times of ratios: from a barrier to the slowest rank's end, agreeing on the plan "
    "included. Against the simulator: from the first byte to the last at the slowest rank, as it models no agreement; "
    "simulated as executed, with two messages under way at a device; 'at_once' is simulated with everything posted at "
    "once. A connection takes 5 ms of its link's rate from a sender ahead of the link, which the simulator does not. "
    "'units' are shares of T, what the tensor takes over one card. Every result was compared bit by bit with slicing: "
    "'wrong' counts ranks where it differed."
)


def plans_of(case: Case) -> dict[str, Plan]:
    """Ours and all others."""
    found = {name: way(case.transfers, case.topology) for name, way in WAYS.items()}
    return {"ours": plan(case.transfers, case.topology), **found}


def rows_of(case: Case, repeats: int, links: str, errors: dict[str, float]) -> list[Row]:
    """Ours against the others, and each against its simulation."""
    plans = plans_of(case)
    found = rig.run(rig.Job(plans, repeats=repeats), case.topology, plans["ours"].devices, links)
    mine, t = found["ours"], case.seconds
    rows = []
    for name, turns in found.items():
        if name != "ours":
            columns = {
                "units": float(harness.median(mine.seconds)) / t,
                "peer_units": float(harness.median(turns.seconds)) / t,
                "model": plans["ours"].makespan / plans[name].makespan, "wrong": mine.wrong + turns.wrong,
            }  # fmt: skip
            both = harness.median(mine.seconds), harness.median(turns.seconds)
            ratio = harness.ratio(mine.seconds, turns.seconds)
            rows.append(harness.row(f"{case.name}: ours", *both, name, ratio, **harness.extra(columns)))
    for name, turns in found.items():
        simulated, moving = simulate(plans[name]).makespan, harness.median(turns.moving)
        errors[f"{case.name}, {name}"] = float(moving) / simulated - 1
        columns = {
            "units": float(moving) / t, "planned": plans[name].makespan, "lower_bound": plans[name].lower_bound,
            "at_once": simulate(plans[name], in_flight=None).makespan, "wrong": turns.wrong,
        }  # fmt: skip
        ratio = harness.ratio(turns.moving, [simulated] * repeats)
        rows.append(
            harness.row(
                f"{case.name}, {name}: measured", moving, simulated, "simulated", ratio, **harness.extra(columns)
            )
        )
    return rows


def judged(errors: Mapping[str, float]) -> list[Row]:
    """How far the simulator is off over the whole suite."""
    sizes = np.abs(list(errors.values()))
    worst = max(errors, key=lambda name: abs(errors[name]))
    peer, count = "simulated", len(sizes)
    return [
        harness.row(
            "simulator's error, worst", float(sizes.max()), None, peer, None, ERROR, "", where=worst, count=count
        ),
        harness.row("simulator's error, median", float(np.median(sizes)), None, peer, None, ERROR, "", count=count),
        harness.row("within 20 %, share", float((sizes <= ERROR).mean()), None, peer, None, 1.0, "", True, count=count),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    args = harness.options(NAME, argv)
    links = "bucket" if why_no_namespaces() else "netns"
    rows: list[Row] = []
    errors: dict[str, float] = {}
    for number in (2,) if args.quick else CASES:
        length, rate = (32, "400Mbit") if args.quick else (128, RATE)
        case = small_case(number, length, nic=rate, local=LOCAL, alpha=ALPHA)
        some = rows_of(case, args.repeats or (2 if args.quick else 7), links, errors)
        harness.show(some)
        rows += some
    notes = NOTES if links == "netns" else NOTES + " Here links were token buckets in the senders instead."
    harness.save(NAME, args, [*judged(errors), *rows], notes, ["torch"])


if __name__ == "__main__":
    main()

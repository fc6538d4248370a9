"""One source to A hosts with B devices each, on real gloo processes over links of 200 Mbit/s; runs on cpu.

Needs the extra ``torch``; gloo's own collectives are timed only where network namespaces can be made (root on Linux).
"""

import harness  # isort: skip  (one thread: before numpy)

from collections.abc import Sequence

import rig
from harness import Row

from xmesh_reshard import plan
from xmesh_reshard.cases import Case, one_to_many_case
from xmesh_reshard.network import simulate
from xmesh_reshard.theory import (
    chain_seconds,
    global_allgather_seconds,
    local_allgather_seconds,
    send_recv_seconds,
)
from xmesh_reshard.transports.shaping import why_no_namespaces

NAME = "bench_broadcast"
RATE, NBYTES = "200Mbit", 2**23
ALPHA, LOCAL = "1ms", "1GB/s"  # what a message costs between processes of this machine, and their rate inside a host
RECEIVERS = ((1, 4), (2, 2), (3, 2), (4, 2))
OTHERS = {
    "gloo's broadcast": "collectives_gloo:broadcast",
    "send/recv to each receiver": "collectives_gloo:send_recv",
    "parts and local all-gather": "collectives_gloo:local_allgather",
    "parts and global all-gather": "collectives_gloo:global_allgather",
}
NOTES = (
    "8 MiB from one device to all devices of other hosts. Every device is a process (gloo), every host a network "
    "namespace of one machine whose card the kernel limits to 200 Mbit/s of payload each way. All ways take turns in "
    "one launch, in another order every time; a time is from a barrier to the slowest rank's end and, for ours, "
    "includes agreeing on the plan. Medians, with 95 % intervals from resampling the turns. 'moving' is our time from "
    "the first byte to the last. T is what the tensor takes over one card. Hosts on one machine share its processors."
)
BUCKET = (
    " Network namespaces cannot be made here: links are token buckets in the senders, which do not slow gloo's own "
    "collectives, so these were not timed."
)


def theory(name: str, hosts: int, devices: int) -> float | None:
    """Time of a peer in units of T; none for gloo's broadcast, whose tree shares cards between its branches."""
    return {
        "send/recv to each receiver": send_recv_seconds(hosts, devices, 1.0),
        "parts and local all-gather": local_allgather_seconds(hosts, 1.0),
        "parts and global all-gather": global_allgather_seconds(hosts, devices, 1.0),
    }.get(name)


def goal_of(name: str, hosts: int, devices: int, units: float) -> float | None:
    """Largest ratio ours / peer aimed at: against send/recv a tenth above theory's, where ours takes ``units`` of T."""
    if name == "gloo's broadcast" and hosts * devices >= 4:
        return 1 / 2.5
    return 1.1 * units / (hosts * devices) if name == "send/recv to each receiver" else None


def measured(case: Case, hosts: int, devices: int, repeats: int, links: str) -> list[Row]:
    """Rows of a case."""
    ours = plan(case.transfers, case.topology)
    chunks, t = ours.messages[0].chunks, case.seconds
    closed = chain_seconds(hosts, chunks, t, 0.0, 1.0)
    facts = {"nbytes": case.transfers["x"].source.nbytes, "hosts": hosts, "devices": devices}
    job = rig.Job({"ours": ours}, OTHERS if links == "netns" else {}, facts, repeats)
    found = rig.run(job, case.topology, ours.devices, links)
    mine, label = found["ours"], f"1 to {hosts} × {devices}"
    columns = harness.extra(
        {
            "units": float(harness.median(mine.seconds)) / t, "moving": float(harness.median(mine.moving)),
            "chunks": chunks, "planned": ours.makespan, "simulated": simulate(ours).makespan,
            "wrong": mine.wrong,
        }
    )  # fmt: skip
    rows = [
        harness.row(
            f"{label}: ours against the closed form", harness.median(mine.seconds), closed,
            f"t (1 + (A - 1) / K), K = {chunks}", harness.ratio(mine.seconds, [closed] * repeats), 1.1, **columns,
        )
    ]  # fmt: skip
    for name, turns in found.items():
        if name != "ours":
            units = float(harness.median(turns.seconds)) / t
            theirs = {"peer_units": units, "peer_theory": theory(name, hosts, devices), "wrong": turns.wrong}
            goal = goal_of(name, hosts, devices, closed / t)
            both = harness.median(mine.seconds), harness.median(turns.seconds)
            ratio = harness.ratio(mine.seconds, turns.seconds)
            rows.append(harness.row(f"{label}: ours", *both, name, ratio, goal, **harness.extra(theirs)))
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    args = harness.options(NAME, argv)
    links = "bucket" if why_no_namespaces() else "netns"
    rows: list[Row] = []
    for hosts, devices in ((2, 1),) if args.quick else RECEIVERS:
        nbytes, rate = (2**18, "400Mbit") if args.quick else (NBYTES, RATE)
        case = one_to_many_case(hosts, devices, nbytes, nic=rate, local=LOCAL, alpha=ALPHA)
        some = measured(case, hosts, devices, args.repeats or (2 if args.quick else 7), links)
        harness.show(some)
        rows += some
    notes = NOTES if links == "netns" else NOTES + BUCKET
    harness.save(NAME, args, rows, notes, ["torch"])


if __name__ == "__main__":
    main()

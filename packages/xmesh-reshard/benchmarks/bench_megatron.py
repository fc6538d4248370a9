"""Weights between tensor-parallel replicas, against Megatron-core's refit: planned, simulated, on real processes.

Needs the dependency group ``peers`` and the extra ``torch``; the last part runs where network namespaces can be made.
"""

import harness  # isort: skip  (one thread: before numpy)

from collections.abc import Sequence
from importlib.metadata import version

import rig
from harness import Row
from megatron_peer import Grid, as_plan, centralised, decoder_weights, metadata, planned, resharding, transfers_of

from xmesh_reshard import plan
from xmesh_reshard.cases import Case
from xmesh_reshard.network import simulate
from xmesh_reshard.topology import Topology
from xmesh_reshard.transports.shaping import why_no_namespaces

NAME = "bench_megatron"
RATE, ALPHA, LOCAL = "200Mbit", "1ms", "1GB/s"
LARGE = {  # 8 devices a host; old and new grid: replicas, tensor-parallel devices of each
    "32 layers, 8 × TP 8 to 32 × TP 2": (32, (8, 8), (32, 2)),
    "32 layers, 8 × TP 8 to 16 × TP 4": (32, (8, 8), (16, 4)),
    "32 layers, 2 × TP 8 to 64 × TP 1": (32, (2, 8), (64, 1)),
}
REAL = {  # 2 devices a host
    "2 × TP 2 to 4 × TP 1": ((2, 2), (4, 1)),
    "2 × TP 2 to 2 × TP 2": ((2, 2), (2, 2)),
    "1 × TP 4 to 4 × TP 1": ((1, 4), (4, 1)),
    "4 × TP 1 to 1 × TP 4": ((4, 1), (1, 4)),
}
NOTES = (
    "Megatron-core {version}. Large: bfloat16 weights of 32 layers of width 4096 and 14336, 8 devices a host with one "
    "card of 200 Gbit/s and 300 GB/s inside, 2 µs a message. Megatron's planner is its public function; where rank 0 "
    "plans for all (to 0.16) its collectives are replaced, where every rank plans for itself (0.19) one rank's seconds "
    "count. Its plan is simulated point to point, all from one device to another in one message, with everything "
    "posted at once, as its services do, and shared max-min fairly. Megatron's planner takes tensor parallelism over "
    "the same axis on both sides; other layouts of ours it cannot state. Version 0.16 takes all cut weights from the "
    "first replica, 0.19 from all replicas. "
)
REALLY = (
    "Real: float32 weights of about 8 MiB, every device a gloo process, every host a network namespace whose card the "
    "kernel limits to 200 Mbit/s each way; Megatron's own plan, executed by its own gloo copy service (its "
    "constructor's CUDA stream left out; it serves GPU tensors only), against ours by our transport, agreeing on the "
    "plan included, in turns."
)
HARDLY = "Nothing on real processes: this version's gloo copy service needs CUDA, or namespaces cannot be made here."


def large(label: str, layers: int, old: Grid, new: Grid) -> list[Row]:
    """Planning seconds, simulated seconds, and bytes of the busiest sender."""
    weights = decoder_weights(layers, 4096, 14_336)
    count = -(-(new.devices.stop) // 8)
    topology = Topology.uniform(count, 8, nic="200Gbit", local="300GB/s", alpha="2us", local_alpha="1us")
    transfers = transfers_of(weights, "bfloat16", old, new)
    made, _, mine = harness.spent(lambda: plan(transfers, topology))
    before, after = (metadata(weights, "bfloat16", grid, new.devices.stop) for grid in (old, new))
    theirs, _, seconds = harness.spent(
        lambda: planned(before, after, new.devices if centralised() else new.devices[:1])
    )
    other = as_plan(transfers, topology, theirs if centralised() else planned(before, after, new.devices))
    ours, peer = simulate(made).makespan, simulate(other, in_flight=None).makespan
    peer_name = "Megatron-core's planner"
    mine_out, their_out = (float(max(out for out, _ in found.nic_bytes().values())) for found in (made, other))
    columns = {"lower_bound": made.lower_bound, "gap": made.gap, "peer_over_bound": peer / made.lower_bound}
    unit = "s of the processor"
    return [
        harness.row(f"{label}: simulated", ours, peer, peer_name, ours / peer, **harness.extra(columns)),
        harness.row(f"{label}: bytes out of the busiest host", mine_out, their_out, peer_name, mine_out / their_out,
                    unit="bytes"),
        harness.row(f"{label}: bytes between hosts", made.network_bytes, other.network_bytes, peer_name,
                    made.network_bytes / other.network_bytes, unit="bytes"),
        harness.row(f"{label}: planning", mine, seconds, peer_name, mine / seconds, unit=unit),
    ]  # fmt: skip


def real(label: str, width: int, old: Grid, new: Grid, repeats: int) -> list[Row]:
    """Seconds on real processes."""
    weights = decoder_weights(1, width, 4 * width)
    topology = Topology.uniform(-(-new.devices.stop // 2), 2, nic=RATE, local=LOCAL, alpha=ALPHA)
    transfers = transfers_of(weights, "float32", old, new)
    case = Case(label, transfers, topology)
    ours = plan(transfers, topology)
    facts = {"weights": weights, "dtype": "float32", "old": old, "new": new}
    job = rig.Job({"ours": ours}, {"Megatron-core": "megatron_peer:refit"}, facts, repeats)
    found = rig.run(job, topology, [*old.devices, *new.devices], "netns", timeout=200.0)
    mine, theirs = found["ours"], found["Megatron-core"]
    columns = {
        "units": float(harness.median(mine.seconds)) / case.seconds,
        "peer_units": float(harness.median(theirs.seconds)) / case.seconds,
        "lower_bound": ours.lower_bound, "planned": ours.makespan, "wrong": mine.wrong, "peer_wrong": theirs.wrong,
    }  # fmt: skip
    both = harness.median(mine.seconds), harness.median(theirs.seconds)
    name, ratio = "Megatron-core's gloo copy service", harness.ratio(mine.seconds, theirs.seconds)
    return [harness.row(f"real, {label}", *both, name, ratio, **harness.extra(columns))]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    args = harness.options(NAME, argv)
    resharding()  # its import takes seconds
    rows: list[Row] = []
    for label, (layers, old, new) in list(LARGE.items())[: 1 if args.quick else None]:
        if args.quick:
            layers, old, new = 1, (2, 4), (4, 2)
        first = Grid(0, *old)
        some = large(label, layers, first, Grid(first.devices.stop, *new))
        harness.show(some)
        rows += some
    possible = centralised() and not why_no_namespaces()
    for label, (old, new) in list(REAL.items())[: 1 if args.quick else None] if possible else ():
        first = Grid(0, *old)
        some = real(label, 64 if args.quick else 416, first, Grid(4, *new), args.repeats or (2 if args.quick else 5))
        harness.show(some)
        rows += some
    notes = NOTES.format(version=version("megatron-core")) + (REALLY if possible else HARDLY)
    harness.save(NAME, args, rows, notes, ["megatron-core", "torch"])


if __name__ == "__main__":
    main()

"""How long planning takes and how good the plans of large models are, against the bound and other ways; runs on cpu."""

import harness  # isort: skip  (one thread: before numpy)

from collections.abc import Callable, Sequence
from typing import Any

from harness import Row
from layouts import different, repeated

from xmesh_reshard import plan
from xmesh_reshard.baselines import round_robin
from xmesh_reshard.cases import Case
from xmesh_reshard.collectives import gather_broadcast
from xmesh_reshard.models import llama_refit
from xmesh_reshard.network import simulate
from xmesh_reshard.plans import Plan
from xmesh_reshard.topology import Topology

NAME = "bench_planner"
NETWORK: dict[str, Any] = {"nic": "200Gbit", "local": "300GB/s", "local_alpha": "1us"}
MOST = 10.0  # seconds to plan 1,000 tensors over 512 devices
ALPHAS = (0, 2, 10, 20)  # µs
GAP = 0.01
NOTES = (
    "8 devices a host, one card of 200 Gbit/s, 300 GB/s inside, bfloat16. Planning: one core; 'seconds' of ours are "
    "the processor's (nobody else's work counts), 'wall' the clock's; the median of the repetitions. The bound has no "
    "cost of messages, so gaps grow with α, the cost of a message (α of 1 µs inside a host, 0 where α is 0). 'bytes' "
    "are those planned between hosts over the least possible: each replica's host once for each byte that it needs. "
    "Refits: FSDP over 64 devices to 8 replicas cut over 8 each. Other ways in the simulator: gather and broadcast "
    "tensor by tensor; point to point, senders in turn by the receiver's rank as Megatron-core does, in order with two "
    "messages under way at a device, and with everything posted at once and shared max-min fairly, which no real "
    "network does so well. Ours is simulated with two messages under way, and against the last way with everything "
    "posted at once as well."
)


def uniform(devices: int, alpha: str = "2us") -> Topology:
    """Hosts of eight devices."""
    return Topology.uniform(devices // 8, 8, alpha=alpha, **NETWORK)


def speed_cases(quick: bool) -> dict[str, Case]:
    """What planning is timed on."""
    if quick:
        return {
            "equal layers, 16 + 16 devices": repeated(2, 16, 2, uniform(32)),
            "different shapes, 16 + 16 devices": different(8, (4, 4), (8, 2), uniform(32)),
        }
    return {
        "equal layers, 256 + 256 devices": repeated(111, 256, 32, uniform(512)),
        "equal layers, 512 + 512 devices": repeated(111, 512, 64, uniform(1024)),
        "different shapes, 256 + 256 devices": different(1000, (32, 8), (64, 4), uniform(512)),
    }


def planning(label: str, case: Case, repeats: int) -> tuple[Row, Plan]:
    """Seconds to plan a case."""
    times, walls = [], []
    made = None
    for _ in range(repeats):
        made, wall, seconds = harness.spent(lambda: plan(case.transfers, case.topology))
        times.append(seconds)
        walls.append(wall)
    assert made is not None
    columns = {
        "wall": float(harness.median(walls)), "tensors": len(case.transfers), "devices": len(made.devices),
        "messages": len(made.messages), "gap": made.gap, "makespan": made.makespan,
    }  # fmt: skip
    mine = harness.median(times)
    return harness.row(
        f"planning {label}", mine, None, "the goal", None, MOST if columns["devices"] <= 512 else None,
        "s of the processor", **harness.extra(columns),
    ), made  # fmt: skip


def needed(case: Case) -> int:
    """Bytes that must enter hosts: each host what its devices need and it does not hold, over the replicas."""
    host_of, total = case.topology.host_of, 0
    for transfer in case.transfers.values():
        boxes: dict[int, set[tuple[Any, ...]]] = {}
        for device in transfer.target.devices.tolist():
            box = tuple((s.start, s.stop) for s in transfer.target.slices(device))
            boxes.setdefault(host_of[device], set()).add(box)
        for found in boxes.values():  # boxes of a host are equal or disjoint here
            for box in found:
                size = transfer.source.itemsize
                for first, end in box:
                    size *= end - first
                total += size
    return total


def refit(size: Any, alpha: int, **shape: Any) -> list[Row]:
    """Gap and bytes of a refit for one cost of messages."""
    local: dict[str, Any] = NETWORK | ({"local_alpha": 0.0} if alpha == 0 else {})
    case = llama_refit(size, alpha=f"{alpha}us", **local, **shape)
    made = plan(case.transfers, case.topology)
    run = simulate(made)
    columns = {"simulated": run.makespan / made.lower_bound, "messages": len(made.messages)}
    label, ratio = f"Llama {size.upper()}, α = {alpha} µs", made.makespan / made.lower_bound
    bytes_ = made.network_bytes / (least := needed(case))
    return [
        harness.row(f"{label}: planned", made.makespan, made.lower_bound, "lower bound", ratio, 1 + GAP,
                    **harness.extra(columns)),
        harness.row(f"{label}: bytes between hosts", made.network_bytes, least, "least possible", bytes_, 1.0, "bytes"),
    ]  # fmt: skip


def against(label: str, case: Case, ways: Sequence[str]) -> list[Row]:
    """Ours and others in the simulator, and how long simulating takes."""
    made = plan(case.transfers, case.topology)
    run, wall, seconds = harness.spent(lambda: simulate(made))
    columns = {"seconds": seconds, "wall": wall, "flows": run.flows, "events": run.events, "devices": len(made.devices)}
    ratio = run.makespan / made.lower_bound
    at_once = simulate(made, in_flight=None).makespan
    columns |= {"at_once": at_once}
    label_ours = f"{label}: ours, simulated"
    rows = [harness.row(label_ours, run.makespan, made.lower_bound, "lower bound", ratio, **harness.extra(columns))]
    points = round_robin(case.transfers, case.topology)
    makers: dict[str, Callable[[], Any]] = {
        "gather and broadcast": lambda: simulate(gather_broadcast(case.transfers, case.topology)),
        "point to point, in order": lambda: simulate(points),
        "point to point, at once": lambda: simulate(points, in_flight=None),
    }
    for name in ways:
        other, wall, seconds = harness.spent(makers[name])
        mine = at_once if name.endswith("at once") else run.makespan
        columns = harness.extra({"seconds": seconds, "wall": wall, "flows": other.flows, "events": other.events})
        ratio = mine / other.makespan
        rows.append(harness.row(f"{label}: simulated", mine, other.makespan, name, ratio, **columns))
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    args = harness.options(NAME, argv)
    rows: list[Row] = []
    for label, case in speed_cases(args.quick).items():
        rows.append(planning(label, case, args.repeats or (1 if args.quick else 3))[0])
        harness.show(rows[-1:])
    small: dict[str, int] = {"trainers": 16, "replicas": 2} if args.quick else {}
    for size in ("8b",) if args.quick else ("8b", "70b"):
        for alpha in ALPHAS[1:2] if args.quick else ALPHAS:
            rows += refit(size, alpha, **small)
            harness.show(rows[-2:])
    every = ("gather and broadcast", "point to point, in order", "point to point, at once")
    fleets: list[tuple[Any, int, int, Sequence[str]]] = [("8b", 16, 2, every)]
    if not args.quick:
        fleets = [("8b", 64, 8, every), ("70b", 64, 8, every), ("8b", 16, 8, every), ("70b", 512, 64, every[1:])]
    for size, trainers, replicas, ways in fleets:
        label = f"Llama {size.upper()}, {trainers} to {replicas} × 8 devices"
        case = llama_refit(size, trainers=trainers, replicas=replicas, alpha="2us", **NETWORK)
        some = against(label, case, ways)
        harness.show(some)
        rows += some
    harness.save(NAME, args, rows, NOTES)


if __name__ == "__main__":
    main()
